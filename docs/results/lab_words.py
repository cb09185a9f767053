"""What can be read off a result of the lab, in words, said only where the numbers say it; for write_lab.py."""

from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

from bridgegarden.lab.findings import CONTROL, ClaimSummary, Finding, Verdict, difference
from bridgegarden.lab.report import CHOICES, optimum, roles_of, sweep_weights
from bridgegarden.lab.result import REGIMES, LabResult, Measured
from bridgegarden.lab.tables import label
from bridgegarden.statistics import Effect
from bridgegarden.study.arms import ALL_OBJECTIVES, HYBRIDS
from bridgegarden.table import Table, number, span

Quantity = Callable[[Measured], float]
PURE = tuple(name for name, objective in ALL_OBJECTIVES.items() if objective.pure)
LIKENESS: tuple[Quantity, bool] = (lambda measured: measured.student_loss, True)
"""L_dtheta, of which less is better."""
SUCCESS: tuple[Quantity, bool] = (lambda measured: measured.success, False)
VERDICTS = {
    "hybrid": "a hybrid is better than labels of any one kind",
    "one kind": "labels of one kind are better than every hybrid",
    "not told apart": "the two are not told apart",
}


class Place(NamedTuple):
    """One regime of one world."""

    world: str
    regime: str

    def __str__(self) -> str:
        return f"{self.world} ({REGIMES[self.regime].label})"


class Compared(NamedTuple):
    """The best hybrid against the best objective with labels of one kind, by one quantity at one place."""

    place: Place
    hybrid: str
    pure: str
    effect: Effect
    """Hybrid minus pure, paired by seed; its `corrected` interval is widened for the number of pairs to choose from."""
    low_is_good: bool

    @property
    def verdict(self) -> str:
        """Who is better, at the widened interval: a key of `VERDICTS`."""
        interval = self.effect.corrected
        if interval is None or interval.low <= 0 <= interval.high:
            return "not told apart"
        return "hybrid" if (interval.high < 0) == self.low_is_good else "one kind"


def places(result: LabResult) -> list[Place]:
    """In the order of the tables."""
    return [Place(world, regime) for world in result.worlds for regime in result.regimes(world)]


def listed(where: Sequence[Place]) -> str:
    """Places by world."""
    worlds: dict[str, list[str]] = {}
    for place in where:
        worlds.setdefault(place.world, []).append(REGIMES[place.regime].label)
    return "; ".join(f"{world} ({', '.join(regimes)})" for world, regimes in worlds.items())


def compared(result: LabResult, place: Place, quantity: Quantity, low: bool) -> Compared | None:
    """The best hybrid against the best pure objective; None where one of the kinds was not run."""
    run = result.objectives(*place)
    hybrids, pure = ([name for name in kind if name in run] for kind in (HYBRIDS, PURE))
    if not hybrids or not pure:
        return None
    sign = 1 if low else -1
    ours, theirs = (
        min(names, key=lambda n: sign * _mean(result.values(*place, n, quantity))) for names in (hybrids, pure)
    )
    effect = difference(result, *place, ours, theirs, quantity, tests=len(hybrids) * len(pure))
    return Compared(place, ours, theirs, effect, low)


def frontier(result: LabResult, place: Place) -> list[str]:
    """Objectives that no other beats at both right answers and variety, by mean."""
    found = {
        name: tuple(_mean(result.values(*place, name, quantity)) for quantity in (SUCCESS[0], _variety))
        for name in result.objectives(*place)
        if name in (*HYBRIDS, *PURE)
    }
    return [
        name
        for name, (right, variety) in found.items()
        if not any(other[0] > right and other[1] > variety for other in found.values())
    ]


