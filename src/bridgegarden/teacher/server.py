"""A teacher behind an OpenAI-compatible server: vLLM, SGLang, llama.cpp, or hosted."""

import asyncio
import json
import queue
import random
import threading
import time
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from bridgegarden.errors import ConfigError
from bridgegarden.teacher.generate import Answer, Decoding, Outcome, Request
from bridgegarden.teacher.server_connection import BadReply, Connection, check_url, read_reply

if TYPE_CHECKING:
    import httpx2

LONGEST_BACKOFF = 60.0
"""Seconds between two attempts, unless the server asks for more."""
LONGEST_TIME = 1e6
"""Seconds. Sockets do not wait for ever."""
SECONDS_BETWEEN_COMPLAINTS = 10.0
"""How often it is told that a server does not answer."""


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
    patience: float = 300.0
    """Seconds after its first failure for which a request is tried again, if the failure may pass (429, 5xx, timeouts,
    broken connections and replies), >= 0. While nobody is answered, they count from the first failure of all."""
    backoff: float = 1.0
    """Seconds before the second attempt, doubled for each one after it up to a minute, and each drawn between half and
    all of that."""
    top_logprobs: int = 0
    """Log-probabilities to ask for at every token, >= 0. Servers have limits of their own (OpenAI's is 20)."""

    def __post_init__(self) -> None:
        check_url(self.base_url, "--base-url")
        if not self.model.strip():
            raise ConfigError("the model's name on the server is missing; set teacher.model, or give --model.")
        for name, least in (("concurrency", 1), ("top_logprobs", 0)):
            if getattr(self, name) < least:
                raise ConfigError(f"{name} must be >= {least}, got {getattr(self, name)}.")
        if not 0 < self.timeout <= LONGEST_TIME or not 0 < self.backoff <= LONGEST_TIME:
            raise ConfigError(
                f"timeout and backoff must be in (0, {LONGEST_TIME:g}], got {self.timeout} and {self.backoff}."
            )
        if not 0 <= self.patience <= LONGEST_TIME:
            raise ConfigError(f"patience must be in [0, {LONGEST_TIME:g}], got {self.patience}.")


