"""A student that a recipe cuts out of its teacher: made once, kept, and what every command makes of it."""

import dataclasses
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from click.testing import CliRunner
from rich.console import Console
from safetensors.torch import load_file, save_file

from bridgegarden.cli.main import cli
from bridgegarden.compare.pair import placed
from bridgegarden.compare.result import CompareSettings
from bridgegarden.compare.run import compare, decided_by
from bridgegarden.errors import BridgegardenError, ConfigError, ModelError, OutputError
from bridgegarden.plan import machine_of, plan_recipe
from bridgegarden.plan.table import plan_text
from bridgegarden.recipe import Recipe, load_recipe
from bridgegarden.run import prune as prune_module
from bridgegarden.run.cut_student import NOTE, noted, spans_text
from bridgegarden.run.prune import prune
from bridgegarden.run.train import train
from tests.architectures import tiny_architecture
from tests.tiny import save_tiny, tiny_model

pytestmark = pytest.mark.slow

QUIET = Console(quiet=True)


@pytest.fixture(autouse=True)
def _without_rehearsal(monkeypatch):
    """Settings are tried elsewhere."""
    monkeypatch.setattr("bridgegarden.run.train.rehearse", lambda *arguments: None)


@pytest.fixture
def recipe_path(write_recipe, tmp_path) -> Path:
    """The teacher has four layers, of which the student gets two."""
    path = write_recipe("qwen2")
    save_tiny(tmp_path / "teacher", tiny_model("qwen2", 264, hidden_size=48, layers=4, seed=1))
    shutil.rmtree(tmp_path / "student")
    tree = yaml.safe_load(path.read_text())
    tree["student"] = {"from": "teacher", "layers": 2}
    tree["training"] |= {"max_steps": 2, "logging_steps": 1}
    path.write_text(yaml.safe_dump(tree))
    return path


@pytest.fixture
def recipe(recipe_path) -> Recipe:
    return load_recipe(recipe_path)


def student(recipe: Recipe, **changes: Any) -> Recipe:
    return dataclasses.replace(recipe, student=dataclasses.replace(recipe.student, **changes))


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "model.safetensors")


def said(console: Console) -> str:
    return " ".join(console.export_text().split())


def test_training_cuts_the_student_first_and_a_second_run_finds_it(recipe, recipe_path, tmp_path):
    console = Console(record=True, width=200)
    summary = train(recipe, console=console)
    text = said(console)
    assert "student: 2 of 4 layers of the teacher, by what they do on the first 64 training rows; " in text
    assert text.index("student: 2 of 4 layers") < text.index("loading teacher")
    begun, (note, teacher) = recipe.student_folder, (noted(recipe.student_folder), weights(tmp_path / "teacher"))
    assert note is not None
    kept = note["kept"]["layers"]
    assert sorted(note["influence"], reverse=True)[:2] == sorted((note["influence"][n] for n in kept), reverse=True)
    for number, layer in enumerate(kept):
        name = "model.layers.{}.mlp.up_proj.weight"
        assert torch.equal(weights(begun)[name.format(number)], teacher[name.format(layer)])
    record = json.loads((recipe.output / "run.json").read_text())
    assert record["student"]["cut"]["kept"] == kept
    card = (summary.model / "README.md").read_text()
    assert f"A student, cut out of its teacher (2 of 4 layers: layers {spans_text(kept)}), distilled from" in card
    # Made once: what is finished needs it no more, and what is not begins with the very same.
    before = (begun / NOTE).stat().st_mtime_ns
    assert train(recipe, console=QUIET).steps == 2
    again = student(dataclasses.replace(recipe, output=tmp_path / "again"), folder=str(begun))
    assert train(again, console=QUIET).training == summary.training
    assert (begun / NOTE).stat().st_mtime_ns == before
    shutil.rmtree(begun)
    assert train(recipe, console=QUIET).steps == 2
    assert not begun.exists()


