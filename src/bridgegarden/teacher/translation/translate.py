"""A teacher's signal in its own vocabulary, as a signal in the student's.

At a student position the teacher's distribution is one over texts: what each of its tokens writes from there. A student
token's mass is the mass of those that are sure to begin with it (:mod:`.first_token`), and it is a cell of its own if
no more than a given share of it can be missing because tokens are open. All else is the tail: what is open, and what
the teacher was not asked for. So no cell is larger than the truth, and none lacks more than that share and the tail of
the teacher's own signal.

The truth is the first token of the student's encoding of what the teacher goes on to write, given the teacher's own
tokens so far and, in the middle of one of them, that it is written over this place. Over the teacher's own texts this
is unbiased; at a single place in the middle of a token it knows of the token that is being written.

The text's own token is followed further: while it is open, the teacher's distribution at its next token of the text
says how the mass of that path is parted (the chain rule). Its mass is that of the student's token, not of its bytes:
texts in which a longer token would have been written are no part of it.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from bridgegarden.errors import ConfigError, DataError
from bridgegarden.objective.support import ABSENT_LOG_MASS, TeacherSignal
from bridgegarden.teacher.translation.align import align
from bridgegarden.teacher.translation.byte_view import ByteView
from bridgegarden.teacher.translation.first_token import FirstToken, FirstTokens

ALIGNED, CONDITIONAL, HARD_ONLY = 0, 1, 2
"""Kinds of positions: both tokens begin there; the teacher is inside a token; too little is known."""
STEPS = 16
"""Teacher tokens that the text's own student token is followed for."""
Floats = NDArray[np.float64]
Ints = NDArray[np.int64]


class Shares(NamedTuple):
    """How much of the signals of some positions was known: shares of positions, then means of mass."""

    aligned: float
    conditional: float
    hard_only: float
    exact: float
    """In cells that are proved to be complete, but for what the teacher was not asked for."""
    approximate: float
    """In cells that are taken to be."""
    open: float
    """Known of the teacher, but not which student token it belongs to."""
    unknown: float
    """Never asked of the teacher: the tail of its own signal."""


@dataclass(frozen=True)
class Translated:
    """A signal at M student positions."""

    signal: TeacherSignal
    """In the student's vocabulary. Its entropy is that of its cells, the tail as one: a lower bound. Where a position
    is hard only it is the token of the text. It has no `tail_powers`: temperature 1 alone."""
    kind: Tensor
    """``(M,)`` ALIGNED, CONDITIONAL or HARD_ONLY, at which the soft weight must be zero."""
    known: Tensor
    """``(M,)`` mass in cells, before a position was made hard only."""
    exact: Tensor
    """``(M,)`` of it, what is proved."""
    unknown: Tensor
    """``(M,)`` mass that the teacher was not asked for."""

    def shares(self) -> Shares:
        """Means over the positions; NaN where there are none."""
        aligned, conditional, hard = (
            (self.kind == k).double().mean().item() for k in (ALIGNED, CONDITIONAL, HARD_ONLY)
        )
        known, exact, unknown = (value.double().mean().item() for value in (self.known, self.exact, self.unknown))
        return Shares(aligned, conditional, hard, exact, known - exact, max(0.0, 1 - known - unknown), unknown)


class _Said(NamedTuple):
    """A teacher's signal with the text's own token always among its slots."""

    ids: Ints
    """``(N, K)``, -1 where a slot is empty."""
    prob: Floats
    """``(N, K)``."""
    unknown: Floats
    """``(N,)``."""


class _Cells(NamedTuple):
    """One line per position and student token, in the order of positions."""

    position: Ints
    token: Ints
    mass: Floats
    proved: NDArray[np.bool_]


