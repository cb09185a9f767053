"""Names beside the points of a chart, moved apart where they would cover each other."""

from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

GLYPH, HEIGHT = 7.3, 16.0
"""Pixels: an average character of 13 px semibold, and a line of it."""


class Box(NamedTuple):
    """A rectangle in pixels."""

    left: float
    top: float
    right: float
    bottom: float

    def overlap(self, other: "Box") -> float:
        """Shared area."""
        width = min(self.right, other.right) - max(self.left, other.left)
        height = min(self.bottom, other.bottom) - max(self.top, other.top)
        return max(width, 0.0) * max(height, 0.0)

    def outside(self, frame: "Box") -> float:
        """Area beyond `frame`."""
        area = (self.right - self.left) * (self.bottom - self.top)
        return area - self.overlap(frame)


class Label(NamedTuple):
    """Where a name goes."""

    box: Box
    """The room it takes."""
    far: bool
    """Whether it stands so far off that a line must lead to its point."""


def width(text: str) -> float:
    """Pixels that `text` takes, roughly."""
    return GLYPH * len(text)


def shortened(text: str, room: float) -> str:
    """`text`, its end cut off with an ellipsis where it would take more than `room` pixels."""
    most = max(int(room / GLYPH), 2)
    return text if len(text) <= most else f"{text[: most - 1].rstrip()}…"


def place(names: Sequence[str], points: Sequence[tuple[float, float]], taken: Iterable[Box], frame: Box) -> list[Label]:
    """A place for each name near its point: first those around it, then farther ones, the least covered wins.

    Args:
        names: what is written.
        points: centre of each name's point.
        taken: what should stay visible, such as the points themselves and their error bars.
        frame: where names may stand.
    """
    blocked, labels = list(taken), []
    for name, (x, y) in zip(names, points, strict=True):
        best, best_cost = None, float("inf")
        for rank, label in enumerate(_candidates(name, x, y)):
            cost = sum(label.box.overlap(box) for box in blocked) + 10 * label.box.outside(frame) + 2.0 * rank
            if cost < best_cost:
                best, best_cost = label, cost
        assert best is not None
        blocked.append(best.box)
        labels.append(best)
    return labels


def _candidates(name: str, x: float, y: float) -> Iterator[Label]:
    wide = width(name)
    for distance in (10.0, 20.0, 34.0, 50.0, 68.0):
        far = distance > 20
        for across, down in ((1, -0.7), (1, 0.7), (-1, -0.7), (-1, 0.7), (1, 0), (-1, 0), (0, -1), (0, 1)):
            middle = y + down * (distance + HEIGHT / 2)
            left = x - wide / 2 if across == 0 else x + distance if across > 0 else x - distance - wide
            yield Label(Box(left, middle - HEIGHT / 2, left + wide, middle + HEIGHT / 2), far)
