"""Many requests to one server: several at a time, tried again while there is patience, and held back together."""

import asyncio
import copy
import queue
import random
import threading
import time
from collections.abc import Callable, Coroutine, Generator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, TypeVar

from bridgegarden.errors import ConfigError
from bridgegarden.teacher.server_connection import BadReply, Connection, Reply, check_url

if TYPE_CHECKING:
    import aiohttp

T = TypeVar("T")
J = TypeVar("J")

LONGEST_BACKOFF = 60.0
"""Seconds between two attempts, unless the server asks for more."""
LONGEST_TIME = 1e6
"""Seconds. Sockets do not wait for ever."""
MOST_FAULTS = 5
"""Attempts of a request that a server answers with its own fault (HTTP 500) each time, while it answers others."""
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
    broken connections and replies), >= 0; where each is HTTP 500 and others are answered meanwhile, only
    :data:`MOST_FAULTS` times. While nobody is answered, they count from the first failure of all."""
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


class Refused(Exception):
    """A request got no answer that can be used, and will get none; says why in one line."""

    def __init__(self, reason: str, why: Exception | None = None) -> None:
        """
        Args:
            reason: for a person.
            why: what was wrong with the last reply: a :class:`BadReply`, or what in it was unfit.
        """
        super().__init__(reason)
        self.why = why


class Line:
    """How one worker asks: a request after the other, each tried again as long as that may help."""

    def __init__(
        self, number: int, client: "aiohttp.ClientSession", connection: Connection, server: Server, traffic: "_Traffic"
    ) -> None:
        self.number = number
        """Of the worker, from 0: no two that are at work have the same."""
        self._client, self._connection, self._server, self._traffic = client, connection, server, traffic

    async def ask(
        self, path: str, content: Mapping[str, Any] | None, read: Callable[[Reply], T], *, once: bool = False
    ) -> T:
        """What `read` makes of the reply.

        Args:
            path: what is asked, below the server's address.
            content: what is sent; None is a GET.
            read: raises :class:`BadReply` where the reply is none that was asked for.
            once: whether it is not worth another attempt.

        Raises:
            Refused: there is none, or none in time.
            ConfigError: the server refuses the key, or sends us elsewhere.
        """
        attempts, faults, began_to_fail, traffic = 0, 0, None, self._traffic
        while True:
            await traffic.wait_for_turn()
            attempts += 1
            try:
                answer = read(await self._connection.ask(self._client, path, content))
                traffic.worked()
                return answer
            except BadReply as bad:
                reason, again, pause, why = str(bad), bad.try_again, bad.retry_after, bad.unfit or bad
                faults = faults + 1 if bad.status == 500 else 0
            if once or not again:
                traffic.worked()  # the server, though not this request
                raise Refused(_tried(reason, attempts), why)
            began_to_fail = began_to_fail or time.monotonic()
            if faults >= MOST_FAULTS and traffic.worked_at > began_to_fail:
                raise Refused(_tried(reason, attempts), why)
            wait = (pause or 0) + _backoff(self._server.backoff, attempts if pause is None else 1)
            if not traffic.has_patience(began_to_fail, wait):
                asked = f" It asks us to wait for {pause:.0f} s." if pause else ""
                raise Refused(_tried(reason + asked, attempts), why)
            if pause is not None:
                traffic.pause(pause)
            traffic.complain(reason)
            await asyncio.sleep(wait)


class Requests:
    """Work that takes requests, done by as many workers as the server is asked by at a time."""

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
        self.connection = Connection(server.base_url, key, server.timeout)
        self._complain = complain

    def at_a_time(self, workers: int) -> "Requests":
        """The same, by so many workers."""
        other = copy.copy(self)
        other.server = replace(self.server, concurrency=workers)
        return other

    def outcomes(
        self, jobs: Sequence[J], work: Callable[[Line, J], Coroutine[Any, Any, T]]
    ) -> Generator[list[tuple[J, T | Refused]]]:
        """Each job with what `work` makes of it, or why that was refused, as the server gets round to it.

        Raises:
            ConfigError: the server refuses the key, or sends us elsewhere.
        """
        found: queue.SimpleQueue[tuple[J, T | Refused] | Exception] = queue.SimpleQueue()
        loop = asyncio.new_event_loop()
        task = loop.create_task(self._do_all(jobs, work, found))
        # A daemon: an interrupted run must not wait for what is under way.
        threading.Thread(target=_run, args=(loop, task), daemon=True).start()
        left = len(jobs)
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
                    loop.call_soon_threadsafe(task.cancel)

    async def _do_all(
        self,
        jobs: Sequence[J],
        work: Callable[[Line, J], Coroutine[Any, Any, T]],
        found: "queue.SimpleQueue[tuple[J, T | Refused] | Exception]",
    ) -> None:
        todo, traffic = iter(jobs), _Traffic(self.server.patience, self._complain)

        async def worker(line: Line) -> None:
            for job in todo:
                try:
                    outcome: T | Refused = await work(line, job)
                except Refused as refused:
                    outcome = refused
                found.put((job, outcome))

        try:
            async with self.connection.client() as client, asyncio.TaskGroup() as group:
                for number in range(min(self.server.concurrency, len(jobs))):
                    group.create_task(worker(Line(number, client, self.connection, self.server, traffic)))
        except* Exception as errors:
            found.put(errors.exceptions[0])  # raised again by the thread that reads


class _Traffic:
    """What the requests of one run have in common: a rate limit for one is one for all, and so is an outage."""

    def __init__(self, patience: float, complain: Callable[[str], None]) -> None:
        self._patience, self._complain = patience, complain
        self._open_at = 0.0
        self.worked_at = -1.0
        """When somebody was last answered."""
        self._down_since: float | None = None
        self._complained_at = -SECONDS_BETWEEN_COMPLAINTS

    def worked(self) -> None:
        """The server is there."""
        self._down_since = None
        self.worked_at = time.monotonic()

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
