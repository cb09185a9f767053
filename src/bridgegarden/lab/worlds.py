"""The lab's worlds: what students are trained, stopped and measured on, and how a reader is told of them.

Training, validation and test problems are three sets, none of which shares a problem with another.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from datasets import Dataset

from bridgegarden.exact.process import EndsOffScript, Process, Role, answered_row, count_prefixes, role, sample, trace
from bridgegarden.exact.tabular import TabularProcess, tabulate
from bridgegarden.exact.tasks import WORLDS
from bridgegarden.exact.world import SPECIAL_TOKENS, World
from bridgegarden.teacher.protocol import ProcessTeacher
from bridgegarden.terminal import counted

MOST_STATES = 200_000
"""Of a process that is solved."""


@dataclass(frozen=True, kw_only=True)
class TestProblem:
    """A problem on which everything is computed exactly."""

    __test__ = False  # the name is not pytest's

    problem: object
    """What is asked."""

    prompt: tuple[int, ...]
    """Token ids that an answer follows."""

    process: TabularProcess
    """What answers it, as arrays; a text that leaves the script is over."""

    right: frozenset[int]
    """States of `process` in which a right answer ends."""


@dataclass(frozen=True, kw_only=True)
class LabData:
    """One draw of problems and answers, shared by all objectives of a seed."""

    world: World
    """Where they are from."""

    train: Dataset
    """Token ids and labels, one answer that the process wrote to each problem."""

    validation: Dataset
    """The same for problems that decide when training stops."""

    test: tuple[TestProblem, ...]
    """Problems that students are measured on."""

    teacher: ProcessTeacher
    """The exact processes of training and validation problems."""


def draw_data(world: World, seed: int, *, train: int, validation: int, test: int) -> LabData:
    """Problems of each split with one wording each, and answers to all but the test problems.

    Args:
        world: where from.
        seed: decides problems, wordings and answers.
        train: training problems.
        validation: validation problems.
        test: test problems. They and those for validation do not depend on the number of training problems.

    Raises:
        ConfigError: the world has fewer problems.
    """
    processes: dict[tuple[int, ...], Process] = {}
    rows = _answered(world, world.problems(train, seed, split="train"), _generator(seed, 0), processes)
    held_out = _answered(world, world.problems(validation, seed, split="validation"), _generator(seed, 1), processes)
    generator = _generator(seed, 2)
    problems = world.problems(test, seed, split="test")
    return LabData(
        world=world,
        train=rows,
        validation=held_out,
        test=tuple(tabulated(world, problem, world.prompt_ids(problem, generator)) for problem in problems),
        teacher=ProcessTeacher(processes, name=f"exact process of {world.name}"),
    )


def tabulated(world: World, problem: object, prompt: Sequence[int]) -> TestProblem:
    """`problem` made ready to be solved for many students.

    A state holds all that matters of what was written, so one text that ends in a state tells for all whether they
    are right.
    """
    process = tabulate(EndsOffScript(world.process(problem)), MOST_STATES).process
    texts = _shortest_texts(process)
    ended = process.terminal.nonzero().squeeze(-1).tolist()
    right = frozenset(state for state in ended if state in texts and world.succeeds(problem, texts[state]))
    return TestProblem(problem=problem, prompt=tuple(prompt), process=process, right=right)


def _shortest_texts(process: TabularProcess) -> dict[int, list[int]]:
    """For every state, tokens that lead to it."""
    texts: dict[int, list[int]] = {process.initial: []}
    layer = [process.initial]
    for _ in range(process.horizon):
        arrived = []
        for state in layer:
            if process.terminal[state]:
                continue
            for token, following in enumerate(process.following[state].tolist()):
                if following not in texts:
                    texts[following] = [*texts[state], token]
                    arrived.append(following)
        layer = arrived
    return texts


def _answered(
    world: World, problems: Sequence, generator: torch.Generator, processes: dict[tuple[int, ...], Process]
) -> Dataset:
    """One answer to each of `problems`, drawn from its process, which is added to `processes`."""
    rows = []
    for row, problem in enumerate(problems):
        process, prompt = world.process(problem), world.prompt_ids(problem, generator)
        processes[tuple(prompt)] = process
        rows.append(answered_row(row, prompt, process, generator))
    return Dataset.from_list(rows)


def _generator(seed: int, stream: int) -> torch.Generator:
    return torch.Generator().manual_seed(3 * seed + stream)


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
