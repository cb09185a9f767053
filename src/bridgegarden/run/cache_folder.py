"""The cache that a recipe names: where it is, whether it was told the same, and what is lost in it."""

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import quote

from bridgegarden.errors import ConfigError
from bridgegarden.recipe import Recipe, build_objective
from bridgegarden.terminal import counted

if TYPE_CHECKING:
    from bridgegarden.teacher.cache.reader import TeacherCache

Say = Callable[[str], None]


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


def announced(recipe: Recipe, cache: "TeacherCache", say: Say) -> "TeacherCache":
    """`cache`, once `say` has said which it is."""
    from bridgegarden.teacher.cache.info import teacher_loss

    loss = teacher_loss(cache.folder)
    own = "" if loss is None else f"; its own loss on them is {loss}"
    say(f"reading teacher {recipe.teacher.name} from {cache.folder} ({counted(len(cache), 'row')}){own}")
    return cache
