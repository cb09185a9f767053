"""Records to tensors, on the device where they are: what :meth:`RecordFormat.decode` does, to the bit.

A batch's signals travel as they lie on disk, about a third of their decoded size. Nothing here waits for a GPU; records
that cannot have been written are found before they leave the CPU (:meth:`RecordFormat.check_ids`).
"""

import numpy as np
import torch
from jaxtyping import Float, Int, UInt8
from torch import Tensor

from bridgegarden.teacher.cache.record import LEAST_KEPT, LEVELS, RecordFormat, SortedIds


def as_bytes(records: np.ndarray) -> UInt8[Tensor, "N B"]:
    """Records as they are, a row each."""
    return torch.from_numpy(
        np.frombuffer(records.tobytes(), np.uint8).reshape(len(records), records.dtype.itemsize).copy()
    )


class TensorDecoder:
    """Decodes the positions of a cache by PyTorch."""

    def __init__(self, layout: RecordFormat) -> None:
        self._layout = layout
        self._fields = {name: (field[0].itemsize, field[1]) for name, field in (layout.dtype.fields or {}).items()}
        self._tables: dict[torch.device, tuple[Tensor, Tensor, Tensor]] = {}

    def decode(self, records: UInt8[Tensor, "N B"]) -> dict[str, Tensor]:
        """The fields of :class:`~bridgegarden.teacher.cache.record.Signals` by name; those that are None are left out.

        Args:
            records: of :func:`as_bytes`, checked by :meth:`RecordFormat.check_ids` before.
        """
        spec = self._layout.spec
        shares, exponents, steps = self._on(records.device)
        codes, max_logp = self._codes(records), self._number(records, "max_logp")
        span = self._number(records, "span").float()
        logp = max_logp.unsqueeze(1) - shares[codes] * span.unsqueeze(1)
        logp = logp.masked_fill(codes == self._layout.nothing, -torch.inf)
        parts = {"entropy": self._number(records, "entropy"), "max_logp": max_logp}
        ids = None if spec.is_dense else self._ids(self._bytes(records, "ids"))
        log_tail = self._number(records, "log_tail") if spec.has_tail else None
        if spec.support.kind == "sampled":
            parts["argmax"] = _little_endian(self._bytes(records, "argmax"), 4).squeeze(1).int()
        else:
            slot = codes.argmin(1, keepdim=True)
            parts["argmax"] = (slot if ids is None else ids.gather(1, slot)).squeeze(1).int()
            logp = logp + _excess(logp, log_tail).unsqueeze(1)
        powers = records.new_zeros((len(records), 0), dtype=torch.float32)
        if spec.stored_exponents:
            assert log_tail is not None
            tail = exponents * log_tail.double().unsqueeze(1)
            powers = (tail + _little_endian(self._bytes(records, "tail_powers"), 2) * steps).float()
        parts |= {"logp": logp, "tail_powers": powers, "label_logp": self._label_logp(records, codes, log_tail)}
        return parts | ({} if ids is None else {"ids": ids}) | ({} if log_tail is None else {"log_tail": log_tail})

    def _on(self, device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
        """The share of each code, and what decodes sums over the tail; copied once, since a copy waits."""
        if device not in self._tables:
            powers = self._layout.powers
            parts = self._layout.shares, powers.exponents, powers.widths / LEVELS
            self._tables[device] = tuple(torch.from_numpy(part).to(device) for part in parts)  # pyright: ignore
        return self._tables[device]

    def _bytes(self, records: Tensor, name: str) -> Tensor:
        size, at = self._fields[name]
        # A copy also where a single row is contiguous already: its numbers begin where the memory allows.
        return records[:, at : at + size].clone(memory_format=torch.contiguous_format)

    def _number(self, records: Tensor, name: str) -> Float[Tensor, "N"]:
        part = self._bytes(records, name)
        return part.reshape(-1).view(torch.float32 if part.shape[1] == 4 else torch.float16)

    def _codes(self, records: Tensor) -> Int[Tensor, "N K"]:
        return _little_endian(self._bytes(records, "codes"), self._layout.spec.bits // 8)

    def _ids(self, code: Tensor) -> Int[Tensor, "N K"]:
        ids = decode_sorted(self._layout.sorted_ids, code).int()
        return ids.masked_fill(ids == self._layout.spec.vocab_size, -1)

    def _label_logp(self, records: Tensor, codes: Tensor, log_tail: Tensor | None) -> Tensor:
        logp = self._number(records, "label_logp")
        if self._layout.spec.served is None:
            return logp
        assert log_tail is not None
        kept = (codes != self._layout.nothing).sum(1)
        return logp.masked_fill((kept == 1) & (log_tail <= self._layout.least_tail), torch.nan)


def decode_sorted(sorted_ids: SortedIds, code: UInt8[Tensor, "N W"]) -> Int[Tensor, "N K"]:
    """What :meth:`SortedIds.decode` gives. The i-th one of a row is sent to slot i, and zeros to one beyond the last:
    where they are is never asked, which a GPU would have to be waited for."""
    count, device = sorted_ids.count, code.device
    bits = (code[:, : sorted_ids.high_bytes].unsqueeze(2) >> torch.arange(8, device=device)) & 1
    bits = bits.flatten(1).long()
    slots = torch.where(bits == 1, bits.cumsum(1) - 1, count).clamp(max=count)
    places = torch.arange(bits.shape[1], device=device).expand_as(bits)
    ones = bits.new_zeros((len(code), count + 1)).scatter_(1, slots, places)[:, :count]
    high = ones - torch.arange(count, device=device)
    return (high << sorted_ids.low_bits) | _low(sorted_ids, code[:, sorted_ids.high_bytes :])


def _low(sorted_ids: SortedIds, code: Tensor) -> Tensor:
    if sorted_ids.low_bits == 0:
        return code.new_zeros((len(code), sorted_ids.count), dtype=torch.int64)
    padded = torch.nn.functional.pad(code, (0, 4))
    starts = torch.arange(sorted_ids.count, device=code.device) * sorted_ids.low_bits
    first, shift = starts >> 3, starts & 7
    window = sum(padded[:, first + byte].long() << (8 * byte) for byte in range(4))
    return (window >> shift) & ((1 << sorted_ids.low_bits) - 1)


def _little_endian(part: UInt8[Tensor, "N B"], size: int) -> Int[Tensor, "N C"]:
    numbers = part.unflatten(1, (-1, size)).int()
    return sum((numbers[:, :, byte] << (8 * byte) for byte in range(1, size)), start=numbers[:, :, 0])


def _excess(logp: Float[Tensor, "N K"], log_tail: Tensor | None) -> Float[Tensor, "N"]:
    """What has to be added so that kept tokens and tail sum to one; rounded once, so that it is the same everywhere."""
    exact = logp.double()
    whole = exact.logsumexp(1)
    if log_tail is None:
        return (-whole).float()
    return ((-log_tail.double().expm1()).clamp(min=LEAST_KEPT).log() - whole).float()
