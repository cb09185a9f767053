r"""kappa, estimated from roll-outs: what one token at one prefix costs the student later.

.. math:: \kappa(a|s) = Q(s,a) - \sum_{a'} p(a'|s) \, Q(s,a')

:math:`Q(s,a)` is the student's expected loss, summed from [s,a] on, when the *teacher* continues; ``kappa(s)`` is the
sum of :math:`\kappa(a|s)` over an explicit action set, here the `top` likeliest tokens of the teacher and of the
student together. A position is a **Bridge** where the interval of ``kappa(s)`` lies above a threshold, a **Garden**
where it lies below, and undecided otherwise.

The sum over the whole vocabulary is not cut off: in every round one more token is drawn from the teacher outside the
action set and stands for all of them with their total probability, so every estimate is unbiased. A second such token
is drawn from the student; with it the *contribution* of the position to exposure bias, :math:`\sum_a q(a|s)
\kappa(a|s)`, is unbiased too. All actions of a round are continued with the same random numbers, and rounds are the
independent units of the errors. A few rounds do not show what rarely happens, so no place counts as surer than the
places are on average, and where no round differed from another anywhere no interval is given. The exact value on finite
worlds is in `bridgegarden.exact`.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from enum import StrEnum
from functools import partial
from typing import Any, Literal, get_args

import torch
from torch import Tensor

from bridgegarden.diagnostics.rollout import DEFAULT_MAX_ROWS, RollOuts, draw_by_weight, tempered, walk
from bridgegarden.errors import ConfigError
from bridgegarden.objective.divergences import Divergence, forward_kl
from bridgegarden.policy import Decoding, Policy
from bridgegarden.statistics import Estimate, to_plain

Choice = Literal["all", "random", "uncertain"]
"""Which positions come first: in the order of the texts, at random, or those of the highest teacher entropy."""

THRESHOLD_SHARE = 0.1
"""The default threshold, as a share of what the student loses on one of the given texts."""


class Kind(StrEnum):
    """What the interval of kappa(s) says."""

    BRIDGE = "bridge"
    """Above the threshold: the token must be exact."""
    GARDEN = "garden"
    """Below it: the token may vary."""
    UNDECIDED = "undecided"
    """The threshold lies within the interval."""


@dataclass(frozen=True, kw_only=True)
class ActionKappa:
    """One token that could come next."""

    token: int
    """Its id; the number of shared tokens stands for everything outside them."""
    teacher_prob: float
    """p(a|s), at the temperature of the roll-outs."""
    student_prob: float
    """q(a|s), at the same temperature."""
    kappa: Estimate
    """Nats; positive where the token costs the student more than the teacher's own choice would."""


@dataclass(frozen=True, kw_only=True)
class PositionKappa:
    """One position of one text."""

    text: int
    """Number of the text."""
    prompt: int
    """Number of its prompt: positions of one prompt are not independent."""
    position: int
    """Tokens of the text before it."""
    token: int
    """The token that the text has there."""
    teacher_entropy: float
    """Nats, at temperature 1."""
    teacher_max_prob: float
    """Probability of the teacher's likeliest token, at temperature 1."""
    teacher_margin: float
    """By how much that is more than the probability of its second token."""
    likeliest: int
    """The teacher's likeliest token."""
    agreement: float
    """Probability of that token under the student, at temperature 1."""
    loss: float
    """l(s), nats."""
    actions: tuple[ActionKappa, ...]
    """The action set, the teacher's likeliest tokens first."""
    state_kappa: Estimate
    """Sum of kappa over the action set, nats."""
    contribution: Estimate
    """What the position adds to exposure bias, sum over all tokens of q kappa, nats: true of any text, but a share of
    exposure bias only where the student wrote the text. NaN where the teacher has another tokenizer."""
    kind: Kind
    """Bridge, Garden or undecided."""


