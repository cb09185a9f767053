import asyncio
import copy
import gc
import json
import random
import resource
import shutil
import socket
import ssl
import subprocess
import threading
import time

import pytest
from yarl import URL

from bridgegarden.data import Columns
from bridgegarden.errors import ConfigError
from bridgegarden.files import line_of
from bridgegarden.teacher.foreign_values import Unfit
from bridgegarden.teacher.generate import Answer, Decoding, Questions, generate
from bridgegarden.teacher.server import Server, ServerEngine
from bridgegarden.teacher.server_connection import BadReply, Connection, Secret, api_key, check_url, read_reply
from bridgegarden.teacher.server_logprobs import kept_logprobs
from tests.teacher.servers import body, changed, reply_to, serving, status, talking

KEY = "sk-canary/0123456789abcdef"
PROXIES = ("http_proxy", "https_proxy", "all_proxy", "no_proxy")


@pytest.fixture(autouse=True)
def no_proxies(monkeypatch):
    for name in (*PROXIES, *map(str.upper, PROXIES)):
        monkeypatch.delenv(name, raising=False)


def post(connection, path, content):
    async def once():
        async with connection.client() as client:
            return await connection.ask(client, path, content)

    return asyncio.run(once())


def drip(text, every=0.05):
    """Send it byte by byte, over and over."""

    def talk(client):
        while True:
            for byte in text:
                client.sendall(bytes([byte]))
                time.sleep(every)

    return talk


def after(head, then):
    def talk(client):
        client.sendall(head)
        then(client)

    return talk


@pytest.mark.parametrize(
    "talk",
    [
        after(b"HTTP/1.1 200 ", drip(b"O" * 60000)),
        after(b"HTTP/1.1 200 OK\r\n", drip(b"X-Header: xxx")),
        after(b"HTTP/1.1 200 OK\r\n\r\n", drip(b" ")),
        after(b"HTTP/1.1 500 No\r\nContent-Length: 100000\r\n\r\n", drip(b"no ")),
        after(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n", drip(b"0" * 60000)),
        after(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n", drip(b"1\r\n \r\n")),
        drip(b"HTTP/1.1 100 Continue\r\n\r\n", every=0.001),
        drip(b"HTTP/1.1 100 Continue\r\nX: y\r\n\r\n", every=0.001),
        lambda client: time.sleep(0.9),
    ],
)
def test_one_deadline_holds_for_all_of_a_request_however_slowly_the_reply_comes(talk):
    with talking(talk) as (port, _):
        began = time.monotonic()
        with pytest.raises(BadReply, match=r"^no reply within 0\.3 s\.$"):
            post(Connection(f"http://127.0.0.1:{port}/v1", KEY, timeout=0.3), "chat/completions", {})
        assert time.monotonic() - began < 0.8


@pytest.mark.filterwarnings("ignore:unclosed:ResourceWarning")  # it holds what it could not send when the loop ends
def test_a_server_that_does_not_read_is_not_waited_for_beyond_the_deadline():
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
        with pytest.raises(BadReply, match=r"no reply within 0\.3 s"):
            post(Connection(f"http://127.0.0.1:{port}", None, timeout=0.3), "x", {"prompt": "x" * (1 << 25)})
        gc.collect()


def test_an_address_of_a_name_that_does_not_answer_leaves_time_for_the_next(monkeypatch):
    with serving() as server, socket.create_server(("127.0.0.2", server.server_port), backlog=0) as deaf:
        queued = [socket.socket() for _ in range(3)]
        for one in queued:  # so that nobody else gets in
            one.setblocking(False)
            one.connect_ex(deaf.getsockname())
        hosts = ("127.0.0.2", "127.0.0.1")
        found = [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (host, server.server_port)) for host in hosts]
        monkeypatch.setattr(socket, "getaddrinfo", lambda *args, **options: found)
        content = {"messages": [{"content": "hi"}], "max_tokens": 9}
        reply = post(
            Connection(f"http://name.example:{server.server_port}/v1", None, timeout=2), "chat/completions", content
        )
        assert json.loads(reply.text)["choices"]
        for one in queued:
            one.close()


@pytest.mark.parametrize("hosts", [["127.0.0.1"], ["127.0.0.2", "127.0.0.1"]])
def test_where_nobody_listens_the_system_s_reason_is_told(monkeypatch, hosts):
    found = [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (host, 9)) for host in hosts]
    monkeypatch.setattr(socket, "getaddrinfo", lambda *args, **options: found)
    with pytest.raises(BadReply, match=r"^the connection failed \(\[Errno 111\] .*127\.0\.0\.[12]"):
        post(Connection("http://name.example:9/v1", None, timeout=2), "x", {})


