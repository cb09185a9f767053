"""Building: whole or not at all, whatever happens, and the same whatever happened."""

import errno
import json
import os
import random
import shutil
import signal
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from datasets import Dataset, concatenate_datasets

from bridgegarden.errors import ConfigError, DataError, ModelError
from bridgegarden.teacher.cache.forward import WorkingTeacher, teacher_signals
from bridgegarden.teacher.cache.info import cache_info, check_cache
from bridgegarden.teacher.cache.manifest import FORMAT, BuildTime, finished_shards
from bridgegarden.teacher.cache.reader import TeacherCache
from bridgegarden.teacher.cache.record import RecordFormat
from bridgegarden.teacher.cache.shard import Document, Shard, documents_of
from bridgegarden.teacher.cache.spec import Support
from bridgegarden.teacher.cache.writer import OneTeacher, build_cache, cut_batches, merge_caches, remove_cache
from tests.teacher.cache.conftest import build, cache_rows, cache_spec, teacher, untimed


def content(folder: Path) -> dict[bytes, bytes]:
    """Every document with its records; fails if one is there twice."""
    layout, found = RecordFormat(TeacherCache(folder).spec), {}
    for path, record in finished_shards(folder).items():
        shard = Shard.open(path, record, layout)
        for index, key in enumerate(shard.keys):
            assert key.tobytes() not in found
            found[key.tobytes()] = shard.records(index).tobytes()
    return found


def files(folder: Path) -> dict[str, bytes]:
    return {path.name: untimed(path.read_bytes()) for path in (folder / "shards").iterdir()}


@pytest.mark.parametrize("support", [Support(k=16), Support(k=300), Support(kind="mass", k=16, mass=0.9)])
def test_every_row_has_what_the_teacher_says_about_it(tmp_path, support):
    cache = TeacherCache(build(tmp_path / "cache", cache_spec(support, bits=16)))
    model, rows = teacher(), cache_rows()
    assert len(cache) == len(rows)
    for row, document in zip(rows, documents_of(rows), strict=True):
        logp = model(torch.tensor([row["input_ids"]])).logits[0, :-1].log_softmax(-1)
        labels = torch.tensor(row["labels"][1:])
        expected, labels = logp[labels != -100].detach().numpy(), labels[labels != -100].numpy()
        found = cache.signals(document.key)
        np.testing.assert_allclose(found.label_logp, expected[np.arange(len(labels)), labels], atol=1e-4)
        np.testing.assert_allclose(found.entropy, -(np.exp(expected) * expected).sum(1), atol=1e-4)
        assert (found.argmax == expected[:, :259].argmax(1)).all()
        ids = np.broadcast_to(np.arange(259), found.logp.shape) if found.ids is None else found.ids
        kept = ids >= 0
        exact = np.take_along_axis(expected, np.maximum(ids, 0), 1)
        np.testing.assert_allclose(found.logp[kept], exact[kept], atol=5e-3)


def test_draws_are_the_same_however_rows_are_batched(tmp_path):
    spec = cache_spec(Support(kind="sampled", k=8))
    one, other = build(tmp_path / "a", spec, batch_tokens=1), build(tmp_path / "b", spec, batch_tokens=400)
    ids = [{key: TeacherCache(folder).signals(key).ids.tolist() for key in content(folder)} for folder in (one, other)]
    assert ids[0] == ids[1]


def test_equal_rows_are_asked_once(tmp_path):
    rows = cache_rows(6)
    folder = build(tmp_path / "cache", rows=concatenate_datasets([rows, rows]))
    assert len(content(folder)) == 6


@pytest.mark.parametrize(
    ("lengths", "cut"),
    [
        ([6, 6, 6], [[6, 6], [6]]),
        ([5, 4, 3, 2], [[5, 4], [3, 2]]),
        ([4, 4, 4, 4], [[4, 4, 4], [4]]),
        ([13, 12, 1], [[13], [12], [1]]),
        ([20], [[20]]),
    ],
)
def test_a_batch_takes_as_many_rows_as_fit_with_their_padding_and_no_more(lengths, cut):
    documents = [Document(ids=np.arange(n, dtype=np.int32), labels=np.arange(n), row=0) for n in lengths]
    batches = cut_batches(documents, 12)
    assert [[len(document.ids) for document in batch] for batch in batches] == cut