def in_short(result: LabResult, lines: Sequence[ClaimSummary]) -> str:
    """A paragraph."""
    claims = dict.fromkeys(line.claim for line in lines)
    told = ", ".join(f"{claim} in {_counts(lines, claim, Verdict.HOLDS)}" for claim in claims)
    found = places(result)
    won = {
        what: sum(one.verdict == "hybrid" for place in found if (one := compared(result, place, *quantity)) is not None)
        for what, quantity in (("L_dθ", LIKENESS), ("right answers", SUCCESS))
    }
    gains = sorted(_gains(result), key=lambda gain: gain[2].mean or 0.0)
    most = ""
    if gains:
        place, name, effect = gains[-1]
        most = f" Most is gained over soft labels in {place} by {label(name)}: {_with_interval(effect, 100)} points."
    return (
        f"**In short: the claims hold in so many places (regimes of worlds): {told}.** A hybrid is better than labels "
        f"of every single kind by L_dθ in {won['L_dθ']} of {len(found)} places, by right answers in "
        f"{won['right answers']}.{most}"
    )


def remarks(result: LabResult, rows: Sequence[Finding], lines: Sequence[ClaimSummary]) -> Iterator[str]:
    """One point each."""
    yield from _by_quantity(result)
    yield from _righter_than_soft(result)
    yield from _slips(result)
    yield _exposure_bias_of_soft(result)
    yield from _sweep(result)
    yield _predictors(rows)
    yield from _control(lines)


def kappa_by_role(result: LabResult) -> str:
    """Mean kappa(s) on the examples of the soft students, as a table."""
    table = []
    for place in places(result):
        tokens = [token for run in result.runs_of(*place, "soft") for token in run.example.tokens]
        cells = []
        for role in ("bridge", "garden", "forced"):
            found = [token.kappa for token in tokens if token.role == role]
            cells.append(f"{_signed(_mean(found), 2)} ({len(found)})" if found else "")
        if tokens:
            table.append([str(place), *cells])
    return Table(columns=["place", "at Bridges", "at Gardens", "forced"], rows=table).markdown()


def compared_cells(one: Compared, unit: float) -> list[str]:
    """Who with whom by how much, and who is better."""
    assert one.effect.mean is not None
    told = _with_interval(one.effect, unit)
    return [f"{label(one.hybrid)} − {label(one.pure)}: {told}", one.verdict]


def _by_quantity(result: LabResult) -> Iterator[str]:
    for quantity, what in ((LIKENESS, "L_dθ"), (SUCCESS, "right answers")):
        judged = [one for place in places(result) if (one := compared(result, place, *quantity)) is not None]
        told = [
            f"    * {words} in {len(where)}: {listed(where)}"
            for verdict, words in VERDICTS.items()
            if (where := [one.place for one in judged if one.verdict == verdict])
        ]
        yield "\n".join([f"* By {what}, of {len(judged)} places:", *told])


def _righter_than_soft(result: LabResult) -> Iterator[str]:
    """Hybrids with more right answers than soft labels, and what variety they keep."""
    told = [
        f"    * {place}, {label(name)}: {_with_interval(effect, 100)} points, "
        f"{_percent(result.values(*place, name, _variety))} of the variety"
        for place, name, effect in _gains(result)
    ]
    if told:
        head = "* More often right than soft labels, at an interval widened for the number of hybrids:"
        yield "\n".join([head, *told])


def _gains(result: LabResult) -> Iterator[tuple[Place, str, Effect]]:
    """Hybrids with more right answers than soft labels, where, and by how much."""
    for place in places(result):
        run = result.objectives(*place)
        hybrids = [name for name in HYBRIDS if name in run]
        for name in hybrids if "soft" in run else ():
            effect = difference(result, *place, name, "soft", SUCCESS[0], tests=len(hybrids))
            if effect.corrected is not None and effect.corrected.low > 0:
                yield place, name, effect


def _slips(result: LabResult) -> Iterator[str]:
    """Whether a student is better than its teacher."""
    for place in places(result):
        if not REGIMES[place.regime].slip_rate:
            continue
        right = result.values(*place, result.objectives(*place)[0], lambda measured: measured.teacher_success)
        told = ", ".join(
            f"{label(name)} {_percent(result.values(*place, name, SUCCESS[0]))} "
            f"({_percent(result.values(*place, name, _variety))})"
            for name in result.objectives(*place)
        )
        teacher = f"the teacher itself is right {_percent(right)} of the time"
        yield f"* In {place} {teacher}. Its students (variety kept): {told}."


