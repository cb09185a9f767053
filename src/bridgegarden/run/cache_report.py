"""``bridgegarden cache info`` beside its numbers: what a cache holds as one HTML page (``--html``), and how much a
student of another family learns of it (``--student MODEL``)."""

import dataclasses
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from markupsafe import Markup

from bridgegarden.errors import ConfigError
from bridgegarden.recipe import Recipe, StudentSection
from bridgegarden.recipe.teacher import TranslationSection
from bridgegarden.report.charts import WIDE, Bar, bar_chart, responsive
from bridgegarden.report.marks import Axis
from bridgegarden.report.page import Page, Section, details, figure, terms
from bridgegarden.run.output import check_writable
from bridgegarden.run.pair import recipe_pair, tokenizer_pair
from bridgegarden.run.quiet import quiet_libraries
from bridgegarden.run.recipe_teacher import cache_folder
from bridgegarden.run.rows import rules_of, training_rows
from bridgegarden.run.teachers import teacher_of
from bridgegarden.table import Table, number
from bridgegarden.teacher.cache.info import (
    BRIDGE_LIKE,
    CacheInfo,
    Histogram,
    cache_info,
)
from bridgegarden.teacher.cache.spec import short
from bridgegarden.terminal import Display, counted

if TYPE_CHECKING:
    from rich.console import Console

    from bridgegarden.preflight import Pair

PARTS = {
    "ids": "token ids",
    "codes": "log-probabilities",
    "log_tail": "tail mass",
    "tail_powers": "tail power sums",
    "argmax": "likeliest token",
    "entropy": "entropy",
    "max_logp": "likeliest log p",
    "label_logp": "log p of the data",
    "span": "span of log p",
}
"""Fields of a record, in words."""
_WAYS = {
    "answers": "It was asked on a server, and what it answered is kept",
    "scored": "It read them on a server",
    "imported": "Another program asked it, whose file was imported",
}
FRAME, SAVED = "keys and frame", "saved by compression"
GLOSSARY = {
    "Bridge-like": (
        f"The teacher's likeliest token has a probability above {BRIDGE_LIKE}: the teacher is sure, as it is where one "
        "token is right. Whether a slip there spoils what follows, the teacher alone does not say."
    ),
    "captured mass": "Probability of the tokens that are kept. The rest is one cell, the tail, with its exact mass.",
    "confidence": "max p, the probability of the likeliest token. The confidence rule's soft weight is 1 − max p.",
    "entropy": "Of the teacher's whole next-token distribution, in nats: 0 is sure, 0.69 a toss-up between two tokens.",
    "position": "A supervised token: one that is trained on.",
}
ROWS, POSITIONS, BATCH = 500, 20_000, 8
"""Rows, from the first, and the student's tokens in them, that are looked at; rows at a time."""


def write_cache_report(folder: Path, path: Path) -> CacheInfo:
    """Write the page about the cache in `folder` to `path`, whole or not at all; returns its numbers.

    Raises:
        ConfigError: there is no cache, or one of another version.
        DataError: a shard is missing or is not as long as it was.
        OSError: the page cannot be written.
    """
    check_writable(path.parent, "--html")
    info = cache_info(folder)
    cache_page(folder, info).write(path)
    return info


def cache_page(folder: Path, info: CacheInfo) -> Page:
    """What the page says."""
    return Page(
        title="What the teacher said",
        kicker=f"bridgegarden cache info, {folder}",
        lead=_lead(info),
        sections=(
            Section(anchor="entropy", title="Entropy of the teacher", body=_entropy(info)),
            Section(anchor="confidence", title="Confidence", body=_confidence(info)),
            Section(anchor="mass", title="Captured mass", body=_mass(info)),
            Section(anchor="bytes", title="Bytes per token", body=_bytes(info)),
            Section(anchor="words", title="The words used here", body=terms(GLOSSARY)),
            Section(anchor="made", title="What the cache is", body=_made(info)),
        ),
        data={"layers": [], "tokens": []},
        footer="Made by bridgegarden. This file needs no network and holds all of its data.",
    )


def _lead(info: CacheInfo) -> Markup:
    asked = "It was asked once" if info.spec.served is None else _WAYS[info.spec.served.source]
    return Markup("<p>{} about {} rows with {} positions. {}, {} bytes each, {} in all.</p><p>{}</p>").format(
        info.spec.teacher,
        f"{info.documents:,}",
        f"{info.positions:,}",
        asked,
        number(info.bytes_per_position),
        _size(info.bytes),
        f"{_percent(info.bridge_like)} of the positions are Bridge-like: the teacher's likeliest token has a "
        f"probability above {BRIDGE_LIKE} there. On average its confidence is {number(info.confidence)}, "
        f"its entropy {number(info.entropy)} nats; the kept tokens hold {info.captured_mass:.4f} of the probability. "
        f"Its own loss on these rows is {'not known' if info.loss is None else info.loss}.",
    )


