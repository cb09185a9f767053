"""What the numbers say: means with intervals, paired differences, costs, in words; and students as draft models."""

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import wraps
from itertools import combinations
from typing import Any, Concatenate, Literal, NamedTuple, ParamSpec, TypeVar

from bridgegarden.compare.result import CompareResult, CompareRun, Measured, Quantity
from bridgegarden.diagnostics.acceptance import by_prompt
from bridgegarden.diagnostics.exposure_bias import ExposureBias
from bridgegarden.statistics import (
    CONFIDENCE,
    Interval,
    PairedDifference,
    Scores,
    SeedSpread,
    exact_share,
    holm_adjusted,
    paired_difference,
    unvaried_interval,
    unvaried_p,
)
from bridgegarden.table import Cell, Table, mean_cell, number, share_parts
from bridgegarden.terminal import listed

QUALITIES: Mapping[Quantity, str] = {"sampled": "right, sampled", "greedy": "right, greedy"}
"""Shares of right answers, and what tables call them. The first that was measured is the one that is ranked by."""

LOSSES: Mapping[Quantity, str] = {"teacher_loss": "L_dT", "student_loss": "L_dθ", "exposure_bias": "exposure bias"}
"""Nats a text, and what tables call them."""

Asked = ParamSpec("Asked")
FoundT = TypeVar("FoundT")
DRAFTED = 4
"""Tokens that a draft is taken to have, so that objectives are held against each other at one length."""
ACCEPTED: tuple[Quantity, ...] = ("accepted", "accepted_own", "same_likeliest")
"""Shares of tokens."""
TOKENS_A_PASS: Quantity = "tokens_a_pass"
DRAFTS: tuple[Quantity, ...] = (*ACCEPTED, TOKENS_A_PASS)
"""By prompt in `Measured.by_unit`: 1 - TV on the teacher's texts and on the student's own, how often both have the same
likeliest token on the teacher's, and tokens a pass of the teacher for drafts of :data:`DRAFTED`."""


@dataclass(frozen=True, kw_only=True)
class Mean:
    """One quantity of one objective."""

    value: float
    """Mean over seeds of the mean over problems or prompts."""
    interval: Interval
    """95 %, over seeds and problems."""
    by_seed: tuple[float, ...]
    """In the order of the seeds."""
    p: float = 1.0
    """That the value is zero, of this one alone."""


class Price(NamedTuple):
    """What an objective cost, mean over seeds."""

    flops: float
    """Estimated operations of a training and its share of the teacher's cache."""
    flops_alone: float
    """The same with the whole cache, as if nobody else read it."""
    seconds: float
    """Time of a training and its share of the cache's: processor time where students were on a CPU, else wall time. A
    cache that does not say what it took counts as nothing; see :func:`asking_time`."""
    seconds_alone: float
    """The same with the whole cache."""


def qualities(result: CompareResult) -> tuple[Quantity, ...]:
    """Those that were measured, the one to rank by first."""
    runs = [run for run in result.runs if run.measured is not None]
    return tuple(q for q in QUALITIES if runs and all(run.measured and run.measured.by_unit.get(q) for run in runs))


def mean_of(run: CompareRun, quantity: Quantity) -> float | None:
    """Of one training; None if it was not measured."""
    values = None if run.measured is None else run.measured.by_unit.get(quantity)
    return _mean(list(_weighted(values).values())) if values else None


def _remembered(
    function: Callable[Concatenate[CompareResult, Asked], FoundT],
) -> Callable[Concatenate[CompareResult, Asked], FoundT]:
    """What was made by resampling is asked for by tables, words and charts alike: once for a result."""

    @wraps(function)
    def remembering(result: CompareResult, *asked: Asked.args, **named: Asked.kwargs) -> FoundT:
        place = (function.__name__, *asked, *named.items())
        if place not in result.memo:
            result.memo[place] = function(result, *asked, **named)
        return result.memo[place]

    return remembering


