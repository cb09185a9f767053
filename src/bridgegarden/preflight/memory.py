"""How much memory a run takes, from configurations alone: parameters are counted exactly, on the meta device."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from bridgegarden.errors import ConfigError, foreign, quoted
from bridgegarden.objective.head import default_chunk_tokens
from bridgegarden.preflight.models import ModelFacts, meta_model, parameter_count
from bridgegarden.table import Table

if TYPE_CHECKING:
    import torch
    from peft import LoraConfig

LOSS_BUFFERS = {"dense": 6, "top_k": 3, "cached": 2}
"""Float32 buffers of the size of a chunk's logits that are alive at once, counted in the code of the loss: with the
teacher's whole vocabulary, with its top k taken from its logits, with what it said read from disk."""
CAPPED_BUFFERS = 4
"""At least so many where the student's logits are capped (Gemma 2)."""


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

    def table(self) -> Table:
        """For the terminal."""
        rows = [
            *(
                [part.name, "" if part.parameters is None else f"{part.parameters:,}", gigabytes(part.bytes)]
                for part in self.parts
            ),
            ["sum; activations come on top", "", gigabytes(self.total)],
            [f"{self.device} has", "", gigabytes(self.available)],
        ]
        return Table(columns=["what", "parameters", "memory"], rows=rows, title="Memory, estimated", last=2)


def estimate_memory(
    teacher: ModelFacts | None,
    student: ModelFacts,
    *,
    positions: int,
    lora: "LoraConfig | None" = None,
    use_cpu: bool = False,
    teacher_cached: bool = False,
    top_k: int | None = None,
    others: Sequence[ModelFacts] = (),
) -> MemoryEstimate:
    """The estimate for training `student` with AdamW against `teacher`.

    Args:
        teacher: the model that is asked at every step; None where it is on a server.
        student: the model that is trained.
        positions: tokens of a batch at most.
        lora: adapters to train in place of all weights.
        use_cpu: whether the run is kept off accelerators.
        teacher_cached: whether what `teacher` says is read from disk.
        top_k: tokens that are kept of what a model in memory says; None is all.
        others: further teachers, asked as `teacher` is.
    """
    weights = parameter_count(meta_model(student.config))
    trained, trained_size = trained_parameters(student, lora)
    asked = None if teacher_cached else teacher
    parts = [
        MemoryPart(
            name=_weights_name("student", student.dtype), parameters=weights, bytes=weights * student.dtype.itemsize
        ),
        MemoryPart(name="gradients", parameters=trained, bytes=trained * trained_size),
        MemoryPart(name="optimizer states (AdamW)", parameters=trained, bytes=optimizer_bytes(trained, trained_size)),
        *([] if asked is None else [_weights(one) for one in (asked, *others)]),
    ]
    if lora is not None:
        parts.insert(1, MemoryPart(name="adapters (float32)", parameters=trained, bytes=trained * trained_size))
    device, available = _device(use_cpu)
    kind = _device_type(use_cpu)
    free = None if kind == "cpu" else max(available - sum(part.bytes for part in parts), 0)
    chunk = loss_bytes(asked, student, positions=positions, device_type=kind, top_k=top_k, free=free)
    parts.append(MemoryPart(name="loss, a chunk of logits", parameters=None, bytes=chunk))
    return MemoryEstimate(parts=tuple(parts), available=available, device=device)


def trained_parameters(student: ModelFacts, lora: "LoraConfig | None") -> tuple[int, int]:
    """How many numbers are trained, and the bytes of each: adapters are float32 whatever the weights under them are."""
    if lora is not None:
        return _adapter_parameters(student, lora), 4
    return parameter_count(meta_model(student.config)), student.dtype.itemsize


def optimizer_bytes(parameters: int, size: int, optim: str = "adamw_torch_fused") -> int:
    """States of an optimiser.

    Args:
        parameters: how many are trained.
        size: bytes of each.
        optim: transformers' name of the optimiser.

    Raises:
        ConfigError: the states of this optimiser are not known here.
    """
    if "8bit" in optim and optim.startswith(("adamw", "paged_adamw")):
        return 2 * parameters
    if optim.startswith("adamw_torch") or optim in ("adamw_apex_fused", "adamw_bnb", "paged_adamw", "adamw_hf"):
        return 2 * parameters * size
    if optim == "sgd":
        return 0
    raise ConfigError(
        f"training.optim: {optim!r}, whose states cannot be planned; known: adamw_torch, adamw_torch_fused, "
        "adamw_8bit, paged_adamw_8bit, sgd."
    )


