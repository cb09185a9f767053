from functools import partial

import pytest
import torch

from bridgegarden.errors import ConfigError
from bridgegarden.objective.divergences import DIVERGENCES, forward_kl, jensen_shannon, reverse_kl, skewed_forward_kl
from bridgegarden.objective.hybrid import HybridObjective
from bridgegarden.objective.methods import PRESETS, MixedDivergence
from bridgegarden.objective.position_weight import EarlyPositions, TargetProbability
from bridgegarden.objective.soft_weight import ConfidenceWeight, CurriculumWeight, EntropyWeight, StaticWeight
from bridgegarden.recipe import ObjectiveSection, build_objective, describe_objective

NEEDED = {"alpha_beta": {"alpha": 0.5, "beta": 0.5}}


def built(**fields) -> HybridObjective:
    return build_objective(ObjectiveSection(**fields))


def test_an_empty_section_is_the_default_objective():
    assert built() == HybridObjective()


@pytest.mark.parametrize("name", PRESETS)
def test_a_preset_is_the_library_s(name):
    assert built(preset=name) == HybridObjective.preset(name)


def test_a_field_beside_a_preset_replaces_the_preset_s():
    objective = built(preset="risk_guided", hard_target="data", temperature=2.0, soft_weight=0.25)
    assert objective == HybridObjective.preset(
        "risk_guided", hard_target="data", temperature=2.0, soft_weight=StaticWeight(0.25)
    )
    assert objective.risk_alpha == 0.1


def test_zero_is_a_value_and_not_an_absence():
    assert built(preset="risk_guided", risk_alpha=0.0).risk_alpha == 0.0
    assert built(preset="entropy", soft_weight=0).soft_weight == StaticWeight(0.0)


@pytest.mark.parametrize("name", DIVERGENCES)
def test_every_divergence_can_be_named(name):
    divergence = built(divergence=name, divergence_options=NEEDED.get(name)).divergence
    logp = torch.randn(2, 3, 5).log_softmax(-1)
    assert divergence(logp, logp).shape == (2, 3)


def test_divergence_options_are_bound():
    divergence = built(divergence="skewed_forward_kl", divergence_options={"skew": "3e-1"}).divergence
    assert isinstance(divergence, partial)
    assert (divergence.func, divergence.keywords) == (skewed_forward_kl, {"skew": 0.3})


@pytest.mark.parametrize(
    ("written", "weight"),
    [
        (0.3, StaticWeight(0.3)),
        (1, StaticWeight(1.0)),
        ("confidence", ConfidenceWeight()),
        ("entropy", EntropyWeight()),
        ({"rule": "static", "value": 1}, StaticWeight(1.0)),
        ({"rule": "entropy", "kind": "power", "gamma": 0.2}, EntropyWeight(kind="power", gamma=0.2)),
        ({"rule": "curriculum", "warmup_ratio": 0.5}, CurriculumWeight(warmup_ratio=0.5)),
    ],
)
def test_a_soft_weight_is_a_number_a_name_or_a_rule_with_fields(written, weight):
    assert built(soft_weight=written).soft_weight == weight


def test_kd_ratio_is_a_soft_weight_that_is_a_number():
    assert built(kd_ratio=0.7) == built(soft_weight=0.7)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"preset": "risk-guided"}, r"objective.preset: unknown name 'risk-guided'. Did you mean 'risk_guided'\?"),
        ({"divergence": "foward_kl"}, r"objective.divergence: unknown name 'foward_kl'. Did you mean 'forward_kl'\?"),
        ({"divergence": "jensen_shannon", "divergence_options": {"bta": 1}}, r"unknown option of jensen_shannon 'bta'"),
        ({"divergence": "forward_kl", "divergence_options": {"skew": 1}}, r"forward_kl has no options, got 'skew'"),
        ({"divergence": "alpha_beta", "divergence_options": {"alpha": 1}}, r"alpha_beta needs 'beta'"),
        ({"divergence": "alpha_beta"}, r"alpha_beta needs 'alpha'"),
        ({"divergence": "jensen_shannon", "divergence_options": {"beta": 1.5}}, r"must be in \[0, 1\], got 1.5"),
        ({"divergence": "skewed_reverse_kl", "divergence_options": {"skew": -1}}, r"must be in \[0, 1\], got -1"),
        ({"divergence": "adaptive_kl", "divergence_options": {"mu": -1}}, r"mu of adaptive_kl must be in \[0, inf\]"),
        ({"divergence": "adaptive_kl", "divergence_options": {"mu": True}}, r"mu: expected a finite number, got true"),
        ({"divergence_options": {"skew": 0.1}}, r"divergence_options: name the divergence they belong to"),
        ({"soft_weight": 0.5, "kd_ratio": 0.5}, r"give one of the two"),
        ({"soft_weight": 1.5}, r"soft_weight.value must be in \[0, 1\], got 1.5"),
        ({"kd_ratio": -0.5}, r"must be in \[0, 1\], got -0.5"),
        ({"soft_weight": "entropi"}, r"objective.soft_weight: unknown name 'entropi'. Did you mean 'entropy'\?"),
        ({"soft_weight": {"kind": "power"}}, r"objective.soft_weight: key 'rule' is missing"),
        ({"soft_weight": {"rule": "entropy", "gama": 1}}, r"objective.soft_weight: unknown key 'gama'. Did you mean"),
        ({"soft_weight": {"rule": "entropy", "kind": "renyi"}}, r"objective.soft_weight.kind: unknown value 'renyi'"),
        ({"soft_weight": {"rule": 3}}, r"objective.soft_weight.rule: expected text, got 3"),
        ({"hard_target": "argmax"}, r"objective.hard_target must be 'teacher_argmax' or 'data', got 'argmax'"),
        ({"temperature": 0.0}, r"objective.temperature must be in \[0.001, 1000.0\], got 0.0"),
        ({"risk_alpha": -1.0}, r"objective.risk_alpha must be >= 0, got -1.0"),
    ],
)
def test_what_makes_no_objective_is_refused_when_the_section_is_made(fields, message):
    with pytest.raises(ConfigError, match=message):
        ObjectiveSection(**fields)


