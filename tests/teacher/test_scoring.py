"""What is kept of scores, and what is refused as none."""

import json
import math
import random

import numpy as np
import pytest

from bridgegarden.teacher.answers import kept_position
from bridgegarden.teacher.cache.record import RecordFormat
from bridgegarden.teacher.cache.spec import CacheSpec, Served, Support
from bridgegarden.teacher.foreign_values import Unfit
from bridgegarden.teacher.scores import Row, Scores, read_sglang, read_trl, read_vllm
from bridgegarden.teacher.scoring import Journal, scored_signals
from bridgegarden.teacher.scoring_api import Sglang, Trl, Vllm, _read
from bridgegarden.teacher.server_connection import BadReply, Reply
from bridgegarden.teacher.server_requests import Server

K, VOCABULARY = 5, 50


@pytest.fixture
def spec():
    return CacheSpec(
        teacher="big",
        revision=None,
        weights=None,
        dtype="unknown",
        tokenizer="0",
        chat_template="0",
        max_length=None,
        vocab_size=VOCABULARY,
        teacher_width=VOCABULARY,
        support=Support(k=K),
        exponents=(),
        served=Served(temperature=1.0, source="scored", api="vllm"),
    )


def scores(rows):
    return Scores.of(rows, K, range(len(rows)))


def made_up(seed, sharp):
    """Rows of a teacher that is more or less sure, of 60 tokens: ten are not the student's. The label comes first."""
    rng = np.random.default_rng(seed)
    rows = []
    for _ in range(200):
        logits = sharp * rng.normal(size=60)
        logits[rng.integers(50)] += 3 * sharp
        logp = logits - np.log(np.exp(logits).sum())
        order = np.argsort(-logp)[:K].tolist()
        label = int(rng.integers(60))
        listed = [label, *order] if label not in order else order
        rows.append(Row(listed, logp[listed].tolist(), float(logp[label])))
    return [row for row in rows if row.ids[int(np.argmax(row.logps))] < VOCABULARY]


@pytest.mark.parametrize("sharp", [0.1, 1.0, 5.0, 20.0])
def test_of_every_position_as_much_is_kept_as_of_an_answer_s(spec, sharp):
    rows = made_up(int(10 * sharp), sharp)
    kept = scored_signals(scores(rows), spec)
    for number, row in enumerate(rows):
        pairs = sorted(zip(row.logps, row.ids, strict=True), reverse=True)[:K]
        ids = [index if index < VOCABULARY else None for _, index in pairs]
        expected = kept_position(ids, [logp for logp, _ in pairs], row.label_logp, K)
        ours = dict(zip(kept.ids[number].tolist(), kept.logp[number].tolist(), strict=True))
        ours.pop(-1, None)
        assert set(ours) == set(expected.ids)
        np.testing.assert_allclose([ours[index] for index in expected.ids], expected.logp, rtol=1e-5, atol=1e-7)
        assert kept.log_tail[number] == pytest.approx(expected.log_tail, rel=1e-5)
        assert kept.argmax[number] == expected.ids[0]
        assert kept.label_logp[number] == pytest.approx(expected.label_logp)
        # The last that is listed bounds the others here even if it is the label.
        assert kept.entropy[number] >= expected.entropy - 1e-5
        assert kept.entropy[number] == pytest.approx(least([logp for logp, _ in pairs]), rel=1e-5, abs=1e-7)


def least(logps):
    """Entropy of listed tokens and of as many others, each as likely as the last listed, as have the rest: nats."""
    rest = max(1 - sum(map(math.exp, logps)), 1e-7)
    total = sum(map(math.exp, logps)) + rest
    own = -sum(math.exp(logp) / total * (logp - math.log(total)) for logp in logps)
    return own - rest / total * min(math.log(rest / total), logps[-1])


def test_a_likeliest_token_that_the_student_does_not_have_is_refused(spec):
    row = Row([55, 1, 2, 3, 4], [-0.1, -3.0, -4.0, -5.0, -6.0], -3.0)
    with pytest.raises(Unfit, match="has the id 55, and the last of the rows' vocabulary is 49"):
        scored_signals(scores([Row([1, 2, 3, 4, 5], GOOD, -0.5), row]), spec)


GOOD = [-0.5, -2.0, -3.0, -4.0, -5.0]


