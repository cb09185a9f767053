"""What other programs kept of a teacher: their files, read as distributions over the tokens of a row.

Axolotl (github.com/axolotl-ai-cloud/axolotl, src/axolotl/integrations/kd): a column with a list a token of
``{"token": "token_id:N", "logprob": x}``, or the prepared columns ``target_token_ids`` and ``target_logprobs``.

DistillKit (github.com/arcee-ai/DistillKit, distillkit/sample_logits_vllm.py and distillkit/compression): Parquet files
beside a ``compression_config.yaml`` with ``compressed_logprobs`` and ``bytepacked_indices``, or uncompressed
``token_ids`` and ``top_values``.

Where a list stands says which token it is about, and programs count differently: off by one is the classic fault. So
every format has its own place, and :class:`Alignment` holds it against the labels.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import yaml

from bridgegarden.errors import ConfigError, DataError
from bridgegarden.teacher.answers import Position, kept_position
from bridgegarden.teacher.foreign_values import EXCESS, LARGEST_ID
from bridgegarden.teacher.server_logprobs import SMALLEST_TAIL

Format = Literal["export", "axolotl", "distillkit"]
VLLM_COLUMN = "llm_text_generation_vllm_logprobs"
"""Axolotl's column, unless its configuration names another."""
LISTED, PREPARED = (VLLM_COLUMN, "logprobs"), ("target_token_ids", "target_logprobs")
RAW, PACKED = ("token_ids", "top_values"), ("bytepacked_indices", "compressed_logprobs")
LEGACY = ("packed_indices", "exact_values", "coeffs")
CONFIG = "compression_config.yaml"
NO_MASS = -1e8
"""Log-probabilities from here on fill up lists: Axolotl writes -1e9, and others -inf."""
LOSSY_EXCESS = 0.05
"""By how much probabilities may exceed one that were fitted and rounded."""
NOT_NUMBERS = "log-probabilities that are none"
TOO_MUCH = "probabilities that exceed 1 together"
REPEATED = "a token listed twice"
OTHER_TOKENS = "a likeliest token that is not the student's"
NOTHING = "no log-probabilities of a token that is learnt"


class Lists(NamedTuple):
    """What a file says about a row: of each place the listed tokens and their log-probabilities, in nats."""

    input_ids: np.ndarray | None
    """The row's token ids; None where the file has none."""
    ids: Sequence[np.ndarray]
    logp: Sequence[np.ndarray]
    from_end: bool
    """Whether the last place is about the last token. Else the first one is about the second token, which is the first
    that has a context."""

    def first(self, length: int, shift: int) -> int:
        """The token of a row of `length` that the first place is about, moved by `shift`."""
        return (length - len(self.ids) if self.from_end else 1) + shift


@dataclass(frozen=True, kw_only=True)
class CaptureReader:
    """Reads the rows of one file."""

    kind: Format
    columns: tuple[str, ...]
    """What holds the lists."""
    config: "DistillKitConfig | None" = None
    """Of compressed ones."""

    @classmethod
    def of(cls, path: Path, names: Sequence[str], kind: str, column: str | None) -> "CaptureReader":
        """The reader for a file with the columns `names`.

        Raises:
            ConfigError: they are none of a known format, or not of the one asked for.
        """
        known: list[tuple[Format, tuple[str, ...]]] = [("distillkit", PACKED), ("distillkit", RAW)]
        known += [("axolotl", PREPARED), *(("axolotl", (name,)) for name in ([column] if column else LISTED))]
        if kind != "axolotl" and set(LEGACY) <= set(names):
            raise ConfigError(
                f"{path}: holds DistillKit's old compression ({', '.join(LEGACY)}), which is not read here. Capture "
                "anew with DistillKit's sample_logits_vllm, or write its columns token_ids and top_values."
            )
        for found, columns in known:
            if kind in ("auto", found) and set(columns) <= set(names):
                config = DistillKitConfig.beside(path) if columns == PACKED else None
                return cls(kind=found, columns=columns, config=config)
        listed = "; ".join(f"{', '.join(columns)} ({found})" for found, columns in known)
        raise ConfigError(
            f"{path}: has no columns of log-probabilities that are known here: {listed}. It has: "
            f"{', '.join(names) or 'none'}. Name the column with --column."
        )

    @property
    def is_lossy(self) -> bool:
        """Whether log-probabilities were fitted or rounded to a few bits."""
        return self.config is not None and self.config.exact_k < self.config.k

    def read(self, row: Mapping[str, Any], place: str) -> Lists:
        """What a row holds.

        Raises:
            DataError: it is not what the format has.
        """
        try:
            given = row.get("input_ids")
            ids = None if given is None else np.asarray(given, np.int64)
            if self.config is not None:
                return Lists(ids, *self.config.decoded(row[PACKED[0]], row[PACKED[1]]), from_end=False)
            if len(self.columns) == 1:
                return Lists(ids, *_token_objects(row[self.columns[0]]), from_end=True)
            tokens, logps = (row[name] for name in self.columns)
            if len(tokens) != len(logps):
                raise ValueError(f"{len(tokens)} lists of tokens and {len(logps)} of log-probabilities")
            arrays = [np.asarray(part, np.int64) for part in tokens], [np.asarray(part, np.float64) for part in logps]
            lengths = [[len(part) for part in side] for side in arrays]
            if lengths[0] != lengths[1]:
                raise ValueError("a list of tokens is not as long as its log-probabilities")
            return Lists(ids, *arrays, from_end=False)
        except (KeyError, TypeError, ValueError, IndexError, OverflowError) as error:
            raise DataError(f"{place}: no {self.kind} capture ({error or type(error).__name__}).") from error


