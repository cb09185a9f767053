"""What a diagnosis says in words and tables, its verdict first of all, the same on the page and on a terminal."""

import math
import re
from collections.abc import Mapping, Sequence

from markupsafe import Markup

from bridgegarden.diagnostics.acceptance import Draft
from bridgegarden.diagnostics.advise import Advice, Bootstrapped
from bridgegarden.diagnostics.diagnosis import Diagnosis, StudentDiagnosis
from bridgegarden.diagnostics.exposure_bias import StudentDifference
from bridgegarden.diagnostics.kappa import Kind
from bridgegarden.diagnostics.label_losses import FEWEST_ROWS
from bridgegarden.diagnostics.label_losses import SURE as SURE_OF_ROWS
from bridgegarden.report.page import details
from bridgegarden.statistics import Estimate, exact_share
from bridgegarden.table import Cell, Column, Table, difference_cell, mean_cell, number, plus_minus, span
from bridgegarden.terminal import counted, duration

SPACE = "\N{NO-BREAK SPACE}"
"""Between what must stay on one line."""
MINUS = re.compile(r"(?<![\w.])-(?=\d)")
GUIDE: Mapping[str, tuple[str, str]] = {
    "perfect": ("soft", "the hard label says nothing at a Bridge that the soft one does not, and costs wording"),
    "unsure": ("confidence", "it sharpens the values, where the teacher is right but unsure, more than the wordings"),
    "slips": ("sharpened", "squared, a teacher that is right more often than not is right nearly always"),
    "wrong_in_places": (
        "soft",
        "whatever sharpens takes the teacher's likeliest token for right, which in places it is not",
    ),
}
"""By the teacher at its Bridges: what to begin with, and why. It is what docs/results/evidence.md says, and a
test holds it to what was right most often there."""
SURE, UNSURE = 0.95, 0.8
"""Mean probability of a teacher's likeliest token at Bridges: above the first it is like the evidence's *perfect*
teacher, below the second like those that are *unsure* (0.6) or *slip* (0.7)."""
FEWEST_BRIDGES = 5
"""Places, of which at least a mean is made."""


def measured(estimate: Estimate, unit: str = "") -> str:
    """A mean with half its 95 % interval: ``1.23 ± 0.05``."""
    return _cell(estimate).line().replace(" ", SPACE) + unit


def bootstrapped(statistic: Bootstrapped, *, least: float = -math.inf, most: float = math.inf) -> Cell:
    """A statistic and its interval, cut where no value can be; dashes where there is none."""
    value = "–" if statistic.value is None else number(statistic.value, 2)
    if statistic.interval is None:
        return Cell(value, "–")
    low, high = (min(max(end, least), most) for end in statistic.interval)
    return Cell(value, span((low, high), lambda end: number(end, 2)))


def bias_table(diagnosis: Diagnosis) -> Table:
    """Losses and exposure bias of every student; the page has more columns than a terminal."""
    rows = []
    for student in diagnosis.findings.students:
        bias = student.exposure_bias
        last = bias.excess_error[-1].per_cent if bias.excess_error else None
        rows.append(
            [
                student.name,
                *map(_cell, (bias.teacher_loss, bias.student_loss, bias.exposure_bias, bias.exposure_bias_per_token)),
                "–" if last is None else _cell(last)._replace(unit="%"),
                *map(_cell, (bias.teacher_length, bias.student_length)),
            ]
        )
    columns = (
        "student",
        "loss on the teacher's texts",
        "loss on its own",
        "exposure bias",
        Column("per token", detail=True),
        "ExAccErr",
        Column("tokens, teacher", detail=True),
        Column("tokens, its own", detail=True),
    )
    note = (
        "Losses and exposure bias in nats a text, summed over its tokens; ± is half the width of a 95 % interval over "
        f"{diagnosis.prompts.used} prompts, on which teacher and student are paired. {_unseen(diagnosis)}"
        f"{_cut_off(diagnosis.findings.students)}"
    )
    return Table(columns=columns, rows=rows, note=note.rstrip())


