"""A diagnosis as one HTML page."""

from markupsafe import Markup

from bridgegarden.diagnostics.diagnosis import Diagnosis, DiagnosisSettings, ModelUsed, StudentDiagnosis
from bridgegarden.report.charts import responsive
from bridgegarden.report.diagnosis_across import byte_table, kappa_section, known_words, left_out
from bridgegarden.report.diagnosis_figures import (
    bias_chart,
    confidence_chart,
    excess_chart,
    loss_chart,
    position_chart,
    texts_data,
    texts_section,
)
from bridgegarden.report.diagnosis_words import (
    advice_words,
    agreement_words,
    bias_table,
    bias_words,
    bootstrapped,
    difference_table,
    draft_section,
    guide_words,
    kind_words,
    probe_words,
    thanks_to,
    verdict_lines,
)
from bridgegarden.report.page import Page, Section, details, figure, findings, made_section, words_section
from bridgegarden.report.tokens import visible
from bridgegarden.table import Cell, Table, number
from bridgegarden.terminal import counted, duration


def diagnosis_page(diagnosis: Diagnosis) -> Page:
    """What the page says."""
    students = diagnosis.findings.students
    names = ", ".join(student.name for student in students)
    noun, verb, whose = ("student", "drifts", "its") if len(students) == 1 else ("students", "drift", "their")
    return Page(
        title=f"Where {noun} {names} {verb} from {whose} teacher",
        kicker=f"bridgegarden diagnose, {diagnosis.started[:10]}",
        lead=_lead(diagnosis),
        sections=(
            Section(anchor="bias", title="Exposure bias", body=_bias(diagnosis)),
            Section(anchor="length", title="Along the text", body=_along(diagnosis)),
            *(_across(diagnosis) if diagnosis.translated else _parts(diagnosis)),
            words_section(*(WORDS_ACROSS if diagnosis.translated else WORDS)),
            _made(diagnosis),
        ),
        data=texts_data(diagnosis.findings),
    )


def _parts(diagnosis: Diagnosis) -> tuple[Section, ...]:
    return (
        Section(anchor="tokens", title="Token by token", body=texts_section(diagnosis)),
        Section(anchor="origin", title="Where it comes from", body=_origin(diagnosis)),
        Section(anchor="rule", title="Which rule suits", body=_rule(diagnosis)),
        Section(anchor="draft", title="As a draft model", body=draft_section(diagnosis)),
    )


def _across(diagnosis: Diagnosis) -> tuple[Section, ...]:
    return (
        Section(anchor="bytes", title="By the byte and by the token", body=byte_table(diagnosis).html()),
        Section(anchor="kappa", title="Kappa, where both agree", body=kappa_section(diagnosis)),
        Section(anchor="left", title="What is not measured", body=left_out()),
    )


WORDS_ACROSS = ("exposure bias", "loss l(s)", "kappa", "Bridge, Garden", "ExAccErr")
"""What the page explains where teacher and student have different tokenizers."""
WORDS = (
    "exposure bias",
    "loss l(s)",
    "kappa",
    "Bridge, Garden",
    "contribution",
    "soft weight λ",
    "ExAccErr",
    "surprise",
    "accepted",
    "tokens a pass",
)
"""What the page explains."""


def _lead(diagnosis: Diagnosis) -> Markup:
    found, settings, used = diagnosis.findings, diagnosis.settings, diagnosis.prompts.used
    count = len(found.students)
    done = Markup(
        "<p>The teacher and {students} wrote {samples} from each of {prompts} prompts, at most {most} tokens long, at "
        "temperature {temperature}. What each student loses on its own texts beyond what it loses on the teacher's is "
        "its exposure bias{origin}.</p>"
    ).format(
        origin="" if diagnosis.translated else "; continuations from single tokens show where it comes from",
        students=counted(count, "student"),
        samples="a text" if settings.samples == 1 else f"{settings.samples} texts",
        prompts=used,
        most=settings.max_new_tokens,
        temperature=number(settings.temperature),
    )
    said = findings(
        Markup("<b>{}</b> {} {}").format(student.name, bias_words(student), known_words(student))
        if diagnosis.translated
        else Markup("<b>{}</b> {} <b>{}</b> {}").format(
            student.name, bias_words(student), *advice_words(student.advice)
        )
        for student in found.students
    )
    stopped = (
        Markup("<p><b>Interrupted</b> during “{}”; what came after it is missing.</p>").format(found.interrupted)
        if found.interrupted
        else Markup("")
    )
    return stopped + _verdicts(diagnosis) + done + said


def _drift_and_rule(student: StudentDiagnosis) -> Markup:
    words = (bias_words(student), *advice_words(student.advice))
    return Markup("<b>{}</b> {} <b>{}</b> {}").format(student.name, *words)


def _verdicts(diagnosis: Diagnosis) -> Markup:
    """A short list for every student, the first thing on the page."""
    named = len(diagnosis.findings.students) > 1
    return Markup("").join(
        (Markup("<h3>{}</h3>").format(student.name) if named else Markup(""))
        + findings(Markup("<b>{}</b> {}").format(*line) for line in verdict_lines(diagnosis, student))
        for student in diagnosis.findings.students
    )


