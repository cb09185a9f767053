import json

import pytest

from bridgegarden.quickstart.result import QuickstartResult
from bridgegarden.statistics import Estimate
from tests.quickstart.made_up import made_up_result


@pytest.mark.parametrize("seeds", [(0,), (3, 4, 5)])
def test_a_result_survives_json(seeds):
    result = made_up_result(seeds=seeds)
    assert QuickstartResult.from_dict(json.loads(json.dumps(result.to_dict(), allow_nan=False))) == result


def test_json_names_what_it_holds():
    tree = made_up_result().to_dict()
    assert set(tree["runs"][0]["measured"]["diversity"]) == {"mean", "stderr", "n"}
    assert tree["settings"]["objectives"] == ["hard", "soft", "static", "confidence", "entropy"]


def test_one_seed_is_summed_up_over_problems():
    result = made_up_result()
    summary, single = result.summary("soft", "diversity"), result.runs_of("soft")[0].measured.diversity
    assert (summary.units, summary.n) == ("problems", single.n)
    assert (summary.mean, summary.stderr, summary.interval) == (single.mean, single.stderr, single.interval())


def test_several_seeds_are_summed_up_over_seeds():
    result = made_up_result(seeds=(0, 1, 2))
    summary = result.summary("soft", "diversity")
    over = Estimate.over([run.measured.diversity.mean for run in result.runs_of("soft")])
    assert (summary.units, summary.n) == ("seeds", 3)
    assert (summary.mean, summary.stderr) == over[:2]
    assert summary.interval.high - summary.mean == pytest.approx(4.3027 * over.stderr, rel=1e-3)


def test_runs_are_found_by_objective():
    result = made_up_result(seeds=(0, 1))
    assert result.objectives == ("hard", "soft", "static", "confidence", "entropy")
    assert [(run.objective, run.seed) for run in result.runs_of("entropy")] == [("entropy", 0), ("entropy", 1)]
    assert result.label("hard") == "hard (argmax)"
