"""Students trained many at once are the students that the package's own trainer makes, one by one."""

from dataclasses import replace
from itertools import product

import pytest
import torch
from datasets import Dataset
from trl.trainer.sft_config import SFTConfig

from bridgegarden.errors import ConfigError, NonFiniteError
from bridgegarden.lab.map.measure import measure, teacher_table, visits
from bridgegarden.lab.map.rows import Problems, Rows, draw_order, draw_rows, draw_uniform, kinds, write
from bridgegarden.lab.map.students import Arm, aims, new_weights, student_writes, train
from bridgegarden.objective.alignment import IGNORE
from bridgegarden.objective.hybrid import HybridObjective
from bridgegarden.objective.methods import PRESETS
from bridgegarden.objective.soft_weight import CurriculumWeight, EntropyWeight, TrainProgress
from bridgegarden.study.students import build_tokenizer
from bridgegarden.teacher.protocol import ProcessTeacher
from bridgegarden.training.trainer import HybridDistillationTrainer
from tests.lab.map.chain_student import OTHER, PROMPT, WORLD, WORLDS, ChainStudent

TRAINED_HERE = {"soft_weight", "risk_alpha", "risk_weight", "sharpening"}
"""Fields that the map's students know."""
SEEDS, COUNT, STEPS, BATCH = (0, 1), 24, 12, 8
OBJECTIVES = {
    **{name: HybridObjective.preset(name) for name, fields in PRESETS.items() if fields.keys() <= TRAINED_HERE},
    "hard_data": HybridObjective.preset("hard", hard_target="data"),
    "risk_data": HybridObjective.preset("risk_guided", hard_target="data", sharpening=0.5),
    "short_curriculum": HybridObjective(soft_weight=CurriculumWeight(0.8, 0.5), risk_alpha=0.3, risk_weight="own"),
    "risky_curriculum": HybridObjective(soft_weight=CurriculumWeight(0.8, 0.5), risk_alpha=0.3),
    "power": HybridObjective(soft_weight=EntropyWeight(kind="power", gamma=0.3), sharpening=3.0),
}
ARMS = [
    Arm(objective=objective, learning_rate=rate, weight_decay=decay)
    for objective, rate, decay in zip(
        OBJECTIVES.values(), [0.02, 0.01, 0.05] * len(OBJECTIVES), [0.01, 0.3, 0.0, 0.1] * len(OBJECTIVES), strict=False
    )
]


@pytest.fixture(scope="module")
def together():
    """Rows, order, and the stack before and after, in float64."""
    rows, order = draw_rows(WORLDS, SEEDS, COUNT), draw_order(SEEDS, COUNT, STEPS, BATCH)
    weights = new_weights(WORLD, 8, SEEDS, len(ARMS)).map(torch.Tensor.double)
    return rows, order, weights, train(WORLDS, rows, ARMS, weights, order, keep=[4])


def dataset(rows, seed):
    """The rows of one seed as a trainer reads them, and the teacher that knows them."""
    generator, found, processes = torch.Generator(), [], {}
    problems = WORLD.problems(COUNT, SEEDS[seed], split="train")
    for number, problem in enumerate(problems):
        prompt = WORLD.prompt_ids(problem, generator)
        assert len(prompt) == PROMPT
        written = torch.stack(
            [rows.wordings[seed, number] + WORLD.first_wording, rows.values[seed, number] + WORLD.first_value], -1
        )
        answer = [*written.flatten().tolist(), WORLD.ids["<|end|>"]]
        processes[tuple(prompt)] = (WORLD, OTHER)[seed].process(problem)
        found.append({"input_ids": prompt + answer, "labels": [IGNORE] * len(prompt) + answer, "row": number})
    return Dataset.from_list(found), ProcessTeacher(processes)


def train_alone(model, rows, seed, arm, order, folder):
    """By the package's own trainer, on the same rows in the same order."""
    data, teacher = dataset(rows, seed)
    trainer = HybridDistillationTrainer(
        model,
        teacher,
        arm.objective,
        SFTConfig(
            str(folder),
            max_steps=STEPS,
            per_device_train_batch_size=BATCH,
            learning_rate=arm.learning_rate,
            weight_decay=arm.weight_decay,
            lr_scheduler_type="cosine",
            warmup_steps=1,
            adam_beta2=0.95,
            max_length=None,
            use_cpu=True,
            bf16=False,
            gradient_checkpointing=False,
            save_strategy="no",
            report_to="none",
            disable_tqdm=True,
        ),
        train_dataset=data.select(order[seed].flatten().tolist()),
        processing_class=build_tokenizer(WORLD),
    )
    trainer._get_train_sampler = lambda dataset=None: torch.utils.data.SequentialSampler(trainer.train_dataset)
    trainer.train()


