r"""A linear probe of kappa(s), what hangs on the token at a position, and the file that holds one.

.. math:: \hat\kappa(s) = b + \sum_j w_j \, \min(\max(x_j(s), l_j), h_j), \qquad
          x = \big( H(p), \; p_{(1)} - p_{(2)}, \; 1 - q(a^*), \; \mathbb{1}[\mathrm{kind}(a^*) = k] \big)

:math:`p_{(1)} \ge p_{(2)}` are the teacher's two largest probabilities, :math:`a^*` its likeliest token, all at
temperature 1; l and h are the least and the most of each that was seen where it was fitted, since nothing is known of
how kappa goes on beyond. ``bridgegarden diagnose`` fits one where it has measured kappa
(:mod:`bridgegarden.diagnostics.fit_probe`) and the rule
:class:`~bridgegarden.objective.soft_weight.KappaProbe` reads it: softer the less hangs on a position.
"""

import hashlib
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, NoReturn

import torch
from jaxtyping import Float
from torch import Tensor

from bridgegarden.errors import ConfigError
from bridgegarden.objective.support import StudentSupport, TeacherSignal

NUMBERS = ("entropy", "margin", "disagreement")
"""Features that are numbers: nats, and two differences of probabilities."""
KINDS: Mapping[str, str] = {"s": "special", "d": "digits", "l": "letters", "m": "marks", "o": "other"}
"""Kinds of tokens by the letter that stands for each in a file; each is a feature, 0 or 1."""
FEATURES = (*NUMBERS, *KINDS.values())
"""What a probe looks at, in order."""
FORMAT, VERSION = "bridgegarden kappa probe", 1
"""How a file begins."""
AGAIN = "Have `bridgegarden diagnose` write one for this pair."


@dataclass(frozen=True, kw_only=True)
class LinearProbe:
    """What it makes of the features of a position."""

    weights: tuple[float, ...]
    """Nats for one more of each of :data:`FEATURES`."""
    low: tuple[float, ...]
    """The least of each where it was fitted; what is less counts as that."""
    high: tuple[float, ...]
    """The most of each."""
    intercept: float
    """Nats where all of them are 0."""
    center: float
    """Nats: the mean of its predictions where it was fitted; there the soft weight is a half."""
    scale: float
    """Nats, > 0: their standard deviation."""

    def kappa(self, features: Float[Tensor, "*batch F"]) -> Float[Tensor, "*batch"]:
        """Predicted kappa(s), nats."""
        weights, low, high = features.new_tensor([self.weights, self.low, self.high])
        return features.clamp(low, high) @ weights + self.intercept

    def soft_weight(self, features: Float[Tensor, "*batch F"]) -> Float[Tensor, "*batch"]:
        r""":math:`\lambda = \sigma(-(\hat\kappa(s) - c) / s)`, c the center and s the scale."""
        return torch.sigmoid((self.center - self.kappa(features)) / self.scale)


def features_of(
    signal: TeacherSignal, student: StudentSupport, kind: Float[Tensor, "V K"]
) -> Float[Tensor, "*batch F"]:
    """The features of a batch of positions, in the order of :data:`FEATURES`.

    Args:
        signal: the teacher, with at least two kept tokens.
        student: the student on the same support.
        kind: of every token of the vocabulary, one column a kind, in the order of :data:`KINDS`.

    Raises:
        ConfigError: the signal is sampled, or keeps one token alone.
    """
    if signal.weights is not None or signal.logp.shape[-1] < 2:
        raise ConfigError(
            "objective: the rule kappa_probe looks at the teacher's two likeliest tokens, and this teacher's signal "
            f"{'holds draws' if signal.weights is not None else 'keeps one'}. Use a top-k signal, k >= 2."
        )
    dtype = torch.promote_types(signal.entropy.dtype, student.log_normaliser.dtype)
    first, second = signal.logp.topk(2).values.to(dtype).exp().unbind(-1)
    likeliest = signal.argmax.unsqueeze(-1)
    if signal.ids is None:
        logit = student.logits.gather(-1, likeliest).squeeze(-1)
    else:
        logit = student.logits.masked_fill(signal.ids != likeliest, -math.inf).amax(-1)
    agreement = (logit - student.log_normaliser).to(dtype).exp()
    numbers = torch.stack([signal.entropy.to(dtype), first - second, 1 - agreement], -1)
    return torch.cat([numbers, kind[signal.argmax].to(dtype)], -1)


