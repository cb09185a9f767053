"""A few texts to look at token by token: what both models expected at each place, and what is known of kappa there."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Protocol

import torch
from torch import Tensor

from bridgegarden.data.audit import Piece
from bridgegarden.diagnostics.kappa import PositionKappa
from bridgegarden.diagnostics.rollout import RollOuts
from bridgegarden.diagnostics.walk import walk
from bridgegarden.objective.soft_weight import ConfidenceWeight, EntropyWeight, SoftWeight, StaticWeight
from bridgegarden.objective.support import TeacherSignal
from bridgegarden.policy import Policy

TOP = 5
"""Likeliest tokens of each model at every place."""
RULES: Mapping[str, SoftWeight] = {
    "static": StaticWeight(),
    "confidence": ConfidenceWeight(),
    "entropy": EntropyWeight(),
}
"""Rules for the soft weight that a text is shown with; they need nothing but the teacher's distribution."""


class Reader(Protocol):
    """Token ids to text; :class:`~bridgegarden.data.audit.TokenTexts` is one."""

    def text(self, ids: Sequence[int]) -> str:
        """The text of several tokens."""
        ...

    def token(self, index: int) -> Piece:
        """A token in the middle of a text."""
        ...

    def pieces(self, before: Sequence[int], ids: Sequence[int]) -> list[Piece]:
        """Each of `ids`, which follow `before`."""
        ...


@dataclass(frozen=True)
class Likely:
    """One token that a model finds likely."""

    token: int
    """Its id."""
    prob: float
    """Its probability, at temperature 1."""


@dataclass(frozen=True, kw_only=True)
class ShownToken:
    """One token of a text, and what was thought before it was written."""

    token: int
    """Its id."""
    piece: Piece
    """Its text."""
    teacher_top: tuple[Likely, ...]
    """The teacher's likeliest tokens, in falling order."""
    student_top: tuple[Likely, ...]
    """The student's."""
    teacher_entropy: float
    """Nats, at temperature 1."""
    student_surprise: float
    """Minus the log-probability of the token under the student, nats."""
    loss: float
    """l(s), nats."""
    soft_weights: Mapping[str, float]
    r"""What each of `RULES` would take for :math:`\lambda` here."""
    kappa: PositionKappa | None
    """None where it was not measured."""


@dataclass(frozen=True, kw_only=True)
class ShownText:
    """One text."""

    text: int
    """Its number among the student's texts."""
    prompt: int
    """Number of its prompt."""
    prompt_text: str
    """What it was written from, special tokens included."""
    tokens: tuple[ShownToken, ...]
    """In order."""


def part_of(texts: RollOuts, numbers: Sequence[int]) -> RollOuts:
    """Some of `texts`, each with its prompt as if it had no other."""
    rows = torch.tensor(numbers, dtype=torch.long)
    return replace(
        texts,
        prompts=tuple(texts.prompts[number // texts.samples] for number in numbers),
        samples=1,
        tokens=tuple(texts.tokens[number] for number in numbers),
        lengths=texts.lengths[rows],
        losses=texts.losses[:, rows],
        total_variation=texts.total_variation[:, rows],
        student_logp=texts.student_logp[:, rows],
        teacher_logp=texts.teacher_logp[rows],
        teacher_entropy=texts.teacher_entropy[rows],
        teacher_max_prob=texts.teacher_max_prob[rows],
    )


def show_texts(
    teacher: Policy,
    student: Policy,
    texts: RollOuts,
    numbers: Sequence[int],
    kappas: Sequence[PositionKappa],
    *,
    vocab_size: int,
    reader: Reader,
) -> tuple[ShownText, ...]:
    """Look at the texts `numbers` of the only student in `texts`.

    Args:
        teacher: p.
        student: q.
        texts: written by the student.
        numbers: which of them.
        kappas: of any positions, under the numbers that texts and prompts have in `texts`.
        vocab_size: real vocabulary, for the entropy rule.
        reader: ids to text.
    """
    if not numbers:
        return ()
    measured = {(place.text, place.position): place for place in kappas}
    tops = _tops([teacher, student], part_of(texts, numbers))
    weights = soft_weights(texts.teacher_entropy, texts.teacher_max_prob, vocab_size)
    found = []
    for row, number in enumerate(numbers):
        prompt, ids = texts.prompts[number // texts.samples], texts.tokens[number]
        tokens = tuple(
            ShownToken(
                token=ids[at],
                piece=piece,
                teacher_top=tops[row][at][0],
                student_top=tops[row][at][1],
                teacher_entropy=texts.teacher_entropy[number, at].item(),
                student_surprise=-texts.student_logp[0, number, at].item(),
                loss=texts.losses[0, number, at].item(),
                soft_weights={name: weight[number, at].item() for name, weight in weights.items()},
                kappa=measured.get((number, at)),
            )
            for at, piece in enumerate(reader.pieces(prompt, ids))
        )
        found.append(
            ShownText(text=number, prompt=number // texts.samples, prompt_text=reader.text(prompt), tokens=tokens)
        )
    return tuple(found)


def soft_weights(entropy: Tensor, max_prob: Tensor, vocab_size: int) -> dict[str, Tensor]:
    """Each of `RULES`, by its own code, wherever a teacher's entropy and largest probability were noted."""
    # Where nothing was noted the probability is 0; any other number keeps the logarithm finite.
    max_logp = torch.where(max_prob > 0, max_prob, 1.0).log()
    signal = TeacherSignal(
        ids=None,
        logp=max_logp.unsqueeze(-1),
        log_tail=None,
        entropy=entropy,
        argmax=torch.zeros(entropy.shape, dtype=torch.long),
        max_logp=max_logp,
        vocab_size=vocab_size,
    )
    return {name: rule(signal) for name, rule in RULES.items()}


def _tops(policies: Sequence[Policy], texts: RollOuts) -> list[list[list[tuple[Likely, ...]]]]:
    """For each text, position and policy its likeliest tokens."""
    given = torch.tensor([[*ids, *[0] * (texts.horizon - len(ids))] for ids in texts.tokens])
    found: list[list[list[tuple[Likely, ...]]]] = [[] for _ in texts.tokens]
    steps = walk(
        [policy.start(texts.prompts) for policy in policies],
        torch.arange(len(texts.tokens)),
        limits=texts.lengths,
        given=given,
    )
    for visit in steps:
        best = [logp.topk(min(TOP, logp.shape[1])) for logp in visit.logp]
        for row, number in enumerate(visit.rows.tolist()):
            found[number].append([_likely(top.values[row], top.indices[row]) for top in best])
    return found


def _likely(logp: Tensor, ids: Tensor) -> tuple[Likely, ...]:
    return tuple(Likely(token, prob) for token, prob in zip(ids.tolist(), logp.exp().tolist(), strict=True))
