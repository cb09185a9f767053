import json
import re

import pytest

from bridgegarden.errors import ConfigError, DataError, ModelError
from bridgegarden.evaluation.judge import Pair, judge
from bridgegarden.teacher.server import Server, ServerEngine
from tests.teacher.servers import body, cut_short, reset, serving, status

PAIRS = [Pair(f"question {i}", f"good answer {i}", f"bad answer {i}") for i in range(4)]
KEY = "sk-judge-0123456789abcdef"


def shown(content):
    """The two answers in the order in which the judge sees them."""
    return re.findall(r"answer:\n<(?:text-\w+)>\n(.*?)\n</", content["messages"][1]["content"], re.DOTALL)


def says(text):
    return body(json.dumps({"choices": [{"finish_reason": "stop", "message": {"content": text}}]}).encode())


def prefers(choose):
    """A judge that sees two answers and says 'first', 'second', 'tie' or anything else."""
    return lambda content: says(f"Because of this.\nVerdict: {choose(*shown(content))}")


@pytest.fixture
def server():
    with serving() as running:
        running.always = prefers(lambda first, second: "first" if "good" in first else "second")
        yield running


def engine(server, concurrency=2):
    settings = Server(
        base_url=server.url, model="judge", patience=0.05, backoff=0.01, concurrency=concurrency, timeout=5.0
    )
    return ServerEngine(settings, KEY)


def test_a_judge_that_sees_the_better_answer_wherever_it_stands(server, tmp_path):
    result = judge(PAIRS, engine(server), tmp_path / "verdicts.jsonl")
    assert result.win_rate == (1.0, 0.0, 4)
    assert (result.wins, result.ties, result.losses, result.failed) == (4, 0, 0, 0)
    assert result.shown_first_wins == 0.5
    assert result.verdict == "first"
    assert len(server.seen) == 8
    assert {seen["temperature"] for seen in server.seen} == {0.0}


def test_a_judge_that_only_likes_the_first_place_finds_nothing(server, tmp_path):
    server.always = prefers(lambda first, second: "first")
    result = judge(PAIRS, engine(server), tmp_path / "verdicts.jsonl")
    assert (result.win_rate.mean, result.ties, result.shown_first_wins, result.verdict) == (0.5, 4, 1.0, None)


def test_a_tie_in_one_order_is_half_a_point_there(server, tmp_path):
    server.always = prefers(lambda first, second: "first" if "good" in first else "tie")
    result = judge(PAIRS, engine(server), tmp_path / "verdicts.jsonl")
    assert result.win_rate.mean == 0.75
    assert result.wins == 4


def test_a_taste_for_length_shows_beside_the_win_rate(server, tmp_path):
    server.always = prefers(lambda first, second: "first" if len(first) > len(second) else "second")
    pairs = [Pair(f"q{i}", "short", "a much longer answer" if i else "no") for i in range(5)]
    result = judge(pairs, engine(server), tmp_path / "verdicts.jsonl")
    assert result.longer_wins == 1.0
    assert result.mean_characters == (5.0, (4 * 20 + 2) / 5)
    assert "it was the longer one in 100 % of the pairs" in str(result)


def test_equal_answers_are_a_tie_without_asking(server, tmp_path):
    pairs = [Pair("q", "same", "same "), *PAIRS[:1]]
    result = judge(pairs, engine(server), tmp_path / "verdicts.jsonl")
    assert (result.ties, result.wins) == (1, 1)
    assert len(server.seen) == 2


def test_verdicts_are_not_asked_for_twice(server, tmp_path):
    first = judge(PAIRS, engine(server), tmp_path / "verdicts.jsonl")
    assert judge(PAIRS, engine(server), tmp_path / "verdicts.jsonl") == first
    assert len(server.seen) == 8
    changed = [PAIRS[0]._replace(second="bad, and new"), *PAIRS[1:]]
    judge(changed, engine(server), tmp_path / "verdicts.jsonl")
    assert len(server.seen) == 10


def test_another_judge_is_asked_anew(server, tmp_path):
    judge(PAIRS[:2], engine(server), tmp_path / "verdicts.jsonl")
    other = ServerEngine(Server(base_url=server.url, model="other"), None)
    judge(PAIRS[:2], other, tmp_path / "verdicts.jsonl")
    assert len(server.seen) == 8


