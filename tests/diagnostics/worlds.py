"""A small world in which everything can be enumerated, a student of it, and the enumeration."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from bridgegarden.diagnostics.rollout import RollOuts, roll_out
from bridgegarden.exact import ProcessPolicy, TablePolicy, TabularProcess
from bridgegarden.policy import Policy

VOCABULARY, HORIZON = 5, 6


class World(NamedTuple):
    """The same text-writing process as teacher and, with other numbers, as student."""

    process: TabularProcess
    teacher: ProcessPolicy
    student: TablePolicy
    student_table: Tensor


def make_world(seed: int = 0, *, horizon: int = HORIZON, difference: float = 0.7) -> World:
    """Four states and an end, every token possible everywhere; texts end early or are cut by the horizon."""
    generator = torch.Generator().manual_seed(seed)
    following = torch.randint(0, 5, (5, VOCABULARY), generator=generator)
    following[:4, 0] = 4
    logits = 1.5 * torch.randn(5, VOCABULARY, generator=generator, dtype=torch.float64)
    logits[:, 0] -= 0.5
    process = TabularProcess(
        logits.log_softmax(-1), following, torch.tensor([False] * 4 + [True]), horizon=horizon, initial=0
    )
    noise = torch.randn(5, VOCABULARY, generator=generator, dtype=torch.float64)
    table = (logits + difference * noise).log_softmax(-1)
    return World(process, ProcessPolicy(process), TablePolicy(process, table), table)


START, CALM, EDGE, DISASTER = range(4)


def rare_disasters(*, uneven: float = 0.0) -> World:
    """Texts that all lose the same, but for a few that leave everything the student knows: 1 % of the teacher's, 9 %
    of the student's.

    The first token goes to the edge or to calm ground, from the edge the second one falls or does not, and what follows
    decides nothing.

    Args:
        uneven: by how much the student's logits differ between states other than the disaster. Above zero, texts
            without a disaster differ a little, too.
    """
    following = torch.tensor([[CALM, EDGE], [CALM, CALM], [CALM, DISASTER], [DISASTER, DISASTER]])
    teacher = torch.tensor([[0.9, 0.1]] * 3 + [[0.95, 0.05]], dtype=torch.float64).log()
    student = torch.tensor([[0.7, 0.3]] * 3 + [[0.05, 0.95]], dtype=torch.float64).log()
    student[CALM, 1] += uneven
    student[EDGE, 1] += uneven / 2
    student = student.log_softmax(-1)
    process = TabularProcess(teacher, following, torch.zeros(4, dtype=torch.bool), horizon=8, initial=START)
    return World(process, ProcessPolicy(process), TablePolicy(process, student), student)


class Recital(NamedTuple):
    """A `Decoding` of texts that are known: all the mass is on what comes next."""

    left: list[tuple[int, ...]]
    vocab_size: int

    def log_probs(self) -> Tensor:
        following = torch.tensor([left[0] if left else 0 for left in self.left])
        return torch.nn.functional.one_hot(following, self.vocab_size).double().log()

    def ended(self) -> Tensor:
        return torch.tensor([not left for left in self.left])

    def extend(self, rows: Tensor, tokens: Tensor) -> "Recital":
        assert all(self.left[row][0] == token for row, token in zip(rows.tolist(), tokens.tolist(), strict=True))
        return Recital([self.left[row][1:] for row in rows.tolist()], self.vocab_size)


class Reciter(NamedTuple):
    """A `Policy` that writes the text it was given for a prompt."""

    texts: Mapping[tuple[int, ...], tuple[int, ...]]
    vocab_size: int

    def start(self, prefixes: Sequence[Sequence[int]]) -> Recital:
        return Recital([self.texts[tuple(prefix)] for prefix in prefixes], self.vocab_size)


def recited(
    teacher: Policy, student: Policy, prompts: Sequence[tuple[int, ...]], texts: Sequence[tuple[int, ...]], horizon: int
) -> RollOuts:
    """What both say of given texts, one for each prompt, equal ones for equal prompts."""
    writer = Reciter(dict(zip(prompts, texts, strict=True)), teacher.vocab_size)
    uniforms = torch.zeros(len(prompts), 1, horizon, dtype=torch.float64)
    return roll_out(teacher, [student], prompts, writer=writer, uniforms=uniforms)


class Enumeration:
    """Expectations as sums over every text, by recursion on prefixes; nothing is shared with what is tested."""

    def __init__(self, world: World, temperature: float = 1.0) -> None:
        self.process, self.table, self.temperature = world.process, world.student_table, temperature

    def p(self, state: int) -> Tensor:
        return (self.process.log_probs(state) / self.temperature).softmax(-1)

    def q(self, state: int) -> Tensor:
        return (self.table[state] / self.temperature).softmax(-1)

    def loss(self, state: int) -> float:
        p, q = self.process.log_probs(state).exp(), self.table[state].exp()
        return sum(a.item() * (a / b).log().item() for a, b in zip(p, q, strict=True))

    def cost(self, state: int, left: int, writer) -> float:
        """Expected summed loss from `state` on, `left` tokens before the horizon, when `writer` writes."""
        if left == 0 or self.process.is_terminal(state):
            return 0.0
        later = [self.cost(self.process.step(state, token), left - 1, writer) for token in range(VOCABULARY)]
        return self.loss(state) + sum(a * b for a, b in zip(writer(state).tolist(), later, strict=True))

    def after(self, prefix: tuple[int, ...]) -> tuple[int, int]:
        state = 0
        for token in prefix:
            state = self.process.step(state, token)
        return state, self.process.horizon - len(prefix)

    def kappa(self, prefix: tuple[int, ...]) -> list[float]:
        state, left = self.after(prefix)
        q = [self.cost(self.process.step(state, token), left - 1, self.p) for token in range(VOCABULARY)]
        baseline = sum(a * b for a, b in zip(self.p(state).tolist(), q, strict=True))
        return [value - baseline for value in q]

    def contribution(self, prefix: tuple[int, ...]) -> float:
        state, _ = self.after(prefix)
        return sum(a * b for a, b in zip(self.q(state).tolist(), self.kappa(prefix), strict=True))

    @property
    def teacher_loss(self) -> float:
        return self.cost(0, self.process.horizon, self.p)

    @property
    def student_loss(self) -> float:
        return self.cost(0, self.process.horizon, self.q)
