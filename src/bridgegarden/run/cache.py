"""A recipe to its teacher's signals on disk, and back: what ``bridgegarden cache`` does."""

import dataclasses
import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from bridgegarden.data import chat_template_fingerprint, tokenizer_fingerprint, vocabulary_size
from bridgegarden.errors import ConfigError, DataError
from bridgegarden.preflight import Endings, ModelFacts, Pair
from bridgegarden.recipe import Recipe, build_objective, load_recipe
from bridgegarden.run.models import (
    AnsweringServer,
    CachedModel,
    RecordedTeacher,
    cache_folder,
    cache_warnings,
    identity,
    load_model,
    placed,
    recipe_pair,
    teacher_of,
    usable_device,
)
from bridgegarden.run.output import check_writable
from bridgegarden.run.quiet import quiet_libraries
from bridgegarden.run.rows import (
    Answers,
    AnswerSettings,
    answer_reader,
    answer_settings,
    evaluation_rows,
    read_answers,
    training_rows,
)
from bridgegarden.terminal import Display, counted

if TYPE_CHECKING:
    from datasets import Dataset
    from rich.console import Console
    from transformers import PreTrainedModel

    from bridgegarden.teacher.cache.exchange import ExportResult
    from bridgegarden.teacher.cache.info import CheckResult
    from bridgegarden.teacher.cache.spec import CacheSpec, Support
    from bridgegarden.teacher.cache.writer import BuildResult

DEFAULT_TOP_K = 64
AS_IT_IS = (0.0, 1.0)
"""Sampling temperatures at which no server that is known of returns other log-probabilities than those of
temperature 1."""


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
    if recipe.teacher.kind == "recorded":
        raise ConfigError(
            f"teacher.only_cache: {recipe.teacher.model} is not to be had, so that it cannot be asked. Leave "
            "only_cache out to ask the model, or bring what it said (bridgegarden cache import)."
        )
    check_engine(recipe, options)
    if not (folder / MANIFEST).exists():  # one that is whole may be where nothing can be written
        check_writable(folder, "teacher.cache")
    usable_device(recipe.teacher.device, "teacher.device")
    with quiet_libraries(interactive=sys.stderr.isatty()):
        source = teacher_of(recipe)
        pair = recipe_pair(recipe)
        if options.limit is not None:
            recipe = dataclasses.replace(recipe, data=dataclasses.replace(recipe.data, limit=options.limit))
            source = teacher_of(recipe)
        if isinstance(source, AnsweringServer):
            return build_served_cache(recipe, folder, pair, options)
        assert pair.teacher is not None
        _refuse_what_is_for_answers(options)
        spec = _spec(recipe, pair.teacher, pair.endings, options)
        console = stderr_console()
        # Before the teacher's hours, since another number of tokens is another cache.
        _warn(console, recipe, spec)
        data = source.rows(pair)
        if options.replace:
            remove_cache(folder)
        begin_cache(folder, spec)
        return fill_recipe_cache(recipe, pair.teacher, folder, list(data.by_name.values()), spec, options, console)


def _warn(console: "Console", recipe: Recipe, spec: "CacheSpec") -> None:
    from rich.text import Text

    from bridgegarden.teacher.cache.fidelity import truncation_warning

    if not spec.is_dense:
        warning = truncation_warning(build_objective(recipe.objective), spec.support, kept_in="cache")
        if warning is not None:
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
        teacher, pair = teacher_of(recipe), recipe_pair(recipe)
        assert isinstance(teacher, CachedModel | RecordedTeacher | AnsweringServer)  # the recipe names a cache
        cache = teacher.cache(pair)
        cache.check_tokenizer(pair.endings.tokenizer, _max_length(recipe))
        cache.check_objective(build_objective(recipe.objective))
        for name, rows in teacher.rows(pair).by_name.items():
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
        teacher, pair = teacher_of(recipe), recipe_pair(recipe)
        assert isinstance(teacher, CachedModel | RecordedTeacher | AnsweringServer)  # the recipe names a cache
        teacher.cache(pair).check_tokenizer(pair.endings.tokenizer, _max_length(recipe))
        return export_cache(folder, path, list(teacher.rows(pair).by_name.values()))


