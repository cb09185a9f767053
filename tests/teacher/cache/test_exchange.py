"""A cache as plain Parquet: the numbers of the cache, and nothing else."""

import json
import math
import os

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from bridgegarden.errors import ConfigError, DataError
from bridgegarden.teacher.cache import exchange
from bridgegarden.teacher.cache.exchange import METADATA, ExportReader, export_cache
from bridgegarden.teacher.cache.manifest import finished_shards
from bridgegarden.teacher.cache.reader import TeacherCache
from bridgegarden.teacher.cache.shard import documents_of
from bridgegarden.teacher.cache.spec import CacheSpec, Support
from tests.teacher.cache.conftest import build, cache_rows, cache_spec

SUPPORTS = [Support(k=16), Support(k=300), Support(kind="mass", k=16, mass=0.9), Support(kind="sampled", k=8)]


def check_row(row, signals):
    """Bit for bit, position by position, whatever the order of the slots."""
    order = np.argsort(-signals.logp, axis=1, kind="stable")
    for at, slots in enumerate(order):
        ids = slots if signals.ids is None else signals.ids[at, slots]
        kept = ids >= 0
        np.testing.assert_array_equal(np.asarray(row["token_ids"][at]), ids[kept])
        found = np.asarray(row["logp"][at], np.float32)
        np.testing.assert_array_equal(found, signals.logp[at, slots][kept])
        assert (np.diff(found) <= 0).all()
        if signals.tail_powers.shape[1]:
            np.testing.assert_array_equal(np.asarray(row["tail_powers"][at], np.float32), signals.tail_powers[at])
    for name in ("log_tail", "entropy", "argmax", "max_logp", "label_logp"):
        values = getattr(signals, name)
        if values is not None:
            np.testing.assert_array_equal(np.asarray(row[name], values.dtype), values)


@pytest.mark.parametrize("support", SUPPORTS, ids=str)
def test_every_reader_finds_the_cache_s_numbers_bit_for_bit(tmp_path, support):
    folder, path = build(tmp_path / "cache", cache_spec(support)), tmp_path / "out.parquet"
    result = export_cache(folder, path, [cache_rows()])
    cache, documents = TeacherCache(folder), list(documents_of(cache_rows()))
    assert (result.documents, result.missing, result.others) == (24, 0, 0)
    readers = [pq.read_table(path).to_pylist(), pd.read_parquet(path).to_dict("records")]
    for rows in readers:
        for row, document in zip(rows, documents, strict=True):
            assert row["key"] == document.key.hex()
            np.testing.assert_array_equal(row["input_ids"], document.ids)
            np.testing.assert_array_equal(row["labels"], document.labels)
            labels = np.asarray(row["labels"])
            np.testing.assert_array_equal(np.asarray(row["input_ids"])[row["positions"]], labels[row["positions"]])
            assert len(row["positions"]) == document.positions == len(row["entropy"])
            check_row(row, cache.signals(document.key))


def test_duckdb_unnests_it_to_positions(tmp_path, cache):
    duckdb = pytest.importorskip("duckdb")
    path = tmp_path / "out.parquet"
    export_cache(cache, path, [cache_rows()])
    query = f"SELECT key, UNNEST(positions) AS at, UNNEST(entropy) AS entropy, UNNEST(logp)[1] AS top FROM '{path}'"
    found = duckdb.sql(query).fetchall()
    expected = [
        (document.key.hex(), int(at), float(entropy), float(top))
        for document in documents_of(cache_rows())
        for signals in [TeacherCache(cache).signals(document.key)]
        for at, entropy, top in zip(
            np.flatnonzero(document.labels[1:] != -100) + 1, signals.entropy, signals.logp.max(1), strict=True
        )
    ]
    assert found == expected


def test_pandas_explodes_it_to_positions(tmp_path, cache):
    export_cache(cache, tmp_path / "out.parquet", [cache_rows()])
    columns = ["positions", "token_ids", "logp", "log_tail", "entropy", "label_logp"]
    rows = pd.read_parquet(tmp_path / "out.parquet").explode(columns)
    assert len(rows) == sum(document.positions for document in documents_of(cache_rows()))
    assert all(len(ids) == len(logp) for ids, logp in zip(rows.token_ids, rows.logp, strict=True))


def test_the_file_says_what_its_numbers_mean(tmp_path, cache):
    export_cache(cache, tmp_path / "out.parquet")
    about = json.loads((pq.read_schema(tmp_path / "out.parquet").metadata or {})[METADATA])
    assert about["format"] == 1
    assert CacheSpec.from_dict(about["spec"]) == TeacherCache(cache).spec


def test_without_rows_every_document_is_written_under_its_key(tmp_path, cache):
    result = export_cache(cache, tmp_path / "out.parquet")
    table = pq.read_table(tmp_path / "out.parquet")
    assert set(table["key"].to_pylist()) == {key.hex() for key in TeacherCache(cache)}
    assert "input_ids" not in table.column_names
    assert "give a recipe" in str(result)


