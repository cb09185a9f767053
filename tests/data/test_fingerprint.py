import pytest
from tokenizers import AddedToken, normalizers
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from bridgegarden.data import (
    chat_template_fingerprint,
    tokenizer_fingerprint,
)
from bridgegarden.errors import ModelError


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
