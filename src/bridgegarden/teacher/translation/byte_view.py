"""A vocabulary as bytes: what each token writes, and which tokens bytes are written with.

Between two tokenizers nothing is common but the bytes of a text. A token of byte-level BPE is its bytes;
SentencePiece's marker is a space and ``<0xNN>`` a byte; a word of a word-level vocabulary is a space and the word.
Special tokens write nothing, except the end of a turn, which is one symbol in both vocabularies.
"""

import json
from bisect import bisect_left
from collections.abc import Sequence
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray
from transformers import PreTrainedTokenizerFast

from bridgegarden.errors import ModelError, quoted

END_BYTES = b"\xff"
"""The end of a turn as one symbol: a byte that UTF-8 never has, so that no text is taken for it."""
PROBES = (
    "The answer is 1234567, isn't it?\n\n  def f(x):\n\treturn x",
    "café, naïve: Ωμέγα, 漢字, 🦊 and a space ",
)
"""Texts a vocabulary is tried on. A word-level one, which cannot write them, is tried on its own words."""
_MARKER = "\u2581"


def _byte_letters() -> dict[str, int]:
    """GPT-2's letters for bytes: printable ones stand for themselves, the others for letters from 256 on."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [byte for byte in range(256) if byte not in printable]
    return {chr(byte): byte for byte in printable} | {chr(256 + i): byte for i, byte in enumerate(others)}


LETTERS = _byte_letters()
_OF_BYTE = {byte: letter for letter, byte in LETTERS.items()}


class ByteView:
    """What the tokens of one tokenizer write. Can be pickled; holds the tokenizer and no model."""

    def __init__(self, tokenizer: PreTrainedTokenizerFast, end: int | None = None, name: str = "tokenizer") -> None:
        """
        Args:
            tokenizer: byte-level BPE, BPE or Unigram as SentencePiece writes them, or word-level.
            end: id of the token that ends a turn; ``eos_token_id`` by default. None if there is none.
            name: of whom, for messages.

        Raises:
            ModelError: the tokenizer is of another kind, or its tokens do not write the texts that they are cut from.
        """
        self.name = name
        eos = tokenizer.eos_token_id
        self.end: int | None = end if end is not None else eos if isinstance(eos, int) else None
        self.backend = tokenizer.backend_tokenizer
        facts: dict[str, Any] = json.loads(self.backend.to_str())
        self.kind = _kind(facts, name)
        added = {token["id"]: token for token in facts["added_tokens"]}
        unknown = facts["model"].get("unk_token")
        vocabulary = tokenizer.get_vocab()
        self.tokens: list[bytes] = [b""] * (max(vocabulary.values()) + 1)
        for text, index in vocabulary.items():
            if index == self.end:
                self.tokens[index] = END_BYTES
            elif index in added:
                self.tokens[index] = b"" if added[index]["special"] else text.encode()
            elif text != unknown:
                self.tokens[index] = self._written(text)
        self.tokens = [b"" if END_BYTES in t and i != self.end else t for i, t in enumerate(self.tokens)]
        self.cuts_first = self.kind == "bytes" and _cuts(facts["pre_tokenizer"])
        self._merged: dict[str, int] = {}
        """First token of each piece that was merged."""
        self._facts = json.dumps([facts["model"], facts["pre_tokenizer"], facts["normalizer"], self.end])
        self._verify(tokenizer, added)

    def __len__(self) -> int:
        return len(self.tokens)

    def same_as(self, other: "ByteView") -> bool:
        """Whether every id means the same and every text is cut in the same way."""
        return self.tokens == other.tokens and self._facts == other._facts

    def join(self, ids: Sequence[int]) -> bytes:
        """The bytes that `ids` write."""
        return b"".join(map(self.tokens.__getitem__, ids))

    @cached_property
    def lengths(self) -> NDArray[np.int64]:
        """``(V,)`` bytes that each token writes."""
        return np.array([len(written) for written in self.tokens], dtype=np.int64)

    @cached_property
    def order(self) -> list[int]:
        """Ids of the tokens that write something, by their bytes; tokens with a common beginning are neighbours."""
        return sorted((i for i, written in enumerate(self.tokens) if written), key=lambda i: self.tokens[i])

    @cached_property
    def ranks(self) -> list[int]:
        """Place of each id in `order`; -1 where it writes nothing."""
        ranks = [-1] * len(self.tokens)
        for place, index in enumerate(self.order):
            ranks[index] = place
        return ranks

    @cached_property
    def _sorted(self) -> list[bytes]:
        return [self.tokens[index] for index in self.order]

    @cached_property
    def _written_by(self) -> dict[bytes, list[int]]:
        found: dict[bytes, list[int]] = {}
        for index in self.order:
            found.setdefault(self.tokens[index], []).append(index)
        return found

    def beginning_with(self, prefix: bytes) -> tuple[int, int]:
        """Places in `order` of the tokens that begin with `prefix`, from and to; `prefix` has no 0xff but alone."""
        if prefix == END_BYTES:
            place = self.ranks[self.end] if self.end is not None else 0
            return place, place + (self.end is not None)
        return bisect_left(self._sorted, prefix), bisect_left(self._sorted, prefix + b"\xff")

    def prefixes_of(self, text: bytes) -> list[int]:
        """Ids of the tokens that `text` begins with, itself included."""
        return [index for stop in range(1, len(text) + 1) for index in self._written_by.get(text[:stop], ())]

    def encode(self, text: bytes) -> list[int] | None:
        """The tokens that the tokenizer writes `text` with where it stands alone; None where it cannot.

        Bytes that are no whole characters are encoded too, by the merges alone.
        """
        if text.endswith(END_BYTES):
            before = self.encode(text[:-1])
            return None if before is None or self.end is None else [*before, self.end]
        if not text:
            return []
        if self.kind == "words":
            return self._encode_words(text)
        ids: list[int] = []
        for part, whole in _characters(text):
            found = self._encode_part(part, whole)
            if found is None:
                return None
            ids += found
        return ids if self.join(ids) == text else None

    def can_write(self, other: "ByteView") -> bool:
        """Whether whatever tokens of `other` write can be written with this one's."""
        if self._has_every_byte:
            return True
        return all(self.encode(written) is not None for written in set(other.tokens))

    def first_of(self, text: bytes) -> int | None:
        """The first token of `encode(text)`; of what is cut into pieces, the first piece alone is merged."""
        if not (self.cuts_first and self._has_every_byte) or text.startswith(END_BYTES):
            found = self.encode(text)
            return found[0] if found else None
        part, whole = next(iter(_characters(text.removesuffix(END_BYTES))), (b"", False))
        if not whole:
            found = self._encode_part(part, whole)
        else:
            piece = self.backend.pre_tokenizer.pre_tokenize_str(part.decode())[0][0]
            if piece not in self._merged:
                self._merged[piece] = self.backend.model.tokenize(piece)[0].id
            found = [self._merged[piece]]
        return found[0] if found and text.startswith(self.tokens[found[0]]) else None

    @cached_property
    def _has_every_byte(self) -> bool:
        return all(bytes([byte]) in self._written_by for byte in range(255))

    def _encode_part(self, part: bytes, whole: bool) -> list[int] | None:
        model = self.backend.model
        if self.kind == "pieces":
            if whole:
                return [token.id for token in model.tokenize(part.decode().replace(" ", _MARKER))]
            ids = [model.token_to_id(f"<0x{byte:02X}>") for byte in part]
            return None if None in ids else ids
        if whole and self.cuts_first:
            pieces = [piece for piece, _ in self.backend.pre_tokenizer.pre_tokenize_str(part.decode())]
        else:
            pieces = ["".join(_OF_BYTE[byte] for byte in part)]
        return [token.id for piece in pieces for token in model.tokenize(piece)]

    def _encode_words(self, text: bytes) -> list[int] | None:
        ids: list[int] = []
        for index, word in enumerate(text.split(b" ")):
            if index == 0:
                if word:
                    return None
                continue
            found = self._written_by.get(b" " + word)
            if not found:
                return None
            ids.append(found[0])
        return ids

    def _written(self, token: str) -> bytes:
        if self.kind == "bytes":
            if all(letter in LETTERS for letter in token):
                return bytes(LETTERS[letter] for letter in token)
            raise ModelError(
                f"{self.name}: its token {quoted(token)} is no bytes, though its vocabulary is byte-level BPE; "
                "soft labels across tokenizers need to know what each token writes. Use a teacher with the student's "
                "tokenizer."
            )
        if self.kind == "words":
            return b" " + token.encode()
        if len(token) == 6 and token.startswith("<0x") and token.endswith(">"):
            return bytes([int(token[3:5], 16)])
        return token.replace(_MARKER, " ").encode()

    @property
    def _normaliser(self) -> str:
        """That text is changed before it is cut, for a message; empty where it is not."""
        found = self.backend.normalizer
        return "" if found is None else f"it normalises text before cutting it ({type(found).__name__}), and "

    def _verify(self, tokenizer: PreTrainedTokenizerFast, added: dict[int, Any]) -> None:
        probes = PROBES
        if self.kind == "words":
            words = [i for i, written in enumerate(self.tokens) if written and i not in added and i != self.end]
            probes = tuple(self.join(words[at : at + 100])[1:].decode() for at in range(0, len(words), 100))
        for text in probes:
            joined = self.join(tokenizer.encode(text, add_special_tokens=False))
            expected = text.encode()
            if joined != expected and joined != b" " + expected:
                normalised = self._normaliser
                place = next((i for i, (a, b) in enumerate(zip(joined, expected, strict=False)) if a != b), 0)
                raise ModelError(
                    f"{self.name}: its tokens for {quoted(text)} write {quoted(joined.decode(errors='replace'))}, "
                    f"which differs from byte {place} on; {normalised}soft labels across tokenizers need tokens that "
                    "write the text. Use a teacher with the student's tokenizer."
                )


