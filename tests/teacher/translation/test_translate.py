"""A translated signal against the truth, summed over every text there is."""

import pickle
import random
from collections.abc import Sequence

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from bridgegarden.errors import ConfigError, DataError
from bridgegarden.objective.support import TeacherSignal
from bridgegarden.teacher.translation.align import align
from bridgegarden.teacher.translation.byte_view import ByteView
from bridgegarden.teacher.translation.first_token import WIDEST
from bridgegarden.teacher.translation.translate import (
    ALIGNED,
    CONDITIONAL,
    HARD_ONLY,
    Translated,
    Translation,
)
from tests.teacher.translation.small import FirstTokensOf, Texts, ids, strings, view

FEW = ("a b", "b c")
MANY = ("a b", "b c", "ab c", "c a", "ca b", "a a")
OTHER = ("b c", "a bc", "c c", "b b", "bb a")
PAIRS = {
    "student's merges are some of the teacher's": (MANY, FEW),
    "teacher's merges are some of the student's": (FEW, MANY),
    "teacher of bytes": ((), MANY),
    "student of bytes": (MANY, ()),
    "neither": (MANY, OTHER),
    "neither, the other way": (OTHER, MANY),
}
ALL = strings(8)


def drawn(teacher: ByteView, seed: int, texts: Sequence[bytes] = ALL) -> Texts:
    rng = random.Random(seed)
    return Texts(teacher, {text: rng.expovariate(1) * 3.0 ** -len(text) for text in texts})


def truths(texts: Texts, student: ByteView, text: bytes, first: FirstTokensOf) -> list[Tensor]:
    """The student's next token at each of its positions of `text`, by summing.

    Over the texts that the teacher may write, given its tokens before the one over the place, that this one is written
    over it, and that the student cuts them as `text` from its first place in that token on.
    """
    tokens, targets = texts.ids[text], ids(student, text)
    held = align(texts.view, student, tokens, targets)
    found, begin = [], 0
    for place, (at, inside) in enumerate(zip(held.token.tolist(), held.inside.tolist(), strict=True)):
        if place and at != held.token[place - 1]:
            begin = place
        following = texts.following(tokens[:at], texts.view.tokens[tokens[at]][:inside])
        found.append(first(following, targets[begin:place]))
    return found


def cells(found: Translated, place: int) -> dict[int, float]:
    kept = found.signal.ids[place] >= 0
    return dict(zip(found.signal.ids[place][kept].tolist(), found.signal.logp[place][kept].exp().tolist(), strict=True))


@pytest.mark.parametrize("name", PAIRS)
def test_every_cell_is_what_summing_over_all_texts_gives_and_the_tail_is_the_rest(name: str):
    teacher, student = (view(*merges) for merges in PAIRS[name])
    texts, first = drawn(teacher, 1), FirstTokensOf(student)
    pair = Translation(teacher, student, threshold=0, tolerance=0)
    compared = 0
    for text in random.Random(2).sample(ALL, 40):
        found = pair(texts.signal(text), [texts.ids[text]], [ids(student, text)])
        for place, truth in enumerate(truths(texts, student, text, first)):
            if found.kind[place] == HARD_ONLY:
                continue
            mass = cells(found, place)
            assert max(abs(prob - truth[token]) for token, prob in mass.items()) < 1e-10
            assert abs(found.signal.log_tail[place].exp() - (1 - sum(truth[token] for token in mass))) < 2e-10
            assert abs(found.exact[place] - found.known[place]) < 1e-12
            compared += len(mass)
    assert compared > 100


