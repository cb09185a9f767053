"""Tiny Llamas over the vocabulary of an arithmetic world."""

from dataclasses import dataclass

import torch
from transformers import LlamaConfig, LlamaForCausalLM

from bridgegarden.exact.tasks.arithmetic import END, PAD, ArithmeticWorld


@dataclass(frozen=True, kw_only=True)
class LlamaSize:
    """What decides how much a model can hold."""

    hidden: int
    """Width of the residual stream."""

    layers: int
    """Transformer blocks."""

    heads: int
    """Attention heads; divides `hidden`."""

    feed_forward: int
    """Width inside the feed-forward blocks."""


TEACHER_SIZE = LlamaSize(hidden=128, layers=3, heads=4, feed_forward=384)
"""The packaged teacher, 0.65 million parameters."""

STUDENT_SIZE = LlamaSize(hidden=64, layers=2, heads=4, feed_forward=128)
"""The quickstart's student, seven times smaller."""


def new_llama(world: ArithmeticWorld, size: LlamaSize, seed: int) -> LlamaForCausalLM:
    """An untrained model whose weights depend on `seed` alone; torch's global generator is left as it was.

    Weights are drawn with standard deviation 1 / sqrt(hidden). The usual 0.02 is meant for wide models; at these widths
    it multiplies the steps needed.
    """
    config = LlamaConfig(
        vocab_size=len(world.vocabulary),
        hidden_size=size.hidden,
        intermediate_size=size.feed_forward,
        num_hidden_layers=size.layers,
        num_attention_heads=size.heads,
        num_key_value_heads=size.heads,
        max_position_embeddings=128,
        tie_word_embeddings=True,
        initializer_range=size.hidden**-0.5,
        bos_token_id=None,
        eos_token_id=END,
        pad_token_id=PAD,
    )
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return LlamaForCausalLM(config)
