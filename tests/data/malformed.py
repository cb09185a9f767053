"""Files of rows of which one is broken, in every way that a seeded generator thinks of."""

import json
import random
from collections.abc import Callable
from typing import Any

GOOD: dict[str, dict[str, Any]] = {
    "pair": {"prompt": "two and two", "completion": "four"},
    "chat": {"messages": [{"role": "user", "content": "hello"}, {"role": "assistant", "content": "general"}]},
    "prompt and answer as chat": {
        "prompt": [{"role": "user", "content": "hello"}],
        "completion": [{"role": "assistant", "content": "general"}],
    },
    "ids": {"input_ids": [1, 2, 3, 4], "labels": [-100, -100, 3, 4]},
}
STRINGS = (
    "",
    " ",
    "\0",
    "\x1b[2J",
    "<script>",
    "\u202e",
    "x" * 200_000,
    "<|im_end|>",
    "{{ 7 * 7 }}",
    "\ud83d\ude00",
    "NaN",
)
NUMBERS = (0, -1, 1.5, 2**31, 2**63, 2**64, 10**400, -(2**70), 1e308)


def value(rng: random.Random, depth: int = 0) -> Any:
    """Anything that JSON can say."""
    kind = rng.randrange(9 if depth < 3 else 6)
    if kind < 2:
        return rng.choice(STRINGS)
    if kind < 4:
        return rng.choice(NUMBERS)
    if kind < 6:
        return rng.choice((None, True, False))
    if kind < 8:
        return [value(rng, depth + 1) for _ in range(rng.randrange(4))]
    keys = ("role", "content", "prompt", "tool_calls", "", "from", "a b")
    return {rng.choice(keys): value(rng, depth + 1) for _ in range(rng.randrange(4))}


def _one_value_is_something_else(row: Any, rng: random.Random) -> bytes:
    nodes = list(_places(row))
    holder, key = rng.choice(nodes)
    holder[key] = value(rng)
    return json.dumps(row).encode()


def _a_key_is_missing(row: Any, rng: random.Random) -> bytes:
    objects = [holder for holder, key in _places(row) if isinstance(holder, dict)]
    holder = rng.choice(objects)
    del holder[rng.choice(list(holder))]
    return json.dumps(row).encode()


def _a_key_is_odd(row: Any, rng: random.Random) -> bytes:
    row[rng.choice(("tools", "row", "text", "input_ids", "labels", "chat_template", "", "\0", "images"))] = value(rng)
    return json.dumps(row).encode()


def _a_key_is_there_twice(row: Any, rng: random.Random) -> bytes:
    return json.dumps(row)[:-1].encode() + b', "prompt": "again", "prompt": "and again"}'


def _bytes_are_lost(row: Any, rng: random.Random) -> bytes:
    line = json.dumps(row).encode()
    return line[: rng.randrange(1, len(line))]


def _bytes_are_others(row: Any, rng: random.Random) -> bytes:
    line = bytearray(json.dumps(row).encode())
    for _ in range(rng.randrange(1, 4)):
        line[rng.randrange(len(line))] = rng.choice([*range(0x00, 0x0A), *range(0x0B, 0x100)])
    return bytes(line)


def _half_a_surrogate_pair(row: Any, rng: random.Random) -> bytes:
    return json.dumps(row).replace("o", rng.choice(("\\ud83d", "\\udfff", "\\uD800")), 1).encode()


def _another_encoding(row: Any, rng: random.Random) -> bytes:
    return json.dumps(row | {"more": "naïve ☃"}, ensure_ascii=False).encode(rng.choice(("utf-16", "utf-32", "utf-7")))


def _another_format(row: Any, rng: random.Random) -> bytes:
    return rng.choice(
        (b"prompt,completion", b"prompt: a", b"<row/>", b"{'prompt': 'a'}", b"[1, 2]", b"3", b"null", b'"x"')
    )


def _nested_deeply(row: Any, rng: random.Random) -> bytes:
    depth = rng.choice((40, 60, 90, 400, 5_000, 200_000))
    opening, closing = rng.choice((("[", "]"), ('{"a":', "}")))
    return json.dumps(row)[:-1].encode() + f', "deep": {opening * depth}0{closing * depth}}}'.encode()


def _what_json_does_not_have(row: Any, rng: random.Random) -> bytes:
    return (
        json.dumps(row)[:-1].encode()
        + f', "x": {rng.choice(("NaN", "-Infinity", "1e999", "0x1", "01", "+1"))}}}'.encode()
    )


WAYS: tuple[Callable[[Any, random.Random], bytes], ...] = (
    _one_value_is_something_else,
    _one_value_is_something_else,
    _one_value_is_something_else,
    _a_key_is_missing,
    _a_key_is_odd,
    _a_key_is_there_twice,
    _bytes_are_lost,
    _bytes_are_others,
    _half_a_surrogate_pair,
    _another_encoding,
    _another_format,
    _nested_deeply,
    _what_json_does_not_have,
)


def malformed_line(seed: int) -> tuple[str, bytes, bytes]:
    """How it is broken, the broken line, and a good one of the same shape."""
    rng = random.Random(seed)
    shape = rng.choice(list(GOOD))
    good = json.dumps(GOOD[shape])
    way = rng.choice(WAYS)
    line = way(json.loads(good), rng).replace(b"\n", b" ")
    return f"{shape}: {way.__name__.strip('_')}", line, good.encode()


def _places(node: Any) -> Any:
    items = node.items() if isinstance(node, dict) else enumerate(node) if isinstance(node, list) else ()
    for key, inner in items:
        yield node, key
        yield from _places(inner)
