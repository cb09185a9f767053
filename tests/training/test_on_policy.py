"""On-policy batches: whose turn it is, and that training on them is training on the very text the student wrote."""

import itertools
import json
import math
import subprocess
import sys
from collections import Counter

import pytest
import torch
from datasets import Dataset
from torch.utils.data import SequentialSampler

from bridgegarden.errors import ConfigError, DataError, NonFiniteError
from bridgegarden.objective.divergences import jensen_shannon, reverse_kl
from bridgegarden.objective.hybrid import HybridObjective, hybrid_loss_from_logits
from bridgegarden.objective.soft_weight import StaticWeight
from bridgegarden.teacher.cache.reader import TeacherCache
from bridgegarden.training.on_policy import OnPolicy
from tests.teacher.cache.conftest import build, cache_rows
from tests.tiny import VOCABULARY, tiny_model
from tests.training.conftest import token_rows
from tests.training.counting import END, counted, counting_rows, counting_student

OBJECTIVES = {
    "gkd": HybridObjective(divergence=jensen_shannon, soft_weight=StaticWeight(1.0)),
    "reverse": HybridObjective(divergence=reverse_kl, soft_weight=StaticWeight(1.0)),
    "hybrid": HybridObjective.preset("confidence"),
    "risk": HybridObjective.preset("risk_guided"),
}
ALWAYS = OnPolicy(lmbda=1.0, max_new_tokens=6)


def in_order(trainer):
    trainer._get_train_sampler = lambda dataset=None: SequentialSampler(trainer.train_dataset)
    return trainer


def window(trainer, batches=1, step=0):
    """What the trainer is about to read at one optimiser step, and the number its losses are divided by."""
    trainer.state.global_step, trainer.state.max_steps = step, 10
    loader = iter(trainer.get_train_dataloader())
    return trainer.get_batch_samples(loader, batches, trainer.args.device)


def history(trainer, key):
    return [entry[key] for entry in trainer.state.log_history if key in entry]


def weights(trainer):
    return torch.cat([p.detach().flatten() for p in trainer.model.parameters()])


def test_batches_hold_the_prompts_and_the_students_text_and_nothing_else_is_supervised(make_trainer):
    trainer = in_order(
        make_trainer(student=counting_student(), train=counting_rows(), on_policy=ALWAYS, per_device_train_batch_size=8)
    )
    (batch,), num_items = window(trainer)
    rows = counting_rows().to_list()
    assert num_items == sum(len(counted(row, 6)[1]) for row in rows) != sum(3 for _ in rows)
    for index, row in enumerate(rows):
        prompt, answer = counted(row, 6)
        length = len(prompt) + len(answer)
        assert batch["input_ids"][index, :length].tolist() == prompt + answer
        assert batch["labels"][index, :length].tolist() == [-100] * len(prompt) + answer
        assert batch["attention_mask"][index].tolist() == [1] * length + [0] * (batch["input_ids"].shape[1] - length)
        assert (batch["labels"][index, length:] == -100).all()
        assert batch["row"][index, :length].unique().tolist() == [row["row"]]
    # Texts that reach the end-of-turn token stop there, with it; the others are cut.
    assert [counted(row, 6)[1][-1] == END for row in rows] == [False, False, True, False, True, False, False, False]
    assert trainer.cost.ended_answers == 2


