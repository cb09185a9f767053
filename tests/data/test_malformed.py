"""Rows that are broken end in one line that names them, or are dropped with a line in the log: never in a traceback."""

import collections
import logging
import random
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from bridgegarden.data import RowRules, load_rows, tokenise
from bridgegarden.errors import BridgegardenError
from bridgegarden.terminal import one_line
from tests.data.malformed import malformed_line
from tests.tiny import tiny_tokenizer

ROWS = 1000
BAD = 3
"""The line that is broken."""


@pytest.fixture(scope="module")
def tokenizers():
    return tiny_tokenizer(), tiny_tokenizer(chat_template=False)


def outcome(path, tokenizer) -> str:
    """What becomes of a file: ``read``, or the message."""
    try:
        tokenise(load_rows(str(path)), tokenizer, RowRules(max_length=64), name=f"train {path.name}")
    except BridgegardenError as error:
        return one_line(str(error))
    return "read"


@pytest.mark.slow
def test_of_a_thousand_malformed_rows_none_ends_in_a_traceback(tmp_path, tokenizers, caplog, capsys):
    counts: collections.Counter[str] = collections.Counter()
    caplog.set_level(logging.WARNING)
    for seed in range(ROWS):
        way, line, good = malformed_line(seed)
        path = tmp_path / f"{seed}.jsonl"
        path.write_bytes(b"\n".join([good] * (BAD - 1) + [line] + [good]) + b"\n")
        caplog.clear()
        try:
            got = outcome(path, tokenizers[seed % 2 if way.startswith(("pair", "ids")) else 0])
        except Exception as error:
            pytest.fail(f"{way}, {line[:200]!r}: {type(error).__name__}: {error}")
        if got == "read":
            counts["dropped, and said" if f"(row {BAD - 1})" in caplog.text else "usable after all"] += 1
            continue
        place = (f"{path}:{BAD}:", f"train {path.name}, row {BAD - 1}: ", f"train {path.name}, row {BAD - 1}, ")
        named = any(part in got for part in place)
        # A column that one row alone has the keys of may make the others the odd ones.
        assert named or f"train {path.name}" in got or str(path) in got, (way, line[:200], got)
        counts["refused, by line or row" if named else "refused, by file"] += 1
        assert len(got) < 1000, (way, got)
        path.unlink()
    with capsys.disabled():
        print(f"\n{ROWS} malformed rows: " + ", ".join(f"{count} {what}" for what, count in counts.most_common()))
    assert counts["refused, by line or row"] > 0.8 * ROWS
    assert sum(counts.values()) == ROWS


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\n\n  \n",
        b"\xef\xbb\xbf",
        b"\0" * 5000,
        b"[",
        b"[]",
        b"{}",
        b"PAR1" * 10,
        b'{"prompt": "a"}' * 3,
        b"\xff\xfe",
    ],
)
@pytest.mark.parametrize("suffix", [".jsonl", ".json", ".parquet", ".csv", ".txt", ""])
def test_files_that_hold_no_rows_are_one_line(tmp_path, tokenizers, content, suffix):
    path = tmp_path / f"rows{suffix}"
    path.write_bytes(content)
    assert str(path) in outcome(path, tokenizers[0])


@pytest.mark.parametrize(
    "column",
    [
        pa.array([b"\xff\xfe", b""]),
        pa.array([1.5, float("nan")]),
        pa.array([None, None]),
        pa.array([{"role": "user"}, {"role": None}]),
        pa.array(["a", "b"]).dictionary_encode(),
        pa.array([[1, 2], []], pa.list_(pa.int8())),
        pa.array([0, 1], pa.date32()),
        pa.array([["a"], ["b"]]),
    ],
    ids=lambda column: str(column.type),
)
@pytest.mark.parametrize("name", ["prompt", "completion", "messages", "input_ids", "tools"])
def test_columns_of_any_type_are_one_line_or_read(tmp_path, tokenizers, name, column):
    columns = {"prompt": pa.array(["a", "b"]), "completion": pa.array(["c", "d"])} | {name: column}
    path = tmp_path / "rows.parquet"
    pq.write_table(pa.table(columns), path)
    got = outcome(path, tokenizers[0])
    assert got == "read" or "train rows.parquet" in got or str(path) in got


def test_damaged_parquet_files_are_one_line(tmp_path, tokenizers):
    table = pa.table({"prompt": ["a", "b"], "completion": ["c", "d"]})
    path = tmp_path / "rows.parquet"
    pq.write_table(table, path)
    whole, rng = path.read_bytes(), random.Random(0)
    for _ in range(100):
        content = bytearray(whole)
        for _ in range(3):
            content[rng.randrange(len(content))] = rng.randrange(256)
        path.write_bytes(content[: rng.randrange(len(content) // 2, len(content) + 1)])
        got = outcome(path, tokenizers[0])
        assert got == "read" or str(path) in got or "train rows.parquet" in got


def test_a_folder_or_device_in_place_of_a_file_is_one_line(tmp_path, tokenizers):
    (tmp_path / "rows.jsonl").mkdir()
    assert "holds no data files" in outcome(tmp_path / "rows.jsonl", tokenizers[0])
    assert "no such file" in outcome(Path("/dev/zero.jsonl"), tokenizers[0])
