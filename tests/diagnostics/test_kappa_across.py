"""kappa across tokenizers: what it is without translating, what enumerating every continuation gives, and where it is
not defined."""

import itertools
from functools import cache

import pytest
import torch
from tokenizers import pre_tokenizers
from transformers import AutoModelForCausalLM, PhiConfig

from bridgegarden.causal_lm_policy import CausalLMPolicy
from bridgegarden.diagnostics.kappa import KappaSettings, measure_kappa
from bridgegarden.diagnostics.kappa_across import SharedTokens, measure_kappa_across, places_of_both
from bridgegarden.diagnostics.rollout import Sampling
from bridgegarden.diagnostics.two_tokenizers import PairReader, Prompt, compare_across
from bridgegarden.errors import ConfigError
from bridgegarden.objective.divergences import forward_kl
from bridgegarden.teacher.translation.byte_view import ByteView
from tests.diagnostics.test_two_tokenizers import (
    PROMPTS,
    SAMPLING,
    SIZE,
    WORDS,
    chat,
    letters_and_bytes,
    of_words,
    pair_of,
)
from tests.teacher.translation.small import merged
from tests.tiny import tiny_model, tiny_tokenizer
from tests.tokenizer_pairs import threes

HORIZON = 5


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_with_the_same_tokens_it_is_what_it_is_without_translating():
    """With the same random numbers: the pair of tokenizers differs in how it cuts what no word holds."""
    teacher, student = tiny_model("llama", SIZE, seed=1), tiny_model("qwen2", SIZE, seed=2)
    teacher.get_output_embeddings().weight.data *= 30
    words, others = of_words(range(len(WORDS))), of_words(range(len(WORDS)))
    others.backend_tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    policies = [CausalLMPolicy(model, end_ids=[len(WORDS)], vocab_size=SIZE) for model in (teacher, student)]
    reader = PairReader(pair_of(words, others), *policies, top_k=SIZE)
    prompts = [Prompt(ids, ids) for ids in PROMPTS]
    found = compare_across({"s": reader}, prompts, SAMPLING, generator=seeded(3))["s"]
    texts = found.bias.student_texts
    settings = KappaSettings(budget=10**6, rounds=2, limit=6, max_rows=500, temperature=0.7)
    got = measure_kappa_across(reader, found.student_texts, texts, settings, generator=seeded(5))
    truth = measure_kappa(*policies, texts, settings, generator=seeded(5))
    every = int(texts.lengths.sum())
    assert (got.agreement.tokens, got.agreement.both_begin, got.agreement.both_have) == (every, every, every)
    assert got.kappa is not None
    assert len(got.kappa.positions) == len(truth.positions) == 6
    for one, expected in zip(got.kappa.positions, truth.positions, strict=True):
        assert (one.text, one.position, one.token) == (expected.text, expected.position, expected.token)
        assert (one.likeliest, one.kind) == (expected.likeliest, expected.kind)
        assert one.state_kappa == pytest.approx(expected.state_kappa, rel=1e-3, abs=1e-4)
        for name in ("agreement", "teacher_margin", "loss"):
            assert getattr(one, name) == pytest.approx(getattr(expected, name), rel=1e-3, abs=1e-5)
        tried = {action.token: action for action in one.actions}
        for action in expected.actions:
            same = tried[action.token]
            assert same.kappa.mean == pytest.approx(action.kappa.mean, rel=1e-3, abs=1e-4)
            assert same.teacher_prob == pytest.approx(action.teacher_prob, rel=1e-4)
            assert same.student_prob == pytest.approx(action.student_prob, rel=1e-4)


