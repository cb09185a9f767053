"""Draw the badges at the head of README from what pyproject.toml says.

    python docs/figures/draw_badges.py

writes ``badge-python.svg`` and ``badge-license.svg`` beside this file.
"""

import tomllib
from pathlib import Path

from markupsafe import Markup

from bridgegarden.report.marks import width

HERE = Path(__file__).parent
PAD, HIGH = 8, 20
"""Pixels beside each word, and of a badge."""


def badge(name: str, value: str) -> str:
    """The text of an SVG file: a name on grey, its value on blue."""
    left, right = (round(0.9 * width(words)) + 2 * PAD for words in (name, value))
    svg = Markup(
        '<svg xmlns="http://www.w3.org/2000/svg" width="{all}" height="{high}" viewBox="0 0 {all} {high}" role="img" '
        'aria-label="{name}: {value}"><title>{name}: {value}</title><clipPath id="round"><rect width="{all}" '
        'height="{high}" rx="4"/></clipPath><g clip-path="url(#round)"><rect width="{left}" height="{high}" '
        'fill="#56616b"/><rect x="{left}" width="{right}" height="{high}" fill="#1f4e79"/></g><g fill="#ffffff" '
        'text-anchor="middle" font-family="system-ui, -apple-system, Segoe UI, sans-serif" font-size="11.5">'
        '<text x="{first}" y="14">{name}</text><text x="{second}" y="14">{value}</text></g></svg>\n'
    )
    middles = {"first": left / 2, "second": left + right / 2}
    return str(svg.format(all=left + right, high=HIGH, left=left, right=right, name=name, value=value, **middles))


def badges() -> dict[str, str]:
    """Every badge by the name of its file."""
    project = tomllib.loads(HERE.parents[1].joinpath("pyproject.toml").read_text(encoding="utf-8"))["project"]
    return {
        "badge-python.svg": badge("python", project["requires-python"].replace(">=", "≥ ")),
        "badge-license.svg": badge("license", project["license"]),
    }


if __name__ == "__main__":
    for file, text in badges().items():
        HERE.joinpath(file).write_text(text, encoding="utf-8")
