import dataclasses
import json

import pytest
import torch
from transformers import AutoModelForCausalLM

from bridgegarden.errors import ConfigError
from bridgegarden.plan import machine_of, plan_recipe
from bridgegarden.plan.memory import MemoryPlanner
from bridgegarden.plan.table import plan_text
from bridgegarden.preflight.activations import student_memory
from bridgegarden.preflight.flops import forward_flops
from bridgegarden.preflight.models import meta_model
from bridgegarden.recipe import load_recipe

H100 = machine_of(gpus=1)
TINY = machine_of(gpus=1, memory="700KiB")


def planned(path, *overrides, machine=H100):
    return plan_recipe(load_recipe(path, overrides), machine, "my.yaml")


def parameters(plan):
    return sum(p.numel() for p in AutoModelForCausalLM.from_config(plan.setup.student.config).parameters())


def moment(plan, name):
    return next(moment for moment in plan.moments if moment.name == name)


def test_a_plan_needs_no_weights_and_counts_what_training_holds(recipe_file):
    plan = planned(recipe_file)
    count = parameters(plan)
    update = moment(plan, "update").parts
    assert plan.student_parameters == (count, count)
    assert update["student weights"] == update["gradients"] == 4 * count
    assert update["optimiser states"] == 8 * count
    assert [moment.name for moment in plan.moments] == ["teacher", "loss", "backward", "update"]
    assert plan.fullest.total == max(moment.total for moment in plan.moments)
    assert plan.fits
    assert plan.advice == ()


def test_the_moments_are_made_of_what_the_step_was_found_to_take(recipe_file):
    plan = planned(recipe_file, "training.bf16=false", "teacher.cache=nowhere")
    step = student_memory(plan.setup.student.config, plan.setup.student.dtype, plan.setup.batch)
    backward = moment(plan, "backward")
    assert backward.parts["gradients"] + backward.parts["activations"] == max(step.backward_start, step.backward_end)
    loss = moment(plan, "loss")
    assert loss.parts["activations"] in (step.at_loss, step.forward)


def test_a_gpu_means_autocast_unless_the_recipe_says_otherwise(recipe_file):
    assert planned(recipe_file).setup.autocast is not None
    assert planned(recipe_file, "training.bf16=false").setup.autocast is None
    assert planned(recipe_file, "training.use_cpu=true").setup.autocast is None
    assert planned(recipe_file, machine=dataclasses.replace(H100, gpu=False)).setup.autocast is None


def test_steps_and_tokens_are_those_of_the_rows(recipe_file):
    plan = planned(recipe_file)
    assert plan.schedule.steps == 6
    assert plan.work.positions == 2 * sum(n + 2 for n in range(12))  # an answer and the end of its turn
    alone = planned(recipe_file, "training.per_device_train_batch_size=1")
    assert alone.work.padding == pytest.approx(0)
    assert plan.work.tokens * (1 - plan.work.padding) == pytest.approx(alone.work.tokens)
    assert plan.work.tokens > alone.work.tokens


@pytest.mark.parametrize(
    ("override", "refusal"),
    [
        (
            "training.per_device_train_batch_size=1000000000000000000",
            "batch_size: .* rows of 16 tokens",
        ),
        ("on_policy={lmbda: 0.5, max_new_tokens: 1000000000000000000}", "written ones .on_policy.max_new_tokens."),
        ("training.num_train_epochs=1e300", r"num_train_epochs: 1e\+300 epochs of 12 rows are too many"),
        ("training.num_train_epochs=1e308", r"num_train_epochs: 1e\+308 epochs of 12 rows are too many"),
    ],
)
def test_what_is_beyond_all_counting_is_refused_in_one_line(recipe_file, override, refusal):
    with pytest.raises(ConfigError, match=refusal):
        planned(recipe_file, override)


def test_operations_are_three_forwards_of_the_student_and_one_of_the_teacher(recipe_file):
    plan = planned(recipe_file, "training.per_device_train_batch_size=1", "data.limit=1", "training.max_steps=5")
    length, positions = plan.work.tokens / 5, plan.work.positions / 5
    for role, facts, forwards in (("teacher", plan.setup.teacher, 1), ("student", plan.setup.student, 3)):
        parts = forward_flops(facts.config)
        one = parts.layers((length + 1) / 2) * length + parts.head * positions
        assert plan.work.flops[role] == pytest.approx(5 * forwards * one)
    checkpointed = planned(
        recipe_file,
        "training.per_device_train_batch_size=1",
        "data.limit=1",
        "training.max_steps=5",
        "training.gradient_checkpointing=true",
    )
    layers = forward_flops(plan.setup.student.config).layers((length + 1) / 2) * length
    assert checkpointed.work.flops["student"] - plan.work.flops["student"] == pytest.approx(5 * layers)


def test_hours_are_operations_over_speed(recipe_file):
    plan = planned(recipe_file, machine=machine_of(gpus=4, flops=1e12, utilisation=0.5))
    assert plan.hours(7.2e15) == pytest.approx(1.0)
    unknown = dataclasses.replace(plan, machine=dataclasses.replace(plan.machine, flops=None))
    assert unknown.hours(1e15) is None
    assert "--flops" in plan_text(unknown)


def test_a_cached_teacher_takes_no_memory_and_no_work(recipe_file):
    live, cached = planned(recipe_file), planned(recipe_file, "teacher.cache=nowhere")
    assert "teacher" in live.work.flops
    assert list(cached.work.flops) == ["student"]
    assert cached.teacher_parameters is None
    assert [moment.name for moment in cached.moments] == ["loss", "backward", "update"]
    assert not live.uses_cache
    assert cached.uses_cache
    assert live.cache == cached.cache
    assert live.cache is not None
    assert live.cache.positions == live.work.positions / 2


