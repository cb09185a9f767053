"""The paper's claims as tests: an effect paired by seed, its interval, and what that says.

An effect is a difference between two objectives whose students of one seed began with the same weights and saw the same
answers in the same order; its 95 % interval is Student's t over seeds. A claim *holds* where the interval lies on the
claimed side of zero, *does not hold* where it lies on the other, else there is *not enough evidence*. Every hybrid has
its own row; where a summary speaks of "some hybrid", its interval is widened for their number (Bonferroni).
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from enum import StrEnum
from types import MappingProxyType
from typing import Literal

from bridgegarden.lab.result import Correlations, LabResult, Measured, RoleName
from bridgegarden.statistics import Effect, Interval
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


def error_of(role: str) -> Callable[[Measured], float]:
    """The inference error of `role` as a quantity."""
    return lambda measured: measured.error_by_role[role]


def _decided_at(number: str, role: RoleName, better: str, other: str, side: Literal[-1, 1]) -> dict[str, Claim]:
    """That labels of one kind are better where tokens have a role: in the error there, and in what it is made of."""
    where, at = f"{role.capitalize()}s", f"a {role.capitalize()}"
    read: dict[str, tuple[str, str, Quantity]] = {
        "": (
            "are better",
            f"inference error of {where} (fit on the teacher's answers, and drift caused), nats an answer",
            error_of(role),
        ),
        "-drift": (
            "cause less drift",
            f"exposure bias caused at {where}, nats an answer",
            lambda measured: measured.exposure_bias_by_role[role],
        ),
        "-fit": (
            "fit better",
            f"mean KL at {at} of the teacher's answers, nats",
            lambda measured: measured.kl_by_role[role],
        ),
    }
    return {
        number + part: Claim(
            text=f"{better} labels {do} than {other} ones at {where}",
            quantity=quantity,
            side=side,
            measure=measure,
            role=role,
            references=("soft",),
            objectives=("hard",),
            supports=number if part else None,
        )
        for part, (do, quantity, measure) in read.items()
    }


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
        **_decided_at("3a", "bridge", "hard", "soft", -1),
        **_decided_at("3b", "garden", "soft", "hard", 1),
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


CONTROL = "control"
"""The world without Bridges."""

NEGLIGIBLE = 0.05
"""On the control an effect is none if its interval stays within this share of the soft student's L_dtheta."""


class Verdict(StrEnum):
    """What the interval says of a claim."""

    HOLDS = "holds"
    FAILS = "does not hold"
    OPEN = "not enough evidence"


@dataclass(frozen=True, kw_only=True)
class Finding:
    """What was found about one claim, for one objective, in one regime of one world."""

    claim: str
    """Key of `CLAIMS`; or ``6: N``, the absence of claim N on the control."""

    text: str
    """The claim in words."""

    quantity: str
    """What is compared, in words."""

    world: str
    """Where."""

    regime: str
    """Where."""

    objective: str
    """Whom the claim is about."""

    reference: str | None
    """Whom it is compared with: of several, the one that decides. None: with zero."""

    side: Literal[-1, 1]
    """The claimed sign of the effect."""

    effect: Effect
    """`objective` minus `reference`, paired by seed."""

    verdict: Verdict
    """From the uncorrected interval."""

    supports: str | None
    """The claim that this row throws light on, where it decides nothing itself."""

    beside: Mapping[str, Effect]
    """Differences in the quantities of `BESIDE`, for the same pair."""


@dataclass(frozen=True, kw_only=True)
class ClaimSummary:
    """A claim in one regime of one world, over all its rows."""

    claim: str
    """Key of `CLAIMS`, or ``6``."""

    text: str
    """The claim in words."""

    world: str
    """Where."""

    regime: str
    """Where."""

    verdict: Verdict
    """Hybrids: holds if it holds for some hybrid at its corrected interval, does not hold if for none it could."""

    holds: tuple[str, ...]
    """Objectives for which it holds at the uncorrected interval; for claim 6, claims that are absent."""

    fails: tuple[str, ...]
    """For which it does not hold."""

    open: tuple[str, ...]
    """For which there is not enough evidence."""


def findings(result: LabResult) -> tuple[Finding, ...]:
    """Every claim in every world and regime that was run, in the order of the tables."""
    found: list[Finding] = []
    for world in result.worlds:
        for regime in result.regimes(world):
            rows = [row for name in CLAIMS for row in _rows(result, world, regime, name)]
            found += rows
            if world == CONTROL:
                found += [_absent(result, row) for row in rows if row.claim in ("1", "2", "3a", "3b", "4")]
    return tuple(found)


def summaries(found: Sequence[Finding]) -> tuple[ClaimSummary, ...]:
    """One line per claim, world and regime; rows that only support are left out."""
    groups: dict[tuple[str, str, str], list[Finding]] = {}
    for row in found:
        if row.supports is None:
            groups.setdefault((row.claim.partition(":")[0], row.world, row.regime), []).append(row)
    return tuple(_summary(*key, rows) for key, rows in groups.items())


