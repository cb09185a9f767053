"""Whatever has happened to the files of a cache, every use of it ends in order, and what is not ours stays."""

import json
import os
import random
import shutil
import struct

import numpy as np
import pytest

from bridgegarden.errors import BridgegardenError, ConfigError, DataError
from bridgegarden.teacher.cache.info import cache_info, check_cache
from bridgegarden.teacher.cache.manifest import finished_shards
from bridgegarden.teacher.cache.reader import TeacherCache
from bridgegarden.teacher.cache.record import RecordFormat
from bridgegarden.teacher.cache.spec import Support
from bridgegarden.teacher.cache.writer import merge_caches, remove_cache
from tests.teacher.cache.conftest import build, cache_rows, cache_spec, teacher

ODD = [None, True, 0, -1, 1, 2**63, 10**400, 1.5, float("nan"), 1e308, "", "x", "\ud800", [], [1], {}, {"a": 1}]
NOT_JSON = [b"", b"[" * 100_000, b"null", b"[]", b"\xff\xfe", b"9" * 5000, b'{"format": 2}']


def read(folder):
    cache = TeacherCache(folder)
    cache.check_rows(cache_rows(), "train")
    return cache.collate(list(cache_rows()))


def damage_shard(rng, folder):
    path = rng.choice(list(finished_shards(folder)))
    content = bytearray(path.read_bytes())
    match rng.choice(["bit", "offset", "end"]):
        case "bit":
            content[rng.randrange(len(content))] ^= 1 << rng.randrange(8)
        case "offset":
            at = 8 * rng.randrange(len(content) // 8)
            content[at : at + 8] = struct.pack("<Q", rng.choice([2**40, 2**45, 2**63, 2**64 - 1, 7, 0]))
        case "end":
            content[-1 - rng.randrange(500)] ^= 1 << rng.randrange(8)
    path.write_bytes(content)


def damage_json(rng, folder):
    path = rng.choice([folder / "cache.json", *(path.with_suffix(".json") for path in finished_shards(folder))])
    if rng.random() < 0.2:
        path.write_bytes(rng.choice(NOT_JSON))
        return
    tree = node = json.loads(path.read_text())
    while True:
        key = rng.choice(list(node))
        if not isinstance(node[key], dict) or rng.random() < 0.3:
            break
        node = node[key]
    node[key] = rng.choice(ODD)
    if path.name == "cache.json":
        tree.pop("sha256", None)  # as in a cache that an earlier version wrote
    path.write_text(json.dumps(tree))


def in_child(uses):
    """How each of `uses` ends, one after the other in a process of their own, which damage may bring down."""
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        for use in uses:
            try:
                use()
                end = "done"
            except BridgegardenError:
                end = "one line"
            except BaseException as error:
                end = repr(error)
            os.write(writer, f"{end}\n".encode(errors="replace"))
        os._exit(0)
    os.close(writer)
    with os.fdopen(reader, "rb") as pipe:
        ends = pipe.read().decode().splitlines()
    _, status = os.waitpid(child, 0)
    return ends if len(ends) == len(uses) else [*ends, f"signal {os.WTERMSIG(status)}"]


@pytest.mark.filterwarnings("ignore:This process:DeprecationWarning")  # fork, from Python 3.12
@pytest.mark.parametrize("damage", [damage_shard, damage_json])
@pytest.mark.parametrize("support", [Support(k=16), Support(kind="mass", k=16, mass=0.9), Support(kind="sampled", k=8)])
def test_a_damaged_cache_never_ends_in_a_traceback_or_a_crash(tmp_path, damage, support):
    whole = build(tmp_path / "whole", cache_spec(support))
    model = teacher()
    for seed in range(12):
        folder = tmp_path / "cache"
        shutil.copytree(whole, folder)
        damage(random.Random(seed), folder)
        uses = (
            lambda folder=folder: read(folder),
            lambda folder=folder: cache_info(folder),
            lambda folder=folder: check_cache(folder),
            lambda folder=folder: build(folder, cache_spec(support), model=model),
        )
        ends = in_child(uses)
        assert set(ends) <= {"done", "one line"}, (seed, ends)
        shutil.rmtree(folder)


def test_offsets_that_point_out_of_a_shard_are_found_before_they_are_followed(cache):
    path = next(iter(finished_shards(cache)))
    content = path.read_bytes()
    width = RecordFormat(cache_spec()).bytes_per_position
    documents = finished_shards(cache)[path].documents
    lengths = np.diff(offsets := _offsets(content, documents))
    assert (lengths % width == 0).all()
    raw = np.asarray(offsets, "<i8").tobytes()
    for wrong in (2**40, -1, 0):
        harmed = np.asarray([*offsets[:-1], wrong], "<i8").tobytes()
        path.write_bytes(content.replace(raw, harmed))
        with pytest.raises(DataError, match=rf"{path}: damaged: .*rm "):
            TeacherCache(cache)


def _offsets(content, documents):
    import pyarrow as pa

    column = pa.ipc.open_file(pa.py_buffer(content)).get_batch(0).column("records")
    return np.frombuffer(column.buffers()[1], "<i8")[: documents + 1].tolist()


@pytest.mark.parametrize("bit", range(8))
def test_a_list_of_ids_with_a_bit_flipped_is_refused_with_the_name_of_the_shard(cache, bit):
    path = next(iter(finished_shards(cache)))
    content = bytearray(path.read_bytes())
    first = bytes(content).index(TeacherCache(cache).records(_first_key(cache)).tobytes())
    content[first] ^= 1 << bit
    path.write_bytes(content)
    with pytest.raises(DataError, match=rf"{path}: damaged \(row 0 of it: a list of token ids"):
        read(cache)


def _first_key(cache):
    return TeacherCache(cache)._index.keys[0].tobytes()


def test_check_compares_the_counts_beside_a_shard_with_what_is_in_it(cache):
    path = next(iter(finished_shards(cache))).with_suffix(".json")
    tree = json.loads(path.read_text())
    path.write_text(json.dumps({**tree, "documents": tree["documents"] + 1}))
    with pytest.raises(DataError, match=rf"it has {tree['documents']} rows, and {tree['documents'] + 1} were written"):
        check_cache(cache)


@pytest.mark.parametrize("content", [b"", b"{", b"[" * 100_000, b"\xff\xfe", b'{"format": 2'])
def test_a_manifest_that_is_no_json_is_named_with_what_to_do(cache, content):
    path = cache / "cache.json"
    path.write_bytes(content)
    for use in (read, cache_info, check_cache):
        with pytest.raises(DataError, match=rf"^{path}: cannot be read \("):
            use(cache)


@pytest.mark.parametrize("content", [b"", b"{", b"[" * 100_000, b"\xff\xfe"])
def test_a_count_beside_a_shard_that_is_no_json_is_named(cache, content):
    path = next(iter(finished_shards(cache))).with_suffix(".json")
    path.write_bytes(content)
    with pytest.raises(DataError, match=path.name):
        check_cache(cache)


def test_any_change_to_the_manifest_is_found(cache):
    path = cache / "cache.json"
    path.write_text(path.read_text().replace('"teacher": "tiny"', '"teacher": "tinz"'))
    with pytest.raises(DataError, match=r"cache.json: damaged \(it does not hold what was written\)"):
        check_cache(cache)


def test_a_manifest_of_an_earlier_version_which_has_no_checksum_is_read(cache):
    path = cache / "cache.json"
    tree = json.loads(path.read_text())
    del tree["sha256"]
    path.write_text(json.dumps(tree))
    assert check_cache(cache).documents == 24
    remove_cache(cache)
    assert not path.exists()


def tree_of(folder):
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize(
    "names",
    [
        ("shards/mine.txt", "shards/a/b.txt"),
        ("shards/00000.arrow",),
        ("shards/00000.json",),
        ("cache.json", "shards/mine.txt"),
        ("cache.json",),
    ],
)
def test_nothing_that_no_cache_has_left_is_removed_or_overwritten(tmp_path, names):
    part = build(tmp_path / "part", rows=cache_rows(3))
    folder = tmp_path / "site"
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text('{"webpack": 1}')
    before = tree_of(folder)
    with pytest.raises(ConfigError, match=r"not empty and not a cache|not ours"):
        build(folder)
    with pytest.raises(ConfigError, match=r"not empty and not a cache|not ours"):
        merge_caches(folder, [part])
    if (folder / "cache.json").exists():
        with pytest.raises(ConfigError, match="Nothing there is removed"):
            remove_cache(folder)
    else:
        remove_cache(folder)
    assert tree_of(folder) == before


def test_a_cache_whose_shards_lie_beside_somebody_s_files_is_not_removed(cache):
    (cache / "shards" / "notes.txt").write_text("mine")
    before = tree_of(cache)
    with pytest.raises(ConfigError, match=r"shards holds notes.txt, which no cache has left"):
        remove_cache(cache)
    assert tree_of(cache) == before


def test_shards_that_lost_the_file_beside_them_are_named_and_kept(cache, tmp_path, caplog):
    shards = list(finished_shards(cache))
    lost = shards[1]
    content, record = lost.read_bytes(), lost.with_suffix(".json").read_bytes()
    lost.with_suffix(".json").unlink()
    with pytest.raises(DataError, match=r"1 of 4 shards are damaged: 00001.arrow: 00001.json is gone"):
        check_cache(cache)
    with pytest.raises(DataError, match=r"1 of its shards are not read.*00001.arrow has no 00001.json"):
        read(cache)
    with pytest.raises(DataError, match=r"1 shards of .* cannot be copied.*00001.json"):
        merge_caches(tmp_path / "merged", [cache])
    build(cache)
    assert "00001.arrow: it has no 00001.json; it is kept as 00001.arrow.aside, and its rows are asked" in caplog.text
    aside = cache / "shards" / "00001.arrow.aside"
    assert aside.read_bytes() == content
    assert len(TeacherCache(cache)) == 24
    # Put back, it is read again.
    aside.rename(lost)
    lost.with_suffix(".json").write_bytes(record)
    check_cache(cache)


def test_a_shard_that_was_written_when_the_build_was_killed_is_taken_for_what_it_is(cache):
    last = list(finished_shards(cache))[-1]
    before = last.read_bytes()
    last.with_suffix(".json").unlink()
    build(cache)
    assert last.read_bytes() == before
    assert not list(last.parent.glob("*.aside*"))


def test_a_shard_that_cannot_be_used_is_kept_when_its_rows_are_asked_again(cache, caplog):
    first = next(iter(finished_shards(cache)))
    cut = first.read_bytes()[:-7]
    first.write_bytes(cut)
    build(cache)
    assert "00000.arrow: " in caplog.text
    assert first.with_name("00000.arrow.aside").read_bytes() == cut
    check_cache(cache)


def test_a_merge_keeps_what_lay_where_it_copies_to(cache, tmp_path):
    merged = tmp_path / "merged"
    merge_caches(merged, [cache])
    (merged / "shards" / "00000.json").unlink()
    (merged / "shards" / "00000.arrow").write_text("mine")
    merge_caches(merged, [cache])
    assert (merged / "shards" / "00000.arrow.aside").read_text() == "mine"
    assert len(TeacherCache(merged)) == 24


def test_folders_and_other_files_among_the_shards_are_left_alone(cache):
    (cache / "shards" / "abc.json").write_text("{}")
    (cache / "shards" / "more").mkdir()
    build(cache, rows=cache_rows(26))
    assert (cache / "shards" / "abc.json").read_text() == "{}"
    assert (cache / "shards" / "more").is_dir()
    check_cache(cache)


def test_a_finished_cache_that_cannot_be_written_to_has_nothing_added(cache, monkeypatch):
    def refuse(*arguments):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(os, "open", refuse)
    build(cache)
    with pytest.raises(ConfigError, match=r"build.lock cannot be written \(Permission denied\)"):
        build(cache, rows=cache_rows(26))


def test_shards_that_cannot_be_listed_are_not_taken_for_none(cache):
    shutil.rmtree(cache / "shards")
    (cache / "shards").write_text("")
    with pytest.raises(DataError, match="shards: cannot be read"):
        TeacherCache(cache)


def test_a_build_that_failed_before_its_first_shard_does_not_bind_the_next_one(tmp_path):
    broken = teacher()
    broken.lm_head.weight.data.fill_(float("nan"))
    with pytest.raises(BridgegardenError, match="not finite"):
        build(tmp_path / "cache", cache_spec(weights="b" * 64), model=broken)
    build(tmp_path / "cache")
    check_cache(tmp_path / "cache")
