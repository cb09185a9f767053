from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import Any, Literal

import pytest

from bridgegarden.errors import ConfigError
from bridgegarden.recipe.coerce import coerce, plain, section_from


class Colour(Enum):
    RED = "red"
    BLUE = "blue"


@dataclass(frozen=True, kw_only=True)
class Inner:
    size: int
    name: str = "x"


@dataclass(frozen=True, kw_only=True)
class Outer:
    rate: float
    inner: Inner | None = None


@pytest.mark.parametrize(
    ("value", "annotation", "expected"),
    [
        (1, float, 1.0),
        ("1.0e-5", float, 1e-5),
        (1000.0, int, 1000),
        (3, int, 3),
        (True, bool, True),
        ("a", str, "a"),
        ("a/b", Path, Path("a/b")),
        (None, int | None, None),
        (5, int | None, 5),
        ("5", int | str, "5"),
        ("1e3", float | str, "1e3"),
        (2, float | str, 2.0),
        (False, bool | None, False),
        ("red", Colour | str, "red"),
        (["a"], list[str], ["a"]),
        (["a"], str | tuple[str, ...], ("a",)),
        ("a", str | tuple[str, ...], "a"),
        ({"a": [1]}, dict[str, Any] | str | None, {"a": [1]}),
        ({"a": [1]}, dict | None, {"a": [1]}),
        ("y", Literal["x", "y"], "y"),
        (False, str | None | Literal[False], False),
        ({"size": 3}, Inner | None, Inner(size=3)),
    ],
)
def test_a_value_that_fits_takes_the_type_of_its_field(value, annotation, expected):
    got = coerce(value, annotation, "a.b")
    assert got == expected
    assert type(got) is type(expected)


@pytest.mark.parametrize(
    ("value", "annotation", "message"),
    [
        (True, int, "a.b: expected a whole number, got true."),
        (True, float, "a.b: expected a finite number, got true."),
        (1, bool, "a.b: expected true or false, got 1."),
        (1.5, int, "a.b: expected a whole number, got 1.5."),
        ("3", int, "a.b: expected a whole number, got '3'."),
        (float("nan"), float, "a.b: expected a finite number, got nan."),
        (float("inf"), int, "a.b: expected a whole number, got inf."),
        ("inf", float, "a.b: expected a finite number, got 'inf'."),
        (10**400, float, "a.b: expected a finite number, got 1000"),
        (None, int, "a.b: expected a whole number, got nothing."),
        (7, str, 'a.b: expected text, got 7. Put it in quotes: "7".'),
        (False, str | None, "a.b: expected text or null, got false. YAML reads yes, no, on and off as true and false"),
        (False, Colour | str, "a.b: expected text, got false. YAML reads yes, no"),
        ("rad", Colour | str, "a.b: unknown value 'rad'. Did you mean 'red'? Known: blue, red."),
        ("z", Literal["x", "y"], "a.b: unknown value 'z'. Known: x, y."),
        ([], int | str, "a.b: expected a whole number or text, got []."),
        ([1], list[str], "a.b[0]: expected text, got 1."),
        ({"size": "x"}, Inner | None, "a.b.size: expected a whole number, got 'x'."),
        ({"sise": 1}, Inner | None, "a.b: unknown key 'sise'. Did you mean 'size'?"),
        ({}, Inner | None, "a.b: key 'size' is missing"),
        ("x", Inner | None, "a.b: expected a mapping (key: value), got 'x'."),
        ({"x": {1: 2}}, dict, "a.b.x: a key must be text, got 1."),
        ({"x": [float("nan")]}, dict, "a.b.x[0]: expected a finite number, got nan."),
        ("", Path, "a.b: expected a path, got ''."),
        ("x" * 500, int, "a.b: expected a whole number, got 'xxx"),
    ],
)
def test_a_value_that_does_not_fit_is_refused_with_its_path(value, annotation, message):
    with pytest.raises(ConfigError) as caught:
        coerce(value, annotation, "a.b")
    assert str(caught.value).startswith(message)
    assert len(str(caught.value)) < 250


def test_a_section_nests_and_names_the_path_from_the_top():
    assert section_from(Outer, {"rate": 1, "inner": {"size": 2}}, "") == Outer(rate=1.0, inner=Inner(size=2))
    with pytest.raises(ConfigError, match=r"^inner\.size: expected a whole number"):
        section_from(Outer, {"rate": 1, "inner": {"size": "big"}}, "")
    with pytest.raises(ConfigError, match=r"^recipe: unknown key 'rat'. Did you mean 'rate'\?"):
        section_from(Outer, {"rat": 1}, "")


def test_a_plain_copy_does_not_share_what_it_copied():
    value = {"a": [1, {"b": 2}]}
    copy = plain(value, "x")
    value["a"][1]["b"] = 3
    assert copy == {"a": [1, {"b": 2}]}


def test_an_object_is_not_plain():
    with pytest.raises(ConfigError, match=r"^x\.a: expected text, a number"):
        plain({"a": object()}, "x")
