"""One request to an HTTP server: the key to it, where it goes, how long it may take, how it can fail, what came back.

The key is read from the environment, sent to that server, and shown and written nowhere.

A deadline holds for a request as a whole: however slowly a server lets its bytes drip, and wherever (in headers, in a
body, in a proxy's reply), each wait for more of them ends when the time is up.
"""

import asyncio
import ipaddress
import json
import os
import re
import ssl
import urllib.request
from collections.abc import Mapping
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from io import BytesIO
from typing import Any, Literal, NamedTuple, NoReturn
from urllib.parse import urlsplit

import aiohttp
from yarl import URL

from bridgegarden.errors import ServerError
from bridgegarden.teacher.foreign_values import Unfit, mapping, name, short, shown, text
from bridgegarden.teacher.generate import Answer
from bridgegarden.teacher.server_logprobs import top_logprobs

ApiName = Literal["vllm", "sglang", "llama.cpp", "trl"]
"""Kinds of servers that score tokens that are there already."""
PASSING = frozenset({408, 409, 425, 429, 500, 502, 503, 504, 529})
"""Status codes after which the same request may succeed."""
LONGEST_PAUSE = 600.0
"""Seconds that a server's Retry-After is obeyed at most."""
LARGEST_REPLY = 1 << 26
"""Bytes."""
READ_AHEAD = 1 << 20
"""Bytes of a reply that are taken from the socket before they are asked for."""
KEY_VARIABLE = "OPENAI_API_KEY"
SHORTEST_KEY = 8
"""Characters. A shorter word may stand in an answer by chance, so that nobody could say whether it is the key."""
MASK = "***"
"""What stands where the key was."""
ESCAPES = "\\%&"
"""What begins the spelling of a character by JSON, addresses or HTML."""
MOST_ESCAPES = 0.005
"""Of the characters of a text, where each is looked at alone."""
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
        raise ServerError(
            f"--api-key-env takes the name of an environment variable that holds the key, such as {KEY_VARIABLE}; no "
            "variable of the given name is set. (Never give the key itself: others can see command lines.)"
        )
    if not (value.isascii() and value.isprintable()) or " " in value:
        raise ServerError("the API key in the environment holds spaces or characters that no key has.")
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
        URL(url)
        if re.fullmatch(rb"[0-9.]+", host):
            ipaddress.IPv4Address(host.decode())
    except ValueError:
        usable = False
    if not usable or any(not "!" <= character <= "~" for character in url):
        raise ServerError(
            f"{place}: the server's address must be like http://localhost:8000/v1 (http or https, no spaces, ASCII)."
        )
    if parts.username is not None or parts.query or parts.fragment or "?" in url or "#" in url:
        raise ServerError(
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
            base_url: what paths are appended to, as :func:`check_url` takes it.
            key: of :func:`api_key`; sent there only, shown nowhere.
            timeout: seconds that a request may take in all.

        Raises:
            ConfigError: the key is too short or in the address, or the proxy in the environment is of another kind.
        """
        self.base_url, self.timeout = base_url.rstrip("/"), timeout
        self._secret = Secret(key)
        if self._secret.masked(base_url) != base_url:
            raise ServerError("the server's address holds the API key. Give the address without it.")
        parts = urlsplit(self.base_url)
        self._tls = ssl.create_default_context()
        self._proxy = _proxy(parts.hostname or "") if parts.scheme == "https" else None
        # For each request: the headers of a session go to the proxy as well.
        self._headers = {
            "Content-Type": "application/json",
            "Accept": "application/json",
            "Accept-Encoding": "identity",
            "User-Agent": "bridgegarden",
            **self._secret.headers,
        }

    def client(self) -> aiohttp.ClientSession:
        """What requests go through; keeps connections for the next ones. An asynchronous context manager."""
        return aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(ssl=self._tls, limit=0),
            cookie_jar=aiohttp.DummyCookieJar(),
            trust_env=False,  # it would take a key from ~/.netrc, and ask plain HTTP through a proxy that reads ours
            timeout=aiohttp.ClientTimeout(),
            read_bufsize=READ_AHEAD,
        )

    async def ask(self, client: aiohttp.ClientSession, path: str, content: Mapping[str, Any] | None) -> Reply:
        """What the server replies to `content`, or without any to a GET. Redirects are not followed.

        Raises:
            BadReply: it refuses, or the reply does not come.
            ConfigError: it refuses the key, or sends us elsewhere: it would do so with any request.
        """
        method, sent = ("GET", None) if content is None else ("POST", BytesIO(json.dumps(content).encode()))
        address = URL(f"{self.base_url}/{path}", encoded=True)
        try:
            async with (
                asyncio.timeout(self.timeout),
                client.request(
                    method, address, data=sent, headers=self._headers, proxy=self._proxy, allow_redirects=False
                ) as response,
            ):
                text = (await _body(response)).decode("utf-8-sig", "surrogateescape")
        except TimeoutError:
            raise BadReply(f"no reply within {self.timeout:g} s.", try_again=True) from None
        except (aiohttp.ClientError, OSError) as error:
            raise BadReply(self._broken(error), try_again=True) from None
        masked = self._secret.masked(text)
        if not 200 <= response.status < 300:
            self._refused(response, masked, path)
        return Reply(masked, held_key=masked != text)

    def holds_key(self, text: str) -> bool:
        """Whether our key stands in `text`."""
        return self._secret.masked(text) != text

    def _refused(self, response: aiohttp.ClientResponse, text: str, path: str) -> NoReturn:
        said, status = error_text(text), response.status
        if status == 401:
            how = "it refuses the API key" if self._secret else f"it wants an API key, and {KEY_VARIABLE} is not set"
            raise ServerError(f"{self.base_url}: {how} (HTTP 401: {said}). See --api-key-env.")
        if 300 <= status < 400:
            raise ServerError(
                f"{self.base_url}: sends us elsewhere (HTTP {status}), where the API key does not go; give the final "
                "address as --base-url."
            )
        raise BadReply(
            f"HTTP {status}: {said}.{_advice(status, path)}",
            try_again=status in PASSING,
            retry_after=_seconds(response.headers.get("Retry-After")),
            status=status,
        )

    def _broken(self, error: BaseException) -> str:
        if isinstance(error, aiohttp.ClientHttpProxyError):
            said = short(self._secret.masked(f"{error.status} {error.message}"))
            return f"the connection failed (the proxy of https_proxy refuses: HTTP {said})."
        while (inner := error.__cause__ or error.__context__) is not None:  # those around it say less
            error = inner.exceptions[0] if isinstance(inner, ExceptionGroup) else inner
        # It may quote what the server sent.
        return f"the connection failed ({short(self._secret.masked(str(error))) or type(error).__name__})."


class BadReply(Exception):
    """There is no answer in a reply; says why in one line."""

    def __init__(
        self,
        reason: str,
        *,
        try_again: bool = False,
        retry_after: float | None = None,
        status: int | None = None,
        unfit: Unfit | None = None,
    ) -> None:
        super().__init__(reason)
        self.unfit = unfit
        """What of it is not what it has to be, where that was found."""
        self.try_again = try_again
        """Whether the next reply to the same request may be better."""
        self.status = status
        """Of HTTP, where it is that which is bad."""
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
            raise ServerError(
                f"the API key in the environment has {len(key)} characters; one of fewer than {SHORTEST_KEY} cannot be "
                "told from the words of an answer, so it could be written down. Take a longer one; for a server that "
                f"asks for none, unset {KEY_VARIABLE}."
            )
        self._key = key
        spellings = list(map(_spellings, key or ""))
        self._pattern = re.compile("".join(f"(?:{'|'.join(forms)})" for forms in spellings))
        self._spelt = re.compile("|".join(sorted({form for forms in spellings for form in forms[1:]})))

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
        # Looked for by faster means first: replies are long, and hardly ever hold it.
        if self._key is None or not (self._key in text or self._is_spelt(text)):
            return text
        return self._pattern.sub(MASK, text)

    def _is_spelt(self, text: str) -> bool:
        """Whether any character of the key may stand in `text` in another way than as itself; true of one that holds so
        many spellings that trying each takes longer than looking for the key."""
        if sum(map(text.count, ESCAPES)) > len(text) * MOST_ESCAPES:
            return True
        for first in ESCAPES:
            at = text.find(first)
            while at >= 0:
                if self._spelt.match(text, at):
                    return True
                at = text.find(first, at + 1)
        return False


def _proxy(host: str) -> URL | None:
    """The proxy that the environment names for an HTTPS server, ``no_proxy`` and this very machine excepted.

    Our key is not for it: that is sent inside TLS.

    Raises:
        ConfigError: it is of another kind. Does not show it: it may hold a password.
    """
    named = urllib.request.getproxies().get("https")
    if not named or _is_loopback(host) or urllib.request.proxy_bypass(host):
        return None
    try:
        proxy = URL(named if "://" in named else f"http://{named}")
        usable = proxy.scheme == "http" and bool(proxy.host) and proxy.port is not None
    except ValueError:
        usable = False
    if not usable:
        raise ServerError(
            "https_proxy: expected the address of an HTTP proxy, such as http://proxy:3128. Mend it, or name the "
            "server's host in no_proxy."
        )
    return proxy


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost" or host.endswith(".localhost")


async def _body(response: aiohttp.ClientResponse) -> bytes:
    """All of it, unless it never ends."""
    parts, length = [], 0
    async for part in response.content.iter_any():
        parts.append(part)
        length += len(part)
        if length > LARGEST_REPLY:
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


def _spellings(character: str) -> list[str]:
    """Patterns for one character of a key, as itself first."""
    code = ord(character)
    forms = [re.escape(character), rf"\\\\*u(?i:{code:04x})", f"%(?i:{code:02x})", f"&#(?i:x0*{code:x}|0*{code});"]
    if not character.isalnum():
        forms.append(rf"\\\\*{re.escape(character)}")
    return forms


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
