"""A recipe to its teacher's signals on disk, and back: what ``bridgegarden cache`` does."""

import dataclasses
import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from bridgegarden.data import chat_template_fingerprint, tokenizer_fingerprint, vocabulary_size
from bridgegarden.errors import ConfigError
from bridgegarden.preflight import Endings, ModelFacts, check_endings, check_positions, compare_tokenizers, load_facts
from bridgegarden.recipe import Recipe, build_objective, load_recipe
from bridgegarden.run.answers import recipe_data
from bridgegarden.run.cache_engine import check_engine, fill_recipe_cache
from bridgegarden.run.models import references, usable_device
from bridgegarden.run.output import check_writable
from bridgegarden.run.quiet import quiet_libraries
from bridgegarden.run.served_cache import ServedBuild, build_served_cache, open_served_cache

if TYPE_CHECKING:
    from bridgegarden.teacher.cache.check import CheckResult
    from bridgegarden.teacher.cache.reader import TeacherCache
    from bridgegarden.teacher.cache.spec import CacheSpec
    from bridgegarden.teacher.cache.support import Support
    from bridgegarden.teacher.cache.writer import BuildResult

DEFAULT_TOP_K = 64


@dataclass(frozen=True, kw_only=True)
class CacheOptions:
    """What the command line says beside the recipe. Of what is None, a cache that is there already decides."""

    top_k: int | None = None
    """Tokens kept per position; None is the recipe's ``teacher.top_k``, or 64 in a new cache."""
    mass: float | None = None
    """Keep only the likeliest tokens that together have this probability."""
    samples: int | None = None
    """Keep so many draws instead."""
    bits: int | None = None
    """Bits of a log-probability: 8 (None, in a new cache) or 16."""
    limit: int | None = None
    """At most so many training rows, from the start; None is the recipe's ``data.limit``."""
    part: tuple[int, int] = (1, 1)
    """The i-th of n parts."""
    batch_tokens: int = 4096
    """Tokens of a teacher's batch at most, padding included."""
    engine: Literal["local", "ray"] = "local"
    """One teacher in this process, or several in Ray's actors."""
    actors: int | None = None
    """Teachers at work in Ray; None is one for each GPU, or without GPUs one for each machine."""
    replace: bool = False
    """Remove what the folder holds first."""
    skip_unusable: bool = False
    """With a teacher on a server: leave out rows that give no signal."""
    raw_logprobs: bool = False
    """With a teacher on a server: its log-probabilities are those of temperature 1, whatever it sampled at."""


def build_recipe_cache(recipe: Recipe, options: CacheOptions) -> "BuildResult | ServedBuild":
    """Ask the teacher of `recipe` about all its rows, for training and evaluation, and keep what it says.

    A teacher on a server is not asked: rows are its answers, and hold what it said.

    Raises:
        ConfigError: the recipe names no folder, or it cannot be built in.
        DataError: a row cannot be used.
        ModelError: the models cannot be used, or not with each other.
    """
    from bridgegarden.teacher.cache.manifest import MANIFEST
    from bridgegarden.teacher.cache.writer import begin_cache, remove_cache
    from bridgegarden.terminal import stderr_console

    folder = cache_folder(recipe)
    check_engine(recipe, options)
    if not (folder / MANIFEST).exists():  # one that is whole may be where nothing can be written
        check_writable(folder, "teacher.cache")
    usable_device(recipe.teacher.device, "teacher.device")
    with quiet_libraries(interactive=sys.stderr.isatty()):
        teacher, student, endings = _checked_pair(recipe)
        if options.limit is not None:
            recipe = dataclasses.replace(recipe, data=dataclasses.replace(recipe.data, limit=options.limit))
        if teacher is None:
            return build_served_cache(recipe, folder, student, endings, options)
        _refuse_what_is_for_answers(options)
        spec = _spec(recipe, teacher, endings, options)
        data = recipe_data(recipe, endings, student)
        if options.replace:
            remove_cache(folder)
        begin_cache(folder, spec)
        return fill_recipe_cache(recipe, teacher, folder, list(data.by_name.values()), spec, options, stderr_console())


def open_cache(recipe: Recipe, teacher: ModelFacts | None) -> "TeacherCache":
    """The cache that `recipe` trains from, if it is what `teacher` said; None for one on a server.

    Raises:
        ConfigError: there is none, or it is of another version or kind.
        ModelError: it is another teacher's.
    """
    from bridgegarden.teacher.cache.manifest import replace_command
    from bridgegarden.teacher.cache.reader import TeacherCache

    if teacher is None:
        return open_served_cache(recipe, cache_folder(recipe))
    cache = TeacherCache(cache_folder(recipe))
    expected = dataclasses.replace(cache.spec, **_identity(teacher))
    differences = cache.spec.differences(expected)
    advice = replace_command(cache.folder, cache.spec)
    if differences:
        raise teacher.reference.error(f"the cache {cache.folder} is another teacher's: {differences}. {advice}")
    top_k = recipe.teacher.top_k
    if top_k is not None and top_k != cache.spec.support.k:
        raise ConfigError(
            f"teacher.top_k is {top_k}, but the cache {cache.folder} keeps {cache.spec.support}. Leave teacher.top_k "
            f"out, or build anew. {replace_command(cache.folder)}"
        )
    return cache


