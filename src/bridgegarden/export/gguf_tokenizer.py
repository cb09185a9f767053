r"""A tokenizer as llama.cpp expects it: which of its kinds gives the same ids, and what that kind needs.

llama.cpp has its own code for each way of cutting a text into words, and a file names the one that is meant
(``tokenizer.ggml.pre``). Which one that is is read off what the tokenizer does, never off its name: a tokenizer that is
cut otherwise than all of llama.cpp's is refused, since it would be given other ids in silence.
"""

import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from bridgegarden.errors import ModelError, foreign, quoted

if TYPE_CHECKING:
    from gguf import GGUFWriter
    from transformers import PreTrainedTokenizerBase

Place = Callable[[str], ModelError]
"""Makes an error of a message, which begins with the model's name."""
SPACE = "\N{LOWER ONE EIGHTH BLOCK}"
"""What stands for a space in the words of SentencePiece."""
BYTE = re.compile(r"<0x[0-9A-F]{2}>")
CONTRACTIONS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"
WORDS = r"[^\r\n\p{L}\p{N}]?\p{L}+"
REST = r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
LLAMA3 = rf"{CONTRACTIONS}|{WORDS}|\p{{N}}{{1,3}}|{REST}"
QWEN2 = rf"{CONTRACTIONS}|{WORDS}|\p{{N}}|{REST}"
DIGITS = r"\p{N}"
TEKKEN = (
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+"
    r"|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*"
    r"|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
CJK = "[一-龥ࠀ-一가-퟿]+"
BPE_WORDS: Mapping[tuple[tuple[str, ...], bool], str] = MappingProxyType(
    {
        ((GPT2,), False): "gpt-2",
        ((DIGITS, GPT2), False): "smollm",
        ((LLAMA3,), True): "llama-bpe",
        ((LLAMA3,), False): "dbrx",
        ((QWEN2,), False): "qwen2",
        ((TEKKEN,), True): "tekken",
        (("[\r\n]", r"\s?\p{L}+", r"\s?\p{P}+", CJK, DIGITS), False): "deepseek-coder",
    }
)
"""llama.cpp's ways to cut text into words before merges, by the patterns that are cut at, one after the other, and by
whether a word of the vocabulary is taken whole whatever the merges."""
APART = (
    "llama.cpp does not put letters and the marks that follow them together: a text with accents as characters of "
    "their own (not in NFC) is read to other ids"
)
NORMAL, WHOLE, UNUSED = 1, (3, 4), 5
"""Values of ``gguf.TokenType``: what a text is cut into, what is found in it before, and what never is."""
NEVER = "<> <>"
"""A merge that no text has, since nothing merges into its left side: llama.cpp wants at least one."""
ENDS = ("eos", "eot", "eom")
"""What llama.cpp calls tokens at which it stops."""


@dataclass(frozen=True, kw_only=True)
class Vocabulary:
    """A tokenizer as llama.cpp has it."""

    model: str
    """The kind: ``gpt2`` (merges of bytes), ``llama`` (SentencePiece), ``t5`` (whole words)."""
    tokens: Sequence[str]
    """One for each row of the embedding."""
    types: Sequence[int]
    """``gguf.TokenType`` of each."""
    pre: str = "default"
    """How text is cut into words."""
    scores: Sequence[float] | None = None
    merges: Sequence[str] | None = None
    flags: Mapping[str, bool] = field(default_factory=dict)
    """Further settings of the kind, by their keys."""
    special: Mapping[str, int] = field(default_factory=dict)
    """Ids of ``bos``, ``eos``, ..."""
    begins: bool = False
    """Whether a text is given the token of its beginning."""
    chat_template: str | None = None
    notes: tuple[str, ...] = ()
    """What a user should know."""

    def write(self, writer: "GGUFWriter") -> None:
        """All of it."""
        writer.add_tokenizer_model(self.model)
        writer.add_tokenizer_pre(self.pre)
        writer.add_token_list(self.tokens)
        writer.add_token_types(self.types)
        if self.scores is not None:
            writer.add_token_scores(self.scores)
        if self.merges:
            writer.add_token_merges(self.merges)
        for name, token in self.special.items():
            getattr(writer, f"add_{name}_token_id")(token)
        writer.add_add_bos_token(self.begins)
        writer.add_add_eos_token(False)
        for key, value in self.flags.items():
            writer.add_bool(f"tokenizer.ggml.{key}", value)
        if self.chat_template is not None:
            writer.add_chat_template(self.chat_template)


def vocabulary_of(tokenizer: "PreTrainedTokenizerBase", width: int, ends: Sequence[int], error: Place) -> Vocabulary:
    """`tokenizer` as llama.cpp has it.

    Args:
        tokenizer: of transformers.
        width: rows of the embedding; those that no token has are given names of their own.
        ends: ids at which generation stops.
        error: makes an error of a message.

    Raises:
        ModelError: none of llama.cpp's kinds gives the same ids.
    """

    def refuse(why: str) -> Exception:
        return error(
            f"its tokenizer cannot be written as GGUF: {why}, and llama.cpp would give texts other ids. Use --to onnx "
            "or --to hf."
        )

    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        raise refuse(f"{type(tokenizer).__name__} is written in Python")
    tree = json.loads(backend.to_str())
    if len(tokenizer) > width:
        raise error(f"its tokenizer has {len(tokenizer)} tokens, and its embedding only {width} rows.")
    for token in tree["added_tokens"]:
        if odd := [name for name in ("lstrip", "rstrip", "single_word") if token[name]]:
            raise refuse(f"its token {quoted(token['content'])} is matched with {', '.join(odd)}")
    kind = _kind(tree)
    if kind not in KINDS:
        raise refuse(f"it is of the kind {kind!r} (covered: {', '.join(KINDS)})")
    own = KINDS[kind](tree, width, refuse)
    begins = _begins(tokenizer, refuse)
    special, notes = _special(tokenizer, ends)
    template = tokenizer.chat_template
    if isinstance(template, Mapping):
        template = template.get("default")
    notes += own.pop("notes", ())
    plain = None if template is None else _plain(template)
    return Vocabulary(**own, special=special, begins=begins, chat_template=plain, notes=notes)


@dataclass(frozen=True, kw_only=True)
class Written:
    """What a GGUF file says of its tokenizer."""

    fields: Mapping[str, Any]
    """Values by their keys, without ``tokenizer.ggml.``."""
    chat_template: str | None

    @classmethod
    def of(cls, gguf: Path) -> "Written":
        """Of the file `gguf`.

        Raises:
            ModelError: it cannot be read.
        """
        from gguf import GGUFReader

        prefix = "tokenizer.ggml."
        with foreign(lambda words: ModelError(f"{gguf}: cannot be read ({words}). Is it complete?")):
            read = GGUFReader(gguf).fields
            own = {key.removeprefix(prefix): field for key, field in read.items() if key.startswith(prefix)}
            # Scores are many and not looked at: the tokens tell one SentencePiece from another.
            fields = {name: field.contents() for name, field in own.items() if name != "scores"}
            template = read.get("tokenizer.chat_template")
            return cls(fields=fields, chat_template=None if template is None else template.contents())

    @property
    def ends(self) -> list[int]:
        """Ids at which llama.cpp stops."""
        found = (self.fields.get(f"{name}_token_id") for name in ENDS)
        return list(dict.fromkeys(token for token in found if token is not None))

    def fault_of(self, tokenizer: "PreTrainedTokenizerBase") -> str | None:
        """Why `tokenizer` may give other ids than llama.cpp with this file; None where it gives the same."""
        tokens = self.fields.get("tokens", [])
        types = self.fields.get("token_type", [NORMAL] * len(tokens))
        try:
            own = vocabulary_of(tokenizer, len(tokens), [], ModelError)
        except ModelError as error:
            return str(error)
        how, there = (own.model, own.pre), (self.fields.get("model"), self.fields.get("pre", "default"))
        if how != there:
            return f"it cuts texts as llama.cpp's {' '.join(how)}, and the file says {there[0]} {there[1]}"
        for row, (token, kind, there) in enumerate(zip(own.tokens, own.types, types, strict=True)):
            # Whatever it is called: no merge is into it, or the merges differ.
            if there == UNUSED and (kind == UNUSED or (kind == NORMAL and own.merges is not None)):
                continue
            if tokens[row] != token or (kind in WHOLE) != (there in WHOLE):
                return f"token {row} is {quoted(token)} there, and {quoted(tokens[row])} in the file"
        merges = self.fields.get("merges")
        if own.merges is not None and merges is not None and list(own.merges) != list(merges):
            return "its merges are others than the file's"
        begins = self.fields.get("add_bos_token", own.begins)
        return None if begins == own.begins else "it begins texts otherwise than the file does"


def _kind(tree: Mapping[str, Any]) -> str:
    model = tree["model"]["type"]
    if model == "BPE":
        return "BPE of bytes" if "ByteLevel" in json.dumps(tree["decoder"]) else "BPE of characters"
    return model


def _plain(template: str) -> str:
    """Without the marks of what is learnt, which only transformers knows and which write nothing."""
    return re.sub(r"\{%-?\s*(?:end)?generation\s*-?%\}", "", template)


def _tokens(tree: Mapping[str, Any], width: int, written: Mapping[int, str]) -> tuple[list[str], list[int]]:
    """Every row's token and its type: those of `written`, added ones, and names for rows that have none."""
    from gguf import TokenType

    tokens, types = dict(written), dict.fromkeys(written, TokenType.NORMAL)
    for token in tree["added_tokens"]:
        tokens[token["id"]] = token["content"]
        types[token["id"]] = TokenType.CONTROL if token["special"] else TokenType.USER_DEFINED
    taken = set(tokens.values())
    for row in range(width):
        if row not in tokens:
            name = f"<unused {row}>"
            while name in taken:
                name += ">"
            tokens[row], types[row] = name, TokenType.UNUSED
    return [tokens[row] for row in range(width)], [int(types[row]) for row in range(width)]


def _bytes(tree: Mapping[str, Any], width: int, refuse: Any) -> dict[str, Any]:
    """Merges of bytes, as GPT-2 began it."""
    model = tree["model"]
    _no_extras(model, refuse)
    normaliser = tree.get("normalizer")
    if normaliser is not None and normaliser != {"type": "NFC"}:
        raise refuse(f"it changes a text before it is cut (normalizer {normaliser['type']})")
    merges = [pair if isinstance(pair, str) else " ".join(pair) for pair in model["merges"]]
    rules = tuple(_patterns(tree["pre_tokenizer"], refuse))
    # Without merges every byte is a token of its own, however words are cut.
    pre = BPE_WORDS.get((rules, bool(model.get("ignore_merges")))) if merges else "gpt-2"
    if pre is None:
        raise refuse(f"it cuts words by {quoted(list(rules))}, which is none of llama.cpp's ways")
    tokens, types = _tokens(tree, width, {row: token for token, row in model["vocab"].items()})
    notes = (APART,) if normaliser is not None or pre == "tekken" else ()
    return {"model": "gpt2", "pre": pre, "tokens": tokens, "types": types, "merges": merges or [NEVER], "notes": notes}


def _characters(tree: Mapping[str, Any], width: int, refuse: Any) -> dict[str, Any]:
    """Merges of characters, with bytes for those that are no token: SentencePiece's BPE.

    llama.cpp has no merges here but scores: of two neighbours it merges those that make the token of the highest score,
    whatever merges there are. So a merge there has to be for every way to make a token of two, and in one order of
    tokens, which is what the scores are.
    """
    model = tree["model"]
    _no_extras(model, refuse)
    if model.get("ignore_merges") or not model["byte_fallback"]:
        raise refuse("its merges of characters are not with a byte for what is no token, as SentencePiece's are")
    prefix = _puts_space_before(tree, refuse)
    for token in tree["added_tokens"]:
        if tree["normalizer"] is not None and token["normalized"] and (prefix or " " in token["content"]):
            raise refuse(f"its token {quoted(token['content'])} is looked for in a text that was changed before")
    tokens, types = _tokens(tree, width, {row: token for token, row in model["vocab"].items()})
    if missing := [name for name in (f"<0x{byte:02X}>" for byte in range(256)) if name not in model["vocab"]]:
        raise refuse(f"it has no token for the byte {missing[0]}")
    order = _order_of_merges(model["merges"], tokens, refuse)
    # What nothing merges into is written by itself or not at all: its score is never looked at.
    scores = [-float(order.get(token, len(model["merges"]))) for token in tokens]
    for row, token in enumerate(tokens):
        if BYTE.fullmatch(token):
            types[row] = TYPE_OF_BYTES
        elif token == model["unk_token"]:
            types[row] = TYPE_OF_UNKNOWN
    flags = {"add_space_prefix": prefix}
    return {"model": "llama", "tokens": tokens, "types": types, "scores": scores, "flags": flags}


TYPE_OF_UNKNOWN, TYPE_OF_BYTES = 2, 6
"""Values of ``gguf.TokenType``."""
SPACES = {"type": "Replace", "pattern": {"String": " "}, "content": SPACE}
BEFORE = {"type": "Prepend", "prepend": SPACE}
AT_SPACES = {"type": "Split", "pattern": {"String": " "}, "behavior": "MergedWithPrevious", "invert": False}
"""Of which a text has none any more."""


def _puts_space_before(tree: Mapping[str, Any], refuse: Any) -> bool:
    """Whether every stretch of text between special tokens is given a space before it, as llama.cpp does it.

    Spaces are written as `SPACE` in any case.
    """
    words = tree["pre_tokenizer"]
    match tree["normalizer"]:
        case {"type": "Sequence", "normalizers": [*steps]}:
            pass
        case None:
            steps = []
        case step:
            steps = [step]
    if words is not None and words["type"] == "Metaspace" and not steps:
        if (words["replacement"], words["prepend_scheme"], words["split"]) == (SPACE, "never", False):
            return False
        raise refuse(
            f"it puts spaces before words by Metaspace (prepend_scheme {quoted(words['prepend_scheme'])}, split "
            f"{words['split']}), and not before every stretch of text"
        )
    if words not in (None, AT_SPACES):
        raise refuse(f"it cuts words by {quoted(dict(words))}, which is none of llama.cpp's ways")
    if steps not in ([SPACES], [BEFORE, SPACES]):
        raise refuse(f"it changes a text before it is cut (normalizer {quoted(tree['normalizer'])})")
    return len(steps) == 2


def _order_of_merges(merges: Sequence[Any], tokens: Sequence[str], refuse: Any) -> dict[str, int]:
    """Tokens that are merged into, by when: what is merged first has 0.

    Runs of one character (spaces) may have one rank, the longest left part first: from the left on both then make the
    longest token that there is.
    """
    pairs = [(left, right) for left, right in (pair.split(" ") if isinstance(pair, str) else pair for pair in merges)]
    spans: dict[str, list[int]] = {}
    for at, (left, right) in enumerate(pairs):
        spans.setdefault(left + right, [at, at])[1] = at
    order: dict[str, int] = {}
    first, end = 0, -1
    for made, (begins, ends) in sorted(spans.items(), key=lambda span: span[1]):
        if begins > end:
            first, end = begins, ends
        else:
            end = max(end, ends)
            tied = pairs[first : end + 1]
            in_order = sorted(tied, key=lambda pair: (len(pair[0]), len(pair[1])), reverse=True)
            if len({letter for pair in tied for letter in "".join(pair)}) > 1 or tied != in_order:
                raise refuse(f"its merges into {quoted(made)} come before and after others")
        order[made] = first
    known, there = set(tokens), set(pairs)
    for token in tokens:
        for at in range(1, len(token)):
            pair = (token[:at], token[at:])
            if pair not in there and pair[0] in known and pair[1] in known:
                raise refuse(f"it does not merge {quoted(pair[0])} and {quoted(pair[1])}, although that is a token")
    return order


def _no_extras(model: Mapping[str, Any], refuse: Any) -> None:
    for name in ("dropout", "continuing_subword_prefix", "end_of_word_suffix"):
        if model.get(name):
            raise refuse(f"its merges have {name} {model[name]!r}")


def _patterns(tree: Mapping[str, Any] | None, refuse: Any) -> Iterator[str]:
    """The patterns at which a text is cut, one after the other."""
    match tree:
        case None:
            return
        case {"type": "Sequence", "pretokenizers": parts}:
            for part in parts:
                yield from _patterns(part, refuse)
        case {"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": False}:
            yield pattern
        case {"type": "Digits", "individual_digits": True}:
            yield DIGITS
        case {"type": "ByteLevel", "add_prefix_space": False}:
            if tree["use_regex"]:
                yield GPT2
        case _:
            raise refuse(f"it cuts words by {quoted(dict(tree))}, which is none of llama.cpp's ways")


def _whole_words(tree: Mapping[str, Any], width: int, refuse: Any) -> dict[str, Any]:
    """Words behind spaces and marks behind words, as llama.cpp's T5 finds them where no word goes on in another."""
    if tree["pre_tokenizer"] != {"type": "Whitespace"} or tree["normalizer"] is not None:
        raise refuse("it has whole words that are cut otherwise than at spaces and punctuation")
    model = tree["model"]
    added = {token["content"] for token in tree["added_tokens"]}
    written = {}
    for word, row in model["vocab"].items():
        if word in added:
            continue
        mark = re.fullmatch(r"[!-/:-@\[-^`{-~]", word)
        if not (mark or re.fullmatch(r"\w+", word)):
            raise refuse(f"its word {quoted(word)} is more than letters and digits, or one mark")
        written[row] = word if mark else SPACE + word
    tokens, types = _tokens(tree, width, written)
    flags = {"add_space_prefix": True, "remove_extra_whitespaces": True}
    notes = (
        "llama.cpp knows no tokenizer of whole words: it reads texts as this one writes them (marks close to the word "
        "before) to the same ids, but not marks behind a space or words that are no token",
    )
    scores = [-1.0] * width  # all alike: there is one way to cut what is made of these words
    return {"model": "t5", "tokens": tokens, "types": types, "scores": scores, "flags": flags, "notes": notes}


KINDS = MappingProxyType({"BPE of bytes": _bytes, "BPE of characters": _characters, "WordLevel": _whole_words})


def _begins(tokenizer: "PreTrainedTokenizerBase", refuse: Any) -> bool:
    """Whether a text is given the token of its beginning; the only one that llama.cpp is told to add."""
    text = "a"
    with_special = tokenizer(text).input_ids
    alone = tokenizer(text, add_special_tokens=False).input_ids
    if with_special == alone:
        return False
    if with_special == [tokenizer.bos_token_id, *alone]:
        return True
    raise refuse(f"it adds more to a text than the token of its beginning ({with_special} for {alone})")


def _special(tokenizer: Any, ends: Sequence[int]) -> tuple[dict[str, int], tuple[str, ...]]:
    """Ids by llama.cpp's names."""
    own = tokenizer.eos_token_id
    # The tokenizer's own first, which is the one that other readers know.
    ordered = [token for token in (own, *ends) if token is not None]
    stops = list(dict.fromkeys(token for token in ordered if token in ends or not ends))
    special: dict[str, int] = dict(zip(ENDS, stops, strict=False))
    notes = []
    if over := stops[len(ENDS) :]:
        notes.append(
            f"llama.cpp stops at {len(ENDS)} tokens, and the model at {len(stops)}: it goes on after "
            f"{', '.join(tokenizer.convert_ids_to_tokens(over))}"
        )
    first: int = tokenizer.bos_token_id if tokenizer.bos_token_id is not None else next(iter(stops), 0)
    # Without one of its own llama.cpp takes that of another vocabulary, which this one need not have.
    special["bos"] = first
    for name in ("unk", "pad", "sep", "mask"):
        token = getattr(tokenizer, f"{name}_token_id", None)
        if token is not None or name in ("sep", "mask"):
            special[name] = first if token is None else token
    return special, tuple(notes)