@_remembered
def summary(result: CompareResult, objective: str, quantity: Quantity) -> Mean:
    """`quantity` of `objective` with its interval over seeds and problems."""
    scores = _scores(result, objective, quantity)
    means = tuple(_mean(list(seed.values())) for seed in scores.values())
    alike = _same_everywhere([run.measured for run in result.runs_of(objective).values()], quantity)
    if alike in (0.0, 1.0):
        problems = min(map(len, scores.values()))
        return Mean(value=alike, interval=exact_share(round(alike * problems), problems), by_seed=means)
    zeros: list[Scores] = [dict.fromkeys(seed, 0.0) for seed in scores.values()]
    found = paired_difference(list(scores.values()), zeros)
    interval = found.interval
    if quantity in QUALITIES or quantity in ACCEPTED:
        # Student's t of two seeds does not know that a share lies between 0 and 1.
        interval = Interval(max(interval.low, 0.0), min(interval.high, 1.0))
    return Mean(value=found.mean, interval=interval, by_seed=means, p=found.p)


@_remembered
def difference(result: CompareResult, first: str, second: str, quantity: Quantity) -> PairedDifference | None:
    """`first` minus `second` on the seeds that both have, or None if there are none."""
    one, other = (_scores(result, name, quantity) for name in (first, second))
    seeds = [seed for seed in one if seed in other]
    if not seeds:
        return None
    found = paired_difference(
        [one[seed] for seed in seeds], [other[seed] for seed in seeds], of_all=_spread(result, quantity)
    )
    alike = [
        _same_everywhere([runs[seed].measured for seed in seeds], quantity)
        for runs in (result.runs_of(first), result.runs_of(second))
    ]
    if alike[0] in (0.0, 1.0) and alike[1] in (0.0, 1.0):
        # Of several tasks problems are weighted, which is why `paired_difference` does not see that they are alike.
        apart = alike[0] - alike[1]
        return replace(found, interval=unvaried_interval(apart, found.problems), p=unvaried_p(apart, found.problems))
    return found


@_remembered
def _spread(result: CompareResult, quantity: Quantity) -> SeedSpread | None:
    """How far trainings are apart, of all objectives on the seeds that all of them have."""
    scores = [_scores(result, name, quantity) for name in result.objectives]
    seeds = [seed for seed in scores[0] if all(seed in one for one in scores)]
    return SeedSpread.over([[_mean(list(one[seed].values())) for seed in seeds] for one in scores])


def _same_everywhere(measured: Sequence[Measured | None], quantity: Quantity) -> float | None:
    """The share of right answers that every problem and seed has; None if they vary, or it is no share."""
    found = {value for one in measured if one is not None for value in one.by_unit.get(quantity, {}).values()}
    return found.pop() if quantity in QUALITIES and len(found) == 1 else None


Claim = tuple[str, str | None, Quantity]
"""What the page may call: that one objective is higher than another in a quantity, or (None) that it is not zero."""


@_remembered
def claims(result: CompareResult) -> dict[Claim, float]:
    """Everything that the page may call, with its p value adjusted for all of it together (Holm).

    Every pair in right answers, since the highest is picked by looking; every objective against the baseline in losses;
    and the sign of every exposure bias.
    """
    found = dict(_claims(result))
    return dict(zip(found, holm_adjusted(list(found.values())), strict=True))


def _claims(result: CompareResult) -> Iterator[tuple[Claim, float]]:
    """Each with its p value alone."""
    base = result.settings.baseline
    for first, second in combinations(result.objectives, 2):
        losses = ("student_loss", "exposure_bias") if base in (first, second) else ()
        for quantity in (*qualities(result), *losses):
            pair = difference(result, first, second, quantity)
            if pair is not None:
                yield (first, second, quantity), pair.p
    for name in result.objectives:
        yield (name, None, "exposure_bias"), summary(result, name, "exposure_bias").p


def called(result: CompareResult, first: str, second: str | None, quantity: Quantity) -> Literal[-1, 0, 1]:
    """Whether `first` is higher (1) or lower (-1) than `second`, or than zero; 0 is open. As `claims` correct it."""
    found = claims(result)
    adjusted = found.get((first, second, quantity))
    if adjusted is None and second is not None:
        adjusted = found.get((second, first, quantity))
    if adjusted is None or adjusted > 1 - CONFIDENCE:
        return 0
    one = summary(result, first, quantity) if second is None else difference(result, first, second, quantity)
    return 0 if one is None else one.interval.side()


