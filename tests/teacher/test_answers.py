import copy
import json
import math
import os
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from bridgegarden.data import Columns, conversation, tokenise_row
from bridgegarden.errors import BridgegardenError, ConfigError, DataError
from bridgegarden.files import AppendedLines, write_whole
from bridgegarden.objective.divergences import forward_kl, total_variation
from bridgegarden.objective.support import TeacherSignal
from bridgegarden.teacher.answers import (
    MALFORMED,
    NO_LOGPROBS,
    NOT_TOLD_APART,
    OTHER_END,
    OTHER_TOKENS,
    TWICE,
    AnsweredRow,
    AnswerFile,
    AnswerReader,
    Unusable,
    check_answers_path,
    kept_position,
    label_alone,
    least_entropy,
    read_settings,
)
from tests.tiny import CHAT_TEMPLATE, END_OF_TEXT, TURN_END, TURN_START

SETTINGS = {"generated_by": "m", "top_logprobs": 2, "temperature": 0.0, "max_new_tokens": 9, "seed": None}
KINDS = ("", ".errors", ".truncated", ".settings")


def path_refused(path, match):
    with pytest.raises(ConfigError, match=match) as caught:
        AnswerFile(path, SETTINGS)
    assert "\n" not in str(caught.value)


def written(path):
    with AnswerFile(path, SETTINGS) as file:
        file.add([{"row": 0, "sample": 0, "finish_reason": "stop"}], [{"row": 1, "sample": 0, "error": "no"}])
        file.add([{"row": 2, "sample": 0, "finish_reason": "length"}], [])
    return path


@pytest.mark.parametrize("path", ["/dev/null", "/dev/full", "/dev/zero"])
def test_a_device_takes_no_answers_and_nothing_is_left_beside_it(path):
    before = set(os.listdir("/dev"))
    path_refused(Path(path), "is a device, a pipe or the like; expected a file name")
    assert set(os.listdir("/dev")) == before


@pytest.mark.parametrize("kind", KINDS)
def test_a_pipe_or_a_folder_in_the_place_of_any_of_the_files_is_refused(tmp_path, kind):
    os.mkfifo(tmp_path / f"pipe{kind}")
    path_refused(tmp_path / "pipe", "is a device, a pipe")
    (tmp_path / f"folder{kind}").mkdir()
    path_refused(tmp_path / "folder", "is a folder")
    assert len(list(tmp_path.iterdir())) == 2


@pytest.mark.parametrize("length", [237, 240, 250, 255, 256, 5000])
def test_a_name_that_leaves_no_room_for_those_beside_it_is_refused(tmp_path, length):
    path_refused(tmp_path / ("x" * length), f"is {length - 236} bytes too long")
    assert list(tmp_path.iterdir()) == []


def test_the_longest_name_is_written(tmp_path):
    written(tmp_path / ("x" * 236))
    assert len(list(tmp_path.iterdir())) == 4


@pytest.mark.parametrize("output", ["file/answers", "file/folder/answers", "/dev/null/answers", "loop/a"])
def test_a_place_where_no_file_can_be_made_is_refused(tmp_path, output):
    (tmp_path / "file").write_text("")
    (tmp_path / "loop").symlink_to("loop")
    path_refused(tmp_path / output, r"no file can be written in|cannot be (looked at|made)")
    with pytest.raises(ConfigError):
        check_answers_path(tmp_path / output)


