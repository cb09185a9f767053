import logging
import re
import time

import pytest
from datasets import Dataset, IterableDataset

from bridgegarden.data import Columns, RowRules, load_rows, tokenise, tokenise_row, tokenise_stream
from bridgegarden.data.chat import conversation
from bridgegarden.data.row_reader import RowReader
from bridgegarden.errors import ConfigError, DataError

PAIRS = [{"prompt": "Two plus two is", "completion": " four"}, {"prompt": "The capital is", "completion": " Paris."}]


def ids_of(row, tokenizer):
    return tokenise_row(conversation(row, Columns(), place="row"), tokenizer)


def test_every_row_is_tokenised_in_order_and_numbered(plain):
    got = tokenise(Dataset.from_list(PAIRS), plain)
    assert got.column_names == ["input_ids", "labels", "row"]
    for number, (row, pair) in enumerate(zip(got, PAIRS, strict=True)):
        want = ids_of(pair, plain)
        assert row == {"input_ids": want.input_ids, "labels": want.labels, "row": number}


def test_more_rows_than_a_chunk_stay_in_order(plain):
    rows = [{"prompt": "go", "completion": f" {n}"} for n in range(2345)]
    got = tokenise(Dataset.from_list(rows), plain)
    assert got["row"][:] == list(range(2345))
    assert plain.decode(got[2344]["input_ids"]) == "go 2344<|endoftext|>"


def test_a_row_number_that_the_data_has_is_kept_and_other_things_called_row_are_not(plain):
    numbered = [{**pair, "row": 10 + n} for n, pair in enumerate(PAIRS)]
    assert tokenise(Dataset.from_list(numbered), plain)["row"][:] == [10, 11]
    named = [{**pair, "row": "first"} for pair in PAIRS]
    assert tokenise(Dataset.from_list(named), plain)["row"][:] == [0, 1]


def test_truncation_keeps_the_start_and_drops_rows_with_nothing_left_to_learn(plain, caplog):
    rows = [PAIRS[0], {"prompt": "long " * 40, "completion": " four"}, {"prompt": "", "completion": "four " * 40}]
    with caplog.at_level(logging.WARNING, "bridgegarden"):
        got = tokenise(Dataset.from_list(rows), plain, RowRules(max_length=20), name="train rows.jsonl")
    assert got["row"][:] == [0, 2]
    assert got[1]["input_ids"] == ids_of(rows[2], plain).input_ids[:20]
    assert caplog.messages == [
        "train rows.jsonl: dropped 1 of 3 rows (row 1), which have no token to learn within max_length=20 tokens.",
        "train rows.jsonl: cut 1 of 3 rows (row 2) to max_length=20; 1 of them lost the end token, and with it where "
        "to stop; raise training.max_length, or shorten the rows.",
    ]


def test_of_a_long_row_the_end_can_be_kept_and_then_its_end_token_is(plain, caplog):
    rows = [PAIRS[0], {"prompt": "long " * 40, "completion": " four"}]
    with caplog.at_level(logging.WARNING, "bridgegarden"):
        got = tokenise(Dataset.from_list(rows), plain, RowRules(max_length=20, keep="end"))
    whole = ids_of(rows[1], plain)
    assert (got[1]["input_ids"], got[1]["labels"]) == (whole.input_ids[-20:], whole.labels[-20:])
    assert caplog.messages == ["train: cut 1 of 2 rows (row 1) to max_length=20; none of them lost the end token."]


def test_bad_rows_are_skipped_counted_and_named_where_that_is_asked_for(plain, caplog):
    rows = [*PAIRS, {"prompt": "p", "completion": " "}, {"prompt": "p", "completion": None}]
    with caplog.at_level(logging.WARNING, "bridgegarden"):
        got = tokenise(Dataset.from_list(rows), plain, RowRules(skip_bad=True))
    assert got["row"][:] == [0, 1]
    assert caplog.messages == [
        "train: skipped 2 of 4 rows: train, row 2: 'completion' is empty; expected the text to learn. "
        "train, row 3: 'completion' is null; expected text or messages."
    ]
    with pytest.raises(DataError, match=r"^train: all 2 rows are skipped: train, row 0: 'completion' is empty"):
        tokenise(Dataset.from_list(rows[2:]), plain, RowRules(skip_bad=True))


def test_rows_of_a_part_of_a_file_are_named_by_their_place_in_it_and_numbered_behind_the_files_before(plain):
    got = tokenise(Dataset.from_list(PAIRS), plain, numbers=[4, 7], first=100)
    assert got["row"][:] == [104, 107]
    with pytest.raises(DataError, match=r"^train, row 7: 'completion' is empty"):
        tokenise(Dataset.from_list([PAIRS[0], {"prompt": "p", "completion": " "}]), plain, numbers=[4, 7], first=100)


