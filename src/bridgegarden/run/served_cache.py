"""A cache of what a teacher on a server says: of what stands in its answers, or by letting it score any rows."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from bridgegarden.data import (
    chat_template_fingerprint,
    conversation,
    prompt,
    tokenizer_fingerprint,
    vocabulary_size,
)
from bridgegarden.data.encode import IGNORED, RowTokeniser
from bridgegarden.errors import ConfigError, DataError, TokenizerError
from bridgegarden.preflight import (
    ModelFacts,
    ModelReference,
    Pair,
    check_pair,
    check_positions,
    check_quantised,
    compare_tokenizers,
    load_facts,
)
from bridgegarden.recipe import Recipe, build_objective
from bridgegarden.run.models import load_teacher
from bridgegarden.run.pair import filed_rows, student_reference, tell_decided
from bridgegarden.run.recipe_teacher import RecipeTeacher
from bridgegarden.run.rows import (
    Answers,
    AnswerSettings,
    answer_reader,
    answer_settings,
    columns_of,
    evaluation_rows,
    read_answers,
    training_rows,
)
from bridgegarden.teacher.server_connection import ApiName, api_key
from bridgegarden.teacher.server_requests import Requests, Server
from bridgegarden.terminal import Display, counted

if TYPE_CHECKING:
    import numpy as np
    from datasets import Dataset
    from rich.console import Console

    from bridgegarden.teacher.cache.spec import Bits, CacheSpec, Served, Support
    from bridgegarden.teacher.cache.writer import BuildResult
    from bridgegarden.teacher.scoring import Unscored
    from bridgegarden.teacher.scoring_check import Example

AS_IT_IS = (0.0, 1.0)
"""Sampling temperatures at which no server that is known of returns other log-probabilities than those of
temperature 1."""
SHORTEST_EXAMPLE = 16
"""Tokens of the row that a server is tested on, where one of the first has as many."""
LOOKED_AT = 100
"""Rows of which that is chosen."""
ROWS_NAMED = 5
ROUNDING = 0.1
"""Nats of a mean loss that are taken for a server's rounding."""


@dataclass(frozen=True, kw_only=True)
class CacheOptions:
    """What the command line says beside the recipe. Of what is None, a cache that is there already decides."""

    top_k: int | None = None
    """Tokens kept per position; None is the recipe's ``teacher.top_k``, or 64 in a new cache."""
    mass: float | None = None
    """Keep only the likeliest tokens that together have this probability."""
    samples: int | None = None
    """Keep so many draws instead."""
    bits: "Bits | None" = None
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
    """With a server's answers: its log-probabilities are those of temperature 1, whatever it sampled at."""
    concurrency: int = 8
    """Of a server that scores: requests at a time."""
    timeout: float = 600.0
    """Seconds that an attempt of a request to it may take."""
    patience: float = 300.0
    """Seconds that a request to it is tried again for."""
    api_key_env: str | None = None
    """Name of the variable with the key; None is ``OPENAI_API_KEY``, if it is set."""


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
    from bridgegarden.teacher.cache.spec import Served
    from bridgegarden.teacher.cache.writer import build_cache, remove_cache

    if recipe.teacher.check_against is not None:
        raise ConfigError(
            "teacher.check_against: a server that scores rows is tested, and these rows are answers, of which nobody "
            "is asked anything. Leave it out (--set teacher.check_against=null)."
        )
    sources = (*recipe.data.sources, *recipe.data.eval_sources)
    settings = answer_settings([source.path for source in sources])
    _check_temperature(settings, options)
    listed = settings.top_logprobs
    spec = _served_spec(recipe, folder, pair, options, listed, Served(temperature=settings.temperature))
    if spec.support.k > listed:
        raise ConfigError(
            f"cache: {spec.support.k} tokens a position are to be kept, and the answers list {settings.top_logprobs}."
        )
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
    recipe: Recipe, folder: Path, pair: Pair, options: CacheOptions, listed: int, served: "Served"
) -> "CacheSpec":
    """What is kept; without an option as many tokens as in the cache that is there, or all that are `listed`."""
    from bridgegarden.teacher.cache.spec import DEFAULT_BITS

    if options.samples is not None or options.mass is not None:
        raise ConfigError("cache: --samples and --mass need the whole distribution, which a server does not give.")
    there = _there(folder, options)
    k = options.top_k or (listed if there is None else there.support.k)
    return spec_of_lists(recipe, pair, k, options.bits or (DEFAULT_BITS if there is None else there.bits), served)


def useful(recipe: Recipe, support: "Support") -> "Support":
    """`support`, of which the objective of `recipe` can be computed.

    Raises:
        ConfigError: it cannot.
    """
    fault = build_objective(recipe.objective).fault_of(kept=support.k, drawn=support.kind == "sampled")
    if fault is not None:
        raise ConfigError(
            f"cache: {support} a position would be of no use for this recipe: {fault}. Keep two or more of the "
            "likeliest tokens (--top-k), or change the objective."
        )
    return support


