"""Decisions about first tokens as arrays, so that a batch is translated without asking for each one by one.

A decision is the same for many of the teacher's tokens and paths; each different one has a number.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bridgegarden.teacher.translation.first_token import FirstToken, FirstTokens

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
HELD = 1 << 20
"""Decisions behind paths that are held; beyond, all of these are forgotten and made anew."""
NEAR_BITS = 19
"""Of the number of decisions behind paths that are looked up many at a time; those that fall on the same place take
turns."""
SPREAD = np.uint64(0x9E3779B97F4A7C15)
"""2**64 over the golden ratio: keys that lie close together fall on places that do not (Knuth, volume 3, 6.4)."""


class Path:
    """Tokens of the teacher behind a place in the first of them, and what was decided behind it so far."""

    __slots__ = ("behind", "index", "inside", "longer", "number", "tokens")

    def __init__(self, tokens: tuple[int, ...], inside: int, number: int, index: int) -> None:
        self.tokens, self.inside, self.number = tokens, inside, number
        self.index = index
        """No other path ever has the same."""
        self.behind: dict[int, int] = {}
        """Number of the decision with one more token."""
        self.longer: dict[int, Path] = {}
        """The path with one more token, where texts went on so."""


class Decisions:
    """Of one pair of vocabularies, made when first asked for."""

    def __init__(self, first: FirstTokens) -> None:
        teacher = first.teacher
        self.first = first
        self.lengths = teacher.lengths
        self.start = np.cumsum(self.lengths + 1) - self.lengths - 1
        """Where the entries of a token begin: one for each place inside it."""
        self.prefix = np.empty(int((self.lengths + 1).sum()), dtype=np.int64)
        """Number of what the token writes up to the place: equal where two tokens write the same."""
        numbers: dict[bytes, int] = {}
        at = 0
        for written in teacher.tokens:
            for stop in range(len(written) + 1):
                self.prefix[at] = numbers.setdefault(written[:stop], len(numbers))
                at += 1
        self.of_entry = np.full(len(self.prefix), -1, dtype=np.int64)
        """Number of the decision at each entry, -1 where it was not made."""
        self.stride = len(first.student.order) + 1
        self._numbers: dict[FirstToken, int] = {}
        self._cell, self._proved = np.zeros(0, dtype=np.int64), np.zeros(0, dtype=bool)
        self._hull = np.zeros((0, 2), dtype=np.int64)
        self._runs, self._run_count = np.zeros((0, 2), dtype=np.int64), 0
        self._paths: dict[tuple[int, int], Path] = {}
        self._held = 0
        self._path_count = 0
        self._near = np.full((1 << NEAR_BITS, 2), -1, dtype=np.int64)
        """Of a path and a token behind it a key, and the number of the decision."""

    def at(self, entries: Ints) -> Ints:
        """Numbers of the decisions at `entries`, of any shape."""
        found = self.of_entry[entries]
        missing = np.unique(entries[found < 0])
        if not len(missing):
            return found
        tokens = np.searchsorted(self.start, missing, side="right") - 1
        for entry, token in zip(missing.tolist(), tokens.tolist(), strict=True):
            self.of_entry[entry] = self._number((token,), entry - int(self.start[token]))
        return self.of_entry[entries]

    def cell(self, numbers: Ints) -> Ints:
        """The student's token, -1 where it is open."""
        return self._cell[numbers]

    def proved(self, numbers: Ints) -> NDArray[np.bool_]:
        """Whether it holds for every continuation."""
        return self._proved[numbers]

    def hull(self, numbers: Ints) -> Ints:
        """``(..., 2)`` places that an open decision reaches: the first, and the one behind the last."""
        return self._hull[numbers]

    def reaches(self, numbers: Ints, places: Ints) -> NDArray[np.bool_]:
        """Whether each of some open decisions can be the token at a place of the student's order."""
        keys = numbers * self.stride + places
        if not keys.size:
            return np.zeros(keys.shape, dtype=bool)
        runs = self._runs[: self._run_count]
        run = np.searchsorted(runs[:, 0], keys, side="right") - 1
        return (run >= 0) & (keys < runs[run, 1])

    def path(self, token: int, inside: int) -> Path:
        """Of one token."""
        found = self._paths.get((token, inside))
        if found is None:
            number = int(self.at(np.array([self.start[token] + inside]))[0])
            found = self._paths[token, inside] = self._path((token,), inside, number)
        return found

    def behind(self, path: Path, token: int) -> int:
        """Number of the decision where the teacher goes on from `path` with `token`."""
        found = path.behind.get(token)
        if found is None:
            found = path.behind[token] = self._number((*path.tokens, token), path.inside)
            self._held += 1
        return found

    def longer(self, path: Path, token: int) -> Path:
        """`path` and `token`."""
        found = path.longer.get(token)
        if found is None:
            found = path.longer[token] = self._path((*path.tokens, token), path.inside, self.behind(path, token))
        return found

    def all_behind(self, paths: Sequence[Path], which: Ints, tokens: Ints) -> Ints:
        """Numbers of the decisions where the teacher goes on from each of ``paths[which]`` with a token."""
        index = np.array([path.index for path in paths], dtype=np.int64)
        keys = index[which] * len(self.lengths) + tokens
        places = ((keys.astype(np.uint64) * SPREAD) >> np.uint64(64 - NEAR_BITS)).astype(np.int64)
        near = self._near[places]
        found = np.where(near[:, 0] == keys, near[:, 1], -1)
        missing = np.nonzero(found < 0)[0]
        if len(missing):
            lacking = zip(which[missing].tolist(), tokens[missing].tolist(), strict=True)
            found[missing] = [self.behind(paths[at], token) for at, token in lacking]
            taken, chosen = np.unique(places[missing], return_index=True)
            self._near[taken] = np.stack([keys[missing[chosen]], found[missing[chosen]]], 1)
        return found

    def _path(self, tokens: tuple[int, ...], inside: int, number: int) -> Path:
        self._path_count += 1
        return Path(tokens, inside, number, self._path_count)

    def trim(self) -> None:
        """Forget paths if there are too many."""
        if self._held > HELD:
            self._paths, self._held = {}, 0

    def _number(self, tokens: tuple[int, ...], inside: int) -> int:
        decided = self.first.after(tokens, inside)
        number = self._numbers.get(decided)
        if number is None:
            number = self._numbers[decided] = len(self._numbers)
            self._add(number, decided)
        return number

    def _add(self, number: int, decided: FirstToken) -> None:
        self._cell, self._proved, self._hull = (
            _room(values, number + 1) for values in (self._cell, self._proved, self._hull)
        )
        self._cell[number], self._proved[number] = decided.token, decided.proved
        if not decided.reach:
            return
        self._hull[number] = decided.reach[0][0], decided.reach[-1][1]
        end = self._run_count + len(decided.reach)
        self._runs = _room(self._runs, end)
        self._runs[self._run_count : end] = np.array(decided.reach) + number * self.stride
        self._run_count = end


def _room(values: NDArray[Any], size: int) -> NDArray[Any]:
    """`values` with room for `size`: twice as much as before, so that adding one by one costs little."""
    if size <= len(values):
        return values
    more = np.zeros((max(size, 2 * len(values), 64) - len(values), *values.shape[1:]), dtype=values.dtype)
    return np.concatenate([values, more])
