"""A teacher in memory."""

import copy

import pytest
import torch

from bridgegarden.causal_lm import input_device
from bridgegarden.causal_lm_policy import CausalLMPolicy
from bridgegarden.errors import ConfigError, ModelError
from bridgegarden.objective.alignment import SupervisedPositions
from bridgegarden.preflight import ModelReference, load_facts
from bridgegarden.run.models import load_model, placed
from bridgegarden.teacher.cache.reader import TeacherCache
from bridgegarden.teacher.cache.shard import documents_of
from bridgegarden.teacher.live import LiveTeacher
from tests.teacher.cache.conftest import build, cache_rows, cache_spec
from tests.tiny import Family, save_tiny, tiny_model

X = -100
IDS = torch.randint(0, 30, (2, 6), generator=torch.Generator().manual_seed(0))
LABELS = torch.tensor([[X, X, 3, 4, 5, X], [X, 9, 8, X, X, X]])


@pytest.mark.parametrize("top_k", [None, 5])
def test_signal_is_the_models_distribution_where_a_token_is_supervised(top_k):
    model = tiny_model("gemma2", vocab_size=40)
    teacher = LiveTeacher(model, top_k=top_k)
    positions = SupervisedPositions.from_labels(LABELS)
    signal = teacher.at(positions, {"input_ids": IDS}, vocab_size=33, exponents=())[0 : len(positions)]
    logp = model(input_ids=IDS).logits.log_softmax(-1)
    expected = torch.stack([logp[0, 1], logp[0, 2], logp[0, 3], logp[1, 0], logp[1, 1]])
    if top_k is None:
        torch.testing.assert_close(signal.logp, expected[:, :33])
    else:
        torch.testing.assert_close(signal.logp, expected[:, :33].topk(5).values)
    torch.testing.assert_close(signal.cells().exp().sum(-1), torch.ones(5))


def test_teacher_is_frozen_and_in_evaluation_mode():
    model = tiny_model("llama").train()
    LiveTeacher(model)
    assert not model.training
    assert not any(parameter.requires_grad for parameter in model.parameters())


def test_autocast_of_the_student_does_not_touch_the_teacher():
    teacher = LiveTeacher(tiny_model("llama", vocab_size=40))
    positions = SupervisedPositions.from_labels(LABELS)
    plain = teacher.at(positions, {"input_ids": IDS}, vocab_size=40, exponents=()).hidden
    with torch.autocast("cpu", dtype=torch.bfloat16):
        cast = teacher.at(positions, {"input_ids": IDS}, vocab_size=40, exponents=()).hidden
    assert cast.dtype == torch.float32
    torch.testing.assert_close(cast, plain)


def signal_of(teacher: LiveTeacher) -> torch.Tensor:
    positions = SupervisedPositions.from_labels(LABELS)
    return teacher.at(positions, {"input_ids": IDS}, vocab_size=259, exponents=())[0 : len(positions)].logp


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_teacher_by_its_path_is_the_model_in_that_folder_in_the_type_it_was_saved_in(tmp_path, dtype):
    model = tiny_model("llama").to(getattr(torch, dtype))
    save_tiny(tmp_path, model)
    loaded = LiveTeacher.from_pretrained(tmp_path)
    assert loaded.model.dtype == getattr(torch, dtype)
    torch.testing.assert_close(signal_of(loaded), signal_of(LiveTeacher(model)), rtol=0, atol=0)
    assert LiveTeacher.from_pretrained(tmp_path, dtype="float32").model.dtype == torch.float32


def test_a_teacher_that_is_nowhere_is_one_line(tmp_path):
    with pytest.raises(ModelError, match=r"teacher '.*nowhere': cannot be loaded \(") as caught:
        LiveTeacher.from_pretrained(tmp_path / "nowhere")
    assert "\n" not in str(caught.value)


