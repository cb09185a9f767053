"""FSDP2 on two processes: the hybrid loss of a sharded student beside one process's on the joined batch."""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
import torch.distributed as dist
from peft import LoraConfig, get_peft_model
from torch import Tensor
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import PreTrainedModel

from bridgegarden.causal_lm import add_hidden_loss, head_of
from bridgegarden.errors import ModelError
from bridgegarden.objective.alignment import SupervisedPositions
from bridgegarden.objective.divergences import DIVERGENCES, alpha_beta
from bridgegarden.objective.fused import TeacherSource, fused_hybrid_loss
from bridgegarden.objective.head import selected_logits
from bridgegarden.objective.hybrid import HybridObjective
from bridgegarden.objective.soft_weight import EntropyWeight, TrainProgress
from bridgegarden.objective.support import TeacherSignal
from bridgegarden.teacher.live import LiveTeacher
from tests.objective.presets import MECHANISMS
from tests.tiny import VOCABULARY, Family, tiny_model

Layout = Literal["root", "head alone", "norm and head"]
"""Which group of weights the head is in: the root's; its own; the final norm's, as accelerate does it. The embedding
is in the same one if it is tied."""
ROWS, LENGTH = 8, 14


@dataclass(frozen=True, kw_only=True)
class ShardedCase:
    """What is sharded, and what is computed of it."""

    objective: HybridObjective
    family: Family = "llama"
    layout: Layout = "root"
    teacher: Literal["whole", "sharded", "sharded, given back", "signals"] = "whole"
    masked: bool = False
    """Whether the second process has no supervised token."""
    backwards: int = 1
    adapters: bool = False
    checkpointing: bool = False
    precision: Literal["float32", "autocast", "policy"] = "float32"
    loss: Literal["hybrid", "selected"] = "hybrid"
    counted: bool = False
    """Whether gathers are counted, in one chunk and in many."""


STATIC = HybridObjective.preset("risk_guided", hard_target="data")
LAYOUTS: tuple[tuple[Family, Layout], ...] = (
    ("llama", "root"),
    ("llama", "head alone"),
    ("llama", "norm and head"),
    ("qwen2", "root"),
    ("qwen2", "norm and head"),
)
"""Llama's embedding is not tied, Qwen2's is."""


def cases() -> dict[str, ShardedCase]:
    """Every case by its name."""
    found = {}
    for family, layout in LAYOUTS:
        where = f"{family}, {layout}"
        base = ShardedCase(objective=STATIC, family=family, layout=layout)
        found |= {
            f"{where}: gathers": replace(base, counted=True),
            f"{where}: masked": replace(base, masked=True),
            f"{where}: selected logits": replace(base, loss="selected"),
            f"{where}: bfloat16 policy": replace(base, precision="policy"),
        }
        if layout == "norm and head":
            found |= {
                f"{where}: accumulated": replace(base, backwards=2),
                f"{where}: checkpointing": replace(base, checkpointing=True),
                f"{where}: autocast": replace(base, precision="autocast"),
                f"{where}: adapters": replace(base, adapters=True, checkpointing=True),
                f"{where}: teacher sharded": replace(base, teacher="sharded"),
            }
    for family, layout in (("llama", "norm and head"), ("qwen2", "root")):
        for preset in MECHANISMS:
            objective = HybridObjective.preset(preset)
            found[f"{family}, {layout}: {preset}"] = ShardedCase(objective=objective, family=family, layout=layout)
    base = ShardedCase(objective=STATIC, layout="norm and head")
    found["gemma2, norm and head: soft-capped"] = replace(base, family="gemma2")
    found["llama, norm and head: teacher given back"] = replace(base, teacher="sharded, given back")
    found["llama, norm and head: signals"] = replace(base, teacher="signals")
    found["llama, norm and head: power entropy, temperature 2"] = replace(
        base,
        objective=HybridObjective(soft_weight=EntropyWeight(kind="power", gamma=0.1), temperature=2.0, risk_alpha=0.1),
    )
    for name, function in DIVERGENCES.items():
        divergence: Any = (lambda p, q: alpha_beta(p, q, 0.7, 0.4)) if name == "alpha_beta" else function
        found[f"llama, norm and head: {name}"] = replace(base, objective=HybridObjective(divergence=divergence))
    return found


