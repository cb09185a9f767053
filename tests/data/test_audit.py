import pytest

from bridgegarden.data import Columns, TokenisedRow, audit_spans, audit_text, conversation, tokenise_row
from bridgegarden.data.audit import visible

MESSAGES = [
    {"role": "user", "content": "Two?"},
    {"role": "assistant", "content": "four"},
    {"role": "user", "content": "Eight?"},
    {"role": "assistant", "content": "answer"},
]


def tokenised(row, tokenizer):
    return tokenise_row(conversation(row, Columns(), place="row"), tokenizer)


def test_learnt_text_stands_between_guillemets(gemma):
    row = tokenised({"messages": MESSAGES[:2]}, gemma)
    assert audit_text(row, gemma).splitlines() == [
        f"{row.supervised} of {len(row.labels)} tokens supervised",
        "<bos><start_of_turn>user\\n",
        "Two?<end_of_turn>\\n",
        "<start_of_turn>model\\n",
        "«four<end_of_turn>»",
    ]


@pytest.mark.parametrize("name", ["chatml", "llama3", "deepseek_coder", "sentencepiece"])
def test_spans_join_to_the_whole_text_and_count_every_token(name, request):
    tokenizer = request.getfixturevalue(name)
    row = tokenised({"messages": MESSAGES}, tokenizer)
    spans = audit_spans(row, tokenizer)
    assert "".join(span.text for span in spans) == tokenizer.decode(row.input_ids)
    assert [span.supervised for span in spans] == [False, True, False, True]
    assert sum(span.tokens for span in spans) == len(row.input_ids)
    assert sum(span.tokens for span in spans if span.supervised) == row.supervised


def test_the_space_between_a_sentencepiece_prompt_and_answer_is_shown(sentencepiece):
    row = tokenised({"prompt": "Two plus two is", "completion": " four"}, sentencepiece)
    assert audit_text(row, sentencepiece).endswith("<s> Two plus two is« four</s>»")


def test_the_first_token_is_shown_as_not_learnt_since_nothing_precedes_it(plain):
    ids = plain("four")["input_ids"]
    spans = audit_spans(TokenisedRow(input_ids=ids, labels=ids), plain)
    assert [(span.supervised, span.tokens) for span in spans] == [(False, 1), (True, len(ids) - 1)]


def test_terminal_escapes_and_disguises_are_shown_escaped(plain):
    row = tokenised({"prompt": "a\x1b[2Jb\r\u202e\u200b", "completion": "« fake »\tx"}, plain)
    shown = audit_text(row, plain)
    assert shown.endswith(r"a\x1b[2Jb\r\u202e\u200b«\xab fake \xbb\tx<|endoftext|>»")
    assert shown.isprintable() or set(shown) - {"\n"} == {c for c in shown if c.isprintable()}


def test_ordinary_text_in_any_script_is_shown_as_it_is():
    text = "é 数学 \U0001f309 back\\slash"
    assert visible(text) == text


def test_a_row_without_tokens_has_no_spans(plain):
    assert audit_text(TokenisedRow(input_ids=[], labels=[]), plain) == "0 of 0 tokens supervised\n"
