"""What other programs kept of a teacher, and our own exports, to a cache that trains."""

import json
import math
import re
import shutil

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml
from click.testing import CliRunner

from bridgegarden.cli.main import cli
from bridgegarden.data import Columns, RowRules, load_rows, tokenise
from bridgegarden.recipe import load_recipe
from bridgegarden.run.cache import CacheOptions, build_recipe_cache
from bridgegarden.teacher.answers import least_entropy
from bridgegarden.teacher.cache.reader import TeacherCache
from bridgegarden.teacher.cache.shard import documents_of
from tests.tiny import VOCABULARY, tiny_tokenizer

pytestmark = pytest.mark.slow

PROBABILITIES = np.array([0.6, 0.2, 0.1, 0.05, 0.02])
"""Of the label and four others: 0.03 are left for the tail."""
ALONE = ("--set", "teacher.only_cache=true", "--set", "teacher.model=big")


def run(*arguments):
    return CliRunner().invoke(cli, [str(argument) for argument in arguments])


@pytest.fixture
def recipe(write_recipe, tmp_path):
    path = write_recipe(teacher={"cache": str(tmp_path / "cache")})
    return path


def documents(tmp_path):
    rules = RowRules(columns=Columns(prompt="question", completion="answer"), max_length=1024)
    return list(documents_of(tokenise(load_rows(str(tmp_path / "train.jsonl")), tiny_tokenizer(), rules)))


def lists(document):
    """What the teacher says of every token but the first, the label likeliest."""
    generator = np.random.default_rng(document.ids.tolist())
    ids = []
    for label in document.ids[1:]:
        others = [index for index in generator.permutation(VOCABULARY).tolist() if index != label]
        ids.append([int(label), *others[:4]])
    return ids, [np.log(PROBABILITIES).tolist() for _ in ids]


def rows_of(tmp_path):
    return [json.loads(line) for line in (tmp_path / "train.jsonl").read_text().splitlines()]


def write_listed(tmp_path, *, shift=0):
    """Axolotl's column beside the recipe's own rows: of the answer alone, counted from the end."""
    rows = []
    for row, document in zip(rows_of(tmp_path), documents(tmp_path), strict=True):
        ids, logps = lists(document)
        if shift:
            ids, logps = ids[shift:] + ids[:shift], logps
        entries = [
            [{"token": f"token_id:{index}", "logprob": logp} for index, logp in zip(*place, strict=True)]
            for place in zip(ids, logps, strict=True)
        ]
        rows.append(row | {"llm_text_generation_vllm_logprobs": entries[-(document.positions + 2) :]})
    (tmp_path / "train.jsonl").write_text("\n".join(map(json.dumps, rows)))
    return tmp_path / "train.jsonl"


def write_prepared(tmp_path, name="prepared.parquet", change=None, first=1):
    """Axolotl's prepared columns: a list a token, the last of which is filled up."""
    table = []
    for document in documents(tmp_path):
        ids, logps = lists(document)
        filling = [0] * 5, [-1e9] * 5
        ids, logps = ([*ids, filling[0]], [*logps, filling[1]]) if first else ([filling[0], *ids], [filling[1], *logps])
        row = {"input_ids": document.ids.tolist(), "target_token_ids": ids, "target_logprobs": logps}
        table.append(row if change is None else change(row))
    pq.write_table(pa.Table.from_pylist(table), tmp_path / name)
    return tmp_path / name


def write_raw(tmp_path):
    """DistillKit's uncompressed columns, with a token behind the row."""
    table = []
    for document in documents(tmp_path):
        ids, logps = lists(document)
        extra = [*document.ids.tolist(), 0]
        table.append({"input_ids": extra, "token_ids": [*ids, [1] * 5], "top_values": [*logps, [-math.inf] * 5]})
    pq.write_table(pa.Table.from_pylist(table), tmp_path / "raw.parquet")
    return tmp_path / "raw.parquet"


