import json

import pytest

from bridgegarden.errors import ConfigError
from bridgegarden.recipe import Recipe
from bridgegarden.run.output import OutputFolder, partial, write_json


@pytest.fixture
def folder(tmp_path):
    return OutputFolder(tmp_path / "out")


def recipe(output="out", **training) -> Recipe:
    models = {"teacher": {"model": "a/teacher"}, "student": {"model": "a/student"}}
    return Recipe.from_dict(models | {"data": {"train": "rows.jsonl"}, "training": training, "output": str(output)})


def save_checkpoint(folder: OutputFolder, step: int, state: str = "{}"):
    path = folder.checkpoints / f"checkpoint-{step}"
    path.mkdir(parents=True)
    (path / "trainer_state.json").write_text(state)


def test_a_new_folder_may_be_used_and_is_not_made_by_asking(folder):
    assert folder.check(recipe(), resume=False) is None
    assert not folder.path.exists()


def test_a_file_is_no_folder(folder):
    folder.path.write_text("")
    with pytest.raises(ConfigError, match="is a file; expected a folder"):
        folder.check(recipe(), resume=False)


@pytest.mark.parametrize("resume", [False, True])
def test_a_finished_model_is_never_overwritten(folder, resume):
    folder.begin(recipe())
    folder.model.mkdir()
    with pytest.raises(ConfigError, match="already holds a finished model"):
        folder.check(recipe(), resume=resume)


def test_a_finished_model_of_another_recipe_is_refused_with_what_differs(folder):
    folder.begin(recipe(max_steps=10))
    folder.model.mkdir()
    with pytest.raises(ConfigError, match=r"training\.max_steps was 10, is 20; training\.seed was not set, is 1"):
        folder.check(recipe(max_steps=20, seed=1), resume=False)


@pytest.mark.parametrize("resume", [False, True])
def test_another_recipe_s_checkpoints_are_refused_with_what_differs(folder, resume):
    folder.begin(recipe(max_steps=10))
    save_checkpoint(folder, 5)
    with pytest.raises(ConfigError, match=r"another recipe: training\.max_steps was 10, is 20\."):
        folder.check(recipe(max_steps=20), resume=resume)


def test_where_a_recipe_writes_does_not_make_it_another(folder):
    folder.begin(recipe("here"))
    save_checkpoint(folder, 5)
    assert folder.check(recipe("there"), resume=True) is not None


def test_an_attempt_that_saved_nothing_may_be_repeated_with_another_recipe(folder):
    folder.begin(recipe(max_steps=10))
    partial(folder.model).mkdir()
    assert folder.check(recipe(max_steps=20), resume=False) is None
    folder.begin(recipe(max_steps=20))
    assert not partial(folder.model).exists()


def test_an_interrupted_run_is_resumed_only_when_asked(folder):
    folder.begin(recipe())
    save_checkpoint(folder, 5)
    with pytest.raises(ConfigError, match=r"interrupted run of this recipe \(checkpoint-5\)\. Add --resume"):
        folder.check(recipe(), resume=False)


def test_the_newest_checkpoint_is_by_number_and_a_torn_one_does_not_count(folder):
    folder.begin(recipe())
    for step in (5, 10, 9):
        save_checkpoint(folder, step)
    save_checkpoint(folder, 15, state='{"global')
    (folder.checkpoints / "checkpoint-20").mkdir()
    assert folder.check(recipe(), resume=True) == folder.checkpoints / "checkpoint-10"


def test_nothing_to_resume_is_said(folder):
    with pytest.raises(ConfigError, match="no whole checkpoint to resume from"):
        folder.check(recipe(), resume=True)


def test_publishing_replaces_what_an_earlier_attempt_left(folder):
    folder.begin(recipe())
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