def of_letters(tokenizer, written: list[str], seed: int) -> CausalLMPolicy:
    """A model that writes `written` and the end alone."""
    config = PhiConfig(
        vocab_size=len(tokenizer),
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
        max_position_embeddings=64,
        bos_token_id=None,
        eos_token_id=None,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    head = model.get_output_embeddings()
    head.weight.data *= 20
    head.bias.data[:] = -60
    head.bias.data[tokenizer.convert_tokens_to_ids([*written, "<end>"])] = 0
    return CausalLMPolicy(model, end_ids=[tokenizer.eos_token_id], vocab_size=len(tokenizer))


@cache
def merging(teachers: tuple[str, ...], students: tuple[str, ...], seed: int, merged_bias: float) -> PairReader:
    """Models of letters and merges, and by how much the teacher prefers those."""
    tokenizers = [merged(*merges) for merges in (teachers, students)]
    letters = [["a", "b", *(merge.replace(" ", "") for merge in merges)] for merges in (teachers, students)]
    teacher, student = (
        of_letters(*both, seed + 10 * side) for side, both in enumerate(zip(tokenizers, letters, strict=True))
    )
    teacher.model.get_output_embeddings().bias.data[tokenizers[0].convert_tokens_to_ids(letters[0][2:])] = merged_bias
    return PairReader(pair_of(*tokenizers), teacher, student, top_k=20)


def goes_on(policy, ids: list[int], room: int) -> list[tuple[list[int], float]]:
    """Every text of at most `room` tokens that it can write behind `ids`, with its probability."""
    ended, going = [], [([], 1.0)]
    for _ in range(0 if ids[-1] in policy.end_ids else room):
        if not going:
            break
        said = policy.start([[*ids, *written] for written, _ in going]).log_probs().double().exp()
        longer = [
            ([*written, token], prob * row[token].item())
            for (written, prob), row in zip(going, said, strict=True)
            for token in (row > 1e-9).nonzero()[:, 0].tolist()
        ]
        ended += [one for one in longer if one[0][-1] in policy.end_ids]
        going = [one for one in longer if one[0][-1] not in policy.end_ids]
    return ended + going


def expected_loss(reader, prompt, room, began: tuple[list[int], list[int]], behind) -> float:
    """Of texts that begin with tokens of both and go on in one of the ways `behind`, the first token left out."""
    view, student = (reader.tokens.translation.teacher, reader.tokens.translation.student)
    texts = [
        reader.counted(prompt, [*began[0], *theirs], [*began[1], *student.encode(view.join(theirs))], room=room)
        for theirs, _ in behind
    ]
    losses = reader.score(texts, 1, HORIZON, forward_kl, 500).texts.losses[0, :, 1:].sum(-1)
    return sum(prob * loss for (_, prob), loss in zip(behind, losses.tolist(), strict=True))


PAIRS = [((), ("a b",), 1, 0.0), (("a b",), (), 5, 0.5), (("a b",), ("b a",), 1, 0.0)]
"""Such that a sum over another reading, or over more tokens than there is room for, is far from what is found."""


@pytest.mark.parametrize("pair", PAIRS, ids=str)
def test_it_is_what_all_continuations_together_give(pair):
    reader = merging(*pair)
    views = reader.tokens.translation.teacher, reader.tokens.translation.student
    prompts = [Prompt(*(tuple(view.encode(text)) for view in views)) for text in (b"a", b"b")]
    sampling = Sampling(samples=2, max_new_tokens=HORIZON)
    found = compare_across({"s": reader}, prompts, sampling, generator=seeded(3))["s"]
    settings = KappaSettings(budget=10**6, rounds=60, top=2, limit=3, max_rows=1000)
    got = measure_kappa_across(reader, found.student_texts, found.bias.student_texts, settings, generator=seeded(4))
    assert got.kappa is not None
    shared, begins = SharedTokens(reader), [reader.both_begin(text) for text in found.student_texts]
    for place in got.kappa.positions:
        text = found.student_texts[place.text]
        at = begins[place.text][place.position]
        theirs, ours = (
            (*text.prompt.teacher, *text.teacher[:at]),
            (*text.prompt.student, *text.student[: place.position]),
        )
        prompt, room = Prompt(theirs, ours), (HORIZON - at, HORIZON - place.position)
        value = expected_loss(reader, prompt, room, ([], []), goes_on(reader.teacher, list(theirs), room[0]))
        for action in place.actions:
            token = shared.of_student(action.token)
            behind = goes_on(reader.teacher, [*theirs, token], room[0] - 1)
            kappa = expected_loss(reader, prompt, room, ([token], [action.token]), behind) - value
            assert action.kappa.mean == pytest.approx(kappa, abs=4 * action.kappa.stderr + 1e-4)
    assert sum(len(place.actions) for place in got.kappa.positions) >= 4


def test_it_is_defined_where_both_begin_a_token_and_both_have_the_likeliest_alone():
    reader = letters_and_bytes()
    ids = tiny_tokenizer().encode("the 12, 4", add_special_tokens=False)
    text = reader.text(chat("there"), [*ids, tiny_tokenizer().eos_token_id], 20, teachers=False)
    shared, view = SharedTokens(reader), reader.tokens.translation.teacher
    written = [view.tokens[token] for token in text.teacher]
    starts = list(itertools.accumulate(map(len, written), initial=0))
    assert reader.both_begin(text) == [starts.index(at) if at in starts else -1 for at in range(len(text.student))]
    assert -1 in reader.both_begin(text)
    read = reader.score([text, text], 2, 20, forward_kl, 8).texts
    for top in (1, 3):
        places, agreement = places_of_both(reader, [text, text], shared, KappaSettings(budget=1, top=top))
        expected = []
        for position, at in enumerate(reader.both_begin(text)):
            if at < 0:
                continue
            tops = [
                policy.start([[*prompt, *ids[:place]]]).log_probs()[0].topk(top).indices.tolist()
                for policy, prompt, ids, place in (
                    (reader.teacher, text.prompt.teacher, text.teacher, at),
                    (reader.student, text.prompt.student, text.student, position),
                )
            ]
            if all(len(view.tokens[token]) == 1 for token in tops[0]) and all(
                token in range(256) or token == tiny_tokenizer().eos_token_id for token in tops[1]
            ):
                expected.append((position, at))
        assert [place[1:] for place in places] == expected * 2
        assert agreement.both_have == len(places) < agreement.both_begin < agreement.tokens == 2 * len(text.student)
        got = measure_kappa_across(
            reader, [text, text], read, KappaSettings(budget=10**6, rounds=2, top=top, limit=1), generator=seeded(1)
        )
        assert (got.kappa is None) == (not places)
        assert got.agreement == agreement


def test_it_is_defined_nowhere_where_the_student_cannot_write_what_the_teacher_may():
    words = of_words(range(len(WORDS)))
    assert not ByteView(words).can_write(ByteView(threes()))
    assert ByteView(threes()).can_write(ByteView(words))
    assert ByteView(tiny_tokenizer()).can_write(ByteView(threes()))
    assert ByteView(words).can_write(ByteView(words))


def test_a_budget_for_not_one_place_is_refused():
    reader = merging(*PAIRS[0])
    views = reader.tokens.translation.teacher, reader.tokens.translation.student
    text = reader.text(
        Prompt(*(tuple(view.encode(b"a")) for view in views)), views[1].encode(b"babab"), 9, teachers=False
    )
    read = reader.score([text], 1, 9, forward_kl, 8).texts
    with pytest.raises(
        ConfigError, match=r"budget: 1 generated tokens are too few for kappa .* about [0-9]+ are needed"
    ):
        measure_kappa_across(reader, [text], read, KappaSettings(budget=1, choose="all"), generator=seeded(1))
