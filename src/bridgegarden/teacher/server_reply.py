"""What an OpenAI-compatible server replied: an answer, or why it is none."""

import json
from collections.abc import Mapping
from typing import Any, Literal

from bridgegarden.teacher.foreign_values import Unfit, mapping, name, short, shown, text
from bridgegarden.teacher.generate import Answer
from bridgegarden.teacher.server_logprobs import top_logprobs

ENDINGS: Mapping[str, Literal["stop", "length"]] = {
    "stop": "stop",
    "eos": "stop",
    "end_turn": "stop",
    "length": "length",
    "max_tokens": "length",
}


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