def check_signals(tmp_path, *, atol=1e-4):
    """Every position against the definition: the listed tokens, and the rest in the tail."""
    cache = TeacherCache(tmp_path / "cache")
    for document in documents(tmp_path):
        signals = cache.signals(document.key)
        ids, logps = lists(document)
        for row, at in enumerate(np.flatnonzero(document.labels[1:] != -100)):
            order = np.argsort(ids[at])
            np.testing.assert_array_equal(signals.ids[row], np.asarray(ids[at])[order])
            np.testing.assert_allclose(signals.logp[row], np.asarray(logps[at])[order], atol=atol)
            assert signals.log_tail[row] == pytest.approx(math.log(0.03), abs=atol * 10)
            assert signals.label_logp[row] == pytest.approx(math.log(0.6), abs=atol)
            assert signals.entropy[row] == pytest.approx(least_entropy(logps[at], logps[at][0]), abs=atol * 10)
    spec = cache.spec
    assert (spec.served.source, spec.served.entropy, spec.teacher, spec.support.k) == (
        "imported",
        "lower bound",
        "big",
        5,
    )


@pytest.mark.parametrize("write", [write_listed, write_prepared, write_raw])
def test_what_another_program_kept_becomes_the_signals_it_is_of(recipe, tmp_path, write):
    path = write(tmp_path)
    result = run("cache", "import", recipe, path, "--bits", "16", *ALONE)
    assert result.exit_code == 0, result.output
    assert f"{tmp_path / 'cache'}: 30 rows added of {path}" in result.stdout
    assert re.search(r"labels have -0\.51 nats .* stand, -\d.* one token earlier, -\d.* one later", result.stdout)
    check_signals(tmp_path)
    assert run("cache", "check", recipe, *ALONE).exit_code == 0
    assert "imported       from another program's file" in run("cache", "info", recipe, *ALONE).stdout


def test_training_learns_from_an_import_without_the_teacher(recipe, tmp_path):
    assert run("cache", "import", recipe, write_prepared(tmp_path), *ALONE).exit_code == 0
    shutil.rmtree(tmp_path / "teacher")
    result = run("train", recipe, *ALONE, "--set", "training.max_steps=20")
    assert result.exit_code == 0, result.output
    lines = [json.loads(line) for line in (tmp_path / "out" / "metrics.jsonl").read_text().splitlines()]
    losses = [line["soft_loss"] for line in lines if "soft_loss" in line]
    assert losses[-1] < losses[0] - 0.5


def test_lists_that_stand_one_token_off_are_refused_with_the_shift_that_fits(recipe, tmp_path):
    path = write_prepared(tmp_path, first=0)
    refused = run("cache", "import", recipe, path, *ALONE)
    assert refused.exit_code == 2
    assert "its lists stand one token off: the labels have -" in refused.stderr
    assert "and -0.51 one token earlier" in refused.stderr
    assert "--shift -1" in refused.stderr
    assert not (tmp_path / "cache").exists()
    result = run("cache", "import", recipe, path, "--shift", "-1", "--bits", "16", *ALONE)
    assert result.exit_code == 0, result.output
    check_signals(tmp_path)


def test_lists_counted_from_the_end_that_lack_the_last_token_are_noticed(recipe, tmp_path):
    path = write_listed(tmp_path, shift=-1)
    assert "Read them there with --shift -1" in run("cache", "import", recipe, path, *ALONE).stderr


def bad(row, **columns):
    """The third supervised place of a row changed."""
    changed = {name: [list(place) for place in row[name]] for name in ("target_token_ids", "target_logprobs")}
    at = len(row["input_ids"]) - 2
    for name, place in columns.items():
        changed[name][at] = place
    return row | changed


LOGP = np.log(PROBABILITIES).tolist()


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"target_logprobs": [math.nan, *LOGP[1:]]}, "log-probabilities that are none"),
        ({"target_logprobs": [0.5, *LOGP[1:]]}, "log-probabilities that are none"),
        ({"target_logprobs": [math.log(0.9), *LOGP[1:]]}, "probabilities that exceed 1 together"),
        ({"target_token_ids": [7, 7, 8, 9, 10]}, "a token listed twice"),
        ({"target_token_ids": [99999, 7, 8, 9, 10]}, "a likeliest token that is not the student's"),
        ({"target_token_ids": [-3, 7, 8, 9, 10]}, "log-probabilities that are none"),
        ({"target_logprobs": [-1e9] * 5}, "no log-probabilities of a token that is learnt"),
    ],
)
def test_numbers_that_are_no_distribution_are_refused_with_their_row(recipe, tmp_path, columns, message):
    rows = iter(range(100))
    path = write_prepared(tmp_path, change=lambda row: bad(row, **columns) if next(rows) == 3 else row)
    refused = run("cache", "import", recipe, path, *ALONE)
    assert refused.exit_code == 2
    assert f"1 row of {path}: 1 for {message} (row 3: token " in refused.stderr
    assert not (tmp_path / "cache").exists()
    result = run("cache", "import", recipe, path, "--skip-unusable", *ALONE)
    assert "29 rows added" in result.stdout
    assert "missing: 1 row of the recipe are not in the file" in result.stdout
    assert "1 of 30 rows are not in it" in run("train", recipe, *ALONE).stderr


