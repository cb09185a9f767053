"""Modular arithmetic in words: every value is a Bridge, every wording a Garden, and the truth is computable.

A problem is a starting value and a few operations modulo a small number. An answer narrates them step by step and
ends with the result. The world slips: each running value (the start, every result, the final answer) is written
wrong with probability `slip_rate`, evenly over the other values, and the narration goes on consistently from what was
written. What was written is in the prefix, so nothing is hidden from its reader.
"""

import random
import re
from bisect import bisect_right
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from bridgegarden.errors import ConfigError
from bridgegarden.exact.phrases import COMPLETE, PhraseTree, phrase_tree
from bridgegarden.exact.process import sample
from bridgegarden.exact.tasks import arithmetic_words as words
from bridgegarden.exact.tasks.arithmetic_problems import (
    SPLIT_SHARES,
    Operation,
    Problem,
    Split,
    check_answer,
    nth_problem,
)

__all__ = [
    "ArithmeticProcess",
    "ArithmeticWorld",
    "Operation",
    "Problem",
    "Split",
    "State",
    "check_answer",
    "make_problems",
]

PAD, UNKNOWN, USER, ASSISTANT, END = range(5)
"""Ids of the special tokens, the same in every arithmetic world."""

SPECIAL_TOKENS = ("<|pad|>", "<|unknown|>", "<|user|>", "<|assistant|>", "<|end|>")

_WORD = re.compile(r"\w+|[^\w\s]")


class State(NamedTuple):
    """Where a narration stands: all of it can be read off the prefix."""

    slot: int
    """Index into the narration's slots; `LOST.slot` once the text has left the script."""

    node: int = 0
    """Node in the phrase tree of a Garden slot."""

    value: int = -1
    """The running value last written, -1 before the first."""

    operator: int = -1
    """Operator written in this step, -1 outside one."""

    operand: int = -1
    """Operand written in this step, -1 outside one."""


LOST = State(slot=-1)
"""Off script: the only thing left to do is to end the text."""


class _Slot(NamedTuple):
    kind: Literal["wording", "start", "operator", "operand", "result", "answer", "end"]
    step: int = -1
    tree: PhraseTree | None = None


