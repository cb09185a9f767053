"""The quickstart's result as one HTML page."""

from markupsafe import Markup

from bridgegarden.exact.tasks.arithmetic import ArithmeticWorld
from bridgegarden.quickstart.models import STUDENT_SIZE, TEACHER_SIZE
from bridgegarden.quickstart.report_answer import answer_data, answer_section
from bridgegarden.quickstart.report_charts import bias_chart, frontier_chart, kl_chart
from bridgegarden.quickstart.report_words import GLOSSARY, interval_words
from bridgegarden.quickstart.result import QuickstartResult
from bridgegarden.quickstart.verdict import finding
from bridgegarden.report.charts import responsive
from bridgegarden.report.page import Page, Section, figure, table, terms
from bridgegarden.report.scale import number, plus_minus
from bridgegarden.statistics import Estimate, Interval
from bridgegarden.study.arms import LlamaSize
from bridgegarden.study.students import new_llama

COLUMNS = {
    "accuracy_sampled": "right answers, sampled",
    "accuracy_greedy": "right answers, greedy",
    "diversity": "diversity kept",
    "kl_bridge": "KL at Bridges",
    "kl_garden": "KL at Gardens",
    "teacher_loss": "loss on the teacher's answers",
    "exposure_bias": "exposure bias",
}
"""Fields of `Measured` in the table, with their heads."""


def report_page(result: QuickstartResult) -> Page:
    """What the page says."""
    kind = "whole comparison" if result.full else "short run"
    return Page(
        title="Hard labels, soft labels, or both",
        kicker=f"bridgegarden quickstart, {kind}, {result.started[:10]}",
        lead=_lead(result),
        sections=(
            Section(anchor="table", title="What came out", body=_table(result)),
            Section(anchor="frontier", title="Accuracy against diversity", body=_frontier(result)),
            Section(anchor="bias", title="Exposure bias", body=_bias(result)),
            Section(anchor="kl", title="Distance from the teacher", body=_kl(result)),
            Section(anchor="answer", title="One answer, token by token", body=answer_section(result)),
            Section(anchor="words", title="The words used here", body=terms(GLOSSARY)),
            Section(anchor="made", title="How it was made", body=_made(result)),
        ),
        data=answer_data(result),
        footer="Made by bridgegarden. This file needs no network and holds all of its data.",
    )


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
    rows: list[list[str | Markup]] = []
    for objective in result.objectives:
        found = [(result.summary(objective, quantity), quantity) for quantity in COLUMNS]
        rows.append([result.label(objective), *(_cell(s.mean, s.interval, quantity) for s, quantity in found)])
    teacher: list[str | Markup] = [Markup("<em>teacher</em>")]
    for quantity in COLUMNS:
        estimate: Estimate = getattr(result.teacher, quantity)
        is_measured = quantity.startswith("accuracy")
        teacher.append(_cell(estimate.mean, estimate.share_interval(), quantity) if is_measured else "–")
    caption = (
        "KLs in nats per token, losses and exposure bias in nats per answer. ± is half the width of "
        f"{interval_words(result)}. The teacher's own row is over problems; when it samples, it slips at about one "
        "value in ten, as the text it learned from does."
    )
    how = Markup(
        "<p>Some tokens of an answer are Bridges: one is right, and a slip spoils what follows. Others are Gardens: "
        "many would do. A good student is right often and still varies its words as its teacher does.</p>"
    )
    return how + table(["objective", *COLUMNS.values()], [*rows, teacher], caption=caption)


def _cell(mean: float, interval: Interval, quantity: str) -> Markup:
    half, unit = (interval.high - interval.low) / 2, ""
    if quantity.startswith("accuracy") or quantity == "diversity":
        mean, half, unit = 100 * mean, 100 * half, " %"
    return Markup("{1}{0}<small>± {2}{0}</small>").format(unit, *plus_minus(mean, half))


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


def _made(result: QuickstartResult) -> Markup:
    settings = result.settings
    facts = {
        "command": Markup("<code>{}</code>").format(result.command),
        "teacher": f"{_parameters(TEACHER_SIZE):,} parameters, {_shape(TEACHER_SIZE)}; comes with the package",
        "student": f"{_parameters(STUDENT_SIZE):,} parameters, {_shape(STUDENT_SIZE)}; starts untrained",
        "training data": f"{settings.train_problems:,} problems with one sampled answer each",
        "teacher asked": f"once for {result.teacher_tokens:,} tokens; every student read its answers from disk",
        "held out": f"{settings.test_problems:,} other problems",
        "training": f"{settings.steps:,} steps of {settings.batch} answers, AdamW",
        "learning rate": f"{settings.learning_rate:g} at its peak",
        "seeds": f"{', '.join(map(str, settings.seeds))}, for first weights, data and its order",
        "versions": ", ".join(f"{name} {version}" for name, version in result.versions.items()),
        "started": f"{result.started}; took {_duration(result.seconds)}",
    }
    rows: list[list[str | Markup]] = [
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
    heads = ["objective", "seed", "hard label", "seconds", "CPU seconds", "tokens read", "last loss"]
    caption = (
        "Training alone, one row per student. The last loss is in nats per token and cannot be compared between "
        "objectives: each minimises something else. For soft alone the hard label has no weight."
    )
    return terms(facts, small=True) + table(heads, rows, caption=caption)


def _parameters(size: LlamaSize) -> int:
    return new_llama(ArithmeticWorld(), size, seed=0).num_parameters()


def _shape(size: LlamaSize) -> str:
    return f"Llama of {size.layers} layers, width {size.hidden}"


def _duration(seconds: float) -> str:
    return f"{seconds:.0f} s" if seconds < 90 else f"{seconds / 60:.0f} min"
