"""Log-probabilities of a server's answer: as it says them, as they are kept and read again; and of which tokens.

Servers show a token in one of two ways: decoded by itself, or as its bytes. Neither need tell tokens apart: decoders
drop the space before a word, and write a replacement character for half of one. A text means a token only if no other
token may look like it, in either way.
"""

import json
import math
import re
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import TYPE_CHECKING, Any, NamedTuple, cast

from bridgegarden.teacher.foreign_values import (
    LARGEST_ID,
    Unfit,
    items,
    mapping,
    nats,
    probabilities,
    text,
    whole,
    whole_bytes,
)

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

SMALLEST_TAIL = 1e-7
"""A server's log-probabilities have the precision of float32: what is left below this is rounding."""
AS_ID = rb"token_id:([0-9]{1,9})"
"""How vLLM names tokens when it is asked to say their ids."""
SPACE = "\u2581"
"""What SentencePiece writes for a space."""
BYTE_PIECE = re.compile(r"<0x([0-9A-F]{2})>")
"""SentencePiece's tokens for the bytes of characters that have no token."""


class Token(NamedTuple):
    """A token as a server names it."""

    text: bytes
    id: int | None
    """Where the server says it: llama.cpp does, vLLM if it was started with ``--return-tokens-as-token-ids``."""


class Position(NamedTuple):
    """One token of an answer, and the likeliest ones in its place."""

    token: Token
    logprob: float
    top: list[tuple[Token, float]]


def top_logprobs(given: Any, answer: str, top_k: int) -> dict[str, Any] | None:
    """The server's log-probabilities as they are kept: what soft labels over its top-k and a tail are made of.

    With T tokens in the answer (its end-of-turn token last, if the server counts it), all in nats:

    * ``tokens`` and ``logprobs``: T tokens and their log-probabilities;
    * ``top_tokens`` and ``top_logprobs``: T lists, likeliest first, of at most `top_k` + 1 tokens;
    * ``log_tail``: T logarithms of the mass that all other tokens have together, at least log(1e-7);
    * ``token_ids`` and ``top_token_ids``, shaped as ``tokens`` and ``top_tokens``, if the server says every token's id.

    A token that is not whole characters is written ``bytes:\\xe2\\x82``; one of which a server says no more than its
    id, ``token_id:220``.

    Args:
        given: ``logprobs`` of a choice, in the form of chat or of completions.
        answer: its text.
        top_k: how many a position were asked for.

    Returns:
        None where the server left them empty.

    Raises:
        Unfit: they are not numbers of that kind, or not as many as the answer has tokens.
    """
    positions = _positions(mapping(given, "logprobs"), top_k)
    if not positions:
        return None
    _check_length(positions, answer)
    kept = {
        "tokens": [_name(position.token.text) for position in positions],
        "logprobs": [position.logprob for position in positions],
        "top_tokens": [[_name(token.text) for token, _ in position.top] for position in positions],
        "top_logprobs": [[logp for _, logp in position.top] for position in positions],
        "log_tail": [_log_tail(position) for position in positions],
    }
    ids = {
        "token_ids": [position.token.id for position in positions],
        "top_token_ids": [[token.id for token, _ in position.top] for position in positions],
    }
    return kept | ids if None not in (*ids["token_ids"], *chain.from_iterable(ids["top_token_ids"])) else kept


@dataclass(frozen=True, kw_only=True)
class KeptLogprobs:
    """What :func:`top_logprobs` returned, read from a file: T positions, nats."""

    tokens: list[str]
    logprobs: list[float]
    top_tokens: list[list[str]]
    """T lists of at least one token."""
    top_logprobs: list[list[float]]
    token_ids: list[int] | None
    top_token_ids: list[list[int]] | None


def kept_logprobs(given: Any) -> KeptLogprobs | None:
    """What a row of answers holds, which anybody may have written.

    Returns:
        None where there is nothing.

    Raises:
        Unfit: it is not what :func:`top_logprobs` returns.
    """
    if given is None:
        return None
    row = mapping(given, "top_logprobs")
    if not row.get("tokens"):
        return None
    tokens = [text(token, "tokens") for token in items(row["tokens"], "tokens")]
    lists = [items(part, "top_logprobs") for part in _column(row, "top_logprobs", len(tokens))]
    logps = [[nats(logp, "top_logprobs") for logp in part] for part in lists]
    for number, part in enumerate(logps):
        if not part:
            raise Unfit(f"top_logprobs of token {number}: expected at least one")
        probabilities(part, f"top_logprobs of token {number}")
    has_ids = row.get("token_ids") is not None and row.get("top_token_ids") is not None
    own_ids = _column(row, "token_ids", len(tokens)) if has_ids else None
    return KeptLogprobs(
        tokens=tokens,
        logprobs=[nats(logp, "logprobs") for logp in _column(row, "logprobs", len(tokens))],
        top_tokens=[[text(token, "top_tokens") for token in part] for part in _table(row, "top_tokens", logps)],
        top_logprobs=logps,
        token_ids=None if own_ids is None else [whole(index, "token_ids", LARGEST_ID) for index in own_ids],
        top_token_ids=[
            [whole(index, "top_token_ids", LARGEST_ID) for index in part]
            for part in _table(row, "top_token_ids", logps)
        ]
        if has_ids
        else None,
    )


