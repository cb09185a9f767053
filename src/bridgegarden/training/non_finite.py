"""What to say when a loss, gradient or weight is not a number: the step, the term, the rows, and what to do."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from bridgegarden.errors import NonFiniteError
from bridgegarden.objective.alignment import SupervisedPositions
from bridgegarden.objective.fused import FusedLoss
from bridgegarden.sharded_head import gathered_by_zero

ADVICE = {
    "teacher_entropy": "The teacher's own distribution is not finite: load it in bfloat16 or float32 (teacher.dtype).",
    "soft_loss": "The divergence is infinite where one side has no mass; see the chosen divergence's documentation.",
    "hard_loss": "The student's logits are not finite: lower the learning rate or check the student's weights.",
    "risk_loss": "The risk term squares the student's logits: lower objective.risk_alpha or the learning rate.",
    "soft_weight": "The rule for the soft weight gave no number.",
    "loss": "The terms are finite one by one, but not their sum.",
}
"""By term, in the order in which they are looked at: the first that is not finite is the cause of the later ones."""


def non_finite_loss(step: str, fused: FusedLoss, positions: SupervisedPositions, rows: Tensor | None) -> NonFiniteError:
    """The error for a loss that is not finite.

    Args:
        step: which step it is.
        fused: the loss and its terms.
        positions: where they were computed.
        rows: ``(B, T)`` row of the data that each token came from, if known.
    """
    terms = fused.terms
    values = (fused.teacher_entropy, terms.soft, terms.hard, terms.risk, terms.soft_weight, terms.total)
    for (name, advice), value in zip(ADVICE.items(), values, strict=True):
        bad = (~torch.isfinite(value)).nonzero().flatten()
        if bad.numel():
            where = _where(rows, positions.row[bad], positions.column[bad])
            found = f"{name} is {value[bad[0]].item()} at {bad.numel()} of {len(positions)} positions"
            return NonFiniteError(f"{step}: {found}, {where}. {advice}")
    return NonFiniteError(f"{step}: the loss is {fused.loss.item()}, though every position's is finite.")


def non_finite_gradient(step: str, norm: float, rows: Sequence[Tensor]) -> NonFiniteError:
    """The error for a gradient norm that is not finite, with the `rows` of the step's batches."""
    ids = sorted({int(row) for batch in rows for row in batch.unique().tolist() if row >= 0})
    return NonFiniteError(
        f"{step}: the gradient norm is {norm} although the loss is finite; rows of this step: {ids or 'unknown'}. The "
        "student was not updated. Lower the learning rate, or train in bfloat16 or float32 rather than float16."
    )


def check_finite_weights(model: nn.Module, step: int) -> None:
    """Make sure that every weight that was trained is a number, before any is saved.

    A gradient can be finite and its update not; after the last step no loss would tell.

    Args:
        model: its parameters may be sharded; each process looks at its own part.
        step: the step after which they are saved.

    Raises:
        NonFiniteError: names the first that is not finite.
    """
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        with gathered_by_zero([parameter]):
            weight = parameter.detach()
            weight = weight.to_local() if isinstance(weight, DTensor) else weight
            # In one pass without memory of its own, unlike a mask.
            if weight.numel() == 0 or torch.isfinite(torch.stack(torch.aminmax(weight))).all():
                continue
            bad = weight.numel() - int(torch.isfinite(weight).sum())
            raise NonFiniteError(
                f"step {step}: {bad:,} of the {weight.numel():,} weights of {name} are not finite after the update, so "
                "nothing was saved. Lower training.learning_rate; what was saved before is as it was."
            )


def _where(rows: Tensor | None, row: Tensor, column: Tensor) -> str:
    if rows is None:
        return f"first at position {int(column[0])} of sequence {int(row[0])} of the batch"
    ids = sorted(set(rows[row, column].tolist()))
    shown = ", ".join(map(str, ids[:8])) + (", ..." if len(ids) > 8 else "")
    return f"rows of the data: {shown} (first at position {int(column[0])} of its sequence)"
