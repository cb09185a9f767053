"""The chat's page and what it answers, to whom: over HTTP, and in a browser."""

import http.client
import json
import signal
import subprocess
import sys
import threading
import time
from contextlib import contextmanager

import pytest
import torch

from bridgegarden.causal_lm_policy import CausalLMPolicy
from bridgegarden.chat import server as serving
from bridgegarden.chat.server import ChatServer
from bridgegarden.chat.session import Chat
from bridgegarden.errors import ConfigError
from bridgegarden.exact.tasks.arithmetic import ArithmeticWorld
from bridgegarden.quickstart import TEACHER
from bridgegarden.quickstart.result import STUDENT_SIZE
from bridgegarden.quickstart.student import load_teacher, load_tokenizer
from bridgegarden.study.students import new_llama
from bridgegarden.table import number, probability
from tests.chromium import chromium, needs_chromium
from tests.run.served import run
from tests.tiny import save_tiny, tiny_model, tiny_tokenizer

ASKED = {"messages": [{"role": "user", "content": "Begin with 5 and minus 1 then plus 3. What have we modulo 7?"}]}
SETTINGS = {"temperature": 0, "max_new_tokens": 6}
EVIL = "<img src=x onerror=\"document.title='taken'\"><script>document.title='taken'</script>"


@pytest.fixture(scope="module")
def pair() -> Chat:
    """The packaged teacher, and a student that has learnt nothing."""
    tokenizer = load_tokenizer()
    student = new_llama(ArithmeticWorld(), STUDENT_SIZE, 0)
    ours, theirs = (
        CausalLMPolicy(model, end_ids=[4], vocab_size=len(tokenizer)) for model in (student, load_teacher())
    )
    return Chat(ours, theirs, tokenizer, names=("student", "teacher"), generator=torch.Generator().manual_seed(0))


@contextmanager
def served(chat: Chat):
    with ChatServer(chat) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        try:
            yield server
        finally:
            server.shutdown()
            thread.join()


@pytest.fixture
def server(pair):
    with served(pair) as running:
        yield running


def asked(server: ChatServer, method: str, path: str, body: object = None, **headers: str):
    """Status, headers and text of what comes back."""
    connection = http.client.HTTPConnection("127.0.0.1", server.server_port, timeout=20)
    given = {name.replace("_", "-"): value for name, value in headers.items()}
    sent = body if isinstance(body, bytes | None) else json.dumps(body).encode()
    connection.request(method, path, sent, given)
    reply = connection.getresponse()
    found = reply.status, dict(reply.headers), reply.read().decode()
    connection.close()
    return found


def answer(server: ChatServer, body: object, **headers: str):
    """Status and lines of an answer."""
    headers = {"Content_Type": "application/json"} | headers
    status, _, text = asked(server, "POST", f"/{server.token}/answer", body, **headers)
    return status, [json.loads(line) for line in text.splitlines()]


def test_an_answer_comes_token_by_token_with_what_both_models_expected(pair, server):
    status, events = answer(server, ASKED | SETTINGS)
    assert status == 200
    written = list(pair.write(pair.prompt(ASKED), temperature=0.0, max_new_tokens=6))
    assert len(events) == len(written) == 6
    for told, one in zip(events, written, strict=True):
        assert told["card"]["text"] == one.piece.text
        assert one.teacher is not None
        assert one.distance is not None
        facts = dict(told["card"]["facts"])
        assert facts["teacher"] == f"{probability(one.teacher.prob)} for this token"
        assert facts["student"] == f"{probability(one.student.prob)} for this token"
        assert facts["apart"] == probability(one.distance)
        teacher, student = told["card"]["thoughts"]
        assert (teacher["model"], student["model"]) == ("teacher", "student")
        assert student["note"] == f"entropy {number(one.student.entropy, 2)}"
        assert [share for _, share, _ in teacher["top"]] == [round(likely.prob, 4) for likely in one.teacher.top]
        assert student["top"][0][2], "greedy: the likeliest is the one that was written"
        assert told["parts"] == (one.teacher.top[0].token != one.student.top[0].token)
        assert told["levels"][0] == round(one.distance * 10)
        assert told["levels"][1] == min(round(-one.teacher.log_prob / 6.9 * 10), 10)
    assert [told["end"] for told in events] == [None] * 5 + ["Cut at the most tokens that were asked for."]
    assert any(told["parts"] for told in events)


