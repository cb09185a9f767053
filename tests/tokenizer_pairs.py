"""Tokenizers of two families, with chat templates that have nothing in common, and rows that try both."""

from functools import cache

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from tests.tiny import CHAT_TEMPLATE

HEADERS = (
    "{{ '<|begin|>' }}{% for m in messages %}{{ '<|head|>' + m['role'] + '<|/head|>\n\n' + m['content'] | trim + "
    "'<|eot|>' }}{% endfor %}{% if add_generation_prompt %}{{ '<|head|>assistant<|/head|>\n\n' }}{% endif %}"
)
"""As Llama 3 writes turns: nothing of it is what Qwen writes."""
THINKS = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{% if m['role'] == 'assistant' and loop.last %}"
    "<think>\n\n</think>\n\n{% endif %}{{ m['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
"""As Qwen 3: an answer begins with a thought, which is empty."""
CORPUS = [
    "What is 1234 plus 5678? The answer is 6912, and 10000 minus 250 is 9750.",
    "Das Frühstück im Café kostet 12 €, sagt die Köchin. 漢字 and 🦊 are written, too.",
    "There are the other things that they gather there; whether the weather is fine, the answer is 100.",
]
ROWS = [
    {"question": "What is 1234 plus 5678?", "answer": "The answer is 6912."},
    {"question": "Wo?", "answer": "Im Café: 漢字, 🦊 und 12 €."},
    {"question": "there", "answer": "there are   the\n other things 10000"},
    {"question": "One letter.", "answer": "e"},
]


def trained(
    size: int, digits: str, template: str, specials: tuple[str, ...], end: str, added: tuple[str, ...] = ()
) -> PreTrainedTokenizerFast:
    """Byte-level BPE of about `size` tokens; `digits` is a regex of the numbers that are cut off."""
    backend = Tokenizer(models.BPE())
    pieces = pre_tokenizers.Split(Regex(digits), behavior="isolated")
    backend.pre_tokenizer = pre_tokenizers.Sequence([pieces, pre_tokenizers.ByteLevel(add_prefix_space=False)])
    backend.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    backend.train_from_iterator(
        CORPUS, trainers.BpeTrainer(vocab_size=size, initial_alphabet=alphabet, show_progress=False)
    )
    backend.add_special_tokens([AddedToken(token, special=True) for token in specials])
    backend.add_tokens([AddedToken(token, special=False) for token in added])
    made = PreTrainedTokenizerFast(tokenizer_object=backend, eos_token=end, pad_token=specials[0])
    made.chat_template = template
    return made


@cache
def threes() -> PreTrainedTokenizerFast:
    """Numbers in groups of three digits, turns with headers."""
    return trained(400, r"\d{1,3}", HEADERS, ("<|begin|>", "<|head|>", "<|/head|>", "<|eot|>"), "<|eot|>")


@cache
def ones() -> PreTrainedTokenizerFast:
    """Digits one by one, turns as ChatML."""
    return trained(330, r"\d", CHAT_TEMPLATE, ("<|endoftext|>", "<|im_start|>", "<|im_end|>"), "<|im_end|>")


@cache
def thinks() -> PreTrainedTokenizerFast:
    """:func:`ones`, whose answers begin with an empty thought."""
    specials = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
    return trained(330, r"\d", THINKS, specials, "<|im_end|>", ("<think>", "</think>"))
