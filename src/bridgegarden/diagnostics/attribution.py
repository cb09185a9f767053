r"""Where exposure bias comes from: each position's share, by the identity that ties it to kappa.

.. math:: L_{d_\theta} - L_{d_T}
          = \sum_t E_{s_t \sim d_\theta} \Big[ \sum_a q(a|s_t) \kappa(a|s_t) \Big]
          = \sum_t E_{s_t \sim d_\theta} \Big[ \sum_a (q - p)(a|s_t) \, Q(s_t,a) \Big]

(the performance-difference identity; summed loss, same horizon, both sides at the temperature of the roll-outs). With
v(s) the total variation distance of p and q, the inner sum is :math:`v(s) \, E[Q(s,a) - Q(s,a')]` for a drawn from
:math:`(q-p)_+ / v` and a' from :math:`(p-q)_+ / v`: where the models agree nothing is spent. Positions of a student's
text are drawn in proportion to v, which makes every draw weigh the same: the text's share is the sum of its v times
the mean of the differences, without bias. Both continuations of a draw use the same random numbers.

A range in which no draw happened to cost anything is not known to cost nothing. But v is known at every position, so
the error of a range has a floor: as many of its draws as chance may hide could have cost what the costliest draw did.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, NamedTuple

import torch
from torch import Tensor

from bridgegarden.diagnostics.exposure_bias import ExposureBias
from bridgegarden.diagnostics.kappa import Actions, continue_from
from bridgegarden.diagnostics.rollout import DEFAULT_MAX_ROWS, RollOuts, draw_by_weight, tempered
from bridgegarden.errors import ConfigError
from bridgegarden.objective.divergences import Divergence, forward_kl
from bridgegarden.policy import Policy
from bridgegarden.statistics import CONFIDENCE, ROUNDING, Estimate, to_plain

POSITION_BINS = 10
"""Most ranges of positions in an attribution."""
CONFIDENCE_EDGES = (0.0, 0.5, 0.9, 0.99, 1.0)
"""Ranges of the teacher's largest probability."""


@dataclass(frozen=True, kw_only=True)
class Share:
    """What the positions of one range add to exposure bias."""

    low: float
    """Where the range begins: tokens written before, or the teacher's largest probability."""
    high: float
    """Where it ends: the next range's beginning, which is not part of it (1.0 is)."""
    contribution: Estimate
    """Nats a text; the contributions of all ranges add up to the total. Without an interval where no text was."""


@dataclass(frozen=True, kw_only=True)
class Draw:
    """One position of a student's text, and what two tokens led to there."""

    text: int
    """Number of the student's text."""
    position: int
    """Tokens of the text before it."""
    student_token: int
    """A token that the student takes more often than the teacher."""
    teacher_token: int
    """One that the teacher takes more often."""
    cost: float
    """Later loss after the student's token minus that after the teacher's, nats; a single sample."""


@dataclass(frozen=True, kw_only=True)
class Attribution:
    """Exposure bias put down to positions."""

    total: Estimate
    """Sum over all positions, nats a text: exposure bias once more, by way of kappa."""
    direct: Estimate
    """Exposure bias as measured directly, from the same prompts and student texts."""
    gap: Estimate
    """`total` minus `direct`, paired by prompt."""
    agrees: bool
    """Whether 0 lies in the 95% interval of `gap`. Where all is right it does not, once in twenty times; oftener with
    few prompts, since losses are skewed: in the world of the tests 9% of the time with 25 prompts, 5% with 100."""
    by_position: tuple[Share, ...]
    """By how far into the text."""
    by_confidence: tuple[Share, ...]
    """By how sure the teacher is."""
    largest: tuple[Draw, ...]
    """The draws with the largest costs, largest first."""
    per_prompt: tuple[float, ...]
    """The total prompt by prompt, nats a text."""
    draws_per_text: int
    """Positions drawn from each of the student's texts."""
    budget: int
    """Tokens that could be generated."""
    generated_tokens: int
    """Tokens that were."""

    def to_dict(self) -> dict[str, Any]:
        """As JSON can hold it; estimates with their 95% intervals."""
        return to_plain(self)


