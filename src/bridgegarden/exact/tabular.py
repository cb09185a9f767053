"""A process as arrays: one row a state, one column a token. What the solver works on.

Rows are checked where they come in, and normalised in float64 to the last digit.
"""

from collections.abc import Callable, Hashable, Iterator, Sequence
from itertools import islice
from typing import NamedTuple

import torch
from torch import Tensor

from bridgegarden.errors import ConfigError, DataError
from bridgegarden.exact.process import EndsOffScript, OffScript, Process, Role

CELLS_AT_ONCE = 1 << 18
"""Table cells worked on at a time: a few arrays of them stay in a processor's cache."""

FLOAT32_SLACK = 1e-4
"""How far the log-normaliser of a float32 row may be from zero."""

FLOAT64_SLACK = 1e-8
"""How far the log-normaliser of a float64 row may be from zero."""


class TabularProcess:
    """A `Process` whose states are the integers 0 to S - 1."""

    def __init__(
        self,
        log_probs: Tensor,
        following: Tensor,
        terminal: Tensor,
        *,
        horizon: int,
        initial: int = 0,
        continuations: Tensor | None = None,
        meanings: Tensor | None = None,
    ) -> None:
        """Checks the arrays and keeps them, the rows normalised in float64.

        Args:
            log_probs: ``(S, V)`` nats; rows of terminal states are never read.
            following: ``(S, V)`` integers, the state after each token.
            terminal: ``(S,)`` bool.
            horizon: most tokens of a text, >= 1.
            initial: the state before the first token.
            continuations: ``(S, V)`` bool, the tokens that keep a text on script; by default those with mass.
            meanings: ``(S,)`` integers, equal where states mean the same; by default every state has its own meaning.

        Raises:
            ConfigError: shapes that do not fit each other, or numbers out of range.
            DataError: a row that is no distribution.
        """
        if log_probs.ndim != 2 or not log_probs.numel():
            raise ConfigError(f"process.log_probs: expected shape (states, tokens), got {tuple(log_probs.shape)}.")
        states, vocab_size = log_probs.shape
        _check_shape("following", following, (states, vocab_size))
        _check_shape("terminal", terminal, (states,))
        if following.min() < 0 or following.max() >= states or not 0 <= initial < states:
            raise ConfigError(f"process: `following` and `initial` must name states from 0 to {states - 1}.")
        if horizon < 1:
            raise ConfigError(f"process.horizon must be >= 1, got {horizon}.")
        self.terminal = terminal.bool()
        self.table = torch.zeros(states, vocab_size, dtype=torch.float64)
        going_on = (~self.terminal).nonzero().squeeze(-1)
        for rows in going_on.split(max(1, (1 << 20) // vocab_size)):
            names = rows.tolist()
            self.table[rows] = normalised(log_probs[rows], lambda index, names=names: f"process, state {names[index]}")
        self.following = following.long()
        self.horizon = horizon
        self.initial = initial
        self.vocab_size = vocab_size
        self.on_script = self.table.isfinite() if continuations is None else continuations.bool()
        _check_shape("continuations", self.on_script, (states, vocab_size))
        self.meanings = torch.arange(states) if meanings is None else meanings
        _check_shape("meanings", self.meanings, (states,))

    def log_probs(self, state: int) -> Tensor:
        """``(V,)`` float64 nats."""
        return self.table[state]

    def step(self, state: int, token: int) -> int:
        """The state after `token`."""
        return int(self.following[state, token])

    def is_terminal(self, state: int) -> bool:
        """Whether the text has ended."""
        return bool(self.terminal[state])

    def continuations(self, state: int) -> Sequence[int]:
        """Tokens after which the text is still on script."""
        return self.on_script[state].nonzero().squeeze(-1).tolist()

    def meaning(self, state: int) -> Hashable:
        """A number, equal for states that mean the same."""
        return int(self.meanings[state])

    def roles(self, states: Tensor) -> list[Role]:
        """`bridgegarden.exact.process.role` of many states at once."""
        roles: list[Role] = []
        for rows in states.split(max(1, (1 << 20) // self.vocab_size)):
            allowed = self.on_script[rows]
            meanings = self.meanings[self.following[rows]]
            top = torch.iinfo(meanings.dtype).max
            single = meanings.masked_fill(~allowed, top).amin(-1) == meanings.masked_fill(~allowed, -top).amax(-1)
            for count, same in zip(allowed.sum(-1).tolist(), single.tolist(), strict=True):
                roles.append(Role.FORCED if count == 1 else Role.GARDEN if same else Role.BRIDGE)
        return roles


class Tabulated(NamedTuple):
    """Any process as arrays, and what its states were called."""

    process: TabularProcess
    """The same process; states that no text goes on from are terminal."""

    states: Sequence[Hashable]
    """The original state of each row."""


def tabulate(process: Process, max_states: int = 200_000) -> Tabulated:
    """Every state that some text of at most `process.horizon` tokens comes to, whichever tokens it has, in arrays.

    Each state is asked for its row, and stepped through the vocabulary, once. A `TabularProcess` is returned as it is.
    To solve one process for many students, do this once and hand the result to `bridgegarden.exact.solve`.

    Raises:
        ConfigError: more than `max_states` states.
        DataError: a row that is no distribution.
    """
    if isinstance(process, TabularProcess):
        return Tabulated(process, range(len(process.table)))
    index: dict[Hashable, int] = {process.initial: 0}
    expanded: list[int] = []
    after: list[list[int]] = []
    layer: list[Hashable] = [process.initial]
    for _ in range(process.horizon):
        known = len(index)
        for state in layer:
            if process.is_terminal(state):
                continue
            expanded.append(index[state])
            after.append(_following(process, state, index))
            if len(index) > max_states:
                raise ConfigError(
                    f"exact: the process has at least {len(index)} states, the limit max_nodes is {max_states}. "
                    "Use a smaller world, or raise max_nodes."
                )
        layer = list(islice(index, known, None))
    return Tabulated(_arrays(process, list(index), expanded, after), list(index))


def normalised(log_probs: Tensor, name: Callable[[int], str]) -> Tensor:
    r"""`log_probs` in float64 with :math:`\log \sum_a e^{x_a}` = 0 exactly, so that identities close in float64.

    Args:
        log_probs: ``(n, V)`` nats, ``-inf`` for no mass.
        name: says whose row it is, for the message.

    Raises:
        DataError: a row has NaN, or does not sum to one within the precision of its type.
    """
    rows = log_probs.detach().to("cpu", torch.float64)
    excess = rows.logsumexp(-1, keepdim=True)
    slack = FLOAT64_SLACK if log_probs.dtype == torch.float64 else FLOAT32_SLACK
    # Written so that NaN is not good either.
    bad = ~(excess.abs() <= slack).squeeze(-1)
    if bad.any():
        first = int(bad.nonzero()[0])
        problem = "contains NaN" if rows[first].isnan().any() else f"sums to {excess[first].exp().item():.6g}"
        raise DataError(
            f"{name(first)}: the next-token distribution {problem}; expected log-probabilities that sum to 1 after "
            "exp. Pass logits through log_softmax."
        )
    return rows - excess


def chunks(rows: Tensor, vocab_size: int) -> Iterator[Tensor]:
    """`rows` in pieces of about `CELLS_AT_ONCE` cells."""
    return iter(rows.split(max(1, CELLS_AT_ONCE // vocab_size)))


def expectation(prob: Tensor, values: Tensor, finite: bool) -> Tensor:
    """``sum_a prob_a values_a`` over the last axis, where no mass on an infinite value counts for nothing.

    `finite` says that all values are known to be finite, which is cheaper to know than to find out.
    """
    if finite:
        return torch.einsum("na,na->n", prob, values)
    return torch.where(prob > 0, prob * values, 0.0).sum(-1)


def _following(process: Process, state: Hashable, index: dict[Hashable, int]) -> list[int]:
    """The number of the state after each token; new states get the next number in `index`."""
    if not isinstance(process, EndsOffScript):
        return [index.setdefault(process.step(state, token), len(index)) for token in range(process.vocab_size)]
    # Nearly all tokens of a large vocabulary leave the script for one and the same state: step through the others only.
    on_script = process.continuations(state)
    left = index.setdefault(OffScript.ENDED, len(index)) if len(on_script) < process.vocab_size else -1
    numbers = [left] * process.vocab_size
    for token in on_script:
        numbers[token] = index.setdefault(process.step(state, token), len(index))
    return numbers


def _arrays(process: Process, states: list[Hashable], expanded: list[int], after: list[list[int]]) -> TabularProcess:
    """`states` as arrays; those not `expanded` are terminal."""
    shape = len(states), process.vocab_size
    log_probs = torch.zeros(shape, dtype=torch.float64)
    following = torch.zeros(shape, dtype=torch.long)
    terminal = torch.ones(len(states), dtype=torch.bool)
    on_script = torch.zeros(shape, dtype=torch.bool)
    if expanded:
        rows = torch.stack([_row(process, states[number]) for number in expanded])
        log_probs[expanded] = normalised(rows, lambda row: f"process, state {states[expanded[row]]!r}")
        following[expanded] = torch.tensor(after)
        terminal[expanded] = False
    for number in expanded:
        on_script[number, list(process.continuations(states[number]))] = True
    numbers: dict[Hashable, int] = {}
    meanings = [numbers.setdefault(process.meaning(state), len(numbers)) for state in states]
    return TabularProcess(
        log_probs,
        following,
        terminal,
        horizon=process.horizon,
        initial=0,
        continuations=on_script,
        meanings=torch.tensor(meanings),
    )


def _row(process: Process, state: Hashable) -> Tensor:
    row = process.log_probs(state)
    if row.shape != (process.vocab_size,):
        raise ConfigError(
            f"process, state {state!r}: log_probs has shape {tuple(row.shape)}, expected ({process.vocab_size},)."
        )
    return row


def _check_shape(name: str, got: Tensor, expected: tuple[int, ...]) -> None:
    if tuple(got.shape) != expected:
        raise ConfigError(f"process.{name}: expected shape {expected}, got {tuple(got.shape)}.")
