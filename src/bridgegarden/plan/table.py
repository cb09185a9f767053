"""A plan on a terminal."""

import io

from bridgegarden.plan.memory import KEPT_FREE, PARTS, gibibytes
from bridgegarden.plan.plan import Advice, CacheSize, Cut, Plan
from bridgegarden.preflight import quantisation
from bridgegarden.table import Table

SHARDING = {
    "ddp": "each with all of the student",
    "fsdp": "the student sharded by FSDP2",
    "zero3": "the student sharded by ZeRO-3",
}


def plan_text(plan: Plan, width: int = 100) -> str:
    """The plan as plain text of at most `width` columns, but for settings, which are to be copied whole."""
    from rich.console import Console

    text = io.StringIO()
    console = Console(file=text, width=width, force_terminal=False, color_system=None, highlight=False)
    for line in _heading(plan):
        console.print(line, markup=False)
    console.print(_memory(plan))
    console.print(_work(plan))
    for line in _closing(plan):
        console.print(line, markup=False)
    console.print(verdict(plan), markup=False)
    for advice in plan.advice:
        console.print(f"\n  {_effect(advice)}", markup=False)
        console.print("\n".join(f"    {setting}" for setting in advice.settings), markup=False, soft_wrap=True)
    return "\n".join(line.rstrip() for line in text.getvalue().splitlines())


def verdict(plan: Plan) -> str:
    """Whether it fits, in one sentence."""
    free = plan.machine.usable - plan.fullest.total
    room = f"{gibibytes(plan.machine.usable)} of {gibibytes(plan.machine.memory)} ({KEPT_FREE:.0%} is kept free)"
    if free >= 0:
        return f"Fits: {gibibytes(plan.fullest.total)} at the fullest moment, {room}."
    return (
        f"Does not fit: {gibibytes(plan.fullest.total)} at the fullest moment, {room}. What would change that, each "
        "planned again:"
    )


def _heading(plan: Plan) -> list[str]:
    machine, batch, schedule = plan.machine, plan.setup.batch, plan.schedule
    shared = f", {SHARDING[machine.sharding]}" if machine.processes > 1 else ""
    all_of_it, trained = plan.student_parameters
    student = f"student {_count(all_of_it)} parameters" + (
        "" if trained == all_of_it else f", {_count(trained)} trained"
    )
    asked = "no teacher in memory" if plan.teacher_parameters is None else f"teacher {_count(plan.teacher_parameters)}"
    return [
        f"{plan.recipe} on {machine.processes} x {machine.name}, {gibibytes(machine.memory)} each{shared}",
        f"{student}; {asked}",
        f"{schedule.steps:,} steps of {schedule.batch} x {schedule.accumulation} x {schedule.processes} rows (batch, "
        f"accumulation, processes); the largest batch is {batch.rows} x {batch.length:,} tokens",
    ]


def _memory(plan: Plan) -> Table:
    rows = []
    for part in PARTS:
        values = [moment.parts.get(part, 0) for moment in plan.moments]
        if any(values):
            rows.append([part, *(f"{value / 2**30:,.2f}" if value else "" for value in values)])
    rows.append(["sum", *(f"{moment.total / 2**30:,.2f}" for moment in plan.moments)])
    names = [f"{moment.name} *" if moment.name == plan.fullest.name else moment.name for moment in plan.moments]
    return Table(
        columns=["", *names], rows=rows, title="\nMemory of a process, GiB", note="* the fullest moment", last=1
    )


def _work(plan: Plan) -> Table:
    parts = list(plan.work.flops.items())
    if plan.uses_cache and plan.cache is not None and plan.cache.flops is not None:
        parts.insert(0, ("teacher, once, for the cache", plan.cache.flops))
    parts.append(("sum", sum(flops for _, flops in parts)))
    rows = [[name, f"{flops:.3g}", _hours(plan.hours(flops))] for name, flops in parts]
    return Table(columns=["", "operations", "time"], rows=rows, title="\nWork", last=1)


