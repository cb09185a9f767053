import errno
import json
import os
import re
import shutil
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from click.testing import CliRunner
from safetensors.torch import load_file

from bridgegarden.cli.main import cli
from bridgegarden.data import Columns
from bridgegarden.errors import ConfigError, DataError, Stopped
from bridgegarden.evaluation.lm_eval import EvaluationOptions
from bridgegarden.evaluation.results import KeptAnswers
from bridgegarden.files import write_whole
from bridgegarden.quickstart import TEACHER
from bridgegarden.run.evaluate import EvaluateTarget, evaluate_target, read_pairs
from bridgegarden.run.export import ExportTarget, export_model
from tests.teacher.servers import body, serving
from tests.tiny import save_tiny, tiny_model

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


@pytest.mark.parametrize(("named", "chat"), [("", False), (", prompt: question, completion: answer", True)])
def test_a_file_is_asked_as_the_recipe_of_the_student_was_taught(tmp_path, named, chat):
    shutil.copytree(TEACHER, tmp_path / "run" / "model")
    keys = ("question", "answer") if chat else ("prompt", "completion")
    (tmp_path / "rows.jsonl").write_text(json.dumps(dict(zip(keys, ("start with 3", "then 4"), strict=True))) + "\n")
    path = tmp_path / "mine.yaml"
    path.write_text(
        f"teacher: {{model: {TEACHER}}}\nstudent: {{model: {TEACHER}}}\ndata: {{train: rows.jsonl{named}}}\n"
        f"output: {tmp_path / 'run'}\n"
    )
    rows = str(tmp_path / "rows.jsonl")
    found, _ = evaluate_target(EvaluateTarget(source=str(path)), EvaluationOptions(tasks=(rows,), samples=0))
    assert found.settings["asked_as_chat"] == ([rows] if chat else [])


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

    def full(path, parts):
        if output in path.parents:
            raise OSError(errno.ENOSPC, "No space left on device", str(path))
        return write_whole(path, parts)

    monkeypatch.setattr("bridgegarden.files.write_whole", full)
    with pytest.raises(ConfigError, match=rf"{output} cannot be written to \(No space left.* kept in {rescued}"):
        evaluate_target(EvaluateTarget(source=str(TEACHER), output=output), OPTIONS)
    (kept,) = rescued.iterdir()
    assert {path.name for path in kept.iterdir()} == {"results.json", "results.md", "problems.jsonl"}


ARITHMETIC = EvaluationOptions(tasks=("bridgegarden_arithmetic",), limit=6, samples=1, batch_size=2)


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory):
    output = tmp_path_factory.mktemp("uninterrupted")
    found, _ = evaluate_target(EvaluateTarget(source=str(TEACHER), output=output), ARITHMETIC)
    assert {path.name for path in output.iterdir()} == {"results.json", "results.md", "problems.jsonl"}
    return found


@pytest.fixture(scope="module")
def run_with_files(tmp_path_factory):
    """A run's folder with its model, of which nothing but the tokenizer is left, and files that were exported of it."""
    pytest.importorskip("gguf")
    output = tmp_path_factory.mktemp("run")
    shutil.copytree(TEACHER, output / "model")
    kinds = ("F32", "Q4_0")
    export_model(ExportTarget(source=str(output / "model"), to="gguf", quantise=kinds, output=output / "export"))
    (output / "model" / "model.safetensors").unlink()
    return output


def test_an_exported_file_is_scored_as_the_model_that_it_was_made_of(run_with_files, uninterrupted, tmp_path, capsys):
    file = run_with_files / "export" / "model-F32.gguf"
    found, _ = evaluate_target(EvaluateTarget(source=str(file), output=tmp_path), ARITHMETIC)
    assert greedy(found) == greedy(uninterrupted)
    assert (found.model, found.settings["dtype"]) == (str(file), "float32")
    assert found.settings["tokenizer"] == str(run_with_files / "model")
    assert "Converting" not in capsys.readouterr().err


def test_of_a_rounded_file_the_rounded_weights_are_scored(run_with_files, tmp_path, monkeypatch):
    from bridgegarden.fake_quantisation import rounded

    seen = []

    def keep(model, tokenizer, options, **keywords):
        seen.append(model)
        raise KeyboardInterrupt

    monkeypatch.setattr("bridgegarden.run.evaluate.evaluate_model", keep)
    target = EvaluateTarget(source=str(run_with_files / "export" / "model-Q4_0.gguf"), output=tmp_path)
    with pytest.raises(Stopped):
        evaluate_target(target, OPTIONS)
    name = "model.layers.1.mlp.up_proj.weight"
    whole = load_file(TEACHER / "model.safetensors")[name].float()
    assert torch.equal(seen[0].state_dict()[name], rounded(whole, "Q4_0"))


