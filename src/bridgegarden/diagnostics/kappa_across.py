r"""kappa where teacher and student have different tokenizers, at the places where both agree on boundaries.

.. math:: \kappa(a|s) = Q(s,a) - V(s)

as in :mod:`bridgegarden.diagnostics.kappa`, which says what it means. Here s is a place of a text at which a token of
the student's and one of the teacher's begin, and a one token of both: it writes the same bytes in both vocabularies. So
both stand behind a token of their own before a and behind it, and all is defined without translating a probability:

* Q(s,a): the teacher goes on behind a, and the student reads what it writes, cut as the student cuts it behind a. The
  student's loss (:mod:`.two_tokenizers`: over what is known of the teacher) is summed over its tokens behind a.
* V(s): the teacher goes on behind s, and the student reads that as it cuts it behind s; the loss at s itself left out.
  It is :math:`\sum_{a'} p(a'|s) \, Q(s,a')` over the student's own first tokens of what the teacher writes.

A continuation behind a tells of both: of V(s) with the teacher's probability of a, read as the student cuts a and what
follows together (``the`` and ``re`` may be one token of its own). What the teacher could take outside the action set
is drawn, one token a round, so that every estimate is unbiased.

Everywhere else kappa is not defined: where the student's token begins inside one of the teacher's, and where one of the
likeliest tokens of the two is no token of the other. The sum over all that the student could take, and with it what a
place adds to exposure bias, would need Q behind such tokens.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from bridgegarden.causal_lm_policy import CausalLMPolicy
from bridgegarden.diagnostics.kappa import (
    THRESHOLD_SHARE,
    ActionKappa,
    Actions,
    KappaResult,
    KappaSettings,
    Kind,
    PositionKappa,
    with_floors,
)
from bridgegarden.diagnostics.rollout import RollOuts, draw_by_weight, tempered, walk
from bridgegarden.diagnostics.two_tokenizers import PairReader, Prompt, Text
from bridgegarden.errors import ConfigError
from bridgegarden.policy import Decoding
from bridgegarden.statistics import Estimate


@dataclass(frozen=True, kw_only=True)
class Agreement:
    """At how many of the student's tokens in its own texts kappa is defined."""

    tokens: int
    """All of them."""
    both_begin: int
    """Where the teacher's tokens begin, too."""
    both_have: int
    """Where moreover each of the likeliest tokens of the two is a token of both."""
    all_read: bool
    """Whether the student can write whatever the teacher may; where not, kappa is defined nowhere."""


@dataclass(frozen=True, kw_only=True)
class KappaAcross:
    """kappa at places where both agree."""

    kappa: KappaResult | None
    """None where there is no such place, or not all can be read."""
    agreement: Agreement
    """How many there are."""


class Place(NamedTuple):
    """Where both agree."""

    text: int
    """Number of the text."""
    position: int
    """The student's tokens of it before the place."""
    at: int
    """The teacher's."""


class SharedTokens:
    """Which tokens are tokens of both: the same bytes, which both write so where they stand alone."""

    def __init__(self, reader: PairReader) -> None:
        translation = reader.tokens.translation
        self._views = translation.teacher, translation.student
        self._found: tuple[dict[int, int | None], dict[int, int | None]] = ({}, {})

    def of_teacher(self, token: int) -> int | None:
        """The student's token that writes what the teacher's `token` does; None if there is none."""
        return self._other(token, 0)

    def of_student(self, token: int) -> int | None:
        """The teacher's that writes what the student's does."""
        return self._other(token, 1)

    def _other(self, token: int, side: int) -> int | None:
        found, (own, other) = self._found[side], (self._views[side], self._views[1 - side])
        if token not in found:
            written = own.tokens[token] if token < len(own) else b""
            ids = other.encode(written) if written and own.encode(written) == [token] else None
            found[token] = ids[0] if ids is not None and len(ids) == 1 else None
        return found[token]