@pytest.mark.parametrize(
    "text",
    [
        b"",
        b"{",
        b"[]",
        b"null",
        b"7",
        b"\xff\xfe",
        b"{}",
        b"[" * 100_000,
        json.dumps(SETTINGS | {"max_new_tokens": "9"}).encode(),
        json.dumps(SETTINGS | {"max_new_tokens": True}).encode(),
        json.dumps(SETTINGS | {"max_new_tokens": 10**30}).encode(),
        json.dumps(SETTINGS | {"temperature": None}).encode(),
        json.dumps(SETTINGS | {"temperature": float("nan")}).encode(),
        json.dumps(SETTINGS | {"temperature": 10**400}).encode(),
        json.dumps(SETTINGS | {"top_logprobs": [2]}).encode(),
    ],
)
def test_damaged_settings_are_one_line_and_the_answers_stay(tmp_path, text):
    path = written(tmp_path / "answers.jsonl")
    settings = tmp_path / "answers.jsonl.settings"
    settings.write_bytes(text)
    before = path.read_bytes()
    path_refused(path, r"answers\.jsonl\.settings: is damaged .* Restore it, or give another --output")
    assert path.read_bytes() == before
    assert settings.read_bytes() == text


def test_a_foreign_setting_of_any_size_is_named_in_one_short_line(tmp_path):
    path = written(tmp_path / "answers.jsonl")
    (tmp_path / "answers.jsonl.settings").write_text(json.dumps(SETTINGS | {"x" * 10_000: ["y" * 10_000] * 99}))
    with pytest.raises(ConfigError, match="its answers were generated with") as caught:
        AnswerFile(path, SETTINGS)
    assert len(str(caught.value)) < 500


@pytest.mark.parametrize("kind", ["", ".errors", ".truncated"])
@pytest.mark.parametrize("line", [b"[" * 100_000, b'{"a":' * 100_000, b"\xff", b"9" * 5000, b'{"row": 1e400}', b"\0"])
def test_a_damaged_line_is_named(tmp_path, kind, line):
    path = written(tmp_path / "answers.jsonl")
    with (tmp_path / f"answers.jsonl{kind}").open("ab") as file:
        file.write(line + b"\n")
    with pytest.raises(DataError, match=rf"answers\.jsonl{kind}:2: (is damaged|has no whole numbers)"):
        with AnswerFile(path, SETTINGS) as file:
            list(file.finished())


def test_settings_are_read_as_they_were_written(tmp_path):
    written(tmp_path / "answers.jsonl")
    assert read_settings(tmp_path / "answers.jsonl.settings") == SETTINGS


def test_what_lies_in_the_place_of_a_file_being_written_is_not_written_through(tmp_path):
    (tmp_path / "other").write_text("precious")
    partial = tmp_path / ".whole.partial"
    partial.symlink_to(tmp_path / "other")
    write_whole(tmp_path / "whole", [b"new"])
    assert (tmp_path / "other").read_text() == "precious"
    os.mkfifo(partial)
    write_whole(tmp_path / "whole", [b"newer"])
    assert (tmp_path / "whole").read_bytes() == b"newer"
    partial.mkdir()
    with pytest.raises(OSError, match=r"/whole'"):
        write_whole(tmp_path / "whole", [b"newest"])
    assert (tmp_path / "whole").read_bytes() == b"newer"


