"""Exposure bias across tokenizers: what it is where it is known exactly, and that nothing is said that is not so."""

import math
from copy import deepcopy
from functools import cache

import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from bridgegarden.causal_lm_policy import CausalLMPolicy
from bridgegarden.diagnostics.exposure_bias import exposure_bias
from bridgegarden.diagnostics.rollout import Sampling
from bridgegarden.diagnostics.two_tokenizers import PairReader, Prompt, compare_across
from bridgegarden.errors import ConfigError, DataError
from bridgegarden.objective.divergences import forward_kl
from bridgegarden.teacher.tokenizer_pair import TokenizerPair
from bridgegarden.teacher.translation.byte_view import ByteView
from bridgegarden.teacher.translation.translate import Translation
from tests.tiny import tiny_model, tiny_tokenizer
from tests.tokenizer_pairs import threes

WORDS = [*"abcdefgh", "ab", "there", "the"]
SIZE = len(WORDS) + 1
SAMPLING = Sampling(samples=2, max_new_tokens=12, max_rows=3)


def of_words(order) -> PreTrainedTokenizerFast:
    """A tokenizer of `WORDS` alone, numbered by `order`, and the end."""
    vocabulary = dict(zip(WORDS, order, strict=True)) | {"<end>": len(WORDS)}
    backend = Tokenizer(models.WordLevel(vocab=vocabulary, unk_token="<end>"))
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="<end>", pad_token="<end>")


def pair_of(teacher, student) -> TokenizerPair:
    views = ByteView(teacher, name="teacher"), ByteView(student, name="student")
    return TokenizerPair(teacher, student, Translation(*views))


@cache
def renumbered():
    """A teacher and a student of words, and a teacher that is the first one under other numbers."""
    order = torch.randperm(len(WORDS), generator=torch.Generator().manual_seed(1)).tolist()
    teacher, student = tiny_model("llama", SIZE, seed=1), tiny_model("qwen2", SIZE, seed=2)
    teacher.get_output_embeddings().weight.data *= 30
    other = deepcopy(teacher)
    rows = torch.tensor([*order, len(WORDS)])
    for name in ("get_input_embeddings", "get_output_embeddings"):
        getattr(other, name)().weight.data[rows] = getattr(teacher, name)().weight.data
    pair = pair_of(of_words(order), of_words(range(len(WORDS))))
    end = [len(WORDS)]
    plain, moved, own = (CausalLMPolicy(m, end_ids=end, vocab_size=SIZE) for m in (teacher, other, student))
    return plain, PairReader(pair, moved, own, top_k=SIZE), own, [*order, len(WORDS)]


PROMPTS = [(0, 1), (2,), (3, 10, 9)]


def prompts_of(order) -> list[Prompt]:
    return [Prompt(tuple(order[i] for i in ids), ids) for ids in PROMPTS]


