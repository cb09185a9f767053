import pytest
import torch
from click.testing import CliRunner
from trl.trainer.sft_config import SFTConfig

from bridgegarden.cli.main import cli
from bridgegarden.errors import ConfigError, DataError
from bridgegarden.recipe import load_recipe
from bridgegarden.run.checked import PREFETCHING_WORKERS, audit, training_arguments
from bridgegarden.run.output import OutputFolder
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
