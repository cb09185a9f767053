"""A look at what would be trained on, before a long run."""

from dataclasses import replace
from typing import TYPE_CHECKING

from bridgegarden.data import TokenisedRow, audit_text
from bridgegarden.data.encode import Keep
from bridgegarden.recipe import Recipe
from bridgegarden.run.rows import mix_text, rules_of, training_rows
from bridgegarden.run.teacher import recipe_pair, teacher_of

if TYPE_CHECKING:
    from datasets import Dataset

ROWS = 100
"""How many rows of a source are tokenised for the counts."""


def audit(recipe: Recipe) -> str:
    """The first row of each source with what is learnt marked, counts over the first rows, and warnings.

    Raises:
        DataError: one of the first rows cannot be used.
        ModelError: the models do not fit together.
    """
    teacher, pair = teacher_of(recipe), recipe_pair(recipe)
    endings = pair.endings
    max_length, rules = recipe.training.arguments["max_length"], rules_of(recipe, cut=False)
    several = len(recipe.data.sources) > 1
    mix = training_rows(recipe.data, None if several else ROWS)
    head = replace(mix, parts=tuple(part.first(ROWS) for part in mix.parts if len(part.rows)))
    made = teacher.tokenised(head, pair, rules)
    rows, counts = [], []
    before = 0
    for part, data in zip(head.parts, made, strict=True):
        first = _row(data, 0).truncated(max_length, rules.keep)
        number = data[0]["row"] - (0 if "row" in part.rows.column_names else before)
        rows.append(f"{part.name}, row {number}: {audit_text(first, endings.tokenizer)}")
        of = f" of {part.name}" if several else ""
        counts.append(f"first {len(part.rows)} rows{of}: {_counts(data, len(part.rows), max_length, rules.keep)}")
        before += part.total
    template = "none; plain text" if endings.template_from is None else f"the {endings.template_from}'s"
    end = endings.tokenizer.convert_ids_to_tokens(endings.taught)
    told = mix_text(mix)
    return "\n".join(
        [
            *rows,
            "",
            f"chat template: {template}",
            f"end of turn:   {end!r} (id {endings.taught})",
            *(() if told is None else (told,)),
            *counts,
            *(f"warning: {warning}" for warning in pair.warnings),
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