@pytest.mark.parametrize("name", OBJECTIVES)
def test_loss_and_gradient_are_those_of_the_slow_path_on_the_planted_text(make_trainer, name):
    trainer = in_order(
        make_trainer(
            OBJECTIVES[name],
            student=counting_student(),
            train=counting_rows(),
            on_policy=ALWAYS,
            gradient_accumulation_steps=2,
        )
    )
    batches, num_items = window(trainer, batches=2)
    trainer.model.train()
    loss = sum(trainer.compute_loss(trainer.model, dict(batch), num_items_in_batch=num_items) for batch in batches)
    loss.backward()
    ours = {name: p.grad.clone() for name, p in trainer.model.named_parameters()}
    trainer.model.zero_grad()
    total, count = torch.zeros(()), 0
    for row in counting_rows().to_list():
        prompt, answer = counted(row, 6)
        ids = torch.tensor([prompt + answer])
        labels = torch.tensor([[-100] * len(prompt) + answer])
        logits = [model(input_ids=ids).logits for model in (trainer.model, trainer.teacher.model)]
        terms = hybrid_loss_from_logits(*logits, labels, OBJECTIVES[name], vocab_size=VOCABULARY)
        total, count = total + terms.total.sum(), count + int(terms.mask.sum())
    slow = total / count
    torch.testing.assert_close(loss, slow)
    slow.backward()
    for key, parameter in trainer.model.named_parameters():
        # Either is off by some 4e-6 of the largest entry against float64: digits of float32, lost in sums.
        largest = float(parameter.grad.abs().max())
        torch.testing.assert_close(ours[key], parameter.grad, rtol=1e-4, atol=1e-5 * largest)


def test_accumulated_micro_batches_train_exactly_as_one_batch(make_trainer):
    """Answers are of unequal lengths, so a denominator from the data, or from the micro-batch, would show."""
    settings = {"student": counting_student(), "train": counting_rows(), "on_policy": ALWAYS, "learning_rate": 1e-4}
    whole = in_order(make_trainer(OBJECTIVES["hybrid"], per_device_train_batch_size=8, **settings))
    settings["student"] = counting_student()
    parts = in_order(
        make_trainer(OBJECTIVES["hybrid"], per_device_train_batch_size=2, gradient_accumulation_steps=4, **settings)
    )
    whole.train()
    parts.train()
    assert history(parts, "grad_norm") == pytest.approx(history(whole, "grad_norm"), rel=1e-4)
    for name in ("loss", "soft_loss", "hard_loss", "supervised_tokens"):
        assert history(parts, name) == pytest.approx(history(whole, name), rel=1e-4), name
    torch.testing.assert_close(weights(parts), weights(whole), rtol=1e-4, atol=2e-5)
    assert parts.cost.generated_tokens == whole.cost.generated_tokens


def test_a_share_of_zero_trains_bit_for_bit_as_without(make_trainer):
    objective = HybridObjective.preset("static", hard_target="data")
    plain, never = (make_trainer(objective, on_policy=on, max_steps=3) for on in (None, OnPolicy(lmbda=0.0)))
    plain.train()
    never.train()
    assert torch.equal(weights(plain), weights(never))
    assert history(plain, "loss") == history(never, "loss")
    assert never.cost.answers == 0


def test_tokens_are_counted_one_by_one(make_trainer):
    trainer = in_order(
        make_trainer(
            student=counting_student(),
            train=counting_rows(),
            on_policy=ALWAYS,
            max_steps=3,
            learning_rate=0.0,
            evaluate=token_rows(4),
            eval_strategy="steps",
            eval_steps=1,
        )
    )
    trainer.train()
    rows = counting_rows().to_list()
    seen = [rows[:4], rows[4:], rows[:4]]
    prompts, answers = ([sum(len(counted(r, 6)[i]) for r in step) for step in seen] for i in (0, 1))
    cost = trainer.cost
    assert (cost.prompt_tokens, cost.generated_tokens, cost.answers) == (sum(prompts), sum(answers), 12)
    assert cost.student_tokens == cost.teacher_tokens == sum(prompts) + sum(answers)
    assert history(trainer, "generated_tokens") == [sum(answers[: i + 1]) for i in range(3)]
    assert history(trainer, "answer_length") == [count / 4 for count in answers]
    assert history(trainer, "answers_ended") == [0.25, 0.25, 0.25]
    assert min(history(trainer, "generated_tokens_per_second")) > 0
    assert min(cost.generation_seconds, cost.teacher_seconds, cost.student_seconds) > 0


