"""What could be wrong in a file: its mutants, each with one small fault.

Comparisons (turned round, and off by one at the border), arithmetic, ``and`` and ``or``, conditions, signs and ``not``,
numbers and ``True``, ``min`` and ``max``, the order of two arguments, and statements that are left out. Text, what
errors say, annotations, decorators and assertions are not mutated.
"""

import ast
import re
from collections.abc import Iterator
from itertools import pairwise
from typing import NamedTuple

OPERATORS: dict[type[ast.AST], tuple[str, ...]] = {
    **{ast.Add: ("-",), ast.Sub: ("+",), ast.Mult: ("/",), ast.Div: ("*",), ast.FloorDiv: ("*",), ast.Mod: ("*",)},
    **{ast.Pow: ("*",), ast.LShift: (">>",), ast.RShift: ("<<",), ast.BitAnd: ("|",), ast.BitOr: ("&",)},
    ast.BitXor: ("&",),
    **{ast.MatMult: ("*",), ast.Eq: ("!=",), ast.NotEq: ("==",), ast.Is: ("is not",), ast.IsNot: ("is",)},
    **{ast.Lt: ("<=", ">="), ast.LtE: ("<", ">"), ast.Gt: (">=", "<="), ast.GtE: (">", "<")},
    **{ast.In: ("not in",), ast.NotIn: ("in",), ast.And: ("or",), ast.Or: ("and",)},
}
NAMES = {"min": "max", "any": "all", "amin": "amax", "argmin": "argmax", "minimum": "maximum", "floor": "ceil"}
NAMES |= {other: name for name, other in NAMES.items()}


class Mutant(NamedTuple):
    """`old` at a place of a file's text becomes `new`."""

    path: str
    line: int
    start: int
    """Byte of the file."""
    old: str
    new: str

    def apply(self, text: bytes) -> bytes:
        end = self.start + len(self.old.encode())
        assert text[self.start : end] == self.old.encode()
        return text[: self.start] + self.new.encode() + text[end:]

    def difference(self, text: bytes) -> tuple[str, str]:
        """The lines of the file that change, before and after, each as one."""
        before, after = text.decode().splitlines(), self.apply(text).decode().splitlines()
        end = self.line + self.old.count("\n")
        sides = before[self.line - 1 : end], after[self.line - 1 : end + len(after) - len(before)]
        return tuple(" ".join(line.strip() for line in lines) for lines in sides)

    def within(self, text: bytes) -> str:
        """The function or class of the file that it is in, or nothing."""
        lines = text[: self.start].decode().splitlines()
        found = (re.match(r"(?:def|class) (\w+)", line) for line in reversed(lines))
        return next((match[1] for match in found if match), "")


class Source:
    """The text of a file, and what can be changed in it."""

    def __init__(self, path: str, text: bytes) -> None:
        self.path, self.text = path, text
        self._begins = [0, *(index + 1 for index, byte in enumerate(self.text) if byte == ord("\n"))]

    def mutants(self) -> list[Mutant]:
        """All of them, in the order of the file."""
        visited = (node for top in ast.parse(self.text).body for node in _mutable(top))
        found = sorted({change for node in visited for change in self._changes(node)})
        return [Mutant(self.path, self.text.count(b"\n", 0, start) + 1, start, old, new) for start, old, new in found]

    def _place(self, node: ast.expr | ast.stmt) -> tuple[int, int]:
        end_line, end_column = node.end_lineno or 0, node.end_col_offset or 0
        return self._begins[node.lineno - 1] + node.col_offset, self._begins[end_line - 1] + end_column

    def _of(self, node: ast.expr | ast.stmt) -> str:
        return self.text[slice(*self._place(node))].decode()

    def _operator(self, left: ast.expr, right: ast.expr, kind: ast.AST) -> Iterator[tuple[int, str, str]]:
        """Another operator between two operands, around which brackets and lines may stand."""
        start, end = self._place(left)[1], self._place(right)[0]
        gap = self.text[start:end].decode()
        operator = gap.strip(" \n()")
        for new in OPERATORS[type(kind)]:
            yield start + gap.index(operator), operator, new

    def _changes(self, node: ast.AST) -> Iterator[tuple[int, str, str]]:
        """Where, what stands there, and what shall."""
        match node:
            case ast.BinOp(left, kind, right) if not (_is_text(left) or _is_text(right)):
                yield from self._operator(left, right, kind)
            case ast.Compare(left, [kind, *_], [right, *_]) | ast.BoolOp(kind, [left, right, *_]):
                yield from self._operator(left, right, kind)
            case ast.UnaryOp(operand=operand) if not isinstance(operand, ast.Constant):
                yield self._place(node)[0], self._of(node), f"({self._of(operand)})"
            case ast.Constant(value) if isinstance(value, bool | int | float):
                other = value + 1 if isinstance(value, int) else 2 * value or 1.0
                yield self._place(node)[0], self._of(node), repr(not value if isinstance(value, bool) else other)
            case ast.IfExp(test, body, other):
                swapped = f"({self._of(other)} if {self._of(test)} else {self._of(body)})"
                yield self._place(node)[0], self._of(node), swapped
            case ast.If(test) | ast.While(test) if isinstance(test, ast.Name | ast.Attribute | ast.Call):
                yield self._place(test)[0], self._of(test), f"not {self._of(test)}"
            case ast.Call(func, args):
                name = func.attr if isinstance(func, ast.Attribute) else getattr(func, "id", "")
                if name in NAMES:
                    yield self._place(func)[1] - len(name), name, NAMES[name]
                for one, other in pairwise(args):
                    if self._of(one) != self._of(other) and not isinstance(other, ast.Starred):
                        (start, stop), (again, end) = self._place(one), self._place(other)
                        between = self.text[stop:again].decode()
                        yield start, self.text[start:end].decode(), self._of(other) + between + self._of(one)
            case (
                ast.Expr(ast.Call())
                | ast.AugAssign()
                | ast.Continue()
                | ast.Break()
                | ast.Raise()
                | ast.Assign([ast.Attribute() | ast.Subscript()])
            ):
                yield self._place(node)[0], self._of(node), "pass"


def _is_text(node: ast.expr) -> bool:
    return isinstance(node, ast.JoinedStr) or (isinstance(node, ast.Constant) and isinstance(node.value, str))


def _mutable(node: ast.AST) -> Iterator[ast.AST]:
    """A node and those below it, without what is said of the code."""
    if isinstance(node, ast.If) and isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING":
        return
    yield node
    if isinstance(node, ast.Raise | ast.Assert | ast.JoinedStr):
        return
    hidden = [*getattr(node, "decorator_list", ()), getattr(node, "annotation", None), getattr(node, "returns", None)]
    for child in ast.iter_child_nodes(node):
        if child not in hidden:
            yield from _mutable(child)
