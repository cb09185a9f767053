r"""Finite-state worlds whose next-token distribution is known exactly.

A :class:`Process` writes text one token at a time. Its state is a function of what a reader of the text can see, so
a student that conditions on the prefix misses nothing, and every quantity of the paper (state visitation, Q, kappa,
exposure bias) is a finite sum.

Roles are read off the process, never written down beside tokens. A state *means* something (a value, an operator);
where the tokens that keep the text on script lead to different meanings the position is a Bridge, where they only
word the same meaning differently it is a Garden, and where there is a single one it is forced.
"""

from collections import Counter
from collections.abc import Hashable, Iterable, Sequence
from enum import StrEnum
from typing import Protocol, TypeVar, runtime_checkable

import torch
from torch import Tensor

from bridgegarden.errors import DataError
from bridgegarden.objective.alignment import IGNORE

StateT = TypeVar("StateT", bound=Hashable)


class Role(StrEnum):
    """What the choice of the next token decides."""

    BRIDGE = "bridge"
    """What the text means from here on: it must be exact."""

    GARDEN = "garden"
    """Only how it is worded: it may vary."""

    FORCED = "forced"
    """Nothing: a single token keeps the text on script."""


@runtime_checkable
class Process(Protocol[StateT]):
    """A finite-state autoregressive process. States are hashable; `step` accepts every token of the vocabulary."""

    @property
    def vocab_size(self) -> int:
        """Number of token ids, V."""
        ...

    @property
    def horizon(self) -> int:
        """Most tokens that a text on script can have, its end token included."""
        ...

    @property
    def initial(self) -> StateT:
        """The state before the first token."""
        ...

    def log_probs(self, state: StateT) -> Tensor:
        """Exact next-token log-probabilities, ``(V,)`` float64 nats, ``-inf`` for no mass. Not to be written to."""
        ...

    def step(self, state: StateT, token: int) -> StateT:
        """The state after `token`, whether or not the process itself could have written it."""
        ...

    def is_terminal(self, state: StateT) -> bool:
        """Whether the text has ended."""
        ...

    def continuations(self, state: StateT) -> Sequence[int]:
        """Tokens after which the text is still on script, be they right or wrong (a wrong value is on script)."""
        ...

    def meaning(self, state: StateT) -> Hashable:
        """The part of `state` that matters whatever the wording."""
        ...


def role(process: Process[StateT], state: StateT) -> Role:
    """What the token after `state` decides; see the module's docstring."""
    tokens = process.continuations(state)
    if len(tokens) == 1:
        return Role.FORCED
    meanings = {process.meaning(process.step(state, token)) for token in tokens}
    return Role.GARDEN if len(meanings) == 1 else Role.BRIDGE


def trace(process: Process[StateT], tokens: Iterable[int]) -> list[StateT]:
    """The state before each of `tokens`, from the initial state.

    Raises:
        DataError: when tokens go on after the text has ended.
    """
    states, state = [], process.initial
    for position, token in enumerate(tokens):
        if process.is_terminal(state):
            raise DataError(
                f"token {position} (id {token}): the text had already ended. Cut the tokens after the end token."
            )
        states.append(state)
        state = process.step(state, token)
    return states


def sample(process: Process, generator: torch.Generator) -> list[int]:
    """One text drawn from the process, as token ids, its end token included.

    Always consumes `horizon` uniform numbers, so the n-th text of a generator does not depend on the lengths of
    those before it.
    """
    uniforms = torch.rand(process.horizon, generator=generator, dtype=torch.float64)
    tokens: list[int] = []
    state = process.initial
    while not process.is_terminal(state) and len(tokens) < process.horizon:
        cumulative = process.log_probs(state).exp().cumsum(0)
        token = int(torch.searchsorted(cumulative, uniforms[len(tokens)] * cumulative[-1], right=True))
        tokens.append(token)
        state = process.step(state, token)
    return tokens


def reachable_states(process: Process[StateT]) -> list[StateT]:
    """Every state of a text on script, terminal ones included, in breadth-first order."""
    states = [process.initial]
    seen = set(states)
    for state in states:
        if process.is_terminal(state):
            continue
        for token in process.continuations(state):
            following = process.step(state, token)
            if following not in seen:
                seen.add(following)
                states.append(following)
    return states


def prefixes_by_length(process: Process) -> list[int]:
    """How many distinct prefixes of texts on script have 0, 1, 2, ... tokens; texts that have ended are not counted.

    They are what a student that conditions on the whole prefix must be asked about. Counted state by state, layer by
    layer, not enumerated: prefixes that lead to one state go on alike.
    """
    counts: list[int] = []
    layer = Counter({process.initial: 1})
    while layer:
        counts.append(layer.total())
        following: Counter = Counter()
        for state, prefixes in layer.items():
            for token in process.continuations(state):
                child = process.step(state, token)
                if not process.is_terminal(child):
                    following[child] += prefixes
        layer = following
    return counts


def count_prefixes(process: Process) -> int:
    """How many distinct unfinished prefixes the texts on script have, the empty one included."""
    return sum(prefixes_by_length(process))


def answered_row(row: int, prompt: list[int], process: Process, generator: torch.Generator) -> dict[str, object]:
    """Token ids and labels of a prompt with an answer that its process wrote; `row` is its number."""
    answer = sample(process, generator)
    return {"input_ids": prompt + answer, "labels": [IGNORE] * len(prompt) + answer, "row": row}
