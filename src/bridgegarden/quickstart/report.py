"""The quickstart's result as one HTML page: tables, charts, and one answer token by token."""

import re
from collections.abc import Callable, Sequence
from typing import Any

from markupsafe import Markup

from bridgegarden.exact.tasks.arithmetic import ArithmeticWorld
from bridgegarden.quickstart.result import (
    STUDENT_SIZE,
    TEACHER_SIZE,
    Measured,
    ObjectiveRun,
    QuickstartResult,
    TokenView,
    finding,
    frontier,
)
from bridgegarden.report.charts import WIDE, Dot, Point, Row, dot_plot, responsive, scatter
from bridgegarden.report.marks import Axis, Reading
from bridgegarden.report.page import Page, Section, figure, words_section
from bridgegarden.report.tokens import (
    KINDS,
    KindLayer,
    Layer,
    NumberLayer,
    Panel,
    Thought,
    Token,
    heatmap,
    heatmap_data,
)
from bridgegarden.statistics import Estimate, Interval
from bridgegarden.study.arms import LlamaSize
from bridgegarden.study.students import new_llama
from bridgegarden.table import Cell, Column, Table, mean_cell, number, share_parts, span


def percent(share: float) -> str:
    """A share from 0 to 1."""
    return f"{number(share * 100, 3 if abs(share) >= 0.1 else 2)} %"


def interval_words(result: QuickstartResult) -> str:
    """What the intervals are, and over what."""
    summary = result.summary(result.objectives[0], "accuracy_sampled")
    what = f"the {summary.n} seeds" if summary.units == "seeds" else f"the {summary.n:,} problems of the only seed"
    return f"95 % t-intervals over {what}"


COLUMNS = {
    "accuracy_sampled": Column("right, sampled"),
    "accuracy_greedy": Column("right, greedy"),
    "diversity": Column("variety kept"),
    "kl_bridge": Column("KL at Bridges"),
    "kl_garden": Column("KL at Gardens"),
    "teacher_loss": Column("loss on the teacher's answers", detail=True),
    "exposure_bias": Column("exposure bias"),
}
"""Fields of `Measured` in tables."""


def result_table(result: QuickstartResult) -> Table:
    """Every objective, those on the frontier starred, and the teacher."""
    kept = frontier(result)
    rows = []
    for name in result.objectives:
        found = [(result.summary(name, field), field) for field in COLUMNS]
        star = " *" if name in kept else ""
        rows.append([f"{result.label(name)}{star}", *(_cell(s.mean, s.interval, field) for s, field in found)])
    # Held against itself, the teacher has nothing but its answers to show.
    teacher = [_estimate(result.teacher, field) if field.startswith("accuracy") else "–" for field in COLUMNS]
    return Table(
        columns=["objective", *COLUMNS.values()],
        rows=[*rows, ["teacher", *teacher]],
        last=1,
        note="KLs in nats a token, losses and exposure bias in nats an answer. ± is half the width of "
        f"{interval_words(result)}. * on the frontier: no other objective is better at sampled accuracy and at "
        "variety. The teacher's own row is over problems; when it samples, it slips at about one value in ten, as the "
        "text it learned from does.",
    )


def runs_table(runs: Sequence[ObjectiveRun]) -> Table:
    """Single trainings, with intervals over problems."""
    return Table(
        columns=["", *COLUMNS.values()],
        rows=[
            [f"{run.label}, seed {run.seed}", *(_estimate(run.measured, field) for field in COLUMNS)] for run in runs
        ],
    )


def _estimate(measured: Measured, field: str) -> Cell:
    estimate: Estimate = getattr(measured, field)
    interval = estimate.share_interval() if field.startswith("accuracy") else estimate.interval()
    return _cell(estimate.mean, interval, field)


def _cell(mean: float, interval: Interval, field: str) -> Cell:
    if field.startswith("accuracy"):
        return Cell(*share_parts(mean, interval), "%")
    return mean_cell(mean, interval, times=100, unit="%") if field == "diversity" else mean_cell(mean, interval)


