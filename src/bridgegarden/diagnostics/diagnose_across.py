"""What ``bridgegarden diagnose`` measures where teacher and students have different tokenizers.

Exposure bias, what both lose on the answers of the rows, and kappa where both agree on boundaries. The rest has one of
the two go on from any next token of the other's (where exposure bias comes from, which rule suits), or holds one's next
token against the other's (draft models, texts token by token): a student's token may end inside a teacher's, and the
probability of what begins there is known in part alone.
"""

from collections.abc import Mapping, Sequence

from bridgegarden.diagnostics.diagnose import Watcher, Work, generator_of, kappa_settings, token_texts
from bridgegarden.diagnostics.diagnosis import Cost, DiagnosisSettings, Findings, Reader, StudentDiagnosis
from bridgegarden.diagnostics.exposure_bias import paired_differences
from bridgegarden.diagnostics.kappa_across import KappaAcross, measure_kappa_across
from bridgegarden.diagnostics.label_losses import Answer, LabelLosses, losses_across
from bridgegarden.diagnostics.two_tokenizers import PairReader, Prompt, TwoTokenizers, compare_across


def diagnose_across(
    readers: Mapping[str, PairReader],
    prompts: Sequence[Prompt],
    settings: DiagnosisSettings,
    *,
    reader: Reader,
    answers: Sequence[tuple[Answer, Answer]] = (),
    watcher: Watcher,
) -> Findings:
    """Exposure bias of every student, on the same texts of the teacher, both losses on the answers of the rows, and
    kappa where both agree; an interrupt keeps what is finished.

    Args:
        readers: each student with the teacher, by name; all of one vocabulary.
        prompts: as both read them, at least two.
        settings: how; `shown` has no part in it.
        reader: the students' ids to text.
        answers: of rows that have some, as the teacher reads them and as the students do.
        watcher: is told how it goes.

    Raises:
        ConfigError: a setting out of range, or a budget that is too small for one place (the message says what is
            enough).
        DataError: fewer than two prompts, no text that both can read, or a loss that is not finite.
        KeyboardInterrupt: interrupted before exposure bias was measured, so that there is nothing to keep.
    """
    work = Work(watcher)
    found = _biases(readers, prompts, settings, work)
    losses: Mapping[str, LabelLosses] = {}
    kappas: dict[str, KappaAcross] = {}
    interrupted = None
    try:
        losses = _losses(readers, answers, settings, work)
        for name, one in found.items():
            with work.phase(f"{name}: kappa where both agree", settings.budget):
                kappas[name] = measure_kappa_across(
                    readers[name],
                    one.student_texts,
                    one.bias.student_texts,
                    kappa_settings(settings, one.bias, settings.budget, settings.positions),
                    generator=generator_of(settings, "kappa"),
                    advance=watcher.advance,
                )
    except KeyboardInterrupt:
        interrupted = work.running
    students = tuple(_student(name, one, losses.get(name), kappas.get(name)) for name, one in found.items())
    return Findings(
        students=students,
        differences=paired_differences({name: one.bias for name, one in found.items()}),
        tokens=token_texts(students, reader),
        cost=_cost(found, students, work),
        interrupted=interrupted,
    )


def _biases(
    readers: Mapping[str, PairReader], prompts: Sequence[Prompt], settings: DiagnosisSettings, work: Work
) -> dict[str, TwoTokenizers]:
    most = len(prompts) * settings.samples * settings.max_new_tokens * (1 + len(readers))
    with work.phase("texts of the teacher and the students", most):
        return compare_across(readers, prompts, settings.sampling, generator=generator_of(settings, "texts"))


def _losses(
    readers: Mapping[str, PairReader],
    answers: Sequence[tuple[Answer, Answer]],
    settings: DiagnosisSettings,
    work: Work,
) -> Mapping[str, LabelLosses]:
    if not answers:
        return {}
    students = {name: reader.student for name, reader in readers.items()}
    teacher, longest = next(iter(readers.values())).teacher, settings.max_new_tokens
    with work.phase("answers of the rows", sum(len(own.tokens) for _, own in answers)):
        return losses_across(teacher, students, answers, longest=longest, max_rows=settings.max_rows)


def _student(
    name: str, found: TwoTokenizers, losses: LabelLosses | None, kappa: KappaAcross | None
) -> StudentDiagnosis:
    return StudentDiagnosis(
        name=name,
        exposure_bias=found.bias,
        draft_model=None,
        label_losses=losses,
        kappa=None if kappa is None else kappa.kappa,
        shown_kappa=None,
        attribution=None,
        advice=None,
        probe=None,
        texts=(),
        largest=(),
        known={"teacher_texts": found.on_teacher, "student_texts": found.on_student},
        agreement=None if kappa is None else kappa.agreement,
    )


def _cost(found: Mapping[str, TwoTokenizers], students: Sequence[StudentDiagnosis], work: Work) -> Cost:
    biases = [one.bias for one in found.values()]
    count = sum(int(texts.lengths.sum()) for texts in (biases[0].teacher_texts, *(b.student_texts for b in biases)))
    generated = sum(student.generated_tokens for student in students)
    written = count + generated
    # Every token is written by one of the two and read by both.
    return Cost(written=written, distributions=3 * written, read=0, phases=tuple(work.phases))