def _exposure_bias_of_soft(result: LabResult) -> str:
    """Where exposure bias is no cost at all."""
    kinds: dict[str, list[Place]] = {"above zero": [], "below zero": [], "not told from zero": []}
    for place in places(result):
        if "soft" not in result.objectives(*place):
            continue
        interval = difference(result, *place, "soft", None, lambda measured: measured.exposure_bias).interval
        if interval is None or interval.low <= 0 <= interval.high:
            kinds["not told from zero"].append(place)
        else:
            kinds["above zero" if interval.low > 0 else "below zero"].append(place)
    told = "; ".join(f"{kind}: {listed(where)}" for kind, where in kinds.items() if where)
    return (
        f"* Exposure bias of soft labels is {told}. Where it is not above zero there is nothing for a hybrid to lower. "
        "Below zero a student's own answers are easier for it than the teacher's: lower still is no merit."
    )


def _sweep(result: LabResult) -> Iterator[str]:
    """The best constant soft weight for each role."""
    seeds = len(result.settings.seeds)
    for world in result.worlds:
        if not sweep_weights(result, world):
            continue
        best = {role: optimum(result, world, role) for role in roles_of(result, world)}
        told = ", ".join(
            f"{CHOICES[role][0]} at λ = {where.weight:g} ({where.seeds} of {seeds} seeds)"
            for role, where in best.items()
        )
        yield f"* With one constant λ in the world {world}, the inference error is lowest {told}."


def _predictors(rows: Sequence[Finding]) -> str:
    """Claim 5 in its forms: what is summed, and over which positions."""
    forms = {
        "κ(s) at all positions": "5a",
        "κ(s) at Bridges and Gardens": "5a-choices",
        "the student-weighted κ at all positions": "5a-weighted",
        "the student-weighted κ at Bridges and Gardens": "5a-weighted-choices",
    }
    told = []
    for words, claim in forms.items():
        here = [row.verdict for row in rows if row.claim == claim and row.effect.mean is not None]
        holds, fails = here.count(Verdict.HOLDS), here.count(Verdict.FAILS)
        told.append(f"{words}: positive in {holds}, negative in {fails} of {len(here)} places")
    return (
        f"* Rank correlation of the teacher's confidence with kappa. {'; '.join(told)}. At a forced position one token "
        "alone stays on script: the teacher is sure, and κ(s), a sum over the tokens that stay on script, is zero by "
        "definition. Most Gardens, where it is not sure, lie a hair above zero, and ranks do not ask by how much. So "
        "the correlation over all positions is negative even in a world where the mean κ(s) of Bridges is much higher "
        "than that of Gardens; see the table below."
    )


def _control(lines: Sequence[ClaimSummary]) -> Iterator[str]:
    """Which claims were found where they should not be."""
    here = [line for line in lines if line.claim == "6"]
    found = sorted({name.partition(" ")[0] for line in here for name in line.fails})
    if found:
        yield (
            f"* In the world {CONTROL}, which has no Bridges, these claims hold all the same for some objective in "
            f"some regime: {', '.join(found)}. Where claims 1 and 3b are among them, that says nothing of Bridges: a "
            "mixed target is not the teacher's distribution, so a hybrid fits that worse, and hard labels give up the "
            "Gardens."
        )


def _counts(lines: Sequence[ClaimSummary], claim: str, verdict: Verdict) -> str:
    here = [line.verdict for line in lines if line.claim == claim]
    return f"{here.count(verdict)} of {len(here)}"


def _variety(measured: Measured) -> float:
    return measured.diversity


def _with_interval(effect: Effect, unit: float) -> str:
    between = "" if effect.corrected is None else f" ({span(effect.corrected, lambda value: _signed(unit * value))})"
    return f"{_signed(unit * (effect.mean or 0.0))}{between}"


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)


def _percent(values: Sequence[float]) -> str:
    return f"{100 * _mean(values):.0f} %"


def _signed(value: float, digits: int = 3) -> str:
    return f"+{number(value, digits)}" if value > 0 else number(value, digits)
