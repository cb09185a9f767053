"""Reading: every row its own signal, and nothing that does not fit."""

import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
from accelerate.utils import send_to_device
from datasets import Dataset

from bridgegarden.errors import ConfigError, DataError, ModelError
from bridgegarden.objective.alignment import SupervisedPositions
from bridgegarden.objective.divergences import reverse_kl
from bridgegarden.objective.hybrid import HybridObjective
from bridgegarden.objective.soft_weight import EntropyWeight
from bridgegarden.teacher.cache import reader as reader_module
from bridgegarden.teacher.cache.manifest import finished_shards
from bridgegarden.teacher.cache.reader import RECORDS, SIGNAL, TeacherCache, _Index
from bridgegarden.teacher.cache.shard import Shard, documents_in, documents_of
from bridgegarden.teacher.cache.spec import Support
from tests.teacher.cache.conftest import build, cache_rows, cache_spec
from tests.tiny import VOCABULARY, tiny_tokenizer


def test_a_missing_cache_is_refused_with_the_command_to_build_it(tmp_path):
    with pytest.raises(ConfigError, match=r"no cache there .*bridgegarden cache build RECIPE"):
        TeacherCache(tmp_path / "nothing")


def test_a_cache_travels_to_workers_and_reads_the_same(cache):
    here = TeacherCache(cache)
    there = pickle.loads(pickle.dumps(here))
    for document in documents_of(cache_rows()):
        assert there.records(document.key).tobytes() == here.records(document.key).tobytes()


def test_what_is_not_there_is_not_found(cache):
    reader = TeacherCache(cache)
    (document,) = documents_of(cache_rows(1, seed=5))
    assert document.key not in reader
    with pytest.raises(KeyError):
        reader.signals(document.key)


def test_where_more_shards_are_read_than_may_be_open_the_one_read_longest_ago_is_closed(cache, monkeypatch):
    reader = TeacherCache(cache)
    first_of = {reader._place(document.key)[0]: document.key for document in documents_of(cache_rows())}
    opened = []

    def open_counted(path: Path, *args):
        opened.append(int(path.stem))
        return open_shard(path, *args)

    open_shard = Shard.open
    monkeypatch.setattr(Shard, "open", open_counted)
    monkeypatch.setattr(reader_module, "OPEN_SHARDS", 2)
    for number in (0, 1, 0, 2, 0, 1, 2):
        reader.records(first_of[number])
    assert opened == [0, 1, 2, 1, 2]


def test_documents_whose_keys_begin_alike_are_told_apart():
    keys = [b"same8byt" + bytes([end] * 8) for end in (7, 3, 9)] + [b"elsewhere" + bytes(7)]
    index = _Index(
        np.frombuffer(b"".join(keys), np.uint8).reshape(-1, 16),
        np.array([0, 0, 1, 1], np.int32),
        np.array([0, 1, 0, 1], np.int32),
    )
    assert [index.find(key) for key in keys] == [(0, 0), (0, 1), (1, 0), (1, 1)]
    assert index.find(b"same8byt" + bytes([8] * 8)) is None
    assert index.find(b"\xff" * 16) is None
    assert index.find(bytes(16)) is None


def test_rows_that_are_missing_are_counted_and_named(cache):
    rows = Dataset.from_list([*cache_rows(3).to_list(), {"input_ids": [1, 2], "labels": [-100, 2], "row": 9}])
    with pytest.raises(DataError, match=r"train data: 1 of 4 rows are not in it \(row 9\).*cache build RECIPE"):
        TeacherCache(cache).check_rows(rows, "train")
    with pytest.raises(DataError, match=r"a batch: 1 of 1 rows are not in it \(row 9\)"):
        TeacherCache(cache).collate([rows[3]])


def test_a_truncated_shard_is_found_when_the_cache_is_opened(cache):
    path = list(finished_shards(cache))[1]
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(
        DataError, match=r"00001.arrow: [\d,]+ bytes long, and [\d,]+ were written. Remove it.*cache build"
    ):
        TeacherCache(cache)


def test_another_tokenizer_template_or_length_is_refused_with_both_values(cache):
    reader = TeacherCache(cache)
    reader.check_tokenizer(tiny_tokenizer(), 64)
    spec = cache_spec()
    other = tiny_tokenizer()
    other.add_tokens(["zz"])
    with pytest.raises(
        ModelError, match=rf"built with tokenizer {spec.tokenizer[:12]}, .*cache build RECIPE.*--replace"
    ):
        reader.check_tokenizer(other, 64)
    other = tiny_tokenizer()
    other.chat_template = "{{ messages }}"
    with pytest.raises(ModelError, match=rf"chat template {spec.chat_template[:12]}, but rows are read with the s"):
        reader.check_tokenizer(other, 64)
    with pytest.raises(ConfigError, match=r"training\.max_length 64, but it is now 32"):
        reader.check_tokenizer(tiny_tokenizer(), 32)


