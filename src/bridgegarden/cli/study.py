"""``bridgegarden quickstart``, ``compare`` and ``lab``: many students, trained and held against each other."""

import json
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar, cast

import click

from bridgegarden.cli.options import SET, BatchSize, Group, example, typed
from bridgegarden.terminal import plain_console

if TYPE_CHECKING:
    from bridgegarden.table import Table

CommandT = TypeVar("CommandT", bound=Callable[..., Any])

WORLD_NAMES = ("dialogue", "arithmetic", "program", "control")
"""Keys of `bridgegarden.exact.tasks.WORLDS`, which is imported only when asked for."""
OBJECTIVE_NAMES = ("hard", "hard_data", "soft", "static", "confidence", "entropy", "curriculum", "risk_guided")
"""Keys of `bridgegarden.study.arms.OBJECTIVES`, likewise."""

WORKERS = click.option(
    "--workers", type=click.IntRange(min=1), help="Processes.  [default: one per processor, at most 4]"
)
AS_JSON = click.option("--json", "as_json", is_flag=True, help="Print the result as JSON instead of tables.")


def _output(folder: str, what: str) -> Callable[[CommandT], CommandT]:
    """Where a study of the lab leaves its result."""
    return click.option(
        "--output",
        metavar="DIR",
        type=click.Path(path_type=Path),
        default=Path("runs") / folder,
        show_default=True,
        help=f"Folder for the result. {what} finished in it are kept.",
    )


@click.command("quickstart", epilog=example("bridgegarden quickstart --open"))
@click.option("--full", is_flag=True, help="Every objective with several seeds. Finished trainings in DIR are kept.")
@click.option("--seed", type=click.IntRange(min=0), default=0, show_default=True, help="The (first) seed.")
@click.option(
    "--output",
    metavar="DIR",
    type=click.Path(path_type=Path),
    help="Folder for the result.  [default: runs/quickstart, or runs/quickstart-full]",
)
@WORKERS
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
        from bridgegarden.quickstart.report import result_table
        from bridgegarden.quickstart.result import finding

        console = plain_console(highlight=False)
        console.print(result_table(result))
        console.print(finding(result))
        console.print(f"\nThe report is {folder.report}", soft_wrap=True)
    if open_report:
        click.launch(str(folder.report))


@click.command("compare", epilog=example("bridgegarden compare my.yaml --objectives hard,soft,confidence --seeds 5"))
@click.argument("recipe")
@SET
@click.option(
    "--objectives",
    metavar="NAME[,NAME]",
    default="sft,hard,soft,static,confidence,entropy,curriculum,risk_guided",
    show_default=True,
    help="What is compared, or `all`; see docs/compare.md for the names.",
)
@click.option("--seeds", type=click.IntRange(min=1), default=3, show_default=True, help="Trainings of each objective.")
@click.option(
    "--budget",
    type=click.Choice(["steps", "compute"]),
    default="steps",
    show_default=True,
    help="What is equal: optimiser steps, or estimated FLOPs (on-policy objectives then take fewer steps).",
)
@click.option(
    "--baseline",
    metavar="NAME",
    help="What costs and qualities are held against.  [default: the first on-policy objective, else the first]",
)
@click.option(
    "--tasks",
    metavar="NAME[,NAME]",
    default="offline",
    show_default=True,
    help="What quality is measured on, as in `evaluate`; none measures drift alone.",
)
@click.option("--limit", type=click.IntRange(1), help="At most so many problems of each task.")
@click.option("--answers", type=click.IntRange(0), default=1, show_default=True, help="Drawn answers a problem.")
@click.option("--batch-size", type=BatchSize(), default="auto", show_default=True, help="Sequences at a time in tasks.")
@click.option(
    "--allow-code-execution", is_flag=True, help="Run programs that students write in answer to tasks (confined)."
)
@click.option("--prompts", type=click.IntRange(2), default=64, show_default=True, help="Prompts for exposure bias.")
@click.option("--texts", type=click.IntRange(1), default=4, show_default=True, help="Texts of each, by both models.")
@click.option(
    "--max-new-tokens", type=click.IntRange(1), default=256, show_default=True, help="Of such a text, at most."
)
@click.option(
    "--export",
    metavar="KIND",
    help="Measure every student as the GGUF file of this type, such as Q4_0, that is exported of it.  [default: the "
    "recipe's training.quantised, else as it was saved]",
)
@click.option("--keep-models/--no-keep-models", default=True, show_default=True, help="Keep students once measured.")
@click.option("--workers", type=click.IntRange(min=1), default=1, show_default=True, help="Processes, on CPUs.")
@click.option(
    "--output", metavar="DIR", type=click.Path(path_type=Path), help="Folder for the result.  [default: OUTPUT/compare]"
)
@AS_JSON
def compare_command(recipe: str, overrides: tuple[str, ...], **options: Any) -> None:
    """Train RECIPE with several objectives at equal budget, and hold quality against cost.

    Every objective gets the same rows, steps and, seed by seed, the same first student. The teacher is asked once for
    all objectives on fixed rows; on-policy ones (gkd, on_policy_hybrid, ...) ask it as they go. Interrupted, it goes on
    with the trainings that are missing. Leaves DIR/report.html, tables.md, objectives.csv and result.json.
    """
    from bridgegarden.compare.findings import sentences
    from bridgegarden.compare.report import terminal_tables
    from bridgegarden.compare.result import CompareSettings
    from bridgegarden.compare.run import compare
    from bridgegarden.evaluation.lm_eval import EvaluationOptions
    from bridgegarden.study.arms import default_baseline, named_rows

    objectives = named_rows(_names(options["objectives"]))
    evaluation = None
    if options["tasks"] != "none":
        evaluation = EvaluationOptions(
            tasks=_names(options["tasks"]),
            limit=options["limit"],
            samples=options["answers"],
            batch_size=options["batch_size"],
            allow_code_execution=options["allow_code_execution"],
        )
    settings = CompareSettings(
        objectives=objectives,
        seeds=tuple(range(options["seeds"])),
        budget=options["budget"],
        baseline=options["baseline"] or default_baseline(objectives),
        evaluation=evaluation,
        prompts=options["prompts"],
        samples=options["texts"],
        max_new_tokens=options["max_new_tokens"],
        export=options["export"],
        keep_models=options["keep_models"],
    )
    result, folder = compare(
        recipe,
        settings,
        command=typed(),
        overrides=overrides,
        output=options["output"],
        workers=options["workers"],
    )
    found = [f"* {sentence}" for sentence in sentences(result)]
    _show(folder.path, terminal_tables(result), found, as_json=options["as_json"])