def test_without_a_teacher_the_student_s_own_probability_and_entropy_are_shown(pair):
    with served(Chat(pair.student, None, load_tokenizer(), names=("student", None))) as server:
        _, events = answer(server, ASKED | SETTINGS)
        _, _, page = asked(server, "GET", f"/{server.token}/")
    assert [len(told["levels"]) for told in events] == [2] * 6
    assert [thought["model"] for thought in events[0]["card"]["thoughts"]] == ["student"]
    assert not any(told["parts"] for told in events)
    assert "student&#39;s entropy" in page
    assert "teacher" not in page.partition("<main>")[2].partition("<script")[0]


@pytest.mark.parametrize("name", ["evil.example", "127.0.0.1", "127.0.0.1:1", "localhost.evil.example"])
def test_a_name_that_leads_here_is_not_answered(server, name):
    for method, path in (("GET", f"/{server.token}/"), ("POST", f"/{server.token}/answer")):
        status, _, text = asked(server, method, path, b"{}", Host=name)
        assert status == 403
        assert server.token not in text


@pytest.mark.parametrize("origin", ["http://evil.example", "null", "https://127.0.0.1:{port}", "http://127.0.0.1:1"])
def test_another_page_is_not_answered(server, origin):
    origin = origin.format(port=server.server_port)
    assert answer(server, ASKED | SETTINGS, Origin=origin)[0] == 403
    assert asked(server, "GET", f"/{server.token}/", Origin=origin)[0] == 403


def test_the_page_itself_is_answered_under_both_names(server):
    for name in ("127.0.0.1", "localhost"):
        host = f"{name}:{server.server_port}"
        assert asked(server, "GET", f"/{server.token}/", Host=host)[0] == 200
        assert answer(server, ASKED | SETTINGS | {"max_new_tokens": 1}, Host=host, Origin=f"http://{host}")[0] == 200


@pytest.mark.parametrize("path", ["/", "/answer", "/favicon.ico", "//", "/{half}/", "/{token}x/", "/%C3%A9/"])
def test_nothing_is_told_without_the_token(server, path):
    path = path.format(half=server.token[:8], token=server.token)
    status, _, text = asked(server, "GET", path)
    assert status == 403
    assert json.loads(text) == {"error": "the address lacks its token: take it as `bridgegarden chat` printed it."}
    assert asked(server, "POST", path, ASKED | SETTINGS, Content_Type="application/json")[0] == 403


def test_only_the_loopback_is_listened_to(server):
    assert server.server_address[0] == "127.0.0.1"
    assert len(server.token) >= 20


def test_the_page_may_do_nothing_but_ask_this_server(server):
    status, headers, page = asked(server, "GET", f"/{server.token}/")
    assert status == 200
    policy = headers["Content-Security-Policy"]
    assert policy.startswith("default-src 'none'; ")
    assert "connect-src 'self'" in policy
    assert "frame-ancestors 'none'" in policy
    assert "unsafe-eval" not in policy
    assert headers["Cache-Control"] == "no-store"
    assert headers["Referrer-Policy"] == "no-referrer"
    assert "://" not in page
    assert "Access-Control-Allow-Origin" not in headers


@pytest.mark.parametrize(
    ("change", "status", "words"),
    [
        ({"temperature": None}, 400, "temperature: expected a number"),
        ({"temperature": True}, 400, "temperature: expected a number"),
        ({"temperature": -1}, 400, "temperature must be"),
        ({"max_new_tokens": 1.5}, 400, "most tokens: expected a whole number"),
        ({"max_new_tokens": 0}, 400, "max_new_tokens must be"),
        ({"messages": [{"role": "user", "content": "\ud800"}]}, 400, "whole characters"),
        ({"messages": []}, 400, "conversation: expected 'messages'"),
        ({"messages": [{"role": "system", "content": "x"}, *ASKED["messages"]]}, 400, "roles are user and assistant"),
        ({"messages": [{"role": "user", "content": "1 " * 200}]}, 400, "128 is the most that can be read"),
    ],
)
def test_what_cannot_be_answered_is_refused_in_words(server, change, status, words):
    got, events = answer(server, ASKED | SETTINGS | change)
    assert got == status
    assert words in events[0]["error"]


