"""Answers that follow a script: slots in order, each a Garden of wordings or a choice that what was written decides.

A fixed token is a Garden with one phrase. A choice lists the tokens that keep the text on script, right or wrong, and
what is remembered of the one written; later slots may depend on it. All of a state can be read off the prefix. A token
that is no continuation loses the script: there is nothing left to do then but to end the text.
"""

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Generic, NamedTuple, TypeVar

import torch
from torch import Tensor

from bridgegarden.errors import ConfigError
from bridgegarden.exact.world import END, PAD, Phrases, World

MemoryT = TypeVar("MemoryT", bound=Hashable)

COMPLETE = -1
"""The child of a token that ends its phrase."""


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