def _token_objects(places: Sequence[Any]) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """Axolotl's ``{"token": "token_id:N", "logprob": x}``; None is a token without a context."""
    ids, logp = [], []
    for entries in places:
        listed = entries or []
        ids.append(np.asarray([int(str(entry["token"]).removeprefix("token_id:")) for entry in listed], np.int64))
        logp.append(np.asarray([entry["logprob"] for entry in listed], np.float64))
    return ids, logp


class Unfit(NamedTuple):
    """Why what is said at a place cannot be kept."""

    reason: str
    detail: str


def position_at(
    ids: np.ndarray, logp: np.ndarray, label: int, *, vocab_size: int, k: int, excess: float = EXCESS
) -> Position | Unfit:
    """One place of a file as what is kept of a position.

    A label outside the listed tokens has at most the least of their probabilities, and at most what they leave.

    Args:
        ids: listed tokens, in any order.
        logp: their log-probabilities, nats.
        label: the token in the data.
        vocab_size: tokens of the student; ids from there on are the tail's.
        k: how many to keep at most.
        excess: by how much probabilities may exceed one together.
    """
    if np.isnan(logp).any() or (logp > EXCESS).any() or ((ids < 0) | (ids > LARGEST_ID)).any():
        return Unfit(NOT_NUMBERS, f"{float(np.max(np.nan_to_num(logp, nan=math.inf), initial=0)):g}")
    there = logp > NO_MASS
    ids, logp = ids[there], np.minimum(logp[there], 0.0)
    if not len(ids):
        return Unfit(NOTHING, f"token id {label}")
    total = float(np.exp(logp).sum())
    if total > 1 + excess:
        return Unfit(TOO_MUCH, f"{total:.4g}")
    order = np.argsort(-logp, kind="stable")
    ids, logp = ids[order], logp[order]
    if len(np.unique(ids)) < len(ids):
        return Unfit(REPEATED, f"in {len(ids)} tokens")
    if ids[0] >= vocab_size:
        return Unfit(OTHER_TOKENS, f"id {ids[0]} of {vocab_size}")
    listed = [int(index) if index < vocab_size else None for index in ids]
    return kept_position(listed, logp.tolist(), label_logp(ids, logp, label), k)


def label_logp(ids: np.ndarray, logp: np.ndarray, label: int) -> float:
    """The label's log-probability, or the most that it can be."""
    at = np.flatnonzero(ids == label)
    if len(at):
        return float(logp[at[0]])
    rest = max(1 - float(np.exp(logp).sum()), SMALLEST_TAIL)
    return min(math.log(rest), float(logp.min()))


