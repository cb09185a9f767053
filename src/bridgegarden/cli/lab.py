"""``bridgegarden lab``: the controlled study of the paper, on worlds where the truth is computed."""

import json
from pathlib import Path
from typing import cast

import click

from bridgegarden.terminal import plain_console

WORLD_NAMES = ("dialogue", "arithmetic", "program", "control")
"""Keys of `bridgegarden.exact.tasks.WORLDS`, which is imported only when asked for."""

OBJECTIVE_NAMES = ("hard", "hard_data", "soft", "static", "confidence", "entropy", "curriculum", "risk_guided")
"""Keys of `bridgegarden.study.arms.OBJECTIVES`, likewise."""


class NamesType(click.ParamType):
    """Names separated by commas, or ``all``."""

    name = "names"

    def __init__(self, known: tuple[str, ...]) -> None:
        self.known = known

    def convert(self, value: object, param: click.Parameter | None, ctx: click.Context | None) -> tuple[str, ...]:
        if isinstance(value, tuple):
            return value
        from bridgegarden.registry import lookup

        names = self.known if value == "all" else tuple(str(value).split(","))
        for name in names:
            lookup(dict.fromkeys(self.known), name, field=cast(click.Parameter, param).opts[0])
        return names

    def get_metavar(self, param: click.Parameter, ctx: click.Context) -> str:
        return "all|NAME,..."


@click.group("lab")
def lab_group() -> None:
    """The exact lab: worlds where Bridges, Gardens and exposure bias are computed, not estimated."""


@lab_group.command("run")
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
@click.option(
    "--output",
    metavar="DIR",
    type=click.Path(path_type=Path),
    default=Path("runs") / "lab",
    show_default=True,
    help="Folder for the result. Trainings finished in it are kept.",
)
@click.option("--workers", type=click.IntRange(min=1), help="Processes.  [default: one per processor, at most 4]")
@click.option("--json", "as_json", is_flag=True, help="Print the result as JSON instead of tables.")
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

    settings = LabSettings(worlds=world, objectives=objectives, seeds=tuple(range(seeds)), sweep=sweep)
    typed = [
        "bridgegarden lab run",
        f"--world {'all' if world == WORLD_NAMES else ','.join(world)}",
        f"--objectives {'all' if objectives == OBJECTIVE_NAMES else ','.join(objectives)}",
        f"--seeds {seeds}",
        *([] if sweep else ["--no-sweep"]),
    ]
    result = lab(output, settings, command=" ".join(typed), workers=workers)
    if as_json:
        click.echo((output / "result.json").read_text(encoding="utf-8"), nl=False)
        return

    from bridgegarden.lab.tables import tables

    console = plain_console(highlight=False)
    for table in tables(result):
        console.print(table)
    console.print(f"\nThe report is {output / 'report.html'}, the numbers are in result.json beside it", soft_wrap=True)


@lab_group.command("worlds")
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


@lab_group.command("check")
@click.option("--cases", type=click.IntRange(min=1), default=200, show_default=True, help="Random processes.")
@click.option("--json", "as_json", is_flag=True, help="Print the checks as JSON.")
@click.pass_context
def check_command(ctx: click.Context, cases: int, as_json: bool) -> None:
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
