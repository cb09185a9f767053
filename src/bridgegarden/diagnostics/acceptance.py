r"""What a student is worth as a draft model (speculative decoding): how much of its drafts the teacher would take.

The student drafts :math:`\gamma` tokens, the teacher reads them in one pass, keeps those up to the first that it
refuses and adds one of its own. A token x that the student drew is kept with probability :math:`\min(1, p(x) / q(x))`,
so a position accepts with probability

.. math:: \alpha(s) = \sum_x \min(p(x|s), q(x|s)) = 1 - TV(p, q)

and what comes out is distributed exactly as the teacher's own text. So the teacher's texts are all that is needed:
where its text goes on with y, that token came from an accepted draft with probability

.. math:: w = \min(1, q(y|s) / p(y|s)),

independently from token to token *given the text*, and the expected number of passes over that text follows backwards
from its end:

.. math:: R_t = 1 + \sum_{k=0}^{\gamma-1} \Big(\prod_{i<k} w_{t+i}\Big) (1 - w_{t+k}) R_{t+k+1}
                + \Big(\prod_{i<\gamma} w_{t+i}\Big) R_{t+\gamma+1}

Nothing is assumed of how acceptances along a draft depend on each other, nor of where drafts begin: easy stretches are
passed in few long drafts, and a draft begins behind what was refused. The formula with independent acceptances of one
probability (Leviathan et al., equation 1) stands beside it as an approximation.

On the *student's* texts the same sums are taken with :math:`w = \min(1, p(y|s) / q(y|s))`: how much of its own text the
teacher would keep, were the text gone on with whatever is refused. No decoder does that; it says how far the student is
to be trusted where it has led itself.

References:
    Leviathan et al., 2023, arXiv:2211.17192: algorithm 1, theorem 3.5, equation 1, theorem 3.8.
"""

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from bridgegarden.diagnostics.exposure_bias import ExposureBias, linearised
from bridgegarden.diagnostics.rollout import RollOuts
from bridgegarden.errors import ConfigError
from bridgegarden.statistics import Estimate

MOST_DRAFTED = 8
"""Longest draft that is looked at."""


@dataclass(frozen=True, kw_only=True)
class Draft:
    """Drafts of one length."""

    drafted: int
    r"""Tokens that the student proposes at a time, :math:`\gamma`."""
    tokens_per_pass: Estimate
    """Tokens of a text for each pass of the teacher, its own one included: from 1 to `drafted` + 1. Mean length of the
    texts over the mean number of passes."""
    independent: float
    """The same by Leviathan et al.'s equation 1, as if every token were accepted with the mean probability,
    independently of all others."""

    def speed_up(self, cost_ratio: float) -> Estimate:
        r"""How many times as fast as the teacher alone: tokens a pass over :math:`\gamma c + 1`.

        As in theorem 3.8 of Leviathan et al. a pass of the teacher over the whole draft is taken to cost what one over
        a single token does, which holds where weights are read and not numbers multiplied.

        Args:
            cost_ratio: c, time of a token of the student over that of one of the teacher, >= 0.
        """
        mean, stderr, n = self.tokens_per_pass
        cost = self.drafted * cost_ratio + 1
        return Estimate(mean / cost, stderr / cost, n)


@dataclass(frozen=True, kw_only=True)
class Acceptance:
    """What the teacher would take on texts of one writer; errors are over prompts."""

    acceptance: Estimate
    """1 - TV at temperature 1, mean over tokens."""
    tempered: Estimate
    """The same at the temperature of the texts; at temperature 0 it is how often both have the same likeliest token."""
    agreement: Estimate
    """Share of tokens before which both models have the same likeliest token."""
    drafts: tuple[Draft, ...]
    """Of 1, 2, ... tokens, at the temperature of the texts."""

    @classmethod
    def of(cls, texts: RollOuts, kept: Tensor) -> "Acceptance":
        """Of the only student in `texts`.

        Args:
            texts: of either writer.
            kept: ``(N, T)`` in [0, 1]: probability that each token of the texts is accepted.

        Raises:
            DataError: fewer than two prompts.
        """
        lengths = texts.per_prompt(texts.lengths.double())
        there = torch.arange(texts.horizon) < texts.lengths[:, None]

        def per_token(values: Tensor) -> Estimate:
            sums = texts.per_prompt(torch.where(there, values, 0.0).sum(-1))
            return Estimate.cautious(linearised(sums, lengths))

        tempered = per_token(1 - texts.total_variation[0])
        passes = texts.per_prompt(expected_passes(kept, texts.lengths, MOST_DRAFTED))
        drafts = tuple(
            Draft(
                drafted=number,
                tokens_per_pass=Estimate.cautious(linearised(lengths, of_number)),
                independent=independent_tokens(tempered.mean, number),
            )
            for number, of_number in enumerate(passes, 1)
        )
        return cls(
            acceptance=per_token(texts.overlap[0]),
            tempered=tempered,
            agreement=per_token(texts.agreement[0]),
            drafts=drafts,
        )