class Alignment:
    """The labels' mean log-probability where the lists are taken to stand, one token earlier and one later."""

    SHIFTS = (-1, 0, 1)
    MARGIN = 0.5
    """Nats by which another place must fit better."""
    ERRORS = 3.3
    """And by so many standard errors over positions: once in a thousand by chance."""

    def __init__(self, vocab_size: int) -> None:
        self._vocab_size = vocab_size
        self._sums, self._squares, self.positions = np.zeros(len(self.SHIFTS)), np.zeros(len(self.SHIFTS)), 0

    def add(self, lists: Lists, input_ids: np.ndarray, supervised: Iterable[int], shift: int) -> None:
        """Look at the supervised tokens of a row, where all places are there."""
        first = lists.first(len(input_ids), shift)
        for at in supervised:
            # Moved later, the list of the token before is about this one.
            places = [at - first - moved for moved in self.SHIFTS]
            inside = min(places) >= 0 and max(places) < len(lists.ids)
            # What only fills up says nothing, and would fit better than a list without the label.
            if inside and all((lists.logp[place] > NO_MASS).any() for place in places):
                scores = np.array([self._score(lists, place, int(input_ids[at])) for place in places])
                self._sums += scores
                self._squares += np.square(scores - scores[self.SHIFTS.index(0)])
                self.positions += 1

    @property
    def means(self) -> dict[int, float]:
        """By shift; empty where nothing was looked at."""
        if not self.positions:
            return {}
        return dict(zip(self.SHIFTS, (self._sums / self.positions).tolist(), strict=True))

    @property
    def better(self) -> int | None:
        """The shift that fits clearly better than none; None where none does."""
        means = self.means
        if not means:
            return None
        best = max(means, key=lambda shift: means[shift])
        gain = means[best] - means[0]
        spread = self._squares[self.SHIFTS.index(best)] / self.positions - gain**2
        error = math.sqrt(max(spread, 0.0) / self.positions)
        return best if gain > max(self.MARGIN, self.ERRORS * error) else None

    def _score(self, lists: Lists, place: int, label: int) -> float:
        ids, logp = lists.ids[place], lists.logp[place]
        if label in ids:
            return max(float(logp[np.flatnonzero(ids == label)[0]]), -100.0)
        # Not the most that it can be, but what it has if the rest is spread evenly.
        rest = max(1 - float(np.exp(np.minimum(logp, 0.0)).sum()), SMALLEST_TAIL)
        return math.log(rest / max(self._vocab_size - len(ids), 1))


BYTES = {"float16": 2, "bfloat16": 2, "float32": 4, "float64": 8}


@dataclass(frozen=True, kw_only=True)
class Bin:
    """Some residuals of a fit, as whole numbers of a few bits times a scale."""

    scale_dtype: str
    element_bits: int
    num_elements: int


