import pytest
import torch
from trl.trainer.sft_config import SFTConfig

from bridgegarden.recipe import load_recipe
from bridgegarden.run.checked import PREFETCHING_WORKERS, training_arguments
from bridgegarden.run.output import OutputFolder

pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning")


@pytest.mark.parametrize(
    ("device", "cached", "said", "expected"),
    [
        ("cuda", True, {}, PREFETCHING_WORKERS),
        ("cuda", False, {}, 0),
        ("cuda", True, {"dataloader_num_workers": 0}, 0),
        ("cpu", True, {}, 0),
    ],
)
def test_a_cache_is_read_ahead_of_a_gpu_unless_the_recipe_says_otherwise(
    write_recipe, tmp_path, monkeypatch, device, cached, said, expected
):
    teacher = {"cache": str(tmp_path / "cache")} if cached else {}
    recipe = load_recipe(str(write_recipe(teacher=teacher, training={**said, "max_steps": 1, "bf16": False})))
    monkeypatch.setattr(SFTConfig, "device", torch.device(device))
    monkeypatch.setattr(SFTConfig, "n_gpu", 1)
    arguments = training_arguments(recipe, OutputFolder(tmp_path / "out"))
    assert arguments.dataloader_num_workers == expected
