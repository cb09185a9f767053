"""The page of a chat, and its server on this machine, for the browser of whoever was told its address.

Only the loopback interface is listened to. Other pages in the same browser could still knock, and other users of the
machine: so the name by which the page was asked for has to be this machine's (a name of somebody's own that leads here
is none), a page that asks has to be ours, and the address holds a token that nobody can guess.
"""

import json
import secrets
import select
import socket
import threading
from collections.abc import Iterator, Sequence
from contextlib import suppress
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from importlib.resources import files
from typing import Any, NamedTuple

import torch
from jinja2 import Environment, StrictUndefined
from markupsafe import Markup

from bridgegarden.chat.session import Chat, Ending, Expectation, Written
from bridgegarden.diagnostics.diagnosis import Likely
from bridgegarden.errors import BridgegardenError, ConfigError, in_words
from bridgegarden.report.page import embedded_json, own_file, policy
from bridgegarden.report.tokens import NumberLayer, Thought, Token, card, heatmap, stylesheet, visible
from bridgegarden.table import number, probability

RAREST = 6.9
"""Surprise at the end of the colours, in nats: one in a thousand."""
WIDE = 4.0
"""Entropy at the end of the colours, in nats: as undecided as between 55 tokens."""
WORDS: dict[Ending, str] = {
    "turn": "",
    "length": "Cut at the most tokens that were asked for.",
    "room": "Cut: the models can read no more tokens. Begin a new conversation.",
}
"""What is said of an answer's end."""
HOST = "127.0.0.1"
NAMES = (HOST, "localhost")
LARGEST = 4 << 20
"""Bytes of a conversation, at most."""
PATIENCE = 30.0
"""Seconds that a browser may be silent in the middle of a request."""
GONE = (BrokenPipeError, ConnectionResetError, TimeoutError)


class ChatPage(NamedTuple):
    """A page, and what its browser is told about it."""

    html: str
    policy: str
    """Content-Security-Policy."""


def chat_page(chat: Chat) -> ChatPage:
    """The page on which `chat` is led."""
    own = files("bridgegarden.chat")
    script = own_file("tokens.js") + own.joinpath("chat.js").read_text("utf-8")
    layers = chat_layers(chat)
    data = {
        "layers": [layer.scale for layer in layers],
        "turns": chat.takes_turns,
        "against": chat.teacher_name is not None,
    }
    template = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    html = template.from_string(own.joinpath("chat.html").read_text("utf-8")).render(
        name=chat.name,
        against=chat.teacher_name,
        turns=chat.takes_turns,
        room=chat.room,
        colours=heatmap((), (), layers),
        style=Markup(own_file("page.css") + stylesheet() + own.joinpath("chat.css").read_text("utf-8")),
        script=Markup(script),
        data=embedded_json(data),
    )
    return ChatPage(html, policy(script, "connect-src 'self'", "frame-ancestors 'none'"))


def chat_layers(chat: Chat) -> Sequence[NumberLayer]:
    """What tokens can be coloured by, the first one chosen; `event` gives each token a value of every one."""
    ends = ("certain", "1 in 1,000")
    student = (
        _layer("student's probability", RAREST, ends, "How likely the student held the token that it wrote."),
        _layer("student's entropy", WIDE, ("0", f"{WIDE:g} nats"), "How undecided the student was before it."),
    )
    if chat.teacher_name is None:
        return student
    apart = "How much of their probability the two models put on other tokens (total variation)."
    signed = (
        "The teacher's log-probability of the token less the student's: negative where the teacher would hold back."
    )
    return (
        _layer("apart", 1.0, ("agree", "nothing in common"), apart),
        _layer("teacher's probability", RAREST, ends, "How likely the teacher held the token that was written."),
        *student,
        NumberLayer(
            values=(),
            name="teacher less student",
            group="",
            scale="signed",
            most=RAREST,
            ends=(f"\N{MINUS SIGN}{RAREST} nats", f"+{RAREST} nats"),
            about=f"{signed} Colours grow with the square root.",
        ),
    )


def _layer(name: str, most: float, ends: tuple[str, str], about: str) -> NumberLayer:
    return NumberLayer(values=(), name=name, group="", scale="surprise", most=most, ends=ends, about=about)