def test_without_on_policy_the_books_are_kept_too_and_a_cached_teacher_reads_nothing(make_trainer, tmp_path):
    rows = cache_rows(8)
    cached = make_trainer(teacher=TeacherCache(build(tmp_path / "cache", rows=rows)), train=rows)
    cached.train()
    read = sum(len(row["input_ids"]) for row in rows.to_list())
    assert (cached.cost.teacher_tokens, cached.cost.student_tokens) == (0, read)
    assert cached.cost.generated_tokens == 0


@pytest.mark.parametrize("family", ["llama", "gemma2"])
def test_greedy_answers_are_those_of_one_forward_for_every_token(make_trainer, family):
    """Against no padding, no keys and values kept, no other rows; in training mode and with checkpointing on."""
    trainer = make_trainer(
        family=family,
        on_policy=OnPolicy(lmbda=1.0, temperature=0.0, max_new_tokens=12),
        per_device_train_batch_size=8,
        gradient_checkpointing=True,
    )
    trainer.model.train()
    lengths = []
    trainer.model.base_model.register_forward_pre_hook(
        lambda module, args, kwargs: lengths.append(kwargs["input_ids"].shape[1]), with_kwargs=True
    )
    (batch,), _ = window(trainer)
    assert max(lengths[1:]) == 1  # a token costs one position
    assert trainer.model.training
    trainer.model.eval()
    with torch.no_grad():
        for ids, labels, mask in zip(batch["input_ids"], batch["labels"], batch["attention_mask"], strict=True):
            real = ids[: int(mask.sum())].tolist()
            first = next(at for at, label in enumerate(labels.tolist()) if label != -100)
            text = real[:first]
            while len(text) < first + 12 and text[-1] != END:
                text.append(int(trainer.model(torch.tensor([text])).logits[0, -1, :VOCABULARY].argmax()))
            assert real == text


def rows_read(model):
    """How many rows each of the forwards of `model` has, from now on."""
    found = []
    model.base_model.register_forward_pre_hook(
        lambda module, args, kwargs: found.append(len(kwargs["input_ids"])), with_kwargs=True
    )
    return found


@pytest.mark.parametrize("family", ["llama", "gemma2"])
@pytest.mark.parametrize("at_once", [1, 2, 5, 8])
def test_what_is_written_does_not_depend_on_how_many_texts_are_in_progress(make_trainer, family, at_once):
    """Texts of all lengths, long and short prompts: places are taken over again and again."""
    student = tiny_model(family, 264, seed=2)
    trainer = make_trainer(student=student, on_policy=OnPolicy(lmbda=1.0, max_new_tokens=9))
    writer = trainer._writer
    writer._policy.end_ids = tuple(range(0, VOCABULARY, 4))  # a text ends after four tokens on average
    prompts = [[5 + row, *range(1, 1 + row % 7)] for row in range(20)]
    together = writer.write(prompts, torch.Generator().manual_seed(3))
    read = rows_read(student)
    assert writer.write(prompts, torch.Generator().manual_seed(3), at_once=at_once) == together
    assert max(read) <= at_once
    assert len({len(answer.tokens) for answer in together}) > 4


def test_the_places_of_texts_that_have_ended_are_taken_by_the_next(make_trainer):
    """A third fewer forwards here than one batch after the other, whose last texts are written in company of few."""
    trainer = make_trainer(student=tiny_model("llama", 264, seed=2), on_policy=OnPolicy(lmbda=1.0, max_new_tokens=40))
    writer = trainer._writer
    writer._policy.end_ids = tuple(range(0, VOCABULARY, 12))
    prompts = [[5 + row, 1, 2] for row in range(32)]
    read = rows_read(trainer.model)
    together = writer.write(prompts, torch.Generator().manual_seed(3), at_once=8)
    begun = len(read)
    alone = [
        writer._written(prompts[at : at + 8], numbers, 8)
        for at, numbers in zip(
            range(0, 32, 8), writer._uniforms(32, torch.Generator().manual_seed(3)).split(8), strict=True
        )
    ]
    assert together == [answer for part in alone for answer in part]
    assert max(read) == 8
    assert begun < 0.75 * (len(read) - begun)


