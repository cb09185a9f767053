"""The distinct prefixes of a policy, each evaluated once; what was computed for a prefix serves all that begin so."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from bridgegarden.errors import ConfigError, ModelError
from bridgegarden.exact.rows import normalised
from bridgegarden.exact.tabular import Tabulated
from bridgegarden.exact.unroll import Unrolled, columns_for, fill, reachable_layers
from bridgegarden.objective.divergences import Divergence
from bridgegarden.policy import Decoding, Policy

ROWS_AT_ONCE = 512
"""Prefixes evaluated together: bounds what a language model's key-value caches hold."""


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
