"""A comparison of students whose teacher has another tokenizer."""

import json
import math
from html import unescape

import pytest
import yaml
from rich.console import Console

from bridgegarden.compare.across import LEFT_OUT, PER_BYTE, PER_TOKEN
from bridgegarden.compare.findings import DRAFTS, sentences
from bridgegarden.compare.report import tables_markdown, terminal_tables
from bridgegarden.compare.result import CompareSettings
from bridgegarden.compare.run import compare
from bridgegarden.errors import ConfigError
from bridgegarden.table import BITS
from tests.compare.test_run import TRAINING
from tests.tiny import save_tiny, tiny_model
from tests.tokenizer_pairs import ROWS, threes

SETTINGS = CompareSettings(
    objectives=("sft", "soft", "gkd"), seeds=(0,), baseline="soft", evaluation=None, prompts=3, max_new_tokens=9
)


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    """A teacher of letters and numbers, a student of bytes."""
    folder = tmp_path_factory.mktemp("across")
    teacher = tiny_model("llama", len(threes()), seed=1)
    teacher.get_output_embeddings().weight.data *= 40
    save_tiny(folder / "teacher", teacher, threes())
    save_tiny(folder / "student", tiny_model("qwen2", hidden_size=16, seed=2))
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    recipe = {
        "teacher": {"model": "teacher"},
        "student": {"model": "student"},
        "data": {"train": "rows.jsonl", "eval": "rows.jsonl", "prompt": "question", "completion": "answer"},
        "on_policy": {"lmbda": 0.0, "max_new_tokens": 5},
        "training": TRAINING | {"max_length": 128},
    }
    (folder / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    return folder / "recipe.yaml"


@pytest.fixture(scope="module")
def finished(source, tmp_path_factory):
    output = tmp_path_factory.mktemp("finished")
    return compare(str(source), SETTINGS, command="typed", output=output, console=Console(quiet=True))


@pytest.mark.slow
def test_every_objective_is_measured_by_the_byte_and_by_the_token(finished):
    result, _ = finished
    assert not result.failures
    assert result.pair.translated
    for run in result.runs:
        measured = run.measured
        for names in (PER_BYTE, PER_TOKEN):
            on_teacher, on_student, bias = (list(measured.by_unit[name].values()) for name in names)
            assert [b - a for a, b in zip(on_teacher, on_student, strict=True)] == pytest.approx(bias)
            assert len(bias) == 3
            assert all(map(math.isfinite, bias))
        loss = sum(measured.by_unit["student_loss"].values())
        for name, least in (("student_loss_per_byte", 1.0), ("student_loss_per_token", 1.0)):
            # A text has at most nine tokens, each of a byte, and its end.
            assert sum(measured.by_unit[name].values()) >= loss / 9 * least - 1e-9
        assert 0.3 < measured.known["student_texts"] <= 1
        assert measured.entropy_kept is None
        assert measured.teacher_label_loss is None
        assert run.objective == "sft" or measured.label_loss > 0
    assert {run.objective: run.spent.teacher_tokens > 0 for run in result.runs} == {
        "sft": False,
        "soft": False,
        "gkd": True,
    }


def test_what_is_left_out_is_named_with_the_reason_in_terminal_file_and_page(finished):
    result, folder = finished
    assert all(name not in run.measured.by_unit for run in result.runs for name in DRAFTS)
    for text in (
        "\n".join(str(table.note) for table in terminal_tables(result)),
        tables_markdown(result),
        (folder.path / "report.html").read_text(),
    ):
        assert LEFT_OUT in " ".join(unescape(text).split())
        assert "exposure bias, a difference of two, may be more or less" in " ".join(unescape(text).split())
    assert any(line.startswith("Exposure bias (of what is known of the teacher) is ") for line in sentences(result))
    quality, across, *_ = terminal_tables(result)
    assert "entropy kept" not in [str(column) for column in quality.columns]
    values = list(result.runs[0].measured.by_unit["student_loss_per_byte"].values())
    shown = float(across.rows[0][2].text)
    assert shown == pytest.approx(BITS * sum(values) / len(values), rel=0.02)


def test_a_teachers_cache_costs_what_the_teacher_reads(finished):
    result, _ = finished
    read = 0
    for row in ROWS:
        question = [{"role": "user", "content": row["question"]}]
        prompt = threes().apply_chat_template(question, add_generation_prompt=True, return_dict=False)
        read += len(prompt) + len(threes().encode(row["answer"], add_special_tokens=False)) + 1
    assert result.cache.tokens == read
    assert result.cache.flops > 0


def test_an_objective_that_cannot_be_translated_is_refused_by_name_before_anything_is_trained(source, tmp_path):
    settings = CompareSettings(objectives=("sft", "soft"), seeds=(0,), baseline="sft", evaluation=None)
    with pytest.raises(ConfigError, match="objective: the teacher has another tokenizer"):
        compare(
            str(source),
            settings,
            command="typed",
            overrides=["objective.temperature=2"],
            output=tmp_path / "out",
            console=Console(quiet=True),
        )
    assert not (tmp_path / "out" / "runs").exists()