def test_micro_batches_that_are_written_together_hold_what_each_would_alone(make_trainer):
    options = {"train": counting_rows(), "on_policy": ALWAYS, "per_device_train_batch_size": 2}
    trainer = in_order(make_trainer(student=counting_student(), **options))
    loader = iter(trainer.get_train_dataloader())
    alone = [trainer.get_batch_samples(loader, 1, trainer.args.device)[0][0] for _ in range(4)]
    read = rows_read(trainer.model)
    together, _ = trainer.get_batch_samples(iter(trainer.get_train_dataloader()), 4, trainer.args.device)
    for one, other in zip(together, alone, strict=True):
        assert one.keys() == other.keys()
        for name in one:
            assert torch.equal(one[name], other[name]), name
    assert max(read) == 2


def test_drawn_tokens_follow_the_students_distribution_at_the_sampling_temperature(make_trainer):
    student = tiny_model("llama", 264, seed=2)
    with torch.no_grad():
        student.lm_head.weight *= 12
    trainer = make_trainer(student=student, on_policy=OnPolicy(lmbda=1.0, temperature=0.7, max_new_tokens=2))
    count, prompt = 4000, [5, 6, 7]
    texts = [a.tokens for a in trainer._writer.write([prompt] * count, torch.Generator().manual_seed(0))]
    with torch.no_grad():
        first = (student(torch.tensor([prompt])).logits[0, -1, :VOCABULARY] / 0.7).softmax(-1)
        likeliest = next(token for token in first.argsort(descending=True).tolist() if token != END)
        second = (student(torch.tensor([[*prompt, likeliest]])).logits[0, -1, :VOCABULARY] / 0.7).softmax(-1)
    for at, expected in ((0, first), (1, second)):
        drawn = Counter(text[at] for text in texts if at == 0 or (text[0] == likeliest and len(text) > 1))
        number = sum(drawn.values())
        top = expected.topk(10).indices.tolist()
        assert number > 100
        for token in top:
            p = expected[token].item()
            assert abs(drawn[token] / number - p) < 4.5 * math.sqrt(p * (1 - p) / number), (at, token)
        rest = 1 - sum(expected[token].item() for token in top)
        other = 1 - sum(drawn[token] for token in top) / number
        assert abs(other - rest) < 4.5 * math.sqrt(rest * (1 - rest) / number)


def test_no_token_is_drawn_that_the_teacher_does_not_have(make_trainer):
    student = tiny_model("llama", 264, seed=2)
    with torch.no_grad():
        student.lm_head.weight[VOCABULARY:] = 50 * student.lm_head.weight[VOCABULARY:].abs()
    trainer = make_trainer(student=student, on_policy=OnPolicy(lmbda=1.0, max_new_tokens=20))
    (batch,), _ = window(trainer)
    assert batch["input_ids"].max() < VOCABULARY


def test_the_coin_falls_as_often_as_asked_and_knows_only_seed_step_and_batch():
    on_policy = OnPolicy(lmbda=0.5)
    tosses = [on_policy.answers(seed=0, step=step, batch=batch) for step in range(1000) for batch in range(4)]
    assert abs(sum(tosses) / 4000 - 0.5) < 4 * 0.5 / math.sqrt(4000)
    # Neighbours in step and batch are no likelier to agree than not.
    agree = sum(a == b for a, b in itertools.pairwise(tosses))
    assert abs(agree / 3999 - 0.5) < 4 * 0.5 / math.sqrt(4000)
    assert tosses == [on_policy.answers(seed=0, step=step, batch=batch) for step in range(1000) for batch in range(4)]
    assert tosses != [on_policy.answers(seed=1, step=step, batch=batch) for step in range(1000) for batch in range(4)]
    for lmbda in (0.0, 1.0):
        certain = OnPolicy(lmbda=lmbda)
        assert {certain.answers(seed=0, step=step, batch=0) for step in range(200)} == {lmbda == 1.0}