def report_page(result: QuickstartResult) -> Page:
    """What the page says."""
    kind = "whole comparison" if result.full else "short run"
    return Page(
        title="Hard labels, soft labels, or both",
        kicker=f"bridgegarden quickstart, {kind}, {result.started[:10]}",
        lead=_lead(result),
        sections=(
            Section(anchor="table", title="What came out", body=_table(result)),
            Section(anchor="frontier", title="Accuracy against variety", body=_frontier(result)),
            Section(anchor="bias", title="Exposure bias", body=_bias(result)),
            Section(anchor="kl", title="Distance from the teacher", body=_kl(result)),
            Section(anchor="answer", title="One answer, token by token", body=answer_section(result)),
            words_section(*WORDS),
            _made(result),
        ),
        data=answer_data(result),
    )


WORDS = (
    "hard label",
    "soft label",
    "soft weight λ",
    "Bridge",
    "Garden",
    "variety kept",
    "KL",
    "exposure bias",
    "surprise",
    "sampled, greedy",
)
"""What the page explains."""


def _lead(result: QuickstartResult) -> Markup:
    settings, count = result.settings, len(result.objectives)
    seeds = f"{len(settings.seeds)} seeds" if len(settings.seeds) > 1 else "one seed"
    done = Markup(
        "<p>A small teacher solves three-step arithmetic modulo {modulus} and tells how in words. It taught a student "
        "{times} times smaller in {count}, each with {seeds}, the same {steps} steps and the same {train} problems. "
        "Everything below is measured on {test} problems that no student saw in training.</p>"
    ).format(
        modulus=ArithmeticWorld().modulus,
        times=round(_parameters(TEACHER_SIZE) / _parameters(STUDENT_SIZE)),
        count=f"{count} ways" if count > 1 else "one way",
        seeds=seeds,
        steps=f"{settings.steps:,}",
        train=f"{settings.train_problems:,}",
        test=f"{settings.test_problems:,}",
    )
    ranges = f"Numbers come with {interval_words(result)}; where two overlap, their order may be chance."
    return done + Markup("<p>{} {}</p>").format(finding(result), ranges)


def _table(result: QuickstartResult) -> Markup:
    how = Markup(
        "<p>Some tokens of an answer are Bridges: one is right, and a slip spoils what follows. Others are Gardens: "
        "many would do. A good student is right often and still varies its words as its teacher does.</p>"
    )
    return how + result_table(result).html()


def _frontier(result: QuickstartResult) -> Markup:
    caption = (
        "Up and to the right is better. Filled points are on the frontier: no other objective does better at both, one "
        "of the two by more than chance explains. Rings are beaten; the diamond is the teacher itself. The dotted line "
        f"joins the best means. At 100 % a student varies as much as its teacher. {_bars(result)}"
    )
    return figure(responsive(lambda size: frontier_chart(result, size)), caption)


def _bias(result: QuickstartResult) -> Markup:
    caption = (
        "How much farther from the teacher a student is on the answers it writes itself than on the teacher's answers. "
        "Right of zero it drifts; left of zero its own answers are easier for it than the teacher's. A low value alone "
        f"is no merit: the loss on the teacher's answers counts as well. {_bars(result)}"
    )
    return figure(responsive(lambda size: bias_chart(result, size)), caption)


def _kl(result: QuickstartResult) -> Markup:
    caption = (
        "KL(teacher ‖ student) at the two kinds of position in the teacher's answers; to the left is closer. A student "
        "that always takes the likeliest word is far from the teacher in the Gardens. At Bridges some distance is "
        f"wanted: the teacher slips there, and a student that does not is better than its teacher. {_bars(result)}"
    )
    return figure(responsive(lambda size: kl_chart(result, size)), caption)


def _bars(result: QuickstartResult) -> str:
    seeds = " Faint dots are single seeds." if len(result.settings.seeds) > 1 else ""
    return f"Bars: {interval_words(result)}.{seeds}"


