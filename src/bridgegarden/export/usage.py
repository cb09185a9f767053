"""How what was written is run: commands and code for the model's card that are right for these very files, and the
Modelfile of which Ollama makes a model, with the chat template in its own language.

Ollama knows the templates of well-known models only. Any other is put together here of what stands around a message of
each role, as read off conversations that the tokenizer renders, and is left out where that does not render them all.
"""

import json
import re
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import yaml

from bridgegarden.errors import ModelError
from bridgegarden.export.gguf_file import family_of
from bridgegarden.export.gguf_tokenizer import vocabulary_of

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

BRIDGEGARDEN = "[bridgegarden](https://pypi.org/project/bridgegarden/)"
BEGINNING = "Once upon a time"
"""What a model without a chat template goes on with."""
QUESTION = [{"role": "user", "content": "Hello"}]
ANSWER = 100
"""Tokens that are written, at most."""
WITH_PAST = """nodes = [node for node in session.get_inputs() if node.name.startswith("past.")]
past = {{node.name: np.zeros((1, node.shape[1], 0, node.shape[3]), np.float32) for node in nodes}}
for _ in range({answer}):
    feed = {{"input_ids": np.array([new]), "attention_mask": np.ones((1, len(ids)), np.int64)}}
    logits, *kept = session.run(None, feed | past)
    past = {{node.name: value for node, value in zip(nodes, kept)}}
    new = [int(logits[0, -1].argmax())]
    if new[0] in {ends}:
        break
    ids = ids + new
"""
WITHOUT_PAST = """for _ in range({answer}):
    feed = {{"input_ids": np.array([ids]), "attention_mask": np.ones((1, len(ids)), np.int64)}}
    (logits,) = session.run(None, feed)
    new = [int(logits[0, -1].argmax())]
    if new[0] in {ends}:
        break
    ids = ids + new
"""
Message = Mapping[str, str]
TEXTS = ("alpha", "beta", "gamma", "delta")
"""What the messages of the conversations say: no part of any template."""
CONTEXT = 4096
"""Tokens that Ollama gives a model unasked; one that has fewer is told so."""


class Made(NamedTuple):
    """What an exported model was made of."""

    shown: str
    """The model, as Markdown."""
    base: str | None
    """Its name on the hub, if it has one."""
    kind: str
    """Type of the weights that were written."""


def block(language: str, *lines: str) -> str:
    """Lines of code as Markdown."""
    fence = "````" if any("```" in line for line in lines) else "```"
    return "\n".join([f"{fence}{language}", *lines, fence])


def with_transformers(source: str, *, chat: bool) -> str:
    """Python for a model's folder or its name on the hub.

    Args:
        source: as ``from_pretrained`` takes it.
        chat: whether it has a chat template.
    """
    prompt = f'tokenizer({json.dumps(BEGINNING)}, return_tensors="pt")'
    if chat:
        prompt = (
            f"tokenizer.apply_chat_template({json.dumps(QUESTION)}, add_generation_prompt=True, "
            'return_tensors="pt", return_dict=True)'
        )
    return block(
        "python",
        "from transformers import AutoModelForCausalLM, AutoTokenizer",
        "",
        f"tokenizer = AutoTokenizer.from_pretrained({json.dumps(source)})",
        f"model = AutoModelForCausalLM.from_pretrained({json.dumps(source)})",
        f"inputs = {prompt}",
        f"print(tokenizer.decode(model.generate(**inputs, max_new_tokens={ANSWER})[0]))",
    )


def with_onnxruntime(tokenizer: Any, ends: Sequence[int], *, past: bool) -> str:
    """Python for a folder with ``model.onnx``, without PyTorch and transformers.

    Args:
        tokenizer: of the model.
        ends: ids at which it stops.
        past: whether the graph takes keys and values of the tokens before.
    """
    text, special = BEGINNING, ""
    if tokenizer.chat_template is not None:
        text = tokenizer.apply_chat_template(QUESTION, tokenize=False, add_generation_prompt=True)
        special = ", add_special_tokens=False"
    loop = (WITH_PAST if past else WITHOUT_PAST).format(answer=ANSWER, ends=list(ends))
    return block(
        "python",
        "import numpy as np",
        "import onnxruntime",
        "import tokenizers",
        "",
        'session = onnxruntime.InferenceSession("model.onnx")',
        'tokenizer = tokenizers.Tokenizer.from_file("tokenizer.json")',
        f"ids = new = tokenizer.encode({json.dumps(text, ensure_ascii=False)}{special}).ids",
        *loop.splitlines(),
        "print(tokenizer.decode(ids, skip_special_tokens=False))",
    )


