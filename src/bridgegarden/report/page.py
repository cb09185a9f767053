"""One HTML file that needs nothing else: styles, script and data inside, nothing fetched, every text escaped."""

import base64
import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from bridgegarden.files import write_text
from bridgegarden.report.tokens import stylesheet


@dataclass(frozen=True, kw_only=True)
class Section:
    """One part of a page."""

    anchor: str
    """Its id, for links."""

    title: str
    """Its heading."""

    body: Markup
    """HTML; whoever made it escaped what is not."""


@dataclass(frozen=True, kw_only=True)
class Page:
    """What a report says."""

    title: str
    """Heading and name of the tab."""

    kicker: str
    """A few words above the heading: what kind of report this is."""

    lead: Markup
    """The first paragraphs: what was done and what came out."""

    sections: tuple[Section, ...]
    """In order."""

    data: Mapping[str, Any]
    """For the page's script, see `tokens.token_data`."""

    footer: str
    """The last line."""

    def render(self) -> str:
        """The file's text."""
        script = _read("page.js")
        # With its hash in the policy, the page's own script is the only one that can ever run in it.
        digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
        policy = f"default-src 'none'; style-src 'unsafe-inline'; img-src data:; script-src 'sha256-{digest}'"
        return (
            _environment()
            .get_template("page.html")
            .render(
                page=self,
                policy=f"{policy}; base-uri 'none'; form-action 'none'",
                style=Markup(_read("page.css") + _read("chart.css") + stylesheet()),
                script=Markup(script),
                data=embedded_json(self.data),
            )
        )

    def write(self, path: Path) -> Path:
        """Write the page to `path`, whole or not at all.

        Raises:
            ValueError: a number is not finite.
            OSError: the folder cannot be written to.
        """
        return write_page(self.render(), path)


def embedded_json(tree: Mapping[str, Any]) -> Markup:
    """JSON that no HTML parser can mistake for markup, whatever strings are in it.

    Raises:
        ValueError: a number is not finite; JSON cannot say it.
    """
    text = json.dumps(tree, ensure_ascii=True, allow_nan=False, separators=(",", ":"))
    return Markup(text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026"))


def table(
    heads: Sequence[str], rows: Sequence[Sequence[str | Markup]], *, caption: str | Markup, wordy: bool = False
) -> Markup:
    """A table whose first column names the rows; it scrolls inside itself where the page is narrow.

    Cells are numbers, of one line each, or `wordy`: then lines are broken.
    """

    def line(tag: str, cells: Sequence[str | Markup]) -> Markup:
        first = Markup('<th scope="{}">{}</th>').format("col" if tag == "th" else "row", cells[0])
        scope = Markup(' scope="col"') if tag == "th" else ""
        rest = Markup("").join(Markup("<{0}{1}>{2}</{0}>").format(tag, scope, cell) for cell in cells[1:])
        return Markup("<tr>{}{}</tr>").format(first, rest)

    return Markup(
        '<div class="scroll" tabindex="0" role="region" aria-label="Table by {}"><table{}><thead>{}</thead>'
        '<tbody>{}</tbody></table></div><p class="caption">{}</p>'
    ).format(
        heads[0],
        Markup(' class="wordy"' if wordy else ""),
        line("th", heads),
        Markup("").join(line("td", row) for row in rows),
        caption,
    )


def terms(items: Mapping[str, str | Markup], *, small: bool = False) -> Markup:
    """Terms and what they are, side by side."""
    pairs = Markup("").join(Markup("<dt>{}</dt><dd>{}</dd>").format(term, text) for term, text in items.items())
    return Markup('<dl class="terms{}">{}</dl>').format(" small" if small else "", pairs)


def figure(chart: Markup, caption: str | Markup) -> Markup:
    """A chart and what to see in it."""
    return Markup("<figure>{}<figcaption>{}</figcaption></figure>").format(chart, caption)


def details(summary: str, body: Markup) -> Markup:
    """`body`, shown once `summary` is opened."""
    return Markup("<details><summary>{}</summary>{}</details>").format(summary, body)


def write_page(text: str, path: Path) -> Path:
    """Write `text` to `path` whole or not at all.

    Raises:
        OSError: the folder cannot be written to.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    write_text(path, text)
    return path


def _environment() -> Environment:
    loader = PackageLoader("bridgegarden.report", ".")
    return Environment(loader=loader, autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)


def _read(name: str) -> str:
    return files("bridgegarden.report").joinpath(name).read_text("utf-8")
