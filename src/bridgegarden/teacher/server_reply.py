"""What an OpenAI-compatible server replied: an answer, or why it is none."""

import json
import math
import re
from collections.abc import Mapping, Sequence
from itertools import chain
from typing import Any, Literal, NamedTuple

from bridgegarden.teacher.generate import Answer

ENDINGS: Mapping[str, Literal["stop", "length"]] = {
    "stop": "stop",
    "eos": "stop",
    "end_turn": "stop",
    "length": "length",
    "max_tokens": "length",
}
SMALLEST_TAIL = 1e-7
"""A server's log-probabilities have the precision of float32: what is left below this is rounding."""
AS_ID = rb"token_id:([0-9]+)"
"""How vLLM names tokens when it is asked to say their ids."""
EXCESS = 1e-3
"""By how much kept probabilities may exceed one in sum before they are no probabilities."""


class BadReply(Exception):
    """There is no answer in a reply; says why in one line."""

    def __init__(self, reason: str, *, try_again: bool = False, retry_after: float | None = None) -> None:
        super().__init__(reason)
        self.try_again = try_again
        """Whether the next reply to the same request may be better."""
        self.retry_after = retry_after
        """Seconds that the server asked us to wait."""


class Token(NamedTuple):
    """A token as a server names it."""

    text: bytes
    id: int | None
    """Where the server says it: llama.cpp does, vLLM if it was started with ``--return-tokens-as-token-ids``."""


class Position(NamedTuple):
    """One token of an answer, and the likeliest ones in its place."""

    token: Token
    logprob: float
    top: list[tuple[Token, float]]


def read_reply(body: bytes, *, model: str, top_k: int) -> Answer:
    """The answer in the reply to a request for one choice.

    Args:
        body: as it came.
        model: what was asked for, where the reply does not say who answered.
        top_k: how many log-probabilities a position were asked for.

    Raises:
        BadReply: it is cut off, an error, or not what was asked for.
    """
    reply = _object(body)
    if reply.get("error") is not None:
        raise BadReply(f"the server replied with an error ({error_text(body)}).", try_again=True)
    choices = reply.get("choices")
    if not isinstance(choices, list) or not choices or not isinstance(choices[0], dict):
        raise BadReply(f"the reply has no 'choices' (it has {', '.join(map(repr, reply)) or 'nothing'}).")
    choice = choices[0]
    ending = choice.get("finish_reason")
    if not isinstance(ending, str) or ending not in ENDINGS:
        raise BadReply(f"the answer ended with finish_reason {ending!r}; expected 'stop' or 'length'.")
    text = _text(choice)
    given = choice.get("logprobs") if top_k else None
    name = reply.get("model")
    return Answer(
        text=text,
        finish_reason=ENDINGS[ending],
        generated_by=name if isinstance(name, str) and name else model,
        top_logprobs=None if given is None else top_logprobs(given, text, top_k),
    )


def top_logprobs(given: Any, text: str, top_k: int) -> dict[str, Any] | None:
    """The server's log-probabilities as they are kept: what soft labels over its top-k and a tail are made of.

    With T tokens in the answer (its end-of-turn token last, if the server counts it), all in nats:

    * ``tokens`` and ``logprobs``: T tokens and their log-probabilities;
    * ``top_tokens`` and ``top_logprobs``: T lists, likeliest first, of at most `top_k` + 1 tokens;
    * ``log_tail``: T logarithms of the mass that all other tokens have together, at least log(1e-7);
    * ``token_ids`` and ``top_token_ids``, shaped as ``tokens`` and ``top_tokens``, if the server says every token's id.

    A token that is not whole characters is written ``bytes:\\xe2\\x82``; one of which a server says no more than its
    id, ``token_id:220``.

    Args:
        given: ``logprobs`` of a choice, in the form of chat or of completions.
        text: the answer.
        top_k: how many a position were asked for.

    Returns:
        None where the server left them empty.

    Raises:
        BadReply: they are not numbers of that kind, or not as many as the answer has tokens.
    """
    positions = _positions(given)
    if not positions:
        return None
    _check_length(positions, text)
    for number, position in enumerate(positions):
        _check_probabilities(position, number, top_k)
    kept = {
        "tokens": [_name(position.token.text) for position in positions],
        "logprobs": [position.logprob for position in positions],
        "top_tokens": [[_name(token.text) for token, _ in position.top] for position in positions],
        "top_logprobs": [[logp for _, logp in position.top] for position in positions],
        "log_tail": [_log_tail(position) for position in positions],
    }
    ids = {
        "token_ids": [position.token.id for position in positions],
        "top_token_ids": [[token.id for token, _ in position.top] for position in positions],
    }
    return kept | ids if None not in (*ids["token_ids"], *chain.from_iterable(ids["top_token_ids"])) else kept


def error_text(body: bytes) -> str:
    """What an error reply says, in one short line."""
    text = body.decode("utf-8", "replace")
    try:
        error = json.loads(text)
        error = error.get("error", error) if isinstance(error, dict) else error
        message = error.get("message", error) if isinstance(error, dict) else error
    except (ValueError, RecursionError):
        message = text
    line = " ".join(str(message).split())
    return line[:300].rstrip(".") or "no text"


