"""One student after its texts were written: attribution, kappa, advice and a closer look, within a budget.

The budget is split before anything is generated: a quarter for the attribution, up to a quarter for kappa at the texts
that are shown (as many positions of them as it buys, at random), and all that is left for kappa at positions of all
texts. So nothing that is measured depends on what was measured before it.
"""

import math
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from typing import Protocol

import torch

from bridgegarden.diagnostics.advise import Advice, advise
from bridgegarden.diagnostics.attribution import Attribution, attribute
from bridgegarden.diagnostics.diagnosis import CostlyDraw, DiagnosisSettings, StudentDiagnosis
from bridgegarden.diagnostics.exposure_bias import ExposureBias
from bridgegarden.diagnostics.kappa import (
    THRESHOLD_SHARE,
    Choice,
    KappaResult,
    KappaSettings,
    PositionKappa,
    measure_kappa,
)
from bridgegarden.diagnostics.rollout import RollOuts
from bridgegarden.diagnostics.shown import Reader, ShownText, part_of, show_texts
from bridgegarden.errors import ConfigError
from bridgegarden.policy import Policy

QUARTER = 0.25
"""Of a student's budget, for the attribution, and at most for kappa at the texts that are shown."""
EXCERPT = 24
"""Tokens shown before a costly one."""


class Clock(Protocol):
    """Times a phase, which will take about so many tokens."""

    def phase(self, name: str, tokens: int) -> AbstractContextManager[None]:
        """A context manager."""
        ...


@dataclass(kw_only=True)
class Examination:
    """A student and what is finished of it: an interrupt loses the part under way and no other."""

    teacher: Policy
    """p."""
    student: Policy
    """q."""
    name: str
    """What the student is called."""
    bias: ExposureBias
    """Its exposure bias, with its texts."""
    settings: DiagnosisSettings
    """How."""
    vocab_size: int
    """Real vocabulary, for the entropy rule."""
    reader: Reader
    """Ids to text."""
    clock: Clock
    """Times the parts."""
    kappa: KappaResult | None = None
    shown_kappa: KappaResult | None = None
    attribution: Attribution | None = None
    advice: Advice | None = None
    shown: tuple[ShownText, ...] = ()

    @property
    def texts(self) -> RollOuts:
        """What the student wrote."""
        return self.bias.student_texts

    def run(self) -> None:
        """All of it.

        Raises:
            ConfigError: the budget is too small (the message says what is enough).
        """
        apart = int(QUARTER * self.settings.budget)
        self._attribute(apart)
        left = self.settings.budget - apart
        if not _shows_nothing_apart(self.settings):
            left -= self._measure_shown(apart)
        self._measure_sample(left)
        self.look()

    def look(self) -> None:
        """The texts that are shown, with kappa wherever it has been measured."""
        measured = [place for one in (self.kappa, self.shown_kappa) if one is not None for place in one.positions]
        numbers = self._numbers()
        with self.clock.phase(f"{self.name}: a closer look", int(self.texts.lengths[numbers].sum())):
            self.shown = show_texts(
                self.teacher,
                self.student,
                self.texts,
                numbers,
                measured,
                vocab_size=self.vocab_size,
                reader=self.reader,
            )

    def found(self) -> StudentDiagnosis:
        """What is finished."""
        return StudentDiagnosis(
            name=self.name,
            exposure_bias=self.bias,
            kappa=self.kappa,
            shown_kappa=self.shown_kappa,
            attribution=self.attribution,
            advice=self.advice,
            texts=self.shown,
            largest=tuple(self._largest()),
        )

    def _attribute(self, budget: int) -> None:
        with self.clock.phase(f"{self.name}: attribution", budget):
            self.attribution = attribute(
                self.teacher,
                self.student,
                self.bias,
                budget=budget,
                generator=generator_of(self.settings, "attribution"),
                divergence=self.settings.loss,
                max_rows=self.settings.max_rows,
            )

    def _measure_shown(self, budget: int) -> int:
        """kappa at the texts that are shown; the tokens it took."""
        numbers = self._numbers()
        with self.clock.phase(f"{self.name}: kappa at the texts that are shown", budget):
            found = measure_kappa(
                self.teacher,
                self.student,
                part_of(self.texts, numbers),
                _kappa_settings(self.settings, self.bias, budget, "random"),
                generator=generator_of(self.settings, "shown"),
            )
        self.shown_kappa = _renumbered(found, numbers, self.texts.samples)
        return found.generated_tokens

    def _measure_sample(self, budget: int) -> None:
        with self.clock.phase(f"{self.name}: kappa", budget):
            self.kappa = measure_kappa(
                self.teacher,
                self.student,
                self.texts,
                _kappa_settings(self.settings, self.bias, budget, self.settings.positions),
                generator=generator_of(self.settings, "kappa"),
            )
        self.advice = advise(self.kappa, vocab_size=self.vocab_size, generator=generator_of(self.settings, "advice"))

    def _numbers(self) -> list[int]:
        """The texts to show: those that kappa in order begins with, else the first one of each of the first prompts."""
        if self.settings.positions == "all":
            return list(range(min(self.settings.shown, len(self.texts.tokens))))
        return [number * self.texts.samples for number in range(min(self.settings.shown, len(self.texts.prompts)))]

    def _largest(self) -> Iterator[CostlyDraw]:
        for draw in () if self.attribution is None else self.attribution.largest:
            written = self.texts.tokens[draw.text]
            yield CostlyDraw(
                text=draw.text,
                position=draw.position,
                before=self.reader.text(written[max(draw.position - EXCERPT, 0) : draw.position]),
                student_token=self.reader.token(draw.student_token),
                teacher_token=self.reader.token(draw.teacher_token),
                cost=draw.cost,
            )


