"""The figures of the evidence, drawn from a map's numbers. ``docs/results/write_evidence.py`` writes them."""

from collections.abc import Iterable

from bridgegarden.lab.map.cells import ARMS, FAIRNESS
from bridgegarden.lab.map.findings import CLAIMS, KAPPA, MAIN
from bridgegarden.report.charts import Bar, Dot, Row, Shape, bar_chart, dot_plot
from bridgegarden.report.marks import Axis, Reading
from bridgegarden.study.arms import HYBRIDS
from docs.figures.draw_results import SIZE, Figure
from docs.results.evidence_numbers import CONFIRMED, WAY, Evidence, Place, between, counted, points
from docs.results.evidence_numbers import Row as Numbers
from docs.results.evidence_pair import Pair

FIGURED = {
    "won": Place("slips", "too small", "many", "long"),
    "lost": Place("perfect", "too small", "few", "long"),
}
"""Cells whose losses are drawn: one where a hybrid is ahead of both pure kinds, one where it is behind."""
COUNTED = {
    "1": "fits the teacher's text worse",
    "2": "less exposure bias than soft",
    "4": "lower total loss than pure",
    "right": "more right, greedy",
    "right, equally varied": "the same, equally varied",
    "right, sampled": "the same, sampled",
    "sharpened": "more right than sharpened",
    "soft with risk": "than soft with risk",
    "on-policy": "than on-policy soft",
}
"""Claims about hybrids, short enough for a chart."""
ONE: tuple[tuple[str, Shape], ...] = (("", "disc"),)
"""What a row has where it has one dot."""
DECODINGS = {"right": "greedy", "right, equally varied": "equally varied", "right, sampled": "sampled"}
AGAINST: dict[str, tuple[str, Shape]] = {
    "sharpened": ("sharpened", "disc"),
    "soft with risk": ("soft with risk", "ring"),
    "on-policy": ("on-policy", "square"),
}
READ = {
    "every token": "all tokens",
    "the teacher's tokens": "teacher's",
    "the student's tokens": "student's",
    "every token, the end included": "all + end",
}
"""Readings of kappa, short enough for a chart."""
SETTINGS: dict[str, Shape] = dict(zip(FAIRNESS, ("square", "ring", "disc"), strict=True))


def figures(evidence: Evidence) -> dict[str, Figure]:
    """By the name of its file, every figure of these pages."""
    losses = {f"bridges-{name}": mechanism(evidence, place, name) for name, place in FIGURED.items()}
    return losses | {
        "results-evidence": claims(evidence),
        "results-evidence_right": cell_by_cell(evidence),
        "results-evidence_decoding": by_decoding(evidence),
        "results-evidence_exposure_bias": exposure_bias(evidence),
        "results-evidence_bridges": told_by_the_teacher(evidence),
        "results-evidence_baselines": baselines(evidence),
        "results-evidence_transformers": with_transformers(evidence),
        "results-evidence_smollm2": Pair().figure,
    }


def claims(evidence: Evidence) -> Figure:
    """In how many cells a hybrid does what is claimed."""
    bars = [_counts(evidence, claim, name, f"a hybrid: {name}") for claim, name in COUNTED.items()]
    title = "In how many cells a hybrid does what is claimed"
    alt = f"{title}: {'; '.join(f'{name} {counted(evidence, claim)}' for claim, name in COUNTED.items())}"
    return _bars(title, alt, bars, len(evidence.places))