def _object(body: bytes) -> dict[str, Any]:
    try:
        reply = json.loads(body)
    except (ValueError, RecursionError) as error:
        raise BadReply(f"the reply is not whole JSON ({len(body)} bytes: {error}).", try_again=True) from error
    if not isinstance(reply, dict):
        raise BadReply("the reply is not a JSON object.", try_again=True)
    return reply


def _text(choice: Mapping[str, Any]) -> str:
    message = choice.get("message")
    text = message.get("content") if isinstance(message, dict) else choice.get("text")
    if not isinstance(text, str):
        calls = (
            " It called a tool, which is not kept." if isinstance(message, dict) and message.get("tool_calls") else ""
        )
        raise BadReply(f"the answer holds no text.{calls}")
    try:
        text.encode()
    except UnicodeEncodeError:
        raise BadReply("the answer holds half a character (a lone surrogate).", try_again=True) from None
    return text


def _positions(given: Any) -> list[Position]:
    try:
        if given.get("content") is not None:
            return [_from_chat(entry) for entry in given["content"]]
        tokens, logprobs, tops = (given.get(key) for key in ("tokens", "token_logprobs", "top_logprobs"))
        if not tokens or tops is None:
            return []
        if not len(tokens) == len(logprobs) == len(tops):
            raise BadReply(
                f"log-probabilities of the wrong length: {len(tokens)} tokens, {len(logprobs)} log-probabilities of "
                f"them and {len(tops)} of the likeliest."
            )
        return [
            Position(_token(token), _nats(logp), _ranked((_token(name), _nats(value)) for name, value in top.items()))
            for token, logp, top in zip(tokens, logprobs, tops, strict=True)
        ]
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise BadReply(f"log-probabilities of an unknown form ({type(error).__name__}: {error}).") from error


def _from_chat(entry: Mapping[str, Any]) -> Position:
    top = _ranked((_chat_token(other), _nats(other["logprob"])) for other in entry["top_logprobs"])
    return Position(_chat_token(entry), _nats(entry["logprob"]), top)


def _ranked(top: Any) -> list[tuple[Token, float]]:
    return sorted(top, key=lambda pair: -pair[1])


def _check_length(positions: Sequence[Position], text: str) -> None:
    """Whether they are those of the answer: all its tokens, and after them at most the one that ends the turn."""
    if any(re.fullmatch(AS_ID, position.token.text) for position in positions):
        return  # what ids spell is known to a tokenizer alone
    said = [
        b"".join(position.token.text for position in part).decode("utf-8", "replace")
        for part in (positions, positions[:-1])
    ]
    if text.strip() not in (part.strip() for part in said):
        shown = said[0] if len(said[0]) <= 60 else f"{said[0][:57]}..."
        raise BadReply(
            f"log-probabilities of the wrong length: {len(positions)} tokens that spell {shown!r}, which is not the "
            f"answer ({len(text)} characters)."
        )


def _check_probabilities(position: Position, number: int, top_k: int) -> None:
    where = f"log-probabilities of token {number}"
    # Some servers add the token that was drawn to the likeliest ones.
    if not 1 <= len(position.top) <= top_k + 1:
        raise BadReply(f"{where} are of the wrong length: {len(position.top)} likeliest tokens; asked for {top_k}.")
    values = [position.logprob, *(logp for _, logp in position.top)]
    if any(logp > EXCESS or math.isnan(logp) for logp in values) or _kept(position) > 1 + EXCESS:
        raise BadReply(f"{where} are none: their probabilities add up to {_kept(position):.4g}.")


def _kept(position: Position) -> float:
    return math.fsum(math.exp(logp) for _, logp in position.top)


def _log_tail(position: Position) -> float:
    return math.log(max(1 - _kept(position), SMALLEST_TAIL))


def _nats(value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise ValueError(f"{value!r} is no log-probability")
    return min(float(value), 0.0) if value <= EXCESS else float(value)


def _chat_token(entry: Mapping[str, Any]) -> Token:
    token = _token(entry["token"], entry.get("bytes"))
    given = entry.get("id")
    return token if type(given) is not int else token._replace(id=given)


def _token(name: str, given: Sequence[int] | None = None) -> Token:
    as_id = re.fullmatch(AS_ID, name.encode())
    if as_id:
        # The bytes beside it may be those of the name, or of half a character made whole.
        return Token(name.encode(), int(as_id[1]))
    return Token(token_bytes(name) if given is None else bytes(given), None)


def token_bytes(name: str) -> bytes:
    """The bytes of a token that is written as in :func:`top_logprobs`."""
    if re.fullmatch(r"bytes:(\\x[0-9a-f]{2})+", name):
        return bytes.fromhex(name.removeprefix("bytes:").replace("\\x", ""))
    return name.encode()


def _name(token: bytes) -> str:
    try:
        return token.decode()
    except UnicodeDecodeError:
        return "bytes:" + "".join(f"\\x{byte:02x}" for byte in token)
