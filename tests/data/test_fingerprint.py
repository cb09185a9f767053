import json

import pytest
from datasets import Dataset
from tokenizers import AddedToken, normalizers
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from bridgegarden.data import (
    chat_template_fingerprint,
    dataset_fingerprint,
    load_rows,
    tokenise,
    tokenizer_fingerprint,
)
from bridgegarden.errors import ModelError

ROWS = [{"prompt": f"p{n}", "completion": f"c{n}"} for n in range(1500)]


def test_one_content_has_one_fingerprint_in_every_format(tmp_path):
    rows = Dataset.from_list(ROWS)
    rows.to_parquet(tmp_path / "rows.parquet")
    rows.save_to_disk(str(tmp_path / "saved"))
    (tmp_path / "rows.jsonl").write_text("\n\n".join(json.dumps(dict(reversed(row.items()))) for row in ROWS))
    (tmp_path / "nulls.jsonl").write_text("\n".join(json.dumps({**row, "note": None}) for row in ROWS))
    names = ["rows.parquet", "saved", "rows.jsonl", "nulls.jsonl"]
    found = {dataset_fingerprint(load_rows(str(tmp_path / name))) for name in names}
    assert found == {dataset_fingerprint(rows)}


@pytest.mark.parametrize(
    "changed",
    [ROWS[:-1], ROWS[::-1], [{**ROWS[0], "prompt": "p0 "}, *ROWS[1:]], [{**row, "more": 1} for row in ROWS]],
)
def test_other_rows_have_another_fingerprint(changed):
    assert dataset_fingerprint(Dataset.from_list(changed)) != dataset_fingerprint(Dataset.from_list(ROWS))


def test_ids_are_named_by_ids_and_labels_only_whatever_their_width_and_order_in_memory(plain):
    tokenised = tokenise(Dataset.from_list(ROWS), plain)
    want = dataset_fingerprint(tokenised)
    assert dataset_fingerprint(Dataset.from_list(tokenised.to_list()).remove_columns("row")) == want
    assert dataset_fingerprint(tokenised.select(list(range(1499, -1, -1))).select(list(range(1499, -1, -1)))) == want
    assert dataset_fingerprint(tokenised.with_format("torch")) == want


@pytest.mark.parametrize(
    ("ids", "labels"),
    [
        ([[1, 2], [3]], [[-100, 2], [3]]),
        ([[1], [2, 3]], [[-100], [2, -100]]),
        ([[1, 2, 3]], [[-100, 2, -100]]),
        ([[1, 2], [3]], [[-100, -100], [3]]),
    ],
)
def test_the_same_numbers_cut_or_labelled_otherwise_have_another_fingerprint(ids, labels):
    base = Dataset.from_dict({"input_ids": [[1, 2], [3]], "labels": [[-100, 2], [-100]]})
    other = Dataset.from_dict({"input_ids": ids, "labels": labels})
    assert dataset_fingerprint(base) != dataset_fingerprint(other)


def test_a_tokenizer_keeps_its_fingerprint_when_saved_used_or_given_a_template(chatml, tmp_path):
    want = tokenizer_fingerprint(chatml)
    chatml(["a", "b b"], padding="max_length", truncation=True, max_length=3)
    assert tokenizer_fingerprint(chatml) == want
    chatml.pad_token = "<|im_end|>"
    chatml.chat_template = "other"
    assert tokenizer_fingerprint(chatml) == want
    chatml.save_pretrained(tmp_path)
    assert tokenizer_fingerprint(AutoTokenizer.from_pretrained(tmp_path)) == want


def test_a_tokenizer_that_encodes_otherwise_has_another_fingerprint(chatml, llama3):
    found = [tokenizer_fingerprint(chatml), tokenizer_fingerprint(llama3)]
    chatml.eos_token = "<|im_end|>"
    found.append(tokenizer_fingerprint(chatml))
    chatml.add_tokens([AddedToken("<new>")])
    found.append(tokenizer_fingerprint(chatml))
    chatml.backend_tokenizer.normalizer = normalizers.NFC()
    found.append(tokenizer_fingerprint(chatml))
    assert len(set(found)) == 5


def test_a_tokenizer_that_cannot_be_read_as_a_whole_is_refused():
    class Opaque(PreTrainedTokenizerBase):
        pass

    with pytest.raises(ModelError, match=r"tokenizer Opaque is not backed by the tokenizers library"):
        tokenizer_fingerprint(Opaque())


def test_chat_templates_are_told_apart(chatml, gemma, plain):
    found = {chat_template_fingerprint(tokenizer) for tokenizer in (chatml, gemma, plain)}
    assert len(found) == 3
    want = chat_template_fingerprint(chatml)
    chatml.eos_token = "<|im_end|>"
    assert chat_template_fingerprint(chatml) == want
