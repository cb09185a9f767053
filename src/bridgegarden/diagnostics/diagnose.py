"""A teacher and its students, from prompts to findings: what ``bridgegarden diagnose`` measures, on any policies."""

import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Protocol

import torch
from torch import Tensor

from bridgegarden.diagnostics.acceptance import DraftModel
from bridgegarden.diagnostics.advise import Advice, advise
from bridgegarden.diagnostics.attribution import Attribution, attribute
from bridgegarden.diagnostics.diagnosis import (
    Cost,
    CostlyDraw,
    DiagnosisSettings,
    Findings,
    Phase,
    Reader,
    ShownText,
    StudentDiagnosis,
    show_texts,
)
from bridgegarden.diagnostics.exposure_bias import ExposureBias, compare_students, paired_differences
from bridgegarden.diagnostics.fit_probe import FittedProbe, fit_probe, kind_of
from bridgegarden.diagnostics.kappa import (
    THRESHOLD_SHARE,
    Choice,
    KappaResult,
    KappaSettings,
    PositionKappa,
    measure_kappa,
)
from bridgegarden.diagnostics.label_losses import Answer, LabelLosses, answer_losses
from bridgegarden.diagnostics.rollout import RollOuts
from bridgegarden.errors import ConfigError
from bridgegarden.policy import Decoding, Policy

QUARTER = 0.25
"""Of a student's budget, for the attribution, and at most for kappa at the texts that are shown."""

EXCERPT = 24
"""Tokens shown before a costly one."""


class Watcher(Protocol):
    """Is told how the work goes."""

    def begin(self, phase: str, tokens: int) -> None:
        """A phase begins, which will take about so many tokens (at most, where texts are written)."""
        ...

    def advance(self, tokens: int) -> None:
        """So many tokens more are done."""
        ...


class Unwatched:
    """A :class:`Watcher` that nobody listens to."""

    def begin(self, phase: str, tokens: int) -> None:
        """Nothing."""

    def advance(self, tokens: int) -> None:
        """Nothing."""


class TalliedPolicy:
    """A :class:`~bridgegarden.policy.Policy` that does what `policy` does, and counts how much that is."""

    def __init__(self, policy: Policy, on_tokens: Callable[[int], None] = lambda count: None) -> None:
        """
        Args:
            policy: whose work is counted.
            on_tokens: called with the number of texts each time that texts grow by a token.
        """
        self.policy, self.on_tokens = policy, on_tokens
        self.read = 0
        """Tokens of prefixes that were read before anything was written."""
        self.stepped = 0
        """Tokens that were fed one at a time; each gives a next-token distribution."""

    @property
    def vocab_size(self) -> int:
        """Of `policy`."""
        return self.policy.vocab_size

    def start(self, prefixes: Sequence[Sequence[int]]) -> "TalliedDecoding":
        """As `policy` does."""
        decoding = self.policy.start(prefixes)
        self.read += sum(map(len, prefixes))
        return TalliedDecoding(decoding, self)


