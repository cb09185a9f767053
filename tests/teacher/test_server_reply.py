import copy
import json
import random
import resource
import time

import pytest

from bridgegarden.files import line_of
from bridgegarden.teacher.foreign_values import Unfit
from bridgegarden.teacher.generate import Answer
from bridgegarden.teacher.server_logprobs import kept_logprobs
from bridgegarden.teacher.server_reply import BadReply, read_reply
from tests.teacher.servers import reply_to

K = 3
CHAT = reply_to({"messages": [{"content": "a\u00e9\U0001f600b"}], "max_tokens": 9, "logprobs": True, "top_logprobs": K})
PLAIN = reply_to({"prompt": "abc", "max_tokens": 9, "logprobs": K})
ODD = [
    None,
    True,
    0,
    -1,
    7,
    300,
    1000,
    -1000,
    2_000_000_000,
    10**20,
    10**400,
    -(10**400),
    1e308,
    -1e308,
    float("nan"),
    float("inf"),
    -float("inf"),
    0.0005,
    "",
    "x",
    "x" * 100_000,
    "\ud83d",
    "\x1b[2J\u202e",
    "token_id:7",
    "token_id:" + "9" * 5000,
    "bytes:\\xff",
    "bytes:\\xzz",
    [],
    [[]],
    [10**20],
    [-1],
    [1.5],
    ["a"],
    list(range(256)) * 30,
    {},
    {"a": 1},
    {"token": "x"},
    {"\ud83d" * 50_000: 1},
]
"""Values that JSON can hold in any place."""


def places(tree, path=()):
    """Every place in a tree of JSON."""
    yield path
    inner = tree.items() if isinstance(tree, dict) else enumerate(tree) if isinstance(tree, list) else ()
    for key, value in inner:
        yield from places(value, (*path, key))


def put(tree, path, value):
    if not path:
        return value
    node = tree
    for key in path[:-1]:
        node = node[key]
    node[path[-1]] = value
    return tree


def mutated(tree, random_change):
    """A copy that differs in one to three places."""
    tree = copy.deepcopy(tree)
    for _ in range(random_change.randint(1, 3)):
        path = random_change.choice([path for path in places(tree) if path] or [()])
        holder = tree
        for key in path[:-1]:
            holder = holder[key]
        match random_change.randrange(5):
            case 0 if path:
                del holder[path[-1]]
            case 1 if isinstance(holder, list):
                holder.insert(random_change.randint(0, len(holder)), copy.deepcopy(holder[path[-1]]))
            case 2 if isinstance(holder, list):
                random_change.shuffle(holder)
            case _:
                tree = put(tree, path, copy.deepcopy(random_change.choice(ODD)))
    return tree


def check(body, top_k=K):
    """An answer that can be written down and read again, or one short line."""
    try:
        answer = read_reply(body, model="big", top_k=top_k)
    except BadReply as bad:
        line = str(bad)
        assert line.isprintable()
        assert len(line) < 600
        return "error"
    assert isinstance(answer, Answer)
    kept = None if answer.top_logprobs is None else json.loads(line_of(answer.top_logprobs))
    assert len(line_of({"text": answer.text, "by": answer.generated_by})) <= len(body) * 6 + 600
    assert (kept_logprobs(kept) is None) == (kept is None)
    return "answer"


@pytest.mark.parametrize("reply", [CHAT, PLAIN])
def test_an_odd_value_anywhere_ends_in_an_answer_or_in_one_short_line(reply):
    began, memory = time.monotonic(), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    assert check(json.dumps(reply)) == "answer"
    found = [check(json.dumps(put(copy.deepcopy(reply), path, value))) for path in places(reply) for value in ODD]
    assert {"answer", "error"} == set(found)
    assert time.monotonic() - began < 20
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - memory < 300_000  # KiB


