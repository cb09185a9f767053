import json
import random

import numpy as np
import pytest
import torch
from datasets import Dataset

from bridgegarden.errors import DataError
from bridgegarden.statistics import Estimate
from bridgegarden.teacher.cache import info as info_module
from bridgegarden.teacher.cache.info import (
    BRIDGE_LIKE,
    ENTROPY_EDGES,
    cache_info,
    check_cache,
    kept_tokens,
    teacher_loss,
)
from bridgegarden.teacher.cache.manifest import finished_shards
from bridgegarden.teacher.cache.reader import TeacherCache
from bridgegarden.teacher.cache.record import RecordFormat
from bridgegarden.teacher.cache.shard import documents_of
from bridgegarden.teacher.cache.spec import Support
from tests.teacher.cache.conftest import build, cache_rows, cache_spec, teacher
from tests.teacher.cache.test_forward import build as served_build


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


@pytest.mark.parametrize("support", [Support(k=16), Support(kind="mass", k=16, mass=0.8)])
def test_the_teachers_own_loss_is_that_of_a_plain_forward(tmp_path, support, monkeypatch):
    folder, model = build(tmp_path / "cache", cache_spec(support)), teacher()
    losses = []
    for row in cache_rows():
        ids, labels = torch.tensor(row["input_ids"]), torch.tensor(row["labels"])[1:]
        with torch.no_grad():
            logp = model(ids[None]).logits[0, :-1].double().log_softmax(-1)
        losses.append(-logp[labels != -100].gather(1, labels[labels != -100][:, None]).sum().item())
    tokens = [sum(label != -100 for label in row["labels"][1:]) for row in cache_rows()]
    found = cache_info(folder).loss
    assert found.mean == pytest.approx(sum(losses) / sum(tokens), rel=1e-5)
    assert found.tokens == sum(tokens)
    low, high = Estimate.ratio(losses, tokens).interval()
    assert found.half == pytest.approx((high - low) / 2, rel=1e-4)
    assert teacher_loss(folder) == found
    monkeypatch.setattr(info_module, "LOSS_POSITIONS", 60)
    some = teacher_loss(folder)
    assert 40 < some.tokens < 100
    assert abs(some.mean - found.mean) < some.half + found.half


def test_of_a_server_ends_of_turn_that_it_said_nothing_of_are_left_out_of_its_loss(tmp_path):
    found = cache_info(served_build(tmp_path / "cache")).loss
    assert found.tokens == 3
    assert found.mean == pytest.approx((0.7 + 0.7 + 1e-9) / 3)


def test_text_says_what_a_person_asks(cache):
    text = str(cache_info(cache))
    for words in ("tiny, float32", "24 of at most 64 tokens", "top 16 of 259 tokens", "captured mass", "Bridge-like"):
        assert words in text


def test_an_empty_cache_has_numbers_too(tmp_path):
    empty = Dataset.from_dict({"input_ids": [[1, 2]], "labels": [[-100, -100]]})
    assert cache_info(build(tmp_path / "cache", rows=empty)).positions == 0


def sure_teacher():
    """So spiked that many positions are Bridge-like."""
    model = teacher()
    model.lm_head.weight.data *= 8
    return model


@pytest.mark.parametrize("support", [Support(k=16), Support(kind="mass", k=16, mass=0.8)])
def test_every_position_is_counted_once_in_its_bin(tmp_path, support):
    folder = build(tmp_path / "cache", cache_spec(support), model=sure_teacher())
    cache, found = TeacherCache(folder), cache_info(folder)
    signals = [cache.signals(document.key) for document in documents_of(cache_rows())]
    highest = np.exp(np.concatenate([s.max_logp for s in signals]))
    values = {
        "entropies": np.concatenate([s.entropy for s in signals]),
        "confidences": highest,
        "masses": 1 - np.exp(np.concatenate([s.log_tail for s in signals])),
    }
    sure = highest > BRIDGE_LIKE
    assert 0.05 < sure.mean() < 0.95
    for name, numbers in values.items():
        histogram = getattr(found, name)
        edges = [*histogram.edges, np.inf]
        for counts, chosen in ((histogram.bridge_like, sure), (histogram.other, ~sure)):
            assert list(counts) == np.histogram(numbers[chosen].clip(0), edges)[0].tolist()
    assert found.confidence == pytest.approx(highest.mean(), rel=1e-5)