def spec_of_lists(recipe: Recipe, pair: Pair, k: int, bits: "Bits", served: "Served") -> "CacheSpec":
    """What a cache means of which only the `k` likeliest tokens are known, and not who said so but by name."""
    from bridgegarden.teacher.cache.spec import CacheSpec, Support

    tokenizer, vocab_size = pair.read_by, shared_vocabulary(pair)
    return CacheSpec(
        teacher=recipe.teacher.model,
        revision=None,
        weights=None,
        dtype="unknown",
        tokenizer=tokenizer_fingerprint(tokenizer),
        chat_template=chat_template_fingerprint(tokenizer),
        max_length=recipe.training.arguments["max_length"],
        vocab_size=vocab_size,
        teacher_width=vocab_size,
        support=useful(recipe, Support(k=k)),
        exponents=(),
        bits=bits,
        served=served,
    )


def shared_vocabulary(pair: Pair) -> int:
    """Tokens that what is said by a teacher which is not here can be about: all of its own where that is translated."""
    own = vocabulary_size(pair.read_by)
    return own if pair.tokens is not None else min(own, pair.student.width)


def _there(folder: Path, options: CacheOptions) -> "CacheSpec | None":
    """What the cache that is there keeps, if it is to be kept."""
    from bridgegarden.teacher.cache.manifest import MANIFEST, read_spec

    return read_spec(folder) if (folder / MANIFEST).exists() and not options.replace else None


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


@dataclass(frozen=True, kw_only=True)
class ScoredBuild:
    """What a build by a server that scores did."""

    built: "BuildResult"
    unscored: "tuple[Unscored, ...]"
    """Rows that the server refused, and that are left out."""
    vocab_size: int
    """Tokens that what it says is about."""

    def __str__(self) -> str:
        """For a person."""
        lines = [str(self.built).replace("in the teacher", "waiting for the server")]
        loss, of_chance = self.built.loss, math.log(self.vocab_size)
        if loss is not None and loss.mean - (loss.half or 0.0) > of_chance + ROUNDING:
            lines.append(
                f"warning: that is more than the {of_chance:.1f} nats of all {self.vocab_size:,} tokens being equally "
                "likely. Are these rows in the tokens of the model that is served (teacher.tokenizer), and in its "
                "language?"
            )
        return "\n".join(lines + ([f"left out: {_complaint(self.unscored)}"] if self.unscored else []))


def build_scored_cache(
    recipe: Recipe, folder: Path, source: RecipeTeacher, pair: Pair, options: CacheOptions, console: "Console"
) -> ScoredBuild:
    """Let the server of `recipe` score its rows, and keep what it says.

    Raises:
        ConfigError: an option has no meaning here, the folder holds something else, or the server does not score.
        DataError: it refused rows, and leaving them out was not asked for; what it scored is kept.
        ModelError: it contradicts itself, or does not answer.
    """
    from bridgegarden.teacher.cache.manifest import LEFT_OUT, left_out, writing
    from bridgegarden.teacher.cache.writer import begin_cache, build_cache, note_left_out, remove_cache
    from bridgegarden.teacher.scoring import ScoringEngine, root_of

    if options.raw_logprobs:
        raise ConfigError("cache: --raw-logprobs is about answers that a server wrote, and here it scores rows.")
    say: Callable[[str], None] = partial(console.print, markup=False, soft_wrap=True, highlight=False)
    server = _server(recipe, options)
    weights = _weights_of(recipe, pair)
    if pair.translates:
        say(pair.summary)
    requests = Requests(root_of(server), api_key(options.api_key_env), say)
    spec = _scored_spec(recipe, folder, pair, options, requests, server)
    if options.replace:
        remove_cache(folder)
    begin_cache(folder, spec)
    with writing(folder, folder / LEFT_OUT):
        before = left_out(folder)
        (folder / LEFT_OUT).unlink(missing_ok=True)  # they are asked again
    data = source.rows(pair)
    tell_decided(console, pair, data.train)
    filed = filed_rows(data, pair)
    with Display(console, "positions") as display:

        def show(done: int, total: int, failed: int) -> None:
            display.update(done, total=total, words=f"positions, {failed} rows refused" if failed else "positions")

        engine = ScoringEngine(
            requests=requests,
            server=server,
            spec=spec,
            folder=folder,
            example=_example(recipe, pair, filed),
            say=say,
            weights=weights,
            on_progress=show,
        )
        built = build_cache(folder, engine, list(filed.values()), spec, part=options.part)
    if engine.unscored and not options.skip_unusable:
        raise DataError(
            f"{_complaint(engine.unscored)} {counted(built.documents, 'row')} were added to {folder} and are kept. The "
            "same command tries the others again; to train without them, add --skip-unusable."
        )
    note_left_out(folder, before | {row.key.hex(): row.reason for row in engine.unscored})
    return ScoredBuild(built=built, unscored=tuple(engine.unscored), vocab_size=spec.vocab_size)


