"""A teacher's signal in its own vocabulary, as a signal in the student's.

At a student position the teacher's distribution is one over texts: what each of its tokens writes from there. A student
token's mass is the mass of those that are sure to begin with it (:mod:`.first_token`), and it is a cell of its own if
no more than a given share of it can be missing because tokens are open. All else is the tail: what is open, and what
the teacher was not asked for. So no cell is larger than the truth, and none lacks more than that share and the tail of
the teacher's own signal.

The truth is the first token of the student's encoding of what the teacher goes on to write, given the teacher's own
tokens so far and, in the middle of one of them, that it is written over this place and cut by the student as the text
is: behind `` |st`` stands no word that the student writes as one token. So the masses of a text's own cells multiply to
what the teacher gives its token. What the student's tokens say of text before the teacher's token is not looked at:
where the last of them could have gone on into it, it still may.

While the text's own token is open, the teacher's distribution at its next token of the text says how the mass of that
path is parted (:mod:`.follow`). A cell's mass is that of the student's token, not of its bytes: texts in which a longer
token would have been written are no part of it.
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
from bridgegarden.teacher.translation.decisions import Decisions, Floats, Ints
from bridgegarden.teacher.translation.first_token import FirstTokens
from bridgegarden.teacher.translation.follow import Said, Walk

ALIGNED, CONDITIONAL, HARD_ONLY = 0, 1, 2
"""Kinds of positions: both tokens begin there; the teacher is inside a token; too little is known."""
LEAST = 0.001
"""Share of `tolerance` below which a mass is not followed behind the text's own tokens: it is left open."""


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


class _Cells(NamedTuple):
    """One line per position and student token, in order of both."""

    position: Ints
    place: Ints
    """Of the token, in the student's order."""
    mass: Floats
    proved: NDArray[np.bool_]
    missing: Floats
    """Open mass that may belong to it, too."""

    def where(self, chosen: NDArray[np.bool_]) -> "_Cells":
        """Some of them."""
        return _Cells(
            self.position[chosen], self.place[chosen], self.mass[chosen], self.proved[chosen], self.missing[chosen]
        )


