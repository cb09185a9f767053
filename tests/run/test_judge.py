import json
import re

import pytest
from click.testing import CliRunner

from bridgegarden.cli.main import cli
from bridgegarden.data import Columns
from bridgegarden.errors import DataError
from bridgegarden.run.judge import read_pairs
from tests.teacher.servers import body, serving


def write(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


@pytest.fixture
def files(tmp_path):
    asked = [f"question {i}" for i in range(4)]
    first = [{"prompt": text, "completion": f"good {text}"} for text in asked]
    second = [{"prompt": text, "completion": f"bad {text}"} for text in reversed(asked[:3])]
    return write(tmp_path / "a.jsonl", first), write(tmp_path / "b.jsonl", second)


@pytest.fixture
def server(monkeypatch):
    monkeypatch.setenv("no_proxy", "*")
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)

    def verdict(content):
        first = re.search(r"first answer:\n<\S+>\n(\w+)", content["messages"][1]["content"])
        said = "Verdict: first" if first and first[1] == "good" else "Verdict: second"
        return body(json.dumps({"choices": [{"finish_reason": "stop", "message": {"content": said}}]}).encode())

    with serving() as running:
        running.always = verdict
        yield running


def test_answers_are_paired_by_their_prompt_and_the_rest_is_counted(files):
    pairs, alone = read_pairs(*files, Columns())
    assert alone == 1
    assert [(pair.prompt, pair.first, pair.second) for pair in pairs] == [
        (f"question {i}", f"good question {i}", f"bad question {i}") for i in range(3)
    ]


def test_several_answers_to_a_prompt_are_paired_in_order(tmp_path):
    rows = [{"q": "x", "a": f"{i}"} for i in range(3)]
    one, other = write(tmp_path / "a.jsonl", rows), write(tmp_path / "b.jsonl", rows[:2])
    pairs, alone = read_pairs(one, other, Columns(prompt="q", completion="a"))
    assert [(pair.first, pair.second) for pair in pairs] == [("0", "0"), ("1", "1")]
    assert alone == 1


def test_conversations_are_told_apart_by_all_that_was_said_before(tmp_path):
    def chat(system, answer):
        turns = [("system", system), ("user", "hi"), ("assistant", answer)]
        return {"messages": [{"role": role, "content": content} for role, content in turns]}

    one = write(tmp_path / "a.jsonl", [chat("be kind", "1"), chat("be brief", "2")])
    other = write(tmp_path / "b.jsonl", [chat("be brief", "3"), chat("be kind", "4")])
    pairs, _ = read_pairs(one, other, Columns())
    assert [(pair.first, pair.second) for pair in pairs] == [("1", "4"), ("2", "3")]
    assert pairs[0].prompt == "[system]\nbe kind\n\n[user]\nhi"


def test_files_without_a_prompt_in_common_are_refused(files, tmp_path):
    other = write(tmp_path / "c.jsonl", [{"prompt": "else", "completion": "x"}])
    with pytest.raises(DataError, match="no prompt has an answer in both"):
        read_pairs(files[0], other, Columns())


def test_the_command_prints_the_win_rate_and_keeps_the_verdicts(files, server, tmp_path):
    arguments = ["judge", *files, "--base-url", server.url, "--model", "m", "--output", str(tmp_path / "out")]
    done = CliRunner().invoke(cli, arguments)
    assert done.exit_code == 0, done.output
    assert "A's win rate is 100.0 % ± 0.0 (95 %, 3 prompts): A is preferred." in done.stdout
    assert "1 answers have no partner" in done.stderr
    assert json.loads((tmp_path / "out" / "judge.json").read_text())["wins"] == 3
    again = CliRunner().invoke(cli, [*arguments, "--json", "--limit", "2"])
    assert json.loads(again.stdout)["win_rate"]["n"] == 2
    assert len(server.seen) == 6


def test_the_command_ends_with_status_1_if_verdicts_are_missing(files, server, tmp_path):
    usual = server.always
    nothing = body(b'{"choices": [{"finish_reason": "stop", "message": {"content": "hm"}}]}')
    server.always = lambda content: nothing if "question 0" in str(content) else usual(content)
    arguments = ["judge", *files, "--base-url", server.url, "--model", "m", "--output", str(tmp_path / "out")]
    done = CliRunner().invoke(cli, arguments)
    assert done.exit_code == 1
    assert "1 pairs have no verdict" in done.stdout


def test_the_judge_s_address_and_name_must_be_given(files):
    done = CliRunner().invoke(cli, ["judge", *files])
    assert done.exit_code == 2
    assert "--base-url" in done.stderr
