"""``bridgegarden diagnose`` where teacher and student have different tokenizers."""

import json
from html import unescape

import pytest
import torch
from click.testing import CliRunner
from transformers import AutoModelForCausalLM, AutoTokenizer

from bridgegarden.cli.main import cli
from bridgegarden.report.diagnosis_across import LEFT_OUT
from bridgegarden.table import BITS
from bridgegarden.teacher.translation.byte_view import ByteView
from tests.tiny import save_tiny, tiny_model, tiny_tokenizer
from tests.tokenizer_pairs import ROWS, ones, threes

pytestmark = pytest.mark.slow

SMALL = ["--samples", "1", "--max-new-tokens", "10"]


def diagnose(*arguments):
    return CliRunner().invoke(cli, ["diagnose", *map(str, arguments)])


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A teacher of letters and numbers of up to three digits, students of bytes and of single digits, and rows."""
    folder = tmp_path_factory.mktemp("across")
    teacher = tiny_model("llama", len(threes()), seed=1)
    teacher.get_output_embeddings().weight.data *= 40
    save_tiny(folder / "teacher", teacher, threes())
    save_tiny(folder / "sibling", tiny_model("llama", len(threes()), seed=5), threes())
    save_tiny(folder / "other", tiny_model("qwen2", len(ones()), seed=4), ones())
    for seed in (2, 3):
        save_tiny(folder / f"student-{seed}", tiny_model("qwen2", seed=seed))
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    return folder


def asked(folder, *students, output="found", more=SMALL):
    columns = ["--prompt-column", "question", "--completion-column", "answer"]
    named = [part for name in students for part in ("--student", folder / name)]
    models = ["--teacher", folder / "teacher", *named, "--prompts", folder / "rows.jsonl", *columns]
    return diagnose(*models, "--output", folder / output, *more)


@pytest.fixture(scope="module")
def found(folder):
    few = ["--budget", "700", "--rounds", "2", "--top", "1"]
    result = asked(folder, "student-2", "student-3", more=[*SMALL[:2], "--max-new-tokens", "60", *few])
    assert result.exit_code == 0, result.output
    return result, json.loads((folder / "found" / "result.json").read_text())


def test_losses_are_told_by_the_byte_and_by_the_token_with_what_is_known(found, folder):
    result, document = found
    assert "teacher and student have different tokenizers: exposure bias and losses are of what is" in result.stderr
    students = document["findings"]["students"]
    assert [one["name"] for one in students] == ["student-2", "student-3"]
    for one in students:
        bias = one["exposure_bias"]
        assert one["attribution"] is one["advice"] is one["draft_model"] is None
        assert one["verdict"]["draft"] == "not defined"
        for name in ("teacher_loss", "student_loss"):
            by_text, by_byte = bias[name]["mean"], bias["per_byte"][name]["mean"]
            size = bias["per_byte"][name.replace("loss", "bytes")]["mean"]
            assert by_byte == pytest.approx(by_text / size)
            assert by_byte > 0
        for texts in ("teacher_texts", "student_texts"):
            assert 0.3 < one["known"][texts]["exact_mass"] <= 1
    assert len(document["findings"]["differences"]) == 3
    page = " ".join(unescape((folder / "found" / "report.html").read_text()).split())
    said = " ".join(result.stdout.split())
    for what, why in LEFT_OUT.items():
        assert what in page
        assert why in page
        assert why in said
    shown = f"{BITS * students[0]['exposure_bias']['per_byte']['student_loss']['mean']:.2g}"
    assert shown in page


def test_kappa_is_told_where_both_agree_and_how_many_places_that_are(found, folder):
    result, document = found
    said = " ".join(result.stdout.split())
    page = " ".join(unescape((folder / "found" / "report.html").read_text()).split())
    view = ByteView(threes())
    for one in document["findings"]["students"]:
        agreement, kappa = one["agreement"], one["kappa"]
        assert agreement["tokens"] > agreement["both_begin"] > agreement["both_have"] >= len(kappa["positions"]) > 0
        assert kappa["candidates"] == agreement["both_have"]
        words = f"at {agreement['both_have']:,} of these each of the likeliest tokens of the two is a token of both"
        assert words in said
        assert words in page
        for place in kappa["positions"]:
            assert place["contribution"]["mean"] is None
            for action in place["actions"]:
                assert ByteView(tiny_tokenizer()).tokens[action["token"]] in view.tokens
                assert str(action["token"]) in document["findings"]["tokens"]


def test_both_losses_on_the_answers_are_of_the_same_bytes(found, folder):
    """By the student's token, summed over the teacher's own: no translation has a part in it."""
    losses = found[1]["findings"]["students"][0]["label_losses"]
    sums, tokens = [0.0, 0.0], 0
    for row in ROWS:
        for side, (name, tokenizer) in enumerate((("teacher", threes()), ("student-2", None))):
            tokenizer = tokenizer or AutoTokenizer.from_pretrained(folder / name)
            model = AutoModelForCausalLM.from_pretrained(folder / name)
            turn = [{"role": "user", "content": row["question"]}]
            prompt = list(tokenizer.apply_chat_template(turn, add_generation_prompt=True, return_dict=False))
            answer = [*tokenizer.encode(row["answer"], add_special_tokens=False), tokenizer.eos_token_id]
            logp = model(torch.tensor([prompt + answer])).logits[0].log_softmax(-1)[len(prompt) - 1 : -1]
            sums[side] -= logp.gather(1, torch.tensor(answer)[:, None]).sum().item()
            tokens += len(answer) * side
    assert losses["tokens"] == tokens
    assert losses["teacher"] == pytest.approx(sums[0] / tokens, rel=1e-3)
    assert losses["student"] == pytest.approx(sums[1] / tokens, rel=1e-3)


@pytest.mark.parametrize("other", ["other", "sibling"])
def test_students_of_several_vocabularies_are_refused_by_name(folder, other):
    result = asked(folder, "student-2", other, output=f"refused-{other}")
    assert result.exit_code == 2
    assert f"--student: 'student-2' and '{other}' (of 2 students) have different tokenizers" in result.stderr
    assert "Diagnose one at a time" in result.stderr
    assert not (folder / f"refused-{other}").exists()


def test_prompts_in_the_students_tokens_are_refused(folder):
    (folder / "ids.jsonl").write_text('{"input_ids": [1, 2, 3]}\n{"input_ids": [2, 3, 4]}\n')
    models = ["--teacher", folder / "teacher", "--student", folder / "student-2", "--prompts", folder / "ids.jsonl"]
    result = diagnose(*models, "--output", folder / "ids", *SMALL)
    assert result.exit_code == 2
    assert "has 'input_ids' of the student's tokenizer, which a teacher with another tokenizer" in result.stderr
