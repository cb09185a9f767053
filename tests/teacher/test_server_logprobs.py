import pytest
from tokenizers import AddedToken, Tokenizer, decoders, models
from transformers import PreTrainedTokenizerFast

from bridgegarden.teacher.server_logprobs import BYTE_OF, TokenTexts
from tests.tiny import VOCABULARY, tiny_tokenizer

PIECES = ["<unk>", "<0x41>", "<0xE2>", "<0x82>", "\u2581the", "the", "A", "\u2581", "\u00e9"]


def sentence_piece(strips: bool) -> PreTrainedTokenizerFast:
    """A vocabulary as Llama 2 (which strips the first space of what it decodes) and Gemma (which does not) have it."""
    vocab = {piece: index for index, piece in enumerate(PIECES)}
    backend = Tokenizer(models.BPE(vocab=vocab, merges=[], unk_token="<unk>", byte_fallback=True))
    parts = [decoders.Replace("\u2581", " "), decoders.ByteFallback(), decoders.Fuse()]
    backend.decoder = decoders.Sequence([*parts, decoders.Strip(" ", 1, 0)] if strips else parts)
    backend.add_special_tokens([AddedToken("</s>", special=True)])
    return PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="</s>", unk_token="<unk>")


def test_the_byte_alphabet_is_that_of_byte_level_tokenizers():
    from tokenizers import pre_tokenizers

    assert set(BYTE_OF) == set(pre_tokenizers.ByteLevel.alphabet())
    assert sorted(BYTE_OF.values()) == list(range(256))
    tokenizer = tiny_tokenizer()
    for text in ("a\n é", "\u20ac\x00~"):
        pieces = tokenizer.tokenize(text)
        assert bytes(BYTE_OF[piece] for piece in pieces) == text.encode()


def test_every_byte_level_token_is_told_by_its_bytes_and_half_characters_are_not_by_their_text():
    tokenizer = tiny_tokenizer()
    texts = TokenTexts(tokenizer, VOCABULARY)
    for byte in range(256):
        (index,) = texts.ids(bytes([byte]))
        assert BYTE_OF[str(tokenizer.convert_ids_to_tokens(index))] == byte
    assert texts.ids(b"<|im_end|>") == (258,)
    assert len(texts.ids("\ufffd".encode())) == 128
    assert texts.ids(b"") == texts.ids(b"no token") == ()


def test_ids_beyond_the_vocabulary_are_left_out():
    assert TokenTexts(tiny_tokenizer(), 258).ids(b"<|im_end|>") == ()


@pytest.mark.parametrize(
    ("text", "stripping", "keeping"),
    [
        (" the", (4,), (4,)),
        ("the", (4, 5), (5,)),
        ("A", (6,), (6,)),
        ("\u00e9", (8,), (8,)),
        (" ", (7,), (7,)),
        ("</s>", (9,), (9,)),
        ("\ufffd", (2, 3), (2, 3)),
    ],
)
def test_a_word_whose_space_is_dropped_is_ambiguous_only_where_the_decoder_drops_it(text, stripping, keeping):
    for strips, expected in ((True, stripping), (False, keeping)):
        tokenizer = sentence_piece(strips)
        assert TokenTexts(tokenizer, len(tokenizer)).ids(text.encode()) == expected


def test_bytes_of_characters_without_a_token_are_told_by_their_bytes():
    tokenizer = sentence_piece(strips=True)
    assert TokenTexts(tokenizer, len(tokenizer)).ids(b"\xe2") == (2,)
