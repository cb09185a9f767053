"""A world and a student on common rows: whatever either of them distinguishes is a row of its own.

For a table the rows are the states of the process. For a policy they are prefixes: a neural student may answer
differently to any two, so nothing can be merged (see `bridgegarden.exact.prefix_tree`).
"""

from collections.abc import Hashable
from dataclasses import dataclass

import torch
from torch import Tensor

from bridgegarden.errors import DataError, NonFiniteError
from bridgegarden.exact.process_policy import row_of
from bridgegarden.exact.rows import chunks, normalised
from bridgegarden.exact.tabular import Tabulated
from bridgegarden.objective.divergences import Divergence


@dataclass(frozen=True, kw_only=True, eq=False)
class Unrolled:
    """S rows, each with what teacher and student say there and where each token leads."""

    world: Tabulated
    """The process."""

    state: Tensor
    """``(S,)`` int64: the state of the process at each row."""

    following: Tensor
    """``(S, V)`` int64: the row after each token; without meaning where `over`."""

    over: Tensor
    """``(S,)`` bool: no token is written here."""

    layers: tuple[Tensor, ...]
    """For each position from 0, the rows where some text of that length goes on. At most `horizon` of them."""

    teacher: Tensor
    """``(S, V)`` float64 probabilities; zero in rows of no layer."""

    student: Tensor
    """``(S, V)`` float64 probabilities; zero in rows of no layer."""

    loss: Tensor
    """``(S,)`` nats, the student's divergence from the teacher."""

    teacher_entropy: Tensor
    """``(S,)`` nats."""

    student_entropy: Tensor
    """``(S,)`` nats."""

    parent: Tensor | None = None
    """``(S,)`` int64, for prefixes: the row of the prefix one token shorter, -1 at the root and where `over`."""

    token: Tensor | None = None
    """``(S,)`` int64, for prefixes: the last token, -1 at the root and where `over`."""

    def prefix(self, row: int) -> tuple[int, ...] | None:
        """The tokens that lead to a row; None for a table, where many texts come to one state."""
        if self.parent is None or self.token is None:
            return None
        tokens: list[int] = []
        while int(self.parent[row]) >= 0:
            tokens.append(int(self.token[row]))
            row = int(self.parent[row])
        return tuple(reversed(tokens))

    def name(self, row: int) -> str:
        """A row in words, for messages."""
        state: Hashable = self.world.states[int(self.state[row])]
        prefix = self.prefix(row)
        return f"state {state!r}" if prefix is None else f"prefix {list(prefix)} (state {state!r})"


def unroll_table(world: Tabulated, student: object, divergence: Divergence) -> Unrolled:
    """Rows are the states of the process.

    Raises:
        DataError: the student has no row for a state that some text comes to, or one that is no distribution.
        NonFiniteError: the divergence is not a number at a state.
    """
    process = world.process
    layers = reachable_layers(process.following, process.terminal, process.initial, process.horizon)
    columns = columns_for(len(process.table), process.vocab_size)
    rows = torch.cat(layers).unique()
    for piece in rows.split(max(1, (1 << 20) // process.vocab_size)):
        student_logp = normalised(
            _student_rows(world, student, piece),
            lambda index, piece=piece: f"student, state {world.states[int(piece[index])]!r}",
        )
        names = [f"state {world.states[int(row)]!r}" for row in piece[:1]]
        fill(columns, piece, process.table[piece], student_logp, divergence, names[0])
    return Unrolled(
        world=world,
        state=torch.arange(len(process.table)),
        following=process.following,
        over=process.terminal,
        layers=tuple(layers),
        **columns,
    )


def reachable_layers(following: Tensor, over: Tensor, initial: int, horizon: int) -> list[Tensor]:
    """For each position, in order, the rows where a text goes on, whichever tokens have been written."""
    layer = torch.tensor([initial])[~over[initial : initial + 1]]
    layers: list[Tensor] = []
    while len(layers) < horizon and len(layer):
        layers.append(layer)
        if len(layers) > 1 and torch.equal(layer, layers[-2]):
            return layers + [layer] * (horizon - len(layers))
        arrived = torch.zeros(len(over), dtype=torch.bool)
        for rows in chunks(layer, following.shape[1]):
            arrived[following[rows].flatten()] = True
        layer = (arrived & ~over).nonzero().squeeze(-1)
    if not layers:
        raise DataError("process: the initial state is terminal, so there is no text to measure.")
    return layers


def columns_for(states: int, vocab_size: int) -> dict[str, Tensor]:
    """The arrays of :class:`Unrolled` that :func:`fill` writes, all zero."""
    zeros = torch.zeros(states, dtype=torch.float64)
    columns = {name: zeros.clone() for name in ("loss", "teacher_entropy", "student_entropy")}
    table = torch.zeros(states, vocab_size, dtype=torch.float64)
    return columns | {"teacher": table, "student": table.clone()}


def fill(
    columns: dict[str, Tensor],
    rows: Tensor,
    teacher_logp: Tensor,
    student_logp: Tensor,
    divergence: Divergence,
    name: str,
) -> None:
    """Write what teacher and student say at `rows` into `columns`."""
    columns["teacher"][rows] = teacher_logp.exp()
    columns["student"][rows] = student_logp.exp()
    columns["teacher_entropy"][rows] = _entropy(teacher_logp)
    columns["student_entropy"][rows] = _entropy(student_logp)
    loss = divergence(teacher_logp, student_logp).double()
    if loss.isnan().any():
        raise NonFiniteError(f"exact, near {name}: the divergence is not a number. Use one that allows zero mass.")
    columns["loss"][rows] = loss


def _student_rows(world: Tabulated, student: object, rows: Tensor) -> Tensor:
    if isinstance(student, Tensor) and isinstance(world.states, range):
        expected = tuple(world.process.table.shape)
        if tuple(student.shape) != expected:
            raise DataError(f"student: the table has shape {tuple(student.shape)}, expected (states, V) = {expected}.")
        return student[rows]
    read = row_of(student)
    return torch.stack([_checked(read(world.states[row]), world, row) for row in rows.tolist()])


def _checked(row: object, world: Tabulated, index: int) -> Tensor:
    where = f"student, state {world.states[index]!r}"
    if not isinstance(row, Tensor):
        raise DataError(f"{where}: got {type(row).__name__}, expected a tensor of log-probabilities.")
    if row.shape != (world.process.vocab_size,):
        raise DataError(f"{where}: got shape {tuple(row.shape)}, expected ({world.process.vocab_size},).")
    return row


def _entropy(logp: Tensor) -> Tensor:
    return -torch.where(logp > -torch.inf, logp.exp() * logp, 0.0).sum(-1)
