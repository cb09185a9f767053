import pytest

from bridgegarden.errors import ConfigError
from bridgegarden.jobs.kept import begin_folder, deciding_versions, keep, kept, key_of, mark_of


def test_a_run_is_found_under_its_own_key_and_no_other(tmp_path):
    path = tmp_path / "run.json"
    keep(path, "key", {"loss": 0.5})
    assert kept(path, "key", dict) == {"loss": 0.5}
    assert kept(path, "another", dict) is None
    assert kept(tmp_path / "missing.json", "key", dict) is None


@pytest.mark.parametrize("broken", ["", "{}", '{"key": 3', "[]", "null", '{"key": "key"}'])
def test_a_damaged_record_is_no_run(tmp_path, broken):
    path = tmp_path / "run.json"
    path.write_text(broken)
    assert kept(path, "key", dict) is None


def test_a_record_that_cannot_be_read_as_what_is_asked_for_is_no_run(tmp_path):
    path = tmp_path / "run.json"
    keep(path, "key", {"loss": 0.5})
    assert kept(path, "key", lambda tree: tree["accuracy"]) is None


def test_keys_tell_contents_apart_and_not_their_order():
    assert key_of({"a": 1, "b": (2, 3)}) == key_of({"b": [2, 3], "a": 1})
    assert key_of({"a": 1}) != key_of({"a": 2})


def test_versions_name_what_decides_a_number():
    assert {"python", "platform", "torch", "transformers", "trl"} <= set(deciding_versions())


def test_a_folder_is_marked_until_the_mark_is_taken_away(tmp_path):
    folder = tmp_path / "deep" / "out"
    begin_folder(folder, command="bridgegarden lab run", results="result.json")
    assert "`bridgegarden lab run`" in mark_of(folder).read_text()
    assert [path.name for path in folder.iterdir()] == ["INCOMPLETE"]


def test_a_file_in_the_way_is_left_alone(tmp_path):
    path = tmp_path / "taken"
    path.write_text("mine")
    with pytest.raises(ConfigError, match="is a file; expected a folder"):
        begin_folder(path, command="x", results="y")
    assert path.read_text() == "mine"
