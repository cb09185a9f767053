"""Tiny runs of the whole study: real worlds, real trainer, exact measurement."""

import json
from dataclasses import replace

import pytest
from rich.console import Console

from bridgegarden.errors import ConfigError
from bridgegarden.exact.tasks import WORLDS
from bridgegarden.lab import student
from bridgegarden.lab.result import REGIMES, STUDENTS, Arm, LabResult, LabRun, LabSettings
from bridgegarden.lab.run import LabFolder, LabJob, arms_in, lab, size_of, world_of
from bridgegarden.study.kept import kept

TINY = LabSettings(
    worlds=("control",),
    objectives=("hard", "entropy"),
    seeds=(0,),
    sweep=False,
    steps=4,
    batch=4,
    evaluate_every=2,
    validation_problems=4,
    test_problems=1,
)


def run(folder, settings=TINY, **options):
    return lab(folder, settings, command="typed", console=Console(quiet=True), **{"workers": 1, **options})


def numbers(result: LabResult):
    """Everything but times."""

    def timeless(run: LabRun):
        training = replace(run.training, seconds=0.0, cpu_seconds=0.0, measuring_seconds=0.0)
        return replace(run, training=training)

    return tuple(timeless(run) for run in result.runs)


def job(folder, objective="hard", seed=0, settings=TINY, regime="small"):
    arm = Arm(regime=regime, objective=objective)
    return LabJob(world="control", arm=arm, seed=seed, settings=settings, folder=LabFolder(folder))


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    folder = tmp_path_factory.mktemp("finished") / "deep" / "out"
    return LabFolder(folder), run(folder)


@pytest.fixture
def trained(monkeypatch):
    """How many trainings there were; the one numbered `interrupt` is interrupted instead."""
    seen: list[int] = []
    interrupt: set[int] = set()
    original = student.train_student

    def train(*args):
        seen.append(len(seen))
        if seen[-1] in interrupt:
            raise KeyboardInterrupt
        return original(*args)

    monkeypatch.setattr(student, "train_student", train)
    return seen, interrupt


def test_a_finished_run_leaves_its_numbers_and_what_they_say(finished):
    folder, result = finished
    tree = json.loads(folder.result.read_text())
    assert LabResult.from_dict(tree) == result
    assert {finding["claim"] for finding in tree["findings"]} == {"4", "6: 4"}
    assert {finding["verdict"] for finding in tree["findings"]} == {"not enough evidence"}
    assert tree["summaries"]
    assert {path.name for path in folder.path.iterdir()} == {
        "findings.csv",
        "means.csv",
        "report.html",
        "result.json",
        "runs",
        "tables.md",
    }


def test_every_arm_is_trained_and_measured(finished):
    _, result = finished
    assert [(run.world, run.regime, run.objective, run.seed) for run in result.runs] == [
        ("control", "small", "hard", 0),
        ("control", "small", "entropy", 0),
    ]
    for trained in result.runs:
        measured = trained.measured
        assert measured.student_loss - measured.teacher_loss == pytest.approx(measured.exposure_bias, abs=1e-9)
        assert sum(measured.error_by_role.values()) == pytest.approx(measured.student_loss, abs=1e-9)
        assert sum(measured.teacher_loss_by_position) == pytest.approx(measured.teacher_loss, abs=1e-9)
        assert sum(measured.exposure_bias_by_position) == pytest.approx(measured.exposure_bias, abs=1e-9)
        assert sum(measured.teacher_visits_by_role.values()) == pytest.approx(measured.teacher_length)
        assert [step for step, _ in trained.training.validation] == [2, 4]
        assert trained.example.tokens


@pytest.mark.slow
def test_the_number_of_workers_changes_nothing(finished, tmp_path):
    assert numbers(run(tmp_path, workers=2)) == numbers(finished[1])


def test_an_interrupted_run_leaves_a_mark_and_goes_on_where_it_stopped(finished, trained, tmp_path):
    seen, interrupt = trained
    interrupt.add(1)
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path)
    folder = LabFolder(tmp_path)
    assert (folder.path / "INCOMPLETE").exists()
    assert not folder.result.exists()
    interrupt.clear()
    result = run(tmp_path)
    assert len(seen) == 3
    assert numbers(result) == numbers(finished[1])
    assert not (folder.path / "INCOMPLETE").exists()


def test_more_seeds_keep_what_is_there(trained, tmp_path):
    settings = replace(TINY, objectives=("hard",))
    run(tmp_path, settings)
    result = run(tmp_path, replace(settings, seeds=(0, 1)))
    assert len(trained[0]) == 2
    assert [run.seed for run in result.runs] == [0, 1]
    assert result.runs[0].measured != result.runs[1].measured


def test_a_training_with_other_settings_is_not_taken_for_the_same(tmp_path):
    keys = {
        job(tmp_path).key,
        job(tmp_path, objective="soft").key,
        job(tmp_path, seed=1).key,
        job(tmp_path, regime="few").key,
        job(tmp_path, settings=replace(TINY, steps=2)).key,
        job(tmp_path, settings=replace(TINY, test_problems=2)).key,
    }
    assert len(keys) == 6
    assert job(tmp_path).key == job(tmp_path, settings=replace(TINY, objectives=("soft",), seeds=(7,), sweep=True)).key


@pytest.mark.parametrize("broken", ["", "{}", '{"key": 3', "[]", '{"key": "KEY", "result": {}}'])
def test_a_damaged_record_is_not_a_finished_training(tmp_path, broken):
    path = LabFolder(tmp_path).run("control", Arm(regime="small", objective="hard"), 0)
    path.parent.mkdir(parents=True)
    path.write_text(broken.replace("KEY", "key"))
    assert kept(path, "key", LabRun) is None


def test_a_file_in_the_way_is_left_alone(tmp_path):
    path = tmp_path / "taken"
    path.write_text("mine")
    with pytest.raises(ConfigError, match="is a file; expected a folder"):
        run(path)
    assert path.read_text() == "mine"


def test_progress_is_told_line_by_line_where_there_is_no_terminal(tmp_path):
    console = Console(file=(tmp_path / "log").open("w+"), force_terminal=False, width=200)
    lab(tmp_path / "out", replace(TINY, objectives=("soft",)), command="typed", workers=1, console=console)
    console.file.seek(0)
    first, second = console.file.read().splitlines()
    assert first == "1 student to train, 1 at a time"
    assert second.startswith("control, small, soft, seed 0: L_dT ")
    console.file.close()


def test_a_regime_sets_the_slips_of_the_teacher():
    for name in ("dialogue", "arithmetic", "program"):
        assert [world_of(name, regime).slip_rate for regime in REGIMES] == [0.0, 0.0, 0.1, 0.0]


def test_the_control_has_no_teacher_that_slips():
    settings = LabSettings(worlds=("control", "program"))
    assert {arm.regime for arm in arms_in("control", settings)} == {"small", "few", "ample"}
    assert {arm.regime for arm in arms_in("program", settings)} == set(REGIMES)


def test_every_world_has_students_of_two_sizes():
    assert set(STUDENTS) == set(WORLDS)
    for world in WORLDS:
        small, large = size_of(world, "small"), size_of(world, "few")
        assert small.hidden * small.layers < large.hidden * large.layers