def measure_kappa_across(
    reader: PairReader,
    texts: Sequence[Text],
    read: RollOuts,
    settings: KappaSettings,
    *,
    generator: torch.Generator,
    advance: Callable[[int], None] = lambda tokens: None,
) -> KappaAcross:
    """Measure kappa at places of the student's texts where both agree, some at a time, until the budget is spent.

    Args:
        reader: both models.
        texts: what the student wrote, as both read it.
        read: what both said along them; its horizon bounds the tokens of either.
        settings: how.
        generator: on the CPU.
        advance: is told how many tokens more were generated.

    Raises:
        ConfigError: the budget is too small for a single place (the message says what is enough).
    """
    shared = SharedTokens(reader)
    places, agreement = places_of_both(reader, texts, shared, settings)
    if not places or not agreement.all_read:
        return KappaAcross(kappa=None, agreement=agreement)
    threshold = settings.threshold
    if threshold is None:
        threshold = THRESHOLD_SHARE * read.losses[0].sum(-1).mean().item()
    wanted = _ordered(places, read, settings, generator)[: settings.limit]
    work = _Measurement(reader, shared, texts, read, settings, generator)
    found: list[PositionKappa] = []
    spent = 0
    while len(found) < len(wanted):
        batch = work.affordable(wanted[len(found) :], settings.budget - spent)
        if not batch:
            break
        measured, tokens = work.measure(batch)
        advance(tokens)
        found += measured
        spent += tokens
    if not found:
        raise ConfigError(
            f"budget: {settings.budget:,} generated tokens are too few for kappa at one place with {settings.rounds} "
            f"rounds; about {work.expected_tokens(wanted[0]):,} are needed, and ten times that tells more. Raise it "
            "(--budget), or take shorter texts (--max-new-tokens)."
        )
    sure = [settings.temperature == 0 or work.room(place) == 0 for place in wanted[: len(found)]]
    positions = with_floors(found, sure, threshold)
    result = settings.result(positions, candidates=len(places), threshold=threshold, spent=spent)
    return KappaAcross(kappa=result, agreement=agreement)


def places_of_both(
    reader: PairReader, texts: Sequence[Text], shared: SharedTokens, settings: KappaSettings
) -> tuple[list[Place], Agreement]:
    """Where kappa is defined, in the order of the texts, and how many places that are of how many."""
    begins = [reader.both_begin(text) for text in texts]
    theirs = likeliest_along(reader.teacher, [(text.prompt.teacher, text.teacher) for text in texts], settings)
    ours = likeliest_along(reader.student, [(text.prompt.student, text.student) for text in texts], settings)
    places = [
        Place(number, position, at)
        for number, line in enumerate(begins)
        for position, at in enumerate(line)
        if at >= 0
        and all(shared.of_teacher(token) is not None for token in theirs[number][at])
        and all(shared.of_student(token) is not None for token in ours[number][position])
    ]
    translation = reader.tokens.translation
    return places, Agreement(
        tokens=sum(map(len, begins)),
        both_begin=sum(at >= 0 for line in begins for at in line),
        both_have=len(places),
        all_read=translation.student.can_write(translation.teacher),
    )


def likeliest_along(
    policy: CausalLMPolicy, texts: Sequence[tuple[Sequence[int], Sequence[int]]], settings: KappaSettings
) -> list[list[list[int]]]:
    """The likeliest tokens of `policy` before every token of some texts, each with its prompt."""
    found: list[list[list[int]]] = [[] for _ in texts]
    order = sorted(range(len(texts)), key=lambda number: -len(texts[number][1]))
    for first in range(0, len(order), settings.max_rows):
        rows = [number for number in order[first : first + settings.max_rows] if texts[number][1]]
        if not rows:
            continue
        written = [texts[number][1] for number in rows]
        width = max(map(len, written))
        for visit in walk(
            [policy.start([texts[number][0] for number in rows])],
            torch.arange(len(rows)),
            limits=torch.tensor([len(ids) for ids in written]),
            given=torch.tensor([[*ids, *[0] * (width - len(ids))] for ids in written]),
        ):
            best = visit.logp[0].topk(min(settings.top, visit.logp[0].shape[1])).indices.tolist()
            for row, tokens in zip(visit.rows.tolist(), best, strict=True):
                found[rows[row]].append(tokens)
    return found


def _ordered(
    places: Sequence[Place], read: RollOuts, settings: KappaSettings, generator: torch.Generator
) -> list[Place]:
    if settings.choose == "all":
        return list(places)
    if settings.choose == "random":
        return [places[i] for i in torch.randperm(len(places), generator=generator).tolist()]
    return sorted(places, key=lambda place: -read.teacher_entropy[place.text, place.position].item())


