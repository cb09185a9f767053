"""``bridgegarden diagnose``, and a diagnosis on the terminal."""

import json
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from bridgegarden.cli.options import SET, example, taken, typed
from bridgegarden.terminal import plain_console

if TYPE_CHECKING:
    from bridgegarden.diagnostics.diagnosis import Diagnosis
    from bridgegarden.run.diagnose import DiagnosisFiles

FACTORS = {"": 1, "k": 1_000, "m": 1_000_000}


class Tokens(click.ParamType):
    """A number of tokens: ``50000``, ``200k``, ``1.5M``."""

    name = "N"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        if isinstance(value, int):
            return value
        match = re.fullmatch(r"(\d+(?:[.,_]?\d+)*)\s*([km]?)", str(value).strip().lower())
        if match is None:
            self.fail(f"{value!r}; expected a number of tokens such as 50000, 200k or 1.5M.", param, ctx)
        amount = match[1].replace("_", "").replace(",", "")
        tokens = round(float(amount) * FACTORS[match[2]]) if amount.count(".") <= 1 else 0
        if tokens < 1:
            self.fail(f"{value!r}; expected at least one token.", param, ctx)
        return tokens


@click.command(
    "diagnose",
    short_help="Measure how far a student drifts on its own texts, where, and what helps.",
    epilog=example(
        "bridgegarden diagnose my.yaml --open",
        "bridgegarden diagnose --teacher gpt2-large --student gpt2 --prompts prompts.txt",
    ),
)
@click.argument("recipe", required=False)
@SET
@click.option("--teacher", metavar="MODEL", help="A folder, or a name on the hub.  [default: the recipe's]")
@click.option(
    "--student",
    "students",
    metavar="[NAME=]MODEL",
    multiple=True,
    help="The same; several are compared. With RECIPE they come beside its own.",
)
@click.option(
    "--prompts",
    metavar="FILE",
    help="Rows as for training, or a .txt file with a prompt a line.  [default: data.eval, else data.train]",
)
@click.option(
    "--prompt-column", "prompt", metavar="NAME", help="Column of FILE with the prompt; it becomes a user's turn."
)
@click.option(
    "--completion-column",
    "completion",
    metavar="NAME",
    help="Column of FILE with the answer, which both models' losses are held against.",
)
@click.option("--messages-column", "messages", metavar="NAME", help="Column of FILE with a conversation.")
@click.option("--split", default="train", show_default=True, help="Split of FILE, where it has splits.")
@click.option("--limit", type=click.IntRange(2), default=64, show_default=True, help="At most so many prompts.")
@click.option("--samples", type=click.IntRange(1), default=2, show_default=True, help="Texts a prompt and model.")
@click.option(
    "--temperature",
    type=click.FloatRange(min=0),
    default=1.0,
    show_default=True,
    help="Of what is written; 0 is greedy.",
)
@click.option("--max-new-tokens", type=click.IntRange(1), default=128, show_default=True, help="Longest text.")
@click.option(
    "--budget",
    type=Tokens(),
    default="200k",
    show_default=True,
    help="Tokens to generate for kappa and attribution, for each student.",
)
@click.option(
    "--positions",
    type=click.Choice(["random", "all", "uncertain"]),
    default="random",
    show_default=True,
    help="Where kappa is measured: a sample of all texts, text by text, or where the teacher is least sure.",
)
@click.option("--rounds", type=click.IntRange(2), default=8, show_default=True, help="Continuations of each token.")
@click.option(
    "--top", type=click.IntRange(1), default=2, show_default=True, help="Likeliest tokens of each model to try."
)
@click.option("--show", "shown", type=click.IntRange(0), default=3, show_default=True, help="Texts on the page.")
@click.option(
    "--divergence",
    default="forward_kl",
    show_default=True,
    help="What the loss is, by its name in recipes.",
)
@click.option(
    "--batch-size", "max_rows", type=click.IntRange(1), default=32, show_default=True, help="Texts at a time."
)
@click.option(
    "--cost-ratio",
    type=click.FloatRange(min=0),
    metavar="C",
    help="Time of a student's token over a teacher's, for its worth as a draft model.  [default: of parameters]",
)
@click.option("--seed", type=click.IntRange(min=0), default=0, show_default=True, help="Of everything that is drawn.")
@click.option(
    "--dtype",
    type=click.Choice(["auto", "bfloat16", "float16", "float32"]),
    help="Of all weights.  [default: the recipe's, or as they were saved]",
)
@click.option("--device", help="Such as cuda:1 or cpu.  [default: a GPU if there is one]")
@click.option("--output", metavar="DIR", type=click.Path(path_type=Path), help="Folder for the result.")
@click.option("--open", "open_report", is_flag=True, help="Show the report in the browser.")
@click.option("--json", "as_json", is_flag=True, help="Print the result as JSON instead of a table.")
def diagnose_command(device: str | None, open_report: bool, as_json: bool, **options: Any) -> None:
    """Measure how far a student drifts on its own texts, where, and which objective that calls for.

    Of RECIPE the trained student is meant, or the untrained one where there is none yet; or give --teacher, --student
    and --prompts. Writes DIR/report.html and DIR/result.json; DIR is OUTPUT/diagnosis of a recipe, else
    runs/diagnosis/STUDENT. Ctrl-C keeps what is finished.
    """
    from bridgegarden.data import Columns
    from bridgegarden.diagnostics.diagnosis import DiagnosisSettings
    from bridgegarden.run.diagnose import DiagnoseRequest, diagnose_pair

    request = taken(DiagnoseRequest, options, columns=taken(Columns, options))
    found, files = diagnose_pair(request, DiagnosisSettings(**options), command=typed(), device=device)
    print_diagnosis(found, files, as_json=as_json)
    if open_report:
        click.launch(str(files.report))
    if found.findings.interrupted:
        click.get_current_context().exit(130)