@dataclass(frozen=True, kw_only=True)
class ArithmeticWorld:
    """The vocabulary, wordings and slips shared by all problems of one size."""

    modulus: int = 7
    """Values are 0 to modulus - 1; from 3 to 97. A prime makes every step invertible: one slip spoils the result."""

    steps: int = 3
    """Operations in a problem, from 1 to 8."""

    wordings: int = 8
    """Most wordings of one Garden, from 1 to 8; the likeliest are kept."""

    slip_rate: float = 0.1
    """Probability that a running value is written wrong, from 0 to below 1."""

    def __post_init__(self) -> None:
        bounds = {"modulus": (3, 97), "steps": (1, 8), "wordings": (1, 8)}
        for name, (low, high) in bounds.items():
            if not low <= getattr(self, name) <= high:
                raise ConfigError(f"arithmetic.{name} must be from {low} to {high}, got {getattr(self, name)}.")
        if not 0 <= self.slip_rate < 1:
            raise ConfigError(f"arithmetic.slip_rate must be >= 0 and < 1, got {self.slip_rate}.")

    @cached_property
    def vocabulary(self) -> tuple[str, ...]:
        """Every token, the special ones first; a token's id is its place."""
        tables = (words.START, words.OPENING, words.LINKING, words.CLOSING, words.ANSWER)
        prompts = (words.PROMPT_START, words.PROMPT_JOINING, words.PROMPT_QUESTION)
        phrases = [phrase for table in tables for phrase in words.first_phrases(table, self.wordings)]
        phrases += [phrase for table in prompts for phrase in table]
        spoken = {word for phrase in phrases for word in _WORD.findall(phrase)} | {"?"}
        numbers = tuple(str(value) for value in range(self.modulus + 1))
        return SPECIAL_TOKENS + numbers + words.OPERATORS + tuple(sorted(spoken))

    @cached_property
    def ids(self) -> Mapping[str, int]:
        """Token to id."""
        return {word: index for index, word in enumerate(self.vocabulary)}

    def encode(self, text: str) -> list[int]:
        """Token ids of plain text; a word outside the vocabulary becomes `UNKNOWN`."""
        return [self.ids.get(word, UNKNOWN) for word in _WORD.findall(text)]

    def decode(self, tokens: Sequence[int]) -> str:
        """The text of `tokens`, special ones left out."""
        text = " ".join(self.vocabulary[token] for token in tokens if token >= len(SPECIAL_TOKENS))
        return re.sub(r" ([.,!?])", r"\1", text)

    def process(self, problem: Problem) -> "ArithmeticProcess":
        """The exact process that answers `problem`."""
        return ArithmeticProcess(self, problem)

    def answer(self, problem: Problem, generator: torch.Generator) -> str:
        """One answer drawn from the process, slips included."""
        return self.decode(sample(self.process(problem), generator))

    def prompt(self, problem: Problem, generator: torch.Generator) -> str:
        """The problem in words, its wording drawn at random."""
        count = 2 + len(problem.operations)
        draws = iter(torch.rand(count, generator=generator, dtype=torch.float64).tolist())
        text = f"{_draw(words.PROMPT_START, next(draws))} {problem.start}"
        for operator, operand in problem.operations:
            text += f" {_draw(words.PROMPT_JOINING, next(draws))} {operator} {operand}"
        text += f" {_draw(words.PROMPT_QUESTION, next(draws))} {problem.modulus}?"
        return self.decode(self.encode(text))

    @cached_property
    def slots(self) -> tuple[_Slot, ...]:
        """What an answer is made of, in order."""
        closing = self._wording(words.CLOSING)
        slots = [self._wording(words.START), _Slot("start"), closing]
        for step in range(self.steps):
            slots += [self._wording(words.OPENING), _Slot("operator", step), _Slot("operand", step)]
            slots += [self._wording(words.LINKING), _Slot("result", step), closing]
        return (*slots, self._wording(words.ANSWER), _Slot("answer"), closing, _Slot("end"))

    def _wording(self, table: words.Phrases) -> _Slot:
        kept = words.first_phrases(table, self.wordings)
        phrases = {tuple(self.encode(phrase)): weight for phrase, weight in kept.items()}
        return _Slot("wording", tree=phrase_tree(phrases, len(self.vocabulary)))

    @cached_property
    def value_ids(self) -> range:
        """Ids of the values 0 to modulus - 1, in order."""
        return range(self.ids["0"], self.ids["0"] + self.modulus)

    @cached_property
    def operator_ids(self) -> range:
        """Ids of the operators, in the order of `arithmetic_words.OPERATORS`."""
        return range(self.ids[words.OPERATORS[0]], self.ids[words.OPERATORS[0]] + len(words.OPERATORS))

    @cached_property
    def _slipping(self) -> Tensor:
        """Row v: log-probabilities of the token written where v is right."""
        rows = torch.zeros(self.modulus, len(self.vocabulary), dtype=torch.float64)
        values = torch.arange(self.modulus)
        rows[:, self.value_ids.start : self.value_ids.stop] = self.slip_rate / (self.modulus - 1)
        rows[values, values + self.value_ids.start] = 1 - self.slip_rate
        return rows.log()

    @cached_property
    def _certain(self) -> Tensor:
        """Row t: all mass on token t."""
        return torch.eye(len(self.vocabulary), dtype=torch.float64).log()


