r"""Two models in memory: the student writes, and both say at every token what they expected.

Both are fed the same tokens in lockstep, as in :mod:`~bridgegarden.diagnostics.rollout`; what is told is at temperature
1, whatever temperature the student writes at.
"""

import math
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from bridgegarden.causal_lm import freeze
from bridgegarden.causal_lm_policy import CausalLMPolicy
from bridgegarden.data import end_of_turn_ids
from bridgegarden.data.audit import UNFINISHED, Piece, TokenTexts
from bridgegarden.data.chat import Conversation
from bridgegarden.data.encode import RowTokeniser
from bridgegarden.diagnostics.diagnosis import Likely, likeliest
from bridgegarden.diagnostics.rollout import walk
from bridgegarden.errors import ConfigError, DataError, ModelError, check_temperature
from bridgegarden.objective.divergences import entropy, total_variation
from bridgegarden.preflight import ModelFacts, ModelReference, check_endings, compare_tokenizers, load_facts
from bridgegarden.run.diagnose import model_name
from bridgegarden.run.models import load_model, placed, usable_device
from bridgegarden.run.output import named_model
from bridgegarden.run.quiet import quiet_libraries
from bridgegarden.terminal import stderr_console

WHOLE = 4
"""Tokens that a character may be spread over: its bytes."""
LONGEST = 100_000
"""Tokens of an answer."""
ROLES = ("system", "user", "assistant")
Ending = Literal["turn", "length", "room"]
"""Why an answer is over: the student ended its turn, all tokens asked for are there, or no more can be read."""


@dataclass(frozen=True, kw_only=True)
class ChatRequest:
    """Which models."""

    model: str
    """A recipe, whose trained student is meant; or a model's folder or name on the hub. It writes."""
    against: str | None = None
    """The teacher that reads along: a folder, or a name on the hub; None is none."""
    dtype: str | None = None
    """Of all weights; None is what they were saved in."""
    device: str | None = None
    """Such as ``cuda:1``; None is a GPU if there is one."""


@dataclass(frozen=True, kw_only=True)
class Expectation:
    """What one model expected at a place, at temperature 1."""

    log_prob: float
    """Of the token that was written, in nats."""
    entropy: float
    """Of the whole distribution, in nats."""
    top: tuple[Likely, ...]
    """Its likeliest tokens."""

    @property
    def prob(self) -> float:
        """Of the token that was written."""
        return math.exp(self.log_prob)


@dataclass(frozen=True, kw_only=True)
class Written:
    """One token of an answer."""

    token: int
    """Its id."""
    piece: Piece
    """As it is shown; empty while a character is not whole."""
    said: str
    """What it adds to the answer's text: nothing where it is a mark, such as the end of a turn."""
    student: Expectation
    teacher: Expectation | None
    """None where no teacher reads along."""
    distance: float | None
    """Total variation of the two distributions, 0 to 1."""
    ending: Ending | None
    """Why it is the last one; None where more follow."""


