"""What each layer, group of heads and channel does to a model's own texts, measured in one pass without gradient."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import cosine_similarity

from bridgegarden.causal_lm import decoder_of, input_device
from bridgegarden.errors import ModelError
from bridgegarden.objective.alignment import SupervisedPositions
from bridgegarden.pruning.shape import Shape

if TYPE_CHECKING:
    from transformers import PreTrainedModel

Row = tuple[Sequence[int], Sequence[int]]
"""Token ids of a text, and its labels, -100 where nothing is learnt."""


@dataclass(frozen=True, kw_only=True)
class Importance:
    """What is lost with each part of a model; larger is more."""

    layers: Float[Tensor, "L"]
    """Influence of a layer, in [0, 2]: one minus the cosine between the residual stream before and after it."""
    groups: Float[Tensor, "L G"]
    """Norm of what a group of heads says: of all query heads that share keys and values."""
    channels: Float[Tensor, "L C"]
    """Norm of a channel of the MLP."""


def measure(
    model: "PreTrainedModel", rows: Iterable[Row], on_row: Callable[[int], None] = lambda done: None
) -> Importance:
    r"""The importance of every part of `model`, over `rows`, each read alone.

    Of a layer its block influence at the last token that is learnt from, the mean over rows; :math:`x` is the residual
    stream where the row's last label is predicted:

    .. math:: I_\ell = 1 - \operatorname{mean}_{rows} \cos(x_\ell, x_{\ell + 1})

    Of a group of heads and of a channel the norm of its activation :math:`a` (before the projection back into the
    stream), the mean over positions and then the Euclidean norm over rows:

    .. math:: s = \sqrt{\textstyle\sum_{rows} (\operatorname{mean}_t \lVert a_t \rVert_2)^2}

    Args:
        model: of an architecture in :data:`~bridgegarden.pruning.shape.ARCHITECTURES`.
        rows: texts, each with at least one label after its first token.
        on_row: called with the number of rows that are done.

    Returns:
        Float64, on the CPU.

    Raises:
        ModelError: an activation is not finite.

    References:
        Men et al., 2024, arXiv:2403.03853, equation 1 (block influence); Gromov et al., 2024, arXiv:2403.17887,
        equation 7 (at the last token); Muralidharan et al., 2024, arXiv:2407.14679, section 2.2 (heads and neurons,
        mean over the sequence and L2 over the batch).
    """
    shape = Shape.of(model.config)
    streams: list[Tensor] = []
    said: list[Tensor] = []
    inside: list[Tensor] = []
    sums = [torch.zeros(shape.layers, width, dtype=torch.float64) for width in (1, shape.groups, shape.channels)]
    done = 0
    with _watching(model, streams, said, inside), torch.no_grad():
        for ids, labels in rows:
            for kept in (streams, said, inside):
                kept.clear()
            model(input_ids=torch.tensor([ids], device=input_device(model)), use_cache=False)
            last = int(SupervisedPositions.from_labels(torch.tensor([labels])).column[-1])
            at = [stream[0, last].double().cpu() for stream in streams]
            moved = [1 - cosine_similarity(before, after, dim=0) for before, after in pairwise(at)]
            norms = [one[0].double().unflatten(-1, (shape.groups, -1)).norm(dim=-1).mean(0).cpu() for one in said]
            sizes = [one[0].double().abs().mean(0).cpu() for one in inside]
            sums[0] += torch.stack(moved)[:, None]
            sums[1] += torch.stack(norms).square()
            sums[2] += torch.stack(sizes).square()
            done += 1
            on_row(done)
    if not all(total.isfinite().all() for total in sums):
        raise ModelError("an activation is not finite, so that layers cannot be told apart by what they do.")
    return Importance(layers=sums[0][:, 0] / max(done, 1), groups=sums[1].sqrt(), channels=sums[2].sqrt())


@contextmanager
def _watching(
    model: "PreTrainedModel", streams: list[Tensor], said: list[Tensor], inside: list[Tensor]
) -> Iterator[None]:
    """Keep the residual stream before every layer and behind the last; what heads and channels say, layer by layer."""
    decoder: Any = decoder_of(model)

    def into(kept: list[Tensor]) -> Callable[..., None]:
        def hook(module: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            kept.append(args[0] if args else kwargs["hidden_states"])

        return hook

    watched = [*((layer, streams) for layer in decoder.layers), (decoder.norm, streams)]
    watched += [(layer.self_attn.o_proj, said) for layer in decoder.layers]
    watched += [(layer.mlp.down_proj, inside) for layer in decoder.layers]
    with ExitStack() as stack:
        for module, kept in watched:
            stack.callback(module.register_forward_pre_hook(into(kept), with_kwargs=True).remove)
        yield


def most_important(scores: Float[Tensor, "N"], count: int) -> tuple[int, ...]:
    """The numbers of the `count` largest of `scores`, in their own order; of equals the first."""
    ranked = torch.sort(scores, descending=True, stable=True).indices[:count]
    return tuple(sorted(ranked.tolist()))
