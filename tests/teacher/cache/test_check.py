import random

import pytest

from bridgegarden.errors import DataError
from bridgegarden.teacher.cache.check import check_cache
from bridgegarden.teacher.cache.manifest import finished_shards


def test_a_cache_as_it_was_written_passes_with_its_counts(cache):
    result = check_cache(cache)
    assert result.documents == 24
    assert result.positions == sum(record.positions for record in finished_shards(cache).values())
    assert "every byte of the shards is as it was written" in str(result)


@pytest.mark.parametrize("seed", range(10))
def test_one_flipped_bit_anywhere_is_found(cache, seed):
    rng = random.Random(seed)
    path = rng.choice(list(finished_shards(cache)))
    content = bytearray(path.read_bytes())
    content[rng.randrange(len(content))] ^= 1 << rng.randrange(8)
    path.write_bytes(content)
    with pytest.raises(
        DataError, match=rf"1 of \d+ shards are damaged: {path.name}: its SHA-256 is .*rm .*cache build"
    ):
        check_cache(cache)


def test_a_truncated_and_a_missing_shard_are_both_named(cache):
    first, second = list(finished_shards(cache))[:2]
    first.write_bytes(first.read_bytes()[:-10])
    second.unlink()
    with pytest.raises(
        DataError, match=r"2 of \d+ shards are damaged: 00000.arrow: .* bytes long.*00001.arrow: missing"
    ):
        check_cache(cache)


def test_a_shard_of_another_cache_is_found(cache):
    path = next(iter(finished_shards(cache))).with_suffix(".json")
    record = path.read_text()
    path.write_text(record.replace('"spec": "', '"spec": "f'))
    with pytest.raises(DataError, match="belongs to another cache"):
        check_cache(cache)


def test_a_damaged_record_beside_a_shard_is_named(cache):
    path = next(iter(finished_shards(cache))).with_suffix(".json")
    path.write_text("{}")
    with pytest.raises(DataError, match=r"00000.json: damaged.*rm .*00000\.\*"):
        check_cache(cache)
