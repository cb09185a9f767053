"""The kinds of teacher that a recipe can have: what each reads, how its signals are opened, and who it is.

A new kind is a class here, a value of :data:`~bridgegarden.recipe.teacher.TeacherKind`, and a
:class:`~bridgegarden.teacher.protocol.Teacher`.
"""

import dataclasses
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

from bridgegarden.data import Mix, RowRules, tokenizer_fingerprint, vocabulary_size
from bridgegarden.data.teacher_prompt import TEACHER_NUMBER
from bridgegarden.errors import ConfigError, ModelError, TokenizerError
from bridgegarden.preflight import (
    ModelReference,
    Pair,
    check_positions,
    settings_text,
)
from bridgegarden.recipe import Recipe, build_objective
from bridgegarden.run.cache_folder import Say, announced, cache_folder, cache_warnings, check_prompt, recipes_of
from bridgegarden.run.models import load_mixture, load_model, load_teacher, model_identity, quantised_warning
from bridgegarden.run.rows import (
    RunData,
    evaluation_rows,
    hold_logprobs,
    mix_text,
    rules_of,
    tokenised,
    training_rows,
    usable_answers,
    without_rows,
)
from bridgegarden.run.translation import kept_tokens, translated

if TYPE_CHECKING:
    from datasets import Dataset
    from transformers import PreTrainedModel

    from bridgegarden.teacher.cache.reader import TeacherCache
    from bridgegarden.teacher.mixture import Mixture
    from bridgegarden.teacher.protocol import Teacher

"""Tells a person a line."""
NOT_FROM_A_SERVER = (
    "teacher.server: training asks no server; it reads what one has said from a cache. Let it score the rows "
    "(bridgegarden cache build RECIPE --set teacher.cache=FOLDER), or write answers (bridgegarden generate RECIPE "
    "--top-logprobs 20), and keep what they hold (cache build RECIPE --set data.train=ANSWERS --set "
    "teacher.cache=FOLDER); learn answers without log-probabilities "
    "as hard labels (--set data.train=ANSWERS --set objective.preset=hard --set objective.hard_target=data); or train "
    "with a teacher.model of this machine, without teacher.server."
)


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


@dataclass(frozen=True)
class LiveModel(RecipeTeacher):
    """A model in memory, which reads every batch."""

    place: str | None = None
    """Where the recipe names it, for messages; None is ``teacher.model``."""

    @property
    def reference(self) -> ModelReference:
        teacher, quantization = self.recipe.teacher, self.recipe.teacher.quantization
        # Rounded where it is loaded, from where eight bits cannot be moved.
        return ModelReference(
            role="teacher",
            model=teacher.model,
            revision=teacher.revision,
            dtype=teacher.dtype,
            device_map=teacher.device_map if quantization is None or teacher.device is None else {"": teacher.device},
            gguf_file=teacher.gguf_file,
            place=self.place,
            quantization=None if quantization is None else quantization.settings,
        )

    def signals(self, pair: Pair, say: Say) -> "Teacher":
        from bridgegarden.teacher.live import LiveTeacher

        assert pair.teacher is not None
        section = self.recipe.teacher
        say(f"loading teacher {section.model}")
        model = load_model(pair.teacher)
        return translated(LiveTeacher(model, top_k=kept_tokens(section, pair), device=section.device), pair)

    def identity(self, pair: Pair) -> dict[str, Any]:
        """What a cache says of the teacher whose signals it holds."""
        assert pair.teacher is not None
        reference = pair.teacher.reference
        rounded = None if reference.quantization is None else settings_text(reference.quantization)
        return {
            **model_identity(pair.teacher),
            "gguf_file": reference.gguf_file,
            "quantization": rounded,
            "mix": None,
        }

    def loader(self, pair: Pair, device: str | None) -> "Callable[[], PreTrainedModel | Mixture]":
        """Loads what fills a cache, on `device`, in the process that calls it."""
        assert pair.teacher is not None
        return partial(load_teacher, pair.teacher, device)

    def error(self, message: str) -> ModelError:
        """An error that begins with where the teacher is named."""
        return self.reference.error(message)

    def warnings(self, pair: Pair) -> tuple[str, ...]:
        from bridgegarden.teacher.cache.fidelity import truncation_warning
        from bridgegarden.teacher.cache.spec import Support

        assert pair.teacher is not None
        top_k, quantised = self.recipe.teacher.top_k, quantised_warning(pair.teacher)
        if top_k is None or pair.translates or top_k >= vocabulary_size(pair.endings.tokenizer):
            return quantised
        warning = truncation_warning(build_objective(self.recipe.objective), Support(k=top_k), kept_in="memory")
        return quantised if warning is None else (*quantised, warning)


