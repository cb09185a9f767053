"""Numbered problems, and splits that share none of them whatever the seeds."""

import hashlib
import random
from collections.abc import Callable, Mapping, Sequence
from itertools import accumulate
from math import prod
from typing import Literal, TypeVar

from bridgegarden.errors import ConfigError

ProblemT = TypeVar("ProblemT")

Split = Literal["train", "validation", "test"]

SPLIT_SHARES: Mapping[Split, int] = {"train": 80, "validation": 10, "test": 10}
"""Per cent of all problems in each split."""


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


def draw_problems(
    n: int, seed: int, *, split: Split, count: int, nth: Callable[[int], ProblemT], world: str, sizes: str
) -> list[ProblemT]:
    """`n` distinct problems of one split, in random order.

    Args:
        n: how many.
        seed: decides which, and their order.
        split: where they belong; no problem is in two splits.
        count: how many problems there are.
        nth: the problem of a number from 0 to `count` - 1, another one for every number.
        world: the world's name, for messages.
        sizes: what decides `count`, for messages.

    Raises:
        ConfigError: when the split has fewer than `n` problems.
    """
    codes = random.Random(seed).sample(range(count), min(count, 150 * n // SPLIT_SHARES[split] + 1000))
    problems = [problem for problem in map(nth, codes) if split_of(problem) == split][:n]
    if len(problems) < n:
        raise ConfigError(
            f"{world}: asked for {n} {split} problems, but {sizes} give {len(problems)}. "
            "Ask for fewer, or raise one of the sizes."
        )
    return problems