def test_what_is_no_request_of_the_page_is_refused(server):
    assert answer(server, b"[1]")[0] == 400
    assert answer(server, b"{")[0] == 400
    assert answer(server, b"[" * 100_000)[0] == 400
    assert answer(server, ASKED | SETTINGS, Content_Type="text/plain")[0] == 415
    assert answer(server, b"x" * 10, Content_Length=str(serving.LARGEST + 1))[0] == 413
    assert asked(server, "POST", f"/{server.token}/other", b"{}", Content_Type="application/json")[0] == 404
    assert asked(server, "DELETE", f"/{server.token}/")[0] == 501


class Endless(Chat):
    """Writes until nobody listens, and counts."""

    def __init__(self, pair: Chat) -> None:
        self.__dict__.update(pair.__dict__)
        self.count = 0

    def write(self, *_, **__):
        (one,) = super().write(super().prompt(ASKED), temperature=0.0, max_new_tokens=1)
        while True:
            self.count += 1
            yield one
            time.sleep(0.005)


def started(server: ChatServer) -> http.client.HTTPResponse:
    """An answer of which one line was read."""
    connection = http.client.HTTPConnection("127.0.0.1", server.server_port, timeout=20)
    headers = {"Content-Type": "application/json"}
    connection.request("POST", f"/{server.token}/answer", json.dumps(ASKED | SETTINGS), headers)
    reply = connection.getresponse()
    reply.readline()
    return reply


def until(true) -> None:
    end = time.monotonic() + 20
    while not true():
        assert time.monotonic() < end
        time.sleep(0.005)


def test_nothing_is_written_once_nobody_listens_and_one_answer_at_a_time(pair):
    endless = Endless(pair)
    with served(endless) as server:
        reply = started(server)
        status, events = answer(server, ASKED | SETTINGS)
        assert status == 409
        assert "another answer is being written" in events[0]["error"]
        reply.close()
        until(lambda: not server.writing.locked())
        count = endless.count
        time.sleep(0.05)
        assert endless.count == count
        started(server).close()


def test_an_error_in_the_middle_of_an_answer_is_told_after_what_was_written(pair, monkeypatch):
    class Failing(Endless):
        def write(self, *_, **__):
            yield from [next(super().write())]
            raise MemoryError

    with served(Failing(pair)) as server:
        status, events = answer(server, ASKED | SETTINGS)
        assert status == 200
        assert [*events[0]][:2] == ["gap", "text"]
        assert events[1] == {"error": "out of memory (MemoryError). Begin a shorter conversation."}
        assert not server.writing.locked()


def test_a_port_that_is_taken_is_named(pair, server):
    with pytest.raises(ConfigError, match=rf"^--port: {server.server_port} cannot be listened to \(Address already in"):
        ChatServer(pair, server.server_port)


def test_the_command_refuses_what_is_no_model_or_has_another_tokenizer(tmp_path):
    done = run("chat", tmp_path / "nothing")
    assert done.exit_code == 2
    assert "MODEL '" in done.stderr
    save_tiny(tmp_path / "tiny", tiny_model("llama"), tiny_tokenizer())
    done = run("chat", tmp_path / "tiny", "--against", TEACHER)
    assert done.exit_code == 2
    assert "have different tokenizers" in done.stderr
    done = run("chat", "qwen2.5-7b-1.5b")
    assert done.exit_code == 2
    assert "has no trained model yet" in done.stderr


@pytest.mark.slow
def test_ctrl_c_ends_the_command_in_the_middle_of_an_answer():
    command = [sys.executable, "-m", "bridgegarden", "chat", str(TEACHER), "--device", "cpu"]
    # As at a terminal: a shell's background jobs, and what they start, ignore the signal.
    usual = signal.signal(signal.SIGINT, signal.default_int_handler)
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    signal.signal(signal.SIGINT, usual)
    assert process.stdout is not None
    address = process.stdout.readline().strip()
    port, token = address.removeprefix("http://127.0.0.1:").strip("/").split("/")
    connection = http.client.HTTPConnection("127.0.0.1", int(port), timeout=60)
    body = json.dumps(ASKED | {"temperature": 100, "max_new_tokens": 1000})
    connection.request("POST", f"/{token}/answer", body, {"Content-Type": "application/json"})
    connection.getresponse().readline()
    process.send_signal(signal.SIGINT)
    _, said = process.communicate(timeout=60)
    assert process.returncode == 0
    assert said.rstrip().endswith("ended.")
    assert "Traceback" not in said


