"""Hidden states and heads of real architectures, against their own logits."""

import pytest
import torch
from transformers import CohereConfig, CohereForCausalLM, GPT2Config, GPT2LMHeadModel, GraniteConfig, GraniteForCausalLM

from bridgegarden.causal_lm import add_hidden_loss, check_head, freeze, head_of, hidden_states
from bridgegarden.errors import ModelError
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
    check_head(model)


def test_a_head_that_does_more_than_we_read_is_refused():
    model = tiny_model("llama", vocab_size=40)
    plain = model.forward
    model.forward = lambda *args, **kwargs: _doubled(plain(*args, **kwargs))
    with pytest.raises(ModelError, match="does more than project, scale and cap"):
        check_head(model)


def _doubled(output):
    output.logits = output.logits * 2
    return output


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


def test_checking_leaves_the_training_mode_alone():
    model = tiny_model("llama", vocab_size=40).train()
    check_head(model)
    assert model.training


def test_an_adapter_on_the_head_is_refused():
    peft = pytest.importorskip("peft")
    model = peft.get_peft_model(tiny_model("llama"), peft.LoraConfig(target_modules=["lm_head"]))
    with pytest.raises(ModelError, match="leave it out of the adapter's target modules"):
        head_of(model.get_base_model())
