"""The signals of a teacher on a server: its answers to a cache, and back."""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from bridgegarden.data import chat_template_fingerprint, tokenizer_fingerprint, vocabulary_size
from bridgegarden.errors import ConfigError, DataError
from bridgegarden.preflight import Endings, ModelFacts
from bridgegarden.recipe import Recipe
from bridgegarden.run.answers import Answers, AnswerSettings, answer_reader, answer_settings, read_answers
from bridgegarden.run.data import evaluation_rows, training_rows
from bridgegarden.terminal import counted

if TYPE_CHECKING:
    from bridgegarden.run.cache import CacheOptions
    from bridgegarden.teacher.cache.reader import TeacherCache
    from bridgegarden.teacher.cache.spec import CacheSpec
    from bridgegarden.teacher.cache.writer import BuildResult

AS_IT_IS = (0.0, 1.0)
"""Sampling temperatures at which no server that is known of returns other log-probabilities than those of
temperature 1."""


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
            f"{built.folder}: {counted(built.documents, 'row')} added{kept}; {built.positions:,} positions, {size}"
        ]
        lines += [f"left out: {part.complaint}" for part in self.answers if part.unusable]
        if ends := sum(part.ends_alone for part in self.answers):
            lines.append(f"{ends:,} ends of turn without log-probabilities: the hard label stands there alone")
        if unnamed := sum(part.unnamed for part in self.answers):
            lines.append(f"{unnamed:,} positions with listed tokens that cannot be told apart: they are in the tail")
        if floored := sum(part.floored for part in self.answers):
            lines.append(f"{floored:,} positions whose listed tokens have all of the mass: the tail is 1e-7 there")
        return "\n".join(lines)


def build_served_cache(
    recipe: Recipe, folder: Path, student: ModelFacts, endings: Endings, options: "CacheOptions"
) -> ServedBuild:
    """Keep the log-probabilities in the answers of `recipe` as the signals of its teacher; nobody is asked.

    Raises:
        ConfigError: an option has no meaning here, or the folder holds something else.
        DataError: rows give no signal, and leaving them out was not asked for.
    """
    from bridgegarden.teacher.cache.from_answers import AnswersEngine
    from bridgegarden.teacher.cache.writer import fill_cache, remove_cache

    sources = (*recipe.data.sources, *recipe.data.eval_sources)
    settings = answer_settings([source.path for source in sources])
    _check_temperature(settings, options)
    spec = _spec(recipe, folder, student, endings, options, settings)
    engine = AnswersEngine(spec)
    reader = answer_reader(recipe, endings, student, spec.support.k)
    mixes = [mix for mix in (training_rows(recipe.data), evaluation_rows(recipe.data)) if mix is not None]
    answers = [part for mix in mixes for part in read_answers(mix, reader, spec.max_length, engine.add)]
    for part in answers:
        if part.unusable and not options.skip_unusable:
            raise DataError(f"{part.complaint} To build without them, add --skip-unusable.")
    spec = replace(spec, revision=_revision(recipe, answers))
    datasets = [part.dataset() for part in answers]
    if options.replace:
        remove_cache(folder)
    return ServedBuild(built=fill_cache(folder, engine, datasets, spec, part=options.part), answers=tuple(answers))


def open_served_cache(recipe: Recipe, folder: Path) -> "TeacherCache":
    """The cache that `recipe` trains from, if it was built from the answers of its teacher.

    Raises:
        ConfigError: there is none, or it is of another version or teacher.
    """
    from bridgegarden.teacher.cache.manifest import replace_command
    from bridgegarden.teacher.cache.reader import TeacherCache

    cache = TeacherCache(folder)
    if cache.spec.served is None:
        raise ConfigError(
            f"teacher.server: the cache {folder} was built by running {cache.spec.teacher}, not from a server's "
            "answers. Leave teacher.server out, or name another folder (--set teacher.cache=FOLDER)."
        )
    if cache.spec.teacher != recipe.teacher.model:
        raise ConfigError(
            f"teacher.model: the cache {folder} holds what {cache.spec.teacher!r} said, not {recipe.teacher.model!r}. "
            f"{replace_command(folder)}"
        )
    return cache


def _check_temperature(settings: AnswerSettings, options: "CacheOptions") -> None:
    if settings.temperature in AS_IT_IS or options.raw_logprobs:
        return
    raise ConfigError(
        f"the answers were sampled at temperature {settings.temperature:g}, and some servers (SGLang, old versions of "
        "vLLM) return log-probabilities at the temperature that they sample at, from which those at temperature 1 "
        "cannot be found. If this one returns them at temperature 1 whatever it samples at (vLLM unless told "
        "otherwise, llama.cpp), add --raw-logprobs; else generate at temperature 1, or greedily."
    )


def _spec(
    recipe: Recipe,
    folder: Path,
    student: ModelFacts,
    endings: Endings,
    options: "CacheOptions",
    settings: AnswerSettings,
) -> "CacheSpec":
    """What is kept; without an option as in the cache that is there, or all that is listed."""
    from bridgegarden.teacher.cache.manifest import MANIFEST, read_spec
    from bridgegarden.teacher.cache.spec import DEFAULT_BITS, CacheSpec, Served
    from bridgegarden.teacher.cache.support import Support

    if options.samples is not None or options.mass is not None:
        raise ConfigError("cache: --samples and --mass need the whole distribution, which a server does not give.")
    there = read_spec(folder) if (folder / MANIFEST).exists() and not options.replace else None
    k = options.top_k or (settings.top_logprobs if there is None else there.support.k)
    if k > settings.top_logprobs:
        raise ConfigError(f"cache: {k} tokens a position are to be kept, and the answers list {settings.top_logprobs}.")
    vocab_size = min(vocabulary_size(endings.tokenizer), student.width)
    return CacheSpec(
        teacher=recipe.teacher.model,
        revision=None,
        weights=None,
        dtype="unknown",
        tokenizer=tokenizer_fingerprint(endings.tokenizer),
        chat_template=chat_template_fingerprint(endings.tokenizer),
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
