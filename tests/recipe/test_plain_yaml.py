import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bridgegarden.errors import ConfigError
from bridgegarden.recipe.plain_yaml import MAX_BYTES, MAX_DEPTH, read_yaml, read_yaml_file, write_yaml

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
