"""Training beside several teachers in memory, one for each row: loss and gradient from the definition, on the rows'
answers and on the student's own."""

import pytest
import torch

from bridgegarden.errors import ConfigError, DataError
from bridgegarden.objective.hybrid import HybridObjective
from bridgegarden.teacher.by_row import TeachersByRow
from bridgegarden.teacher.live import LiveTeacher
from bridgegarden.training.on_policy import OnPolicy
from tests.tiny import VOCABULARY, tiny_model
from tests.training.conftest import token_rows
from tests.training.test_caches_by_row import ROUTE, SEEDS, model, routed_rows


def by_row(*, top_k=None, seeds=SEEDS):
    return TeachersByRow([LiveTeacher(model(seed)) for seed in seeds], top_k=top_k)


def student():
    return tiny_model("llama", VOCABULARY, seed=2)


def reference(rows, of, *, asked=None):
    """The mean of KL(teacher of the row || student) over all supervised tokens, and the student's gradient, in float64.

    Args:
        rows: token ids and labels.
        of: number of each row's teacher.
        asked: what the teachers read in place of the rows.
    """
    exact, teachers = student().double(), [model(seed).double() for seed in SEEDS]
    total, count = torch.zeros((), dtype=torch.float64), 0
    for index, (ids, labels) in enumerate(rows):
        q = exact(torch.tensor([ids])).logits[0].log_softmax(-1)
        theirs = (ids, labels) if asked is None else asked[index]
        with torch.no_grad():
            p = teachers[of[index]](torch.tensor([theirs[0]])).logits[0].softmax(-1)
        ours, there = ([t for t, label in enumerate(read[1][1:]) if label != -100] for read in ((ids, labels), theirs))
        for t, u in zip(ours, there, strict=True):
            total = total + (p[u] * (p[u].log() - q[t])).sum()
            count += 1
    (total / count).backward()
    return (total / count).detach(), {name: parameter.grad for name, parameter in exact.named_parameters()}


def assert_is(trainer, loss, want):
    loss.backward()
    torch.testing.assert_close(loss.detach().double(), want[0], rtol=1e-4, atol=1e-6)
    for name, parameter in trainer.model.named_parameters():
        torch.testing.assert_close(parameter.grad.double(), want[1][name], rtol=2e-3, atol=2e-5)


@pytest.mark.parametrize("packing", [False, True])
def test_loss_and_gradient_are_those_of_each_row_with_its_own_teacher(make_trainer, packing):
    more = {"packing": True, "max_length": 64} if packing else {}
    trainer = make_trainer(
        HybridObjective.preset("soft"), student=student(), teacher=by_row(), train=routed_rows(), **more
    )
    batch = trainer.data_collator([trainer.train_dataset[i] for i in range(len(trainer.train_dataset))])
    rows = [(row["input_ids"], row["labels"]) for row in routed_rows()]
    assert_is(trainer, trainer.compute_loss(trainer.model, batch), reference(rows, ROUTE))
    # Each token was read once, whosever it is.
    assert trainer.cost.teacher_tokens == trainer.cost.student_tokens == sum(len(ids) for ids, _ in rows)


def test_a_prompt_of_the_teachers_own_is_read_by_the_rows_teacher(make_trainer):
    rows = routed_rows()
    longer = [[5, 6, 7, *ids] for ids in rows["input_ids"]]
    labels = [[-100] * 3 + row for row in rows["labels"]]
    train = rows.add_column("teacher_ids", longer).add_column("teacher_labels", labels)
    trainer = make_trainer(HybridObjective.preset("soft"), student=student(), teacher=by_row(), train=train)
    batch = trainer.data_collator([trainer.train_dataset[i] for i in range(len(train))])
    own = [(row["input_ids"], row["labels"]) for row in rows]
    want = reference(own, ROUTE, asked=list(zip(longer, labels, strict=True)))
    assert_is(trainer, trainer.compute_loss(trainer.model, batch), want)


@pytest.mark.parametrize("top_k", [None, 5])
def test_in_chunks_and_of_top_tokens_it_says_what_each_teacher_says_alone(make_trainer, top_k):
    trainer = make_trainer(student=student(), teacher=by_row(top_k=top_k), train=routed_rows())
    batch = trainer.data_collator([trainer.train_dataset[i] for i in range(4)])
    from bridgegarden.objective.alignment import SupervisedPositions

    positions = SupervisedPositions.from_labels(batch["labels"])
    said = {"vocab_size": VOCABULARY, "exponents": (0.5,)}
    ours = trainer.teacher.at(positions, batch, **said)
    alone = [LiveTeacher(model(seed), top_k=top_k).at(positions, batch, **said) for seed in SEEDS]
    owner = batch["teacher_number"][positions.row, positions.column]
    for index in (slice(0, 3), slice(3, 7), slice(2, len(positions)), slice(0, 0)):
        signal, theirs = ours[index], [one[index] for one in alone]
        for field in ("logp", "entropy", "argmax", "label_logp", "log_tail"):
            if getattr(signal, field) is None:
                assert top_k is None
                continue
            both = torch.stack([getattr(one, field) for one in theirs])
            want = both[owner[index], torch.arange(len(owner[index]))]
            torch.testing.assert_close(getattr(signal, field), want, rtol=1e-4, atol=1e-5)


def test_what_the_student_writes_of_a_row_is_judged_by_the_rows_own_teacher(make_trainer):
    trainer = make_trainer(
        HybridObjective.preset("soft"),
        student=student(),
        teacher=by_row(),
        train=routed_rows(),
        on_policy=OnPolicy(lmbda=1.0, max_new_tokens=6),
        per_device_train_batch_size=5,
    )
    batches = [trainer.data_collator([trainer.train_dataset[i] for i in part]) for part in (range(5), range(5, 10))]
    written = trainer._writer.answer(batches, 0, trainer._log.costs)
    for batch, before in zip(written, batches, strict=True):
        assert not torch.equal(batch["labels"], before["labels"])
        lengths = batch["attention_mask"].sum(1).tolist()
        rows = [
            (ids[:n].tolist(), labels[:n].tolist())
            for ids, labels, n in zip(batch["input_ids"], batch["labels"], lengths, strict=True)
        ]
        of = [ROUTE[row - 100] for row in batch["row"][:, 0].tolist()]
        trainer.model.zero_grad()
        assert_is(trainer, trainer.compute_loss(trainer.model, batch), reference(rows, of))


def test_a_batch_of_one_teachers_rows_asks_that_one_alone(make_trainer):
    trainer = make_trainer(student=student(), teacher=by_row(), train=routed_rows())
    asked = []
    for number, one in enumerate(trainer.teacher.models):
        one.register_forward_pre_hook(lambda *_, number=number: asked.append(number))
    own = [index for index, number in enumerate(ROUTE) if number == 1][:2]
    trainer.compute_loss(trainer.model, trainer.data_collator([trainer.train_dataset[index] for index in own]))
    assert asked == [1]


def test_rows_that_do_not_say_whose_they_are_are_refused(make_trainer):
    with pytest.raises(DataError, match=r"^train data, row 0: 'teacher_number' is missing; with 2 teachers every row"):
        make_trainer(teacher=by_row(), train=token_rows(4))
    with pytest.raises(DataError, match=r"^train data, row 1: 'teacher_number' is 2; .* from 0 to 1"):
        make_trainer(teacher=by_row(), train=routed_rows((0, 2)))
    with pytest.raises(ConfigError, match=r"^teachers of rows: got none"):
        TeachersByRow([])