class ServerEngine:
    """Answers from a server, several at a time. An :class:`~bridgegarden.teacher.generate.Engine`.

    Every attempt of a request has the same seed, made from the row's and the sample's numbers; whether the same seed
    gives the same answer is up to the server (batching changes last digits, and with them now and then a token).
    """

    def __init__(
        self, server: Server, key: str | None = None, complain: Callable[[str], None] = lambda _: None
    ) -> None:
        """
        Args:
            server: where.
            key: of :func:`~bridgegarden.teacher.server_connection.api_key`; sent to that server only, shown nowhere.
            complain: is told now and then, in one line and by any thread, why there are no answers for the moment.

        Raises:
            ConfigError: the key, or the proxy that the environment names, cannot be used.
        """
        self.server = server
        self._complain = complain
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
        found: queue.SimpleQueue[Outcome | Exception] = queue.SimpleQueue()
        loop = asyncio.new_event_loop()
        work = loop.create_task(self._answer_all(requests, decoding, found))
        # A daemon: an interrupted run must not wait for what is under way.
        threading.Thread(target=_run, args=(loop, work), daemon=True).start()
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
            with suppress(RuntimeError):  # it is over, and the loop closed
                if left:
                    loop.call_soon_threadsafe(work.cancel)

    async def _answer_all(
        self, requests: Sequence[Request], decoding: Decoding, found: "queue.SimpleQueue[Outcome | Exception]"
    ) -> None:
        todo, traffic = iter(requests), _Traffic(self.server.patience, self._complain)

        async def work() -> None:
            for request in todo:
                found.put((request, await self._answer(request, decoding, traffic, client)))

        try:
            async with self._connection.client() as client, asyncio.TaskGroup() as group:
                for _ in range(min(self.server.concurrency, len(requests))):
                    group.create_task(work())
        except* Exception as errors:
            found.put(errors.exceptions[0])  # raised again by the thread that reads

    async def _answer(
        self, request: Request, decoding: Decoding, traffic: "_Traffic", client: "httpx2.AsyncClient"
    ) -> Answer | str:
        path, content = self._content(request, decoding)
        attempts, began_to_fail = 0, None
        while True:
            await traffic.wait_for_turn()
            attempts += 1
            try:
                answer = await self._asked(client, path, content)
                traffic.worked()
                return answer
            except BadReply as bad:
                reason, again, pause = str(bad), bad.try_again, bad.retry_after
            if reason.startswith("HTTP 400") and "max_completion_tokens" in reason and "max_tokens" in content:
                # OpenAI's newer models know the limit only by its newer name.
                self._limit_name = "max_completion_tokens"
                content[self._limit_name] = content.pop("max_tokens")
                continue
            if not again:
                traffic.worked()  # the server, though not this request
                return _tried(reason, attempts)
            began_to_fail = began_to_fail or time.monotonic()
            wait = (pause or 0) + _backoff(self.server.backoff, attempts if pause is None else 1)
            if not traffic.has_patience(began_to_fail, wait):
                asked = f" It asks us to wait for {pause:.0f} s." if pause else ""
                return _tried(reason + asked, attempts)
            if pause is not None:
                traffic.pause(pause)
            traffic.complain(reason)
            await asyncio.sleep(wait)

    async def _asked(self, client: "httpx2.AsyncClient", path: str, content: Mapping[str, Any]) -> Answer:
        reply = await self._connection.post(client, path, content)
        answer = read_reply(reply.text, model=self.server.model, top_k=self.server.top_logprobs)
        # Tokens are listed as bytes, too, which no search in the text of a reply finds.
        if reply.held_key or self._connection.holds_key(json.dumps(asdict(answer))):
            raise BadReply("the reply holds our API key, so it is not kept.")
        return answer

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
    """What the requests of one run have in common: a rate limit for one is one for all, and so is an outage."""

    def __init__(self, patience: float, complain: Callable[[str], None]) -> None:
        self._patience, self._complain = patience, complain
        self._open_at = 0.0
        self._down_since: float | None = None
        self._complained_at = -SECONDS_BETWEEN_COMPLAINTS

    def worked(self) -> None:
        """The server is there."""
        self._down_since = None

    def has_patience(self, since: float, wait: float) -> bool:
        """Whether a request that has failed since then may wait for so long and be tried again."""
        now = time.monotonic()
        self._down_since = self._down_since or now
        return now + wait <= min(since, self._down_since) + self._patience

    def complain(self, reason: str) -> None:
        """Tell why it takes time, if that was not told just now."""
        now = time.monotonic()
        if now - self._complained_at >= SECONDS_BETWEEN_COMPLAINTS:
            self._complained_at = now
            self._complain(f"no answer, trying again for {self._patience:g} s in all: {reason}")

    def pause(self, seconds: float) -> None:
        """Let nobody ask for so long."""
        self._open_at = max(self._open_at, time.monotonic() + seconds)

    async def wait_for_turn(self) -> None:
        while (left := self._open_at - time.monotonic()) > 0:
            await asyncio.sleep(left)


def _run(loop: asyncio.AbstractEventLoop, work: "asyncio.Task[None]") -> None:
    try:
        with suppress(asyncio.CancelledError):
            loop.run_until_complete(work)
    finally:
        loop.run_until_complete(loop.shutdown_asyncgens())
        loop.run_until_complete(loop.shutdown_default_executor())
        loop.close()


def _tried(reason: str, attempts: int) -> str:
    return f"{reason} ({attempts} attempts)" if attempts > 1 else reason


def _backoff(first: float, attempt: int) -> float:
    return random.uniform(0.5, 1) * min(first * 2 ** (attempt - 1), LONGEST_BACKOFF)
