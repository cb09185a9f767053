import re

import pytest

from bridgegarden.errors import ConfigError
from bridgegarden.evaluation.tasks import FOLDER, GROUPS, OWN_TASKS, RUNS_CODE, choose


def test_groups_are_spelt_out_and_every_task_is_run_once():
    chosen = choose(["arc_challenge,offline", "bridgegarden_arithmetic"], allow_code_execution=True)
    assert chosen.tasks == ("arc_challenge", "bridgegarden_arithmetic", "bridgegarden_programs")
    assert chosen.left_out == ()


def test_without_leave_a_group_is_run_without_its_programs():
    chosen = choose(["offline"], allow_code_execution=False)
    assert chosen == (("bridgegarden_arithmetic",), ("bridgegarden_programs",))


@pytest.mark.parametrize("names", [["coding"], ["humaneval"], ["bridgegarden_programs", "offline"], ["gsm8k,mbpp"]])
def test_what_only_runs_programs_or_is_named_itself_needs_leave(names):
    with pytest.raises(
        ConfigError, match=r"answers are programs, which are run .* Allow it with --allow-code-execution"
    ):
        choose(names, allow_code_execution=False)


@pytest.mark.parametrize("names", [[], [""], [" , "]])
def test_no_task_is_refused(names):
    with pytest.raises(ConfigError, match=r"--tasks names no task. Groups: offline, reasoning, coding"):
        choose(names, allow_code_execution=False)


def test_own_tasks_have_a_file_each_and_those_that_run_code_say_so():
    files = {path.stem: path.read_text(encoding="utf-8") for path in FOLDER.glob("*.yaml")}
    assert files.keys() == OWN_TASKS
    says_so = {
        name for name, text in files.items() if re.search("^unsafe_code: true|^include: bridgegarden_pro", text, re.M)
    }
    assert says_so == RUNS_CODE


def test_the_paper_s_reasoning_benchmarks_are_in_their_group():
    assert {"bbh", "mmlu", "arc_challenge", "gsm8k", "minerva_math", "agieval_gaokao_mathqa"} <= set(
        GROUPS["reasoning"]
    )
