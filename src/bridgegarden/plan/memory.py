"""What a machine has, and what a process on it holds at each moment of a step."""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from fractions import Fraction
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Literal

from bridgegarden.errors import ConfigError
from bridgegarden.preflight.activations import Batch, StepMemory, student_memory, teacher_memory
from bridgegarden.preflight.memory import loss_bytes, optimizer_bytes, trained_parameters, weight_bytes
from bridgegarden.preflight.models import meta_model, parameter_count

if TYPE_CHECKING:
    import torch
    from peft import LoraConfig

    from bridgegarden.preflight import ModelFacts

PARTS = (
    "student weights",
    "adapters",
    "optimiser states",
    "teacher weights",
    "DDP buckets",
    "gradients",
    "activations",
    "loss",
    "layers gathered",
)
"""In the order of a table."""
Sharding = Literal["ddp", "fsdp", "zero3"]
GPUS = MappingProxyType(
    {
        "a100": (80, 312e12),
        "b200": (180, 2250e12),
        "h100": (80, 989e12),
        "h200": (139, 989e12),
        "l4": (24, 121e12),
        "l40s": (48, 362e12),
        "rtx4090": (24, 165e12),
    }
)
"""Memory in GiB and the vendor's figure for dense bfloat16 products a second, of the largest board of that name."""
KEPT_FREE = 0.1
"""Share of a device's memory that is not planned with: libraries, the driver, gaps between blocks, and that plans were
8 to 12 % too low where they were measured (docs/plan.md)."""
UTILISATION = 0.4
"""Share of the vendor's figure that a training reaches. An assumption; 0.3 to 0.5 is usual for dense models."""
_UNITS = {"": 1, "k": 10**3, "m": 10**6, "g": 10**9, "t": 10**12, "ki": 2**10, "mi": 2**20, "gi": 2**30, "ti": 2**40}
_BOUNDS = MappingProxyType(
    {
        "--gpus": (1, 10**6),
        "--memory": (1, 2**60),
        "--flops": (1, 1e30),
        "--utilisation": (1e-4, 1),
    }
)
"""What can be planned with: far beyond any machine, and small enough that every number of a plan is finite."""


@dataclass(frozen=True, kw_only=True)
class Machine:
    """Equal devices, a process on each."""

    name: str
    """For a reader."""
    processes: int
    memory: int
    """Bytes of each device."""
    flops: float | None
    """Operations a second of each at its best, in the vendor's words; None where it is not known."""
    utilisation: float = UTILISATION
    """Share of it that is reached, in (0, 1]."""
    sharding: Sharding = "ddp"
    """What the processes share: ``ddp`` nothing, ``fsdp`` and ``zero3`` the student's weights, gradients and optimiser
    states."""
    gpu: bool = True
    """Whether the devices are GPUs, so that training is in bfloat16 autocast unless the recipe says otherwise."""

    def __post_init__(self) -> None:
        given = (self.processes, self.memory, self.flops, self.utilisation)
        for (option, (low, high)), value in zip(_BOUNDS.items(), given, strict=True):
            if value is not None and not low <= value <= high:  # NaN is not, either
                raise ConfigError(f"{option} must be from {low:g} to {high:g}, got {_short(value)}.")

    @property
    def usable(self) -> int:
        """Bytes that are planned with."""
        return int(self.memory * (1 - KEPT_FREE))