def test_behind_the_beginning_of_a_word_stand_those_alone_that_the_student_cuts_so():
    """``Ġ`` is a space. The student has a token for `` ab`` and none for `` ac`` and `` bc``."""
    teacher, student = view("Ġ a", "Ġa b", "Ġa c", "Ġ b", "Ġb c"), view("Ġ a", "Ġa b")
    texts = Texts(teacher, {b" ab": 0.5, b" ac": 0.3, b" bc": 0.2})
    for text, wanted in {b" ac": [0.3, 1.0], b" bc": [0.2, 1.0, 1.0], b" ab": [0.5]}.items():
        found = Translation(teacher, student, threshold=0)(texts.signal(text), [texts.ids[text]], [ids(student, text)])
        own = [cells(found, place)[token] for place, token in enumerate(ids(student, text)[:-1])]
        assert own == pytest.approx(wanted)
        # And so they multiply to what the teacher gives its token.
        assert found.signal.label_logp[:-1].sum().exp() == pytest.approx(texts.prob[text])


def test_of_what_only_the_next_token_decides_no_more_is_said_than_is_sure():
    """The student cuts ``ab`` as one token, and as ``a|bc`` where c follows."""
    teacher, student = view("a b", "a c"), view("b c", "a b")
    texts, first = Texts(teacher, {b"abc": 0.5, b"ab": 0.2, b"ac": 0.3}), FirstTokensOf(student)
    text, c = b"abc", student.tokens.index(b"c")
    found = Translation(teacher, student, threshold=0)(texts.signal(text), [texts.ids[text]], [ids(student, text)])
    assert found.kind[1] == CONDITIONAL
    assert cells(found, 1) == pytest.approx({c: 0.3})
    assert found.signal.log_tail[1].exp().item() == pytest.approx(0.7)
    assert found.unknown[1] == 0
    assert truths(texts, student, text, first)[1][c].item() == pytest.approx(0.3 / 0.8)


@settings(max_examples=25, deadline=None)
@given(
    name=st.sampled_from(sorted(PAIRS)),
    seed=st.integers(0, 999),
    top_k=st.one_of(st.none(), st.integers(1, 5)),
    tolerance=st.sampled_from([0.0, 0.02, 0.3, 1.0]),
)
def test_masses_sum_to_one_and_no_cell_is_larger_than_the_truth(
    name: str, seed: int, top_k: int | None, tolerance: float
):
    teacher, student = (view(*merges) for merges in PAIRS[name])
    texts, first = drawn(teacher, seed, strings(4)), FirstTokensOf(student)
    pair = Translation(teacher, student, threshold=0, tolerance=tolerance)
    text = random.Random(seed).choice(strings(4))
    found = pair(texts.signal(text, top_k), [texts.ids[text]], [ids(student, text)])
    total = found.signal.cells().exp().sum(-1)
    assert (total - 1).abs().max() < 2e-10
    for place, truth in enumerate(truths(texts, student, text, first)):
        if found.kind[place] != HARD_ONLY:
            assert all(prob <= truth[token] + 1e-10 for token, prob in cells(found, place).items())


@pytest.mark.parametrize("top_k", [None, 3])
def test_the_same_tokenizer_twice_gives_the_very_signal(top_k: int | None):
    texts = drawn(view(*MANY), 1, strings(3))
    signal = texts.signal(b"abc", top_k)
    found = Translation(texts.view, view(*MANY))(signal, [texts.ids[b"abc"]], [texts.ids[b"abc"]])
    assert found.signal is signal
    assert found.shares().aligned == 1


def translated(
    texts: Texts, student: ByteView, text: bytes, top_k: int | None = None, threshold: float = 0.5
) -> Translated:
    pair = Translation(texts.view, student, threshold=threshold)
    return pair(texts.signal(text, top_k), [texts.ids[text]], [ids(student, text)])


