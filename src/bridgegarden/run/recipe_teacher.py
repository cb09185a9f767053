"""The teacher that a recipe describes, whatever its kind; and the cache that it names: where that is, whether the
teacher was told the same, and what is lost in it."""

import dataclasses
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import quote

from bridgegarden.data import Mix, RowRules
from bridgegarden.errors import ConfigError
from bridgegarden.preflight import ModelReference, Pair, check_positions
from bridgegarden.recipe import Recipe, TeacherSection, build_objective
from bridgegarden.run.rows import RunData, evaluation_rows, mix_text, rules_of, tokenised, training_rows
from bridgegarden.terminal import counted

if TYPE_CHECKING:
    from datasets import Dataset

    from bridgegarden.teacher.cache.reader import TeacherCache
    from bridgegarden.teacher.live import LiveTeacher
    from bridgegarden.teacher.mixture import MixedTeacher
    from bridgegarden.teacher.protocol import Teacher

Say = Callable[[str], None]
"""Tells a person a line."""
TOP_K = 64
"""Tokens kept of a teacher in memory whose signals are translated, unless the recipe says otherwise: the time that
takes grows with them."""


@dataclass(frozen=True)
class RecipeTeacher(ABC):
    """The teacher that a recipe describes, with nothing of it loaded."""

    recipe: Recipe

    @property
    @abstractmethod
    def reference(self) -> ModelReference | None:
        """Its model on this machine; None where nothing is known of it but what it said."""

    @property
    def further_references(self) -> tuple[ModelReference, ...]:
        """Models that are mixed with it."""
        return ()

    @property
    def tokenizer_reference(self) -> ModelReference | None:
        """Its tokenizer, where the recipe names that and its model is elsewhere."""
        return None

    @abstractmethod
    def signals(self, pair: Pair, say: Say) -> "Teacher":
        """What the trainer asks.

        Raises:
            ConfigError: there is no cache, or it holds something else.
            ModelError: the weights cannot be loaded, or the cache is another teacher's.
        """

    def warnings(self, pair: Pair) -> tuple[str, ...]:
        """What the objective loses by what is kept of the teacher, with what to do.

        Raises:
            ConfigError: its cache is of another version.
            DataError: a shard of it is missing or damaged.
        """
        return ()

    def tokenised(self, mix: Mix, pair: Pair, rules: RowRules) -> "list[Dataset]":
        """Token ids and labels of each part of `mix`.

        Raises:
            DataError: a row, or all those of a source, cannot be used.
            ModelError: the tokenizer cannot write the rows.
        """
        return tokenised(mix, pair.endings.tokenizer, rules)

    def rows(self, pair: Pair) -> RunData:
        """All rows of the recipe, ready for the trainer.

        Raises:
            DataError: a row, or all of them, cannot be used.
            ModelError: the tokenizer cannot write the rows.
        """
        rules = rules_of(self.recipe, pair.tokens)
        train, held_out = training_rows(self.recipe.data), evaluation_rows(self.recipe.data)
        data = RunData(
            train=train.joined(self.tokenised(train, pair, rules)),
            evaluation=None if held_out is None else held_out.joined(self.tokenised(held_out, pair, rules)),
            mix=mix_text(train),
        )
        for facts in pair.teachers if pair.asked and pair.tokens is None else ():  # which are cut as the student's are
            check_positions(facts, data.longest_asked, asked=True)
        return data


def cache_folder(recipe: Recipe) -> Path:
    """Where the recipe's cache is.

    Raises:
        ConfigError: it names none.
    """
    if recipe.teacher.by is not None:
        raise ConfigError(
            "teacher.by: the recipe has a cache for each teacher ("
            + ", ".join(f"{name}: {member.teacher.cache}" for name, member in recipes_of(recipe).items())
            + "); give the folder of one of them in place of the recipe."
            if not recipe.teacher.together
            else "teacher.together: what teachers say is not kept; leave it out to have a cache for each."
        )
    if recipe.teacher.cache is None:
        raise ConfigError("teacher.cache: the recipe names no folder for it; add one, or --set teacher.cache=FOLDER.")
    return Path(recipe.teacher.cache).expanduser()


