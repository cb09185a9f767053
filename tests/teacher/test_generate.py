import datetime
import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from bridgegarden.data import Columns, conversation, load_rows
from bridgegarden.errors import ConfigError, DataError, ModelError
from bridgegarden.teacher.answers import Key
from bridgegarden.teacher.generate import Answer, Decoding, Questions, generate

ROWS = [{"prompt": f"question {i}", "id": i * 7} for i in range(8)]


class Echo:
    """Answers with the prompt in capitals; `fails` and `cut` say for which rows it does not, or not wholly."""

    settings = {"generated_by": "echo"}

    def __init__(self, fails=(), cut=(), batch=3, text=None):
        self.fails, self.cut, self.batch, self.text = fails, cut, batch, text
        self.asked = []

    def answers(self, requests, decoding):
        requests = sorted(requests, key=lambda request: -request.key.row)
        for start in range(0, len(requests), self.batch):
            batch = requests[start : start + self.batch]
            self.asked += [request.key for request in batch]
            yield [(request, self.outcome(request)) for request in batch]

    def outcome(self, request):
        if request.key.row in self.fails:
            return "no"
        text = self.text or f"{request.chat.messages[-1]['content'].upper()} {request.key.sample}"
        ending = "length" if request.key.row in self.cut else "stop"
        return Answer(text=text, finish_reason=ending, generated_by="echo")


def run(output, engine=None, rows=ROWS, decoding=None, columns=Columns(), samples=1, **options):  # noqa: B008
    questions = Questions(rows=rows, columns=columns, samples=samples)
    return generate(questions, engine or Echo(), output, decoding or Decoding(), **options)


def rows_of(path):
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


@pytest.fixture
def output(tmp_path):
    return tmp_path / "folder" / "answers.jsonl"


@pytest.mark.parametrize(
    ("row", "columns"),
    [
        ({"prompt": "say "}, {}),
        ({"prompt": [{"role": "user", "content": "hi"}]}, {}),
        ({"prompt": [{"role": "user", "content": "hi"}], "completion": [{"role": "assistant", "content": "old"}]}, {}),
        ({"q": "hi"}, {"prompt": "q", "completion": "a"}),
        ({"q": "hi", "a": "old"}, {"prompt": "q", "completion": "a"}),
        ({"messages": [{"role": "user", "content": "hi"}]}, {}),
        ({"messages": [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "old"}]}, {}),
        ({"talk": [{"role": "system", "content": "s"}, {"role": "user", "content": "hi"}]}, {"messages": "talk"}),
    ],
)
def test_what_is_written_is_trained_on_with_the_same_columns(output, row, columns):
    columns = Columns(**columns)
    run(output, Echo(text="new"), rows=[row], columns=columns)
    (read,) = load_rows(str(output))
    chat = conversation(read, columns, place="")
    assert [message["content"] for message in chat.messages if message["role"] == "assistant"] == ["new"]
    assert chat.messages[chat.learn_from :][-1] == {"role": "assistant", "content": "new"}
    assert "old" not in output.read_text()


def test_rows_are_in_order_and_keep_their_columns(output):
    summary = run(output, samples=2, decoding=Decoding(temperature=1))
    got = rows_of(output)
    assert [(row["row"], row["sample"]) for row in got] == [(i, s) for i in range(8) for s in range(2)]
    assert [row["id"] for row in got[::2]] == [i * 7 for i in range(8)]
    assert got[3]["completion"] == "QUESTION 1 1"
    assert (summary.progress.total, summary.progress.answered) == (16, 16)


def test_only_what_is_missing_is_asked_again(output):
    run(output, Echo(fails={2, 5}))
    again = Echo(fails={5})
    summary = run(output, again)
    assert again.asked == [Key(5, 0), Key(2, 0)]
    assert (summary.progress.before, summary.progress.answered, summary.progress.failed) == (6, 1, 1)
    assert rows_of(Path(f"{output}.errors")) == [{"row": 5, "sample": 0, "error": "no"}]
    more = Echo()
    run(output, more, rows=[*ROWS, {"prompt": "new", "id": 0}])
    assert more.asked == [Key(8, 0), Key(5, 0)]
    assert [row["row"] for row in rows_of(output)] == list(range(9))