def difference_table(diagnosis: Diagnosis) -> Table:
    """Every pair of students in every measure."""
    pairs: dict[tuple[str, str], dict[str, StudentDifference]] = {}
    for one in diagnosis.findings.differences:
        pairs.setdefault((one.first, one.second), {})[one.measure] = one
    rows = [
        [f"{first} \N{MINUS SIGN} {second}", *(_difference(of[measure]) for measure in MEASURES)]
        for (first, second), of in pairs.items()
    ]
    note = (
        "Nats a text, first minus second, on the same prompts and random numbers, with half of a 95 % interval over "
        "prompts. Higher or lower is said only where the interval leaves out zero, else it is open. Of many "
        "comparisons, one in twenty looks certain by chance."
    )
    return Table(columns=["pair", *MEASURES.values()], rows=rows, title="Paired by prompt", note=note)


def _cell(estimate: Estimate) -> Cell:
    return mean_cell(estimate.mean, estimate.interval())


def _difference(one: StudentDifference) -> Cell:
    return difference_cell(one.difference.mean, one.difference.interval())


def _unseen(diagnosis: Diagnosis) -> str:
    """What no interval can know."""
    texts = diagnosis.prompts.used * diagnosis.settings.samples
    share = exact_share(0, texts, 0.9).high
    return (
        "Intervals are wider where losses are skewed, and unknown where no two prompts differ. What happens in one of "
        f"{max(1, math.floor(1 / share))} texts is missing from the {texts} of each writer one time in twenty, what is "
        "rarer more often, and then no interval knows of it. "
    )


def _cut_off(students: Sequence[StudentDiagnosis]) -> str:
    """Texts that are cut off end the sum where they are."""
    full = max([s.exposure_bias.student_full.mean for s in students] + [students[0].exposure_bias.teacher_full.mean])
    if full < 0.05:
        return ""
    parts = [f"{number(100 * students[0].exposure_bias.teacher_full.mean)} % of the teacher's texts"]
    parts += [f"{number(100 * one.exposure_bias.student_full.mean)} % of {one.name}'s" for one in students]
    return f"As long as allowed, most of them cut off there: {', '.join(parts)}."


def bias_words(student: StudentDiagnosis) -> str:
    """Whether the student drifts, as far as the interval says; follows its name."""
    bias = student.exposure_bias
    side = bias.exposure_bias.interval().side()
    size = f"{measured(bias.exposure_bias)} nats a text"
    fit = f"on top of {number(bias.teacher_loss.mean)} on the teacher's"
    if not bias.exposure_bias.known:
        return f"cannot be judged: its exposure bias is {number(bias.exposure_bias.mean)} nats with every prompt."
    if side > 0:
        return f"drifts: on its own texts it loses {size} more, {fit}."
    if side < 0:
        return f"loses less on its own texts than on the teacher's: {size}. They are easier for it."
    return f"does not drift as far as can be seen: {size}, {fit}; the interval holds zero."


def agreement_words(student: StudentDiagnosis) -> str | None:
    """Whether the attribution adds up to the exposure bias; None without one."""
    attribution = student.attribution
    if attribution is None:
        return None
    found = f"the parts add up to {measured(attribution.total)} nats a text, measured directly it is "
    found += measured(attribution.direct)
    if attribution.agrees:
        return f"Both ways agree: {found}. Their difference, {measured(attribution.gap)}, could be chance."
    return (
        f"The two ways do not agree: {found}. Their difference, {measured(attribution.gap)}, is more than chance "
        "explains one time in twenty, so read the parts with care; more prompts and a larger budget tell."
    )


def advice_words(advice: Advice | None) -> tuple[str, str]:
    """Which rule suits, and why; or what is missing to say."""
    if advice is None:
        return "No advice.", "Not measured: interrupted before."
    rule = {None: "No advice yet.", "static": "Take a static rule."}.get(
        advice.recommended, f"Take the {advice.recommended} rule."
    )
    caveat = "" if advice.representative else " The positions were picked, so they do not stand for the texts."
    return rule, MINUS.sub("\N{MINUS SIGN}", advice.reason) + caveat


def probe_words(student: StudentDiagnosis) -> str | None:
    """Whether the fitted probe is worth using; None where none was fitted."""
    probe = student.probe
    if probe is None:
        return None
    ranks, caveat = bootstrapped(probe.score.spearman, least=-1, most=1), ""
    if not probe.representative:
        caveat = " The positions were picked, so they do not stand for the texts."
    said = f"{probe.reason} Rank correlation with κ(s), out of fold: {ranks[0]} ({ranks[1]}).{caveat}"
    return MINUS.sub("\N{MINUS SIGN}", said)