class CachedModel(LiveModel):
    """A model that has read the rows before: what it said is on disk."""

    def signals(self, pair: Pair, say: Say) -> "Teacher":
        return translated(announced(self.recipe, self.cache(pair), say), pair)

    def warnings(self, pair: Pair) -> tuple[str, ...]:
        assert pair.teacher is not None
        return (*quantised_warning(pair.teacher), *cache_warnings(self.recipe))

    def cache(self, pair: Pair) -> "TeacherCache":
        """The recipe's cache, if it is what this teacher said.

        Raises:
            ConfigError: there is none, or it is of another version or kind.
            ModelError: it is another teacher's.
        """
        from bridgegarden.teacher.cache.manifest import replace_command
        from bridgegarden.teacher.cache.reader import TeacherCache

        cache = TeacherCache(cache_folder(self.recipe))
        expected = dataclasses.replace(cache.spec, **self.identity(pair))
        differences = cache.spec.differences(expected)
        advice = replace_command(cache.folder, cache.spec)
        if differences:
            raise self.error(f"the cache {cache.folder} is another teacher's: {differences}. {advice}")
        check_prompt(self.recipe, cache)
        top_k = self.recipe.teacher.top_k
        if top_k is not None and top_k != cache.spec.support.k:
            raise ConfigError(
                f"teacher.top_k is {top_k}, but the cache {cache.folder} keeps {cache.spec.support}. Leave "
                f"teacher.top_k out, or build anew. {replace_command(cache.folder)}"
            )
        return cache


class MixedModels(LiveModel):
    """Several models in memory, which all read every batch; what is imitated is the mixture of their distributions."""

    @property
    def _members(self) -> tuple[tuple[float, ModelReference], ...]:
        """Each with its weight; the sum of the weights is one."""
        mix, of = self.recipe.teacher.mix or {}, self.recipe.teacher.of or {}
        return tuple(
            (
                weight,
                ModelReference(
                    role="teacher",
                    model=of[name].model,
                    revision=of[name].revision,
                    dtype=of[name].dtype,
                    place=f"teacher.of.{name}.model",
                ),
            )
            for name, weight in mix.items()
        )

    @property
    def reference(self) -> ModelReference:
        return self._members[0][1]

    @property
    def further_references(self) -> tuple[ModelReference, ...]:
        return tuple(reference for _, reference in self._members[1:])

    @property
    def _weights(self) -> tuple[float, ...]:
        return tuple(weight for weight, _ in self._members)

    def signals(self, pair: Pair, say: Say) -> "Teacher":
        from bridgegarden.teacher.live import LiveTeacher
        from bridgegarden.teacher.mixture import MixedTeacher

        section, teachers = self.recipe.teacher, []
        for facts in pair.teachers:
            say(f"loading teacher {facts.reference.model}")
            teachers.append(LiveTeacher(load_model(facts), device=section.device))
        return translated(MixedTeacher(teachers, self._weights, top_k=kept_tokens(section, pair)), pair)

    def identity(self, pair: Pair) -> dict[str, Any]:
        from bridgegarden.teacher.cache.spec import Mixed, mixture_fingerprint

        pairs = zip(self._weights, pair.teachers, strict=True)
        members = tuple(Mixed(weight=weight, **model_identity(facts)) for weight, facts in pairs)
        dtypes = sorted({member.dtype for member in members})
        return {
            "teacher": self.recipe.teacher.name,
            "revision": None,
            "weights": mixture_fingerprint(members),
            "dtype": " and ".join(dtypes),
            "mix": members,
        }

    def loader(self, pair: Pair, device: str | None) -> "Callable[[], PreTrainedModel | Mixture]":
        return partial(load_mixture, pair.teachers, self._weights, device)

    def error(self, message: str) -> ModelError:
        return ModelError(f"teacher.mix: {message}")


