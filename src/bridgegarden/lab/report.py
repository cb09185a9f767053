"""The lab's result as one HTML page: tables, charts, and example answers token by token."""

import re
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from markupsafe import Markup

from bridgegarden.lab.findings import Verdict, difference, error_of, findings, has_role, summaries
from bridgegarden.lab.result import REGIMES, LabResult, LabRun, Measured, TokenView
from bridgegarden.lab.tables import effect_table, interval_words, label, mean_table, over, signed, verdict_table
from bridgegarden.report.charts import WIDE, Curve, CurvePoint, Dot, Row, Shape, curve_chart, dot_plot, responsive
from bridgegarden.report.marks import Axis, Reading
from bridgegarden.report.page import Page, Section, details, figure, words_section
from bridgegarden.report.tokens import (
    CardTable,
    Facet,
    KindLayer,
    Layer,
    NumberLayer,
    Panel,
    Token,
    heatmap,
    heatmap_data,
    visible,
)
from bridgegarden.statistics import Effect
from bridgegarden.study.arms import LAMBDAS
from bridgegarden.table import number, probability


def report_page(result: LabResult) -> Page:
    """What the page says."""
    swept = [world for world in result.worlds if sweep_weights(result, world)]
    sections = [
        Section(anchor="claims", title="What came of the claims", body=_claims(result)),
        Section(anchor="means", title="Every objective", body=_means(result)),
        Section(anchor="roles", title="Bridges and Gardens", body=_roles(result)),
        Section(anchor="positions", title="Where exposure bias arises", body=_positions(result)),
    ]
    if swept:
        sections.append(Section(anchor="sweep", title="How much soft label", body=_sweep(result, swept)))
    sections += [
        Section(anchor="tokens", title="Answers, token by token", body=tokens_section(result)),
        words_section(*WORDS),
        _made(result),
    ]
    return Page(
        title="Bridges, Gardens and exposure bias, computed",
        kicker=f"bridgegarden lab run, {result.started[:10]}",
        lead=_lead(result),
        sections=tuple(sections),
        data=tokens_data(result),
    )


WORDS = (
    "hard label",
    "soft label",
    "hybrid",
    "Bridge",
    "Garden",
    "L_dT",
    "L_dθ",
    "exposure bias",
    "error of a role",
    "kappa",
    "off script",
    "variety kept",
)
"""What the page explains."""


def _lead(result: LabResult) -> Markup:
    counts = Counter(line.verdict for line in summaries(findings(result)))
    what = ", ".join(f"{counts[verdict]} × {verdict}" for verdict in Verdict if counts[verdict])
    return Markup(
        "<p>{} students were trained in {} and measured exactly: every probability below is summed over all texts that "
        "can be written, none is sampled. {}.</p><p>Each claim of the paper is judged in each world and regime. The "
        "verdicts: {}.</p>"
    ).format(
        len(result.runs),
        f"the world{'s' if len(result.worlds) > 1 else ''} {', '.join(result.worlds)}",
        over(result),
        what or "no claim could be judged",
    )


def _claims(result: LabResult) -> Markup:
    found = findings(result)
    body = Markup(
        "<p>A claim holds where the 95 % interval of its effect lies on the claimed side of zero, and does not hold "
        "where it lies on the other. A claim about hybrids holds if it does for one of them at an interval widened for "
        "their number.</p>"
    )
    for world in result.worlds:
        body += _heading(world) + verdict_table(result, world, found).html()
        for regime in result.regimes(world):
            here = [finding for finding in found if (finding.world, finding.regime) == (world, regime)]
            body += details(f"Effects: {world}, {REGIMES[regime].label}", effect_table(result, here).html())
    return body


def _means(result: LabResult) -> Markup:
    body = Markup("")
    for world in result.worlds:
        body += _heading(world)
        for regime in result.regimes(world):
            means = mean_table(result, world, regime)
            body += means.html() if regime == main_regime(result, world) else details(means.title, means.html())
    return body


