import numpy as np
import pytest
from datasets import Dataset

from bridgegarden.teacher.cache.distribution import cache_distribution
from bridgegarden.teacher.cache.documents import documents_of
from bridgegarden.teacher.cache.info import BRIDGE_LIKE, cache_info
from bridgegarden.teacher.cache.reader import TeacherCache
from bridgegarden.teacher.cache.record import RecordFormat
from bridgegarden.teacher.cache.support import Support
from tests.teacher.cache.conftest import build, cache_rows, cache_spec, teacher


def sure_teacher():
    """So spiked that many positions are Bridge-like."""
    model = teacher()
    model.lm_head.weight.data *= 8
    return model


@pytest.mark.parametrize("support", [Support(k=16), Support(kind="mass", k=16, mass=0.8)])
def test_every_position_is_counted_once_in_its_bin(tmp_path, support):
    folder = build(tmp_path / "cache", cache_spec(support), model=sure_teacher())
    cache, found = TeacherCache(folder), cache_distribution(folder)
    signals = [cache.signals(document.key) for document in documents_of(cache_rows())]
    highest = np.exp(np.concatenate([s.max_logp for s in signals]))
    values = {
        "entropy": np.concatenate([s.entropy for s in signals]),
        "confidence": highest,
        "captured_mass": 1 - np.exp(np.concatenate([s.log_tail for s in signals])),
    }
    sure = highest > BRIDGE_LIKE
    assert 0.05 < sure.mean() < 0.95
    for name, numbers in values.items():
        histogram = getattr(found, name)
        edges = [*histogram.edges, np.inf]
        for counts, chosen in ((histogram.bridge_like, sure), (histogram.other, ~sure)):
            assert list(counts) == np.histogram(numbers[chosen].clip(0), edges)[0].tolist()
    assert found.mean_confidence == pytest.approx(highest.mean(), rel=1e-5)


def test_numbers_are_those_that_info_prints(tmp_path):
    folder = build(tmp_path / "cache", model=sure_teacher())
    info, found = cache_info(folder), cache_distribution(folder)
    both = zip(found.entropy.bridge_like, found.entropy.other, strict=True)
    assert tuple(map(sum, both)) == info.entropy_histogram
    for histogram in (found.entropy, found.confidence, found.captured_mass):
        assert sum(histogram.bridge_like) == round(info.bridge_like * info.positions)
        assert sum(histogram.bridge_like) + sum(histogram.other) == info.positions


@pytest.mark.parametrize("support", [Support(k=16), Support(kind="sampled", k=8), Support(k=300)])
def test_parts_of_a_record_are_all_of_it(tmp_path, support):
    spec = cache_spec(support)
    found = cache_distribution(build(tmp_path / "cache", spec))
    assert sum(found.record_bytes.values()) == RecordFormat(spec).bytes_per_position
    assert (found.captured_mass is None) == (not spec.has_tail)


def test_an_empty_cache_has_nothing_in_any_bin(tmp_path):
    empty = Dataset.from_dict({"input_ids": [[1, 2]], "labels": [[-100, -100]]})
    found = cache_distribution(build(tmp_path / "cache", rows=empty))
    assert not any((*found.entropy.other, *found.entropy.bridge_like))
    assert found.mean_confidence == 0