class CachedMixture(CachedModel, MixedModels):
    """Several models that have read the rows before: what their mixture is, is on disk, in one cache."""


class ByRow(RecipeTeacher):
    """Several models, of which every row has one."""

    @property
    @abstractmethod
    def members(self) -> Mapping[str, LiveModel]:
        """Each as the teacher of a recipe of its own, by name, in the order of their numbers."""

    def pairs(self, pair: Pair) -> tuple[Pair, ...]:
        """`pair` as each of them sees it."""
        return tuple(dataclasses.replace(pair, teacher=facts, others=()) for facts in pair.teachers)

    @property
    def reference(self) -> ModelReference:
        return next(iter(self.members.values())).reference

    @property
    def further_references(self) -> tuple[ModelReference, ...]:
        return tuple(member.reference for member in self.members.values())[1:]

    def warnings(self, pair: Pair) -> tuple[str, ...]:
        return tuple(
            f"teacher.of.{name}: {warning}"
            for (name, member), own in zip(self.members.items(), self.pairs(pair), strict=True)
            for warning in member.warnings(own)
        )


class LiveByRow(ByRow):
    """Several models in memory, each of which reads its own rows of every batch."""

    @property
    def members(self) -> Mapping[str, LiveModel]:
        return {
            name: LiveModel(recipe, place=f"teacher.of.{name}.model")
            for name, recipe in recipes_of(self.recipe).items()
        }

    def signals(self, pair: Pair, say: Say) -> "Teacher":
        from bridgegarden.teacher.by_row import TeachersByRow
        from bridgegarden.teacher.live import LiveTeacher

        section, teachers = self.recipe.teacher, []
        for facts in pair.teachers:
            say(f"loading teacher {facts.reference.model}")
            teachers.append(LiveTeacher(load_model(facts), device=section.device))
        return TeachersByRow(teachers, top_k=section.top_k)


class CachedByRow(ByRow):
    """Several models, each of which reads the rows of its own before training, and has a cache of them."""

    @property
    def members(self) -> Mapping[str, CachedModel]:
        return {
            name: CachedModel(recipe, place=f"teacher.of.{name}.model")
            for name, recipe in recipes_of(self.recipe).items()
        }

    @property
    def asked_by_training(self) -> tuple[str, ...]:
        """Names of those whose cache the recipe leaves to training."""
        return tuple(name for name, member in (self.recipe.teacher.of or {}).items() if member.cache is None)

    def signals(self, pair: Pair, say: Say) -> "Teacher":
        from bridgegarden.teacher.cache import reader

        members = zip(self.members.values(), self.pairs(pair), strict=True)
        return reader.CachesByRow([announced(member.recipe, member.cache(own), say) for member, own in members])

    def rows_of(self, data: RunData) -> "dict[str, list[Dataset]]":
        """The rows of `data` that are each one's own, by its name: for training, and for evaluation where there are
        some."""
        import numpy as np

        def own(rows: "Dataset", number: int) -> "Dataset":
            return rows.select(np.flatnonzero(np.asarray(rows.with_format("numpy")[TEACHER_NUMBER]) == number))

        return {
            name: [part for rows in data.by_name.values() if len(part := own(rows, number))]
            for number, name in enumerate(self.members)
        }


