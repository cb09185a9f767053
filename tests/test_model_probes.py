"""What is assumed of a language model holds for those that are taken, and those for which it does not are refused."""

import pytest
import torch
from torch import nn
from transformers import (
    BertGenerationConfig,
    BertGenerationDecoder,
    GPT2Config,
    GPT2LMHeadModel,
    T5Config,
    T5ForConditionalGeneration,
)
from trl.trainer.sft_trainer import DataCollatorForLanguageModeling

from bridgegarden.errors import ModelError
from bridgegarden.model_probes import check_causal_lm, check_head, check_packing, position_table
from tests.architectures import tiny_architecture
from tests.tiny import tiny_model

KEEPS_ROWS_APART = ("qwen2", "llama", "gemma2", "gpt2", "llama4_text")
PACKS = DataCollatorForLanguageModeling(pad_token_id=256, padding_free=True)
MIXES_ROWS = ("gpt_oss", "bloom", "opt", "mpt", "mamba", "jamba")
NEEDS_KERNELS = ("lfm2", "olmo_hybrid", "falcon_h1")


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("kind", [*KEEPS_ROWS_APART, *MIXES_ROWS, "cohere", "granite", "falcon_h1", "mixtral"])
def test_causal_language_models_are_taken_for_what_they_are(kind, dtype):
    check_causal_lm(tiny_architecture(kind).to(dtype))


def test_a_head_that_does_more_than_we_read_is_refused():
    model = tiny_model("llama", vocab_size=40)
    plain = model.forward
    model.forward = lambda *args, **kwargs: _changed(plain(*args, **kwargs), lambda logits: logits * 2)
    with pytest.raises(ModelError, match="does more than project, scale and cap"):
        check_head(model)


def test_a_cap_that_small_logits_do_not_show_is_found_out():
    model = tiny_model("llama", vocab_size=40)
    plain = model.forward
    model.forward = lambda *args, **kwargs: _changed(plain(*args, **kwargs), lambda logits: 30 * (logits / 30).tanh())
    with pytest.raises(ModelError, match="with other values than it has now"):
        check_head(model)


class GainedHead(nn.Linear):
    """A projection with a gain of its own, which changes nothing at first."""

    def __init__(self, head: nn.Linear) -> None:
        super().__init__(head.in_features, head.out_features, bias=False)
        self.weight = head.weight
        self.gain = nn.Parameter(torch.ones(head.out_features))

    def forward(self, hidden):
        return super().forward(hidden) * self.gain


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_head_with_a_parameter_of_its_own_is_refused_by_its_name(dtype):
    model = tiny_model("llama", vocab_size=40)
    model.lm_head = GainedHead(model.lm_head)
    model.to(dtype)
    with pytest.raises(ModelError, match=r"lm_head\.gain would not be trained"):
        check_head(model)


def test_a_bias_of_the_head_is_no_reason_to_refuse_it():
    model = tiny_model("llama", vocab_size=40)
    model.lm_head.bias = nn.Parameter(torch.zeros(40))
    check_head(model)


def test_weights_that_are_not_numbers_are_said_to_be_damaged():
    model = tiny_model("llama", vocab_size=40)
    with torch.no_grad():
        model.model.norm.weight[0] = torch.nan
    with pytest.raises(ModelError, match=r"its logits are not finite in torch\.float32"):
        check_causal_lm(model)


def _encoder() -> BertGenerationDecoder:
    """A decoder's class, which attends both ways unless its config says otherwise."""
    config = BertGenerationConfig(
        vocab_size=259,
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=64,
        is_decoder=False,
        initializer_range=0.15,
        bos_token_id=0,
        eos_token_id=0,
    )
    torch.manual_seed(0)
    return BertGenerationDecoder(config)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("build", [_encoder, lambda: tiny_architecture("xlnet")], ids=["bert-generation", "xlnet"])
