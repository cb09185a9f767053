"""Both models of a recipe, checked against each other with no weights loaded; and how the teacher reads the rows where
it has another tokenizer."""

import dataclasses
from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING, cast

from bridgegarden.data import end_of_turn_ids
from bridgegarden.errors import ConfigError, TokenizerError
from bridgegarden.preflight import (
    Endings,
    ModelReference,
    Pair,
    TokenizerFacts,
    check_pair,
    compare_tokenizers,
    load_tokenizer_facts,
)
from bridgegarden.recipe import Recipe, build_objective
from bridgegarden.recipe.teacher import TranslationSection
from bridgegarden.run.cut_student import CutStudent, cut_reference
from bridgegarden.run.teachers import teacher_of
from bridgegarden.terminal import counted

if TYPE_CHECKING:
    from datasets import Dataset
    from rich.console import Console
    from transformers import PreTrainedTokenizerFast

    from bridgegarden.run.rows import RunData
    from bridgegarden.teacher.tokenizer_pair import Paired, TokenizerPair

ROWS, POSITIONS = 16, 2_000
"""From the first, and the student's tokens in them, after which no further row is taken: of these is said how much is
known, which takes a second or two."""
TWO_TOKENIZERS = "teacher and student have different tokenizers"


def student_reference(recipe: Recipe) -> ModelReference:
    """The student of a recipe; one that is cut out of the teacher in the folder where it is kept."""
    student, eos_token = recipe.student, recipe.training.arguments.get("eos_token")
    if student.from_ is not None:
        return cut_reference(recipe)
    return ModelReference(
        role="student", model=student.model, revision=student.revision, dtype=student.dtype, eos_token=eos_token
    )


def recipe_pair(
    recipe: Recipe, *, weights: bool = True, anew: bool = False, translates: bool = False, asked: bool = True
) -> Pair:
    """Both models of a recipe, checked against each other with no weights loaded.

    Args:
        recipe: names them.
        weights: whether their weights have to be there.
        anew: as in :func:`teacher_of`.
        translates: whether the teacher may have another tokenizer than the student.
        asked: whether what the teacher says of the rows is read; if not, its weights need not be there, unless it is
            to judge the student's own texts.

    Raises:
        ConfigError: as in :func:`teacher_of`; or something does not go with a teacher with another tokenizer.
        ModelError: a model cannot be used, or not with the other, or not on rows of the recipe's length.
    """
    check = partial(
        check_pair,
        student=student_reference(recipe)
        if recipe.student.from_ is None
        else CutStudent.of(recipe, weights=weights).facts,
        max_length=recipe.training.arguments["max_length"],
        chat_template=recipe.data.chat_template,
        weights=weights,
        translates=translates,
        asked=asked,
        loaded=asked or recipe.free_running is not None,
    )
    teacher = teacher_of(recipe, anew=anew)
    named = teacher.tokenizer_reference
    pair = check(teacher.reference if named is None else load_tokenizer_facts(named))
    others = [check(reference) for reference in teacher.further_references]
    _check_one_tokenizer(pair, others)
    facts = tuple(other.teacher for other in others if other.teacher is not None)
    return with_tokens(dataclasses.replace(pair, others=facts), recipe)


def _check_one_tokenizer(pair: Pair, others: Sequence[Pair]) -> None:
    """Make sure that all teachers have the first one's tokenizer, where that is not the student's."""
    for other in others:
        assert pair.teacher is not None
        assert other.teacher is not None
        first, second = (one.teacher.reference.model for one in (pair, other) if one.teacher is not None)
        refusal = ConfigError(
            f"teacher.of: {first!r} and {second!r} have different tokenizers; several teachers need one. Leave one of "
            "them out."
        )
        if other.translates != pair.translates:
            raise refusal
        if pair.translates:
            try:
                compare_tokenizers(other.teacher, pair.teacher)
            except TokenizerError as error:
                raise refusal from error


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
    names = teacher_facts.reference.named, "the student's tokenizer"
    their_end = end_of_turn_ids(theirs, teacher_facts.generation_config)[0]
    teacher, student = (
        ByteView(cast("PreTrainedTokenizerFast", tokenizer), end, name=name)
        for name, tokenizer, end in zip(names, (theirs, ours), (their_end, endings.taught), strict=True)
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


def check_kept(pair: Pair) -> None:
    """Make sure that what the teacher says is of use, so that a cache of it can be made, read or brought.

    Raises:
        ConfigError: with another tokenizer, and nothing but the data's labels is learnt.
    """
    if pair.translates and pair.tokens is None:
        raise ConfigError(
            "objective: learns the labels of the data alone, so that nothing of a teacher is kept. Choose another one "
            "(objective.preset: static), or train without a cache."
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
