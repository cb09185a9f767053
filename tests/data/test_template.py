import re

import pytest

from bridgegarden.data import Columns, conversation
from bridgegarden.data.template import Segment, chat_format
from bridgegarden.errors import DataError, ModelError

TWO_TURNS = [
    {"role": "user", "content": "Two?"},
    {"role": "assistant", "content": "four"},
    {"role": "user", "content": "Eight?"},
    {"role": "assistant", "content": "answer"},
]
TOKENIZERS = ["chatml", "llama3", "gemma", "deepseek_coder", "phi", "thinking", "sentencepiece"]


def read(messages):
    return conversation({"messages": messages}, Columns(), place="row")


@pytest.mark.parametrize(
    ("name", "stop"),
    [
        ("chatml", "<|im_end|>"),
        ("llama3", "<|eot_id|>"),
        ("gemma", "<end_of_turn>"),
        ("deepseek_coder", "<|EOT|>"),
        ("phi", "<|end|>"),
        ("sentencepiece", "</s>"),
    ],
)
def test_the_stop_token_is_the_one_the_template_writes(name, stop, request):
    tokenizer = request.getfixturevalue(name)
    found = chat_format(tokenizer)
    assert (found.stop, found.stop_ids[0]) == (stop, tokenizer.convert_tokens_to_ids(stop))


@pytest.mark.parametrize("name", TOKENIZERS)
def test_segments_are_a_prefix_of_the_rendered_conversation_and_miss_only_what_follows_the_last_stop(name, request):
    tokenizer = request.getfixturevalue(name)
    chat_writer = chat_format(tokenizer)
    text = "".join(segment.text for segment in chat_writer.write(read(TWO_TURNS), list, place="row"))
    whole = tokenizer.apply_chat_template(TWO_TURNS, tokenize=False, date_string="26 Jul 2024")
    assert whole.startswith(text)
    assert text.endswith(chat_writer.stop)
    assert whole[len(text) :].strip() in ("", "<|endoftext|>")


@pytest.mark.parametrize("name", TOKENIZERS)
def test_context_before_each_speech_is_what_generation_would_be_given(name, request):
    tokenizer = request.getfixturevalue(name)
    cuts = chat_format(tokenizer).write(read(TWO_TURNS), list, place="row")
    for count in (1, 3):
        prompt = tokenizer.apply_chat_template(
            TWO_TURNS[:count], tokenize=False, add_generation_prompt=True, date_string="26 Jul 2024"
        )
        assert "".join(segment.text for segment in cuts[:count]) == prompt


def test_only_the_words_and_the_stop_are_speech(gemma):
    cuts = chat_format(gemma).write(read(TWO_TURNS), list, place="row")
    assert cuts == [
        Segment("<bos><start_of_turn>user\nTwo?<end_of_turn>\n<start_of_turn>model\n", False),
        Segment("four<end_of_turn>", True),
        Segment("\n<start_of_turn>user\nEight?<end_of_turn>\n<start_of_turn>model\n", False),
        Segment("answer<end_of_turn>", True),
    ]


def test_the_system_prompt_that_a_template_adds_is_context(chatml):
    context, speech = chat_format(chatml).write(read(TWO_TURNS[:2]), list, place="row")
    assert context.text.startswith("<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n")
    assert speech.text == "four<|im_end|>"
    own = [{"role": "system", "content": "Be brief."}, *TWO_TURNS[:2]]
    assert "helpful" not in chat_format(chatml).write(read(own), list, place="row")[0].text


def test_tool_results_are_context(chatml):
    messages = [
        TWO_TURNS[0],
        {"role": "assistant", "content": "call add"},
        {"role": "tool", "content": "SECRET"},
        {"role": "assistant", "content": "four"},
    ]
    cuts = chat_format(chatml).write(read(messages), list, place="row")
    assert [segment.text for segment in cuts if segment.supervised] == ["call add<|im_end|>", "four<|im_end|>"]
    assert "SECRET" in cuts[2].text


