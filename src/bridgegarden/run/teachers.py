"""The kinds of teacher that a recipe can have: what each reads, how its signals are opened, and who it is.

A new kind is a class here, or in :mod:`~bridgegarden.run.teachers_elsewhere` where no model of it is on this machine; a
value of :data:`~bridgegarden.recipe.teacher.TeacherKind`; and a :class:`~bridgegarden.teacher.protocol.Teacher`.
"""

import dataclasses
from abc import abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

from bridgegarden.data import vocabulary_size
from bridgegarden.data.teacher_prompt import TEACHER_NUMBER
from bridgegarden.errors import ConfigError, ModelError
from bridgegarden.preflight import ModelReference, Pair, settings_text
from bridgegarden.recipe import Recipe, build_objective
from bridgegarden.run.models import load_mixture, load_model, load_teacher, model_identity, quantised_warning
from bridgegarden.run.recipe_teacher import (
    RecipeTeacher,
    Say,
    announced,
    cache_folder,
    cache_warnings,
    check_prompt,
    check_read,
    from_disk,
    kept_tokens,
    recipes_of,
    translated,
)
from bridgegarden.run.rows import RunData, hold_logprobs
from bridgegarden.run.teachers_elsewhere import AnsweringServer, LabelsAlone, RecordedTeacher, ScoringServer

if TYPE_CHECKING:
    from datasets import Dataset
    from transformers import PreTrainedModel

    from bridgegarden.teacher.cache.reader import TeacherCache
    from bridgegarden.teacher.mixture import Mixture
    from bridgegarden.teacher.protocol import Teacher

NOT_FROM_A_SERVER = (
    "teacher.server: training asks no server; it reads what one has said from a cache. Let it score the rows "
    "(bridgegarden cache build RECIPE --set teacher.cache=FOLDER), or write answers (bridgegarden generate RECIPE "
    "--top-logprobs 20), and keep what they hold (cache build RECIPE --set data.train=ANSWERS --set "
    "teacher.cache=FOLDER); learn answers without log-probabilities "
    "as hard labels (--set data.train=ANSWERS --set objective.preset=hard --set objective.hard_target=data); or train "
    "with a teacher.model of this machine, without teacher.server."
)


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
        return from_disk(self.recipe, self.cache(pair), pair, say)

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
        check_read(self.recipe, cache, pair)
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