def test_a_file_without_its_tokenizer_is_not_scored_with_another(run_with_files, tmp_path):
    alone = shutil.copy(run_with_files / "export" / "model-F32.gguf", tmp_path / "alone.gguf")
    own = ["--tasks", "bridgegarden_arithmetic", "--limit", "1", "--samples", "0", "--output", str(tmp_path / "out")]

    def evaluate(*arguments):
        return CliRunner().invoke(cli, ["evaluate", *map(str, arguments), *own])

    refused = evaluate(alone)
    assert refused.exit_code == 2
    assert "alone.gguf" in refused.stderr
    assert "--tokenizer FOLDER" in refused.stderr
    assert evaluate(alone, "--tokenizer", TEACHER).exit_code == 0
    other = save_tiny(tmp_path / "other", tiny_model("llama"))
    refused = evaluate(alone, "--tokenizer", other)
    assert refused.exit_code == 2
    assert "other': is not that of alone.gguf: " in refused.stderr
    assert "--tokenizer: is for a GGUF file" in evaluate(TEACHER, "--tokenizer", TEACHER).stderr
    assert "--set changes a recipe" in evaluate(alone, "--set", "seed=1").stderr
    assert "no such file" in evaluate(tmp_path / "nothere.gguf").stderr
    cut = tmp_path / "cut.gguf"
    cut.write_bytes((tmp_path / "alone.gguf").read_bytes()[:-1000])
    assert "cut.gguf: cannot be read (" in evaluate(cut).stderr


def end_after(answers, monkeypatch, error):
    """Raise `error` when so many answers have come; a list of all that are asked for from now on."""
    asked = []
    keep = KeptAnswers.add_partial

    def add_partial(self, *answer):
        if len(asked) == answers:
            raise error
        asked.append(answer)
        keep(self, *answer)

    monkeypatch.setattr(KeptAnswers, "add_partial", add_partial)
    return asked


def greedy(found):
    return [line for line in found.problems if line["decoding"] == "greedy"]


@pytest.mark.slow
@pytest.mark.parametrize("error", [KeyboardInterrupt(), RuntimeError("CUDA error: an illegal memory access")])
def test_an_evaluation_that_ended_midway_asks_only_for_the_answers_that_are_missing(
    error, uninterrupted, tmp_path, monkeypatch, capsys
):
    target = EvaluateTarget(source=str(TEACHER), output=tmp_path)
    with monkeypatch.context() as patch:
        end_after(5, patch, error)
        with pytest.raises((Stopped, RuntimeError), match=r"the same command|CUDA error"):
            evaluate_target(target, ARITHMETIC)
    assert (tmp_path / "answers.jsonl").read_text().count("\n") == 5
    asked = end_after(None, monkeypatch, error)
    found, files = evaluate_target(target, ARITHMETIC)
    assert "going on with 5 answers of an earlier run" in capsys.readouterr().err
    assert len(asked) == 12 - 5
    assert greedy(found) == greedy(uninterrupted)
    assert len(found.problems) == len(uninterrupted.problems)
    assert not files.answers.exists()


def test_answers_of_other_weights_are_not_taken(uninterrupted, tmp_path, monkeypatch):
    target = EvaluateTarget(source=str(TEACHER), output=tmp_path)
    with monkeypatch.context() as patch:
        end_after(5, patch, KeyboardInterrupt())
        with pytest.raises(Stopped):
            evaluate_target(target, ARITHMETIC)
    monkeypatch.setattr("bridgegarden.teacher.cache.spec.weights_fingerprint", lambda folder: "of others")
    asked = end_after(None, monkeypatch, None)
    found, _ = evaluate_target(target, ARITHMETIC)
    assert len(asked) == 12
    assert found.problems == uninterrupted.problems


def test_answers_that_find_no_room_are_one_line_and_those_before_are_kept(tmp_path, monkeypatch):
    target = EvaluateTarget(source=str(TEACHER), output=tmp_path)
    monkeypatch.setattr("bridgegarden.evaluation.results.SECONDS_BETWEEN_WRITES", 0.0)
    write, written = os.write, []

    def full(file, data):
        written.append(data)
        if len(written) > 4:
            raise OSError(errno.ENOSPC, "No space left on device")
        return write(file, data)

    monkeypatch.setattr("bridgegarden.files.os.write", full)
    with pytest.raises(DataError, match=r"answers.jsonl: cannot be written \(No space"):
        evaluate_target(target, ARITHMETIC)
    assert (tmp_path / "answers.jsonl").read_text().count("\n") == 4


def test_likelihoods_come_back_as_they_were(tmp_path):
    class Weighing:
        def set_cache_hook(self, hook):
            self.hook = hook

        def loglikelihood(self, requests, disable_tqdm=False):
            answers = [(-0.1 - number, False) for number, _ in enumerate(requests)]
            for request, answer in zip(requests, answers, strict=True):
                self.hook.add_partial("loglikelihood", request.args, answer)
            return answers

        generate_until = loglikelihood_rolling = loglikelihood

    asked = [SimpleNamespace(args=("2 + 2 =", f" {number}")) for number in range(3)]
    for expected in ([(-0.1, False), (-1.1, False), (-2.1, False)],) * 2:
        lm: Any = Weighing()
        with KeptAnswers(tmp_path / "answers.jsonl", {}) as kept:
            kept.attach(lm)
            assert lm.loglikelihood(asked) == expected
    assert kept.found == 3
    assert (tmp_path / "answers.jsonl").read_text().count("\n") == 3


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
