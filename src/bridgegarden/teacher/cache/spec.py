"""What the signals of a cache mean: two caches with equal specs hold the same kind of thing."""

import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from bridgegarden.data.teacher_prompt import TeacherPrompt
from bridgegarden.errors import ConfigError, ModelError
from bridgegarden.objective.support import TeacherSignal
from bridgegarden.teacher.foreign_values import read_as
from bridgegarden.teacher.server_logprobs import SMALLEST_TAIL

DEFAULT_EXPONENTS = (0.1, 0.5, 2.0)
"""Tail power sums that are kept whatever the objective: for the power entropy's default gamma, for temperature 2 and
for the sharpened target of the preset."""
Bits = Literal[8, 16]
"""Of a log-probability on disk."""
DEFAULT_BITS: Bits = 8
MOST_TOKENS = 1 << 24
"""Entries of a vocabulary that the code of sorted ids can tell apart."""
MOST_SLOTS = 1_000_000
"""Tokens kept a position."""
SAMPLES = 16
SAMPLE_BYTES = 4096
"""Of a file of weights: how many pieces of which length are looked at."""
GGUF_HEAD, GGUF_SAMPLES = 1 << 20, 256
"""Of a GGUF file, which holds all tensors: bytes at its start, and pieces of the rest, that are looked at."""


@dataclass(frozen=True, kw_only=True)
class Support:
    """The likeliest tokens and the tail, or draws from the teacher."""

    kind: Literal["topk", "mass", "sampled"] = "topk"
    """``topk``: the `k` likeliest tokens. ``mass``: as few of them as hold `mass`, `k` at most. ``sampled``: `k` draws,
    unbiased for the forward KL at temperature 1 and of no use for anything else."""
    k: int = 64
    """Slots per position, >= 1. As large as the vocabulary, it keeps everything."""
    mass: float | None = None
    """Probability that ``mass`` keeps at least, in (0, 1)."""

    def __post_init__(self) -> None:
        if not 1 <= self.k <= MOST_SLOTS:
            raise ConfigError(f"cache: the number of kept tokens must be between 1 and {MOST_SLOTS}, got {self.k}.")
        if (self.mass is not None) != (self.kind == "mass"):
            raise ConfigError(f"cache: a mass belongs to the support 'mass' and to no other; got kind {self.kind!r}.")
        if self.mass is not None and not 0 < self.mass < 1:
            raise ConfigError(f"cache: the mass to keep must be between 0 and 1, both excluded; got {self.mass:g}.")

    def __str__(self) -> str:
        match self.kind:
            case "topk":
                return f"top {self.k}"
            case "mass":
                return f"mass {self.mass:g}, top {self.k} at most"
            case "sampled":
                return f"{self.k} draws"

    def signal(
        self, logits: Tensor, *, vocab_size: int, exponents: Sequence[float], generator: torch.Generator | None
    ) -> TeacherSignal:
        """The signal of ``(N, V)`` logits; `generator` is for draws."""
        if self.kind == "sampled":
            return TeacherSignal.from_samples(logits, self.k, generator=generator, vocab_size=vocab_size)
        signal = TeacherSignal.from_logits(logits, self.k, vocab_size, exponents=exponents)
        return signal if self.mass is None else _least_tokens(signal, self.mass)


ServedSource = Literal["answers", "scored", "imported"]
"""A server's own answers; rows that a server scored; a file that another program wrote."""


@dataclass(frozen=True, kw_only=True)
class Served:
    """What is special about the signals of a teacher of which only the likeliest tokens are known, as servers tell."""

    temperature: float
    """At which the answers were drawn; 1 where none were. The log-probabilities are those of temperature 1 all the
    same."""
    entropy: str = "lower bound"
    """What the stored entropy is; see :func:`bridgegarden.teacher.answers.least_entropy`."""
    smallest_tail: float = SMALLEST_TAIL
    """What the tail has at least: less is rounding in a server's numbers."""
    source: ServedSource = "answers"
    """Where the log-probabilities are from."""
    api: str | None = None
    """Kind of the server that scored."""

    def __post_init__(self) -> None:
        if not 0 <= self.temperature < math.inf or not 0 < self.smallest_tail < 1:
            raise ConfigError(
                f"cache: a served teacher's temperature is 0 or more and its smallest tail between 0 and 1, got "
                f"{self.temperature} and {self.smallest_tail}."
            )
        if (self.api is None) != (self.source != "scored"):
            raise ConfigError(
                f"cache: a server that scored has a kind, and no other has; got {self.source}, {self.api}."
            )

    def __str__(self) -> str:
        if self.source == "scored":
            return f"rows scored by {self.api}"
        if self.source == "imported":
            return "imported from another program's file"
        return f"yes, sampled at temperature {self.temperature:g}"


