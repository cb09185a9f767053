import io
import json

import pytest
import torch
from click.testing import CliRunner
from rich.console import Console
from trl.trainer.sft_config import SFTConfig

from bridgegarden.cli.main import cli
from bridgegarden.errors import ConfigError, DataError
from bridgegarden.recipe import load_recipe
from bridgegarden.run.checked import PREFETCHING_WORKERS, audit, check_run, training_arguments
from bridgegarden.run.output import OutputFolder
from bridgegarden.run.train import train
from tests.tiny import tiny_tokenizer

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


def test_the_first_row_is_shown_with_what_is_learnt_marked(write_recipe, tmp_path):
    text = audit(load_recipe(write_recipe()))
    assert text.startswith("train train.jsonl, row 0: 2 of ")
    assert "0 + 0 =<|im_end|>" in text
    assert "«0<|im_end|>»" in text
    assert "chat template: the student's" in text
    assert "end of turn:   '<|im_end|>'" in text
    assert "first 30 rows: " in text
    assert not (tmp_path / "out").exists()


def test_the_teacher_s_template_is_named_where_it_is_used(write_recipe):
    text = audit(load_recipe(write_recipe(student_tokenizer=tiny_tokenizer(chat_template=False))))
    assert "chat template: the teacher's" in text
    assert "warning: the student's tokenizer has no chat template" in text


def test_rows_that_are_cut_are_counted(write_recipe):
    recipe = load_recipe(write_recipe(), ["training.max_length=20"])
    assert "30 longer than training.max_length 20, 30 with nothing left to learn" in audit(recipe)


def test_a_bad_row_is_named(write_recipe, tmp_path):
    recipe = write_recipe()
    (tmp_path / "train.jsonl").write_text('{"question": "1 + 1 ="}')
    with pytest.raises(DataError, match=r"train train\.jsonl, row 0"):
        audit(load_recipe(recipe))


def test_bad_lines_and_bad_rows_are_skipped_where_the_recipe_says_so(write_recipe, tmp_path, caplog):
    recipe = write_recipe()
    path = tmp_path / "train.jsonl"
    path.write_text(path.read_text() + '\n{"question": "1 + 1 =", "answer": ""}\n{"question"\n')
    with pytest.raises(DataError, match=r"train\.jsonl:32: not valid JSON"):
        audit(load_recipe(recipe))
    caplog.clear()
    assert "first 31 rows: " in audit(load_recipe(recipe, ["data.skip_bad_rows=true"]))
    assert "skipped 1 of 32 rows" in caplog.messages[0]
    assert "skipped 1 of 31 rows: train train.jsonl, row 30" in caplog.messages[1]
    with pytest.raises(ConfigError, match=r"data.skip_bad_rows: answers of teacher.server"):
        load_recipe(recipe, ["data.skip_bad_rows=true", "teacher.server=http://localhost:1/v1"])


def test_the_command_prints_it(write_recipe):
    result = CliRunner().invoke(cli, ["train", str(write_recipe()), "--audit"])
    assert (result.exit_code, result.stderr) == (0, "")
    assert "«0<|im_end|>»" in result.stdout


def started(path, *changes: str) -> str:
    """What a run of the recipe at `path` says before it loads weights."""
    said = io.StringIO()
    recipe = load_recipe(path, [f"training.{change}" if "." not in change else change for change in changes])
    folder = OutputFolder(recipe.output)
    check_run(recipe, folder, training_arguments(recipe, folder), Console(file=said, width=200))
    return said.getvalue()


@pytest.mark.parametrize("top_k", [None, 264])
def test_kernels_for_a_teacher_s_whole_vocabulary_are_refused_before_weights_are_loaded(write_recipe, top_k):
    interpreted()
    path = write_recipe(teacher={"top_k": top_k})
    with pytest.raises(ConfigError, match=r"^training\.loss_kernel: .* this teacher gives the whole vocabulary"):
        started(path, "loss_kernel=triton")


def test_the_route_of_the_loss_is_said_where_it_was_chosen(write_recipe):
    interpreted()
    path = write_recipe(teacher={"top_k": 8})
    assert "loss by" not in started(path)
    assert "loss by Triton's kernels (training.loss_kernel: triton)" in started(path, "loss_kernel=triton")


@pytest.mark.filterwarnings("ignore::RuntimeWarning:triton")
def test_a_run_by_the_kernels_is_the_run_by_pytorch_and_says_so(write_recipe, tmp_path):
    interpreted()
    path, terms = write_recipe(teacher={"top_k": 8}, training={"max_steps": 2, "logging_steps": 1}), []
    for route in ("torch", "triton"):
        recipe = load_recipe(path, [f"training.loss_kernel={route}", f"output={tmp_path / route}"])
        terms.append(train(recipe, console=Console(file=io.StringIO())).training)
        assert json.loads((tmp_path / route / "run.json").read_text())["loss_kernel"] == route
    for name in ("loss", "soft_loss", "hard_loss", "student_entropy"):
        assert terms[1][name] == pytest.approx(terms[0][name], rel=1e-4), name


def interpreted() -> None:
    """Skip a test that needs the kernels on a CPU, where they cannot run."""
    if not pytest.importorskip("bridgegarden.objective.kernels").INTERPRETED:
        pytest.skip("the kernels run on the GPU that is here alone")
