"""A recipe to its teacher's signals on disk, and back: what ``bridgegarden cache`` does."""

import dataclasses
import gc
import os
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from bridgegarden.data import chat_template_fingerprint, tokenizer_fingerprint, vocabulary_size
from bridgegarden.errors import ConfigError
from bridgegarden.preflight import ModelFacts, Pair, check_quantised
from bridgegarden.recipe import Recipe, build_objective, load_recipe
from bridgegarden.run.models import quantised_warning, usable_device
from bridgegarden.run.output import check_writable
from bridgegarden.run.pair import check_kept, filed_rows, recipe_pair, tell_decided
from bridgegarden.run.quiet import quiet_libraries
from bridgegarden.run.recipe_teacher import cache_folder, cache_folders, cache_warnings
from bridgegarden.run.served_cache import (
    CacheOptions,
    ScoredBuild,
    ServedBuild,
    build_scored_cache,
    build_served_cache,
    useful,
)
from bridgegarden.run.teachers import CachedByRow, CachedModel, LiveModel, teacher_of
from bridgegarden.run.teachers_elsewhere import CacheAlone, CachedServer, ScoringServer
from bridgegarden.terminal import Display

if TYPE_CHECKING:
    from datasets import Dataset
    from rich.console import Console
    from transformers import PreTrainedModel

    from bridgegarden.run.cache_report import KnownShares
    from bridgegarden.run.rows import RunData
    from bridgegarden.teacher.cache.exchange import ExportResult
    from bridgegarden.teacher.cache.info import CheckResult
    from bridgegarden.teacher.cache.spec import CacheSpec, Support
    from bridgegarden.teacher.cache.writer import BuildResult
    from bridgegarden.teacher.mixture import Mixture

DEFAULT_TOP_K = 64


def build_recipe_cache(recipe: Recipe, options: CacheOptions) -> "BuildResult | BuildByRow | ServedBuild | ScoredBuild":
    """Ask the teacher of `recipe` about all its rows, for training and evaluation, and keep what it says.

    A teacher on a server scores the rows; where they are its answers, and hold what it said, it is not asked.

    Raises:
        ConfigError: the recipe names no folder, or it cannot be built in.
        DataError: a row cannot be used.
        ModelError: the models cannot be used, or not with each other.
    """
    from bridgegarden.teacher.cache.manifest import MANIFEST
    from bridgegarden.terminal import stderr_console

    if recipe.teacher.kind == "recorded":
        raise ConfigError(
            f"teacher.only_cache: {recipe.teacher.model} is not to be had, so that it cannot be asked. Leave "
            "only_cache out to ask the model, or bring what it said (bridgegarden cache import)."
        )
    check_engine(recipe, options)
    for folder in cache_folders(recipe):
        if not (folder / MANIFEST).exists():  # one that is whole may be where nothing can be written
            check_writable(folder, "teacher.cache")
    usable_device(recipe.teacher.device, "teacher.device")
    with quiet_libraries(interactive=sys.stderr.isatty()):
        source = teacher_of(recipe, anew=options.replace)
        pair = recipe_pair(recipe, anew=options.replace, translates=True)
        check_kept(pair)
        if options.limit is not None:
            recipe = dataclasses.replace(recipe, data=dataclasses.replace(recipe.data, limit=options.limit))
            source = teacher_of(recipe, anew=options.replace)
        if isinstance(source, ScoringServer):
            return build_scored_cache(recipe, cache_folder(recipe), source, pair, options, stderr_console())
        if isinstance(source, CachedServer):
            source.check_pair(pair)
            return build_served_cache(recipe, cache_folder(recipe), pair, options)
        _refuse_what_is_for_answers(options)
        if isinstance(source, CachedByRow):
            specs = _specs_by_row(source, pair, source.members, options, stderr_console())
            rows = source.rows_of(source.rows(pair))
            return fill_caches_by_row(source, pair, rows, options, stderr_console(), specs)
        assert isinstance(source, LiveModel)  # or one of its kind, with a cache
        if pair.translates:
            stderr_console().print(pair.summary, markup=False, soft_wrap=True)
        spec = _announced(source, pair, options, stderr_console())
        data = source.rows(pair)
        tell_decided(stderr_console(), pair, data.train)
        return _fill(source, pair, list(filed_rows(data, pair).values()), spec, options, stderr_console())


