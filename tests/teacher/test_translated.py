"""Rows that two families read: which tokens of the one stand against which of the other, and what is refused."""

import pickle

import pytest
import torch
from datasets import Dataset

from bridgegarden.data import Columns, RowRules, tokenise
from bridgegarden.data.encode import IGNORED
from bridgegarden.errors import ConfigError, DataError
from bridgegarden.objective.hybrid import HybridObjective
from bridgegarden.objective.soft_weight import EntropyWeight
from bridgegarden.objective.support import TeacherSignal
from bridgegarden.quickstart.student import load_tokenizer as words
from bridgegarden.teacher.tokenizer_pair import TokenizerPair
from bridgegarden.teacher.translated import SHARES, as_parts, as_read, check_translated_objective, from_parts
from bridgegarden.teacher.translation.byte_view import END_BYTES, ByteView
from bridgegarden.teacher.translation.translate import HARD_ONLY, Translation
from tests.tiny import tiny_tokenizer
from tests.tokenizer_pairs import ROWS, ones, thinks, threes

COLUMNS = Columns(prompt="question", completion="answer")
PAIRS = {
    "threes to ones": (threes, ones),
    "ones to threes": (ones, threes),
    "threes to bytes": (threes, tiny_tokenizer),
    "bytes to threes": (tiny_tokenizer, threes),
    "thinks to threes": (thinks, threes),
    "threes to thinks": (threes, thinks),
}


def pair_of(teacher, student, **settings) -> TokenizerPair:
    views = ByteView(teacher, name="teacher"), ByteView(student, name="student")
    return TokenizerPair(teacher, student, Translation(*views, **settings))


def read(pair: TokenizerPair, student, rows=ROWS, **rules) -> Dataset:
    """`rows` in the tokens of both."""
    return tokenise(Dataset.from_list(rows), student, RowRules(columns=COLUMNS, teacher_tokens=pair, **rules))


@pytest.mark.parametrize("name", PAIRS)
def test_what_stands_against_each_other_is_the_answer_and_the_end_in_both(name):
    teacher, student = (make() for make in PAIRS[name])
    pair = pair_of(teacher, student)
    rows = read(pair, student)
    for row, given in zip(rows, ROWS, strict=True):
        pairs = pair.paired(row["labels"], row["teacher_labels"])
        held = [stretch for stretch in pairs if all(stretch)]
        assert len(held) == 1
        for view, ids in zip((pair.translation.teacher, pair.translation.student), held[0], strict=True):
            assert view.join(ids) == given["answer"].encode() + END_BYTES
        # Nothing that is learnt is lost, and each keeps its order.
        for side, labels in enumerate((row["teacher_labels"], row["labels"])):
            assert [i for stretch in pairs for i in stretch[side]] == [i for i in labels if i != IGNORED]


def test_each_reads_the_prompt_in_its_own_chat_template():
    pair = pair_of(threes(), ones())
    row = read(pair, ones())[0]
    question = ROWS[0]["question"]
    assert (
        ones().decode(row["input_ids"]).startswith(f"<|im_start|>user\n{question}<|im_end|>\n<|im_start|>assistant\n")
    )
    assert threes().decode(row["teacher_ids"]) == (
        f"<|begin|><|head|>user<|/head|>\n\n{question}<|eot|><|head|>assistant<|/head|>\n\n{ROWS[0]['answer']}<|eot|>"
    )


def test_a_conversation_of_several_turns():
    pair = pair_of(threes(), ones())
    messages = [
        {"role": "user", "content": "What is 10000?"},
        {"role": "assistant", "content": "A number, 100."},
        {"role": "user", "content": "And?"},
        {"role": "assistant", "content": "Wo?"},
    ]
    rows = tokenise(Dataset.from_list([{"messages": messages}]), ones(), RowRules(teacher_tokens=pair))
    first, second = pair.paired(rows[0]["labels"], rows[0]["teacher_labels"])
    view = pair.translation.student
    assert view.join(first[1]) == b"A number, 100." + END_BYTES
    assert view.join(second[1]) == b"Wo?" + END_BYTES


def test_of_an_empty_answer_the_end_is_learnt_with_the_teachers_probability_of_it():
    pair = pair_of(threes(), ones())
    ends = threes().eos_token_id, ones().eos_token_id
    pairs = pair.paired([IGNORED, ends[1]], [IGNORED, ends[0]])
    assert pairs == [([ends[0]], [ends[1]])]
    logits = torch.zeros(1, len(threes()), dtype=torch.float64)
    logits[0, ends[0]] = 8.0
    found = pair.translate(TeacherSignal.from_logits(logits), pairs, "row")
    assert found.signal.ids[0, 0] == ends[1]
    assert found.signal.logp[0, 0] == pytest.approx(logits.log_softmax(-1)[0, ends[0]].item())


