"""A look at what would be trained on, before a long run."""

from dataclasses import replace
from typing import TYPE_CHECKING

from bridgegarden.data import TokenisedRow, audit_text, load_rows, tokenise
from bridgegarden.data.encode import Keep
from bridgegarden.preflight import check_endings, compare_tokenizers, load_facts
from bridgegarden.recipe import Recipe
from bridgegarden.run.answers import AT_LEAST, answer_reader, read_answers
from bridgegarden.run.data import place, rules_of
from bridgegarden.run.models import is_served, references

if TYPE_CHECKING:
    from datasets import Dataset

ROWS = 100
"""How many rows are tokenised for the counts."""


def audit(recipe: Recipe) -> str:
    """The first row of the training data with what is learnt marked, counts over the first rows, and warnings.

    Raises:
        DataError: one of the first rows cannot be used.
        ModelError: the models do not fit together.
    """
    of_teacher, of_student = references(recipe)
    teacher, student = None if of_teacher is None else load_facts(of_teacher), load_facts(of_student)
    match, endings = compare_tokenizers(teacher, student), check_endings(teacher, student, recipe.data.chat_template)
    section, max_length, rules = recipe.data, recipe.training.arguments["max_length"], rules_of(recipe, cut=False)
    limit = ROWS if section.limit is None else min(section.limit, ROWS)
    name = place("train", section.train)
    if is_served(recipe):
        first_rows = replace(recipe, data=replace(section, limit=limit, eval=None))
        (answers,) = read_answers(first_rows, answer_reader(recipe, endings, student, AT_LEAST), None)
        read, tokenised = answers.total, answers.dataset()
    else:
        rows = load_rows(section.train, split=section.split, limit=limit, skip_bad=section.skip_bad_rows)
        read, tokenised = len(rows), tokenise(rows, endings.tokenizer, rules, name=name)
    template = "none; plain text" if endings.template_from is None else f"the {endings.template_from}'s"
    end = endings.tokenizer.convert_ids_to_tokens(endings.taught)
    first = _row(tokenised, 0).truncated(max_length, rules.keep)
    return "\n".join(
        [
            f"{name}, row {tokenised[0]['row']}: {audit_text(first, endings.tokenizer)}",
            "",
            f"chat template: {template}",
            f"end of turn:   {end!r} (id {endings.taught})",
            f"first {read} rows: {_counts(tokenised, read, max_length, rules.keep)}",
            *(f"warning: {warning}" for warning in endings.warnings + match.warnings),
        ]
    )


def _counts(tokenised: "Dataset", read: int, max_length: int | None, keep: Keep) -> str:
    rows = [_row(tokenised, index) for index in range(len(tokenised))]
    lengths = [len(row.input_ids) for row in rows]
    parts = [
        f"{sum(lengths) / len(rows):.0f} tokens a row (at most {max(lengths)})",
        f"{sum(row.supervised for row in rows) / sum(lengths):.0%} supervised",
    ]
    if max_length is not None:
        cut = [row.truncated(max_length, keep) for row in rows if len(row.input_ids) > max_length]
        lost = sum(row.supervised == 0 for row in cut) + read - len(rows)
        parts += [f"{len(cut)} longer than training.max_length {max_length}", f"{lost} with nothing left to learn"]
    return ", ".join(parts)


def _row(dataset: "Dataset", index: int) -> TokenisedRow:
    return TokenisedRow(input_ids=dataset[index]["input_ids"], labels=dataset[index]["labels"])
