import pytest

from bridgegarden.errors import ConfigError
from bridgegarden.lab.result import REGIMES, LabSettings
from bridgegarden.objective.soft_weight import StaticWeight
from bridgegarden.study.arms import ALL_OBJECTIVES, HYBRIDS, LAMBDAS, OBJECTIVES


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ({"worlds": ("dialog",)}, "Did you mean 'dialogue'"),
        ({"worlds": ()}, r"lab.worlds: expected at least one"),
        ({"objectives": ("hrad",)}, "Did you mean 'hard'"),
        ({"objectives": ("static_0.1",)}, "unknown name"),
        ({"objectives": ("soft", "soft")}, "none twice"),
        ({"seeds": (1, 1)}, "none twice"),
        ({"steps": 0}, "steps must be >= 1"),
        ({"steps": 30}, "steps must be a multiple of lab.evaluate_every"),
        ({"patience": 0}, "patience must be >= 1"),
        ({"learning_rate": 0.0}, "learning_rate must be > 0"),
    ],
)
def test_a_wrong_setting_is_named(setting, message):
    with pytest.raises(ConfigError, match=message):
        LabSettings(**{"worlds": ("control",), **setting})


def test_settings_survive_json():
    settings = LabSettings(worlds=("program", "control"), seeds=(4, 5), sweep=False, steps=50)
    assert LabSettings.from_dict(settings.to_dict()) == settings


def test_the_first_regime_has_every_objective_and_the_others_some():
    arms = LabSettings(worlds=("program",)).arms
    by_regime = {name: [arm.objective for arm in arms if arm.regime == name] for name in REGIMES}
    assert by_regime.pop("small") == list(ALL_OBJECTIVES)
    assert all(names == ["hard", "soft", "static", "confidence", "entropy"] for names in by_regime.values())
    assert len(by_regime) == 3


def test_without_the_sweep_there_is_one_regime_and_no_further_weights():
    arms = LabSettings(worlds=("program",), sweep=False, objectives=("soft", "entropy")).arms
    assert [(arm.regime, arm.objective) for arm in arms] == [("small", "soft"), ("small", "entropy")]


def test_the_sweep_trains_what_was_asked_for():
    arms = LabSettings(worlds=("program",), objectives=("soft", "curriculum")).arms
    assert [arm.objective for arm in arms if arm.regime == "few"] == ["soft"]


def test_every_objective_is_built():
    built = {name: compared.build() for name, compared in ALL_OBJECTIVES.items()}
    assert len({repr(objective) for objective in built.values()}) == len(ALL_OBJECTIVES)
    assert built["hard_data"].hard_target == "data"
    assert [built[name].soft_weight for name in LAMBDAS] == [StaticWeight(w) for w in (0.1, 0.3, 0.7, 0.9)]


def test_hybrids_are_those_that_mix():
    mixed = {
        name
        for name, compared in OBJECTIVES.items()
        if not isinstance(weight := compared.build().soft_weight, StaticWeight) or 0 < weight.value < 1
    }
    assert mixed == set(HYBRIDS)