def test_what_a_template_has_the_student_write_first_is_hard_only_and_the_answer_is_not():
    pair = pair_of(ones(), thinks())
    row = read(pair, thinks())[0]
    pairs = pair.paired(row["labels"], row["teacher_labels"])
    lead, answer = pairs
    assert lead[0] == []
    assert thinks().decode(lead[1]) == "<think>\n\n</think>\n\n"
    signal = TeacherSignal.from_logits(torch.zeros(len(answer[0]), len(ones())))
    found = pair.translate(signal, pairs, "row")
    assert (found.kind[: len(lead[1])] == HARD_ONLY).all()
    assert found.kind[len(lead[1]) :].tolist() == [0] * len(answer[1])  # the same tokens on both sides


def test_rows_are_cut_each_in_its_own_tokens_and_what_the_teacher_has_not_read_is_hard_only():
    pair = pair_of(tiny_tokenizer(), ones(), threshold=0.0)
    whole, cut = read(pair, ones())[1], read(pair, ones(), max_length=48)[1]
    assert len(cut["teacher_ids"]) == 48 < len(whole["teacher_ids"])
    assert cut["input_ids"] == whole["input_ids"]
    pairs = pair.paired(cut["labels"], cut["teacher_labels"])
    (theirs, ours), view = pairs[0], pair.translation.student
    signal = TeacherSignal.from_logits(torch.zeros(len(theirs), len(tiny_tokenizer())))
    kind = pair.translate(signal, pairs, "row").kind.tolist()
    reads = len(pair.translation.teacher.join(theirs))
    begins = [len(view.join(ours[:at])) for at in range(len(ours))]
    assert [each == HARD_ONLY for each in kind] == [at >= reads for at in begins]
    assert HARD_ONLY in kind
    # The other way round: the student's is cut, and of the teacher's nothing is left out.
    other = pair_of(ones(), tiny_tokenizer(), threshold=0.0)
    row = read(other, tiny_tokenizer(), max_length=48)[1]
    assert len(row["input_ids"]) == 48
    signal = TeacherSignal.from_logits(torch.zeros(sum(i != IGNORED for i in row["teacher_labels"]), len(ones())))
    found = other.translate(signal, other.paired(row["labels"], row["teacher_labels"]), "row")
    assert len(found.kind) == sum(i != IGNORED for i in row["labels"])


def test_words_stand_against_bytes_and_pieces():
    text = "the sum of three and four is seven ."
    teacher = words()
    known = [word for word in text.split() if word in teacher.get_vocab()]
    assert known
    rows = [{"prompt": " ".join(known), "completion": " " + " ".join(known)}]
    pair = pair_of(teacher, ones())
    made = tokenise(Dataset.from_list(rows), ones(), RowRules(teacher_tokens=pair))
    ((theirs, ours),) = pair.paired(made[0]["labels"], made[0]["teacher_labels"])
    assert pair.translation.teacher.join(theirs) == pair.translation.student.join(ours)


@pytest.mark.parametrize(
    ("rows", "rules", "message"),
    [
        ([{"text": "a text"}], {}, "train, row 0: is text with no prompt, and a teacher with another tokenizer"),
        (
            [{"prompt": "", "completion": "all of it"}],
            {},
            "train, row 0: has an empty prompt, so its first token is learnt from nothing",
        ),
        ([{"input_ids": [1, 2], "labels": [1, 2]}], {}, "train, row 0: has 'input_ids' of the student's tokenizer"),
    ],
)
def test_rows_that_cannot_be_held_against_each_other_are_named(rows, rules, message):
    with pytest.raises(DataError, match=message):
        tokenise(Dataset.from_list(rows), ones(), RowRules(teacher_tokens=pair_of(threes(), ones()), **rules))


def test_answers_of_which_the_two_read_different_texts_are_refused_or_left_out(caplog):
    pair = pair_of(threes(), ones())
    row = read(pair, ones())
    changed = [list(ids) for ids in row["teacher_labels"]]
    changed[0] = [
        threes().convert_tokens_to_ids("e") if i == threes().convert_tokens_to_ids("The") else i for i in changed[0]
    ]
    ids = [
        [label if label != IGNORED else index for index, label in zip(row["teacher_ids"][n], changed[n], strict=True)]
        for n in range(len(changed))
    ]
    given = [
        {
            "input_ids": row["input_ids"][n],
            "labels": row["labels"][n],
            "teacher_ids": ids[n],
            "teacher_labels": changed[n],
        }
        for n in range(len(changed))
    ]
    with pytest.raises(DataError, match="train, row 0: teacher and student write different bytes from byte 0 on"):
        tokenise(Dataset.from_list(given), ones(), RowRules(teacher_tokens=pair))
    kept = tokenise(Dataset.from_list(given), ones(), RowRules(teacher_tokens=pair, skip_bad=True))
    assert kept["row"] == [1, 2, 3]
    assert "skipped 1 of 4 rows" in caplog.text


