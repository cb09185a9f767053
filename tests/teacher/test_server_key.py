import json

import pytest

from bridgegarden.data import Columns
from bridgegarden.errors import ConfigError
from bridgegarden.teacher.generate import Decoding, Questions, generate
from bridgegarden.teacher.server import Server, ServerEngine
from bridgegarden.teacher.server_key import Secret, api_key, check_url
from tests.teacher.servers import body, changed, serving, status

KEY = "sk-canary/0123456789abcdef"
ESCAPED = "".join(f"\\u{ord(letter):04x}" for letter in KEY)
SPELLINGS = {
    "plain": KEY,
    "escaped": ESCAPED,
    "upper": ESCAPED.replace("\\u006b", "\\u006B"),
    "twice": ESCAPED.replace("\\", "\\\\"),
    "slash": KEY.replace("/", "\\/"),
    "address": KEY.replace("/", "%2F"),
    "page": KEY.replace("/", "&#x2f;").replace("k", "&#107;"),
}


@pytest.fixture(autouse=True)
def no_key(monkeypatch):
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)


@pytest.fixture
def server():
    with serving() as running:
        yield running


def ask(server, output, rows=1, key=KEY, **options):
    engine = ServerEngine(Server(base_url=server.url, model="big", patience=0, timeout=5, **options), key)
    questions = Questions(
        rows=[{"q": f"question {i}"} for i in range(rows)], columns=Columns(prompt="q", completion="a")
    )
    return generate(questions, engine, output, Decoding(max_new_tokens=50))


def everything_written(folder):
    return "".join(path.read_text() for path in folder.rglob("*") if path.is_file())


def pieces(key, length=4):
    """Whatever of the key would help a reader."""
    return {key[start : start + length] for start in range(3, len(key) - length + 1)}


def test_the_key_reaches_the_server_and_nothing_else(server, tmp_path, monkeypatch, capfd, caplog):
    caplog.set_level("DEBUG")
    monkeypatch.setenv("MY_KEY", KEY)
    server.always = lambda content: (
        status(400, f"Incorrect API key provided: {KEY}") if "question 1" in str(content) else None
    )
    summary = ask(server, tmp_path / "out.jsonl", rows=2, key=api_key("MY_KEY"))
    assert server.keys == [f"Bearer {KEY}"] * 2
    assert "Incorrect API key provided: ***" in everything_written(tmp_path)
    output = capfd.readouterr()
    engine = ServerEngine(Server(base_url=server.url, model="m"), KEY)
    shown = f"{summary}{output.out}{output.err}{caplog.text}{engine!r}{engine._connection!r}"
    assert KEY not in shown + everything_written(tmp_path)


@pytest.mark.parametrize("code", [200, 400])
@pytest.mark.parametrize("spelling", SPELLINGS)
@pytest.mark.parametrize("before", [0, 287, 299])
def test_no_part_of_the_key_is_left_of_an_error_that_repeats_it(server, tmp_path, code, spelling, before):
    said = f'{{"error": {{"message": "{"x" * before}{SPELLINGS[spelling]}"}}}}'
    server.always = lambda content: lambda handler, content: handler.reply(code, said.encode()) or True
    assert ask(server, tmp_path / "out.jsonl").progress.failed == 1
    written = everything_written(tmp_path)
    assert not any(piece in written for piece in pieces(KEY) | pieces(SPELLINGS[spelling], 6))


@pytest.mark.parametrize("text", [f"{' ' * 4090}{KEY}", f"<p>{' ' * 70000}{KEY}", f'{{"error": "{ESCAPED}', KEY * 200])
def test_nor_of_one_that_is_no_json(server, tmp_path, text):
    server.always = lambda content: lambda handler, content: handler.reply(502, text.encode()) or True
    assert ask(server, tmp_path / "out.jsonl").progress.failed == 1
    assert not any(piece in everything_written(tmp_path) for piece in pieces(KEY) | pieces(ESCAPED, 6))


@pytest.mark.parametrize("spelling", ["plain", "escaped", "upper", "slash"])
@pytest.mark.parametrize("field", ["content", "model", "finish_reason", "key"])
def test_a_reply_that_repeats_the_key_is_not_kept(server, tmp_path, spelling, field):
    message = f'{{"content": "{"you sent KEY" if field == "content" else "fine"}"}}'
    reply = (
        f'{{"model": "{"KEY" if field == "model" else "m"}", "{"KEY" if field == "key" else "k"}": 1, "choices": '
        f'[{{"message": {message}, "finish_reason": "{"KEY" if field == "finish_reason" else "stop"}"}}]}}'
    )
    server.always = lambda content: body(reply.replace("KEY", SPELLINGS[spelling]).encode())
    assert ask(server, tmp_path / "out.jsonl").progress.failed == 1
    written = everything_written(tmp_path)
    assert not any(piece in written for piece in pieces(KEY) | pieces(SPELLINGS[spelling], 6))