def _show(folder: Path, tables: "Iterable[Table]", found: Sequence[str] = (), *, as_json: bool) -> None:
    """What a study left in `folder`: its JSON, or `tables`, what was `found`, and where the report is."""
    if as_json:
        click.echo((folder / "result.json").read_text(encoding="utf-8"), nl=False)
        return
    console = plain_console(highlight=False)
    for table in tables:
        console.print(table)
    for line in found:
        console.print(line, markup=False)
    console.print(f"\nThe report is {folder / 'report.html'}, the numbers are in result.json beside it", soft_wrap=True)


def _names(text: str) -> tuple[str, ...]:
    return tuple(name.strip() for name in text.split(",") if name.strip())


class NamesType(click.ParamType):
    """Names separated by commas, or ``all``."""

    name = "names"

    def __init__(self, known: tuple[str, ...]) -> None:
        self.known = known

    def convert(self, value: object, param: click.Parameter | None, ctx: click.Context | None) -> tuple[str, ...]:
        if isinstance(value, tuple):
            return value
        from bridgegarden.errors import lookup

        names = self.known if value == "all" else tuple(str(value).split(","))
        for name in names:
            lookup(dict.fromkeys(self.known), name, field=cast(click.Parameter, param).opts[0])
        return names

    def get_metavar(self, param: click.Parameter, ctx: click.Context) -> str:
        return "all|NAME,..."


@click.group(
    "lab", cls=Group, epilog=example("bridgegarden lab worlds", "bridgegarden lab run --world arithmetic --no-sweep")
)
def lab_group() -> None:
    """The exact lab: worlds where Bridges, Gardens and exposure bias are computed, not estimated."""


@lab_group.command("run", epilog=example("bridgegarden lab run --world arithmetic --no-sweep"))
@click.option("--world", type=NamesType(WORLD_NAMES), default="all", show_default=True, help="Worlds.")
@click.option(
    "--objectives", type=NamesType(OBJECTIVE_NAMES), default="all", show_default=True, help="What is compared."
)
@click.option("--seeds", type=click.IntRange(min=1), default=3, show_default=True, help="Trainings of each kind.")
@click.option(
    "--sweep/--no-sweep",
    default=True,
    show_default=True,
    help="Also with few answers, a slipping teacher, a large student; and the sweep over λ.",
)
@_output("lab", "Trainings")
@WORKERS
@AS_JSON
def run_command(
    world: tuple[str, ...],
    objectives: tuple[str, ...],
    seeds: int,
    sweep: bool,
    output: Path,
    workers: int | None,
    as_json: bool,
) -> None:
    """Train students against exact teachers, and test the paper's claims with intervals.

    A student takes 7 seconds of an idle, fast processor and 20 of a busy one. On two, one world with 3 seeds takes 2 to
    4 minutes without the sweep (24 students), 5 to 13 with it (81); all worlds (309) 20 to 50. Interrupted, it goes on
    where it stopped. Leaves DIR/report.html, tables.md, findings.csv, means.csv and result.json.
    """
    from bridgegarden.lab.result import LabSettings
    from bridgegarden.lab.run import lab
    from bridgegarden.lab.tables import tables

    settings = LabSettings(worlds=world, objectives=objectives, seeds=tuple(range(seeds)), sweep=sweep)
    typed = [
        "bridgegarden lab run",
        f"--world {'all' if world == WORLD_NAMES else ','.join(world)}",
        f"--objectives {'all' if objectives == OBJECTIVE_NAMES else ','.join(objectives)}",
        f"--seeds {seeds}",
        *([] if sweep else ["--no-sweep"]),
    ]
    result = lab(output, settings, command=" ".join(typed), workers=workers)
    _show(output, tables(result), as_json=as_json)


