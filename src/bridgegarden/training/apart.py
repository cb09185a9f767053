"""Whether a student can be trained without changing, or being held by, the teacher: they must not share weights."""

from collections.abc import Iterator
from typing import NamedTuple

from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from bridgegarden.errors import ModelError


class _Memory(NamedTuple):
    """Where a parameter lies."""

    device: str
    start: int
    end: int
    name: str


def check_apart(student: nn.Module, teacher: nn.Module, *, adapters: bool) -> None:
    """Make sure that training `student` and freezing `teacher` do not touch the same weights.

    A student with adapters may read the frozen weights that its teacher reads, to save memory, as long as its layers
    are objects of its own: in shared layers the adapters would be the teacher's, too.

    Args:
        student: with its adapters, if it has any.
        teacher: the model that is imitated.
        adapters: whether the student trains adapters alone.

    Raises:
        ModelError: they share layers or weights; says which, and what to do.
    """
    own = {id(module) for module in student.modules()}
    both = [name for name, module in teacher.named_modules() if id(module) in own and _holds_parameters(module)]
    if both:
        what = "are one model" if both[0] == "" else f"share layers ({_shown(both)})"
        raise ModelError(
            f"teacher and student {what}: the teacher is frozen, and whatever is trained would be trained in it, too. "
            "Load the teacher a second time, e.g. with teacher=PATH."
        )
    trained = {name for name, parameter in student.named_parameters() if parameter.requires_grad}
    shared = [name for name in _overlapping(student, teacher) if not adapters or name in trained]
    if shared:
        raise ModelError(
            f"teacher and student share weights ({_shown(shared)}): the teacher is frozen, so they would be, too. Give "
            "one of the two a copy of its own, e.g. with teacher=PATH."
        )


def _holds_parameters(module: nn.Module) -> bool:
    return next(module.parameters(), None) is not None


def _overlapping(student: nn.Module, teacher: nn.Module) -> list[str]:
    """Names of the student's parameters that lie, in part or whole, where one of the teacher's does."""
    found: list[str] = []
    theirs: _Memory | None = None
    ours: list[_Memory] = []
    for memory, of_teacher in sorted([*((m, True) for m in _memory(teacher)), *((m, False) for m in _memory(student))]):
        if of_teacher:
            found += [m.name for m in ours if m.device == memory.device and m.end > memory.start]
            if theirs is None or theirs.device != memory.device or theirs.end < memory.end:
                theirs = memory
            ours = []
        else:
            if theirs is not None and theirs.device == memory.device and theirs.end > memory.start:
                found.append(memory.name)
            else:
                ours.append(memory)
    return found


def _memory(model: nn.Module) -> Iterator[_Memory]:
    for name, parameter in model.named_parameters():
        tensor: Tensor = parameter.to_local() if isinstance(parameter, DTensor) else parameter
        # Weights that are not here (meta, split by ZeRO-3) lie nowhere.
        if tensor.device.type == "meta" or tensor.numel() == 0:
            continue
        reach = sum((size - 1) * step for size, step in zip(tensor.shape, tensor.stride(), strict=True)) + 1
        yield _Memory(str(tensor.device), tensor.data_ptr(), tensor.data_ptr() + reach * tensor.element_size(), name)


def _shown(names: list[str]) -> str:
    return names[0] if len(names) == 1 else f"{names[0]} and {len(names) - 1} more"
