import json
import shutil
import socket
import ssl
import subprocess
import threading
import time

import pytest

from bridgegarden.errors import ConfigError
from bridgegarden.teacher.server_connection import Connection
from bridgegarden.teacher.server_reply import BadReply
from tests.teacher.servers import serving, talking

KEY = "sk-canary-0123456789abcdef"
PROXIES = ("http_proxy", "https_proxy", "all_proxy", "no_proxy")


@pytest.fixture(autouse=True)
def no_proxies(monkeypatch):
    for name in (*PROXIES, *map(str.upper, PROXIES)):
        monkeypatch.delenv(name, raising=False)


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
        drip(b"H" * 60000),
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
            Connection(f"http://127.0.0.1:{port}/v1", KEY, timeout=0.3).post("chat/completions", {})
        assert time.monotonic() - began < 0.8


def test_a_server_that_does_not_read_is_not_waited_for_beyond_the_deadline():
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
        with pytest.raises(BadReply, match=r"no reply within 0\.3 s"):
            Connection(f"http://127.0.0.1:{port}", None, timeout=0.3).post("x", {"prompt": "x" * (1 << 25)})


def test_an_address_of_a_name_that_does_not_answer_leaves_time_for_the_next(monkeypatch):
    with serving() as server, socket.create_server(("127.0.0.1", 0), backlog=0) as deaf:
        queued = [socket.socket() for _ in range(3)]
        for one in queued:  # so that nobody else gets in
            one.setblocking(False)
            one.connect_ex(deaf.getsockname())
        found = [(socket.AF_INET, socket.SOCK_STREAM, 6, "", ("127.0.0.1", deaf.getsockname()[1]))]
        found += [(socket.AF_INET, socket.SOCK_STREAM, 6, "", ("127.0.0.1", server.server_port))]
        monkeypatch.setattr(socket, "getaddrinfo", lambda *args, **options: found)
        content = {"messages": [{"content": "hi"}], "max_tokens": 9}
        reply = Connection("http://name.example/v1", None, timeout=2).post("chat/completions", content)
        assert json.loads(reply.text)["choices"]
        for one in queued:
            one.close()


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
            text = connection.post("chat/completions", {}).text
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
            Connection(f"http://127.0.0.1:{port}", None, timeout=30).post("x", {})


# Proxies


@pytest.mark.parametrize("name", ["http_proxy", "all_proxy"])
def test_a_server_on_plain_http_is_asked_without_a_proxy_which_would_read_the_key(monkeypatch, name):
    with serving() as server, talking(lambda client: None) as (port, heard):
        monkeypatch.setenv(name, f"http://127.0.0.1:{port}")
        content = {"messages": [{"content": "hi"}], "max_tokens": 9}
        assert Connection(server.url, KEY, timeout=2).post("chat/completions", content).text
        assert heard == []


def test_a_proxy_is_asked_for_a_tunnel_and_sees_no_key(monkeypatch):
    heard = []

    def tunnel(client):
        client.sendall(b"HTTP/1.1 200 Connection established\r\n\r\n")
        heard.append(client.recv(1 << 16))

    with talking(tunnel) as (port, asked):
        monkeypatch.setenv("https_proxy", f"http://me:pass%20word@127.0.0.1:{port}")
        with pytest.raises(BadReply, match="the connection failed"):
            Connection("https://api.example/v1", KEY, timeout=5).post("chat/completions", {})
    assert asked[0].startswith(b"CONNECT api.example:443 HTTP/1.1\r\n")
    assert b"\r\nHost: api.example:443\r\n" in asked[0]
    assert b"Proxy-Authorization: Basic bWU6cGFzcyB3b3Jk\r\n" in asked[0]
    assert heard[0][:2] == b"\x16\x03"  # TLS
    assert KEY.encode() not in b"".join([*asked, *heard])


def test_a_proxy_that_refuses_or_drips_is_an_error_of_the_request(monkeypatch):
    with talking(lambda client: client.sendall(b"HTTP/1.1 407 Who are you\r\n\r\n")) as (port, _):
        monkeypatch.setenv("https_proxy", f"127.0.0.1:{port}")
        with pytest.raises(BadReply, match=r"the proxy of https_proxy refuses: HTTP 407"):
            Connection("https://api.example/v1", KEY, timeout=2).post("x", {})
    with talking(drip(b"HTTP/1.1 100 Continue\r\n\r\n", every=0.01)) as (port, _):
        monkeypatch.setenv("https_proxy", f"127.0.0.1:{port}")
        with pytest.raises(BadReply, match=r"no reply within 0\.3 s"):
            Connection("https://api.example/v1", KEY, timeout=0.3).post("x", {})


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
    assert Connection("https://api.example/v1", None, timeout=1)._proxy.address == ("proxy", 3128)


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
            Connection(f"https://localhost:{server.server_port}/v1", KEY, timeout=5).post("chat/completions", {})
        assert server.keys == []
        trusting = Connection(f"https://localhost:{server.server_port}/v1", KEY, timeout=5)
        trusting._tls.load_verify_locations(tmp_path / "cert.pem")
        content = {"messages": [{"content": "hi"}], "max_tokens": 9}
        assert json.loads(trusting.post("chat/completions", content).text)["choices"]
        assert server.keys == [f"Bearer {KEY}"]


def test_no_thread_or_socket_is_left_behind():
    with serving() as server:
        before = threading.active_count()
        content = {"messages": [{"content": "hi"}], "max_tokens": 9}
        for _ in range(5):
            Connection(server.url, None, timeout=2).post("chat/completions", content)
        time.sleep(0.1)
        assert threading.active_count() <= before + 1