def chunked(*lines):
    return b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n" + b"\r\n".join(lines)


@pytest.mark.parametrize(
    "said",
    [
        b"",
        b"garbage\r\n\r\n",
        b"\x15\x03\x03\x00\x02\x02\x28",  # an alert of TLS
        b"HTTP/1.1 99 No\r\n\r\n",
        b"HTTP/1.1 999 No\r\n\r\n",
        b"HTTP/1.1 101 Switching Protocols\r\n\r\n",
        b"HTTP/1.1 204 No Content\r\n\r\n",
        b"HTTP/1.1 407 Who\r\n\r\n",
        b"HTTP/1.1 200 OK\r\n" + b"X: y\r\n" * 150 + b"\r\n",
        b"HTTP/1.1 200 OK\r\nX: " + b"y" * 70000 + b"\r\n\r\n",
        b"HTTP/1.1 200 " + b"y" * 70000 + b"\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: -7\r\n\r\n{}x",
        b"HTTP/1.1 200 OK\r\nContent-Length: 99999999999999999999\r\n\r\n{",
        b"HTTP/1.1 200 OK\r\nContent-Length: nine\r\n\r\n{",
        chunked(b"-5", b"{}", b""),
        chunked(b"zz", b"{}", b""),
        chunked(b"ffffffffffffffffffff", b"{}", b""),
        chunked(b"5", b"{}"),
        b"HTTP/1.1 " + KEY.encode() + b"\r\n\r\n",
    ],
)
def test_what_is_not_http_is_one_short_line_or_a_reply_of_no_worth(said):
    with talking(lambda client: client.sendall(said)) as (port, _):
        connection = Connection(f"http://127.0.0.1:{port}/v1", KEY, timeout=2)
        try:
            text = post(connection, "chat/completions", {}).text
        except BadReply as bad:
            text = str(bad)
            assert text.isprintable()
            assert len(text) < 400
        assert KEY not in text
        assert len(text) < 400


def test_a_reply_without_end_is_given_up():
    def endless(client):
        client.sendall(b"HTTP/1.1 200 OK\r\n\r\n")
        while True:
            client.sendall(b" " * (1 << 20))

    with talking(endless) as (port, _):
        with pytest.raises(BadReply, match="the reply is longer than 67108864 bytes"):
            post(Connection(f"http://127.0.0.1:{port}", None, timeout=30), "x", {})


# Proxies


@pytest.mark.parametrize("name", ["http_proxy", "all_proxy"])
def test_a_server_on_plain_http_is_asked_without_a_proxy_which_would_read_the_key(monkeypatch, name):
    with serving() as server, talking(lambda client: None) as (port, heard):
        monkeypatch.setenv(name, f"http://127.0.0.1:{port}")
        content = {"messages": [{"content": "hi"}], "max_tokens": 9}
        assert post(Connection(server.url, KEY, timeout=2), "chat/completions", content).text
        assert heard == []


@pytest.mark.parametrize(("user", "said"), [("me:pass%20word@", b"Basic bWU6cGFzcyB3b3Jk"), ("", None)])
def test_a_proxy_is_asked_for_a_tunnel_and_sees_no_key(monkeypatch, user, said):
    heard = []

    def tunnel(client):
        client.sendall(b"HTTP/1.1 200 Connection established\r\n\r\n")
        heard.append(client.recv(1 << 16))

    with talking(tunnel) as (port, asked):
        monkeypatch.setenv("https_proxy", f"http://{user}127.0.0.1:{port}")
        with pytest.raises(BadReply, match="the connection failed"):
            post(Connection("https://api.example/v1", KEY, timeout=5), "chat/completions", {})
    assert asked[0].startswith(b"CONNECT api.example:443 HTTP/1.1\r\n")
    assert b"\r\nHost: api.example" in asked[0]
    said_to_it = [line for line in asked[0].split(b"\r\n") if line.startswith(b"Proxy-Authorization: ")]
    assert said_to_it == ([] if said is None else [b"Proxy-Authorization: " + said])
    assert heard[0][:2] == b"\x16\x03"  # TLS
    assert KEY.encode() not in b"".join([*asked, *heard])