def test_a_transform_is_refused_rather_than_left_out(plain):
    rows = Dataset.from_list(PAIRS).with_transform(lambda batch: {**batch, "completion": ["no"] * len(batch["prompt"])})
    with pytest.raises(DataError, match=r"^train: has a transform .* Apply it with map"):
        tokenise(rows, plain)


def test_images_are_refused(plain):
    rows = Dataset.from_list([{**pair, "image": "a.png"} for pair in PAIRS])
    for data, made in ((rows, tokenise), (rows.to_iterable_dataset(), tokenise_stream)):
        with pytest.raises(DataError, match=r"^train: has a column 'image'; images are not trained on"):
            made(data, plain)


class TestStream:
    def test_a_stream_is_read_as_it_is_needed(self, plain):
        read = []

        def rows():
            for number in range(1000):
                read.append(number)
                yield {"prompt": "go", "completion": f" {number}"}

        stream = tokenise_stream(IterableDataset.from_generator(rows), plain)
        assert len(read) < 5
        first = next(iter(stream))
        assert (plain.decode(first["input_ids"]), first["row"]) == ("go 0<|endoftext|>", 0)

    def test_rows_with_nothing_to_learn_are_left_out_and_the_first_is_named(self, plain, caplog):
        rows = [{"prompt": "long " * 40, "completion": " four"}] * 2 + PAIRS
        with caplog.at_level(logging.WARNING, "bridgegarden"):
            got = tokenise_stream(Dataset.from_list(rows).to_iterable_dataset(), plain, RowRules(max_length=20))
            assert [row["row"] for row in got] == [2, 3]
        assert caplog.messages == [
            "train: row 0 has no token to learn within max_length=20 tokens (dropped); more of the kind are not "
            "reported."
        ]
        with pytest.raises(DataError, match=r"^train: the stream has no row with a token to learn"):
            tokenise_stream(Dataset.from_list(rows[:2]).to_iterable_dataset(), plain, RowRules(max_length=20))

    def test_a_bad_row_is_named_when_it_comes_or_skipped(self, plain, caplog):
        rows = Dataset.from_list([*PAIRS, {"prompt": "p", "completion": " "}]).to_iterable_dataset()
        stream = tokenise_stream(rows, plain)
        with pytest.raises(DataError, match=r"^train, row 2: 'completion' is empty"):
            list(stream)
        with caplog.at_level(logging.WARNING, "bridgegarden"):
            assert len(list(tokenise_stream(rows, plain, RowRules(skip_bad=True)))) == 2
        assert caplog.text.count("(skipped)") == 1


def test_many_dropped_rows_are_counted_and_the_first_ones_named(plain, caplog):
    rows = [{"prompt": "long " * 40, "completion": " four"}] * 8 + PAIRS
    with caplog.at_level(logging.WARNING, "bridgegarden"):
        tokenise(Dataset.from_list(rows), plain, RowRules(max_length=20))
    assert "dropped 8 of 10 rows (row 0, 1, 2, 3, 4, ...)" in caplog.text


def test_dropping_every_row_is_refused(plain):
    rows = [{"prompt": "long " * 40, "completion": " four"}] * 2
    with pytest.raises(DataError, match=r"^train: all 2 rows have no token to learn within max_length=20 tokens\."):
        tokenise(Dataset.from_list(rows), plain, RowRules(max_length=20))
    with pytest.raises(ConfigError, match="max_length must be at least 2"):
        tokenise(Dataset.from_list(rows), plain, RowRules(max_length=1))


def test_a_bad_row_is_named(plain):
    rows = [*PAIRS, {"prompt": "p", "completion": " "}]
    with pytest.raises(DataError, match=r"^eval\.jsonl, row 2: 'completion' is empty"):
        tokenise(Dataset.from_list(rows), plain, name="eval.jsonl")


def test_columns_are_mapped(chatml):
    rows = Dataset.from_list([{"question": "Two plus two?", "answer": "four", "level": 3}])
    got = tokenise(rows, chatml, RowRules(columns=Columns(prompt="question", completion="answer")))
    assert chatml.decode(got[0]["input_ids"]).endswith("Two plus two?<|im_end|>\n<|im_start|>assistant\nfour<|im_end|>")


def test_a_torch_formatted_data_set_is_read_like_any_other(plain):
    tokenised = tokenise(Dataset.from_list(PAIRS), plain)
    again = tokenise(tokenised.with_format("torch"), plain)
    assert again.to_list() == tokenised.to_list()


