"""``bridgegarden diagnose`` on tiny models: a recipe or a pair to a page and numbers, and what is refused."""

import json
import shutil

import pytest
import torch
import yaml
from click.testing import CliRunner
from transformers import AutoModelForCausalLM

from bridgegarden.cli.main import cli
from tests.tiny import save_tiny, tiny_model, tiny_tokenizer

SMALL = [
    *("--limit", "4", "--samples", "1", "--max-new-tokens", "6", "--budget", "900"),
    *("--rounds", "2", "--top", "1", "--show", "1", "--batch-size", "64"),
]


def diagnose(*arguments):
    return CliRunner().invoke(cli, ["diagnose", *map(str, arguments)])


@pytest.fixture
def pair(write_recipe, tmp_path):
    """Options that name the models and prompts of a recipe."""
    write_recipe()
    prompts = tmp_path / "prompts.txt"
    prompts.write_text("1 + 1 =\n2 + 2 =\n\n3 + 3 =\n1 + 1 =\n")
    return ["--teacher", tmp_path / "teacher", "--prompts", prompts, "--output", tmp_path / "found"]


def test_a_recipe_is_diagnosed_with_its_student_trained_or_not(write_recipe, tmp_path):
    recipe = write_recipe(data={"eval": str(tmp_path / "eval.jsonl")})
    result = diagnose(recipe, *SMALL)
    assert result.exit_code == 0, result.output
    assert "not yet trained" in result.stderr
    folder = tmp_path / "out" / "diagnosis"
    assert sorted(path.name for path in folder.iterdir()) == ["kappa_probe.json", "report.html", "result.json"]
    document = json.loads((folder / "result.json").read_text())
    turn = tiny_tokenizer().apply_chat_template(
        [{"role": "user", "content": "5 + 0 ="}], add_generation_prompt=True, return_dict=False
    )
    wanted = {"source": str(tmp_path / "eval.jsonl"), "used": 4, "left_out": [], "tokens": 4 * len(turn)}
    assert document["prompts"] == wanted
    assert [one["name"] for one in document["students"]] == ["student"]
    save_tiny(tmp_path / "out" / "model", tiny_model("llama", 264, seed=3))
    result = diagnose(recipe, *SMALL)
    assert "the trained student in" in result.stderr
    assert str(folder / "report.html") in result.stdout.replace("\n", "")


def test_several_students_are_compared_and_json_is_the_file(pair, tmp_path):
    students = ["--student", f"a={tmp_path / 'student'}", "--student", f"b={tmp_path / 'teacher'}"]
    result = diagnose(*pair, *students, *SMALL, "--json")
    assert result.exit_code == 0, result.output
    document = json.loads(result.stdout)
    assert document == json.loads((tmp_path / "found" / "result.json").read_text())
    assert document["prompts"]["used"] == 3, "the repeated prompt is taken once"
    assert {one["measure"] for one in document["findings"]["differences"]} == {
        "exposure_bias",
        "student_loss",
        "teacher_loss",
    }
    itself = document["findings"]["students"][1]
    assert itself["exposure_bias"]["student_loss"]["mean"] == pytest.approx(0.0, abs=1e-6), "the teacher as a student"
    assert itself["attribution"]["agrees"]
    assert all(place["kind"] in ("bridge", "garden", "undecided") for place in itself["kappa"]["positions"])


