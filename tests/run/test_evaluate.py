import errno
import shutil
from pathlib import Path

import pytest

from bridgegarden.errors import ConfigError
from bridgegarden.evaluation.lm_eval import EvaluationOptions
from bridgegarden.quickstart import TEACHER
from bridgegarden.run.evaluate import EvaluateTarget, evaluate_target

OPTIONS = EvaluationOptions(limit=2, samples=0)


@pytest.fixture
def recipe(tmp_path):
    (tmp_path / "rows.jsonl").write_text('{"prompt": "a", "completion": "b"}\n')
    path = tmp_path / "mine.yaml"
    path.write_text(f"teacher: {{model: {TEACHER}}}\nstudent: {{model: {TEACHER}}}\ndata: {{train: rows.jsonl}}\n")
    return path


def test_of_a_recipe_its_trained_student_is_evaluated_and_kept_beside_it(recipe, tmp_path):
    output = tmp_path / "run"
    shutil.copytree(TEACHER, output / "model")
    target = EvaluateTarget(source=str(recipe), overrides=(f"output={output}",))
    found, files = evaluate_target(target, OPTIONS)
    assert found.model == str(output / "model")
    assert files.results == output / "evaluation" / "offline" / "results.json"
    assert files.results.is_file()
    assert files.page.is_file()


def test_of_a_model_the_result_is_named_after_it_and_its_tasks(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    shutil.copytree(TEACHER, tmp_path / "my model")
    options = EvaluationOptions(tasks=("bridgegarden_arithmetic",), limit=2, samples=0)
    _, files = evaluate_target(EvaluateTarget(source="my model"), options)
    assert str(files.folder) == "runs/evaluation/my-model/bridgegarden_arithmetic"
    assert files.problems.is_file()


def test_tasks_that_cannot_be_run_are_found_before_the_weights_are_read(tmp_path, monkeypatch):
    def loads(facts):
        raise AssertionError("the weights were read")

    monkeypatch.setattr("bridgegarden.run.evaluate.load_model", loads)
    with pytest.raises(ConfigError, match="--allow-code-execution"):
        evaluate_target(EvaluateTarget(source=str(TEACHER)), EvaluationOptions(tasks=("coding",)))


def test_a_missing_recipe_is_no_model(tmp_path):
    with pytest.raises(ConfigError, match=r"nothere.yaml: no such file, and no shipped recipe"):
        evaluate_target(EvaluateTarget(source=str(tmp_path / "nothere.yaml")), OPTIONS)


def test_a_result_that_finds_no_room_is_kept_where_there_is_some(tmp_path, monkeypatch):
    output, rescued = tmp_path / "full", tmp_path / "temporary"
    rescued.mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(rescued))
    write = Path.write_text

    def write_text(path, *arguments, **how):
        if output in path.parents:
            raise OSError(errno.ENOSPC, "No space left on device")
        return write(path, *arguments, **how)

    monkeypatch.setattr(Path, "write_text", write_text)
    with pytest.raises(ConfigError, match=rf"{output} cannot be written to \(No space left.* kept in {rescued}"):
        evaluate_target(EvaluateTarget(source=str(TEACHER), output=output), OPTIONS)
    (kept,) = rescued.iterdir()
    assert {path.name for path in kept.iterdir()} == {"results.json", "results.md", "problems.jsonl"}