def test_what_a_killed_build_had_half_written_is_removed(cache):
    shards = cache / "shards"
    (shards / ".00007.arrow.partial").write_bytes(b"half")
    (shards / ".00007.json.partial").write_bytes(b"half")
    before = files(cache)
    build(cache)
    assert before.keys() - files(cache).keys() == {".00007.arrow.partial", ".00007.json.partial"}


def test_a_teacher_that_was_not_asked_has_taken_no_time():
    assert WorkingTeacher(teacher(), RecordFormat(cache_spec())).seconds == 0


def test_new_rows_are_added_and_old_ones_not_asked_again(cache, monkeypatch):
    before = files(cache)
    asked = []
    monkeypatch.setattr(
        "bridgegarden.teacher.cache.forward.teacher_signals",
        lambda model, documents, spec: asked.extend(documents) or teacher_signals(model, documents, spec),
    )
    more = concatenate_datasets([cache_rows(), cache_rows(5, seed=1)])
    result = build_cache(cache, OneTeacher(teacher, cache_spec()), [more], cache_spec())
    assert (result.documents, result.kept, len(asked)) == (5, 24, 5)
    assert before.items() <= files(cache).items()


def killed_build(folder: Path, after: float) -> bool:
    """A build in a process of its own that is killed after so many seconds; whether it was still running."""
    child = os.fork()
    if child == 0:
        try:
            build(folder)
        finally:
            os._exit(0)
    time.sleep(after)
    os.kill(child, signal.SIGKILL)
    _, status = os.waitpid(child, 0)
    return os.WIFSIGNALED(status)


def build_killed_at(folder: Path, moments: int, seed: int) -> None:
    whole = build(folder / "whole")
    model, rows = teacher(), cache_rows()
    began = time.perf_counter()
    build(folder / "timed", model=model, rows=rows)
    seconds = time.perf_counter() - began
    rng, killed = random.Random(seed), 0
    for moment in range(moments):
        broken = folder / str(moment)
        killed += killed_build(broken, rng.uniform(0.05, 1.0) * seconds)
        build(broken)
        assert files(broken) == files(whole)
        assert content(broken) == content(whole)
        check_cache(broken)
        shutil.rmtree(broken)
    assert killed >= moments // 3


@pytest.mark.filterwarnings("ignore:This process:DeprecationWarning")  # fork, from Python 3.12
def test_a_build_killed_at_any_moment_resumes_to_the_same_bytes(tmp_path):
    build_killed_at(tmp_path, 6, seed=0)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:This process:DeprecationWarning")
def test_a_build_killed_at_any_of_twenty_moments_resumes_to_the_same_bytes(tmp_path):
    build_killed_at(tmp_path, 20, seed=1)


def test_a_build_interrupted_between_shards_does_not_repeat_finished_ones(tmp_path):
    whole = build(tmp_path / "whole")

    def stop(done, total):
        if done > total / 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        build(tmp_path / "cache", on_progress=stop)
    kept = {path: path.stat().st_mtime_ns for path in finished_shards(tmp_path / "cache")}
    assert kept
    build(tmp_path / "cache")
    assert files(tmp_path / "cache") == files(whole)
    assert all(path.stat().st_mtime_ns == then for path, then in kept.items())


def test_a_shard_that_was_cut_short_is_built_again(cache):
    whole = files(cache)
    path = next(iter(finished_shards(cache)))
    path.write_bytes(path.read_bytes()[:-7])
    build(cache)
    assert set(whole.values()) & set(files(cache).values()) >= {whole["00001.arrow"]}
    assert len(content(cache)) == 24