def attribute(
    teacher: Policy,
    student: Policy,
    bias: ExposureBias,
    *,
    budget: int,
    generator: torch.Generator,
    divergence: Divergence = forward_kl,
    max_rows: int = DEFAULT_MAX_ROWS,
) -> Attribution:
    """Attribute a measured exposure bias to the positions of the student's texts.

    How many positions are drawn from each text follows from the budget and the lengths of the texts before anything is
    generated, so that no estimate depends on when the budget was spent.

    Args:
        teacher: p.
        student: q; the one that `bias` is of.
        bias: measured with the same divergence.
        budget: tokens to generate; what is spent can differ by how much continuations are longer than the texts.
        generator: on the CPU.
        divergence: D of the loss.
        max_rows: continuations in progress at a time.

    Raises:
        ConfigError: the budget is too small for one position of every text.
    """
    texts = bias.student_texts
    weights = texts.total_variation[0]
    left = (texts.lengths[:, None] - 1 - torch.arange(texts.horizon)).clamp(min=0)
    mass = weights.sum(-1)
    once = 2 * float(((weights * left).sum(-1) / mass.clamp(min=torch.finfo(mass.dtype).tiny)).sum())
    # Draws where hardly anything is left to write cost next to nothing, and still take memory.
    count = min(int(budget / once), budget // len(mass)) if once > 0 else 1
    if count < 1:
        raise ConfigError(
            f"attribution: a budget of {budget} generated tokens is less than one draw from every text needs, about "
            f"{int(once) + 1}. Raise it, or use fewer prompts or samples."
        )
    drawn = _draw_positions(weights, count, generator)
    drawn, generated = _costs(teacher, student, texts, drawn, bias.temperature, divergence, max_rows, generator)
    return _attribution(bias, drawn, mass, count, budget, generated)


class _Drawn(NamedTuple):
    """M draws; column by column."""

    text: Tensor
    position: Tensor
    student_token: Tensor
    teacher_token: Tensor
    cost: Tensor


def _draw_positions(weights: Tensor, count: int, generator: torch.Generator) -> _Drawn:
    """`count` positions of every text whose models ever differ, in proportion to `weights`.

    Systematic: one random offset a text and equal steps, which spreads the draws and leaves each one's law as it is.
    """
    offsets = torch.rand(len(weights), 1, generator=generator, dtype=torch.float64)
    steps = (offsets + torch.arange(count)) / count
    differs = torch.nonzero(weights.sum(-1) > 0).squeeze(1)
    positions = draw_by_weight(weights[differs].repeat_interleave(count, 0), steps[differs].flatten())
    return _Drawn(
        differs.repeat_interleave(count),
        positions,
        -torch.ones_like(positions),
        -torch.ones_like(positions),
        positions.double() * 0,
    )


def _costs(
    teacher: Policy,
    student: Policy,
    texts: RollOuts,
    drawn: _Drawn,
    temperature: float,
    divergence: Divergence,
    max_rows: int,
    generator: torch.Generator,
) -> tuple[_Drawn, int]:
    """Two tokens at every draw, and the difference of what comes after them."""
    generated = 0
    # Long prefixes together, so that little is padded.
    ends = [len(texts.prefix(*place)) for place in zip(drawn.text.tolist(), drawn.position.tolist(), strict=True)]
    order = torch.tensor(sorted(range(len(ends)), key=lambda row: -ends[row]), dtype=torch.long)
    uniforms = torch.rand(len(ends), texts.horizon + 2, generator=generator, dtype=torch.float64)
    for rows in order.split(max(1, max_rows // 2)) if len(order) else ():
        places = list(zip(drawn.text[rows].tolist(), drawn.position[rows].tolist(), strict=True))
        prefixes = [texts.prefix(*place) for place in places]
        starts = [policy.start(prefixes) for policy in (teacher, student)]
        p, q = (tempered(start.log_probs(), temperature).exp().double().cpu() for start in starts)
        drawn.student_token[rows] = draw_by_weight((q - p).clamp(min=0), uniforms[rows, -1])
        drawn.teacher_token[rows] = draw_by_weight((p - q).clamp(min=0), uniforms[rows, -2])
        pairs = torch.stack([drawn.student_token[rows], drawn.teacher_token[rows]], 1)
        losses, tokens = continue_from(
            starts,
            Actions.of(pairs.unsqueeze(1).unbind(0), limits=[texts.horizon - 1 - position for _, position in places]),
            uniforms=uniforms[rows, None, :-2],
            temperature=temperature,
            divergence=divergence,
            max_rows=max_rows,
        )
        after = torch.cat(losses)
        drawn.cost[rows] = after[:, 0] - after[:, 1]
        generated += tokens
    return drawn, generated


def _attribution(
    bias: ExposureBias, drawn: _Drawn, mass: Tensor, count: int, budget: int, generated: int
) -> Attribution:
    texts = bias.student_texts
    charge = _Charge.of(bias, drawn, mass, count)
    total, direct = charge.by_prompt(torch.ones_like(charge.parts)), bias.per_prompt()
    gap = Estimate.cautious(total - direct, size=max(total.abs().max().item(), direct.abs().max().item()))
    longest = int(texts.lengths.max())
    width = -(-longest // POSITION_BINS)
    edges = [float(edge) for edge in range(0, longest + width, width)]
    positions = torch.arange(texts.horizon).double().expand_as(texts.teacher_max_prob)
    largest = drawn.cost.argsort(descending=True)[:20].tolist()
    return Attribution(
        total=Estimate.cautious(total),
        direct=bias.exposure_bias,
        gap=gap,
        agrees=gap.interval().side() == 0,
        by_position=_shares(edges, positions, charge),
        by_confidence=_shares(CONFIDENCE_EDGES, texts.teacher_max_prob, charge),
        largest=tuple(
            Draw(
                text=int(drawn.text[row]),
                position=int(drawn.position[row]),
                student_token=int(drawn.student_token[row]),
                teacher_token=int(drawn.teacher_token[row]),
                cost=drawn.cost[row].item(),
            )
            for row in largest
        ),
        per_prompt=tuple(total.tolist()),
        draws_per_text=count,
        budget=budget,
        generated_tokens=generated,
    )


@dataclass(frozen=True)
class _Charge:
    """What draws add to the texts that they are from."""

    texts: RollOuts
    text: Tensor
    """``(M,)`` of each draw."""
    position: Tensor
    """``(M,)`` of each draw."""
    parts: Tensor
    """``(M,)`` nats a text that each draw adds."""
    weight: Tensor
    """``(N, T)``: v wherever something is left to cost, else 0."""
    draws: Tensor
    """``(N, T)``: how many draws a position is expected to get."""
    most: float
    """Nats: the most that any draw cost, or that two texts of a writer differ by; 0 if that is rounding."""

    @classmethod
    def of(cls, bias: ExposureBias, drawn: _Drawn, mass: Tensor, count: int) -> "_Charge":
        texts = bias.student_texts
        weight = texts.total_variation[0].double() * (texts.lengths[:, None] - 1 - torch.arange(texts.horizon) > 0)
        draws = count * weight / mass.clamp(min=torch.finfo(mass.dtype).tiny)[:, None]
        sums = [one.losses[0].double().sum(-1) for one in (texts, bias.teacher_texts)]
        most = max([*drawn.cost.abs().tolist(), *((one.max() - one.min()).item() for one in sums)])
        if most <= ROUNDING * max(one.max().item() for one in sums):
            most = 0.0
        return cls(texts, drawn.text, drawn.position, mass[drawn.text] * drawn.cost / count, weight, draws, most)

    def by_prompt(self, kept: Tensor) -> Tensor:
        """``(P,)`` nats a text, of the draws that are `kept`."""
        by_text = torch.zeros(len(self.texts.tokens), dtype=torch.float64)
        return self.texts.per_prompt(by_text.index_add_(0, self.text, self.parts * kept))

    def floor(self, inside: Tensor) -> float:
        """Least standard error of the sum over the positions ``(N, T)`` `inside`, whatever its own draws cost.

        Of m draws that all cost nothing, as large a share as the exact interval of a share allows could have cost
        `most`, at positions whose v is known.
        """
        prompts, expected = len(self.texts.prompts), (self.draws * inside).sum().item()
        if expected == 0:
            return 0.0
        unseen = 1 - ((1 - CONFIDENCE) / 2) ** (1 / expected)
        reach = (self.weight * inside).sum().item() / len(self.texts.tokens) * self.most * unseen
        return reach / -Estimate(0.0, 1.0, prompts).interval().low


def _shares(edges: Sequence[float], values: Tensor, charge: _Charge) -> tuple[Share, ...]:
    """By ``(N, T)`` `values`; the last range holds its upper end too, and what rounding puts above it."""
    shares = []
    for low, high in pairwise(edges):
        inside = (values >= low) & ((values < high) | (high == edges[-1]))
        found = charge.by_prompt(inside[charge.text, charge.position].double())
        shares.append(Share(low=low, high=high, contribution=Estimate.cautious(found, floor=charge.floor(inside))))
    return tuple(shares)