def check_recipe_cache(source: str, overrides: Sequence[str] = ()) -> "CheckResult":
    """Check every byte of a cache; of a recipe's cache also that the recipe can be trained from it.

    Args:
        source: the folder of a cache, or a recipe.
        overrides: changes to the recipe.

    Raises:
        BridgegardenError: the first thing that is wrong.
    """
    from bridgegarden.teacher.cache.check import check_cache

    if not _is_recipe(source):
        return check_cache(Path(os.path.expanduser(source)))
    recipe = load_recipe(source, overrides)
    result = check_cache(cache_folder(recipe))
    with quiet_libraries(interactive=sys.stderr.isatty()):
        teacher, student, endings = _checked_pair(recipe)
        cache = open_cache(recipe, teacher)
        cache.check_tokenizer(endings.tokenizer, _max_length(recipe))
        cache.check_objective(build_objective(recipe.objective))
        for name, rows in recipe_data(recipe, endings, student).by_name.items():
            cache.check_rows(rows, name)
    return result


def find_cache(source: str, overrides: Sequence[str] = ()) -> Path:
    """The folder that `source` is, or that the recipe `source` names.

    Raises:
        ConfigError: there is no such recipe, or it names no cache.
    """
    return cache_folder(load_recipe(source, overrides)) if _is_recipe(source) else Path(os.path.expanduser(source))


def cache_folder(recipe: Recipe) -> Path:
    """Where the recipe's cache is.

    Raises:
        ConfigError: it names none.
    """
    if recipe.teacher.cache is None:
        raise ConfigError("teacher.cache: the recipe names no folder for it; add one, or --set teacher.cache=FOLDER.")
    return Path(os.path.expanduser(recipe.teacher.cache))


def _is_recipe(source: str) -> bool:
    return not Path(os.path.expanduser(source)).is_dir()


def _checked_pair(recipe: Recipe) -> tuple[ModelFacts | None, ModelFacts, Endings]:
    of_teacher, of_student = references(recipe)
    teacher, student = None if of_teacher is None else load_facts(of_teacher), load_facts(of_student)
    for facts in (teacher, student):
        check_positions(facts, _max_length(recipe))
    compare_tokenizers(teacher, student)
    return teacher, student, check_endings(teacher, student, recipe.data.chat_template)


def _refuse_what_is_for_answers(options: CacheOptions) -> None:
    for option, given in (("--skip-unusable", options.skip_unusable), ("--raw-logprobs", options.raw_logprobs)):
        if given:
            raise ConfigError(f"cache: {option} goes with a teacher on a server (teacher.server), and there is none.")


def _max_length(recipe: Recipe) -> int | None:
    return recipe.training.arguments["max_length"]


def _spec(recipe: Recipe, teacher: ModelFacts, endings: Endings, options: CacheOptions) -> "CacheSpec":
    """What is asked for. What is not said is as in the cache that is there, so that rows can be added to it."""
    from bridgegarden.teacher.cache.manifest import MANIFEST, read_spec
    from bridgegarden.teacher.cache.spec import DEFAULT_BITS, CacheSpec, exponents_with_defaults

    folder = cache_folder(recipe)
    there = read_spec(folder) if (folder / MANIFEST).exists() and not options.replace else None
    exponents = exponents_with_defaults(build_objective(recipe.objective).exponents)
    if there is not None and set(exponents) <= set(there.exponents):
        exponents = there.exponents
    return CacheSpec(
        **_identity(teacher),
        tokenizer=tokenizer_fingerprint(endings.tokenizer),
        chat_template=chat_template_fingerprint(endings.tokenizer),
        max_length=_max_length(recipe),
        vocab_size=min(vocabulary_size(endings.tokenizer), teacher.width),
        teacher_width=teacher.width,
        support=_support(recipe, options, there),
        exponents=exponents,
        bits=options.bits or (DEFAULT_BITS if there is None else there.bits),  # pyright: ignore[reportArgumentType]
    )


def _support(recipe: Recipe, options: CacheOptions, there: "CacheSpec | None") -> "Support":
    from bridgegarden.teacher.cache.support import Support

    if options.samples is not None:
        if options.top_k is not None or options.mass is not None:
            raise ConfigError("cache: draws (--samples) exclude kept tokens (--top-k, --mass); give one.")
        return Support(kind="sampled", k=options.samples)
    k = options.top_k or recipe.teacher.top_k
    if options.mass is not None:
        return Support(kind="mass", k=k or DEFAULT_TOP_K, mass=options.mass)
    if k is None and there is not None:
        return there.support
    return Support(kind="topk", k=k or DEFAULT_TOP_K)


def _identity(teacher: ModelFacts) -> dict[str, Any]:
    from bridgegarden.teacher.cache.weights import weights_fingerprint

    reference = teacher.reference
    return {
        "teacher": reference.model,
        "revision": None if reference.is_local else teacher.stored_revision,
        "weights": weights_fingerprint(Path(reference.location)) if reference.is_local else None,
        "dtype": str(teacher.dtype).removeprefix("torch."),
    }