def test_a_full_disk_is_one_clear_line_and_leaves_finished_shards_usable(tmp_path, monkeypatch):
    whole = build(tmp_path / "whole")
    real_fsync, calls = os.fsync, []

    def fsync(file):
        calls.append(file)
        if len(calls) > 12:
            raise OSError(errno.ENOSPC, "No space left on device")
        real_fsync(file)

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", fsync)
        with pytest.raises(
            ConfigError, match=r"0000\d.arrow cannot be written: no space left on the disk.* run the same command again"
        ):
            build(tmp_path / "cache")
    assert not [path for path in (tmp_path / "cache" / "shards").iterdir() if path.name.startswith(".")]
    usable = content(tmp_path / "cache")
    assert 0 < len(usable) < 24
    assert usable.items() <= content(whole).items()
    build(tmp_path / "cache")
    assert files(tmp_path / "cache") == files(whole)


@pytest.mark.skipif(os.geteuid() != 0, reason="mounting needs root")
def test_a_disk_that_is_really_full_is_one_clear_line(tmp_path):
    disk = tmp_path / "disk"
    disk.mkdir()
    if os.system(f"mount -t tmpfs -o size=16k tmpfs {disk} 2>/dev/null") != 0:
        pytest.skip("mounting is not allowed here")
    try:
        with pytest.raises(ConfigError, match="no space left on the disk"):
            build(disk / "cache", shard_positions=20)
        assert len(content(disk / "cache")) > 0
    finally:
        os.system(f"umount {disk}")


def test_a_second_builder_is_refused_and_told_who_builds(tmp_path):
    def second(done, total):
        with pytest.raises(ConfigError, match=rf"process {os.getpid()} on .* is building here"):
            build(tmp_path / "cache")

    build(tmp_path / "cache", on_progress=second)


def test_parts_built_apart_are_the_whole(tmp_path):
    whole = content(build(tmp_path / "whole"))
    parts = [content(build(tmp_path / str(i), part=(i, 3))) for i in (1, 2, 3)]
    assert all(parts)
    assert sum(map(len, parts)) == len(whole)
    assert {key for part in parts for key in part} == set(whole)


def test_another_kind_of_signal_in_the_same_folder_is_refused_with_both_values(cache):
    for changes, match in (
        ({"support": Support(k=8)}, "support top 16, not top 8"),
        ({"teacher": "other", "weights": "b" * 64}, "teacher tiny, not other; weights aaaaaaaaaaaa, not bbbbbbbbbbbb"),
        ({"exponents": (0.1, 0.25, 0.5)}, "exponents 0.1, 0.5, 2, not 0.1, 0.25, 0.5"),
        ({"max_length": 32}, "max_length 64, not 32"),
        ({"dtype": "bfloat16"}, "dtype float32, not bfloat16"),
    ):
        with pytest.raises(ConfigError, match=rf"{match}.*--replace"):
            build(cache, replace(cache_spec(), **changes))


def test_the_same_weights_under_another_name_are_the_same_teacher(cache):
    before = files(cache)
    build(cache, cache_spec(teacher="elsewhere/tiny"))
    assert files(cache) == before


def test_a_folder_with_something_else_in_it_is_left_alone(tmp_path):
    (tmp_path / "thesis.tex").write_text("x")
    with pytest.raises(ConfigError, match="not empty and not a cache"):
        build(tmp_path)
    remove_cache(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]


def test_a_removed_cache_can_be_built_with_another_spec(cache):
    remove_cache(cache)
    build(cache, cache_spec(Support(k=8)))
    assert TeacherCache(cache).spec.support.k == 8


def test_an_old_format_is_refused_with_the_command_to_rebuild(cache):
    manifest = cache / "cache.json"
    manifest.write_text(manifest.read_text().replace(f'"format": {FORMAT}', '"format": 0'))
    for use in (TeacherCache, check_cache, build):
        with pytest.raises(
            ConfigError, match=r"written in format 0, .* reads format 2.*bridgegarden cache build RECIPE.*--replace"
        ):
            use(cache)