def test_a_proxy_that_refuses_or_drips_is_an_error_of_the_request(monkeypatch):
    with talking(lambda client: client.sendall(b"HTTP/1.1 407 Who are you\r\n\r\n")) as (port, _):
        monkeypatch.setenv("https_proxy", f"127.0.0.1:{port}")
        with pytest.raises(BadReply, match=r"the proxy of https_proxy refuses: HTTP 407"):
            post(Connection("https://api.example/v1", KEY, timeout=2), "x", {})
    with talking(drip(b"HTTP/1.1 100 Continue\r\n\r\n", every=0.01)) as (port, _):
        monkeypatch.setenv("https_proxy", f"127.0.0.1:{port}")
        with pytest.raises(BadReply, match=r"no reply within 0\.3 s"):
            post(Connection("https://api.example/v1", KEY, timeout=0.3), "x", {})


@pytest.mark.parametrize(
    "proxy", ["socks5://me:canary@h:1", "https://me:canary@h", "http://me:canary@h:port", "http://"]
)
def test_a_proxy_of_another_kind_is_refused_without_showing_it(monkeypatch, proxy):
    monkeypatch.setenv("https_proxy", proxy)
    with pytest.raises(ConfigError, match="https_proxy: expected the address of an HTTP proxy") as caught:
        Connection("https://api.example/v1", None, timeout=1)
    assert "canary" not in str(caught.value)


@pytest.mark.parametrize("host", ["localhost", "127.0.0.1", "127.8.9.1", "[::1]", "me.localhost", "inner.example"])
def test_this_machine_and_what_no_proxy_names_are_asked_directly(monkeypatch, host):
    monkeypatch.setenv("https_proxy", "http://proxy:3128")
    monkeypatch.setenv("no_proxy", "inner.example")
    assert Connection(f"https://{host}/v1", None, timeout=1)._proxy is None
    assert Connection("https://api.example/v1", None, timeout=1)._proxy == URL("http://proxy:3128")


@pytest.mark.skipif(shutil.which("openssl") is None, reason="makes a certificate with openssl")
def test_a_certificate_that_nobody_vouches_for_is_refused(tmp_path):
    made = [
        "openssl",
        "req",
        "-x509",
        "-newkey",
        "rsa:2048",
        "-nodes",
        "-days",
        "1",
        "-subj",
        "/CN=localhost",
        "-keyout",
        "key.pem",
        "-out",
        "cert.pem",
    ]
    made += ["-addext", "subjectAltName=DNS:localhost"]
    subprocess.run(made, cwd=tmp_path, check=True, capture_output=True)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(tmp_path / "cert.pem", tmp_path / "key.pem")
    with serving() as server:
        server.socket = context.wrap_socket(server.socket, server_side=True)
        with pytest.raises(BadReply, match="CERTIFICATE_VERIFY_FAILED"):
            post(Connection(f"https://localhost:{server.server_port}/v1", KEY, timeout=5), "chat/completions", {})
        assert server.keys == []
        trusting = Connection(f"https://localhost:{server.server_port}/v1", KEY, timeout=5)
        trusting._tls.load_verify_locations(tmp_path / "cert.pem")
        content = {"messages": [{"content": "hi"}], "max_tokens": 9}
        assert json.loads(post(trusting, "chat/completions", content).text)["choices"]
        assert server.keys == [f"Bearer {KEY}"]


def test_no_thread_or_socket_is_left_behind():
    with serving() as server:
        before = threading.active_count()
        content = {"messages": [{"content": "hi"}], "max_tokens": 9}
        for _ in range(5):
            post(Connection(server.url, None, timeout=2), "chat/completions", content)
        time.sleep(0.1)
        assert threading.active_count() <= before + 1


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
    shown = f"{summary}{output.out}{output.err}{caplog.text}{engine!r}{engine._requests.connection!r}"
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


