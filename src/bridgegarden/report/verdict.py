"""The verdict of a diagnosis in words, the same on the page and on a terminal."""

from bridgegarden.diagnostics.acceptance import Draft
from bridgegarden.diagnostics.diagnosis import Diagnosis, StudentDiagnosis
from bridgegarden.diagnostics.label_losses import FEWEST_ROWS, SURE
from bridgegarden.report.diagnosis_words import measured
from bridgegarden.statistics import Estimate
from bridgegarden.table import number, plus_minus, span
from bridgegarden.terminal import counted


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
            f", a difference of {span(losses.interval, lambda end: number(end, 2))} ({100 * SURE:g} % interval, "
            f"{counted(losses.rows, 'row')})"
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
