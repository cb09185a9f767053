"""What Ollama makes a model of: a Modelfile beside a GGUF file, with the chat template in Ollama's own language.

Ollama knows the templates of well-known models only. Any other is put together here of what stands around a message of
each role, as read off conversations that the tokenizer renders, and is left out where that does not render them all.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Message = Mapping[str, str]
TEXTS = ("alpha", "beta", "gamma", "delta")
"""What the messages of the conversations say: no part of any template."""
CONTEXT = 4096
"""Tokens that Ollama gives a model unasked; one that has fewer is told so."""


@dataclass(frozen=True, kw_only=True)
class TurnMarks:
    """What a chat template writes around messages, where it does no more than that."""

    around: Mapping[str, tuple[str, str]]
    """Before and after a message, by its role."""
    answer: str
    """Before an answer that is to be written."""
    opening: str
    """Before all."""
    without_system: str
    """After `opening` where no message is of the system."""

    def render(self, messages: Sequence[Message]) -> str:
        """`messages`, and the beginning of an answer."""
        system = any(message["role"] == "system" for message in messages)
        turns = [before + message["content"] + after for message, (before, after) in self._with_marks(messages)]
        return self.opening + ("" if system else self.without_system) + "".join(turns) + self.answer

    def _with_marks(self, messages: Sequence[Message]) -> list[tuple[Message, tuple[str, str]]]:
        return [(message, self.around[message["role"]]) for message in messages]

    def go(self) -> str:
        """As a template of Go, which Ollama's are."""
        system = f"{{{{ if not .System }}}}{_literal(self.without_system)}{{{{ end }}}}" if self.without_system else ""
        turns = "".join(
            f'{{{{ {"if" if number == 0 else "else if"} eq .Role "{role}" }}}}{_literal(before)}{{{{ .Content }}}}'
            f"{_literal(after)}"
            for number, (role, (before, after)) in enumerate(self.around.items())
        )
        last = '{{ if and (eq (len (slice $.Messages $i)) 1) (ne .Role "assistant") }}'
        return (
            f"{_literal(self.opening)}{system}{{{{ range $i, $_ := .Messages }}}}{turns}{{{{ end }}}}"
            f"{last}{_literal(self.answer)}{{{{ end }}}}{{{{ end }}}}"
        )


def _literal(text: str) -> str:
    """`text` in a template of Go; what Ollama's reader drops (no-break spaces, marks of no width) by its number."""
    marks = {"{{": '{{ "{{" }}'}
    for letter in set(text):
        if not _is_read(letter):
            marks[letter] = f'{{{{ "\\U{ord(letter):08x}" }}}}'
    return re.sub("|".join(map(re.escape, marks)), lambda found: marks[found[0]], text)


def _is_read(letter: str) -> bool:
    return letter.isprintable() or letter in "\n\r\t"


def _quoted(value: str) -> str | None:
    """`value` between quotes, in which nothing can be escaped; None where Ollama would read another."""
    if '"""' in value or not all(map(_is_read, value)):
        return None
    mark = '"""' if '"' in value else '"'
    return f"{mark}{value}{mark}"


def turn_marks(tokenizer: "PreTrainedTokenizerBase", *, begins: bool) -> TurnMarks | None:
    """What the chat template of `tokenizer` writes around messages; None where that is not all that it does.

    Args:
        tokenizer: with a chat template or without.
        begins: whether the token of a text's beginning is added to any text anyway, so that it is left out here.
    """
    if tokenizer.chat_template is None:
        return None
    first = str(tokenizer.bos_token) if begins and tokenizer.bos_token is not None else ""

    def rendered(messages: list[dict[str, str]], *, answer: bool = True) -> str | None:
        try:
            text = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=answer)
        except Exception:  # whatever a template raises of a role that it has no place for
            return None
        return str(text).removeprefix(first)

    user, second, said, system = TEXTS
    asked = [_message("user", user)]
    answered = [*asked, _message("assistant", said)]
    talk = [*answered, _message("user", second)]
    with_system = rendered([_message("system", system), *asked])
    marks = _read(
        rendered(asked), rendered(asked, answer=False), rendered(answered, answer=False), rendered(talk), with_system
    )
    if marks is None:
        return None
    talks = [asked, talk, [*talk, _message("assistant", "x y"), _message("user", "z")]]
    if "system" in marks.around:
        talks += [[_message("system", "s t"), *talk] for talk in talks]
    return marks if all(marks.render(talk) == rendered(talk) for talk in talks) else None


