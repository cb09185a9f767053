import errno
import json

import pytest

from bridgegarden.errors import ConfigError
from bridgegarden.teacher.cache.manifest import LOCK, build_lock, is_cache, read_spec


def test_a_builder_on_another_machine_holds_its_lock_until_it_is_removed(tmp_path):
    (tmp_path / LOCK).write_text(json.dumps({"host": "elsewhere", "pid": 12}))
    with pytest.raises(ConfigError, match=rf"process 12 on elsewhere is building here.*remove .*{LOCK}"):
        with build_lock(tmp_path):
            pass
    (tmp_path / LOCK).unlink()
    with build_lock(tmp_path):
        pass


@pytest.mark.parametrize("left", ["", "{", '{"pid": 1}'])
def test_what_a_dead_builder_here_left_does_not_hold_anybody_up(tmp_path, left):
    (tmp_path / LOCK).write_text(left)
    with build_lock(tmp_path):
        assert json.loads((tmp_path / LOCK).read_text())["pid"] > 0
    assert (tmp_path / LOCK).read_text() == ""


def test_a_lock_that_finds_no_room_is_named(tmp_path, monkeypatch):
    def full(*arguments):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("os.pwrite", full)
    with (
        pytest.raises(ConfigError, match=rf"{LOCK} cannot be written: no space left on the disk"),
        build_lock(tmp_path),
    ):
        pass


@pytest.mark.parametrize("changes", [{"format": "2"}, {"format": True}, {"versions": {}}, {"versions": None}])
def test_a_file_of_the_name_that_lacks_anything_of_a_cache_s_is_somebody_else_s(cache, changes):
    path = cache / "cache.json"
    assert is_cache(cache)
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))
    assert not is_cache(cache)
    with pytest.raises(ConfigError, match="a file of this name is there that is not ours"):
        read_spec(cache)
