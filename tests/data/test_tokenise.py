import logging
import re
import time

import pytest
from datasets import Dataset, IterableDataset

from bridgegarden.data import Columns, RowRules, dataset_fingerprint, load_rows, tokenise, tokenise_row, tokenise_stream
from bridgegarden.data.chat import conversation
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
    assert dataset_fingerprint(got) == dataset_fingerprint(tokenise(Dataset.from_list(PAIRS), plain))


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
