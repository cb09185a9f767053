import pytest

from bridgegarden.errors import ConfigError
from bridgegarden.objective.divergences import DIVERGENCES as ALL_DIVERGENCES
from bridgegarden.objective.divergences import forward_kl, jensen_shannon, reverse_kl
from bridgegarden.objective.methods import PRESETS
from bridgegarden.objective.soft_weight import ConfidenceWeight, StaticWeight
from bridgegarden.recipe import ObjectiveSection, build_objective
from bridgegarden.study.arms import ALL, DEFAULT, all_rows, compared_rows, divergences, known_rows, named_rows

BASE = ObjectiveSection()


def only(name, base=BASE):
    (row,) = compared_rows([name], base)
    return row


def objective(name, base=BASE):
    return build_objective(only(name, base).objective)


def test_every_known_name_gives_an_objective_and_a_label_of_its_own():
    names = [name for name in known_rows() if name != "seqkd"]
    rows = compared_rows(names, BASE)
    assert [row.name for row in rows] == names
    assert len({row.label for row in rows}) == len(rows)
    assert len({row.file_name for row in rows}) == len(rows)
    assert all(build_objective(row.objective) for row in rows)
    assert set(DEFAULT) <= set(names)


def test_every_divergence_but_the_forward_kl_is_a_row():
    assert set(divergences()) - {"entropy_gated"} == set(ALL_DIVERGENCES) - {"forward_kl"}


def test_all_is_every_method_once_on_fixed_rows_and_those_of_the_students_own_texts_there_too():
    names = named_rows((ALL,))
    assert names == all_rows()
    assert set(PRESETS) < set(names)
    on_policy = [row.name for row in compared_rows(names, BASE) if row.on_policy]
    written = ["entropy_gated", "early_positions", "late_positions", "token_importance"]
    assert on_policy == ["gkd", "on_policy:reverse_kl", "on_policy_hybrid", *(f"on_policy:{name}" for name in written)]
    assert named_rows(("soft", "gkd")) == ("soft", "gkd")
    with pytest.raises(ConfigError, match="'all' is every method; name nothing beside it"):
        named_rows(("soft", ALL))


def test_labels_of_the_data_alone_ask_no_teacher():
    asked = {
        row.name: row.asks_teacher for row in compared_rows(["sft", "dft", "label_corrected", "hard", "gkd"], BASE)
    }
    assert asked == {"sft": False, "dft": False, "label_corrected": True, "hard": True, "gkd": True}


def test_sft_learns_the_token_of_the_data_and_hard_the_teachers_likeliest():
    assert (objective("sft").hard_target, objective("hard").hard_target) == ("data", "teacher_argmax")
    assert objective("sft").soft_weight == objective("hard").soft_weight == StaticWeight(0.0)


def test_a_divergence_is_soft_alone_and_half_of_the_static_hybrid():
    alone, hybrid = objective("reverse_kl"), objective("hybrid:reverse_kl")
    assert alone.divergence is hybrid.divergence is reverse_kl
    assert (alone.soft_weight, hybrid.soft_weight) == (StaticWeight(1.0), StaticWeight(0.5))


@pytest.mark.parametrize(
    ("name", "lmbda", "divergence", "weight"),
    [
        ("gkd", 1.0, jensen_shannon, StaticWeight(1.0)),
        ("gkd_half", 0.5, jensen_shannon, StaticWeight(1.0)),
        ("on_policy_hybrid", 1.0, forward_kl, StaticWeight(0.5)),
        ("on_policy:confidence", 1.0, forward_kl, ConfidenceWeight()),
        ("on_policy:hybrid:reverse_kl", 1.0, reverse_kl, StaticWeight(0.5)),
    ],
)
def test_on_policy_rows_are_objectives_on_the_students_texts(name, lmbda, divergence, weight):
    assert only(name).lmbda == lmbda
    assert objective(name).divergence is divergence
    assert objective(name).soft_weight == weight
    assert objective(name).hard_target == "teacher_argmax"


def test_the_recipes_temperature_holds_for_all_and_its_objective_is_a_row():
    base = ObjectiveSection(preset="entropy", temperature=2.0)
    assert objective("soft", base).temperature == 2.0
    assert only("recipe", base).objective == base


@pytest.mark.parametrize(
    ("names", "message"),
    [
        ((), "names nothing"),
        (("soft", "soft"), "'soft' is there twice"),
        (("sotf",), "unknown name 'sotf'. Did you mean 'soft'"),
        (("hybrid:forward_kl",), "unknown name"),
        (("sft", "seqkd"), "Name one"),
        (("on_policy:sft",), "cannot be put on the student's own texts"),
        (("on_policy:dft",), "cannot be put on the student's own texts"),
        (("on_policy:gkd",), "cannot be put on the student's own texts"),
    ],
)
def test_names_that_cannot_be_compared_are_refused(names, message):
    with pytest.raises(ConfigError, match=message):
        compared_rows(names, BASE)
