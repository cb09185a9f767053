"""The text's own tokens followed: what the teacher says at its next tokens parts the mass of an open one.

``the`` may become ``there``. Where the text goes on with ``re``, the teacher was asked behind ``the``: how much of its
mass goes on so, and how much with each other token, is known (the chain rule).
"""

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

from bridgegarden.teacher.translation.decisions import Decisions, Floats, Ints, Path

STEPS = 16
"""Teacher tokens that a path is followed for."""


class Said(NamedTuple):
    """A teacher's signal with the text's own token always among its slots."""

    ids: Ints
    """``(N, K)``, -1 where a slot is empty."""
    prob: Floats
    """``(N, K)``."""
    unknown: Floats
    """``(N,)``."""


class Walk(NamedTuple):
    """Paths along the text, each from a student position."""

    position: Ints
    """The student's."""
    at: Ints
    """The teacher position of the path's last token."""
    mass: Floats
    """Of the path."""
    paths: list[Path]

    def follow(
        self, decisions: Decisions, said: Said, labels: Ints, end: Ints, least: float
    ) -> Iterator[tuple[Ints, Ints, Floats]]:
        """Parts of the mass of every path: student positions, numbers of decisions, masses.

        Args:
            decisions: of the pair.
            said: the teacher at N positions.
            labels: ``(N,)`` its tokens of the text.
            end: ``(M,)`` teacher position where the stretch of a student position ends.
            least: what a path or a token behind it must have to be looked at.
        """
        walk = self
        for step in range(STEPS):
            number = np.array([path.number for path in walk.paths], dtype=np.int64)
            stays = (decisions.cell(number) >= 0) | (walk.mass <= least) | (walk.at + 1 >= end[walk.position])
            if step == STEPS - 1:
                stays[:] = True
            yield walk.position[stays], number[stays], walk.mass[stays]
            goes = np.nonzero(~stays)[0]
            if not len(goes):
                return
            position, number, mass, at = walk.position[goes], number[goes], walk.mass[goes], walk.at[goes] + 1
            paths = [walk.paths[index] for index in goes.tolist()]
            weight = said.prob[at] * mass[:, None]
            own = said.ids[at] == labels[at][:, None]
            chosen = ~own & (weight > least)
            left = said.unknown[at] * mass + np.where(own | chosen, 0.0, weight).sum(1)
            yield position[left > 0], number[left > 0], left[left > 0]
            which, slot = np.nonzero(chosen)
            found = decisions.all_behind(paths, which, said.ids[at[which], slot])
            yield position[which], found, weight[which, slot]
            longer = [decisions.longer(path, label) for path, label in zip(paths, labels[at].tolist(), strict=True)]
            walk = Walk(position, at, np.where(own, weight, 0.0).sum(1), longer)
