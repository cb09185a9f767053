"""A small world in which everything can be enumerated, a student of it, and the enumeration."""

from typing import NamedTuple

import torch
from torch import Tensor

from bridgegarden.exact import ProcessPolicy, TablePolicy, TabularProcess

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