@dataclass(frozen=True, kw_only=True)
class DraftModel:
    """One student as a draft model of its teacher."""

    temperature: float
    """What the texts were written at; drafts are of it."""
    teacher_texts: Acceptance
    """On the teacher's texts, which are what speculative decoding writes."""
    student_texts: Acceptance
    """On the student's own texts."""

    @classmethod
    def of(cls, bias: ExposureBias) -> "DraftModel":
        """From the texts that exposure bias was measured on."""
        return cls(
            temperature=bias.temperature,
            teacher_texts=Acceptance.of(bias.teacher_texts, kept_of_teacher(bias.teacher_texts)),
            student_texts=Acceptance.of(bias.student_texts, kept_of_student(bias.student_texts)),
        )

    def fastest(self, cost_ratio: float) -> Draft:
        """The length of drafts that is fastest on the teacher's texts, as far as the means say.

        Raises:
            ConfigError: a cost ratio below 0.
        """
        check_cost_ratio(cost_ratio)
        return max(self.teacher_texts.drafts, key=lambda draft: draft.speed_up(cost_ratio).mean)


class ByPrompt(NamedTuple):
    """What the teacher would take on the texts of each prompt, ``(P,)`` each."""

    acceptance: Tensor
    """1 - TV at temperature 1, mean over the prompt's tokens."""
    agreement: Tensor
    """Share of tokens before which both models have the same likeliest one."""
    tokens_per_pass: Tensor
    """Tokens of the prompt's texts over the expected passes."""


def by_prompt(bias: ExposureBias, drafted: int) -> tuple[ByPrompt, ByPrompt]:
    """Prompt by prompt, on the teacher's texts and on the student's, for drafts of so many tokens."""

    def of(texts: RollOuts, kept: Tensor) -> ByPrompt:
        lengths = texts.per_prompt(texts.lengths.double())
        passes = texts.per_prompt(expected_passes(kept, texts.lengths, drafted)[-1])
        # Nothing is noted behind the end of a text.
        sums = (texts.per_prompt(values[0].sum(-1)) for values in (texts.overlap, texts.agreement))
        return ByPrompt(*(one / lengths for one in sums), tokens_per_pass=lengths / passes)

    on_teacher, on_own = bias.teacher_texts, bias.student_texts
    return of(on_teacher, kept_of_teacher(on_teacher)), of(on_own, kept_of_student(on_own))


def kept_of_teacher(texts: RollOuts) -> Tensor:
    """``(N, T)``: probability that a token of the teacher's text came from an accepted draft of the only student."""
    return texts.log_ratio[0].clamp(max=0).exp()


def kept_of_student(texts: RollOuts) -> Tensor:
    """``(N, T)``: probability that the teacher accepts a token that the only student wrote."""
    return (-texts.log_ratio[0]).clamp(max=0).exp()


def expected_passes(kept: Tensor, lengths: Tensor, most: int) -> Tensor:
    """Expected passes of the teacher over each text, for drafts of 1 to `most` tokens.

    Args:
        kept: ``(N, T)`` in [0, 1]: probability that each token is accepted, given that the draft got there.
        lengths: ``(N,)`` int64, at most T: what is behind the end takes no pass.
        most: longest draft, >= 1.

    Returns:
        ``(most, N)`` float64, >= 1 for a text with tokens.
    """
    texts, horizon = kept.shape
    kept = kept.double()
    left = kept.new_zeros(most, texts, horizon + most + 1)
    for start in range(horizon - 1, -1, -1):
        found, reached = kept.new_ones(most, texts), kept.new_ones(texts)
        for place in range(min(most, horizon - start)):
            accepted = kept[:, start + place]
            # Refused here: the next draft begins behind the teacher's own token. Longer drafts only get this far.
            found[place:] += reached * (1 - accepted) * left[place:, :, start + place + 1]
            reached = reached * accepted
            found[place] += reached * left[place, :, start + place + 2]
        left[:, :, start] = torch.where(lengths > start, found, 0.0)
    return left[:, :, 0]


def independent_tokens(acceptance: float, drafted: int) -> float:
    r"""Tokens a pass where every token is accepted with the same probability, independently of all others.

    .. math:: 1 + \alpha + \dots + \alpha^\gamma = \frac{1 - \alpha^{\gamma + 1}}{1 - \alpha}

    References:
        Leviathan et al., 2023, arXiv:2211.17192, equation 1.
    """
    return sum(acceptance**power for power in range(drafted + 1))


def check_cost_ratio(cost_ratio: float, name: str = "cost_ratio") -> None:
    """Refuse what is no ratio of times.

    Raises:
        ConfigError: below 0, or no number.
    """
    if not 0 <= cost_ratio < float("inf"):
        raise ConfigError(f"{name} must be a number >= 0, got {cost_ratio}.")