def guide_words(student: StudentDiagnosis) -> str | None:
    """What the evidence says of a teacher that is as sure at its Bridges as this one; None where too few were found."""
    bridges = [] if student.kappa is None else [p for p in student.kappa.positions if p.kind is Kind.BRIDGE]
    by_prompt: dict[int, list[float]] = {}
    for place in bridges:
        by_prompt.setdefault(place.prompt, []).append(place.teacher_max_prob)
    if len(bridges) < FEWEST_BRIDGES or len(by_prompt) < 2:
        return None
    # Places of one prompt depend on each other; a probability that never varied is known no better than its prompts.
    sure = Estimate.cautious([sum(each) / len(each) for each in by_prompt.values()], floor=0.01)
    low, high = sure.interval()
    said = f"At its {len(bridges)} Bridges the teacher's likeliest token has {measured(sure)} on average"
    unsure, slips, wrong = (
        f"{GUIDE[kind][0]} labels ({GUIDE[kind][1]})" for kind in ("unsure", "slips", "wrong_in_places")
    )
    if low > SURE:
        use, because = GUIDE["perfect"]
        return f"{said}. With so sure a teacher the evidence begins with {use} labels: {because}."
    if high < UNSURE:
        return (
            f"{said}. With so unsure a teacher the evidence begins with {unsure} where what it doubts is one other "
            f"token, with {slips} where it slips to many, and with {wrong} where its likeliest token is often wrong."
        )
    return f"{said}, which is not told apart from what the evidence has of sure and of unsure teachers."


def kind_words(student: StudentDiagnosis) -> str:
    """How many places are Bridges and Gardens."""
    kappa = student.kappa
    if kappa is None:
        return "not measured"
    counts = {kind: kappa.count(kind) for kind in Kind}
    return (
        f"{counted(counts[Kind.BRIDGE], 'Bridge')}, {counted(counts[Kind.GARDEN], 'Garden')} and "
        f"{counts[Kind.UNDECIDED]:,} undecided of {counted(len(kappa.positions), 'measured place')}"
    )


MEASURES = {
    "exposure_bias": "exposure bias",
    "student_loss": "loss on own texts",
    "teacher_loss": "loss on the teacher's texts",
}
"""What is compared between students."""


def thanks_to(diagnosis: Diagnosis) -> str:
    """What a diagnosis took, in one line."""
    cost = diagnosis.findings.cost
    per_second = cost.distributions / cost.seconds if cost.seconds > 0 else 0.0
    return (
        f"{cost.written:,} tokens written and {cost.distributions:,} next-token distributions in "
        f"{duration(cost.seconds)} ({number(per_second)} a second)"
    )


def verdict_lines(diagnosis: Diagnosis, student: StudentDiagnosis) -> list[tuple[str, str]]:
    """What is decided of `student`, and why and what to do: a head and a sentence or two for each question."""
    first = [_distilling(diagnosis, student), _drift(diagnosis, student)]
    if diagnosis.translated:
        return first
    return [
        *first,
        _rule(diagnosis, student),
        _draft(diagnosis, student),
    ]


def _distilling(diagnosis: Diagnosis, student: StudentDiagnosis) -> tuple[str, str]:
    verdict, rows = diagnosis.verdict(student), _rows(student)
    taken = _taken(student)
    if verdict.distilling == "will not help":
        why = "is worse" if verdict.rows == "worse" else "is no better"
        return "Distillation will not help here.", (
            f"On the rows the teacher {why} than the student: {rows}. Take a better teacher, learn the data alone "
            "(objective.preset=hard, objective.hard_target=data), or let the teacher write the answers "
            "(bridgegarden generate)."
        )
    if verdict.distilling == "nothing left":
        return "There is nothing left to distil here.", f"{taken} It writes as its teacher does."
    if verdict.distilling == "can help":
        return (
            "Distillation can help here.",
            f"The teacher knows the rows better than the student: {rows}. {taken}".rstrip(),
        )
    missing = {
        "unknown": "the prompts have no answers to hold both models against: give rows with answers (data.eval, "
        "--completion-column)",
        "undecided": f"{rows}, which leaves open who is better: at least {FEWEST_ROWS} rows, and rather more, decide",
    }
    return "Whether distillation can help is undecided.", f"{missing[verdict.rows].capitalize()}. {taken}".rstrip()