@dataclass(frozen=True, kw_only=True)
class ProbeFile:
    """A probe, and what it is for."""

    probe: LinearProbe
    """The probe itself."""
    kinds: str
    """Of every token of the shared vocabulary a letter of :data:`KINDS`."""
    teacher: Mapping[str, Any]
    """The teacher that it was fitted on: its name, and its weights' fingerprint or its revision."""
    vocabulary: str
    """A hash of the tokens behind the ids."""
    fitted: Mapping[str, Any]
    """On what, and how well; for a reader."""
    sha256: str = ""
    """Of the file's content; empty for one that is not written yet."""

    def soft_weight(self, signal: TeacherSignal, student: StudentSupport) -> Float[Tensor, "*batch"]:
        """:meth:`LinearProbe.soft_weight` of a batch of positions.

        Raises:
            ConfigError: as :func:`features_of`; or the vocabulary has another size.
        """
        if signal.vocab_size != len(self.kinds):
            raise ConfigError(
                f"objective: the kappa probe was fitted on a pair that shares {len(self.kinds):,} tokens; this one "
                f"shares {signal.vocab_size:,}. {AGAIN}"
            )
        return self.probe.soft_weight(features_of(signal, student, _one_hot(self.kinds, signal.entropy.device)))

    def to_dict(self) -> dict[str, Any]:
        """As the file has it."""
        probe = self.probe
        return {
            "format": FORMAT,
            "version": VERSION,
            "teacher": dict(self.teacher),
            "vocabulary": self.vocabulary,
            "intercept": probe.intercept,
            "weights": dict(zip(FEATURES, probe.weights, strict=True)),
            "low": dict(zip(FEATURES, probe.low, strict=True)),
            "high": dict(zip(FEATURES, probe.high, strict=True)),
            "center": probe.center,
            "scale": probe.scale,
            "fitted": dict(self.fitted),
            "kinds": self.kinds,
        }

    @classmethod
    def read(cls, path: str | Path) -> "ProbeFile":
        """The probe in a file.

        Raises:
            ConfigError: it cannot be read, is no probe, is of another version, or holds what is no number.
        """
        place = f"kappa probe {path}"
        try:
            content = Path(path).expanduser().read_bytes()
        except OSError as error:
            raise ConfigError(f"{place}: cannot be read ({error.strerror}). {AGAIN}") from error
        try:
            tree = json.loads(content, parse_constant=_refuse_constant)
        except _NotFinite as error:
            raise ConfigError(f"{place}: holds {error}, which is no number. {AGAIN}") from error
        except (ValueError, RecursionError) as error:
            raise ConfigError(f"{place}: is no JSON ({error}). {AGAIN}") from error
        if not isinstance(tree, dict) or tree.get("format") != FORMAT:
            raise ConfigError(f"{place}: is no kappa probe. {AGAIN}")
        if tree.get("version") != VERSION:
            raise ConfigError(
                f"{place}: is of version {tree.get('version')!r}; this bridgegarden reads version {VERSION}. {AGAIN}"
            )
        return cls._of(tree, place, hashlib.sha256(content).hexdigest())

    @classmethod
    def _of(cls, tree: dict[str, Any], place: str, digest: str) -> "ProbeFile":
        columns, kinds = {name: _column(tree, name, place) for name in ("weights", "low", "high")}, tree.get("kinds")
        numbers = {name: tree.get(name) for name in ("intercept", "center", "scale")}
        for name, column in columns.items():
            numbers |= {f"{name}.{feature}": value for feature, value in column.items()}
        if not isinstance(kinds, str) or not kinds or set(kinds) - set(KINDS):
            raise ConfigError(f"{place}: kinds must be letters of {''.join(KINDS)}, one for each token. {AGAIN}")
        if not isinstance(tree.get("teacher"), dict) or not isinstance(tree.get("vocabulary"), str):
            raise ConfigError(f"{place}: does not say for which teacher and tokenizer it is. {AGAIN}")
        for name, value in numbers.items():
            if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
                raise ConfigError(f"{place}: {name} must be a finite number, got {value!r}. {AGAIN}")
        if not tree["scale"] > 0:
            raise ConfigError(f"{place}: scale must be > 0, got {tree['scale']}. {AGAIN}")
        weights, low, high = (tuple(float(column[name]) for name in FEATURES) for column in columns.values())
        if any(least > most for least, most in zip(low, high, strict=True)):
            raise ConfigError(f"{place}: low must not be above high. {AGAIN}")
        probe = LinearProbe(
            weights=weights,
            low=low,
            high=high,
            intercept=float(tree["intercept"]),
            center=float(tree["center"]),
            scale=float(tree["scale"]),
        )
        return cls(
            probe=probe,
            kinds=kinds,
            teacher=tree["teacher"],
            vocabulary=tree["vocabulary"],
            fitted=tree.get("fitted") or {},
            sha256=digest,
        )


def _column(tree: dict[str, Any], name: str, place: str) -> dict[str, Any]:
    """What a file has under `name` for every feature."""
    column = tree.get(name)
    if not isinstance(column, dict) or set(column) != set(FEATURES):
        raise ConfigError(f"{place}: {name} must be of {', '.join(FEATURES)}. {AGAIN}")
    return column


class _NotFinite(ValueError):
    """JSON has no such number; Python reads it all the same."""


def _refuse_constant(name: str) -> NoReturn:
    raise _NotFinite(name)


@lru_cache(maxsize=8)
def _one_hot(kinds: str, device: torch.device) -> Float[Tensor, "V K"]:
    letters = list(KINDS)
    index = torch.tensor([letters.index(letter) for letter in kinds], device=device)
    return torch.nn.functional.one_hot(index, len(letters)).float()
