r"""How soft each position is: the rules for :math:`\lambda`, the weight of the soft loss, in [0, 1].

A rule is called with the teacher's signal, the student's view of the same support, the position and the progress of
training, and gives one weight per position. Hard labels suit Bridges (the next token must be exact), soft labels
Gardens (it may vary); the adaptive rules read from the teacher's distribution which is which. Equations:
arXiv:2605.26246, section 5. The same rules can weigh a position (:mod:`bridgegarden.objective.position_weight`) or
mix two divergences (:mod:`bridgegarden.objective.methods`); :func:`ask` calls one for any of them.
"""

import inspect
import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property, lru_cache, partial
from types import BuiltinFunctionType, FunctionType, MethodType
from typing import Any, Literal, NamedTuple, Protocol, TypeVar, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor

from bridgegarden.errors import ConfigError
from bridgegarden.objective.alignment import Position
from bridgegarden.objective.kappa_probe import ProbeFile
from bridgegarden.objective.registry import Registry
from bridgegarden.objective.support import StudentSupport, TeacherSignal

T = TypeVar("T")


class TrainProgress(NamedTuple):
    """How far training is."""

    step: int
    """Optimiser steps done."""
    total_steps: int
    """Optimiser steps planned."""


@runtime_checkable
class SoftWeight(Protocol):
    """A rule for the soft weight: ``(*batch,)`` in [0, 1].

    Gradients are off while it is asked, so none flows through a rule; one whose definition has a gradient turns them on
    itself (``torch.enable_grad()``).
    """

    def __call__(
        self,
        signal: TeacherSignal,
        student: StudentSupport | None = None,
        position: Position | None = None,
        progress: TrainProgress | None = None,
    ) -> Float[Tensor, "*batch"]:
        """The weight at each position.

        Args:
            signal: the teacher.
            student: the student's logits at the signal's support and at the hard target, what is left of its
                distribution, and its log-normaliser. None where there is none, as where a teacher is looked at alone.
            position: the token in the data, and where in its answer the position stands; None where that is not known.
            progress: of training; None where there is none.
        """
        ...


def ask(
    rule: SoftWeight,
    signal: TeacherSignal,
    student: StudentSupport | None = None,
    position: Position | None = None,
    progress: TrainProgress | None = None,
) -> Float[Tensor, "*batch"]:
    """What `rule` says, with gradients off; a rule of two arguments is asked about teacher and progress alone."""
    with torch.no_grad():
        if takes_teacher_alone(rule):
            return rule(signal, progress)  # pyright: ignore[reportArgumentType]
        return rule(signal, student, position, progress)


def takes_teacher_alone(rule: Callable[..., object]) -> bool:
    """Whether `rule` has the two arguments ``(signal, progress)`` that rules had before they saw the student.

    Raises:
        ConfigError: it can be called neither so nor with ``(signal, student, position, progress)``.
    """
    is_function = isinstance(rule, (FunctionType, MethodType, BuiltinFunctionType, partial))
    return _takes_two(rule) if is_function else _takes_two(type(rule))


@lru_cache(maxsize=256)
def _takes_two(rule: Any) -> bool:
    signature = inspect.signature(rule.__call__ if isinstance(rule, type) else rule)
    own = (None,) if isinstance(rule, type) else ()
    for count, answer in ((4, False), (2, True)):
        try:
            signature.bind(*own, *range(count))
        except TypeError:
            continue
        return answer
    raise ConfigError(
        f"objective: a rule is called with (signal, student, position, progress), or with (signal, progress); "
        f"{getattr(rule, '__name__', repr(rule))} takes {signature}."
    )


def needs(value: T | None, rule: object, what: str) -> T:
    """`value`, which `rule` cannot do without.

    Raises:
        ConfigError: it is None.
    """
    if value is None:
        raise ConfigError(f"objective: the rule {type(rule).__name__} looks at {what}, and was not told.")
    return value


@dataclass(frozen=True)
class StaticWeight:
    r"""The same weight everywhere: :math:`\lambda_t = c`."""

    value: float = 0.5
    """The soft weight, in [0, 1]: 0 is hard labels alone, 1 soft labels alone."""

    def __post_init__(self) -> None:
        _check_unit_interval("value", self.value)

    def __call__(
        self,
        signal: TeacherSignal,
        student: StudentSupport | None = None,
        position: Position | None = None,
        progress: TrainProgress | None = None,
    ) -> Float[Tensor, "*batch"]:
        return torch.full_like(signal.entropy, self.value)


