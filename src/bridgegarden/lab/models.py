"""Tiny Llamas: what is trained against worlds small enough to be solved."""

import torch
from transformers import LlamaConfig, LlamaForCausalLM

from bridgegarden.exact.vocabulary import END, PAD
from bridgegarden.exact.world import World
from bridgegarden.lab.settings import LlamaSize


def new_llama(world: World, size: LlamaSize, seed: int) -> LlamaForCausalLM:
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
