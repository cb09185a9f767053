"""Training where every row has one of several teachers: loss and gradient from the definition, packed or not."""

import pytest
import torch
from datasets import Dataset

from bridgegarden.errors import ConfigError, DataError
from bridgegarden.objective.hybrid import HybridObjective
from bridgegarden.teacher.cache.reader import CachesByRow, TeacherCache
from bridgegarden.teacher.cache.spec import Support
from tests.teacher.cache.conftest import build, cache_spec
from tests.tiny import VOCABULARY, tiny_model
from tests.training.conftest import token_rows

SEEDS = (1, 5)
ROUTE = (0, 1, 1, 0, 1, 0, 0, 1, 0, 1)


def model(seed):
    """Less uniform than a random model is, so that one is not taken for the other."""
    made = tiny_model("llama", VOCABULARY, hidden_size=48, seed=seed)
    with torch.no_grad():
        made.lm_head.weight *= 8
    return made


def routed_rows(routes=ROUTE):
    return token_rows(len(routes)).add_column("teacher_number", list(routes))


def own_rows(number):
    return routed_rows().filter(lambda row: row["teacher_number"] == number)


@pytest.fixture(scope="module")
def caches(tmp_path_factory):
    """Whole distributions of two teachers, each about the rows of its own alone."""
    folder, spec = (
        tmp_path_factory.mktemp("caches"),
        cache_spec(Support(k=VOCABULARY), bits=16, teacher_width=VOCABULARY),
    )
    return CachesByRow(
        [
            TeacherCache(build(folder / str(number), spec, own_rows(number), model=model(seed)))
            for number, seed in enumerate(SEEDS)
        ]
    )


@pytest.mark.parametrize("packing", [False, True])
def test_loss_and_gradient_are_those_of_each_row_with_its_own_teacher(make_trainer, caches, packing):
    more = {"packing": True, "max_length": 64} if packing else {}
    student = tiny_model("llama", VOCABULARY, seed=2)
    trainer = make_trainer(HybridObjective.preset("soft"), student=student, teacher=caches, train=routed_rows(), **more)
    examples = [trainer.train_dataset[i] for i in range(len(trainer.train_dataset))]
    if packing:
        assert any(len(set(example["teacher_number"])) == 2 for example in examples)
    loss = trainer.compute_loss(trainer.model, trainer.data_collator(examples))
    loss.backward()
    exact = tiny_model("llama", VOCABULARY, seed=2).double()
    teachers = [model(seed).double() for seed in SEEDS]
    want, count = torch.zeros((), dtype=torch.float64), 0
    for row in routed_rows():
        ids = torch.tensor([row["input_ids"]])
        q = exact(ids).logits[0].log_softmax(-1)
        with torch.no_grad():
            p = teachers[row["teacher_number"]](ids).logits[0].softmax(-1)
        for t, label in enumerate(row["labels"][1:]):
            if label != -100:
                want = want + (p[t] * (p[t].log() - q[t])).sum()
                count += 1
    want = want / count
    want.backward()
    torch.testing.assert_close(loss.double(), want.detach(), rtol=1e-4, atol=1e-6)
    gradients = {name: parameter.grad for name, parameter in exact.named_parameters()}
    for name, parameter in trainer.model.named_parameters():
        torch.testing.assert_close(parameter.grad.double(), gradients[name], rtol=2e-3, atol=2e-5)


def test_a_row_that_does_not_say_whose_it_is_or_that_its_teacher_did_not_read_is_refused(make_trainer, caches):
    with pytest.raises(DataError, match=r"^row 100: 'teacher_number' is missing; with 2 teachers every row"):
        make_trainer(teacher=caches, train=token_rows(4))
    with pytest.raises(DataError, match=r"^row 100: 'teacher_number' is 2; .* from 0 to 1"):
        make_trainer(teacher=caches, train=routed_rows((2, 0)))
    with pytest.raises(DataError, match=r"teacher cache .*/1: train data: 1 of 1 rows are not in it \(row 100\)"):
        make_trainer(teacher=caches, train=routed_rows((1,)))
    some = Dataset.from_list([{**row, "teacher_number": n} for row, n in zip(token_rows(2), (0, None), strict=True)])
    with pytest.raises(DataError, match=r"^train: some rows have 'teacher_number' and others do not"):
        make_trainer(teacher=caches, train=some)
    with pytest.raises(DataError, match=r"^train, row 0: 'teacher_number' is -1; expected a number from 0"):
        make_trainer(teacher=caches, train=routed_rows((-1,)))


def test_caches_that_do_not_keep_the_same_are_refused_with_both(caches, tmp_path):
    fewer = TeacherCache(build(tmp_path / "fewer", cache_spec(Support(k=4)), own_rows(0)))
    with pytest.raises(ConfigError, match=r"fewer: one holds .*259.*, the other .*4.*; a batch needs the same of both"):
        CachesByRow([caches.caches[0], fewer])
    sums = TeacherCache(build(tmp_path / "sums", cache_spec(Support(k=4), exponents=(0.5,)), own_rows(0)))
    with pytest.raises(ConfigError, match=r"one holds tail sums of exponents 0.1, 0.5, 2.0, the other .* 0.5; a batch"):
        CachesByRow([fewer, sums])
    with pytest.raises(ConfigError, match=r"^teacher caches: got none"):
        CachesByRow([])


def test_workers_of_a_data_loader_read_the_same_signals(make_trainer, caches):
    rows = routed_rows()
    losses = []
    for workers in (0, 2):
        trainer = make_trainer(teacher=caches, train=rows, dataloader_num_workers=workers, max_steps=2)
        trainer.train()
        losses.append([entry["loss"] for entry in trainer.state.log_history if "loss" in entry])
    assert losses[0] == losses[1]