def test_an_interrupted_run_keeps_what_it_had_and_goes_on(server, tmp_path):
    def stop(done, total):
        if done >= 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        judge(PAIRS, engine(server, concurrency=1), tmp_path / "verdicts.jsonl", on_progress=stop)
    kept = len((tmp_path / "verdicts.jsonl").read_text().splitlines())
    assert kept >= 3
    with (tmp_path / "verdicts.jsonl").open("a") as file:
        file.write('{"key": "torn')  # as a crash leaves it
    assert judge(PAIRS, engine(server), tmp_path / "verdicts.jsonl").win_rate.mean == 1.0
    keys = [json.loads(line)["key"] for line in (tmp_path / "verdicts.jsonl").read_text().splitlines()]
    assert len(keys) == len(set(keys)) == 8


@pytest.mark.parametrize("fault", [status(429, retry_after="0"), status(503), cut_short, reset, body(b"[]")])
def test_what_may_pass_is_tried_again(server, tmp_path, fault):
    server.faults = [fault]
    result = judge(PAIRS[:2], engine(server), tmp_path / "verdicts.jsonl")
    assert (result.win_rate.mean, result.failed) == (1.0, 0)
    assert len(server.seen) == 5


def test_a_reply_without_a_verdict_is_asked_again_with_a_reminder(server, tmp_path):
    server.faults = [says("I think that both have merits. Is a verdict needed?")]
    result = judge(PAIRS[:2], engine(server, concurrency=1), tmp_path / "verdicts.jsonl")
    assert (result.win_rate.mean, result.failed) == (1.0, 0)
    again = server.seen[-1]["messages"]
    assert [message["role"] for message in again] == ["system", "user", "assistant", "user"]
    assert again[2]["content"].startswith("I think that both")
    assert "holds no verdict" in again[3]["content"]


def test_a_pair_that_gets_no_verdict_is_left_out_and_counted(server, tmp_path):
    usual = server.always
    server.always = lambda content: says("no idea") if "question 0" in str(content["messages"]) else usual(content)
    result = judge(PAIRS, engine(server), tmp_path / "verdicts.jsonl")
    assert (result.failed, result.win_rate) == (1, (1.0, 0.0, 3))
    assert len(server.seen) == 6 + 2 * 3
    server.always = usual
    assert judge(PAIRS, engine(server), tmp_path / "verdicts.jsonl").failed == 0


def test_refusals_are_not_tried_for_ever(server, tmp_path):
    usual = server.always
    server.always = lambda content: status(400, "no") if "question 0" in str(content["messages"]) else usual(content)
    assert judge(PAIRS, engine(server), tmp_path / "verdicts.jsonl").failed == 1
    assert len(server.seen) == 8


def test_a_judge_that_never_decides_ends_the_run(server, tmp_path):
    server.always = lambda content: says("no idea")
    pairs = [Pair(f"q{i}", "a", "b") for i in range(30)]
    with pytest.raises(ModelError, match=r"questions failed one after the other.*holds no verdict \('no idea'\)"):
        judge(pairs, engine(server), tmp_path / "verdicts.jsonl")
    assert len(server.seen) < 40


def test_a_refused_key_ends_the_run_and_is_not_shown(server, tmp_path):
    server.always = lambda content: status(401, f"bad key {KEY}")
    with pytest.raises(ConfigError, match="refuses the API key") as raised:
        judge(PAIRS, engine(server), tmp_path / "verdicts.jsonl")
    assert KEY not in str(raised.value)


def test_no_key_is_written_down(server, tmp_path):
    judge(PAIRS, engine(server), tmp_path / "verdicts.jsonl")
    assert set(server.keys) == {f"Bearer {KEY}"}
    assert KEY not in (tmp_path / "verdicts.jsonl").read_text()


def test_a_damaged_line_is_named(server, tmp_path):
    (tmp_path / "verdicts.jsonl").write_text('{"key": "k", "verdict": "both"}\n')
    with pytest.raises(DataError, match=r"verdicts.jsonl:1: is no verdict"):
        judge(PAIRS, engine(server), tmp_path / "verdicts.jsonl")


def test_one_prompt_is_too_few_for_an_error(server, tmp_path):
    with pytest.raises(DataError, match="1 prompts have verdicts"):
        judge(PAIRS[:1], engine(server), tmp_path / "verdicts.jsonl")
