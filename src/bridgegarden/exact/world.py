"""What all worlds share: problems in splits that have none in common, text as token ids, phrases to choose from, and
answers that follow a script.

A script is slots in order, each a Garden of wordings or a choice that what was written decides. A fixed token is a
Garden with one phrase. A choice lists the tokens that keep the text on script, right or wrong, and what is remembered
of the one written; later slots may depend on it. All of a state can be read off the prefix. A token that is no
continuation loses the script: there is nothing left to do then but to end the text.
"""

import hashlib
import random
import re
from abc import ABC, abstractmethod
from bisect import bisect_right
from collections.abc import Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from itertools import accumulate
from math import prod
from typing import Any, ClassVar, Generic, Literal, NamedTuple, TypeVar

import torch
from torch import Tensor

from bridgegarden.errors import ConfigError
from bridgegarden.exact.process import Process

PAD, UNKNOWN, USER, ASSISTANT, END = range(5)
"""Ids of the special tokens, the same in every world."""

SPECIAL_TOKENS = ("<|pad|>", "<|unknown|>", "<|user|>", "<|assistant|>", "<|end|>")

Phrases = Mapping[str, float]
"""Phrase to weight, the likeliest first."""

ProblemT = TypeVar("ProblemT")

Split = Literal["train", "validation", "test"]

SPLIT_SHARES: Mapping[Split, int] = {"train": 80, "validation": 10, "test": 10}
"""Per cent of all problems in each split."""

_WORD = re.compile(r"\w+|[^\w\s]")
MemoryT = TypeVar("MemoryT", bound=Hashable)

COMPLETE = -1
"""The child of a token that ends its phrase."""