@dataclass(frozen=True, kw_only=True)
class BuildByRow:
    """What builds did, of each of several teachers one."""

    of: "Mapping[str, BuildResult | None]"
    """By the teacher's name; None where no row is its."""

    def __str__(self) -> str:
        """For a person."""
        nothing = "no row of the data is its"
        return "\n".join(f"{name}: {nothing if built is None else built}" for name, built in self.of.items())


def fill_caches_by_row(
    source: CachedByRow,
    pair: Pair,
    rows: "Mapping[str, Sequence[Dataset]]",
    options: CacheOptions,
    console: "Console",
    specs: "Mapping[str, CacheSpec]",
) -> BuildByRow:
    """Fill the cache of each teacher, one after the other, with what it says of its own rows.

    Args:
        source: the teachers.
        pair: they and the student.
        rows: of each teacher that is asked.
        options: of all of them.
        console: for progress.
        specs: what is kept, of each of them.
    """
    import torch

    from bridgegarden.teacher.cache.writer import begin_cache

    pairs, built = dict(zip(source.members, source.pairs(pair), strict=True)), {}
    for name, parts in rows.items():
        member = source.members[name]
        if parts:
            built[name] = _fill(member, pairs[name], parts, specs[name], options, console)
            gc.collect()  # a model holds itself, and the next one needs its memory
            if torch.cuda.is_available():
                torch.cuda.empty_cache()
        else:
            begin_cache(cache_folder(member.recipe), specs[name])
            built[name] = None
    return BuildByRow(of=built)


def _specs_by_row(
    source: CachedByRow, pair: Pair, names: Iterable[str], options: CacheOptions, console: "Console"
) -> "dict[str, CacheSpec]":
    """What is asked of the teachers `names`, with warnings; the others have been asked. All of it can stand in one
    batch."""
    from bridgegarden.teacher.cache.reader import check_kept_alike

    members = list(zip(source.members.items(), source.pairs(pair), strict=True))
    specs = {name: member.cache(own).spec for (name, member), own in members if name not in names}
    like = next(iter(specs.values()), None)
    for (name, member), own in members:
        if name in names:
            specs[name] = _announced(member, own, options, console, like)
    check_kept_alike([(cache_folder(member.recipe), specs[name]) for (name, member), _ in members])
    return specs


def ask_before_training(source: CachedByRow, pair: Pair, data: "RunData", console: "Console") -> None:
    """Have the teachers whose cache the recipe leaves to training asked about their rows, one after the other; nothing
    is asked twice.

    Raises:
        ConfigError: what they say could not stand in one batch with what is in the caches of the others.
        DataError: such a cache lacks rows.
        ModelError: a teacher cannot be used.
    """
    names = source.asked_by_training
    if not names:
        return
    options = CacheOptions()
    specs, rows = _specs_by_row(source, pair, names, options, console), source.rows_of(data)
    for (name, member), own in zip(source.members.items(), source.pairs(pair), strict=True):
        for part in rows[name] if name not in names else ():  # before the hours of the others
            member.cache(own).check_rows(part, f"teacher.of.{name}")
    fill_caches_by_row(source, pair, {name: rows[name] for name in names}, options, console, specs)


def _announced(
    source: LiveModel, pair: Pair, options: CacheOptions, console: "Console", like: "CacheSpec | None" = None
) -> "CacheSpec":
    """What is asked for, with warnings; before a teacher's hours, since another number of tokens is another cache."""
    assert pair.teacher is not None
    for facts in pair.teachers:
        check_quantised(facts)
    spec = _spec(source.recipe, source, pair, options, like)
    _warn(console, source.recipe, pair.teacher, spec)
    return spec


def _fill(
    source: LiveModel,
    pair: Pair,
    data: "Sequence[Dataset]",
    spec: "CacheSpec",
    options: CacheOptions,
    console: "Console",
) -> "BuildResult":
    from bridgegarden.teacher.cache.writer import begin_cache, remove_cache

    recipe, folder = source.recipe, cache_folder(source.recipe)
    if options.replace:
        remove_cache(folder)
    begin_cache(folder, spec)
    on_cpu = bool(recipe.training.arguments.get("use_cpu"))
    load = source.loader(pair, recipe.teacher.device or ("cpu" if on_cpu else None))
    return fill_recipe_cache(recipe, load, folder, data, spec, options, console)