def _roles(result: LabResult) -> Markup:
    body = Markup("")
    for world in result.worlds:
        run = result.objectives(world, main_regime(result, world))
        shown = labels([objective for objective in run if objective not in LAMBDAS])
        about = f"Inference error {_choices(result, world)} in the world {world}, one row per objective."
        caption = f"{_where(result, world)} Further left is better. What is missing to L_dθ is at forced positions."
        body += _heading(world) + figure(
            responsive(lambda size, w=world, s=shown, a=about: role_chart(result, w, s, a, size)), caption
        )
    return body


def _positions(result: LabResult) -> Markup:
    body = Markup("")
    for world in result.worlds:
        names = ", ".join(labels(curve_objectives(result, world)).values())
        caption = f"{_where(result, world)} Drawn: {names}; the others are in result.json. Bands: 95 % intervals."
        body += _heading(world) + figure(responsive(lambda size, w=world: position_chart(result, w, size)), caption)
    return body


def _sweep(result: LabResult, worlds: list[str]) -> Markup:
    seeds = len(result.settings.seeds)
    body = Markup("<p>One constant soft weight for all positions: λ = 0 is hard labels, λ = 1 soft ones.</p>")
    for world in worlds:
        shown = {name: f"λ = {weight:g}" for weight, name in sweep_weights(result, world).items()}
        about = f"Inference error {_choices(result, world)} in the world {world}, one row per soft weight."
        best = {role: optimum(result, world, role) for role in roles_of(result, world)}
        found = "; ".join(
            f"{CHOICES[role][0]} at λ = {where.weight:g} (so in {where.seeds} of {seeds} seeds)"
            for role, where in best.items()
        )
        body += _heading(world) + figure(
            responsive(lambda size, w=world, s=shown, a=about: role_chart(result, w, s, a, size)),
            f"{_where(result, world)} Lowest error: {found}.",
        )
    return body


def _made(result: LabResult) -> Section:
    settings = result.settings
    facts: dict[str, str | Markup] = {
        "seeds": f"{', '.join(map(str, settings.seeds))}, for first weights, problems, answers and their order",
        "training": f"at most {settings.steps:,} steps of {settings.batch} answers, AdamW; the best by validation kept",
        "measured on": f"{settings.test_problems} test problems that no student saw",
        "training time": f"{sum(run.training.cpu_seconds for run in result.runs):,.0f} CPU seconds in all",
    }
    return result.made(facts)


def _choices(result: LabResult, world: str) -> str:
    return " and ".join(CHOICES[role][0] for role in roles_of(result, world))


def _where(result: LabResult, world: str) -> str:
    return f"{world}, {REGIMES[main_regime(result, world)].label}; {over(result)}."


def _heading(world: str) -> Markup:
    return Markup("<h3>{}</h3>").format(world)


CHOICES: Mapping[str, tuple[str, Shape]] = {"bridge": ("at Bridges", "square"), "garden": ("at Gardens", "ring")}
"""Roles in which there is something to choose, as charts show them."""

SWEEP: Mapping[float, str] = {
    0.0: "hard",
    **{weight: name for name, weight in sorted((n, o.soft_weight) for n, o in LAMBDAS.items()) if weight is not None},
    0.5: "static",
    1.0: "soft",
}
"""Objective of every constant soft weight."""

CURVES = ("soft", "hard", "confidence", "entropy")
"""Four curves can be told apart; these are drawn if they were run."""


class Optimum(NamedTuple):
    """Where along the sweep the error of a role is lowest."""

    weight: float
    """The soft weight with the lowest mean."""
    seeds: int
    """In how many seeds it is the lowest."""


def main_regime(result: LabResult, world: str) -> str:
    """The regime in which everything was trained: the one that charts show."""
    return result.regimes(world)[0]


def sweep_weights(result: LabResult, world: str) -> dict[float, str]:
    """Soft weights that were run in `world`, in rising order, with their objectives; empty if there was no sweep."""
    run = result.objectives(world, main_regime(result, world))
    if not any(name in run for name in LAMBDAS):
        return {}
    return {weight: SWEEP[weight] for weight in sorted(SWEEP) if SWEEP[weight] in run}