@dataclass(frozen=True, kw_only=True)
class KappaResult:
    """kappa at some positions of some texts."""

    positions: tuple[PositionKappa, ...]
    """Measured ones, in the order in which they were chosen."""
    candidates: int
    """Positions there were to choose from."""
    choose: Choice
    """How they were chosen. Only `random` (or all of them) stands for the texts as a whole."""
    threshold: float
    """Nats, between Gardens and Bridges."""
    top: int
    """Likeliest tokens of each model in the action set."""
    rounds: int
    """Continuations of each action."""
    temperature: float
    """Of the continuations, and of the probabilities of actions."""
    budget: int
    """Tokens that could be generated."""
    generated_tokens: int
    """Tokens that were."""

    def count(self, kind: Kind) -> int:
        """How many positions are of a kind."""
        return sum(position.kind == kind for position in self.positions)

    def to_dict(self) -> dict[str, Any]:
        """As JSON can hold it; estimates with their 95% intervals."""
        return to_plain(self)


@dataclass(frozen=True, kw_only=True)
class KappaSettings:
    """How kappa is to be measured."""

    budget: int
    """Tokens to generate, in all, >= 1."""
    rounds: int = 8
    """Continuations of each action, >= 2; their spread makes the errors."""
    top: int = 2
    """Likeliest tokens of each model in the action set, >= 1."""
    choose: Choice = "random"
    """Which positions come first."""
    limit: int | None = None
    """Most positions; None is no limit."""
    threshold: float | None = None
    """Nats between Gardens and Bridges; None takes a tenth of the student's mean summed loss on the given texts."""
    temperature: float = 1.0
    """Of the continuations, >= 0."""
    divergence: Divergence = forward_kl
    """D of the loss."""
    max_rows: int = DEFAULT_MAX_ROWS
    """Continuations in progress at a time, >= 1."""

    def __post_init__(self) -> None:
        least = {"budget": 1, "rounds": 2, "top": 1, "max_rows": 1, "temperature": 0}
        for name, bound in least.items():
            if not getattr(self, name) >= bound:
                raise ConfigError(f"kappa.{name} must be >= {bound}, got {getattr(self, name)}.")
        if self.choose not in get_args(Choice):
            raise ConfigError(f"kappa.choose must be 'all', 'random' or 'uncertain', got {self.choose!r}.")

    @property
    def continuations(self) -> int:
        """Most continuations a position can need: the action set and one token of each model outside it, each round."""
        return self.rounds * (2 * self.top + 2)

    def result(
        self, positions: "Sequence[PositionKappa]", *, candidates: int, threshold: float, spent: int
    ) -> KappaResult:
        """What was found with these settings.

        Args:
            positions: measured ones, in the order in which they were chosen.
            candidates: positions there were to choose from.
            threshold: nats, between Gardens and Bridges.
            spent: tokens that were generated.
        """
        return KappaResult(
            positions=tuple(positions),
            candidates=candidates,
            choose=self.choose,
            threshold=threshold,
            top=self.top,
            rounds=self.rounds,
            temperature=self.temperature,
            budget=self.budget,
            generated_tokens=spent,
        )


@dataclass(frozen=True, kw_only=True)
class Actions:
    """Tokens to try at each of P prefixes; equal tokens of one round are continued once."""

    prefix: Tensor
    """``(N,)`` the prefix of each continuation."""
    round: Tensor
    """``(N,)`` its round, which decides its random numbers."""
    token: Tensor
    """``(N,)`` the token that is tried."""
    limit: Tensor
    """``(N,)`` prefixes that may still be visited after it."""
    cells: tuple[Tensor, ...]
    """For each prefix ``(rounds, tokens)``: the continuation of each cell, -1 for none."""

    @classmethod
    def of(cls, tokens: Sequence[Tensor], *, limits: Sequence[int]) -> "Actions":
        """From a ``(rounds, tokens)`` table for each prefix (-1: nothing to try) and its limit."""
        rows: list[tuple[int, int, int, int]] = []
        cells = []
        for prefix, (table, limit) in enumerate(zip(tokens, limits, strict=True)):
            cell = torch.full_like(table, -1)
            for number, tried in enumerate(table.tolist()):
                seen: dict[int, int] = {}
                for column, token in enumerate(tried):
                    if token < 0:
                        continue
                    if token not in seen:
                        seen[token] = len(rows)
                        rows.append((prefix, number, token, limit))
                    cell[number, column] = seen[token]
            cells.append(cell)
        prefix, number, token, limit = torch.tensor(rows).reshape(-1, 4).unbind(1)
        return cls(prefix=prefix, round=number, token=token, limit=limit, cells=tuple(cells))


