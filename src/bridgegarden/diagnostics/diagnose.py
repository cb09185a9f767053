"""A teacher and its students, from prompts to findings: what ``bridgegarden diagnose`` measures, on any policies."""

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Protocol

from bridgegarden.diagnostics.diagnosis import Cost, DiagnosisSettings, Findings, Phase, StudentDiagnosis
from bridgegarden.diagnostics.examine import Examination, check_budget, generator_of
from bridgegarden.diagnostics.exposure_bias import ExposureBias, compare_students, paired_differences
from bridgegarden.diagnostics.shown import Reader
from bridgegarden.diagnostics.tally import TalliedPolicy, Tally
from bridgegarden.policy import Policy


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


def diagnose(
    teacher: Policy,
    students: Mapping[str, Policy],
    prompts: Sequence[Sequence[int]],
    settings: DiagnosisSettings,
    *,
    vocab_size: int,
    reader: Reader,
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
        watcher: is told how it goes.

    Raises:
        ConfigError: the budget is too small (the message says what is enough).
        DataError: fewer than two prompts, different vocabularies, or a loss that is not finite.
        KeyboardInterrupt: interrupted before exposure bias was measured, so that there is nothing to keep.
    """
    work = _Work(watcher or Unwatched())
    # Whatever is followed, the teacher reads it too: its tokens are the measure of progress.
    lead = TalliedPolicy(teacher, work.tally(work.watcher.advance))
    others = {name: TalliedPolicy(student, work.tally()) for name, student in students.items()}
    biases = _biases(lead, others, prompts, settings, work)
    for name, bias in biases.items():
        check_budget(name, bias, settings)
    examinations = [
        Examination(
            teacher=lead,
            student=student,
            name=name,
            bias=biases[name],
            settings=settings,
            vocab_size=vocab_size,
            reader=reader,
            clock=work,
        )
        for name, student in others.items()
    ]
    interrupted = _run(examinations, work)
    found = tuple(examination.found() for examination in examinations)
    return Findings(
        students=found,
        differences=paired_differences(biases),
        tokens={index: reader.token(index).text for index in sorted(set().union(*map(_named, found)))},
        cost=work.cost(biases, found),
        interrupted=interrupted,
    )


def _biases(
    teacher: Policy,
    students: Mapping[str, Policy],
    prompts: Sequence[Sequence[int]],
    settings: DiagnosisSettings,
    work: "_Work",
) -> dict[str, ExposureBias]:
    most = len(prompts) * settings.samples * settings.max_new_tokens * (1 + len(students))
    with work.phase("texts of the teacher and the students", most):
        return compare_students(
            teacher,
            students,
            prompts,
            samples=settings.samples,
            temperature=settings.temperature,
            max_new_tokens=settings.max_new_tokens,
            generator=generator_of(settings, "texts"),
            divergence=settings.loss,
            max_rows=settings.max_rows,
        )


def _run(examinations: Sequence[Examination], work: "_Work") -> str | None:
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


@dataclass
class _Work:
    """Phases, and what they take; a :class:`~bridgegarden.diagnostics.examine.Clock`."""

    watcher: Watcher
    phases: list[Phase] = field(default_factory=list)
    tallies: list[Tally] = field(default_factory=list)
    running: str = ""

    def tally(self, on_tokens: Callable[[int], None] = lambda count: None) -> Tally:
        self.tallies.append(Tally(on_tokens))
        return self.tallies[-1]

    @contextmanager
    def phase(self, name: str, tokens: int) -> Iterator[None]:
        self.running = name
        self.watcher.begin(name, tokens)
        began = time.perf_counter()
        try:
            yield
        finally:
            self.phases.append(Phase(name=name, seconds=time.perf_counter() - began))

    def cost(self, biases: Mapping[str, ExposureBias], students: Sequence[StudentDiagnosis]) -> Cost:
        texts = [next(iter(biases.values())).teacher_texts, *(bias.student_texts for bias in biases.values())]
        return Cost(
            written=sum(int(one.lengths.sum()) for one in texts) + sum(one.generated_tokens for one in students),
            distributions=sum(tally.stepped for tally in self.tallies),
            read=sum(tally.read for tally in self.tallies),
            phases=tuple(self.phases),
        )


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