def _entropy(info: CacheInfo) -> Markup:
    bound = (
        " No more is known than its likeliest tokens: what is counted here is the least that the entropy can be, "
        f"{number(info.served.entropy_at_most)} nats on average the most."
        if info.served
        else ""
    )
    caption = (
        "Share of the positions by the teacher's entropy. At the top it knows what comes next, at the bottom many "
        f"tokens would do.{bound}"
    )
    return _histogram(info.entropies, "entropy of the teacher", " nats", caption)


def _confidence(info: CacheInfo) -> Markup:
    caption = (
        f"Share of the positions by max p. Above {BRIDGE_LIKE} a position counts as Bridge-like: "
        f"{_percent(info.bridge_like)} do. A hard label says nearly all there."
    )
    return _histogram(info.confidences, "probability of the likeliest token", "", caption, end="1")


def _mass(info: CacheInfo) -> Markup:
    spec = info.spec
    if info.masses is None:
        what = "Draws from the teacher are kept" if spec.support.kind == "sampled" else "Every token is kept"
        return Markup("<p>{}: there is no tail.</p>").format(what)
    caption = (
        f"Share of the positions by the probability that {spec.support} of {spec.vocab_size:,} tokens hold: "
        f"{info.captured_mass:.4f} on average, {info.least_captured_mass:.4f} at least. What they lack is not lost, "
        "but one cell: the student learns how much lies outside, and not where."
    )
    rows = [[f"{row.k:,}", f"{row.mass:.4f}", f"{row.low:.4f}", f"{row.bytes:,}"] for row in info.kept]
    heads = ["tokens kept", "mass, on average", "in 19 positions of 20 at least", "bytes a position"]
    table = Table(columns=heads, rows=rows, note="What fewer tokens would hold, and take.").html()
    histogram = _histogram(info.masses, "probability of the kept tokens", "", caption, end="1")
    return histogram + details("By number of tokens", table)


def _histogram(counts: Histogram, name: str, unit: str, caption: str, *, end: str | None = None) -> Markup:
    """The chart and its table; `end` is where the last bin ends, None if it is open."""
    starts = [f"{edge:g}" for edge in counts.edges]
    names = [f"{low} to {high}" for low, high in pairwise(starts)]
    names.append(f"from {starts[-1]}" if end is None else f"{starts[-1]} to {end}")
    total = max(sum(counts.bridge_like) + sum(counts.other), 1)
    bars, rows = [], []
    for label, sure, other in zip(names, counts.bridge_like, counts.other, strict=True):
        share = _percent((sure + other) / total)
        about = f"{label}{unit}\n{share} of the positions: {sure + other:,}\nof them Bridge-like: {sure:,}"
        bars.append(Bar(name=label, filled=sure / total, hollow=other / total, label=share, about=about))
        rows.append([label, f"{sure:,}", f"{other:,}", share])
    draw = partial(
        _draw, bars, axis=Axis(label="share of the positions →", percent=True, most=1), about=f"{name}{unit}"
    )
    heads = [f"{name}{',' if unit else ''}{unit}", "Bridge-like", "others", "share"]
    body = Table(columns=heads, rows=rows, note=f"Positions by {name}.").html()
    return figure(responsive(partial(draw, parts=("Bridge-like", "others"))), caption) + details("The numbers", body)


def _bytes(info: CacheInfo) -> Markup:
    parts: dict[str, float] = {PARTS[name]: float(size) for name, size in info.record_bytes.items()}
    rest = info.bytes_per_position - sum(parts.values())
    if info.positions:
        parts[FRAME if rest >= 0 else SAVED] = rest
    bars = [
        Bar(name=name, filled=size, label=number(size), about=f"{name}\n{number(size)} bytes a position")
        for name, size in parts.items()
        if size >= 0
    ]
    draw = partial(_draw, bars, axis=Axis(label="bytes a position →"), about="Bytes of a position by part")
    rows = [[name, number(size)] for name, size in (*parts.items(), ("together", info.bytes_per_position))]
    compressed = " before compression" if rest < 0 else ""
    caption = (
        f"What a position takes{compressed}: {number(info.bytes_per_position)} bytes on disk in all. More tokens, or "
        "more bits a log-probability, make the first two longer; the rest stays."
    )
    body = Table(columns=["part", "bytes"], rows=rows, note="Mean bytes a position.").html()
    return figure(responsive(draw), caption) + details("The numbers", body)


def _draw(bars: list[Bar], size: int = WIDE, *, axis: Axis, about: str, parts: tuple[str, str] | None = None) -> Markup:
    return bar_chart(bars, axis=axis, about=about, parts=parts, size=size)


