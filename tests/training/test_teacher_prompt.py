"""A teacher with a prompt of its own: the loss at every token of the answer, from the definition, live and cached."""

import pytest
import torch
from datasets import Dataset

from bridgegarden.data import RowRules, TeacherPrompt, tokenise
from bridgegarden.errors import ConfigError, DataError
from bridgegarden.objective.hybrid import HybridObjective
from bridgegarden.teacher.cache.reader import TeacherCache
from bridgegarden.teacher.cache.spec import CacheSpec, Support
from bridgegarden.teacher.cache.writer import OneTeacher, build_cache
from bridgegarden.training.on_policy import OnPolicy
from tests.tiny import VOCABULARY, tiny_model, tiny_tokenizer
from tests.training.test_batches import learned_positions

PROMPT = TeacherPrompt(prefix="The answer is {solution}. ", suffix=" ?")
ROWS = [
    {"prompt": "1 + 1 =", "completion": " 2", "solution": "two"},
    {"prompt": "6 * 7 =", "completion": " forty-two", "solution": "42, as everybody knows"},
    {"prompt": "10 - 3 =", "completion": " 7 (seven)", "solution": "7"},
    {"prompt": "10 - 3 =", "completion": " 7 (seven)", "solution": "seven"},
    {"prompt": "a longer question: 3 * 3 =", "completion": " 9", "solution": ""},
]
KL = HybridObjective.preset("soft")


def prompted(prompt=PROMPT):
    return tokenise(Dataset.from_list(ROWS), tiny_tokenizer(), RowRules(teacher_prompt=prompt))


def teacher(vocab_size=VOCABULARY):
    return tiny_model("llama", vocab_size, hidden_size=48, seed=1)


def built(folder, rows, *, k):
    """A cache of what the teacher says of `rows`."""
    spec = CacheSpec(
        teacher="tiny",
        revision=None,
        weights=None,
        dtype="float32",
        tokenizer=_print("tokenizer"),
        chat_template=_print("chat_template"),
        max_length=256,
        vocab_size=VOCABULARY,
        teacher_width=VOCABULARY,
        support=Support(k=k),
        exponents=(),
        bits=16,
        prompt=PROMPT,
    )
    build_cache(folder, OneTeacher(teacher, spec, batch_tokens=200), [rows], spec)
    return TeacherCache(folder)


def _print(which):
    from bridgegarden.data import chat_template_fingerprint, tokenizer_fingerprint

    return {"tokenizer": tokenizer_fingerprint, "chat_template": chat_template_fingerprint}[which](tiny_tokenizer())


def by_definition(student, other, rows):
    """Mean over all tokens of all answers of KL(teacher(prompt', y<t) || student(prompt, y<t)); float64, row by row."""
    tokenizer = tiny_tokenizer()
    total, count = torch.zeros((), dtype=torch.float64), 0
    for row in rows:
        answer = tokenizer(row["completion"], add_special_tokens=False)["input_ids"] + [tokenizer.eos_token_id]
        prompt = tokenizer(row["prompt"], add_special_tokens=False)["input_ids"]
        told = f"The answer is {row['solution']}. {row['prompt']} ?"
        asked = tokenizer(told, add_special_tokens=False)["input_ids"]
        logq = student(torch.tensor([prompt + answer])).logits[0, :, :VOCABULARY].log_softmax(-1)
        logp = other(torch.tensor([asked + answer])).logits[0].detach().log_softmax(-1)
        for t in range(len(answer)):
            p, q = logp[len(asked) - 1 + t], logq[len(prompt) - 1 + t]
            total = total + (p.exp() * (p - q)).sum()
            count += 1
    return total / count


def student():
    return tiny_model("llama", VOCABULARY, seed=2)


def loss_and_gradient(trainer):
    batch = trainer.data_collator([trainer.train_dataset[i] for i in range(len(trainer.train_dataset))])
    loss = trainer.compute_loss(trainer.model, batch)
    trainer.model.zero_grad()
    loss.backward()
    return loss.detach(), {name: p.grad.clone() for name, p in trainer.model.named_parameters()}