def test_a_token_that_goes_on_in_the_student_is_left_to_the_tail_unless_the_text_goes_on_with_it():
    """``the`` may become ``there``; the teacher's next token says how much of it does."""
    teacher = view("t h", "th e", "r e")
    student = view("t h", "th e", "r e", "the re")
    texts = Texts(teacher, {b"the": 0.5, b"there": 0.3, b"cat": 0.2})
    there, the, c = (student.encode(text)[0] for text in (b"there", b"the", b"c"))
    pair = Translation(teacher, student, threshold=0, tolerance=0)
    for text in (b"the", b"there"):
        found = pair(texts.signal(text), [texts.ids[text]], [ids(student, text)])
        assert cells(found, 0) == pytest.approx({the: 0.5, there: 0.3, c: 0.2})
        assert found.signal.label_logp[0].exp() == pytest.approx(texts.prob[text])
    found = pair(texts.signal(b"cat"), [texts.ids[b"cat"]], [ids(student, b"cat")])
    assert cells(found, 0) == pytest.approx({c: 0.2})
    assert found.signal.log_tail[0].exp() == pytest.approx(0.8)
    assert found.signal.argmax[0] == c


def test_what_is_too_little_to_be_followed_is_left_open():
    """``x`` behind ``the`` has 0.02 of everything: more than a thousandth of the tolerance, and less than a tenth."""
    teacher = view("t h", "th e", "r e")
    student = view("t h", "th e", "r e", "the re")
    texts = Texts(teacher, {b"the": 0.5, b"there": 0.28, b"thex": 0.02, b"cat": 0.2})
    given = texts.signal(b"the"), [texts.ids[b"the"]], [ids(student, b"the")]
    the = student.encode(b"the")[0]
    assert cells(Translation(teacher, student)(*given), 0)[the] == pytest.approx(0.52)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("bridgegarden.teacher.translation.translate.LEAST", 0.1)
        less = Translation(teacher, student, tolerance=1)(*given)
    assert cells(less, 0)[the] == pytest.approx(0.5)
    assert less.signal.log_tail[0].exp() == pytest.approx(0.02)


def test_a_token_with_which_very_many_begin_is_open_to_those_alone_that_the_teacher_writes_so():
    """A space begins every word, and this teacher writes all but one of them as one token, space included."""
    pairs = [f"{a}{b}" for a in "abcdefghijkl" for b in "abcdefghijkl"]
    merges = [f"{p[0]} {p[1]}" for p in pairs] + [f"Ġ {p}" for p in pairs]
    teacher, student = view(*merges[:-1], cut=r" ?[a-z]+|\d"), view(*merges, cut=r" ?[a-z]+|\d")
    assert len(pairs) > WIDEST
    texts = Texts(teacher, {b" aa": 0.4, b" bc": 0.3, b" ": 0.2, b" ll": 0.1})
    found = Translation(teacher, student, threshold=0, tolerance=0)(
        texts.signal(b" aa"), [texts.ids[b" aa"]], [ids(student, b" aa")]
    )
    assert cells(found, 0) == pytest.approx({student.encode(text)[0]: texts.prob[text] for text in (b" aa", b" bc")})


def test_forgotten_paths_are_made_anew(monkeypatch: pytest.MonkeyPatch):
    texts, student = drawn(view(*FEW), 3, strings(4)), view(*MANY)
    pair, text = Translation(texts.view, student, threshold=0), b"abca"
    given = texts.signal(text), [texts.ids[text]], [ids(student, text)]
    before = pair(*given)
    monkeypatch.setattr("bridgegarden.teacher.translation.decisions.HELD", 0)
    assert torch.equal(pair(*given).signal.logp, before.signal.logp)
    assert torch.equal(pair(*given).signal.ids, before.signal.ids)


def test_decisions_that_are_held_in_the_same_place_are_told_apart(monkeypatch: pytest.MonkeyPatch):
    texts, student = drawn(view(*FEW), 3, strings(5)), view(*MANY)
    chosen = [b"abcab", b"aabca", b"bcabc", b"cabab"]
    given = [(texts.signal(text), [texts.ids[text]], [ids(student, text)]) for text in chosen]
    plenty = Translation(texts.view, student, threshold=0)
    before = [plenty(*one).signal for one in given]
    monkeypatch.setattr("bridgegarden.teacher.translation.decisions.NEAR_BITS", 1)
    pair = Translation(texts.view, student, threshold=0)
    for _ in range(2):
        for one, expected in zip(given, before, strict=True):
            found = pair(*one).signal
            assert torch.equal(found.ids, expected.ids)
            assert torch.equal(found.logp, expected.logp)