def loss_bytes(
    teacher: ModelFacts | None,
    student: ModelFacts,
    *,
    positions: int,
    device_type: str,
    top_k: int | None = None,
    half: bool = False,
    head_is_trained: bool = True,
    free: int | None = None,
) -> int:
    r"""What the loss takes while a chunk's logits exist: flat, however many positions there are.

    .. math:: \max(4 b c V + 2 h V D,\; 4 (2 + h / 2) c V + 4 h V D)

    b buffers (:data:`LOSS_BUFFERS`) of c positions; h is 1 where products are made in 16 bits and the head's weights
    have 32, so that they are copied, and each chunk's gradient of them, too. The whole gradient of the head is float32
    and comes on top, 4 V D.

    Args:
        teacher: the model that is asked; None where what it said is read from disk.
        student: the model that is trained.
        positions: supervised positions of the batch at most.
        device_type: ``cpu``, where chunks are smaller, or another.
        top_k: tokens that are kept of what `teacher` says; None is all.
        half: whether products are made in 16 bits.
        head_is_trained: whether the head has a gradient.
        free: bytes of a GPU that are left when the loss begins; a chunk is larger where there are more.
    """
    text: Any = student.config.get_text_config()
    kind = "cached" if teacher is None else "dense" if top_k is None else "top_k"
    buffers = LOSS_BUFFERS[kind]
    if getattr(text, "final_logit_softcapping", None) is not None:
        buffers = max(buffers, CAPPED_BUFFERS)
    width = max(student.width, 0 if teacher is None else teacher.width)
    chunk = 4 * min(positions, default_chunk_tokens(student.width, device_type, free)) * width
    head = student.width * text.hidden_size
    copy = 2 * head if half and student.dtype.itemsize == 4 else 0
    product = (2 * head if half else 0) if head_is_trained else 0
    return max(buffers * chunk + copy, (2 * chunk + (chunk // 2 if half else 0)) + copy + product)


def gigabytes(count: int) -> str:
    """`count` bytes for a reader: GB, or MB below one."""
    return f"{count / 1e9:.1f} GB" if count >= 1e9 else f"{count / 1e6:.1f} MB"


def _weights(teacher: ModelFacts) -> MemoryPart:
    count = parameter_count(meta_model(teacher.config))
    if teacher.reference.device_map is not None:
        return MemoryPart(name="teacher weights, where teacher.device_map has them", parameters=count, bytes=0)
    return MemoryPart(name=_weights_name("teacher", teacher.dtype), parameters=count, bytes=weight_bytes(teacher))


BLOCK, DOUBLE_BLOCK = 64, 256
"""bitsandbytes: weights of four bits with one scale, and scales that are rounded together."""


def weight_bytes(teacher: ModelFacts) -> int:
    """What the weights of `teacher` take once they are loaded, rounded by bitsandbytes or torchao if it is to be.

    Only linear layers are rounded, and not the head: to four bits with a float32 scale for :data:`BLOCK` of them (with
    double quantisation eight bits, and a float32 for :data:`DOUBLE_BLOCK` of those), or to eight with one for each
    output (torchao's is of the teacher's type). What a checkpoint that is rounded already takes is not known here; it
    is counted whole.
    """
    import torch

    model, settings = meta_model(teacher.config), teacher.reference.quantization
    whole = parameter_count(model) * teacher.dtype.itemsize
    if settings is None:
        return whole
    head = model.get_output_embeddings()
    for layer in model.modules():
        if not isinstance(layer, torch.nn.Linear) or layer is head:
            continue
        count = layer.weight.numel()
        whole -= count * teacher.dtype.itemsize
        if settings.get("load_in_8bit") or "quant_type" in settings:
            scale = 4 if settings.get("load_in_8bit") else teacher.dtype.itemsize
            whole += count + scale * layer.out_features
            continue
        scales = -(-count // BLOCK)
        rounded = settings.get("bnb_4bit_use_double_quant")
        whole += -(-count // 2) + (scales + 4 * -(-scales // DOUBLE_BLOCK) if rounded else 4 * scales)
    return whole


def _weights_name(role: str, dtype: "torch.dtype") -> str:
    return f"{role} weights ({str(dtype).removeprefix('torch.')})"


def _adapter_parameters(student: ModelFacts, lora: "LoraConfig") -> int:
    from peft import inject_adapter_in_model
    from peft.tuners.tuners_utils import BaseTunerLayer

    model: Any = meta_model(student.config)
    place = "student.lora.target_modules"
    with foreign(lambda words: ConfigError(f"{place}: {quoted(_targets(lora))} cannot be adapted: {words}.")):
        inject_adapter_in_model(lora, model, low_cpu_mem_usage=True)
    if isinstance(model.get_output_embeddings(), BaseTunerLayer):
        raise ConfigError(f"{place}: the head ({quoted(_targets(lora))}) has no adapters here; leave it out.")
    return sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)


def _targets(lora: "LoraConfig") -> str | list[str]:
    modules = lora.target_modules
    return modules if isinstance(modules, str) else sorted(modules or ())


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
