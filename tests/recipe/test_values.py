import math
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import Any, Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bridgegarden.errors import ConfigError
from bridgegarden.recipe.values import (
    MAX_BYTES,
    MAX_DEPTH,
    coerce,
    plain,
    read_yaml,
    read_yaml_file,
    section_from,
    write_yaml,
)

plain_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=12,
)


@given(plain_values)
def test_what_is_written_reads_back_equal_and_of_the_same_type(value):
    again = read_yaml(write_yaml(value), "test")
    assert again == value
    assert repr(again) == repr(value)


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1e-5", 1e-5),
        ("1E5", 1e5),
        ("-2.5e3", -2500.0),
        ("1.0e-5", 1e-5),
        ("3", 3),
        ("2024-05-01", "2024-05-01"),
        ("openai/gsm8k:main", "openai/gsm8k:main"),
        ("'1e-5'", "1e-5"),
        ("", None),
        ("# only a comment", None),
    ],
)
def test_a_word_has_the_type_a_recipe_s_author_expects(text, value):
    got = read_yaml(text, "test")
    assert got == value
    assert type(got) is type(value)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a: 1\nb: 2\na: 3", r"r.yaml:3:1: key 'a' occurs twice"),
        ("a: {b: 1, b: 1}", r"r.yaml:1:11: key 'b' occurs twice"),
        ("a: &x [1]\nb: *x", r"r.yaml:1:4: anchors and aliases are not accepted"),
        ("a: *x", r"r.yaml:1:4: anchors and aliases"),
        ("a: !!python/object/apply:os.system [id]", r"r.yaml:1:4: tags \(tag:yaml.org,2002:python/object"),
        ("a: !!str 1", r"tags \(tag:yaml.org,2002:str\) are not accepted"),
        ("a: ! 1", r"tags \(!\) are not accepted"),
        ("<<: {a: 1}", r"r.yaml:1:1: a key must be text"),
        ("1: a", r"r.yaml:1:1: a key must be text"),
        ("yes: a", r"a key must be text"),
        ("[a, b]: c", r"a key must be text"),
        ("a: [1, 2", r"r.yaml:1:9: expected"),
        ("a:\n\t- 1", r"r.yaml:2:1: found character"),
        ("a: 1\n---\nb: 2", r"expected a single document|but found another document"),
        ("a: \x00", r"r.yaml: not readable as YAML"),
        ("a: " + "9" * 5000, r"r.yaml: not readable as YAML"),
        ("[" * (MAX_DEPTH + 1) + "]" * (MAX_DEPTH + 1), rf"nested more than {MAX_DEPTH} levels"),
        ("[" * 50_000, rf"nested more than {MAX_DEPTH} levels"),
    ],
)
def test_what_plain_settings_never_need_is_refused_with_its_place(text, message):
    with pytest.raises(ConfigError, match=message):
        read_yaml(text, "r.yaml")


def test_nesting_up_to_the_limit_is_read():
    assert read_yaml("[" * MAX_DEPTH + "]" * MAX_DEPTH, "test")


def test_infinity_is_a_number_that_fields_refuse_later():
    assert math.isinf(read_yaml(".inf", "test"))


def test_a_byte_order_mark_is_not_part_of_the_first_key(tmp_path):
    (tmp_path / "r.yaml").write_bytes(b"\xef\xbb\xbfteacher: x\r\n")
    assert read_yaml_file(tmp_path / "r.yaml") == {"teacher": "x"}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"a: \xff\xfe", "byte 3 is not UTF-8"),
        (b"#" * (MAX_BYTES + 1), "larger than 256 KiB"),
    ],
)
def test_a_file_that_is_no_recipe_is_refused(tmp_path, content, message):
    (tmp_path / "r.yaml").write_bytes(content)
    with pytest.raises(ConfigError, match=message):
        read_yaml_file(tmp_path / "r.yaml")


def test_a_file_that_cannot_be_opened_is_the_user_s_error(tmp_path):
    with pytest.raises(ConfigError, match="cannot be read: No such file"):
        read_yaml_file(tmp_path / "none.yaml")


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
