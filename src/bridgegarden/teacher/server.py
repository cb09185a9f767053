"""A teacher behind an OpenAI-compatible server that answers prompts: vLLM, SGLang, llama.cpp, or hosted."""

import json
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import closing
from dataclasses import asdict
from typing import Any

from bridgegarden.teacher.generate import Answer, Decoding, Outcome, Request
from bridgegarden.teacher.server_connection import BadReply, Reply, read_reply
from bridgegarden.teacher.server_requests import Line, Refused, Requests, Server

__all__ = ["Server", "ServerEngine"]


class ServerEngine:
    """Answers from a server, several at a time. An :class:`~bridgegarden.teacher.generate.Engine`.

    Every attempt of a request has the same seed, made from the row's and the sample's numbers; whether the same seed
    gives the same answer is up to the server (batching changes last digits, and with them now and then a token).
    """

    def __init__(
        self, server: Server, key: str | None = None, complain: Callable[[str], None] = lambda _: None
    ) -> None:
        """As of :class:`~bridgegarden.teacher.server_requests.Requests`."""
        self.server = server
        self._requests = Requests(server, key, complain)
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

        async def answer(line: Line, request: Request) -> Answer:
            path, content = self._content(request, decoding)
            try:
                return await line.ask(path, content, self._read)
            except Refused as refused:
                reason = str(refused)
                if not (reason.startswith("HTTP 400") and "max_completion_tokens" in reason):
                    raise
            # OpenAI's newer models know the limit only by its newer name.
            self._limit_name = "max_completion_tokens"
            return await line.ask(*self._content(request, decoding), self._read)

        with closing(self._requests.outcomes(requests, answer)) as batches:
            for batch in batches:
                yield [(job, str(found) if isinstance(found, Refused) else found) for job, found in batch]

    def _read(self, reply: Reply) -> Answer:
        answer = read_reply(reply.text, model=self.server.model, top_k=self.server.top_logprobs)
        # Tokens are listed as bytes, too, which no search in the text of a reply finds.
        if reply.held_key or self._requests.connection.holds_key(json.dumps(asdict(answer))):
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
