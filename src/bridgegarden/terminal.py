"""What goes to a terminal: text of models, data and servers, with nothing in it that a terminal would obey.

An escape sequence in a token, a row or a file's name could move the cursor, change the title or hide what follows. Here
every such character is replaced by a visible one; what Rich writes for colours and movement is its own and stays.
"""

import logging
import sys
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.console import Console

REPLACEMENT = "\ufffd"
_PICTURES = {code: chr(0x2400 + code) for code in range(0x20) if chr(code) not in "\n\t"} | {0x7F: "\u2421"}
_HIDDEN = (*range(0x80, 0xA0), 0x061C, 0x200E, 0x200F, *range(0x202A, 0x202F), *range(0x2066, 0x206A), 0x2028, 0x2029)
"""C1 controls (among them the one-character form of ESC [), marks that turn the order of text, and line breaks in
disguise."""
TABLE = _PICTURES | dict.fromkeys(_HIDDEN, REPLACEMENT)


def plain(text: str) -> str:
    """`text` with a visible character for each that a terminal would obey; line breaks and tabs are kept."""
    return text.translate(TABLE)


def plain_json(text: str) -> str:
    """JSON that means the same, with the characters escaped that a terminal would obey."""
    return text.translate({code: f"\\u{code:04x}" for code in TABLE})


def one_line(message: str) -> str:
    """`message` on one line, with whatever cannot be printed shown as its escape."""
    return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in " ".join(message.split()))


def say(text: object) -> None:
    """Print a result on stdout, for a person."""
    import click

    click.echo(plain(str(text)))


def plain_console(**options: Any) -> "Console":
    """A Rich console, with the options of ``rich.console.Console``, that shows everything through :func:`plain`."""
    from rich.console import Console, ConsoleOptions, RenderableType, RenderHook
    from rich.segment import Segment

    class Plain:
        def __init__(self, renderable: RenderableType) -> None:
            self.renderable = renderable

        def __rich_console__(self, console: Console, options: ConsoleOptions) -> Iterable[Segment]:
            for segment in console.render(self.renderable, options):
                yield segment if segment.control else Segment(plain(segment.text), segment.style)

    class Hook(RenderHook):
        def process_renderables(self, renderables: list[Any]) -> list[Any]:
            return [Plain(renderable) for renderable in renderables]

    console = Console(**options)
    console.push_render_hook(Hook())
    return console


def stderr_console() -> "Console":
    """A console on stderr that writes plain text wherever stderr is no terminal, whatever the environment says."""
    return plain_console(stderr=True, force_terminal=None if sys.stderr.isatty() else False, highlight=False)


class PlainLines(logging.Formatter):
    """Messages of the log as single lines."""

    def format(self, record: logging.LogRecord) -> str:
        return one_line(super().format(record))