def test_nor_one_that_spells_it_in_the_bytes_of_a_token(server, tmp_path):
    def spell(choice):
        choice["logprobs"]["content"][-1].update(token="x", bytes=list(KEY.encode()))

    server.always = lambda content: changed(spell)
    assert ask(server, tmp_path / "out.jsonl", top_logprobs=2).progress.failed == 1
    assert KEY not in everything_written(tmp_path)
    assert "holds our API key" in everything_written(tmp_path)


def test_a_short_key_is_guarded_too_and_one_that_any_text_may_hold_is_refused(server, tmp_path):
    server.always = lambda content: changed(lambda choice: choice["message"].update(content="you sent tok12345"))
    assert ask(server, tmp_path / "out.jsonl", key="tok12345").progress.failed == 1
    assert "tok12345" not in everything_written(tmp_path)
    with pytest.raises(ConfigError, match="has 5 characters; one of fewer than 8 cannot be told") as caught:
        ask(server, tmp_path / "other.jsonl", key="EMPTY")
    assert "EMPTY" not in str(caught.value)


def test_a_refused_key_ends_the_run_without_showing_it(server, tmp_path):
    server.always = lambda content: status(401, f"bad key {KEY}")
    with pytest.raises(ConfigError, match=r"it refuses the API key \(HTTP 401: bad key \*\*\*\)") as caught:
        ask(server, tmp_path / "out.jsonl", rows=5)
    assert KEY not in str(caught.value)
    with pytest.raises(ConfigError, match="it wants an API key, and OPENAI_API_KEY is not set"):
        ask(server, tmp_path / "other.jsonl", key=None)


def test_a_redirect_is_not_followed_with_the_key(server, tmp_path):
    with serving() as elsewhere:
        server.always = lambda content: status(307, Location=f"{elsewhere.url}/chat/completions")
        with pytest.raises(ConfigError, match="sends us elsewhere"):
            ask(server, tmp_path / "out.jsonl")
        assert elsewhere.keys == []


def test_keys_come_from_the_environment(monkeypatch):
    assert api_key() is None
    monkeypatch.setenv("OPENAI_API_KEY", f" {KEY}\n")
    assert api_key() == KEY
    with pytest.raises(ConfigError, match="takes the name of an environment variable") as caught:
        api_key(KEY)
    assert KEY not in str(caught.value)
    monkeypatch.setenv("OPENAI_API_KEY", f"{KEY}\nX-Evil: 1")
    with pytest.raises(ConfigError, match="characters that no key has") as caught:
        api_key()
    assert KEY not in str(caught.value)


def test_text_without_the_key_stays_as_it_is():
    text = json.dumps({"a": "sk-canar/0123456789abcdef é \u2028", "b": [1, 2.5, None]})
    assert Secret(KEY).masked(text) == Secret(None).masked(text) == text


@pytest.mark.parametrize(
    "url",
    [
        "localhost:8000",
        "ftp://host/v1",
        "http://",
        "http://a b/v1",
        "http://h\u00e9/v1",
        f"http://{'a' * 70}.com/v1",
        "http://h:99999/v1",
        f"http://me:{KEY}@host/v1",
        f"http://{KEY.replace('/', '')}@host/v1",
        f"http://h/v1?key={KEY}",
        f"http://h/v1#{KEY}",
        "http://h/v1?",
    ],
)
def test_an_address_that_is_none_or_holds_a_secret_is_refused_without_showing_it(url):
    with pytest.raises(ConfigError, match=r"teacher\.server: the server's address") as caught:
        check_url(url, "teacher.server")
    assert "canary" not in str(caught.value)
    with pytest.raises(ConfigError, match="the server's address"):
        Server(base_url=url, model="m")


def test_an_address_with_the_key_in_its_path_is_refused(server):
    with pytest.raises(ConfigError, match="address holds the API key") as caught:
        ServerEngine(Server(base_url=f"{server.url}/{KEY}", model="m"), KEY)
    assert "canary" not in str(caught.value)