def test_the_description_names_every_field():
    assert describe_objective(HybridObjective(divergence=forward_kl, soft_weight=EntropyWeight())) == (
        "divergence=forward_kl, soft_weight=EntropyWeight(kind='shannon', gamma=0.1), "
        "hard_target=teacher_argmax, temperature=1.0, sharpening=1.0, risk_alpha=0.0, risk_weight=hard"
    )
    assert "jensen_shannon(beta=0.2)" in describe_objective(
        HybridObjective(divergence=partial(jensen_shannon, beta=0.2))
    )


def test_two_divergences_are_mixed_by_a_rule():
    written = {
        "first": "reverse_kl",
        "second": {"name": "skewed_forward_kl", "skew": 0.2},
        "rule": "confidence",
        "how": "add",
    }
    mixed = built(divergence=written).divergence
    assert isinstance(mixed, MixedDivergence)
    assert (mixed.first, mixed.rule, mixed.how) == (reverse_kl, ConfidenceWeight(), "add")
    assert (mixed.second.func, mixed.second.keywords) == (skewed_forward_kl, {"skew": 0.2})
    told = describe_objective(built(divergence=written))
    assert "divergence=add(first=reverse_kl, second=skewed_forward_kl(skew=0.2), rule=ConfidenceWeight())" in told


@pytest.mark.parametrize(
    ("written", "rule"),
    [
        ("target_probability", TargetProbability()),
        ({"rule": "early_positions", "share": 0.5}, EarlyPositions(0.5)),
        ("confidence", ConfidenceWeight()),
    ],
)
def test_a_position_is_weighed_by_a_rule_of_its_own_or_by_one_of_the_soft_weight(written, rule):
    assert built(position_weight=written).position_weight == rule
    assert f"position_weight={rule}" in describe_objective(built(position_weight=written))
    assert "position_weight" not in describe_objective(built())


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"position_weight": "early"}, r"objective.position_weight: unknown name 'early'. "),
        ({"position_weight": {"share": 1}}, r"objective.position_weight: key 'rule' is missing"),
        ({"position_weight": {"rule": "early_positions", "shar": 1}}, r"objective.position_weight: unknown key 'shar'"),
        ({"soft_weight": "early_positions"}, r"objective.soft_weight: unknown name 'early_positions'"),
        ({"divergence": {"frist": "reverse_kl"}}, r"objective.divergence: unknown key 'frist'. Did you mean 'first'\?"),
        ({"divergence": {"first": {"skew": 1}}}, r"objective.divergence.first: key 'name' is missing"),
        ({"divergence": {"second": "kl"}}, r"objective.divergence.second: unknown name 'kl'"),
        (
            {"divergence": {"first": {"name": "skewed_forward_kl", "skew": 2}}},
            r"divergence.first.skew of skewed_forward_kl",
        ),
        ({"divergence": {"how": "both"}}, r"objective.divergence.how"),
        ({"divergence": {"rule": "late_positions"}}, r"objective.divergence.rule: unknown name 'late_positions'"),
        ({"divergence": {"how": "mix"}, "divergence_options": {"skew": 1}}, r"objective.divergence_options: two"),
    ],
)
def test_a_rule_or_a_mixture_that_is_written_wrongly_is_refused_with_its_place(fields, message):
    with pytest.raises(ConfigError, match=message):
        built(**fields)