def test_half_of_the_batches_are_the_datas(make_trainer):
    half = OnPolicy(lmbda=0.5, max_new_tokens=6)
    trainer = in_order(
        make_trainer(
            student=counting_student(),
            train=counting_rows(),
            on_policy=half,
            per_device_train_batch_size=2,
            gradient_accumulation_steps=4,
        )
    )
    rows = counting_rows().to_list()
    turns = []
    for step in range(4):
        batches, num_items = window(trainer, batches=4, step=step)
        expected = 0
        for index, batch in enumerate(batches):
            turn = half.answers(seed=0, step=step, batch=index)
            turns.append(turn)
            for place, row in enumerate(rows[2 * index : 2 * index + 2]):
                supervised = [token for token in batch["labels"][place].tolist() if token != -100]
                assert supervised == (counted(row, 6)[1] if turn else [7, 7, 7])
                expected += len(supervised)
        assert num_items == expected
    assert 0 < sum(turns) < len(turns)


def test_a_resumed_run_writes_the_same_texts_and_keeps_its_books(make_trainer, tmp_path):
    settings = {
        "on_policy": OnPolicy(lmbda=0.5, max_new_tokens=8),
        "max_steps": 6,
        "save_strategy": "steps",
        "save_steps": 3,
        "per_device_train_batch_size": 2,
        "gradient_accumulation_steps": 2,
    }
    whole = make_trainer(output_dir=str(tmp_path / "whole"), **settings)
    whole.train()
    again = make_trainer(output_dir=str(tmp_path / "whole"), **settings)
    again.train(resume_from_checkpoint=str(tmp_path / "whole" / "checkpoint-3"))
    assert history(again, "loss") == history(whole, "loss")
    torch.testing.assert_close(weights(again), weights(whole), rtol=0, atol=0)
    ours, theirs = again.cost, whole.cost
    for name in ("teacher_tokens", "student_tokens", "prompt_tokens", "generated_tokens", "answers", "ended_answers"):
        assert getattr(ours, name) == getattr(theirs, name) > (-1 if name == "ended_answers" else 0), name


def test_writing_uses_no_random_number_of_training(make_trainer):
    trainer = make_trainer(on_policy=ALWAYS)
    before = torch.get_rng_state()
    trainer._writer.write([[1, 2], [3]], torch.Generator().manual_seed(0))
    assert torch.equal(torch.get_rng_state(), before)


def test_adapters_write_and_learn(make_trainer):
    peft = pytest.importorskip("peft")
    config = peft.LoraConfig(r=4, lora_dropout=0.5, target_modules=["q_proj", "v_proj"])
    trainer = make_trainer(OBJECTIVES["gkd"], peft_config=config, on_policy=ALWAYS, learning_rate=1e-2)
    before = weights(trainer)
    trainer.train()
    assert not torch.equal(weights(trainer), before)
    assert trainer.cost.answers == 8


def test_a_row_without_a_prompt_is_named(make_trainer):
    rows = token_rows(4).to_list()
    rows[2]["labels"] = rows[2]["input_ids"]
    trainer = make_trainer(train=Dataset.from_list(rows), on_policy=ALWAYS)
    with pytest.raises(
        DataError, match=r"row 102 of the data is supervised from its first token, so there is no prompt"
    ):
        trainer.train()