def _taken(student: StudentDiagnosis) -> str:
    """How much of its tokens the teacher accepts; empty where that is not defined."""
    model = student.draft_model
    if model is None:
        return ""
    return (
        f"The teacher accepts {_share(model.teacher_texts.acceptance)} of its tokens on its own texts, "
        f"{_share(model.student_texts.acceptance)} on the student's."
    )


def _rows(student: StudentDiagnosis) -> str:
    """Both losses on the answers of the rows, and their difference."""
    losses = student.label_losses
    if losses is None:
        return "not measured"
    found = f"it loses {number(losses.teacher)} nats a token, the student {number(losses.student)}"
    if losses.interval is not None:
        found += (
            f", a difference of {span(losses.interval, lambda end: number(end, 2))} ({100 * SURE_OF_ROWS:g} % "
            f"interval, {counted(losses.rows, 'row')})"
        )
    return found


def _drift(diagnosis: Diagnosis, student: StudentDiagnosis) -> tuple[str, str]:
    bias = student.exposure_bias
    size = f"{measured(bias.exposure_bias)} nats a text, on top of {number(bias.teacher_loss.mean)}"
    return {
        "drifts": (
            "It drifts.",
            f"On its own texts it loses {size}. Training on its own texts (on_policy) is for that.",
        ),
        "does not drift": ("It does not drift.", f"On its own texts it loses {size}: too little to be worth a remedy."),
        "easier": ("It does not drift.", f"Its own texts cost it less than the teacher's: {size}."),
        "undecided": (
            "Whether it drifts is undecided.",
            f"On its own texts it loses {size}. More prompts decide (--limit).",
        ),
    }[diagnosis.verdict(student).drift]


def _rule(diagnosis: Diagnosis, student: StudentDiagnosis) -> tuple[str, str]:
    head, why = _known_rule(diagnosis, student)
    probe = student.probe
    better = " The probe that was fitted on this pair aims better (kappa_probe)."
    return head, why + (better if probe is not None and probe.standing == "ahead" else "")


def _known_rule(diagnosis: Diagnosis, student: StudentDiagnosis) -> tuple[str, str]:
    rule, advice = diagnosis.verdict(student).rule, student.advice
    if rule == "static":
        return (
            "Take a static rule.",
            "What an adaptive rule reads off the teacher does not tell what must be exact here.",
        )
    if rule is not None:
        return f"Take the {rule} rule.", f"objective.preset={rule}: it is softer where less hangs on the token."
    more = (
        ""
        if advice is None or advice.more_tokens is None
        else f" About {advice.more_tokens:,} more tokens would do (--budget)."
    )
    return "Which rule suits is undecided.", f"Until then take a static one.{more}"


def _draft(diagnosis: Diagnosis, student: StudentDiagnosis) -> tuple[str, str]:
    verdict, ratio = diagnosis.verdict(student), diagnosis.cost_ratio(student.name)
    assert student.draft_model is not None
    best: Draft = student.draft_model.fastest(ratio)
    speed, cost = measured(best.speed_up(ratio)), number(ratio, 2)
    size = (
        f"Drafts of {counted(best.drafted, 'token')} give {measured(best.tokens_per_pass)} tokens a pass of the "
        f"teacher, {speed} times its speed if a token of the student costs {cost} of the teacher's."
    )
    head = {
        "worth it": "As a draft model it makes the teacher faster.",
        "not worth it": "As a draft model it makes the teacher slower.",
        "undecided": "Whether it is worth having as a draft model is undecided.",
    }[verdict.draft]
    return head, size


def _share(estimate: Estimate) -> str:
    low, high = estimate.interval()
    if not estimate.known:
        return f"{number(100 * estimate.mean)} %"
    shown, half = plus_minus(100 * estimate.mean, 50 * (high - low))
    return f"{shown} ± {half} %"