@dataclass(frozen=True, kw_only=True)
class DistillKitConfig:
    """How DistillKit compressed log-probabilities: the likeliest exactly, a fit to the others, and its residuals.

    Of distillkit/compression/config.py and monotonic_logprobs.py at commit 897bd13.
    """

    d: int
    """Size of the vocabulary, which decides the bits of a token id."""
    k: int
    exact_k: int
    exact_dtype: str
    terms: tuple[int | str, ...]
    """Of the fit: powers of the rank, ``sqrt`` or ``exp``."""
    term_dtype: str
    bins: tuple[Bin, ...]
    delta_encoding: bool
    """Whether each value but the first is the difference to the one before."""
    normalize_t: bool
    """Whether ranks go from 0 to 1."""

    @classmethod
    def beside(cls, path: Path) -> "DistillKitConfig":
        """The configuration in the folder of a capture.

        Raises:
            ConfigError: it is missing, or of a form that is not known.
        """
        file = (path if path.is_dir() else path.parent) / CONFIG
        try:
            tree = yaml.safe_load(file.read_text(encoding="utf-8"))
            config = cls(
                d=int(tree["d"]),
                k=int(tree["k"]),
                exact_k=int(tree["exact_k"]),
                exact_dtype=tree.get("exact_dtype", "float32"),
                terms=tuple(tree.get("polynomial_terms") or ()),
                term_dtype=tree.get("term_dtype", "float32"),
                bins=tuple(Bin(**part) for part in tree.get("residual_bins") or ()),
                delta_encoding=bool(tree.get("delta_encoding", True)),
                normalize_t=bool(tree.get("normalize_t", False)),
            )
            sizes = (config.exact_dtype, config.term_dtype, *(part.scale_dtype for part in config.bins))
            unknown = [term for term in config.terms if term not in ("sqrt", "exp") and type(term) is not int]
            if unknown or not set(sizes) <= BYTES.keys() or not 0 <= config.exact_k <= config.k < config.d:
                raise ValueError(f"unknown terms {unknown}" if unknown else "sizes or types that do not fit")
        except (OSError, ValueError, TypeError, KeyError, AttributeError, yaml.YAMLError) as error:
            raise ConfigError(
                f"{file}: cannot be read as DistillKit's configuration ({error or type(error).__name__}). It lies "
                "beside the files that sample_logits_vllm wrote; give that folder."
            ) from error
        return config

    def decoded(self, packed: Sequence[Any], compressed: Sequence[Any]) -> tuple[list[np.ndarray], list[np.ndarray]]:
        """Token ids and log-probabilities of every place, likeliest first.

        Raises:
            ValueError: the bytes are not as many as the configuration says.
        """
        index_bits = math.ceil(math.log2(self.d))
        indices, values = (np.asarray(part, np.uint8).reshape(len(part), -1) for part in (packed, compressed))
        if indices.shape != (len(values), -(-self.k * index_bits // 8)) or values.shape[1] != self._bytes:
            raise ValueError(
                f"{indices.shape[1]} and {values.shape[1]} bytes a token, and the configuration says "
                f"{-(-self.k * index_bits // 8)} and {self._bytes}"
            )
        return list(_unpacked(indices, index_bits, self.k)), list(self._logp(values))

    @property
    def _bytes(self) -> int:
        """Of the log-probabilities of a place."""
        residuals = sum(BYTES[part.scale_dtype] + -(-part.element_bits * part.num_elements // 8) for part in self.bins)
        return self.exact_k * BYTES[self.exact_dtype] + len(self.terms) * BYTES[self.term_dtype] + residuals

    def _logp(self, values: np.ndarray) -> np.ndarray:
        rest = _Bytes(values)
        exact = rest.floats(self.exact_dtype, self.exact_k)
        fitted = np.zeros((len(values), self.k - self.exact_k))
        if self.terms:
            fitted += rest.floats(self.term_dtype, len(self.terms)) @ self._powers(fitted.shape[1])
        at = 0
        for part in self.bins:
            scale = rest.floats(part.scale_dtype, 1)
            count, bits = part.num_elements, part.element_bits
            whole = _unpacked(rest.take(-(-bits * count // 8)), bits, count)
            signed = 2.0 * whole - 1.0 if bits == 1 else whole - float(1 << (bits - 1))
            fitted[:, at : at + count] += signed * scale
            at += count
        both = np.concatenate([exact, fitted], axis=1)
        return both.cumsum(axis=1) if self.delta_encoding else both

    def _powers(self, count: int) -> np.ndarray:
        """``(terms, count)``: every term at every rank."""
        ranks = np.linspace(0, 1, count) if self.normalize_t else np.arange(count, dtype=np.float64)
        special = {"sqrt": np.sqrt, "exp": np.exp}
        return np.stack([special[term](ranks) if isinstance(term, str) else ranks**term for term in self.terms])


class _Bytes:
    """The bytes of every place, taken from the front."""

    def __init__(self, values: np.ndarray) -> None:
        self._values, self._at = values, 0

    def take(self, count: int) -> np.ndarray:
        part = self._values[:, self._at : self._at + count]
        self._at += count
        return np.ascontiguousarray(part)

    def floats(self, dtype: str, count: int) -> np.ndarray:
        part = self.take(count * BYTES[dtype])
        if dtype == "bfloat16":  # the upper half of a float32
            return (part.view("<u2").astype(np.uint32) << 16).view(np.float32).astype(np.float64)
        return part.view(f"<f{BYTES[dtype]}").astype(np.float64)


def _unpacked(values: np.ndarray, bits: int, count: int) -> np.ndarray:
    """``(N, count)`` whole numbers of so many bits, the highest bit first."""
    each = np.unpackbits(values, axis=1)[:, : bits * count].reshape(len(values), count, bits)
    return each @ (1 << np.arange(bits - 1, -1, -1, dtype=np.int64))