def _kind(facts: dict[str, Any], name: str) -> str:
    """``bytes``, ``pieces`` (SentencePiece's) or ``words``."""
    model = facts["model"]["type"]
    text = json.dumps([facts["pre_tokenizer"], facts["decoder"], facts["normalizer"]], ensure_ascii=False)
    if model == "BPE" and '"ByteLevel"' in text:
        return "bytes"
    if model in ("BPE", "Unigram") and (_MARKER in text or '"Metaspace"' in text):
        return "pieces"
    if model == "WordLevel":
        return "words"
    raise ModelError(
        f"{name}: its vocabulary is {model}, of which it is not known what each token writes; expected byte-level BPE, "
        "SentencePiece (BPE or Unigram with ▁) or WordLevel. Use a teacher with the student's tokenizer."
    )


def _cuts(pre_tokenizer: dict[str, Any] | None) -> bool:
    """Whether a text is cut before it is merged, by anything but the change of bytes to letters."""
    return pre_tokenizer is not None and (
        pre_tokenizer["type"] != "ByteLevel" or pre_tokenizer["use_regex"] or pre_tokenizer["add_prefix_space"]
    )


def _characters(text: bytes) -> list[tuple[bytes, bool]]:
    """`text` in parts: whole characters, and bytes between them that are none."""
    parts: list[tuple[bytes, bool]] = []
    while text:
        try:
            text.decode()
            parts.append((text, True))
            break
        except UnicodeDecodeError as error:
            if error.start:
                parts.append((text[: error.start], True))
            parts.append((text[error.start : error.end], False))
            text = text[error.end :]
    return parts
