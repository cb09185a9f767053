import io
import json
import logging
import subprocess
import sys

import pytest
from rich.table import Table
from rich.text import Text

from bridgegarden.terminal import (
    Display,
    PlainLines,
    TimeLeft,
    counted,
    duration,
    one_line,
    plain,
    plain_console,
    plain_json,
    say,
)

HOSTILE = "\x1b[31mred\x07 \x1b]0;title\x07 \x9b2J \u202eback \r over \x7f \u2066 \x00"
OBEYED = [*range(0x00, 0x09), *range(0x0B, 0x20), *range(0x7F, 0xA0), 0x200F, 0x202E, 0x2066, 0x2028]


def console(**options):
    return plain_console(file=io.StringIO(), width=80, highlight=False, **options)


def assert_harmless(text: str) -> None:
    assert not [character for character in text if ord(character) in OBEYED]


def test_a_message_cannot_break_the_line_or_steer_the_terminal():
    assert one_line("row 3:\n  got '\x1b[31mred\x07'\u202e") == r"row 3: got '\x1b[31mred\x07'\u202e"


def test_text_keeps_its_length_lines_and_tabs_and_every_script():
    text = "α\tβ\n家族 👩\u200d👩 नमस्ते שלום"
    assert plain(text) == text
    assert len(plain(HOSTILE)) == len(HOSTILE)
    assert_harmless(plain(HOSTILE))


def test_json_is_escaped_and_means_the_same():
    text = plain_json(json.dumps({"token": HOSTILE, "other": "家"}, ensure_ascii=False))
    assert_harmless(text)
    assert "家" in text
    assert json.loads(text) == {"token": HOSTILE, "other": "家"}


def test_indented_json_keeps_its_lines():
    assert plain_json(json.dumps([1, 2], indent=1)) == "[\n 1,\n 2\n]"


@pytest.mark.parametrize("kind", ["string", "text", "table", "title"])
def test_nothing_that_a_console_prints_of_others_is_obeyed(kind):
    table = Table("head", title=HOSTILE if kind == "title" else None)
    table.add_row(Text(HOSTILE) if kind == "table" else "cell")
    out = console()
    out.print({"string": HOSTILE, "text": Text(HOSTILE)}.get(kind, table), markup=False)
    assert "red" in out.file.getvalue()
    assert_harmless(out.file.getvalue())


def test_a_terminal_still_gets_its_own_colours():
    out = console(force_terminal=True, color_system="standard")
    out.print(Text("warning", style="yellow"))
    assert out.file.getvalue() == "\x1b[33mwarning\x1b[0m\n"
    out.print(Text(HOSTILE, style="yellow"))
    assert out.file.getvalue().count("\x1b") == 4


def test_results_are_printed_plain(capsys):
    say(f"row: {HOSTILE}\nnext")
    out = capsys.readouterr().out
    assert out.endswith("\nnext\n")
    assert_harmless(out)


def test_a_line_of_the_log_is_one_plain_line():
    record = logging.LogRecord("bridgegarden", logging.WARNING, "", 0, "%s: dropped\n2 rows", (HOSTILE,), None)
    line = PlainLines().format(record)
    assert "\n" not in line
    assert_harmless(line)


@pytest.mark.parametrize(("seconds", "text"), [(8.4, "8s"), (200, "3m 20s"), (7500, "2h 05m")])
def test_a_duration_is_written_for_people(seconds, text):
    assert duration(seconds) == text


@pytest.mark.parametrize(("count", "text"), [(0, "0 rows"), (1, "1 row"), (2000, "2,000 rows")])
def test_one_is_no_plural(count, text):
    assert counted(count, "row") == text


def watched(total, paces):
    """Estimates while units are done, each taking so many seconds: ``[(done, seconds left or None)]``."""
    now = [0.0]
    left = TimeLeft(total, clock=lambda: now[0])
    left.update(0)
    told = []
    for done, pace in enumerate(paces, start=1):
        now[0] += pace
        left.update(done)
        told.append((done, left.seconds()))
    return told


def test_an_even_pace_is_told_after_a_few_seconds_and_is_right():
    told = watched(100, [1.0] * 100)
    assert [done for done, seconds in told if seconds is None] == [1, 2, 100]
    assert all(seconds == pytest.approx(100 - done) for done, seconds in told if seconds is not None)


def test_a_slow_start_is_not_taken_for_the_pace():
    # Two minutes of warming up for ten steps, then a step a second.
    told = watched(200, [12.0] * 10 + [1.0] * 190)
    estimates = [(done, seconds) for done, seconds in told if seconds is not None and done > 11]
    assert estimates
    assert all(seconds < 1.6 * (200 - done) for done, seconds in estimates)


def test_time_that_passes_without_progress_is_taken_off():
    now = [0.0]
    left = TimeLeft(10, clock=lambda: now[0])
    for done in range(6):
        now[0] = 2.0 * done
        left.update(done)
    assert left.seconds() == pytest.approx(10.0)
    now[0] += 1.0
    assert left.seconds() == pytest.approx(9.0)
    assert left.text() == "9s left"


def test_what_was_done_before_is_no_pace():
    now = [0.0]
    left = TimeLeft(100, clock=lambda: now[0])
    for done in range(90, 95):
        now[0] += 10.0
        left.update(done)
    assert left.seconds() == pytest.approx(60.0)


def test_many_marks_are_thinned_and_the_estimate_stays():
    assert watched(5000, [1.0] * 4000)[-1][1] == pytest.approx(1000.0, rel=0.01)


def test_a_run_goes_on_when_nobody_reads_what_it_tells():
    script = (
        "import sys; from bridgegarden.terminal import stderr_console; console = stderr_console(); sys.stdin.read(1);"
        "[console.print('step', n) for n in range(3)]; print('saved')"
    )
    pipes = dict.fromkeys(("stdin", "stdout", "stderr"), subprocess.PIPE)
    with subprocess.Popen([sys.executable, "-c", script], **pipes) as run:
        run.stderr.close()
        run.stdin.write(b".")
        run.stdin.close()
        assert run.stdout.read() == b"saved\n"
    assert run.returncode == 0


class Screen(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize("error", [KeyboardInterrupt, RuntimeError])
def test_a_bar_gives_the_terminal_back_however_work_ends(error, monkeypatch):
    monkeypatch.setenv("TERM", "xterm")
    screen = Screen()

    def work():
        with Display(plain_console(file=screen, force_terminal=True, width=100), "rows", 4) as display:
            display.update(3, words="rows of \x1b[31m[red]")
            raise error

    with pytest.raises(error):
        work()
    assert "3/4" in screen.getvalue()
    assert "\u241b[31m[red]" in screen.getvalue()
    assert screen.getvalue().rstrip().endswith("\x1b[?25h")


def test_without_a_terminal_progress_is_a_line_now_and_then():
    log = io.StringIO()
    with Display(plain_console(file=log), "rows", every=60.0) as display:
        display.update(1, total=4)
        display.update(2, line="phase two", now=True)
        display.every = 0.0
        display.update(3)
        display.say("done")
    assert log.getvalue().splitlines() == ["phase two", "rows: 3 of 4", "done"]