def test_the_command_shows_what_layers_do_and_cuts_the_same_student(recipe, recipe_path, tmp_path):
    run = CliRunner().invoke
    shown = run(cli, ["prune", str(recipe_path), "--dry-run"])
    assert shown.exit_code == 0, shown.output
    assert "Nothing was written" in shown.stdout
    assert not recipe.output.exists()
    made = run(cli, ["prune", str(recipe_path), "--json"])
    result = json.loads(made.stdout)
    assert result["made"]
    assert [line.split()[0] for line in shown.stdout.splitlines() if line.endswith("kept")] == [
        str(layer) for layer in result["kept"]
    ]
    other = run(cli, ["prune", str(recipe_path), "--output", str(tmp_path / "other")])
    assert f"The student is in {tmp_path / 'other'}" in other.stdout
    first, second = weights(recipe.student_folder), weights(tmp_path / "other")
    assert all(torch.equal(first[name], second[name]) for name in first.keys() | second.keys())
    train(recipe, console=QUIET)
    assert json.loads(run(cli, ["prune", str(recipe_path), "--json"]).stdout) == result


def test_first_and_listed_layers_are_not_measured(recipe, monkeypatch, tmp_path):
    monkeypatch.setattr("bridgegarden.pruning.importance.measure", lambda *a: pytest.fail("was measured"))
    first = prune(student(recipe, keep="first"), console=QUIET)
    listed = prune(student(recipe, layers=None, keep=(0, 1), folder=str(tmp_path / "listed")), console=QUIET)
    assert first.kept == listed.kept == (0, 1)
    assert first.influence is None
    assert "1      kept\n 2\n" in str(first)
    one, other = weights(first.folder), weights(listed.folder)
    assert all(torch.equal(one[name], other[name]) for name in one.keys() | other.keys())
    whole = prune(student(recipe, layers=None, keep="all", folder=str(tmp_path / "all")), console=QUIET)
    teacher = weights(tmp_path / "teacher")
    assert all(torch.equal(teacher[name], value) for name, value in weights(whole.folder).items())


def test_a_folder_with_another_student_is_left_alone(recipe, tmp_path):
    prune(recipe, console=QUIET)
    with pytest.raises(ConfigError, match=r"out/student holds a student of 2 layers, .*, and 3 layers, .* is asked"):
        prune(student(recipe, layers=3), console=QUIET)
    with pytest.raises(ConfigError, match=r"cut on other rows of data.train\. Remove that folder"):
        train(student(recipe, calibration=5), console=QUIET)
    save_tiny(tmp_path / "teacher", tiny_model("qwen2", 264, hidden_size=48, layers=4, seed=5))
    with pytest.raises(ConfigError, match=r"cut on another teacher's weights"):
        train(recipe, console=QUIET)
    shutil.rmtree(recipe.student_folder)
    recipe.student_folder.mkdir(parents=True)
    with pytest.raises(ConfigError, match=r"holds no student that was cut here"):
        prune(recipe, console=QUIET)


def test_what_was_cut_anew_is_no_student_to_go_on_with(recipe, tmp_path, monkeypatch):
    stopped = dataclasses.replace(
        recipe,
        training=dataclasses.replace(recipe.training, arguments={**recipe.training.arguments, "save_steps": 1}),
    )
    monkeypatch.setattr("bridgegarden.run.train._save", lambda *a: pytest.fail("stopped"))
    with pytest.raises(pytest.fail.Exception):
        train(stopped, console=QUIET)
    monkeypatch.undo()
    path = recipe.student_folder / "model.safetensors"
    changed = {name: value + 1 for name, value in load_file(path).items()}
    save_file(changed, path, metadata={"format": "pt"})
    with pytest.raises(ConfigError, match=r"was trained from another student: .*out/student has been cut anew"):
        train(stopped, console=QUIET)


