"""What a run does where teacher and student have different tokenizers: whether it can, and its teacher then."""

import dataclasses
from typing import TYPE_CHECKING, cast

from bridgegarden.data import end_of_turn_ids
from bridgegarden.errors import ConfigError
from bridgegarden.preflight import Endings, Pair, TokenizerFacts
from bridgegarden.recipe import Recipe, TeacherSection, build_objective
from bridgegarden.recipe.teacher import TranslationSection
from bridgegarden.terminal import counted

if TYPE_CHECKING:
    from datasets import Dataset
    from rich.console import Console
    from transformers import PreTrainedTokenizerFast

    from bridgegarden.run.rows import RunData
    from bridgegarden.teacher.cache.reader import TeacherCache
    from bridgegarden.teacher.live import LiveTeacher
    from bridgegarden.teacher.mixture import MixedTeacher
    from bridgegarden.teacher.protocol import Teacher
    from bridgegarden.teacher.tokenizer_pair import Paired, TokenizerPair

ROWS, POSITIONS = 16, 2_000
"""From the first, and the student's tokens in them, after which no further row is taken: of these is said how much is
known, which takes a second or two."""
TWO_TOKENIZERS = "teacher and student have different tokenizers"
TOP_K = 64
"""Tokens kept of a teacher in memory whose signals are translated, unless the recipe says otherwise: the time that
takes grows with them."""


def with_tokens(pair: Pair, recipe: Recipe) -> Pair:
    """`pair`, and how its teacher reads the rows of `recipe`, if it has another tokenizer.

    Where the labels of the data are all that is learnt, nothing of the teacher is read.

    Raises:
        ConfigError: something in the recipe does not go with such a teacher.
        ModelError: what one of the tokenizers writes is not known.
    """
    from bridgegarden.teacher.translated import check_translated_objective

    section = recipe.teacher.translation
    if not pair.translates:
        if section is not None:
            raise ConfigError(
                "teacher.translation: teacher and student have the same tokenizer, so nothing is translated. Leave it "
                "out."
                if pair.teacher_tokens is not None
                else "teacher.translation: which tokenizer the teacher has is not known; name it (teacher.tokenizer: a "
                "folder, or a name on the hub)."
            )
        return pair
    if recipe.learns_data_alone:
        if recipe.free_running is not None:
            raise ConfigError(
                f"free_running: {TWO_TOKENIZERS}, and where hard labels of the data are all that is learnt, the "
                "teacher reads no row. Leave free_running out, and diagnose the trained model (bridgegarden diagnose)."
            )
        return dataclasses.replace(pair, asked=False)
    _check_recipe(recipe)
    check_translated_objective(build_objective(recipe.objective))
    return dataclasses.replace(pair, tokens=tokenizer_pair(pair, section or TranslationSection()))


def translating(pair: Pair, recipe: Recipe) -> Pair:
    """`pair`, which knows how its teacher reads what its student does, also where a training would not ask.

    Raises:
        ConfigError: something in the recipe does not go with such a teacher.
        ModelError: what one of the tokenizers writes is not known.
    """
    if not pair.translates or pair.tokens is not None:
        return pair
    _check_recipe(recipe)
    tokens = tokenizer_pair(pair, recipe.teacher.translation or TranslationSection())
    return dataclasses.replace(pair, tokens=tokens, asked=True)


def tokenizer_pair(pair: Pair, section: TranslationSection) -> "TokenizerPair":
    """How the teacher of `pair` reads what its student reads.

    Raises:
        ModelError: what one of the tokenizers writes is not known.
    """
    assert pair.teacher_tokens is not None
    return tokenizers_of(pair.teacher_tokens, pair.endings, section)


def tokenizers_of(teacher_facts: TokenizerFacts, endings: Endings, section: TranslationSection) -> "TokenizerPair":
    """The same of a teacher, and of the tokenizer and turns of its student.

    Raises:
        ModelError: what one of the tokenizers writes is not known.
    """
    from bridgegarden.teacher.tokenizer_pair import TokenizerPair
    from bridgegarden.teacher.translation.byte_view import ByteView
    from bridgegarden.teacher.translation.translate import Translation

    theirs, ours = teacher_facts.tokenizer, endings.tokenizer
    their_end = end_of_turn_ids(theirs, teacher_facts.generation_config)[0]
    teacher, student = (
        ByteView(cast("PreTrainedTokenizerFast", tokenizer), end, name=f"the {role}'s tokenizer")
        for role, tokenizer, end in (("teacher", theirs, their_end), ("student", ours, endings.taught))
    )
    translation = Translation(teacher, student, threshold=section.threshold, tolerance=section.tolerance)
    return TokenizerPair(theirs, ours, translation)


def _check_recipe(recipe: Recipe) -> None:
    """Refuse what cannot be done yet with two tokenizers."""
    why = TWO_TOKENIZERS
    if recipe.teacher.by is not None:
        raise ConfigError(
            f"teacher.by: {why}, and teachers of single rows need the student's. Train from one teacher, or from "
            "teachers of the student's family."
        )
    for name in ("packing", "padding_free"):
        if recipe.training.arguments.get(name):
            raise ConfigError(
                f"training.{name}: {why}, and packed rows are in the student's tokens alone. Set it to false."
            )


def tell_decided(console: "Console", pair: Pair, rows: "Dataset") -> None:
    """Say how much of the first `rows` two different tokenizers let be known, before any weight is loaded."""
    if pair.tokens is None:
        return
    stretches: list[Paired] = []
    head = 0
    while head < min(ROWS, len(rows)) and sum(len(ours) for _, ours in stretches) < POSITIONS:
        stretches += pair.tokens.of_batch([dict(rows[head])])
        head += 1
    decided = pair.tokens.decided(stretches)
    tokens, rows_read = counted(decided.positions, "token"), counted(head, "row")
    of = f"of the student's {tokens} in the answers of the first {rows_read}"
    console.print(f"{of}, {decided}", markup=False, soft_wrap=True)


def filed_rows(data: "RunData", pair: Pair) -> "dict[str, Dataset]":
    """The rows of a recipe as they are filed in its cache, by what they are for: where the teacher has another
    tokenizer, as it reads them."""
    from bridgegarden.teacher.translated import as_read

    by_name = data.by_name
    return {name: rows if pair.tokens is None else as_read(rows, name) for name, rows in by_name.items()}


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
