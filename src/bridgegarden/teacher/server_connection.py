"""One request to an HTTP server: the key to it, where it goes, how long it may take, how it can fail, what came back.

The key is read from the environment, sent to that server, and shown and written nowhere.

A deadline holds for a request as a whole: however slowly a server lets its bytes drip, and wherever (in headers, in a
body, in a proxy's reply), each wait for more of them ends when the time is up.
"""

import http.client
import io
import ipaddress
import json
import os
import re
import socket
import ssl
import time
import urllib.request
from base64 import b64encode
from collections.abc import Mapping
from contextlib import closing
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Any, Literal, NamedTuple, NoReturn
from urllib.parse import unquote, urlsplit

from bridgegarden.errors import ConfigError
from bridgegarden.teacher.foreign_values import Unfit, mapping, name, short, shown, text
from bridgegarden.teacher.generate import Answer
from bridgegarden.teacher.server_logprobs import top_logprobs

PASSING = frozenset({408, 409, 425, 429, 500, 502, 503, 504, 529})
"""Status codes after which the same request may succeed."""
LONGEST_PAUSE = 600.0
"""Seconds that a server's Retry-After is obeyed at most."""
LARGEST_REPLY = 1 << 26
"""Bytes."""
PORTS = {"http": 80, "https": 443}
KEY_VARIABLE = "OPENAI_API_KEY"
SHORTEST_KEY = 8
"""Characters. A shorter word may stand in an answer by chance, so that nobody could say whether it is the key."""
MASK = "***"
"""What stands where the key was."""
ENDINGS: Mapping[str, Literal["stop", "length"]] = {
    "stop": "stop",
    "eos": "stop",
    "end_turn": "stop",
    "length": "length",
    "max_tokens": "length",
}
"""How servers say why an answer ended."""


def api_key(variable: str | None = None) -> str | None:
    """The key in an environment variable: the one named, which must be set, or ``OPENAI_API_KEY``, which need not.

    Raises:
        ConfigError: it is not set, or what it holds cannot be a key. The message shows neither name nor content: either
            may be the key.
    """
    value = os.environ.get(variable or KEY_VARIABLE, "").strip()
    if not value and variable is not None:
        raise ConfigError(
            f"--api-key-env takes the name of an environment variable that holds the key, such as {KEY_VARIABLE}; no "
            "variable of the given name is set. (Never give the key itself: others can see command lines.)"
        )
    if not (value.isascii() and value.isprintable()) or " " in value:
        raise ConfigError("the API key in the environment holds spaces or characters that no key has.")
    return value or None


def check_url(url: str, place: str) -> None:
    """Refuse an address that is none, or that holds what must not be written down.

    Args:
        url: the address.
        place: what to call it in messages, which do not show it.

    Raises:
        ConfigError: says what is wrong with it.
    """
    try:
        parts = urlsplit(url)
        host = (parts.hostname or "").encode("idna")  # as it is looked up
        usable = parts.scheme in ("http", "https") and bool(host) and parts.port != 0
    except ValueError:
        usable = False
    if not usable or any(not "!" <= character <= "~" for character in url):
        raise ConfigError(
            f"{place}: the server's address must be like http://localhost:8000/v1 (http or https, no spaces, ASCII)."
        )
    if parts.username is not None or parts.query or parts.fragment or "?" in url or "#" in url:
        raise ConfigError(
            f"{place}: the server's address holds a user name, password or query. It would be written to files; give "
            f"only the address, and the key in the environment ({KEY_VARIABLE}, or --api-key-env NAME)."
        )


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
            base_url: what paths are appended to, as :func:`~bridgegarden.teacher.server_connection.check_url` takes it.
            key: of :func:`~bridgegarden.teacher.server_connection.api_key`; sent there only, shown nowhere.
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


class BadReply(Exception):
    """There is no answer in a reply; says why in one line."""

    def __init__(self, reason: str, *, try_again: bool = False, retry_after: float | None = None) -> None:
        super().__init__(reason)
        self.try_again = try_again
        """Whether the next reply to the same request may be better."""
        self.retry_after = retry_after
        """Seconds that the server asked us to wait."""


