"""One request to an HTTP server: where it goes, how long it may take, and how it can fail.

A deadline holds for a request as a whole: however slowly a server lets its bytes drip, and wherever (in headers, in a
body, in a proxy's reply), each wait for more of them ends when the time is up.
"""

import http.client
import io
import ipaddress
import json
import socket
import ssl
import time
import urllib.request
from base64 import b64encode
from collections.abc import Mapping
from contextlib import closing
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Any, NamedTuple, NoReturn
from urllib.parse import unquote, urlsplit

from bridgegarden.errors import ConfigError
from bridgegarden.teacher.foreign_values import short
from bridgegarden.teacher.server_key import KEY_VARIABLE, Secret
from bridgegarden.teacher.server_reply import BadReply, error_text

PASSING = frozenset({408, 409, 425, 429, 500, 502, 503, 504, 529})
"""Status codes after which the same request may succeed."""
LONGEST_PAUSE = 600.0
"""Seconds that a server's Retry-After is obeyed at most."""
LARGEST_REPLY = 1 << 26
"""Bytes."""
PORTS = {"http": 80, "https": 443}


class Reply(NamedTuple):
    """What a server replied."""

    text: str
    """Without our key. What is not UTF-8 is in it as lone surrogates."""
    held_key: bool
    """Whether the key stood in it."""


class Connection:
    """A server and our key to it."""

    def __init__(self, base_url: str, key: str | None, timeout: float) -> None:
        """
        Args:
            base_url: what paths are appended to, as :func:`~bridgegarden.teacher.server_key.check_url` takes it.
            key: of :func:`~bridgegarden.teacher.server_key.api_key`; sent there only, shown nowhere.
            timeout: seconds that a request may take in all.

        Raises:
            ConfigError: the key is too short or in the address, or the proxy in the environment is of another kind.
        """
        self.base_url, self.timeout = base_url.rstrip("/"), timeout
        self._secret = Secret(key)
        if self._secret.masked(base_url) != base_url:
            raise ConfigError("the server's address holds the API key. Give the address without it.")
        parts = urlsplit(self.base_url)
        assert parts.hostname is not None
        self._host, self._port, self._netloc = parts.hostname, parts.port or PORTS[parts.scheme], parts.netloc
        self._path = parts.path
        self._tls = ssl.create_default_context() if parts.scheme == "https" else None
        self._proxy = _proxy(self._host) if self._tls else None

    def post(self, path: str, content: Mapping[str, Any]) -> Reply:
        """What the server replies.

        Raises:
            BadReply: it refuses, or the reply does not come.
            ConfigError: it refuses the key, or sends us elsewhere: it would do so with any request.
        """
        headers = {
            "Host": self._netloc,
            "Content-Type": "application/json",
            "Accept": "application/json",
            "User-Agent": "bridgegarden",
            **self._secret.headers,
        }
        deadline = _Deadline(self.timeout)
        try:
            with closing(self._connected(deadline)) as sock:
                response = _exchange(sock, deadline, "POST", f"{self._path}/{path}", json.dumps(content), headers)
                text = _body(response).decode("utf-8-sig", "surrogateescape")
        except (OSError, http.client.HTTPException) as error:
            raise BadReply(self._broken(error), try_again=True) from None
        masked = self._secret.masked(text)
        if not 200 <= response.status < 300:
            self._refused(response, masked, path)
        return Reply(masked, held_key=masked != text)

    def holds_key(self, text: str) -> bool:
        """Whether our key stands in `text`."""
        return self._secret.masked(text) != text

    def _connected(self, deadline: "_Deadline") -> socket.socket:
        host, port = (self._host, self._port) if self._proxy is None else self._proxy.address
        sock = _dial(host, port, deadline)
        try:
            if self._proxy is not None:
                self._tunnel(sock, deadline, self._proxy)
            if self._tls is not None:
                sock.settimeout(deadline.left())
                sock = self._tls.wrap_socket(sock, server_hostname=self._host)
        except BaseException:
            sock.close()
            raise
        return sock

    def _tunnel(self, sock: socket.socket, deadline: "_Deadline", proxy: "_Proxy") -> None:
        target = f"[{self._host}]:{self._port}" if ":" in self._host else f"{self._host}:{self._port}"
        response = _exchange(sock, deadline, "CONNECT", target, None, {"Host": target, **proxy.headers})
        if not 200 <= response.status < 300:
            raise OSError(f"the proxy of https_proxy refuses: HTTP {response.status}")

    def _refused(self, response: http.client.HTTPResponse, text: str, path: str) -> NoReturn:
        said, status = error_text(text), response.status
        if status == 401:
            how = "it refuses the API key" if self._secret else f"it wants an API key, and {KEY_VARIABLE} is not set"
            raise ConfigError(f"{self.base_url}: {how} (HTTP 401: {said}). See --api-key-env.")
        if 300 <= status < 400:
            raise ConfigError(
                f"{self.base_url}: sends us elsewhere (HTTP {status}), where the API key does not go; give the final "
                "address as --base-url."
            )
        raise BadReply(
            f"HTTP {status}: {said}.{_advice(status, path)}",
            try_again=status in PASSING,
            retry_after=_seconds(response.headers.get("Retry-After")),
        )

    def _broken(self, error: Exception) -> str:
        if isinstance(error, TimeoutError):
            return f"no reply within {self.timeout:g} s."
        # It may quote what the server sent.
        return f"the connection failed ({short(self._secret.masked(str(error))) or type(error).__name__})."


