"""Cutting a model against definitions in float64: every architecture that is covered, with layers of several kinds."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, PreTrainedModel
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

from bridgegarden.errors import ModelError
from bridgegarden.pruning.cut import Kept, choose, cut
from bridgegarden.pruning.importance import measure, most_important
from bridgegarden.pruning.shape import ARCHITECTURES, BY_LAYER, Shape, cut_config, possible_heads

LAYERS, HEADS, GROUPS, CHANNELS = 6, 4, 2, 20
WINDOWS = {"use_sliding_window": True, "sliding_window": 5}
OWN: dict[str, dict[str, Any]] = {
    "llama": {"attention_bias": True, "mlp_bias": True, "tie_word_embeddings": False},
    "mistral": {"sliding_window": 5, "tie_word_embeddings": False},
    "qwen2": WINDOWS | {"max_window_layers": 3, "tie_word_embeddings": True},
    "qwen3": WINDOWS | {"max_window_layers": 3, "attention_bias": True},
    "gemma2": {"sliding_window": 5},
    "gemma3_text": {"sliding_window": 5, "sliding_window_pattern": 3},
    "smollm3": {"no_rope_layer_interval": 2},
}
KEPT = (0, 2, 3, 5)
IDS = torch.arange(40, 58)[None]


def configured(kind: str, **settings: Any) -> Any:
    cls: Any = CONFIG_MAPPING[kind]
    return cls(**settings)


def whole(kind: str, **changes: Any) -> PreTrainedModel:
    """A random model in float64 with heads in groups, whose layers and biases all show."""
    sizes: dict[str, Any] = {
        "vocab_size": 61,
        "hidden_size": 32,
        "intermediate_size": CHANNELS,
        "num_hidden_layers": LAYERS,
        "num_attention_heads": HEADS,
        "num_key_value_heads": GROUPS,
        "initializer_range": 0.3,
        "eos_token_id": None,
        "bos_token_id": None,
        "pad_token_id": None,
    }
    if kind not in ("qwen2", "smollm3"):  # which take it from the hidden size
        sizes["head_dim"] = 6
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        model = AutoModelForCausalLM.from_config(
            configured(kind, **sizes | OWN.get(kind, {}) | changes), dtype=torch.float64
        )
        for name, parameter in model.named_parameters():
            if name.endswith("bias") or "norm" in name:
                torch.nn.init.normal_(parameter, 0.5, 0.3)
    return model.eval()


def logits(model: PreTrainedModel) -> Tensor:
    with torch.no_grad():
        return model(input_ids=IDS, use_cache=False).logits


@contextmanager
def skipping(model: Any, layers: set[int]) -> Iterator[None]:
    """Layers of `model` that hand on what they get."""
    hooks = [model.model.layers[layer].register_forward_hook(lambda module, args, output: args[0]) for layer in layers]
    yield
    for hook in hooks:
        hook.remove()


@pytest.mark.parametrize("kind", ARCHITECTURES)
def test_all_that_is_kept_is_the_teacher_bit_by_bit(kind):
    model = whole(kind)
    student = cut(model, Kept(layers=tuple(range(LAYERS))))
    assert torch.equal(logits(student), logits(model))
    assert student.dtype == model.dtype
    left, there = student.config.to_dict(), model.config.to_dict()
    assert {key for key in left if left[key] != there.get(key)} <= {"architectures", "_name_or_path"}


@pytest.mark.parametrize("kind", ARCHITECTURES)
def test_without_layers_it_is_the_teacher_that_skips_them(kind):
    model = whole(kind)
    student = cut(model, Kept(layers=KEPT))
    with skipping(model, set(range(LAYERS)) - set(KEPT)):
        expected = logits(model)
    torch.testing.assert_close(logits(student), expected, rtol=0, atol=1e-11)
    assert (logits(model) - expected).abs().max() > 1e-2
    assert student.config.num_hidden_layers == len(KEPT)


@pytest.mark.parametrize("kind", ARCHITECTURES)
def test_without_heads_and_channels_it_is_the_teacher_in_which_they_say_nothing(kind):
    model: Any = whole(kind)
    shape = Shape.of(model.config)
    groups, channels = (1,), (0, 3, 4, 7, 11, 19)
    kept = Kept(layers=KEPT, groups=(groups,) * len(KEPT), channels=(channels,) * len(KEPT))
    student = cut(model, kept)
    silent = torch.ones(HEADS * shape.head_size, dtype=torch.bool)
    silent[shape.group_size * shape.head_size :] = False
    idle = torch.ones(CHANNELS, dtype=torch.bool)
    idle[list(channels)] = False
    for layer in model.model.layers:
        layer.self_attn.o_proj.weight.data[:, silent] = 0
        layer.mlp.down_proj.weight.data[:, idle] = 0
    with skipping(model, set(range(LAYERS)) - set(KEPT)):
        torch.testing.assert_close(logits(student), logits(model), rtol=0, atol=1e-11)
    left = Shape.of(student.config)
    assert (left.heads, left.groups, left.channels, left.head_size) == (2, 1, len(channels), shape.head_size)


@pytest.mark.parametrize("kind", ARCHITECTURES)
def test_what_it_writes_is_the_same_with_and_without_a_cache(kind):
    """Layers of a cache are counted anew, and each has the window of the layer that it was."""
    student: Any = cut(whole(kind), Kept(layers=KEPT, groups=((0,),) * 4))
    written = [student.generate(IDS, max_new_tokens=12, do_sample=False, use_cache=cache) for cache in (True, False)]
    assert written[0].shape[1] == IDS.shape[1] + 12
    assert torch.equal(*written)


@pytest.mark.parametrize("kind", ARCHITECTURES)
def test_whatever_a_configuration_says_by_layer_is_cut_with_the_layers(kind):
    config = configured(kind, num_hidden_layers=7, **OWN.get(kind, {}))
    lists = {name for name, value in config.to_dict().items() if isinstance(value, list) and len(value) == 7}
    assert lists <= set(BY_LAYER)
    cutted = cut_config(config, (1, 2, 6)).to_dict()
    for name in lists:
        assert cutted[name] == [getattr(config, name)[layer] for layer in (1, 2, 6)]
    if "max_window_layers" in cutted and kind.startswith("qwen"):
        assert cutted["max_window_layers"] == 2
        assert cutted["layer_types"] == ["full_attention", "full_attention", "sliding_attention"]


def rows(model: PreTrainedModel, count: int = 3) -> list[tuple[list[int], list[int]]]:
    """Texts of which the second half is learnt, but for the last token."""
    generator = torch.Generator().manual_seed(1)
    texts = [torch.randint(3, 60, (8 + 2 * n,), generator=generator).tolist() for n in range(count)]
    return [(ids, [-100] * 4 + ids[4:-1] + [-100]) for ids in texts]


@contextmanager
def noted_calls(modules: Any) -> Iterator[list[tuple[Tensor, Tensor]]]:
    """What each of `modules` gets and gives, in the order in which they are called."""
    calls: list[tuple[Tensor, Tensor]] = []
    hooks = [
        module.register_forward_hook(lambda module, args, output: calls.append((args[0], output))) for module in modules
    ]
    yield calls
    for hook in hooks:
        hook.remove()


@torch.no_grad()
def test_influence_and_norms_are_what_their_equations_say():
    model: Any = whole("llama")
    given = rows(model)
    found = measure(model, given)
    influence, channels, groups = (torch.zeros(LAYERS, *width).double() for width in ((), (CHANNELS,), (GROUPS,)))
    model.set_attn_implementation("eager")
    for ids, _ in given:
        with noted_calls(model.model.layers) as calls, noted_calls([layer.mlp for layer in model.model.layers]) as mlps:
            attention = model(input_ids=torch.tensor([ids]), output_attentions=True, use_cache=False).attentions
        last = len(ids) - 3  # the last label is that of the last token but one
        for n, layer in enumerate(model.model.layers):
            (stream, left), (read, _) = calls[n], mlps[n]
            before, after = stream[0, last], left[0, last]
            influence[n] += 1 - before @ after / before.norm() / after.norm()
            channel = layer.mlp.act_fn(layer.mlp.gate_proj(read)) * layer.mlp.up_proj(read)
            channels[n] += channel[0].abs().mean(0) ** 2
            value = layer.self_attn.v_proj(layer.input_layernorm(stream)).view(len(ids), GROUPS, 6)
            spread = attention[n][0].view(GROUPS, HEADS // GROUPS, len(ids), len(ids))
            says = torch.einsum("gktu,ugd->gtkd", spread, value)
            groups[n] += says.flatten(2).norm(dim=-1).mean(-1) ** 2
    torch.testing.assert_close(found.layers, influence / len(given))
    torch.testing.assert_close(found.channels, channels.sqrt())
    torch.testing.assert_close(found.groups, groups.sqrt())


@pytest.mark.parametrize("kind", ARCHITECTURES)
def test_a_layer_that_does_nothing_goes_first_and_so_do_dead_heads_and_channels(kind):
    model: Any = whole(kind)
    idle = model.model.layers[3]
    for projection in (idle.self_attn.o_proj, idle.mlp.down_proj):
        for parameter in projection.parameters():
            parameter.data.zero_()
    shape, dead = Shape.of(model.config), [2, 5, 6, 17]
    for n, layer in enumerate(model.model.layers):
        for parameter in layer.self_attn.v_proj.parameters():
            parameter.data[(n % 2) * shape.head_size :][: shape.head_size] = 0
        for parameter in layer.mlp.up_proj.parameters():
            parameter.data[dead] = 0
    importance = measure(model, rows(model))
    assert importance.layers.argmin() == 3
    assert importance.layers[3].abs() < 1e-12
    kept = choose(importance, LAYERS - 1, groups=1, channels=CHANNELS - len(dead))
    assert kept.layers == (0, 1, 2, 4, 5)
    assert kept.groups == tuple((1 - layer % 2,) for layer in kept.layers)
    assert kept.channels == (tuple(n for n in range(CHANNELS) if n not in dead),) * 5
    # All that goes has no effect, so nothing is lost.
    if not any(name.endswith(("v_proj.bias", "up_proj.bias")) for name in model.state_dict()):
        torch.testing.assert_close(logits(cut(model, kept)), logits(model), rtol=0, atol=1e-11)


def test_of_equals_the_first_stay_and_their_order_is_kept():
    assert most_important(torch.tensor([1.0, 3.0, 2.0, 3.0, 2.0]), 3) == (1, 2, 3)
    assert most_important(torch.zeros(4), 2) == (0, 1)


def test_numbers_that_are_not_finite_are_no_reason_to_keep_a_layer():
    model: Any = whole("llama")
    model.model.layers[1].mlp.up_proj.weight.data[0, 0] = torch.nan
    with pytest.raises(ModelError, match="not finite"):
        measure(model, rows(model))


def test_heads_go_in_whole_groups_and_only_to_what_the_architecture_allows():
    config = configured("llama", hidden_size=48, num_attention_heads=12, num_key_value_heads=6, head_dim=6)
    assert possible_heads(config) == [2, 4, 6, 8]  # of 10, 48 is no multiple
    config = configured("qwen2", hidden_size=48, num_attention_heads=12, num_key_value_heads=6)
    assert possible_heads(config) == [2, 4, 6, 8, 10]