@dataclass(frozen=True)
class ConfidenceWeight:
    r"""Hard where the teacher is sure: :math:`\lambda_t = 1 - \max_a p_t(a)`."""

    def __call__(
        self,
        signal: TeacherSignal,
        student: StudentSupport | None = None,
        position: Position | None = None,
        progress: TrainProgress | None = None,
    ) -> Float[Tensor, "*batch"]:
        return -torch.expm1(signal.max_logp)


@dataclass(frozen=True)
class EntropyWeight:
    r"""Soft where the teacher is spread: :math:`\lambda_t = H(p_t) / \log V`, V the real vocabulary.

    With ``kind="power"``, the paper's released form :math:`(\sum_v p^g - 1) / (V^{1-g} - 1)`, g = `gamma`.
    """

    kind: Literal["shannon", "power"] = "shannon"
    """Which entropy."""
    gamma: float = 0.1
    """Exponent g of the power form, in (0, 1)."""

    def __post_init__(self) -> None:
        if self.kind not in ("shannon", "power"):
            raise ConfigError(f"objective.soft_weight.kind must be 'shannon' or 'power', got {self.kind!r}.")
        if not 0 < self.gamma < 1:
            raise ConfigError(f"objective.soft_weight.gamma must be in (0, 1), got {self.gamma}.")

    def __call__(
        self,
        signal: TeacherSignal,
        student: StudentSupport | None = None,
        position: Position | None = None,
        progress: TrainProgress | None = None,
    ) -> Float[Tensor, "*batch"]:
        if self.kind == "shannon":
            weight = signal.entropy / math.log(signal.vocab_size)
        else:
            weight = torch.expm1(signal.log_power_sum(self.gamma)) / (signal.vocab_size ** (1 - self.gamma) - 1)
        # Mass that a teacher leaves on padding ids can lift the entropy a hair above log V.
        return weight.clamp(0.0, 1.0)


@dataclass(frozen=True)
class CurriculumWeight:
    r"""Hard labels first: :math:`\lambda` grows from 0 to `maximum` over the first share of training.

    .. math:: \lambda = \lambda_{max} \min\left(\frac{step}{warmup\_ratio \cdot total}, 1\right)
    """

    maximum: float = 1.0
    """Soft weight after the warm-up, in [0, 1]."""
    warmup_ratio: float = 0.2
    """Share of all steps over which it grows, in [0, 1]; 0 starts at the maximum."""

    def __post_init__(self) -> None:
        _check_unit_interval("maximum", self.maximum)
        _check_unit_interval("warmup_ratio", self.warmup_ratio)

    def __call__(
        self,
        signal: TeacherSignal,
        student: StudentSupport | None = None,
        position: Position | None = None,
        progress: TrainProgress | None = None,
    ) -> Float[Tensor, "*batch"]:
        if progress is None:
            raise ConfigError(
                "objective.soft_weight: the curriculum depends on how far training is; call the objective with "
                "progress=TrainProgress(step, total_steps)."
            )
        warmup = self.warmup_ratio * progress.total_steps
        share = 1.0 if warmup == 0 else min(progress.step / warmup, 1.0)
        return torch.full_like(signal.entropy, share * self.maximum)


@dataclass(frozen=True)
class HighEntropy:
    r"""Soft where the teacher is spread, and nowhere else: :math:`\lambda_t = 1` where :math:`H(p_t) > \tau`, else 0.

    As the rule of a mixed divergence it is the gate of Jin et al., 2026, arXiv:2603.07079 (EOPD), equation 9.
    """

    threshold: float = 0.8
    r""":math:`\tau` in nats, >= 0; the paper's is 0.8."""

    def __post_init__(self) -> None:
        if not self.threshold >= 0:
            raise ConfigError(f"objective.soft_weight.threshold must be >= 0, got {self.threshold}.")

    def __call__(
        self,
        signal: TeacherSignal,
        student: StudentSupport | None = None,
        position: Position | None = None,
        progress: TrainProgress | None = None,
    ) -> Float[Tensor, "*batch"]:
        return (signal.entropy > self.threshold).to(signal.entropy.dtype)


