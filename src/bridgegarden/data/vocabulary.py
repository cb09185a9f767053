"""How many token ids a tokenizer may use."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


def vocabulary_size(tokenizer: "PreTrainedTokenizerBase") -> int:
    """The largest token id and one: as many ids as a model must have for every token.

    Not the number of tokens: ids may have holes (tokens reserved for later, a padding token far up), and the token that
    ends a turn often comes after one.
    """
    return max(tokenizer.get_vocab().values()) + 1
