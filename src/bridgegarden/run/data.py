"""The rows of a recipe, read and tokenised."""

from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from bridgegarden.data import Columns, dataset_fingerprint, load_rows, tokenise
from bridgegarden.recipe import DataSection

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
    return Columns(prompt=section.prompt, completion=section.completion, messages=section.messages)


def place(kind: str, source: str) -> str:
    """What to call the rows of `source` in messages: ``train rows.jsonl``."""
    return f"{kind} {Path(source).name if Path(source).exists() else source}"


def load_data(section: DataSection, tokenizer: "PreTrainedTokenizerBase", max_length: int | None) -> RunData:
    """All rows of a recipe, ready for the trainer.

    Raises:
        DataError: a row, or all of them, cannot be used.
        ModelError: the tokenizer cannot write the rows.
    """
    rows = load_rows(section.train, split=section.split, limit=section.limit)
    columns = columns_of(section)
    train = tokenise(rows, tokenizer, columns=columns, max_length=max_length, name=place("train", section.train))
    if section.eval is None:
        return RunData(train, None)
    rows = load_rows(section.eval, split=section.eval_split, limit=section.eval_limit)
    name = place("eval", section.eval)
    return RunData(train, tokenise(rows, tokenizer, columns=columns, max_length=max_length, name=name))
