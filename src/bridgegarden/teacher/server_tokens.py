"""Which token of the student's vocabulary a server means by a piece of text.

Servers show a token in one of two ways: decoded by itself, or as its bytes. Neither need tell tokens apart: decoders
drop the space before a word, and write a replacement character for half of one. A text means a token only if no other
token may look like it, in either way.
"""

import json
import re
from collections import defaultdict
from typing import TYPE_CHECKING, cast

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

SPACE = "\u2581"
"""What SentencePiece writes for a space."""
BYTE_PIECE = re.compile(r"<0x([0-9A-F]{2})>")
"""SentencePiece's tokens for the bytes of characters that have no token."""


class TokenTexts:
    """A vocabulary by what a server may show for its tokens."""

    def __init__(self, tokenizer: "PreTrainedTokenizerBase", vocab_size: int) -> None:
        """
        Args:
            tokenizer: the student's.
            vocab_size: ids from there on are left out.
        """
        pieces = {index: piece for piece, index in tokenizer.get_vocab().items() if index < vocab_size}
        decoded = _decoded(list(pieces), tokenizer)
        bytes_of = _bytes_of(tokenizer)
        found: defaultdict[bytes, set[int]] = defaultdict(set)
        for index, content in bytes_of.items():
            if index in pieces and not _is_byte_piece(pieces[index], content):
                found[content].add(index)
        for index, piece in pieces.items():
            content = bytes_of.get(index)
            # A character that has a token is never written byte by byte.
            if content is None or not _is_byte_piece(piece, content) or content not in found:
                found[decoded[index].encode()].add(index)
                if content is not None:
                    found[content].add(index)
        found.pop(b"", None)
        self._ids = {text: tuple(sorted(ids)) for text, ids in found.items()}

    def ids(self, text: bytes) -> tuple[int, ...]:
        """All ids that `text` may stand for: none where no token looks like it, several where it is ambiguous."""
        return self._ids.get(text, ())


def _decoded(ids: list[int], tokenizer: "PreTrainedTokenizerBase") -> dict[int, str]:
    """Every token decoded by itself."""
    alone = [[index] for index in ids]
    texts = tokenizer.batch_decode(alone, skip_special_tokens=False, clean_up_tokenization_spaces=False)
    return dict(zip(ids, cast(list[str], texts), strict=True))


def _bytes_of(tokenizer: "PreTrainedTokenizerBase") -> dict[int, bytes]:
    """Every token as bytes, as far as its name in the vocabulary says them."""
    added = {index: token.content.encode() for index, token in tokenizer.added_tokens_decoder.items()}
    read = _byte_level if _is_byte_level(tokenizer) else _sentence_piece
    named = {index: read(piece) for piece, index in tokenizer.get_vocab().items() if index not in added}
    return {index: content for index, content in named.items() if content is not None} | added


def _is_byte_level(tokenizer: "PreTrainedTokenizerBase") -> bool:
    decoder = json.loads(tokenizer.backend_tokenizer.to_str())["decoder"] or {}  # pyright: ignore
    return "ByteLevel" in {part["type"] for part in decoder.get("decoders", [decoder]) if part}


def _byte_level(piece: str) -> bytes | None:
    """Bytes written as printable characters, as GPT-2 does."""
    if not all(character in BYTE_OF for character in piece):
        return None
    return bytes(BYTE_OF[character] for character in piece)


def _sentence_piece(piece: str) -> bytes:
    byte = BYTE_PIECE.fullmatch(piece)
    return bytes([int(byte[1], 16)]) if byte else piece.replace(SPACE, " ").encode()


def _is_byte_piece(piece: str, content: bytes) -> bool:
    return len(content) == 1 and BYTE_PIECE.fullmatch(piece) is not None


def _byte_alphabet() -> dict[str, int]:
    """Bytes that are printable in Latin-1 stand for themselves, the others for characters from 256 on, in order."""
    plain = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in plain]
    return {chr(byte): byte for byte in plain} | {chr(256 + rank): byte for rank, byte in enumerate(others)}


BYTE_OF = _byte_alphabet()
"""The byte that a character of a byte-level token stands for."""
