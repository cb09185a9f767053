"""Tasks of other kinds than ours: groups, likelihoods, several ways to read an answer."""

import json
from pathlib import Path

import lm_eval.tasks
import pytest
from lm_eval.tasks import TaskManager

from bridgegarden.errors import ConfigError, DataError
from bridgegarden.evaluation import harness as module
from bridgegarden.evaluation.harness import Request, load_tasks, run_tasks
from bridgegarden.evaluation.lm_eval import EvaluationOptions, evaluate_model
from bridgegarden.evaluation.tasks import GROUPS, OWN_TASKS
from tests.tiny import tiny_model, tiny_tokenizer

CHOICE = """
task: {name}
dataset_path: json
dataset_kwargs: {{data_files: {{test: {rows}}}, cache_dir: {cache}}}
test_split: test
output_type: multiple_choice
doc_to_text: "{{{{q}}}}"
doc_to_choice: ["yes", "no"]
doc_to_target: "{{{{a}}}}"
metric_list: [{{metric: acc, aggregation: mean, higher_is_better: true}}]
"""
WRITTEN = """
task: written
dataset_path: json
dataset_kwargs: {{data_files: {{test: {rows}}}, cache_dir: {cache}}}
test_split: test
output_type: generate_until
doc_to_text: "{{{{q}}}}"
doc_to_target: "{{{{a}}}}"
generation_kwargs: {{until: ["."], max_gen_toks: 8}}
metric_list: [{{metric: exact_match, aggregation: mean, higher_is_better: true}}]
filter_list:
  - {{name: strict, filter: [{{function: take_first}}]}}
  - {{name: loose, filter: [{{function: lowercase}}, {{function: take_first}}]}}
"""
GROUP = """
group: choices
task: [choice_a, choice_b]
aggregate_metric_list: [{metric: acc, weight_by_size: true}]
"""


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tasks")
    rows = folder / "rows.jsonl"
    rows.write_text("".join(json.dumps({"q": f"question {i}?", "a": i % 2}) + "\n" for i in range(6)))
    for name in ("choice_a", "choice_b"):
        (folder / f"{name}.yaml").write_text(CHOICE.format(name=name, rows=rows, cache=folder / "cache"))
    (folder / "written.yaml").write_text(WRITTEN.format(rows=rows, cache=folder / "cache"))
    (folder / "choices.yaml").write_text(GROUP)
    manager = TaskManager(include_path=[folder, module.FOLDER], include_defaults=False)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "TaskManager", lambda **_: manager)
        options = EvaluationOptions(tasks=("written", "choices"), limit=5)
        return evaluate_model(tiny_model("llama"), tiny_tokenizer(), options, name="tiny")


def test_a_group_has_a_score_of_its_own_and_its_tasks_are_under_it(found):
    scores = {score.task: score for score in found.scores if score.metric == "acc"}
    assert scores["choices"].part_of is None
    assert scores["choice_a"].part_of == "choices"
    assert scores["choices"].mean == pytest.approx((scores["choice_a"].mean + scores["choice_b"].mean) / 2)
    assert (scores["choices"].problems, scores["choice_a"].problems) == (10, 5)
    assert scores["choices"].decoding == "likelihood"


def test_the_table_shows_what_was_asked_for_in_that_order_and_the_page_all_of_it(found):
    assert [(score.task, score.filter) for score in found.shown()] == [
        ("written", "strict"),
        ("written", "loose"),
        ("choices", "none"),
    ]
    assert "| choice_b | likelihood | acc |" in found.to_markdown()
    assert "| written | greedy | exact_match (strict) |" in found.to_markdown()


def test_problems_can_be_paired_by_task_metric_and_filter(found):
    strict = found.by_problem("written", "exact_match", filter_name="strict")
    assert len(strict) == 5
    choice = found.by_problem("choice_a", "acc", decoding="likelihood")
    assert sum(choice.values()) / 5 == next(score.mean for score in found.scores if score.task == "choice_a")