def machine_of(
    *,
    gpus: int | None = None,
    gpu: str | None = None,
    memory: str | None = None,
    flops: float | None = None,
    utilisation: float = UTILISATION,
    sharding: Sharding = "ddp",
) -> Machine:
    """The machine that the options describe; with neither `gpus` nor `gpu`, this one.

    Args:
        gpus: how many; None is one of `gpu`, or what this machine has.
        gpu: a name of :data:`GPUS`; ``h100`` where only `gpus` is given.
        memory: of each, such as ``80GiB``; None is the named GPU's or this machine's.
        flops: operations a second of each at its best; None is the named GPU's.
        utilisation: share of them that is reached.
        sharding: what the processes share.

    Raises:
        ConfigError: a size that cannot be read, or an unknown GPU.
    """
    size = None if memory is None else parse_size(memory)
    if gpus is None and gpu is None:
        return _here(size, flops, utilisation, sharding)
    name = (gpu or "h100").lower()
    if name not in GPUS:
        raise ConfigError(f"--gpu: unknown name {gpu!r}; known: {', '.join(GPUS)}. Or give --memory and --flops.")
    gibibytes, peak = GPUS[name]
    return Machine(
        name=name.upper(),
        processes=gpus or 1,
        memory=size or gibibytes * 2**30,
        flops=flops or peak,
        utilisation=utilisation,
        sharding=sharding,
    )


def parse_size(text: str) -> int:
    """Bytes of ``80GiB``, ``80GB``, ``24G`` (as GB) or ``85899345920``.

    Raises:
        ConfigError: it is none of these.
    """
    found = re.fullmatch(r"\s*(\d{1,1000}(?:\.\d{1,1000})?)\s*([kmgt]?i?)b?\s*", text, re.IGNORECASE)
    unit = None if found is None else _UNITS.get(found[2].lower())
    size = 0 if found is None or unit is None else int(Fraction(found[1]) * unit)
    if size <= 0:
        raise ConfigError(f"--memory: {text!r} is not a size; expected such as 80GiB, 80GB or 24G.")
    return size


def gibibytes(count: float) -> str:
    """`count` bytes for a reader: GiB, or MiB below a tenth of one."""
    return f"{count / 2**30:,.1f} GiB" if count >= 2**30 / 10 else f"{count / 2**20:,.1f} MiB"


def _short(value: float) -> str:
    """A number of any size, for a message."""
    text = str(value)
    return text if len(text) <= 20 else f"a number of {len(text)} digits"


def _here(memory: int | None, flops: float | None, utilisation: float, sharding: Sharding) -> Machine:
    import psutil
    import torch

    if not torch.cuda.is_available():
        return Machine(
            name="this machine's CPU",
            processes=1,
            memory=memory or psutil.virtual_memory().total,
            flops=flops,
            utilisation=utilisation,
            sharding=sharding,
            gpu=False,
        )
    properties = torch.cuda.get_device_properties(0)
    squeezed = properties.name.lower().replace(" ", "")
    # The longest name that fits: an L40S is no L4.
    known = max((name for name in GPUS if name in squeezed), key=len, default=None)
    return Machine(
        name=properties.name,
        processes=torch.cuda.device_count(),
        memory=memory or properties.total_memory,
        flops=flops or (None if known is None else GPUS[known][1]),
        utilisation=utilisation,
        sharding=sharding,
    )


@dataclass(frozen=True, kw_only=True)
class Setup:
    """Everything that memory depends on."""

    student: "ModelFacts"
    teacher: "ModelFacts | None"
    """That is asked at every step; None where what it said is on disk."""
    loaded: "ModelFacts | None"
    """The teacher in this device's memory: the one that is asked, or one that only watches the student's own texts."""
    top_k: int | None
    batch: Batch
    lora: "LoraConfig | None"
    gradient_checkpointing: bool
    autocast: "torch.dtype | None"
    accumulation: int
    """Batches behind a step of the optimiser."""
    optim: str
    writes: bool = False
    """Whether the student answers some batches itself."""
    quantised: str | None = None
    """The type of file that the student is trained for; None is none."""


@dataclass(frozen=True, kw_only=True)
class Moment:
    """What is in memory at once, at its fullest."""

    name: str
    parts: Mapping[str, int]
    """Bytes, by :data:`PARTS`; what is zero is left out."""

    @property
    def total(self) -> int:
        """Bytes."""
        return sum(self.parts.values())


