"""The rows of a recipe, read and tokenised."""

from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from bridgegarden.data import Columns, RowRules, dataset_fingerprint, load_rows, tokenise
from bridgegarden.recipe import DataSection, Recipe

if TYPE_CHECKING:
    from datasets import Dataset
    from transformers import PreTrainedTokenizerBase


class RunData(NamedTuple):
    """Token ids and labels."""

    train: "Dataset"
    evaluation: "Dataset | None"

    @property
    def fingerprints(self) -> dict[str, str | None]:
        """Hashes of the content, by name."""
        held_out = None if self.evaluation is None else dataset_fingerprint(self.evaluation)
        return {"train": dataset_fingerprint(self.train), "eval": held_out}


def columns_of(section: DataSection) -> Columns:
    """Which columns the recipe names."""
    return Columns(prompt=section.prompt, completion=section.completion, messages=section.messages, text=section.text)


def place(kind: str, source: str) -> str:
    """What to call the rows of `source` in messages: ``train rows.jsonl``."""
    return f"{kind} {Path(source).name if Path(source).exists() else source}"


def rules_of(recipe: Recipe, *, cut: bool = True) -> RowRules:
    """How the rows of a recipe are read; without `cut` none is cut."""
    arguments = recipe.training.arguments
    return RowRules(
        columns=columns_of(recipe.data),
        max_length=arguments["max_length"] if cut else None,
        keep="end" if arguments.get("truncation_mode") == "keep_end" else "start",
        ends_with=arguments.get("eos_token"),
        skip_bad=recipe.data.skip_bad_rows,
    )


def load_data(recipe: Recipe, tokenizer: "PreTrainedTokenizerBase") -> RunData:
    """All rows of a recipe, ready for the trainer.

    Raises:
        DataError: a row, or all of them, cannot be used.
        ModelError: the tokenizer cannot write the rows.
    """
    section, rules = recipe.data, rules_of(recipe)
    skip = section.skip_bad_rows
    rows = load_rows(section.train, split=section.split, limit=section.limit, skip_bad=skip)
    train = tokenise(rows, tokenizer, rules, name=place("train", section.train))
    if section.eval is None:
        return RunData(train, None)
    rows = load_rows(section.eval, split=section.eval_split, limit=section.eval_limit, skip_bad=skip)
    return RunData(train, tokenise(rows, tokenizer, rules, name=place("eval", section.eval)))