def _warn(console: "Console", recipe: Recipe, teacher: ModelFacts, spec: "CacheSpec") -> None:
    from rich.text import Text

    from bridgegarden.teacher.cache.fidelity import truncation_warning

    warnings = [*quantised_warning(teacher)]
    if not spec.is_dense:
        warning = truncation_warning(build_objective(recipe.objective), spec.support, kept_in="cache")
        warnings += [] if warning is None else [warning]
    for warning in warnings:
        console.print(Text.assemble(("warning: ", "yellow"), warning), soft_wrap=True)


def check_recipe_cache(source: str, overrides: Sequence[str] = ()) -> "CheckResult":
    """Check every byte of a cache; of a recipe's cache also that the recipe can be trained from it.

    Args:
        source: the folder of a cache, or a recipe.
        overrides: changes to the recipe.

    Raises:
        BridgegardenError: the first thing that is wrong.
    """
    from bridgegarden.teacher.cache.info import check_cache

    if not _is_recipe(source):
        return check_cache(Path(os.path.expanduser(source)))
    recipe = load_recipe(source, overrides)
    result = check_cache(cache_folder(recipe))
    with quiet_libraries(interactive=sys.stderr.isatty()):
        teacher, pair = teacher_of(recipe), recipe_pair(recipe, translates=True)
        check_kept(pair)
        assert isinstance(teacher, CachedModel | CacheAlone)  # the recipe names a cache
        cache = teacher.cache(pair)
        cache.check_objective(build_objective(recipe.objective))
        for name, rows in filed_rows(teacher.rows(pair), pair).items():
            cache.check_rows(rows, name)
    return result


def find_cache(source: str, overrides: Sequence[str] = ()) -> tuple[Path, tuple[str, ...]]:
    """The folder that `source` is, or that the recipe `source` names, and what the recipe's objective loses in it.

    Raises:
        ConfigError: there is no such recipe, or it names no cache.
        DataError: a shard is missing or damaged.
    """
    if not _is_recipe(source):
        return Path(os.path.expanduser(source)), ()
    recipe = load_recipe(source, overrides, training=False)
    return cache_folder(recipe), cache_warnings(recipe)


def shares_for(source: str, overrides: Sequence[str], student: str) -> "KnownShares":
    """How much the model `student` could be taught from the cache of the recipe `source`.

    Raises:
        ConfigError: `source` is a folder; and as :func:`~bridgegarden.run.cache_report.known_shares`.
    """
    from bridgegarden.run.cache_report import known_shares
    from bridgegarden.terminal import stderr_console

    if not _is_recipe(source):
        raise ConfigError(
            "cache info: --student needs the rows, which a cache does not hold. Give the recipe in place of the folder "
            f"{source}."
        )
    return known_shares(load_recipe(source, overrides), student, stderr_console())


def export_recipe_cache(source: str, path: Path, overrides: Sequence[str] = ()) -> "ExportResult":
    """Write what a cache holds as plain Parquet; of a recipe's cache with the token ids of its rows.

    Args:
        source: the folder of a cache, or a recipe.
        path: of the file.
        overrides: changes to the recipe.

    Raises:
        BridgegardenError: the cache is not the recipe's, or the file cannot be written.
    """
    from bridgegarden.teacher.cache.exchange import export_cache

    if not _is_recipe(source):
        return export_cache(Path(os.path.expanduser(source)), path)
    recipe = load_recipe(source, overrides)
    folder = cache_folder(recipe)
    with quiet_libraries(interactive=sys.stderr.isatty()):
        teacher, pair = teacher_of(recipe), recipe_pair(recipe, translates=True)
        check_kept(pair)
        assert isinstance(teacher, CachedModel | CacheAlone)  # the recipe names a cache
        teacher.cache(pair)
        return export_cache(folder, path, list(filed_rows(teacher.rows(pair), pair).values()))


def _is_recipe(source: str) -> bool:
    return not Path(os.path.expanduser(source)).is_dir()


def _refuse_what_is_for_answers(options: CacheOptions) -> None:
    for option, given in (("--skip-unusable", options.skip_unusable), ("--raw-logprobs", options.raw_logprobs)):
        if given:
            raise ConfigError(f"cache: {option} goes with a teacher on a server (teacher.server), and there is none.")


def _max_length(recipe: Recipe) -> int | None:
    return recipe.training.arguments["max_length"]