def run(mesh: DeviceMesh) -> Iterator[tuple[str, dict[str, Any]]]:
    """Every case's name and numbers; on every process alike, for all take part."""
    for name, case in cases().items():
        try:
            yield name, _measure(case, mesh)
        except Exception as error:
            # Both processes fail alike or the collectives time out; the test shows it.
            yield name, {"error": f"{type(error).__name__}: {error}"}
    yield "outside the forward", {"error": _outside_the_forward(mesh)}


def _measure(case: ShardedCase, mesh: DeviceMesh) -> dict[str, Any]:
    rank = dist.get_rank()
    ids, labels = _batch(case.masked)
    items = int((labels[:, 1:] != -100).sum())
    expected = _student(case)
    expected_loss = sum(_step(expected, _teacher(case, None), case, ids, labels, items) for _ in range(case.backwards))
    own = slice(rank * ROWS // 2, (rank + 1) * ROWS // 2)
    sharded, teacher = shard(_student(case), case, mesh), _teacher(case, mesh)
    loss = torch.zeros(())
    for _ in range(case.backwards):
        loss += _step(sharded, teacher, case, ids[own], labels[own], items, dist.get_world_size())
    dist.all_reduce(loss)
    return {
        "loss": loss.item(),
        "expected_loss": float(expected_loss),
        "gradient_error": _gradient_error(sharded, expected),
        "positions": _everywhere(int((labels[own][:, 1:] != -100).sum())),
        # Last: what a forward leaves whole has no gradient.
        "gathers": [_gathers(sharded, case, ids[own], labels[own], chunk) for chunk in (10_000, 2) if case.counted],
    }


def _batch(masked: bool) -> tuple[Tensor, Tensor]:
    """Rows of which the second half has fewer supervised tokens than the first, or none."""
    generator = torch.Generator().manual_seed(5)
    ids = torch.randint(0, 250, (ROWS, LENGTH), generator=generator)
    labels = ids.clone()
    for row in range(ROWS):
        labels[row, : 2 + row] = -100
    if masked:
        labels[ROWS // 2 :] = -100
    return ids, labels


def _student(case: ShardedCase) -> Any:
    model = tiny_model(case.family, 264, seed=2)
    add_hidden_loss(model)
    if case.adapters:
        torch.manual_seed(3)
        lora = LoraConfig(r=4, target_modules=["q_proj", "down_proj"], init_lora_weights=False)
        model = get_peft_model(model, lora)
    if case.checkpointing:
        inner = model.get_base_model() if case.adapters else model
        inner.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
        if case.adapters:
            inner.enable_input_require_grads()
    return model.train()


def shard(model: Any, case: ShardedCase, mesh: DeviceMesh, **options: Any) -> Any:
    """`model` by FSDP2: each layer, what the case's layout says, the rest."""
    options |= {"mesh": mesh}
    if case.precision == "policy":
        options["mp_policy"] = MixedPrecisionPolicy(param_dtype=torch.bfloat16, reduce_dtype=torch.float32)
    inner: Any = model.get_base_model() if hasattr(model, "get_base_model") else model
    for layer in inner.model.layers:
        fully_shard(layer, **options)
    embedding, head = inner.get_input_embeddings(), inner.get_output_embeddings()
    tied = embedding.weight is head.weight
    if case.layout == "head alone":
        fully_shard(head, **options)
    elif case.layout == "norm and head":
        if not tied:
            fully_shard(embedding, **options)
        group = [inner.model.norm, *([embedding] if tied else []), head]
        fully_shard(group, **(options | {"reshard_after_forward": False}))
    return fully_shard(model, **options)


def _teacher(case: ShardedCase, mesh: DeviceMesh | None) -> LiveTeacher | None:
    """The live teacher, sharded where the case says so and a mesh is given; None where its signals are kept."""
    if case.teacher == "signals":
        return None
    model = tiny_model("llama", 270, hidden_size=48, seed=1)
    if mesh is not None and case.teacher != "whole":
        options = {"reshard_after_forward": True} if case.teacher == "sharded, given back" else {}
        shard(model, replace(case, precision="float32", layout="root"), mesh, **options)
    return LiveTeacher(model)


def _signals(positions: SupervisedPositions, ids: Tensor) -> TeacherSignal:
    """What a cache holds: a few tokens of a distribution that depends on the token read alone."""
    table = torch.randn(256, 270, generator=torch.Generator().manual_seed(7))
    return TeacherSignal.from_logits(table[positions.of(ids)], 8, VOCABULARY)


def _loss(
    model: Any, teacher: LiveTeacher | None, case: ShardedCase, ids: Tensor, labels: Tensor, items: int, chunk: int
) -> Tensor:
    positions = SupervisedPositions.from_labels(labels)
    source: TeacherSource
    if teacher is None:
        source = _signals(positions, ids)
    else:
        exponents = case.objective.exponents
        source = teacher.at(positions, {"input_ids": ids}, vocab_size=VOCABULARY, exponents=exponents)

    def hybrid(hidden: Tensor, head: Any) -> dict[str, Tensor]:
        fused = fused_hybrid_loss(
            positions.of(hidden),
            head,
            source,
            positions.target,
            positions.has_successor,
            case.objective,
            num_items=items,
            progress=TrainProgress(1, 4),
            chunk_tokens=chunk,
        )
        return {"loss": fused.loss}

    def selected(hidden: Tensor, head: Any) -> dict[str, Tensor]:
        found = selected_logits(
            positions.of(hidden), head.weight, positions.target.unsqueeze(1), chunk_tokens=chunk, softcap=head.softcap
        )
        return {"loss": (found.log_normaliser - found.logits[:, 0]).sum() / items}

    with torch.autocast("cpu", torch.bfloat16, enabled=case.precision == "autocast"):
        return model(input_ids=ids, hidden_loss=hybrid if case.loss == "hybrid" else selected)["loss"]


def _step(
    model: Any,
    teacher: LiveTeacher | None,
    case: ShardedCase,
    ids: Tensor,
    labels: Tensor,
    items: int,
    processes: int = 1,
) -> Tensor:
    """Forward and backward; FSDP averages over processes what is divided by the tokens of all."""
    loss = _loss(model, teacher, case, ids, labels, items, 16)
    (loss * processes).backward()
    return loss.detach()


def _gathers(model: Any, case: ShardedCase, ids: Tensor, labels: Tensor, chunk: int) -> list[int]:
    """All-gathers of a forward that a backward can follow, and of one without gradient."""
    counts, teacher = [], _teacher(case, None)
    for with_gradient in (True, False):
        for module in model.modules():
            if isinstance(module, FSDPModule):
                module.reshard()
        with AllGathers() as gathers, torch.set_grad_enabled(with_gradient):
            _loss(model, teacher, case, ids, labels, 1, chunk).detach()
        counts.append(gathers.count)
    return counts


class AllGathers(TorchDispatchMode):
    """Counts them, whoever makes them."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if any(issubclass(kind, DTensor) for kind in types):
            # What it does is made of ordinary tensors, which are seen below.
            return NotImplemented
        self.count += func.name() in ("c10d::_allgather_base_", "_c10d_functional::all_gather_into_tensor")
        return func(*args, **(kwargs or {}))


def _gradient_error(sharded: Any, expected: Any) -> float:
    """The norm of the difference of all gradients over the norm of the expected one; infinite if one is missing."""
    difference, norm = 0.0, 0.0
    for (name, ours), (other, theirs) in zip(sharded.named_parameters(), expected.named_parameters(), strict=True):
        assert name == other
        assert ours.requires_grad == theirs.requires_grad
        if not theirs.requires_grad:
            continue
        if ours.grad is None or theirs.grad is None:
            return float("inf")
        assert isinstance(ours.grad, DTensor)
        difference += (ours.grad.full_tensor().double() - theirs.grad.double()).square().sum().item()
        norm += theirs.grad.double().square().sum().item()
    return (difference / norm) ** 0.5


def _everywhere(value: int) -> list[int]:
    values: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(values, value)
    return values


def _outside_the_forward(mesh: DeviceMesh) -> str:
    """What is said to somebody who reads a sharded head by himself and wants its gradient."""
    case = ShardedCase(objective=STATIC)
    model: PreTrainedModel = shard(_student(case), case, mesh)
    try:
        head_of(model)
    except ModelError as error:
        return str(error)
    return ""
