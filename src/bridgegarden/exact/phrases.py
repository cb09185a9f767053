"""A Garden as a prefix tree: many phrases for one meaning, each with its probability, written token by token."""

from bisect import bisect_right
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import accumulate

import torch
from torch import Tensor

from bridgegarden.errors import ConfigError

Phrases = Mapping[str, float]
"""Phrase to weight, the likeliest first."""

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


def first_phrases(table: Phrases, count: int) -> Phrases:
    """The `count` likeliest phrases of `table`."""
    return dict(list(table.items())[:count])


def phrase_at(table: Phrases, uniform: float) -> str:
    """The phrase at which the cumulative weight passes `uniform`, a number from 0 to below 1."""
    reached = list(accumulate(table.values()))
    return list(table)[bisect_right(reached, uniform * reached[-1])]
