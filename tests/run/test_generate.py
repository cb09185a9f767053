import json

import pytest
from click.testing import CliRunner

from bridgegarden.cli.main import cli
from tests.teacher.servers import serving, status

KEY = "sk-canary-0123456789abcdef"


@pytest.fixture(autouse=True)
def no_proxy(monkeypatch):
    monkeypatch.setenv("no_proxy", "*")
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)


@pytest.fixture
def server():
    with serving() as running:
        yield running


def invoke(*arguments):
    return CliRunner().invoke(cli, [str(argument) for argument in arguments])


def lines(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_a_local_teacher_answers_and_its_answers_are_trained_on(write_recipe, tmp_path):
    recipe, answers = write_recipe(), tmp_path / "out-answers.jsonl"
    options = ["--limit", 6, "--n", 2, "--temperature", 0.7, "--seed", 1, "--max-new-tokens", 8, "--keep-truncated"]
    result = invoke("generate", recipe, *options)
    assert result.exit_code == 0, result.output
    assert result.stdout.startswith(f"12 of 12 answers in {answers}")
    rows = lines(answers)
    assert [row["question"] for row in rows[::2]] == [f"0 + {b} =" for b in range(6)]
    assert {row["generated_by"] for row in rows} == {str(tmp_path / "teacher")}
    again = invoke("generate", recipe, *options)
    assert "12 from before" in again.stdout
    result = invoke("train", recipe, "--set", f"data.train={answers}")
    assert result.exit_code == 0, result.output


def test_a_server_answers_and_the_rows_are_those_of_the_recipe(write_recipe, tmp_path, server, monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    output = tmp_path / "new.jsonl"
    result = invoke(
        "generate", write_recipe(), "--base-url", server.url, "--model", "big", "--output", output, "--top-logprobs", 2
    )
    assert result.exit_code == 0, result.output
    assert result.stdout == f"30 of 30 answers in {output}\n"
    assert {content["model"] for content in server.seen} == {"big"}
    assert set(server.keys) == {f"Bearer {KEY}"}
    assert lines(output)[7]["answer"] == "1 + 1 ="
    written = "".join(path.read_text() for path in tmp_path.glob("new.jsonl*"))
    assert KEY not in result.output + written


def test_a_recipe_may_name_the_server_for_generate_but_not_for_train(write_recipe, tmp_path, server):
    recipe = write_recipe(teacher={"server": server.url, "model": "big"})
    assert invoke("generate", recipe, "--limit", 2).exit_code == 0
    assert len(server.seen) == 2
    for command in (["train"], ["train", "--audit"]):
        result = invoke(*command, recipe)
        assert result.exit_code == 2
        assert "teacher.server: training asks no server; it reads what one has said from a cache" in result.stderr
        assert result.stderr.count("\n") == 1


def test_failures_end_with_status_one_and_say_where_they_are(write_recipe, tmp_path, server):
    server.always = lambda content: status(400) if "0 + 1" in str(content) else None
    result = invoke("generate", write_recipe(), "--base-url", server.url, "--limit", 3)
    assert result.exit_code == 1
    assert "1 failed, see" in result.stdout
    assert lines(tmp_path / "out-answers.jsonl.errors")[0]["error"] == "HTTP 400: busy."


def test_errors_are_one_line_without_the_key(write_recipe, server, monkeypatch):
    server.always = lambda content: status(401, f"bad {KEY}")
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    result = invoke("generate", write_recipe(), "--base-url", server.url)
    assert result.exit_code == 2
    assert "it refuses the API key" in result.stderr
    assert KEY not in result.output
    result = invoke("generate", write_recipe(), "--base-url", server.url, "--api-key-env", KEY)
    assert result.exit_code == 2
    assert KEY not in result.output
