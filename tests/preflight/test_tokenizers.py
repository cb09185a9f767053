import json
from typing import Any

import pytest

from bridgegarden.errors import ModelError
from bridgegarden.preflight import ModelReference, compare_tokenizers, load_facts
from tests.tiny import VOCABULARY, save_tiny, tiny_model, tiny_tokenizer


@pytest.fixture
def match(tmp_path):
    """Compare two saved models, each given by the width of its embedding and its tokenizer."""

    def compare(teacher_width=264, student_width=264, teacher=None, student=None):
        facts = []
        role: Any
        for role, width, tokenizer in (("teacher", teacher_width, teacher), ("student", student_width, student)):
            folder = save_tiny(tmp_path / role, tiny_model("llama", width), tokenizer or tiny_tokenizer())
            facts.append(load_facts(ModelReference(role=role, model=str(folder))))
        return compare_tokenizers(*facts)

    return compare


def test_of_a_teacher_on_a_server_the_student_s_tokenizer_alone_is_checked(tmp_path):
    folder = save_tiny(tmp_path / "student", tiny_model("llama", 264))
    found = compare_tokenizers(None, load_facts(ModelReference(role="student", model=str(folder))))
    assert (found.relation, found.vocab_size) == ("unseen", VOCABULARY)
    narrow = save_tiny(tmp_path / "narrow", tiny_model("llama", 250))
    with pytest.raises(ModelError, match="its embedding has 250 rows"):
        compare_tokenizers(None, load_facts(ModelReference(role="student", model=str(narrow))))


def swapped(one: str, other: str):
    """The tokenizer with the ids of two letters exchanged."""
    tokenizer = tiny_tokenizer()
    state = json.loads(tokenizer.backend_tokenizer.to_str())
    vocab = state["model"]["vocab"]
    vocab[one], vocab[other] = vocab[other], vocab[one]
    tokenizer._tokenizer = type(tokenizer.backend_tokenizer).from_str(json.dumps(state))
    return tokenizer


def extended(*tokens: str):
    tokenizer = tiny_tokenizer()
    tokenizer.add_tokens(list(tokens), special_tokens=True)
    return tokenizer


def test_one_tokenizer_twice_is_the_same(match):
    found = match()
    assert (found.relation, found.vocab_size, found.warnings) == ("same", VOCABULARY, ())


@pytest.mark.parametrize("widths", [(272, 264), (264, 272), (VOCABULARY, 264)])
def test_embeddings_of_different_width_are_padding(match, widths):
    found = match(*widths)
    assert (found.relation, found.vocab_size, found.warnings) == ("padded", VOCABULARY, ())


def test_another_end_of_text_or_chat_template_is_the_same_tokenizer(match):
    assert match(teacher=tiny_tokenizer(), student=tiny_tokenizer(chat_template=False)).relation == "same"


def test_exchanged_ids_are_named(match):
    with pytest.raises(ModelError, match="different tokenizers") as caught:
        match(student=swapped("a", "b"))
    message = str(caught.value)
    assert "id 64 is 'a' to the teacher, 'b' to the student" in message
    assert "2 ids differ" in message
    assert "recipes list" in message


def test_a_token_beyond_an_embedding_is_refused(match):
    with pytest.raises(ModelError, match=rf"teacher\.model .* has {VOCABULARY} rows.*goes up to id {VOCABULARY}"):
        match(teacher_width=VOCABULARY, student=extended("<pad>"))


def test_tokens_that_only_the_student_has_are_warned_of(match):
    found = match(student=extended("<tool>"))
    assert found.relation == "padded"
    assert "1 tokens that the teacher's lacks (259 '<tool>')" in found.warnings[0]


def test_tokens_that_only_the_teacher_has_are_padding(match):
    found = match(teacher=extended("<tool>"))
    assert (found.relation, found.vocab_size, found.warnings) == ("padded", VOCABULARY, ())


def test_a_reserved_token_with_another_name_is_only_warned_of(match):
    found = match(teacher=extended("<reserved_0>"), student=extended("<tool>"))
    assert "id 259 is '<reserved_0>' to the teacher, '<tool>' to the student" in found.warnings[0]


def test_a_renamed_token_that_ends_the_text_is_refused(match):
    student = extended("<stop>")
    student.eos_token = "<stop>"
    with pytest.raises(ModelError, match="different tokenizers"):
        match(teacher=extended("<reserved_0>"), student=student)


def test_a_tokenizer_that_cuts_text_differently_is_warned_of(match):
    student = tiny_tokenizer()
    state = json.loads(student.backend_tokenizer.to_str())
    state["normalizer"] = {"type": "Lowercase"}
    student._tokenizer = type(student.backend_tokenizer).from_str(json.dumps(state))
    found = match(student=student)
    assert found.relation == "same"
    assert "cut text differently (normaliser)" in found.warnings[0]