class World(ABC, Generic[ProblemT]):
    """Problems of one family and size, and for each the exact process that answers it. All of it is text, as token ids.

    Everything the process depends on is in the prompt and in what has been written, so a student never has to guess.
    Problems are hashable, and belong to the world that made them.
    """

    name: ClassVar[str]
    """What the family is called."""

    prompt_wordings: int
    """Wordings of each part of a prompt; the likeliest are kept."""

    sizes: str
    """What decides how many problems there are, in words."""

    radices: Sequence[int]
    """How many values each choice has that a problem is made of; their product is the number of problems."""

    @abstractmethod
    def problem_of(self, choices: Sequence[int]) -> ProblemT:
        """The problem of these choices, each from 0 to below its radix; other choices give another problem."""

    @abstractmethod
    def spoken(self) -> tuple[Sequence[str], Iterable[str]]:
        """Words whose ids stand in this order, and phrases that hold all others."""

    @abstractmethod
    def prompt(self, problem: ProblemT, generator: torch.Generator) -> str:
        """`problem` in words, its wording drawn at random."""

    @abstractmethod
    def process(self, problem: ProblemT) -> Process[Any]:
        """The exact process that answers `problem`, the end token being the last of an answer."""

    @abstractmethod
    def succeeds(self, problem: ProblemT, tokens: Sequence[int]) -> bool:
        """Whether the answer `tokens` does what was asked."""

    def problems(self, n: int, seed: int, *, split: Split = "train") -> list[ProblemT]:
        """`n` distinct problems of one split, in random order. No problem is in two splits, whatever the seeds.

        Raises:
            ConfigError: when the split has fewer than `n` problems.
        """
        count = prod(self.radices)
        codes = random.Random(seed).sample(range(count), min(count, 150 * n // SPLIT_SHARES[split] + 1000))
        drawn = (self.problem_of(digits(code, self.radices)) for code in codes)
        problems = [problem for problem in drawn if split_of(problem) == split][:n]
        if len(problems) < n:
            raise ConfigError(
                f"{self.name}: asked for {n} {split} problems, but {self.sizes} give {len(problems)}. "
                "Ask for fewer, or raise one of the sizes."
            )
        return problems

    @cached_property
    def vocabulary(self) -> tuple[str, ...]:
        """Every token, the special ones first; its place is its id."""
        first, phrases = self.spoken()
        others = {word for phrase in phrases for word in split_words(phrase)}.difference(first)
        return (*SPECIAL_TOKENS, *first, *sorted(others))

    @cached_property
    def ids(self) -> Mapping[str, int]:
        """Token to id."""
        return {word: index for index, word in enumerate(self.vocabulary)}

    def encode(self, text: str) -> list[int]:
        """Token ids of plain text; a word outside the vocabulary becomes `UNKNOWN`."""
        return [self.ids.get(word, UNKNOWN) for word in split_words(text)]

    def decode(self, tokens: Sequence[int]) -> str:
        """The text of `tokens`, special ones left out."""
        text = " ".join(self.vocabulary[token] for token in tokens if token >= len(SPECIAL_TOKENS))
        return re.sub(r" ([.,!?])", r"\1", text)

    def encode_phrases(self, phrases: Phrases) -> dict[tuple[int, ...], float]:
        """`phrases` with token ids for words."""
        return {tuple(self.encode(phrase)): weight for phrase, weight in phrases.items()}

    def prompt_ids(self, problem: ProblemT, generator: torch.Generator) -> list[int]:
        """The whole prompt as a student sees it, in a wording drawn at random; the answer starts right after it."""
        return ask(self.encode(self.prompt(problem, generator)))

    def _asked(self, table: Phrases, uniform: float) -> str:
        return phrase_at(first_phrases(table, self.prompt_wordings), uniform)

    def _check(self, sizes: Mapping[str, tuple[int, int]], rates: Sequence[str] = ("slip_rate",)) -> None:
        """Refuse fields of `sizes` that are no whole number from low to high, and rates outside [0, 1)."""
        for field, (low, high) in sizes.items():
            value = getattr(self, field)
            if not isinstance(value, int) or not low <= value <= high:
                raise ConfigError(f"{self.name}.{field} must be a whole number from {low} to {high}, got {value}.")
        for field in rates:
            if not 0 <= getattr(self, field) < 1:
                raise ConfigError(f"{self.name}.{field} must be >= 0 and < 1, got {getattr(self, field)}.")


def split_words(text: str) -> list[str]:
    """Words and punctuation marks of `text`, one token each."""
    return _WORD.findall(text)


def ask(prompt: Sequence[int]) -> list[int]:
    """The ids of a prompt as the chat template renders them, up to and including the assistant's mark."""
    return [USER, *prompt, END, ASSISTANT]


def first_phrases(table: Phrases, count: int) -> Phrases:
    """The `count` likeliest phrases of `table`."""
    return dict(list(table.items())[:count])


def phrase_at(table: Phrases, uniform: float) -> str:
    """The phrase at which the cumulative weight passes `uniform`, a number from 0 to below 1."""
    reached = list(accumulate(table.values()))
    return list(table)[bisect_right(reached, uniform * reached[-1])]


def split_of(problem: object) -> Split:
    """Where `problem` belongs, by its content alone (its `repr`): 80 % train, 10 % validation, 10 % test."""
    bucket = int.from_bytes(hashlib.sha256(repr(problem).encode()).digest()[:8]) % 100
    ends = accumulate(SPLIT_SHARES.values())
    return next(split for split, end in zip(SPLIT_SHARES, ends, strict=True) if bucket < end)


def digits(code: int, radices: Sequence[int]) -> list[int]:
    """`code`, from 0 to below the product of `radices`, in mixed radix, the fastest digit first."""
    if not 0 <= code < prod(radices):
        raise ConfigError(f"problem {code}: there are {prod(radices)}, numbered from 0. Ask for one of them.")
    found = []
    for radix in radices:
        code, digit = divmod(code, radix)
        found.append(digit)
    return found


@dataclass(frozen=True, kw_only=True)
class PhraseTree:
    """The phrases of one Garden. Node 0 is the root; the tree never holds a phrase that begins another."""

    children: tuple[Mapping[int, int], ...]
    """For each node, the node after each token that may follow, or `COMPLETE`."""

    log_probs: Tensor
    """``(nodes, V)`` float64 nats: the next token given that the phrase has come to this node."""

    depth: int
    """Tokens of the longest phrase."""


def phrase_tree(phrases: Mapping[tuple[int, ...], float], vocab_size: int) -> PhraseTree:
    """The tree of `phrases`: token ids to weight, the weights not necessarily normalised.

    Raises:
        ConfigError: a phrase is empty, begins another one (a reader could not tell whether it had ended), or has a
            weight that is not positive.
    """
    children: list[dict[int, int]] = [{}]
    mass: list[dict[int, float]] = [{}]
    for phrase, weight in sorted(phrases.items()):
        if not phrase or not weight > 0:
            raise ConfigError(f"phrase {phrase}: needs at least one token and a weight > 0, got weight {weight}.")
        node = 0
        for position, token in enumerate(phrase):
            last = position == len(phrase) - 1
            child = children[node].get(token)
            if child == COMPLETE or (last and child is not None):
                raise ConfigError(f"phrase {phrase}: one phrase begins another. Reword one of them.")
            if child is None:
                child = COMPLETE if last else len(children)
                children[node][token] = child
                if not last:
                    children.append({})
                    mass.append({})
            mass[node][token] = mass[node].get(token, 0.0) + weight
            node = child
    prob = torch.zeros(len(children), vocab_size, dtype=torch.float64)
    for node, weights in enumerate(mass):
        prob[node, list(weights)] = torch.tensor(list(weights.values()), dtype=torch.float64)
    return PhraseTree(
        children=tuple(children),
        log_probs=(prob / prob.sum(-1, keepdim=True)).log(),
        depth=max(map(len, phrases)),
    )


class Slot(NamedTuple):
    """One place of a script."""

    name: str
    """What is written here."""

    index: int = 0
    """Which of the slots of this name."""

    tree: PhraseTree | None = None
    """The wordings of a Garden; `None` for a choice."""


class State(NamedTuple, Generic[MemoryT]):
    """Where an answer stands."""

    slot: int
    """Index into the script's slots; `LOST.slot` off script, their number once the text has ended."""

    node: int = 0
    """Node in the phrase tree of a Garden."""

    memory: MemoryT | None = None
    """What is remembered of the tokens written; `None` once the text has left the script."""


LOST: State[Any] = State(slot=-1)
"""Off script."""


class Choices(NamedTuple):
    """What may be written at a slot."""

    tokens: Sequence[int]
    """Ids that keep the text on script."""

    log_probs: Tensor
    """``(V,)`` float64 nats, no mass on other ids."""


@lru_cache(maxsize=4096)
def slipping(tokens: Sequence[int], right: int, *, slip_rate: float, vocab_size: int) -> Choices:
    """A Bridge: `right`, one of at least two `tokens`, but with probability `slip_rate` evenly one of the others."""
    prob = torch.zeros(vocab_size, dtype=torch.float64)
    prob[list(tokens)] = slip_rate / (len(tokens) - 1)
    prob[right] = 1 - slip_rate
    return Choices(tokens, prob.log())


@lru_cache(maxsize=4096)
def weighted(tokens: Sequence[int], weights: Sequence[float], *, vocab_size: int) -> Choices:
    """Each of `tokens` with a probability proportional to its weight."""
    prob = torch.zeros(vocab_size, dtype=torch.float64)
    prob[list(tokens)] = torch.tensor(weights, dtype=torch.float64)
    return Choices(tokens, (prob / prob.sum()).log())


def wording(world: World, phrases: Phrases) -> Slot:
    """A Garden: any of `phrases`."""
    return Slot("wording", tree=phrase_tree(world.encode_phrases(phrases), len(world.vocabulary)))


def fixed(world: World, phrase: str) -> Slot:
    """The words of `phrase` and nothing else."""
    return wording(world, {phrase: 1.0})


class ScriptProcess(Generic[MemoryT]):
    """A `bridgegarden.exact.process.Process` that follows a script.

    A family whose slots are not all Gardens overrides `choices` and `remember`.
    """

    def __init__(self, slots: Sequence[Slot], *, memory: MemoryT, vocab_size: int):
        """`memory` is what is known before the first token; the end token follows the last of `slots`."""
        end = Slot("end", tree=phrase_tree({(END,): 1.0}, vocab_size))
        self.slots = (*slots, end)
        self.vocab_size = vocab_size
        self.horizon = sum(slot.tree.depth if slot.tree else 1 for slot in self.slots)
        self.initial: State[MemoryT] = State(slot=0, memory=memory)

    def choices(self, slot: Slot, memory: MemoryT) -> Choices:
        """What may be written at `slot`, one without a tree."""
        raise NotImplementedError(f"{type(self).__name__} does not say what may be written at slot {slot.name!r}.")

    def remember(self, slot: Slot, memory: MemoryT, token: int) -> MemoryT:
        """`memory` once `token`, one of the choices of `slot`, has been written."""
        raise NotImplementedError(f"{type(self).__name__} does not say what slot {slot.name!r} leaves in memory.")

    def matters(self, memory: MemoryT) -> Hashable:
        """The part of `memory` that is not wording: all of it, unless a family says otherwise."""
        return memory

    def is_terminal(self, state: State[MemoryT]) -> bool:
        """Whether the end token has been written."""
        return state.slot == len(self.slots)

    def meaning(self, state: State[MemoryT]) -> Hashable:
        """What was written that matters, or that the text is off script."""
        return "off script" if state.memory is None else self.matters(state.memory)

    def log_probs(self, state: State[MemoryT]) -> Tensor:
        """``(V,)`` float64 nats. A lost text is ended at once; an ended one goes on with padding."""
        if state.slot == LOST.slot or self.is_terminal(state):
            return weighted((PAD if self.is_terminal(state) else END,), (1.0,), vocab_size=self.vocab_size).log_probs
        slot = self.slots[state.slot]
        return slot.tree.log_probs[state.node] if slot.tree else self._choices(slot, state).log_probs

    def continuations(self, state: State[MemoryT]) -> Sequence[int]:
        """The next tokens of a Garden's wordings, or all choices."""
        if state.slot == LOST.slot or self.is_terminal(state):
            return (PAD if self.is_terminal(state) else END,)
        slot = self.slots[state.slot]
        return tuple(slot.tree.children[state.node]) if slot.tree else self._choices(slot, state).tokens

    def step(self, state: State[MemoryT], token: int) -> State[MemoryT]:
        """The state after `token`; a token that is no continuation loses the script."""
        if self.is_terminal(state):
            return state
        if state.slot == LOST.slot:
            return State(slot=len(self.slots)) if token == END else LOST
        slot = self.slots[state.slot]
        if slot.tree:
            return _step_wording(slot.tree, state, token)
        if token not in self._choices(slot, state).tokens:
            return LOST
        return State(slot=state.slot + 1, memory=self.remember(slot, _known(state), token))

    def _choices(self, slot: Slot, state: State[MemoryT]) -> Choices:
        return self.choices(slot, _known(state))

    def read(self, tokens: Sequence[int]) -> MemoryT | None:
        """What is remembered at the end of a whole text on script; `None` where `tokens` are no such text."""
        state = self.initial
        for token in tokens:
            if self.is_terminal(state):
                return None
            state = self.step(state, token)
        return state.memory if self.is_terminal(state) else None


def _known(state: State[MemoryT]) -> MemoryT:
    assert state.memory is not None, "on script something is remembered, if only an empty tuple"
    return state.memory


def _step_wording(tree: PhraseTree, state: State[MemoryT], token: int) -> State[MemoryT]:
    child = tree.children[state.node].get(token)
    if child is None:
        return LOST
    if child == COMPLETE:
        return state._replace(slot=state.slot + 1, node=0)
    return state._replace(node=child)
