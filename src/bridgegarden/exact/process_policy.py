"""A process, or a table of next-token distributions over its states, as a policy that is followed token by token.

With it everything that runs on a language model (roll-outs, Monte-Carlo estimates) runs on a world whose truth
:func:`bridgegarden.exact.solve` computes, unchanged.
"""

from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import NoReturn, cast

import torch
from torch import Tensor

from bridgegarden.errors import DataError
from bridgegarden.exact.process import Process, StateT

Row = Callable[[Hashable], Tensor]
"""State to ``(V,)`` log-probabilities."""


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