def test_lists_of_other_lengths_and_rows_of_another_form_are_refused_with_their_place(recipe, tmp_path):
    path = write_prepared(tmp_path, change=lambda row: row | {"target_logprobs": row["target_logprobs"][:-1]})
    assert f"{path}, row 0: no axolotl capture (" in run("cache", "import", recipe, path, *ALONE).stderr
    pq.write_table(pa.table({"text": ["a"]}), tmp_path / "text.parquet")
    refused = run("cache", "import", recipe, tmp_path / "text.parquet", *ALONE)
    assert "has no columns of log-probabilities that are known here" in refused.stderr
    pq.write_table(pa.table({n: [[1]] for n in ("packed_indices", "exact_values", "coeffs")}), tmp_path / "old.parquet")
    refused = run("cache", "import", recipe, tmp_path / "old.parquet", *ALONE)
    assert "holds DistillKit's old compression (packed_indices, exact_values, coeffs)" in refused.stderr
    assert "is not there" in run("cache", "import", recipe, tmp_path / "none.parquet", *ALONE).stderr


def test_rows_of_other_tokens_are_named_at_the_first_that_differs(recipe, tmp_path):
    path = write_prepared(tmp_path, change=lambda row: row | {"input_ids": [*row["input_ids"][:5], 3, 3]})
    refused = run("cache", "import", recipe, path, *ALONE)
    assert re.search(
        r"none of its rows .* is the same for 5 tokens, then has \d+ for 3\. Is it another", refused.stderr
    )


def test_without_token_ids_the_file_must_be_the_recipe_s_data(recipe, tmp_path):
    path = write_listed(tmp_path)
    path.rename(tmp_path / "other.jsonl")
    path.write_text((tmp_path / "other.jsonl").read_text())
    refused = run("cache", "import", recipe, tmp_path / "other.jsonl", *ALONE)
    assert "which rows it is about is not known" in refused.stderr


def test_what_is_not_known_is_counted(recipe, tmp_path):
    numbers = iter(range(100))

    def change(row):
        if next(numbers) % 2:
            places = row["target_token_ids"]
            return row | {"target_token_ids": [[*place[:4], 99999] for place in places]}
        whole = [[logp - math.log(0.97) if logp > -100 else logp for logp in place] for place in row["target_logprobs"]]
        return row | {"target_logprobs": whole}

    result = run("cache", "import", recipe, write_prepared(tmp_path, change=change), *ALONE)
    assert "positions whose listed tokens have all of the mass: the tail is 1e-7 there" in result.stdout
    assert "positions with tokens that the student does not have: they are in the tail" in result.stdout


def test_a_label_that_is_not_listed_has_at_most_the_least_of_the_listed_and_what_they_leave(recipe, tmp_path):
    def change(row):
        others = [min(set(range(200, 220)) - set(place)) for place in row["target_token_ids"]]
        places = zip(others, row["target_token_ids"], strict=True)
        return row | {"target_token_ids": [[other, *place[1:]] for other, place in places]}

    result = run("cache", "import", recipe, write_prepared(tmp_path, change=change), *ALONE)
    assert result.exit_code == 0, result.output
    assert "positions whose label is not listed: its log-probability is the most that it can be" in result.stdout
    cache = TeacherCache(tmp_path / "cache")
    for key in cache:
        np.testing.assert_allclose(cache.signals(key).label_logp, math.log(0.02), atol=1e-6)


