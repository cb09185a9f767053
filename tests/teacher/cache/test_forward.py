import json
import math
from dataclasses import replace

import numpy as np
import pytest
from datasets import Dataset

from bridgegarden.errors import ConfigError
from bridgegarden.objective.hybrid import HybridObjective
from bridgegarden.objective.soft_weight import ConfidenceWeight, EntropyWeight
from bridgegarden.teacher.answers import AnsweredRow, kept_position, label_alone
from bridgegarden.teacher.cache.forward import AnswersEngine, position_arrays
from bridgegarden.teacher.cache.info import cache_info
from bridgegarden.teacher.cache.manifest import write_spec
from bridgegarden.teacher.cache.reader import TeacherCache
from bridgegarden.teacher.cache.record import RecordFormat
from bridgegarden.teacher.cache.shard import document_key
from bridgegarden.teacher.cache.spec import CacheSpec, Served, Support
from bridgegarden.teacher.cache.writer import build_cache
from tests.teacher.cache.conftest import cache_spec


def served_spec(**changes) -> CacheSpec:
    fields = {"weights": None, "exponents": (), "support": Support(k=4), "teacher_width": 259}
    return cache_spec(**(fields | {"served": Served(temperature=0.0)} | changes))


def half(index, others):
    """Half of the mass on one token, an eighth on each of the others."""
    return kept_position([index, *others], [math.log(0.5), *[math.log(0.125)] * len(others)], -0.7, 4)


ROWS = [
    AnsweredRow(
        input_ids=[1, 2, 9, 8, 258],
        labels=[-100, -100, 9, 8, 258],
        positions=[half(9, (200, 3)), half(8, ()), label_alone(258)],
        end_is_label=True,
    ),
    AnsweredRow(
        input_ids=[1, 2, 7], labels=[-100, -100, 7], positions=[kept_position([7, 5], [-1e-9, -30.0], -1e-9, 4)],
        end_is_label=False,
    ),
]  # fmt: skip


def build(folder, rows=ROWS, spec=None):
    spec = spec or served_spec()
    engine = AnswersEngine(spec)
    for row in rows:
        engine.add(row)
    data = Dataset.from_list([{"input_ids": row.input_ids, "labels": row.labels} for row in rows])
    build_cache(folder, engine, [data], spec)
    return folder


def key(row):
    return document_key(np.array(row.input_ids, np.int32), np.array(row.labels, np.int32))


@pytest.mark.parametrize("bits", [8, 16])
def test_positions_come_back_from_the_cache_with_their_empty_slots(tmp_path, bits):
    cache = TeacherCache(build(tmp_path / "cache", spec=served_spec(bits=bits)))
    signals = cache.signals(key(ROWS[0]))
    assert signals.ids.tolist() == [[3, 9, 200, -1], [8, -1, -1, -1], [258, -1, -1, -1]]
    np.testing.assert_allclose(np.exp(signals.logp[0]), [0.125, 0.5, 0.125, 0], atol=2e-3)
    np.testing.assert_allclose(np.exp(signals.log_tail), [0.25, 0.5, 1e-7], rtol=1e-5)
    assert signals.argmax.tolist() == [9, 8, 258]
    np.testing.assert_allclose(signals.label_logp, [-0.7, -0.7, math.nan], atol=1e-6)
    np.testing.assert_allclose(signals.entropy[1], math.log(2), rtol=1e-6)


def test_of_equal_rows_the_first_is_kept(tmp_path):
    other = replace(ROWS[1], positions=[half(7, (1, 2))])
    cache = TeacherCache(build(tmp_path / "cache", [ROWS[1], other]))
    assert len(cache) == 1
    assert cache.signals(key(ROWS[1])).max_logp[0] == pytest.approx(0, abs=1e-6)


def test_numbers_are_those_of_all_positions(tmp_path):
    info = cache_info(build(tmp_path / "cache"))
    numbers = info.served
    assert (numbers.label_alone, numbers.smallest_tail) == (1, 1)
    positions = [position for row in ROWS for position in row.positions]
    # The distribution with these tokens that is spread most: each of the others has the same.
    spread = [np.exp([*p.logp, *[p.log_tail - math.log(259 - len(p.ids))] * (259 - len(p.ids))]) for p in positions]
    most = [-(one * np.log(one)).sum() for one in spread]
    assert numbers.entropy_at_most == pytest.approx(np.mean(most), rel=2e-3)  # tokens take eight bits
    assert np.mean([position.entropy for position in positions]) < numbers.entropy_at_most < math.log(259)
    assert "entropy        at least" in str(info)
    assert json.loads(json.dumps(info.to_dict()))["spec"]["served"]["temperature"] == 0.0


def test_the_spec_of_a_model_is_written_as_it_was_before_there_were_served_teachers():
    assert "served" not in cache_spec().to_dict()
    assert served_spec().digest != replace(served_spec(), served=None).digest
    assert CacheSpec.from_dict(json.loads(json.dumps(served_spec().to_dict()))) == served_spec()
    assert served_spec().differences(replace(served_spec(), served=Served(temperature=1.0))) == (
        "served yes, sampled at temperature 0, not yes, sampled at temperature 1"
    )


@pytest.mark.parametrize(
    "changes", [{"support": Support(kind="sampled", k=4)}, {"support": Support(k=259)}, {"exponents": (0.5,)}]
)
def test_what_a_server_cannot_give_is_no_spec(changes):
    with pytest.raises(ConfigError, match="a server's answers, and files of other programs, hold some of a teacher's"):
        served_spec(**changes)


def test_objectives_that_need_sums_over_the_tail_are_refused_and_no_others(tmp_path):
    write_spec(tmp_path, served_spec())
    cache = TeacherCache(tmp_path)
    for fine in (HybridObjective(), HybridObjective(soft_weight=EntropyWeight()), HybridObjective(risk_alpha=0.1)):
        cache.check_objective(fine)
    cache.check_objective(HybridObjective(soft_weight=ConfidenceWeight()))
    for needy in (HybridObjective(temperature=2.0), HybridObjective(soft_weight=EntropyWeight(kind="power"))):
        with pytest.raises(ConfigError, match="which a server does not give"):
            cache.check_objective(needy)


def test_an_empty_row_of_positions_is_encoded_too():
    layout = RecordFormat(served_spec())
    assert layout.encode(position_arrays([], layout.spec)).shape == (0,)
