import json

import pytest

from bridgegarden.errors import ConfigError
from bridgegarden.recipe import Recipe
from bridgegarden.run.checkpoints import seal
from bridgegarden.run.output import OutputFolder, check_writable, partial, write_json
from bridgegarden.run.save import remove_checkpoints


@pytest.fixture
def folder(tmp_path):
    return OutputFolder(tmp_path / "out")


def recipe(output="out", **training) -> Recipe:
    models = {"teacher": {"model": "a/teacher"}, "student": {"model": "a/student"}}
    return Recipe.from_dict(models | {"data": {"train": "rows.jsonl"}, "training": training, "output": str(output)})


RECORD = {
    **dict.fromkeys(("started", "objective", "tokenizers", "python", "platform"), "text"),
    **{key: {} for key in ("data", "rows", "teacher", "student", "packages")},
    "went_on_from": [],
    "finished": None,
}
FINISHED = RECORD | {
    **{key: {} for key in ("training", "evaluation", "free_running", "cost")},
    "finished": "text",
    "steps": 10,
    "tokens_per_second": None,
    "wall_seconds": 1.0,
    "peak_memory_bytes": 1,
}


def save_checkpoint(folder: OutputFolder, step: int, state: str | None = None):
    path = folder.checkpoints / f"checkpoint-{step}"
    path.mkdir(parents=True)
    (path / "trainer_state.json").write_text(json.dumps({"global_step": step}) if state is None else state)
    seal(path)


def save_model(folder: OutputFolder):
    folder.model.mkdir()
    (folder.model / "config.json").write_text("{}")


def test_a_new_folder_may_be_used_and_is_not_made_by_asking(folder):
    folder.check(recipe())
    assert not folder.path.exists()


def test_a_file_is_no_folder(folder):
    folder.path.write_text("")
    with pytest.raises(ConfigError, match="is a file; expected a folder"):
        folder.check(recipe())


def test_a_finished_model_of_another_recipe_is_refused_with_what_differs(folder):
    folder.begin(recipe(max_steps=10), FINISHED)
    save_model(folder)
    with pytest.raises(ConfigError, match=r"training\.max_steps was 10, is 20; training\.seed was not set, is 1"):
        folder.check(recipe(max_steps=20, seed=1))


def test_another_recipe_s_checkpoints_are_refused_with_what_differs(folder):
    folder.begin(recipe(max_steps=10), RECORD)
    save_checkpoint(folder, 5)
    with pytest.raises(ConfigError, match=r"another recipe: training\.max_steps was 10, is 20\."):
        folder.check(recipe(max_steps=20))


def test_where_a_recipe_writes_does_not_make_it_another(folder):
    folder.begin(recipe("here"), RECORD)
    save_checkpoint(folder, 5)
    folder.check(recipe("there"))


def test_an_attempt_that_saved_nothing_may_be_repeated_with_another_recipe(folder):
    folder.begin(recipe(max_steps=10), RECORD)
    partial(folder.model).mkdir()
    folder.check(recipe(max_steps=20))
    folder.begin(recipe(max_steps=20), RECORD)
    assert not partial(folder.model).exists()


def test_the_newest_checkpoint_is_by_number_and_a_torn_one_does_not_count(folder):
    folder.begin(recipe(), RECORD)
    for step in (5, 10, 9):
        save_checkpoint(folder, step)
    save_checkpoint(folder, 15, state='{"global')
    (folder.checkpoints / "checkpoint-20").mkdir()
    checkpoint, faults = folder.usable_checkpoint()
    assert checkpoint == folder.checkpoints / "checkpoint-10"
    assert [fault.checkpoint.name for fault in faults] == ["checkpoint-20", "checkpoint-15"]


@pytest.mark.parametrize("name", ["model", "adapter", "checkpoints", "metrics.jsonl", "recipe.yaml"])
@pytest.mark.parametrize("record", [None, "{}", "not JSON"])
def test_what_no_run_has_left_is_not_replaced(folder, name, record):
    path = folder.path / name
    path.mkdir(parents=True) if path.suffix == "" else (folder.path.mkdir(), path.write_text("mine"))
    if record is not None:
        folder.record.write_text(record)
    with pytest.raises(ConfigError, match=rf"holds {name}.* and its run.json is missing, damaged or not a run's"):
        folder.check(recipe())


@pytest.mark.parametrize("content", ["{}", '{"webpack": 1}', "[" * 100_000, "mine", json.dumps(RECORD | {"data": 5})])
def test_somebody_s_run_json_is_not_overwritten(folder, content):
    folder.path.mkdir()
    folder.record.write_text(content)
    with pytest.raises(ConfigError, match=r"holds run.json, and its run.json is missing, damaged or not a run's"):
        folder.check(recipe())
    assert folder.record.read_text() == content


@pytest.mark.parametrize("change", [{"went_on_from": 5}, {"teacher": []}, {"finished": 3}, {"cost": {"a": "b"}}])
def test_a_damaged_record_is_not_gone_on_from(folder, change):
    folder.begin(recipe(), FINISHED | change)
    with pytest.raises(ConfigError, match=r"its run.json is missing, damaged or not a run's"):
        folder.check(recipe())


