"""Exact processes as the teacher."""

import math

import pytest
import torch

from bridgegarden.errors import DataError
from bridgegarden.exact.process import sample, trace
from bridgegarden.exact.tasks.arithmetic import ArithmeticWorld
from bridgegarden.objective.alignment import SupervisedPositions
from bridgegarden.objective.hybrid import HybridObjective, dense_student_support
from bridgegarden.teacher.protocol import ProcessTeacher, Teacher

WORLD = ArithmeticWorld(modulus=5, steps=2, wordings=3)
IGNORE = -100


def written(count: int = 4):
    """Rows ``(prompt, answer, process)`` of different lengths."""
    generator = torch.Generator().manual_seed(0)
    rows = []
    for number, problem in enumerate(WORLD.problems(count, 0)):
        prompt = [2, *WORLD.encode(WORLD.prompt(problem, generator)), 4, 3]
        answer = sample(WORLD.process(problem), generator)
        rows.append((prompt, answer[: len(answer) - number], WORLD.process(problem)))
    return rows


def batch(rows):
    """As the trainer's collator lays them out: padded on the right."""
    width = max(len(prompt) + len(answer) for prompt, answer, _ in rows)
    ids = torch.zeros(len(rows), width, dtype=torch.long)
    labels = torch.full_like(ids, IGNORE)
    for index, (prompt, answer, _) in enumerate(rows):
        ids[index, : len(prompt) + len(answer)] = torch.tensor(prompt + answer)
        labels[index, len(prompt) : len(prompt) + len(answer)] = torch.tensor(answer)
    return ids, labels


def teacher_of(rows):
    return ProcessTeacher({tuple(prompt): process for prompt, _, process in rows})


def signal_of(teacher, ids, labels, **options):
    positions = SupervisedPositions.from_labels(labels)
    options = {"vocab_size": len(WORLD.vocabulary), "exponents": (), **options}
    return teacher.at(positions, {"input_ids": ids}, **options)


def test_the_signal_is_the_process_at_every_supervised_position():
    rows = written()
    signal = signal_of(teacher_of(rows), *batch(rows))
    expected = torch.cat([torch.stack([p.log_probs(s) for s in trace(p, answer)]) for _, answer, p in rows])
    assert signal.ids is None
    assert signal.logp.dtype == torch.float32
    torch.testing.assert_close(signal.logp, expected.float(), rtol=1e-6, atol=1e-6)
    assert torch.equal(signal.argmax, expected.argmax(-1))
    entropy = -torch.where(expected > -math.inf, expected.exp() * expected, 0.0).sum(-1)
    torch.testing.assert_close(signal.entropy, entropy.float(), rtol=1e-6, atol=1e-6)


def test_a_row_is_known_by_what_it_says_wherever_it_stands():
    rows = written()
    teacher = teacher_of(rows)
    whole = signal_of(teacher, *batch(rows)).logp.split([len(answer) for _, answer, _ in rows])
    turned = signal_of(teacher, *batch(rows[::-1])).logp.split([len(answer) for _, answer, _ in rows[::-1]])
    for one, other in zip(whole, turned[::-1], strict=True):
        assert torch.equal(one, other)


def test_another_wrong_value_in_the_same_answer_is_followed():
    prompt, answer, process = written(1)[0]
    place = next(i for i, token in enumerate(answer) if token in WORLD.value_ids)
    other = next(value for value in WORLD.value_ids if value != answer[place])
    slipped = [*answer[:place], other, *answer[place + 1 :]]
    teacher = teacher_of([(prompt, answer, process)])
    right = signal_of(teacher, *batch([(prompt, answer, process)])).logp
    wrong = signal_of(teacher, *batch([(prompt, slipped, process)])).logp
    assert torch.equal(right[: place + 1], wrong[: place + 1])
    assert not torch.equal(right[place + 1 :], wrong[place + 1 :])


def test_mass_beyond_the_shared_vocabulary_is_the_tail():
    rows = written(1)
    size = WORLD.value_ids.stop
    signal = signal_of(teacher_of(rows), *batch(rows), vocab_size=size, exponents=(0.5,))
    torch.testing.assert_close(signal.cells().exp().sum(-1), torch.ones(len(signal.entropy)))
    assert set(signal.tail_powers) == {0.5}
    assert signal.tail_powers[0.5].dtype == torch.float32


@pytest.mark.parametrize("preset", ["soft", "confidence", "entropy", "risk_guided"])
def test_the_soft_loss_of_the_process_itself_is_zero(preset):
    rows = written()
    ids, labels = batch(rows)
    signal = signal_of(teacher_of(rows), ids, labels)
    objective = HybridObjective.preset(preset)
    logits = signal.logp.clamp(min=-80.0)
    positions = SupervisedPositions.from_labels(labels)
    student = dense_student_support(logits, logits.shape[1], objective.hard_ids(signal, positions.target))
    assert objective(signal, student, positions.target).soft.abs().max() < 1e-6


def test_it_is_a_teacher():
    teacher = teacher_of(written(1))
    assert isinstance(teacher, Teacher)
    assert teacher.width == len(WORLD.vocabulary)
    assert ProcessTeacher({(1,): written(1)[0][2]}, name="arithmetic").name == "arithmetic"


def test_a_prompt_without_a_process_is_refused():
    rows = written(2)
    with pytest.raises(DataError, match=r"row 1 of the batch begins with .* tokens that are the prompt of none"):
        signal_of(teacher_of(rows[:1]), *batch(rows))


def test_padding_on_the_left_is_refused():
    ids, labels = batch(written())
    with pytest.raises(DataError, match="padded on the left"):
        signal_of(teacher_of(written()), ids.roll(1, 1), labels.roll(1, 1))


def test_two_answers_in_one_row_are_refused():
    ids, labels = batch(written(1))
    labels[0, len(written(1)[0][0]) + 3] = IGNORE
    with pytest.raises(DataError, match=r"supervised tokens of row 0 .* do not stand side by side"):
        signal_of(teacher_of(written(1)), ids, labels)


def test_tokens_after_the_end_are_refused():
    prompt, answer, process = written(1)[0]
    rows = [(prompt, [*answer, 0], process)]
    with pytest.raises(DataError, match="the text had already ended"):
        signal_of(teacher_of(rows), *batch(rows))


def test_processes_over_different_vocabularies_are_refused():
    other = ArithmeticWorld(modulus=7, steps=2, wordings=3)
    processes = {(1,): written(1)[0][2], (2,): other.process(other.problems(1, 0)[0])}
    with pytest.raises(DataError, match="one vocabulary, got sizes"):
        ProcessTeacher(processes)
    with pytest.raises(DataError, match="one vocabulary, got sizes"):
        ProcessTeacher({})