def _is_recipe(source: str) -> bool:
    return not Path(os.path.expanduser(source)).is_dir()


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
        **identity(teacher),
        tokenizer=tokenizer_fingerprint(endings.tokenizer),
        chat_template=chat_template_fingerprint(endings.tokenizer),
        max_length=_max_length(recipe),
        vocab_size=min(vocabulary_size(endings.tokenizer), teacher.width),
        teacher_width=teacher.width,
        support=_support(recipe, options, there),
        exponents=exponents,
        bits=options.bits or (DEFAULT_BITS if there is None else there.bits),  # pyright: ignore[reportArgumentType]
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

    if not recipe.teacher.judges_any_text:
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
    teacher: ModelFacts,
    folder: Path,
    data: Sequence["Dataset"],
    spec: "CacheSpec",
    options: CacheOptions,
    console: "Console",
) -> "BuildResult":
    """Load the teacher, as often as the engine needs it, and fill the cache in `folder`.

    Raises:
        ConfigError: the cache cannot be built there, or the engine cannot run.
        ModelError: the teacher cannot be used.
    """
    from bridgegarden.teacher.cache.ray_engine import RayTeachers
    from bridgegarden.teacher.cache.writer import OneTeacher, build_cache

    on_cpu = bool(recipe.training.arguments.get("use_cpu"))
    load = partial(load_teacher, teacher, recipe.teacher.device or ("cpu" if on_cpu else None))
    name = recipe.teacher.model
    if options.engine == "local":
        console.print(f"loading teacher {name}", markup=False, soft_wrap=True)
        engine = partial(OneTeacher, load(), spec)
    else:
        console.print(f"starting Ray, whose actors load teacher {name}", markup=False, soft_wrap=True)
        use_gpus = not on_cpu and recipe.teacher.device != "cpu"
        engine = partial(RayTeachers, load, spec, actors=options.actors, use_gpus=use_gpus)
    with Display(console, "positions") as display:
        asked = engine(
            batch_tokens=options.batch_tokens, on_progress=lambda done, total: display.update(done, total=total)
        )
        return build_cache(folder, asked, data, spec, part=options.part)


def load_teacher(teacher: ModelFacts, device: str | None) -> "PreTrainedModel":
    """The teacher on `device`; None is a GPU if this process may use one."""
    import torch

    device = device or ("cuda" if torch.cuda.is_available() else "cpu")
    return placed(load_model(teacher), device)


@dataclass(frozen=True, kw_only=True)
class ServedBuild:
    """What a build from answers did."""

    built: "BuildResult"
    answers: tuple[Answers, ...]

    def __str__(self) -> str:
        """For a person: a line on what was added, and one on each thing that a server did not say."""
        built = self.built
        kept = f", {built.kept:,} were there" if built.kept else ""
        size = f"{built.bytes / max(built.positions, 1):.1f} bytes each, {built.bytes:,} in all"
        lines = [
            f"{built.folder}: {counted(built.documents, 'row')} added{kept}; {built.positions:,} positions, {size}",
            built.own_loss,
        ]
        lines += [f"left out: {part.complaint}" for part in self.answers if part.unusable]
        if ends := sum(part.ends_alone for part in self.answers):
            lines.append(f"{ends:,} ends of turn without log-probabilities: the hard label stands there alone")
        if unnamed := sum(part.unnamed for part in self.answers):
            lines.append(f"{unnamed:,} positions with listed tokens that cannot be told apart: they are in the tail")
        if floored := sum(part.floored for part in self.answers):
            lines.append(f"{floored:,} positions whose listed tokens have all of the mass: the tail is 1e-7 there")
        return "\n".join(lines)


