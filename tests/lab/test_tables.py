import csv
import io
from dataclasses import replace

import pytest
from rich.console import Console

from bridgegarden.lab.findings import difference, findings
from bridgegarden.lab.tables import COLUMNS, findings_csv, mean_table, means_csv, tables, tables_markdown
from tests.lab.made_up import SHAPES, made_up_result

RESULT = made_up_result()
ONE_SEED = made_up_result(worlds=("arithmetic",), seeds=(0,), sweep=False)


def rows(text: str) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO(text)))


def test_every_finding_is_a_line_that_says_the_same():
    found, read = findings(RESULT), rows(findings_csv(RESULT))
    assert len(found) == len(read) > 100
    for finding, row in zip(found, read, strict=True):
        assert (row["world"], row["regime"], row["claim"]) == (finding.world, finding.regime, finding.claim)
        assert (row["objective"], row["reference"]) == (finding.objective, finding.reference or "")
        assert row["verdict"] == finding.verdict
        if finding.effect.mean is None:
            assert row["effect"] == row["low"] == row["high"] == ""
            continue
        assert finding.effect.interval is not None
        assert float(row["effect"]) == finding.effect.mean
        assert (float(row["low"]), float(row["high"])) == finding.effect.interval


def test_other_differences_stand_beside_an_effect_under_their_own_names():
    row = next(row for row in rows(findings_csv(RESULT)) if row["claim"] == "2" and row["objective"] == "static")
    for name, place in (("success", 2), ("diversity", 3)):
        low, high = float(row[f"beside_{name}_low"]), float(row[f"beside_{name}_high"])
        assert low < float(row[f"beside_{name}"]) < high
        assert float(row[f"beside_{name}"]) == pytest.approx(SHAPES["static"][place] - SHAPES["soft"][place], abs=0.05)


def test_every_objective_of_every_regime_has_its_means():
    read = rows(means_csv(RESULT))
    loss = [row for row in read if row["quantity"] == "teacher_loss"]
    places = [(w, r, o) for w in RESULT.worlds for r in RESULT.regimes(w) for o in RESULT.objectives(w, r)]
    assert [(row["world"], row["regime"], row["objective"]) for row in loss] == places
    for row in loss:
        assert float(row["low"]) < float(row["mean"]) < float(row["high"])
        assert float(row["mean"]) == pytest.approx(SHAPES[row["objective"]][0], rel=0.03)


def test_the_errors_by_role_add_up_to_the_loss_on_own_answers():
    here = {row["quantity"]: float(row["mean"]) for row in rows(means_csv(ONE_SEED)) if row["objective"] == "soft"}
    parts = here["error_bridge"] + here["error_garden"] + here["error_forced"]
    assert parts == pytest.approx(here["student_loss"])
    assert here["student_loss"] == pytest.approx(here["teacher_loss"] + here["exposure_bias"])


def test_one_seed_leaves_intervals_empty():
    read = rows(means_csv(ONE_SEED)) + rows(findings_csv(ONE_SEED))
    assert {(row["low"], row["high"], row["seeds"]) for row in read} == {("", "", "1")}


def test_every_markdown_table_is_as_wide_in_each_line():
    blocks = [block.splitlines() for block in tables_markdown(RESULT).split("\n\n") if block.startswith("|")]
    assert len(blocks) == sum(1 + 2 * len(RESULT.regimes(world)) for world in RESULT.worlds)
    for block in blocks:
        assert len({line.count("|") for line in block}) == 1
        assert len(block) > 2


def test_a_reader_finds_claim_effect_interval_and_verdict():
    text = tables_markdown(RESULT)
    assert text.index("## arithmetic") < text.index("### arithmetic, small student") < text.index("## control")
    line = next(
        line for line in text.splitlines() if line.startswith("| 2: a hybrid has less") and "| static |" in line
    )
    assert "| soft | −0." in line
    assert " to −0." in line
    assert line.endswith("| holds |")


def test_means_come_with_half_of_their_intervals():
    world, regime = RESULT.worlds[0], RESULT.regimes(RESULT.worlds[0])[0]
    table = mean_table(RESULT, world, regime)
    on_terminal, in_file = table.text(200), tables_markdown(RESULT)
    for objective, row in zip(RESULT.objectives(world, regime), table.rows, strict=True):
        for (head, quantity, unit), cell in zip(COLUMNS.values(), row[1:], strict=True):
            effect = difference(RESULT, world, regime, objective, None, quantity)
            assert effect.interval is not None
            half = unit * (effect.interval.high - effect.interval.low) / 2
            assert float(cell.beside.removeprefix("± ")) == pytest.approx(half, rel=0.06)
            assert cell.line() in on_terminal or head == "of it, by leaving"
            assert cell.line() in in_file


def test_a_reader_of_one_seed_is_given_no_interval():
    text = tables_markdown(ONE_SEED)
    assert "over 1 seed," in text
    assert "±" not in text
    assert " to −" not in text


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
        assert row(text, f"{claim}: ")
    head = next(line for line in text.splitlines() if line.startswith("claim"))
    assert [name in head for name in ("small student", "few answers", "teacher slips", "no limit")] == [True] * 4


def test_a_claim_about_several_hybrids_says_how_many():
    lines = shown(made_up_result(worlds=("arithmetic",))).splitlines()
    start = next(place for place, line in enumerate(lines) if line.startswith("2: "))
    assert "holds" in lines[start]
    assert "4 yes, 1 no" in lines[start + 1]


def test_effects_come_with_their_intervals():
    lines = shown(made_up_result(worlds=("arithmetic",))).splitlines()
    start = next(place for place, line in enumerate(lines) if line.startswith("3b: "))
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
    assert "One seed" in text


def test_a_control_of_whose_claims_one_can_be_judged_has_a_table():
    result = made_up_result(worlds=("control",), sweep=False)
    few = replace(result, runs=tuple(run for run in result.runs if run.objective in ("hard", "entropy")))
    assert row(shown(few), "6: ")