@pytest.mark.slow
def test_rows_with_answers_decide_whether_the_teacher_knows_them_better(pair, tmp_path):
    rows = [{"question": f"{n} + 1 =", "answer": f"{n + 1}"} for n in range(8)]
    rows += [{"question": "9 + 9 ="}]
    pair[3] = tmp_path / "rows.jsonl"
    pair[3].write_text("\n".join(map(json.dumps, rows)))
    columns = ["--prompt-column", "question", "--completion-column", "answer"]
    result = diagnose(*pair, "--student", f"itself={tmp_path / 'teacher'}", *columns, *SMALL, "--limit", "9", "--json")
    assert result.exit_code == 0, result.output
    (found,) = json.loads(result.stdout)["findings"]["students"]
    losses = found["label_losses"]
    assert losses["rows"] == 8, "the last row has no answer"
    turn = tiny_tokenizer().apply_chat_template(
        [{"role": "user", "content": "0 + 1 ="}, {"role": "assistant", "content": "1"}], return_dict=False
    )
    asked = tiny_tokenizer().apply_chat_template(
        [{"role": "user", "content": "0 + 1 ="}], add_generation_prompt=True, return_dict=False
    )
    assert 8 * 2 <= losses["tokens"] <= 8 * (len(turn) - len(asked))
    ids = torch.tensor([turn])
    with torch.no_grad():
        logits = AutoModelForCausalLM.from_pretrained(tmp_path / "teacher")(ids).logits[0]
    first = -logits[len(asked) - 1].log_softmax(-1)[turn[len(asked)]].item()
    assert 0.2 * first < losses["teacher"] < 5 * first
    assert losses["teacher"] == pytest.approx(losses["student"])
    assert losses["teacher"] > 1
    assert found["verdict"]["rows"] == "no better"
    assert found["verdict"]["distilling"] == "will not help"
    shown = diagnose(*pair, "--student", f"itself={tmp_path / 'teacher'}", *columns, *SMALL, "--limit", "9").stdout
    assert "Verdict on itself" in shown
    assert "Distillation will not help here." in shown
    assert "Whether it is worth having as a draft model is undecided." in " ".join(shown.split())


def test_padded_vocabularies_are_compared_on_what_they_share(write_recipe, tmp_path):
    recipe = write_recipe("qwen2", teacher_vocab=272, student_vocab=264)
    result = diagnose(recipe, *SMALL, "--json")
    assert result.exit_code == 0, result.output
    assert json.loads(result.stdout)["vocab_size"] == 259


def test_rows_with_token_ids_are_prompts_up_to_the_first_label(pair, tmp_path):
    rows = [{"input_ids": [1, 2, 3, 4 + n], "labels": [-100, -100, 3, 4 + n]} for n in range(3)]
    rows += [{"input_ids": [9, 2, 3], "labels": [-100, -100, 3]}]
    pair[3] = tmp_path / "rows.jsonl"
    pair[3].write_text("\n".join(map(json.dumps, rows)))
    result = diagnose(*pair, "--student", tmp_path / "student", *SMALL, "--json")
    assert result.exit_code == 0, result.output
    assert json.loads(result.stdout)["prompts"]["tokens"] == 4, "two different prompts of two tokens"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (["--budget", "5"], "budget: 5 generated tokens are too few for 'student'"),
        (["--divergence", "forward"], "diagnosis.divergence: unknown name 'forward'"),
        (["--max-new-tokens", "600"], "0 prompts to write from"),
        (["--student", "student=elsewhere"], "two models would be called 'student'"),
        (["--set", "training.max_steps=3"], "--set changes a recipe, and none is given"),
        (["--budget", "many"], "expected a number of tokens such as 50000, 200k or 1.5M"),
    ],
)
def test_what_cannot_work_is_one_line_and_leaves_nothing(pair, tmp_path, changes, message):
    result = diagnose(*pair, "--student", tmp_path / "student", *SMALL, *changes)
    assert result.exit_code == 2
    assert message in " ".join(result.stderr.split())
    assert "Traceback" not in result.output
    assert not (tmp_path / "found").exists()


def test_what_is_missing_is_named(tmp_path):
    result = diagnose("--teacher", tmp_path)
    assert result.exit_code == 2
    assert "--student, --prompts missing: give RECIPE, or --teacher, --student and --prompts." in result.stderr


def test_a_served_teacher_cannot_judge_what_the_student_writes(write_recipe, tmp_path):
    path = write_recipe()
    tree = yaml.safe_load(path.read_text())
    tree["teacher"] |= {"server": "http://localhost:1/v1", "cache": str(tmp_path / "cache")}
    path.write_text(yaml.safe_dump(tree))
    result = diagnose(path, *SMALL)
    assert result.exit_code == 2
    assert "teacher.server: a server does not give its distribution at what the student writes" in result.stderr


def test_a_students_folder_without_a_tokenizer_is_named(pair, tmp_path):
    shutil.copytree(tmp_path / "student", tmp_path / "bare")
    for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        (tmp_path / "bare" / name).unlink(missing_ok=True)
    result = diagnose(*pair, "--student", tmp_path / "bare", *SMALL)
    assert result.exit_code == 2
    assert "bare" in result.stderr
    assert "Traceback" not in result.output