def test_a_row_with_nothing_to_learn_has_no_prompt_and_is_left_as_it_is(make_trainer):
    trainer = make_trainer(on_policy=ALWAYS)
    batch = dict(trainer.data_collator([trainer.train_dataset[i] for i in range(3)]))
    batch["labels"][0] = -100
    (answered,) = trainer._writer.answer([batch], 0, trainer._log.costs)
    assert trainer.cost.answers == 2
    assert (answered["labels"] != -100).sum() == trainer.cost.generated_tokens
    assert (answered["labels"][0] == -100).all()
    length = int(batch["attention_mask"][0].sum())
    assert torch.equal(answered["input_ids"][0, :length], batch["input_ids"][0, :length])
    assert answered["attention_mask"][0].sum() == length


def test_answers_are_cut_where_a_model_can_read_no_further(make_trainer):
    student = tiny_model("llama", 264, seed=2)
    student.config.max_position_embeddings = 22
    trainer = make_trainer(student=student, on_policy=OnPolicy(lmbda=1.0, max_new_tokens=100))
    (batch,), _ = window(trainer)
    assert batch["input_ids"].shape[1] <= 22
    with pytest.raises(DataError, match="a prompt of 22 tokens leaves no room"):
        trainer._writer.write([[1] * 22], torch.Generator())


def test_a_teacher_that_breaks_on_the_students_text_is_reported_with_the_rows(make_trainer):
    teacher = tiny_model("llama", 264, seed=1)
    trainer = make_trainer(teacher=teacher, on_policy=ALWAYS, max_steps=1, per_device_train_batch_size=16)
    with torch.no_grad():
        teacher.model.norm.weight[0] = math.nan
    with pytest.raises(NonFiniteError, match=r"step 1: teacher_entropy is nan at .* rows of the data: 100"):
        trainer.train()


@pytest.mark.parametrize(
    ("settings", "match"),
    [
        ({"lmbda": 1.1}, r"on_policy.lmbda must be in \[0, 1\], got 1.1"),
        ({"lmbda": 1.0, "temperature": -0.1}, r"on_policy.temperature must be 0 \(greedy\) or in"),
        ({"lmbda": 1.0, "max_new_tokens": 0}, "on_policy.max_new_tokens must be >= 1"),
    ],
)
def test_settings_out_of_range_are_refused(settings, match):
    with pytest.raises(ConfigError, match=match):
        OnPolicy(**settings)


@pytest.mark.parametrize(
    ("arguments", "match"),
    [
        ({"objective": HybridObjective.preset("static", hard_target="data")}, "the student's own token"),
        ({"packing": True}, "one prompt a row is answered"),
    ],
)
def test_what_cannot_be_done_on_policy_is_refused(make_trainer, arguments, match):
    with pytest.raises(ConfigError, match=match):
        make_trainer(on_policy=ALWAYS, **arguments)


def test_a_cache_cannot_judge_new_text(make_trainer, tmp_path):
    rows = cache_rows(4)
    with pytest.raises(ConfigError, match=r"knows only the texts of the data. Use the model itself"):
        make_trainer(teacher=TeacherCache(build(tmp_path / "cache", rows=rows)), train=rows, on_policy=ALWAYS)


def test_data_labels_that_count_for_nothing_are_accepted(make_trainer):
    make_trainer(HybridObjective.preset("soft", hard_target="data"), on_policy=ALWAYS)


@pytest.mark.slow
def test_two_processes_train_as_one_with_the_tokens_of_both_under_the_loss():
    def run(*command):
        done = subprocess.run([sys.executable, *command], capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout.strip().splitlines()[-1])

    program = ("-m", "tests.training.on_policy_processes")
    one = run(*program, "4")
    two = run("-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2", *program, "2")
    assert (one.pop("processes"), two.pop("processes")) == (1, 2)
    for cost in (one["cost"], two["cost"]):
        for name in [name for name in cost if name.endswith("seconds")]:
            assert cost.pop(name) > 0
    assert two.pop("cost") == one.pop("cost")
    assert two.pop("supervised_tokens") == one["supervised_tokens"]
    assert one.pop("supervised_tokens") == [43, 43]
    for key, values in one.items():
        assert two[key] == pytest.approx(values, rel=1e-4), key