def _made(result: QuickstartResult) -> Section:
    settings = result.settings
    facts: dict[str, str | Markup] = {
        "teacher": f"{_parameters(TEACHER_SIZE):,} parameters, {_shape(TEACHER_SIZE)}; comes with the package",
        "student": f"{_parameters(STUDENT_SIZE):,} parameters, {_shape(STUDENT_SIZE)}; starts untrained",
        "training data": f"{settings.train_problems:,} problems with one sampled answer each",
        "teacher asked": f"once for {result.teacher_tokens:,} tokens; every student read its answers from disk",
        "held out": f"{settings.test_problems:,} other problems",
        "training": f"{settings.steps:,} steps of {settings.batch} answers, AdamW",
        "learning rate": f"{settings.learning_rate:g} at its peak",
        "seeds": f"{', '.join(map(str, settings.seeds))}, for first weights, data and its order",
    }
    rows = [
        [
            run.label,
            str(run.seed),
            run.hard_target.replace("_", " "),
            number(run.seconds),
            number(run.cpu_seconds),
            f"{run.tokens:,}",
            number(run.final_loss),
        ]
        for run in result.runs
    ]
    columns = ["objective", "seed", "hard label", "seconds", "CPU seconds", "tokens read", "last loss"]
    caption = (
        "Training alone, one row per student. The last loss is in nats per token and cannot be compared between "
        "objectives: each minimises something else. For soft alone the hard label has no weight."
    )
    runs = Table(columns=columns, rows=rows, note=caption).html()
    return result.made(facts, runs)


def _parameters(size: LlamaSize) -> int:
    return new_llama(ArithmeticWorld(), size, seed=0).num_parameters()


def _shape(size: LlamaSize) -> str:
    return f"Llama of {size.layers} layers, width {size.hidden}"


def answer_section(result: QuickstartResult) -> Markup:
    """The problem, the answer and how to read it."""
    answer = result.answer
    return Markup(
        "<p>{} wrote this, sampling at temperature 1. Point at a token, tap it or walk there with the arrow keys to "
        "see what the teacher and every student expected at that place{}.</p><blockquote>{}</blockquote>{}"
    ).format(
        f"The student of “{answer.written_by}”",
        "; the students are those of the first seed" if len(result.settings.seeds) > 1 else "",
        answer.prompt,
        heatmap(_panels(result), (), _layers(result)),
    )


def answer_data(result: QuickstartResult) -> dict[str, Any]:
    """The same for the page's script."""
    return heatmap_data(_panels(result), _layers(result))


def _layers(result: QuickstartResult) -> list[Layer]:
    views = result.answer.tokens
    layers: list[Layer] = [
        KindLayer(
            values=tuple(view.role for view in views),
            name="role",
            group="What it decides",
            about="Read off the process that the teacher learned, not guessed from the models.",
        )
    ]
    for rule in views[0].soft_weights if views else ():
        layers.append(
            NumberLayer(
                values=tuple(view.soft_weights[rule] for view in views),
                name=rule.replace("_", "-"),
                group="Soft weight λ of",
                scale="weight",
                most=1.0,
                ends=("0: hard label", "1: soft label"),
                about="How much of the loss at a position this rule takes from the teacher's whole distribution.",
            )
        )
    surprises = [value for view in views for value in view.student_surprise.values()]
    most = max([1.0, *surprises])
    for objective in views[0].student_surprise if views else ():
        layers.append(
            NumberLayer(
                values=tuple(view.student_surprise[objective] for view in views),
                name=result.label(objective),
                group="Surprise of",
                scale="surprise",
                most=most,
                ends=("0 nats", f"{number(most, 2)} nats"),
                about="How unexpected the written token was to this student. One scale for all students.",
            )
        )
    return layers


def _panels(result: QuickstartResult) -> list[Panel]:
    tokens = tuple(_token(result, view, first=index == 0) for index, view in enumerate(result.answer.tokens))
    return [Panel(choice=(), title="The answer", before=Markup(""), tokens=tokens)]


def _token(result: QuickstartResult, view: TokenView, *, first: bool) -> Token:
    # The world's tokens are words and marks; its decoder puts spaces between words.
    glued = first or re.fullmatch(r"[.,!?]", view.text)
    weights = " · ".join(f"{rule.replace('_', '-')} {number(value, 2)}" for rule, value in view.soft_weights.items())
    students = tuple(
        Thought(
            model=result.label(objective),
            top=top,
            note=f"surprise {view.student_surprise[objective]:.2f}",
        )
        for objective, top in view.student_tops.items()
    )
    return Token(
        text=view.text,
        gap="" if glued else " ",
        facts=(("role", ": ".join(KINDS[view.role])), ("soft weight λ", weights)),
        thoughts=(Thought(model="teacher", top=view.teacher_top), *students),
    )