def _bias(diagnosis: Diagnosis) -> Markup:
    shown = bias_table(diagnosis).html()
    if len(diagnosis.findings.students) == 1:
        return shown
    chart = figure(
        responsive(lambda size: bias_chart(diagnosis.findings, size)),
        "Right of zero a student drifts; left of zero its own texts are easier for it than the teacher's. Intervals of "
        "two students may overlap although the paired difference below is certain.",
    )
    return shown + chart + Markup("<h3>Students compared, prompt by prompt</h3>") + difference_table(diagnosis).html()


def _along(diagnosis: Diagnosis) -> Markup:
    students = diagnosis.findings.students
    figures = Markup("").join(
        figure(responsive(lambda size, student=student: loss_chart(student, size)), _loss_caption(index))
        for index, student in enumerate(students)
    )
    told = [student for student in students if _tells_excess(student)]
    if not told:
        return figures
    caption = (
        "Exposure bias up to a length, in per cent of the loss on the teacher's texts up to there. A curve that rises "
        "says that errors bring more errors; one that lies flat, that the first ones already cost what later ones do."
    )
    hidden = [student.name for student in students if student not in told]
    if hidden:
        caption += (
            f" Left out: {', '.join(hidden)}, whose loss on the teacher's texts is too small to divide by (the "
            f"interval is wider than ± {WIDEST:.0f} %)."
        )
    return figures + figure(responsive(lambda size: excess_chart(told, size)), caption)


WIDEST = 100.0
"""Half an interval of ExAccErr, in per cent, from which on it says nothing and would hide other curves."""


def _tells_excess(student: StudentDiagnosis) -> bool:
    points = student.exposure_bias.excess_error
    if not points:
        return False
    low, high = points[-1].per_cent.interval()
    return (high - low) / 2 <= WIDEST


def _loss_caption(index: int) -> str:
    if index > 0:
        return "The same for another student."
    return (
        "Mean loss at each position over the texts that are that long; bands are 95 % intervals over prompts. Where "
        "few texts are left, the bands are wide and may leave the picture. A gap that opens to the right is drift."
    )


def _origin(diagnosis: Diagnosis) -> Markup:
    how = Markup(
        "<p>Exposure bias is, exactly, the sum over a student's own positions of the kappa of the tokens it would "
        "take. So positions can be charged with their share: at places drawn in proportion to how much the two models "
        "differ, the teacher goes on once from a token that the student favours and once from one that it favours "
        "itself.</p>"
    )
    return how + Markup("").join(_origin_of(student, diagnosis) for student in diagnosis.findings.students)


def _origin_of(student: StudentDiagnosis, diagnosis: Diagnosis) -> Markup:
    heading = Markup("<h3>{}</h3>").format(student.name)
    if student.attribution is None:
        return heading + Markup("<p>Not measured: interrupted before.</p>")
    agreement = Markup('<p class="agreement" data-agrees="{}">{}</p>').format(
        "yes" if student.attribution.agrees else "no", agreement_words(student) or ""
    )
    charts = Markup("").join(responsive(lambda size, draw=draw: draw(student, size)) for draw in ORIGINS)
    caption = (
        f"By how far into the text, and by the teacher's largest probability. {student.attribution.draws_per_text} "
        "places a text; 95 % intervals over prompts; hollow bars are negative."
    )
    return heading + agreement + figure(charts, caption) + _costly(student)


ORIGINS = (position_chart, confidence_chart)


def _costly(student: StudentDiagnosis) -> Markup:
    rows = [
        [
            Markup('<span class="excerpt">…{}</span>').format(visible(draw.before)),
            Markup("<code>{}</code>").format(visible(draw.student_token.text)),
            Markup("<code>{}</code>").format(visible(draw.teacher_token.text)),
            number(draw.cost),
        ]
        for draw in student.largest[:8]
    ]
    caption = "Single samples, the largest of many: they show what a costly place looks like, not how much it costs."
    columns = ["after", "the student's token", "the teacher's", "later cost, nats"]
    shown = Table(columns=columns, rows=rows, note=caption)
    return details(f"Costly places of {student.name}", shown.html()) if rows else Markup("")


def _rule(diagnosis: Diagnosis) -> Markup:
    students = diagnosis.findings.students
    how = Markup(
        "<p>A rule for the soft weight λ should be soft at Gardens and hard at Bridges: λ should fall where κ(s) "
        "rises. This says how well a rule aims on this pair, not how a student trained with it turns out.</p>"
    )
    said = findings(
        Markup("<b>{}</b>: {}. <b>{}</b> {} {} {}").format(
            student.name,
            kind_words(student),
            *advice_words(student.advice),
            guide_words(student) or "",
            probe_words(student) or "",
        )
        for student in students
    )
    rows = [row for student in students for row in _scores(student)]
    if not rows:
        return how + said
    caption = (
        "With 95 % intervals over prompts. Rank correlation of λ with κ(s): negative is good. Told apart: how often a "
        "Garden's λ is above a Bridge's; 0.5 is chance. Separation: mean λ at Gardens minus at Bridges. Gain: how much "
        "more kappa the hard label covers than under a static rule of the same mean, nats a place; it decides, and its "
        "interval is widened for the rules that are tried. The probe (kappa_probe) is scored on prompts that it was "
        "not fitted on. Ranks only describe: skewed noise shifts them where there is nothing to "
        "gain. A static rule has no correlation, tells nothing apart and gains nothing."
    )
    columns = ["student, rule", "mean λ", "rank correlation", "told apart", "separation", "gain"]
    return how + said + Table(columns=columns, rows=rows, note=caption).html()


