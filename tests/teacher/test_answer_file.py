import json
import os
from pathlib import Path

import pytest

from bridgegarden.errors import BridgegardenError, ConfigError, DataError
from bridgegarden.files import AppendedLines, write_whole
from bridgegarden.teacher.answer_file import AnswerFile, check_answers_path, read_settings

SETTINGS = {"generated_by": "m", "top_logprobs": 2, "temperature": 0.0, "max_new_tokens": 9, "seed": None}
KINDS = ("", ".errors", ".truncated", ".settings")


def refused(path, match):
    with pytest.raises(ConfigError, match=match) as caught:
        AnswerFile(path, SETTINGS)
    assert "\n" not in str(caught.value)


def written(path):
    with AnswerFile(path, SETTINGS) as file:
        file.add([{"row": 0, "sample": 0, "finish_reason": "stop"}], [{"row": 1, "sample": 0, "error": "no"}])
        file.add([{"row": 2, "sample": 0, "finish_reason": "length"}], [])
    return path


@pytest.mark.parametrize("path", ["/dev/null", "/dev/full", "/dev/zero"])
def test_a_device_takes_no_answers_and_nothing_is_left_beside_it(path):
    before = set(os.listdir("/dev"))
    refused(Path(path), "is a device, a pipe or the like; expected a file name")
    assert set(os.listdir("/dev")) == before


@pytest.mark.parametrize("kind", KINDS)
def test_a_pipe_or_a_folder_in_the_place_of_any_of_the_files_is_refused(tmp_path, kind):
    os.mkfifo(tmp_path / f"pipe{kind}")
    refused(tmp_path / "pipe", "is a device, a pipe")
    (tmp_path / f"folder{kind}").mkdir()
    refused(tmp_path / "folder", "is a folder")
    assert len(list(tmp_path.iterdir())) == 2


@pytest.mark.parametrize("length", [237, 240, 250, 255, 256, 5000])
def test_a_name_that_leaves_no_room_for_those_beside_it_is_refused(tmp_path, length):
    refused(tmp_path / ("x" * length), f"is {length - 236} bytes too long")
    assert list(tmp_path.iterdir()) == []


def test_the_longest_name_is_written(tmp_path):
    written(tmp_path / ("x" * 236))
    assert len(list(tmp_path.iterdir())) == 4


@pytest.mark.parametrize("output", ["file/answers", "file/folder/answers", "/dev/null/answers", "loop/a"])
def test_a_place_where_no_file_can_be_made_is_refused(tmp_path, output):
    (tmp_path / "file").write_text("")
    (tmp_path / "loop").symlink_to("loop")
    refused(tmp_path / output, r"no file can be written in|cannot be (looked at|made)")
    with pytest.raises(ConfigError):
        check_answers_path(tmp_path / output)


@pytest.mark.parametrize(
    "text",
    [
        b"",
        b"{",
        b"[]",
        b"null",
        b"7",
        b"\xff\xfe",
        b"{}",
        b"[" * 100_000,
        json.dumps(SETTINGS | {"max_new_tokens": "9"}).encode(),
        json.dumps(SETTINGS | {"max_new_tokens": True}).encode(),
        json.dumps(SETTINGS | {"max_new_tokens": 10**30}).encode(),
        json.dumps(SETTINGS | {"temperature": None}).encode(),
        json.dumps(SETTINGS | {"temperature": float("nan")}).encode(),
        json.dumps(SETTINGS | {"temperature": 10**400}).encode(),
        json.dumps(SETTINGS | {"top_logprobs": [2]}).encode(),
    ],
)
def test_damaged_settings_are_one_line_and_the_answers_stay(tmp_path, text):
    path = written(tmp_path / "answers.jsonl")
    settings = tmp_path / "answers.jsonl.settings"
    settings.write_bytes(text)
    before = path.read_bytes()
    refused(path, r"answers\.jsonl\.settings: is damaged .* Restore it, or give another --output")
    assert path.read_bytes() == before
    assert settings.read_bytes() == text


def test_a_foreign_setting_of_any_size_is_named_in_one_short_line(tmp_path):
    path = written(tmp_path / "answers.jsonl")
    (tmp_path / "answers.jsonl.settings").write_text(json.dumps(SETTINGS | {"x" * 10_000: ["y" * 10_000] * 99}))
    with pytest.raises(ConfigError, match="its answers were generated with") as caught:
        AnswerFile(path, SETTINGS)
    assert len(str(caught.value)) < 500


@pytest.mark.parametrize("kind", ["", ".errors", ".truncated"])
@pytest.mark.parametrize("line", [b"[" * 100_000, b'{"a":' * 100_000, b"\xff", b"9" * 5000, b'{"row": 1e400}', b"\0"])
def test_a_damaged_line_is_named(tmp_path, kind, line):
    path = written(tmp_path / "answers.jsonl")
    with (tmp_path / f"answers.jsonl{kind}").open("ab") as file:
        file.write(line + b"\n")
    with pytest.raises(DataError, match=rf"answers\.jsonl{kind}:2: (is damaged|has no whole numbers)"):
        with AnswerFile(path, SETTINGS) as file:
            list(file.finished())


def test_settings_are_read_as_they_were_written(tmp_path):
    written(tmp_path / "answers.jsonl")
    assert read_settings(tmp_path / "answers.jsonl.settings") == SETTINGS


def test_what_lies_in_the_place_of_a_file_being_written_is_not_written_through(tmp_path):
    (tmp_path / "other").write_text("precious")
    partial = tmp_path / ".whole.partial"
    partial.symlink_to(tmp_path / "other")
    write_whole(tmp_path / "whole", [b"new"])
    assert (tmp_path / "other").read_text() == "precious"
    os.mkfifo(partial)
    write_whole(tmp_path / "whole", [b"newer"])
    assert (tmp_path / "whole").read_bytes() == b"newer"
    partial.mkdir()
    with pytest.raises(OSError, match=r"/whole'"):
        write_whole(tmp_path / "whole", [b"newest"])
    assert (tmp_path / "whole").read_bytes() == b"newer"


def test_lines_are_not_added_to_a_pipe(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(BridgegardenError, match="expected a file"):
        AppendedLines(tmp_path / "pipe")
