import copy

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode
from transformers import AutoModelForCausalLM, MambaConfig, MixtralConfig

from bridgegarden.errors import ModelError
from bridgegarden.preflight.activations import checkpoint_layers
from bridgegarden.preflight.flops import (
    forward_flops,
    forwards_a_training_step,
)
from tests.tiny import tiny_config

ROWS, TOKENS = 2, 48


def config_of(name):
    if name != "mixtral":
        return tiny_config(name, hidden_size=64, layers=3)
    return MixtralConfig(
        vocab_size=259,
        hidden_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        intermediate_size=128,
        num_local_experts=4,
        num_experts_per_tok=2,
        bos_token_id=None,
        eos_token_id=None,
    )


def model_of(name):
    """On eager attention: the counter does not know PyTorch's fused kernel for CPUs, and counts nothing there."""
    model = AutoModelForCausalLM.from_config(config_of(name), attn_implementation="eager", dtype=torch.float32)
    if name == "mixtral":
        model.set_experts_implementation("eager")
    return model


def counted(run):
    with FlopCounterMode(display=False) as counter:
        run()
    return counter.get_total_flops()


def ids(tokens=TOKENS):
    return torch.randint(0, 259, (ROWS, tokens), generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("name", ["llama", "qwen2", "gemma2", "mixtral"])
@pytest.mark.parametrize("layers_only", [False, True])
def test_a_forward_costs_what_the_counter_counts(name, layers_only):
    model = model_of(name)
    with torch.no_grad():
        got = counted(lambda: (model.base_model if layers_only else model)(input_ids=ids(), use_cache=False))
    one = forward_flops(model.config)
    assert got == pytest.approx(ROWS * TOKENS * (one.layers(TOKENS) + (0 if layers_only else one.head)), rel=0.01)


def backward_and_forward(model):
    decoder = model.base_model
    return counted(lambda: decoder(input_ids=ids(), use_cache=False).last_hidden_state.sum().backward())


@pytest.mark.parametrize("name", ["llama", "gemma2"])
def test_a_backward_is_two_forwards(name):
    model = model_of(name).train()
    forward = ROWS * TOKENS * forward_flops(model.config).layers(TOKENS)
    assert forwards_a_training_step() == 3
    assert backward_and_forward(model) == pytest.approx(3 * forward, rel=0.02)


def test_checkpointing_is_one_more_forward_without_the_last_product_of_each_layer():
    model = model_of("llama").train()
    checkpoint_layers(model)
    forward = ROWS * TOKENS * forward_flops(model.config).layers(TOKENS)
    last = ROWS * TOKENS * 2 * sum(layer.mlp.down_proj.weight.numel() for layer in model.model.layers)
    assert forwards_a_training_step(gradient_checkpointing=True) == 4
    assert backward_and_forward(model) == pytest.approx(4 * forward - last, rel=0.01)


def test_frozen_weights_get_no_gradient():
    model = model_of("llama").train().requires_grad_(False)
    embedded = model.get_input_embeddings()(ids()).requires_grad_()
    got = counted(lambda: model.base_model(inputs_embeds=embedded, use_cache=False).last_hidden_state.sum().backward())
    parts = forward_flops(model.config)
    # The scores' two sides are activations, so attention's backward is whole.
    attention = parts.layers(TOKENS) - parts.weights
    frozen, trained = forwards_a_training_step(frozen=True), forwards_a_training_step()
    assert got == pytest.approx(ROWS * TOKENS * (frozen * parts.weights + trained * attention), rel=0.02)


def test_a_token_generated_with_a_cache_is_a_forward_at_the_mean_context():
    model, prompt, new = model_of("qwen2").eval(), 20, 12
    arguments = {"do_sample": False, "pad_token_id": 0, "min_new_tokens": new, "max_new_tokens": new}
    got = counted(lambda: model.generate(ids(prompt), attention_mask=torch.ones(ROWS, prompt), **arguments))
    parts = forward_flops(model.config)
    # The prompt yields the first token, so one token less is fed back.
    fed = new - 1
    reading = prompt * parts.layers(prompt) + parts.head
    writing = fed * (parts.layers(prompt + (fed + 1) / 2) + parts.head)
    assert got == pytest.approx(ROWS * (reading + writing), rel=0.01)


def test_a_window_ends_the_growth_of_its_layers_alone():
    parts = forward_flops(tiny_config("gemma2", layers=2))
    assert parts.windows == (64, None)
    assert parts.layers(64) - parts.layers(32) == pytest.approx(2 * 32 * parts.attention)
    assert parts.layers(128) - parts.layers(64) == pytest.approx(64 * parts.attention)


def test_tied_embeddings_change_no_work():
    tied = tiny_config("llama")
    tied.tie_word_embeddings = True
    assert forward_flops(tied) == forward_flops(tiny_config("llama"))


def test_a_token_pays_for_the_experts_it_is_sent_to():
    one, two = config_of("mixtral"), copy.deepcopy(config_of("mixtral"))
    one.num_experts_per_tok, two.num_experts_per_tok = 1, 2
    expert = 3 * 64 * 128
    assert forward_flops(two).weights - forward_flops(one).weights == 2 * expert * two.num_hidden_layers


def test_an_architecture_without_attention_is_refused():
    with pytest.raises(ModelError, match=r"'mamba'.*cannot be counted.*no attention"):
        forward_flops(MambaConfig(hidden_size=32, num_hidden_layers=1, vocab_size=64))
