from pathlib import Path

import lm_eval.tasks
import pytest
from lm_eval.tasks import TaskManager

from bridgegarden.errors import ConfigError, DataError
from bridgegarden.evaluation import load_tasks as module
from bridgegarden.evaluation.groups import GROUPS, OWN_TASKS
from bridgegarden.evaluation.load_tasks import load_tasks


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