def test_a_finished_run_may_be_asked_for_again(folder):
    folder.begin(recipe(), FINISHED)
    save_model(folder)
    folder.check(recipe())


@pytest.mark.parametrize("make", [lambda p: p.mkdir(), lambda p: (p.mkdir(), (p / "config.json").write_text("{}"))])
def test_a_model_that_no_run_has_finished_is_not_reported_as_one(folder, make):
    folder.begin(recipe(), RECORD)
    make(folder.model)
    with pytest.raises(ConfigError, match=r"by run.json the run is not finished, so that no run has put it there"):
        folder.check(recipe())


@pytest.mark.parametrize(("name", "kind"), [("checkpoints", "folder"), ("metrics.jsonl", "file"), ("model", "folder")])
def test_a_file_in_a_folder_s_place_is_one_line(folder, name, kind):
    folder.begin(recipe(), FINISHED if name == "model" else RECORD)
    path = folder.path / name
    if path.is_dir():
        path.rmdir()
    path.write_text("") if kind == "folder" else path.mkdir()
    with pytest.raises(ConfigError, match=rf"{name} is no {kind}|run is not finished"):
        folder.check(recipe())


@pytest.mark.parametrize("made", ["checkpoint", "model"])
def test_a_run_whose_recipe_is_gone_is_not_gone_on_with(folder, made):
    folder.begin(recipe(), FINISHED)
    save_checkpoint(folder, 5) if made == "checkpoint" else save_model(folder)
    folder.recipe.unlink()
    with pytest.raises(ConfigError, match=r"holds a run but not its recipe.yaml"):
        folder.check(recipe(max_steps=20))


def test_only_what_a_run_is_taken_up_from_is_removed_with_the_checkpoints(folder):
    folder.begin(recipe(), RECORD)
    for step in (5, 10):
        save_checkpoint(folder, step)
    (folder.checkpoints / "damaged-checkpoint-5").mkdir()
    (folder.checkpoints / "runs").mkdir()
    (folder.checkpoints / "runs" / "events.out").write_text("a tracker's")
    remove_checkpoints(folder)
    assert [path.name for path in folder.checkpoints.iterdir()] == ["runs"]
    (folder.checkpoints / "runs" / "events.out").unlink()
    (folder.checkpoints / "runs").rmdir()
    remove_checkpoints(folder)
    assert not folder.checkpoints.exists()


def test_other_files_in_the_folder_are_none_of_our_business(folder):
    folder.path.mkdir()
    (folder.path / "notes.txt").write_text("mine")
    folder.check(recipe())


def test_publishing_replaces_what_an_earlier_attempt_left(folder):
    folder.begin(recipe(), RECORD)
    folder.adapter.mkdir()
    (folder.adapter / "old").write_text("")
    partial(folder.adapter).mkdir()
    folder.publish(folder.adapter)
    assert list(folder.path.glob("*adapter*")) == [folder.adapter]
    assert list(folder.adapter.iterdir()) == []


def test_a_file_is_whole_or_as_it_was(tmp_path):
    path = tmp_path / "run.json"
    write_json(path, {"loss": 1.0})
    with pytest.raises(ValueError, match="not JSON compliant"):
        write_json(path, {"loss": float("nan")})
    assert json.loads(path.read_text()) == {"loss": 1.0}


def test_asking_whether_files_can_be_written_leaves_nothing_behind(tmp_path):
    check_writable(tmp_path / "a" / "b", "output")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("/proc/out", "nothing can be written to /proc for out (No such file or directory)"),
        ("/dev/null/out", "/dev/null is a file; expected a folder"),
        ("file", "file is a file; expected a folder"),
        ("file/out", "file is a file; expected a folder"),
        ("nowhere", "nowhere is a link that leads nowhere"),
        ("nowhere/out", "nowhere is a link that leads nowhere"),
        ("round", "round is a link that leads nowhere"),
        ("n" * 300, "nothing can be written to"),
    ],
)
def test_a_place_where_no_folder_can_be_is_named(tmp_path, name, says):
    (tmp_path / "file").write_text("")
    (tmp_path / "nowhere").symlink_to(tmp_path / "missing")
    (tmp_path / "round").symlink_to(tmp_path / "round")
    with pytest.raises(ConfigError) as refused:
        check_writable(tmp_path / name, "--output")
    assert str(refused.value).startswith("--output: ")
    assert says in str(refused.value)


def test_a_folder_that_takes_no_files_is_named_with_the_system_s_reason(tmp_path, monkeypatch):
    def refuse(*args, **kwargs):
        raise OSError(30, "Read-only file system")

    monkeypatch.setattr("tempfile.mkdtemp", refuse)
    with pytest.raises(ConfigError, match=r"^output: nothing can be written to .* for out \(Read-only file system\)"):
        check_writable(tmp_path / "out", "output")