class _Deadline:
    """When something has to be over."""

    def __init__(self, seconds: float) -> None:
        self._at = time.monotonic() + seconds

    def left(self) -> float:
        """Seconds until then, > 0.

        Raises:
            TimeoutError: it is past.
        """
        left = self._at - time.monotonic()
        if left <= 0:
            raise TimeoutError
        return left


class _Incoming(io.RawIOBase):
    """What comes through a socket until a deadline."""

    def __init__(self, sock: socket.socket, deadline: _Deadline) -> None:
        self._sock, self._deadline = sock, deadline

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any, /) -> int:
        self._sock.settimeout(self._deadline.left())
        return self._sock.recv_into(buffer)


class _TimedSocket:
    """As much of a socket as ``http.client`` uses, with a deadline. Closing it is left to whoever opened it."""

    def __init__(self, sock: socket.socket, deadline: _Deadline) -> None:
        self._sock, self._deadline = sock, deadline

    def sendall(self, content: bytes) -> None:
        self._sock.settimeout(self._deadline.left())
        self._sock.sendall(content)

    def makefile(self, mode: str) -> io.BufferedReader:
        return io.BufferedReader(_Incoming(self._sock, self._deadline))

    def close(self) -> None:
        pass


class _Proxy(NamedTuple):
    """Through which HTTPS servers are reached."""

    address: tuple[str, int]
    headers: dict[str, str]
    """What it wants to see. Our key is not for it: that is sent inside TLS."""


def _proxy(host: str) -> _Proxy | None:
    """The proxy that the environment names for an HTTPS server, ``no_proxy`` and this very machine excepted.

    Raises:
        ConfigError: it is of another kind. Does not show it: it may hold a password.
    """
    named = urllib.request.getproxies().get("https")
    if not named or _is_loopback(host) or urllib.request.proxy_bypass(host):
        return None
    try:
        parts = urlsplit(named if "://" in named else f"http://{named}")
        address = parts.hostname or "", parts.port or PORTS["http"]
    except ValueError:
        parts, address = None, ("", 0)
    if parts is None or parts.scheme != "http" or not address[0]:
        raise ConfigError(
            "https_proxy: expected the address of an HTTP proxy, such as http://proxy:3128. Mend it, or name the "
            "server's host in no_proxy."
        )
    if parts.username is None:
        return _Proxy(address, {})
    credentials = f"{unquote(parts.username)}:{unquote(parts.password or '')}".encode()
    return _Proxy(address, {"Proxy-Authorization": f"Basic {b64encode(credentials).decode()}"})


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost" or host.endswith(".localhost")


def _dial(host: str, port: int, deadline: _Deadline) -> socket.socket:
    """A connection to the first of a name's addresses that takes it; none of them uses up the time of the others."""
    found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    failed: OSError = OSError(f"{host} has no address")
    for number, (family, kind, protocol, _, address) in enumerate(found):
        sock = socket.socket(family, kind, protocol)
        try:
            sock.settimeout(deadline.left() / (len(found) - number))
            sock.connect(address)
            # Headers and body are sent one after the other, and nobody is to wait for more between them.
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            return sock
        except OSError as error:
            sock.close()
            failed = error
    raise failed


def _exchange(
    sock: socket.socket, deadline: _Deadline, method: str, target: str, body: str | None, headers: Mapping[str, str]
) -> http.client.HTTPResponse:
    """Send a request, and read the reply up to its body. Redirects are not followed."""
    connection = http.client.HTTPConnection("server")  # connected already
    connection.sock = _TimedSocket(sock, deadline)  # pyright: ignore[reportAttributeAccessIssue]
    connection.request(method, target, None if body is None else body.encode(), dict(headers))
    return connection.getresponse()


def _body(response: http.client.HTTPResponse) -> bytes:
    """All of it, unless it never ends."""
    parts: list[bytes] = []
    size = 0
    while part := response.read1(1 << 16):
        parts.append(part)
        size += len(part)
        if size > LARGEST_REPLY:
            raise BadReply(f"the reply is longer than {LARGEST_REPLY} bytes.")
    return b"".join(parts)


def _advice(status: int, path: str) -> str:
    if status == 404 and path == "completions":
        return (
            " Plain prompts need a server with /completions; name the columns (data.prompt, data.completion) to ask "
            "them as chat."
        )
    return ""


def _seconds(retry_after: str | None) -> float | None:
    """What a Retry-After header asks for: seconds, or a date. None where that is nonsense."""
    if retry_after is None:
        return None
    try:
        seconds = float(retry_after)
    except ValueError:
        try:
            when = parsedate_to_datetime(retry_after)
            seconds = ((when if when.tzinfo else when.replace(tzinfo=UTC)) - datetime.now(UTC)).total_seconds()
        except (ValueError, TypeError, OverflowError):  # years and time zones that no date has
            return None
    return min(max(seconds, 0.0), LONGEST_PAUSE) if seconds == seconds else None