def print_diagnosis(diagnosis: "Diagnosis", files: "DiagnosisFiles", *, as_json: bool) -> None:
    """All of it as JSON; or a table, what it means, and where the page is."""
    from rich.text import Text

    from bridgegarden.report.diagnosis_across import byte_table, kappa_words, known_words, left_out_lines
    from bridgegarden.report.diagnosis_words import (
        advice_words,
        agreement_words,
        bias_table,
        bias_words,
        difference_table,
        draft_table,
        guide_words,
        kind_words,
        probe_words,
        thanks_to,
        verdict_lines,
    )

    if as_json:
        # Escaped beyond ASCII: a model's text may hold what a terminal obeys.
        click.echo(json.dumps(diagnosis.to_dict(), indent=2))
        return
    console = plain_console(highlight=False)
    console.print(bias_table(diagnosis))
    if diagnosis.findings.differences:
        console.print(difference_table(diagnosis))
    console.print(byte_table(diagnosis) if diagnosis.translated else draft_table(diagnosis))
    for student in diagnosis.findings.students:
        console.print(Text(f"\n{student.name}", style="bold"), soft_wrap=True)
        if diagnosis.translated:
            console.print(Text(f"It {bias_words(student)} {known_words(student)}"))
            console.print(Text(f"Kappa: {kappa_words(student)}"))
            continue
        for line in (f"It {bias_words(student)}", agreement_words(student), f"Kappa: {kind_words(student)}."):
            if line is not None:
                console.print(Text(line))
        rule, why = advice_words(student.advice)
        console.print(Text.assemble((rule, "bold"), f" {why}"))
        if (guide := guide_words(student)) is not None:
            console.print(Text(guide))
        if (probe := probe_words(student)) is not None:
            console.print(Text(probe))
            console.print(Text(f"It is in {files.probe(diagnosis, student.name)}"), soft_wrap=True)
    for student in diagnosis.findings.students:
        console.print(Text(f"\nVerdict on {student.name}", style="bold"), soft_wrap=True)
        for head, why in verdict_lines(diagnosis, student):
            console.print(Text.assemble((head, "bold"), f" {why}"))
    for line in left_out_lines() if diagnosis.translated else ():
        console.print(Text(f"\n{line}"))
    console.print(Text(f"\n{thanks_to(diagnosis)}"))
    if diagnosis.findings.interrupted:
        console.print(Text(f"Interrupted during “{diagnosis.findings.interrupted}”; what came after it is missing."))
    console.print(Text(f"The report is {files.report}"), soft_wrap=True)
