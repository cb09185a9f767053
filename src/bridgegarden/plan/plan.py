"""From a recipe to what it takes, and what would make it fit, before anything is paid for."""

import dataclasses
import math
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bridgegarden.data import vocabulary_size
from bridgegarden.errors import ConfigError
from bridgegarden.plan.memory import Machine, MemoryPlanner, Moment, Setup
from bridgegarden.plan.work import Rows, Schedule, Work, cache_work, training_work
from bridgegarden.preflight import ModelFacts, Pair
from bridgegarden.preflight.flops import StepFlops
from bridgegarden.preflight.memory import weight_bytes
from bridgegarden.recipe import Recipe, build_lora_config, build_objective, build_sft_config
from bridgegarden.recipe.training import LoraSection
from bridgegarden.run.cut_student import CutStudent, sizes_text
from bridgegarden.run.pair import recipe_pair
from bridgegarden.run.quiet import quiet_libraries
from bridgegarden.run.recipe_teacher import kept_tokens
from bridgegarden.run.teachers import CachedByRow, teacher_of

if TYPE_CHECKING:
    import torch

    from bridgegarden.run.rows import RunData

TOP_K = 64


@dataclass(frozen=True, kw_only=True)
class Advice:
    """A change, or several together, and what the run takes with it."""

    settings: tuple[str, ...]
    """As they are typed: ``--set KEY=VALUE``, or an option of this command."""
    total: int
    """Bytes at the fullest moment, with them."""
    saved: int
    """Bytes less than without; negative where it costs memory."""
    fits: bool

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        return {"settings": list(self.settings), "total": self.total, "saved": self.saved, "fits": self.fits}


@dataclass(frozen=True, kw_only=True)
class CacheSize:
    """A teacher's signals on disk."""

    positions: int
    """Supervised positions of all rows, for training and evaluation."""
    bytes_per_position: int
    kept: str
    """Which tokens."""
    flops: float | None
    """Operations of building it; None where the teacher does not run here."""

    @property
    def bytes(self) -> int:
        """On disk, but for a few bytes a row."""
        return self.positions * self.bytes_per_position