def all_differences(result: CompareResult) -> list[dict[str, Any]]:
    """Every pair of objectives in every quantity, for a JSON file; verdicts are the page's, corrected."""
    return [
        {
            "first": first,
            "second": second,
            "quantity": quantity,
            **found.to_dict(),
            "adjusted_p": claims(result).get((first, second, quantity)),
            "verdict": (None, "first", "second")[called(result, first, second, quantity)],
        }
        for first, second in combinations(result.objectives, 2)
        for quantity in (*qualities(result), *LOSSES)
        if (found := difference(result, first, second, quantity)) is not None
    ]


def asking_time(result: CompareResult) -> float | None:
    """Seconds of asking the teacher once about all rows, by the clock that trainings are compared on; None if the cache
    does not say, or there is none."""
    return None if result.cache is None else getattr(result.cache, _clock(result))


def price(result: CompareResult, objective: str) -> Price:
    """What a training of `objective` cost."""
    runs, clock = result.runs_of(objective).values(), _clock(result)
    flops, seconds = (spent(runs, field) for field in ("flops", clock))
    cache = result.cache
    if cache is None or not result.rows[objective].asks_teacher or result.rows[objective].lmbda > 0:
        return Price(flops, flops, seconds, seconds)
    share, asking = 1 / max(cache.sharers, 1), asking_time(result) or 0.0
    return Price(flops + share * cache.flops, flops + cache.flops, seconds + share * asking, seconds + asking)


def entropy_kept(result: CompareResult, objective: str) -> float | None:
    """Student's entropy over the teacher's on held-out rows, mean over seeds; None without such rows."""
    measured = [run.measured for run in result.runs_of(objective).values() if run.measured is not None]
    known = [one.entropy_kept for one in measured if one.entropy_kept is not None]
    return _mean(known) if known else None


def label_loss(result: CompareResult, objective: str | None) -> float | None:
    """Loss of an objective's students on the tokens of held-out rows, nats a token, mean over seeds; the teacher's own
    where `objective` is None. None without such rows."""
    runs = result.runs if objective is None else result.runs_of(objective).values()
    measured = [run.measured for run in runs if run.measured is not None]
    losses = [one.teacher_label_loss if objective is None else one.label_loss for one in measured]
    known = [loss for loss in losses if loss is not None]
    return _mean(known) if known else None


def spent(runs: Iterable[CompareRun], field: str) -> float:
    """`field` of `Spent`, mean over `runs`, none of which failed."""
    return _mean([float(getattr(run.spent, field)) for run in runs])


def best(result: CompareResult, quantity: Quantity) -> str:
    """The objective with the highest mean."""
    return max(result.objectives, key=lambda name: summary(result, name, quantity).value)


def _clock(result: CompareResult) -> Literal["seconds", "cpu_seconds"]:
    return "cpu_seconds" if result.pair.device == "cpu" else "seconds"


def _scores(result: CompareResult, objective: str, quantity: Quantity) -> dict[int, Scores]:
    """By seed, then problem or prompt; weighted so that every task counts the same."""
    found: dict[int, Scores] = {}
    for seed, run in result.runs_of(objective).items():
        values = None if run.measured is None else run.measured.by_unit.get(quantity)
        if values:
            found[seed] = {**(_weighted(values) if quantity in QUALITIES else values)}
    return found


def _weighted(values: Mapping[str, float]) -> dict[str, float]:
    """Scores whose mean is the mean over tasks of the mean over problems."""
    sizes = Counter(name.partition("/")[0] for name in values)
    weights = {group: len(values) / (len(sizes) * size) for group, size in sizes.items()}
    return {name: value * weights[name.partition("/")[0]] for name, value in values.items()}


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)


def sentences(result: CompareResult) -> list[str]:
    """The findings, the most important first."""
    found = [*_quality(result), *_cost(result), *_drift(result), *_on_the_data(result), _corrected(result)]
    if result.settings.export is not None:
        found.append(
            f"Students were measured as the GGUF files of type {result.settings.export} that are written of them"
        )
    for run in result.failures:
        found.append(f"{result.label(run.objective)} failed with seed {run.seed}: {run.failure}")
    return found