@dataclass(frozen=True)
class TalliedDecoding:
    """A :class:`~bridgegarden.policy.Decoding` that counts."""

    decoding: Decoding
    counter: TalliedPolicy

    def log_probs(self) -> Tensor:
        """As `decoding` gives them."""
        return self.decoding.log_probs()

    def ended(self) -> Tensor:
        """As `decoding` has it."""
        return self.decoding.ended()

    def extend(self, rows: Tensor, tokens: Tensor) -> "TalliedDecoding":
        """As `decoding` does, counted."""
        decoding = self.decoding.extend(rows, tokens)
        self.counter.stepped += len(rows)
        self.counter.on_tokens(len(rows))
        return TalliedDecoding(decoding, self.counter)


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
    label_losses: LabelLosses | None
    """What it and the teacher lose on the answers of the rows."""
    settings: DiagnosisSettings
    """How."""
    vocab_size: int
    """Real vocabulary, for the entropy rule."""
    reader: Reader
    """Ids to text."""
    work: "Work"
    """Times the parts."""
    kappa: KappaResult | None = None
    shown_kappa: KappaResult | None = None
    attribution: Attribution | None = None
    advice: Advice | None = None
    probe: FittedProbe | None = None
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
        with self.work.phase(f"{self.name}: a closer look", int(self.texts.lengths[numbers].sum())):
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
            draft_model=DraftModel.of(self.bias),
            label_losses=self.label_losses,
            kappa=self.kappa,
            shown_kappa=self.shown_kappa,
            attribution=self.attribution,
            advice=self.advice,
            probe=self.probe,
            texts=self.shown,
            largest=tuple(self._largest()),
        )

    def _attribute(self, budget: int) -> None:
        with self.work.phase(f"{self.name}: attribution", budget):
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
        with self.work.phase(f"{self.name}: kappa at the texts that are shown", budget):
            found = measure_kappa(
                self.teacher,
                self.student,
                self.texts.part(numbers),
                kappa_settings(self.settings, self.bias, budget, "random"),
                generator=generator_of(self.settings, "shown"),
            )
        self.shown_kappa = _renumbered(found, numbers, self.texts.samples)
        return found.generated_tokens

    def _measure_sample(self, budget: int) -> None:
        with self.work.phase(f"{self.name}: kappa", budget):
            self.kappa = measure_kappa(
                self.teacher,
                self.student,
                self.texts,
                kappa_settings(self.settings, self.bias, budget, self.settings.positions),
                generator=generator_of(self.settings, "kappa"),
            )
        self.advice = advise(self.kappa, vocab_size=self.vocab_size, generator=generator_of(self.settings, "advice"))
        self.probe = fit_probe(
            self.kappa,
            self.advice.scores,
            vocab_size=self.vocab_size,
            kind=lambda token: token_kind(self.reader, token, self.vocab_size),
            generator=generator_of(self.settings, "probe"),
        )

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


def diagnose(
    teacher: Policy,
    students: Mapping[str, Policy],
    prompts: Sequence[Sequence[int]],
    settings: DiagnosisSettings,
    *,
    vocab_size: int,
    reader: Reader,
    answers: Sequence[Answer] = (),
    watcher: Watcher | None = None,
) -> Findings:
    """Exposure bias of every student, and where it comes from; an interrupt keeps what is finished.

    Args:
        teacher: p.
        students: each q, by name.
        prompts: token ids, at least two prompts.
        settings: how.
        vocab_size: real vocabulary, for the entropy rule.
        reader: ids to text.
        answers: of rows that have some, to hold teacher and students against; up to the longest text allowed.
        watcher: is told how it goes.

    Raises:
        ConfigError: the budget is too small (the message says what is enough).
        DataError: fewer than two prompts, different vocabularies, or a loss that is not finite.
        KeyboardInterrupt: interrupted before exposure bias was measured, so that there is nothing to keep.
    """
    work = Work(watcher or Unwatched())
    # Whatever is followed, the teacher reads it too: its tokens are the measure of progress.
    lead = TalliedPolicy(teacher, work.watcher.advance)
    others = {name: TalliedPolicy(student) for name, student in students.items()}
    biases = _biases(lead, others, prompts, settings, work)
    for name, bias in biases.items():
        check_budget(name, bias, settings)
    losses = _losses(lead, others, answers, settings, work)
    examinations = [
        Examination(
            teacher=lead,
            student=student,
            name=name,
            bias=biases[name],
            label_losses=losses.get(name),
            settings=settings,
            vocab_size=vocab_size,
            reader=reader,
            work=work,
        )
        for name, student in others.items()
    ]
    interrupted = _run(examinations, work)
    found = tuple(examination.found() for examination in examinations)
    return Findings(
        students=found,
        differences=paired_differences(biases),
        tokens=token_texts(found, reader),
        cost=work.cost(biases, found, [lead, *others.values()]),
        interrupted=interrupted,
    )


def _biases(
    teacher: Policy,
    students: Mapping[str, Policy],
    prompts: Sequence[Sequence[int]],
    settings: DiagnosisSettings,
    work: "Work",
) -> dict[str, ExposureBias]:
    most = len(prompts) * settings.samples * settings.max_new_tokens * (1 + len(students))
    with work.phase("texts of the teacher and the students", most):
        return compare_students(
            teacher, students, prompts, settings.sampling, generator=generator_of(settings, "texts")
        )