def test_own_texts_need_keys_values_and_longer_rows(recipe_file):
    plan = planned(recipe_file, "on_policy={lmbda: 0.5, max_new_tokens: 16}", "objective.hard_target=teacher_argmax")
    before = planned(recipe_file)
    assert plan.setup.batch.length == before.setup.batch.length + 16
    assert moment(plan, "writing").parts["activations"] > 0
    assert plan.work.flops["student's own texts"] > 0
    assert plan.cache is None


@pytest.mark.slow
def test_sharding_divides_the_student_and_not_the_teacher(recipe_file):
    one = moment(planned(recipe_file), "update").parts
    for sharding in ("fsdp", "zero3"):
        shared = moment(planned(recipe_file, machine=machine_of(gpus=4, sharding=sharding)), "update").parts
        for part in ("student weights", "optimiser states", "gradients"):
            assert shared[part] == one[part] // 4
        assert shared["teacher weights"] == one["teacher weights"]
    replicated = moment(planned(recipe_file, machine=machine_of(gpus=4)), "update").parts
    assert replicated == {**one, "DDP buckets": one["gradients"]}


@pytest.mark.slow
def test_what_does_not_fit_is_told_what_would_and_by_how_much(recipe_file):
    plan = planned(recipe_file, machine=dataclasses.replace(TINY, processes=2))
    assert not plan.fits
    first = {advice.settings[0]: advice for advice in plan.advice if len(advice.settings) == 1}
    assert "--set teacher.cache=FOLDER" in first
    assert "--set student.lora={}" in first
    assert "--sharding fsdp" in first
    cached = planned(recipe_file, "teacher.cache=nowhere", machine=plan.machine)
    assert first["--set teacher.cache=FOLDER"].total == cached.fullest.total
    assert first["--set teacher.cache=FOLDER"].saved == plan.fullest.total - cached.fullest.total
    adapted = planned(recipe_file, "student.lora={}", machine=plan.machine)
    assert first["--set student.lora={}"].total == adapted.fullest.total
    smaller = next(advice for advice in plan.advice if "batch_size" in advice.settings[0])
    assert smaller.settings[1] == "--set training.gradient_accumulation_steps=4"
    text = plan_text(plan)
    assert "Does not fit" in text
    for advice in plan.advice:
        assert all(setting in text for setting in advice.settings)


def test_settings_are_combined_where_none_is_enough(recipe_file):
    plan = planned(recipe_file, machine=machine_of(gpus=1, memory="400KiB"))
    *alone, together = plan.advice
    assert not any(advice.fits for advice in alone)
    assert len(together.settings) > 2
    assert "--set teacher.top_k=64" not in together.settings  # of no use once the teacher is cached
    assert together.total < min(advice.total for advice in alone)


def test_walks_are_shared_between_plans_of_one_pair(recipe_file, monkeypatch):
    setup = planned(recipe_file).setup
    planner = MemoryPlanner(H100)
    first = planner.moments(setup)
    monkeypatch.setattr("bridgegarden.plan.memory.student_memory", None)
    assert planner.moments(dataclasses.replace(setup, top_k=8))[-1] == first[-1]


def test_the_loss_is_planned_with_the_memory_that_is_free_when_it_begins(recipe_file, monkeypatch):
    given = []

    def loss_bytes(*arguments, free, **keywords):
        given.append(free)
        return 0

    monkeypatch.setattr("bridgegarden.plan.memory.loss_bytes", loss_bytes)
    loss = moment(planned(recipe_file, machine=machine_of(gpus=1, memory="64GiB")), "loss")
    head = loss.parts["gradients"]
    assert given[0] == 64 * 2**30 - (loss.total - head)
    given.clear()
    planned(recipe_file, machine=dataclasses.replace(H100, gpu=False))
    assert set(given) == {None}


def test_an_optimiser_that_is_not_known_is_refused(recipe_file):
    with pytest.raises(ConfigError, match=r"training.optim: 'adafactor'.*cannot be planned"):
        planned(recipe_file, "training.optim=adafactor")


@pytest.mark.parametrize("width", [80, 120])
def test_the_text_fits_its_width_and_says_what_the_json_says(recipe_file, width):
    plan = planned(recipe_file)
    text, tree = plan_text(plan, width), json.loads(json.dumps(plan.to_dict()))
    assert max(map(len, text.splitlines())) <= width
    assert tree["fits"]
    assert "Fits" in text
    assert tree["memory"][tree["fullest"]]["total"] == plan.fullest.total
    assert f"{tree['flops']['student']:.3g}" in text
    assert f"{tree['tokens']:,.0f} tokens" in text
    assert f"{tree['cache']['positions']:,} positions" in " ".join(text.split())


def test_a_teacher_that_is_rounded_is_counted_so_and_the_plan_says_it(recipe_file):
    whole, rounded = planned(recipe_file), planned(recipe_file, "teacher.quantization={load_in_4bit: true}")
    assert "quantised" not in plan_text(whole)
    said = " ".join(plan_text(rounded).split())
    assert "The teacher is quantised (bitsandbytes, bnb_4bit_compute_dtype float32" in said
    assert "its weights are counted so, with their scales; embeddings and head whole." in said
    loaded = rounded.setup.loaded
    assert loaded is not None
    linear = [m for m in meta_model(loaded.config).modules() if isinstance(m, torch.nn.Linear)][:-1]  # but for the head
    saved = sum(4 * m.weight.numel() - m.weight.numel() / 2 - 4 * m.weight.numel() / 64 for m in linear)
    weights = [plan.fullest.parts["teacher weights"] for plan in (whole, rounded)]
    assert weights[0] - weights[1] == pytest.approx(saved, abs=4 * len(linear))