def test_a_teacher_whose_files_lack_weights_is_refused(tmp_path):
    model = tiny_model("llama")
    state = {name: value for name, value in model.state_dict().items() if "q_proj" not in name}
    model.save_pretrained(tmp_path, state_dict=state)
    with pytest.raises(ModelError, match=r"its files lack 2 weights \(model\.layers\.0\..*would be random"):
        LiveTeacher.from_pretrained(tmp_path)


def test_a_teacher_with_adapters_gives_what_they_make_of_it():
    peft = pytest.importorskip("peft")
    adapted = peft.get_peft_model(tiny_model("llama"), peft.LoraConfig(task_type="CAUSAL_LM", init_lora_weights=False))
    adapted.train()
    signal = signal_of(LiveTeacher(adapted))
    assert not any(parameter.requires_grad for parameter in adapted.parameters())
    merged = copy.deepcopy(adapted).merge_and_unload()
    torch.testing.assert_close(signal, signal_of(LiveTeacher(merged)))
    with adapted.disable_adapter():
        assert (signal - signal_of(LiveTeacher(adapted))).abs().max() > 1e-3


def test_a_teacher_that_needs_a_learnt_prompt_is_refused():
    peft = pytest.importorskip("peft")
    config = peft.PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=4)
    with pytest.raises(ModelError, match="learnt prompt, which is not part of its layers"):
        LiveTeacher(peft.get_peft_model(tiny_model("llama"), config))


def test_top_k_below_one_is_refused():
    with pytest.raises(ConfigError, match="top_k must be >= 1 or null"):
        LiveTeacher(tiny_model("llama"), top_k=0)


MAPS = {
    "all but the first layers on disk": ("cpu", "cpu", "disk", "disk"),
    "all but the head on disk": ("disk", "disk", "disk", "cpu"),
    "every second part on disk": ("disk", "cpu", "disk", "cpu"),
}


@pytest.fixture(params=["llama", "qwen2", "gemma2"])
def split(request, tmp_path):
    """A model and, of the same weights, one whose parts are where a device map of :data:`MAPS` has them."""
    family: Family = request.param
    save_tiny(tmp_path, tiny_model(family, seed=3))

    def load(where):
        embedding, first, second, head = MAPS[where]
        tied = family != "llama"
        device_map = {"model.embed_tokens": head if tied else embedding, "model.layers.0": first, "lm_head": head}
        device_map |= {"model.layers.1": second, "model.norm": second, "model.rotary_emb": "cpu"}
        whole, parts = (
            load_model(load_facts(ModelReference(role="teacher", model=str(tmp_path), device_map=where)))
            for where in (None, device_map)
        )
        return whole, parts

    return load


@pytest.mark.slow
@pytest.mark.parametrize("where", MAPS)
def test_a_teacher_whose_layers_are_kept_elsewhere_says_what_it_says_whole(split, where, tmp_path):
    whole, parts = split(where)
    assert any(parameter.is_meta for parameter in parts.parameters())
    assert input_device(parts).type == "cpu"
    assert placed(parts, "cpu") is parts
    teacher = LiveTeacher(parts)
    teacher.place(torch.device("cpu"))
    torch.testing.assert_close(signal_of(teacher), signal_of(LiveTeacher(whole)))
    written = [CausalLMPolicy(model, end_ids=[258], vocab_size=259).start([[1, 2], [3]]) for model in (parts, whole)]
    torch.testing.assert_close(written[0].log_probs(), written[1].log_probs())


@pytest.mark.slow
def test_the_cache_of_a_teacher_whose_layers_are_kept_elsewhere_is_that_of_the_whole_one(tmp_path, split):
    whole, parts = split("every second part on disk")
    folders = [
        build(tmp_path / name, cache_spec(teacher_width=259), model=model)
        for name, model in (("a", whole), ("b", parts))
    ]
    ours, theirs = map(TeacherCache, folders)
    for document in documents_of(cache_rows()):
        torch.testing.assert_close(ours.signals(document.key).logp, theirs.signals(document.key).logp)
