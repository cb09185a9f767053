"""The paper's claims made testable: which quantity of which student is compared with whose, and the claimed sign."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Literal

from bridgegarden.lab.example import RoleName
from bridgegarden.lab.result import Correlations, Measured
from bridgegarden.study.arms import ALL_OBJECTIVES, HYBRIDS

Quantity = Callable[[Measured], float | None]


@dataclass(frozen=True, kw_only=True)
class Claim:
    """One claim of the paper, made testable."""

    text: str
    """In words."""

    quantity: str
    """What is compared, in words."""

    side: Literal[-1, 1]
    """The claimed sign of the effect."""

    measure: Quantity
    """The quantity of one student; the effect is its difference to the reference's, or itself where there is none."""

    references: tuple[str, ...] = ()
    """Objectives compared with; the claim must hold against every one that was run. Empty: against zero."""

    objectives: tuple[str, ...] = HYBRIDS
    """Whom the claim is about, each in its own row."""

    supports: str | None = None
    """The claim that this further quantity throws light on; it decides nothing itself."""

    role: RoleName | None = None
    """The positions that it is about; a world without such positions says nothing of it."""


def _error(role: str) -> Quantity:
    return lambda measured: measured.error_by_role[role]


def _drift(role: str) -> Quantity:
    return lambda measured: measured.exposure_bias_by_role[role]


def _kl(role: str) -> Quantity:
    return lambda measured: measured.kl_by_role[role]


def _correlation(predictor: str, positions: Literal["all", "choices"]) -> Quantity:
    def read(measured: Measured) -> float | None:
        found: Correlations = measured.kappa_all if positions == "all" else measured.kappa_choices
        return getattr(found, predictor)

    return read


def _predicts(name: str, predictor: str, positions: Literal["all", "choices"], supports: str | None) -> Claim:
    sure = "confidence" if predictor.startswith("confidence") else "minus entropy"
    kappa = "the student-weighted kappa(s)" if predictor.endswith("weighted") else "kappa(s)"
    where = "at all positions" if positions == "all" else "at Bridges and Gardens"
    return Claim(
        text=f"the teacher's {name} predicts kappa",
        quantity=f"Spearman correlation of {sure} with {kappa} {where}, soft student",
        side=1,
        measure=_correlation(predictor, positions),
        objectives=("soft",),
        supports=supports,
    )


CLAIMS: Mapping[str, Claim] = MappingProxyType(
    {
        "1": Claim(
            text="a hybrid fits the teacher's prefixes worse than soft labels",
            quantity="L_dT, nats an answer",
            side=1,
            measure=lambda measured: measured.teacher_loss,
            references=("soft",),
        ),
        "2": Claim(
            text="a hybrid has less exposure bias than soft labels",
            quantity="L_dtheta - L_dT, nats an answer",
            side=-1,
            measure=lambda measured: measured.exposure_bias,
            references=("soft",),
        ),
        "3a": Claim(
            text="hard labels are better than soft ones at Bridges",
            quantity="inference error of Bridges (fit on the teacher's answers, and drift caused), nats an answer",
            side=-1,
            measure=_error("bridge"),
            role="bridge",
            references=("soft",),
            objectives=("hard",),
        ),
        "3a-drift": Claim(
            text="hard labels cause less drift than soft ones at Bridges",
            quantity="exposure bias caused at Bridges, nats an answer",
            side=-1,
            measure=_drift("bridge"),
            role="bridge",
            references=("soft",),
            objectives=("hard",),
            supports="3a",
        ),
        "3a-fit": Claim(
            text="hard labels fit better than soft ones at Bridges",
            quantity="mean KL at a Bridge of the teacher's answers, nats",
            side=-1,
            measure=_kl("bridge"),
            role="bridge",
            references=("soft",),
            objectives=("hard",),
            supports="3a",
        ),
        "3b": Claim(
            text="soft labels are better than hard ones at Gardens",
            quantity="inference error of Gardens (fit on the teacher's answers, and drift caused), nats an answer",
            side=1,
            measure=_error("garden"),
            role="garden",
            references=("soft",),
            objectives=("hard",),
        ),
        "3b-drift": Claim(
            text="soft labels cause less drift than hard ones at Gardens",
            quantity="exposure bias caused at Gardens, nats an answer",
            side=1,
            measure=_drift("garden"),
            role="garden",
            references=("soft",),
            objectives=("hard",),
            supports="3b",
        ),
        "3b-fit": Claim(
            text="soft labels fit better than hard ones at Gardens",
            quantity="mean KL at a Garden of the teacher's answers, nats",
            side=1,
            measure=_kl("garden"),
            role="garden",
            references=("soft",),
            objectives=("hard",),
            supports="3b",
        ),
        "4": Claim(
            text="a hybrid has the lowest total inference loss: lower than labels of any one kind",
            quantity="L_dtheta, nats an answer",
            side=-1,
            measure=lambda measured: measured.student_loss,
            references=tuple(name for name, objective in ALL_OBJECTIVES.items() if objective.pure),
        ),
        "5a": _predicts("confidence", "confidence", "all", None),
        "5b": _predicts("entropy", "low_entropy", "all", None),
        "5a-choices": _predicts("confidence", "confidence", "choices", "5a"),
        "5b-choices": _predicts("entropy", "low_entropy", "choices", "5b"),
        "5a-weighted": _predicts("confidence", "confidence_weighted", "all", "5a"),
        "5b-weighted": _predicts("entropy", "low_entropy_weighted", "all", "5b"),
        "5a-weighted-choices": _predicts("confidence", "confidence_weighted", "choices", "5a"),
        "5b-weighted-choices": _predicts("entropy", "low_entropy_weighted", "choices", "5b"),
    }
)
"""By number. Claim 6 is that none of 1 to 4 holds on the control; see `bridgegarden.lab.findings`."""

BESIDE: Mapping[str, Quantity] = MappingProxyType(
    {
        "student_loss": lambda measured: measured.student_loss,
        "success": lambda measured: measured.success,
        "violation": lambda measured: measured.violation,
        "diversity": lambda measured: measured.diversity,
    }
)
"""What always stands beside an effect: lower exposure bias alone is no success."""
