"""Whether a token id means the same to teacher and student, and where each of them ends a turn."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from bridgegarden.data import end_of_turn_ids
from bridgegarden.data.encode import tokenizer_fingerprint
from bridgegarden.data.render import TemplateRefusal, render
from bridgegarden.data.template import chat_format
from bridgegarden.errors import ConfigError, ModelError, TokenizerError
from bridgegarden.preflight.models import ModelFacts, TokenizerFacts
from bridgegarden.preflight.trial import fault_of_template

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

SHOWN = 3
"""How many differing ids a message names."""
LONGEST_TEMPLATE = 1_000_000
"""Characters; published ones have 20,000 at most."""
PROBES = (
    [{"role": "user", "content": "Hello."}, {"role": "assistant", "content": "Hi."}],
    [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hello."}],
)
"""Conversations that show how templates differ."""


@dataclass(frozen=True, kw_only=True)
class TokenizerMatch:
    """Two tokenizers whose ids mean the same."""

    relation: Literal["same", "padded", "translated", "unseen"]
    """``padded``: one model has embedding rows, or tokens at the end, that the other lacks. ``translated``: ids mean
    something else to the teacher, and what its tokens write is known. ``unseen``: the teacher is on a server; its
    answers show which tokens are its."""
    vocab_size: int
    """Ids that both models have and the student's tokenizer uses; all of the student's where they are translated."""
    warnings: tuple[str, ...] = ()


def compare_tokenizers(
    teacher: TokenizerFacts | None, student: TokenizerFacts, *, translates: bool = False
) -> TokenizerMatch:
    """Compare by content: names, files and classes do not count.

    Args:
        teacher: None where it is on a server; the student's tokenizer is then checked alone.
        student: the model that is trained.
        translates: whether the teacher may have another tokenizer; see :mod:`bridgegarden.teacher.translated`.

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
    if translates and fingerprints[0] != fingerprints[1] and _differing(teacher, student, *names):
        _check_width(teacher, teacher, len(names[0]), max(names[0]))
        return TokenizerMatch(relation="translated", vocab_size=max(names[1]) + 1)
    if fingerprints[0] != fingerprints[1]:
        # First, since of another tokenizer nothing is said by how many tokens it has.
        warnings += _check_ids(teacher, student, *names)
        warnings += _cut_differently(teacher.tokenizer, student.tokenizer)
    _check_width(teacher, student, len(names[1]), max(names[1]))
    widths = [facts.width for facts in (teacher, student) if facts.width is not None]
    same = names[0].keys() == names[1].keys() and len(set(widths)) <= 1
    return TokenizerMatch(
        relation="same" if same else "padded",
        vocab_size=min(max(names[1]) + 1, *widths),
        warnings=tuple(warnings),
    )


def _check_width(facts: TokenizerFacts, reads: TokenizerFacts, count: int, last: int) -> None:
    """Whether the model `facts` has a row for every token of the tokenizer of `reads`, if that is known."""
    if facts.width is not None and last >= facts.width:
        raise facts.reference.error(
            f"its embedding has {facts.width} rows, but the tokenizer of the {reads.reference.role} "
            f"({reads.reference.model!r}, {count} tokens) goes up to id {last} "
            f"({reads.tokenizer.convert_ids_to_tokens(last)!r}). Remove the added tokens from that tokenizer, or "
            "resize the model's embedding and save it."
        )


def _differing(
    teacher: TokenizerFacts, student: TokenizerFacts, teacher_names: dict[int, str], student_names: dict[int, str]
) -> list[int]:
    """Ids that mean another token to the teacher than to the student, in a way that matters."""
    differing = [i for i in sorted(teacher_names.keys() & student_names.keys()) if teacher_names[i] != student_names[i]]
    return [] if _only_spare_tokens(differing, teacher, student) else differing


def _check_ids(
    teacher: TokenizerFacts, student: TokenizerFacts, teacher_names: dict[int, str], student_names: dict[int, str]
) -> list[str]:
    differing = [i for i in sorted(teacher_names.keys() & student_names.keys()) if teacher_names[i] != student_names[i]]
    if differing and not _only_spare_tokens(differing, teacher, student):
        raise TokenizerError(_different(differing, teacher, student, teacher_names, student_names))
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