def by_decoding(evidence: Evidence) -> Figure:
    """With each teacher and decoding, in how many cells a hybrid is ahead of hard and soft labels."""
    bars, told = [], []
    teachers = list(dict.fromkeys(place.teacher for place in evidence.places))
    for teacher in teachers:
        name = teacher.replace("_", " ")
        for claim, decoding in DECODINGS.items():
            bars.append(_counts(evidence, claim, f"{name}: {decoding}", f"teacher {name}, {decoding}", teacher))
        told.append(f"{name} " + ", ".join(counted(evidence, claim, teacher=teacher) for claim in DECODINGS))
    title = "In how many cells a hybrid is ahead of hard and soft labels, by teacher and decoding"
    alt = f"{title} ({', '.join(DECODINGS.values())}): {'; '.join(told)}"
    return _bars(title, alt, bars, len(evidence.places) // len(teachers))


def cell_by_cell(evidence: Evidence) -> Figure:
    """In every cell, the best hybrid against the better pure kind, the largest difference first."""
    best = [_best(evidence.tests(MAIN, place=place)) for place in evidence.places]
    drawn = sorted(zip(evidence.places, best, strict=True), key=lambda pair: -float(pair[1]["difference as claimed"]))
    rows = [
        Row(name=_short(place), dots=(_dot(row, 100.0, 1, f"{place}, {ARMS[row['arm']].label}: ", " points"),))
        for place, row in drawn
    ]
    title = "How much more often the best hybrid is right than the better pure kind, greedy, in every cell"
    first, last = drawn[0], drawn[-1]
    alt = f"{title}: from {between(first[1], 100, 1)} points ({first[0]}) to {between(last[1], 100, 1)} ({last[0]})"
    return _dots(title, alt, rows, "difference in right answers, points", size=SIZE + 80)


def exposure_bias(evidence: Evidence) -> Figure:
    """How much less exposure bias each hybrid has than soft labels, over all cells, by how settings were chosen."""
    found = {way: {row["arm"]: row for row in evidence.pooled("2", way)} for way in SETTINGS}
    rows = [
        Row(
            name=ARMS[arm].label,
            dots=tuple(_dot(found[way][arm], 1.0, 3, f"{ARMS[arm].label}, {way}: ") for way in SETTINGS),
        )
        for arm in HYBRIDS
    ]
    title = "How much less exposure bias each hybrid has than soft labels, over all cells"
    told = "; ".join(f"{ARMS[arm].label} {between(found[WAY][arm])}" for arm in HYBRIDS)
    series: list[tuple[str, Shape]] = [(way.removeprefix("tuned "), shape) for way, shape in SETTINGS.items()]
    return _dots(title, f"{title}, nats an answer, {WAY}: {told}", rows, "less exposure bias, nats an answer", series)


def told_by_the_teacher(evidence: Evidence) -> Figure:
    """Rank correlation of what the teacher shows with kappa, for every predictor and reading, over all cells."""
    rows, told = [], []
    for claim in (claim for claim in CLAIMS if claim.measure in KAPPA):
        (pooled,) = evidence.pooled(claim.name)
        predictor, reading = KAPPA[claim.measure]
        rows.append(
            Row(
                name=f"{predictor}, {READ[reading]}",
                dots=(_dot(pooled, 1.0, 3, f"{predictor}, kappa over {reading}: "),),
            )
        )
        told.append(f"{predictor} over {reading} {between(pooled)}")
    title = "Rank correlation of the teacher's certainty with kappa(s), over all cells"
    return _dots(title, f"{title}: {'; '.join(told)}", rows, "rank correlation")


def baselines(evidence: Evidence) -> Figure:
    """Each hybrid against labels that are seldom run, over all cells."""
    found = {claim: {row["arm"]: row for row in evidence.pooled(claim)} for claim in AGAINST}
    rows = [
        Row(
            name=ARMS[arm].label,
            dots=tuple(
                _dot(found[claim][arm], 100.0, 1, f"{ARMS[arm].label} − {name}: ", " points")
                for claim, (name, _) in AGAINST.items()
            ),
        )
        for arm in HYBRIDS
    ]
    title = "How much more often each hybrid is right, greedy, than three baselines, over all cells"
    told = "; ".join(
        f"best against {name} {between(_best(found[c].values()), 100, 1)}" for c, (name, _) in AGAINST.items()
    )
    return _dots(title, f"{title}, points: {told}", rows, "difference in right answers, points", AGAINST.values())


def with_transformers(evidence: Evidence) -> Figure:
    """Right answers against the better pure kind, in the cells that transformers have, theirs and the map's."""
    theirs, way = Evidence(CONFIRMED), FAIRNESS[0]
    rows, told = [], []
    for place in theirs.places:
        for claim, decoding in (("right", "greedy"), ("right, sampled", "sampled")):
            found = [_best(each.tests(claim, way, place)) for each in (theirs, evidence)]
            about = f"{place}, {decoding}, "
            dots = tuple(
                _dot(row, 100.0, 1, f"{about}{who}, {ARMS[row['arm']].label}: ", " points")
                for who, row in zip(("transformers", "map"), found, strict=True)
            )
            rows.append(Row(name=f"{_short(place)}: {decoding}", dots=dots))
            told.append(f"{place}, {decoding} {between(found[0], 100, 1)} (map {between(found[1], 100, 1)})")
    title = "How much more often the best hybrid is right than the better pure kind, transformers beside the map"
    series: list[tuple[str, Shape]] = [("transformers", "disc"), ("the map's networks", "ring")]
    label = "difference in right answers, points"
    return _dots(title, f"{title}, points: {'; '.join(told)}", rows, label, series, size=SIZE + 80)


def mechanism(evidence: Evidence, place: Place, name: str) -> Figure:
    """What the students of a cell pay on their own answers, at Bridges and at Gardens."""
    bars, told = [], []
    for arm in ("hard", "soft", "static", "confidence", "entropy", "risk_guided", "sharpened", "by_role"):
        bridges, gardens = (evidence.mean(place, arm, f"L_dθ at {role}") for role in ("Bridges", "Gardens"))
        right = points(evidence.mean(place, arm, "right, greedy"))
        about = f"{ARMS[arm].label}\n{bridges:.2f} nats at Bridges, {gardens:.2f} at Gardens\nright {right} %, greedy"
        bars.append(Bar(name=ARMS[arm].label, filled=bridges, hollow=gardens, label=f"right {right} %", about=about))
        told.append(f"{ARMS[arm].label} {bridges:.2f} + {gardens:.2f}, right {right} %")
    chart = bar_chart(
        bars,
        axis=Axis(label="L_dθ, nats an answer →"),
        about=str(place),
        parts=("at Bridges (values)", "at Gardens (wordings)"),
        size=SIZE,
    )
    where = "ahead" if name == "won" else "behind"
    alt = f"L_dθ at Bridges and at Gardens, nats an answer, where a hybrid is {where}: {'; '.join(told)}"
    return Figure(chart=chart, title=str(place), alt=alt)


def _counts(evidence: Evidence, claim: str, name: str, about: str, teacher: str | None = None) -> Bar:
    holds, undecided = (counted(evidence, claim, teacher=teacher, verdict=one) for one in ("holds", "undecided"))
    filled, hollow = (int(one.split(" of ")[0]) for one in (holds, undecided))
    return Bar(name=name, filled=filled, hollow=hollow, label=holds, about=f"{about}: {holds}, undecided in {hollow}")


def _bars(title: str, alt: str, bars: list[Bar], cells: int) -> Figure:
    axis = Axis(label="cells", include=(float(cells),), whole=True)
    return Figure(
        chart=bar_chart(bars, axis=axis, about=alt, parts=("holds", "undecided"), size=SIZE), title=title, alt=alt
    )


def _dots(
    title: str,
    alt: str,
    rows: list[Row],
    label: str,
    series: Iterable[tuple[str, Shape]] = ONE,
    *,
    size: int = SIZE,
) -> Figure:
    chart = dot_plot(rows, axis=Axis(label=label, include=(0.0,)), series=list(series), about=alt, size=size)
    return Figure(chart=chart, title=title, alt=alt)


def _dot(row: Numbers, times: float, digits: int, before: str, after: str = "") -> Dot:
    value, low, high = (times * float(row[name]) for name in ("difference as claimed", "low", "high"))
    return Dot(reading=Reading(value, low, high), about=f"{before}{between(row, times, digits)}{after}")


def _best(rows: Iterable[Numbers]) -> Numbers:
    return max(rows, key=lambda row: float(row["difference as claimed"]))


def _short(place: Place) -> str:
    room = {"room enough": "room", "too small": "small"}[place.student]
    return f"{place.teacher.split('_')[0]}, {room}, {place.rows}, {place.budget}"
