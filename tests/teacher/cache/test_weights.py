import pytest
import torch
from safetensors.torch import save_file

from bridgegarden.errors import ModelError
from bridgegarden.teacher.cache.weights import weights_fingerprint


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
