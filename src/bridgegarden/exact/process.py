r"""Finite-state worlds whose next-token distribution is known exactly.

A :class:`Process` writes text one token at a time. Its state is a function of what a reader of the text can see, so
a student that conditions on the prefix misses nothing, and every quantity of the paper (state visitation, Q, kappa,
exposure bias) is a finite sum.

Roles are read off the process, never written down beside tokens. A state *means* something (a value, an operator);
where the tokens that keep the text on script lead to different meanings the position is a Bridge, where they only
word the same meaning differently it is a Garden, and where there is a single one it is forced.

A process says what it would write after any text it could have written. Off that script it has no distribution: any
cost charged there would measure what somebody made up, not the student. With :class:`EndsOffScript` a text ends with
the token that leaves the script, at no further cost, and how often that happens is reported beside the losses as a rate
of violations. The prefixes that remain are finitely many, whatever the student: every prefix of a text on script.

As a :class:`ProcessPolicy`, or a table over its states as a :class:`TablePolicy`, it is followed token by token: then
everything that runs on a language model (roll-outs, Monte-Carlo estimates) runs on a world whose truth
:func:`bridgegarden.exact.solve` computes, unchanged.
"""

from collections import Counter
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from enum import Enum, StrEnum
from typing import Generic, NoReturn, Protocol, TypeVar, cast, runtime_checkable

import torch
from torch import Tensor

from bridgegarden.errors import DataError
from bridgegarden.objective.alignment import IGNORE

StateT = TypeVar("StateT", bound=Hashable)

Row = Callable[[Hashable], Tensor]
"""State to ``(V,)`` log-probabilities."""


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


class OffScript(Enum):
    """The one state of all texts that have left the script."""

    ENDED = "off script"


class EndsOffScript(Generic[StateT]):
    """`process`, but a token that is none of its continuations ends the text."""

    def __init__(self, process: Process[StateT]):
        self.process = process
        self.vocab_size = process.vocab_size
        self.horizon = process.horizon
        self.initial: StateT | OffScript = process.initial

    def log_probs(self, state: StateT | OffScript) -> Tensor:
        """``(V,)`` float64 nats, as the process has them. Without meaning (uniform) once the text is off script."""
        if isinstance(state, OffScript):
            return torch.zeros(self.vocab_size, dtype=torch.float64).log_softmax(0)
        return self.process.log_probs(state)

    def step(self, state: StateT | OffScript, token: int) -> StateT | OffScript:
        """The state after `token`; an ended text stays as it is."""
        if isinstance(state, OffScript) or self.process.is_terminal(state):
            return state
        on_script = token in self.process.continuations(state)
        return self.process.step(state, token) if on_script else OffScript.ENDED

    def is_terminal(self, state: StateT | OffScript) -> bool:
        """Whether the text has ended, on script or by leaving it."""
        return isinstance(state, OffScript) or self.process.is_terminal(state)

    def continuations(self, state: StateT | OffScript) -> Sequence[int]:
        """Tokens after which the text is still on script; none once it has left."""
        return () if isinstance(state, OffScript) else self.process.continuations(state)

    def meaning(self, state: StateT | OffScript) -> Hashable:
        """As the process has it; leaving the script is a meaning of its own."""
        return state if isinstance(state, OffScript) else self.process.meaning(state)


class ProcessPolicy:
    """The teacher of a world as a `bridgegarden.policy.Policy`.

    A text is over when the process says so, or when it has `process.horizon` tokens after the prompt, and stays over
    whatever is appended to it.
    """

    def __init__(self, process: Process, *, prompt: Sequence[int] = ()) -> None:
        """The prompt is what stands before the process's first token in every prefix; the process never sees it."""
        self.process = process
        self.prompt = tuple(prompt)
        self._row: Row = process.log_probs

    @property
    def vocab_size(self) -> int:
        """Number of token ids, V."""
        return self.process.vocab_size

    def start(self, prefixes: Sequence[Sequence[int]]) -> "StateDecoding":
        """Read `prefixes`: the prompt, then tokens of the process.

        Raises:
            DataError: there is no prefix, or one does not begin with the prompt, or has a token id outside 0 to V - 1.
        """
        if not len(prefixes):
            raise DataError("policy: there is no prefix to start from. Pass at least one.")
        states, lengths = zip(*(self._read(index, prefix) for index, prefix in enumerate(prefixes)), strict=True)
        return StateDecoding(process=self.process, row=self._row, states=states, lengths=lengths)

    def _read(self, index: int, prefix: Sequence[int]) -> tuple[Hashable, int]:
        tokens = [int(token) for token in prefix]
        if tuple(tokens[: len(self.prompt)]) != self.prompt:
            raise DataError(
                f"prefix {index}: begins with {tokens[: len(self.prompt)]}, expected the prompt {list(self.prompt)}."
            )
        state, length = self.process.initial, 0
        for token in tokens[len(self.prompt) :]:
            if not 0 <= token < self.vocab_size:
                raise DataError(f"prefix {index}: token id {token} is outside 0 to {self.vocab_size - 1}.")
            state, length = _following(self.process, state, length, token)
        return state, length