def check_budget(name: str, bias: ExposureBias, settings: DiagnosisSettings) -> None:
    """Refuse a budget that does not even buy one position, now that the lengths of the texts are known.

    Raises:
        ConfigError: it is too small; the message says what is enough.
    """
    enough = least_budget(bias, settings)
    if settings.budget < enough:
        raise ConfigError(
            f"budget: {settings.budget:,} generated tokens are too few for {name!r}, whose texts have up to "
            f"{int(bias.student_texts.lengths.max())} tokens; the least is {enough:,}, and ten times that tells more. "
            "Raise it (--budget), or take shorter texts (--max-new-tokens) or fewer (--limit, --samples)."
        )


def least_budget(bias: ExposureBias, settings: DiagnosisSettings) -> int:
    """Tokens that are enough for one position of the longest text, and for one draw of the attribution."""
    texts = bias.student_texts
    one = _kappa_settings(settings, bias, 1, settings.positions)
    position = one.continuations * (int(texts.lengths.max()) - 1)
    weights = texts.total_variation[0]
    left = (texts.lengths[:, None] - 1 - torch.arange(texts.horizon)).clamp(min=0)
    mass = weights.sum(-1).clamp(min=torch.finfo(weights.dtype).tiny)
    draw = max(2 * float(((weights * left).sum(-1) / mass).sum()) + 1, len(weights))
    return math.ceil(max(position / (1 - QUARTER if _shows_nothing_apart(settings) else QUARTER), draw / QUARTER)) + 4


def generator_of(settings: DiagnosisSettings, part: str) -> torch.Generator:
    """Each part of the work has random numbers of its own, the same ones for every student."""
    number = ("texts", "differences", "attribution", "shown", "kappa", "advice").index(part)
    return torch.Generator().manual_seed(10 * settings.seed + number)


def _kappa_settings(settings: DiagnosisSettings, bias: ExposureBias, budget: int, choose: Choice) -> KappaSettings:
    """One threshold for all positions of a student, so that a Bridge is the same thing everywhere."""
    return KappaSettings(
        threshold=THRESHOLD_SHARE * bias.student_texts.losses[0].sum(-1).mean().item(),
        budget=budget,
        rounds=settings.rounds,
        top=settings.top,
        choose=choose,
        temperature=settings.temperature,
        divergence=settings.loss,
        max_rows=settings.max_rows,
    )


def _shows_nothing_apart(settings: DiagnosisSettings) -> bool:
    """With all positions in order, kappa is measured where texts are shown in any case."""
    return settings.positions == "all" or settings.shown == 0


def _renumbered(result: KappaResult, numbers: Sequence[int], samples: int) -> KappaResult:
    """Texts and prompts under the numbers that they have among all."""
    places: list[PositionKappa] = []
    for place in result.positions:
        number = numbers[place.text]
        places.append(replace(place, text=number, prompt=number // samples))
    return replace(result, positions=tuple(places))