def event(chat: Chat, written: Written) -> dict[str, Any]:
    """One token as JSON, for the page's script."""
    student, teacher = written.student, written.teacher
    values = [-student.log_prob, student.entropy]
    facts = [("student", _words(student))]
    thoughts = [_thought(chat, chat.name, student)]
    if teacher is not None and written.distance is not None:
        values = [written.distance, -teacher.log_prob, *values, teacher.log_prob - student.log_prob]
        facts = [("teacher", _words(teacher)), *facts, ("apart", probability(written.distance))]
        thoughts = [_thought(chat, str(chat.teacher_name), teacher), *thoughts]
    layers = chat_layers(chat)
    levels = [layer.level_of(value) for layer, value in zip(layers, values, strict=True)]
    told = Token(text=written.piece.text, facts=tuple(facts), thoughts=tuple(thoughts))
    return {
        "gap": written.piece.gap,
        "text": visible(written.piece.text),
        "said": written.said,
        "levels": levels,
        "parts": teacher is not None and teacher.top[0].token != student.top[0].token,
        "card": card(told),
        "end": None if written.ending is None else WORDS[written.ending],
    }


def _words(found: Expectation) -> str:
    return f"{probability(found.prob)} for this token"


def _thought(chat: Chat, name: str, found: Expectation) -> Thought:
    def shown(likely: Likely) -> tuple[str, float]:
        return chat.text_of(likely.token), likely.prob

    return Thought(model=name, top=tuple(map(shown, found.top)), note=f"entropy {number(found.entropy, 2)}")


class ChatServer(ThreadingHTTPServer):
    """One chat, an answer at a time."""

    daemon_threads = True

    def __init__(self, chat: Chat, port: int = 0) -> None:
        """
        Args:
            chat: what answers.
            port: where to listen; 0 is any that is free.

        Raises:
            ConfigError: it cannot be listened to.
        """
        self.chat, self.page = chat, chat_page(chat)
        self.token = secrets.token_urlsafe(16)
        self.writing = threading.Lock()
        """Held while an answer is written."""
        self.closing = False
        try:
            super().__init__((HOST, port), _Handler)
        except OSError as error:
            raise ConfigError(
                f"--port: {port} cannot be listened to ({in_words(error)}). Give another, or leave it out for one that "
                "is free."
            ) from error

    @property
    def address(self) -> str:
        """Of the page."""
        return f"http://{HOST}:{self.server_port}/{self.token}/"

    def run(self) -> None:
        """Answer until interrupted (Ctrl-C); what is being written then ends with its next token."""
        try:
            self.serve_forever(poll_interval=0.2)
        finally:
            self.closing = True
            # A thread that computes must not be left behind when the interpreter goes.
            self.writing.acquire()
            self.server_close()


