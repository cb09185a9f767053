"""Chat template and end-of-turn token: which are used, and whether teacher and student mean the same by them.

A student whose teacher ends its turns with another token never learns to stop. It is the commonest way in which a
distilled model is spoilt while its loss looks healthy.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from bridgegarden.data import end_of_turn_ids
from bridgegarden.data.render import render, template_errors
from bridgegarden.preflight.models import ModelFacts

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

PROBES = (
    [{"role": "user", "content": "Hello."}, {"role": "assistant", "content": "Hi."}],
    [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hello."}],
)
"""Conversations that show how templates differ."""


@dataclass(frozen=True, kw_only=True)
class Endings:
    """How conversations are written and where a turn ends."""

    tokenizer: "PreTrainedTokenizerBase"
    """The student's, with the chat template that is used."""
    template_from: Literal["student", "teacher"] | None
    """Whose chat template it is; None where neither has one, so that only plain text can be trained on."""
    taught: int
    """The id with which the student is taught to end its turn."""
    stops: tuple[int, ...]
    """All ids at which the trained model's generation stops, `taught` first."""
    warnings: tuple[str, ...] = ()


def check_endings(teacher: ModelFacts | None, student: ModelFacts) -> Endings:
    """Decide on the chat template, the student's if it has one and else the teacher's, and look for contradictions.

    Of a teacher on a server (None) neither is known; how it ends its turns shows in its answers.

    Raises:
        ModelError: no token ends a turn.
    """
    tokenizer = student.tokenizer
    source: Literal["student", "teacher"] | None = "student" if tokenizer.chat_template is not None else None
    warnings: list[str] = []
    if source is None and teacher is not None and teacher.tokenizer.chat_template is not None:
        tokenizer.chat_template, source = teacher.tokenizer.chat_template, "teacher"
        warnings.append(
            "the student's tokenizer has no chat template; the teacher's is used for training, and saved with the "
            "student."
        )
    if teacher is not None:
        warnings += _template_warnings(teacher, tokenizer, source)
    elif source is None:
        warnings.append(
            "the student's tokenizer has no chat template, and that of a teacher on a server is not seen: rows are "
            "plain text. If the teacher answers in turns, save the student's tokenizer with its chat_template."
        )
    stops = end_of_turn_ids(tokenizer, student.generation_config)
    if teacher is not None:
        warnings += _teacher_end_warnings(teacher, tokenizer, stops[0])
    warnings += _end_warnings(student, tokenizer, stops[0])
    return Endings(tokenizer=tokenizer, template_from=source, taught=stops[0], stops=stops, warnings=tuple(warnings))


def _template_warnings(teacher: ModelFacts, tokenizer: "PreTrainedTokenizerBase", source: str | None) -> list[str]:
    if source is None:
        return []
    if teacher.tokenizer.chat_template is None:
        return [
            "the teacher has no chat template, so it has probably not been trained on conversations. It reads them in "
            "the student's template; take an instruction-tuned teacher, or data in plain prompt and completion."
        ]
    for probe in PROBES:
        ours, theirs = _rendered(probe, tokenizer), _rendered(probe, teacher.tokenizer)
        if ours != theirs:
            return [
                f"the chat templates differ: the student's writes {_around(ours, theirs)}, the teacher's "
                f"{_around(theirs, ours)}. Both models read what the student's writes, which the teacher may not know. "
                "If its answers suffer, save the student's tokenizer with the teacher's chat_template."
            ]
    return []


def _teacher_end_warnings(teacher: ModelFacts, tokenizer: "PreTrainedTokenizerBase", taught: int) -> list[str]:
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
    except template_errors() as error:
        return f"an error ({error})"


def _around(text: str, other: str) -> str:
    """The part of `text` that starts to differ from `other`."""
    at = next((i for i, (a, b) in enumerate(zip(text, other, strict=False)) if a != b), min(len(text), len(other)))
    return repr(text[max(at - 12, 0) : at + 28])


def _tokens(tokenizer: "PreTrainedTokenizerBase", ids: tuple[int, ...]) -> str:
    return ", ".join(_token(tokenizer, index) for index in ids)


def _token(tokenizer: "PreTrainedTokenizerBase", index: int) -> str:
    return f"{tokenizer.convert_ids_to_tokens(index)!r} (id {index})"