def percent(value: float, low: float, high: float) -> str:
    """A share with half its interval; or with what it may be, where that ends at 0 or 1."""
    mean, rest = share_parts(value, (low, high))
    return f"{mean} {rest} %" if rest.startswith(("±", "[")) else f"{mean} % ({rest} %)"


def times(ratio: float) -> str:
    """How many times, in words a table can hold."""
    return f"{number(ratio, 2 if ratio < 10 else 3)}×"


def times_less(ratios: Sequence[float], less: str = "") -> str:
    """How many times less something costs.

    Args:
        ratios: of the other's cost to its own; one, or the ends of a range.
        less: the word for it; where a ratio is below one the word is ``more``, and the number its inverse.
    """
    low, high = min(ratios), max(ratios)
    if low < 1 < high:
        return f"{times(1 / low)} more to {times(high)} {less or 'less'}"
    ends = [times(ratio) for ratio in ((low, high) if low >= 1 else (1 / high, 1 / low))]
    return f"{' to '.join(dict.fromkeys(ends))} {less if low >= 1 else 'more'}".rstrip()


def _quality(result: CompareResult) -> list[str]:
    return [_highest(result, quantity) for quantity in qualities(result)]


def _highest(result: CompareResult, quantity: Quantity) -> str:
    """Which objective has the highest mean, what it kept of the teacher's entropy, and which may be as good."""
    top = best(result, quantity)
    mean, kept = summary(result, top, quantity), entropy_kept(result, top)
    others = [name for name in result.objectives if name != top]
    even = [name for name in others if called(result, top, name, quantity) <= 0]
    told = f"not told apart from it: {listed([result.label(name) for name in even])}"
    if not even:
        told = "every other objective is lower by more than chance explains"
    elif len(even) == len(others):
        return f"{QUALITIES[quantity].capitalize()}: no objective is told apart from the highest, {_share(mean)}."
    entropy = "" if kept is None else f" and keeps {100 * kept:.0f} % of the teacher's entropy"
    return f"{QUALITIES[quantity].capitalize()}: {result.label(top)} is highest with {_share(mean)}{entropy}; {told}."


def _share(mean: Mean) -> str:
    return percent(mean.value, *mean.interval)


def _corrected(result: CompareResult) -> str:
    """How verdicts are corrected, and what that leaves open."""
    alone, together = dict(_claims(result)), claims(result)
    told = (
        f"What is called higher, lower or not zero holds for all {len(together)} comparisons of this page together "
        "(Holm): where all are equal, one page in twenty calls anything."
    )
    left = sum(p <= 1 - CONFIDENCE < together[claim] for claim, p in alone.items())
    if not left:
        return told
    seeds = len(result.settings.seeds)
    return f"{told} {left} would be called on their own and are open; more seeds than {seeds} tell (--seeds)."


def _cost(result: CompareResult) -> list[str]:
    """What objectives on fixed rows save against the baseline; what others take beside it."""
    base = result.settings.baseline
    others = [name for name in result.objectives if name != base]
    if base not in result.objectives or not others:
        return []
    found = []
    fixed = [name for name in others if not result.rows[name].lmbda]
    if fixed:
        ratios = [_ratios(result, field, base, fixed) for field in ("seconds", "flops")]
        if all(min(each) > 1 and times(min(each)) != times(1) for each in ratios):
            time, flops = (times_less(each, less) for each, less in zip(ratios, ("less", "fewer"), strict=True))
            words = f"{time} time and {flops} FLOPs than"
        else:
            time, flops = (" to ".join(dict.fromkeys((times(1 / max(each)), times(1 / min(each))))) for each in ratios)
            words = f"{time} the time and {flops} the FLOPs of"
        found.append(f"On fixed rows a training takes {words} {result.label(base)}{_with_teacher(result)}.")
    for name in others:
        if result.rows[name].lmbda:
            time, flops = (1 / _ratios(result, field, base, [name])[0] for field in ("seconds", "flops"))
            label = result.label(name)
            found.append(
                f"{label[0].upper()}{label[1:]} takes {times(time)} the time and {times(flops)} the FLOPs of "
                f"{result.label(base)}."
            )
    return found


