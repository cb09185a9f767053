import dataclasses
from pathlib import Path

from bridgegarden.run.record import TrainSummary
from bridgegarden.training.measured import Cost

SUMMARY = TrainSummary(
    steps=12,
    training={"loss": 1.25, "soft_loss": 0.5},
    evaluation={"loss": 1.5},
    free_running={},
    tokens_per_second=1234.0,
    wall_seconds=75.0,
    peak_memory=2_500_000_000,
    cost=Cost(teacher_tokens=20_000, student_tokens=10_000),
    model=Path("out/[b]/model"),
    output=Path("out/[b]"),
)


def test_the_summary_is_plain_text_with_losses_speed_memory_and_place():
    text = str(SUMMARY)
    for expected in ("Trained 12 steps", "1.25", "1.5", "0.5", "1,234 tokens/s", "1m 15s", "2.5 GB"):
        assert expected in text
    assert "\nTokens: 10,000 through the student, 20,000 through the teacher\n" in text
    assert text.endswith("The student is in out/[b]/model")
    assert "\x1b" not in text


def test_without_held_out_rows_there_is_no_column_for_them():
    assert "evaluation" in str(SUMMARY)
    assert "evaluation" not in str(dataclasses.replace(SUMMARY, evaluation={}))


def test_what_the_student_wrote_is_counted_where_it_wrote():
    cost = Cost(generated_tokens=3_000, answers=30)
    assert "0 through the teacher, 3,000 written by the student" in str(dataclasses.replace(SUMMARY, cost=cost))


def test_what_was_measured_on_the_student_s_own_texts_is_a_line_of_its_own():
    import dataclasses

    measured = {
        "free_running_loss": 12.34,
        "free_running_loss_stderr": 0.5,
        "exposure_bias": -1.25,
        "exposure_bias_stderr": 0.125,
    }
    text = str(dataclasses.replace(SUMMARY, free_running=measured))
    assert "On texts of its own the student loses 12.34 nats a text (standard error 0.5), -1.25 (0.12)" in text
    assert "texts of its own" not in str(SUMMARY)