def _server(recipe: Recipe, options: CacheOptions) -> Server:
    assert recipe.teacher.server is not None
    return Server(
        base_url=recipe.teacher.server,
        model=recipe.teacher.model,
        concurrency=options.concurrency,
        timeout=options.timeout,
        patience=options.patience,
    )


def _scored_spec(
    recipe: Recipe, folder: Path, pair: Pair, options: CacheOptions, requests: Requests, server: Server
) -> "CacheSpec":
    from bridgegarden.teacher.cache.spec import Served
    from bridgegarden.teacher.scoring import DEFAULT_K, found

    there = _there(folder, options)
    api: ApiName | str | None = recipe.teacher.api
    if api is None and there is not None and there.served is not None:
        api = there.served.api
    api = api or found(requests, server, None).name
    return _served_spec(recipe, folder, pair, options, DEFAULT_K, Served(temperature=1.0, source="scored", api=api))


@dataclass(frozen=True)
class _WeightsHere:
    """The weights that the server should have; see :class:`~bridgegarden.teacher.scoring_check.Weights`."""

    facts: ModelFacts
    device: str | None
    """Where they run; None is a GPU if there is one."""

    @property
    def name(self) -> str:
        return self.facts.reference.model

    @property
    def width(self) -> int:
        return self.facts.width

    def log_probabilities(self, texts: Sequence[Sequence[int]]) -> "list[np.ndarray]":
        import torch

        model = load_teacher(self.facts, self.device)
        with torch.no_grad():
            logits = [model(torch.tensor([list(ids)], device=model.device)).logits[0] for ids in texts]
        return [one.double().log_softmax(-1).cpu().numpy() for one in logits]


def _weights_of(recipe: Recipe, pair: Pair) -> _WeightsHere | None:
    """What the server is compared with, if the recipe says that it is here: fit for the tokens that the teacher reads,
    and not yet loaded."""
    name = recipe.teacher.check_against
    if name is None:
        return None
    teacher = recipe.teacher
    reference = ModelReference(
        role="teacher", model=name, dtype=teacher.dtype, gguf_file=teacher.gguf_file, place="teacher.check_against"
    )
    try:
        facts = _facts_of_weights(recipe, pair, reference)
    except TokenizerError as error:
        if pair.named is None:
            advice = f"If the server has its tokenizer, name that, too (--set teacher.tokenizer={name})."
        else:
            advice = f"teacher.tokenizer is {pair.named.reference.model!r}; name weights that have it."
        raise TokenizerError(f"teacher.check_against {name!r}: {error} {advice}") from error
    check_quantised(facts)
    return _WeightsHere(facts, "cpu" if recipe.training.arguments.get("use_cpu") else None)


def _facts_of_weights(recipe: Recipe, pair: Pair, reference: ModelReference) -> ModelFacts:
    if pair.tokens is None:
        facts = check_pair(reference, student_reference(recipe), chat_template=recipe.data.chat_template).teacher
        assert facts is not None
        return facts
    assert pair.named is not None
    facts = load_facts(reference)
    check_positions(facts, recipe.training.arguments["max_length"])
    compare_tokenizers(facts, pair.named)
    return facts


def _example(recipe: Recipe, pair: Pair, filed: "Mapping[str, Dataset]") -> "Example":
    """The row on which the server is tested, and what the first row asks."""
    from bridgegarden.teacher.cache.shard import documents_of
    from bridgegarden.teacher.scoring_check import Example

    documents = sorted(islice(documents_of(filed["train"]), LOOKED_AT), key=lambda document: len(document.ids))
    chosen = next((document for document in documents if len(document.ids) >= SHORTEST_EXAMPLE), documents[-1])
    tokenizer, rows = pair.read_by, training_rows(recipe.data)
    columns, place = columns_of(recipe.data), "train, row 0"
    has_prompt = conversation(rows[0], columns, place=place).form != "document"
    chat = prompt(rows[0], columns, place=place) if has_prompt else None
    return Example(
        ids=chosen.ids.tolist(),
        asked=int((chosen.labels != IGNORED).argmax()),
        tokenizer=tokenizer,
        chat=chat,
        prompt_ids=[] if chat is None else RowTokeniser.of(tokenizer).prompt(chat, place),
        named=recipe.teacher.tokenizer,
        own_template=pair.tokens is not None,
    )


def _complaint(unscored: "Sequence[Unscored]") -> str:
    """How many rows the server refused, which, and why the first."""
    rows = sorted(unscored)
    shown = ", ".join(str(row.row) for row in rows[:ROWS_NAMED]) + (", ..." if len(rows) > ROWS_NAMED else "")
    return f"the server did not score {counted(len(rows), 'row')} (row {shown}; the first: {rows[0].reason})"
