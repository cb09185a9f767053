import logging
import re

import pytest

from bridgegarden.data import Columns, RowRules
from bridgegarden.data.read_row import RowReader
from bridgegarden.errors import ConfigError, DataError

PROMPT = [
    {"role": "user", "content": "hello"},
    {"role": "assistant", "content": "world"},
    {"role": "user", "content": "more"},
]
COMPLETION = [{"role": "assistant", "content": "words"}]


def read(row, tokenizer, **rules):
    return RowReader(tokenizer, RowRules(**rules), "train").read(row, "train, row 3")


def learnt(row, tokenizer):
    return tokenizer.decode([label for label in row.labels if label != -100])


def test_an_answer_that_was_cut_off_is_learnt_without_an_end(plain, chatml, llama3, caplog):
    for tokenizer, row, want in (
        (plain, {"prompt": "abc", "completion": " def"}, " def"),
        (plain, {"text": "abc"}, "abc"),
        (chatml, {"prompt": "abc", "completion": " def"}, " def"),
        (chatml, {"prompt": PROMPT, "completion": COMPLETION}, "words"),
        (chatml, {"messages": PROMPT + COMPLETION}, "world<|im_end|>words"),
        (llama3, {"messages": PROMPT + COMPLETION}, "world<|eot_id|>words"),
    ):
        ended, open_ended = read(row, tokenizer), read({**row, "finish_reason": "length"}, tokenizer)
        assert learnt(open_ended, tokenizer) == want
        assert open_ended.input_ids == ended.input_ids[: len(open_ended.input_ids)]
        assert read({**row, "finish_reason": "stop"}, tokenizer) == ended
        everything = read({**row, "finish_reason": "length"}, tokenizer, completion_only=False)
        assert everything.labels == everything.input_ids == open_ended.input_ids
    long = [*PROMPT, {"role": "assistant", "content": "words " * 9000}]
    for cut_off in ({}, {"finish_reason": "length"}):  # of which no end is read either way
        row = read({"messages": long, **cut_off}, chatml, max_length=64)
        assert learnt(row.truncated(64), chatml).startswith("world<|im_end|>words words ")
    reader = RowReader(plain, RowRules(), "train")
    reader.read({"prompt": "abc", "completion": " def", "finish_reason": "length"}, "row 0")
    reader.report()
    assert "train: answers that were cut off when they were written (finish_reason: length): 1" in caplog.text


def test_without_completion_only_the_prompt_is_learnt_too(plain, chatml):
    for tokenizer, row in (
        (plain, {"prompt": "abc", "completion": " def"}),
        (chatml, {"prompt": PROMPT, "completion": COMPLETION}),
        (chatml, {"messages": PROMPT + COMPLETION}),
    ):
        usual, whole = read(row, tokenizer), read(row, tokenizer, completion_only=False)
        assert usual.input_ids == whole.input_ids == whole.labels
        assert usual.labels != whole.labels
        assert read(row, tokenizer, completion_only=True) == usual


def test_assistant_only_learns_the_earlier_turns_where_the_prompt_is_learnt(chatml):
    row = {"prompt": PROMPT, "completion": COMPLETION}
    assert learnt(read(row, chatml, assistant_only=True), chatml) == "words<|im_end|>"
    both = read(row, chatml, assistant_only=True, completion_only=False)
    assert learnt(both, chatml) == "world<|im_end|>words<|im_end|>"


def test_what_cannot_be_told_apart_is_refused(plain, chatml):
    for row in ({"text": "abc"}, {"prompt": "abc", "completion": " def"}):
        with pytest.raises(DataError, match=r"^train, row 3: is plain text, of which training\.assistant_only_loss"):
            read(row, plain, assistant_only=True)
    with pytest.raises(DataError, match=r"^train, row 3: is text with no completion"):
        read({"text": "abc"}, plain, completion_only=True)
    for rule, mask in (("completion_only", "completion_mask"), ("assistant_only", "assistant_masks")):
        with pytest.raises(DataError, match=f"has neither 'labels' nor '{mask}'"):
            read({"input_ids": [1, 2]}, plain, **{rule: True})


def test_text_is_learnt_wholly_and_ends_once(plain, chatml):
    want = plain("abc<|endoftext|>")["input_ids"]
    for text in ("abc", "abc<|endoftext|>"):
        made = read({"text": text}, plain)
        assert made.input_ids == made.labels == want
        assert read({"other": text}, plain, formatting=lambda row: row["other"]) == made
        assert read({"body": text, "messages": PROMPT}, plain, columns=Columns(text="body")) == made
    rendered = chatml.apply_chat_template([*PROMPT, *COMPLETION], tokenize=False)
    assert read({"text": rendered}, chatml).input_ids == chatml(rendered + "<|endoftext|>")["input_ids"]