@dataclass
class MemoryPlanner:
    """Plans for changed setups of one pair; what was walked through once is kept."""

    machine: Machine
    _walked: dict[Any, Any] = field(default_factory=dict)

    def on(self, machine: Machine) -> "MemoryPlanner":
        """The same for another machine; what was walked through is shared."""
        return MemoryPlanner(machine, self._walked)

    def moments(self, setup: Setup) -> tuple[Moment, ...]:
        """The moments of a step, in order.

        Raises:
            ModelError: a model's code cannot be walked through.
            ConfigError: the states of the optimiser are not known.
        """
        fixed, gradients = self._fixed(setup)
        step = self._student(setup)
        sharded = self.machine.processes > 1 and self.machine.sharding != "ddp"
        copies, gathered = self._sharded(setup) if sharded else (0, 0)
        held = gradients if setup.accumulation > 1 else 0
        share = self.machine.processes if sharded else 1
        head = _head_gradient(setup)
        found = []
        left = 0
        if setup.teacher is not None and setup.loaded is not None:
            peak, left = self._teacher(setup)
            found.append(_moment("teacher", fixed, gradients=held // share, activations=peak))
        if setup.writes:
            # Rounded weights are kept while it writes.
            kept = 0 if setup.quantised is None else fixed["student weights"]
            found.append(
                _moment(
                    "writing", fixed, gradients=held // share, activations=_writing(setup) + kept, gathered=gathered
                )
            )
        # The head's gradient is there from the loss on.
        at_loss = step.at_loss + left - copies
        loss = self._loss(setup, free=self.machine.memory - sum(fixed.values()) - held // share - at_loss)
        full = max(step.forward - copies, at_loss + loss + head)
        before_loss = full != at_loss + loss + head
        found.append(
            _moment(
                "loss",
                fixed,
                gradients=held // share + (0 if before_loss else head),
                activations=full if before_loss else at_loss,
                loss=0 if before_loss else loss,
                gathered=gathered,
            )
        )
        # Under checkpointing the copies are gone when the backward begins.
        start = step.backward_start - head - (0 if setup.gradient_checkpointing else copies)
        new = 0 if held else gradients
        last_layer = gathered // 2 if sharded else 0
        end = max(step.backward_end - new, 0) + last_layer
        early = start + head >= end + new // share
        found.append(
            _moment(
                "backward",
                fixed,
                gradients=held // share + (head if early else new // share),
                activations=start if early else end,
                gathered=gathered,
            )
        )
        found.append(_moment("update", fixed, gradients=gradients // share, activations=self._update(setup) // share))
        return tuple(found)

    def _fixed(self, setup: Setup) -> tuple[dict[str, int], int]:
        """What is there all the time, and the bytes of all gradients, unsharded."""
        student = setup.student
        key = "fixed", setup.lora is None
        if key not in self._walked:
            weights = parameter_count(meta_model(student.config))
            self._walked[key] = weights, *trained_parameters(student, setup.lora)
        weights, trained, size = self._walked[key]
        processes = self.machine.processes
        share = processes if self.machine.sharding != "ddp" else 1
        gradients = trained * size
        parts = {
            "student weights": weights * student.dtype.itemsize // share,
            "adapters": 0 if setup.lora is None else gradients // share,
            "optimiser states": optimizer_bytes(trained, size, setup.optim) // share,
        }
        if setup.loaded is not None:
            parts["teacher weights"] = self._teacher_weights(setup.loaded)
        if processes > 1 and self.machine.sharding == "ddp":
            # DistributedDataParallel copies gradients into buckets that it sends.
            parts["DDP buckets"] = gradients
        return parts, gradients

    def parameters(self, setup: Setup) -> tuple[int, int]:
        """Of the student: all, and those that are trained."""
        self._fixed(setup)
        weights, trained, _ = self._walked["fixed", setup.lora is None]
        return weights, trained

    def teacher_parameters(self, teacher: "ModelFacts") -> int:
        """Of the pair's teacher."""
        if "teacher parameters" not in self._walked:
            self._walked["teacher parameters"] = parameter_count(meta_model(teacher.config))
        return self._walked["teacher parameters"]

    def _teacher_weights(self, teacher: "ModelFacts") -> int:
        """Bytes."""
        if "teacher weights" not in self._walked:
            self._walked["teacher weights"] = weight_bytes(teacher)
        return self._walked["teacher weights"]

    def _student(self, setup: Setup) -> StepMemory:
        arguments: dict[str, Any] = {
            "gradient_checkpointing": setup.gradient_checkpointing,
            "autocast": setup.autocast,
            "accumulates": setup.accumulation > 1,
            "quantised": setup.quantised,
        }
        key = "student", setup.batch, setup.lora is None, *arguments.values()
        if key not in self._walked:
            self._walked[key] = student_memory(
                setup.student.config, setup.student.dtype, setup.batch, lora=setup.lora, **arguments
            )
        return self._walked[key]

    def _teacher(self, setup: Setup) -> tuple[int, int]:
        assert setup.teacher is not None
        key = "teacher", setup.batch
        if key not in self._walked:
            self._walked[key] = teacher_memory(setup.teacher.config, setup.teacher.dtype, setup.batch)
        return self._walked[key]

    def _loss(self, setup: Setup, *, free: int) -> int:
        return loss_bytes(
            setup.teacher,
            setup.student,
            positions=setup.batch.supervised,
            device_type="cuda" if self.machine.gpu else "cpu",
            top_k=setup.top_k,
            half=setup.autocast is not None or setup.student.dtype.itemsize == 2,
            head_is_trained=setup.lora is None,
            free=max(free, 0) if self.machine.gpu else None,
        )

    def _update(self, setup: Setup) -> int:
        """``adamw_torch`` on a GPU makes a copy of its second moments; the fused one does not."""
        _, trained, size = self._walked["fixed", setup.lora is None]
        return trained * size if self.machine.gpu and setup.optim == "adamw_torch" else 0

    def _sharded(self, setup: Setup) -> tuple[int, int]:
        """Copies under autocast that a sharded model does not keep, and what it gathers: two layers, and the rest."""
        text: Any = setup.student.config.get_text_config()
        weights = self.parameters(setup)[0]
        rest = setup.student.width * text.hidden_size * (1 if text.tie_word_embeddings else 2)
        layer = (weights - rest) // text.num_hidden_layers
        half = setup.autocast is not None
        size = 2 if half else setup.student.dtype.itemsize
        copies = 2 * (weights - rest) if half and setup.student.dtype.itemsize == 4 else 0
        return copies, size * (2 * layer + rest)


def _head_gradient(setup: Setup) -> int:
    """Float32, of V times D numbers."""
    if setup.lora is not None:
        return 0
    return 4 * setup.student.width * setup.student.config.get_text_config().hidden_size


def _writing(setup: Setup) -> int:
    """Keys and values of every token read or written, and three float32 rows of logits a text."""
    text: Any = setup.student.config.get_text_config()
    width = getattr(text, "head_dim", None) or text.hidden_size // text.num_attention_heads
    heads = getattr(text, "num_key_value_heads", None) or text.num_attention_heads
    size = 2 if setup.autocast is not None else setup.student.dtype.itemsize
    keys_and_values = 2 * heads * width * text.num_hidden_layers * size * setup.batch.rows * setup.batch.length
    return keys_and_values + 3 * 4 * setup.batch.rows * setup.student.width


def _moment(
    name: str, fixed: Mapping[str, int], *, gradients: int = 0, activations: int = 0, loss: int = 0, gathered: int = 0
) -> Moment:
    parts = {
        **fixed,
        "gradients": gradients,
        "activations": max(activations, 0),
        "loss": loss,
        "layers gathered": gathered,
    }
    return Moment(name=name, parts={part: parts[part] for part in PARTS if parts.get(part)})
