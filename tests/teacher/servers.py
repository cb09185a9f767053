"""A real HTTP server on the loopback that speaks as OpenAI's do, and misbehaves on purpose."""

import json
import socket
import struct
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, TypeVar

S = TypeVar("S", bound=ThreadingHTTPServer)

Fault = Callable[["Handler", dict[str, Any]], bool]
"""Does something bad and says whether it has taken the place of a reply."""


class OpenAIServer(ThreadingHTTPServer):
    """Answers a question with itself in capitals, or by `answer`; the faults come first, one a request, in order."""

    daemon_threads = True
    block_on_close = False

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.faults: list[Fault] = []
        self.always: Callable[[dict[str, Any]], Fault | None] = lambda content: None
        self.seen: list[dict[str, Any]] = []
        self.times: list[float] = []
        self.keys: list[str | None] = []
        self.connections: set[tuple[str, int]] = set()
        self.answer: Callable[[dict[str, Any]], dict[str, Any]] = reply_to
        self.lock = threading.Lock()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}/v1"

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Clients go away in some of the tests."""


class Handler(BaseHTTPRequestHandler):
    server: OpenAIServer
    protocol_version = "HTTP/1.1"

    def log_message(self, format: str, *args: Any) -> None:
        pass

    def do_POST(self) -> None:
        content = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        with self.server.lock:
            self.server.seen.append(content)
            self.server.connections.add(self.client_address)
            self.server.times.append(time.monotonic())
            self.server.keys.append(self.headers.get("Authorization"))
            fault = self.server.faults.pop(0) if self.server.faults else self.server.always(content)
        if fault is None or not fault(self, content):
            self.reply(200, self.server.answer(content))

    def reply(self, status: int, content: Any, headers: dict[str, str] | None = None) -> None:
        body = content if isinstance(content, bytes) else json.dumps(content).encode()
        self.send_response(status)
        for name, value in (headers or {}).items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)


def reply_to(content: dict[str, Any]) -> dict[str, Any]:
    """What a server that works replies: one token a character, and the end of turn as vLLM counts it."""
    if "messages" in content:
        text = content["messages"][-1]["content"].upper()
        tokens = [*text, "<|im_end|>"]
        choice: dict[str, Any] = {"message": {"role": "assistant", "content": text}}
        if content.get("logprobs"):
            choice["logprobs"] = {"content": [entry(token, content["top_logprobs"]) for token in tokens]}
    else:
        text = content["prompt"].upper()
        choice = {"text": text}
        if content.get("logprobs"):
            choice["logprobs"] = {
                "tokens": list(text),
                "token_logprobs": [-0.5 for _ in text],
                "top_logprobs": [{token: -0.5, "other": -2.0} for token in text],
            }
    cut = len(text) > content["max_tokens"]
    return {"model": "served-2026", "choices": [{"index": 0, "finish_reason": "length" if cut else "stop", **choice}]}


def entry(token: str, top: int) -> dict[str, Any]:
    """Log-probabilities of one position."""
    likeliest = [{"token": token, "logprob": -0.5, "bytes": list(token.encode())}]
    likeliest += [{"token": f"t{i}", "logprob": -3.0 - i, "bytes": list(f"t{i}".encode())} for i in range(1, top)]
    return {"token": token, "logprob": -0.5, "bytes": list(token.encode()), "top_logprobs": likeliest}


def status(code: int, message: str = "busy", **headers: str) -> Fault:
    """An error reply; ``retry_after="3"`` becomes a header."""

    def fault(handler: Handler, content: dict[str, Any]) -> bool:
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        handler.reply(code, {"error": {"message": message}}, named)
        return True

    return fault


def body(text: bytes) -> Fault:
    """A reply with another body."""

    def fault(handler: Handler, content: dict[str, Any]) -> bool:
        handler.reply(200, text)
        return True

    return fault


def changed(change: Callable[[dict[str, Any]], None]) -> Fault:
    """A reply whose only choice was changed."""

    def fault(handler: Handler, content: dict[str, Any]) -> bool:
        reply = reply_to(content)
        change(reply["choices"][0])
        handler.reply(200, reply)
        return True

    return fault


def cut_short(handler: Handler, content: dict[str, Any]) -> bool:
    """Less than Content-Length promises."""
    whole = json.dumps(reply_to(content)).encode()
    handler.send_response(200)
    handler.send_header("Content-Length", str(len(whole)))
    handler.end_headers()
    handler.wfile.write(whole[: len(whole) // 2])
    handler.wfile.flush()
    handler.connection.shutdown(socket.SHUT_RDWR)
    handler.close_connection = True
    return True


def reset(handler: Handler, content: dict[str, Any]) -> bool:
    """A connection that is reset in the middle."""
    handler.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    handler.connection.close()
    handler.close_connection = True
    return True


def hang(seconds: float) -> Fault:
    """Nothing for so long, and then no reply."""

    def fault(handler: Handler, content: dict[str, Any]) -> bool:
        time.sleep(seconds)
        handler.close_connection = True
        return True

    return fault


def drip(handler: Handler, content: dict[str, Any]) -> bool:
    """A reply that comes byte by byte and has no end."""
    handler.send_response(200)
    handler.send_header("Content-Length", "1000000")
    handler.end_headers()
    for _ in range(60):
        handler.wfile.write(b" ")
        handler.wfile.flush()
        time.sleep(0.05)
    handler.close_connection = True
    return True


def serving() -> AbstractContextManager[OpenAIServer]:
    """A server until the end of the block."""
    return running(OpenAIServer())


@contextmanager
def running(server: S) -> Iterator[S]:
    """`server` at work until the end of the block."""
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


@contextmanager
def talking(talk: Callable[[socket.socket], None]) -> Iterator[tuple[int, list[bytes]]]:
    """Whatever `talk` sends to those who connect, until the end of the block: a port, and what each of them sent."""
    listener = socket.create_server(("127.0.0.1", 0))
    heard: list[bytes] = []

    def serve() -> None:
        while True:
            try:
                client, _ = listener.accept()
            except OSError:
                return
            with client:
                heard.append(client.recv(1 << 16))
                with suppress(OSError):  # the client has gone
                    talk(client)

    thread = threading.Thread(target=serve, daemon=True)
    thread.start()
    try:
        yield listener.getsockname()[1], heard
    finally:
        listener.shutdown(socket.SHUT_RDWR)
        listener.close()
        thread.join()
