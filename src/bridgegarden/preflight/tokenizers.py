"""Whether a token id means the same to teacher and student."""

import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from bridgegarden.data.fingerprint import tokenizer_fingerprint
from bridgegarden.errors import ModelError
from bridgegarden.preflight.models import ModelFacts

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

SHOWN = 3
"""How many differing ids a message names."""


@dataclass(frozen=True, kw_only=True)
class TokenizerMatch:
    """Two tokenizers whose ids mean the same."""

    relation: Literal["same", "padded", "unseen"]
    """``padded``: one model has embedding rows, or tokens at the end, that the other lacks. ``unseen``: the teacher is
    on a server; its answers show which tokens are its."""
    vocab_size: int
    """Ids that both models have and the student's tokenizer uses."""
    warnings: tuple[str, ...] = ()


def compare_tokenizers(teacher: ModelFacts | None, student: ModelFacts) -> TokenizerMatch:
    """Compare by content: names, files and classes do not count.

    Args:
        teacher: None where it is on a server; the student's tokenizer is then checked alone.
        student: the model that is trained.

    Raises:
        ModelError: an id means another token to the teacher than to the student, or a token has no embedding row.
    """
    if teacher is None:
        names_by_id = _tokens_by_id(student.tokenizer)
        _check_width(student, student, len(names_by_id), max(names_by_id))
        return TokenizerMatch(relation="unseen", vocab_size=max(names_by_id) + 1)
    fingerprints = [tokenizer_fingerprint(facts.tokenizer) for facts in (teacher, student)]
    warnings: list[str] = []
    names = [_tokens_by_id(facts.tokenizer) for facts in (teacher, student)]
    _check_width(student, student, len(names[1]), max(names[1]))
    _check_width(teacher, student, len(names[1]), max(names[1]))
    if fingerprints[0] != fingerprints[1]:
        warnings += _check_ids(teacher, student, *names)
        warnings += _cut_differently(teacher.tokenizer, student.tokenizer)
    same = names[0].keys() == names[1].keys() and teacher.width == student.width
    return TokenizerMatch(
        relation="same" if same else "padded",
        vocab_size=min(max(names[1]) + 1, teacher.width, student.width),
        warnings=tuple(warnings),
    )


def _check_width(facts: ModelFacts, student: ModelFacts, count: int, last: int) -> None:
    if last >= facts.width:
        raise facts.reference.error(
            f"its embedding has {facts.width} rows, but the tokenizer of the student ({student.reference.model!r}, "
            f"{count} tokens) goes up to id {last} ({student.tokenizer.convert_ids_to_tokens(last)!r}). Remove the "
            "added tokens from that tokenizer, or resize the model's embedding and save it."
        )


def _check_ids(
    teacher: ModelFacts, student: ModelFacts, teacher_names: dict[int, str], student_names: dict[int, str]
) -> list[str]:
    differing = [i for i in sorted(teacher_names.keys() & student_names.keys()) if teacher_names[i] != student_names[i]]
    if differing and not _only_spare_tokens(differing, teacher, student):
        raise ModelError(_different(differing, teacher, student, teacher_names, student_names))
    warnings = []
    if differing:
        shown = _pairs(differing, teacher_names, student_names)
        warnings.append(
            f"{len(differing)} special tokens have other names in the two tokenizers ({shown}). Harmless as long as "
            "the data holds none of them."
        )
    extra = sorted(student_names.keys() - teacher_names.keys())
    if extra:
        shown = ", ".join(f"{i} {student_names[i]!r}" for i in extra[:SHOWN])
        warnings.append(
            f"the student's tokenizer has {len(extra)} tokens that the teacher's lacks ({shown}). The teacher has "
            "never seen them: what it says after one means little. Keep them out of the data."
        )
    return warnings


def _only_spare_tokens(ids: list[int], teacher: ModelFacts, student: ModelFacts) -> bool:
    """Whether all of `ids` are special tokens that no chat template, beginning or end of text uses.

    Llama 3 reserves special tokens, and later releases give some of them names and uses.
    """
    for facts in (teacher, student):
        tokenizer = facts.tokenizer
        used = (tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id, tokenizer.unk_token_id)
        template = str(tokenizer.chat_template)
        for i in ids:
            token = tokenizer.added_tokens_decoder.get(i)
            if token is None or not token.special or i in used or token.content in template:
                return False
    return True


def _different(
    differing: list[int],
    teacher: ModelFacts,
    student: ModelFacts,
    teacher_names: dict[int, str],
    student_names: dict[int, str],
) -> str:
    shared = len(set(teacher_names.values()) & set(student_names.values()))
    return (
        f"teacher {teacher.reference.model!r} and student {student.reference.model!r} have different tokenizers: "
        f"{_pairs(differing, teacher_names, student_names)}; {len(differing)} ids differ "
        f"(vocabularies of {len(teacher_names)} and {len(student_names)} tokens, {shared} of them in common). A "
        "teacher's distribution over its tokens says nothing about other ones. Choose two models of one family "
        "(`bridgegarden recipes list` shows pairs), or let the teacher write answers and train on those as data."
    )


def _pairs(ids: list[int], teacher_names: dict[int, str], student_names: dict[int, str]) -> str:
    shown = [f"id {i} is {teacher_names[i]!r} to the teacher, {student_names[i]!r} to the student" for i in ids[:SHOWN]]
    return "; ".join(shown) + ("; ..." if len(ids) > SHOWN else "")


def _cut_differently(teacher: "PreTrainedTokenizerBase", student: "PreTrainedTokenizerBase") -> list[str]:
    parts = [name for name, (one, other) in _cutting(teacher, student).items() if one != other]
    if not parts:
        return []
    return [
        f"the tokenizers have the same tokens but may cut text differently ({', '.join(parts)}). The student's is "
        "used; the teacher then reads some words in pieces that it seldom saw."
    ]


def _cutting(*tokenizers: "PreTrainedTokenizerBase") -> dict[str, tuple[object, ...]]:
    states = [json.loads(t.backend_tokenizer.to_str()) for t in tokenizers]  # pyright: ignore
    merges = tuple(_canonical_merges(state["model"].get("merges")) for state in states)
    whole = {name: tuple(state.get(name) for state in states) for name in ("normalizer", "pre_tokenizer")}
    return {"merges": merges, "normaliser": whole["normalizer"], "pre-tokeniser": whole["pre_tokenizer"]}


def _canonical_merges(merges: list[str] | list[list[str]] | None) -> list[str]:
    """Older files write a merge as one text, newer ones as a pair."""
    return [merge if isinstance(merge, str) else " ".join(merge) for merge in merges or ()]


def _tokens_by_id(tokenizer: "PreTrainedTokenizerBase") -> dict[int, str]:
    return {index: token for token, index in tokenizer.get_vocab().items()}
