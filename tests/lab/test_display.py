from dataclasses import replace

from rich.console import Console

from bridgegarden.lab.tables import tables
from tests.lab.made_up import made_up_result


def shown(result) -> str:
    console = Console(width=200, force_terminal=False)
    with console.capture() as capture:
        for table in tables(result):
            console.print(table)
    return "\n".join(line.strip() for line in capture.get().splitlines())


def row(text: str, start: str) -> str:
    return next(line for line in text.splitlines() if line.startswith(start))


def test_every_claim_has_a_row_and_every_regime_a_column():
    text = shown(made_up_result(worlds=("arithmetic",)))
    for claim in ("1", "2", "3a", "3b", "4", "5a", "5b"):
        assert row(text, f"{claim}  ")
    head = next(line for line in text.splitlines() if line.startswith("claim"))
    assert [name in head for name in ("small student", "few answers", "teacher slips", "no limit")] == [True] * 4


def test_a_claim_about_several_hybrids_says_how_many():
    lines = shown(made_up_result(worlds=("arithmetic",))).splitlines()
    start = next(place for place, line in enumerate(lines) if line.startswith("2  "))
    assert "holds" in lines[start]
    assert "4 yes, 1 no" in lines[start + 1]


def test_effects_come_with_their_intervals():
    lines = shown(made_up_result(worlds=("arithmetic",))).splitlines()
    start = next(place for place, line in enumerate(lines) if line.startswith("3b  "))
    assert "does not hold" not in lines[start]
    assert " to +" in lines[start + 1]


def test_exposure_bias_stands_beside_losses_success_violations_and_variety():
    text = shown(made_up_result(worlds=("arithmetic",)))
    heads = [line for line in text.splitlines() if line.startswith("objective")]
    assert len(heads) == 4
    for name in ("L_dT", "exposure bias", "L_dθ", "right, %", "off script, %", "variety kept, %"):
        assert name in heads[0]
    assert row(text, "soft").count("±") == 6


def test_the_control_has_claim_six_and_no_slips():
    text = shown(made_up_result(worlds=("control",)))
    assert "on the control none of the claims 1 to 4 holds" in " ".join(text.split())


def test_one_seed_has_no_intervals():
    text = shown(made_up_result(worlds=("arithmetic",), seeds=(0,)))
    assert "±" not in text
    assert "over 1 seed," in text


def test_a_control_of_whose_claims_one_can_be_judged_has_a_table():
    result = made_up_result(worlds=("control",), sweep=False)
    few = replace(result, runs=tuple(run for run in result.runs if run.objective in ("hard", "entropy")))
    assert row(shown(few), "6  ")