@dataclass(frozen=True, kw_only=True)
class Cut:
    """The student's being cut out of the teacher."""

    what: str
    """How much of the teacher it has."""
    folder: str
    made: bool
    """Whether it is in that folder already."""
    memory: int | None
    """Bytes of the teacher that are on a device while it is cut; None where it is not there then."""
    fits: bool
    """Whether they find room."""


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What a run takes."""

    recipe: str
    """What it was called."""
    machine: Machine
    student_parameters: tuple[int, int]
    """All, and those that are trained."""
    teacher_parameters: int | None
    """None where no teacher is loaded."""
    setup: Setup
    schedule: Schedule
    work: Work
    moments: tuple[Moment, ...]
    cache: CacheSize | None
    """None where the teacher's answers come from a server, and it is not known what they keep; where the student
    writes; and where nothing is learnt of the teacher."""
    uses_cache: bool
    """Whether training reads it."""
    advice: tuple[Advice, ...]
    """Settings that need less, where it does not fit; each planned again."""
    teacher_longest: int | None = None
    """Tokens of the longest row as the teacher reads it; None where it reads the rows' own prompts."""
    translated: bool = False
    """Whether it reads them in other tokens than the student."""
    cut: Cut | None = None
    """None where the student is a model of its own."""
    asks_teacher: bool = True
    """Whether anything is learnt of what it says; not where hard labels of the data are all that is."""

    @property
    def fullest(self) -> Moment:
        """The moment that decides."""
        return max(self.moments, key=lambda moment: moment.total)

    @property
    def fits(self) -> bool:
        """Whether the fullest moment fits in what is planned with of a device."""
        return self.fullest.total <= self.machine.usable

    def hours(self, flops: float) -> float | None:
        """Of all devices together, at the assumed utilisation; None where a device's speed is not known."""
        machine = self.machine
        if machine.flops is None:
            return None
        return flops / (machine.processes * machine.flops * machine.utilisation) / 3600

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for JSON: what the text says."""
        machine = self.machine
        return {
            "recipe": self.recipe,
            "machine": dataclasses.asdict(machine) | {"usable": machine.usable},
            "parameters": {
                "student": self.student_parameters[0],
                "trained": self.student_parameters[1],
                "teacher": self.teacher_parameters,
            },
            "batch": dataclasses.asdict(self.setup.batch),
            "steps": self.schedule.steps,
            "tokens": self.work.tokens,
            "positions": self.work.positions,
            "padding": self.work.padding,
            "memory": {moment.name: dict(moment.parts) | {"total": moment.total} for moment in self.moments},
            "fullest": self.fullest.name,
            "fits": self.fits,
            "flops": dict(self.work.flops) | {"total": self.work.total},
            "hours": self.hours(self.work.total),
            "cache": None if self.cache is None else self._cache_dict(self.cache),
            "cut": None if self.cut is None else dataclasses.asdict(self.cut),
            "advice": [advice.to_dict() for advice in self.advice],
        }

    def _cache_dict(self, cache: CacheSize) -> dict[str, Any]:
        building = None if cache.flops is None else self.hours(cache.flops)
        return dataclasses.asdict(cache) | {"bytes": cache.bytes, "hours": building, "used": self.uses_cache}


def plan_recipe(recipe: Recipe, machine: Machine, name: str = "recipe") -> Plan:
    """Plan the training of `recipe` on `machine`: configurations, tokenizers and rows are read, weights are not.

    Raises:
        ConfigError: a setting is wrong, or cannot be planned.
        ModelError: a model's configuration cannot be read, or its memory or operations cannot be counted.
        DataError: a row cannot be used.
    """
    asks = not recipe.learns_data_alone
    if asks and recipe.teacher.kind == "mixed":
        raise ConfigError(
            "teacher.mix: several teachers in memory cannot be planned. Plan with a cache of the mixture, which needs "
            "none of them in training: --set teacher.cache=FOLDER"
        )
    if asks and recipe.teacher.together:
        raise ConfigError(
            "teacher.together: several teachers in memory cannot be planned. Plan with what is asked of one after the "
            "other, which needs none of them in training: --set teacher.together=false"
        )
    with quiet_libraries(interactive=sys.stderr.isatty()):
        pair = recipe_pair(recipe, weights=False, translates=True, asked=asks)
        data = teacher_of(recipe).rows(pair)
        return _plan(recipe, machine, name, pair, data)


def _plan(
    recipe: Recipe,
    machine: Machine,
    name: str,
    pair: Pair,
    data: "RunData",
) -> Plan:
    teacher, student = pair.teacher, pair.student
    arguments = _arguments(recipe)
    packing = bool(arguments.packing)
    reads_otherwise = pair.asked and (recipe.teacher.prompt is not None or pair.tokens is not None)
    single = Rows.of(data.train)
    rows = single.packed(arguments.max_length) if packing else single
    asked = teacher if pair.asked and recipe.teacher.reads_batches else None
    setup = _setup(recipe, machine, arguments, rows, pair)
    planner = MemoryPlanner(machine)
    schedule = Schedule.of(arguments, rows.count, machine.processes)
    moments = planner.moments(setup)
    work = training_work(
        StepFlops.of(student, lora=setup.lora, gradient_checkpointing=setup.gradient_checkpointing),
        asked,
        rows,
        schedule,
        on_policy=recipe.on_policy,
        ranks=build_objective(recipe.objective).ranks is not None,
        read=Rows.of(data.train, teacher=True) if reads_otherwise else None,
    )
    read = [Rows.of(part, teacher=True) for part in data.by_name.values()]
    plan = Plan(
        recipe=name,
        machine=machine,
        student_parameters=planner.parameters(setup),
        teacher_parameters=None if setup.loaded is None else planner.teacher_parameters(setup.loaded),
        setup=setup,
        schedule=schedule,
        work=work,
        moments=moments,
        cache=_cache(recipe, pair, read, _asked(recipe, pair, data, read))
        if pair.asked and recipe.on_policy is None
        else None,
        teacher_longest=max(int(part.lengths[-1]) for part in read) if reads_otherwise else None,
        translated=pair.tokens is not None,
        cut=_cut(recipe, machine, pair),
        uses_cache=pair.asked and recipe.teacher.is_cached,
        asks_teacher=pair.asked,
        advice=(),
    )
    if plan.fits:
        return plan
    cacheable = asked is not None and recipe.on_policy is None and not _watches(recipe)
    found = advise(setup, planner, rows, cacheable=cacheable)
    return dataclasses.replace(plan, advice=found)


def _cut(recipe: Recipe, machine: Machine, pair: Pair) -> Cut | None:
    """What `bridgegarden.run.prune` does before a training."""
    if recipe.student.from_ is None:
        return None
    student = CutStudent.of(recipe, weights=False)
    made, memory = student.folder.exists(), None
    elsewhere = recipe.teacher.device is not None or recipe.teacher.device_map is not None
    on_cpu = bool(recipe.training.arguments.get("use_cpu"))
    if not made and (not machine.gpu or (recipe.student.measures and not elsewhere and not on_cpu)):
        memory = weight_bytes(student.parent)
    return Cut(
        what=sizes_text(pair.student.config, student.whole),
        folder=str(student.folder),
        made=made,
        memory=memory,
        fits=memory is None or memory <= machine.usable,
    )


def _arguments(recipe: Recipe) -> Any:
    """TRL's arguments, without what TRL checks against this machine's devices."""
    changed = {**recipe.training.arguments, "bf16": False, "fp16": False, "tf32": None, "use_cpu": True}
    with tempfile.TemporaryDirectory() as folder:
        return build_sft_config(dataclasses.replace(recipe.training, arguments=changed), Path(folder))


def _setup(
    recipe: Recipe,
    machine: Machine,
    arguments: Any,
    rows: Rows,
    pair: Pair,
) -> Setup:
    teacher, student = pair.teacher, pair.student
    asked = teacher if pair.asked and recipe.teacher.reads_batches else None
    on_policy = recipe.on_policy if recipe.on_policy is not None and recipe.on_policy.lmbda > 0 else None
    extra = 0 if on_policy is None else on_policy.max_new_tokens
    return Setup(
        student=student,
        teacher=asked,
        loaded=None if recipe.teacher.is_elsewhere else teacher if _watches(recipe) else asked,
        top_k=kept_tokens(recipe.teacher, pair),
        batch=rows.largest_batch(arguments.per_device_train_batch_size, extra=extra),
        lora=None if recipe.student.lora is None else build_lora_config(recipe.student.lora),
        gradient_checkpointing=bool(recipe.training.arguments.get("gradient_checkpointing")),
        autocast=_autocast(recipe.training.arguments, machine),
        accumulation=arguments.gradient_accumulation_steps,
        optim=str(getattr(arguments.optim, "value", arguments.optim)),
        writes=on_policy is not None,
        quantised=None if recipe.training.quantised is None else recipe.training.quantised.kind,
    )


def _watches(recipe: Recipe) -> bool:
    """Whether the teacher is in memory even if it is cached: it reads what the student writes."""
    return recipe.free_running is not None


def _autocast(arguments: Mapping[str, Any], machine: Machine) -> "torch.dtype | None":
    """As `build_sft_config` decides it on the machine that is planned for."""
    import torch

    if arguments.get("fp16"):
        # Of the same size, and known to a CPU's autocast.
        return torch.bfloat16
    given = arguments.get("bf16")
    wanted = machine.gpu and not arguments.get("use_cpu", False) if given is None else bool(given)
    return torch.bfloat16 if wanted else None


def _asked(recipe: Recipe, pair: Pair, data: "RunData", read: Sequence[Rows]) -> list[tuple[ModelFacts, Rows]]:
    """Each teacher with the rows that it would be asked about for a cache: all, or its own."""
    source = teacher_of(recipe)
    if not isinstance(source, CachedByRow):
        return [(facts, part) for facts in pair.teachers for part in read]
    own = zip(pair.teachers, source.rows_of(data).values(), strict=True)
    return [(facts, Rows.of(part, teacher=True)) for facts, parts in own for part in parts]


def _cache(
    recipe: Recipe, pair: Pair, rows: Sequence[Rows], asked: Sequence[tuple[ModelFacts, Rows]]
) -> CacheSize | None:
    from bridgegarden.run.cache import DEFAULT_TOP_K
    from bridgegarden.teacher.cache.manifest import MANIFEST, read_spec
    from bridgegarden.teacher.cache.record import RecordFormat
    from bridgegarden.teacher.cache.spec import CacheSpec, Support, exponents_with_defaults

    positions = sum(part.positions for part in rows)
    folder = None if recipe.teacher.cache is None else Path(recipe.teacher.cache).expanduser()
    if folder is not None and (folder / MANIFEST).exists():
        spec = read_spec(folder)
    elif not pair.teachers:
        return None
    else:
        width = max(facts.width for facts in pair.teachers)
        unknown = dict.fromkeys(("teacher", "dtype", "tokenizer", "chat_template"), "")
        spec = CacheSpec(
            **unknown,
            revision=None,
            weights=None,
            max_length=None,
            vocab_size=min(vocabulary_size(pair.read_by), width),
            teacher_width=width,
            support=Support(k=recipe.teacher.top_k or DEFAULT_TOP_K),
            exponents=exponents_with_defaults(build_objective(recipe.objective).exponents),
        )
    return CacheSize(
        positions=positions,
        bytes_per_position=RecordFormat(spec).bytes_per_position,
        kept=str(spec.support),
        flops=sum(cache_work(facts, part) for facts, part in asked) if pair.teachers else None,
    )


@dataclass(frozen=True, kw_only=True)
class _Change:
    settings: tuple[str, ...]
    apply: Callable[[Setup], Setup]
    sharding: bool = False


def advise(setup: Setup, planner: MemoryPlanner, rows: Rows, *, cacheable: bool) -> tuple[Advice, ...]:
    """Every change by itself, then, if none is enough, as many in this order as are, or all that help.

    The order is by what is given up: first what changes nothing but time, then what changes the optimiser, then what is
    trained.

    Args:
        setup: what does not fit.
        planner: plans again.
        rows: of the data.
        cacheable: whether the teacher could be asked beforehand.
    """
    before = _total(planner, setup)
    changes = _changes(setup, planner, rows, cacheable=cacheable)
    found = [_advice(planner, setup, before, [change]) for change in changes]
    if any(advice.fits for advice in found):
        return tuple(found)
    return (*found, _together(planner, setup, before, changes))


def _together(planner: MemoryPlanner, setup: Setup, before: int, changes: list[_Change]) -> Advice:
    """One change after the other, without those that add nothing to the ones before, until it fits."""
    chosen: list[_Change] = []
    best = _advice(planner, setup, before, chosen)
    for change in changes:
        tried = _advice(planner, setup, before, [*chosen, change])
        if tried.total < best.total:
            chosen, best = [*chosen, change], tried
        if best.fits:
            break
    return best


def _changes(setup: Setup, planner: MemoryPlanner, rows: Rows, *, cacheable: bool) -> list[_Change]:
    changes = []
    if cacheable:
        settings = ("--set teacher.cache=FOLDER",)
        changes.append(_Change(settings=settings, apply=lambda s: replace(s, teacher=None, loaded=None)))
    if setup.teacher is not None and setup.top_k is None:
        settings = (f"--set teacher.top_k={TOP_K}",)
        changes.append(_Change(settings=settings, apply=lambda s: replace(s, top_k=TOP_K)))
    if not setup.gradient_checkpointing:
        settings = ("--set training.gradient_checkpointing=true",)
        changes.append(_Change(settings=settings, apply=lambda s: replace(s, gradient_checkpointing=True)))
    if setup.batch.rows > 1:
        changes.append(_smaller_batch(setup, planner, rows))
    if planner.machine.processes > 1 and planner.machine.sharding == "ddp":
        changes.append(_Change(settings=("--sharding fsdp",), apply=lambda s: s, sharding=True))
    if planner.machine.gpu and "8bit" not in setup.optim and setup.optim.startswith("adamw"):
        settings = ("--set training.optim=adamw_8bit",)
        changes.append(_Change(settings=settings, apply=lambda s: replace(s, optim="adamw_8bit")))
    if setup.lora is None:
        adapters = build_lora_config(LoraSection())
        changes.append(_Change(settings=("--set student.lora={}",), apply=lambda s: replace(s, lora=adapters)))
    return changes


def _smaller_batch(setup: Setup, planner: MemoryPlanner, rows: Rows) -> _Change:
    """The largest batch that fits, halving; one row if none does. The step of the optimiser stays what it was."""

    def change(size: int) -> _Change:
        accumulation = math.ceil(setup.accumulation * setup.batch.rows / size)
        batch = rows.largest_batch(size, extra=setup.batch.length - int(rows.lengths[-1]))
        return _Change(
            settings=(
                f"--set training.per_device_train_batch_size={size}",
                f"--set training.gradient_accumulation_steps={accumulation}",
            ),
            apply=lambda s: replace(s, batch=batch, accumulation=accumulation),
        )

    size = setup.batch.rows // 2
    while size > 1 and _total(planner, change(size).apply(setup)) > planner.machine.usable:
        size //= 2
    return change(max(size, 1))


def _advice(planner: MemoryPlanner, setup: Setup, before: int, changes: list[_Change]) -> Advice:
    machine = planner.machine
    for change in changes:
        setup = change.apply(setup)
        if change.sharding:
            machine = replace(machine, sharding="fsdp")
    total = _total(planner.on(machine), setup)
    settings = tuple(setting for change in changes for setting in change.settings)
    return Advice(settings=settings, total=total, saved=before - total, fits=total <= machine.usable)


def _total(planner: MemoryPlanner, setup: Setup) -> int:
    return max(moment.total for moment in planner.moments(setup))