class CacheAlone(RecipeTeacher):
    """A teacher of which nothing is to be had but what is on disk."""

    @property
    def reference(self) -> None:
        return None

    @property
    def tokenizer_reference(self) -> ModelReference | None:
        name = self.recipe.teacher.tokenizer
        return None if name is None else ModelReference(role="teacher", model=name, place="teacher.tokenizer")

    def tokenised(self, mix: Mix, pair: Pair, rules: RowRules) -> "list[Dataset]":
        """Without the rows that a server refused to score, where they were to be left out; a warning says how many."""
        from bridgegarden.teacher.cache.manifest import left_out
        from bridgegarden.teacher.translated import as_read

        without = left_out(cache_folder(self.recipe))
        parts = super().tokenised(mix, pair, rules)
        if not without:
            return parts
        filed = parts if pair.tokens is None else [as_read(part, "") for part in parts]
        return [without_rows(part, own, without) for part, own in zip(parts, filed, strict=True)]

    def warnings(self, pair: Pair) -> tuple[str, ...]:
        return cache_warnings(self.recipe)

    def signals(self, pair: Pair, say: Say) -> "Teacher":
        return translated(announced(self.recipe, self.cache(pair), say), pair)

    def cache(self, pair: Pair) -> "TeacherCache":
        """The recipe's cache, if it holds what the teacher said that the recipe names.

        Raises:
            ConfigError: there is none, or it is of another version, kind or teacher.
            ModelError: its tokens are not the student's.
        """
        from bridgegarden.teacher.cache.reader import TeacherCache

        cache = TeacherCache(cache_folder(self.recipe))
        self.check(cache, pair)
        self._check_tokenizer(cache, pair)
        name, theirs = self.recipe.teacher.model, cache.spec.teacher
        if theirs != name:
            raise ConfigError(
                f"teacher.model: the cache {cache.folder} holds what {theirs!r} said, not {name!r}. Name that one "
                f"(--set teacher.model={theirs}), or another cache (--set teacher.cache=FOLDER)."
            )
        return cache

    @abstractmethod
    def check(self, cache: "TeacherCache", pair: Pair) -> None:
        """Refuse a cache that is not of this kind, or not about the student's tokens."""

    def _check_tokenizer(self, cache: "TeacherCache", pair: Pair) -> None:
        """Say which tokenizer is missing where the cache is of another one than rows are read with."""
        from bridgegarden.teacher.cache.spec import short

        there, here = cache.spec.tokenizer, tokenizer_fingerprint(pair.read_by)
        if there == here:
            return
        about = f"the cache {cache.folder} is about the tokens of another tokenizer ({short(there)})"
        named = self.recipe.teacher.tokenizer
        if named is None:
            raise TokenizerError(
                f"teacher.tokenizer: {about} than the student's ({short(here)}), and without that tokenizer what it "
                f"holds cannot be translated. Name the tokenizer of {cache.spec.teacher}, a folder or a name on the "
                f"hub (--set teacher.tokenizer=NAME), or take a student that has it."
            )
        raise TokenizerError(
            f"teacher.tokenizer: {about} than {named!r}, which rows are read with ({short(here)}). Name the tokenizer "
            f"of {cache.spec.teacher}, with which the cache was built."
        )


class RecordedTeacher(CacheAlone):
    """A model that is elsewhere, or was: pulled or imported."""

    def check(self, cache: "TeacherCache", pair: Pair) -> None:
        if pair.tokens is None and cache.spec.vocab_size > pair.student.width:
            raise pair.student.reference.error(
                f"has logits for {pair.student.width:,} tokens, and the cache {cache.folder} is about "
                f"{cache.spec.vocab_size:,}. Take a student with the teacher's tokenizer, or name that tokenizer "
                "(--set teacher.tokenizer=NAME), so that what the teacher said is translated."
            )
        check_prompt(self.recipe, cache)