def with_llama_cpp(gguf: str, *, chat: bool) -> str:
    """Commands for a GGUF file, as it is typed in its folder: a chat or a text, and a server that is asked.

    Args:
        gguf: its name, quoted as a shell needs it.
        chat: whether it holds a chat template.
    """
    path, body = ("v1/chat/completions", {"messages": QUESTION}) if chat else ("completion", {"prompt": BEGINNING})
    body |= {"max_tokens" if chat else "n_predict": ANSWER}
    asked = f"curl http://127.0.0.1:8080/{path} -H 'Content-Type: application/json' -d '{json.dumps(body)}'"
    return block("bash", *([f"llama-cli -m {gguf}"] if chat else []), f"llama-server -m {gguf} --port 8080", asked)


def with_ollama(gguf: str, modelfile: str, name: str) -> str:
    """Commands for a GGUF file with its Modelfile; `modelfile` is what that one says."""
    model = shlex.quote(name.lower())
    commands = block("bash", f"ollama create {model} -f {gguf} && ollama run {model}")
    if "# TEMPLATE" in modelfile:
        return f"Its chat template has no equal in Ollama's language; write one into {gguf} first.\n\n{commands}"
    return commands


def elsewhere(source: str, config: Any, tokenizer: Any, *, kind: str = "Q8_0", adapter: bool = False) -> str:
    """How a model's folder, or its name on the hub, becomes what llama.cpp, Ollama and onnxruntime run.

    Args:
        source: the folder or name.
        config: of the model.
        tokenizer: of the model.
        kind: type of the weights in a GGUF file.
        adapter: whether the same card lies beside adapters, too.
    """
    model = shlex.quote(source)
    lines = []
    if gguf_fault(config, tokenizer) is None:
        lines = [
            f"bridgegarden export {model} --to gguf --quantise {kind} --output gguf",
            f"llama-cli -m gguf/*-{kind}.gguf   # llama.cpp",
            f"ollama create student -f gguf/*-{kind}.Modelfile && ollama run student",
        ]
    lines.append(f"bridgegarden export {model} --to onnx --output onnx   # onnxruntime; the README.md there goes on")
    what = "For other programs, of the model with its adapters merged:" if adapter else "For other programs:"
    commands = block("bash", "pip install 'bridgegarden[export]'", *lines)
    return f"{what}\n\n{commands}"


def gguf_fault(config: Any, tokenizer: Any) -> str | None:
    """Why a model cannot be written as GGUF, as far as its configuration tells, and its tokenizer where the package
    ``gguf`` is there; None where nothing is known against it."""
    try:
        family_of(config, ModelError)
        if find_spec("gguf") is not None:
            vocabulary_of(tokenizer, config.get_text_config().vocab_size, [], ModelError)
    except ModelError as error:
        return str(error)
    return None


def gguf_card(gguf: Path, modelfile: str, made: "Made", notes: Sequence[str], *, chat: bool) -> str:
    """The card that lies beside a GGUF file.

    Args:
        gguf: the file.
        modelfile: what its Modelfile says.
        made: of what.
        notes: what is different in llama.cpp.
        chat: whether it holds a chat template.
    """
    name = shlex.quote(gguf.name)
    sections = [
        "## llama.cpp",
        with_llama_cpp(name, chat=chat),
        "## Ollama",
        with_ollama(shlex.quote(gguf.with_suffix(".Modelfile").name), modelfile, gguf.stem),
    ]
    if notes:
        sections += ["## What is different in llama.cpp", "\n".join(f"* {note}." for note in notes)]
    return _card("gguf", gguf.stem, made, sections)


def folder_card(library: str, name: str, made: "Made", code: str) -> str:
    """README.md of an exported folder that `library` runs with `code`."""
    return _card(library, name, made, ["In this folder:", code])


def _card(library: str, name: str, made: "Made", sections: Sequence[str]) -> str:
    front: dict[str, Any] = {"library_name": library, "pipeline_tag": "text-generation", "tags": ["bridgegarden"]}
    if made.base is not None:
        front |= {"base_model": made.base, "base_model_relation": "quantized"}
    what = f"{made.shown}, its weights in {made.kind}, written by {BRIDGEGARDEN}."
    lines = [f"# {name}", what, *sections]
    return f"---\n{yaml.safe_dump(front, sort_keys=False)}---\n\n" + "\n\n".join(lines) + "\n"


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
