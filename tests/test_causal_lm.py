"""Hidden states and heads of real architectures, against their own logits."""

import copy

import pytest
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from transformers import CohereConfig, CohereForCausalLM, GPT2Config, GPT2LMHeadModel, GraniteConfig, GraniteForCausalLM
from trl.trainer.utils import add_fused_lm_head

from bridgegarden.causal_lm import (
    add_hidden_loss,
    decoder_of,
    freeze,
    head_of,
    hidden_states,
    take_off_wrappers,
    takes_hidden_loss,
)
from bridgegarden.errors import ModelError
from bridgegarden.model_probes import check_causal_lm
from tests.tiny import tiny_model

SIZES = {
    "vocab_size": 40,
    "hidden_size": 16,
    "intermediate_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "bos_token_id": None,
    "eos_token_id": None,
    "pad_token_id": None,
}


def models():
    yield from (tiny_model(family, vocab_size=40) for family in ("qwen2", "llama", "gemma2", "deepseek"))
    torch.manual_seed(0)
    yield CohereForCausalLM(CohereConfig(**SIZES, logit_scale=0.25))
    yield GraniteForCausalLM(GraniteConfig(**SIZES, logits_scaling=6.0))
    yield GPT2LMHeadModel(GPT2Config(vocab_size=40, n_embd=16, n_layer=2, n_head=2, bos_token_id=0, eos_token_id=0))


@pytest.mark.parametrize("model", list(models()), ids=lambda model: type(model).__name__)
def test_head_and_hidden_states_give_the_models_own_logits(model):
    freeze(model)
    ids = torch.randint(0, 40, (2, 7), generator=torch.Generator().manual_seed(0))
    hidden = hidden_states(model, {"input_ids": ids})
    got = head_of(model).logits(hidden.flatten(0, 1)).unflatten(0, (2, 7))
    torch.testing.assert_close(got, model(input_ids=ids).logits, rtol=1e-5, atol=1e-5)


def test_the_hidden_loss_runs_inside_the_forward_and_ordinary_calls_stay_as_they_were():
    model = tiny_model("llama", vocab_size=40)
    ids = torch.randint(0, 40, (2, 5))
    before = model(input_ids=ids).logits
    calls = []
    model.register_forward_hook(lambda *_: calls.append("hook"))
    add_hidden_loss(model)
    torch.testing.assert_close(model(input_ids=ids).logits, before)
    result = model(input_ids=ids, hidden_loss=lambda hidden, head: {"shape": (hidden.shape, head.weight.shape)})
    assert result == {"shape": ((2, 5, 32), (40, 32))}
    assert calls == ["hook", "hook"]
    assert model.generate(input_ids=ids, max_new_tokens=2, do_sample=False, pad_token_id=0).shape == (2, 7)


def bfloat16_trainer_passed_by(model) -> None:
    """What a training in mixed precision leaves of accelerate's around the forward, and before it of TRL's."""
    add_fused_lm_head(model)
    Accelerator(mixed_precision="bf16", cpu=True).prepare_model(model)


@pytest.fixture
def no_accelerator():
    AcceleratorState._reset_state()
    yield
    AcceleratorState._reset_state()


@pytest.mark.usefixtures("no_accelerator")
@pytest.mark.parametrize("times", [1, 2])
@pytest.mark.parametrize("ours", [False, True])
def test_what_earlier_trainers_left_around_a_forward_is_taken_off(times, ours):
    model = tiny_model("llama", vocab_size=40)
    ids = torch.arange(6).unsqueeze(0)
    before = model(input_ids=ids).logits
    for _ in range(times):
        if ours:
            add_hidden_loss(model)
        bfloat16_trainer_passed_by(model)
    assert not torch.equal(model(input_ids=ids).logits, before)
    take_off_wrappers(model)
    assert "forward" not in model.__dict__
    torch.testing.assert_close(model(input_ids=ids).logits, before, rtol=0, atol=0)
    add_hidden_loss(model)
    assert takes_hidden_loss(model)
    check_causal_lm(model)


@pytest.mark.usefixtures("no_accelerator")
def test_a_copy_of_a_trained_model_does_not_ask_the_original():
    model = tiny_model("llama", vocab_size=40)
    add_fused_lm_head(model)
    copied = copy.deepcopy(model)
    torch.nn.init.zeros_(model.lm_head.weight)
    take_off_wrappers(copied)
    assert copied(input_ids=torch.arange(4).unsqueeze(0)).logits.abs().max() > 0


@pytest.mark.usefixtures("no_accelerator")
def test_a_patch_of_somebodys_own_stays_below_what_is_taken_off():
    model = tiny_model("llama", vocab_size=40)
    plain = model.forward
    model.forward = lambda *args, **kwargs: _doubled(plain(*args, **kwargs))
    ids = torch.arange(4).unsqueeze(0)
    before = model(input_ids=ids).logits
    bfloat16_trainer_passed_by(model)
    take_off_wrappers(model)
    torch.testing.assert_close(model(input_ids=ids).logits, before, rtol=0, atol=0)


def test_a_model_without_a_part_that_gives_hidden_states_has_no_decoder():
    decoder = tiny_model("llama", vocab_size=40).model
    with pytest.raises(ModelError, match=r"LlamaModel \(llama\): no part of it gives final hidden states"):
        decoder_of(decoder)


def test_an_adapter_on_the_head_is_refused():
    peft = pytest.importorskip("peft")
    model = peft.get_peft_model(tiny_model("llama"), peft.LoraConfig(target_modules=["lm_head"]))
    with pytest.raises(ModelError, match="leave it out of the adapter's target modules"):
        head_of(model.get_base_model())


def _doubled(output):
    output.logits = output.logits * 2
    return output