WAYS = [
    str,
    lambda letter: f"\\u{ord(letter):04x}",
    lambda letter: f"\\\\\\u{ord(letter):04X}",
    lambda letter: f"%{ord(letter):02X}",
    lambda letter: f"&#{ord(letter):04d};",
    lambda letter: f"&#X{ord(letter):x};",
]


@pytest.mark.parametrize("seed", range(40))
def test_the_key_is_found_however_each_of_its_characters_is_spelt_and_nothing_like_it_is(seed):
    draw = random.Random(seed)
    noise = "".join(draw.choices(["\\", "%", "&", "\\u", "&#", "%2", *KEY, '"\\n"', "é", "\ud800"], k=300))
    noise += " " * 200_000 if seed % 3 else ""  # so that few of its characters are such
    letters = [draw.choice(WAYS if seed % 2 else WAYS[:1] * 30 + WAYS)(letter) for letter in KEY]
    spelt, almost = "".join(letters), "".join(letters[:-1])
    assert Secret(KEY).masked(f"{noise}.{spelt}.{noise}") == f"{noise}.***.{noise}"
    assert Secret(KEY).masked(f"{noise}.{almost}.{noise}") == f"{noise}.{almost}.{noise}"


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
        "http://999.1.1.1/v1",
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


K = 3
CHAT = reply_to({"messages": [{"content": "a\u00e9\U0001f600b"}], "max_tokens": 9, "logprobs": True, "top_logprobs": K})
PLAIN = reply_to({"prompt": "abc", "max_tokens": 9, "logprobs": K})
ODD = [
    None,
    True,
    0,
    -1,
    7,
    300,
    1000,
    -1000,
    2_000_000_000,
    10**20,
    10**400,
    -(10**400),
    1e308,
    -1e308,
    float("nan"),
    float("inf"),
    -float("inf"),
    0.0005,
    "",
    "x",
    "x" * 100_000,
    "\ud83d",
    "\x1b[2J\u202e",
    "token_id:7",
    "token_id:" + "9" * 5000,
    "bytes:\\xff",
    "bytes:\\xzz",
    [],
    [[]],
    [10**20],
    [-1],
    [1.5],
    ["a"],
    list(range(256)) * 30,
    {},
    {"a": 1},
    {"token": "x"},
    {"\ud83d" * 50_000: 1},
]
"""Values that JSON can hold in any place."""


def places(tree, path=()):
    """Every place in a tree of JSON."""
    yield path
    inner = tree.items() if isinstance(tree, dict) else enumerate(tree) if isinstance(tree, list) else ()
    for key, value in inner:
        yield from places(value, (*path, key))


def put(tree, path, value):
    if not path:
        return value
    node = tree
    for key in path[:-1]:
        node = node[key]
    node[path[-1]] = value
    return tree


def mutated(tree, random_change):
    """A copy that differs in one to three places."""
    tree = copy.deepcopy(tree)
    for _ in range(random_change.randint(1, 3)):
        path = random_change.choice([path for path in places(tree) if path] or [()])
        holder = tree
        for key in path[:-1]:
            holder = holder[key]
        match random_change.randrange(5):
            case 0 if path:
                del holder[path[-1]]
            case 1 if isinstance(holder, list):
                holder.insert(random_change.randint(0, len(holder)), copy.deepcopy(holder[path[-1]]))
            case 2 if isinstance(holder, list):
                random_change.shuffle(holder)
            case _:
                tree = put(tree, path, copy.deepcopy(random_change.choice(ODD)))
    return tree


def check(body, top_k=K):
    """An answer that can be written down and read again, or one short line."""
    try:
        answer = read_reply(body, model="big", top_k=top_k)
    except BadReply as bad:
        line = str(bad)
        assert line.isprintable()
        assert len(line) < 600
        return "error"
    assert isinstance(answer, Answer)
    kept = None if answer.top_logprobs is None else json.loads(line_of(answer.top_logprobs))
    assert len(line_of({"text": answer.text, "by": answer.generated_by})) <= len(body) * 6 + 600
    assert (kept_logprobs(kept) is None) == (kept is None)
    return "answer"


@pytest.mark.parametrize("reply", [CHAT, PLAIN])
def test_an_odd_value_anywhere_ends_in_an_answer_or_in_one_short_line(reply):
    began, memory = time.monotonic(), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    assert check(json.dumps(reply)) == "answer"
    found = [check(json.dumps(put(copy.deepcopy(reply), path, value))) for path in places(reply) for value in ODD]
    assert {"answer", "error"} == set(found)
    assert time.monotonic() - began < 20
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - memory < 300_000  # KiB