def test_an_answer_that_goes_on_for_one_of_them_alone_is_refused():
    pair = pair_of(threes(), ones())
    made = read(pair, ones())[0]
    from bridgegarden.data.encode import TokenisedRow

    theirs = TokenisedRow(input_ids=made["teacher_ids"][:-3], labels=made["teacher_labels"][:-3])
    row = TokenisedRow(input_ids=made["input_ids"], labels=made["labels"], teacher=theirs, translated=True)
    with pytest.raises(DataError, match="row 7: the student reads 2 bytes more at the end of the answer"):
        pair.check(row, "row 7")


def test_a_teachers_template_that_prints_the_date_is_warned_of(caplog):
    dated = threes().__class__(tokenizer_object=threes().backend_tokenizer, eos_token="<|eot|>")
    dated.chat_template = "{{ '<|begin|>' + strftime_now('%d %b %Y') }}" + str(threes().chat_template)
    read(pair_of(dated, ones()), ones())
    assert caplog.text.count("the teacher's chat template prints today's date, so the token ids") == 1


def test_settings_that_two_tokenizers_rule_out_are_refused():
    pair = pair_of(threes(), ones())
    with pytest.raises(ConfigError, match=r"^training.truncation_mode: 'keep_end' cuts a row at one place"):
        RowRules(teacher_tokens=pair, keep="end")
    with pytest.raises(ConfigError, match="answers alone can be learnt"):
        RowRules(teacher_tokens=pair, completion_only=False)
    for changes in ({"temperature": 2.0}, {"sharpening": 2.0}, {"soft_weight": EntropyWeight(kind="power")}):
        with pytest.raises(ConfigError, match="the teacher has another tokenizer, and of what cannot be translated"):
            check_translated_objective(HybridObjective(**changes))
    check_translated_objective(HybridObjective(soft_weight=EntropyWeight()))


def test_a_batch_carries_the_signal_and_what_is_known_of_it():
    pair = pickle.loads(pickle.dumps(pair_of(threes(), ones())))
    row = read(pair, ones())[0]
    pairs = pair.paired(row["labels"], row["teacher_labels"])
    logits = 8 * torch.randn(len(pairs[0][0]), len(threes()), generator=torch.Generator().manual_seed(0))
    found = pair.translate(TeacherSignal.from_logits(logits, 20), pairs, "row")
    signal = from_parts(as_parts(found), torch.device("cpu"), len(ones()))
    torch.testing.assert_close(signal[2:5].logp, found.signal[2:5].logp)
    assert signal[:].hard_only.tolist() == (found.kind == HARD_ONLY).tolist()
    assert 0 < signal[:].hard_only.sum() < len(found.kind)
    shares = found.shares()
    means = dict(zip(SHARES, (signal.sums / len(found.kind)).tolist(), strict=True))
    assert list(means.values()) == pytest.approx(list(shares), abs=1e-6)


def test_a_batch_in_which_nothing_is_learnt_has_no_positions():
    pair = pair_of(threes(), ones())
    nothing = TeacherSignal.from_logits(torch.zeros(0, len(threes())))
    found = as_parts(pair.translate(nothing, [], "a batch"))
    assert {len(part) for part in found.values()} == {0}


def test_rows_of_the_students_tokens_alone_are_no_rows_of_the_teacher():
    with pytest.raises(DataError, match="train data: rows are in the student's tokens alone"):
        as_read(Dataset.from_list([{"input_ids": [1], "labels": [1]}]), "train")


@pytest.mark.parametrize("name", PAIRS)
def test_an_answer_of_the_students_is_read_in_the_teachers_tokens_and_opening(name):
    """The answers of the data, as if the student had written them: what is read then is what was read before."""
    teacher, student = (make() for make in PAIRS[name])
    pair = pair_of(teacher, student)
    for row in read(pair, student):
        answer = [label for label in row["labels"] if label != IGNORED]
        made = pair.answered(row["teacher_ids"], row["teacher_labels"], answer)
        assert made == {"teacher_ids": row["teacher_ids"], "teacher_labels": row["teacher_labels"]}


def test_of_an_answer_cut_in_the_middle_of_a_character_the_teacher_reads_the_bytes():
    pair = pair_of(threes(), tiny_tokenizer())
    row = read(pair, tiny_tokenizer())[1]
    answer = [label for label in row["labels"] if label != IGNORED][:7]  # "Im Caf" and half of the next letter
    made = pair.answered(row["teacher_ids"], row["teacher_labels"], answer)
    theirs = [label for label in made["teacher_labels"] if label != IGNORED]
    assert pair.translation.teacher.join(theirs) == "Im Café".encode()[:7]


def test_an_answer_that_the_teacher_cannot_write_leaves_it_nothing_to_say():
    pair = pair_of(words(), ones())
    made = pair.answered([5, 6, 7], [IGNORED, IGNORED, 7], ones()("xyz §")["input_ids"])
    assert made == {"teacher_ids": [5, 6], "teacher_labels": [IGNORED, IGNORED]}
    cut = pair.answered([5, 6], [IGNORED, IGNORED], ones()("x")["input_ids"])
    assert cut == {"teacher_ids": [5, 6], "teacher_labels": [IGNORED, IGNORED]}