def _only_spare_tokens(ids: list[int], teacher: TokenizerFacts, student: TokenizerFacts) -> bool:
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
    teacher: TokenizerFacts,
    student: TokenizerFacts,
    teacher_names: dict[int, str],
    student_names: dict[int, str],
) -> str:
    shared = len(set(teacher_names.values()) & set(student_names.values()))
    of_two = student.reference.role != "teacher"  # else both are a teacher's
    first, second = teacher.reference.model, student.reference.model
    readers = ("the teacher", "the student") if of_two else (repr(first), repr(second))
    what = (
        f"{f'teacher {first!r} and student {second!r}' if of_two else ' and '.join(readers)} have different "
        f"tokenizers: {_pairs(differing, teacher_names, student_names, readers)}; {len(differing)} ids differ "
        f"(vocabularies of {len(teacher_names)} and {len(student_names)} tokens, {shared} of them in common)."
    )
    if not of_two:
        return what
    return (
        f"{what} `cache build`, `train`, `compare` and `diagnose` translate what such a teacher says "
        "(docs/tokenizers.md); this takes two models of one family (`bridgegarden recipes list` shows pairs), or the "
        "teacher's answers as data."
    )


def _pairs(
    ids: list[int],
    teacher_names: dict[int, str],
    student_names: dict[int, str],
    readers: tuple[str, str] = ("the teacher", "the student"),
) -> str:
    shown = [
        f"id {i} is {teacher_names[i]!r} to {readers[0]}, {student_names[i]!r} to {readers[1]}" for i in ids[:SHOWN]
    ]
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
    states = [json.loads(t.backend_tokenizer.to_str()) for t in tokenizers]  # pyright: ignore  read off the tokenizer by name
    merges = tuple(_canonical_merges(state["model"].get("merges")) for state in states)
    whole = {name: tuple(state.get(name) for state in states) for name in ("normalizer", "pre_tokenizer")}
    return {"merges": merges, "normaliser": whole["normalizer"], "pre-tokeniser": whole["pre_tokenizer"]}


def _canonical_merges(merges: list[str] | list[list[str]] | None) -> list[str]:
    """Older files write a merge as one text, newer ones as a pair."""
    return [merge if isinstance(merge, str) else " ".join(merge) for merge in merges or ()]


def _tokens_by_id(tokenizer: "PreTrainedTokenizerBase") -> dict[int, str]:
    return {index: token for token, index in tokenizer.get_vocab().items()}


@dataclass(frozen=True, kw_only=True)
class Endings:
    """How conversations are written and where a turn ends."""

    tokenizer: "PreTrainedTokenizerBase"
    """The student's, with the chat template that is used."""
    template_from: Literal["student", "teacher", "recipe"] | None
    """Whose chat template it is; None where there is none, so that only plain text can be trained on."""
    taught: int
    """The id with which the student is taught to end its turn."""
    stops: tuple[int, ...]
    """All ids at which the trained model's generation stops, `taught` first."""
    warnings: tuple[str, ...] = ()


def check_endings(
    teacher: TokenizerFacts | None,
    student: ModelFacts,
    chat_template: str | None = None,
    *,
    translated: bool = False,
    asked: bool = True,
) -> Endings:
    """Decide on the chat template, the student's if it has one and else the teacher's, and look for contradictions.

    Args:
        teacher: None is one on a server whose tokenizer is not named: neither its template nor its end is known; its
            answers show how it ends its turns.
        student: its tokenizer gets the template, and is saved with it.
        chat_template: a file with the one to use, in place of both.
        translated: whether the teacher has another tokenizer, and so reads rows in its own chat template.
        asked: whether the teacher reads rows, so that contradictions matter.

    Raises:
        ConfigError: the file cannot be read, or holds no chat template.
        ModelError: no token ends a turn.
    """
    tokenizer = student.tokenizer
    if chat_template is not None:
        _use_template(tokenizer, chat_template)
    source = None if tokenizer.chat_template is None else "student" if chat_template is None else "recipe"
    warnings: list[str] = []
    if translated:
        return _own_endings(student, tokenizer, source)
    if source is None and teacher is not None and teacher.tokenizer.chat_template is not None:
        tokenizer.chat_template, source = teacher.tokenizer.chat_template, "teacher"
        warnings.append(
            "the student's tokenizer has no chat template; the teacher's is used for training, and saved with the "
            "student."
        )
    if teacher is not None:
        warnings += _template_warnings(teacher, tokenizer, source) if asked else []
    elif source is None:
        warnings.append(
            "the student's tokenizer has no chat template, and that of a teacher on a server is not seen: rows are "
            "plain text. If the teacher answers in turns, save the student's tokenizer with its chat_template."
        )
    stops = end_of_turn_ids(tokenizer, student.generation_config)
    if teacher is not None and asked:
        warnings += _teacher_end_warnings(teacher, tokenizer, stops[0])
    warnings += _end_warnings(student, tokenizer, stops[0])
    return Endings(tokenizer=tokenizer, template_from=source, taught=stops[0], stops=stops, warnings=tuple(warnings))


