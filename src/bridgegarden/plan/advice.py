"""Which settings make a run fit: each is planned again, so that what it saves is known."""

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

from bridgegarden.plan.memory import MemoryPlanner, Setup
from bridgegarden.plan.rows import Rows
from bridgegarden.recipe import build_lora_config
from bridgegarden.recipe.training import LoraSection

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
