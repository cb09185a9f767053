"""Teachers that are elsewhere: known by what is on disk of them alone, or by the labels of the data."""

from abc import abstractmethod
from typing import TYPE_CHECKING

from bridgegarden.data import Mix, RowRules, tokenizer_fingerprint
from bridgegarden.errors import ConfigError, TokenizerError
from bridgegarden.preflight import ModelReference, Pair
from bridgegarden.run.recipe_teacher import (
    RecipeTeacher,
    Say,
    cache_folder,
    cache_warnings,
    check_prompt,
    check_read,
    from_disk,
)
from bridgegarden.run.rows import tokenised, usable_answers, without_rows

if TYPE_CHECKING:
    from datasets import Dataset

    from bridgegarden.teacher.cache.reader import TeacherCache
    from bridgegarden.teacher.protocol import Teacher


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
        return from_disk(self.recipe, self.cache(pair), pair, say)

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
        check_read(self.recipe, cache, pair)
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