def test_more_samples_are_added_to_those_there(output):
    sampled = Decoding(temperature=0.5)
    run(output, decoding=sampled)
    more = Echo()
    run(output, more, decoding=sampled, samples=2)
    assert {key.sample for key in more.asked} == {1}
    assert len(rows_of(output)) == 16


def test_truncated_answers_are_left_out_and_counted_and_not_asked_again(output):
    summary = run(output, Echo(cut={1, 2}))
    assert "6 of 8 answers" in str(summary)
    assert "2 truncated, left out" in str(summary)
    again = Echo(cut={1, 2})
    assert run(output, again).truncated == 2
    assert again.asked == []
    assert [row["row"] for row in rows_of(output)] == [0, 3, 4, 5, 6, 7]


def test_truncated_answers_are_kept_if_asked_for_even_those_set_aside_before(output):
    run(output, Echo(cut={1, 2}))
    again = Echo()
    summary = run(output, again, keep_truncated=True)
    assert again.asked == []
    assert "8 of 8 answers" in str(summary)
    assert [row["finish_reason"] for row in rows_of(output)].count("length") == 2
    assert not Path(f"{output}.truncated").exists()


def test_with_more_tokens_only_truncated_answers_are_made_anew(output):
    run(output, Echo(cut={1, 2}), decoding=Decoding(max_new_tokens=10))
    again = Echo()
    run(output, again, decoding=Decoding(max_new_tokens=20))
    assert sorted(again.asked) == [Key(1, 0), Key(2, 0)]
    assert len(rows_of(output)) == 8
    with pytest.raises(ConfigError, match="max_new_tokens 20, now it is 10"):
        run(output, decoding=Decoding(max_new_tokens=10))


def test_other_settings_other_data_and_other_files_are_not_added_to(output):
    run(output)
    with pytest.raises(ConfigError, match=r"generated with temperature 0\.0, now it is 1\.0"):
        run(output, decoding=Decoding(temperature=1.0))
    with pytest.raises(DataError, match=r"answers\.jsonl:1: answers another prompt than train, row 0 asks"):
        run(output, rows=[{"prompt": "changed"}])
    foreign = output.with_name("foreign.jsonl")
    foreign.write_text('{"a": 1}\n')
    with pytest.raises(ConfigError, match="was not generated here"):
        run(foreign)
    assert foreign.read_text() == '{"a": 1}\n'
    with pytest.raises(ConfigError, match="is a folder"):
        run(output.parent)


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"prompt": " "}, "'prompt' is empty"),
        ({"question": "x"}, "has columns 'question'; expected 'messages', 'conversations', 'prompt'"),
        ({"prompt": 3}, "'prompt' is int 3"),
        ({"prompt": []}, "has nothing before the assistant speaks"),
        ({"prompt": "x", "image": b"png"}, r"column 'image' cannot be kept as JSON \(it holds a bytes\)"),
        ({"prompt": "x", "score": float("nan")}, "column 'score' cannot be kept as JSON"),
    ],
)
def test_a_row_that_cannot_be_asked_is_found_before_anything_is_generated(output, row, message):
    engine = Echo()
    with pytest.raises(DataError, match=f"^train, row 1: .*{message}"):
        run(output, engine, rows=[ROWS[0], row])
    assert engine.asked == []


def test_dates_are_kept_as_text(output):
    run(output, rows=[{"prompt": "x", "when": datetime.date(2026, 1, 2)}])
    assert rows_of(output)[0]["when"] == "2026-01-02"


def test_an_empty_answer_is_an_error(output):
    assert run(output, Echo(text="\n")).progress.failed == 8