def _spec(
    recipe: Recipe, source: LiveModel, pair: Pair, options: CacheOptions, like: "CacheSpec | None"
) -> "CacheSpec":
    """What is asked for. What is not said is as in the cache that is there, so that rows can be added to it; or as in
    `like`."""
    from bridgegarden.teacher.cache.manifest import MANIFEST, read_spec
    from bridgegarden.teacher.cache.spec import DEFAULT_BITS, CacheSpec, exponents_with_defaults

    folder = cache_folder(recipe)
    there = read_spec(folder) if (folder / MANIFEST).exists() and not options.replace else like
    exponents = exponents_with_defaults(build_objective(recipe.objective).exponents)
    if there is not None and set(exponents) <= set(there.exponents):
        exponents = there.exponents
    tokenizer, width = pair.read_by, max(facts.width for facts in pair.teachers)
    return CacheSpec(
        **source.identity(pair),
        tokenizer=tokenizer_fingerprint(tokenizer),
        chat_template=chat_template_fingerprint(tokenizer),
        max_length=_max_length(recipe),
        vocab_size=min(vocabulary_size(tokenizer), width),
        teacher_width=width,
        support=_translatable(useful(recipe, _support(recipe, options, there)), pair),
        exponents=exponents,
        bits=options.bits or (DEFAULT_BITS if there is None else there.bits),
        prompt=recipe.teacher.prompt,
    )


def _support(recipe: Recipe, options: CacheOptions, there: "CacheSpec | None") -> "Support":
    from bridgegarden.teacher.cache.spec import Support

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


def _translatable(support: "Support", pair: Pair) -> "Support":
    if support.kind == "sampled" and pair.tokens is not None:
        raise ConfigError(
            f"cache: {support} a position cannot be translated for a student with another tokenizer. Keep the "
            "likeliest tokens (--top-k), or name a student with the teacher's (--set student.model=NAME)."
        )
    return support


def check_engine(recipe: Recipe, options: CacheOptions) -> None:
    """Make sure that the engine can run, before anything is read.

    Raises:
        ConfigError: Ray is not installed, or a setting does not go with the engine.
    """
    if options.engine == "local":
        if options.actors is not None:
            raise ConfigError("cache: --actors goes with --engine ray; without it there is one teacher.")
        return
    from bridgegarden.teacher.cache.ray_engine import check_ray

    if recipe.teacher.writes_rows:
        raise ConfigError("cache: --engine ray is for teachers that run here, and teacher.server's does not.")
    device = recipe.teacher.device
    if device is not None and device.startswith("cuda:"):
        raise ConfigError(
            f"teacher.device: {device!r} is one device, and --engine ray gives each actor a GPU of its own. Leave it "
            "out, or say cuda or cpu."
        )
    if recipe.teacher.device_map is not None:
        raise ConfigError(
            "teacher.device_map: spreads one teacher over all GPUs, and --engine ray gives each actor one of them; "
            "leave one of the two out."
        )
    check_ray()


def fill_recipe_cache(
    recipe: Recipe,
    load: "Callable[[], PreTrainedModel | Mixture]",
    folder: Path,
    data: Sequence["Dataset"],
    spec: "CacheSpec",
    options: CacheOptions,
    console: "Console",
) -> "BuildResult":
    """Load the teacher by `load`, as often as the engine needs it, and fill the cache in `folder`.

    Nothing is loaded for a cache that holds all rows.

    Raises:
        ConfigError: the cache cannot be built there, or the engine cannot run.
        ModelError: the teacher cannot be used.
    """
    from bridgegarden.teacher.cache.ray_engine import RayTeachers
    from bridgegarden.teacher.cache.writer import OneTeacher, build_cache

    on_cpu = bool(recipe.training.arguments.get("use_cpu"))
    name = recipe.teacher.name
    if options.engine == "local":
        words = f"loading teacher {name}"
        engine = partial(OneTeacher, load, spec)
    else:
        words = f"starting Ray, whose actors load teacher {name}"
        use_gpus = not on_cpu and recipe.teacher.device != "cpu"
        engine = partial(RayTeachers, load, spec, actors=options.actors, use_gpus=use_gpus)
    with Display(console, "positions") as display:
        asked = engine(
            batch_tokens=options.batch_tokens,
            on_progress=lambda done, total: display.update(done, total=total),
            on_start=partial(console.print, words, markup=False, soft_wrap=True),
        )
        return build_cache(folder, asked, data, spec, part=options.part)