def _closing(plan: Plan) -> list[str]:
    machine, work = plan.machine, plan.work
    if machine.flops is None:
        assumed = (
            "Times are not known: give the operations a second of the device (--flops 989e12) or its name (--gpu)."
        )
    else:
        assumed = (
            f"Times assume {machine.utilisation:.0%} of {machine.flops:.3g} operations a second on each of "
            f"{machine.processes}."
        )
    lines = [
        f"{work.tokens:,.0f} tokens, {work.padding:.0%} of them padding; {work.positions:,.0f} are learnt. {assumed} "
        "Evaluation, loading and saving come on top.",
    ]
    if plan.cut is not None:
        lines.append(_cut_line(plan.cut))
    if not plan.asks_teacher:
        lines.append("The teacher is not asked about the rows: hard labels of the data are all that is learnt.")
    if plan.teacher_longest is not None:
        what = "has another tokenizer and reads" if plan.translated else "reads another prompt (teacher.prompt),"
        lines.append(
            f"The teacher {what} rows of {plan.teacher_longest:,} tokens at most; its "
            "operations are counted so, its memory by the student's rows."
        )
    if plan.setup.quantised is not None:
        lines.append(
            f"The student is trained as a {plan.setup.quantised} file holds it: its rounded weights are counted among "
            "activations. Rounding them once a batch is no matter of operations but of memory's speed, and not in the "
            "times."
        )
    loaded = plan.setup.loaded
    if loaded is not None and loaded.reference.gguf_file is None and (how := quantisation(loaded)) is not None:
        dtype = str(loaded.dtype).removeprefix("torch.")
        counted = (
            f"its weights are counted whole, in {dtype}: how much less they take is not known here."
            if loaded.reference.quantization is None
            else "its weights are counted so, with their scales; embeddings and head whole."
        )
        lines.append(f"The teacher is quantised ({how}), and {counted}")
    if plan.cache is not None:
        lines.append(_cache_line(plan, plan.cache))
    return [*lines, ""]


def _cut_line(cut: Cut) -> str:
    student = f"The student is cut out of the teacher: {cut.what}"
    if cut.made:
        return f"{student}. It is in {cut.folder}."
    first = f"{student}. It is not made yet: the run loads the whole teacher first"
    if cut.memory is None:
        return f"{first}, outside this device's memory, and lets go of it."
    if cut.fits:
        return f"{first}, {gibibytes(cut.memory)} of this device's memory, and lets go of it."
    return (
        f"{first}, which is {gibibytes(cut.memory)} and does not fit. Cut it on the CPU before: bridgegarden prune "
        "RECIPE --set training.use_cpu=true"
    )


def _cache_line(plan: Plan, cache: CacheSize) -> str:
    size = (
        f"{gibibytes(cache.bytes)} on disk ({cache.positions:,} positions x {cache.bytes_per_position} bytes, "
        f"{cache.kept})"
    )
    if plan.uses_cache:
        return f"The teacher's cache: {size}."
    building = None if cache.flops is None else plan.hours(cache.flops)
    once = "" if building is None else f", {_hours(building)} once"
    return f"A cache of the teacher would take {size}{once}."


def _effect(advice: Advice) -> str:
    change = f"{gibibytes(abs(advice.saved))} {'less' if advice.saved >= 0 else 'more'}"
    return f"{gibibytes(advice.total)}, {change}: {'fits' if advice.fits else 'does not fit'} with"


def _count(parameters: int) -> str:
    for size, unit in ((10**9, "B"), (10**6, "M"), (10**3, "k")):
        if parameters >= size:
            return f"{parameters / size:.3g}{unit}"
    return str(parameters)


def _hours(hours: float | None) -> str:
    from bridgegarden.terminal import duration

    return "" if hours is None else duration(3600 * hours)