@dataclass(frozen=True, kw_only=True)
class Mixed:
    """One of the models whose distributions were mixed."""

    weight: float
    """Its share, in (0, 1)."""
    teacher: str
    """Name on the hub, or its folder."""
    revision: str | None
    """Its commit on the hub; None for a folder."""
    weights: str | None
    """Its :func:`weights_fingerprint`; None if unknown."""
    dtype: str
    """Type that it was run in."""

    def __post_init__(self) -> None:
        if not 0 < self.weight < 1:
            raise ConfigError(f"cache: {self.teacher}'s weight in a mixture is between 0 and 1, got {self.weight}.")

    @property
    def identity(self) -> str:
        """What it is, whatever it is called: its weights where they are known, else name and commit."""
        what = self.weights or f"{self.teacher} at {self.revision}"
        return f"{self.weight:g} x {what} in {self.dtype}"

    def __str__(self) -> str:
        known = "" if self.weights is None else f" ({short(self.weights)})"
        return f"{self.weight:g} x {self.teacher}{known} in {self.dtype}"


def mixture_fingerprint(members: Sequence[Mixed]) -> str:
    """SHA-256 over what each member is, in any order: equal where the mixtures are, wherever their folders lie."""
    return hashlib.sha256("\n".join(sorted(member.identity for member in members)).encode()).hexdigest()