def optimum(result: LabResult, world: str, role: str) -> Optimum:
    """The soft weight at which the inference error of `role` is lowest."""
    regime = main_regime(result, world)
    weights = sweep_weights(result, world)
    values = {w: result.values(world, regime, name, error_of(role)) for w, name in weights.items()}
    best = min(values, key=lambda weight: sum(values[weight]))
    lowest = [min(values, key=lambda weight: values[weight][at]) for at in range(len(values[best]))]
    return Optimum(best, lowest.count(best))


def roles_of(result: LabResult, world: str) -> list[str]:
    """Bridge and garden, each if there is such a position in `world`."""
    return [role for role in CHOICES if has_role(result, world, role)]


def role_chart(result: LabResult, world: str, objectives: Mapping[str, str], about: str, size: int = WIDE) -> Markup:
    """Inference error at Bridges and at Gardens, one row for each of `objectives` (name to what is written)."""
    regime, roles = main_regime(result, world), roles_of(result, world)
    rows = [
        Row(
            name=name,
            dots=tuple(
                _dot(f"{name}, {CHOICES[role][0]}", difference(result, world, regime, objective, None, error_of(role)))
                for role in roles
            ),
        )
        for objective, name in objectives.items()
    ]
    values = [dot.reading.value for row in rows for dot in row.dots]
    log = min(values) > 0 and max(values) > 20 * min(values)
    return dot_plot(
        rows,
        axis=Axis(
            label=f"error, nats an answer{', logarithmic' if log else ''} →", log=log, include=() if log else (0.0,)
        ),
        series=[CHOICES[role] for role in roles],
        about=about,
        size=size,
    )


def position_chart(result: LabResult, world: str, size: int = WIDE) -> Markup:
    """Exposure bias by the position that causes it, one curve for each of at most four objectives."""
    regime = main_regime(result, world)
    curves = [_curve(result, world, regime, objective) for objective in curve_objectives(result, world)]
    return curve_chart(
        curves,
        x=Axis(label="tokens written before →", whole=True),
        y=Axis(label="↑ exposure bias, nats", include=(0.0,)),
        about=f"Exposure bias by position in the world {world}.",
        size=size,
    )


def curve_objectives(result: LabResult, world: str) -> list[str]:
    """Those of `CURVES` that were run, filled up with others to four."""
    run = [name for name in result.objectives(world, main_regime(result, world)) if name not in LAMBDAS]
    return [name for name in dict.fromkeys([*CURVES, *run]) if name in run][:4]


def _curve(result: LabResult, world: str, regime: str, objective: str) -> Curve:
    runs = result.runs_of(world, regime, objective)
    length = min(len(run.measured.exposure_bias_by_position) for run in runs)
    points = [(at, difference(result, world, regime, objective, None, _bias_at(at))) for at in range(length)]
    name = label(objective)
    return Curve(
        name=name,
        points=tuple(
            CurvePoint(at, _reading(effect), f"{_words(name, effect)}\nafter {at} tokens") for at, effect in points
        ),
        sure=length,
    )


def _bias_at(position: int) -> Callable[[Measured], float]:
    return lambda measured: measured.exposure_bias_by_position[position]


def _dot(name: str, effect: Effect) -> Dot:
    return Dot(reading=_reading(effect), about=_words(name, effect))


def _words(name: str, effect: Effect) -> str:
    mean = number(effect.mean or 0.0)
    return f"{name}\n{mean} nats" + (f" ({interval_words(effect)})" if effect.interval is not None else "")


def _reading(effect: Effect) -> Reading:
    # These quantities exist in every run, so the mean does.
    mean = effect.mean or 0.0
    return Reading(mean, *(effect.interval or (mean, mean)))


def labels(objectives: Sequence[str]) -> dict[str, str]:
    """Objectives with their names for a reader."""
    return {objective: label(objective) for objective in objectives}


