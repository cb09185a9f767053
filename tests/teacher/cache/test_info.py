import json

import numpy as np
import pytest
from datasets import Dataset

from bridgegarden.teacher.cache.documents import documents_of
from bridgegarden.teacher.cache.info import ENTROPY_EDGES, cache_info
from bridgegarden.teacher.cache.reader import TeacherCache
from bridgegarden.teacher.cache.support import Support
from tests.teacher.cache.conftest import build, cache_rows, cache_spec


@pytest.mark.parametrize("support", [Support(k=16), Support(kind="mass", k=16, mass=0.8)])
def test_numbers_are_those_of_all_positions(tmp_path, support):
    folder = build(tmp_path / "cache", cache_spec(support))
    info, cache = cache_info(folder), TeacherCache(folder)
    signals = [cache.signals(document.key) for document in documents_of(cache_rows())]
    entropy = np.concatenate([s.entropy for s in signals])
    mass = 1 - np.exp(np.concatenate([s.log_tail for s in signals]))
    assert info.positions == len(entropy)
    assert info.entropy == pytest.approx(entropy.mean(), rel=1e-5)
    assert info.captured_mass == pytest.approx(mass.mean(), rel=1e-5)
    assert info.least_captured_mass == pytest.approx(mass.min(), rel=1e-5)
    assert info.bridge_like == np.mean(np.exp(np.concatenate([s.max_logp for s in signals])) > 0.9)
    edges = [*ENTROPY_EDGES, np.inf]
    assert list(info.entropy_histogram) == np.histogram(entropy.clip(0), edges)[0].tolist()
    document = json.loads(json.dumps(info.to_dict()))
    assert document["bytes_per_position"] == info.bytes / info.positions
    assert [bin["from"] for bin in document["entropy_histogram"]] == list(ENTROPY_EDGES)
    assert [bin["positions"] for bin in document["entropy_histogram"]] == list(info.entropy_histogram)


def test_text_says_what_a_person_asks(cache):
    text = str(cache_info(cache))
    for words in ("tiny, float32", "24 of at most 64 tokens", "top 16 of 259 tokens", "captured mass", "Bridge-like"):
        assert words in text


def test_an_empty_cache_has_numbers_too(tmp_path):
    empty = Dataset.from_dict({"input_ids": [[1, 2]], "labels": [[-100, -100]]})
    assert cache_info(build(tmp_path / "cache", rows=empty)).positions == 0