def test_a_model_that_sees_later_tokens_is_refused(build, dtype):
    with pytest.raises(ModelError, match="not causal: hidden states change by"):
        check_causal_lm(build().to(dtype))


def test_an_encoder_decoder_is_refused_before_it_is_run():
    model = T5ForConditionalGeneration(T5Config(vocab_size=40, d_model=16, d_kv=8, d_ff=32, num_layers=1, num_heads=2))
    with pytest.raises(ModelError, match=r"T5ForConditionalGeneration \(t5\): an encoder-decoder"):
        check_causal_lm(model)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("kind", KEEPS_ROWS_APART)
def test_rows_that_are_packed_are_kept_apart_by_most_architectures(kind, dtype):
    check_packing(tiny_architecture(kind).to(dtype), "student", PACKS)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("kind", MIXES_ROWS)
def test_an_architecture_that_mixes_packed_rows_is_refused_with_its_attention(kind, dtype):
    model = tiny_architecture(kind).to(dtype)
    with pytest.raises(
        ModelError, match=rf"teacher .*{kind}.*see each other.*'(sdpa|eager)'.*Leave out training.packing"
    ):
        check_packing(model, "teacher", PACKS)


@pytest.mark.parametrize("kind", NEEDS_KERNELS)
def test_convolutions_that_cannot_keep_rows_apart_here_are_refused_in_the_words_of_their_code(kind):
    found = rf"\({kind}\): cannot read packed rows\. Leave out training\.packing.*Install `causal_conv1d`"
    with pytest.raises(ModelError, match=found):
        check_packing(tiny_architecture(kind), "student", PACKS)


def test_a_small_share_of_another_row_is_seen():
    """At the usual start of training a convolution has hardly any weight."""
    model = tiny_architecture("mamba")
    with torch.no_grad():
        for block in model.backbone.layers:
            block.mixer.out_proj.weight *= 1e-2
    with pytest.raises(ModelError, match="see each other"):
        check_packing(model, "student", PACKS)


def test_what_the_architectures_own_code_raises_is_one_line():
    model = tiny_model("llama", vocab_size=40)

    def fail(**_):
        raise KeyError("second\nthird")

    model.model.forward = fail
    with pytest.raises(
        ModelError, match=r"^LlamaForCausalLM \(llama\): cannot read sixteen tokens\. \(KeyError: .*\)$"
    ):
        check_causal_lm(model)


@pytest.mark.parametrize(
    ("kind", "table"),
    [("gpt2", 128), ("opt", 128), ("gpt_neo", 128), ("gptj", 128), ("ctrl", 128), ("qwen2", None), ("bloom", None)],
)
def test_a_table_of_positions_is_found_by_how_it_is_read(kind, table):
    assert position_table(tiny_architecture(kind)) == table


def test_the_table_counts_and_not_what_the_config_says():
    model = GPT2LMHeadModel(GPT2Config(vocab_size=40, n_embd=16, n_layer=1, n_head=2, bos_token_id=0, eos_token_id=0))
    model.transformer.wpe = nn.Embedding(20, 16)
    assert position_table(model) == 20


def test_probing_leaves_modes_weights_and_random_numbers_as_they_were():
    model = tiny_architecture("gpt2").train()
    model.lm_head.bias = nn.Parameter(torch.zeros(272))
    model.transformer.h[1].eval()
    modes = [module.training for module in model.modules()]
    weights, state = {name: p.detach().clone() for name, p in model.named_parameters()}, torch.get_rng_state()
    check_causal_lm(model)
    check_packing(model, "student", PACKS)
    position_table(model)
    assert [module.training for module in model.modules()] == modes
    assert all(torch.equal(parameter, weights[name]) for name, parameter in model.named_parameters())
    assert torch.equal(torch.get_rng_state(), state)
    assert all(parameter.grad is None for parameter in model.parameters())


def _changed(output, change):
    output.logits = change(output.logits)
    return output