def test_benchmarks_are_not_asked_as_chat_unless_told(found):
    assert found.settings["asked_as_chat"] == []


def test_finding_a_batch_size_says_so_on_stderr_only(capsys):
    loaded = module.load_tasks(["bridgegarden_arithmetic"], samples=0, temperature=1.0)
    model = tiny_model("llama", hidden_size=8, layers=1)
    request = Request(limit=1, batch_size="auto", seed=0, chat=False)
    assert run_tasks(model, tiny_tokenizer(), loaded, request).scores[0].problems == 1
    told = capsys.readouterr()
    assert told.out == ""
    assert "Largest batch size: 64" in told.err


@pytest.fixture(scope="module", autouse=True)
def one_index():
    """Some of lm-eval's own tasks, indexed once: all of them take ten seconds."""
    parts = ("agieval", "arc", "bbh", "gsm8k", "humaneval", "mbpp", "minerva_math", "mmlu/default", "benchmarks")
    folders = [Path(lm_eval.tasks.__file__).parent / part for part in parts]
    whole = TaskManager(include_path=[*folders, module.FOLDER], include_defaults=False)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "TaskManager", lambda **_: whole)
        yield whole


def test_lm_eval_knows_every_task_of_our_groups(one_index):
    assert {task for tasks in GROUPS.values() for task in tasks} <= set(one_index.all_tasks)


def test_our_humaneval_and_mbpp_take_the_place_of_lm_eval_s(one_index):
    for name in OWN_TASKS:
        assert one_index.task_index[name].yaml_path.parent == module.FOLDER


def test_a_drawn_variant_stands_beside_the_greedy_task():
    (loaded,) = load_tasks(["bridgegarden_arithmetic"], samples=3, temperature=0.5)
    assert loaded.names == ["bridgegarden_arithmetic", "bridgegarden_arithmetic_sampled"]
    greedy, drawn = (task.config for task in loaded.tasks)
    assert (greedy.repeats, greedy.generation_kwargs["do_sample"]) == (1, False)
    assert drawn.repeats == 3
    wanted = {"do_sample": True, "temperature": 0.5, "top_k": 0, "top_p": 1.0}
    assert drawn.generation_kwargs.items() >= wanted.items()


def test_an_unknown_task_is_named_with_the_closest_known_one():
    with pytest.raises(ConfigError, match=r"unknown task 'gsm9k'. Did you mean 'gsm8k'\? Known: the groups offline"):
        load_tasks(["gsm9k"], samples=0, temperature=1.0)


def test_data_that_cannot_be_downloaded_is_named_with_its_task_and_what_to_do():
    with pytest.raises(DataError) as raised:
        load_tasks(["bridgegarden_arithmetic", "arc_challenge", "minerva_math", "mbpp"], samples=1, temperature=1.0)
    message = str(raised.value)
    assert "nothing was run" in message
    assert "arc_challenge (allenai/ai2_arc), minerva_math (EleutherAI/hendrycks_math), mbpp (google-research" in message
    assert "hf download --repo-type dataset allenai/ai2_arc" in message
    assert "bridgegarden_arithmetic" not in message


def test_a_task_that_would_run_programs_unconfined_is_refused():
    with pytest.raises(
        ConfigError, match=r"humaneval_plus: .* so it is not run here. .*confined: bridgegarden_programs"
    ):
        load_tasks(["humaneval_plus"], samples=0, temperature=1.0)


def test_a_missing_package_is_said(monkeypatch, one_index):
    def fails(names):
        raise ModuleNotFoundError("`sympy` is required. pip install lm-eval[math]")

    monkeypatch.setattr(one_index, "load", fails)
    with pytest.raises(ConfigError, match=r"minerva_math: needs a package .* pip install lm-eval\[math\]"):
        load_tasks(["minerva_math"], samples=0, temperature=1.0)
