"""The lab's worlds, for a reader: how large they are, and an answer with its Bridges marked."""

from dataclasses import dataclass

import torch

from bridgegarden.exact.off_script import EndsOffScript
from bridgegarden.exact.process import Process, Role, role, sample, trace
from bridgegarden.exact.tabular import TabularProcess, tabulate
from bridgegarden.exact.vocabulary import SPECIAL_TOKENS
from bridgegarden.exact.world import WORLDS
from bridgegarden.lab.data import MOST_STATES
from bridgegarden.terminal import counted


@dataclass(frozen=True, kw_only=True)
class WorldView:
    """One world at the size of the lab."""

    name: str
    """Key of `WORLDS`."""

    tokens: int
    """Size of the vocabulary."""

    longest: int
    """Most tokens of an answer on script, its end token included."""

    prefixes: int
    """Distinct prefixes of answers to the example, for each of which a student is evaluated."""

    bridges: int
    """Bridges in the example answer."""

    gardens: int
    """Gardens in the example answer."""

    forced: int
    """Forced positions in the example answer, the end token included."""

    prompt: str
    """An example problem in words."""

    answer: str
    """An answer to it: Bridges in [brackets], Gardens in (parentheses)."""

    def text(self) -> str:
        """In a few lines."""
        return (
            f"{self.name}: {self.tokens} tokens, answers of up to {self.longest}, {self.prefixes:,} prefixes; in the "
            f"example {counted(self.bridges, 'Bridge')}, {counted(self.gardens, 'Garden')}, {self.forced} forced\n"
            f"  {self.prompt}\n"
            f"  {self.answer}\n"
        )


MARKS = {Role.BRIDGE: "[{}]", Role.GARDEN: "({})", Role.FORCED: "{}"}


def describe_worlds(seed: int = 0) -> list[WorldView]:
    """Every world, with a test problem and an answer drawn by `seed`."""
    return [_describe(name, seed) for name in WORLDS]


def _describe(name: str, seed: int) -> WorldView:
    world = WORLDS[name]()
    (problem,) = world.problems(1, seed, split="test")
    generator = torch.Generator().manual_seed(seed)
    prompt = world.prompt(problem, generator)
    process = world.process(problem)
    answer = sample(process, generator)
    roles = [role(process, state) for state in trace(process, answer)]
    words = [MARKS[role].format(world.vocabulary[token]) for token, role in zip(answer, roles, strict=True)]
    return WorldView(
        name=name,
        tokens=len(world.vocabulary),
        longest=process.horizon,
        prefixes=count_prefixes(process),
        bridges=roles.count(Role.BRIDGE),
        gardens=roles.count(Role.GARDEN),
        forced=roles.count(Role.FORCED),
        prompt=prompt,
        answer=" ".join(word for word in words if word not in SPECIAL_TOKENS),
    )


def count_prefixes(process: Process) -> int:
    """Distinct texts after which an answer still goes on, on script, the empty one included."""
    table: TabularProcess = tabulate(EndsOffScript(process), MOST_STATES).process
    here = torch.zeros(len(table.terminal), dtype=torch.float64)
    here[table.initial] = 1.0
    total = 0.0
    for _ in range(table.horizon):
        here[table.terminal] = 0.0
        total += here.sum().item()
        going_on = here.nonzero().squeeze(-1)
        following = torch.zeros_like(here)
        for state in going_on.tolist():
            following.index_add_(0, table.following[state], here[state].expand(table.vocab_size))
        here = following
    return round(total)
