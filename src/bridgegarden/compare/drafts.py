"""Students of a comparison as draft models of their teacher: by prompt, and as a table."""

from bridgegarden.compare.findings import percent, summary
from bridgegarden.compare.result import CompareResult, Quantity
from bridgegarden.diagnostics.acceptance import by_prompt
from bridgegarden.diagnostics.exposure_bias import ExposureBias
from bridgegarden.table import Cell, Table, mean_cell, number

DRAFTED = 4
"""Tokens that a draft is taken to have, so that objectives are held against each other at one length."""
ACCEPTED: tuple[Quantity, ...] = ("accepted", "accepted_own", "same_likeliest")
"""Shares of tokens."""
TOKENS_A_PASS: Quantity = "tokens_a_pass"
DRAFTS: tuple[Quantity, ...] = (*ACCEPTED, TOKENS_A_PASS)
"""By prompt in `Measured.by_unit`: 1 - TV on the teacher's texts and on the student's own, how often both have the same
likeliest token on the teacher's, and tokens a pass of the teacher for drafts of :data:`DRAFTED`."""


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
