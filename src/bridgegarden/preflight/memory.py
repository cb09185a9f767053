"""How much memory a run takes, from configurations alone: parameters are counted exactly, on the meta device."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from bridgegarden.objective.selected_logits import default_chunk_tokens
from bridgegarden.preflight.meta import meta_model, parameter_count
from bridgegarden.preflight.models import ModelFacts

if TYPE_CHECKING:
    import torch
    from peft import LoraConfig
    from rich.table import Table

CHUNK_COPIES = 3
"""Buffers of the size of a chunk's logits that are alive at once: logits, probabilities, gradient."""


@dataclass(frozen=True, kw_only=True)
class MemoryPart:
    """One line of the estimate."""

    name: str
    parameters: int | None
    """None where it is not a matter of parameters."""
    bytes: int


@dataclass(frozen=True, kw_only=True)
class MemoryEstimate:
    """Everything but activations, per process, before any sharding."""

    parts: tuple[MemoryPart, ...]
    available: int
    """Bytes of the device that is trained on."""
    device: str

    @property
    def total(self) -> int:
        """Bytes."""
        return sum(part.bytes for part in self.parts)

    @property
    def warnings(self) -> tuple[str, ...]:
        """One, if it does not fit."""
        if self.total <= self.available:
            return ()
        return (
            f"about {gigabytes(self.total)} are needed without activations, and {self.device} has "
            f"{gigabytes(self.available)}. Train adapters (student.lora: {{}}), load the teacher in bfloat16 or on "
            "another device (teacher.dtype, teacher.device), or shard with `accelerate launch`.",
        )

    def table(self) -> "Table":
        """For the terminal."""
        from rich import box
        from rich.table import Table

        table = Table(title="Memory, estimated", title_justify="left", title_style="", box=box.SIMPLE_HEAD)
        table.add_column("what")
        table.add_column("parameters", justify="right")
        table.add_column("memory", justify="right")
        for part in self.parts:
            table.add_row(part.name, "" if part.parameters is None else f"{part.parameters:,}", gigabytes(part.bytes))
        table.add_section()
        table.add_row("sum; activations come on top", "", gigabytes(self.total))
        table.add_row(f"{self.device} has", "", gigabytes(self.available))
        return table


def estimate_memory(
    teacher: ModelFacts | None,
    student: ModelFacts,
    *,
    positions: int,
    lora: "LoraConfig | None" = None,
    use_cpu: bool = False,
    teacher_cached: bool = False,
) -> MemoryEstimate:
    """The estimate for training `student` with AdamW against `teacher`.

    Args:
        teacher: the model that is asked at every step; None where it is on a server.
        student: the model that is trained.
        positions: tokens of a batch at most.
        lora: adapters to train in place of all weights.
        use_cpu: whether the run is kept off accelerators.
        teacher_cached: whether what `teacher` says is read from disk.
    """
    weights = parameter_count(meta_model(student.config))
    trained, trained_size = weights, student.dtype.itemsize
    if lora is not None:
        # Adapters are float32 whatever the type of the weights under them.
        trained, trained_size = _adapter_parameters(student, lora), 4
    chunk_tokens = min(positions, default_chunk_tokens(student.width, _device_type(use_cpu)))
    asked = None if teacher_cached else teacher
    chunk = CHUNK_COPIES * 4 * chunk_tokens * (student.width + (0 if asked is None else asked.width))
    parts = [
        MemoryPart(
            name=_weights_name("student", student.dtype), parameters=weights, bytes=weights * student.dtype.itemsize
        ),
        MemoryPart(name="gradients", parameters=trained, bytes=trained * trained_size),
        MemoryPart(name="optimizer states (AdamW)", parameters=trained, bytes=2 * trained * trained_size),
        *([] if asked is None else [_weights(asked)]),
        MemoryPart(name="logits, one chunk of each", parameters=None, bytes=chunk),
    ]
    if lora is not None:
        parts.insert(1, MemoryPart(name="adapters (float32)", parameters=trained, bytes=trained * trained_size))
    device, available = _device(use_cpu)
    return MemoryEstimate(parts=tuple(parts), available=available, device=device)


def gigabytes(count: int) -> str:
    """`count` bytes for a reader: GB, or MB below one."""
    return f"{count / 1e9:.1f} GB" if count >= 1e9 else f"{count / 1e6:.1f} MB"


def _weights(teacher: ModelFacts) -> MemoryPart:
    count = parameter_count(meta_model(teacher.config))
    return MemoryPart(
        name=_weights_name("teacher", teacher.dtype), parameters=count, bytes=count * teacher.dtype.itemsize
    )


def _weights_name(role: str, dtype: "torch.dtype") -> str:
    return f"{role} weights ({str(dtype).removeprefix('torch.')})"


def _adapter_parameters(student: ModelFacts, lora: "LoraConfig") -> int:
    from peft import inject_adapter_in_model

    model: Any = meta_model(student.config)
    inject_adapter_in_model(lora, model, low_cpu_mem_usage=True)
    return sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)


def _device_type(use_cpu: bool) -> str:
    import torch

    return "cuda" if torch.cuda.is_available() and not use_cpu else "cpu"


def _device(use_cpu: bool) -> tuple[str, int]:
    import psutil
    import torch

    if _device_type(use_cpu) == "cuda":
        properties = torch.cuda.get_device_properties(0)
        return properties.name, properties.total_memory
    return "this machine", psutil.virtual_memory().total
