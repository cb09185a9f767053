import re
from dataclasses import replace

import pytest

from bridgegarden.lab.report import optimum, report_page, roles_of, sweep_weights
from bridgegarden.lab.result import Measured
from bridgegarden.study.arms import OBJECTIVES
from tests.lab.made_up import made_up_result

WHOLE = made_up_result()
SHORT = made_up_result(worlds=("arithmetic",), seeds=(0,), sweep=False)
EVIL = "<script>document.title=1</script>"


def text_of(result, tmp_path) -> str:
    return report_page(result).write(tmp_path / "report.html").read_text(encoding="utf-8")


def no_bridges(world: str, regime: str, objective: str, seed: int, measured: Measured) -> Measured:
    zero = {"bridge": 0.0}
    return replace(
        measured,
        teacher_visits_by_role={**measured.teacher_visits_by_role, **zero},
        teacher_loss_by_role={**measured.teacher_loss_by_role, **zero},
        exposure_bias_by_role={**measured.exposure_bias_by_role, **zero},
    )


def test_every_section_of_a_whole_run_is_there(tmp_path):
    text = text_of(WHOLE, tmp_path)
    for anchor in ("claims", "means", "roles", "positions", "sweep", "tokens", "words", "made"):
        assert f'<section id="{anchor}"' in text
    for objective in OBJECTIVES.values():
        assert f'<th scope="row">{objective.label}</th>' in text
    assert "2: a hybrid has less exposure bias than soft labels" in text
    assert "95 % t-intervals over 3 seeds" in text


def test_without_a_sweep_there_is_no_section_on_it(tmp_path):
    text = text_of(SHORT, tmp_path)
    assert 'id="sweep"' not in text
    assert "no intervals" in text
    assert "±" not in text


@pytest.mark.parametrize("objectives", [("hard", "entropy"), ("soft",)])
def test_a_run_of_few_objectives_makes_a_page(objectives, tmp_path):
    result = made_up_result(worlds=("control",), sweep=False, settings={"objectives": objectives})
    assert 'id="tokens"' in text_of(result, tmp_path)


def test_a_world_without_bridges_shows_gardens_alone(tmp_path):
    result = made_up_result(worlds=("control",), change=no_bridges)
    assert roles_of(result, "control") == ["garden"]
    assert "at Bridges" not in text_of(result, tmp_path)


def test_the_optimum_of_a_role_is_the_weight_with_its_lowest_error():
    def planted(world: str, regime: str, objective: str, seed: int, measured: Measured) -> Measured:
        error = {"bridge": 9.0, "garden": 9.0, "forced": 0.0}
        error |= {"static_0.3": {"bridge": 1.0}, "soft": {"garden": 1.0}}.get(objective, {})
        if (objective, seed) == ("static", 0):
            error["bridge"] = 0.5
        return replace(measured, teacher_loss_by_role=error, exposure_bias_by_role=dict.fromkeys(error, 0.0))

    result = made_up_result(worlds=("arithmetic",), change=planted)
    assert list(sweep_weights(result, "arithmetic")) == [0.0, 0.1, 0.3, 0.5, 0.7, 0.9, 1.0]
    assert optimum(result, "arithmetic", "bridge") == (0.3, 2)
    assert optimum(result, "arithmetic", "garden") == (1.0, 3)


def test_markup_in_a_token_or_a_prompt_stays_text(tmp_path):
    runs = []
    for run in WHOLE.runs:
        action = replace(run.example.tokens[0].actions[0], text=EVIL)
        token = replace(run.example.tokens[0], text=EVIL, actions=(action,))
        runs.append(replace(run, example=replace(run.example, prompt=EVIL, tokens=(token, *run.example.tokens[1:]))))
    text = text_of(replace(WHOLE, runs=tuple(runs), command=EVIL), tmp_path)
    assert EVIL not in text
    assert text.count("<script") == text_of(WHOLE, tmp_path).count("<script") == 2
    assert "&lt;script&gt;document.title=1&lt;/script&gt;" in text


def test_nothing_is_fetched_and_the_file_is_small(tmp_path):
    text = text_of(WHOLE, tmp_path)
    assert not re.findall(r'(?:src|href)="(?!#|data:)[^"]*"', text)
    assert "://" not in text
    assert len(text.encode()) <= 700_000