def test_a_power_sum_that_is_not_stored_is_refused_before_training(cache):
    reader = TeacherCache(cache)
    reader.check_objective(HybridObjective(temperature=2.0, soft_weight=EntropyWeight(kind="power", gamma=0.1)))
    with pytest.raises(
        ConfigError, match=r"sum of p\^0.25, and stored are those of exponents 0.1, 0.5, 2.*cache build"
    ):
        reader.check_objective(HybridObjective(temperature=4.0))


def test_a_whole_vocabulary_without_a_tail_serves_any_temperature(tmp_path):
    reader = TeacherCache(build(tmp_path / "cache", cache_spec(Support(k=400), teacher_width=270, vocab_size=270)))
    reader.check_objective(HybridObjective(temperature=4.0))


@pytest.mark.parametrize(
    "objective",
    [
        HybridObjective(temperature=2.0),
        HybridObjective(divergence=reverse_kl),
        HybridObjective(soft_weight=EntropyWeight(kind="power")),
    ],
)
def test_draws_are_refused_for_what_they_cannot_give(tmp_path, objective):
    reader = TeacherCache(build(tmp_path / "cache", cache_spec(Support(kind="sampled", k=4))))
    reader.check_objective(HybridObjective(soft_weight=EntropyWeight()))
    with pytest.raises(ConfigError, match="holds 4 draws; draws give the forward KL at temperature 1"):
        reader.check_objective(objective)


def test_an_empty_batch_has_an_empty_signal(cache):
    batch = TeacherCache(cache).collate([{"input_ids": [1, 2], "labels": [-100, -100]}])
    positions = SupervisedPositions.from_labels(torch.full((1, 2), -100))
    signal = TeacherCache(cache).at(positions, {SIGNAL: batch}, vocab_size=VOCABULARY, exponents=())
    assert signal.logp.shape == (0, 16)
    assert signal.captured_mass.shape == (0,)


def test_signals_move_with_the_rest_of_a_batch_and_are_not_copied_again(cache):
    reader, rows = TeacherCache(cache), list(cache_rows())[:3]
    signals = reader.collate(rows)
    # A mapping of another kind is not looked into where memory is pinned and batches are moved.
    assert type(signals) is dict
    assert all(values.is_contiguous() for values in signals.values())
    moved = send_to_device({SIGNAL: signals}, torch.device("meta"), non_blocking=True)
    assert {values.device.type for values in moved[SIGNAL].values()} == {"meta"}
    labels = torch.nn.utils.rnn.pad_sequence([torch.tensor(row["labels"]) for row in rows], True, padding_value=-100)
    signal = reader.at(
        SupervisedPositions.from_labels(labels), {SIGNAL: signals}, vocab_size=reader.width, exponents=()
    )
    assert signals.keys() == {RECORDS}
    expected = [part for row in rows for document in documents_in(row) for part in [reader.signals(document.key)]]
    assert signal.logp.numpy().tobytes() == b"".join(part.logp.tobytes() for part in expected)


def test_a_batch_travels_as_it_lies_on_disk_and_is_decoded_on_its_device(cache, monkeypatch):
    reader, rows = TeacherCache(cache), list(cache_rows())[:3]
    batch = reader.collate(rows)
    stored = [reader.records(document.key).tobytes() for row in rows for document in documents_in(row)]
    assert batch[RECORDS].numpy().tobytes() == b"".join(stored)
    labels = torch.nn.utils.rnn.pad_sequence([torch.tensor(row["labels"]) for row in rows], True, padding_value=-100)
    positions = SupervisedPositions.from_labels(labels)

    def signal():
        return reader.at(positions, {SIGNAL: batch}, vocab_size=reader.width, exponents=())

    by_numpy = signal()
    monkeypatch.setattr(reader, "_decoded", reader._decoder.decode)  # as on a GPU
    by_torch = signal()
    for name in ("ids", "logp", "log_tail", "entropy", "argmax", "max_logp", "label_logp"):
        assert torch.equal(getattr(by_torch, name), getattr(by_numpy, name)), name
