"""Several sources of rows, through every command that reads rows."""

import json

import pytest
from click.testing import CliRunner
from datasets import Dataset

from bridgegarden.cli.main import cli
from bridgegarden.errors import DataError
from bridgegarden.recipe import load_recipe
from bridgegarden.run.checked import audit
from bridgegarden.run.pair import recipe_pair
from bridgegarden.run.prompts import PromptSource, read_prompts
from bridgegarden.run.rows import RunData
from bridgegarden.run.teachers import teacher_of
from tests.tiny import tiny_tokenizer

OWN_SHAPE = [
    {"messages": [{"role": "user", "content": f"{n} - {n} ="}, {"role": "assistant", "content": "0"}]}
    for n in range(20)
]


@pytest.fixture
def mixed(write_recipe, tmp_path):
    """A recipe with 30 rows in columns of the recipe's own names, and 20 conversations in another file."""
    path = write_recipe()
    (tmp_path / "chats.jsonl").write_text("\n".join(map(json.dumps, OWN_SHAPE)))
    rows = [json.loads(line) for line in (tmp_path / "train.jsonl").read_text().splitlines()]
    named = [{"prompt": row["question"], "completion": row["answer"]} for row in rows]
    (tmp_path / "train.jsonl").write_text("\n".join(map(json.dumps, named)))
    text = path.read_text().replace("  completion: answer\n", "").replace("  prompt: question\n", "")
    path.write_text(text.replace(f"train: {tmp_path / 'train.jsonl'}", "train: [train.jsonl, chats.jsonl]"))
    return path


WEIGHTED = "data.train=[{path: train.jsonl, weight: 1}, {path: chats.jsonl, weight: 3}]"


def run(*arguments):
    return CliRunner().invoke(cli, [str(argument) for argument in arguments], catch_exceptions=False)


def rows_of(recipe):
    return teacher_of(recipe).rows(recipe_pair(recipe))


def test_several_files_give_the_rows_of_each_file_alone_in_their_order(mixed, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    both = rows_of(load_recipe(mixed))
    alone = [rows_of(load_recipe(mixed, [f"data.train={name}.jsonl"])) for name in ("train", "chats")]
    assert both.train["input_ids"] == [ids for data in alone for ids in data.train["input_ids"]]
    assert both.train["labels"] == [ids for data in alone for ids in data.train["labels"]]
    assert both.train["row"] == list(range(50))
    assert both.mix == "training rows: train train.jsonl 30, train chats.jsonl 20"
    assert alone[0].mix is None
    weighted = rows_of(load_recipe(mixed, [WEIGHTED]))
    rows = weighted.train["row"]
    assert len(rows) == len(set(rows)) == 27
    assert sum(row >= 30 for row in rows) == 20
    assert rows_of(load_recipe(mixed, [WEIGHTED, "data.seed=0"])).train["row"] == rows
    assert rows_of(load_recipe(mixed, [WEIGHTED, "data.seed=1"])).train["row"] != rows
    assert [weighted.train["input_ids"][at] for at in range(27)] == [both.train["input_ids"][row] for row in rows]


def test_a_bad_row_is_named_by_its_file(mixed, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "chats.jsonl").write_text(json.dumps(OWN_SHAPE[0]) + '\n{"messages": []}')
    with pytest.raises(DataError, match=r"train chats\.jsonl, row 1"):
        rows_of(load_recipe(mixed))


def test_an_audit_shows_a_row_of_each_source_and_the_shares(mixed, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    text = audit(load_recipe(mixed, [WEIGHTED]))
    assert "train train.jsonl, row " in text
    assert "train chats.jsonl, row 0: " in text
    assert "training rows: train train.jsonl 7 of 30 (26%), train chats.jsonl 20 of 20 (74%)" in text
    assert "first 20 rows of train chats.jsonl: " in text


def test_train_says_how_many_rows_come_from_each_source_and_goes_on(mixed, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    done = run("train", mixed, "--set", WEIGHTED, "--set", "training.max_steps=2")
    assert done.exit_code == 0, done.output
    assert "training rows: train train.jsonl 7 of 30 (26%), train chats.jsonl 20 of 20 (74%)" in done.stderr
    card = (tmp_path / "out" / "model" / "README.md").read_text()
    assert "`train.jsonl` (local), `chats.jsonl` (local)" in card
    again = run("train", mixed, "--set", WEIGHTED, "--set", "training.max_steps=2")
    assert "holds the finished model of this recipe" in again.stderr
    other = run("train", mixed, "--set", WEIGHTED, "--set", "training.max_steps=2", "--set", "data.seed=1")
    assert other.exit_code != 0


def test_a_teacher_answers_the_rows_of_every_source(mixed, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    options = ("--max-new-tokens", 4, "--keep-truncated", "--output", "answers.jsonl")
    done = run("generate", mixed, "--set", WEIGHTED, *options)
    assert done.exit_code == 0, done.output
    rows = [json.loads(line) for line in (tmp_path / "answers.jsonl").read_text().splitlines()]
    assert sum("messages" in row for row in rows) == 20
    assert sum("prompt" in row for row in rows) == 7
    assert "27 from before" in run("generate", mixed, "--set", WEIGHTED, *options).stdout


def test_a_diagnosis_writes_from_the_start_of_the_mix(mixed, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    source = PromptSource.of_recipe(load_recipe(mixed, [WEIGHTED]).data)
    found = read_prompts(source, tiny_tokenizer(), room=None, vocab_size=264, limit=8)
    texts = [tiny_tokenizer().decode(ids) for ids in found.ids]
    assert sum(" - " in text for text in texts) == 6
    assert found.used.source == "train.jsonl, chats.jsonl"


def test_a_source_of_which_no_row_is_taken_is_left_out(mixed, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    one = rows_of(load_recipe(mixed, [WEIGHTED, "data.limit=1"]))
    assert len(one.train) == 1
    assert one.mix == "training rows: train train.jsonl 0 of 30 (0%), train chats.jsonl 1 of 20 (100%)"
    few = rows_of(load_recipe(mixed, ["data.train=[{path: train.jsonl, weight: 1}, {path: chats.jsonl, weight: 99}]"]))
    assert len(few.train) == 20
    assert "chats.jsonl, row 0" in audit(load_recipe(mixed, [WEIGHTED, "data.limit=1"]))


def test_a_fingerprint_is_of_ids_and_labels_in_their_order():
    def named(ids, labels):
        return RunData(Dataset.from_list([{"input_ids": ids, "labels": labels}]), None).fingerprints["train"]

    assert named([1, 2], [-100, 2]) == named([1, 2], [-100, 2])
    assert len({named([1, 2], [-100, 2]), named([2, 1], [-100, 2]), named([1, 2], [1, 2]), named([1], [2])}) == 4