HOW = Markup(
    "<p>The teacher’s likeliest answer to one test problem of each world, seen with the student of each objective "
    "(first seed). Point at a token, tap it or walk there with the arrow keys to see what each choice costs later.</p>"
)


def tokens_section(result: LabResult) -> Markup:
    """The answers and how to read them."""
    if not any(run.example.tokens for run in _runs(result)):
        return Markup("<p>The examples have no token.</p>")
    objectives = list(dict.fromkeys(run.objective for run in _runs(result)))
    facets = [Facet(name="World", options=result.worlds), Facet(name="Student", options=tuple(map(label, objectives)))]
    return HOW + heatmap(_panels(result), facets, _layers(result))


def tokens_data(result: LabResult) -> dict[str, Any]:
    """The same for the page's script."""
    return heatmap_data(_panels(result), _layers(result))


def _runs(result: LabResult) -> list[LabRun]:
    """First seed, main regime; the sweep is left out, it would only make the page longer."""
    return [
        result.runs_of(world, main_regime(result, world), objective)[0]
        for world in result.worlds
        for objective in result.objectives(world, main_regime(result, world))
        if objective not in LAMBDAS
    ]


def _panels(result: LabResult) -> list[Panel]:
    runs = _runs(result)
    objectives = list(dict.fromkeys(run.objective for run in runs))
    return [
        Panel(
            choice=(result.worlds.index(run.world), objectives.index(run.objective)),
            title=f"{run.world}, student of {label(run.objective)}",
            before=Markup("<blockquote>{}</blockquote>").format(visible(run.example.prompt)),
            tokens=tuple(_token(view, first=at == 0) for at, view in enumerate(run.example.tokens)),
        )
        for run in runs
    ]


def _layers(result: LabResult) -> list[Layer]:
    views = [view for run in _runs(result) for view in run.example.tokens]
    return [
        _signed("κ(s)", [v.kappa for v in views], "Summed over all tokens that keep the text on script."),
        _signed("as the student chooses", [v.weighted_kappa for v in views], "The sum of q(a|s) κ(a|s)."),
        _growing("loss l(s)", [v.kl for v in views], "How far the student is from the teacher here."),
        _growing("teacher entropy", [v.entropy for v in views], "How undecided the teacher is."),
        KindLayer(
            values=tuple(view.role for view in views),
            name="role",
            group="World",
            about="Read off the process that writes the answers, not guessed from the models.",
        ),
    ]


def _signed(name: str, values: list[float], about: str) -> NumberLayer:
    sign = "Above 0: choosing here makes later positions harder."
    colours = "Colours grow with the square root, one scale for all answers."
    return NumberLayer.signed(values, name=name, group="Later cost κ", about=f"{about} {sign} {colours}")


def _growing(name: str, values: list[float], about: str) -> NumberLayer:
    return NumberLayer.growing(values, name=name, group="Models", about=about)


def _token(view: TokenView, *, first: bool) -> Token:
    # The worlds' tokens are words and marks; their decoders put spaces between words.
    glued = first or re.fullmatch(r"[.,!?;:]", view.text)
    facts = (
        ("role", view.role),
        ("κ(s)", f"{signed(view.kappa)} nats; as the student chooses {signed(view.weighted_kappa)}"),
        ("loss l(s)", f"{number(view.kl, 2)} nats"),
        ("teacher", f"max p {number(view.confidence, 2)}, entropy {number(view.entropy, 2)} nats"),
    )
    heads = ("if it goes on with", "teacher", "student", "κ, later cost")
    table = CardTable(heads=heads, rows=tuple(_actions(view)))
    return Token(text=view.text, gap="" if glued else " ", facts=facts, table=table)


def _actions(view: TokenView) -> Iterator[tuple[bool, tuple[str, ...]]]:
    for action in view.actions:
        cells = (action.text, probability(action.teacher), probability(action.student), signed(action.kappa))
        yield action.text == view.text, cells
