"""One position on disk: a few bytes of fixed layout, so that any position can be read where it lies.

Log-probabilities are stored relative to the likeliest token's, which is exact, in levels whose distance grows linearly
from there: fine where the mass is, coarse in the far tail. Decoded, kept tokens and tail sum to one.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import numpy as np

from bridgegarden.teacher.cache.spec import CacheSpec

LEAST = 100.0
"""Nats below the likeliest token at which a finite log-probability is cut: float32 has no such probability."""

BOUNDS = {
    "log_tail": (-math.inf, 1.0),
    "entropy": (-1.0, 100.0),
    "max_logp": (-100.0, 1.0),
    "label_logp": (-math.inf, 1.0),
    "span": (0.0, 2 * LEAST),
}
"""Between which the numbers of a record lie, with room for rounding."""
LEAST_KEPT = 1e-30
"""Mass that kept tokens are taken to have at least, where the tail says that they have none."""
LEVELS = 65_535
"""Steps between the least and the most that a sum over the tail can be: two bytes."""


class Signals(NamedTuple):
    """Decoded positions: the fields of a ``TeacherSignal``, and the label's log-probability, as arrays."""

    ids: np.ndarray | None
    """``(N, K)`` int32, ascending, -1 in empty slots; None where the whole vocabulary is kept."""
    logp: np.ndarray
    """``(N, K)`` float32, nats."""
    log_tail: np.ndarray | None
    """``(N,)`` float32, nats."""
    tail_powers: np.ndarray
    """``(N, E)`` float32."""
    entropy: np.ndarray
    """``(N,)`` float32, nats."""
    argmax: np.ndarray
    """``(N,)`` int32."""
    max_logp: np.ndarray
    """``(N,)`` float32, nats."""
    label_logp: np.ndarray
    """``(N,)`` float32, nats: the teacher's log-probability of the token in the data. Decoded, NaN where a server has
    not said it."""


class DamagedRecords(Exception):
    """Records that no teacher's signals can have been encoded to."""