def test_where_the_tail_outweighs_every_cell_the_hard_label_is_the_texts_own():
    teacher, student = view("t h"), view("t h", "th e", "c a")
    texts = Texts(teacher, {b"the": 0.4, b"tha": 0.3, b"b": 0.2, b"ca": 0.1})
    found = Translation(teacher, student, threshold=0, tolerance=0)(
        texts.signal(b"ca"), [texts.ids[b"ca"]], [ids(student, b"ca")]
    )
    b, ca = (student.encode(text)[0] for text in (b"b", b"ca"))
    assert cells(found, 0) == pytest.approx({b: 0.2, ca: 0.1})
    assert found.signal.argmax[0] == ca
    assert found.signal.max_logp[0].exp() == pytest.approx(0.1)


def test_a_token_of_which_more_may_be_where_the_teacher_was_not_asked_is_no_cell():
    """Behind ``the`` it was asked of the end and of ``re``; ``there`` may be a part of the rest as well."""
    teacher = view("t h", "th e", "r e")
    student = view("t h", "th e", "r e", "the re")
    texts = Texts(teacher, {b"the": 0.5, b"there": 0.2, b"thex": 0.1, b"cat": 0.2})
    there = student.encode(b"there")[0]
    for top_k, mass in ((None, 0.2), (1, 0.0)):
        found = Translation(teacher, student, threshold=0, tolerance=0)(
            texts.signal(b"there", top_k), [texts.ids[b"there"]], [ids(student, b"there")]
        )
        mass_there = cells(found, 0).get(there, 0.0) if found.kind[0] == ALIGNED else 0.0
        assert mass_there == pytest.approx(mass)


def test_what_was_only_tried_is_not_said_to_be_proved():
    """``the`` is not written before ``r`` by this teacher, which was tried; of ``b`` nothing else can come."""
    merges = ("t h", "th e", "the r")
    teacher, student = view(*merges, cut=r"\d|[a-z]+"), view(*merges, "r e", cut=r"\d|[a-z]+")
    texts = Texts(teacher, {b"the": 0.5, b"ther": 0.3, b"b": 0.2})
    found = Translation(teacher, student, tolerance=0)(
        texts.signal(b"the"), [texts.ids[b"the"]], [ids(student, b"the")]
    )
    assert found.known[0] == pytest.approx(1)
    assert found.exact[0] == pytest.approx(0.2)


@pytest.mark.parametrize(("teacher_cut", "student_cut"), [(r"\d{3}|\d", r"\d"), (r"\d", r"\d{3}|\d")])
def test_digits_one_by_one_against_threes(teacher_cut: str, student_cut: str):
    merges = [f"{a} {b}" for a in "12" for b in "12"] + [f"{a}{b} {c}" for a in "12" for b in "12" for c in "12"]
    both = {r"\d{3}|\d": merges, r"\d": []}
    teacher = view(*both[teacher_cut], cut=teacher_cut)
    student = view(*both[student_cut], cut=student_cut)
    numbers = {f"{n}".encode(): 1.0 + n % 5 for n in (111, 112, 121, 122, 222)}
    texts, first = Texts(teacher, numbers), FirstTokensOf(student)
    for text in numbers:
        found = Translation(teacher, student, threshold=0, tolerance=0)(
            texts.signal(text), [texts.ids[text]], [ids(student, text)]
        )
        assert (found.kind != HARD_ONLY).all()
        for place, truth in enumerate(truths(texts, student, text, first)):
            mass = cells(found, place)
            assert max(abs(prob - truth[token]) for token, prob in mass.items()) < 1e-10
            assert ids(student, text)[place] in mass
    if student_cut == r"\d":
        assert found.kind.tolist() == [ALIGNED, CONDITIONAL, CONDITIONAL, ALIGNED]
        assert found.known.tolist() == pytest.approx([1, 1, 1, 1])


