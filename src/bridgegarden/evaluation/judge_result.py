"""What a judge's verdicts add up to."""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal, NamedTuple

from bridgegarden.errors import DataError
from bridgegarden.evaluation.judge_question import Choice, Pair, points
from bridgegarden.statistics import Estimate, Interval


class Judged(NamedTuple):
    """A pair with its verdicts."""

    pair: Pair
    in_order: Choice
    """With the first system's answer shown first."""
    swapped: Choice
    """With the second's shown first."""

    @property
    def score(self) -> float:
        """Points of the first system, both orders averaged."""
        return (points(self.in_order, swapped=False) + points(self.swapped, swapped=True)) / 2


@dataclass(frozen=True, kw_only=True)
class JudgeResult:
    """How often the first system's answer is preferred."""

    win_rate: Estimate
    """Points a pair (1 win, 1/2 tie, 0 loss), both orders averaged; a prompt with several pairs counts once, and the
    standard error is over prompts."""
    interval: Interval
    """95 %, of `win_rate`."""
    wins: int
    """Pairs in which the first system has more than half of the points,"""
    ties: int
    """just half,"""
    losses: int
    """and less."""
    shown_first_wins: float | None
    """Share of the verdicts other than ties that went to the answer shown first; 1/2 for a judge that prefers no place.
    None if all are ties."""
    longer_wins: float | None
    """Of the pairs that are no tie and whose lengths differ, the share in which the longer answer won."""
    mean_characters: tuple[float, float]
    """Length of the first and the second system's answers."""
    judge: Mapping[str, Any]
    """Who judged."""
    failed: int
    """Pairs left out, because the judge gave no verdict in one of the orders."""

    @property
    def verdict(self) -> Literal["first", "second"] | None:
        """Whose answers are preferred; None if the interval holds 1/2."""
        return (None, "first", "second")[self.interval.side(0.5)]

    @classmethod
    def of(cls, judged: Sequence[Judged], *, judge: Mapping[str, Any], failed: int) -> "JudgeResult":
        """Add up.

        Raises:
            DataError: fewer than two prompts have a verdict.
        """
        by_prompt: dict[str, list[float]] = defaultdict(list)
        for one in judged:
            by_prompt[one.pair.prompt].append(one.score)
        if len(by_prompt) < 2:
            raise DataError(
                f"judge: {len(by_prompt)} prompts have verdicts; a win rate with its error needs at least 2."
            )
        rate = Estimate.over([sum(scores) / len(scores) for scores in by_prompt.values()])
        scores = [one.score for one in judged]
        decided = [one.in_order == "first" for one in judged if one.in_order != "tie"]
        decided += [one.swapped == "first" for one in judged if one.swapped != "tie"]
        lengths = [(len(one.pair.first), len(one.pair.second)) for one in judged]
        longer = [
            (first > second) == (score > 0.5)
            for (first, second), score in zip(lengths, scores, strict=True)
            if first != second and score != 0.5
        ]
        return cls(
            win_rate=rate,
            interval=rate.interval(),
            wins=sum(score > 0.5 for score in scores),
            ties=sum(score == 0.5 for score in scores),
            losses=sum(score < 0.5 for score in scores),
            shown_first_wins=_share(decided),
            longer_wins=_share(longer),
            mean_characters=(_mean([first for first, _ in lengths]), _mean([second for _, second in lengths])),
            judge=judge,
            failed=failed,
        )

    def to_dict(self) -> dict[str, Any]:
        """For a JSON file."""
        tree = asdict(self)
        tree["win_rate"], tree["interval"] = self.win_rate._asdict(), list(self.interval)
        return {**tree, "mean_characters": list(self.mean_characters), "verdict": self.verdict}

    def __str__(self) -> str:
        """Some lines to read."""
        half = 50 * (self.interval.high - self.interval.low)
        said = {"first": "A is preferred", "second": "B is preferred", None: "no preference shown"}[self.verdict]
        first, second = self.mean_characters
        lines = [
            f"A's win rate is {100 * self.win_rate.mean:.1f} % ± {half:.1f} (95 %, {self.win_rate.n} prompts): {said}.",
            f"{self.wins} wins, {self.ties} ties, {self.losses} losses of A, both orders of every pair averaged.",
            f"Mean length: {first:.0f} characters (A), {second:.0f} (B). {_of_length(self.longer_wins)}",
        ]
        if self.shown_first_wins is not None:
            lines.append(f"The answer shown first got {100 * self.shown_first_wins:.0f} % of the decided verdicts.")
        if self.failed:
            lines.append(f"{self.failed} pairs have no verdict and are left out; the same command asks for them again.")
        return "\n".join(lines)


def _of_length(longer_wins: float | None) -> str:
    if longer_wins is None:
        return "No decided pair differs in length."
    return f"Where one was preferred, it was the longer one in {100 * longer_wins:.0f} % of the pairs."


def _share(flags: Sequence[bool]) -> float | None:
    return _mean(flags) if flags else None


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)
