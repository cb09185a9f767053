import json
from dataclasses import replace

import pytest

from bridgegarden.errors import ConfigError
from bridgegarden.objective.soft_weight import StaticWeight
from bridgegarden.quickstart.result import QuickstartResult, QuickstartSettings, beats, finding, frontier
from bridgegarden.statistics import Estimate
from bridgegarden.study.arms import OBJECTIVES
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


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ({"objectives": ("hrad",)}, "Did you mean 'hard'"),
        ({"objectives": ()}, "at least one objective"),
        ({"seeds": ()}, "at least one objective and one seed"),
        ({"seeds": (1, 1)}, "named twice"),
        ({"steps": 0}, "steps must be >= 1"),
        ({"test_problems": 1}, "test_problems must be >= 2"),
        ({"learning_rate": 0.0}, "learning_rate must be > 0"),
    ],
)
def test_a_wrong_setting_is_named(setting, message):
    with pytest.raises(ConfigError, match=message):
        QuickstartSettings(**setting)


def test_settings_survive_json():
    settings = QuickstartSettings(objectives=("soft", "hard"), seeds=(4, 5), steps=7)
    assert QuickstartSettings.from_dict(settings.to_dict()) == settings


def test_every_objective_is_built():
    built = {name: compared.build() for name, compared in OBJECTIVES.items()}
    assert len({repr(objective) for objective in built.values()}) == len(OBJECTIVES)
    assert built["hard_data"].hard_target == "data"
    assert built["risk_guided"].risk_alpha == 0.1


def test_pure_objectives_are_those_with_labels_of_one_kind():
    pure = {
        name
        for name, compared in OBJECTIVES.items()
        if isinstance(weight := compared.build().soft_weight, StaticWeight) and weight.value in (0.0, 1.0)
    }
    assert pure == {name for name, compared in OBJECTIVES.items() if compared.pure}


def result_with(**points: tuple[float, float, float]):
    """A result of one seed where each objective has (accuracy, diversity, standard error of both)."""
    result = made_up_result(objectives=tuple(points))

    def moved(run):
        accuracy, diversity, error = points[run.objective]
        measured = replace(
            run.measured,
            accuracy_sampled=Estimate(accuracy, error, 1000),
            diversity=Estimate(diversity, error, 1000),
        )
        return replace(run, measured=measured)

    return replace(result, runs=tuple(moved(run) for run in result.runs))


def test_clearly_better_at_both_beats():
    result = result_with(hard=(0.5, 0.5, 0.01), soft=(0.6, 0.6, 0.01))
    assert beats(result, "soft", "hard")
    assert not beats(result, "hard", "soft")
    assert frontier(result) == ("soft",)


def test_better_at_one_alone_does_not_beat():
    result = result_with(hard=(0.9, 0.1, 0.01), soft=(0.5, 0.9, 0.01))
    assert frontier(result) == ("hard", "soft")


def test_more_entropy_than_the_teacher_is_no_merit():
    result = result_with(hard=(0.5, 1.0, 0.01), soft=(0.6, 1.8, 0.01), static=(0.4, 0.99, 0.001))
    assert not beats(result, "soft", "hard")
    assert beats(result, "soft", "static")


def test_what_chance_explains_does_not_beat():
    result = result_with(hard=(0.50, 0.50, 0.01), soft=(0.51, 0.51, 0.01))
    assert frontier(result) == ("hard", "soft")


def test_equal_points_stay_together():
    assert frontier(result_with(soft=(0.5, 0.9, 0.0), curriculum=(0.5, 0.9, 0.0))) == ("soft", "curriculum")


@pytest.mark.parametrize("error", [0.0, 0.01, 0.2])
def test_the_frontier_is_never_empty(error):
    points = {
        "hard": (0.9, 0.2, error),
        "soft": (0.7, 0.8, error),
        "static": (0.8, 0.5, error),
        "entropy": (0.9, 0.9, error),
    }
    assert "entropy" in frontier(result_with(**points))


def test_the_sentence_tells_the_numbers_of_every_objective_sampled_and_greedy():
    result = result_with(hard=(0.99, 0.0, 0.001), soft=(0.6, 1.0, 0.001), entropy=(0.95, 0.8, 0.001))
    text = finding(result)
    assert text.startswith(
        "On 1,000 held-out problems, right of sampled answers and variety kept: hard (argmax) 99.0 % and 0.0 %; soft "
        "60.0 % and 100.0 %; entropy 95.0 % and 80.0 %. Right when decoded greedily: "
    )
    greedy = [result.summary(name, "accuracy_greedy").mean for name in ("hard", "soft", "entropy")]
    assert text.endswith(
        "hard (argmax) {:.1f} %, soft {:.1f} % and entropy {:.1f} %.".format(*(100 * g for g in greedy))
    )
    assert "frontier" not in text


def test_the_sentence_names_the_seeds_and_can_do_without_hybrids():
    text = finding(made_up_result(objectives=("hard", "soft"), seeds=(0, 1, 2)))
    assert text.startswith("On 1,000 held-out problems for each of 3 seeds, right of sampled")
