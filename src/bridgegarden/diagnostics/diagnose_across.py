"""What ``bridgegarden diagnose`` measures where teacher and students have different tokenizers.

Exposure bias, and what both lose on the answers of the rows. The rest has one of the two go on from the other's next
token (kappa, and with it where exposure bias comes from and which rule suits), or hold one's next token against the
other's (draft models, texts token by token): a student's token may end inside a teacher's, and the probability of what
begins there is known in part alone.
"""

import time
from collections.abc import Mapping, Sequence

from bridgegarden.diagnostics.diagnose import Watcher, generator_of
from bridgegarden.diagnostics.diagnosis import Cost, DiagnosisSettings, Findings, Phase, StudentDiagnosis
from bridgegarden.diagnostics.exposure_bias import paired_differences
from bridgegarden.diagnostics.label_losses import Answer, losses_across
from bridgegarden.diagnostics.rollout import Sampling
from bridgegarden.diagnostics.two_tokenizers import PairReader, Prompt, compare_across


def diagnose_across(
    readers: Mapping[str, PairReader],
    prompts: Sequence[Prompt],
    settings: DiagnosisSettings,
    *,
    answers: Sequence[tuple[Answer, Answer]] = (),
    watcher: Watcher,
) -> Findings:
    """Exposure bias of every student, on the same texts of the teacher, and both losses on the answers of the rows.

    Args:
        readers: each student with the teacher, by name; all of one vocabulary.
        prompts: as both read them, at least two.
        settings: how; budget, positions, rounds, top and shown have no part in it.
        answers: of rows that have some, as the teacher reads them and as the students do.
        watcher: is told how it goes.

    Raises:
        ConfigError: a setting out of range.
        DataError: fewer than two prompts, no text that both can read, or a loss that is not finite.
        KeyboardInterrupt: interrupted, so that there is nothing to keep.
    """
    sampling = Sampling(
        samples=settings.samples,
        temperature=settings.temperature,
        max_new_tokens=settings.max_new_tokens,
        divergence=settings.loss,
        max_rows=settings.max_rows,
    )
    began = time.perf_counter()
    most = len(prompts) * settings.samples * settings.max_new_tokens * (1 + len(readers))
    texts = "texts of the teacher and the students"
    watcher.begin(texts, most)
    found = compare_across(readers, prompts, sampling, generator=generator_of(settings, "texts"))
    phases = [Phase(name=texts, seconds=time.perf_counter() - began)]
    lead = next(iter(readers.values()))
    losses = {}
    if answers:
        began = time.perf_counter()
        watcher.begin("answers of the rows", sum(len(own.tokens) for _, own in answers))
        students = {name: reader.student for name, reader in readers.items()}
        longest = settings.max_new_tokens
        losses = losses_across(lead.teacher, students, answers, longest=longest, max_rows=settings.max_rows)
        phases.append(Phase(name="answers of the rows", seconds=time.perf_counter() - began))
    biases = {name: one.bias for name, one in found.items()}
    written = [next(iter(biases.values())).teacher_texts, *(bias.student_texts for bias in biases.values())]
    count = sum(int(one.lengths.sum()) for one in written)
    return Findings(
        students=tuple(
            StudentDiagnosis(
                name=name,
                exposure_bias=one.bias,
                draft_model=None,
                label_losses=losses.get(name),
                kappa=None,
                shown_kappa=None,
                attribution=None,
                advice=None,
                probe=None,
                texts=(),
                largest=(),
                known={"teacher_texts": one.on_teacher, "student_texts": one.on_student},
            )
            for name, one in found.items()
        ),
        differences=paired_differences(biases),
        tokens={},
        cost=Cost(written=count, distributions=2 * count, read=0, phases=tuple(phases)),
        interrupted=None,
    )