class _Entries:
    """Decisions for every token of the teacher and every place inside it, as arrays; made when first asked for."""

    def __init__(self, first: FirstTokens) -> None:
        teacher = first.teacher
        self.first = first
        self.lengths = np.array([len(written) for written in teacher.tokens], dtype=np.int64)
        self.start = np.cumsum(self.lengths + 1) - self.lengths - 1
        size = int((self.lengths + 1).sum())
        self.prefix = np.empty(size, dtype=np.int64)
        """Number of what the token writes up to the place: equal where two tokens write the same."""
        numbers: dict[bytes, int] = {}
        at = 0
        for written in teacher.tokens:
            for stop in range(len(written) + 1):
                self.prefix[at] = numbers.setdefault(written[:stop], len(numbers))
                at += 1
        self.made = np.zeros(size, dtype=bool)
        self.cell = np.full(size, -1, dtype=np.int64)
        self.proved = np.zeros(size, dtype=bool)
        self.reach_at = np.zeros(size, dtype=np.int64)
        self.reach_count = np.zeros(size, dtype=np.int64)
        self._reach: list[tuple[int, int]] = []
        self.reach = np.zeros((0, 2), dtype=np.int64)

    def make(self, wanted: Ints) -> None:
        """See that every entry of `wanted` is there."""
        missing = np.unique(wanted[~self.made[wanted]])
        if not len(missing):
            return
        tokens = np.searchsorted(self.start, missing, side="right") - 1
        for entry, token in zip(missing.tolist(), tokens.tolist(), strict=True):
            found = self.first.after((token,), entry - int(self.start[token]))
            self.cell[entry], self.proved[entry] = found.token, found.proved
            self.reach_at[entry], self.reach_count[entry] = len(self._reach), len(found.reach)
            self._reach += found.reach
        self.made[missing] = True
        self.reach = np.array(self._reach, dtype=np.int64).reshape(-1, 2)


class Translation:
    """From one vocabulary to another. Can be pickled, so that a data loader's workers translate."""

    def __init__(
        self, teacher: ByteView, student: ByteView, *, threshold: float = 0.5, tolerance: float = 0.02
    ) -> None:
        """
        Args:
            teacher: whose signals are translated.
            student: into whose vocabulary.
            threshold: mass that must be known for a position to be soft.
            tolerance: largest share of a cell's mass that may be missing from it because tokens are open; 0 keeps the
                cells alone that are complete but for the tail of the teacher's own signal.

        Raises:
            ConfigError: `threshold` or `tolerance` out of range.
        """
        for name, value in (("threshold", threshold), ("tolerance", tolerance)):
            if not 0 <= value <= 1:
                raise ConfigError(f"translation: {name} must be between 0 and 1, got {value}.")
        self.teacher, self.student, self.threshold, self.tolerance = teacher, student, threshold, tolerance
        self.same = teacher.same_as(student)
        self._entries = None if self.same else _Entries(FirstTokens(teacher, student))
        self._ranks = np.array(student.ranks, dtype=np.int64)

    def __call__(
        self,
        signal: TeacherSignal,
        teacher_ids: Sequence[Sequence[int]],
        student_ids: Sequence[Sequence[int]],
        place: str = "answer",
    ) -> Translated:
        """Translate the signal of some supervised stretches, one after the other.

        Args:
            signal: at the N teacher positions of all stretches: each predicts one token of `teacher_ids`. Dense, or the
                likeliest tokens and the tail, with `label_logp` where it is known.
            teacher_ids: of each stretch, what the teacher read as its tokens: N in all.
            student_ids: of each stretch, the same text in the student's tokens: M in all.
            place: where it is, for messages.

        Returns:
            M positions. With two tokenizers that are the same, the very signal that was given.

        Raises:
            ConfigError: the signal is sampled.
            DataError: the two write different bytes, or the numbers do not agree.
        """
        if signal.weights is not None:
            raise ConfigError(
                f"{place}: the teacher's signal is sampled, and draws cannot be translated; keep the likeliest tokens "
                "(teacher.top_k) or the whole vocabulary."
            )
        count = sum(map(len, teacher_ids))
        if len(teacher_ids) != len(student_ids) or count != len(signal.entropy):
            raise DataError(
                f"{place}: got {len(teacher_ids)} stretches of the teacher's with {count} tokens, {len(student_ids)} "
                f"of the student's and a signal at {len(signal.entropy)} positions; expected a stretch for each and a "
                "position for each teacher token."
            )
        aligned = [
            align(self.teacher, self.student, theirs, ours, f"{place}, stretch {index + 1}")
            for index, (theirs, ours) in enumerate(zip(teacher_ids, student_ids, strict=True))
        ]
        if self._entries is None and [list(s) for s in teacher_ids] == [list(s) for s in student_ids]:
            return _untouched(signal)
        sizes = np.array([len(stretch) for stretch in teacher_ids], dtype=np.int64)
        begins = np.cumsum(sizes) - sizes
        token = [np.where(a.token >= 0, a.token + b, -1) for a, b in zip(aligned, begins, strict=True)]
        end = [np.full(len(a.token), b + n) for a, b, n in zip(aligned, begins, sizes, strict=True)]
        work = _Work(
            self,
            self._entries or _Entries(FirstTokens(self.teacher, self.student)),
            _said(signal, np.array([i for s in teacher_ids for i in s], dtype=np.int64)),
            np.array([i for s in teacher_ids for i in s], dtype=np.int64),
            np.array([i for s in student_ids for i in s], dtype=np.int64),
            np.concatenate([np.zeros(0, dtype=np.int64), *token]),
            np.concatenate([np.zeros(0, dtype=np.int64), *(a.inside for a in aligned)]),
            np.concatenate([np.zeros(0, dtype=np.int64), *end]),
        )
        return work.translate(signal.logp.dtype)


