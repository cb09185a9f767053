"""How numbers and tables are written: rounded to what is known, and one table for terminal, Markdown, HTML and CSV."""

import csv
import io
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from textwrap import fill
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from markupsafe import Markup

if TYPE_CHECKING:
    from rich.console import Console, ConsoleOptions, RenderResult
    from rich.text import Text

_SUPERSCRIPTS = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")


def number(value: float, digits: int = 3) -> str:
    """`value` for a reader, rounded to `digits` significant digits, with a real minus sign."""
    rounded = float(f"{value:.{digits}g}")
    if rounded != 0 and not 1e-4 <= abs(rounded) < 1e6:
        mantissa, exponent = f"{rounded:.{digits - 1}e}".split("e")
        text = f"{float(mantissa):g} × 10{str(int(exponent)).translate(_SUPERSCRIPTS)}"
    else:
        decimals = max(digits - 1 - math.floor(math.log10(abs(rounded))), 0) if rounded else 0
        text = f"{rounded:.{decimals}f}"
        text = text.rstrip("0").rstrip(".") if "." in text else text
    return text.replace("-", "\N{MINUS SIGN}")


def plus_minus(mean: float, half: float) -> tuple[str, str]:
    """A mean and half its interval, both to the second digit of the latter, at most 5 places after the point."""
    places = min(max(1 - math.floor(math.log10(float(f"{half:.2g}"))), 0), 5) if half > 0 else 1
    # Adding 0.0 takes the sign off what is rounded to zero.
    return f"{round(mean, places) + 0.0:,.{places}f}".replace("-", "\N{MINUS SIGN}"), f"{half:,.{places}f}"


def share_parts(mean: float, interval: tuple[float, float]) -> tuple[str, str]:
    """A share and what it may be, in per cent without the sign: ``61.2``, ``± 4.1``.

    At 0 and 1 it can be wrong on one side only: ``100.0``, ``≥ 73.5``. An interval that ends there has no middle, and
    both its ends are said: ``34``, ``[0, 81]``.
    """
    low, high = interval
    if mean in (0.0, 1.0) and low < high:
        return f"{100 * mean:.1f}", f"≤ {100 * high:.2g}" if mean == 0 else f"≥ {100 * low:.3g}"
    shown, half = plus_minus(100 * mean, 50 * (high - low))
    return shown, f"± {half}" if low > 0 and high < 1 else f"[{100 * low:.0f}, {100 * high:.0f}]"


def probability(share: float) -> str:
    """A probability in per cent; next to nothing is told from nothing."""
    return "<0.1 %" if 0 < share < 0.001 else f"{number(100 * share, 2 if share < 0.1 else 3)} %"


def span(interval: tuple[float, float], write: Callable[[float], str]) -> str:
    """Both ends of an interval."""
    low, high = (write(end) for end in interval)
    return f"{low.removesuffix(' %')} to {high}"


class Cell(NamedTuple):
    """What a table says at one place."""

    text: str
    """A number or a name. HTML as it is where it is `Markup`, which then only HTML can show."""
    beside: str = ""
    """What goes with it in smaller type, such as ``± 0.4``: on the same line where there is room, else below."""
    unit: str = ""
    """After the number, such as ``%``."""
    strong: bool = False
    """Whether it stands out: the best, or what is certain."""
    tone: Literal["", "good", "bad", "quiet"] = ""
    """Its colour on a terminal."""

    def line(self, between: str = " ") -> str:
        """All of it as plain text."""
        return " ".join(part for part in (between.join(filter(None, self[:2])), self.unit) if part)


BITS = 1 / math.log(2)
"""Of a nat."""


def mean_cell(mean: float, interval: tuple[float, float], *, times: float = 1.0, unit: str = "") -> Cell:
    """A mean with half its interval, both multiplied by `times`; or without, where the interval has no ends."""
    low, high = interval
    if math.isinf(high - low):
        return Cell(number(times * mean), "± unknown", unit)
    shown, half = plus_minus(times * mean, times * (high - low) / 2)
    return Cell(shown, f"± {half}", unit)


def difference_cell(mean: float, interval: tuple[float, float], *, times: float = 1.0, side: int | None = None) -> Cell:
    """A first value minus a second one, with half its interval, and what is called: open where that holds zero, or as
    `side` says."""
    cell = mean_cell(mean, interval, times=times)
    low, high = interval
    if side is None:
        side = 1 if low > 0 else -1 if high < 0 else 0
    called = ("open", "higher", "lower")[side]
    sign = "+" if mean > 0 else ""
    return cell._replace(text=f"{sign}{cell.text}", beside=f"{cell.beside}, {called}", strong=called != "open")


class Column(NamedTuple):
    """What stands below each other."""

    head: str
    """Its name."""
    words: bool = False
    """Whether it holds words, whose lines are broken, and no numbers of one line each."""
    detail: bool = False
    """Whether a terminal, which has less room, leaves it out."""