@dataclass(frozen=True, kw_only=True)
class CacheSpec:
    """Everything that must agree between a cache and what reads it, or adds to it."""

    teacher: str
    """The teacher's name on the hub or its folder."""
    revision: str | None
    """Its commit on the hub; None for a folder."""
    weights: str | None
    """Its :func:`weights_fingerprint`; None if unknown."""
    dtype: str
    """Type that it was run in."""
    tokenizer: str
    """Fingerprint of the tokenizer."""
    chat_template: str
    """Fingerprint of the chat template."""
    max_length: int | None
    """Tokens that longer rows were cut to."""
    vocab_size: int
    """Size of the vocabulary both models share."""
    teacher_width: int
    """Rows of the teacher's projection, padding included."""
    support: Support
    """Which tokens are kept."""
    exponents: tuple[float, ...]
    """Tail power sums that are kept, ascending."""
    bits: Bits = DEFAULT_BITS
    """Bits of a log-probability."""
    gguf_file: str | None = None
    """The file that its weights were read from; None for safetensors."""
    quantization: str | None = None
    """How its weights were rounded as they were loaded; None where they were taken as they are stored."""
    served: Served | None = None
    """Where the teacher is behind a server; None for one that was run here. Its exact entropy and power sums of the
    tail are not known then."""
    prompt: TeacherPrompt | None = None
    """What the teacher was told in place of the rows' own prompts; None where it read those."""
    mix: tuple[Mixed, ...] | None = None
    """Where the distributions of several models were mixed: each of them. `weights` is then their fingerprint."""

    def __post_init__(self) -> None:
        if not 1 <= self.vocab_size <= MOST_TOKENS:
            raise ConfigError(f"cache: a vocabulary has 1 to {MOST_TOKENS} tokens, got {self.vocab_size}.")
        if not self.vocab_size <= self.teacher_width < 1 << 31:
            raise ConfigError(
                f"cache: the teacher's projection has {self.teacher_width} rows, and at least the vocabulary's "
                f"{self.vocab_size} are expected."
            )
        if self.max_length is not None and self.max_length < 1:
            raise ConfigError(f"cache: rows are cut to 1 token or more, got {self.max_length}.")
        if any(not 0 < g < math.inf for g in self.exponents) or list(self.exponents) != sorted(set(self.exponents)):
            raise ConfigError(f"cache: exponents are positive and ascend, got {self.exponents}.")
        if self.bits not in (8, 16):
            raise ConfigError(f"cache: a log-probability takes 8 or 16 bits, got {self.bits}.")
        if self.served is not None and (self.support.kind != "topk" or self.is_dense or self.exponents):
            raise ConfigError(
                f"cache: a server's answers, and files of other programs, hold some of a teacher's likeliest tokens, "
                f"of {self.vocab_size}, and no power sums of the tail; got {self.support}."
            )
        if self.support.kind == "mass" and self.support.k >= self.vocab_size:
            raise ConfigError(
                f"cache: the support 'mass' keeps fewer tokens than the vocabulary's {self.vocab_size}; got at most "
                f"{self.support.k}. Lower the number of tokens."
            )

    @property
    def options(self) -> str:
        """The options of ``cache build`` that keep as much."""
        support = self.support
        kept = f"--samples {support.k}" if support.kind == "sampled" else f"--top-k {support.k}"
        least = "" if support.mass is None else f" --mass {support.mass:g}"
        return kept + least + ("" if self.bits == DEFAULT_BITS else f" --bits {self.bits}")

    @property
    def is_dense(self) -> bool:
        """Whether every token of the shared vocabulary is kept, so that ids need not be."""
        return self.support.kind == "topk" and self.support.k >= self.vocab_size

    @property
    def slots(self) -> int:
        """Log-probabilities a position."""
        return self.vocab_size if self.is_dense else self.support.k

    @property
    def has_tail(self) -> bool:
        """Whether anything can lie outside what is kept."""
        return self.support.kind != "sampled" and not (self.is_dense and self.vocab_size == self.teacher_width)

    @property
    def stored_exponents(self) -> tuple[float, ...]:
        """Exponents of the tail power sums on disk: none where there is no tail."""
        return self.exponents if self.has_tail else ()

    @property
    def digest(self) -> str:
        """Short hash of what :meth:`differences` compares: written beside every shard."""
        tree = self.to_dict()
        if self.weights is not None:
            tree |= {"teacher": None, "revision": None}
            tree.pop("gguf_file", None)  # the weights say more
        if self.mix is not None:
            del tree["mix"]  # in the fingerprint, whatever folders are called
        return hashlib.sha256(json.dumps(tree, sort_keys=True).encode()).hexdigest()[:16]

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        tree: dict[str, Any] = asdict(self) | {"exponents": list(self.exponents)}
        # The digests of caches of models, and of caches of answers, are older than these.
        for name in ("prompt", "mix", "gguf_file", "quantization"):
            if tree[name] is None:
                del tree[name]
        if self.served is None:
            del tree["served"]
        else:
            older = {"source": "answers", "api": None}
            tree["served"] = {name: value for name, value in tree["served"].items() if older.get(name, ...) != value}
        return tree

    @classmethod
    def from_dict(cls, tree: Mapping[str, Any]) -> "CacheSpec":
        """The spec that :meth:`to_dict` wrote.

        Raises:
            ValueError: a key is missing or unknown, or a value is of another type or out of its range.
        """
        return read_as(cls, tree, "spec")

    def differences(self, other: "CacheSpec") -> str:
        """Fields in which this spec differs from `other`, with both values; empty if in none.

        A teacher is the same by its weights, where both are known, whatever it is called.
        """
        same_weights = self.weights is not None and self.weights == other.weights
        ours, theirs = self._described(), other._described()
        names = [name for name in ours if not (same_weights and name in ("teacher", "revision", "gguf_file"))]
        if same_weights:
            names.remove("mix")
        return "; ".join(f"{name} {ours[name]}, not {theirs[name]}" for name in names if ours[name] != theirs[name])

    def _described(self) -> dict[str, str]:
        tree = self.to_dict() | {
            "support": str(self.support),
            "exponents": ", ".join(f"{g:g}" for g in self.exponents),
            "gguf_file": self.gguf_file or "none",
            "quantization": self.quantization or "none",
            "served": "no" if self.served is None else str(self.served),
            "mix": "none" if self.mix is None else " + ".join(map(str, self.mix)),
            "prompt": "the row's own" if self.prompt is None else str(self.prompt),
        }
        return {name: short(value) for name, value in tree.items()}


