"""What a recipe may say of a student that is cut out of its teacher."""

from pathlib import Path
from typing import Any, get_args

import pytest

from bridgegarden.errors import ConfigError
from bridgegarden.recipe import Recipe, load_recipe
from bridgegarden.recipe.student import NO_WEIGHTS
from bridgegarden.recipe.teacher import TeacherKind

OF = {"a": {"model": "one", "cache": "c1"}, "b": {"model": "two", "cache": "c2"}}
MIXED = {"mix": {"a": 0.5, "b": 0.5}, "of": {name: {"model": part["model"]} for name, part in OF.items()}}


def recipe(student: Any, teacher: Any = None) -> Recipe:
    return Recipe.from_dict(
        {"teacher": teacher or {"model": "big"}, "student": student, "data": {"train": "rows"}, "output": "out"}
    )


@pytest.mark.parametrize(
    ("student", "measures"),
    [
        ({"layers": 10}, True),
        ({"layers": 10, "keep": "first"}, False),
        ({"keep": [0, 2, 5]}, False),
        ({"keep": "all"}, False),
        ({"keep": [0], "width": {"heads": 2}}, True),
        ({"width": {"channels": 8, "heads": 4}, "calibration": 3}, True),
        ({"layers": 3, "folder": "students/three", "dtype": "float32", "lora": {"r": 4}}, True),
    ],
)
def test_what_is_said_comes_back_as_it_was_written(student, measures):
    made = recipe({"from": "teacher"} | student)
    assert Recipe.from_dict(made.to_dict()) == made
    assert made.student.measures == measures
    written = made.to_dict()["student"]
    assert "model" not in written
    assert all(written[name] == value for name, value in student.items() if name not in ("width", "lora"))
    assert made.student_folder == Path(student.get("folder", "out/student"))


@pytest.mark.parametrize(
    ("student", "message"),
    [
        ({}, "student: key 'model' is missing; it has no default. Or say from: teacher"),
        ({"model": "small", "layers": 2}, "student.layers: says what is cut out of the teacher; add from: teacher"),
        ({"model": "small", "folder": "f"}, "student.folder: says what is cut out of the teacher"),
        ({"from": "techer"}, "student.from: .*'techer'.* Did you mean 'teacher'"),
        ({"from_": "teacher", "layers": 2}, "student: unknown key 'from_'. Did you mean 'from'"),
        ({"from": "teacher", "model": "small", "layers": 2}, "student.model: with student.from the teacher is the mod"),
        ({"from": "teacher", "revision": "main", "layers": 2}, "student.revision: with student.from"),
        ({"from": "teacher"}, "student.from: nothing is cut; give layers, keep or width"),
        ({"from": "teacher", "layers": 0}, "student.layers must be >= 1, got 0"),
        ({"from": "teacher", "layers": 2, "keep": [0, 1]}, "student.layers: student.keep says how many"),
        ({"from": "teacher", "layers": 2, "keep": "all"}, "student.layers: student.keep says how many"),
        ({"from": "teacher", "keep": "first"}, "student.keep: is 'first', and student.layers does not say how many"),
        ({"from": "teacher", "keep": "last"}, "student.keep: unknown word 'last'.* Known: all, first"),
        ({"from": "teacher", "keep": []}, "student.keep is an empty list"),
        ({"from": "teacher", "keep": [1, 1]}, r"each larger than the one before, got \[1, 1\]"),
        ({"from": "teacher", "keep": [-1, 1]}, r"numbers of layers from 0, .* got \[-1, 1\]"),
        ({"from": "teacher", "width": {}}, "student.width is empty"),
        ({"from": "teacher", "width": {"heads": 0}}, "student.width.heads must be >= 1"),
        ({"from": "teacher", "layers": 2, "calibration": 0}, "student.calibration must be >= 1"),
        ({"from": "teacher", "keep": [0], "calibration": 4}, "student.calibration: nothing is measured"),
        ({"from": "teacher", "layers": 2, "folder": ""}, "student.folder"),
    ],
)
def test_what_means_nothing_is_refused_with_its_place(student, message):
    with pytest.raises(ConfigError, match=message):
        recipe(student)


def test_every_kind_of_teacher_can_be_cut_or_says_why_not():
    assert set(get_args(TeacherKind)) - set(NO_WEIGHTS) == {"live", "cached"}


@pytest.mark.parametrize(
    ("teacher", "why"),
    [
        ({"model": "big", "server": "http://localhost:1/v1"}, "teacher.server keeps its weights to itself"),
        ({"model": "b", "server": "http://localhost:1/v1", "cache": "c"}, "teacher.server keeps its weights to itself"),
        ({"model": "big", "cache": "c", "only_cache": True}, "teacher.only_cache says that its weights are not here"),
        (MIXED, "teacher.mix has several models"),
        (MIXED | {"cache": "c"}, "teacher.mix has several models"),
        ({"by": "who", "of": OF}, "teacher.by has several models"),
        (
            {"by": "who", "of": {name: {"model": name} for name in OF}, "together": True},
            "teacher.by has several models",
        ),
    ],
)
def test_a_teacher_without_weights_of_its_own_here_is_refused_by_name(teacher, why):
    with pytest.raises(ConfigError, match=f"student.from: .*one model, and {why}.*bridgegarden prune"):
        recipe({"from": "teacher", "layers": 2}, teacher)
    assert recipe({"model": "small"}, teacher)


def test_a_folder_beside_the_recipe_is_found_from_everywhere(tmp_path):
    (tmp_path / "kept").mkdir()
    path = tmp_path / "r.yaml"
    path.write_text("teacher: {model: big}\nstudent: {from: teacher, layers: 2, folder: kept}\ndata: {train: rows}\n")
    assert load_recipe(path).student_folder == tmp_path / "kept"