def test_every_histogram_has_all_positions_and_the_same_bridge_like_ones(tmp_path):
    folder = build(tmp_path / "cache", model=sure_teacher())
    info = cache_info(folder)
    for histogram in (info.entropies, info.confidences, info.masses):
        assert sum(histogram.bridge_like) == round(info.bridge_like * info.positions)
        assert sum(histogram.bridge_like) + sum(histogram.other) == info.positions


@pytest.mark.parametrize("support", [Support(k=16), Support(kind="sampled", k=8), Support(k=300)])
def test_parts_of_a_record_are_all_of_it(tmp_path, support):
    spec = cache_spec(support)
    found = cache_info(build(tmp_path / "cache", spec))
    assert sum(found.record_bytes.values()) == RecordFormat(spec).bytes_per_position
    assert (found.masses is None) == (not spec.has_tail)


def test_an_empty_cache_has_nothing_in_any_bin(tmp_path):
    empty = Dataset.from_dict({"input_ids": [[1, 2]], "labels": [[-100, -100]]})
    found = cache_info(build(tmp_path / "cache", rows=empty))
    assert not any((*found.entropies.other, *found.entropies.bridge_like))
    assert found.confidence == 0


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


@pytest.mark.parametrize("support", [Support(k=24), Support(kind="mass", k=24, mass=0.8)])
@pytest.mark.parametrize("exponent", [1.0, 0.5])
def test_the_likeliest_tokens_hold_what_the_teachers_softmax_gives_them(tmp_path, support, exponent):
    folder = build(tmp_path / "cache", cache_spec(support))
    rows = kept_tokens(folder, exponent)
    assert [row.k for row in rows] == [8, 16, 24]
    model, held = teacher(), []
    for document in documents_of(cache_rows()):
        with torch.no_grad():
            logits = model(input_ids=torch.tensor(document.ids[None], dtype=torch.long)).logits[0, :-1]
        p = (exponent * logits[torch.tensor(document.labels[1:] != -100)]).double().softmax(-1)
        kept = support.signal(
            logits[torch.tensor(document.labels[1:] != -100)], vocab_size=259, exponents=(), generator=None
        )
        assert kept.ids is not None
        there = (
            torch.where(kept.ids < 0, 0.0, p.gather(-1, kept.ids.clamp(min=0))).sort(descending=True).values.cumsum(-1)
        )
        held.append(there[:, [7, 15, 23]])
    shares = torch.cat(held).numpy()
    assert [row.mass for row in rows] == pytest.approx(shares.mean(0).tolist(), abs=2e-3)
    assert [row.low for row in rows] == pytest.approx(np.quantile(shares, 0.05, axis=0).tolist(), abs=5e-3)


def test_bytes_by_tokens_are_those_of_a_cache_of_so_many(tmp_path):
    rows = kept_tokens(build(tmp_path / "cache", cache_spec(Support(k=16))))
    for row in rows:
        assert row.bytes == RecordFormat(cache_spec(Support(k=row.k))).bytes_per_position
    text = str(cache_info(tmp_path / "cache"))
    assert f"{rows[0].k}   {rows[0].mass:.4f}   {rows[0].low:.4f}" in text


def test_a_large_cache_is_sampled_evenly(cache, monkeypatch):
    everything = kept_tokens(cache)
    read = []
    monkeypatch.setattr(info_module, "SAMPLED_POSITIONS", 60)
    whole = info_module.Shard.signals
    monkeypatch.setattr(
        info_module.Shard, "signals", lambda self, i: read.append((self.path.name, i)) or whole(self, i)
    )
    sampled = kept_tokens(cache)
    shards = {name for name, _ in read}
    assert 4 <= len(read) == len(set(read)) <= 12
    assert len(shards) >= 3
    assert sampled[-1].mass == pytest.approx(everything[-1].mass, abs=0.05)
