"""A diagnosis on the terminal."""

import json

import click
from rich.text import Text

from bridgegarden.diagnostics.diagnosis import Diagnosis
from bridgegarden.report.diagnosis_words import (
    advice_words,
    agreement_words,
    bias_table,
    bias_words,
    difference_table,
    kind_words,
    thanks_to,
)
from bridgegarden.run.diagnose import DiagnosisFiles
from bridgegarden.terminal import plain_console


def print_diagnosis(diagnosis: Diagnosis, files: DiagnosisFiles, *, as_json: bool) -> None:
    """All of it as JSON; or a table, what it means, and where the page is."""
    if as_json:
        # Escaped beyond ASCII: a model's text may hold what a terminal obeys.
        click.echo(json.dumps(diagnosis.to_dict(), indent=2))
        return
    console = plain_console(highlight=False)
    console.print(bias_table(diagnosis))
    if diagnosis.findings.differences:
        console.print(difference_table(diagnosis))
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