@pytest.mark.parametrize(
    ("row", "words"),
    [
        (Row([1, 2, 3, 4], GOOD[:4], -0.5), "token 0: 4 tokens are listed, and 5 were asked for"),
        (Row([1, 2, 3, 4, 4], GOOD, -0.5), "token 0: a token is listed twice"),
        (Row([1, 2, 3, 4, 5], [-0.5, -0.5, -1.0, -1.0, -1.0], -0.5), "add up to 1 at most, got 2.317"),
        (Row([1, 2, 3, 4, 5], [0.5, *GOOD[1:]], -0.5), "expected log-probabilities"),
        (Row([1, 2, 3, 4, 5], GOOD, float("nan")), "expected log-probabilities"),
        (Row([1, 2, 3, 4, 5], [None, *GOOD[1:]], -0.5), "token 0: expected log-probabilities, got what is no number"),
    ],
)
def test_what_is_no_distribution_is_refused_with_its_place(row, words):
    with pytest.raises(Unfit, match=words):
        scores([row])


def vllm(*listed):
    """Two tokens of a text as vLLM says them: the second, with what is listed in its place."""
    entry = {str(index): {"logprob": logp, "rank": rank} for index, logp, rank in listed}
    tree = {"choices": [{"prompt_logprobs": [None, entry]}]}
    return Vllm(Server(base_url="http://localhost/v1", model="big"), {})._scores(tree, [7, 3], [1], 2)


def test_vllm_s_ranks_are_in_the_order_of_its_log_probabilities():
    assert vllm((3, -4.0, 9), (1, -0.1, 1), (2, -3.0, 2)).ids.tolist() == [[1, 2]]
    assert vllm((3, -4.0, 9), (2, -3.0, 2), (1, -0.1, 1)).ids.tolist() == [[1, 2]]
    with pytest.raises(Unfit, match="token 1: the ranks are not in the order of the log-probabilities"):
        vllm((3, -4.0, 9), (2, -3.0, 1), (1, -0.1, 2))


def test_what_vllm_lists_must_hold_the_token_that_stands_there():
    with pytest.raises(Unfit, match="token 1: 3 stands there and is not listed"):
        vllm((1, -0.1, 1), (2, -3.0, 2))


def reply_of(seed, k=5):
    """vLLM's words about a text of 12 tokens, of which some are among the likeliest, and its ids."""
    rng = np.random.default_rng(seed)
    ids = rng.integers(0, 60, 12).tolist()
    entries = [None]
    for label in ids[1:]:
        logp = np.log(rng.dirichlet(np.ones(60)))
        order = np.argsort(-logp)[:k].tolist()
        listed = [label, *(index for index in order if index != label)]
        entries.append(
            {
                str(i): {"logprob": float(logp[i]), "rank": int((logp > logp[i]).sum()) + 1, "decoded_token": "\u00e9"}
                for i in listed
            }
        )
    return ids, {"id": "x", "choices": [{"index": 0, "text": "x", "prompt_logprobs": entries}], "usage": {"n": 1}}


def as_sglang(ids, tree, start=3):
    """The same in SGLang's words, from token `start` on, of which nothing is said."""
    entries = tree["choices"][0]["prompt_logprobs"][start + 1 :]
    own = [[entry[str(label)]["logprob"], label, None] for label, entry in zip(ids[start + 1 :], entries, strict=True)]
    tops = [[[e["logprob"], int(i), None] for i, e in entry.items() if e["rank"] <= 5] for entry in entries]
    meta = {"input_token_logprobs": [[None, ids[start], None], *own], "input_top_logprobs": [None, *tops]}
    return {"text": "", "meta_info": meta | {"id": "x"}}


def as_trl(ids, tree, first=4):
    """The same in the words of TRL's server, from token `first` on."""
    entries = tree["choices"][0]["prompt_logprobs"][first:]
    return {
        "logprobs": [[[listed["logprob"] for listed in entry.values()] for entry in entries]],
        "logprob_token_ids": [[[int(i) for i in entry] for entry in entries]],
    }


KINDS = {Vllm: (lambda ids, tree: tree, read_vllm), Sglang: (as_sglang, read_sglang), Trl: (as_trl, read_trl)}


def slowly(kind, ids, tree):
    """What is read of a reply token by token, or why it is not."""
    api = kind(Server(base_url="http://localhost/v1", model="big"), {})
    read = _read(lambda tree: api._scores(tree, ids, range(4, 12), 5))
    try:
        return list(vars(read(Reply(json.dumps(tree), held_key=False))).values())
    except BadReply as bad:
        return str(bad)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("seed", range(10))
def test_the_usual_reply_is_read_as_any_other_is(kind, seed):
    ids, tree = reply_of(seed)
    words, fast = KINDS[kind]
    tree = words(ids, tree)
    listed = fast(json.dumps(tree), ids, range(4, 12), 5)
    assert listed is not None
    want = slowly(kind, ids, tree)
    for one, other in zip(vars(Scores.of_listed(listed, range(4, 12))).values(), want, strict=True):
        np.testing.assert_array_equal(one, other)


