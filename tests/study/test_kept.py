import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

import pytest
from markupsafe import Markup

from bridgegarden.errors import ConfigError
from bridgegarden.report.page import Page, Section
from bridgegarden.statistics import Estimate
from bridgegarden.study.kept import Plain, StudyFolder, deciding_versions, from_tree, keep, kept, key_of, to_tree


class Folder(StudyFolder):
    command = "bridgegarden study"


@dataclass(frozen=True)
class Leaf:
    value: Estimate | None
    name: Literal["a", "b"]


@dataclass(frozen=True)
class Tree(Plain):
    leaves: tuple[Leaf, ...]
    by_name: Mapping[str, Mapping[str, float]]
    pairs: tuple[tuple[str, float], ...]
    memo: dict = field(default_factory=dict, init=False, compare=False)


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


def test_a_record_that_is_not_what_is_asked_for_is_no_run(tmp_path):
    path = tmp_path / "run.json"
    keep(path, "key", {"loss": 0.5})
    assert kept(path, "key", Leaf) is None


def test_keys_tell_contents_apart_and_not_their_order():
    assert key_of({"a": 1, "b": (2, 3)}) == key_of({"b": [2, 3], "a": 1})
    assert key_of({"a": 1}) != key_of({"a": 2})


def test_versions_name_what_decides_a_number():
    assert {"python", "platform", "torch", "transformers", "trl"} <= set(deciding_versions())


def test_a_folder_is_marked_until_the_study_is_finished(tmp_path):
    folder = Folder(tmp_path / "deep" / "out")
    folder.begin()
    assert "`bridgegarden study`" in folder.marker.read_text()
    assert [path.name for path in folder.path.iterdir()] == ["INCOMPLETE"]
    section = Section(anchor="a", title="All", body=Markup("<p>found</p>"))
    page = Page(title="t", kicker="k", lead=Markup(""), sections=(section,), data={}, footer="end")
    folder.finish({"loss": 0.5}, page, {"tables.md": "# found"})
    assert {path.name for path in folder.path.iterdir()} == {"result.json", "report.html", "tables.md"}
    assert json.loads(folder.result.read_text()) == {"loss": 0.5}
    assert "<p>found</p>" in folder.report.read_text()


def test_a_file_in_the_way_is_left_alone(tmp_path):
    path = tmp_path / "taken"
    path.write_text("mine")
    with pytest.raises(ConfigError, match="is a file; expected a folder"):
        Folder(path).begin()
    assert path.read_text() == "mine"


def test_what_json_says_of_a_result_is_read_back_as_it_was():
    found = Tree(
        leaves=(Leaf(Estimate(1.0, 0.1, 5), "a"), Leaf(None, "b")),
        by_name={"x": {"y": 0.5}},
        pairs=(("word", 0.25), ("other", 0.75)),
    )
    found.memo["kept"] = "from JSON"
    tree = json.loads(json.dumps(to_tree(found)))
    assert tree["leaves"][0]["value"] == {"mean": 1.0, "stderr": 0.1, "n": 5}
    assert "memo" not in tree
    assert Tree.from_dict({**tree, "made of it": 3}) == found


@pytest.mark.parametrize("tree", [{"value": None}, {"value": None, "name": "a", "other": 1}, []])
def test_what_has_other_fields_is_not_read(tree):
    with pytest.raises((TypeError, AttributeError)):
        from_tree(Leaf, tree)