@lab_group.command("map", epilog=example("bridgegarden lab map --quick"))
@click.option("--quick", is_flag=True, help="Four cells of the 32 with 16 seeds: what the map looks like.")
@_output("map", "Cells")
@WORKERS
@AS_JSON
def map_command(quick: bool, output: Path, workers: int | None, as_json: bool) -> None:
    """Decide which labels are better where: many students trained at once, measured exactly.

    Teachers that are sure, unsure, slip or are wrong in places; students with room enough or too small; few rows or
    many; short or long training. Fourteen kinds of labels, each with one setting and with settings tuned for it, 64
    seeds. Every claim has a smallest effect of interest, and holds, does not hold, or says how much more it needs. The
    whole map took 147 minutes of processor time, so 75 of two processors; --quick two to three. Interrupted, it goes on
    where it stopped. Leaves DIR/report.html, tables.md, claims.csv, cells.csv and result.json.
    """
    from bridgegarden.lab.map.cells import QUICK, MapSettings
    from bridgegarden.lab.map.report import tables
    from bridgegarden.lab.map.run import lab_map

    typed = f"bridgegarden lab map{' --quick' if quick else ''}"
    result = lab_map(output, QUICK if quick else MapSettings(), command=typed, workers=workers)
    _show(output, tables(result), as_json=as_json)


@lab_group.command("confirm", epilog=example("bridgegarden lab confirm --seeds 8 --workers 2"))
@click.option("--seeds", type=click.IntRange(min=2), default=24, show_default=True, help="Students of every kind.")
@_output("confirm", "Students")
@WORKERS
@AS_JSON
def confirm_command(seeds: int, output: Path, workers: int | None, as_json: bool) -> None:
    """Train tiny transformers in two cells of the map, and hold the same claims against them.

    Seven kinds of labels, one setting, stopped by their own held-out loss; a student takes about 13 seconds of one
    processor. Interrupted, it goes on where it stopped. Leaves DIR/report.html, tables.md, claims.csv, cells.csv and
    result.json.
    """
    from bridgegarden.lab.map.confirm import ConfirmSettings, lab_confirm, terminal_tables

    settings = ConfirmSettings(seeds=seeds)
    result = lab_confirm(output, settings, command=f"bridgegarden lab confirm --seeds {seeds}", workers=workers)
    _show(output, terminal_tables(result), as_json=as_json)


@lab_group.command("worlds", epilog=example("bridgegarden lab worlds"))
@click.option("--json", "as_json", is_flag=True, help="Print them as JSON.")
def worlds_command(as_json: bool) -> None:
    """List the worlds, with sizes and an example whose Bridges are marked."""
    from bridgegarden.lab.worlds import describe_worlds

    worlds = describe_worlds()
    if as_json:
        click.echo(json.dumps([vars(world) for world in worlds], indent=2, ensure_ascii=False))
        return
    for world in worlds:
        click.echo(world.text())


@lab_group.command("check", epilog=example("bridgegarden lab check --cases 50"))
@click.option("--cases", type=click.IntRange(min=1), default=200, show_default=True, help="Random processes.")
@click.option("--json", "as_json", is_flag=True, help="Print the checks as JSON.")
@click.pass_context
def check_lab_command(ctx: click.Context, cases: int, as_json: bool) -> None:
    """Verify the identities and the theorem that the lab rests on.

    On random processes and on every world; ends with status 1 if one of them does not hold.
    """
    from bridgegarden.exact.checks import TOLERANCE, run_checks

    checks = run_checks(cases, progress=lambda name: click.echo(f"checked: {name}", err=True))
    if as_json:
        click.echo(json.dumps([vars(check) for check in checks], indent=2, ensure_ascii=False))
    else:
        for check in checks:
            verdict = "holds" if check.passed else "DOES NOT HOLD"
            click.echo(f"{verdict}: {check.name} ({check.cases} cases, largest error {check.worst:.1e})")
        click.echo(f"{sum(check.passed for check in checks)} of {len(checks)} hold, to {TOLERANCE:g} nats.")
    if not all(check.passed for check in checks):
        ctx.exit(1)
