"""What must hold before training from a teacher's cache begins."""

from collections.abc import Mapping
from typing import Any

from datasets import Dataset
from transformers import PreTrainedTokenizerBase

from bridgegarden.data import vocabulary_size
from bridgegarden.errors import ConfigError, ModelError
from bridgegarden.teacher.cache.reader import TeacherCache
from bridgegarden.training.collator import RowCollator


def check_cached_teacher(
    cache: TeacherCache,
    tokenizer: PreTrainedTokenizerBase,
    *,
    max_length: int | None,
    vocab_size: int,
    collator: Any,
    data: Mapping[str, Any],
) -> None:
    """Make sure that `cache` can stand for the teacher, at every position of the data.

    Args:
        cache: the teacher.
        tokenizer: the student's.
        max_length: tokens that rows are cut to.
        vocab_size: size of the vocabulary that student and cache share.
        collator: what makes batches.
        data: prepared data sets by name; None where there is none.

    Raises:
        ModelError: it was built with another tokenizer, or the student lacks tokens that it speaks of.
        ConfigError: rows are cut to another length; a collator of somebody else's; streamed data.
        DataError: rows that it does not hold.
    """
    cache.check_tokenizer(tokenizer, max_length)
    whole = min(vocabulary_size(tokenizer), cache.spec.teacher_width)
    if cache.width < whole:
        raise ModelError(
            f"teacher cache {cache.folder}: its signals are about the ids below {cache.width} alone, and those of the "
            f"tokenizer go up to {whole - 1}. Build it again (bridgegarden cache build RECIPE --replace)."
        )
    if vocab_size < cache.width:
        raise ModelError(
            f"teacher cache {cache.folder}: its signals are about {cache.width} tokens, of which the student has only "
            f"{vocab_size}."
        )
    if not isinstance(collator, RowCollator):
        raise ConfigError("data_collator: a teacher's cache needs the trainer's own; leave it out.")
    for name, dataset in data.items():
        if isinstance(dataset, Dataset):
            cache.check_rows(dataset, name)
        elif dataset is not None:
            raise ConfigError(f"{name} data: a streamed data set cannot be paired with a cache; load it whole.")
