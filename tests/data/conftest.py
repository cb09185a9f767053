"""Tokenizers built in memory, one for each habit of real ones that has broken a training mask somewhere."""

from collections.abc import Callable

import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

CORPUS = [
    "What is the capital of France? The capital of France is Paris. user assistant system model tool",
    "You are a helpful assistant. Two plus two is four, and four plus four is eight.",
    "### Instruction:\nAdd 2 and 2.\n### Response:\n4\n",
    "[INST] hello there [/INST] general greetings to you, answer answers answering",
]

# The system prompt that nobody asked for, as in Qwen2.5.
CHATML = """
{%- if messages[0]['role'] != 'system' %}{{ '<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n' }}{% endif %}
{%- for message in messages %}
{{- '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>\n' }}
{%- endfor %}
{%- if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"""

LLAMA3 = """
{{- bos_token }}{% if date_string is defined %}{{ 'Today: ' + date_string + '\n' }}{% endif %}
{%- for message in messages %}
{{- '<|start_header_id|>' + message['role'] + '<|end_header_id|>\n\n' + message['content'] | trim + '<|eot_id|>' }}
{%- endfor %}
{%- if add_generation_prompt %}{{ '<|start_header_id|>assistant<|end_header_id|>\n\n' }}{% endif %}"""

LLAMA2 = """
{%- for message in messages %}
{%- if message['role'] == 'user' %}{{ bos_token + '[INST] ' + message['content'] + ' [/INST]' }}
{%- else %}{{ ' ' + message['content'] + ' ' + eos_token }}{% endif %}
{%- endfor %}"""

GEMMA = """
{{- bos_token }}
{%- if messages[0]['role'] == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}
{%- for message in messages %}
{%- if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}{{ raise_exception('Roles must alternate') }}{% endif %}
{%- set role = 'model' if message['role'] == 'assistant' else message['role'] %}
{{- '<start_of_turn>' + role + '\n' + message['content'] | trim + '<end_of_turn>\n' }}
{%- endfor %}
{%- if add_generation_prompt %}{{ '<start_of_turn>model\n' }}{% endif %}"""

DEEPSEEK_CODER = """
{{- bos_token }}
{%- for message in messages %}
{%- if message['role'] == 'user' %}{{ '### Instruction:\n' + message['content'] + '\n' }}
{%- elif message['role'] == 'assistant' %}{{ '### Response:\n' + message['content'] + '\n<|EOT|>\n' }}
{%- else %}{{ message['content'] }}{% endif %}
{%- endfor %}
{%- if add_generation_prompt %}{{ '### Response:' }}{% endif %}"""

# One more token after the last turn, unless the model is to speak.
PHI = """
{%- for message in messages %}{{ '<|' + message['role'] + '|>\n' + message['content'] + '<|end|>\n' }}{% endfor %}
{%- if add_generation_prompt %}{{ '<|assistant|>\n' }}{% else %}{{ eos_token }}{% endif %}"""

# Reasoning is kept in the last turn only.
THINKING = """
{%- for message in messages %}
{%- set words = message['content'] if loop.last else message['content'].split('</think>')[-1] %}
{{- '<|im_start|>' + message['role'] + '\n' + words + '<|im_end|>\n' }}
{%- endfor %}
{%- if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"""

WITHOUT_STOP = """
{%- for message in messages %}{{ message['role'] + ': ' + message['content'] + '\n' }}{% endfor %}
{%- if add_generation_prompt %}{{ 'assistant: ' }}{% endif %}"""


def byte_level(specials: list[str], template: str | None, *, adds_bos: bool = False, **names: str):
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=400, special_tokens=specials, initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator(CORPUS, trainer)
    if adds_bos:
        bos = names["bos_token"]
        tokenizer.post_processor = processors.TemplateProcessing(
            single=f"{bos} $A", special_tokens=[(bos, specials.index(bos))]
        )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, chat_template=template, additional_special_tokens=specials, **names
    )


@pytest.fixture
def chatml():
    """Qwen's way: the end of a turn is not the tokenizer's end of text."""
    specials = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    return byte_level(specials, CHATML, eos_token="<|endoftext|>", pad_token="<|endoftext|>")


@pytest.fixture
def plain():
    """A base model's: no chat template."""
    return byte_level(["<|endoftext|>"], None, eos_token="<|endoftext|>")


@pytest.fixture
def llama3():
    """The tokenizer puts a token before text, and so does the template."""
    specials = ["<|begin_of_text|>", "<|end_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"]
    names = {"bos_token": "<|begin_of_text|>", "eos_token": "<|eot_id|>"}
    return byte_level(specials, LLAMA3, adds_bos=True, **names)


@pytest.fixture
def gemma():
    """No system role, the assistant is called model."""
    specials = ["<bos>", "<eos>", "<start_of_turn>", "<end_of_turn>"]
    return byte_level(specials, GEMMA, bos_token="<bos>", eos_token="<eos>")


@pytest.fixture
def deepseek_coder():
    """Turns are marked by words; the line break after the header belongs to the answer."""
    specials = ["<|begin|>", "<|EOT|>"]
    return byte_level(specials, DEEPSEEK_CODER, bos_token="<|begin|>", eos_token="<|EOT|>")


@pytest.fixture
def phi():
    specials = ["<|endoftext|>", "<|user|>", "<|assistant|>", "<|end|>"]
    return byte_level(specials, PHI, eos_token="<|endoftext|>")


@pytest.fixture
def thinking():
    specials = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    return byte_level(specials, THINKING, eos_token="<|endoftext|>")


@pytest.fixture
def without_stop():
    return byte_level(["<|endoftext|>"], WITHOUT_STOP, eos_token="<|endoftext|>")


@pytest.fixture
def sentencepiece():
    """Llama 2's way: a space before the first word of whatever is encoded, none where text goes on."""
    tokenizer = Tokenizer(models.BPE(byte_fallback=True, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first", split=True)
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    bytes_ = [f"<0x{byte:02X}>" for byte in range(256)]
    specials = ["<unk>", "<s>", "</s>"]
    trainer = trainers.BpeTrainer(vocab_size=700, special_tokens=specials + bytes_, show_progress=False)
    tokenizer.train_from_iterator(CORPUS, trainer)
    tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, chat_template=LLAMA2, unk_token="<unk>", bos_token="<s>", eos_token="</s>"
    )


@pytest.fixture
def words():
    """One id per word; what it does not know is one <unk>, however long."""
    vocabulary = ["<unk>", "</s>", "red", "green", "blue", "go"]
    tokenizer = Tokenizer(models.WordLevel({word: index for index, word in enumerate(vocabulary)}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="<unk>", eos_token="</s>")


@pytest.fixture
def learnt() -> Callable[..., str]:
    """The text that a row's labels teach."""

    def text_of(row, tokenizer) -> str:
        return tokenizer.decode([label for label in row.labels if label != -100], skip_special_tokens=False)

    return text_of