def build_served_cache(recipe: Recipe, folder: Path, pair: Pair, options: CacheOptions) -> ServedBuild:
    """Keep the log-probabilities in the answers of `recipe` as the signals of its teacher; nobody is asked.

    Raises:
        ConfigError: an option has no meaning here, or the folder holds something else.
        DataError: rows give no signal, and leaving them out was not asked for.
    """
    from bridgegarden.teacher.cache.forward import AnswersEngine
    from bridgegarden.teacher.cache.writer import build_cache, remove_cache

    sources = (*recipe.data.sources, *recipe.data.eval_sources)
    settings = answer_settings([source.path for source in sources])
    _check_temperature(settings, options)
    spec = _served_spec(recipe, folder, pair, options, settings)
    engine = AnswersEngine(spec)
    reader = answer_reader(recipe, pair, spec.support.k)
    mixes = [mix for mix in (training_rows(recipe.data), evaluation_rows(recipe.data)) if mix is not None]
    answers = [part for mix in mixes for part in read_answers(mix, reader, spec.max_length, engine.add)]
    for part in answers:
        if part.unusable and not options.skip_unusable:
            raise DataError(f"{part.complaint} To build without them, add --skip-unusable.")
    spec = replace(spec, revision=_revision(recipe, answers))
    datasets = [part.dataset() for part in answers]
    if options.replace:
        remove_cache(folder)
    return ServedBuild(built=build_cache(folder, engine, datasets, spec, part=options.part), answers=tuple(answers))


def _check_temperature(settings: AnswerSettings, options: CacheOptions) -> None:
    if settings.temperature in AS_IT_IS or options.raw_logprobs:
        return
    raise ConfigError(
        f"the answers were sampled at temperature {settings.temperature:g}, and some servers (SGLang, old versions of "
        "vLLM) return log-probabilities at the temperature that they sample at, from which those at temperature 1 "
        "cannot be found. If this one returns them at temperature 1 whatever it samples at (vLLM unless told "
        "otherwise, llama.cpp), add --raw-logprobs; else generate at temperature 1, or greedily."
    )


def _served_spec(
    recipe: Recipe,
    folder: Path,
    pair: Pair,
    options: CacheOptions,
    settings: AnswerSettings,
) -> "CacheSpec":
    """What is kept; without an option as in the cache that is there, or all that is listed."""
    from bridgegarden.teacher.cache.manifest import MANIFEST, read_spec
    from bridgegarden.teacher.cache.spec import DEFAULT_BITS, CacheSpec, Served, Support

    if options.samples is not None or options.mass is not None:
        raise ConfigError("cache: --samples and --mass need the whole distribution, which a server does not give.")
    there = read_spec(folder) if (folder / MANIFEST).exists() and not options.replace else None
    k = options.top_k or (settings.top_logprobs if there is None else there.support.k)
    if k > settings.top_logprobs:
        raise ConfigError(f"cache: {k} tokens a position are to be kept, and the answers list {settings.top_logprobs}.")
    vocab_size = min(vocabulary_size(pair.endings.tokenizer), pair.student.width)
    return CacheSpec(
        teacher=recipe.teacher.model,
        revision=None,
        weights=None,
        dtype="unknown",
        tokenizer=tokenizer_fingerprint(pair.endings.tokenizer),
        chat_template=chat_template_fingerprint(pair.endings.tokenizer),
        max_length=recipe.training.arguments["max_length"],
        vocab_size=vocab_size,
        teacher_width=vocab_size,
        support=Support(kind="topk", k=k),
        exponents=(),
        bits=options.bits or (DEFAULT_BITS if there is None else there.bits),  # pyright: ignore[reportArgumentType]
        served=Served(temperature=settings.temperature),
    )


def _revision(recipe: Recipe, answers: list[Answers]) -> str | None:
    """What the server calls the model, where that says more than what it was asked for."""
    models = set[str]().union(*(part.models for part in answers))
    if len(models) > 1:
        raise ConfigError(
            f"the answers come from several models ({', '.join(sorted(models))}), and a cache holds one teacher's. "
            "Keep the rows of one of them (column generated_by)."
        )
    model = next(iter(models), None)
    return None if model == recipe.teacher.model else model