@pytest.mark.parametrize("name", OBJECTIVES)
def test_a_student_of_a_stack_is_the_one_that_the_trainer_makes_alone(together, name, tmp_path):
    rows, order, weights, found = together
    seed, place = list(OBJECTIVES).index(name) % 2, list(OBJECTIVES).index(name)
    model = ChainStudent.of(weights, seed, place)
    train_alone(model, rows, seed, ARMS[place], order, tmp_path)
    for field in weights._fields:
        ours, before = getattr(found[STEPS], field)[seed, place], getattr(weights, field)[seed, place]
        moved = (ours - before).abs().max()
        torch.testing.assert_close(model.column(field), ours, rtol=1e-5, atol=1e-5)
        assert moved > 0.01 or field.startswith("end"), "a tensor that did not move proves nothing"


def test_students_of_a_stack_do_not_touch_each_other(together):
    """Each alone, with the rows of its seed, is what it is in the stack; `keep` gives it as it was on the way."""
    rows, order, weights, found = together
    for seed, place in ((0, 5), (1, 2)):
        alone = weights.map(lambda tensor, seed=seed, place=place: tensor[seed : seed + 1, place : place + 1])
        own = Rows(
            Problems(*(part[seed : seed + 1] for part in rows.problems)), *(part[seed : seed + 1] for part in rows[1:])
        )
        again = train(WORLDS[seed : seed + 1], own, ARMS[place : place + 1], alone, order[seed : seed + 1], keep=[4])
        for step in (4, STEPS):
            for ours, theirs in zip(again[step], found[step], strict=True):
                torch.testing.assert_close(ours[0, 0], theirs[seed, place], rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("own_texts", [False, True])
def test_arms_that_ask_for_other_things_are_never_taken_for_alike(own_texts):
    """Two rates of each of two labels that differ in the smoothing alone; on given answers and on their own."""
    rows, order = draw_rows(WORLDS, SEEDS, 24), draw_order(SEEDS, 24, 6, 8)
    arms = [
        Arm(objective=HybridObjective.preset("hard"), learning_rate=rate, weight_decay=0.0, smoothing=smoothing)
        for rate in (0.02, 0.05)
        for smoothing in (0.0, 0.4)
    ]
    uniform = draw_uniform(SEEDS, 3, 6, 8, 2 * WORLD.steps) if own_texts else None
    weights = new_weights(WORLD, 8, SEEDS, 4).map(torch.Tensor.double)
    together = train(WORLDS, rows, arms, weights, order, uniform=uniform)[6]
    for place, arm in enumerate(arms):
        one = weights.map(lambda tensor, place=place: tensor[:, place : place + 1])
        alone = train(WORLDS, rows, [arm], one, order, uniform=uniform)[6]
        for ours, theirs in zip(alone, together, strict=True):
            torch.testing.assert_close(ours[:, 0], theirs[:, place], rtol=1e-9, atol=1e-9)
    assert not torch.allclose(together.value[:, 0], together.value[:, 1], atol=1e-3)


@pytest.mark.parametrize("name", ["soft", "hard_data", "risk_data", "power", "short_curriculum"])
def test_what_is_asked_for_in_own_texts_is_what_is_asked_for_in_the_same_texts_given(name):
    rows, order = draw_rows(WORLDS, SEEDS, COUNT), draw_order(SEEDS, COUNT, 3, BATCH)
    arm = Arm(objective=OBJECTIVES[name], learning_rate=0.05, weight_decay=0.1, smoothing=0.2)
    uniform = draw_uniform(SEEDS, 3, 3, BATCH, 2 * WORLD.steps)
    weights = new_weights(WORLD, 8, SEEDS, 1).map(torch.Tensor.double)
    own = train(WORLDS, rows, [arm], weights, order, uniform=uniform, keep=[1, 2])
    texts = []
    for step, student in enumerate((weights, own[1], own[2])):
        problems = rows.at(order[:, step]).problems
        of_one_arm = Problems(*(part.unsqueeze(1) for part in problems))
        writer = student_writes(WORLD, of_one_arm, student)
        written = write(WORLD, of_one_arm, uniform[:, step].unsqueeze(1), writer)
        texts.append((*problems, written.wordings[:, 0], written.values[:, 0]))
    start, operations, operands, wordings, values = (torch.cat(part, 1) for part in zip(*texts, strict=True))
    given = Rows(Problems(start, operations, operands), wordings, values)
    in_order = torch.arange(3 * BATCH).reshape(1, 3, BATCH).expand(len(SEEDS), -1, -1)
    for ours, theirs in zip(train(WORLDS, given, [arm], weights, in_order)[3], own[3], strict=True):
        # AdamW makes much of the rounding of a gradient that is nearly zero.
        torch.testing.assert_close(ours, theirs, rtol=1e-6, atol=1e-6)


def test_a_smoothed_label_is_the_argmax_with_a_share_spread_over_what_can_stand_there():
    smoothed = Arm(objective=HybridObjective.preset("hard"), learning_rate=0.1, weight_decay=0.0, smoothing=0.3)
    prob = torch.tensor([[0.1, 0.2, 0.6, 0.1, 0.0]], dtype=torch.float64)
    found = aims(smoothed, WORLD, kinds(WORLD)[1], prob, torch.tensor([2]), TrainProgress(0, 1))
    torch.testing.assert_close(found.hard, torch.tensor([[0.06, 0.06, 0.76, 0.06, 0.06]], dtype=torch.float64))
    torch.testing.assert_close(found.label, torch.tensor([[0.0, 0.0, 1.0, 0.0, 0.0]], dtype=torch.float64))


def test_answers_are_drawn_from_the_teacher():
    """Every wording and value as often as its tables say, within five standard errors."""
    problem, count = WORLD.problems(1, 0)[0], 20_000
    one = Problems.of([problem])
    problems = Problems(*(part.expand(2, count, *part.shape[1:]) for part in one))
    uniform = torch.rand(2, count, 2 * WORLD.steps, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    rows = write(WORLD, problems, uniform, WORLDS.teacher(problems))
    exact = visits(WORLD, one, teacher_table(WORLDS, one))
    for seed, step in product(range(2), range(WORLD.steps)):
        before = rows.values[seed, :, step - 1] if step else problems.start[seed]
        for value, wording in product(range(WORLD.modulus), range(WORLD.wordings)):
            expected = exact.values[step][seed, 0, 0, wording, value].item()
            seen = ((rows.wordings[seed, :, step] == wording) & (before == value)).double().mean().item()
            assert abs(seen - expected) <= 5 * (expected * (1 - expected) / count) ** 0.5


def test_a_student_that_writes_its_own_texts_is_taught_on_them():
    """A teacher whose wordings the student already has and whose values it has wrong: what it sees are its own
    values."""
    rows, order = draw_rows(WORLDS, SEEDS, COUNT), draw_order(SEEDS, COUNT, 40, BATCH)
    arm = Arm(objective=HybridObjective.preset("soft"), learning_rate=0.05, weight_decay=0.0)
    weights = new_weights(WORLD, 16, SEEDS, 1)
    uniform = torch.rand(len(SEEDS), 40, BATCH, 2 * WORLD.steps, generator=torch.Generator().manual_seed(1))
    problems = WORLD.problems(8, 0, split="test")
    before = measure(WORLDS, weights, problems)
    own = measure(WORLDS, train(WORLDS, rows, [arm], weights, order, uniform=uniform)[40], problems)
    given = measure(WORLDS, train(WORLDS, rows, [arm], weights, order)[40], problems)
    assert (own.student_loss < before.student_loss).all()
    assert not torch.allclose(own.student_loss, given.student_loss)
    again = measure(WORLDS, train(WORLDS, rows, [arm], weights, order, uniform=uniform)[40], problems)
    torch.testing.assert_close(own.student_loss, again.student_loss, rtol=0, atol=0)


def test_a_student_that_diverges_is_named():
    worlds = WORLDS[0:1]
    rows, order = draw_rows(worlds, (0,), COUNT), draw_order((0,), COUNT, 40, BATCH)
    arms = [replace(ARMS[0], learning_rate=rate) for rate in (0.01, 1e30)]
    with pytest.raises(NonFiniteError, match=r"learning_rate=1e\+30.* at step \d+ \(seed number 0\)\. Lower"):
        train(worlds, rows, arms, new_weights(WORLD, 8, (0,), 2), order)


def test_other_divergences_and_loss_temperatures_are_refused():
    with pytest.raises(ConfigError, match="forward KL at temperature 1 alone"):
        Arm(objective=HybridObjective(temperature=2.0), learning_rate=0.1, weight_decay=0.0)


def test_an_arm_that_is_told_its_weights_is_soft_and_hard_where_they_say():
    rows, order = draw_rows(WORLDS, SEEDS, COUNT), draw_order(SEEDS, COUNT, STEPS, BATCH)
    ones, zeros = torch.ones(2, COUNT, WORLD.steps), torch.zeros(2, COUNT, WORLD.steps)
    plain = {"learning_rate": 0.05, "weight_decay": 0.0}
    arms = [
        Arm(objective=HybridObjective.preset("soft"), **plain),
        Arm(objective=HybridObjective.preset("static"), soft_weights=(ones, ones), **plain),
        Arm(objective=HybridObjective.preset("hard"), **plain),
        Arm(objective=HybridObjective.preset("static"), soft_weights=(zeros, zeros), **plain),
        Arm(objective=HybridObjective.preset("static"), soft_weights=(ones, zeros), **plain),
    ]
    found = train(WORLDS, rows, arms, new_weights(WORLD, 8, SEEDS, 5).map(torch.Tensor.double), order)[STEPS]
    for field in found:
        torch.testing.assert_close(field[:, 0], field[:, 1])
        torch.testing.assert_close(field[:, 2], field[:, 3])
    assert not torch.allclose(found.value[:, 4], found.value[:, 0])
    assert not torch.allclose(found.value[:, 4], found.value[:, 2])