class Chat:
    """A student, and perhaps its teacher, that go through conversations."""

    def __init__(
        self,
        student: CausalLMPolicy,
        teacher: CausalLMPolicy | None,
        tokenizer: Any,
        *,
        names: tuple[str, str | None],
        generator: torch.Generator | None = None,
    ) -> None:
        """
        Args:
            student: writes.
            teacher: reads along; of the same vocabulary.
            tokenizer: of both, with the chat template that is used, if there is one.
            names: of student and teacher.
            generator: of what is drawn; on the CPU.
        """
        self.student, self.teacher = student, teacher
        self.name, self.teacher_name = names
        self.takes_turns = tokenizer.chat_template is not None
        """Whether there is a chat template; else there is one text that goes on."""
        policies = [student] if teacher is None else [student, teacher]
        windows = [policy.window for policy in policies if policy.window is not None]
        self.room: int | None = min(windows, default=None)
        """Most tokens that both can read."""
        self._generator = torch.Generator() if generator is None else generator
        if generator is None:
            self._generator.seed()
        self._tokeniser = RowTokeniser.of(tokenizer)
        self._reader = TokenTexts(tokenizer, shared_size=student.shared_size)
        self._marks = {index for index, token in tokenizer.added_tokens_decoder.items() if token.special}

    def prompt(self, said: Mapping[str, Any]) -> list[int]:
        """Token ids of a conversation, ``{"messages": [...]}``, or of a text to go on with, ``{"prompt": ...}``.

        Raises:
            DataError: it is none that the model's chat template takes, or has no room for an answer.
        """
        ids = self._tokeniser.prompt(self._conversation(said), "conversation")
        if self.room is not None and len(ids) >= self.room:
            raise DataError(
                f"conversation: it has {len(ids):,} tokens, and {self.room:,} is the most that can be read, answer "
                "included. Begin a new one, or shorten it."
            )
        return ids

    def _conversation(self, said: Mapping[str, Any]) -> Conversation:
        if not self.takes_turns:
            text = said.get("prompt")
            if not isinstance(text, str) or not text.strip() or "messages" in said:
                raise DataError("conversation: expected 'prompt', a text to go on with.")
            return Conversation(messages=({"role": "user", "content": text},), learn_from=1, form="text")
        messages = said.get("messages")
        if not isinstance(messages, list) or not messages or not all(map(_is_message, messages)) or "prompt" in said:
            raise DataError("conversation: expected 'messages', a list of objects with 'role' and 'content'.")
        if messages[-1]["role"] == "assistant":
            raise DataError("conversation: it ends with the assistant; expected a message to answer.")
        # Not as rows are read: a student may have answered with nothing at all.
        return Conversation(messages=tuple(messages), learn_from=len(messages), form="chat")

    def write(self, prompt_ids: Sequence[int], *, temperature: float, max_new_tokens: int) -> Iterator[Written]:
        """The student's answer, token by token, as it is written.

        Args:
            prompt_ids: of :meth:`prompt`.
            temperature: of what is drawn; 0 takes the likeliest token.
            max_new_tokens: most tokens; fewer where there is no room for them.

        Raises:
            ConfigError: a setting is out of range.
            ModelError: a model's distribution is not finite.
        """
        check_temperature(temperature, "temperature")
        if not 1 <= max_new_tokens <= LONGEST:
            raise ConfigError(f"max_new_tokens must be in [1, {LONGEST:,}], got {max_new_tokens:,}.")
        room = max_new_tokens if self.room is None else self.room - len(prompt_ids)
        limit = min(max_new_tokens, room)
        return self._written(list(prompt_ids), temperature, limit, "length" if limit == max_new_tokens else "room")

    def _written(self, before: list[int], temperature: float, limit: int, last: Ending) -> Iterator[Written]:
        policies = [self.student] if self.teacher is None else [self.student, self.teacher]
        steps = walk(
            [policy.start([before]) for policy in policies],
            torch.zeros(1, dtype=torch.long),
            limits=torch.tensor([limit]),
            uniforms=torch.rand(1, limit, dtype=torch.float64, generator=self._generator),
            temperature=temperature,
        )
        pending: list[int] = []
        begun = not self.takes_turns
        for visit in steps:
            token = int(visit.tokens[0])
            found = [
                self._expectation(logp[0], token, policy) for logp, policy in zip(visit.logp, policies, strict=True)
            ]
            # Bytes of one character may come with several tokens: the last of them shows it.
            pending.append(token)
            piece = self._reader.pieces(before, pending)[-1]
            over = token in self.student.end_ids or token >= self.student.shared_size
            ending: Ending | None = "turn" if over else last if visit.step + 1 == limit else None
            text = piece.gap + piece.text if begun else self._reader.text(pending)
            if piece.text.endswith(UNFINISHED) and len(pending) < WHOLE and ending is None:
                piece, text = Piece(""), ""
            else:
                # What an answer begins with has no space before it that would be another's.
                before, pending, begun = [*before, *pending], [], True
            yield Written(
                token=token,
                piece=piece,
                said="" if over or token in self._marks else text,
                student=found[0],
                teacher=found[1] if len(found) > 1 else None,
                distance=total_variation(visit.logp[1][0], visit.logp[0][0]).item() if len(found) > 1 else None,
                ending=ending,
            )

    def _expectation(self, logp: Tensor, token: int, policy: CausalLMPolicy) -> Expectation:
        if not logp.max().isfinite():
            raise ModelError(
                f"{self.name if policy is self.student else self.teacher_name}: its next-token distribution is not "
                "finite, so it says nothing. Load it in another type (--dtype float32); if that changes nothing, its "
                "weights are damaged."
            )
        return Expectation(log_prob=logp[token].item(), entropy=entropy(logp).item(), top=likeliest(logp))

    def text_of(self, token: int) -> str:
        """One token by itself."""
        return self._reader.token(token).text


def _is_message(item: object) -> bool:
    return (
        isinstance(item, dict)
        and item.keys() == {"role", "content"}
        and item["role"] in ROLES
        and isinstance(item["content"], str)
    )


def load_chat(request: ChatRequest) -> Chat:
    """Load what `request` names, after all that can be checked without weights.

    Raises:
        ConfigError: a recipe is not trained yet, or there is no such device.
        ModelError: a model cannot be used, or the two have different tokenizers.
    """
    model, _ = named_model(request.model, (), "chat")
    device, dtype = usable_device(request.device, "--device"), request.dtype or "auto"
    with quiet_libraries(interactive=sys.stderr.isatty()):
        student = load_facts(ModelReference(role="student", model=model, dtype=dtype, place="MODEL"))
        teacher = request.against and load_facts(
            ModelReference(role="teacher", model=request.against, dtype=dtype, place="--against")
        )
        return _load(student, teacher or None, device)


def _load(student: ModelFacts, teacher: ModelFacts | None, device: str) -> Chat:
    console = stderr_console()
    match, endings = compare_tokenizers(teacher, student), check_endings(teacher, student)
    stops = list(endings.stops)
    if teacher is not None:
        stops += end_of_turn_ids(teacher.tokenizer, teacher.generation_config)
    for warning in match.warnings:
        console.print(f"warning: {warning}", markup=False, soft_wrap=True)
    if endings.template_from is None:
        console.print("no chat template: it goes on with a text")
    elif endings.template_from == "teacher":
        console.print("the student has no chat template: both read the teacher's")
    policies = []
    for facts in (student, teacher) if teacher is not None else (student,):
        console.print(f"loading {facts.reference.role} {facts.reference.model}", markup=False, soft_wrap=True)
        loaded = placed(load_model(facts), device)
        freeze(loaded)
        ends = tuple(dict.fromkeys(index for index in stops if index < match.vocab_size))
        policies.append(CausalLMPolicy(loaded, end_ids=ends, vocab_size=match.vocab_size))
    names = (model_name(student.reference.model), None if teacher is None else model_name(teacher.reference.model))
    return Chat(policies[0], policies[1] if teacher is not None else None, endings.tokenizer, names=names)
