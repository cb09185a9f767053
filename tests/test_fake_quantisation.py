"""Weights as a file of few bits holds them: equal to what is written and read, and straight through in the backward."""

import copy

import pytest
import torch
from torch import nn

from bridgegarden.causal_lm import compiled, head_of, hidden_states
from bridgegarden.errors import ModelError
from bridgegarden.export.gguf_file import gguf_export
from bridgegarden.fake_quantisation import CHUNK, QUANTISED, rounded, stored_type, train_rounded, train_whole, weight_of
from bridgegarden.preflight.activations import Batch, checkpoint_layers, student_memory
from tests.architectures import tiny_architecture
from tests.export.models import random_model
from tests.tiny import tiny_tokenizer

gguf = pytest.importorskip("gguf")
IDS = torch.arange(24).view(2, 12) * 7 % 250


def written(weight: torch.Tensor, kind: str) -> torch.Tensor:
    """By the package that writes files, and read again."""
    quantised = gguf.GGMLQuantizationType[kind]
    stored = gguf.quants.quantize(weight.detach().float().numpy(), quantised)
    return torch.from_numpy(gguf.quants.dequantize(stored, quantised).copy()).to(weight.dtype)


def awkward(dtype: torch.dtype, scale: float) -> torch.Tensor:
    generator = torch.Generator().manual_seed(int(scale * 1e3) % 97)
    weight = torch.randn(64, 96, generator=generator) * scale
    weight[0] = 0  # no scale
    weight[1] = scale  # all alike
    weight[2, ::2], weight[2, 1::2] = scale, -scale  # the largest twice, of either sign
    weight[3, ::2], weight[3, 1::2] = -scale, scale
    weight[4, 1:] = 0
    weight[5].abs_()
    weight[6] = torch.arange(96).remainder(32).sub(15.5) * scale  # halves
    return weight.to(dtype)