def test_a_cut_that_fails_leaves_nothing_behind(recipe, monkeypatch):
    def fails(*arguments: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(prune_module, "write_json", fails)
    with pytest.raises(
        OutputError, match=r"^student.folder: nothing more can be written to .*\(No space left on device"
    ):
        prune(recipe, console=QUIET)
    assert list(recipe.output.iterdir()) == []
    monkeypatch.undo()
    assert prune(recipe, console=QUIET).made


def test_what_another_process_cut_meanwhile_is_taken(recipe, monkeypatch):
    write, whole = prune_module.write_json, []

    def meanwhile(*arguments: Any) -> None:
        monkeypatch.setattr(prune_module, "write_json", write)
        whole.append(prune(recipe, console=QUIET))
        write(*arguments)

    monkeypatch.setattr(prune_module, "write_json", meanwhile)
    found = prune(recipe, console=QUIET)
    assert found.kept == whole[0].kept
    assert [path.name for path in recipe.output.iterdir()] == [found.folder.name]


def test_a_plan_counts_the_student_that_is_not_made_yet(recipe):
    narrow = load_recipe_with(recipe, {"from": "teacher", "layers": 2, "width": {"channels": 40}})
    planned = plan_recipe(narrow, machine_of(gpus=1)).student_parameters[0]
    assert not recipe.output.exists()
    found = prune(narrow, console=QUIET)
    assert sum(value.numel() for value in weights(found.folder).values()) == planned


def test_a_plan_says_that_the_student_is_cut_and_what_that_takes(recipe):
    def said(recipe: Recipe, **machine: Any) -> tuple[Any, str]:
        plan = plan_recipe(recipe, machine_of(gpus=1, **machine))
        assert plan.cut is not None
        assert plan.to_dict()["cut"]["fits"] == plan.cut.fits
        return plan.cut, " ".join(plan_text(plan).split())

    teacher = sum(value.nbytes for value in weights(Path(recipe.teacher.model)).values())
    cut, text = said(recipe)
    assert (cut.what, cut.made, cut.memory, cut.fits) == ("2 of 4 layers", False, teacher, True)
    assert "cut out of the teacher: 2 of 4 layers. It is not made yet" in text
    cut, text = said(recipe, memory=f"{teacher}")  # of which a tenth is kept free
    assert (cut.memory, cut.fits) == (teacher, False)
    assert "does not fit. Cut it on the CPU before: bridgegarden prune RECIPE --set training.use_cpu=true" in text
    cut, text = said(student(recipe, keep=(0, 1), layers=None), memory=f"{teacher}")  # nothing is measured
    assert (cut.memory, cut.fits) == (None, True)
    assert "outside this device's memory" in text
    on_cpu = dataclasses.replace(recipe.training, arguments={**recipe.training.arguments, "use_cpu": True})
    assert said(dataclasses.replace(recipe, training=on_cpu))[0].memory is None
    found = prune(dataclasses.replace(recipe, training=on_cpu), console=QUIET)
    cut, text = said(recipe, memory=f"{teacher}")
    assert (cut.made, cut.fits) == (True, True)
    assert f"It is in {found.folder}." in text


def load_recipe_with(recipe: Recipe, section: dict[str, Any]) -> Recipe:
    return Recipe.from_dict({**recipe.to_dict(), "student": section})


@pytest.mark.slow
def test_all_trainings_of_a_comparison_begin_with_one_student(recipe_path):
    settings = CompareSettings(
        objectives=("soft",), seeds=(0, 1), baseline="soft", evaluation=None, prompts=2, samples=1, max_new_tokens=2
    )
    result, folder = compare(str(recipe_path), settings, command="typed", console=QUIET)
    assert result.pair.student == "2 of 4 layers"
    begun = load_recipe(recipe_path).student_folder
    records = [json.loads(path.read_text())["student"] for path in sorted(folder.path.glob("runs/*/run.json"))]
    assert [record["model"] for record in records] == [str(begun)] * 2
    assert records[0] == records[1]
    # Which student it is decides whether a training is done again, and where it is kept does not.
    recipe = placed(load_recipe(recipe_path), str(recipe_path))
    moved = student(recipe, folder=str(shutil.copytree(begun, begun.with_name("moved"))))
    keys = [decided_by(_seeded(one), {}, settings) for one in (recipe, moved)]
    assert keys[0] == keys[1]
    shutil.rmtree(begun)
    prune(student(recipe, keep="first"), console=QUIET)
    assert decided_by(_seeded(recipe), {}, settings)["student"] != keys[0]["student"]


def _seeded(recipe: Recipe) -> Recipe:
    arguments = {**recipe.training.arguments, "seed": 0}
    return dataclasses.replace(recipe, training=dataclasses.replace(recipe.training, arguments=arguments))


@pytest.mark.slow
def test_the_cache_of_the_teacher_is_built_and_read_before_there_is_a_student(recipe_path, recipe, tmp_path):
    cache = f"teacher.cache={tmp_path / 'cache'}"
    built = CliRunner().invoke(cli, ["cache", "build", str(recipe_path), "--set", cache])
    assert built.exit_code == 0, built.output
    assert not recipe.student_folder.exists()
    assert train(load_recipe(recipe_path, [cache]), console=QUIET).steps == 2
    # The adapters of such a student are merged into what was cut.
    adapted = load_recipe(recipe_path, [cache, "student.lora={r: 2}", f"output={tmp_path / 'adapted'}"])
    merged = train(adapted, console=QUIET).model
    begun = weights(adapted.student_folder)
    assert weights(merged).keys() == begun.keys()
    assert any(not torch.equal(value, begun[name]) for name, value in weights(merged).items())


def test_an_architecture_that_is_not_covered_is_refused_by_name(recipe, tmp_path):
    save_tiny(tmp_path / "teacher", tiny_architecture("gpt_neox"))
    with pytest.raises(ModelError, match=r"teacher.model .*architecture 'gpt_neox' .*Covered: gemma, gemma2, .*qwen3"):
        prune(recipe, console=QUIET)


@pytest.mark.parametrize(
    ("section", "message"),
    [
        ({"layers": 4}, r"student.layers: is 4, and the teacher .* has 4 layers. Give fewer, or keep: all"),
        ({"keep": [0, 4]}, r"student.keep: names layer 4, and the teacher .* has 4 layers, from 0 to 3"),
        ({"width": {"heads": 1}}, r"student.width.heads: is 1; of the 2 heads .*, of which 2 share .* no other number"),
        ({"width": {"channels": 96}}, r"student.width.channels: is 96, and layers of the teacher .* have 96"),
    ],
)
def test_what_the_teacher_does_not_have_is_refused_before_weights_are_loaded(recipe, section, message, monkeypatch):
    monkeypatch.setattr(prune_module, "load_model", lambda *a: pytest.fail("loaded"))
    asked = load_recipe_with(recipe, {"from": "teacher"} | section)
    for command in (prune, train):
        with pytest.raises(BridgegardenError, match=message):
            command(asked, console=QUIET)


def test_diagnose_says_how_there_comes_to_be_a_student(recipe_path):
    result = CliRunner().invoke(cli, ["diagnose", str(recipe_path)])
    assert result.exit_code == 2
    assert "there is no student yet. Cut it out of the teacher (bridgegarden prune RECIPE)" in result.output


def test_a_recipe_that_names_its_student_cuts_none(write_recipe):
    result = CliRunner().invoke(cli, ["prune", str(write_recipe())])
    assert result.exit_code == 2
    assert "student.from: the recipe names a student and cuts none" in result.output


def test_numbers_are_written_as_spans():
    assert spans_text([0, 1, 2, 5, 7, 8]) == "0-2, 5, 7-8"
