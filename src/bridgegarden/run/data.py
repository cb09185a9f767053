"""The rows of a recipe, read and tokenised."""

from itertools import accumulate
from typing import TYPE_CHECKING, NamedTuple

from bridgegarden.data import Columns, Mix, RowRules, dataset_fingerprint, load_mix, tokenise
from bridgegarden.recipe import DataSection, Recipe

if TYPE_CHECKING:
    from datasets import Dataset
    from transformers import PreTrainedTokenizerBase


class RunData(NamedTuple):
    """Token ids and labels."""

    train: "Dataset"
    evaluation: "Dataset | None"
    mix: str | None = None
    """How many training rows were taken of each source; None where there is one."""

    @property
    def by_name(self) -> "dict[str, Dataset]":
        """Those that there are, by what they are for."""
        return {"train": self.train} | ({} if self.evaluation is None else {"evaluation": self.evaluation})

    @property
    def fingerprints(self) -> dict[str, str | None]:
        """Hashes of the content, by name."""
        held_out = None if self.evaluation is None else dataset_fingerprint(self.evaluation)
        return {"train": dataset_fingerprint(self.train), "eval": held_out}


def columns_of(section: DataSection) -> Columns:
    """Which columns the recipe names."""
    return Columns(prompt=section.prompt, completion=section.completion, messages=section.messages, text=section.text)


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
    rules = rules_of(recipe)
    mix = training_rows(recipe.data)
    train = mix.joined(tokenised(mix, tokenizer, rules))
    held_out = evaluation_rows(recipe.data)
    return RunData(
        train=train,
        evaluation=None if held_out is None else held_out.joined(tokenised(held_out, tokenizer, rules)),
        mix=mix_text(mix),
    )


def training_rows(section: DataSection, limit: int | None = None) -> Mix:
    """The training rows of a recipe, or the first `limit` of them.

    Raises:
        DataError: they cannot be read.
    """
    limits = [most for most in (section.limit, limit) if most is not None]
    return load_mix(
        section.sources, limit=min(limits, default=None), seed=section.seed or 0, skip_bad=section.skip_bad_rows
    )


def evaluation_rows(section: DataSection) -> Mix | None:
    """The evaluation rows of a recipe; None where it has none.

    Raises:
        DataError: they cannot be read.
    """
    if section.eval is None:
        return None
    return load_mix(section.eval_sources, kind="eval", limit=section.eval_limit, skip_bad=section.skip_bad_rows)


def tokenised(mix: Mix, tokenizer: "PreTrainedTokenizerBase", rules: RowRules) -> "list[Dataset]":
    """The rows of each part of `mix`, ready for the trainer. The column ``row`` counts on from source to source.

    Raises:
        DataError: a row, or all those of a source, cannot be used.
        ModelError: the tokenizer cannot write the rows.
    """
    first = accumulate((part.total for part in mix.parts), initial=0)
    return [
        tokenise(part.rows, tokenizer, rules, name=part.name, numbers=part.numbers, first=before)
        for part, before in zip(mix.parts, first, strict=False)
    ]


def mix_text(mix: Mix) -> str | None:
    """A line on what is taken of each of several sources."""
    return f"training rows: {mix}" if len(mix.parts) > 1 else None