class CachedServer(CacheAlone):
    """A model on a server whose log-probabilities are on disk."""

    def check(self, cache: "TeacherCache", pair: Pair) -> None:
        if cache.spec.served is None:
            raise ConfigError(
                f"teacher.server: the cache {cache.folder} was built by running {cache.spec.teacher}, not from what a "
                "server says. Leave teacher.server out, or name another folder (--set teacher.cache=FOLDER)."
            )

    def check_pair(self, pair: Pair) -> None:
        """Refuse a student with another tokenizer, where what is kept could not be translated for it."""


class AnsweringServer(CachedServer):
    """A model on a server whose answers, with their log-probabilities, are rows and signals."""

    def check_pair(self, pair: Pair) -> None:
        if pair.tokens is not None:
            raise ConfigError(
                "teacher.tokenizer: the rows are answers with log-probabilities, which name the teacher's tokens by "
                "their texts; a student with another tokenizer needs them by their ids. Let the server score the rows "
                "in place of that: write them without --top-logprobs, or copy the file alone, without the one named "
                "*.settings beside it, and name the copy (--set data.train=COPY)."
            )

    def check(self, cache: "TeacherCache", pair: Pair) -> None:
        super().check(cache, pair)
        self.check_pair(pair)

    def tokenised(self, mix: Mix, pair: Pair, rules: RowRules) -> "list[Dataset]":
        self.check_pair(pair)
        if pair.translates:  # the labels are all that is learnt, in the student's own tokens
            return tokenised(mix, pair.endings.tokenizer, rules)
        return usable_answers(self.recipe, mix, pair, rules.max_length)


class ScoringServer(CachedServer):
    """A model on a server that has scored rows that were there already."""


class LabelsAlone(RecipeTeacher):
    """None that is asked: hard labels of the data, such as answers of a server, are all that is learnt."""

    @property
    def reference(self) -> None:
        return None

    def signals(self, pair: Pair, say: Say) -> "Teacher":
        from bridgegarden.teacher.protocol import DataTokens

        say("no teacher is asked about the rows: the hard labels of the data are all that is learnt")
        return DataTokens(pair.student.width)


MODELS: Mapping[str, type[RecipeTeacher]] = {
    "live": LiveModel,
    "cached": CachedModel,
    "mixed": MixedModels,
    "mixed_cached": CachedMixture,
    "by_row": LiveByRow,
    "by_row_cached": CachedByRow,
    "recorded": RecordedTeacher,
}
"""Kinds of teacher that are known to be models by the recipe alone."""


def teacher_of(recipe: Recipe, *, anew: bool = False) -> RecipeTeacher:
    """The teacher of a recipe that is trained from.

    Args:
        recipe: describes it.
        anew: whether what its cache holds will be replaced, and so decides nothing.

    Raises:
        ConfigError: it is on a server, and more is to be learnt of it than its answers.
    """
    kind = recipe.teacher.kind
    if kind in MODELS:
        return MODELS[kind](recipe)
    if kind == "answers":
        return ScoringServer(recipe) if _scores_rows(recipe, anew) else AnsweringServer(recipe)
    if recipe.learns_data_alone:
        return LabelsAlone(recipe)
    raise ConfigError(NOT_FROM_A_SERVER)


def signals_of(recipe: Recipe, pair: Pair, say: Say) -> "Teacher":
    """What the trainer asks: the teacher of `recipe`; or the labels of the data alone, where nothing more is learnt.

    Raises:
        ConfigError: there is no cache, or it holds something else.
        ModelError: the weights cannot be loaded, or the cache is another teacher's.
    """
    return (teacher_of(recipe) if pair.asked else LabelsAlone(recipe)).signals(pair, say)


def _scores_rows(recipe: Recipe, anew: bool) -> bool:
    """Whether the server is to score the rows, or wrote them: as the cache says that is there, else as the rows do."""
    from bridgegarden.teacher.cache.manifest import MANIFEST, read_spec

    folder = cache_folder(recipe)
    served = read_spec(folder).served if not anew and (folder / MANIFEST).exists() else None
    return not hold_logprobs(recipe.data) if served is None else served.source == "scored"
