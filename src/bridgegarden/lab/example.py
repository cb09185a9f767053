"""One example answer, looked at token by token with what is exactly true at each."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from bridgegarden.exact import ExactSolution
from bridgegarden.exact.vocabulary import END
from bridgegarden.exact.world import World

RoleName = Literal["bridge", "garden", "forced"]
"""Values of :class:`bridgegarden.exact.process.Role`."""

ACTIONS_SHOWN = 8
"""Tokens looked at in one position of an example."""


@dataclass(frozen=True, kw_only=True)
class ActionView:
    """One token that might have been written."""

    text: str
    """As written. Untrusted: escape it."""

    teacher: float
    """Its probability under the teacher."""

    student: float
    """Its probability under the student."""

    kappa: float
    """kappa(a|s), nats."""


@dataclass(frozen=True, kw_only=True)
class TokenView:
    """One position of an example answer, and what is exactly true there."""

    text: str
    """As written. Untrusted: escape it."""

    role: RoleName
    """What the choice of this token decides, read off the process."""

    confidence: float
    """max p."""

    entropy: float
    """Of p, nats."""

    kl: float
    """KL(p || q), nats."""

    kappa: float
    """kappa(s): the sum over all tokens that keep the text on script, nats."""

    weighted_kappa: float
    """sum_a q(a|s) kappa(a|s), nats."""

    actions: tuple[ActionView, ...]
    """Tokens that keep the text on script, the likeliest under either model first; at most eight."""


@dataclass(frozen=True, kw_only=True)
class ExampleView:
    """The teacher's likeliest answer to one test problem, seen with one student."""

    prompt: str
    """The problem in words."""

    tokens: tuple[TokenView, ...]
    """The answer, its end token left out."""


def view_example(solution: ExactSolution, world: World, prompt: Sequence[int]) -> ExampleView:
    """The teacher's likeliest answer to a solved problem, token by token, its end token left out."""
    written = likeliest_text(solution, solution.unrolled.teacher)
    tokens = written[:-1] if written[-1:] == [END] else written
    views = tuple(_view_token(solution, world, tokens[:place], token) for place, token in enumerate(tokens))
    return ExampleView(prompt=world.decode(prompt), tokens=views)


def likeliest_text(solution: ExactSolution, prob: Tensor) -> list[int]:
    """The text of the likeliest token at each position, its end token included."""
    unrolled = solution.unrolled
    row, tokens = int(unrolled.layers[0]), []
    while not unrolled.over[row] and len(tokens) < len(unrolled.layers):
        tokens.append(int(prob[row].argmax()))
        row = int(unrolled.following[row, tokens[-1]])
    return tokens


def _view_token(solution: ExactSolution, world: World, before: Sequence[int], token: int) -> TokenView:
    node = solution.node_of(before)
    row = int(solution.nodes.row[node])
    teacher, student = solution.unrolled.teacher[row], solution.unrolled.student[row]
    kappa = solution.kappa_at(torch.tensor([node])).squeeze(0)
    on_script = solution.unrolled.world.process.on_script[int(solution.unrolled.state[row])].nonzero().squeeze(-1)
    order = torch.maximum(teacher, student)[on_script].argsort(descending=True)[:ACTIONS_SHOWN]
    return TokenView(
        text=world.vocabulary[token],
        role=solution.roles[node].value,
        confidence=teacher.max().item(),
        entropy=solution.unrolled.teacher_entropy[row].item(),
        kl=solution.loss[node].item(),
        kappa=solution.state_kappa[node].item(),
        weighted_kappa=solution.student_kappa[node].item(),
        actions=tuple(
            ActionView(
                text=world.vocabulary[action],
                teacher=teacher[action].item(),
                student=student[action].item(),
                kappa=kappa[action].item(),
            )
            for action in on_script[order].tolist()
        ),
    )
