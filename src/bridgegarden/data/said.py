"""Whether a text contains what a message says: nothing of it may get lost between a row and what is learnt."""

import json
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

from bridgegarden.data.chat import Message, reasoning_of


class _Part(NamedTuple):
    what: str
    """Such as "name of tool call 0"."""
    spellings: tuple[str, ...]
    """Any of which will do, as it stands in the row first."""


def unsaid(message: Message, text: str, opening: str = "") -> str | None:
    """The first part of `message` that `text` lacks, in words; None when it contains all of them.

    A message may begin with the last words of `opening`, which the generation prompt says for it (``<think>``).

    White space does not count, since templates trim and lay out. Nothing in `text` counts twice: an answer "4" does
    not stand for a reasoning "4". The values of a call may stand in any order, escaped as in JSON or written as Python
    writes them; arguments that are text themselves must stand there as they are.
    """
    content = message.get("content") or ""
    left = _Left(_overlap(opening, content) + text)
    parts = [_Part("text", (content,))] if content else []
    reasoning = reasoning_of(message)
    parts += [_Part("reasoning", (reasoning,))] if reasoning else []
    for number, call in enumerate(message.get("tool_calls") or ()):
        function = call.get("function") or call
        parts.append(_Part(f"name of tool call {number}", (str(function.get("name", "")),)))
        arguments, what = function.get("arguments"), f"arguments of tool call {number}"
        if isinstance(arguments, str):
            parts.append(_Part(what, (arguments,)))
        elif arguments is not None and not left.take(json.dumps(arguments, ensure_ascii=False)):
            parts += [_Part(what, tuple(_spellings(leaf))) for leaf in _leaves(arguments)]
    # Long ones first, so that a short one does not take a piece out of them.
    lost = [part for part in sorted(parts, key=lambda part: -len(part.spellings[0])) if not left.take(*part.spellings)]
    first = next((part for part in parts if part in lost), None)
    return None if first is None else f"the {first.what} {_short(first.spellings[0])}"


class _Left:
    """What is left of a text once parts of it have been found."""

    def __init__(self, text: str) -> None:
        self._text = _compact(text)

    def take(self, *spellings: str) -> bool:
        """Whether one of `spellings` is there; then it is not there any more."""
        for spelling in map(_compact, spellings):
            at = self._text.find(spelling)
            if at >= 0:
                self._text = f"{self._text[:at]}\0{self._text[at + len(spelling) :]}" if spelling else self._text
                return True
        return False


def _overlap(before: str, text: str) -> str:
    """With how much of `text` `before` ends."""
    before, text = _compact(before), _compact(text[: 2 * len(before)])
    return next((text[:size] for size in range(len(text), 0, -1) if before.endswith(text[:size])), "")


def _compact(text: str) -> str:
    return "".join(text.split())


def _leaves(value: Any) -> Iterator[str]:
    if isinstance(value, Mapping):
        for key, item in value.items():
            yield str(key)
            yield from _leaves(item)
    elif isinstance(value, list | tuple):
        for item in value:
            yield from _leaves(item)
    else:
        yield value if isinstance(value, str) else json.dumps(value)


def _spellings(leaf: str) -> Iterator[str]:
    yield leaf
    yield json.dumps(leaf, ensure_ascii=False)[1:-1]
    yield json.dumps(leaf)[1:-1]
    yield repr(leaf)[1:-1]
    yield from {"true": ["True"], "false": ["False"], "null": ["None"]}.get(leaf, [])


def _short(text: str) -> str:
    return repr(text if len(text) <= 40 else text[:37] + "...")