def _message(role: str, content: str) -> dict[str, str]:
    return {"role": role, "content": content}


def _read(
    asked: str | None, closed: str | None, answered: str | None, talk: str | None, with_system: str | None
) -> TurnMarks | None:
    """Marks out of five renderings: one question, the same with no answer to come and with one, three turns, with a
    system."""
    user, second, said, system = TEXTS
    if asked is None or closed is None or talk is None or not asked.startswith(closed):
        return None
    if any(text.count(word) != 1 for text, word in ((asked, user), (talk, user), (talk, said), (talk, second))):
        return None
    answer = asked[len(closed) :]
    start, after_user = closed.split(user)
    between, rest = talk.split(user)[1].split(said)
    if not between.startswith(after_user) or not rest.endswith(after_user + answer):
        return None
    before_said, rest = between[len(after_user) :], rest[: len(rest) - len(after_user + answer)]
    after_said_and_before = rest.split(second)[0]
    # What stands before a later question is the end of what stands before the first one, behind the answer's own end:
    # that of a talk which ends with it, if there can be one.
    ends = after_said_and_before.removeprefix((answered or "").rpartition(said)[2])
    before_user = next((start[at:] for at in range(len(start) + 1) if ends.endswith(start[at:])), "")
    around = {
        "user": (before_user, after_user),
        "assistant": (before_said, after_said_and_before[: len(after_said_and_before) - len(before_user)]),
    }
    opening = start[: len(start) - len(before_user)]
    if with_system is None or with_system.count(system) != 1 or with_system.count(user) != 1:
        return TurnMarks(around=around, answer=answer, opening=opening, without_system="")
    before_system, rest = with_system.split(system)
    after_system = rest.split(user)[0]
    if not after_system.endswith(before_user):
        return TurnMarks(around=around, answer=answer, opening=opening, without_system="")
    shared = 0
    while shared < min(len(opening), len(before_system)) and opening[shared] == before_system[shared]:
        shared += 1
    around = {"system": (before_system[shared:], after_system[: len(after_system) - len(before_user)]), **around}
    return TurnMarks(around=around, answer=answer, opening=opening[:shared], without_system=opening[shared:])


def modelfile(gguf: Path, tokenizer: Any, ends: Sequence[int], context: int, *, begins: bool) -> str:
    """The Modelfile for `gguf`, which lies beside it.

    Args:
        gguf: the file.
        tokenizer: of the model.
        ends: ids at which it stops.
        context: positions that the model has.
        begins: whether its texts begin with a token of their own.
    """
    marks = turn_marks(tokenizer, begins=begins)
    lines = [f"FROM ./{gguf.name}"]
    if marks is not None and '"""' not in marks.go():
        lines.append(f'TEMPLATE """{marks.go()}"""')
    elif tokenizer.chat_template is not None:
        lines.append("# The chat template does more than put marks around messages. Ollama's template of its own:")
        lines.append('# TEMPLATE """..."""')
    else:
        lines.append('TEMPLATE """{{ .Prompt }}"""')
    for token in ends:
        stop = _quoted(tokenizer.decode([token]))
        # The file itself says where to stop, too.
        lines.append(f"# no PARAMETER can name token {token}" if stop is None else f"PARAMETER stop {stop}")
    if context < CONTEXT:
        lines.append(f"PARAMETER num_ctx {context}")
    return "\n".join(lines) + "\n"
