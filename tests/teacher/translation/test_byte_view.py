"""A vocabulary's bytes against the texts that its tokenizer cuts."""

import random

import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from bridgegarden.errors import ModelError
from bridgegarden.exact.tasks.arithmetic import ArithmeticWorld
from bridgegarden.study.students import build_tokenizer
from bridgegarden.teacher.translation.byte_view import END_BYTES, ByteView
from tests.teacher.translation.small import LETTERS, merged, view
from tests.tiny import tiny_tokenizer


def pieces() -> PreTrainedTokenizerFast:
    """As Llama 2's and Gemma's are: a marker for spaces, and bytes for what has no token."""
    vocabulary = {"<unk>": 0, "<s>": 1, "</s>": 2} | {f"<0x{byte:02X}>": 3 + byte for byte in range(256)}
    for token in ("▁", "t", "h", "e", "n", "th", "the", "▁the"):
        vocabulary[token] = len(vocabulary)
    merges = [("t", "h"), ("th", "e"), ("▁", "the")]
    backend = Tokenizer(models.BPE(vocab=vocabulary, merges=merges, byte_fallback=True, unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first", split=False)
    backend.decoder = decoders.Sequence([decoders.Metaspace(prepend_scheme="first"), decoders.ByteFallback()])
    backend.add_special_tokens(["<unk>", "<s>", "</s>"])
    return PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="</s>", unk_token="<unk>")


def test_a_byte_tokenizer_writes_its_bytes_and_its_special_tokens_nothing():
    tokenizer = tiny_tokenizer()
    found = ByteView(tokenizer)
    text = "é <|im_start|> 🦊"
    ids = tokenizer.encode(text, add_special_tokens=False)
    assert found.join(ids) == text.replace("<|im_start|>", "").encode()
    assert found.tokens[tokenizer.eos_token_id] == END_BYTES


def test_sentencepiece_writes_spaces_for_markers_and_bytes_for_bytes():
    found = ByteView(pieces())
    assert found.join(found.encode(" the then é".encode()) or []) == " the then é".encode()
    assert found.encode(b" the") == [pieces().convert_tokens_to_ids("▁the")]
    assert found.encode("é".encode()[:1]) == [3 + 0xC3]


def test_the_packaged_words_write_a_space_and_the_word():
    world = ArithmeticWorld()
    tokenizer = build_tokenizer(world)
    found = ByteView(tokenizer)
    words = [token for token in tokenizer.get_vocab() if token.isalpha()][:3]
    ids = tokenizer.convert_tokens_to_ids(words)
    assert found.join(ids) == b"".join(b" " + word.encode() for word in words)
    assert found.encode(found.join(ids)) == ids
    assert found.encode(b" nosuchword") is None


@pytest.mark.parametrize("cut", [None, r"\d"])
def test_bytes_are_encoded_as_the_tokenizer_encodes_the_text(cut: str | None):
    tokenizer = merged("a b", "b c", "ab c", "Ã ©", "1 2", cut=cut)
    found = ByteView(tokenizer)
    rng = random.Random(0)
    for _ in range(200):
        text = "".join(rng.choice([*LETTERS, "é", "1", "2", " "]) for _ in range(rng.randrange(12)))
        expected = tokenizer.encode(text, add_special_tokens=False)
        assert found.encode(text.encode()) == expected
        assert found.first_of(text.encode()) == (expected[0] if expected else None)


@pytest.mark.parametrize("cut", [None, r"\d"])
def test_the_first_token_is_that_of_the_whole_encoding_also_of_bytes_that_are_no_text(cut: str | None):
    found = ByteView(merged("a b", "b c", "Ã ©", cut=cut))
    for text in ("é".encode()[:1] + b"ab", "aé".encode()[:2], b"ab" + END_BYTES, END_BYTES, "éa".encode()):
        assert found.first_of(text) == (found.encode(text) or [None])[0]
    assert found.first_of(b"") is None


def test_tokens_with_a_common_beginning_are_found():
    found = view("a b", "ab c")
    low, high = found.beginning_with(b"ab")
    assert {found.tokens[index] for index in found.order[low:high]} == {b"ab", b"abc"}
    assert [found.tokens[index] for index in found.prefixes_of(b"abca")] == [b"a", b"ab", b"abc"]


def test_a_vocabulary_that_cannot_be_read_is_refused_by_name():
    backend = Tokenizer(models.WordPiece({"[UNK]": 0, "a": 1}, unk_token="[UNK]"))
    with pytest.raises(ModelError, match="teacher: its vocabulary is WordPiece, of which it is not known"):
        ByteView(PreTrainedTokenizerFast(tokenizer_object=backend), name="teacher")


def test_a_tokenizer_that_changes_the_text_is_refused():
    from tokenizers import normalizers

    tokenizer = merged("a b")
    tokenizer.backend_tokenizer.normalizer = normalizers.Lowercase()
    with pytest.raises(ModelError, match=r"differs from byte 0 on; it normalises text before cutting it \(Lowercase\)"):
        ByteView(tokenizer)