@needs_chromium
def test_a_conversation_in_the_browser(pair, tmp_path):
    with served(pair) as server, chromium() as browser:
        browser.look(1280, 900)
        browser.open(server.address)
        assert browser.run("document.title") == "student: chat"
        say(browser, EVIL, 4)
        first = browser.run("document.querySelector('.text').innerText")
        assert browser.run("document.querySelectorAll('.text .token').length") == 4
        assert browser.run("document.querySelector('.asked').innerText") == EVIL
        say(browser, "minus 1", 3)
        assert browser.run("document.querySelectorAll('.turn').length") == 4
        assert "the likeliest" not in first
        # The second question was read behind the first one and its answer.
        sent = browser.run("window.sent")
        assert [message["role"] for message in sent["messages"]] == ["user", "assistant", "user"]
        assert sent["messages"][1]["content"] == browser.run("window.first")
        layers_and_cards(browser)
        assert browser.logged == []
        assert set(browser.requested) == {server.address, f"{server.address}answer"}
        browser.run("document.getElementById('new').click()")
        assert browser.run("document.querySelectorAll('.turn').length") == 0


SPY = """(() => { const real = window.fetch; window.fetch = async (to, how) => {
    window.sent = JSON.parse(how.body);
    const reply = await real(to, how);
    if (!window.first) { const copy = reply.clone(); copy.text().then(text => {
        window.first = text.trim().split('\\n').map(line => JSON.parse(line).said).join(''); }); }
    return reply; }; })()"""


def say(browser, words: str, most: int) -> None:
    """Write `words` and wait for the answer."""
    browser.run(f"window.sent || {SPY}")
    browser.run(f"document.getElementById('words').value = {json.dumps(words)}")
    browser.run(f"document.getElementById('most').value = {most}; document.getElementById('temperature').value = 0")
    browser.run("document.getElementById('words').focus()")
    browser.press("Enter")
    until(lambda: browser.run("document.getElementById('stop').hidden"))


def layers_and_cards(browser) -> None:
    """Every colouring differs from the others, and a token tells by mouse and by keyboard what was expected."""
    seen = set()
    for index in range(5):
        levels = browser.run(
            f"(() => {{ document.querySelectorAll('.switch input')[{index}].click();"
            "const text = document.querySelector('.text'); return [text.dataset.scale,"
            "...[...text.querySelectorAll('.token')].map(t => t.dataset.level)]; })()"
        )
        seen.add(tuple(levels))
    assert len(seen) >= 4
    browser.point(".text .token")
    card = browser.run("document.getElementById('card').innerText")
    assert "for this token" in card
    assert "teacher" in card
    browser.run("document.querySelector('.text .token').focus()")
    browser.press("ArrowRight")
    assert browser.run("document.activeElement === document.querySelectorAll('.text .token')[1]")
    assert browser.run("document.getElementById('card').innerText") != card
    browser.press("Escape")
    assert browser.run("document.getElementById('card').hidden")
    browser.run("document.querySelector('.sum button').click()")
    assert browser.run("document.activeElement.classList.contains('parts')")


@needs_chromium
def test_an_answer_is_stopped_and_a_refusal_leaves_what_was_said_in_the_browser(pair):
    with served(Endless(pair)) as server, chromium() as browser:
        browser.look(390, 800)
        browser.open(server.address)
        browser.run("document.getElementById('words').value = 'on'; document.getElementById('send').click()")
        until(lambda: browser.run("document.querySelectorAll('.text .token').length") > 3)
        browser.run("document.getElementById('stop').click()")
        until(lambda: browser.run("document.getElementById('stop').hidden"))
        assert "Stopped." in browser.run("document.querySelector('.sum').innerText")
        until(lambda: not server.writing.locked())
        assert browser.run("document.documentElement.scrollWidth") == 390
        browser.run("document.getElementById('system').value = 'x'")
        say(browser, "again", 3)
        assert "roles are user and assistant" in browser.run("document.getElementById('status').innerText")
        assert browser.run("document.getElementById('words').value") == "again"
        assert browser.run("document.querySelectorAll('.turn').length") == 2