def _made(info: CacheInfo) -> Markup:
    spec = info.spec
    facts: Mapping[str, str] = {
        "teacher": spec.teacher,
        "revision": spec.revision or "none: a folder, or a server",
        "weights": short(spec.weights) if spec.weights else "not known",
        "type": spec.dtype,
        "mixed of": ", ".join(map(str, spec.mix or ())) or "one model",
        "its prompt": "the rows' own" if spec.prompt is None else str(spec.prompt),
        "tokenizer": f"{short(spec.tokenizer)}, {spec.vocab_size:,} tokens",
        "chat template": short(spec.chat_template),
        "rows": f"{info.documents:,} of at most {spec.max_length or 'any number of'} tokens",
        "shards": f"{info.shards}, {_size(info.bytes)}",
        "kept": f"{spec.support}, {spec.bits} bits a log-probability",
        "tail powers": ", ".join(f"{g:g}" for g in spec.stored_exponents) or "none needed",
    }
    return terms(facts, small=True)


def _percent(share: float) -> str:
    return "< 0.1 %" if 0 < share < 5e-4 else f"{share:.1%}".replace("%", " %")


def _size(count: int) -> str:
    for unit, size in (("GB", 10**9), ("MB", 10**6), ("kB", 10**3)):
        if count >= size:
            return f"{number(count / size)} {unit}"
    return f"{count} bytes"


@dataclass(frozen=True, kw_only=True)
class KnownShares:
    """What of a teacher's signals a student can be taught."""

    student: str
    rows: int
    """That were looked at, from the first."""
    positions: int
    """The student's, in them."""
    threshold: float
    tolerance: float
    shares: dict[str, float] | None
    """Means over positions, as training logs them; None where the student has the teacher's tokenizer, so that all is
    known."""

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        return dataclasses.asdict(self)

    def __str__(self) -> str:
        """For a person."""
        if self.shares is None:
            return f"for a student  {self.student}: it has the teacher's tokenizer, so that nothing is translated"
        known = [f"{value:.1%}" for value in self.shares.values()]
        looked_at = f"{counted(self.positions, 'token')} of the first {counted(self.rows, 'training row')}"
        return "\n".join(
            [
                f"for a student  {self.student}: {looked_at}, threshold {self.threshold:g}, tolerance "
                f"{self.tolerance:g}",
                f"  positions    {known[0]} aligned, {known[1]} conditional, {known[2]} hard labels only",
                f"  probability  {known[3]} exact, {known[4]} approximate, {known[5]} open, {known[6]} unknown",
            ]
        )


def known_shares(recipe: Recipe, student: str, console: "Console") -> KnownShares:
    """What the model `student` could be taught from the cache of `recipe`, over its first rows.

    No weights are read.

    Raises:
        ConfigError: there is no cache, or nothing but it is to be had of the teacher.
        ModelError: `student` cannot be used with the teacher, or the cache is of another tokenizer.
        DataError: a row cannot be used, or is not in the cache.
    """
    from bridgegarden.teacher.cache.reader import TeacherCache
    from bridgegarden.teacher.translated import SHARES, TranslatedCache

    folder = cache_folder(recipe)
    recipe = dataclasses.replace(recipe, student=StudentSection(model=student, dtype=recipe.student.dtype))
    with quiet_libraries(interactive=sys.stderr.isatty()):
        pair = recipe_pair(recipe, weights=False, translates=True)
        section = recipe.teacher.translation or TranslationSection()
        if pair.teacher_tokens is None:
            raise ConfigError(
                "cache info: --student needs the teacher's tokenizer, and nothing but a cache is to be had of "
                f"{recipe.teacher.model}. Name it (--set teacher.tokenizer=NAME: a folder, or a name on the hub)."
            )
        if not pair.translates:
            TeacherCache(folder).check_tokenizer(pair.read_by, recipe.training.arguments["max_length"], pair.whose)
            return KnownShares(student=student, rows=0, positions=0, shares=None, **dataclasses.asdict(section))
        pair = dataclasses.replace(pair, tokens=pair.tokens or tokenizer_pair(pair, section))
        assert pair.tokens is not None
        cache = TranslatedCache(TeacherCache(folder), pair.tokens)
        cache.check_student(cache.width, recipe.training.arguments["max_length"])
        sums, rows = torch.zeros(len(SHARES), dtype=torch.float64), 0
        with Display(console, "positions") as display:
            for batch in _batches(recipe, pair):
                sums, rows = sums + cache.collate(batch)["facts"].sum(0, dtype=torch.float64), rows + len(batch)
                positions = int(sums[:3].sum())
                display.update(min(positions, POSITIONS), total=POSITIONS)
                if positions >= POSITIONS:
                    break
    positions = int(sums[:3].sum())
    shares = dict(zip(SHARES, (sums / max(positions, 1)).tolist(), strict=True))
    return KnownShares(student=student, rows=rows, positions=positions, shares=shares, **dataclasses.asdict(section))


def _batches(recipe: Recipe, pair: "Pair") -> Iterator[list[dict[str, Any]]]:
    """The first training rows in the tokens of both, some at a time."""
    rules = rules_of(recipe, pair.tokens)
    for part in teacher_of(recipe).tokenised(training_rows(recipe.data, ROWS), pair, rules):
        rows = [dict(row) for row in part]
        yield from (rows[start : start + BATCH] for start in range(0, len(rows), BATCH))