def measure_kappa(
    teacher: Policy, student: Policy, texts: RollOuts, settings: KappaSettings, *, generator: torch.Generator
) -> KappaResult:
    """Measure kappa at positions of `texts`, some at a time, until the budget is spent.

    A position is begun only if the budget has room for what its own text leads to expect; once begun it is finished.
    Whether a position is measured thus never depends on its own continuations, which keeps its estimates unbiased.
    What is spent can differ from the budget by how much the last positions differ from their expectation.

    Args:
        teacher: p; it writes the continuations.
        student: q.
        texts: read or rolled out with `student` as the only student; their horizon bounds the continuations too.
        settings: how.
        generator: on the CPU.

    Raises:
        ConfigError: the budget is too small for a single position (the message says what is enough).
    """
    assert len(texts.losses) == 1
    threshold = settings.threshold
    if threshold is None:
        threshold = THRESHOLD_SHARE * texts.losses[0].sum(-1).mean().item()
    order = _order(texts, settings.choose, generator)
    wanted = order[: settings.limit]
    found: list[PositionKappa] = []
    spent = 0
    while len(found) < len(wanted):
        batch = _affordable(texts, wanted[len(found) :], settings, settings.budget - spent)
        if not batch:
            break
        measured, tokens = _measure(teacher, student, texts, batch, settings, threshold, generator)
        found += measured
        spent += tokens
    if wanted and not found:
        raise ConfigError(
            f"kappa.budget: {settings.budget} generated tokens are too few for one position with {settings.rounds} "
            f"rounds; about {_expected_tokens(texts, wanted[0], settings)} are needed."
        )
    positions = with_floors(found, _sure(texts, found, settings), threshold)
    return settings.result(positions, candidates=len(order), threshold=threshold, spent=spent)


