"""One HTML file that needs nothing else: styles, script and data inside, nothing fetched, every text escaped."""

import base64
import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from importlib.resources import files
from pathlib import Path
from types import MappingProxyType
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from bridgegarden.files import write_text
from bridgegarden.report.tokens import stylesheet

GLOSSARY: Mapping[str, str] = MappingProxyType(
    {
        "hard label": "One token as the target: the teacher's likeliest (argmax), or the one in the data.",
        "soft label": "The teacher's whole next-token distribution as the target.",
        "hybrid": "Both, mixed at each position by a soft weight λ from 0 (hard) to 1 (soft).",
        "soft weight λ": (
            "How much of the training loss at a place comes from the teacher's whole distribution, 0 to 1; the rest "
            "from one token. Static: the same everywhere. Confidence: 1 − max p. Entropy: H(p) / log V. Curriculum: "
            "grows during training. Risk-guided: static, and the hard term weighs more where the student's own values "
            "call it risky."
        ),
        "on-policy": (
            "The student writes the answers that it is trained on, and the teacher judges them token by token."
        ),
        "Bridge": (
            "A position that decides what the text means from here on, such as a digit. A slip spoils what follows."
        ),
        "Garden": ("A position where many words would do. A student that keeps the teacher's variety may vary here."),
        "Bridge, Garden": (
            "A place whose 95 % interval of κ(s) lies above the threshold is a Bridge: its token must be exact. One "
            "whose interval lies below is a Garden: it may vary. The rest is undecided; a larger budget decides more."
        ),
        "KL": "Kullback-Leibler divergence from teacher to student, in nats: 0 where both expect the same.",
        "loss l(s)": (
            "How far the student's next-token distribution is from the teacher's at one place: KL(teacher ‖ student) "
            "unless another divergence was asked for. Always at temperature 1, in nats."
        ),
        "L_dT": "KL from teacher to student, summed over texts that the teacher wrote.",
        "L_dθ": (
            "The same over the student's own texts: what its user meets. Likeness to the teacher, not rightness. "
            "L_dθ − L_dT is the exposure bias."
        ),
        "exposure bias": (
            "A student learns on its teacher's texts and is used on its own. Its exposure bias is the loss summed over "
            "texts it wrote itself, minus the loss summed over the teacher's texts from the same prompts, in nats a "
            "text: what drifting costs. It can be negative, where a student's own texts are easier for it; a low one "
            "alone is no merit."
        ),
        "ExAccErr": (
            "Exposure bias up to a length, in per cent of what the student loses on the teacher's texts up to there "
            "(Arora et al., 2022). 0 %: no drift."
        ),
        "kappa": (
            "κ: what one token costs later, in nats: the student's loss summed over what follows it, when the teacher "
            "goes on writing, minus the same for a token that the teacher draws. Positive: that token leads to where "
            "the student fits badly. κ(s), of a place, is the sum over the tokens that could stand there."
        ),
        "accepted": (
            "In speculative decoding a small model drafts and the large one takes a drafted token a with probability "
            "min(1, p(a) / q(a)): on average Σ min(p, q), which is 1 minus the distance (total variation) of the two "
            "distributions."
        ),
        "tokens a pass": (
            "How many tokens of a text one forward pass of the teacher gives when it checks a draft: those it accepts, "
            "and one of its own."
        ),
        "contribution": (
            "What a place adds to exposure bias: kappa of each token that could come next, weighted with how likely "
            "the student is to take it. Summed over all places of the student's texts it is the exposure bias, exactly."
        ),
        "error of a role": (
            "The part of L_dθ at its positions on the teacher's answers, and the drift that they cause."
        ),
        "off script": "Answers that leave every text the world can produce.",
        "variety kept": "Entropy of the student over entropy of the teacher, at the Gardens of the teacher's answers.",
        "entropy kept": (
            "The student's entropy over the teacher's, on held-out rows. Below 100 %: surer than its teacher, by less "
            "variety or fewer doubts; above: unlearned."
        ),
        "surprise": "Minus the log-probability of the token that was written, in nats: 0 is expected, 2.3 one in ten.",
        "sampled, greedy": (
            "Drawn from the model's distribution at temperature 1, or the likeliest token at each place."
        ),
        "FLOPs": (
            "Multiplications and additions of matrix products, estimated from the models' configurations and the "
            "tokens that they read and wrote. They say little about how well a machine is used: writing token by token "
            "takes few of them and much time."
        ),
    }
)
"""Every word that a page explains, said once."""


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

    data: Mapping[str, Any] = field(default_factory=dict)
    """For the page's script, see `tokens.heatmap_data`."""

    footer: str = "Made by bridgegarden. This file needs no network and holds all of its data."
    """The last line."""

    def render(self) -> str:
        """The file's text."""
        script = own_file("tokens.js") + own_file("page.js")
        return (
            _environment()
            .get_template("page.html")
            .render(
                page=self,
                policy=policy(script),
                style=Markup(own_file("page.css") + own_file("chart.css") + stylesheet()),
                script=Markup(script),
                data=embedded_json(dict(self.data)),
            )
        )

    def write(self, path: Path) -> Path:
        """Write the page to `path`, whole or not at all.

        Raises:
            ValueError: a number is not finite.
            OSError: the folder cannot be written to.
        """
        text = self.render()
        path.parent.mkdir(parents=True, exist_ok=True)
        write_text(path, text)
        return path


def policy(script: str, *more: str) -> str:
    """What a page may do: with its hash here, `script` is the only one that can ever run in it, and nothing is fetched.

    Args:
        script: all of it.
        more: further directives.
    """
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    directives = ("default-src 'none'", "style-src 'unsafe-inline'", "img-src data:", f"script-src 'sha256-{digest}'")
    return "; ".join((*directives, "base-uri 'none'", "form-action 'none'", *more))


def embedded_json(tree: Mapping[str, Any]) -> Markup:
    """JSON that no HTML parser can mistake for markup, whatever strings are in it.

    Raises:
        ValueError: a number is not finite; JSON cannot say it.
    """
    text = json.dumps(tree, ensure_ascii=True, allow_nan=False, separators=(",", ":"))
    return Markup(text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026"))


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


def findings(said: Iterable[str | Markup]) -> Markup:
    """What was found, the most important first."""
    items = Markup("").join(Markup("<li>{}</li>").format(one) for one in said)
    return Markup('<ul class="findings">{}</ul>').format(items)


def words_section(*names: str) -> Section:
    """What `names`, keys of `GLOSSARY`, mean."""
    return Section(anchor="words", title="The words used here", body=terms({name: GLOSSARY[name] for name in names}))


def made_section(
    facts: Mapping[str, str | Markup],
    *,
    command: str,
    versions: Mapping[str, str],
    started: str,
    more: str | Markup = "",
) -> Section:
    """How a result came about: the command, `facts`, versions and time; then `more`."""
    listed = {
        "command": Markup("<code>{}</code>").format(command),
        **facts,
        "versions": ", ".join(f"{name} {version}" for name, version in versions.items()),
        "started": started,
    }
    return Section(anchor="made", title="How it was made", body=terms(listed, small=True) + more)


def _environment() -> Environment:
    loader = PackageLoader("bridgegarden.report", ".")
    return Environment(loader=loader, autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)


def own_file(name: str) -> str:
    """A file of this folder, as text."""
    return files("bridgegarden.report").joinpath(name).read_text("utf-8")
