"""Tiny models and a tokenizer, made here and now: what the tests run instead of anything downloaded."""

from pathlib import Path
from typing import Any, Literal

import torch
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
from transformers import (
    AutoModelForCausalLM,
    Gemma2Config,
    LlamaConfig,
    PretrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerFast,
    Qwen2Config,
)

Family = Literal["qwen2", "llama", "gemma2", "deepseek"]

END_OF_TEXT, TURN_START, TURN_END = "<|endoftext|>", "<|im_start|>", "<|im_end|>"
CHAT_TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{{ message['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
VOCABULARY = 259
"""Entries of :func:`tiny_tokenizer`: one per byte, and three special tokens at the end."""


def tiny_tokenizer(chat_template: bool = True, turn_ids: tuple[int, int] = (257, 258)) -> PreTrainedTokenizerFast:
    """One token per byte, so that any text can be written; Qwen's special tokens and chat template.

    As Qwen's instruction-tuned models do, it ends text with ``<|im_end|>``; without a chat template, as Qwen's base
    models do, with ``<|endoftext|>``, which pads in both cases. The tokens around a turn follow the others, unless
    `turn_ids` leaves a hole before them.
    """
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    special = {END_OF_TEXT: 256, TURN_START: turn_ids[0], TURN_END: turn_ids[1]}
    vocabulary = {letter: index for index, letter in enumerate(alphabet)} | special
    backend = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    backend.decoder = decoders.ByteLevel()
    backend.add_special_tokens([AddedToken(token, special=True) for token in (END_OF_TEXT, TURN_START, TURN_END)])
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend,
        eos_token=TURN_END if chat_template else END_OF_TEXT,
        pad_token=END_OF_TEXT,
        model_max_length=2048,
    )
    if chat_template:
        tokenizer.chat_template = CHAT_TEMPLATE
    assert len(tokenizer) == VOCABULARY
    return tokenizer


def tiny_config(family: Family, vocab_size: int = VOCABULARY, hidden_size: int = 32, layers: int = 2) -> Any:
    """The configuration of :func:`tiny_model`."""
    sizes: dict[str, Any] = {
        "vocab_size": vocab_size,
        "hidden_size": hidden_size,
        "intermediate_size": 2 * hidden_size,
        "num_hidden_layers": layers,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "max_position_embeddings": 512,
        "bos_token_id": None,
        "eos_token_id": None,
        "pad_token_id": None,
    }
    match family:
        case "qwen2":
            return Qwen2Config(**sizes, tie_word_embeddings=True)
        case "llama":
            return LlamaConfig(**sizes, tie_word_embeddings=False)
        case "gemma2":
            # A cap so low that leaving it out would show.
            return Gemma2Config(
                **sizes,
                head_dim=hidden_size // 2,
                final_logit_softcapping=3.0,
                sliding_window=64,
                query_pre_attn_scalar=16,
            )
        case "deepseek":
            # DeepSeek's first models, coder included, are Llama with stretched positions.
            scaling = {"rope_type": "linear", "factor": 4.0, "rope_theta": 100_000.0}
            return LlamaConfig(**sizes, tie_word_embeddings=False, rope_parameters=scaling)


def tiny_model(
    family: Family, vocab_size: int = VOCABULARY, hidden_size: int = 32, layers: int = 2, seed: int = 0
) -> PreTrainedModel:
    """A random causal language model in float32, the same for the same `seed`."""
    config: PretrainedConfig = tiny_config(family, vocab_size, hidden_size, layers)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return AutoModelForCausalLM.from_config(config, dtype=torch.float32)


def save_tiny(folder: Path, model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast | None = None) -> Path:
    """`model` and `tokenizer` as a folder that ``from_pretrained`` loads."""
    model.save_pretrained(folder)
    (tokenizer or tiny_tokenizer()).save_pretrained(folder)
    return folder