def test_a_folder_of_distillkit_s_is_read_with_its_compression(recipe, tmp_path):
    table = []
    for document in documents(tmp_path):
        ids, logps = lists(document)
        packed = [np.packbits([int(bit) for index in place for bit in f"{index:09b}"]).tolist() for place in ids]
        deltas = [np.diff(place, prepend=0).astype("<f4").view(np.uint8).tolist() for place in logps]
        table.append({"input_ids": document.ids.tolist(), "compressed_logprobs": deltas, "bytepacked_indices": packed})
    folder = tmp_path / "capture"
    folder.mkdir()
    for number, part in enumerate((table[:20], table[20:])):
        pq.write_table(pa.Table.from_pylist(part), folder / f"data_{number}.parquet")
    refused = run("cache", "import", recipe, folder, *ALONE)
    assert f"{folder / 'compression_config.yaml'}: cannot be read as DistillKit's configuration" in refused.stderr
    config = {"d": 300, "k": 5, "exact_k": 5, "exact_dtype": "float32", "residual_bins": [], "delta_encoding": True}
    (folder / "compression_config.yaml").write_text(yaml.safe_dump(config))
    result = run("cache", "import", recipe, folder, "--bits", "16", *ALONE)
    assert result.exit_code == 0, result.output
    assert "(distillkit)" in result.stdout
    check_signals(tmp_path)
    (folder / "compression_config.yaml").write_text(yaml.safe_dump(config | {"k": 6}))
    assert "and the configuration says" in run("cache", "import", recipe, folder, "--replace", *ALONE).stderr


def test_an_export_comes_back_as_the_cache_it_was(recipe, tmp_path):
    build_recipe_cache(load_recipe(recipe), CacheOptions(top_k=16))
    assert run("cache", "export", recipe, tmp_path / "out.parquet").exit_code == 0
    (tmp_path / "cache").rename(tmp_path / "before")
    result = run("cache", "import", recipe, tmp_path / "out.parquet")
    assert result.exit_code == 0, result.output
    assert "(export); " in result.stdout
    before, after = TeacherCache(tmp_path / "before"), TeacherCache(tmp_path / "cache")
    assert before.spec == after.spec
    for key in before:
        ours, theirs = after.signals(key), before.signals(key)
        for name in ("ids", "log_tail", "tail_powers", "entropy", "argmax", "max_logp", "label_logp"):
            np.testing.assert_array_equal(getattr(ours, name), getattr(theirs, name), err_msg=name)
        np.testing.assert_allclose(ours.logp, theirs.logp, atol=0.02, rtol=0.01)
    assert run("cache", "check", recipe).exit_code == 0
    assert run("train", recipe).exit_code == 0


def test_an_export_of_other_rows_another_teacher_or_other_lengths_is_refused(recipe, tmp_path):
    build_recipe_cache(load_recipe(recipe), CacheOptions(top_k=16))
    out = tmp_path / "out.parquet"
    assert run("cache", "export", recipe, out).exit_code == 0
    other = ("--set", f"teacher.cache={tmp_path / 'other'}")
    assert "holds what" in run("cache", "import", recipe, out, *other, *ALONE).stderr
    longer = run("cache", "import", recipe, out, *other, "--set", "training.max_length=2000")
    assert "rows with another max length" in longer.stderr
    (tmp_path / "train.jsonl").write_text(json.dumps({"question": "new", "answer": "row"}))
    assert "none of its rows is a row of the recipe" in run("cache", "import", recipe, out, *other).stderr
    assert not (tmp_path / "other").exists()


def test_a_foreign_file_is_not_taken_for_the_model_that_is_here(recipe, tmp_path):
    refused = run("cache", "import", recipe, write_prepared(tmp_path))
    assert "--set teacher.only_cache=true" in refused.stderr
    prompted = run("cache", "import", recipe, tmp_path / "prepared.parquet", *ALONE, "--set", "teacher.prompt.system=x")
    assert "teacher.prompt: another program's lists are about the rows" in prompted.stderr
    tree = yaml.safe_load(recipe.read_text())
    tree["teacher"] |= {"server": "http://localhost:1/v1"}
    recipe.write_text(yaml.safe_dump(tree))
    assert "teacher.server: what is imported has no server" in run("cache", "import", recipe, tmp_path).stderr
