"""One request to an HTTP server: where it goes, what it must not give away, and how it can fail."""

import http.client
import json
import os
import time
import urllib.error
import urllib.request
from collections.abc import Mapping
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Any, NoReturn
from urllib.parse import urlsplit

from bridgegarden.errors import ConfigError
from bridgegarden.teacher.server_reply import BadReply, error_text

KEY_VARIABLE = "OPENAI_API_KEY"
PASSING = frozenset({408, 409, 425, 429, 500, 502, 503, 504, 529})
"""Status codes after which the same request may succeed."""
LONGEST_PAUSE = 600.0
"""Seconds that a server's Retry-After is obeyed at most."""
LARGEST_REPLY = 1 << 26
"""Bytes."""


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


class Connection:
    """A server and our key to it."""

    def __init__(self, base_url: str, key: str | None, timeout: float) -> None:
        """
        Args:
            base_url: what paths are appended to.
            key: of :func:`api_key`; sent there only, shown nowhere.
            timeout: seconds that a request may take in all.
        """
        self.base_url, self.timeout = base_url.rstrip("/"), timeout
        self._key = key
        self._opener = urllib.request.build_opener(_NoRedirect)

    def post(self, path: str, content: Mapping[str, Any]) -> bytes:
        """What the server replies.

        Raises:
            BadReply: it refuses, or the reply does not come.
            ConfigError: it refuses the key, or sends us elsewhere: it would do so with any request.
        """
        headers = {"Content-Type": "application/json", "Accept": "application/json", "User-Agent": "bridgegarden"}
        if self._key is not None:
            headers["Authorization"] = f"Bearer {self._key}"
        post = urllib.request.Request(f"{self.base_url}/{path}", json.dumps(content).encode(), headers, method="POST")
        deadline = time.monotonic() + self.timeout
        try:
            with self._opener.open(post, timeout=self.timeout) as response:
                body = _body(response, deadline)
        except urllib.error.HTTPError as error:
            with error:
                self._refused(error, path)
        except (OSError, http.client.HTTPException) as error:  # URLError is an OSError
            raise BadReply(_broken(error, self.timeout), try_again=True) from None
        if self._key is not None and len(self._key) >= 16 and self._key.encode() in body:
            raise BadReply("the reply holds our API key, so it is not kept.")
        return body

    def _refused(self, error: urllib.error.HTTPError, path: str) -> NoReturn:
        try:
            said = self.without_key(error_text(error.read(4096)))
        except (OSError, http.client.HTTPException):
            said = "no text"
        if error.code == 401:
            how = "it refuses the API key" if self._key else f"it wants an API key, and {KEY_VARIABLE} is not set"
            raise ConfigError(f"{self.base_url}: {how} (HTTP 401: {said}). See --api-key-env.")
        if 300 <= error.code < 400:
            raise ConfigError(
                f"{self.base_url}: sends us elsewhere (HTTP {error.code}), where the API key does not go; "
                "give the final address as --base-url."
            )
        raise BadReply(
            f"HTTP {error.code}: {said}.{_advice(error.code, path)}",
            try_again=error.code in PASSING,
            retry_after=_seconds(error.headers.get("Retry-After")),
        )

    def without_key(self, text: str) -> str:
        """`text` that is safe to show."""
        return text if self._key is None else text.replace(self._key, "***")


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    """The standard one would send our key to wherever it is sent."""

    def redirect_request(self, *request: Any) -> None:
        return None


def check_url(url: str) -> None:
    """Refuse an address that is none, or that holds what must not be written down.

    Raises:
        ConfigError: does not show it.
    """
    try:
        parts = urlsplit(url)
        usable = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:
        usable = False
    if not usable or any(not c.isprintable() or c.isspace() for c in url):
        raise ConfigError("the server's address must be like http://localhost:8000/v1 (http or https, no spaces).")
    if parts.username is not None or parts.query or parts.fragment:  # not shown: it may be a secret
        raise ConfigError(
            "the server's address holds a user name, password or query. It would be written to files; give only the "
            f"address, and the key in the environment ({KEY_VARIABLE}, or --api-key-env NAME)."
        )


def _body(response: http.client.HTTPResponse, deadline: float) -> bytes:
    """All of it, unless it comes too slowly or never ends."""
    parts: list[bytes] = []
    size = 0
    while part := response.read1(1 << 16):
        parts.append(part)
        size += len(part)
        if time.monotonic() > deadline:
            raise TimeoutError
        if size > LARGEST_REPLY:
            raise BadReply(f"the reply is longer than {LARGEST_REPLY} bytes.")
    return b"".join(parts)


def _broken(error: Exception, timeout: float) -> str:
    cause = error.reason if isinstance(error, urllib.error.URLError) else error
    if isinstance(cause, TimeoutError):
        return f"no reply within {timeout:g} s."
    return f"the connection failed ({' '.join(str(cause).split()) or type(cause).__name__})."


def _advice(status: int, path: str) -> str:
    if status == 404 and path == "completions":
        return (
            " Plain prompts need a server with /completions; name the columns (data.prompt, data.completion) to ask "
            "them as chat."
        )
    return ""


def _seconds(retry_after: str | None) -> float | None:
    """What a Retry-After header asks for: seconds, or a date."""
    if retry_after is None:
        return None
    try:
        seconds = float(retry_after)
    except ValueError:
        try:
            when = parsedate_to_datetime(retry_after)
        except ValueError:
            return None
        seconds = ((when if when.tzinfo else when.replace(tzinfo=UTC)) - datetime.now(UTC)).total_seconds()
    return min(max(seconds, 0.0), LONGEST_PAUSE) if seconds == seconds else None