@dataclass(frozen=True, kw_only=True)
class Table:
    """Rows of cells under named columns, the first of which names the row."""

    columns: Sequence[Column | str]
    """A name alone is that of a column of numbers."""
    rows: Sequence[Sequence[Any]]
    """Cells; what is no `Cell` is written as it is, and None not at all."""
    title: str = ""
    """Above it, on a terminal."""
    note: str | Markup = ""
    """Below it: units, what is after ±, what is left out."""
    last: int = 0
    """How many rows at the end are set apart: a sum, what others are held against."""

    @classmethod
    def of(cls, records: Sequence[Mapping[str, Any]]) -> "Table":
        """A row for each record and a column for each of their keys."""
        heads = list(dict.fromkeys(key for record in records for key in record))
        return cls(columns=heads, rows=[[record.get(head) for head in heads] for record in records])

    def csv(self) -> str:
        """For a program: numbers as they are."""
        file = io.StringIO()
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(column.head for column in self._columns)
        for row in self.rows:
            writer.writerow(value.line() if isinstance(value, Cell) else value for value in row)
        return file.getvalue()

    def markdown(self) -> str:
        """For a reader of a file, without title and note."""
        rows = [[cell.line() for cell in row] for row in self._cells]
        heads = [column.head for column in self._columns]
        return "\n".join(_markdown_row(cells) for cells in (heads, ["---"] * len(heads), *rows))

    def html(self) -> Markup:
        """For a page, with the note; the table scrolls inside itself where the page is narrow."""
        heads = [Markup('<th scope="col">{}</th>').format(column.head) for column in self._columns]
        rows = [
            [Markup('<th scope="row">{}</th>').format(_inner(row[0])), *(_html(cell) for cell in row[1:])]
            for row in self._cells
        ]
        return Markup(
            '<div class="scroll" tabindex="0" role="region" aria-label="Table by {}"><table{}><thead>{}</thead>'
            "<tbody>{}</tbody></table></div>{}"
        ).format(
            self._columns[0].head,
            Markup(' class="wordy"' if any(column.words for column in self._columns[1:]) else ""),
            _html_row(heads),
            Markup("").join(map(_html_row, rows)),
            Markup('<p class="caption">{}</p>').format(self.note) if self.note else "",
        )

    def text(self, width: int = 100) -> str:
        """As a terminal of `width` columns without colours shows it."""
        from rich.console import Console

        text = io.StringIO()
        Console(file=text, width=width, force_terminal=False, color_system=None, highlight=False).print(self)
        return "\n".join(line.rstrip() for line in text.getvalue().splitlines())

    def __rich_console__(self, console: "Console", options: "ConsoleOptions") -> "RenderResult":
        from rich import box
        from rich.table import Table as RichTable
        from rich.text import Text

        kept = [place for place, column in enumerate(self._columns) if not column.detail]
        columns = [self._columns[place] for place in kept]
        rows = [[row[place] for place in kept] for row in self._cells]
        room = options.max_width - 2  # rich leaves a space at either side
        between = " " if sum(_widths(columns, rows, " ")) <= room else "\n"
        widths = _widths(columns, rows, between)
        # Heads are broken before numbers are.
        roomy = sum(map(max, widths, (len(column.head) + 1 for column in columns))) <= room
        heads = [
            column.head if roomy else fill(column.head, wide) for column, wide in zip(columns, widths, strict=True)
        ]
        shown = RichTable(box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 1, 0, 0), title_justify="left")
        shown.title, shown.title_style = Text(self.title) if self.title else None, "bold"
        shown.caption, shown.caption_justify = Text(str(self.note)) if self.note else None, "left"
        shown.caption_style = ""
        for place, column in enumerate(columns):
            left = column.words or place == 0
            shown.add_column(
                Text(heads[place]), justify="left" if left else "right", no_wrap=place == 0 and not column.words
            )
        for place, row in enumerate(rows):
            if place and place == len(rows) - self.last:
                shown.add_section()
            shown.add_row(*(_rich(cell, between, column) for cell, column in zip(row, columns, strict=True)))
        yield shown

    @property
    def _columns(self) -> list[Column]:
        return [column if isinstance(column, Column) else Column(column) for column in self.columns]

    @property
    def _cells(self) -> list[list[Cell]]:
        return [[_cell(value) for value in row] for row in self.rows]


def _cell(value: Any) -> Cell:
    if isinstance(value, Cell):
        return value
    return Cell(value if isinstance(value, str) else "" if value is None else str(value))


def _markdown_row(cells: Iterable[str]) -> str:
    return f"| {' | '.join(' '.join(cell.split()).replace('|', chr(92) + '|') for cell in cells)} |"


def _html_row(cells: Iterable[Markup]) -> Markup:
    return Markup("<tr>{}</tr>").format(Markup("").join(cells))


def _html(cell: Cell) -> Markup:
    return Markup("<td>{}</td>").format(_inner(cell))


def _inner(cell: Cell) -> Markup:
    unit = f" {cell.unit}" if cell.unit else ""
    inner = Markup("<strong>{}{}</strong>" if cell.strong else "{}{}").format(cell.text, unit)
    return inner + Markup("<small>{}{}</small>").format(cell.beside, unit) if cell.beside else inner


def _widths(columns: Sequence[Column], rows: Sequence[Sequence[Cell]], between: str) -> list[int]:
    """Characters that each column takes, the space after it included, if lines are broken wherever they may be."""
    found = [max(map(len, column.head.split()), default=0) for column in columns]
    for row in rows:
        for place, cell in enumerate(row):
            parts = cell.line().split() if columns[place].words else cell.line(between).split("\n")
            found[place] = max([found[place], *map(len, parts)])
    return [wide + 1 for wide in found]


TONES = {"": "", "good": "green", "bad": "red", "quiet": "dim"}


def _rich(cell: Cell, between: str, column: Column) -> "Text":
    from rich.text import Text

    text = Text(cell.line("\n") if column.words else cell.line(between))
    text.stylize(f"{TONES[cell.tone]}{' bold' if cell.strong else ''}", 0, len(cell.text))
    return text