def cache_folders(recipe: Recipe) -> tuple[Path, ...]:
    """Where the recipe's cache is, or that of each of its teachers.

    Raises:
        ConfigError: it names none.
    """
    if recipe.teacher.by is None or recipe.teacher.together:
        return (cache_folder(recipe),)
    return tuple(map(cache_folder, recipes_of(recipe).values()))


def recipes_of(recipe: Recipe) -> dict[str, Recipe]:
    """Of a recipe in which every row has one of several teachers, that of each: with the teacher alone, by its name.

    One whose cache has no folder has ``OUTPUT/teachers/NAME``, but where all are in memory.
    """
    section, recipes = recipe.teacher, {}
    for name in section.of or {}:
        member = section.member(name)
        if member.cache is None and not section.together:
            # Of any text a file's name, which is none of the two that name other folders.
            folder = quote(name, safe=" ") if name.strip(".") else name.replace(".", "%2E")
            member = dataclasses.replace(member, cache=str(recipe.output / "teachers" / folder))
        recipes[name] = dataclasses.replace(recipe, teacher=member)
    return recipes


def cache_warnings(recipe: Recipe) -> tuple[str, ...]:
    """What the objective of a recipe loses in its cache, with what to do; nothing is said of a cache that is not there.

    Raises:
        ConfigError: it is of another version.
        DataError: a shard of it is missing or damaged.
    """
    from bridgegarden.teacher.cache.fidelity import cache_warning
    from bridgegarden.teacher.cache.manifest import MANIFEST

    if recipe.teacher.cache is None or not recipe.teacher.is_cached or not (cache_folder(recipe) / MANIFEST).exists():
        return ()
    warning = cache_warning(cache_folder(recipe), build_objective(recipe.objective))
    return () if warning is None else (warning,)


def check_prompt(recipe: Recipe, cache: "TeacherCache") -> None:
    """Make sure that the teacher was told what the recipe has it told."""
    from bridgegarden.teacher.cache.manifest import replace_command

    differences = cache.spec.differences(dataclasses.replace(cache.spec, prompt=recipe.teacher.prompt))
    if differences:
        raise ConfigError(
            f"teacher.prompt: the cache {cache.folder} was built with another: {differences}. "
            f"{replace_command(cache.folder, cache.spec)}"
        )


def check_read(recipe: Recipe, cache: "TeacherCache", pair: Pair) -> None:
    """Refuse a cache of rows that were written otherwise, before any weights are loaded.

    Raises:
        ConfigError: they were cut to another length.
        ModelError: the tokenizer or its chat template was another.
    """
    cache.check_tokenizer(pair.read_by, recipe.training.arguments["max_length"], pair.whose)


def announced(recipe: Recipe, cache: "TeacherCache", say: Say) -> "TeacherCache":
    """`cache`, once `say` has said which it is."""
    from bridgegarden.teacher.cache.info import teacher_loss

    loss = teacher_loss(cache.folder)
    own = "" if loss is None else f"; its own loss on them is {loss}"
    say(f"reading teacher {recipe.teacher.name} from {cache.folder} ({counted(len(cache), 'row')}){own}")
    return cache


def kept_tokens(section: TeacherSection, pair: Pair) -> int | None:
    """How many tokens are kept of a teacher in memory."""
    return TOP_K if section.top_k is None and pair.tokens is not None else section.top_k


def translated(teacher: "TeacherCache | LiveTeacher | MixedTeacher", pair: Pair) -> "Teacher":
    """`teacher`, in the vocabulary of the student of `pair`."""
    from bridgegarden.teacher.cache.reader import TeacherCache
    from bridgegarden.teacher.translated import TranslatedCache, TranslatedModel

    if pair.tokens is None:
        return teacher
    if isinstance(teacher, TeacherCache):
        return TranslatedCache(teacher, pair.tokens)
    return TranslatedModel(teacher, pair.tokens)


def from_disk(recipe: Recipe, cache: "TeacherCache", pair: Pair, say: Say) -> "Teacher":
    """What the trainer asks where it is read from `cache`, of which the objective can be computed.

    Raises:
        ConfigError: it cannot.
    """
    from bridgegarden.teacher.cache.reader import TeacherCache
    from bridgegarden.teacher.translated import TranslatedCache

    teacher = translated(announced(recipe, cache, say), pair)
    assert isinstance(teacher, TeacherCache | TranslatedCache)
    teacher.check_objective(build_objective(recipe.objective))
    return teacher