def exponents_with_defaults(needed: tuple[float, ...]) -> tuple[float, ...]:
    """`needed` and the default ones, ascending."""
    return tuple(sorted({*needed, *DEFAULT_EXPONENTS}))


def weights_fingerprint(folder: Path) -> str:
    """SHA-256 over the safetensors files of `folder`.

    Of each file its size, its header (names, types, shapes and places of all tensors), and 16 samples of 4 KiB spread
    evenly over it. Takes milliseconds for a model of any size. Two checkpoints of a training differ in nearly every
    number, so in the samples; a change made by hand to a few numbers of one tensor may go unseen. Names of files do not
    matter.

    Raises:
        ModelError: a file is no safetensors file, or cannot be read.
    """
    parts = sorted(_file_digest(path) for path in folder.glob("*.safetensors") if path.is_file())
    return hashlib.sha256(b"".join(parts)).hexdigest()


def gguf_fingerprint(path: Path) -> str:
    """SHA-256 over the size of a GGUF file, its first MiB (names and types of tensors, as a rule) and 256 samples of 4
    KiB spread evenly over the rest.

    Raises:
        ModelError: it cannot be read.
    """
    try:
        size = path.stat().st_size
        digest = hashlib.sha256(b"gguf" + size.to_bytes(8, "little"))
        with path.open("rb") as file:
            digest.update(file.read(GGUF_HEAD))
            for sample in range(GGUF_SAMPLES):
                file.seek(min(GGUF_HEAD, size) + max(size - GGUF_HEAD, 0) * sample // GGUF_SAMPLES)
                digest.update(file.read(SAMPLE_BYTES))
        return digest.hexdigest()
    except OSError as error:
        raise ModelError(f"{path}: cannot be read ({error.strerror}).") from error


def short(value: Any) -> str:
    """A value for a message: of a fingerprint, its first twelve digits."""
    text = str(value)
    return text[:12] if len(text) == 64 and set(text) <= set("0123456789abcdef") else text


def _least_tokens(signal: TeacherSignal, mass: float) -> TeacherSignal:
    """Move what is kept beyond `mass` to the tail; its slots are empty then."""
    assert signal.ids is not None
    assert signal.log_tail is not None
    probabilities = signal.logp.exp()
    before = probabilities.cumsum(-1) - probabilities
    dropped = before >= mass
    dropped[..., 0] = False

    def with_dropped(tail: Tensor, exponent: float) -> Tensor:
        moved = (exponent * signal.logp).masked_fill(~dropped, -math.inf).logsumexp(-1)
        return torch.logaddexp(tail, moved)

    return replace(
        signal,
        ids=signal.ids.masked_fill(dropped, -1),
        logp=signal.logp.masked_fill(dropped, -math.inf),
        log_tail=with_dropped(signal.log_tail, 1.0),
        tail_powers={g: with_dropped(power, g) for g, power in signal.tail_powers.items()},
    )


def _file_digest(path: Path) -> bytes:
    try:
        size = path.stat().st_size
        digest = hashlib.sha256(size.to_bytes(8, "little"))
        with path.open("rb") as file:
            header = int.from_bytes(file.read(8), "little")
            first = 8 + header
            if first > size:
                raise ModelError(
                    f"{path}: damaged, or no safetensors file (its header is to have {header:,} bytes, and the file "
                    f"has {size:,}). Download or copy it again."
                )
            digest.update(file.read(header))
            for sample in range(SAMPLES):
                file.seek(first + (size - first) * sample // SAMPLES)
                digest.update(file.read(SAMPLE_BYTES))
        return digest.digest()
    except OSError as error:
        raise ModelError(f"{path}: cannot be read ({error.strerror}).") from error
