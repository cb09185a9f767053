"""How much a student of another family learns of a cache: ``bridgegarden cache info RECIPE --student MODEL``."""

import dataclasses
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from bridgegarden.errors import ConfigError
from bridgegarden.recipe import Recipe, StudentSection
from bridgegarden.recipe.teacher import TranslationSection
from bridgegarden.run.pair import recipe_pair
from bridgegarden.run.quiet import quiet_libraries
from bridgegarden.run.recipe_teacher import cache_folder
from bridgegarden.run.rows import rules_of, training_rows
from bridgegarden.run.teachers import teacher_of
from bridgegarden.run.translation import tokenizer_pair
from bridgegarden.teacher.translated import SHARES, TranslatedCache
from bridgegarden.terminal import Display, counted

if TYPE_CHECKING:
    from rich.console import Console

    from bridgegarden.preflight import Pair

ROWS, POSITIONS, BATCH = 500, 20_000, 8
"""Rows, from the first, and the student's tokens in them, that are looked at; rows at a time."""


@dataclass(frozen=True, kw_only=True)
class KnownShares:
    """What of a teacher's signals a student can be taught."""

    student: str
    rows: int
    """That were looked at, from the first."""
    positions: int
    """The student's, in them."""
    threshold: float
    tolerance: float
    shares: dict[str, float] | None
    """Means over positions, as training logs them; None where the student has the teacher's tokenizer, so that all is
    known."""

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        return dataclasses.asdict(self)

    def __str__(self) -> str:
        """For a person."""
        if self.shares is None:
            return f"for a student  {self.student}: it has the teacher's tokenizer, so that nothing is translated"
        known = [f"{value:.1%}" for value in self.shares.values()]
        looked_at = f"{counted(self.positions, 'token')} of the first {counted(self.rows, 'training row')}"
        return "\n".join(
            [
                f"for a student  {self.student}: {looked_at}, threshold {self.threshold:g}, tolerance "
                f"{self.tolerance:g}",
                f"  positions    {known[0]} aligned, {known[1]} conditional, {known[2]} hard labels only",
                f"  probability  {known[3]} exact, {known[4]} approximate, {known[5]} open, {known[6]} unknown",
            ]
        )


def known_shares(recipe: Recipe, student: str, console: "Console") -> KnownShares:
    """What the model `student` could be taught from the cache of `recipe`, over its first rows.

    No weights are read.

    Raises:
        ConfigError: there is no cache, or nothing but it is to be had of the teacher.
        ModelError: `student` cannot be used with the teacher, or the cache is of another tokenizer.
        DataError: a row cannot be used, or is not in the cache.
    """
    from bridgegarden.teacher.cache.reader import TeacherCache

    folder = cache_folder(recipe)
    recipe = dataclasses.replace(recipe, student=StudentSection(model=student, dtype=recipe.student.dtype))
    with quiet_libraries(interactive=sys.stderr.isatty()):
        pair = recipe_pair(recipe, weights=False, translates=True)
        section = recipe.teacher.translation or TranslationSection()
        if pair.teacher_tokens is None:
            raise ConfigError(
                "cache info: --student needs the teacher's tokenizer, and nothing but a cache is to be had of "
                f"{recipe.teacher.model}. Name it (--set teacher.tokenizer=NAME: a folder, or a name on the hub)."
            )
        if not pair.translates:
            return KnownShares(student=student, rows=0, positions=0, shares=None, **dataclasses.asdict(section))
        pair = dataclasses.replace(pair, tokens=pair.tokens or tokenizer_pair(pair, section))
        assert pair.tokens is not None
        cache = TranslatedCache(TeacherCache(folder), pair.tokens)
        cache.check_student(cache.width, recipe.training.arguments["max_length"])
        sums, rows = torch.zeros(len(SHARES), dtype=torch.float64), 0
        with Display(console, "positions") as display:
            for batch in _batches(recipe, pair):
                sums, rows = sums + cache.collate(batch)["facts"].sum(0, dtype=torch.float64), rows + len(batch)
                positions = int(sums[:3].sum())
                display.update(min(positions, POSITIONS), total=POSITIONS)
                if positions >= POSITIONS:
                    break
    positions = int(sums[:3].sum())
    shares = dict(zip(SHARES, (sums / max(positions, 1)).tolist(), strict=True))
    return KnownShares(student=student, rows=rows, positions=positions, shares=shares, **dataclasses.asdict(section))


def _batches(recipe: Recipe, pair: "Pair") -> Iterator[list[dict[str, Any]]]:
    """The first training rows in the tokens of both, some at a time."""
    rules = rules_of(recipe, pair.tokens)
    for part in teacher_of(recipe).tokenised(training_rows(recipe.data, ROWS), pair, rules):
        rows = [dict(row) for row in part]
        yield from (rows[start : start + BATCH] for start in range(0, len(rows), BATCH))
