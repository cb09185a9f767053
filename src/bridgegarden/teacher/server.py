"""A teacher behind an OpenAI-compatible server: vLLM, SGLang, llama.cpp, or hosted."""

import queue
import random
import threading
import time
from collections.abc import Generator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from bridgegarden.errors import ConfigError
from bridgegarden.teacher.generate import Answer, Decoding, Failure, Outcome, Request
from bridgegarden.teacher.server_connection import Connection, check_url
from bridgegarden.teacher.server_reply import BadReply, read_reply

LONGEST_BACKOFF = 60.0
"""Seconds between two attempts, unless the server asks for more."""


@dataclass(frozen=True, kw_only=True)
class Server:
    """Where the teacher is, and how it is asked."""

    base_url: str
    """As OpenAI's clients take it, mostly ending in ``/v1``."""
    model: str
    """Its name there."""
    concurrency: int = 8
    """Requests at a time, >= 1."""
    timeout: float = 600.0
    """Seconds that one attempt may take in all, > 0."""
    retries: int = 5
    """Further attempts after one that may pass (429, 5xx, timeouts, broken connections and replies), >= 0."""
    backoff: float = 1.0
    """Seconds before the second attempt, doubled for each one after it, and each drawn between half and all of that."""
    top_logprobs: int = 0
    """Log-probabilities to ask for at every token, >= 0. Servers have limits of their own (OpenAI's is 20)."""

    def __post_init__(self) -> None:
        check_url(self.base_url)
        if not self.model.strip():
            raise ConfigError("the model's name on the server is missing; set teacher.model, or give --model.")
        for name, least in (("concurrency", 1), ("retries", 0), ("top_logprobs", 0)):
            if getattr(self, name) < least:
                raise ConfigError(f"{name} must be >= {least}, got {getattr(self, name)}.")
        if not self.timeout > 0 or not self.backoff > 0:
            raise ConfigError(f"timeout and backoff must be > 0, got {self.timeout} and {self.backoff}.")


class ServerEngine:
    """Answers from a server, several at a time. An :class:`~bridgegarden.teacher.generate.Engine`.

    Every attempt of a request has the same seed, made from the row's and the sample's numbers; whether the same seed
    gives the same answer is up to the server (batching changes last digits, and with them now and then a token).
    """

    def __init__(self, server: Server, key: str | None = None) -> None:
        """
        Args:
            server: where.
            key: of :func:`api_key`; sent to that server only, shown nowhere.
        """
        self.server = server
        self._connection = Connection(server.base_url, key, server.timeout)
        self._limit_name = "max_tokens"

    @property
    def settings(self) -> Mapping[str, Any]:
        """The model and the number of log-probabilities. Not the address: it may move."""
        return {"generated_by": self.server.model, "top_logprobs": self.server.top_logprobs}

    def answers(self, requests: Sequence[Request], decoding: Decoding) -> Generator[list[Outcome]]:
        """Answer `requests` as the server gets round to them.

        Raises:
            ConfigError: the server refuses the key, or sends us elsewhere.
        """
        todo: queue.SimpleQueue[Request] = queue.SimpleQueue()
        for request in requests:
            todo.put(request)
        found: queue.SimpleQueue[Outcome | Exception] = queue.SimpleQueue()
        traffic = _Traffic()
        for _ in range(min(self.server.concurrency, len(requests))):
            # Daemons: an interrupted run must not wait for what is under way.
            threading.Thread(target=self._work, args=(todo, found, decoding, traffic), daemon=True).start()
        left = len(requests)
        try:
            while left:
                news = [found.get()]
                while not found.empty():
                    news.append(found.get())
                batch = [item for item in news if not isinstance(item, Exception)]
                left -= len(batch)
                if batch:
                    yield batch
                for item in news:
                    if isinstance(item, Exception):
                        raise item
        finally:
            traffic.stopped.set()

    def _work(
        self,
        todo: "queue.SimpleQueue[Request]",
        found: "queue.SimpleQueue[Outcome | Exception]",
        decoding: Decoding,
        traffic: "_Traffic",
    ) -> None:
        while not traffic.stopped.is_set():
            try:
                request = todo.get_nowait()
            except queue.Empty:
                return
            try:
                found.put((request, self._answer(request, decoding, traffic)))
            except Exception as error:  # raised again by the thread that reads
                found.put(error)

    def _answer(self, request: Request, decoding: Decoding, traffic: "_Traffic") -> Answer | Failure:
        path, content = self._content(request, decoding)
        attempts = 0
        while True:
            traffic.wait_for_turn()
            attempts += 1
            try:
                body = self._connection.post(path, content)
                return read_reply(body, model=self.server.model, top_k=self.server.top_logprobs)
            except BadReply as bad:
                reason, again, pause = str(bad), bad.try_again, bad.retry_after
            if _wants_new_name(reason) and "max_tokens" in content:
                # OpenAI's newer models know the limit only by its newer name.
                self._limit_name = "max_completion_tokens"
                content[self._limit_name] = content.pop("max_tokens")
                continue
            if not again or attempts > self.server.retries or traffic.stopped.is_set():
                tried = f" ({attempts} attempts)" if attempts > 1 else ""
                return Failure(reason=self._connection.without_key(f"{reason}{tried}"))
            if pause is not None:
                traffic.pause(pause)
            traffic.sleep((pause or 0) + _backoff(self.server.backoff, attempts if pause is None else 1))

    def _content(self, request: Request, decoding: Decoding) -> tuple[str, dict[str, Any]]:
        content: dict[str, Any] = {
            "model": self.server.model,
            "temperature": decoding.temperature,
            self._limit_name: decoding.max_new_tokens,
        }
        if not decoding.greedy:
            # All of the distribution, whatever the server would do unasked.
            content |= {"seed": decoding.seed_of(request.key), "top_p": 1.0}
        if request.chat.form == "text":
            logprobs = {"logprobs": self.server.top_logprobs} if self.server.top_logprobs else {}
            return "completions", content | {"prompt": request.chat.messages[0]["content"]} | logprobs
        content["messages"] = list(request.chat.messages)
        if request.chat.tools is not None:
            content["tools"] = list(request.chat.tools)
        if self.server.top_logprobs:
            content |= {"logprobs": True, "top_logprobs": self.server.top_logprobs}
        return "chat/completions", content


class _Traffic:
    """What the threads of one run have in common: a rate limit for one is one for all."""

    def __init__(self) -> None:
        self.stopped = threading.Event()
        self._open_at = 0.0
        self._lock = threading.Lock()

    def pause(self, seconds: float) -> None:
        """Let nobody ask for so long."""
        with self._lock:
            self._open_at = max(self._open_at, time.monotonic() + seconds)

    def wait_for_turn(self) -> None:
        while not self.stopped.is_set() and (left := self._open_at - time.monotonic()) > 0:
            self.sleep(left)

    def sleep(self, seconds: float) -> None:
        """Until then, or until the run is stopped."""
        self.stopped.wait(seconds)


def _wants_new_name(reason: str) -> bool:
    return reason.startswith("HTTP 400") and "max_completion_tokens" in reason


def _backoff(first: float, attempt: int) -> float:
    return random.uniform(0.5, 1) * min(first * 2 ** (attempt - 1), LONGEST_BACKOFF)