@pytest.mark.parametrize("kind", [*QUANTISED, "F16"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_a_matrix_is_bit_for_bit_what_a_file_holds_of_it(kind, dtype, monkeypatch):
    monkeypatch.setitem(CHUNK, "cpu", 32 * 50)  # several, and a rest
    for scale in (1e-7, 1e-3, 1.0, 50.0):
        weight = awkward(dtype, scale)
        assert torch.equal(rounded(weight, kind), written(weight, kind)), scale


def rounded_model(name: str, kind: str):
    model = random_model(name)
    train_rounded(model, kind, [model.get_input_embeddings(), model.get_output_embeddings()])
    return model


def as_written(name: str, kind: str):
    """The model with its weights replaced, once, by those of a file."""
    model = random_model(name)
    wide = {model.get_input_embeddings().weight.data_ptr(), model.get_output_embeddings().weight.data_ptr()}
    for parameter in model.parameters():
        parameter.data = written(parameter, stored_type(kind, parameter.shape, wide=parameter.data_ptr() in wide))
    return model


@pytest.mark.parametrize("name", ["gemma2", "gemma3", "llama, biases", "llama, tied", "qwen3"])
def test_a_model_computes_what_the_file_would_with_gradients_and_without(name):
    model, file = rounded_model(name, "Q4_0"), as_written(name, "Q4_0")
    assert torch.equal(model(IDS).logits, file(IDS).logits)
    assert torch.equal(head_of(model).weight, head_of(file).weight)
    with torch.no_grad():
        assert torch.equal(model(IDS).logits, file(IDS).logits)
        copied = copy.deepcopy(model)
        copied.get_input_embeddings().weight.zero_()
        assert not torch.equal(copied(IDS).logits, file(IDS).logits)
        assert torch.equal(model(IDS).logits, file(IDS).logits)
    plain = random_model(name)
    assert {n: w.tolist() for n, w in model.state_dict().items()} == {
        n: w.tolist() for n, w in plain.state_dict().items()
    }
    train_whole(model)
    assert torch.equal(model(IDS).logits, plain(IDS).logits)


@pytest.mark.parametrize("kind", QUANTISED)
def test_the_file_that_is_exported_is_what_was_trained(kind, tmp_path):
    """As transformers reads it."""
    from transformers import AutoModelForCausalLM

    model = rounded_model("llama, tied", kind)
    gguf_export("tiny", model, tiny_tokenizer(), [258]).write(tmp_path / "model.gguf", kind)
    read = AutoModelForCausalLM.from_pretrained(tmp_path, gguf_file="model.gguf", dtype=torch.float32)
    with torch.no_grad():
        torch.testing.assert_close(read(IDS).logits, model(IDS).logits, rtol=0, atol=1e-5)
        assert (read(IDS).logits - random_model("llama, tied")(IDS).logits).abs().max() > 1e-3


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("name", ["gemma3", "llama, tied"])
def test_the_gradient_is_that_of_the_rounded_weights_straight_through(name, checkpointing):
    model, file = rounded_model(name, "Q4_0"), as_written(name, "Q4_0").double()
    if checkpointing:
        model.train()
        checkpoint_layers(model)
    for one in (model, file):
        one(IDS).logits.log_softmax(-1)[..., 7].sum().backward()
    exact = {key: parameter.grad for key, parameter in file.named_parameters()}
    for key, parameter in model.named_parameters():
        assert parameter.grad is not None
        scale = exact[key].abs().max()
        assert (parameter.grad.double() - exact[key]).abs().max() <= 2e-5 * scale, key
    # Nothing is left of a forward that checkpointing broke off.
    assert isinstance(model.get_input_embeddings().weight, nn.Parameter)


def test_what_is_kept_without_gradients_follows_the_weights():
    layer = nn.Linear(32, 2, bias=False)
    train_rounded(layer, "Q4_0", [])
    ones = torch.ones(1, 32)

    def same() -> bool:
        return torch.equal(layer(ones), nn.functional.linear(ones, rounded(layer.weight, "Q4_0")))

    with torch.no_grad():
        assert same()
        assert weight_of(layer) is weight_of(layer)
        layer.weight.mul_(1.7)
        assert same()
        layer.load_state_dict({"weight": torch.randn(2, 32)})
        assert same()
        layer.weight.data = torch.randn(2, 32)
        assert same()
    layer(ones).sum().backward()
    torch.optim.AdamW(layer.parameters(), lr=0.5).step()
    with torch.no_grad():
        assert same()


@pytest.mark.parametrize("backend", ["aot_eager", pytest.param("inductor", marks=pytest.mark.slow)])
@pytest.mark.filterwarnings("ignore:`torch.jit:DeprecationWarning")  # as inductor is imported
def test_a_compiled_decoder_rounds_to_the_same_integers(backend):
    model = rounded_model("llama, tied", "Q4_0")
    decode, optimiser = compiled(backend, None), torch.optim.SGD(model.parameters(), 1e-2)
    for _ in range(2):
        one, other = (hidden_states(model, {"input_ids": IDS}, *own) for own in ((decode,), ()))
        torch.testing.assert_close(one, other, rtol=0, atol=2e-5)
        one.square().sum().backward()
        optimiser.step()
        with torch.no_grad():
            one, other = (hidden_states(model, {"input_ids": IDS}, *own) for own in ((decode,), ()))
            torch.testing.assert_close(one, other, rtol=0, atol=2e-5)


def test_what_has_no_place_in_the_file_is_refused():
    model = tiny_architecture("mixtral")
    with pytest.raises(
        ModelError, match=r"training.quantised: .*mlp.gate.weight of Mixtral.* is neither of a linear layer nor"
    ):
        train_rounded(model, "Q4_0", [])
    with pytest.raises(ModelError, match=r"no matrix of Linear has rows of a multiple of 32"):
        train_rounded(nn.Linear(48, 2), "Q4_0", [])


def test_the_walk_through_a_step_counts_the_rounded_weights():
    """A copy of every matrix is kept for the backward; of an embedding, whose backward needs none, not."""
    model = random_model("llama")
    config, batch = model.config, Batch(rows=2, length=16, supervised=20)
    plain = student_memory(config, torch.float32, batch)
    found = student_memory(config, torch.float32, batch, quantised="Q4_0")
    embedding = model.get_input_embeddings().weight
    copies = sum(4 * p.numel() for p in model.parameters() if p.dim() > 1 and p is not embedding)
    assert found.at_loss - plain.at_loss == pytest.approx(copies, rel=0.01)