def test_a_character_that_a_token_cuts_is_followed_byte_by_byte():
    """GPT-2's letters for the bytes of é (C3 A9) and è (C3 A8) are Ã© and Ã¨."""
    teacher, student = view("Ã ©"), view("a Ã")
    texts = Texts(teacher, {"é".encode(): 0.6, "è".encode(): 0.3, "aé".encode(): 0.1})
    first = FirstTokensOf(student)
    for text in texts.prob:
        found = Translation(teacher, student, tolerance=0)(texts.signal(text), [texts.ids[text]], [ids(student, text)])
        for place, truth in enumerate(truths(texts, student, text, first)):
            assert all(abs(prob - truth[token]) < 1e-10 for token, prob in cells(found, place).items())
    assert student.encode("é".encode()) == [student.tokens.index(b"\xc3"), student.tokens.index(b"\xa9")]


def test_leading_spaces_belong_to_words_on_one_side_and_stand_alone_on_the_other():
    """``Ġ`` is a space."""
    words, spaces = view("Ġ a", "Ġ b"), view("Ġ Ġ")
    weights = {b" a": 0.5, b" b": 0.2, b"  a": 0.2, b"a b": 0.1}
    for teacher, student in ((words, spaces), (spaces, words)):
        texts, first = Texts(teacher, weights), FirstTokensOf(student)
        for text in weights:
            found = Translation(teacher, student, threshold=0, tolerance=0)(
                texts.signal(text), [texts.ids[text]], [ids(student, text)]
            )
            for place, truth in enumerate(truths(texts, student, text, first)):
                if found.kind[place] != HARD_ONLY:
                    assert all(abs(prob - truth[token]) < 1e-10 for token, prob in cells(found, place).items())


def test_the_end_of_a_turn_is_one_symbol_under_two_names():
    teacher, student = view("a b", end="<|im_end|>"), view("b c", end="<|eot_id|>")
    texts = Texts(teacher, {b"ab": 0.7, b"abc": 0.3})
    found = Translation(teacher, student)(texts.signal(b"ab"), [texts.ids[b"ab"]], [ids(student, b"ab")])
    assert cells(found, 2) == pytest.approx({student.end: 0.7, student.encode(b"c")[0]: 0.3})


def test_an_empty_answer_is_the_end_alone_or_nothing():
    teacher, student = view("a b"), view("b c")
    texts = Texts(teacher, {b"": 0.8, b"c": 0.2})
    pair = Translation(teacher, student)
    found = pair(texts.signal(b""), [texts.ids[b""]], [ids(student, b"")])
    assert cells(found, 0)[student.end] == pytest.approx(0.8)
    nothing = pair(texts.signal(b"")[:0], [[]], [[]])
    assert nothing.signal.logp.shape[0] == 0


def test_below_the_threshold_a_position_is_the_hard_label_alone():
    texts, student = drawn(view(*FEW), 3, strings(4)), view(*MANY)
    text = b"abca"
    soft, hard = (translated(texts, student, text, threshold=value) for value in (0.0, 1.0))
    low = hard.kind == HARD_ONLY
    assert low.any()
    assert (hard.signal.ids[low, 0] == torch.tensor(ids(student, text))[low]).all()
    assert (hard.signal.logp[low, 0] == 0).all()
    assert (soft.known == hard.known).all()


def test_a_student_token_beyond_the_teachers_text_is_hard_only():
    teacher, student = view("a b"), view()
    texts = Texts(teacher, {b"ab": 1.0})
    cut = texts.signal(b"ab")[:1]
    found = Translation(teacher, student)(cut, [texts.ids[b"ab"][:1]], [ids(student, b"abc")[:3]])
    assert found.kind.tolist() == [ALIGNED, CONDITIONAL, HARD_ONLY]


