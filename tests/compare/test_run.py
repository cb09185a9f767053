"""Tiny comparisons: real models of a few thousand weights, the real trainer, no tasks."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import yaml
from rich.console import Console

from bridgegarden.compare import student
from bridgegarden.compare.pair import PairFlops, Work, check_pair, check_recipe, expected_work, placed, seeded, steps_of
from bridgegarden.compare.result import CompareResult, CompareSettings
from bridgegarden.compare.run import CompareFolder, _with_export, compare, decided_by
from bridgegarden.compare.student import run_recipe
from bridgegarden.errors import ConfigError, DataError, ModelError, NonFiniteError
from bridgegarden.evaluation.lm_eval import EvaluationOptions
from bridgegarden.plan import machine_of, plan_recipe
from bridgegarden.preflight import ModelReference, load_facts
from bridgegarden.recipe import load_recipe
from bridgegarden.study.arms import compared_rows, default_baseline
from bridgegarden.study.kept import key_of
from tests.objective.test_kappa_probe import HELD
from tests.tiny import save_tiny, tiny_model

SETTINGS = CompareSettings(
    objectives=("soft", "gkd"),
    seeds=(0, 1),
    baseline="gkd",
    evaluation=None,
    prompts=3,
    samples=1,
    max_new_tokens=6,
)
TRAINING = {
    "max_steps": 2,
    "per_device_train_batch_size": 2,
    "learning_rate": 1e-3,
    "use_cpu": True,
    "bf16": False,
    "max_length": 48,
}


@pytest.fixture(scope="module")
def source(tmp_path_factory) -> Path:
    """A recipe with a student for each of two seeds."""
    folder = tmp_path_factory.mktemp("pair")
    save_tiny(folder / "teacher", tiny_model("qwen2", seed=9))
    for seed in (0, 1):
        save_tiny(folder / f"student-{seed}", tiny_model("qwen2", hidden_size=16, seed=seed))
    for name, first in (("rows", 0), ("held_out", 8)):
        rows = [{"q": f"say {i}", "a": f"it is {i}"} for i in range(first, first + 6)]
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    recipe = {
        "teacher": {"model": "teacher"},
        "student": {"model": "student-{seed}"},
        "data": {"train": "rows.jsonl", "eval": "held_out.jsonl", "prompt": "q", "completion": "a"},
        "on_policy": {"lmbda": 0.0, "max_new_tokens": 5},
        "training": TRAINING,
    }
    (folder / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    return folder / "recipe.yaml"


def run(source, output, settings=SETTINGS, overrides=()):
    console = Console(quiet=True)
    return compare(str(source), settings, command="typed", overrides=overrides, output=output, console=console)


@pytest.fixture(scope="module")
def finished(source, tmp_path_factory):
    return run(source, tmp_path_factory.mktemp("finished") / "deep" / "out")


@pytest.fixture
def trainings(monkeypatch):
    """Names of the trainings that began; what `trouble` holds for one is raised in its place."""
    began: list[str] = []
    trouble: dict[str, BaseException] = {}
    original = student.train

    def train(recipe, **options):
        began.append(recipe.output.name)
        if recipe.output.name in trouble:
            raise trouble[recipe.output.name]
        return original(recipe, **options)

    monkeypatch.setattr(student, "train", train)
    return began, trouble


def test_a_finished_comparison_leaves_numbers_tables_and_a_page(finished):
    result, folder = finished
    tree = json.loads(folder.result.read_text())
    assert CompareResult.from_dict(tree) == result
    assert {found["quantity"] for found in tree["differences"]} == {"teacher_loss", "student_loss", "exposure_bias"}
    assert [(made.objective, made.seed) for made in result.runs] == [("soft", 0), ("soft", 1), ("gkd", 0), ("gkd", 1)]
    assert "GKD" in folder.report.read_text()
    assert "GKD" in (folder.path / "tables.md").read_text()
    assert (folder.path / "objectives.csv").read_text().startswith("objective,label")
    assert not (folder.path / "INCOMPLETE").exists()
    assert (folder.path / "runs" / "gkd-seed1" / "model" / "config.json").is_file()


def test_tokens_are_those_that_each_model_read_and_wrote(finished):
    result, _ = finished
    soft, gkd = result.runs_of("soft")[0].spent, result.runs_of("gkd")[0].spent
    assert (soft.teacher_tokens, soft.generated_tokens, soft.prompt_tokens) == (0, 0, 0)
    # Every row is as long as any other: the chat template around "say N" and "it is N".
    assert soft.student_tokens == pytest.approx(4 * result.pair.row_tokens, abs=4)
    assert gkd.student_tokens == gkd.teacher_tokens == gkd.prompt_tokens + gkd.generated_tokens
    assert 4 <= gkd.generated_tokens <= 4 * 5
    assert result.cache.sharers == 2
    assert result.cache.tokens == pytest.approx(12 * result.pair.row_tokens, abs=12)


def test_operations_follow_from_the_tokens(source, finished):
    result, _ = finished
    pair, _ = check_pair(placed(load_recipe(source), str(source)), [0])
    flops, gkd = PairFlops.of(pair), result.runs_of("gkd")[0].spent
    written, prompts = gkd.generated_tokens, gkd.prompt_tokens
    student, teacher = (model.layers(flops.context) for model in (flops.student, flops.teacher))
    heads = written * (3 * flops.student.head + flops.student.head + flops.teacher.head)
    layers = (prompts + written) * (3 * student + student + teacher)
    assert gkd.flops == pytest.approx(heads + layers)
    assert result.cache.flops == pytest.approx(
        result.cache.tokens * teacher + flops.teacher.head * pair.counts.distinct_positions
    )


def test_what_is_finished_is_not_trained_again(source, finished, trainings, tmp_path):
    result, folder = finished
    again, _ = run(source, folder.path)
    assert trainings[0] == []
    assert again.runs == result.runs
    assert again.cache.cpu_seconds == result.cache.cpu_seconds > 0
    more, _ = run(source, folder.path, replace(SETTINGS, objectives=("soft", "gkd", "hard"), seeds=(0,)))
    assert trainings[0] == ["hard-seed0"]
    # Looking through a whole cache again is no cost of the teacher's.
    assert more.cache.cpu_seconds == result.cache.cpu_seconds
    assert more.runs[0] == result.runs[0]


def test_the_key_of_a_training_is_of_everything_that_decides_it(source, tmp_path):
    def key(*overrides, objective="soft", seed=0, measure=SETTINGS, output=tmp_path, cache=tmp_path):
        recipe = placed(load_recipe(source, overrides), str(source))
        pair, _ = check_pair(recipe, [0])
        (row,) = compared_rows([objective], recipe.objective)
        made = run_recipe(recipe, row, seed, steps=pair.steps, cache=cache, output=output / "run")
        return key_of(decided_by(made, pair.fingerprints, measure))

    keys = [
        key(),
        key("data.limit=4"),
        key("training.max_steps=1"),
        key(objective="hard"),
        key(seed=1),
        key(measure=replace(SETTINGS, prompts=2)),
    ]
    assert len(set(keys)) == len(keys)
    elsewhere = tmp_path / "elsewhere"
    other = replace(SETTINGS, objectives=("soft",), baseline="soft", seeds=(0, 5), keep_models=False)
    assert key(output=elsewhere, cache=elsewhere, measure=other) == keys[0]
    problems = tmp_path / "problems.jsonl"
    asking = replace(SETTINGS, evaluation=EvaluationOptions(tasks=(str(problems),)))
    problems.write_text("one")
    before = key(measure=asking)
    problems.write_text("another")
    assert key(measure=asking) != before


def test_problems_are_read_by_the_recipe_s_columns_before_anything_is_trained(source, tmp_path):
    problems = tmp_path / "problems.jsonl"
    asking = replace(SETTINGS, evaluation=EvaluationOptions(tasks=(str(problems),)))
    problems.write_text('{"prompt": "say 1", "completion": "it is 1"}\n')
    with pytest.raises(DataError, match=r"problems\.jsonl, row 0: .*'q'"):
        run(source, tmp_path / "out", asking)
    assert not list((tmp_path / "out").glob("runs/*"))


def test_another_content_of_a_probe_is_another_training(source, tmp_path):
    (tmp_path / "probe.json").write_text(json.dumps(HELD.to_dict()))
    rule = f"objective.soft_weight={{rule: kappa_probe, file: {tmp_path / 'probe.json'}}}"

    def decided(objective):
        recipe = placed(load_recipe(source, [rule]), str(source))
        (row,) = compared_rows([objective], recipe.objective)
        return decided_by(run_recipe(recipe, row, 0, steps=1, cache=None, output=tmp_path / "run"), {}, SETTINGS)

    before = decided("recipe"), decided("soft")
    (tmp_path / "probe.json").write_text(json.dumps(HELD.to_dict() | {"center": 0.5}))
    after = decided("recipe"), decided("soft")
    assert key_of(after[0]) != key_of(before[0])
    assert after[0] | {"probes": None} == before[0] | {"probes": None}
    assert after[1] == before[1], "the probe is no part of it"
    with pytest.raises(ConfigError, match="was fitted on a pair with another tokenizer"):
        run(source, tmp_path / "out", replace(SETTINGS, objectives=("recipe",), baseline="recipe"), [rule])


def test_an_interrupt_keeps_what_was_finished(source, trainings, tmp_path):
    began, trouble = trainings
    trouble["gkd-seed0"] = KeyboardInterrupt()
    with pytest.raises(KeyboardInterrupt):
        run(source, tmp_path, replace(SETTINGS, seeds=(0,)))
    assert (tmp_path / "INCOMPLETE").exists()
    assert not CompareFolder(tmp_path).result.exists()
    trouble.clear()
    result, _ = run(source, tmp_path, replace(SETTINGS, seeds=(0,)))
    assert began == ["soft-seed0", "gkd-seed0", "gkd-seed0"]
    assert len(result.runs) == 2


@pytest.mark.slow
def test_an_interrupted_measurement_does_not_cost_the_training_again(source, trainings, tmp_path, monkeypatch):
    settings = replace(SETTINGS, objectives=("soft",), baseline="soft", seeds=(0,), keep_models=False)

    def interrupt(*args):
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(student.Meter, "measure", interrupt)
        with pytest.raises(KeyboardInterrupt):
            run(source, tmp_path, settings)
    assert (tmp_path / "runs" / "soft-seed0" / "model").is_dir()
    result, _ = run(source, tmp_path, settings)
    assert trainings[0] == ["soft-seed0"]
    assert result.runs[0].spent.steps == 2
    # Nobody asked for the student once it was measured.
    assert not (tmp_path / "runs" / "soft-seed0" / "model").exists()


@pytest.mark.slow
def test_a_loss_that_is_not_finite_fails_its_training_and_no_other(source, trainings, tmp_path):
    trainings[1]["gkd-seed1"] = NonFiniteError("step 2: the loss is nan")
    result, folder = run(source, tmp_path)
    assert [(made.objective, made.seed) for made in result.failures] == [("gkd", 1)]
    assert set(result.runs_of("gkd")) == {0}
    assert "GKD failed with seed 1: step 2: the loss is nan" in (folder.path / "tables.md").read_text()
    assert CompareResult.from_dict(json.loads(folder.result.read_text())) == result


def test_a_students_name_may_hold_the_seed(source):
    recipe = placed(load_recipe(source), str(source))
    assert seeded(recipe, 1).student.model == str(source.parent / "student-1")
    with pytest.raises(ModelError, match="student-7"):
        run(source, source.parent / "out", replace(SETTINGS, seeds=(0, 7)))


RANKS_FROM_A_CACHE = ["objective.preset=token_importance", "teacher.cache=cache", "on_policy=null"]


@pytest.mark.slow
@pytest.mark.parametrize(
    "overrides",
    [[], ["student.lora={r: 4}"], ["training.gradient_checkpointing=true"], RANKS_FROM_A_CACHE],
)
def test_a_training_costs_in_a_comparison_what_it_costs_in_its_plan(source, overrides):
    recipe = placed(load_recipe(source, overrides), str(source))
    planned = plan_recipe(seeded(recipe, 0), machine_of(gpus=1)).work
    work = Work(
        student_tokens=planned.tokens,
        student_positions=planned.positions,
        ranked="ranking of positions" in planned.flops,
    )
    pair, _ = check_pair(recipe, [0])
    ours = planned.total - planned.flops.get("teacher", 0.0)
    assert PairFlops.of(pair).training(work) == pytest.approx(ours, rel=0.01)


def test_with_equal_operations_on_policy_takes_as_many_steps_as_fit(source):
    recipe = placed(load_recipe(source, ["training.max_steps=100"]), str(source))
    pair, _ = check_pair(recipe, [0])
    flops = PairFlops.of(pair)
    soft, gkd, half = compared_rows(["soft", "gkd", "gkd_half"], recipe.objective)
    budget = flops.training(expected_work(pair, soft, 100)) + flops.cache(pair) / 3
    steps = steps_of(pair, flops, gkd, sharers=3)
    assert steps_of(pair, flops, soft, sharers=3) == 100
    assert (
        flops.training(expected_work(pair, gkd, steps)) <= budget < flops.training(expected_work(pair, gkd, steps + 1))
    )
    assert steps < steps_of(pair, flops, half, sharers=3) < 100


@pytest.mark.parametrize(
    ("objectives", "overrides", "message"),
    [
        (("soft",), ["training.max_steps=-1"], "training.max_steps: a comparison is at equal steps"),
        (("soft",), ["teacher.server=http://localhost"], "teacher.server: a server does not give"),
        (("seqkd",), [], "bridgegarden generate RECIPE"),
        (("gkd",), ["training.packing=true"], "training.packing"),
    ],
)
def test_recipes_that_cannot_be_compared_on_are_refused(source, tmp_path, objectives, overrides, message):
    with pytest.raises(ConfigError, match=message):
        run(source, tmp_path, replace(SETTINGS, objectives=objectives, baseline=objectives[0]), overrides)
    assert not list(tmp_path.iterdir())


def test_students_are_neither_watched_nor_chosen_on_their_way(source, tmp_path):
    changes = ["free_running.every=1", "free_running.select_by=free_running_loss", "training.save_steps=1"]
    recipe = placed(load_recipe(source, changes), str(source))
    (row,) = compared_rows(["soft"], recipe.objective)
    made = run_recipe(recipe, row, 1, steps=7, cache=tmp_path, output=tmp_path / "run")
    arguments = made.training.arguments
    assert made.free_running is None
    assert (arguments["save_strategy"], arguments["eval_strategy"], arguments["max_steps"]) == ("no", "no", 7)
    assert "save_steps" not in arguments


def test_one_of_several_processes_is_refused(source, tmp_path, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(ConfigError, match="started as one of 2 processes"):
        run(source, tmp_path)


def test_seqkd_trains_on_rows_that_say_who_wrote_them(source, tmp_path):
    rows = [{"q": f"say {i}", "a": f"it is {i}", "generated_by": "teacher"} for i in range(4)]
    answers = tmp_path / "answers.jsonl"
    answers.write_text("".join(json.dumps(row) + "\n" for row in rows))
    recipe = load_recipe(source, [f"data.train={answers}"])
    check_recipe(recipe, compared_rows(["seqkd"], recipe.objective))


def test_the_baseline_is_one_of_the_objectives_the_dearest_unless_named():
    assert default_baseline(("soft", "gkd_half", "gkd")) == "gkd_half"
    assert default_baseline(("soft", "hard")) == "soft"
    with pytest.raises(ConfigError, match="--baseline"):
        replace(SETTINGS, baseline="static")


@pytest.mark.slow
def test_students_are_measured_as_the_file_that_is_exported_of_them(source, tmp_path, monkeypatch):
    pytest.importorskip("gguf")
    read = []
    original = student.load_model

    def load_model(facts, **options):
        read.append(facts.reference.gguf_file)
        return original(facts, **options)

    monkeypatch.setattr(student, "load_model", load_model)
    settings = replace(SETTINGS, objectives=("soft", "quantised:soft"), baseline="soft", seeds=(0,), export="Q4_0")
    wide = [f"student.model={source.parent / 'teacher'}", "training.learning_rate=0.02"]
    result, folder = run(source, tmp_path / "out", settings, wide)
    plain, for_file = (result.runs_of(name)[0].measured for name in settings.objectives)
    assert read.count("student-Q4_0.gguf") == 2
    assert plain.by_unit["teacher_loss"] != for_file.by_unit["teacher_loss"]
    assert "quantised soft" in (folder.path / "tables.md").read_text()
    assert "GGUF files of type Q4_0" in folder.report.read_text()
    # The evaluation of training is that of the file for one of them, and is made anew for the other.
    job = folder.path / "runs" / "soft-seed0"
    facts = load_facts(ModelReference(role="model", model=str(job / "model")))
    file = original(student.exported(job / "model", facts, "Q4_0", []))
    rows = check_pair(load_recipe(source, wide), [0])[1].evaluation
    assert plain.label_loss == pytest.approx(label_loss(file, rows), rel=1e-5)
    trained = json.loads((job / "run.json").read_text())["evaluation"]["student_label_loss"]
    assert plain.label_loss != pytest.approx(trained, rel=1e-4)
    again = json.loads((job.parent / "quantised-soft-seed0" / "run.json").read_text())["evaluation"]
    assert for_file.label_loss == pytest.approx(again["student_label_loss"], rel=1e-6)
    record = json.loads((folder.path / "runs" / "quantised-soft-seed0" / "run.json").read_text())
    assert record["quantised"] == "Q4_0"
    assert (folder.path / "runs" / "soft-seed0" / "export" / "student-Q4_0.gguf").is_file()


def label_loss(model, rows) -> float:
    losses = []
    with torch.no_grad():
        for row in rows:
            logp = model(torch.tensor([row["input_ids"]])).logits[0].double().log_softmax(-1)
            losses += [-logp[place - 1, label] for place, label in enumerate(row["labels"]) if label != -100]
    return float(torch.stack(losses).mean())


def test_what_is_measured_follows_the_recipe_and_no_file_is_trained_for_unnamed(source):
    with pytest.raises(ConfigError, match=r"'quantised:soft' is trained for a file, and nothing says which: add --exp"):
        run(source, None, replace(SETTINGS, objectives=("quantised:soft",), baseline="quantised:soft"))
    every = ("training.quantised.kind=Q8_0",)
    with pytest.raises(ConfigError, match=r"'quantised:soft' is .* trains every row for Q8_0. Leave it out"):
        run(source, None, replace(SETTINGS, objectives=("soft", "quantised:soft"), baseline="soft"), overrides=every)
    with pytest.raises(ConfigError, match=r"--export: 'Q9' is no type"):
        run(source, None, replace(SETTINGS, export="Q9"))
    with pytest.raises(ConfigError, match=r"--export: F16 rounds nothing to blocks"):
        run(source, None, replace(SETTINGS, objectives=("quantised:soft",), baseline="quantised:soft", export="F16"))
    recipe = load_recipe(source, ["training.quantised.kind=int8"])
    settings = _with_export(recipe, (), SETTINGS)
    assert settings.export == "Q8_0"
    assert settings.measuring != SETTINGS.measuring
    (row,) = compared_rows(["quantised:gkd"], recipe.objective)
    assert (row.lmbda, row.for_file, row.label) == (1.0, True, "quantised GKD")
    own = run_recipe(recipe, row, 0, steps=1, cache=None, output=source, export="Q4_1")
    assert own.training.quantised.kind == "Q4_1"