def test_tokenised_rows_pass_through_and_keep_their_numbers(plain):
    tokenised = tokenise(Dataset.from_list(PAIRS), plain)
    assert tokenise(tokenised.select([1]), plain)[0] == tokenised[1]
    assert tokenise(tokenised.remove_columns("row"), plain).to_list() == tokenised.to_list()
    full_attention = [[1] * len(ids) for ids in tokenised["input_ids"]]
    assert tokenise(tokenised.add_column("attention_mask", full_attention), plain).to_list() == tokenised.to_list()


@pytest.mark.parametrize(
    ("row", "complaint"),
    [
        ({"labels": [2, 3]}, "row 0: 3 'input_ids' but 2 'labels'; expected as many."),
        ({"labels": [2, 3, -100]}, "row 0: the label at position 0 is 2, the id 1; expected the id itself or -100"),
        ({"labels": ["a", "b", "c"]}, "row 0: 'labels' is list ['a', 'b', 'c']; expected a list of integers."),
        ({"labels": [-100, 2, 3], "attention_mask": [0, 1, 1]}, "row 0: is padded or packed; expected one unpadded"),
        ({"labels": [-100, 2, 3], "position_ids": [0, 1, 0]}, "row 0: is padded or packed"),
        ({"labels": [-100, 2, 3], "seq_lengths": [2, 1]}, "row 0: is padded or packed"),
        ({"labels": [1, -100, -100]}, "all 1 rows have no token to learn."),
    ],
)
def test_tokenised_rows_that_would_train_on_something_else_are_refused(plain, row, complaint):
    with pytest.raises(DataError, match=re.escape(complaint)):
        tokenise(Dataset.from_list([{"input_ids": [1, 2, 3], **row}]), plain)


def test_a_template_that_prints_the_day_is_warned_about_once(chatml, caplog):
    chatml.chat_template = "{{ strftime_now('%d') }}" + chatml.chat_template
    rows = Dataset.from_list([{"prompt": "p", "completion": "c"}] * 3)
    with caplog.at_level(logging.WARNING, "bridgegarden"):
        tokenise(rows, chatml)
    assert caplog.text.count("prints today's date") == 1


def test_tokenising_a_saved_data_set_writes_nothing(plain, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Dataset.from_list(PAIRS).save_to_disk("rows")
    before = sorted(tmp_path.rglob("*"))
    got = tokenise(load_rows("rows"), plain)
    assert sorted(tmp_path.rglob("*")) == before
    assert got.to_list() == tokenise(Dataset.from_list(PAIRS), plain).to_list()


def test_a_thousand_conversations_take_under_five_seconds_of_processor_time(chatml):
    messages = [
        {"role": "user", "content": "What is the capital? " * 10},
        {"role": "assistant", "content": "Paris. " * 20},
    ]
    rows = Dataset.from_list([{"messages": messages}] * 1000)
    start = time.process_time()
    tokenise(rows, chatml)
    assert time.process_time() - start < 5


def test_answers_that_do_not_begin_as_the_model_is_made_to_are_counted_in_one_line(chatml, caplog):
    chatml.chat_template = (
        "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{% if m['role'] == 'assistant' %}{% generation %}"
        "{{ m['content'] }}<|im_end|>\n{% endgeneration %}{% else %}{{ m['content'] }}<|im_end|>\n{% endif %}"
        "{% endfor %}"
        "{% if add_generation_prompt %}<|im_start|>assistant\n<think>\n{% endif %}"
    )
    words = ["<think>\nfour", "two", "eight"]
    rows = [{"messages": [{"role": "user", "content": "Two?"}, {"role": "assistant", "content": w}]} for w in words]
    tokenise(Dataset.from_list(rows), chatml)
    (said,) = [record.message for record in caplog.records]
    assert said.startswith(
        "train: when it is to answer, the model is made to begin with '<think>\\n', but 2 answers do not"
    )


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


def test_texts_beside_an_unused_chat_template_are_counted_and_those_it_wrote_are_not(chatml, plain, caplog):
    written = {
        "prompt": chatml.apply_chat_template(TURN, tokenize=False, add_generation_prompt=True),
        "completion": "4",
    }
    for rows, tokenizer, columns, count in (
        ([*PAIRS, written], chatml, Columns(), 2),
        ([written], chatml, Columns(), 0),
        (PAIRS, chatml, Columns(prompt="prompt", completion="completion"), 0),
        (PAIRS, plain, Columns(), 0),
        ([{"text": "Two plus two is four"}], chatml, Columns(), 0),
    ):
        caplog.clear()
        with caplog.at_level(logging.WARNING, "bridgegarden"):
            tokenise(Dataset.from_list(rows), tokenizer, RowRules(columns=columns), name="train")
        said = [message for message in caplog.messages if "without the chat template" in message]
        assert [message.partition(" The model")[0] for message in said] == [
            f"train: texts that are taken as they stand, without the chat template that the tokenizer has: {count}."
        ] * (count > 0)


TURN = [{"role": "user", "content": "Two plus two is"}]
