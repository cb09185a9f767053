"""A world and a student on common rows: whatever either of them distinguishes is a row of its own.

For a table the rows are the states of the process. For a policy they are prefixes: a neural student may answer
differently to any two, so nothing can be merged, but each prefix is evaluated once, and what was computed for it serves
all that begin so.
"""

from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from bridgegarden.errors import ConfigError, DataError, ModelError, NonFiniteError
from bridgegarden.exact.process import row_of
from bridgegarden.exact.tabular import Tabulated, chunks, normalised
from bridgegarden.objective.divergences import Divergence
from bridgegarden.policy import Decoding, Policy

ROWS_AT_ONCE = 512
"""Prefixes evaluated together: bounds what a language model's key-value caches hold."""


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


def unroll_policy(
    world: Tabulated, student: Policy, prompt: Sequence[int], divergence: Divergence, max_nodes: int
) -> Unrolled:
    """Rows are the prefixes that are no longer than the horizon allows, and one for each state where texts end.

    Batches are taken last in, first out, so that the decodings kept alive are few, however wide the tree.

    Raises:
        ConfigError: more than `max_nodes` prefixes.
        ModelError: the student's vocabulary is not the process's, or it calls a text ended that the process continues.
        DataError: a row that is no distribution.
    """
    if student.vocab_size != world.process.vocab_size:
        raise ModelError(
            f"exact: the student's policy has {student.vocab_size} tokens, the process {world.process.vocab_size}. "
            "Token ids must mean the same to both."
        )
    initial = torch.tensor([world.process.initial])
    none = torch.tensor([-1])
    # Refuses a process that has ended before its first token.
    reachable_layers(world.process.following, world.process.terminal, world.process.initial, 1)
    tree = _Tree(evaluated=[], parents=[none], tokens=[none])
    first = _Batch(None, none, none, torch.tensor([0]), initial, 0)
    stack, count = [first], 1
    while stack:
        batch = stack.pop()
        decoding = student.start([prompt]) if batch.before is None else batch.before.extend(batch.rows, batch.tokens)
        _check_going_on(decoding, world, batch)
        children = _evaluate(decoding, world, batch, tree, count)
        count += len(children.nodes)
        if count > max_nodes:
            raise ConfigError(
                f"exact: at least {count} distinct prefixes of up to {batch.position + 1} tokens, the limit max_nodes "
                f"is {max_nodes}. Use a smaller world, one whose texts end where they leave the script, or raise "
                "max_nodes."
            )
        stack += _split(children)
    return _assemble(world, tree, count, divergence)


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


class _Batch(NamedTuple):
    """Prefixes of one length, not read yet: tokens that extend rows of a decoding."""

    before: Decoding | None
    """What they extend; None for the prompt alone."""
    rows: Tensor
    """``(n,)`` row in `before`."""
    tokens: Tensor
    """``(n,)`` token after that row's text."""
    nodes: Tensor
    """``(n,)`` number of each prefix."""
    states: Tensor
    """``(n,)`` row of the process's table."""
    position: int
    """Tokens after the prompt."""


class _Evaluated(NamedTuple):
    nodes: Tensor
    states: Tensor
    student_logp: Tensor
    following: Tensor
    """``(n, V)``: number of the prefix after each token, or -1 - state where the text is over after it."""


@dataclass(frozen=True, kw_only=True)
class _Tree:
    """What is gathered on the way through the tree."""

    evaluated: list[_Evaluated]
    parents: list[Tensor]
    tokens: list[Tensor]


def _split(batch: _Batch) -> list[_Batch]:
    pieces = torch.arange(len(batch.nodes)).split(ROWS_AT_ONCE) if len(batch.nodes) else ()
    return [
        batch._replace(rows=batch.rows[i], tokens=batch.tokens[i], nodes=batch.nodes[i], states=batch.states[i])
        for i in pieces
    ]


def _check_going_on(decoding: Decoding, world: Tabulated, batch: _Batch) -> None:
    ended = decoding.ended()
    if ended.any():
        state = world.states[int(batch.states[int(ended.nonzero()[0])])]
        raise ModelError(
            f"exact: the student's policy says that a text of {batch.position} tokens has ended, the process goes on "
            f"from state {state!r}. Give both the same end token."
        )


def _evaluate(decoding: Decoding, world: Tabulated, batch: _Batch, tree: _Tree, count: int) -> _Batch:
    """Read one batch into `tree`; what follows comes back, numbered from `count`."""
    process = world.process
    logp = decoding.log_probs()
    if logp.shape != (len(batch.nodes), process.vocab_size):
        raise ModelError(
            f"exact: the student's policy gave log-probabilities of shape {tuple(logp.shape)}, expected "
            f"{(len(batch.nodes), process.vocab_size)}."
        )
    student_logp = normalised(
        logp,
        lambda row: f"student, a prefix of {batch.position} tokens at state {world.states[int(batch.states[row])]!r}",
    )
    after = process.following[batch.states]
    over = process.terminal[after]
    if batch.position + 1 == process.horizon:
        over = torch.ones_like(over)
    rows, tokens = (~over).nonzero(as_tuple=True)
    nodes = torch.arange(count, count + len(rows))
    following = -1 - after
    following[rows, tokens] = nodes
    tree.evaluated.append(_Evaluated(batch.nodes, batch.states, student_logp, following))
    tree.parents.append(batch.nodes[rows])
    tree.tokens.append(tokens)
    return _Batch(decoding, rows, tokens, nodes, after[rows, tokens], batch.position + 1)


def _assemble(world: Tabulated, tree: _Tree, count: int, divergence: Divergence) -> Unrolled:
    """Prefixes first, by number, then one row for each state of the process: where texts are over."""
    process = world.process
    states = len(process.table)
    columns = columns_for(count + states, process.vocab_size)
    following = torch.zeros(count + states, process.vocab_size, dtype=torch.long)
    state = torch.cat([torch.zeros(count, dtype=torch.long), torch.arange(states)])
    for part in tree.evaluated:
        state[part.nodes] = part.states
        following[part.nodes] = torch.where(part.following < 0, count - 1 - part.following, part.following)
        name = f"state {world.states[int(part.states[0])]!r}"
        fill(columns, part.nodes, process.table[part.states], part.student_logp, divergence, name)
    over = torch.arange(count + states) >= count
    nothing = torch.full((states,), -1)
    return Unrolled(
        world=world,
        state=state,
        following=following,
        over=over,
        layers=tuple(reachable_layers(following, over, 0, process.horizon)),
        parent=torch.cat([*tree.parents, nothing]),
        token=torch.cat([*tree.tokens, nothing]),
        **columns,
    )
