"""Both models of a recipe, checked against each other with no weights loaded."""

import dataclasses
from collections.abc import Sequence
from functools import partial

from bridgegarden.errors import ConfigError
from bridgegarden.preflight import (
    ModelReference,
    Pair,
    check_pair,
    compare_tokenizers,
    load_tokenizer_facts,
)
from bridgegarden.recipe import Recipe
from bridgegarden.run.cut_student import CutStudent, cut_reference
from bridgegarden.run.teachers import teacher_of
from bridgegarden.run.translation import with_tokens


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
        if other.translates != pair.translates:
            first, second = (one.teacher.reference.model for one in (pair, other) if one.teacher is not None)
            raise ConfigError(
                f"teacher.of: {first!r} and {second!r} have different tokenizers; several teachers need one. Leave one "
                "of them out."
            )
        if pair.translates:
            compare_tokenizers(other.teacher, pair.teacher)
