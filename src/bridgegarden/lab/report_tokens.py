"""Example answers of the lab's report, token by token: what colours them and what their cards say."""

import re
from collections.abc import Iterator
from typing import Any

from markupsafe import Markup

from bridgegarden.lab.example import TokenView
from bridgegarden.lab.report_charts import main_regime
from bridgegarden.lab.result import LabResult, LabRun
from bridgegarden.lab.tables import label, signed
from bridgegarden.report.heatmap import (
    CardTable,
    Cell,
    Facet,
    HeatLayer,
    KindLayer,
    NumberLayer,
    Panel,
    heatmap,
    heatmap_data,
)
from bridgegarden.report.scale import number
from bridgegarden.report.tokens import Token, visible
from bridgegarden.study.arms import LAMBDAS

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
            cells=tuple(_cell(view, first=at == 0) for at, view in enumerate(run.example.tokens)),
        )
        for run in runs
    ]


def _layers(result: LabResult) -> list[HeatLayer]:
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


def _cell(view: TokenView, *, first: bool) -> Cell:
    # The worlds' tokens are words and marks; their decoders put spaces between words.
    glued = first or re.fullmatch(r"[.,!?;:]", view.text)
    facts = (
        ("role", view.role),
        ("κ(s)", f"{signed(view.kappa)} nats; as the student chooses {signed(view.weighted_kappa)}"),
        ("loss l(s)", f"{number(view.kl, 2)} nats"),
        ("teacher", f"max p {number(view.confidence, 2)}, entropy {number(view.entropy, 2)} nats"),
    )
    return Cell(
        token=Token(text=view.text, gap="" if glued else " ", facts=facts),
        table=CardTable(
            heads=("if it goes on with", "teacher", "student", "κ, later cost"), rows=tuple(_actions(view))
        ),
    )


def _actions(view: TokenView) -> Iterator[tuple[bool, tuple[str, ...]]]:
    for action in view.actions:
        cells = (action.text, _percent(action.teacher), _percent(action.student), signed(action.kappa))
        yield action.text == view.text, cells


def _percent(share: float) -> str:
    return "<0.1 %" if 0 < share < 0.001 else f"{number(100 * share, 2)} %"
