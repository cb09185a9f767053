"""The map made small: choosing, training, measuring, keeping, and what is left behind."""

import csv
import io
import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from rich.console import Console

from bridgegarden.errors import ConfigError
from bridgegarden.lab.map.cells import ARMS, BUDGETS, FAIRNESS, MapSettings, Setting
from bridgegarden.lab.map.run import CellJob, MapFolder, lab_map, soft_where_kappa_is_low, world_of

SETTINGS = MapSettings(
    teachers=("slips",),
    students=("too small",),
    rows=("few",),
    budgets=("short", "long"),
    arms=("hard", "soft", "confidence", "on_policy", "by_role", "by_kappa"),
    seeds=3,
    tuning_seeds=2,
    learning_rates=(2e-2, 5e-2),
    weight_decays=(0.01,),
    batch=4,
    validation_problems=4,
    test_problems=5,
)


@pytest.fixture(scope="module", autouse=True)
def short_budgets():
    """Of a few steps."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("bridgegarden.lab.map.run.BUDGETS", {"short": 4, "long": 8})
        yield


@pytest.fixture(scope="module")
def made(tmp_path_factory, short_budgets):
    output = tmp_path_factory.mktemp("map")
    text = io.StringIO()
    result = lab_map(output, SETTINGS, command="typed", workers=1, console=Console(file=text, width=200))
    return output, result, text.getvalue()


def test_every_arm_is_trained_in_every_way_with_a_number_for_each_seed(made):
    _, result, _ = made
    assert [run.cell.budget for run in result.runs] == ["short", "long"]
    for run in result.runs:
        assert tuple(run.settings) == tuple(run.measures) == FAIRNESS
        settings = {
            (arm, one.learning_rate, one.weight_decay)
            for by_arm in run.settings.values()
            for arm, one in by_arm.items()
        }
        # Two rates for six arms by two seeds, what was chosen by three; and for the oracle one more of each seed.
        assert run.students == 2 * (2 * 6 + 1) + 3 * (len(settings) + 1)
        for way in FAIRNESS:
            assert tuple(run.measures[way]) == SETTINGS.arms
            for found in run.measures[way].values():
                assert {len(column) for column in found.values()} == {3}
                assert len(set(found["teacher_loss"])) == 3


def test_a_setting_is_the_best_of_those_tried_by_what_it_is_chosen_by(made):
    _, result, _ = made
    for run in result.runs:
        for arm in SETTINGS.arms:
            one, loss, right = (run.settings[way][arm] for way in FAIRNESS)
            assert (one.learning_rate, one.weight_decay) == (5e-2, 0.01)
            assert loss.held_out_loss <= min(one.held_out_loss, right.held_out_loss)
            assert right.held_out_right >= max(one.held_out_right, loss.held_out_right)
    assert any(run.settings["tuned by loss"][arm].learning_rate == 2e-2 for run in result.runs for arm in SETTINGS.arms)


def test_the_same_setting_gives_the_same_students_whichever_way_chose_it(made):
    _, result, _ = made
    pairs = 0
    for run in result.runs:
        for arm in SETTINGS.arms:
            by_setting = {}
            for way in FAIRNESS:
                one = run.settings[way][arm]
                key = one.learning_rate, one.weight_decay, one.steps
                pairs += key in by_setting
                assert by_setting.setdefault(key, run.measures[way][arm]) == run.measures[way][arm]
    assert pairs


def test_numbers_do_not_depend_on_how_many_seeds_are_trained_at_once(made, monkeypatch):
    output, result, _ = made
    monkeypatch.setattr("bridgegarden.lab.map.run.BLOCK", 2)
    job = CellJob(cell=SETTINGS.cells[0], settings=SETTINGS, folder=MapFolder(output))
    again = job.run(lambda done: None)
    assert replace(again, cpu_seconds=0) == replace(result.runs[0], cpu_seconds=0)


def test_settings_are_chosen_on_seeds_and_problems_that_are_not_measured(monkeypatch, tmp_path):
    """Told by what is asked of the functions that train and look."""
    from bridgegarden.lab.map import run as module

    seeds, problems = [], {"held_out": set(), "measure": set()}
    trained = module._trained

    def recorded(job, which, wanted):
        seeds.append(set(which))
        return trained(job, which, wanted)

    def looked(name):
        original = getattr(module, name)

        def look(worlds, weights, asked):
            problems[name] |= {repr(problem) for problem in asked}
            return original(worlds, weights, asked)

        return look

    monkeypatch.setattr(module, "_trained", recorded)
    for name in problems:
        monkeypatch.setattr(module, name, looked(name))
    CellJob(cell=SETTINGS.cells[0], settings=SETTINGS, folder=MapFolder(tmp_path)).run(lambda done: None)
    judged, *final = seeds
    assert len(judged) == 2
    assert set.union(*final) == {0, 1, 2}
    assert not judged & set.union(*final)
    assert len(problems["held_out"]) == 4
    assert len(problems["measure"]) == 5
    assert not problems["held_out"] & problems["measure"]


def test_another_seed_is_another_world():
    cell = SETTINGS.cells[0]
    first, second = (world_of(cell, seed) for seed in (0, 1))
    assert not torch.equal(first.wording_probs, second.wording_probs)
    assert torch.equal(first.value_probs, second.value_probs)  # this teacher slips everywhere alike


def test_finished_cells_are_kept_and_what_decides_a_number_makes_it_anew(made, tmp_path):
    output, result, _ = made
    text = io.StringIO()
    again = lab_map(output, SETTINGS, command="typed", workers=1, console=Console(file=text, width=200))
    assert "2 of 2 cells were finished before" in text.getvalue()
    assert again.runs == result.runs
    job = CellJob(cell=SETTINGS.cells[0], settings=SETTINGS, folder=MapFolder(output))
    assert job.kept() == result.runs[0]
    for changed in ({"seeds": 4}, {"batch": 5}, {"learning_rates": (2e-2, 5e-2, 1e-1)}, {"test_problems": 6}):
        assert replace(job, settings=replace(SETTINGS, **changed)).kept() is None
    # How many other cells there are decides nothing here.
    assert replace(job, settings=replace(SETTINGS, budgets=("short",))).kept() == result.runs[0]


def test_files_hold_every_effect_and_every_mean(made):
    output, result, _ = made
    assert not (output / "INCOMPLETE").exists()
    tree = json.loads((output / "result.json").read_text())
    assert len(tree["effects"]) == len(result.effects) > 0
    assert {one["claim"] for one in tree["effects"] + tree["pooled"]} <= {claim["name"] for claim in tree["claims"]}
    cells = list(csv.DictReader(io.StringIO((output / "cells.csv").read_text())))
    assert len(cells) == 2 * 3 * 6
    row = next(r for r in cells if (r["settings"], r["budget"], r["arm"]) == ("one setting", "long", "confidence"))
    column = result.runs[1].measures["one setting"]["confidence"]["student_loss"]
    assert float(row["L_dθ"]) == pytest.approx(sum(column) / 3, rel=1e-4)
    claims = list(csv.DictReader(io.StringIO((output / "claims.csv").read_text())))
    assert {r["verdict"] for r in claims} <= {"holds", "does not hold", "undecided"}
    assert sum(r["teacher"] == "all" for r in claims) > 0
    page = (output / "report.html").read_text()
    assert "What came of the claims" in page
    assert ARMS["on_policy"].label in page
    assert "## Settings: tuned by loss" in (output / "tables.md").read_text()


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"arms": ("soft", "static")}, "map.arms: hard is needed"),
        ({"teachers": ("wise",)}, "map.teachers: unknown name 'wise'"),
        ({"rows": ("few", "few")}, "map.rows: expected at least one, and none twice"),
        ({"seeds": 1}, "map.seeds must be at least 2"),
        ({"fixed_rate": 0.3}, "map: the one setting of all arms"),
    ],
)
def test_settings_that_cannot_be_are_refused(changed, said):
    with pytest.raises(ConfigError, match=said):
        MapSettings(**changed)


def test_the_whole_map_has_every_combination():
    cells = MapSettings().cells
    assert len({cell.name for cell in cells}) == len(cells) == 32
    assert {cell.budget for cell in cells} == set(BUDGETS)


def test_an_oracle_is_soft_where_kappa_is_low():
    wordings, values = torch.tensor([[[0.1, 0.3]], [[5.0, 1.0]]]), torch.tensor([[[0.2, -1.0]], [[3.0, 2.0]]])
    soft = soft_where_kappa_is_low(wordings, values)
    torch.testing.assert_close(soft[0], torch.tensor([[[2 / 3, 0.0]], [[0.0, 1.0]]], dtype=torch.float64))
    torch.testing.assert_close(soft[1], torch.tensor([[[1 / 3, 1.0]], [[1 / 3, 2 / 3]]], dtype=torch.float64))


def test_each_way_of_choosing_takes_the_best_by_what_it_is_called_after():
    from bridgegarden.lab.map.run import _choose

    def tried(rate, loss, right, steps=8):
        return Setting(learning_rate=rate, weight_decay=0.01, steps=steps, held_out_loss=loss, held_out_right=right)

    fixed, close, sure = tried(5e-2, 3.0, 0.2), tried(2e-2, 1.0, 0.1), tried(2e-2, 2.0, 0.9, steps=4)
    job = CellJob(cell=SETTINGS.cells[1], settings=SETTINGS, folder=MapFolder(Path("unused")))
    chosen = _choose(job, {"soft": [close, fixed, sure, tried(5e-2, 2.5, 0.9, steps=4)]})
    assert [chosen[way]["soft"] for way in FAIRNESS] == [fixed, close, sure]
