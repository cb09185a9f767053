"""``bridgegarden quickstart``."""

import json
from pathlib import Path

import click

from bridgegarden.terminal import plain_console


@click.command("quickstart")
@click.option("--full", is_flag=True, help="Every objective with several seeds. Finished trainings in DIR are kept.")
@click.option("--seed", type=click.IntRange(min=0), default=0, show_default=True, help="The (first) seed.")
@click.option(
    "--output",
    metavar="DIR",
    type=click.Path(path_type=Path),
    help="Folder for the result.  [default: runs/quickstart, or runs/quickstart-full]",
)
@click.option("--workers", type=click.IntRange(min=1), help="Processes.  [default: one per processor, at most 4]")
@click.option("--open", "open_report", is_flag=True, help="Show the report in the browser.")
@click.option("--json", "as_json", is_flag=True, help="Print the result as JSON instead of a table.")
def quickstart_command(
    full: bool, seed: int, output: Path | None, workers: int | None, open_report: bool, as_json: bool
) -> None:
    """See the method work in minutes: no download, no GPU.

    Distils a tiny packaged teacher into tiny students with hard, soft and hybrid labels, measures accuracy, variety and
    exposure bias on held-out problems, and writes DIR/report.html and DIR/result.json.
    """
    from bridgegarden.quickstart.run import QuickstartFolder, quickstart

    folder = QuickstartFolder(output or Path("runs") / ("quickstart-full" if full else "quickstart"))
    result = quickstart(folder.path, full=full, seed=seed, workers=workers)
    if as_json:
        click.echo(json.dumps(result.to_dict(), indent=2, ensure_ascii=False))
    else:
        from bridgegarden.quickstart.result import finding, frontier
        from bridgegarden.quickstart.run import result_table

        console = plain_console(highlight=False)
        console.print(result_table(result, frontier(result), console.width))
        console.print(finding(result))
        console.print(f"\nThe report is {folder.report}", soft_wrap=True)
    if open_report:
        click.launch(str(folder.report))