class _Slots(NamedTuple):
    """Masses and what was decided of them: many a position, in no order."""

    position: Ints
    number: Ints
    """Of the decision."""
    mass: Floats

    def where(self, chosen: NDArray[np.bool_]) -> "_Slots":
        """Some of them."""
        return _Slots(self.position[chosen], self.number[chosen], self.mass[chosen])


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
        self._decisions = None if self.same else Decisions(FirstTokens(teacher, student))
        self._ranks = np.array(student.ranks, dtype=np.int64)
        self._order = np.array(student.order, dtype=np.int64)

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
        if self._decisions is None and [list(s) for s in teacher_ids] == [list(s) for s in student_ids]:
            return _untouched(signal)
        sizes = np.array([len(stretch) for stretch in teacher_ids], dtype=np.int64)
        begins = np.cumsum(sizes) - sizes
        token = [np.where(a.token >= 0, a.token + b, -1) for a, b in zip(aligned, begins, strict=True)]
        end = [np.full(len(a.token), b + n) for a, b, n in zip(aligned, begins, sizes, strict=True)]
        work = _Work(
            self,
            self._decisions or Decisions(FirstTokens(self.teacher, self.student)),
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


def _said(signal: TeacherSignal, labels: Ints) -> Said:
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
    return Said(ids.astype(np.int64), prob, unknown)


@dataclass
class _Work:
    """One translation: N teacher positions with K slots, M student positions."""

    pair: Translation
    decisions: Decisions
    said: Said
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
        self.decisions.trim()
        prob, entry, unknown, undecided = self._conditioned()
        position, slot = np.nonzero(prob)
        number = self.decisions.at(entry[position, slot])
        slots = _Slots(position, number, prob[position, slot])
        slots = self._followed(slots, slot)
        is_open = self.decisions.cell(slots.number) < 0
        opened = slots.where(is_open)
        cells = self._summed(slots.where(~is_open), opened)
        kept = cells.missing <= self.pair.tolerance * cells.mass
        # Added up from what is not in a cell: one minus the rest has no digits left where the teacher is sure.
        count = len(prob)
        rest = unknown + undecided + np.bincount(opened.position, weights=opened.mass, minlength=count)
        rest += np.bincount(cells.position, weights=cells.mass * ~kept, minlength=count)
        return self._packed(cells.where(kept), rest, unknown, dtype)

    def _conditioned(self) -> tuple[Floats, Ints, Floats, Floats]:
        """Masses ``(M, K)`` given what is written up to the place, entries, what is unknown and what is undecided.

        In the middle of a teacher's token, that is: the token is written over the place, and the student cuts it so far
        as it cut the text. Of some tokens only what follows decides whether it does; their mass is undecided.
        """
        decisions, nowhere = self.decisions, self.token < 0
        if not len(self.labels):
            empty = np.zeros((len(self.token), 1))
            return empty, empty.astype(np.int64), np.ones(len(self.token)), np.zeros(len(self.token))
        at = np.maximum(self.token, 0)
        ids, prob = self.said.ids[at], self.said.prob[at]
        fits = ids >= 0
        named = np.where(fits, ids, 0)
        entry = decisions.start[named]
        within = np.nonzero(self.inside > 0)[0]
        inside = self.inside[within]
        begins, long = entry[within], decisions.lengths[named[within]] > inside[:, None]
        entry[within] = np.where(long, begins + inside[:, None], begins)
        written = decisions.prefix[decisions.start[self.labels[at[within]]] + inside]
        fits[within] &= long & (decisions.prefix[entry[within]] == written[:, None])
        fits[nowhere] = False
        prob = np.where(fits, prob, 0.0)
        sure, maybe = self._cut_alike(prob > 0, entry)
        undecided = np.where(maybe, prob, 0.0).sum(1)
        prob = np.where(sure, prob, 0.0)
        unknown = self.said.unknown[at]
        whole = np.where(self.inside > 0, prob.sum(1) + undecided + unknown, 1.0)
        lost = nowhere | (whole <= 0)
        whole = np.where(lost, 1.0, whole)
        return prob / whole[:, None], entry, np.where(lost, 1.0, unknown / whole), undecided / whole

    def _cut_alike(self, fits: NDArray[np.bool_], entry: Ints) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
        """Slots ``(M, K)`` of tokens that the student is sure to cut, up to the place, as it cut the text; and those of
        which only what follows decides it.

        Looked at from the first place in the teacher's token on.
        """
        same = np.zeros(len(self.token), dtype=bool)
        same[1:] = (self.token[1:] == self.token[:-1]) & (self.token[1:] >= 0)
        order = np.arange(len(same))
        depth = order - np.maximum.accumulate(np.where(same, 0, order))
        sure, maybe = fits.copy(), np.zeros_like(fits)
        for level in range(1, int(depth.max(initial=0)) + 1):
            here = np.nonzero(depth == level)[0]
            position, slot = np.nonzero(fits[here])
            place, before = here[position], here[position] - 1
            number = self.decisions.at(entry[before, slot])
            cell, target = self.decisions.cell(number), self.targets[before]
            may = cell < 0
            may[may] = self.decisions.reaches(number[may], self.pair._ranks[target[may]])
            was_sure, was_maybe = sure[before, slot], maybe[before, slot]
            sure[place, slot] = was_sure & (cell == target)
            maybe[place, slot] = (was_maybe & ((cell == target) | may)) | (was_sure & may)
        return sure, maybe

    def _followed(self, slots: _Slots, slot: Ints) -> _Slots:
        """The text's own token, where it is open, parted by what the teacher says behind it."""
        at = self.token[slots.position]
        own = (self.said.ids[at, slot] == self.labels[at]) & (self.decisions.cell(slots.number) < 0)
        walk = Walk(
            slots.position[own],
            at[own],
            slots.mass[own],
            [
                self.decisions.path(token, inside)
                for token, inside in zip(
                    self.labels[at[own]].tolist(), self.inside[slots.position[own]].tolist(), strict=True
                )
            ],
        )
        least = LEAST * self.pair.tolerance
        parts = [slots.where(~own), *walk.follow(self.decisions, self.said, self.labels, self.end, least)]
        position, number, mass = zip(*parts, strict=True)
        return _Slots(np.concatenate(position), np.concatenate(number), np.concatenate(mass))

    def _summed(self, slots: _Slots, opened: _Slots) -> _Cells:
        """Mass of each student token of each position, and the open mass that may belong to it, too."""
        stride = self.decisions.stride
        keys = slots.position * stride + self.pair._ranks[self.decisions.cell(slots.number)]
        order = np.argsort(keys, kind="stable")  # which is fast where much is in order already
        ordered = keys[order]
        begins = np.ones(len(ordered), dtype=bool)
        np.not_equal(ordered[1:], ordered[:-1], out=begins[1:])
        first = np.nonzero(begins)[0]
        found = ordered[first]
        mass = np.add.reduceat(slots.mass[order], first) if len(first) else np.zeros(0)
        proved = self.decisions.proved(slots.number[order])
        proved = np.logical_and.reduceat(proved, first) if len(first) else np.zeros(0, dtype=bool)
        # Few cells lie between the first and the last that an open token reaches; each of these is looked up.
        hull = self.decisions.hull(opened.number) + (opened.position * stride)[:, None]
        low, high = np.searchsorted(found, hull.T)
        counts = high - low
        which = np.repeat(np.arange(len(counts)), counts)
        cell = np.arange(len(which)) - np.repeat(np.cumsum(counts) - counts, counts) + low[which]
        met = self.decisions.reaches(opened.number[which], found[cell] % stride)
        missing = np.bincount(cell[met], weights=opened.mass[which[met]], minlength=len(found)).astype(np.float64)
        return _Cells(found // stride, found % stride, mass, proved & (missing == 0), missing)

    def _packed(self, cells: "_Cells", rest: Floats, unknown: Floats, dtype: torch.dtype) -> Translated:
        """Cells as slots, heaviest first."""
        positions, tokens, mass, proved = cells.position, self.pair._order[cells.place], cells.mass, cells.proved
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
        # Heaviest first, in one sort: a mass is at most 1, and so at most half of a step from position to position.
        order = np.argsort(positions - 0.5 * mass, kind="stable")
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