@pytest.mark.parametrize("source", ["live", "padding-free", "cached"])
def test_loss_and_gradient_are_those_of_the_definition(make_trainer, tmp_path, source):
    rows = prompted()
    given = built(tmp_path / "cache", rows, k=VOCABULARY) if source == "cached" else teacher()
    trainer = make_trainer(
        KL,
        student=student(),
        teacher=given,
        train=rows,
        max_length=256,
        shuffle_dataset=False,
        padding_free=source == "padding-free",
    )
    loss, gradient = loss_and_gradient(trainer)
    exact, other = student().double(), teacher().double()
    want = by_definition(exact, other, ROWS)
    want.backward()
    # A cached log-probability has 16 bits.
    tolerance = {"rtol": 2e-3, "atol": 1e-5} if source == "cached" else {"rtol": 1e-4, "atol": 1e-6}
    torch.testing.assert_close(loss.double(), want.detach(), **tolerance)
    for name, parameter in exact.named_parameters():
        torch.testing.assert_close(gradient[name].double(), parameter.grad, **tolerance)


def test_the_teachers_prompt_matters(make_trainer):
    """What the test above would not see if the two prompts gave the same."""
    losses = [
        loss_and_gradient(make_trainer(KL, student=student(), teacher=teacher(), train=rows, max_length=256))[0]
        for rows in (prompted(), prompted(None), prompted(TeacherPrompt(suffix=" !")))
    ]
    assert len({round(float(loss), 5) for loss in losses}) == 3


def test_rows_that_only_the_teacher_can_tell_apart_are_filed_apart(tmp_path):
    rows = prompted()
    assert rows[2]["input_ids"] == rows[3]["input_ids"]
    cache = built(tmp_path / "cache", rows, k=VOCABULARY)
    assert len(cache) == len(ROWS)
    cache.check_rows(rows, "train")
    changed = tokenise(
        Dataset.from_list([{**ROWS[0], "solution": "three"}, *ROWS[1:]]),
        tiny_tokenizer(),
        RowRules(teacher_prompt=PROMPT),
    )
    with pytest.raises(DataError, match=r"train data: 1 of 5 rows are not in it \(row 0\)"):
        cache.check_rows(changed, "train")


def test_a_training_counts_what_the_teacher_reads_and_evaluates_behind_its_prompt(make_trainer):
    rows = prompted()
    trainer = make_trainer(
        KL, teacher=teacher(), train=rows, evaluate=rows, max_length=256, max_steps=1, per_device_train_batch_size=5
    )
    trainer.train()
    cost = trainer.cost
    assert cost.student_tokens == sum(map(len, rows["input_ids"]))
    assert cost.teacher_tokens == sum(map(len, rows["teacher_ids"]))
    fresh = make_trainer(KL, student=trainer.model, teacher=teacher(), train=rows, max_length=256)
    assert trainer.evaluate()["eval_loss"] == pytest.approx(float(loss_and_gradient(fresh)[0]), rel=1e-4)


def test_where_the_teacher_would_be_asked_behind_the_students_prompt_it_is_refused(make_trainer):
    rows, row = prompted(), {"train": prompted(), "max_length": 256}
    with pytest.raises(ConfigError, match=r"^training.packing: rows with 'teacher_ids'"):
        make_trainer(train=rows, packing=True, max_length=256)
    with pytest.raises(ConfigError, match=r"^on_policy: rows have 'teacher_ids'"):
        make_trainer(KL, on_policy=OnPolicy(lmbda=0.5), **row)
    with pytest.raises(ConfigError, match=r"^data_collator: function does not hand on 'teacher_ids'"):
        make_trainer(trainer={"data_collator": lambda examples: examples}, **row)


def test_a_prompt_that_is_longer_than_the_teachers_table_of_positions_is_named(make_trainer):
    longest = max(map(len, prompted()["teacher_ids"]))
    fits = {"student": learned_positions(64, 1), "train": prompted()}
    with pytest.raises(
        DataError, match=rf"with the teacher's prompt, train data, row 1: has {longest} tokens, but the"
    ):
        make_trainer(teacher=learned_positions(longest - 1), **fits)
    make_trainer(teacher=learned_positions(longest), **fits)