def test_rows_of_one_side_alone_are_counted_and_left_out(tmp_path):
    folder = build(tmp_path / "cache", rows=cache_rows(10))
    shared = cache_rows(10).select(range(4))
    result = export_cache(folder, tmp_path / "out.parquet", [shared, shared, cache_rows(3, seed=9)])
    assert (result.documents, result.missing, result.others) == (4, 3, 6)
    assert "3 rows of the recipe that the cache does not hold" in str(result)
    assert "6 rows of the cache that the recipe does not have" in str(result)


def test_row_groups_are_bounded_so_that_memory_is_flat(tmp_path, cache, monkeypatch):
    monkeypatch.setattr(exchange, "GROUP_NUMBERS", 16 * 20)
    export_cache(cache, tmp_path / "out.parquet", [cache_rows()])
    file = pq.ParquetFile(tmp_path / "out.parquet")
    assert file.metadata.num_row_groups > 5
    longest = max(document.positions for document in documents_of(cache_rows()))
    for number in range(file.metadata.num_row_groups):
        positions = pa.compute.sum(pa.compute.list_value_length(file.read_row_group(number)["entropy"])).as_py()
        assert positions < 20 + longest


def test_a_file_that_is_there_or_has_another_ending_is_refused(tmp_path, cache):
    (tmp_path / "there.parquet").write_text("mine")
    with pytest.raises(ConfigError, match=r"there\.parquet: is there, and is not written over"):
        export_cache(cache, tmp_path / "there.parquet")
    assert (tmp_path / "there.parquet").read_text() == "mine"
    with pytest.raises(ConfigError, match=r"ends in \.parquet"):
        export_cache(cache, tmp_path / "out.csv")
    with pytest.raises(ConfigError, match="cannot be written"):
        export_cache(cache, tmp_path / "no" / "folder.parquet")


def test_a_damaged_shard_leaves_no_file(tmp_path, cache):
    path = list(finished_shards(cache))[-1]
    content = bytearray(path.read_bytes())
    at = content.index(TeacherCache(cache).records(list(TeacherCache(cache))[-1]).tobytes())
    content[at : at + 16] = b"\xff" * 16
    path.write_bytes(content)
    with pytest.raises(DataError, match="damaged"):
        export_cache(cache, tmp_path / "out.parquet")
    assert sorted(os.listdir(tmp_path)) == ["cache"]
    with pytest.raises(DataError, match="nothing to export"):
        export_cache(cache, tmp_path / "out.parquet", [cache_rows(2, seed=5)])
    assert sorted(os.listdir(tmp_path)) == ["cache"]


def _each(change):
    return lambda values: [[change(value) for value in row] for row in values]


@pytest.mark.parametrize(
    ("column", "change", "kind", "message"),
    [
        ("log_tail", _each(lambda _: math.nan), None, "log_tail is nan"),
        ("entropy", _each(lambda _: math.nan), None, "entropy is nan"),
        ("max_logp", _each(lambda _: 5.0), None, "max_logp is 5.0"),
        ("label_logp", _each(lambda _: None), None, "label_logp: expected a list of numbers without null"),
        ("tail_powers", _each(lambda powers: [math.nan for _ in powers]), None, "tail_powers is nan"),
        ("argmax", _each(lambda token: token + 2**32), pa.list_(pa.int64()), "argmax: token ids outside"),
        ("argmax", _each(lambda _: None), None, "argmax: expected a list of numbers without null"),
        ("argmax", lambda values: [None for _ in values], None, "argmax: .* got null"),
        ("argmax", lambda values: ["a" for _ in values], pa.string(), "argmax: .* got string"),
        ("token_ids", _each(lambda ids: [None for _ in ids]), None, "token_ids: expected lists of numbers"),
        ("token_ids", _each(lambda ids: ids), pa.list_(pa.list_(pa.float32())), "token_ids of type float32"),
        ("token_ids", lambda values: [row[:-1] for row in values], None, "do not fit"),
    ],
)
def test_numbers_that_no_teacher_says_are_refused_with_the_file_and_the_row(tmp_path, column, change, kind, message):
    out = tmp_path / "out.parquet"
    export_cache(build(tmp_path / "cache"), out)
    assert len(list(ExportReader(out))) > 1
    table = pq.read_table(out)
    at = table.schema.get_field_index(column)
    values = pa.array(change(table[column].to_pylist()), kind or table.schema.field(at).type)
    pq.write_table(table.set_column(at, column, values), out)
    with pytest.raises(DataError, match=rf"out.parquet, row 0: damaged \(.*{message}"):
        list(ExportReader(out))


def test_an_export_that_another_program_wrote_again_with_large_lists_is_read(tmp_path):
    out = tmp_path / "out.parquet"
    export_cache(build(tmp_path / "cache"), out)
    table = pq.read_table(out)
    large = [pa.large_list(kind.value_type) if pa.types.is_list(kind) else kind for kind in table.schema.types]
    nested = [
        pa.large_list(pa.large_list(kind.value_type.value_type))
        if pa.types.is_list(getattr(kind, "value_type", kind))
        else kind
        for kind in large
    ]
    schema = pa.schema(list(zip(table.schema.names, nested, strict=True)), table.schema.metadata)
    pq.write_table(table.cast(schema), out, store_schema=True)
    assert len(list(ExportReader(out))) == table.num_rows