def test_the_texts_token_is_known_though_it_is_not_among_the_likeliest():
    teacher, student = view("a b"), view("b c")
    texts = Texts(teacher, {b"ab": 0.6, b"c": 0.3, b"b": 0.1})
    found = translated(texts, student, b"b", top_k=1, threshold=0)
    assert found.signal.label_logp[0].exp() == pytest.approx(0.1)
    assert found.unknown[0] == pytest.approx(0.3)


def joined(signals: Sequence[TeacherSignal], size: int) -> TeacherSignal:
    fields = ("logp", "entropy", "argmax", "max_logp", "label_logp")
    together = {name: torch.cat([getattr(signal, name) for signal in signals]) for name in fields}
    return TeacherSignal(ids=None, log_tail=None, vocab_size=size, **together)


def test_several_stretches_are_translated_as_each_alone():
    texts, student = drawn(view(*FEW), 3, strings(4)), view(*MANY)
    pair = Translation(texts.view, student, threshold=0)
    chosen = [(b"abca", 5), (b"", 1), (b"aab", 1), (b"cab", 5)]
    signals = [texts.signal(text)[:stop] for text, stop in chosen]
    theirs = [texts.ids[text][:stop] for text, stop in chosen]
    ours = [student.encode(texts.view.join(written)) or [] for written in theirs]
    together = pair(joined(signals, len(texts.view)), theirs, ours)
    place = 0
    for signal, teacher_ids, student_ids in zip(signals, theirs, ours, strict=True):
        found = pair(signal, [teacher_ids], [student_ids])
        for at in range(len(found.kind)):
            assert found.kind[at] == together.kind[place]
            assert cells(together, place) == pytest.approx(cells(found, at), abs=1e-12)
            place += 1
    assert place == len(together.kind)


def test_a_stretch_that_is_cut_off_does_not_go_on_in_the_next():
    """``a`` may become ``ab``, and the next stretch begins with a ``b`` of which the teacher is sure."""
    teacher, student = view(), view("a b")
    first, second = Texts(teacher, {b"a": 0.4, b"ab": 0.4, b"c": 0.2}), Texts(teacher, {b"b": 1.0})
    signal = joined([first.signal(b"a")[:1], second.signal(b"b")], len(teacher))
    theirs, ours = [first.ids[b"a"][:1], second.ids[b"b"]], [student.encode(b"a") or [], ids(student, b"b")]
    found = Translation(teacher, student, threshold=0)(signal, theirs, ours)
    assert cells(found, 0) == pytest.approx({teacher.tokens.index(b"c"): 0.2})


def test_a_translation_is_the_same_in_another_process():
    texts, student = drawn(view(*FEW), 3, strings(4)), view(*MANY)
    pair = Translation(texts.view, student)
    given = texts.signal(b"abca"), [texts.ids[b"abca"]], [ids(student, b"abca")]
    before = pair(*given)
    again = pickle.loads(pickle.dumps(pair))
    assert torch.equal(again(*given).signal.logp, before.signal.logp)


def test_draws_and_numbers_that_do_not_agree_are_refused():
    texts, student = drawn(view(*FEW), 3, strings(2)), view(*MANY)
    pair = Translation(texts.view, student)
    signal = texts.signal(b"ab")
    sampled = TeacherSignal.from_samples(signal.logp, 4)
    with pytest.raises(ConfigError, match="sampled, and draws cannot be translated"):
        pair(sampled, [texts.ids[b"ab"]], [ids(student, b"ab")])
    with pytest.raises(DataError, match="expected a stretch for each and a position for each teacher token"):
        pair(signal, [texts.ids[b"ab"][:-1]], [ids(student, b"ab")])
    with pytest.raises(ConfigError, match="threshold must be between 0 and 1"):
        Translation(texts.view, student, threshold=2)