def difference(
    result: LabResult,
    world: str,
    regime: str,
    objective: str,
    reference: str | None,
    measure: Quantity,
    *,
    tests: int = 1,
) -> Effect:
    """`measure` of `objective` minus that of `reference` (zero if None), paired by seed; `tests` widens `corrected`."""
    ours = {run.seed: measure(run.measured) for run in result.runs_of(world, regime, objective)}
    theirs: Mapping[int, float | None] = dict.fromkeys(ours, 0.0)
    if reference is not None:
        theirs = {run.seed: measure(run.measured) for run in result.runs_of(world, regime, reference)}
    pairs = [(ours[seed], theirs[seed]) for seed in ours if seed in theirs]
    return Effect.over([None if a is None or b is None else a - b for a, b in pairs], tests=tests)


def judge(interval: Interval | None, side: Literal[-1, 1]) -> Verdict:
    """Which side of zero `interval` lies on. An effect of exactly zero is on the other side."""
    if interval is None:
        return Verdict.OPEN
    low, high = (interval.low, interval.high) if side > 0 else (-interval.high, -interval.low)
    if low > 0:
        return Verdict.HOLDS
    return Verdict.FAILS if high <= 0 else Verdict.OPEN


def _rows(result: LabResult, world: str, regime: str, name: str) -> Iterator[Finding]:
    claim, run = CLAIMS[name], result.objectives(world, regime)
    objectives = [objective for objective in claim.objectives if objective in run]
    references = [reference for reference in claim.references if reference in run]
    if claim.references and not references:
        return
    if claim.role is not None and not has_role(result, world, claim.role):
        return
    for objective in objectives:
        effects: dict[str | None, Effect] = {
            reference: difference(result, world, regime, objective, reference, claim.measure, tests=len(objectives))
            for reference in references or [None]
        }
        reference = _deciding(effects, claim.side)
        yield Finding(
            claim=name,
            text=claim.text,
            quantity=claim.quantity,
            world=world,
            regime=regime,
            objective=objective,
            reference=reference,
            side=claim.side,
            effect=effects[reference],
            verdict=judge(effects[reference].interval, claim.side),
            supports=claim.supports,
            beside={
                beside: difference(result, world, regime, objective, reference, measure)
                for beside, measure in BESIDE.items()
                if reference is not None
            },
        )


def has_role(result: LabResult, world: str, role: str) -> bool:
    """Whether there are positions of `role` in the answers of `world`."""
    return any(run.measured.teacher_visits_by_role[role] > 0 for run in result.runs if run.world == world)


def _deciding(effects: Mapping[str | None, Effect], side: Literal[-1, 1]) -> str | None:
    """The reference against which the claim fares worst: it fails there, or else holds there last.

    A claim against several references holds if it does against each, so no correction is due.
    """

    def fares(reference: str | None) -> tuple[int, float]:
        effect = effects[reference]
        order = {Verdict.FAILS: 0, Verdict.OPEN: 1, Verdict.HOLDS: 2}[judge(effect.interval, side)]
        if effect.interval is None:
            return order, 0.0 if effect.mean is None else side * effect.mean
        return order, side * (effect.interval.low if side > 0 else effect.interval.high)

    return min(effects, key=fares)


def _absent(result: LabResult, row: Finding) -> Finding:
    """Claim 6 for one row of the control: that its claim does not hold there."""
    soft = result.values(row.world, row.regime, "soft", lambda measured: measured.student_loss)
    margin = NEGLIGIBLE * sum(soft) / len(soft) if soft else 0.0
    interval = row.effect.interval
    negligible = interval is not None and max(abs(interval.low), abs(interval.high)) <= margin
    verdict = {Verdict.HOLDS: Verdict.FAILS, Verdict.FAILS: Verdict.HOLDS, Verdict.OPEN: Verdict.OPEN}[row.verdict]
    return replace(
        row,
        claim=f"6: {row.claim}",
        text=f"on the control it is not so that {row.text}",
        verdict=Verdict.HOLDS if negligible else verdict,
    )


def _summary(claim: str, world: str, regime: str, rows: Sequence[Finding]) -> ClaimSummary:
    def with_verdict(verdict: Verdict) -> tuple[str, ...]:
        named = (f"{row.claim[3:]} ({row.objective})" if claim == "6" else row.objective for row in rows)
        return tuple(name for name, row in zip(named, rows, strict=True) if row.verdict == verdict)

    verdicts = {row.verdict for row in rows}
    if claim in ("1", "2", "4"):
        some = any(judge(row.effect.corrected, row.side) is Verdict.HOLDS for row in rows)
        verdict = Verdict.HOLDS if some else Verdict.FAILS if verdicts == {Verdict.FAILS} else Verdict.OPEN
    elif Verdict.FAILS in verdicts:
        verdict = Verdict.FAILS
    else:
        verdict = Verdict.HOLDS if verdicts == {Verdict.HOLDS} else Verdict.OPEN
    text = "on the control none of the claims 1 to 4 holds" if claim == "6" else rows[0].text
    return ClaimSummary(
        claim=claim,
        text=text,
        world=world,
        regime=regime,
        verdict=verdict,
        holds=with_verdict(Verdict.HOLDS),
        fails=with_verdict(Verdict.FAILS),
        open=with_verdict(Verdict.OPEN),
    )