def objective_points(result: QuickstartResult) -> list[Point]:
    """Diversity kept and sampled accuracy of every objective."""
    return [
        Point(
            name=result.label(objective),
            shape="disc" if objective in frontier(result) else "ring",
            x=_reading(result, objective, "diversity"),
            y=_reading(result, objective, "accuracy_sampled"),
            seeds=tuple(
                zip(_seeds(result, objective, "diversity"), _seeds(result, objective, "accuracy_sampled"), strict=True)
            ),
            about=_about(
                result,
                objective,
                {"right answers, sampled": "accuracy_sampled", "variety kept": "diversity"},
                percent,
            ),
        )
        for objective in result.objectives
    ]


def frontier_chart(result: QuickstartResult, size: int = WIDE) -> Markup:
    """Sampled accuracy against variety kept."""
    accuracy, diversity = result.teacher.accuracy_sampled, result.teacher.diversity
    right = f"{percent(accuracy.mean)} ({span(accuracy.interval(), percent)})"
    about = f"teacher\nright answers, sampled: {right}\nvariety kept: all\n95 % t-interval over the problems"
    teacher = Point(name="teacher", x=_of(diversity), y=_of(accuracy), shape="diamond", about=about)
    return scatter(
        [*objective_points(result), teacher],
        x=Axis(label="variety kept in Gardens →", percent=True, least=0),
        y=Axis(label="↑ right answers, sampled", percent=True, least=0, most=1),
        about="Right answers when sampling against variety kept, one point per objective.",
        size=size,
    )


def bias_chart(result: QuickstartResult, size: int = WIDE) -> Markup:
    """Exposure bias of every objective."""
    return dot_plot(
        [
            Row(name=result.label(o), dots=(_dot(result, o, "exposure_bias", "exposure bias"),))
            for o in result.objectives
        ],
        axis=Axis(label="exposure bias, nats per answer →", include=(0.0,)),
        series=(("exposure bias", "disc"),),
        about="Exposure bias, one row per objective.",
        size=size,
    )


def kl_chart(result: QuickstartResult, size: int = WIDE) -> Markup:
    """KL at Bridges and at Gardens; logarithmic where the values differ much."""
    rows = [
        Row(
            name=result.label(o),
            dots=(_dot(result, o, "kl_bridge", "KL at Bridges"), _dot(result, o, "kl_garden", "KL at Gardens")),
        )
        for o in result.objectives
    ]
    values = [dot.reading.value for row in rows for dot in row.dots]
    log = min(values) > 0 and max(values) > 20 * min(values)
    return dot_plot(
        rows,
        axis=Axis(label=f"KL, nats per token{', logarithmic' if log else ''} →", log=log, least=0),
        series=(("at Bridges", "square"), ("at Gardens", "ring")),
        about="KL from teacher to student at Bridges and at Gardens, one row per objective.",
        size=size,
    )


def _dot(result: QuickstartResult, objective: str, quantity: str, words: str) -> Dot:
    return Dot(
        reading=_reading(result, objective, quantity),
        seeds=_seeds(result, objective, quantity),
        about=_about(result, objective, {words: quantity}, number),
    )


def _reading(result: QuickstartResult, objective: str, quantity: str) -> Reading:
    summary = result.summary(objective, quantity)
    return Reading(summary.mean, *summary.interval)


def _of(estimate: Estimate) -> Reading:
    return Reading(estimate.mean, *estimate.interval())


def _seeds(result: QuickstartResult, objective: str, quantity: str) -> tuple[float, ...]:
    means = tuple(getattr(run.measured, quantity).mean for run in result.runs_of(objective))
    return means if len(means) > 1 else ()


def _about(result: QuickstartResult, objective: str, quantities: dict[str, str], write: Callable[[float], str]) -> str:
    lines = [result.label(objective)]
    for words, quantity in quantities.items():
        summary = result.summary(objective, quantity)
        lines.append(f"{words}: {write(summary.mean)} ({span(summary.interval, write)})")
    return "\n".join([*lines, interval_words(result)])