def test_formatting_has_to_make_a_text_of_rows_that_are_none(plain):
    with pytest.raises(DataError, match=r"^train, row 3: formatting_func returned list; expected a string"):
        read({"a": "b"}, plain, formatting=lambda row: [row["a"]])
    with pytest.raises(DataError, match=r"^train, row 3: has 'input_ids', so there is nothing for formatting_func"):
        read({"input_ids": [1]}, plain, formatting=str)


def test_masks_say_what_is_learnt_of_given_ids(plain, caplog):
    ids = [1, 2, 3, 4]
    masks = {"completion_mask": [0, 0, 1, 1], "assistant_masks": [0, 1, 1, 0]}
    for chosen, rules, labels in (
        (["completion_mask"], {}, [-100, -100, 3, 4]),
        (["assistant_masks"], {}, [-100, 2, 3, -100]),
        (["completion_mask", "assistant_masks"], {}, [-100, -100, 3, -100]),
        (["completion_mask", "assistant_masks"], {"completion_only": False}, [-100, 2, 3, -100]),
        (["completion_mask"], {"completion_only": False}, ids),
    ):
        row = {"input_ids": ids, **{name: masks[name] for name in chosen}}
        assert read(row, plain, **rules).labels == labels
        # Labels are what somebody decided on.
        assert read({**row, "labels": [-100, 2, -100, -100]}, plain, **rules).labels == [-100, 2, -100, -100]
    assert not caplog.messages
    for bad in ([1, 0], [0, 1, 2, 0]):
        with pytest.raises(DataError, match="'completion_mask' must hold a 0 or 1 for each of the 4"):
            read({"input_ids": ids, "completion_mask": bad}, plain)


def test_given_ids_with_nothing_beside_them_are_learnt_wholly_and_that_is_said_once(plain, caplog):
    reader = RowReader(plain, RowRules(), "train")
    with caplog.at_level(logging.WARNING, "bridgegarden"):
        for _ in range(3):
            assert reader.read({"input_ids": [1, 2]}, "train, row 0").labels == [1, 2]
    assert caplog.messages == [
        "train: has 'input_ids' but neither 'labels' nor masks (completion_mask, assistant_masks): every token is "
        "learnt."
    ]


def test_named_columns_come_before_given_ids(plain):
    row = {"input_ids": [1, 2], "question": "abc", "answer": " def"}
    columns = Columns(prompt="question", completion="answer")
    assert read(row, plain, columns=columns) == read(
        {"prompt": "abc", "completion": " def"}, plain, columns=Columns(prompt="prompt", completion="completion")
    )
    assert read({"input_ids": [1, 2]}, plain, columns=columns).input_ids == [1, 2]


def test_an_id_in_a_hole_of_the_vocabulary_is_one_of_the_tokenizer(plain):
    last = len(plain) - 1
    assert read({"input_ids": [1, last], "labels": [-100, last]}, plain).labels == [-100, last]
    with pytest.raises(DataError, match=re.escape(f"'input_ids' holds {last + 1}; expected ids of the tokenizer")):
        read({"input_ids": [1, last + 1]}, plain)


def test_variables_of_a_row_reach_its_chat_template(chatml):
    chatml.chat_template = "{{ language | default('en') }}" + chatml.chat_template
    row = {"messages": PROMPT + COMPLETION, "chat_template_kwargs": {"language": "de"}}
    assert chatml.decode(read(row, chatml).input_ids).startswith("de<|im_start|>")
    assert chatml.decode(read({"messages": PROMPT + COMPLETION}, chatml).input_ids).startswith("en<|im_start|>")


def test_an_end_token_that_the_chat_template_does_not_write_is_refused(chatml):
    row = {"messages": PROMPT + COMPLETION}
    assert read(row, chatml, ends_with="<|im_end|>") == read(row, chatml)
    with pytest.raises(ConfigError, match=r"^training\.eos_token: is '<\|endoftext\|>', but the chat template closes"):
        read(row, chatml, ends_with="<|endoftext|>")
    chatml.eos_token = "<|endoftext|>"
    assert read({"text": "a"}, chatml, ends_with="<|endoftext|>").input_ids[-1] == chatml.eos_token_id
