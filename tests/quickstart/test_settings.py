import pytest

from bridgegarden.errors import ConfigError
from bridgegarden.objective.soft_weight import StaticWeight
from bridgegarden.quickstart.result import QuickstartSettings
from bridgegarden.study.arms import OBJECTIVES


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
