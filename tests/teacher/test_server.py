import json
import re
import time
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime

import pytest

from bridgegarden.data import Columns
from bridgegarden.errors import ModelError
from bridgegarden.teacher.generate import Decoding, Questions, generate
from bridgegarden.teacher.server import Server, ServerEngine
from tests.teacher.servers import body, changed, cut_short, drip, hang, reset, serving, status

KEY = "sk-canary-0123456789abcdef"
COLUMNS = Columns(prompt="q", completion="a")


@pytest.fixture(autouse=True)
def no_proxy(monkeypatch):
    monkeypatch.setenv("no_proxy", "*")
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)


@pytest.fixture
def server():
    with serving() as running:
        yield running


def ask(server, output, rows=1, key=None, decoding=None, samples=1, columns=COLUMNS, **options):
    engine = ServerEngine(Server(base_url=server.url, model="big", **{"backoff": 0.01, "timeout": 5, **options}), key)
    rows = [{"q": f"question {i}"} for i in range(rows)] if isinstance(rows, int) else rows
    questions = Questions(rows=rows, columns=columns, samples=samples)
    return generate(questions, engine, output, decoding or Decoding(max_new_tokens=50))


def lines(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def errors(output):
    return {record["row"]: record["error"] for record in lines(output.with_name(f"{output.name}.errors"))}


def test_answers_are_rows_with_the_prompt_and_who_gave_them(server, tmp_path):
    summary = ask(server, tmp_path / "out.jsonl", rows=[{"q": "why", "id": "x7"}])
    assert lines(tmp_path / "out.jsonl") == [
        {
            "q": "why",
            "id": "x7",
            "a": "WHY",
            "row": 0,
            "sample": 0,
            "finish_reason": "stop",
            "generated_by": "served-2026",
        }
    ]
    assert str(summary) == f"1 of 1 answers in {tmp_path / 'out.jsonl'}"
    assert {path.name for path in tmp_path.iterdir()} == {"out.jsonl", "out.jsonl.settings"}


@pytest.mark.parametrize(
    "fault",
    [
        status(429),
        status(500),
        status(503),
        body(b'{"choices": [{"mess'),
        body(b"[]"),
        body(b'{"error": {"message": "upstream"}}'),
        cut_short,
        reset,
        hang(0.8),
        drip,
    ],
)
def test_what_may_pass_is_tried_again(server, tmp_path, fault):
    server.faults = [fault, fault]
    summary = ask(server, tmp_path / "out.jsonl", timeout=0.4)
    assert summary.progress.answered == 1
    assert len(server.seen) == 3


@pytest.mark.parametrize(
    ("fault", "reason"),
    [
        (status(429, "slow down"), r"HTTP 429: slow down\. \([2-9] attempts\)$"),
        (status(500), r"HTTP 500: busy"),
        (body(b'{"choices": [{"mess'), r"the reply is not whole JSON \(19 characters"),
        (cut_short, r"the reply is not whole JSON|the connection failed"),
        (reset, r"the connection failed"),
        (hang(0.8), r"no reply within 0\.4 s"),
        (drip, r"no reply within 0\.4 s"),
        (status(400, "too long"), r"^HTTP 400: too long\.$"),
        (body(b"{}"), r"the reply has no 'choices' \(it has nothing\)"),
        (changed(lambda c: c.update(finish_reason="content_filter")), r"finish_reason 'content_filter'"),
        (changed(lambda c: c["message"].update(content=None)), r"the answer holds no text"),
        (changed(lambda c: c["message"].update(content=" ")), r"the answer is empty"),
    ],
)
def test_what_does_not_pass_is_that_row_s_error_and_is_tried_by_the_next_run(server, tmp_path, fault, reason):
    output = tmp_path / "out.jsonl"
    server.always = lambda content: fault if "question 1" in str(content) else None
    summary = ask(server, output, rows=3, patience=0.05, timeout=0.4)
    assert (summary.progress.answered, summary.progress.failed) == (2, 1)
    assert list(errors(output)) == [1]
    assert re.search(reason, errors(output)[1])
    assert "1 failed" in str(summary)

    server.always, server.seen = (lambda content: None), []
    assert ask(server, output, rows=3).progress.answered == 1
    assert len(server.seen) == 1
    assert [row["row"] for row in lines(output)] == [0, 1, 2]
    assert not output.with_name("out.jsonl.errors").exists()


@pytest.mark.parametrize("header", [lambda: "1", lambda: format_datetime(datetime.now(UTC) + timedelta(seconds=2))])
def test_a_rate_limit_is_obeyed_by_all_requests(server, tmp_path, header):
    server.faults = [status(429, Retry_After=header())]
    began = time.monotonic()
    ask(server, tmp_path / "out.jsonl", rows=12, concurrency=2)
    late = [at for at in server.times if at - began < 0.9]
    assert len(late) <= 4  # those under way
    assert len(server.seen) == 13


NO_TIMES = ["soon", "-5", "nan", "", "Mon, 01 Jan 99999999999 00:00:00 GMT", "Mon, 1 Jan 2024 1:1:1 +99999999999999"]


@pytest.mark.parametrize("value", NO_TIMES)
def test_a_nonsensical_retry_after_does_not_stop_us(server, tmp_path, value):
    server.faults = [status(429, Retry_After=value)]
    assert ask(server, tmp_path / "out.jsonl").progress.answered == 1


def test_a_wait_longer_than_our_patience_is_that_row_s_error(server, tmp_path):
    server.always = lambda content: status(429, "slow down", Retry_After="1e999")
    began = time.monotonic()
    assert ask(server, tmp_path / "out.jsonl", patience=5).progress.failed == 1
    assert time.monotonic() - began < 3
    assert errors(tmp_path / "out.jsonl")[0] == "HTTP 429: slow down. It asks us to wait for 600 s."


def test_an_outage_is_told_and_waited_for_once_not_by_each_request(server, tmp_path):
    server.always = lambda content: status(503, "starting")
    told, began = [], time.monotonic()
    engine = ServerEngine(Server(base_url=server.url, model="big", patience=0.5, backoff=0.05), None, told.append)
    rows = [{"q": f"question {i}"} for i in range(60)]
    with pytest.raises(ModelError, match="HTTP 503: starting"):
        generate(Questions(rows=rows, columns=COLUMNS), engine, tmp_path / "out.jsonl", Decoding())
    assert told == ["no answer, trying again for 0.5 s in all: HTTP 503: starting."]
    assert 0.2 < time.monotonic() - began < 1.5  # the rows after the first few are not waited for


def test_by_default_a_request_is_tried_again_for_minutes():
    assert Server(base_url="http://h/v1", model="m").patience >= 120


def test_requests_run_side_by_side_but_no_more_than_asked_for(server, tmp_path):
    busy, most = [], []

    def slow(handler, content):
        busy.append(1)
        most.append(len(busy))
        time.sleep(0.1)
        busy.pop()
        return False

    server.always = lambda content: slow
    ask(server, tmp_path / "out.jsonl", rows=12, concurrency=4)
    assert 2 <= max(most) <= 4


def test_requests_one_after_the_other_share_a_connection(server, tmp_path):
    ask(server, tmp_path / "out.jsonl", rows=12, concurrency=3)
    assert len(server.seen) == 12
    assert len(server.connections) <= 3


def test_top_logprobs_are_kept_as_a_distribution_over_top_k_and_tail(server, tmp_path):
    output = tmp_path / "out.jsonl"
    ask(server, output, rows=[{"q": "aé"}], top_logprobs=3)
    (row,) = lines(output)
    kept = row["top_logprobs"]
    assert kept["tokens"] == ["A", "É", "<|im_end|>"]
    assert [len(values) for values in kept.values()] == [3] * 5
    for logps, tail in zip(kept["top_logprobs"], kept["log_tail"], strict=True):
        assert sum(2.718281828459045**logp for logp in [*logps, tail]) == pytest.approx(1)
    assert server.seen[0] | {"logprobs": True, "top_logprobs": 3} == server.seen[0]


def with_ids(choice):
    """As llama.cpp: an id beside every token, and no text for the end of turn."""
    for position in choice["logprobs"]["content"]:
        for number, token in enumerate((position, *position["top_logprobs"])):
            token["id"] = 7 + number
    choice["logprobs"]["content"][-1] |= {"token": "", "bytes": []}


def as_ids(choice):
    """As vLLM with --return-tokens-as-token-ids, which says nothing else about tokens."""
    for position in choice["logprobs"]["content"]:
        for number, token in enumerate((position, *position["top_logprobs"])):
            token["token"] = f"token_id:{7 + number}"
            token["bytes"] = list(token["token"].encode())


@pytest.mark.parametrize("manner", [with_ids, as_ids])
def test_ids_of_tokens_are_kept_where_the_server_says_them(server, tmp_path, manner):
    server.always = lambda content: changed(manner)
    ask(server, tmp_path / "out.jsonl", rows=[{"q": "ab"}], top_logprobs=3)
    kept = lines(tmp_path / "out.jsonl")[0]["top_logprobs"]
    assert kept["token_ids"] == [7, 7, 7]
    assert kept["top_token_ids"] == [[8, 9, 10]] * 3
    assert kept["tokens"] == (["A", "B", ""] if manner is with_ids else ["token_id:7"] * 3)


def test_ids_of_some_tokens_alone_are_not_kept(server, tmp_path):
    server.always = lambda content: changed(lambda choice: choice["logprobs"]["content"][0].update(id=7))
    ask(server, tmp_path / "out.jsonl", top_logprobs=3)
    assert "token_ids" not in lines(tmp_path / "out.jsonl")[0]["top_logprobs"]


def test_a_server_without_logprobs_ends_the_run_at_its_first_answer(server, tmp_path):
    server.always = lambda content: changed(lambda choice: choice.update(logprobs=None))
    with pytest.raises(ModelError, match="served-2026 answers without log-probabilities, though 3 a token were asked"):
        ask(server, tmp_path / "out.jsonl", rows=40, concurrency=1, top_logprobs=3)
    assert len(server.seen) <= 3
    assert lines(tmp_path / "out.jsonl") == []


def test_a_later_answer_without_the_logprobs_asked_for_is_kept_and_counted(server, tmp_path):
    without = changed(lambda choice: choice.update(logprobs=None))
    server.always = lambda content: without if "question 2" in str(content) else None
    summary = ask(server, tmp_path / "out.jsonl", rows=3, concurrency=1, top_logprobs=3)
    assert "3 of 3 answers" in str(summary)
    assert "1 without log-probabilities" in str(summary)


@pytest.mark.parametrize(
    "change",
    [
        lambda content: content.pop(0),
        lambda content: content.pop(),
        lambda content: content.append(content[-1]),
        lambda content: content[1]["top_logprobs"].clear(),
        lambda content: content[1]["top_logprobs"].extend(content[1]["top_logprobs"]),
        lambda content: content[1].pop("logprob"),
        lambda content: content[1]["top_logprobs"][0].update(logprob=0.5),
        lambda content: content[1]["top_logprobs"][1].update(logprob=-0.1),
        lambda content: content[1].update(logprob=None),
        lambda content: content.insert(0, 7),
    ],
)
def test_logprobs_that_are_not_those_of_the_answer_are_that_row_s_error(server, tmp_path, change):
    output = tmp_path / "out.jsonl"

    def twice_popped(choice):
        change(choice["logprobs"]["content"])
        if len(choice["logprobs"]["content"]) == 10:  # the end of turn may be left out, a token of the answer not
            choice["logprobs"]["content"].pop()

    bad = changed(twice_popped)
    server.always = lambda content: bad if "question 1" in str(content) else None
    summary = ask(server, output, rows=3, top_logprobs=3)
    assert summary.progress.answered == 2
    assert "log-probabilities" in errors(output)[1]
    assert len(server.seen) == 3


def test_plain_prompts_are_completed_as_text(server, tmp_path):
    output = tmp_path / "out.jsonl"
    ask(server, output, rows=[{"prompt": "say "}], columns=Columns(), top_logprobs=2)
    (row,) = lines(output)
    assert (row["prompt"], row["completion"]) == ("say ", "SAY ")
    assert row["top_logprobs"]["top_tokens"][0] == ["S", "other"]
    assert (server.seen[0]["prompt"], server.seen[0]["logprobs"]) == ("say ", 2)


def test_samples_have_seeds_of_their_own_that_do_not_depend_on_the_other_rows(server, tmp_path):
    decoding = Decoding(temperature=0.7, seed=3, max_new_tokens=50)
    ask(server, tmp_path / "out.jsonl", rows=2, samples=3, decoding=decoding, concurrency=1)
    assert len({content["seed"] for content in server.seen}) == 6
    assert {content["temperature"] for content in server.seen} == {0.7}
    seeds = [content["seed"] for content in server.seen[:3]]
    server.seen.clear()
    ask(server, tmp_path / "other.jsonl", rows=1, samples=3, decoding=decoding, concurrency=1)
    assert [content["seed"] for content in server.seen] == seeds


def test_greedy_is_temperature_zero_without_seed(server, tmp_path):
    ask(server, tmp_path / "out.jsonl")
    assert server.seen[0]["temperature"] == 0
    assert "seed" not in server.seen[0]


def test_models_that_know_the_limit_by_its_newer_name_are_asked_so(server, tmp_path):
    def refuse(handler, content):
        if "max_tokens" not in content:
            content["max_tokens"] = content["max_completion_tokens"]
            return False
        return status(400, "Use 'max_completion_tokens' instead.")(handler, content)

    server.always = lambda content: refuse
    assert ask(server, tmp_path / "out.jsonl", rows=3, concurrency=1).progress.answered == 3
    assert len(server.seen) == 4


def test_a_server_that_never_answers_ends_the_run(server, tmp_path):
    server.always = lambda content: status(404, "no such model")
    with pytest.raises(ModelError, match=r"[2-5]\d requests failed one after the other, .*HTTP 404: no such model"):
        ask(server, tmp_path / "out.jsonl", rows=60)
    assert len(server.seen) < 60
    assert len(errors(tmp_path / "out.jsonl")) >= 20


def test_nobody_listening_is_an_error_of_every_row(tmp_path):
    with serving() as gone:
        pass
    summary = ask(gone, tmp_path / "out.jsonl", rows=2, patience=0.1)
    assert summary.progress.failed == 2
    assert "the connection failed" in errors(tmp_path / "out.jsonl")[0]


def test_a_row_at_which_the_server_itself_fails_is_given_up_while_others_are_answered(server, tmp_path):
    broken = status(500, "a fault")

    def slowly(content):
        time.sleep(0.02)
        return broken if content["messages"][-1]["content"] == "question 0" else None

    server.always = slowly
    ask(server, tmp_path / "out.jsonl", rows=30, concurrency=2, patience=20)
    assert errors(tmp_path / "out.jsonl") == {0: "HTTP 500: a fault. (5 attempts)"}
    assert len(lines(tmp_path / "out.jsonl")) == 29
