import json
from typing import Any

import pytest

from bridgegarden.errors import ConfigError, ModelError
from bridgegarden.preflight import ModelReference, check_endings, compare_tokenizers, load_facts
from tests.tiny import CHAT_TEMPLATE, END_OF_TEXT, TURN_END, VOCABULARY, save_tiny, tiny_model, tiny_tokenizer


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


END_ID, TURN_ID = (tiny_tokenizer().convert_tokens_to_ids(token) for token in (END_OF_TEXT, TURN_END))


@pytest.fixture
def endings(tmp_path):
    """Endings of two saved models, each given by its tokenizer and the ids at which its generation stops."""

    def check(teacher, student, teacher_stops=None, student_stops=None):
        facts = []
        role: Any
        for role, tokenizer, stops in (("teacher", teacher, teacher_stops), ("student", student, student_stops)):
            model = tiny_model("llama", 264)
            model.generation_config.eos_token_id = stops
            folder = save_tiny(tmp_path / role, model, tokenizer)
            facts.append(load_facts(ModelReference(role=role, model=str(folder))))
        return check_endings(*facts)

    return check


def with_template(template: str):
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = template
    return tokenizer


def test_a_pair_that_agrees_is_not_warned_of(endings):
    found = endings(tiny_tokenizer(), tiny_tokenizer())
    assert (found.template_from, found.taught, found.stops, found.warnings) == ("student", TURN_ID, (TURN_ID,), ())


def test_a_student_without_template_gets_the_teacher_s(endings):
    found = endings(tiny_tokenizer(), tiny_tokenizer(chat_template=False))
    assert found.template_from == "teacher"
    assert found.tokenizer.chat_template == CHAT_TEMPLATE
    assert found.stops == (TURN_ID, END_ID)
    assert "the student's tokenizer has no chat template" in found.warnings[0]


def test_without_any_template_a_text_ends_with_the_end_of_text(endings):
    found = endings(tiny_tokenizer(chat_template=False), tiny_tokenizer(chat_template=False))
    assert (found.template_from, found.taught, found.warnings) == (None, END_ID, ())


@pytest.mark.parametrize("chat_template", [True, False])
def test_of_a_teacher_on_a_server_neither_template_nor_end_is_known(tmp_path, chat_template):
    folder = save_tiny(tmp_path / "student", tiny_model("llama", 264), tiny_tokenizer(chat_template))
    found = check_endings(None, load_facts(ModelReference(role="student", model=str(folder))))
    assert found.taught == (TURN_ID if chat_template else END_ID)
    assert found.template_from == ("student" if chat_template else None)
    assert ["of a teacher on a server is not seen" in warning for warning in found.warnings] == [True] * (
        not chat_template
    )


def test_a_teacher_without_template_is_warned_of(endings):
    warnings = endings(tiny_tokenizer(chat_template=False), tiny_tokenizer()).warnings
    assert "the teacher has no chat template" in warnings[0]
    assert "may generate without end" in warnings[1]
    assert f"{TURN_END!r} (id {TURN_ID})" in warnings[1]
    assert f"{END_OF_TEXT!r} (id {END_ID})" in warnings[1]


def test_a_student_whose_generation_does_not_stop_at_its_turn_is_warned_of_and_mended(endings):
    found = endings(tiny_tokenizer(), tiny_tokenizer(), student_stops=END_ID)
    assert "would talk on past its turn" in found.warnings[0]
    assert found.stops == (TURN_ID, END_ID)


def test_a_teacher_that_also_stops_at_the_student_s_end_is_not_warned_of(endings):
    assert endings(tiny_tokenizer(), tiny_tokenizer(), teacher_stops=[END_ID, TURN_ID]).warnings == ()


def test_templates_that_write_the_same_are_the_same(endings):
    spaced = CHAT_TEMPLATE.replace("{% for", "{%  for")
    assert spaced != CHAT_TEMPLATE
    assert endings(with_template(spaced), tiny_tokenizer()).warnings == ()


def test_templates_that_write_differently_are_shown_where_they_part(endings):
    (warning,) = endings(with_template("You are Tiny.\n" + CHAT_TEMPLATE), tiny_tokenizer()).warnings
    assert "the chat templates differ" in warning
    assert "'You are Tiny.\\n<|im_start|>" in warning


def test_a_template_that_refuses_what_the_other_takes_differs(endings):
    refusing = "{% if messages[0]['role'] == 'system' %}{{ raise_exception('no system') }}{% endif %}" + CHAT_TEMPLATE
    (warning,) = endings(with_template(refusing), tiny_tokenizer()).warnings
    assert "an error (no system)" in warning


@pytest.fixture
def student(tmp_path):
    folder = save_tiny(tmp_path / "student", tiny_model("llama", 264), tiny_tokenizer())
    return load_facts(ModelReference(role="student", model=str(folder)))


def test_the_template_of_the_recipe_is_used_in_place_of_the_student_s(student, tmp_path):
    path = tmp_path / "own.jinja"
    path.write_text("{% for m in messages %}{{ m['role'] }}: {{ m['content'] }}<|endoftext|>{% endfor %}")
    found = check_endings(None, student, str(path))
    assert (found.template_from, found.taught) == ("recipe", END_ID)
    assert found.tokenizer.chat_template == path.read_text()


@pytest.mark.parametrize(
    ("content", "complaint"),
    [
        (None, "no such file; expected a chat template"),
        (b"", "is empty"),
        (b"\xff", "is not UTF-8 text"),
        (b"x" * 2_000_000, "has more than 1,000,000 characters"),
        (b"{{ messages", "with it, tokenizer .* its chat template refuses a question and an answer"),
        (b"{{ messages[0].content }}", "with it, tokenizer .* does not write what the assistant answers"),
        (b"{{ 'x' * 10**11 }}", "its chat template takes more than 1 GiB of memory"),
    ],
)
def test_a_file_that_is_no_chat_template_is_refused_by_key_and_name(student, tmp_path, content, complaint):
    path = tmp_path / "own.jinja"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(ConfigError, match=rf"^data\.chat_template: {path}: {complaint}"):
        check_endings(None, student, str(path))