def test_lines_are_not_added_to_a_pipe(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(BridgegardenError, match="expected a file"):
        AppendedLines(tmp_path / "pipe")


COLUMNS = Columns(prompt="q", completion="a")


def merging_tokenizer() -> PreTrainedTokenizerFast:
    """A token a byte, and one for ``ab``."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocab = {letter: index for index, letter in enumerate([*alphabet, "ab"])}
    backend = Tokenizer(models.BPE(vocab=vocab, merges=[("a", "b")]))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    backend.decoder = decoders.ByteLevel()
    backend.add_special_tokens([AddedToken(token, special=True) for token in (END_OF_TEXT, TURN_START, TURN_END)])
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, eos_token=TURN_END, pad_token=END_OF_TEXT)
    tokenizer.chat_template = CHAT_TEMPLATE
    return tokenizer


TOKENIZER = merging_tokenizer()
id_of = TOKENIZER.convert_tokens_to_ids
END = int(id_of(TURN_END))


def reader(**changes) -> AnswerReader:
    fields = {"tokenizer": TOKENIZER, "stops": (END,), "vocab_size": len(TOKENIZER), "k": 4, "columns": COLUMNS}
    return AnswerReader(**(fields | changes))


def answer(text, tokens, *, others=("x", "y"), ids=None, **changes):
    """A row as ``generate`` writes it; every token has probability 1/2, those listed beside it 1/8 each."""
    listed = [[token, *(other for other in others if other != token)] for token in tokens]
    said = {
        "tokens": list(tokens),
        "logprobs": [math.log(0.5)] * len(tokens),
        "top_tokens": listed,
        "top_logprobs": [[math.log(0.5), *[math.log(0.125)] * (len(names) - 1)] for names in listed],
    }
    if ids is not None:
        said |= {"token_ids": ids, "top_token_ids": [[index, id_of("x"), id_of("y")] for index in ids]}
    return {"q": "why", "a": text, "finish_reason": "stop", "top_logprobs": said} | changes


def read(row, **changes) -> AnsweredRow:
    found = reader(**changes).read(row, place="row 0")
    assert isinstance(found, AnsweredRow), found
    return found


def refused(row, **changes) -> Unusable:
    found = reader(**changes).read(row, place="row 0")
    assert isinstance(found, Unusable)
    return found


def usual(row):
    return tokenise_row(conversation(row, COLUMNS, place="row 0"), TOKENIZER)


@pytest.mark.parametrize("end", [[TURN_END], []])
def test_an_answer_cut_as_usual_is_the_row_that_it_is_without_log_probabilities(end):
    row = answer("abc", ["ab", "c", *end])
    found = read(row)
    assert found.input_ids == usual(row).input_ids
    assert found.labels == usual(row).labels
    assert found.end_is_label is (not end)
    assert [position.ids[0] for position in found.positions] == [id_of("ab"), id_of("c"), END]


@pytest.mark.parametrize("ids", [None, [id_of("a"), id_of("b"), id_of("c"), END]])
def test_an_answer_cut_otherwise_keeps_the_ids_that_the_teacher_wrote(ids):
    row = answer("abc", ["a", "b", "c", TURN_END], ids=ids)
    found = read(row)
    assert found.labels[-4:] == [id_of("a"), id_of("b"), id_of("c"), END]
    assert found.input_ids[-4:] == found.labels[-4:]
    assert found.input_ids != usual(row).input_ids
    assert len(found.positions) == 4


def test_halves_of_a_character_are_told_by_their_bytes_or_by_the_usual_cut_or_not_at_all():
    in_bytes = answer("\u00e9", ["bytes:\\xc3", "bytes:\\xa9", TURN_END])
    as_text = answer("\u00e9", ["\ufffd", "\ufffd", TURN_END])
    assert read(in_bytes).input_ids == read(as_text).input_ids == usual(as_text).input_ids
    assert refused(answer("ab\u00e9", ["a", "b", "\ufffd", "\ufffd", TURN_END])).reason == NOT_TOLD_APART


def test_listed_tokens_that_are_not_told_apart_or_not_the_student_s_are_part_of_the_tail():
    for other in ("\ufffd", "of another vocabulary"):
        (first, *_) = read(answer("c", ["c", TURN_END], others=("x", other))).positions
        assert first.ids == (id_of("c"), id_of("x"))
        assert first.unnamed == 1
        assert first.log_tail == pytest.approx(math.log(0.375))
        # Listed tokens are known to be single ones, and none of the others to have more than the least of them.
        assert first.entropy == pytest.approx(0.5 * math.log(2) + 2 * 0.125 * math.log(8) + 0.25 * math.log(8))


def test_more_tokens_than_are_kept_are_part_of_the_tail():
    (first, *_) = read(answer("c", ["c", TURN_END]), k=2).positions
    assert first.ids == (id_of("c"), id_of("x"))
    assert first.log_tail == pytest.approx(math.log(0.375))
    assert first.unnamed == 0


def likeliest_unknown(name):
    row = answer("c", ["c", TURN_END])
    row["top_logprobs"]["top_tokens"][0] = [name, "c"]
    row["top_logprobs"]["top_logprobs"][0] = [-0.5, -1.5]
    return row


def test_a_likeliest_token_that_is_not_known_is_a_reason_to_refuse():
    # Confidence and argmax are exact for every row that is taken.
    assert refused(likeliest_unknown("\ufffd")) == (NOT_TOLD_APART, "'\ufffd'")
    assert refused(likeliest_unknown("of another vocabulary")) == (OTHER_TOKENS, "'of another vocabulary'")


def test_one_token_listed_twice_is_a_reason_to_refuse():
    assert refused(answer("c", ["c", TURN_END], others=("x", "x"))) == (TWICE, "'x'")
    row = answer("c", ["c", TURN_END], ids=[id_of("c"), END])
    row["top_logprobs"]["top_token_ids"][1][2] = row["top_logprobs"]["top_token_ids"][1][1]
    assert refused(row).reason == TWICE


def test_ids_of_another_tokenizer_are_found_by_what_they_spell():
    assert refused(answer("c", ["c", TURN_END], ids=[id_of("d"), END])).reason == OTHER_TOKENS
    assert refused(answer("c", ["c", TURN_END], ids=[99_999, END])) == (OTHER_TOKENS, "id 99999")
    assert refused(answer("c", ["quite other", TURN_END])).reason == OTHER_TOKENS


def test_listed_ids_that_the_student_lacks_are_part_of_the_tail():
    row = answer("c", ["c", TURN_END], ids=[id_of("c"), END])
    row["top_logprobs"]["top_token_ids"][0][1] = 99_999
    assert read(row).positions[0].unnamed == 1


def test_an_end_at_which_the_student_does_not_stop_is_a_reason_to_refuse():
    row = answer("c", ["c", END_OF_TEXT])
    assert refused(row) == (OTHER_END, f"'{END_OF_TEXT}'")
    also = read(row, stops=(END, int(id_of(END_OF_TEXT))))
    assert also.input_ids[-1] == id_of(END_OF_TEXT)


def test_an_answer_that_was_cut_off_has_no_end():
    found = read(answer("cd", ["c", "d"], finish_reason="length"))
    assert found.labels[-2:] == [id_of("c"), id_of("d")]
    assert not found.end_is_label


@pytest.mark.parametrize("said", [None, {"tokens": []}])
def test_rows_without_log_probabilities_are_told(said):
    assert refused(answer("c", ["c"], top_logprobs=said)).reason == NO_LOGPROBS


def test_earlier_turns_of_the_assistant_are_context():
    turns = [("user", "hi"), ("assistant", "yo"), ("user", "why"), ("assistant", "c")]
    messages = [{"role": role, "content": content} for role, content in turns]
    row = {"messages": messages, "top_logprobs": answer("c", ["c", TURN_END])["top_logprobs"]}
    found = read(row, columns=Columns())
    assert [label for label in found.labels if label != -100] == [id_of("c"), END]
    assert "yo<|im_end|>" in TOKENIZER.decode(found.input_ids)


def test_a_row_that_is_cut_keeps_the_signals_of_what_is_left():
    whole = read(answer("abc", ["ab", "c"]))
    for length in range(len(whole.input_ids) - 4, len(whole.input_ids) + 1):
        cut = whole.truncated(length)
        assert (cut.input_ids, cut.labels) == (whole.input_ids[:length], whole.labels[:length])
        assert len(cut.positions) == sum(label != -100 for label in cut.labels)
        assert cut.positions == whole.positions[: len(cut.positions)]
        assert cut.end_is_label is (length == len(whole.input_ids))


# One position


def test_the_entropy_of_a_rest_with_less_than_the_least_listed_token_is_that_of_one_cell():
    assert least_entropy([math.log(0.6), math.log(0.3)], -1.0) == pytest.approx(
        -0.6 * math.log(0.6) - 0.3 * math.log(0.3) - 0.1 * math.log(0.1)
    )


def test_the_drawn_token_says_nothing_about_the_others():
    # 0.5, then 0.25 twice, of which one is not listed: what was drawn is far less likely.
    drawn = math.log(1e-6)
    assert least_entropy([math.log(0.5), drawn], drawn) <= 1.5 * math.log(2)
    assert least_entropy([math.log(0.5), drawn], drawn) == pytest.approx(math.log(2), abs=2e-5)


def masses(position):
    return [*map(math.exp, position.logp), math.exp(position.log_tail)]


@given(
    st.lists(st.floats(-30, 30), min_size=6, max_size=40),
    st.integers(1, 5),
    st.sampled_from([torch.float32, torch.float64]),
)
def test_what_is_kept_is_the_top_k_and_tail_of_the_teacher(logits, k, precision):
    exact = torch.tensor(logits, dtype=torch.float64).log_softmax(-1)
    top, ids = exact.topk(k)
    told = top.to(precision).double().tolist()
    position = kept_position(ids.tolist(), told, told[-1], k)
    live = TeacherSignal.from_logits(exact, k)
    assert position.ids == tuple(live.ids.tolist()) == tuple(ids.tolist())
    assert sum(masses(position)) == pytest.approx(1, abs=1e-12)
    assert position.logp == pytest.approx(live.logp.tolist(), abs=3e-6)
    # Less than the smallest tail is rounding, and said to be that.
    tail = max(math.exp(float(live.log_tail)), 1e-7)
    assert math.exp(position.log_tail) == pytest.approx(tail, abs=3e-7)
    assert not position.is_floored or math.exp(float(live.log_tail)) < 4e-7
    # The entropy is a lower bound, but for a tail of 1e-7 of tokens no likelier than the least one told; and the weight
    # that is made of it is too low by the tail at most.
    assert position.entropy <= float(live.entropy) + 3e-6 - 1e-7 * told[-1]
    size = len(logits)
    gap = (float(live.entropy) - position.entropy) / math.log(size)
    assert gap <= math.exp(position.log_tail) + 3e-6


@pytest.mark.parametrize("excess", [0.0, 1e-8, 5e-4])
def test_masses_of_more_than_one_are_divided_by_their_sum(excess):
    position = kept_position([3, 5], [math.log(0.75 + excess), math.log(0.25)], -0.3, 4)
    assert position.is_floored
    assert sum(masses(position)) == pytest.approx(1, abs=1e-12)
    assert math.exp(position.log_tail) == pytest.approx(1e-7, rel=1e-3)


def test_a_position_of_which_the_label_alone_is_known_has_the_hard_loss_as_its_soft_loss():
    student = torch.randn(7, generator=torch.Generator().manual_seed(0), dtype=torch.float64).log_softmax(-1)
    position = label_alone(2)
    cells = torch.stack([student[2], torch.cat([student[:2], student[3:]]).logsumexp(0)])
    teacher = torch.tensor([*position.logp, position.log_tail], dtype=torch.float64)
    assert float(forward_kl(teacher, cells)) == pytest.approx(-float(student[2]), abs=1e-5)
    assert float(total_variation(teacher, cells)) == pytest.approx(1 - float(student[2].exp()), abs=1e-6)
    assert not position.is_floored


@pytest.mark.parametrize("ids", [None, [int(id_of("a")), END]])
def test_log_probabilities_that_somebody_has_changed_make_a_row_unusable_and_nothing_else(ids):
    good = answer("a", ["a", TURN_END], ids=ids)
    assert read(good)
    for name in good["top_logprobs"]:
        for value in (None, 7, "x", [], [None], [[]], [[], []], [1000.0, 1000.0], [[1000.0], [1000.0]], {"a": 1}):
            row = copy.deepcopy(good)
            row["top_logprobs"][name] = value
            found = reader().read(row, place="row 0")
            assert isinstance(found, AnsweredRow) == (value is None and "token_ids" in name), (name, value)
            if isinstance(found, Unusable):
                assert found.reason in (MALFORMED, NO_LOGPROBS)
    assert refused(good | {"top_logprobs": "text"}).reason == MALFORMED
    assert refused(good | {"top_logprobs": [good["top_logprobs"]]}).reason == MALFORMED
