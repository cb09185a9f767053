import pytest

from bridgegarden.errors import ConfigError, DataError
from bridgegarden.teacher.cache.documents import documents_of
from bridgegarden.teacher.cache.manifest import finished_shards
from bridgegarden.teacher.cache.merge import merge_caches
from bridgegarden.teacher.cache.reader import TeacherCache
from bridgegarden.teacher.cache.support import Support
from tests.teacher.cache.conftest import build, cache_rows, cache_spec


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
