import json
from dataclasses import replace

import pytest
import torch
from safetensors.torch import save_file

from bridgegarden.errors import ConfigError, ModelError
from bridgegarden.objective.support import TeacherSignal
from bridgegarden.teacher.cache.spec import CacheSpec, Served, Support, exponents_with_defaults, weights_fingerprint
from tests.teacher.cache.conftest import cache_spec
from tests.tiny import VOCABULARY


@pytest.mark.parametrize("support", [Support(), Support(kind="mass", mass=0.9), Support(kind="sampled", k=9)])
def test_a_spec_comes_back_from_json(support):
    spec = cache_spec(support, bits=16, max_length=None)
    assert CacheSpec.from_dict(json.loads(json.dumps(spec.to_dict()))) == spec


@pytest.mark.parametrize(
    ("most", "beyond"),
    [
        ({"vocab_size": 2**24, "teacher_width": 2**24}, {"vocab_size": 2**24 + 1, "teacher_width": 2**24 + 1}),
        ({"teacher_width": 2**31 - 1}, {"teacher_width": 2**31}),
        ({"max_length": 1}, {"max_length": 0}),
        ({"vocab_size": 1}, {"vocab_size": 0}),
    ],
)
def test_the_largest_and_the_smallest_cache_are_allowed_and_nothing_beyond(most, beyond):
    cache_spec(**most)
    with pytest.raises(ConfigError, match=str(next(iter(beyond.values())))):
        cache_spec(**beyond)


def test_defaults_are_kept_beside_what_is_needed():
    assert exponents_with_defaults((0.25, 0.5)) == (0.1, 0.25, 0.5, 2.0)


def test_teachers_on_the_hub_differ_by_commit_and_local_ones_by_weights():
    hub = cache_spec(weights=None, revision="abc")
    assert hub.differences(cache_spec(weights=None, revision="def")) == "revision abc, not def"
    assert cache_spec().differences(cache_spec(teacher="moved")) == ""
    assert cache_spec().digest == cache_spec(teacher="moved").digest
    assert hub.digest != cache_spec(weights=None, revision="def").digest


@pytest.mark.parametrize(
    ("support", "options"),
    [
        (Support(k=5), "--top-k 5 --bits 16"),
        (Support(kind="mass", k=9, mass=0.95), "--top-k 9 --mass 0.95 --bits 16"),
        (Support(kind="sampled", k=7), "--samples 7 --bits 16"),
    ],
)
def test_options_are_those_that_keep_as_much(support, options):
    assert cache_spec(support, bits=16).options == options
    assert cache_spec(Support(k=5)).options == "--top-k 5"


@pytest.mark.parametrize(
    ("make", "match"),
    [
        (lambda: Support(k=0), "between 1 and"),
        (lambda: Support(kind="mass"), "a mass belongs to the support 'mass'"),
        (lambda: Support(mass=0.5), "a mass belongs to the support 'mass'"),
        (lambda: Support(kind="mass", mass=1.0), "between 0 and 1"),
        (lambda: cache_spec(bits=4), "8 or 16 bits, got 4"),
        (lambda: cache_spec(Support(kind="mass", k=259, mass=0.5)), "fewer tokens than the vocabulary's 259"),
    ],
)
def test_settings_out_of_range_are_refused(make, match):
    with pytest.raises(ConfigError, match=match):
        make()


def save(folder, weights, **names):
    folder.mkdir()
    for name, part in (names or {"model": list(weights)}).items():
        save_file({key: weights[key] for key in part}, folder / f"{name}.safetensors")
    return weights_fingerprint(folder)


def test_a_copy_under_another_name_is_the_same(tmp_path):
    weights = {"a": torch.randn(500, 500), "b": torch.randn(3)}
    first = save(tmp_path / "one", weights, x=["a"], y=["b"])
    assert save(tmp_path / "two", weights, p=["b"], q=["a"]) == first


def test_a_step_of_training_a_type_or_a_name_makes_another(tmp_path):
    weights = {"a": torch.randn(500, 500), "b": torch.randn(3)}
    found = {
        save(tmp_path / "as it was", weights),
        save(tmp_path / "trained", {name: weight * 1.0001 for name, weight in weights.items()}),
        save(tmp_path / "cast", {name: weight.bfloat16() for name, weight in weights.items()}),
        save(tmp_path / "renamed", {"a": weights["a"], "c": weights["b"]}),
    }
    assert len(found) == 4


@pytest.mark.parametrize("header", [2**63, 2**64 - 1, 1 << 20])
def test_a_header_longer_than_its_file_is_one_line(tmp_path, header):
    path = tmp_path / "model.safetensors"
    path.write_bytes(header.to_bytes(8, "little") + b"{}")
    with pytest.raises(ModelError, match=rf"{path}: damaged, or no safetensors file .*{header:,} bytes"):
        weights_fingerprint(tmp_path)


def test_a_folder_that_is_called_like_weights_is_none(tmp_path):
    save_file({"a": torch.zeros(3)}, tmp_path / "model.safetensors")
    alone = weights_fingerprint(tmp_path)
    (tmp_path / "x.safetensors").mkdir()
    assert weights_fingerprint(tmp_path) == alone


def test_a_token_that_is_not_needed_for_the_mass_is_not_kept_if_those_before_it_have_just_that():
    logits = torch.tensor([[1.0, 0.0, -1.0, -2.0]])
    likeliest = TeacherSignal.from_logits(logits, 3, 4).logp[0, 0].exp().item()
    support = Support(kind="mass", k=3, mass=likeliest)
    signal = support.signal(logits, vocab_size=4, exponents=(), generator=None)
    assert signal.ids.tolist() == [[0, -1, -1]]


def test_where_log_probabilities_are_from_is_in_the_digest_and_old_caches_keep_theirs():
    served = cache_spec(Support(k=16), exponents=(), teacher_width=VOCABULARY, served=Served(temperature=0.0))
    tree = served.to_dict()
    assert tree["served"] == {"temperature": 0.0, "entropy": "lower bound", "smallest_tail": 1e-7}
    assert CacheSpec.from_dict(tree) == served
    imported = replace(served, served=Served(temperature=1.0, source="imported"))
    assert CacheSpec.from_dict(imported.to_dict()) == imported
    assert imported.digest != replace(served, served=Served(temperature=1.0)).digest
    assert "imported from another program's file" in imported.differences(served)