def _own_endings(
    student: ModelFacts, tokenizer: "PreTrainedTokenizerBase", source: Literal["student", "recipe"] | None
) -> Endings:
    """Those of a student whose teacher has another tokenizer, and with it its own."""
    stops = end_of_turn_ids(tokenizer, student.generation_config)
    warnings = _end_warnings(student, tokenizer, stops[0])
    if source is None:
        warnings.append(
            "the student's tokenizer has no chat template, and the teacher's is of other tokens, so the student reads "
            "rows as plain text, and conversations are refused. Give it one (data.chat_template: FILE), or take an "
            "instruction-tuned student."
        )
    return Endings(tokenizer=tokenizer, template_from=source, taught=stops[0], stops=stops, warnings=tuple(warnings))


def _use_template(tokenizer: "PreTrainedTokenizerBase", path: str) -> None:
    """Give `tokenizer` the chat template in the file `path`, if it is one."""
    where = f"data.chat_template: {path}"
    file = Path(path).expanduser()
    if not file.is_file():
        raise ConfigError(f"{where}: no such file; expected a chat template as text (Jinja).")
    try:
        with file.open(encoding="utf-8") as opened:
            template = opened.read(LONGEST_TEMPLATE + 1)
    except OSError as error:
        raise ConfigError(f"{where}: cannot be read ({error.strerror}).") from error
    except UnicodeDecodeError as error:
        raise ConfigError(f"{where}: is not UTF-8 text; expected a chat template (Jinja).") from error
    if not template.strip() or len(template) > LONGEST_TEMPLATE:
        got = "is empty" if not template.strip() else f"has more than {LONGEST_TEMPLATE:,} characters"
        raise ConfigError(f"{where}: {got}; expected a chat template (Jinja).")
    tokenizer.chat_template = template
    fault = fault_of_template(tokenizer)
    if fault is not None:
        raise ConfigError(f"{where}: {fault}")
    try:
        chat_format(tokenizer)
    except ModelError as error:
        raise ConfigError(f"{where}: with it, {error}") from error


def _template_warnings(teacher: TokenizerFacts, tokenizer: "PreTrainedTokenizerBase", source: str | None) -> list[str]:
    if source is None:
        return []
    whose = "the recipe's" if source == "recipe" else "the student's"
    if teacher.tokenizer.chat_template is None:
        return [
            "the teacher has no chat template, so it has probably not been trained on conversations. It reads them in "
            f"{whose} template; take an instruction-tuned teacher, or data in plain prompt and completion."
        ]
    for probe in PROBES:
        ours, theirs = _rendered(probe, tokenizer), _rendered(probe, teacher.tokenizer)
        if ours != theirs:
            return [
                f"the chat templates differ: {whose} writes {_around(ours, theirs)}, the teacher's "
                f"{_around(theirs, ours)}. Both models read what {whose} writes, which the teacher may not know. "
                "If its answers suffer, save the student's tokenizer with the teacher's chat_template."
            ]
    return []


def _teacher_end_warnings(teacher: TokenizerFacts, tokenizer: "PreTrainedTokenizerBase", taught: int) -> list[str]:
    teacher_stops = end_of_turn_ids(teacher.tokenizer, teacher.generation_config)
    if taught in teacher_stops:
        return []
    return [
        f"the student is taught to end its turn with {_token(tokenizer, taught)}, but the teacher ends its own with "
        f"{_tokens(tokenizer, teacher_stops)}. The teacher's distribution gives that end no weight, so the student may "
        "generate without end. Take teacher and student with one chat template, or set objective.hard_target: data."
    ]


def _end_warnings(student: ModelFacts, tokenizer: "PreTrainedTokenizerBase", taught: int) -> list[str]:
    configured = None if student.generation_config is None else student.generation_config.eos_token_id
    known = (configured,) if isinstance(configured, int) else tuple(configured or ())
    if not known or taught in known:
        return []
    return [
        f"the student is taught to end its turn with {_token(tokenizer, taught)}, but its generation config stops "
        f"only at {_tokens(tokenizer, known)}: it would talk on past its turn. The model saved here stops at all "
        "of them; keep its generation_config.json where you serve it."
    ]


def _rendered(probe: list[dict[str, str]], tokenizer: "PreTrainedTokenizerBase") -> str:
    try:
        return render(probe, tokenizer).text
    except TemplateRefusal as error:
        return f"an error ({error})"


def _around(text: str, other: str) -> str:
    """The part of `text` that starts to differ from `other`."""
    at = next((i for i, (a, b) in enumerate(zip(text, other, strict=False)) if a != b), min(len(text), len(other)))
    return repr(text[max(at - 12, 0) : at + 28])


def _tokens(tokenizer: "PreTrainedTokenizerBase", ids: tuple[int, ...]) -> str:
    return ", ".join(_token(tokenizer, index) for index in ids)


def _token(tokenizer: "PreTrainedTokenizerBase", index: int) -> str:
    return f"{tokenizer.convert_ids_to_tokens(index)!r} (id {index})"