def test_with_the_same_words_under_other_numbers_all_is_what_it_is_without_translating():
    plain, reader, own, order = renumbered()
    truth = exposure_bias(plain, own, PROMPTS, SAMPLING, generator=torch.Generator().manual_seed(3))
    got = compare_across({"s": reader}, prompts_of(order), SAMPLING, generator=torch.Generator().manual_seed(3))["s"]
    assert got.bias.student_texts.tokens == truth.student_texts.tokens
    torch.testing.assert_close(got.bias.student_texts.losses, truth.student_texts.losses, atol=2e-5, rtol=1e-4)
    for name in ("student_logp", "total_variation"):
        expected = getattr(truth.student_texts, name)
        torch.testing.assert_close(getattr(got.bias.student_texts, name), expected, atol=2e-5, rtol=1e-4)
    assert got.bias.student_loss.mean == pytest.approx(truth.student_loss.mean, rel=1e-4)
    assert got.on_student["aligned_share"] == got.on_teacher["aligned_share"] == 1
    # The teacher's own texts are drawn in another order of the vocabulary: here those of the plain one.
    texts = [
        reader.text(prompts_of(order)[number // 2], [order[i] for i in ids], 12, teachers=True)
        for number, ids in enumerate(truth.teacher_texts.tokens)
    ]
    scored = reader.score(texts, 2, 12, forward_kl, 4).texts
    assert scored.tokens == truth.teacher_texts.tokens
    torch.testing.assert_close(scored.losses, truth.teacher_texts.losses, atol=2e-5, rtol=1e-4)
    assert scored.full.tolist() == truth.teacher_texts.full.tolist()


def test_losses_by_the_byte_are_those_of_the_text_over_its_bytes():
    plain, reader, own, order = renumbered()
    found = compare_across({"s": reader}, prompts_of(order), SAMPLING, generator=torch.Generator().manual_seed(4))["s"]
    view, per_byte = reader.tokens.translation.student, found.bias.per_byte
    for texts, loss, size in (
        (found.bias.teacher_texts, per_byte.teacher_loss, per_byte.teacher_bytes),
        (found.bias.student_texts, per_byte.student_loss, per_byte.student_bytes),
    ):
        counted = sum(len(view.join(ids)) for ids in texts.tokens)
        assert loss.mean == pytest.approx(texts.losses.sum().item() / counted)
        assert size.mean == pytest.approx(counted / len(texts.tokens))
    gap = per_byte.student_loss.mean - per_byte.teacher_loss.mean
    assert per_byte.exposure_bias.mean == pytest.approx(gap)
    plain_bias = exposure_bias(plain, own, PROMPTS, SAMPLING, generator=torch.Generator().manual_seed(3))
    assert plain_bias.per_byte is None


@cache
def letters_and_bytes():
    """A teacher of letters and numbers of up to three digits, a student of bytes."""
    teacher, student = tiny_model("llama", len(threes()), seed=1), tiny_model("qwen2", seed=2)
    teacher.get_output_embeddings().weight.data *= 40
    pair = pair_of(threes(), tiny_tokenizer())
    writers = [
        CausalLMPolicy(model, end_ids=[tokenizer.eos_token_id], vocab_size=len(tokenizer))
        for model, tokenizer in ((teacher, threes()), (student, tiny_tokenizer()))
    ]
    return PairReader(pair, *writers, top_k=len(threes()))


def chat(text: str) -> Prompt:
    messages = [{"role": "user", "content": text}]
    return Prompt(
        *(
            tuple(tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_dict=False))
            for tokenizer in (threes(), tiny_tokenizer())
        )
    )


def test_of_a_text_the_teacher_is_taken_to_say_no_less_than_its_tokens_do():
    """What it says of bytes inside a token counts every token that goes on so; the student's are its own model's."""
    reader = letters_and_bytes()
    answer = "The answer is 6912, there."
    ids = [*threes().encode(answer, add_special_tokens=False), threes().eos_token_id]
    text = reader.text(chat("there"), ids, 99, teachers=True)
    assert text.student == [*tiny_tokenizer().encode(answer, add_special_tokens=False), tiny_tokenizer().eos_token_id]
    scored = reader.score([text], 1, 99, forward_kl, 8)
    whole = torch.tensor([[*text.prompt.teacher, *ids]])
    logp = reader.teacher.model(whole).logits[0].log_softmax(-1)
    start = len(text.prompt.teacher) - 1
    told = sum(logp[start + at, index].item() for at, index in enumerate(ids))
    assert told < scored.texts.teacher_logp.sum().item() < 0
    # Of the first token: all tokens that begin with its first letter, as the model gives them.
    first = [i for i, one in enumerate(reader.tokens.translation.teacher.tokens) if one.startswith(b"T")]
    assert scored.texts.teacher_logp[0, 0].item() == pytest.approx(logp[start, first].logsumexp(0).item(), rel=1e-4)
    assert scored.shares["conditional_share"] > 0.3
    assert scored.shares["hard_only_share"] == 0
    whole = torch.tensor([[*text.prompt.student, *text.student]])
    own = reader.student.model(whole).logits[0].log_softmax(-1)
    start = len(text.prompt.student) - 1
    expected = sum(own[start + at, index].item() for at, index in enumerate(text.student))
    assert scored.texts.student_logp.sum().item() == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize("teachers", [True, False])
def test_a_text_counts_up_to_where_the_first_of_the_two_has_read_what_is_allowed(teachers):
    reader = letters_and_bytes()
    tokenizer = threes() if teachers else tiny_tokenizer()
    ids = tokenizer.encode("1234567890", add_special_tokens=False)
    text = reader.text(chat("there"), ids, 10, teachers=teachers)
    assert (len(text.teacher), len(text.student), text.cut) == (len(threes().encode("1234567890")), 10, True)
    text = reader.text(chat("there"), ids, 11, teachers=teachers)
    assert not text.cut
    text = reader.text(chat("there"), ids, 2, teachers=teachers)
    assert (len(text.teacher), len(text.student), text.cut) == (2, 2, True)


def test_a_text_goes_no_farther_for_the_student_than_the_teacher_has_read():
    pair = pair_of(tiny_tokenizer(), threes())
    reader = letters_and_bytes()
    teacher, student = reader.student, reader.teacher
    turned = PairReader(pair, teacher, student, top_k=50)
    ids = threes().encode("The answer is", add_special_tokens=False)
    # Where one of the student's begins at the very byte that the teacher has not read any more.
    third = len(pair.translation.student.join(ids[:2]))
    text = turned.text(Prompt(*reversed(chat("there"))), ids, third, teachers=False)
    assert (len(text.teacher), text.student) == (third, ids[:2])
    assert turned.tokens.translation.threshold == 0 < pair.translation.threshold
    text = turned.text(Prompt(*reversed(chat("there"))), ids, 8, teachers=False)
    assert len(text.teacher) == 8
    begins = [len(pair.translation.student.join(ids[:at])) for at in range(len(ids))]
    assert text.student == [index for at, index in zip(begins, ids, strict=True) if at < 8]
    assert len(text.student) < len(ids)
    scored = turned.score([text], 1, 8, forward_kl, 8).texts
    assert scored.full.tolist() == [1.0]
    assert (scored.losses >= 0).all()


def test_what_writes_nothing_loses_nothing_and_is_counted_as_unknown():
    reader = letters_and_bytes()
    start = tiny_tokenizer().convert_tokens_to_ids("<|im_start|>")
    text = reader.text(chat("there"), [start, start, tiny_tokenizer().eos_token_id], 9, teachers=False)
    found = reader.score([text], 1, 9, forward_kl, 8)
    assert found.texts.losses[0, 0, :2].tolist() == [0, 0]
    assert found.shares["hard_only_share"] == pytest.approx(2 / 3)
    outside = reader.text(chat("there"), [reader.student.shared_size], 9, teachers=False)
    assert outside.student == []
    assert reader.score([text, outside], 1, 9, forward_kl, 8).texts.lengths.tolist() == [3, 0]
    with pytest.raises(DataError, match="in no text is there a token that both can read"):
        reader.score([outside], 1, 9, forward_kl, 8)


def test_what_is_not_defined_of_two_vocabularies_is_no_number():
    _, reader, _, order = renumbered()
    found = compare_across({"s": reader}, prompts_of(order), SAMPLING, generator=torch.Generator().manual_seed(4))["s"]
    for name in ("overlap", "agreement", "log_ratio"):
        assert getattr(found.bias.student_texts, name).isnan().all()
    assert all(math.isfinite(value) for value in found.on_student.values())


def test_settings_out_of_range_are_refused():
    _, reader, _, order = renumbered()
    generator = torch.Generator()
    for readers, sampling in (({}, SAMPLING), ({"s": reader}, Sampling(samples=0))):
        with pytest.raises(ConfigError, match="exposure bias: needs a student, samples >= 1 and max_new_tokens >= 1"):
            compare_across(readers, prompts_of(order), sampling, generator=generator)


def test_texts_do_not_depend_on_how_many_are_read_at_a_time():
    _, reader, _, order = renumbered()
    many = [
        compare_across(
            {"s": reader},
            prompts_of(order),
            Sampling(samples=2, max_new_tokens=12, max_rows=rows),
            generator=torch.Generator().manual_seed(5),
        )["s"]
        for rows in (1, 50)
    ]
    torch.testing.assert_close(*(one.bias.student_texts.losses for one in many), atol=1e-5, rtol=1e-5)
