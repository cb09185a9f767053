"""Names that installed packages add: found by their entry points, and named where something is wrong with one."""

import tomllib
from pathlib import Path

import pytest
import torch

from bridgegarden.errors import ConfigError
from bridgegarden.objective import registry
from bridgegarden.objective.divergences import DIVERGENCES
from bridgegarden.objective.hybrid import HybridObjective, hybrid_loss_from_logits
from bridgegarden.objective.methods import METHODS
from bridgegarden.objective.position_weight import POSITION_WEIGHTS
from bridgegarden.objective.soft_weight import SOFT_WEIGHTS
from bridgegarden.recipe import ObjectiveSection, build_objective
from bridgegarden.study.arms import all_rows, compared_rows

OWN = Path(__file__).parents[2] / "examples" / "own_method"


@pytest.fixture
def install(tmp_path, monkeypatch):
    """Puts a package on the path as an installer would: its module, and what is said of it beside."""

    def put(name: str, groups: dict[str, dict[str, str]], code: str, version: str = "0.1.0") -> None:
        (tmp_path / f"{name}.py").write_text(code, encoding="utf-8")
        told = tmp_path / f"{name}-{version}.dist-info"
        told.mkdir()
        (told / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n", encoding="utf-8")
        lines = (
            f"[{group}]\n" + "".join(f"{k} = {v}\n" for k, v in points.items()) for group, points in groups.items()
        )
        (told / "entry_points.txt").write_text("\n".join(lines), encoding="utf-8")
        registry._entry_points.cache_clear()

    monkeypatch.syspath_prepend(tmp_path)
    registry._entry_points.cache_clear()
    yield put
    registry._entry_points.cache_clear()


@pytest.fixture
def own_method(install):
    """The package of the documentation, with the entry points of its pyproject.toml."""
    project = tomllib.loads((OWN / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    code = (OWN / "own_method.py").read_text(encoding="utf-8")
    install("own_method", project["entry-points"], code, project["version"])


@pytest.mark.usefixtures("own_method")
def test_a_method_of_an_installed_package_is_a_preset_a_rule_and_a_row_of_a_comparison():
    objective = HybridObjective.preset("agreement", hard_target="data")
    assert build_objective(ObjectiveSection(preset="agreement", hard_target="data")) == objective
    generator = torch.Generator().manual_seed(0)
    student, teacher = torch.randn(2, 1, 6, 9, generator=generator, dtype=torch.float64).unbind(0)
    labels = torch.randint(0, 9, (1, 6), generator=generator)
    loss = hybrid_loss_from_logits(student, teacher, labels, objective)
    expected = student.softmax(-1)[:, :-1].gather(-1, labels[:, 1:].unsqueeze(-1)).squeeze(-1)
    torch.testing.assert_close(loss.soft_weight, expected)
    squared = build_objective(ObjectiveSection(soft_weight={"rule": "agreement", "power": 2}, hard_target="data"))
    squares = hybrid_loss_from_logits(student, teacher, labels, squared).soft_weight
    torch.testing.assert_close(squares, expected.square())
    assert build_objective(ObjectiveSection(position_weight="agreement")).position_weight == objective.soft_weight
    (row,) = compared_rows(["agreement"], ObjectiveSection())
    assert (row.label, "agreement" in all_rows()) == ("agreement", True)


def test_without_it_the_name_is_unknown():
    with pytest.raises(ConfigError, match=r"objective.preset: unknown name 'agreement'"):
        HybridObjective.preset("agreement")


@pytest.mark.parametrize(
    ("group", "ask"),
    [
        ("bridgegarden.methods", lambda: HybridObjective.preset("late")),
        ("bridgegarden.soft_weights", lambda: ObjectiveSection(soft_weight="late")),
        ("bridgegarden.position_weights", lambda: ObjectiveSection(position_weight="late")),
        ("bridgegarden.divergences", lambda: ObjectiveSection(divergence="late")),
    ],
)
@pytest.mark.parametrize(
    ("code", "told"),
    [
        ("import no_such_module", r"cannot be loaded: .*no_such_module"),
        ("RULE = undefined", r"cannot be loaded: .*undefined"),
        ("OTHER = 1", r"cannot be loaded: .*RULE"),
        ("import sys; sys.exit('no licence')", r"cannot be loaded: no licence"),
        ("RULE = 3", r"must be an? .*, is 3"),
    ],
)
def test_an_entry_point_that_is_broken_is_named_with_its_package(install, group, ask, code, told):
    name = f"broken_{group.rpartition('.')[2]}_{abs(hash(code))}"
    install(name, {group: {"late": f"{name}:RULE"}}, code)
    with pytest.raises(
        ConfigError, match=rf"entry point 'late' \({name}:RULE\) in the group '{group}' of {name} 0.1.0"
    ):
        ask()
    with pytest.raises(ConfigError, match=told):
        ask()


def test_what_is_broken_stands_in_nobodys_way_who_names_something_else(install):
    install("broken_aside", {"bridgegarden.methods": {"aside": "broken_aside:METHOD"}}, "import no_such_module")
    assert HybridObjective.preset("soft") == HybridObjective(soft_weight=METHODS["soft"].fields["soft_weight"])
    with pytest.raises(ConfigError, match=r"unknown name 'asid'. Did you mean 'aside'"):
        HybridObjective.preset("asid")
    with pytest.raises(ConfigError, match=r"'aside'.*cannot be loaded"):
        all_rows()


@pytest.mark.parametrize(
    ("table", "group", "taken"),
    [
        (METHODS, "bridgegarden.methods", "soft"),
        (DIVERGENCES, "bridgegarden.divergences", "reverse_kl"),
        (SOFT_WEIGHTS, "bridgegarden.soft_weights", "entropy"),
        (POSITION_WEIGHTS, "bridgegarden.position_weights", "entropy"),
    ],
)
def test_a_name_that_is_taken_is_refused_where_all_are_listed(install, table, group, taken):
    install("taker", {group: {taken: "taker:METHOD"}}, "METHOD = None")
    with pytest.raises(ConfigError, match=rf"entry point '{taken}'.*of taker 0.1.0: the name is taken"):
        list(table)


def test_two_packages_with_one_name_are_refused(install):
    for package in ("first_of_two", "second_of_two"):
        install(package, {"bridgegarden.methods": {"twin": f"{package}:METHOD"}}, "METHOD = None")
    with pytest.raises(ConfigError, match=r"entry point 'twin'.*the name is taken"):
        HybridObjective.preset("twin")


def test_nobody_looks_for_packages_who_names_one_of_ours(monkeypatch):
    monkeypatch.setattr(registry, "_entry_points", lambda group: pytest.fail("looked"))
    ObjectiveSection(
        preset="entropy_gated", position_weight="entropy", soft_weight="confidence", divergence="lk_hybrid"
    )


def test_each_method_is_a_row_of_the_documentation():
    from docs.write_methods import HOW, PAGE, page

    assert HOW.keys() == METHODS.own.keys()
    assert PAGE.read_text(encoding="utf-8") == page(), "docs/methods.md is out of date; run: make docs"
