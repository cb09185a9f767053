"""The equations of docstrings as MathML, which browsers draw without a script."""

import re
import textwrap
from typing import Any

import griffe
from latex2mathml.converter import convert

BLOCK = re.compile(
    r"^(?P<indent>[ ]*)\.\. math::[ ]*(?P<line>[^\n]*)\n?(?P<rest>(?:(?P=indent)[ ]+[^\n]*\n?|[ ]*\n)*)", re.M
)
INLINE = re.compile(r":math:`([^`]+)`")


class Mathematics(griffe.Extension):
    """Turns ``.. math::`` and ``:math:`` into MathML."""

    def on_object(self, *, obj: griffe.Object, **kwargs: Any) -> None:
        """Every docstring that is read."""
        if obj.docstring is not None:
            obj.docstring.value = drawn(obj.docstring.value)


def drawn(text: str) -> str:
    """`text` with every equation as MathML."""

    def block(found: re.Match[str]) -> str:
        latex = " ".join((found["line"] + " " + textwrap.dedent(found["rest"])).split())
        return f"{found['indent']}{_mathml(latex, 'block')}\n\n"

    return INLINE.sub(lambda found: _mathml(found[1], "inline"), BLOCK.sub(block, text))


def _mathml(latex: str, display: str) -> str:
    return convert(latex, display=display)