@pytest.mark.parametrize("seed", range(4))
def test_so_does_any_mutation_of_a_good_reply(seed):
    random_change = random.Random(seed)
    found = [check(json.dumps(mutated(random_change.choice([CHAT, PLAIN]), random_change))) for _ in range(400)]
    assert found.count("error") > 100
    assert found.count("answer") > 20


@pytest.mark.parametrize("seed", range(4))
def test_so_does_any_damage_to_its_bytes(seed):
    random_change = random.Random(seed)
    for _ in range(400):
        damaged = bytearray(json.dumps(random_change.choice([CHAT, PLAIN]), ensure_ascii=False).encode())
        for _ in range(random_change.randint(1, 4)):
            at = random_change.randrange(len(damaged))
            match random_change.randrange(3):
                case 0:
                    damaged[at] = random_change.randrange(256)
                case 1:
                    del damaged[at : at + random_change.randint(1, 30)]
                case 2:
                    damaged[at:at] = random_change.choice(
                        [b"[" * 3000, b"{", b'"', b"\\u", b"\\ud83d", b"9" * 5000, b"\0"]
                    )
        check(damaged.decode("utf-8-sig", "surrogateescape"))


@pytest.mark.parametrize(
    ("path", "value", "reason"),
    [
        (("choices", 0, "finish_reason"), "y" * 20_000_000, "finish_reason 'yyyy"),
        (("choices", 0, "logprobs", "content", 1, "top_logprobs", 0, "logprob"), 1000, "token 1: .*finite, <= 0.*1000"),
        (("choices", 0, "logprobs", "content", 1, "logprob"), 10**400, "token 1: logprob: expected .* got 1000"),
        (
            ("choices", 0, "logprobs", "content", 0, "bytes"),
            2_000_000_000,
            "token 0: bytes: expected a list, got 2000000",
        ),
        (("choices", 0, "logprobs", "content", 0, "bytes"), [10**20], "whole number from 0 to 255, got 1000"),
        (("choices", 0, "logprobs", "content", 0, "id"), 10**20, "id: expected a whole number"),
        (("choices", 0, "logprobs", "content", 0, "token"), "\ud83d", "token holds half a character"),
        (("model",), "\ud83d", "model holds half a character"),
        (("model",), "m" * 20_000, "model: expected at most 300 characters"),
        (("choices", 0, "message", "content"), "\ud83d", "the answer holds half a character"),
        (("choices",), [[]], "choices: expected an object, got \\[\\]"),
        (("choices",), {}, "the reply has no 'choices' \\(it has 'model', 'choices'\\)"),
        (("error",), {"message": "half \ud83d of it"}, r"replied with an error \(half \\ud83d of it\)"),
        (("error",), {"code": {"deep": [1] * 100_000}}, "replied with an error"),
    ],
)
def test_the_line_says_where_and_what(path, value, reason):
    with pytest.raises(BadReply, match=reason) as caught:
        read_reply(json.dumps(put(copy.deepcopy(CHAT), path, value)), model="big", top_k=K)
    assert len(str(caught.value)) < 600


def kept():
    return dict(read_reply(json.dumps(CHAT), model="big", top_k=K).top_logprobs or {})


def test_what_is_kept_is_read_again_as_it_was():
    read = kept_logprobs(kept())
    assert read is not None
    assert [read.tokens, read.logprobs, read.top_tokens, read.top_logprobs] == list(kept().values())[:4]
    assert kept_logprobs(None) is kept_logprobs({}) is kept_logprobs({"tokens": []}) is None


def test_kept_log_probabilities_with_an_odd_value_anywhere_are_read_or_refused_in_one_short_line():
    good = kept() | {"token_ids": [1] * 5, "top_token_ids": [[1, 2, 3]] * 5}
    assert kept_logprobs(good) is not None
    refused = []
    for path in places(good):
        for value in ODD:
            try:
                kept_logprobs(put(copy.deepcopy(good), path, value))
            except Unfit as error:
                refused.append(str(error))
    assert len(refused) > 500
    assert all(line.isprintable() and len(line) < 600 for line in refused)