def token_bytes(name: str) -> bytes:
    """The bytes of a token that is written as in :func:`top_logprobs`."""
    if re.fullmatch(r"bytes:(\\x[0-9a-f]{2})+", name):
        return bytes.fromhex(name.removeprefix("bytes:").replace("\\x", ""))
    return name.encode()


def _column(row: Mapping[str, Any], name: str, length: int) -> Sequence[Any]:
    """A list with an item for each token."""
    column = items(row.get(name), name)
    if len(column) != length:
        raise Unfit(f"{name}: expected {length}, one for each token, got {len(column)}")
    return column


def _table(row: Mapping[str, Any], name: str, like: Sequence[Sequence[Any]]) -> list[Sequence[Any]]:
    """A list for each token, as long as those of `like`."""
    table = [items(part, name) for part in _column(row, name, len(like))]
    if [len(part) for part in table] != [len(part) for part in like]:
        raise Unfit(f"{name}: expected as many as top_logprobs at every token")
    return table


def _positions(given: Mapping[str, Any], top_k: int) -> list[Position]:
    if given.get("content") is not None:
        read, entries = _from_chat, items(given["content"], "logprobs.content")
    else:
        tokens, logprobs, tops = (given.get(key) for key in ("tokens", "token_logprobs", "top_logprobs"))
        if not tokens or tops is None:
            return []
        columns = [items(part, "log-probabilities") for part in (tokens, logprobs, tops)]
        if len(set(map(len, columns))) > 1:
            raise Unfit(
                f"log-probabilities of the wrong length: {len(columns[0])} tokens, {len(columns[1])} log-probabilities "
                f"of them and {len(columns[2])} of the likeliest"
            )
        read, entries = _from_completion, list(zip(*columns, strict=True))
    positions = []
    for number, entry in enumerate(entries):
        where = f"log-probabilities of token {number}"
        try:
            position = read(entry)
            # Some servers add the token that was drawn to the likeliest ones.
            if not 1 <= len(position.top) <= top_k + 1:
                raise Unfit(f"wrong length: {len(position.top)} likeliest tokens; asked for {top_k}")
            probabilities([logp for _, logp in position.top], "likeliest tokens")
        except Unfit as error:
            raise Unfit(f"{where}: {error}") from None
        positions.append(position)
    return positions


def _from_chat(entry: Any) -> Position:
    own = mapping(entry, "position")
    top = [mapping(other, "likeliest token") for other in items(own.get("top_logprobs"), "top_logprobs")]
    return Position(*_chat_token(own), _ranked(map(_chat_token, top)))


def _from_completion(entry: tuple[Any, Any, Any]) -> Position:
    token, logp, top = entry
    listed = ((_token(other), nats(value, "logprob")) for other, value in mapping(top, "top_logprobs").items())
    return Position(_token(token), nats(logp, "logprob"), _ranked(listed))


def _chat_token(entry: Mapping[str, Any]) -> tuple[Token, float]:
    token, given = _token(entry.get("token"), entry.get("bytes")), entry.get("id")
    if type(given) is int:
        token = token._replace(id=whole(given, "id", LARGEST_ID))
    return token, nats(entry.get("logprob"), "logprob")


def _token(given: Any, spelt: Any = None) -> Token:
    name = text(given, "token")
    as_id = re.fullmatch(AS_ID, name.encode())
    if as_id:
        # The bytes beside it may be those of the name, or of half a character made whole.
        return Token(name.encode(), int(as_id[1]))
    return Token(token_bytes(name) if spelt is None else whole_bytes(spelt, "bytes"), None)


def _ranked(top: Iterable[tuple[Token, float]]) -> list[tuple[Token, float]]:
    return sorted(top, key=lambda pair: -pair[1])


def _check_length(positions: Sequence[Position], answer: str) -> None:
    """Whether they are those of the answer: all its tokens, and after them at most the one that ends the turn."""
    if any(re.fullmatch(AS_ID, position.token.text) for position in positions):
        return  # what ids spell is known to a tokenizer alone
    said = [
        b"".join(position.token.text for position in part).decode("utf-8", "replace").strip()
        for part in (positions, positions[:-1])
    ]
    if answer.strip() not in said:
        raise Unfit(
            f"log-probabilities of the wrong length: {len(positions)} tokens that spell {len(said[0])} characters, and "
            f"not the {len(answer.strip())} of the answer"
        )


def _log_tail(position: Position) -> float:
    return math.log(max(1 - math.fsum(math.exp(logp) for _, logp in position.top), SMALLEST_TAIL))


def _name(token: bytes) -> str:
    try:
        return token.decode()
    except UnicodeDecodeError:
        return "bytes:" + "".join(f"\\x{byte:02x}" for byte in token)


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
