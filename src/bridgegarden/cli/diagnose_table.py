"""A diagnosis on the terminal."""

import json

import click
from rich.table import Table
from rich.text import Text

from bridgegarden.diagnostics.diagnosis import Diagnosis
from bridgegarden.report.diagnosis_words import (
    MEASURES,
    advice_words,
    agreement_words,
    bias_words,
    difference_words,
    kind_words,
    measured,
    ranged,
    thanks_to,
)
from bridgegarden.run.diagnose import DiagnosisFiles
from bridgegarden.terminal import plain_console

NOTE = "nats a text; ± is half of a 95 % interval over prompts"


def print_diagnosis(diagnosis: Diagnosis, files: DiagnosisFiles, *, as_json: bool) -> None:
    """All of it as JSON; or a table, what it means, and where the page is."""
    if as_json:
        # Escaped beyond ASCII: a model's text may hold what a terminal obeys.
        click.echo(json.dumps(diagnosis.to_dict(), indent=2))
        return
    console = plain_console(highlight=False)
    console.print(_table(diagnosis))
    if diagnosis.findings.differences:
        console.print(_differences(diagnosis))
    for student in diagnosis.findings.students:
        console.print(Text(f"\n{student.name}", style="bold"), soft_wrap=True)
        for line in (f"It {bias_words(student)}", agreement_words(student), f"Kappa: {kind_words(student)}."):
            if line is not None:
                console.print(Text(line))
        rule, why = advice_words(student.advice)
        console.print(Text.assemble((rule, "bold"), f" {why}"))
    console.print(Text(f"\n{thanks_to(diagnosis)}"))
    if diagnosis.findings.interrupted:
        console.print(Text(f"Interrupted during “{diagnosis.findings.interrupted}”; what came after it is missing."))
    console.print(Text(f"The report is {files.report}"), soft_wrap=True)


def _table(diagnosis: Diagnosis) -> Table:
    table = Table(caption=f"{NOTE}, of which there are {diagnosis.prompts.used}", caption_justify="left")
    for head in ("student", "loss on teacher's texts", "loss on own texts", "exposure bias", "ExAccErr"):
        table.add_column(head, justify="left" if head == "student" else "right", no_wrap=head == "student")
    for student in diagnosis.findings.students:
        bias = student.exposure_bias
        excess = measured(bias.excess_error[-1].per_cent, " %") if bias.excess_error else "–"
        table.add_row(
            Text(student.name), *map(measured, (bias.teacher_loss, bias.student_loss, bias.exposure_bias)), excess
        )
    return table


def _differences(diagnosis: Diagnosis) -> Table:
    table = Table("pair", "what", "difference", "95 % interval", "so", title="Paired by prompt", title_justify="left")
    for one in diagnosis.findings.differences:
        table.add_row(
            Text(f"{one.first} \N{MINUS SIGN} {one.second}"),
            MEASURES[one.measure],
            measured(one.difference),
            ranged(one.difference.interval()),
            Text(difference_words(one)),
        )
    return table