def _untouched(signal: TeacherSignal) -> Translated:
    known = signal.captured_mass
    kind = torch.full(known.shape, ALIGNED)
    unknown = torch.zeros_like(known) if signal.log_tail is None else signal.log_tail.exp()
    return Translated(signal, kind, known, known, unknown)


def _said(signal: TeacherSignal, labels: Ints) -> _Said:
    logp = signal.logp.double().numpy()
    ids = np.broadcast_to(np.arange(logp.shape[1]), logp.shape) if signal.ids is None else signal.ids.numpy()
    prob = np.where(ids >= 0, np.exp(logp), 0.0)
    unknown = np.zeros(len(prob)) if signal.log_tail is None else np.exp(signal.log_tail.double().numpy())
    if signal.label_logp is not None:
        of_label = np.exp(signal.label_logp.double().numpy())
        lacks = ~(ids == labels[:, None]).any(1) & ~np.isnan(of_label)
        if lacks.any():
            ids = np.concatenate([ids, np.where(lacks, labels, -1)[:, None]], 1)
            prob = np.concatenate([prob, np.where(lacks, of_label, 0.0)[:, None]], 1)
            unknown = np.where(lacks, np.maximum(unknown - of_label, 0.0), unknown)
    return _Said(ids.astype(np.int64), prob, unknown)