class RecordFormat:
    """Encodes and decodes the positions of a cache with a given spec."""

    def __init__(self, spec: CacheSpec) -> None:
        self.spec = spec
        # An empty slot holds the id after the last, and sorts behind all others.
        self._sorted = None if spec.is_dense else SortedIds(spec.slots, spec.vocab_size)
        self.powers = TailPowers(spec.stored_exponents, spec.teacher_width)
        self._code = np.dtype("u1" if spec.bits == 8 else "<u2")
        self._levels = 2**spec.bits - 2
        self.nothing = 2**spec.bits - 1
        """The code of an empty slot."""

    @cached_property
    def dtype(self) -> np.dtype:
        """The layout, little-endian and without gaps."""
        spec = self.spec
        fields: list[tuple] = [("codes", self._code, (spec.slots,))]
        if self._sorted is not None:
            fields.insert(0, ("ids", "u1", (self._sorted.width,)))
        if spec.has_tail:
            fields.append(("log_tail", "<f4"))
        if spec.stored_exponents:
            fields.append(("tail_powers", "<u2", (len(spec.stored_exponents),)))
        if spec.support.kind == "sampled":
            fields.append(("argmax", "<u4"))
        fields += [("entropy", "<f4"), ("max_logp", "<f4"), ("label_logp", "<f4"), ("span", "<f2")]
        return np.dtype(fields)

    @property
    def bytes_per_position(self) -> int:
        """Size of a record."""
        return self.dtype.itemsize

    def encode(self, signals: Signals) -> np.ndarray:
        """Records of `signals`, whose slots may come in any order."""
        records = np.zeros(len(signals.logp), dtype=self.dtype)
        logp = signals.logp
        if self._sorted is not None:
            assert signals.ids is not None
            ids = np.where(signals.ids < 0, self.spec.vocab_size, signals.ids).astype(np.int64)
            order = np.argsort(ids, axis=1, kind="stable")
            ids, logp = np.take_along_axis(ids, order, 1), np.take_along_axis(logp, order, 1)
            records["ids"] = self._sorted.encode(ids)
            is_argmax = ids == signals.argmax[:, None]
        else:
            is_argmax = np.arange(self.spec.slots) == signals.argmax[:, None]
        records["codes"], records["span"] = self._quantise(logp, signals.max_logp, is_argmax)
        for name in ("log_tail", "argmax", "entropy", "max_logp", "label_logp"):
            if name in (self.dtype.names or ()):
                records[name] = getattr(signals, name)
        if self.spec.stored_exponents:
            records["tail_powers"] = self.powers.encode(signals.tail_powers, records["log_tail"])
        return records

    def check(self, records: np.ndarray) -> None:
        """Make sure that the numbers beside the token ids are ones that a teacher can have said.

        Raises:
            DamagedRecords: one is not.
        """
        for name, (least, most) in BOUNDS.items():
            if name in (self.dtype.names or ()):
                values = records[name]
                fits = (values >= least) & (values <= most)
                if not fits.all():
                    raise DamagedRecords(f"{name} is {values[~fits][0]}")

    def check_ids(self, records: np.ndarray) -> None:
        """Make sure that :meth:`decode` would find no token id in `records` that cannot have been written.

        Raises:
            DamagedRecords: it would.
        """
        if self.spec.support.kind == "sampled":
            self._check_argmax(records["argmax"])
        if self._sorted is not None:
            doubtful = self._sorted.doubtful(records["ids"])
            if doubtful.any():
                self._ids(records["ids"][doubtful])

    def _check_argmax(self, argmax: np.ndarray) -> None:
        if argmax.max(initial=0) >= self.spec.vocab_size:
            raise DamagedRecords(f"token id {argmax.max()} is not in the vocabulary of {self.spec.vocab_size}")

    def decode(self, records: np.ndarray) -> Signals:
        """The signals of records, slots in ascending order of ids.

        Raises:
            DamagedRecords: a token id in them cannot have been written.
        """
        codes, max_logp = records["codes"], records["max_logp"].astype(np.float32)
        below = self.shares[codes] * records["span"].astype(np.float32)[:, None]
        logp = np.subtract(max_logp[:, None], below, out=below)
        logp[codes == self.nothing] = -np.inf
        ids = None if self._sorted is None else self._ids(records["ids"])
        log_tail = records["log_tail"].astype(np.float32) if self.spec.has_tail else None
        if self.spec.support.kind == "sampled":
            self._check_argmax(records["argmax"])
            argmax = records["argmax"].astype(np.int32)
        else:
            slot = codes.argmin(1)
            argmax = slot.astype(np.int32) if ids is None else ids[np.arange(len(ids)), slot]
            logp += _excess(logp, log_tail)[:, None]
        powers = np.zeros((len(logp), 0), np.float32)
        if self.spec.stored_exponents:
            assert log_tail is not None
            powers = self.powers.decode(records["tail_powers"], log_tail)
        return Signals(
            ids=ids,
            logp=logp,
            log_tail=log_tail,
            tail_powers=powers,
            entropy=records["entropy"].astype(np.float32),
            argmax=argmax,
            max_logp=max_logp,
            label_logp=self.label_logp(records),
        )

    def label_logp(self, records: np.ndarray) -> np.ndarray:
        """``(N,)`` float32, nats: the teacher's log-probability of the token in the data, NaN where it is not known.

        A server says nothing of most ends of turn, which are kept as the hard label alone.
        """
        logp = records["label_logp"].astype(np.float32)
        if self.spec.served is not None:
            logp[self.label_alone(records)] = np.nan
        return logp

    def label_alone(self, records: np.ndarray) -> np.ndarray:
        """``(N,)`` bool: of which positions a server said nothing but the token that it wrote."""
        assert self.spec.served is not None
        kept = np.count_nonzero(records["codes"] != self.nothing, axis=1)
        return (kept == 1) & (records["log_tail"] <= self.least_tail)

    @property
    def least_tail(self) -> float:
        """Log mass of a tail up to which a lone token of a server is taken to be the label alone."""
        assert self.spec.served is not None
        return math.log(self.spec.served.smallest_tail) + 1e-3

    @property
    def sorted_ids(self) -> "SortedIds":
        """The code of the token ids; there is none where the whole vocabulary is kept."""
        assert self._sorted is not None
        return self._sorted

    @cached_property
    def shares(self) -> np.ndarray:
        """Share of the span that each code stands for. Quadratic: twice as far down, levels lie twice as far apart."""
        return np.square(np.arange(self.nothing + 1, dtype=np.float32) / self._levels, dtype=np.float32)

    def _quantise(self, logp: np.ndarray, max_logp: np.ndarray, is_argmax: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        nothing = np.isneginf(logp)
        below = np.where(nothing, 0.0, np.clip(max_logp[:, None] - logp, 0.0, LEAST)).astype(np.float32)
        span = below.max(1).astype(np.float16)
        span = np.where(span < below.max(1), np.nextafter(span, np.float16(math.inf)), span)
        share = below / np.maximum(span.astype(np.float32), 1e-6)[:, None]
        codes = np.rint(self._levels * np.sqrt(np.minimum(share, 1.0)))
        # Code 0 is the argmax's alone, so that a tie, or a token within half a level, does not hide which it was.
        codes = np.where(is_argmax, 0, np.maximum(codes, 1))
        return np.where(nothing, self.nothing, codes).astype(self._code), span

    def _ids(self, code: np.ndarray) -> np.ndarray:
        assert self._sorted is not None
        try:
            ids = self._sorted.decode(code).astype(np.int32)
        except ValueError as error:
            raise DamagedRecords(f"a list of token ids is {error}") from error
        if ids.max(initial=0) > self.spec.vocab_size:
            raise DamagedRecords(f"token id {ids.max()} is not in the vocabulary of {self.spec.vocab_size}")
        ids[ids == self.spec.vocab_size] = -1
        return ids


def _excess(logp: np.ndarray, log_tail: np.ndarray | None) -> np.ndarray:
    """What has to be added so that kept tokens and tail sum to one; rounded once, so that it is the same everywhere.

    The tail is what is stored: small, it keeps its digits here.
    """
    exact = logp.astype(np.float64)
    highest = exact.max(1)
    whole = highest + np.log(np.exp(exact - highest[:, None]).sum(1))
    if log_tail is None:
        return (-whole).astype(np.float32)
    kept = np.log(np.maximum(-np.expm1(log_tail.astype(np.float64)), LEAST_KEPT))
    return (kept - whole).astype(np.float32)


_ONES = np.array([number.bit_count() for number in range(256)])


@dataclass(frozen=True)
class SortedIds:
    """The code for rows of `count` ids, each in ``0 .. largest``, ascending, repetitions allowed: Elias-Fano's.

    The low bits of every id are kept as they are; the high bits, which only grow, as a string in which the i-th one
    stands at (high part of id i) + i. That is within two bits an id of the least that any code for a set can take: 64
    ids out of 151,936 take 106 bytes, where 16 bits each would take 128 and not suffice.

    Sebastiano Vigna, Quasi-succinct indices, 2013, arXiv:1206.4300, section 3.
    """

    count: int
    largest: int

    @property
    def low_bits(self) -> int:
        """Bits of each id that are stored as they are."""
        return max(0, ((self.largest + 1) // self.count).bit_length() - 1)

    @property
    def high_bytes(self) -> int:
        """Bytes of a row's string of high parts."""
        return -(-(self.count + (self.largest >> self.low_bits)) // 8)

    @property
    def low_bytes(self) -> int:
        """Bytes of a row's low parts."""
        return -(-self.count * self.low_bits // 8)

    @property
    def width(self) -> int:
        """Bytes of a row."""
        return self.high_bytes + self.low_bytes

    def encode(self, ids: np.ndarray) -> np.ndarray:
        """``(N, count)`` ids to ``(N, width)`` bytes."""
        rows = np.arange(len(ids))[:, None]
        high = np.zeros((len(ids), 8 * self.high_bytes), dtype=np.uint8)
        high[rows, (ids >> self.low_bits) + np.arange(self.count)] = 1
        low = np.unpackbits(ids.astype("<u4").view(np.uint8).reshape(*ids.shape, 4), axis=2, bitorder="little")
        low = low[:, :, : self.low_bits].reshape(len(ids), self.count * self.low_bits)
        return np.concatenate([np.packbits(bits, axis=1, bitorder="little") for bits in (high, low)], axis=1)

    def decode(self, code: np.ndarray) -> np.ndarray:
        """``(N, width)`` bytes to ``(N, count)`` ids, int64.

        Raises:
            ValueError: a row is not what `count` ids become.
        """
        bits = np.unpackbits(code[:, : self.high_bytes], axis=1, bitorder="little")
        ones, begins = np.flatnonzero(bits), np.arange(len(code)) * bits.shape[1]
        if len(ones) != len(code) * self.count:
            raise ValueError(f"not {self.count} ids")
        ones = ones.reshape(len(code), self.count)
        # As many in all may be too few in one row and too many in the next.
        if (ones[:, 0] < begins).any() or (ones[:, -1] >= begins + bits.shape[1]).any():
            raise ValueError(f"not {self.count} ids")
        high = ones - begins[:, None] - np.arange(self.count)
        return (high << self.low_bits) | self._low(code[:, self.high_bytes :])

    def doubtful(self, code: np.ndarray) -> np.ndarray:
        """``(N,)`` bool: the rows that have to be decoded to know whether they hold `count` ids up to `largest`.

        All others do: they have as many ones, and the last stands before where an id could be too large.
        """
        high = code[:, : self.high_bytes]
        beyond = self.count - 1 + (self.largest >> self.low_bits)
        first, bit = divmod(beyond, 8)
        late = (high[:, first] >> bit != 0) | high[:, first + 1 :].any(1)
        return late | (_ONES[high].sum(1) != self.count)

    def _low(self, code: np.ndarray) -> np.ndarray:
        """Four bytes from where an id's low bits begin hold all of them: there are at most 24."""
        if self.low_bits == 0:
            return np.zeros((len(code), self.count), dtype=np.int64)
        padded = np.zeros((len(code), self.low_bytes + 4), dtype=np.uint8)
        padded[:, : self.low_bytes] = code
        first, shift = np.divmod(np.arange(self.count) * self.low_bits, 8)
        window = sum(padded[:, first + byte].astype(np.int64) << (8 * byte) for byte in range(4))
        return (window >> shift) & ((1 << self.low_bits) - 1)


class TailPowers:
    r"""Encodes the logs of :math:`\sum_{i \in tail} p_i^g` of positions whose tail has a known mass t.

    All of t in one token gives t^g; t spread evenly over n tokens gives n^(1 - g) t^g. The sum lies between these,
    whichever is the larger, so its log is off by at most \|1 - g\| log(n) / 131,070 nats: 9e-5 for n = 256,000.
    """

    def __init__(self, exponents: Sequence[float], tokens: int) -> None:
        """
        Args:
            exponents: g of every sum, > 0.
            tokens: n, at most so many tokens are in the tail.
        """
        self.exponents = np.asarray(exponents, dtype=np.float64)
        # With one token, or g = 1, both ends are the same, and every code stands for it.
        self.widths = (1 - self.exponents) * np.log(max(tokens, 2))

    def encode(self, powers: np.ndarray, log_tail: np.ndarray) -> np.ndarray:
        """Codes ``(N, E)`` of the sums `powers` ``(N, E)`` and the tail's log mass ``(N,)``, both in nats."""
        with np.errstate(invalid="ignore"):  # -inf minus -inf, where nothing is in the tail
            above = powers.astype(np.float64) - self._least(log_tail)
        share = np.divide(above, self.widths, out=np.zeros_like(above), where=self.widths != 0)
        return np.rint(LEVELS * np.clip(np.nan_to_num(share), 0.0, 1.0)).astype("<u2")

    def decode(self, codes: np.ndarray, log_tail: np.ndarray) -> np.ndarray:
        """The sums ``(N, E)``, float32 nats."""
        return (self._least(log_tail) + codes * (self.widths / LEVELS)).astype(np.float32)

    def _least(self, log_tail: np.ndarray) -> np.ndarray:
        """Log of t^g."""
        return self.exponents * log_tail.astype(np.float64)[:, None]