@pytest.mark.parametrize("seed", range(4))
def test_so_does_any_mutation_of_a_good_reply(seed):
    random_change = random.Random(seed)
    found = [check(json.dumps(mutated(random_change.choice([CHAT, PLAIN]), random_change))) for _ in range(400)]
    assert found.count("error") > 100
    assert found.count("answer") > 20


@pytest.mark.parametrize("seed", range(4))
def test_so_does_any_damage_to_its_bytes(seed):
    random_change = random.Random(seed)
    for _ in range(400):
        damaged = bytearray(json.dumps(random_change.choice([CHAT, PLAIN]), ensure_ascii=False).encode())
        for _ in range(random_change.randint(1, 4)):
            at = random_change.randrange(len(damaged))
            match random_change.randrange(3):
                case 0:
                    damaged[at] = random_change.randrange(256)
                case 1:
                    del damaged[at : at + random_change.randint(1, 30)]
                case 2:
                    damaged[at:at] = random_change.choice(
                        [b"[" * 3000, b"{", b'"', b"\\u", b"\\ud83d", b"9" * 5000, b"\0"]
                    )
        check(damaged.decode("utf-8-sig", "surrogateescape"))


@pytest.mark.parametrize(
    ("path", "value", "reason"),
    [
        (("choices", 0, "finish_reason"), "y" * 20_000_000, "finish_reason 'yyyy"),
        (("choices", 0, "logprobs", "content", 1, "top_logprobs", 0, "logprob"), 1000, "token 1: .*finite, <= 0.*1000"),
        (("choices", 0, "logprobs", "content", 1, "logprob"), 10**400, "token 1: logprob: expected .* got 1000"),
        (
            ("choices", 0, "logprobs", "content", 0, "bytes"),
            2_000_000_000,
            "token 0: bytes: expected a list, got 2000000",
        ),
        (("choices", 0, "logprobs", "content", 0, "bytes"), [10**20], "whole number from 0 to 255, got 1000"),
        (("choices", 0, "logprobs", "content", 0, "id"), 10**20, "id: expected a whole number"),
        (("choices", 0, "logprobs", "content", 0, "token"), "\ud83d", "token holds half a character"),
        (("model",), "\ud83d", "model holds half a character"),
        (("model",), "m" * 20_000, "model: expected at most 300 characters"),
        (("choices", 0, "message", "content"), "\ud83d", "the answer holds half a character"),
        (("choices",), [[]], "choices: expected an object, got \\[\\]"),
        (("choices",), {}, "the reply has no 'choices' \\(it has 'model', 'choices'\\)"),
        (("error",), {"message": "half \ud83d of it"}, r"replied with an error \(half \\ud83d of it\)"),
        (("error",), {"code": {"deep": [1] * 100_000}}, "replied with an error"),
    ],
)
def test_the_line_says_where_and_what(path, value, reason):
    with pytest.raises(BadReply, match=reason) as caught:
        read_reply(json.dumps(put(copy.deepcopy(CHAT), path, value)), model="big", top_k=K)
    assert len(str(caught.value)) < 600


def kept():
    return dict(read_reply(json.dumps(CHAT), model="big", top_k=K).top_logprobs or {})


def test_what_is_kept_is_read_again_as_it_was():
    read = kept_logprobs(kept())
    assert read is not None
    assert [read.tokens, read.logprobs, read.top_tokens, read.top_logprobs] == list(kept().values())[:4]
    assert kept_logprobs(None) is kept_logprobs({}) is kept_logprobs({"tokens": []}) is None


def test_kept_log_probabilities_with_an_odd_value_anywhere_are_read_or_refused_in_one_short_line():
    good = kept() | {"token_ids": [1] * 5, "top_token_ids": [[1, 2, 3]] * 5}
    assert kept_logprobs(good) is not None
    refused = []
    for path in places(good):
        for value in ODD:
            try:
                kept_logprobs(put(copy.deepcopy(good), path, value))
            except Unfit as error:
                refused.append(str(error))
    assert len(refused) > 500
    assert all(line.isprintable() and len(line) < 600 for line in refused)