@dataclass
class _Work:
    """One translation: N teacher positions with K slots, M student positions."""

    pair: Translation
    entries: _Entries
    said: _Said
    labels: Ints
    """``(N,)`` the teacher's tokens of the text."""
    targets: Ints
    """``(M,)`` the student's."""
    token: Ints
    """``(M,)`` which teacher position a student position is at, -1 for none."""
    inside: Ints
    """``(M,)`` bytes into its token."""
    end: Ints
    """``(M,)`` teacher position where its stretch ends."""

    def translate(self, dtype: torch.dtype) -> Translated:
        prob, entry, unknown = self._conditioned()
        live = prob > 0
        self.entries.make(entry[live])
        cell = np.where(live, self.entries.cell[entry], -1)
        positions, tokens, mass, proved = self._summed(prob, cell, entry)
        short, contact = self._missing(prob, entry, live & (cell < 0), positions, tokens)
        own, lacks = self._followed(prob, entry, unknown)
        target = tokens == self.targets[positions]
        # The text's own path is open, and known better than that: what it lacks is told by `lacks`.
        has = own[positions] + lacks[positions] > 0
        path = np.where(target & has, self._own_mass(prob, entry)[positions], 0.0)
        mass = mass + np.where(target, own[positions], 0.0)
        short = np.maximum(short - path, 0.0) + np.where(target & has, lacks[positions], 0.0)
        contact = contact - (target & has) + (target & (lacks[positions] > 0))
        short = np.where(contact > 0, short, 0.0)
        kept = (mass > 0) & (short <= self.pair.tolerance * mass)
        proved &= kept & (contact == 0) & (~target | (own[positions] == 0) | self.entries.first.provable)
        # Added up from what is not in a cell: one minus the rest has no digits left where the teacher is sure.
        dropped = np.bincount(positions, weights=mass * ~kept, minlength=len(prob))
        rest = unknown + np.where(cell < 0, prob, 0.0).sum(1) - own + dropped
        cells = _Cells(positions[kept], tokens[kept], mass[kept], proved[kept])
        return self._packed(cells, np.maximum(rest, 0.0), unknown, dtype)

    def _conditioned(self) -> tuple[Floats, Ints, Floats]:
        """Masses ``(M, K)`` given the teacher's token is written over the place, entries, and what is unknown."""
        entries, nowhere = self.entries, self.token < 0
        if not len(self.labels):
            empty = np.zeros((len(self.token), 1))
            return empty, empty.astype(np.int64), np.ones(len(self.token))
        at = np.maximum(self.token, 0)
        ids, prob = self.said.ids[at], self.said.prob[at]
        inside = self.inside[:, None]
        begins = entries.start[np.maximum(ids, 0)]
        fits = (ids >= 0) & ((inside == 0) | (entries.lengths[np.maximum(ids, 0)] > inside))
        entry = np.where(fits, begins + inside, 0)
        written = entries.prefix[entries.start[self.labels[at]] + self.inside]
        fits &= entries.prefix[entry] == written[:, None]
        prob = np.where(fits & ~nowhere[:, None], prob, 0.0)
        unknown = self.said.unknown[at]
        whole = np.where(self.inside > 0, prob.sum(1) + unknown, 1.0)
        lost = nowhere | (whole <= 0)
        whole = np.where(lost, 1.0, whole)
        return prob / whole[:, None], entry, np.where(lost, 1.0, unknown / whole)

    def _summed(self, prob: Floats, cell: Ints, entry: Ints) -> tuple[Ints, Ints, Floats, NDArray[np.bool_]]:
        """One line per position and student token, in order of both: the text's own always, with 0 if nothing else."""
        size, count = len(self.pair.student), len(self.token)
        row, slot = np.nonzero(cell >= 0)
        keys = np.concatenate([row * size + cell[row, slot], np.arange(count) * size + self.targets])
        mass = np.concatenate([prob[row, slot], np.zeros(count)])
        doubt = np.concatenate([~self.entries.proved[entry[row, slot]], np.zeros(count, dtype=bool)])
        found, which = np.unique(keys, return_inverse=True)
        summed = np.bincount(which, weights=mass, minlength=len(found)).astype(np.float64)
        proved = np.bincount(which, weights=doubt, minlength=len(found)) == 0
        return found // size, found % size, summed, proved

    def _missing(
        self, prob: Floats, entry: Ints, is_open: NDArray[np.bool_], positions: Ints, tokens: Ints
    ) -> tuple[Floats, Ints]:
        """For each cell, how much open mass may belong to it, and of how many tokens."""
        row, slot = np.nonzero(is_open)
        which, weight = entry[row, slot], prob[row, slot]
        counts = self.entries.reach_count[which]
        stride = len(self.pair.student) + 2
        ragged = np.arange(counts.sum()) - np.repeat(np.cumsum(counts) - counts, counts)
        reach = self.entries.reach[np.repeat(self.entries.reach_at[which], counts) + ragged]
        keys = reach + np.repeat(row * stride, counts)[:, None]
        places = self.pair._ranks[tokens] + positions * stride
        weights = np.repeat(weight, counts)
        number, mass = np.zeros(len(places), dtype=np.int64), np.zeros(len(places))
        for side, sign in ((0, 1), (1, -1)):
            order = np.argsort(keys[:, side], kind="stable")
            before = np.searchsorted(keys[order, side], places, side="right")
            number += sign * before
            mass += sign * np.concatenate([[0.0], np.cumsum(weights[order])])[before]
        return np.maximum(mass, 0.0), number

    def _own_slot(self, entry: Ints) -> tuple[Ints, NDArray[np.bool_]]:
        at = np.maximum(self.token, 0)
        if not len(self.labels):
            return np.zeros(len(at), dtype=np.int64), np.zeros(len(at), dtype=bool)
        same = self.said.ids[at] == self.labels[at][:, None]
        return same.argmax(1), same.any(1) & (self.token >= 0)

    def _own_mass(self, prob: Floats, entry: Ints) -> Floats:
        slot, there = self._own_slot(entry)
        return np.where(there, prob[np.arange(len(prob)), slot], 0.0)

    def _followed(self, prob: Floats, entry: Ints, unknown: Floats) -> tuple[Floats, Floats]:
        """Mass of the text's own student token behind the teacher's own open token, and what may be missing of it."""
        own, lacks = np.zeros(len(prob)), np.zeros(len(prob))
        slot, there = self._own_slot(entry)
        mass = self._own_mass(prob, entry)
        which = entry[np.arange(len(prob)), slot]
        place = self.pair._ranks[self.targets]
        for at in np.nonzero(there & (mass > 0) & (self.entries.cell[which] < 0))[0].tolist():
            first = int(self.token[at])
            path = (int(self.labels[first]),)
            found = self.entries.first.after(path, int(self.inside[at]))
            if found.reaches(int(place[at])):
                own[at], lacks[at] = self._follow(at, path, found, float(mass[at]), int(place[at]))
        return own, lacks

    def _follow(
        self, at: int, path: tuple[int, ...], found: FirstToken, mass: float, place: int
    ) -> tuple[float, float]:
        """Walk on from `path`, whose mass is `mass`."""
        own = lacks = 0.0
        inside, target = int(self.inside[at]), int(self.targets[at])
        position = int(self.token[at]) + 1
        for step in range(STEPS):
            if found.token >= 0:
                return (own + mass, lacks) if found.token == target else (own, lacks)
            if not found.reaches(place):
                return own, lacks
            if step == STEPS - 1 or position >= self.end[at]:
                break
            ids, prob = self.said.ids[position], self.said.prob[position]
            goes_on, lacks = 0.0, lacks + mass * float(self.said.unknown[position])
            for token, share in zip(ids.tolist(), prob.tolist(), strict=True):
                if token < 0 or share <= 0:
                    continue
                if token == self.labels[position]:
                    goes_on = share
                    continue
                other = self.entries.first.after((*path, token), inside)
                if other.token == target:
                    own += mass * share
                elif other.token < 0 and other.reaches(place):
                    lacks += mass * share
            path = (*path, int(self.labels[position]))
            mass, position = mass * goes_on, position + 1
            if mass <= 0:
                return own, lacks
            found = self.entries.first.after(path, inside)
        return own, lacks + mass

    def _packed(self, cells: "_Cells", rest: Floats, unknown: Floats, dtype: torch.dtype) -> Translated:
        """Cells as slots, heaviest first."""
        positions, tokens, mass, proved = cells
        count = len(self.token)
        known = np.bincount(positions, weights=mass, minlength=count)
        exact = np.bincount(positions, weights=mass * proved, minlength=count)
        soft = (known >= self.pair.threshold) & (known > 0) & (self.token >= 0)
        chosen = soft[positions]
        positions, tokens, mass = positions[chosen], tokens[chosen], mass[chosen]
        hard = np.nonzero(~soft)[0]
        positions = np.concatenate([positions, hard])
        tokens = np.concatenate([tokens, self.targets[hard]])
        mass = np.concatenate([mass, np.ones(len(hard))])
        order = np.lexsort((-mass, positions))
        positions, tokens, mass = positions[order], tokens[order], mass[order]
        sizes = np.bincount(positions, minlength=count)
        slot = np.arange(len(positions)) - np.repeat(np.cumsum(sizes) - sizes, sizes)
        width = max(1, int(sizes.max(initial=1)))
        ids, prob = np.full((count, width), -1), np.zeros((count, width))
        ids[positions, slot], prob[positions, slot] = tokens, mass
        rest = np.where(soft, rest, 0.0)
        kind = np.where(soft, np.where(self.inside > 0, CONDITIONAL, ALIGNED), HARD_ONLY)
        signal = _signal(ids, prob, rest, self.targets, soft, len(self.pair.student), dtype)
        return Translated(signal, *map(torch.from_numpy, (kind, known, exact, unknown)))