class TablePolicy(ProcessPolicy):
    """A student that looks at the state of `process` alone, as a `bridgegarden.policy.Policy`.

    Its texts end where the process's end.
    """

    def __init__(self, process: Process[StateT], table: object, *, prompt: Sequence[int] = ()) -> None:
        """As `ProcessPolicy`.

        Args:
            process: the world.
            table: a mapping or a function from state to ``(V,)`` log-probabilities, or an ``(S, V)`` tensor where
                states are integers.
            prompt: token ids before the process's first one.
        """
        super().__init__(process, prompt=prompt)
        self._row = row_of(table)


@dataclass(frozen=True, kw_only=True)
class StateDecoding:
    """N texts in progress, each at a state of one process: a `bridgegarden.policy.Decoding`."""

    process: Process
    """The world."""

    row: Row
    """What the policy says at a state."""

    states: tuple[Hashable, ...]
    """The state of each text."""

    lengths: tuple[int, ...]
    """Tokens that each text has after the prompt; counting stops where the text ends."""

    def log_probs(self) -> Tensor:
        """``(N, V)`` float64 nats; zeros, which mean nothing, in the rows of texts that are over."""
        over = self.ended().tolist()
        seen: dict[Hashable, Tensor] = {}
        for state, done in zip(self.states, over, strict=True):
            if not done and state not in seen:
                seen[state] = self.row(state).double()
        nothing = torch.zeros(self.process.vocab_size, dtype=torch.float64)
        rows = [nothing if done else seen[state] for state, done in zip(self.states, over, strict=True)]
        return torch.stack(rows) if rows else nothing.new_zeros(0, self.process.vocab_size)

    def ended(self) -> Tensor:
        """``(N,)`` bool."""
        pairs = zip(self.states, self.lengths, strict=True)
        return torch.tensor([_is_over(self.process, *pair) for pair in pairs], dtype=torch.bool)

    def extend(self, rows: Tensor, tokens: Tensor) -> "StateDecoding":
        """The texts ``rows[i]`` followed by ``tokens[i]``."""
        pairs = [
            _following(self.process, self.states[row], self.lengths[row], token)
            for row, token in zip(rows.tolist(), tokens.tolist(), strict=True)
        ]
        return StateDecoding(
            process=self.process,
            row=self.row,
            states=tuple(state for state, _ in pairs),
            lengths=tuple(length for _, length in pairs),
        )


def row_of(table: object) -> Row:
    """Reads the row of one state from a mapping, an ``(S, V)`` tensor or a function.

    Raises:
        DataError: `table` is none of them; or, when the function is called, it has no row for the state.
    """
    if isinstance(table, Tensor):
        return lambda state: table[state] if isinstance(state, int) and 0 <= state < len(table) else _no_row(state)
    if isinstance(table, Mapping):
        return lambda state: table[state] if state in table else _no_row(state)
    if callable(table):
        return cast(Row, table)
    raise DataError(
        f"student: got {type(table).__name__}; expected a policy, or log-probabilities by state as a mapping, a "
        "function or, for integer states, an (S, V) tensor."
    )


def _no_row(state: Hashable) -> NoReturn:
    raise DataError(f"student: has no row for state {state!r}. Give log-probabilities for every state.")


def _following(process: Process, state: Hashable, length: int, token: int) -> tuple[Hashable, int]:
    if _is_over(process, state, length):
        return state, length
    return process.step(state, token), length + 1


def _is_over(process: Process, state: Hashable, length: int) -> bool:
    return length >= process.horizon or process.is_terminal(state)