def places_in(tree, found=()):
    """Where every value of a tree is."""
    for key, value in tree.items() if isinstance(tree, dict) else enumerate(tree):
        yield (*found, key)
        if isinstance(value, dict | list):
            yield from places_in(value, (*found, key))


@pytest.mark.parametrize("kind", KINDS)
def test_a_reply_that_is_spoilt_anywhere_is_read_or_refused_as_token_by_token(kind):
    rng, read = random.Random(0), 0
    for number in range(300):
        ids, tree = reply_of(number % 7)
        tree = KINDS[kind][0](ids, tree)
        *path, last = rng.choice(list(places_in(tree)))
        within = tree
        for key in path:
            within = within[key]
        if rng.random() < 0.2:
            del within[last]
        else:
            within[last] = rng.choice([None, "x", "7", 3, -1, -0.5, 2.5, 10**30, True, [], {}, float("nan"), [[-1, 3]]])
        reader = kind(Server(base_url="http://localhost/v1", model="big"), {}).reader(ids, range(4, 12), 5)
        want = slowly(kind, ids, tree)
        try:
            found = list(vars(reader(Reply(json.dumps(tree), held_key=False))).values())
        except BadReply as bad:
            found = str(bad)
        if isinstance(want, str) or isinstance(found, str):
            assert found == want, tree
            continue
        read += 1
        for one, other in zip(found, want, strict=True):
            np.testing.assert_array_equal(one, other)
    assert 10 < read < 290


def entry_of(tree, at=6):
    return tree["choices"][0]["prompt_logprobs"][at]


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (lambda tree, ids: entry_of(tree).pop(str(ids[6])), "token 6: .* stands there and is not listed"),
        (lambda tree, ids: entry_of(tree).update({"<word>": {"logprob": -9.0}}), "token 6: '<word>' is named as text"),
        (lambda tree, ids: entry_of(tree)[str(ids[6])].update(logprob="x"), "expected numbers"),
        (lambda tree, ids: entry_of(tree)[str(ids[6])].update(logprob=None), "expected log-probabilities"),
        (lambda tree, ids: entry_of(tree)[str(ids[6])].update(logprob=float("nan")), "expected log-probabilities"),
        (lambda tree, ids: entry_of(tree)[str(ids[6])].pop("logprob"), "an entry of another shape"),
        (lambda tree, ids: tree["choices"][0]["prompt_logprobs"].pop(3), "11 entries, and 12 were expected"),
        (lambda tree, ids: tree["choices"][0]["prompt_logprobs"].__setitem__(6, None), "token 6: expected an object"),
        (lambda tree, ids: tree["choices"][0].pop("prompt_logprobs"), "it holds no prompt_logprobs"),
        (lambda tree, ids: tree["choices"].clear(), "choices: expected one, got none"),
        (lambda tree, ids: tree.update(error="no"), "replied with an error .no."),
    ],
)
def test_of_an_unusual_one_it_is_said_what_is_wrong(spoil, words):
    ids, tree = reply_of(0)
    spoil(tree, ids)
    read = Vllm(Server(base_url="http://localhost/v1", model="big"), {}).reader(ids, range(4, 12), 5)
    with pytest.raises(BadReply, match=words):
        read(Reply(json.dumps(tree), held_key=False))


def test_what_is_of_no_concern_may_be_no_number_and_half_a_character():
    ids, tree = reply_of(0)
    expected = Vllm(Server(base_url="http://localhost/v1", model="big"), {})._scores(tree, ids, range(4, 12), 5)
    tree["odd"] = [float("nan"), 10**400]
    entry_of(tree)[str(ids[6])]["decoded_token"] = "\ud800"
    read = Vllm(Server(base_url="http://localhost/v1", model="big"), {}).reader(ids, range(4, 12), 5)
    for text in (json.dumps(tree), json.dumps(tree, ensure_ascii=False)):
        np.testing.assert_array_equal(read(Reply(text, held_key=False)).logps, expected.logps)


def test_a_reply_that_comes_when_all_is_over_is_written_nowhere(spec, tmp_path):
    layout = RecordFormat(spec)
    records = layout.encode(scored_signals(scores(made_up(0, 1.0)), spec))
    journal = Journal(tmp_path, layout)
    journal.add(b"1", records)
    journal.settle()
    journal.close()
    kept = journal.path.read_bytes()
    with (tmp_path / "other").open("wb"):  # has the number now that the journal's file had
        journal.add(b"2", records)
    assert (tmp_path / "other").read_bytes() == b""
    assert journal.path.read_bytes() == kept
    assert list(Journal(tmp_path, layout).held) == [b"1"]