def _scores(student: StudentDiagnosis) -> list[list[str | Cell]]:
    scores = () if student.advice is None else student.advice.scores
    probe = () if student.probe is None else (student.probe.score,)
    return [
        [
            f"{student.name}, {score.rule}",
            number(score.mean_weight, 2),
            bootstrapped(score.spearman, least=-1, most=1),
            bootstrapped(score.auc, least=0, most=1),
            bootstrapped(score.separation, least=-1, most=1),
            bootstrapped(score.gain),
        ]
        for score in (*scores, *probe)
    ]


def _made(diagnosis: Diagnosis) -> Section:
    settings, cost = diagnosis.settings, diagnosis.findings.cost
    facts: dict[str, str | Markup] = {}
    for used in (diagnosis.teacher, *diagnosis.students):
        facts[used.name] = _model(used)
    facts |= {
        "prompts": f"{diagnosis.prompts.used} from {diagnosis.prompts.source}, {diagnosis.prompts.tokens:,} tokens",
        "texts": f"{settings.samples} a prompt and writer, at most {settings.max_new_tokens} tokens, temperature "
        f"{number(settings.temperature)}, seed {settings.seed}",
        "loss": f"{settings.divergence}, at temperature 1, over "
        + (
            f"what is known of the teacher among the student's {diagnosis.vocab_size:,} tokens, all else as one cell"
            if diagnosis.translated
            else f"{diagnosis.vocab_size:,} shared tokens and one cell for all others"
        ),
    }
    facts |= _budget_across(settings) if diagnosis.translated else _budget(settings)
    facts |= {
        "cost": f"{thanks_to(diagnosis)}; {cost.read:,} tokens of prefixes read",
        "ran on": diagnosis.device,
    }
    if diagnosis.prompts.left_out:
        facts["left out"] = f"{len(diagnosis.prompts.left_out)} prompts, too long: {diagnosis.prompts.left_out[0]}"
    for number_, warning in enumerate(diagnosis.warnings, 1):
        facts[f"warning {number_}"] = warning
    rows = [[phase.name, duration(phase.seconds)] for phase in cost.phases]
    phases = Table(columns=["part", "time"], rows=rows, note="Loading the models is not in it.").html()
    return made_section(
        facts,
        command=diagnosis.command,
        versions=diagnosis.versions,
        started=diagnosis.started,
        more=details("Time part by part", phases) + _notes(),
    )


def _budget(settings: DiagnosisSettings) -> dict[str, str | Markup]:
    return {
        "budget": f"{settings.budget:,} generated tokens for each student: a quarter for where it comes from, at most "
        "a quarter for kappa at the texts that are shown, the rest for kappa at " + _POSITIONS[settings.positions],
        "kappa": f"{settings.rounds} rounds; the {settings.top} likeliest tokens of each model, and in every round one "
        "more token of each that stands for all others; the same random numbers for all tokens of a round",
    }


def _budget_across(settings: DiagnosisSettings) -> dict[str, str | Markup]:
    places = {"random": "drawn at random", "all": "text by text", "uncertain": "those where the teacher is least sure"}
    return {
        "budget": f"{settings.budget:,} generated tokens for each student, for kappa at places where both agree, "
        f"{places[settings.positions]}",
        "kappa": f"{settings.rounds} rounds; the {settings.top} likeliest tokens of each model, and in every round one "
        "more of the teacher's that stands for all others; the same random numbers for all tokens of a round",
    }


_POSITIONS = {
    "random": "places drawn at random from all texts",
    "all": "all places, text by text",
    "uncertain": "the places where the teacher is least sure, which do not stand for the texts",
}


def _notes() -> Markup:
    notes = (
        "Prompts are the independent units of every interval: tokens of a text, and texts of a prompt, are not.",
        "Kappa's intervals at a single place are over its rounds, of which there are few: they come from Student's t, "
        "and no place counts as surer than places are on average. What few rounds may not have shown leaves a place "
        "undecided; more rounds decide.",
        "Sums are up to the end of a text or the longest length allowed, for both models.",
        "All numbers are estimates from samples; another seed gives others, within their intervals 19 times in 20.",
        "Of kappa, the loss at the place itself is no part: it is the same whatever token comes next.",
    )
    items = Markup("").join(Markup("<li>{}</li>").format(note) for note in notes)
    return Markup('<ul class="notes">{}</ul>').format(items)


def _model(used: ModelUsed) -> str:
    commit = f" at {used.commit[:12]}" if used.commit else ""
    return f"{used.model}{commit}, {used.parameters:,} parameters, {used.dtype}"