@dataclass(frozen=True)
class LabelCorrection:
    r"""As hard as it takes to make the token in the data the teacher's likeliest, by a margin.

    .. math:: \lambda_t = 1 - m_t, \qquad m_t = \begin{cases}
              \frac{p(\hat a) - p(y) + \tau}{1 + p(\hat a) - p(y)} & \hat a \ne y \\
              \min\left(\frac{\tau}{1 - p(y)}, 1\right) & \hat a = y \end{cases}

    y is the token in the data, :math:`\hat a` the teacher's likeliest. With hard labels from the data, forward KL and
    temperature 1 this trains, up to a constant, on the corrected teacher :math:`(1 - m_t) \, p_t + m_t \, \delta_y`: of
    a teacher that is wrong it takes as much as puts y ahead of every other token by :math:`\tau`.

    References:
        Belcak et al., 2025, arXiv:2506.15702 (minifinetuning), section 3, with its threshold for all tokens.
    """

    threshold: float = 0.2
    r""":math:`\tau` in [0, 1], the margin in probability."""

    def __post_init__(self) -> None:
        _check_unit_interval("threshold", self.threshold)

    def __call__(
        self,
        signal: TeacherSignal,
        student: StudentSupport | None = None,
        position: Position | None = None,
        progress: TrainProgress | None = None,
    ) -> Float[Tensor, "*batch"]:
        token = needs(position, self, "the token in the data").token
        label, highest = signal.logp_of(token).exp(), signal.max_logp.exp()
        ahead = (highest - label).clamp(min=0)
        wrong = (ahead + self.threshold) / (1 + ahead)
        right = torch.where(label >= 1 - self.threshold, 1.0, self.threshold / (1 - label))
        # A number that is not known is none of the two.
        return (1 - torch.where(signal.argmax == token, right, wrong)) + 0 * label


@dataclass(frozen=True)
class KappaProbe:
    r"""Softer the less hangs on a position, by a probe: :math:`\lambda_t = \sigma(-(\hat\kappa(s) - c) / s)`.

    :math:`\hat\kappa(s)` is linear in what both models say (:mod:`bridgegarden.objective.kappa_probe`), fitted by
    ``bridgegarden diagnose`` where it measured kappa; c and s are the mean and the spread of what it predicts there.
    """

    file: str
    """The ``kappa_probe.json`` that a diagnosis of this pair wrote. It is read when the rule is made."""

    def __post_init__(self) -> None:
        self.held  # noqa: B018  a file that is no good is refused here and not in the first step

    def __repr__(self) -> str:
        return f"{type(self).__name__}(file={self.file!r}, sha256={self.held.sha256[:12]!r})"

    @cached_property
    def held(self) -> ProbeFile:
        """What the file held.

        Raises:
            ConfigError: it is no good.
        """
        return ProbeFile.read(self.file)

    def __call__(
        self,
        signal: TeacherSignal,
        student: StudentSupport | None = None,
        position: Position | None = None,
        progress: TrainProgress | None = None,
    ) -> Float[Tensor, "*batch"]:
        return self.held.soft_weight(signal, needs(student, self, "the student"))


def _check_unit_interval(name: str, value: float) -> None:
    if not 0.0 <= value <= 1.0:
        raise ConfigError(f"objective.soft_weight.{name} must be in [0, 1], got {value}.")


def is_rule(entry: object) -> bool:
    """Whether `entry` is a class whose instances can be rules."""
    # Asked of the class itself, every class could be called.
    return isinstance(entry, type) and any("__call__" in vars(base) for base in entry.__mro__)


SOFT_WEIGHTS: Registry[type[SoftWeight]] = Registry(
    "bridgegarden.soft_weights",
    {
        "static": StaticWeight,
        "confidence": ConfidenceWeight,
        "entropy": EntropyWeight,
        "curriculum": CurriculumWeight,
        "high_entropy": HighEntropy,
        "label_correction": LabelCorrection,
        "kappa_probe": KappaProbe,
    },
    is_entry=is_rule,
    expected="a frozen dataclass that can be called",
)
"""Every rule by the name a recipe gives it."""
