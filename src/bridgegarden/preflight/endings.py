"""Chat template and end-of-turn token: which are used, and whether teacher and student mean the same by them.

A student whose teacher ends its turns with another token never learns to stop. It is the commonest way in which a
distilled model is spoilt while its loss looks healthy.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from bridgegarden.data import end_of_turn_ids
from bridgegarden.data.render import TemplateRefusal, render
from bridgegarden.data.template import chat_format
from bridgegarden.errors import ConfigError, ModelError
from bridgegarden.preflight.bounded import fault_of_template
from bridgegarden.preflight.models import ModelFacts

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

LONGEST_TEMPLATE = 1_000_000
"""Characters; published ones have 20,000 at most."""
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
    template_from: Literal["student", "teacher", "recipe"] | None
    """Whose chat template it is; None where there is none, so that only plain text can be trained on."""
    taught: int
    """The id with which the student is taught to end its turn."""
    stops: tuple[int, ...]
    """All ids at which the trained model's generation stops, `taught` first."""
    warnings: tuple[str, ...] = ()


def check_endings(teacher: ModelFacts | None, student: ModelFacts, chat_template: str | None = None) -> Endings:
    """Decide on the chat template, the student's if it has one and else the teacher's, and look for contradictions.

    Args:
        teacher: of one on a server (None) neither template nor end is known; its answers show how it ends its turns.
        student: its tokenizer gets the template, and is saved with it.
        chat_template: a file with the one to use, in place of both.

    Raises:
        ConfigError: the file cannot be read, or holds no chat template.
        ModelError: no token ends a turn.
    """
    tokenizer = student.tokenizer
    if chat_template is not None:
        _use_template(tokenizer, chat_template)
    source = None if tokenizer.chat_template is None else "student" if chat_template is None else "recipe"
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


def _template_warnings(teacher: ModelFacts, tokenizer: "PreTrainedTokenizerBase", source: str | None) -> list[str]:
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