class _Handler(BaseHTTPRequestHandler):
    server: ChatServer  # pyright: ignore[reportIncompatibleVariableOverride]
    timeout = PATIENCE
    server_version, sys_version = "bridgegarden", ""

    def do_GET(self) -> None:
        """The page."""
        if not self._is_admitted():
            return
        if self.path != f"/{self.server.token}/":
            self._refuse(HTTPStatus.NOT_FOUND, "there is nothing at this address.")
            return
        page = self.server.page
        self._head(HTTPStatus.OK, "text/html; charset=utf-8", page.policy)
        self.wfile.write(page.html.encode())

    def do_POST(self) -> None:
        """An answer, a line of JSON for each token."""
        if not self._is_admitted():
            return
        if self.path != f"/{self.server.token}/answer":
            self._refuse(HTTPStatus.NOT_FOUND, "there is nothing at this address.")
            return
        asked = self._asked()
        if asked is None:
            return
        if not self.server.writing.acquire(blocking=False):
            self._refuse(HTTPStatus.CONFLICT, "another answer is being written, perhaps in another tab; stop it first.")
            return
        try:
            self._answer(asked)
        finally:
            self.server.writing.release()

    def _answer(self, asked: dict[str, Any]) -> None:
        chat = self.server.chat
        try:
            steps = chat.write(
                chat.prompt(asked), temperature=asked["temperature"], max_new_tokens=asked["max_new_tokens"]
            )
        except BridgegardenError as error:
            self._refuse(HTTPStatus.BAD_REQUEST, str(error))
            return
        with suppress(*GONE):
            self._head(HTTPStatus.OK, "application/x-ndjson")
            try:
                for written in self._while_heard(steps):
                    self._line(event(chat, written))
            except BridgegardenError as error:
                self._line({"error": str(error)})
            except (MemoryError, torch.OutOfMemoryError) as error:
                self._line({"error": f"out of memory ({in_words(error)}). Begin a shorter conversation."})

    def _while_heard(self, steps: Iterator[Written]) -> Iterator[Written]:
        """`steps`, until nobody listens any more."""
        for written in steps:
            yield written
            if self.server.closing or self._is_gone():
                return

    def _is_gone(self) -> bool:
        readable, _, _ = select.select([self.connection], [], [], 0)
        return bool(readable) and not self.connection.recv(1, socket.MSG_PEEK)

    def _asked(self) -> dict[str, Any] | None:
        """What was sent; None where it was refused."""
        if self.headers.get_content_type() != "application/json":
            self._refuse(HTTPStatus.UNSUPPORTED_MEDIA_TYPE, "expected application/json.")
            return None
        length = self.headers.get("Content-Length", "")
        if not length.isdecimal() or int(length) > LARGEST:
            self._refuse(HTTPStatus.REQUEST_ENTITY_TOO_LARGE, f"expected at most {LARGEST:,} bytes, and their number.")
            return None
        try:
            asked = json.loads(self.rfile.read(int(length)))
            json.dumps(asked, ensure_ascii=False).encode()  # half a character (a lone surrogate) is no text
        except (ValueError, RecursionError):
            asked = None
        if not isinstance(asked, dict):
            self._refuse(HTTPStatus.BAD_REQUEST, "expected a JSON object in whole characters.")
        elif type(asked.get("temperature")) not in (int, float):
            self._refuse(HTTPStatus.BAD_REQUEST, "temperature: expected a number, 0 for the likeliest tokens.")
        elif type(asked.get("max_new_tokens")) is not int:
            self._refuse(HTTPStatus.BAD_REQUEST, "most tokens: expected a whole number, 1 or more.")
        else:
            return asked
        return None

    def _is_admitted(self) -> bool:
        """Whether it was asked by our page, or by whoever types its address; else it is refused."""
        hosts = [f"{name}:{self.server.server_port}" for name in NAMES]
        origin = self.headers.get("Origin")
        given = self.path.encode().removeprefix(b"/").partition(b"/")[0]
        if self.headers.get("Host") not in hosts or origin not in (None, *(f"http://{host}" for host in hosts)):
            self._refuse(HTTPStatus.FORBIDDEN, "asked by another page, or under a name that is not this machine's.")
        elif not secrets.compare_digest(given, self.server.token.encode()):
            self._refuse(
                HTTPStatus.FORBIDDEN, "the address lacks its token: take it as `bridgegarden chat` printed it."
            )
        else:
            return True
        return False

    def _refuse(self, status: HTTPStatus, words: str) -> None:
        with suppress(*GONE):
            self._head(status, "application/json")
            self._line({"error": words})

    def _head(self, status: HTTPStatus, kind: str, policy: str = "default-src 'none'; frame-ancestors 'none'") -> None:
        self.send_response(status)
        for name, value in (
            ("Content-Type", kind),
            ("Content-Security-Policy", policy),
            ("Cache-Control", "no-store"),
            ("Cross-Origin-Opener-Policy", "same-origin"),
            ("Cross-Origin-Resource-Policy", "same-origin"),
            ("Referrer-Policy", "no-referrer"),
            ("X-Content-Type-Options", "nosniff"),
        ):
            self.send_header(name, value)
        self.end_headers()

    def _line(self, told: dict[str, Any]) -> None:
        self.wfile.write(json.dumps(told, allow_nan=False).encode() + b"\n")
        self.wfile.flush()

    def log_message(self, format: str, *args: Any) -> None:
        """Nothing: whoever talks here sees it in the browser."""