def test_a_teacher_that_is_not_finite_is_named_with_the_row(tmp_path):
    model = teacher()
    with torch.no_grad():
        model.model.embed_tokens.weight[251] = torch.nan
    rows = Dataset.from_list([*cache_rows(3).to_list(), {"input_ids": [251, 3, 4], "labels": [-100, 3, 4], "row": 77}])
    with pytest.raises(ModelError, match="not finite in row 77"):
        build(tmp_path / "cache", rows=rows, model=model)


def test_a_cache_says_what_its_building_took_also_when_it_was_built_in_two_goes(tmp_path):
    began = time.perf_counter()
    rows = cache_rows()
    build(tmp_path / "cache", rows=rows.select(range(12)), shard_positions=20)
    first = BuildTime.of(finished_shards(tmp_path / "cache").values())
    build(tmp_path / "cache", rows=rows, shard_positions=20)
    both = BuildTime.of(finished_shards(tmp_path / "cache").values())
    assert 0 < first.seconds < both.seconds < time.perf_counter() - began
    assert 0 < first.cpu_seconds < both.cpu_seconds
    # Looking through a whole cache is no cost of the teacher's.
    build(tmp_path / "cache", rows=rows, shard_positions=20)
    assert BuildTime.of(finished_shards(tmp_path / "cache").values()) == both
    assert cache_info(tmp_path / "cache").built_in == both
    assert f"built in       {both.seconds:,.1f} s" in str(cache_info(tmp_path / "cache"))


def test_a_cache_that_does_not_say_what_a_shard_took_gives_no_sum(tmp_path):
    folder = build(tmp_path / "cache")
    path = next((folder / "shards").glob("*.json"))
    tree = json.loads(path.read_text())
    del tree["seconds"], tree["cpu_seconds"]
    path.write_text(json.dumps(tree))
    assert BuildTime.of(finished_shards(folder).values()) == (None, None)
    assert "built in       a time that is not known" in str(cache_info(folder))


@pytest.fixture
def parts(tmp_path):
    """Two halves, built where the teacher has different names."""
    return [
        build(tmp_path / str(index), cache_spec(teacher=f"machine-{index}/tiny"), part=(index, 2)) for index in (1, 2)
    ]


def test_merged_parts_hold_every_row_as_a_whole_build_does(parts, tmp_path):
    result = merge_caches(tmp_path / "merged", parts)
    merged, whole = TeacherCache(tmp_path / "merged"), TeacherCache(build(tmp_path / "whole"))
    assert result.documents == len(merged) == len(whole)
    for document in documents_of(cache_rows()):
        ours, theirs = merged.signals(document.key), whole.signals(document.key)
        assert ours.argmax.tolist() == theirs.argmax.tolist()
        assert abs(ours.entropy - theirs.entropy).max() < 1e-4


def test_what_a_killed_merge_put_aside_is_gone_when_the_same_shards_are_there_again(parts, tmp_path):
    merged = tmp_path / "merged"
    merge_caches(merged, parts[:1])
    for path in finished_shards(merged):
        path.with_suffix(".json").unlink()
    merge_caches(merged, parts)
    check_cache(merged)
    assert not list(merged.glob("shards/*.aside*"))


def test_merging_again_adds_nothing(parts, tmp_path):
    merge_caches(tmp_path / "merged", parts)
    again = merge_caches(tmp_path / "merged", parts)
    assert (again.shards, again.documents) == (0, 0)
    assert again.skipped > 0


def test_a_damaged_part_is_refused(parts, tmp_path):
    path = next(iter(finished_shards(parts[1])))
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    with pytest.raises(DataError, match=rf"{path}: damaged"):
        merge_caches(tmp_path / "merged", parts)
    assert len(TeacherCache(tmp_path / "merged")) == len(TeacherCache(parts[0]))


def test_parts_of_another_kind_are_refused(parts, tmp_path):
    other = build(tmp_path / "other", cache_spec(Support(k=4)))
    with pytest.raises(ConfigError, match=r"other does not fit .*: support top 4, not top 16"):
        merge_caches(tmp_path / "merged", [parts[0], other])
    assert not (tmp_path / "merged").exists()