def _losses(
    teacher: Policy,
    students: Mapping[str, Policy],
    answers: Sequence[Answer],
    settings: DiagnosisSettings,
    work: "Work",
) -> dict[str, LabelLosses]:
    if not answers:
        return {}
    with work.phase("answers of the rows", sum(min(len(one.tokens), settings.max_new_tokens) for one in answers)):
        return answer_losses(teacher, students, answers, longest=settings.max_new_tokens, max_rows=settings.max_rows)


def _run(examinations: Sequence[Examination], work: "Work") -> str | None:
    """Everything, or the name of the phase that was interrupted."""
    try:
        for examination in examinations:
            examination.run()
    except KeyboardInterrupt:
        running = work.running
        for examination in examinations:
            # A look is cheap, and shows what was measured before.
            if examination.shown_kappa is not None and not examination.shown:
                examination.look()
        return running
    return None


def token_kind(reader: Reader, token: int, vocab_size: int) -> str:
    """The letter of :data:`~bridgegarden.objective.kappa_probe.KINDS`; *other* outside the vocabulary."""
    return kind_of(reader.text([token]), special=reader.is_special(token)) if token < vocab_size else "o"


def token_texts(students: Sequence[StudentDiagnosis], reader: Reader) -> dict[int, str]:
    """The text of every token id that stands somewhere in the results of `students`."""
    return {index: reader.token(index).text for index in sorted(set().union(*map(_named, students)))}


def _named(student: StudentDiagnosis) -> set[int]:
    """Token ids that stand somewhere in the results of a student."""
    named: set[int] = set()
    for result in (student.kappa, student.shown_kappa):
        for place in () if result is None else result.positions:
            named |= {place.token, *(action.token for action in place.actions)}
    for text in student.texts:
        for token in text.tokens:
            named |= {token.token, *(likely.token for likely in (*token.teacher_top, *token.student_top))}
    if student.attribution is not None:
        for draw in student.attribution.largest:
            named |= {draw.student_token, draw.teacher_token}
    return named


@dataclass
class Work:
    """Phases, and what they take."""

    watcher: Watcher
    phases: list[Phase] = field(default_factory=list)
    running: str = ""

    @contextmanager
    def phase(self, name: str, tokens: int) -> Iterator[None]:
        """One of them, which takes about so many tokens."""
        self.running = name
        self.watcher.begin(name, tokens)
        began = time.perf_counter()
        try:
            yield
        finally:
            self.phases.append(Phase(name=name, seconds=time.perf_counter() - began))

    def cost(
        self,
        biases: Mapping[str, ExposureBias],
        students: Sequence[StudentDiagnosis],
        policies: Sequence[TalliedPolicy],
    ) -> Cost:
        """What all of them took."""
        texts = [next(iter(biases.values())).teacher_texts, *(bias.student_texts for bias in biases.values())]
        return Cost(
            written=sum(int(one.lengths.sum()) for one in texts) + sum(one.generated_tokens for one in students),
            distributions=sum(policy.stepped for policy in policies),
            read=sum(policy.read for policy in policies),
            phases=tuple(self.phases),
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
    one = kappa_settings(settings, bias, 1, settings.positions)
    position = one.continuations * (int(texts.lengths.max()) - 1)
    weights = texts.total_variation[0]
    left = (texts.lengths[:, None] - 1 - torch.arange(texts.horizon)).clamp(min=0)
    mass = weights.sum(-1).clamp(min=torch.finfo(weights.dtype).tiny)
    draw = max(2 * float(((weights * left).sum(-1) / mass).sum()) + 1, len(weights))
    return math.ceil(max(position / (1 - QUARTER if _shows_nothing_apart(settings) else QUARTER), draw / QUARTER)) + 4


def generator_of(settings: DiagnosisSettings, part: str) -> torch.Generator:
    """Each part of the work has random numbers of its own, the same ones for every student."""
    number = ("texts", "differences", "attribution", "shown", "kappa", "advice", "probe").index(part)
    return torch.Generator().manual_seed(10 * settings.seed + number)


def kappa_settings(settings: DiagnosisSettings, bias: ExposureBias, budget: int, choose: Choice) -> KappaSettings:
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
