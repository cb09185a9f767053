import json
import logging
import os
import re

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from datasets import Dataset, DatasetDict

from bridgegarden.data import Source, load_mix, load_rows
from bridgegarden.data.rows import shares
from bridgegarden.errors import ConfigError, DataError

ROWS = [{"prompt": f"p{n}", "completion": f"c{n}"} for n in range(4)]


@pytest.fixture
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


def write_jsonl(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def write_parquet(path, rows):
    Dataset.from_list(rows).to_parquet(path)


@pytest.mark.parametrize("limit", [None, 2, 9])
@pytest.mark.parametrize("form", ["jsonl", "parquet", "saved", "saved splits", "folder of jsonl", "folder of parquet"])
def test_every_form_gives_the_same_rows(here, form, limit):
    source = here / "rows"
    if form == "jsonl":
        source = here / "rows.jsonl"
        write_jsonl(source, ROWS)
    elif form == "parquet":
        source = here / "rows.parquet"
        write_parquet(source, ROWS)
    elif form == "saved":
        Dataset.from_list(ROWS).save_to_disk(str(source))
    elif form == "saved splits":
        DatasetDict({"train": Dataset.from_list(ROWS), "test": Dataset.from_list(ROWS[:1])}).save_to_disk(str(source))
    else:
        source.mkdir()
        write, suffix = (write_jsonl, "jsonl") if form.endswith("jsonl") else (write_parquet, "parquet")
        write(source / f"part-0.{suffix}", ROWS[:3])
        write(source / f"part-1.{suffix}", ROWS[3:])
    before = sorted(here.rglob("*"))
    assert load_rows(str(source), limit=limit).to_list() == ROWS[:limit]
    assert sorted(here.rglob("*")) == before, "reading wrote something"


def test_a_split_picks_the_files_named_after_it(here):
    write_jsonl(here / "train-0.jsonl", ROWS[:2])
    write_jsonl(here / "train-1.jsonl", ROWS[2:3])
    write_jsonl(here / "test.jsonl", ROWS[3:])
    assert load_rows(str(here)).to_list() == ROWS[:3]
    assert load_rows(str(here), split="test").to_list() == ROWS[3:]
    with pytest.raises(DataError, match=r"named after splits \(test\.jsonl, .*\), but none is 'validation'"):
        load_rows(str(here), split="validation")


def test_a_split_that_a_saved_data_set_lacks_is_refused_with_those_it_has(here):
    DatasetDict({"train": Dataset.from_list(ROWS)}).save_to_disk(str(here / "rows"))
    with pytest.raises(DataError, match=r"rows: has no split 'test'; it has train\."):
        load_rows(str(here / "rows"), split="test")


def test_files_of_a_folder_may_lack_a_column_but_not_change_its_type(here):
    write_jsonl(here / "a.jsonl", [{"prompt": "p", "n": 1}])
    write_jsonl(here / "b.jsonl", [{"prompt": "q"}])
    assert load_rows(str(here)).to_list() == [{"prompt": "p", "n": 1}, {"prompt": "q", "n": None}]
    write_jsonl(here / "c.jsonl", [{"prompt": "q", "n": "one"}])
    with pytest.raises(DataError, match="files disagree about the type of a column"):
        load_rows(str(here))


def test_a_missing_file_is_refused_with_the_neighbour_of_the_closest_name(here):
    write_jsonl(here / "rows.jsonl", ROWS)
    with pytest.raises(DataError, match=r"^row\.jsonl: no such file\. Did you mean rows\.jsonl\?"):
        load_rows("row.jsonl")
    with pytest.raises(
        DataError, match=rf"no such file, and there is no folder {re.escape(str(here / 'gone'))} either"
    ):
        load_rows(str(here / "gone" / "rows.jsonl"))


@pytest.mark.parametrize("source", ["rows.jsonl", "./rows", "a/b/c", "../rows.parquet", "not a name", ""])
def test_what_looks_like_a_file_is_never_asked_of_the_hub(here, source, monkeypatch):
    monkeypatch.setattr(datasets, "load_dataset", lambda *_, **__: pytest.fail("asked the hub"))
    with pytest.raises(DataError):
        load_rows(source)


def test_a_hub_name_may_carry_a_config_and_reads_no_more_rows_than_asked(here, monkeypatch):
    asked = []

    def hub(*arguments, **options):
        asked.append((arguments, options))
        return Dataset.from_list(ROWS)

    monkeypatch.setattr(datasets, "load_dataset", hub)
    load_rows("openai/gsm8k:main", split="test", limit=3)
    load_rows("imdb")
    assert asked == [
        (("openai/gsm8k", "main"), {"split": "test[:3]"}),
        (("imdb", None), {"split": "train"}),
    ]


def test_a_hub_failure_says_what_was_asked_and_why_it_failed(here, monkeypatch):
    def hub(*_, **__):
        raise ConnectionError("Offline mode is enabled.\nLong story.")

    monkeypatch.setattr(datasets, "load_dataset", hub)
    with pytest.raises(DataError, match=r"^openai/gsm8k:main: .*\(split 'train': Offline mode is enabled\)") as error:
        load_rows("openai/gsm8k:main")
    assert "\n" not in str(error.value)


def test_progress_bars_are_hidden_only_while_the_hub_answers_a_pipe(here, monkeypatch):
    from datasets.utils import are_progress_bars_disabled

    seen = []
    monkeypatch.setattr(
        datasets, "load_dataset", lambda *_, **__: seen.append(are_progress_bars_disabled()) or Dataset.from_list(ROWS)
    )
    before = are_progress_bars_disabled()
    load_rows("imdb")
    assert seen == [True]
    assert are_progress_bars_disabled() == before


def test_a_file_of_an_unknown_kind_is_refused(here):
    (here / "rows.csv").write_text("a,b\n")
    with pytest.raises(DataError, match=r"rows\.csv: unknown kind of file '\.csv'; expected one of \.jsonl"):
        load_rows("rows.csv")
    with pytest.raises(DataError, match="holds no data files; expected"):
        load_rows(str(here))


def test_a_torn_parquet_file_is_refused(here):
    write_parquet(here / "rows.parquet", ROWS)
    content = (here / "rows.parquet").read_bytes()
    (here / "rows.parquet").write_bytes(content[: len(content) // 2])
    with pytest.raises(DataError, match=r"rows\.parquet: cannot be read as Parquet"):
        load_rows("rows.parquet")


def test_no_rows_and_no_limit_are_refused(here):
    write_parquet(here / "rows.parquet", ROWS)
    with pytest.raises(ConfigError, match="data limit must be at least 1, got 0"):
        load_rows("rows.parquet", limit=0)
    Dataset.from_dict({"prompt": []}).save_to_disk("empty")
    with pytest.raises(DataError, match=r"^empty: cannot be read as a saved data set"):
        load_rows("empty")
    Dataset.from_dict({"prompt": []}).to_parquet("empty.parquet")
    with pytest.raises(DataError, match=r"^empty\.parquet: holds no rows \(split 'train'\)"):
        load_rows("empty.parquet")


def test_a_column_of_a_kind_that_rows_cannot_hold_is_left_out_and_named(here, caplog):
    mapped = pa.array([[("a", 1)], [("b", 2)]], pa.map_(pa.string(), pa.int64()))
    pq.write_table(pa.table({"prompt": ["1", "2"], "scores": mapped}), "rows.parquet")
    with caplog.at_level(logging.WARNING, logger="bridgegarden"):
        assert list(load_rows("rows.parquet")) == [{"prompt": "1"}, {"prompt": "2"}]
    assert "the column 'scores' is left out: rows cannot hold its kind, map" in caplog.text


def test_text_of_a_parquet_file_that_is_not_utf_8_is_refused_before_a_row_is_read(here):
    text = pa.array([b"fine", b"\xff\xfe"]).view(pa.string())
    pq.write_table(pa.table({"prompt": text}), "rows.parquet")
    with pytest.raises(DataError, match=r"rows\.parquet: cannot be read as Parquet \(.*UTF8"):
        load_rows("rows.parquet")


def test_a_parquet_file_whose_notes_are_damaged_is_refused(here):
    table = pa.table({"prompt": ["1"]}).replace_schema_metadata({"huggingface": "{"})
    pq.write_table(table, "rows.parquet")
    with pytest.raises(DataError, match=r"rows\.parquet: cannot be read as Parquet"):
        load_rows("rows.parquet")


@pytest.mark.parametrize(
    ("name", "text"), [("dataset_info.json", "null"), ("state.json", "[" * 100_000), ("state.json", "{}")]
)
def test_a_saved_data_set_whose_notes_are_damaged_is_refused(here, name, text):
    Dataset.from_dict({"prompt": ["1"]}).save_to_disk("saved")
    (here / "saved" / name).write_text(text)
    with pytest.raises(DataError, match=r"^saved: cannot be read as a saved data set \("):
        load_rows("saved")


def test_a_pipe_or_device_is_not_a_file_of_rows(here):
    os.mkfifo("pipe.jsonl")
    with pytest.raises(DataError, match=r"pipe\.jsonl: is neither a file nor a folder"):
        load_rows("pipe.jsonl")


def numbered(name, count):
    return [{"prompt": f"{name}{n}", "completion": str(n)} for n in range(count)]


@pytest.fixture
def sources(here):
    write_jsonl(here / "a.jsonl", numbered("a", 40))
    write_parquet(here / "b.parquet", numbered("b", 70))
    return here


def prompts(mix):
    return [row["prompt"] for row in mix]


def test_sources_without_weights_stand_one_behind_the_other(sources):
    mix = load_mix([Source(path="a.jsonl"), Source(path="b.parquet")])
    whole = [*numbered("a", 40), *numbered("b", 70)]
    assert list(mix) == mix[:] == whole
    assert list(load_mix([Source(path="a.jsonl"), Source(path="b.parquet")], limit=45)) == whole[:45]
    assert list(load_mix([Source(path="a.jsonl"), Source(path="b.parquet")], limit=7)) == whole[:7]
    assert (mix.place(39), mix.place(40)) == ("train a.jsonl, row 39", "train b.parquet, row 0")
    assert str(mix) == "train a.jsonl 40, train b.parquet 70"


@pytest.mark.parametrize(
    ("totals", "weights", "given"),
    [
        ([30, 70], [0.3, 0.7], [30, 70]),  # in floating point 30 / 0.3 is less than 100
        ([30, 700], [3, 7], [30, 71]),  # of 101 rows 30.3 and 70.7
        ([10, 10], [1, 2], [5, 10]),
        ([10, 10, 10], [1, 1, 2], [5, 5, 10]),
        ([1, 1000], [1, 1000], [1, 1000]),
        ([1, 400], [1, 1000], [0, 400]),  # less than half a row
        ([30, 20], [1, 3], [7, 20]),
        ([5, 7], [1e-3, 1e3], [0, 7]),
        ([4], [0.1], [4]),
    ],
)
def test_weights_give_the_largest_mix_without_a_row_twice(totals, weights, given):
    assert shares(totals, weights) == given


def test_no_source_gives_more_than_it_has_or_a_row_less_or_more_than_its_share():
    random = np.random.default_rng(0)
    for _ in range(500):
        count = int(random.integers(1, 6))
        totals, weights = random.integers(1, 60, count).tolist(), random.random(count).round(3).clip(0.001).tolist()
        given = shares(totals, weights)
        rows = sum(given)
        exact = [rows * weight / sum(weights) for weight in weights]
        assert all(abs(took - share) < 1 + 1e-9 for took, share in zip(given, exact, strict=True))
        assert all(took <= total for took, total in zip(given, totals, strict=True))
        assert any(took >= total - 1 for took, total in zip(given, totals, strict=True)), "more could be drawn"


def test_weighted_sources_are_drawn_by_the_seed_and_spread_evenly(sources):
    asked = [Source(path="a.jsonl", weight=1), Source(path="b.parquet", weight=3)]
    mix = load_mix(asked, seed=1)
    drawn = prompts(mix)
    assert len(drawn) == len(set(drawn)) == 94
    of_a = [at for at, name in enumerate(drawn) if name.startswith("a")]
    assert len(of_a) == 24  # 23.5 of 94
    assert max(np.diff(of_a)) <= 5
    assert prompts(load_mix(asked, seed=1)) == drawn
    assert prompts(load_mix(asked, seed=2)) != drawn
    assert prompts(load_mix(asked, seed=1, limit=40)) == drawn[:40], "a limit takes the start of the mix"
    assert [mix[at]["prompt"] for at in range(len(mix))] == drawn
    assert all(mix.place(at).endswith(f"row {name[1:]}") for at, name in enumerate(drawn))
    assert str(mix) == "train a.jsonl 24 of 40 (26%), train b.parquet 70 of 70 (74%)"


def test_what_is_made_of_the_parts_is_put_in_the_order_of_the_mix(sources):
    for weights in ((None, None), (1, 3)):
        mix = load_mix([Source(path="a.jsonl", weight=weights[0]), Source(path="b.parquet", weight=weights[1])], seed=3)
        assert prompts(mix.joined([part.rows for part in mix.parts])) == prompts(mix)
    left = [mix.parts[0].rows, mix.parts[1].rows.select(range(0, 70, 7))]
    joined = prompts(mix.joined(left))
    assert [name for name in joined if name.startswith("a")] == left[0]["prompt"]
    assert [name for name in joined if name.startswith("b")] == left[1]["prompt"]
    assert max(np.diff([at for at, name in enumerate(joined) if name.startswith("b")])) <= 4


def test_each_source_may_have_a_split_of_its_own(here):
    (here / "rows").mkdir()
    write_jsonl(here / "rows" / "train.jsonl", numbered("a", 3))
    write_jsonl(here / "rows" / "test.jsonl", numbered("b", 2))
    mix = load_mix([Source(path="rows"), Source(path="rows", split="test")])
    assert prompts(mix) == ["a0", "a1", "a2", "b0", "b1"]