class ArithmeticProcess:
    """The answers to one problem, as a `bridgegarden.exact.process.Process`."""

    def __init__(self, world: ArithmeticWorld, problem: Problem):
        if (problem.modulus, len(problem.operations)) != (world.modulus, world.steps):
            raise ConfigError(
                f"arithmetic: the problem has modulus {problem.modulus} and {len(problem.operations)} steps, the world "
                f"{world.modulus} and {world.steps}. Make the problem with make_problems(..., world=world)."
            )
        self.world = world
        self.problem = problem
        self.initial = State(slot=0)
        self.vocab_size = len(world.vocabulary)
        self.horizon = sum(slot.tree.depth if slot.tree else 1 for slot in world.slots)

    def is_terminal(self, state: State) -> bool:
        """Whether the end token has been written."""
        return state.slot == len(self.world.slots)

    def meaning(self, state: State) -> Hashable:
        """The values and the operator written, and whether the text is still on script."""
        return state.slot == LOST.slot, state.value, state.operator, state.operand

    def log_probs(self, state: State) -> Tensor:
        """``(V,)`` float64 nats. A lost text is ended at once; an ended one goes on with padding."""
        if state == LOST:
            return self.world._certain[END]
        if self.is_terminal(state):
            return self.world._certain[PAD]
        slot = self.world.slots[state.slot]
        if slot.tree is not None:
            return slot.tree.log_probs[state.node]
        if slot.kind in ("start", "result", "answer"):
            return self.world._slipping[self._right_value(slot, state)]
        return self.world._certain[self._right_token(slot)]

    def continuations(self, state: State) -> Sequence[int]:
        """The wordings of a Garden, or all values, or all operators."""
        if state == LOST:
            return (END,)
        if self.is_terminal(state):
            return (PAD,)
        slot = self.world.slots[state.slot]
        if slot.tree is not None:
            return tuple(slot.tree.children[state.node])
        return {"operator": self.world.operator_ids, "end": (END,)}.get(slot.kind, self.world.value_ids)

    def step(self, state: State, token: int) -> State:
        """The state after `token`; a token that is no continuation loses the script."""
        if self.is_terminal(state):
            return state
        if state == LOST:
            return State(slot=len(self.world.slots)) if token == END else LOST
        slot = self.world.slots[state.slot]
        if slot.tree is not None:
            return _step_wording(slot.tree, state, token)
        if token not in self.continuations(state):
            return LOST
        following = state._replace(slot=state.slot + 1)
        if slot.kind == "operator":
            return following._replace(operator=token - self.world.operator_ids.start)
        if slot.kind == "operand":
            return following._replace(operand=token - self.world.value_ids.start)
        if slot.kind == "end":
            return following
        return following._replace(value=token - self.world.value_ids.start, operator=-1, operand=-1)

    def _right_value(self, slot: _Slot, state: State) -> int:
        if slot.kind == "start":
            return self.problem.start
        if slot.kind == "answer":
            return state.value
        return Operation(words.OPERATORS[state.operator], state.operand).apply(state.value, self.world.modulus)

    def _right_token(self, slot: _Slot) -> int:
        if slot.kind == "end":
            return END
        operation = self.problem.operations[slot.step]
        return self.world.ids[operation.operator if slot.kind == "operator" else str(operation.operand)]


def _step_wording(tree: PhraseTree, state: State, token: int) -> State:
    child = tree.children[state.node].get(token)
    if child is None:
        return LOST
    if child == COMPLETE:
        return state._replace(slot=state.slot + 1, node=0)
    return state._replace(node=child)


def _draw(table: words.Phrases, uniform: float) -> str:
    """The phrase at which the cumulative weight passes `uniform`."""
    reached = list(accumulate(table.values()))
    return list(table)[bisect_right(reached, uniform * reached[-1])]


def make_problems(n: int, seed: int, *, split: Split = "train", world: ArithmeticWorld | None = None) -> list[Problem]:
    """`n` distinct problems of one split, in random order. No problem is in two splits, whatever the seeds.

    Raises:
        ConfigError: when the split has fewer than `n` problems.
    """
    world = world or ArithmeticWorld()
    choices = len(words.OPERATORS) * (world.modulus - 1)
    size = world.modulus * choices**world.steps
    codes = random.Random(seed).sample(range(size), min(size, 150 * n // SPLIT_SHARES[split] + 1000))
    drawn = (nth_problem(code, world.modulus, world.steps) for code in codes)
    problems = [problem for problem in drawn if problem.split == split][:n]
    if len(problems) < n:
        raise ConfigError(
            f"arithmetic: asked for {n} {split} problems, but modulus {world.modulus} and {world.steps} steps give "
            f"{len(problems)}. Ask for fewer, or raise the modulus or the steps."
        )
    return problems