def test_failures_without_end_stop_the_run_and_are_on_record(output):
    rows = [{"prompt": f"q{i}"} for i in range(50)]
    with pytest.raises(ModelError, match="21 requests failed one after the other, the last one because: no"):
        run(output, Echo(fails=range(50)), rows=rows)
    assert len(rows_of(Path(f"{output}.errors"))) == 21
    assert run(output, rows=rows).progress.answered == 50


def test_several_greedy_answers_are_refused(output):
    with pytest.raises(ConfigError, match="set a temperature"):
        run(output, samples=2)


@pytest.mark.parametrize(
    "bad", [{"temperature": -1}, {"temperature": float("nan")}, {"temperature": 1e-300}, {"max_new_tokens": 0}]
)
def test_decoding_out_of_range_is_refused(bad):
    with pytest.raises(ConfigError, match=next(iter(bad))):
        Decoding(**bad)


def test_a_line_torn_by_a_crash_is_made_anew(output):
    run(output)
    whole = output.read_bytes()
    output.write_bytes(whole[:-30])
    again = Echo()
    run(output, again)
    assert again.asked == [Key(7, 0)]
    assert output.read_bytes() == whole


def test_a_damaged_line_is_named(output):
    run(output)
    output.write_bytes(output.read_bytes().replace(b'"prompt"', b'"prompt', 1))
    with pytest.raises(DataError, match=r"answers\.jsonl:1: is damaged"):
        run(output)


def test_a_second_process_is_refused(output):
    class Nosy(Echo):
        def answers(self, requests, decoding):
            with pytest.raises(ConfigError, match="another process is writing it"):
                run(output)
            yield from super().answers(requests, decoding)

    run(output, Nosy())
    assert len(rows_of(output)) == 8


def test_a_full_disk_is_one_clear_line_and_leaves_whole_lines(output, monkeypatch):
    write, written = os.write, []

    def full(file, content):
        written.append(content)
        if len(written) > 3:
            raise OSError(28, "No space left on device")
        return write(file, content[: 1 + len(content) // 2])

    monkeypatch.setattr(os, "write", full)
    with pytest.raises(DataError, match=r"No space left on device\).*Free some space"):
        run(output, Echo(batch=1))
    monkeypatch.undo()
    assert all(row["completion"] for row in rows_of(output))
    assert run(output).progress.total == 8
    assert len(rows_of(output)) == 8


def test_progress_counts_answers(output):
    seen = []
    run(output, Echo(fails={0}), on_progress=seen.append)
    assert [progress.done for progress in seen] == [0, 3, 6, 8]
    assert seen[-1].failed == 1
    assert str(seen[-1]) == "7/8 answers, 1 failed"


SLOW = """
import sys, time
from pathlib import Path
sys.path.insert(0, {root!r})
from tests.teacher.test_generate import Echo, Questions, Decoding, generate
class Slow(Echo):
    def outcome(self, request):
        time.sleep(0.003)
        return super().outcome(request)
rows = [{{"prompt": f"question {{i}} " + "x" * 3000}} for i in range(120)]
print("go", flush=True)
generate(Questions(rows=rows), Slow(batch=4, cut={{5}}), Path(sys.argv[1]), Decoding())
"""


@pytest.mark.slow
def test_killed_at_any_moment_and_resumed_it_writes_the_same_bytes(tmp_path):
    program = [sys.executable, "-c", SLOW.format(root=str(Path(__file__).parents[2]))]
    output, random_moment = tmp_path / "killed.jsonl", random.Random(0)
    kills = 0
    for _ in range(6):
        process = subprocess.Popen([*program, str(output)], stdout=subprocess.PIPE)
        assert process.stdout is not None
        process.stdout.readline()
        time.sleep(random_moment.uniform(0.02, 0.2))
        process.send_signal(signal.SIGKILL)
        kills += process.wait() == -signal.SIGKILL
        process.stdout.close()
    assert kills > 0
    for path in (output, tmp_path / "whole.jsonl"):
        subprocess.run([*program, str(path)], check=True, stdout=subprocess.DEVNULL)
    assert output.read_bytes() == (tmp_path / "whole.jsonl").read_bytes()
    assert len(rows_of(output)) == 119