def draft_table(diagnosis: Diagnosis) -> Table:
    """Every student as a draft model, with drafts as long as is fastest."""
    cool = diagnosis.settings.temperature != 1.0
    rows = []
    for student in diagnosis.findings.students:
        found, ratio = student.draft_model, diagnosis.cost_ratio(student.name)
        assert found is not None
        on_teacher, on_own = found.teacher_texts, found.student_texts
        best = found.fastest(ratio)
        rows.append(
            [
                student.name,
                _share_cell(on_teacher.acceptance),
                *([_share_cell(on_teacher.tempered)] if cool else []),
                _share_cell(on_own.acceptance),
                _share_cell(on_teacher.agreement),
                _share_cell(on_own.agreement),
                Cell(str(best.drafted)),
                _draft_cell(best.tokens_per_pass),
                Cell(number(ratio, 2)),
                _draft_cell(best.speed_up(ratio)),
            ]
        )
    columns = (
        "student",
        "accepted",
        *([f"accepted at {number(diagnosis.settings.temperature)}"] if cool else []),
        Column("accepted, own texts", detail=True),
        "same likeliest token",
        Column("same likeliest, own texts", detail=True),
        "drafted",
        "tokens a pass",
        "cost",
        "times as fast",
    )
    return Table(
        columns=columns, rows=rows, title="As a draft model (speculative decoding)", note=_draft_note(diagnosis)
    )


def draft_section(diagnosis: Diagnosis) -> Markup:
    """The table, and every length of drafts."""
    return draft_table(diagnosis).html() + Markup("").join(
        details(f"Drafts of {student.name}, by length", lengths_table(diagnosis, student).html())
        for student in diagnosis.findings.students
    )


def lengths_table(diagnosis: Diagnosis, student: StudentDiagnosis) -> Table:
    """Drafts of every length."""
    found, ratio = student.draft_model, diagnosis.cost_ratio(student.name)
    assert found is not None
    best = found.fastest(ratio)

    def row(on_teacher: Draft, on_own: Draft) -> list[Cell]:
        speed_up = _draft_cell(on_teacher.speed_up(ratio))
        return [
            Cell(str(on_teacher.drafted)),
            _draft_cell(on_teacher.tokens_per_pass),
            Cell(number(on_teacher.independent)),
            speed_up._replace(strong=on_teacher.drafted == best.drafted),
            _draft_cell(on_own.tokens_per_pass),
            _draft_cell(on_own.speed_up(ratio)),
        ]

    drafts = zip(found.teacher_texts.drafts, found.student_texts.drafts, strict=True)
    columns = [
        "drafted",
        "tokens a pass",
        "by the formula",
        "times as fast",
        "tokens a pass, own texts",
        "times as fast, own texts",
    ]
    note = (
        "Tokens a pass include the teacher's own one, so they are the accepted tokens and one. By the formula: "
        "(1 \N{MINUS SIGN} αᵞ⁺¹) / (1 \N{MINUS SIGN} α), as if every token were accepted with the mean probability α "
        "independently of all others, which nobody's tokens are. Own texts: how much of its own text the teacher would "
        "keep, were the text gone on with whatever is refused; no decoder writes so. The fastest length was picked "
        "from these same texts."
    )
    return Table(columns=columns, rows=[row(*both) for both in drafts], note=note)


def _draft_note(diagnosis: Diagnosis) -> str:
    given = diagnosis.settings.cost_ratio is not None
    temperature = number(diagnosis.settings.temperature)
    return (
        "Accepted: 1 \N{MINUS SIGN} TV, the share of a student's tokens that the teacher would take at temperature 1, "
        "on the teacher's texts. Tokens a pass of the teacher, its own one included: expected on its texts (what "
        f"speculative decoding writes), both models at temperature {temperature} without top-k or top-p, of the length "
        "of drafts that is fastest. Cost: of a student's token, the teacher's being one, "
        f"{'as given' if given else 'by parameters unless --cost-ratio says it'}. Times as fast: tokens a pass over "
        "drafted × cost + 1, if a whole draft costs the teacher what one token does."
    )


def _share_cell(estimate: Estimate) -> Cell:
    return mean_cell(estimate.mean, estimate.interval(), times=100.0, unit="%")


def _draft_cell(estimate: Estimate) -> Cell:
    return mean_cell(estimate.mean, estimate.interval())
