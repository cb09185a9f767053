"""What a mutation run changes."""

import ast
from pathlib import Path

import pytest

from tests import mutations
from tests.mutations import Source


def lines_of(text: str) -> list[str]:
    """The first line of a text, as every mutant has it."""
    source = text.encode()
    return [mutant.apply(source).decode().splitlines()[0] for mutant in Source("file.py", source).mutants()]


@pytest.mark.parametrize(
    ("line", "mutants"),
    [
        ("a < b", {"a <= b", "a >= b"}),
        ("a is not b", {"a is b"}),
        ("(a) == (b)", {"(a) != (b)"}),
        ("é + b * c", {"é - b * c", "é + b / c"}),
        ("a ^ b", {"a & b"}),
        ("a and not b", {"a or not b", "a and (b)"}),
        ("a = 3", {"a = 4"}),
        ("a = (0.0, 0.5, True)", {"a = (1.0, 0.5, True)", "a = (0.0, 1.0, True)", "a = (0.0, 0.5, False)"}),
        ("f(a, b)", {"f(b, a)", "pass"}),
        ("a = b.min(c)", {"a = b.max(c)"}),
        ("a = b if c else d", {"a = (d if c else b)"}),
        ("a[b] = c", {"pass"}),
        ("a += b", {"pass"}),
        ("raise ValueError(a + 1)", {"pass"}),
        ("a: f(b, c) = 'text' + d", set()),
        ("assert a < b, f'{a + b}'", set()),
    ],
)
def test_a_line_has_these_mutants_and_no_others(line, mutants):
    assert set(lines_of(line)) == mutants
    assert len(lines_of(line)) == len(mutants)


def test_a_condition_is_turned_round_and_what_only_types_need_is_left():
    assert lines_of("if f(a):\n    b = c") == ["if not f(a):"]
    assert lines_of("if TYPE_CHECKING:\n    a = 1") == []


def test_a_difference_is_told_by_its_lines():
    source = b"def f():\n    if a:\n        raise E(\n            b\n        )\n    return c\n"
    mutants = Source("file.py", source).mutants()
    assert [(one.line, one.difference(source)) for one in mutants] == [
        (2, ("if a:", "if not a:")),
        (3, ("raise E( b )", "pass")),
    ]


def test_a_mutant_knows_the_function_or_class_that_it_is_in():
    source = b"a = 1\n\ndef f():\n    return 2\n\nclass C:\n    def g(self):\n        return 3\n"
    assert [one.within(source) for one in Source("file.py", source).mutants()] == ["", "f", "C"]


def test_mutants_of_the_mutator_can_be_read():
    text = Path(mutations.__file__).read_bytes()
    mutants = Source("mutations.py", text).mutants()
    assert len(mutants) > 50
    for mutant in mutants:
        ast.parse(mutant.apply(text))