class _Tried(NamedTuple):
    """What is tried at a place."""

    student: list[int]
    """Tokens of the action set, the teacher's likeliest first."""
    teacher: list[int]
    """The same as the teacher's."""
    outside: Tensor
    """``(rounds,)`` the teacher's token that stands for all others in a round; -1 where it has no mass there."""
    mass: float
    """Its total probability there."""

    @property
    def table(self) -> Tensor:
        """``(rounds, tokens)`` the teacher's tokens that are continued."""
        return torch.cat([torch.tensor(self.teacher).expand(len(self.outside), -1), self.outside[:, None]], 1)


@dataclass(frozen=True)
class _Measurement:
    """Of the texts of one student."""

    reader: PairReader
    shared: SharedTokens
    texts: Sequence[Text]
    read: RollOuts
    settings: KappaSettings
    generator: torch.Generator

    def room(self, place: Place) -> int:
        """Tokens that the teacher may write behind the one that is tried; none where the student may read none."""
        left = self.read.horizon - 1 - place.at
        return left if self.read.horizon - 1 > place.position else 0

    def expected_tokens(self, place: Place) -> int:
        """What a place costs if its continuations are as long as its text is."""
        return self.settings.continuations * (len(self.texts[place.text].teacher) - place.at - 1)

    def affordable(self, places: Sequence[Place], left: int) -> Sequence[Place]:
        """The next few of `places` that fit in a batch and in what is left of the budget."""
        count = max(1, self.settings.max_rows // self.settings.continuations)
        for number, place in enumerate(places[:count]):
            left -= self.expected_tokens(place)
            if left < 0:
                return places[:number]
        return places[:count]

    def measure(self, places: Sequence[Place]) -> tuple[list[PositionKappa], int]:
        """kappa at a few places, and the tokens it took."""
        settings = self.settings
        prefixes = [self._prefix(place) for place in places]
        starts = [
            policy.start([prefix[side] for prefix in prefixes])
            for side, policy in enumerate((self.reader.teacher, self.reader.student))
        ]
        said = [start.log_probs() for start in starts]
        p, q = (tempered(logp, settings.temperature).exp().double().cpu() for logp in said)
        shape = len(places), settings.rounds, self.read.horizon + 1
        uniforms = torch.rand(shape, generator=self.generator, dtype=torch.float64)
        tops = [logp.topk(min(settings.top, logp.shape[1])).indices.tolist() for logp in said]
        tried = [self._tried(tops[0][i], tops[1][i], p[i], uniforms[i, :, -1]) for i in range(len(places))]
        actions = Actions.of([one.table for one in tried], limits=[self.room(place) for place in places])
        written = _written(starts[0], actions, uniforms[..., :-1], settings)
        losses = self._losses(places, prefixes, tried, actions, written)
        likeliest, margin, agreement = self._first_choice(*said)
        found = []
        for i, place in enumerate(places):
            behind, along = losses[i]
            weights = torch.tensor([*p[i, tried[i].teacher].tolist(), tried[i].mass], dtype=torch.float64)
            advantage = behind[:, :-1] - (along @ weights)[:, None]
            found.append(
                PositionKappa(
                    text=place.text,
                    prompt=place.text // self.read.samples,
                    position=place.position,
                    token=self.texts[place.text].student[place.position],
                    teacher_entropy=self.read.teacher_entropy[place.text, place.position].item(),
                    teacher_max_prob=self.read.teacher_max_prob[place.text, place.position].item(),
                    teacher_margin=margin[i],
                    likeliest=likeliest[i],
                    agreement=agreement[i],
                    loss=self.read.losses[0, place.text, place.position].item(),
                    actions=tuple(
                        ActionKappa(
                            token=ours,
                            teacher_prob=p[i, theirs].item(),
                            student_prob=q[i, ours].item(),
                            kappa=Estimate.cautious(advantage[:, column], size=along.abs().max().item()),
                        )
                        for column, (ours, theirs) in enumerate(zip(tried[i].student, tried[i].teacher, strict=True))
                    ),
                    state_kappa=Estimate.cautious(advantage.sum(1), size=along.abs().max().item()),
                    contribution=Estimate(math.nan, math.inf, settings.rounds),
                    kind=Kind.UNDECIDED,
                )
            )
        return found, sum(map(len, written))

    def _prefix(self, place: Place) -> Prompt:
        text = self.texts[place.text]
        return Prompt(
            (*text.prompt.teacher, *text.teacher[: place.at]), (*text.prompt.student, *text.student[: place.position])
        )

    def _tried(self, theirs: Sequence[int], ours: Sequence[int], p: Tensor, uniforms: Tensor) -> _Tried:
        student = list(dict.fromkeys([*(self.shared.of_teacher(token) for token in theirs), *ours]))
        teacher = [self.shared.of_student(token) for token in student if token is not None]
        kept = [token for token in teacher if token is not None]
        assert len(kept) == len(student)
        left = p.clone()
        left[kept] = 0.0
        mass = left.sum().item()
        drawn = draw_by_weight(left.expand(len(uniforms), -1), uniforms)
        outside = drawn if mass > 0 else torch.full_like(drawn, -1)
        return _Tried([token for token in student if token is not None], kept, outside, mass)

    def _losses(
        self,
        places: Sequence[Place],
        prefixes: Sequence[Prompt],
        tried: Sequence[_Tried],
        actions: Actions,
        written: Sequence[Sequence[int]],
    ) -> list[tuple[Tensor, Tensor]]:
        """At each place ``(rounds, tokens)`` the student's loss behind the token that is tried, where it is cut off so,
        and where it is read with what follows."""
        horizon, view = self.read.horizon, self.reader.tokens.translation.teacher
        texts: list[Text] = []
        which: list[tuple[int, int]] = []
        for prefix, token, behind in zip(actions.prefix.tolist(), actions.token.tolist(), written, strict=True):
            place = places[prefix]
            theirs = [index for index in (token, *behind) if index < len(view)]
            room = horizon - place.at, horizon - place.position
            cut, along = self._read_behind(tried[prefix], token, view.join(theirs))
            which.append((len(texts), len(texts) + (cut != along)))
            kept = [along] if cut == along else [cut, along]
            texts += [self.reader.counted(prefixes[prefix], theirs, ours, room=room) for ours in kept]
        scored = self.reader.score(texts, 1, horizon, self.settings.divergence, self.settings.max_rows)
        # The first of them is the token that is tried: the loss at the place itself is no part.
        behind_all = scored.texts.losses[0, :, 1:].sum(-1)
        sides = torch.tensor(which).T
        return [(_cells(behind_all[sides[0]], cell), _cells(behind_all[sides[1]], cell)) for cell in actions.cells]

    def _read_behind(self, tried: _Tried, token: int, text: bytes) -> tuple[list[int], list[int]]:
        """The student's tokens of `text`, which begins with the teacher's `token`: cut off behind it where that is one
        of the action set, and as it cuts the whole."""
        student = self.reader.tokens.translation.student
        along = student.encode(text)
        assert along is not None
        if token not in tried.teacher:
            return along, along
        first = tried.student[tried.teacher.index(token)]
        if along[:1] == [first]:
            return along, along
        rest = student.encode(text[len(student.tokens[first]) :])
        assert rest is not None
        return [first, *rest], along

    def _first_choice(self, theirs: Tensor, ours: Tensor) -> tuple[list[int], list[float], list[float]]:
        """Of each place the teacher's likeliest token as the student's, its lead, and its probability under the
        student."""
        best = [self.shared.of_teacher(token) for token in theirs.argmax(-1).tolist()]
        found = [token for token in best if token is not None]
        assert len(found) == len(best)
        top = theirs.topk(min(2, theirs.shape[1])).values.double().exp().cpu()
        lead = top[:, 0] - (top[:, 1] if top.shape[1] > 1 else 0.0)
        agreement = ours.cpu().double().exp().gather(1, torch.tensor(found)[:, None]).squeeze(1)
        return found, lead.tolist(), agreement.tolist()


def _cells(values: Tensor, cell: Tensor) -> Tensor:
    return torch.where(cell >= 0, values[cell.clamp(min=0)], 0.0)


def _written(start: Decoding, actions: Actions, uniforms: Tensor, settings: KappaSettings) -> list[list[int]]:
    """What the teacher writes behind every action."""
    found: list[list[int]] = [[] for _ in actions.prefix]
    for rows in torch.arange(len(found)).split(settings.max_rows):
        rows = rows[actions.limit[rows] > 0]
        if not len(rows):
            continue
        for visit in walk(
            [start.extend(actions.prefix[rows], actions.token[rows])],
            torch.arange(len(rows)),
            limits=actions.limit[rows],
            uniforms=uniforms[actions.prefix[rows], actions.round[rows]],
            temperature=settings.temperature,
        ):
            for row, token in zip(rows[visit.rows].tolist(), visit.tokens.tolist(), strict=True):
                found[row].append(token)
    return found