def _signal(
    ids: Ints, prob: Floats, rest: Floats, targets: Ints, soft: NDArray[np.bool_], size: int, dtype: torch.dtype
) -> TeacherSignal:
    with np.errstate(divide="ignore"):
        logp = np.log(prob)
        # A tail of exactly zero makes every divergence that looks from the student's side infinite.
        tail = np.maximum(np.log(rest), ABSENT_LOG_MASS)
    finite = np.where(prob > 0, logp, 0.0)
    entropy = -(prob * finite).sum(1) - np.exp(tail) * tail
    own = ids == targets[:, None]
    of_label = np.where(own.any(1) & soft, logp[np.arange(len(ids)), own.argmax(1)], math.nan)
    heaviest = prob[:, 0] > rest
    of_target = np.where(own.any(1), logp[np.arange(len(ids)), own.argmax(1)], tail)
    parts = (logp, tail, entropy, np.where(heaviest, logp[:, 0], of_target), of_label)
    made = [torch.from_numpy(part).to(dtype) for part in parts]
    return TeacherSignal(
        ids=torch.from_numpy(ids),
        logp=made[0],
        log_tail=made[1],
        entropy=made[2],
        argmax=torch.from_numpy(np.where(heaviest, ids[:, 0], targets)),
        max_logp=made[3],
        vocab_size=size,
        label_logp=made[4],
    )