def _ratios(result: CompareResult, field: str, base: str, names: Sequence[str]) -> list[float]:
    """How many times less than `base` each of `names` costs."""
    return [getattr(price(result, base), field) / getattr(price(result, name), field) for name in names]


def _with_teacher(result: CompareResult) -> str:
    """Whether asking the teacher is counted in what a training on fixed rows takes."""
    if result.cache is None or not result.cache.sharers:
        return ""
    if asking_time(result) is None:
        return "; its share of asking the teacher is in the FLOPs, and not in the time, which the cache does not say"
    return ", with its share of asking the teacher"


def _on_the_data(result: CompareResult) -> list[str]:
    """Whether the teacher knows the held-out rows better than its students do."""
    losses = {name: loss for name in result.objectives if (loss := label_loss(result, name)) is not None}
    teacher = label_loss(result, None)
    if teacher is None or not losses:
        return []
    least = min(losses, key=lambda name: losses[name])
    return [
        f"On the tokens of the held-out rows the teacher's own loss is {number(teacher)} nats a token, and the least "
        f"of any objective's students {number(losses[least])} ({result.label(least)})."
    ]


def _drift(result: CompareResult) -> list[str]:
    signs: dict[str, list[str]] = {"above zero": [], "below zero": [], "not told from zero": []}
    for name in result.objectives:
        place = ("not told from zero", "above zero", "below zero")[called(result, name, None, "exposure_bias")]
        signs[place].append(result.label(name))
    told = "; ".join(f"{place}: {', '.join(names)}" for place, names in signs.items() if names)
    if len(signs["not told from zero"]) == len(result.objectives):
        told = "not told from zero for any objective"
    lowest = min(result.objectives, key=lambda name: summary(result, name, "student_loss").value)
    known = " (of what is known of the teacher)" if result.pair.translated else ""
    return [
        f"Exposure bias{known} is {told}.",
        f"The lowest loss on a student's own texts, L_dθ, is that of {result.label(lowest)}; it measures likeness to "
        "the teacher, mistakes included.",
    ]


def drafts_by_prompt(bias: ExposureBias) -> dict[Quantity, dict[str, float]]:
    """Each of `DRAFTS`, from the texts that exposure bias was measured on."""
    on_teacher, on_own = by_prompt(bias, DRAFTED)
    columns = (on_teacher.acceptance, on_own.acceptance, on_teacher.agreement, on_teacher.tokens_per_pass)
    return {
        name: {str(number_): value for number_, value in enumerate(column.tolist())}
        for name, column in zip(DRAFTS, columns, strict=True)
    }


def draft_table(result: CompareResult) -> Table | None:
    """Every objective's students as draft models; None where a training was measured before these were."""
    runs = [run.measured for run in result.runs if run.measured is not None]
    if not runs or not all(one.by_unit.get(name) for one in runs for name in DRAFTS):
        return None
    ratio = result.pair.student_parameters / result.pair.teacher_parameters
    rows = []
    for objective in result.objectives:
        shares = [summary(result, objective, name) for name in ACCEPTED]
        tokens = summary(result, objective, TOKENS_A_PASS)
        rows.append(
            [
                result.label(objective),
                *(Cell(percent(mean.value, *mean.interval)) for mean in shares),
                mean_cell(tokens.value, tokens.interval),
                mean_cell(tokens.value, tokens.interval, times=1 / (DRAFTED * ratio + 1)),
            ]
        )
    columns = ["objective", "accepted", "accepted, own texts", "same likeliest token", "tokens a pass", "times as fast"]
    note = (
        "As draft models of the teacher (speculative decoding), means over seeds and prompts. Accepted: 1 "
        "\N{MINUS SIGN} TV at temperature 1, on the teacher's texts and the student's own. Tokens a pass: with drafts "
        f"of {DRAFTED} tokens, the teacher's own one included, expected on its texts at temperature 1. Times as fast: "
        f"if a token of the student costs {number(ratio, 2)} of the teacher's, the ratio of parameters."
    )
    return Table(columns=columns, rows=rows, note=note)
