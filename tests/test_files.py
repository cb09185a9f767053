import errno
import json
import os

import pytest

from bridgegarden.errors import DataError
from bridgegarden.evaluation.judge import Verdicts
from bridgegarden.evaluation.results import KeptAnswers
from bridgegarden.files import AppendedLines, partial, write_json, write_text


def test_a_file_that_finds_no_room_is_as_it_was_and_nothing_lies_beside_it(tmp_path, monkeypatch):
    path = tmp_path / "result.json"
    write_text(path, "before")

    def full(file):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(OSError, match=r"No space left on device: '.*/result.json'"):
        write_text(path, "after")
    assert path.read_text() == "before"
    assert os.listdir(tmp_path) == ["result.json"]


def test_an_interrupted_write_leaves_nothing(tmp_path, monkeypatch):
    def interrupted(file):
        raise KeyboardInterrupt

    monkeypatch.setattr("os.fsync", interrupted)
    with pytest.raises(KeyboardInterrupt):
        write_text(tmp_path / "result.json", "half")
    assert os.listdir(tmp_path) == []


def test_what_a_killed_process_left_is_written_over(tmp_path):
    partial(tmp_path / "result.json").write_text("half of it")
    write_text(tmp_path / "result.json", "whole")
    assert {path.name: path.read_text() for path in tmp_path.iterdir()} == {"result.json": "whole"}


def test_json_of_a_name_that_is_no_text_is_read_back(tmp_path):
    tree = {"folder": os.fsdecode(b"caf\xe9"), "half an emoji": "\ud83d", "家": "ü"}
    write_json(tmp_path / "run.json", tree)
    text = (tmp_path / "run.json").read_text(encoding="utf-8")
    assert json.loads(text) == tree
    assert "家" in text


@pytest.mark.parametrize("text", ['{"prompt": "a"}', '{"prompt": "a"}\n{"prompt": "b"}', "words", '{"keys": 1}'])
@pytest.mark.parametrize("opened", [lambda path: KeptAnswers(path, {}), Verdicts], ids=["evaluate", "judge"])
def test_somebody_s_own_lines_are_left_as_they_are(tmp_path, opened, text):
    path = tmp_path / "lines.jsonl"
    path.write_text(text)  # which does not end a line, as what a killed run leaves does not
    with pytest.raises(DataError, match=r"lines\.jsonl: exists, and was not written by this command"):
        opened(path)
    assert path.read_text() == text


@pytest.mark.parametrize("text", ["", '{"ke', '{"key": "0'])
def test_what_a_killed_run_left_of_its_first_record_is_cut_off(tmp_path, text):
    path = tmp_path / "lines.jsonl"
    path.write_text(text)
    lines = AppendedLines(path, first_key="key")
    lines.append([{"key": 1}])
    lines.close()
    assert path.read_text() == '{"key": 1}\n'