def _affordable(
    texts: RollOuts, places: Sequence[tuple[int, int]], settings: KappaSettings, left: int
) -> Sequence[tuple[int, int]]:
    """The next few of `places` that fit in a batch and in what is left of the budget."""
    count = max(1, settings.max_rows // settings.continuations)
    for number, place in enumerate(places[:count]):
        left -= _expected_tokens(texts, place, settings)
        if left < 0:
            return places[:number]
    return places[:count]


def _expected_tokens(texts: RollOuts, place: tuple[int, int], settings: KappaSettings) -> int:
    """What a position costs if its continuations are as long as its text is."""
    text, position = place
    return settings.continuations * (int(texts.lengths[text]) - position - 1)


def _order(texts: RollOuts, choose: Choice, generator: torch.Generator) -> list[tuple[int, int]]:
    places = [(text, position) for text, length in enumerate(texts.lengths.tolist()) for position in range(length)]
    if choose == "all":
        return places
    if choose == "random":
        return [places[i] for i in torch.randperm(len(places), generator=generator).tolist()]
    return sorted(places, key=lambda place: -texts.teacher_entropy[place].item())


def _measure(
    teacher: Policy,
    student: Policy,
    texts: RollOuts,
    places: Sequence[tuple[int, int]],
    settings: KappaSettings,
    threshold: float,
    generator: torch.Generator,
) -> tuple[list[PositionKappa], int]:
    """kappa at a few positions, and the tokens it took."""
    prefixes = [texts.prefix(*place) for place in places]
    starts = [policy.start(prefixes) for policy in (teacher, student)]
    said = [start.log_probs() for start in starts]
    p, q = (tempered(logp, settings.temperature).exp().double().cpu() for logp in said)
    likeliest, margin, agreement = _first_choice(*said)
    uniforms = torch.rand(len(places), settings.rounds, texts.horizon + 1, generator=generator, dtype=torch.float64)
    sets = [_action_set(p[i], q[i], settings.top) for i in range(len(places))]
    rests = [_outside(p[i], q[i], sets[i], uniforms[i, :, -1]) for i in range(len(places))]
    # Each round's tokens: the action set, one drawn from the teacher outside it, one from the student.
    tokens = [
        torch.cat([kept.expand(settings.rounds, -1), rest.tokens], 1) for kept, rest in zip(sets, rests, strict=True)
    ]
    losses, spent = continue_from(
        starts,
        Actions.of(tokens, limits=[texts.horizon - 1 - position for _, position in places]),
        uniforms=uniforms[..., :-1],
        temperature=settings.temperature,
        divergence=settings.divergence,
        max_rows=settings.max_rows,
    )
    found = []
    for i, (text, position) in enumerate(places):
        actions, state, contribution = _kappas(losses[i], p[i], q[i], sets[i], rests[i])
        found.append(
            PositionKappa(
                text=text,
                prompt=text // texts.samples,
                position=position,
                token=texts.tokens[text][position],
                teacher_entropy=texts.teacher_entropy[text, position].item(),
                teacher_max_prob=texts.teacher_max_prob[text, position].item(),
                teacher_margin=margin[i],
                likeliest=likeliest[i],
                agreement=agreement[i],
                loss=texts.losses[0, text, position].item(),
                actions=actions,
                state_kappa=state,
                contribution=contribution,
                kind=_kind(state, threshold),
            )
        )
    return found, spent


def _kappas(
    q_values: Tensor, p: Tensor, q: Tensor, kept: Tensor, rest: "_Outside"
) -> tuple[tuple[ActionKappa, ...], Estimate, Estimate]:
    """Of each action `kept`, of the state, and the contribution; `q_values`: ``(rounds, actions + 2)``, drawn last."""
    baseline = q_values[:, :-2] @ p[kept] + rest.mass[0] * q_values[:, -2]
    advantage = q_values - baseline[:, None]
    estimate = partial(Estimate.cautious, size=q_values.abs().max().item())
    actions = tuple(
        ActionKappa(token=token, teacher_prob=teacher, student_prob=student, kappa=estimate(column))
        for token, teacher, student, column in zip(
            kept.tolist(), p[kept].tolist(), q[kept].tolist(), advantage.T[:-2], strict=True
        )
    )
    contribution = advantage[:, :-2] @ q[kept] + rest.mass[1] * advantage[:, -1]
    return actions, estimate(advantage[:, :-2].sum(1)), estimate(contribution)


def _first_choice(teacher_logp: Tensor, student_logp: Tensor) -> tuple[list[int], list[float], list[float]]:
    """Of each row the teacher's likeliest token, its lead over the second, and its probability under the student."""
    top = teacher_logp.topk(min(2, teacher_logp.shape[-1]), dim=-1)
    best, probs = top.indices[:, :1], top.values.double().exp()
    lead = probs[:, 0] - (probs[:, 1] if probs.shape[1] > 1 else 0.0)
    return best.squeeze(1).tolist(), lead.tolist(), student_logp.gather(1, best).double().exp().squeeze(1).tolist()


def _action_set(p: Tensor, q: Tensor, top: int) -> Tensor:
    """The `top` likeliest tokens of both, the teacher's first."""
    count = min(top, len(p))
    ids = [*p.topk(count).indices.tolist(), *q.topk(count).indices.tolist()]
    return torch.tensor(list(dict.fromkeys(ids)))


@dataclass(frozen=True)
class _Outside:
    """What stands for the tokens outside the action set."""

    tokens: Tensor
    """``(rounds, 2)`` drawn from the teacher and from the student; -1 where a model has no mass there."""
    mass: tuple[float, float]
    """The models' total probability there."""


def _outside(p: Tensor, q: Tensor, kept: Tensor, uniforms: Tensor) -> _Outside:
    columns, masses = [], []
    for weights in (p, q):
        left = weights.clone()
        left[kept] = 0.0
        mass = left.sum().item()
        masses.append(mass)
        # The same number for both, so that they often agree and need one continuation.
        column = draw_by_weight(left.expand(len(uniforms), -1), uniforms)
        columns.append(column if mass > 0 else torch.full_like(column, -1))
    return _Outside(torch.stack(columns, 1), (masses[0], masses[1]))


def _sure(texts: RollOuts, places: Sequence[PositionKappa], settings: KappaSettings) -> list[bool]:
    """Whether nothing is drawn after a place: no token is visited any more, or the likeliest is always taken."""
    return [settings.temperature == 0 or place.position == texts.horizon - 1 for place in places]


def with_floors(places: Sequence[PositionKappa], sure: Sequence[bool], threshold: float) -> tuple[PositionKappa, ...]:
    """The same places, none of which is surer than places are on average (see `_floored`), and their kinds."""
    states, contributions = (
        _floored(estimates, sure)
        for estimates in ([place.state_kappa for place in places], [place.contribution for place in places])
    )
    actions = iter(
        _floored(
            [action.kappa for place in places for action in place.actions],
            [one for place, one in zip(places, sure, strict=True) for _ in place.actions],
        )
    )
    return tuple(
        replace(
            place,
            state_kappa=state,
            contribution=contribution,
            actions=tuple(replace(action, kappa=next(actions)) for action in place.actions),
            kind=_kind(state, threshold),
        )
        for place, state, contribution in zip(places, states, contributions, strict=True)
    )


def _floored(estimates: Sequence[Estimate], sure: Sequence[bool]) -> list[Estimate]:
    """Standard errors of at least the square root of their mean square; none where there is nothing to draw.

    A few rounds seldom show what rarely happens, and places where they did not show it look sure. Places together had
    more rounds: over all of them, intervals of this width hold as often as they say. Those whose rounds did not differ
    at all have no square to add.
    """
    squares = [one.stderr**2 for one, known in zip(estimates, sure, strict=True) if one.known and not known]
    floor = math.sqrt(sum(squares) / len(squares)) if squares else math.inf
    return [
        one._replace(stderr=0.0 if known else max(one.stderr if one.known else 0.0, floor))
        for one, known in zip(estimates, sure, strict=True)
    ]


def _kind(state: Estimate, threshold: float) -> Kind:
    return (Kind.UNDECIDED, Kind.BRIDGE, Kind.GARDEN)[state.interval().side(threshold)]


def continue_from(
    starts: Sequence[Decoding],
    actions: Actions,
    *,
    uniforms: Tensor,
    temperature: float,
    divergence: Divergence,
    max_rows: int,
) -> tuple[list[Tensor], int]:
    """Let the teacher continue every action, and sum the student's loss.

    Args:
        starts: the teacher's and the student's decoding of the P prefixes.
        actions: what to try.
        uniforms: ``(P, rounds, T)``: all actions of a round share their random numbers.
        temperature: of the continuations.
        divergence: D of the loss.
        max_rows: continuations in progress at a time.

    Returns:
        For each prefix ``(rounds, tokens)`` float64 nats, 0 in cells with nothing to try; and the tokens generated.
    """
    total = torch.zeros(len(actions.prefix), dtype=torch.float64)
    generated = 0
    for rows in torch.arange(len(total)).split(max_rows):
        # Where nothing is visited any more, the loss is 0 and no model need be asked.
        rows = rows[actions.limit[rows] > 0]
        if not len(rows):
            continue
        after = [start.extend(actions.prefix[rows], actions.token[rows]) for start in starts]
        for visit in walk(
            after,
            torch.arange(len(rows)),
            limits=actions.limit[rows],
            uniforms=uniforms[actions.prefix[rows], actions.round[rows]],
            temperature=temperature,
        ):
            total[rows[visit.rows]] += divergence(visit.logp[0], visit.logp[1]).double().cpu()
            generated += len(visit.rows)
    found = []
    for cell in actions.cells:
        found.append(torch.where(cell >= 0, total[cell.clamp(min=0)], 0.0) if len(total) else cell.double() * 0)
    return found, generated