def test_a_template_that_forgets_reasoning_is_refused_only_where_it_forgets(thinking):
    reasoned = {"role": "assistant", "content": "<think>hm</think>four"}
    chat_writer = chat_format(thinking)
    assert (
        chat_writer.write(read([TWO_TURNS[0], reasoned]), list, place="row")[1].text
        == "<think>hm</think>four<|im_end|>"
    )
    with pytest.raises(
        DataError, match=r"^train, row 3: .*rewrites the message when later ones follow; .*'four<\|im_end"
    ):
        chat_writer.write(read([TWO_TURNS[0], reasoned, *TWO_TURNS[2:]]), list, place="train, row 3")


def test_a_template_that_opens_an_answer_otherwise_than_it_writes_one_is_refused(chatml):
    chatml.chat_template = chatml.chat_template.replace(
        "{{ '<|im_start|>assistant\n' }}", "{{ '<|im_start|>assistant\n<think>\n' }}"
    )
    with pytest.raises(
        DataError, match=r"row: the chat template writes what precedes message 1 as .*<think>.* a prompt"
    ):
        chat_format(chatml).write(read(TWO_TURNS[:2]), list, place="row")


def test_the_templates_own_objection_is_passed_on(gemma):
    messages = [{"role": "system", "content": "Be brief."}, *TWO_TURNS[:2]]
    objection = re.escape("train, row 5: the chat template refuses the roles system, user, assistant (System role not")
    with pytest.raises(DataError, match=objection):
        chat_format(gemma).write(read(messages), list, place="train, row 5")


@pytest.mark.parametrize(
    ("source", "words"),
    [
        ("{{ 1 + 'a' }}", "unsupported operand"),
        ("{{ messages.nothing.more }}", "has no attribute 'nothing'"),
        ("{{ 1 // 0 }}", "division"),
        ("{% if %}", "Expected an expression"),
        ("{% macro again() %}{{ again() }}{% endmacro %}{{ again() }}", "recursion"),
    ],
)
def test_any_error_that_a_template_ends_in_is_its_refusal(chatml, source, words):
    chatml.chat_template = source
    with pytest.raises(ModelError, match=rf"its chat template refuses a question and an answer \(.*{words}"):
        chat_format(chatml)


def test_an_error_beside_the_template_is_not_read_as_its_refusal(chatml, monkeypatch):
    def broken(*_: object, **__: object) -> None:
        raise TypeError("takes no such argument")

    for place in (
        "bridgegarden.data.render._both_names",
        "transformers.utils.chat_template_utils._plain_template_data",
    ):
        with monkeypatch.context() as patched:
            patched.setattr(place, broken)
            with pytest.raises(TypeError, match="takes no such argument"):
                chat_format(chatml)


def test_a_stop_token_that_also_closes_the_conversation_is_learnt_once(phi):
    phi.chat_template = phi.chat_template.replace("eos_token", "'<|end|>'")
    cuts = chat_format(phi).write(read(TWO_TURNS), list, place="row")
    assert [segment.text for segment in cuts if segment.supervised] == ["four<|end|>", "answer<|end|>"]


def test_an_answer_that_holds_the_stop_token_is_refused(chatml):
    messages = [TWO_TURNS[0], {"role": "assistant", "content": "four<|im_end|>"}]
    with pytest.raises(DataError, match=r"assistant message 1 holds the end-of-turn token '<\|im_end\|>'"):
        chat_format(chatml).write(read(messages), list, place="row")


def test_the_day_does_not_change_the_text(llama3, chatml):
    context = chat_format(llama3).write(read(TWO_TURNS[:2]), list, place="row")[0].text
    assert "Today: 26 Jul 2024" in context
    assert not chat_format(llama3).prints_the_date
    chatml.chat_template += "{{ strftime_now('%d') }}"
    assert chat_format(chatml).prints_the_date


def test_a_tokenizer_without_template_or_a_template_without_stop_is_refused(plain, without_stop, chatml):
    with pytest.raises(ModelError, match="has no chat template, so conversations cannot be written as text"):
        chat_format(plain)
    with pytest.raises(ModelError, match=r"closes an assistant turn with '\\n', which holds no added token; a student"):
        chat_format(without_stop)
    chatml.chat_template = "{{ raise_exception('never') }}"
    with pytest.raises(ModelError, match=r"its chat template refuses a question and an answer \(never\)"):
        chat_format(chatml)