def read_reply(body: str, *, model: str, top_k: int) -> Answer:
    """The answer in the reply to a request for one choice.

    Args:
        body: as it came, without our key.
        model: what was asked for, where the reply does not say who answered.
        top_k: how many log-probabilities a position were asked for.

    Raises:
        BadReply: it is cut off, an error, or not what was asked for.
    """
    reply = _object(body)
    if reply.get("error") is not None:
        raise BadReply(f"the server replied with an error ({error_text(body)}).", try_again=True)
    choices = reply.get("choices")
    if not isinstance(choices, list) or not choices:
        raise BadReply(f"the reply has no 'choices' (it has {shown(list(reply))[1:-1] or 'nothing'}).")
    try:
        return _answer(mapping(choices[0], "choices"), reply, model, top_k)
    except Unfit as error:
        raise BadReply(f"the reply is none that can be kept ({error}).") from None


def error_text(body: str) -> str:
    """What an error reply says, in one short line."""
    try:
        error = json.loads(body)
        error = error.get("error", error) if isinstance(error, dict) else error
        message = error.get("message", error) if isinstance(error, dict) else error
    except (ValueError, RecursionError):
        message = body
    return short(message if isinstance(message, str) else shown(message)).rstrip(".") or "no text"


class Secret:
    """A key, or none, and its absence from whatever is shown."""

    def __init__(self, key: str | None) -> None:
        """
        Args:
            key: of :func:`api_key`.

        Raises:
            ConfigError: it is too short to be told from other text.
        """
        if key is not None and len(key) < SHORTEST_KEY:
            raise ConfigError(
                f"the API key in the environment has {len(key)} characters; one of fewer than {SHORTEST_KEY} cannot be "
                "told from the words of an answer, so it could be written down. Take a longer one; for a server that "
                f"asks for none, unset {KEY_VARIABLE}."
            )
        self._key = key
        self._pattern = None if key is None else re.compile("".join(map(_spellings, key)))

    def __bool__(self) -> bool:
        return self._key is not None

    @property
    def headers(self) -> dict[str, str]:
        """What the server wants to see."""
        return {} if self._key is None else {"Authorization": f"Bearer {self._key}"}

    def masked(self, text: str) -> str:
        """`text` without the key, in whichever way JSON, addresses or HTML spell its characters.

        To be called before anything is cut off: of a half there is no telling what it was.
        """
        return text if self._pattern is None else self._pattern.sub(MASK, text)


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


def _spellings(character: str) -> str:
    """A pattern for one character of a key."""
    code = ord(character)
    forms = [re.escape(character), rf"\\\\*u(?i:{code:04x})", f"%(?i:{code:02x})", f"&#(?i:x0*{code:x}|0*{code});"]
    if not character.isalnum():
        forms.append(rf"\\\\*{re.escape(character)}")
    return f"(?:{'|'.join(forms)})"


def _object(body: str) -> dict[str, Any]:
    try:
        reply = json.loads(body)
    except (ValueError, RecursionError) as error:
        cause = short(str(error))
        raise BadReply(f"the reply is not whole JSON ({len(body)} characters: {cause}).", try_again=True) from None
    if not isinstance(reply, dict):
        raise BadReply("the reply is not a JSON object.", try_again=True)
    return reply


def _answer(choice: Mapping[str, Any], reply: Mapping[str, Any], model: str, top_k: int) -> Answer:
    ending = choice.get("finish_reason")
    if not isinstance(ending, str) or ending not in ENDINGS:
        raise BadReply(f"the answer ended with finish_reason {shown(ending)}; expected 'stop' or 'length'.")
    answer = _text(choice)
    given = choice.get("logprobs") if top_k else None
    return Answer(
        text=answer,
        finish_reason=ENDINGS[ending],
        generated_by=name(reply["model"], "model") if reply.get("model") else model,
        top_logprobs=None if given is None else top_logprobs(given, answer, top_k),
    )


def _text(choice: Mapping[str, Any]) -> str:
    message = choice.get("message")
    answer = message.get("content") if isinstance(message, dict) else choice.get("text")
    if isinstance(answer, str):
        try:
            return text(answer, "the answer")
        except Unfit as error:
            raise BadReply(f"{error}.", try_again=True) from None
    calls = " It called a tool, which is not kept." if isinstance(message, dict) and message.get("tool_calls") else ""
    raise BadReply(f"the answer holds no text.{calls}")
