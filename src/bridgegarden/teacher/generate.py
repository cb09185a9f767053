"""The teacher's own answers: rows in, rows to train on out, whoever gives the answers.

Sequence-level distillation trains on what the teacher would say. An :class:`Engine` says it; here is everything that
does not depend on which: what is still to be asked, what is put on disk, and what is told to the user.
"""

import hashlib
import math
import time
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal, Protocol

from bridgegarden.data import Columns, Conversation, Mix, TeacherPrompt, prompt, with_answer
from bridgegarden.errors import ConfigError, DataError, ModelError
from bridgegarden.teacher.answers import AnswerFile, Key, check_can_be_written

LOWEST_TEMPERATURE = 1e-6
"""But zero. Logits over less than this are infinite, and the likeliest of infinite ones is any."""
GIVE_UP_AFTER = 20
"""So many failures with not one answer between them: something is wrong with all of them."""


@dataclass(frozen=True, kw_only=True)
class Decoding:
    """How an answer is drawn from the teacher's distribution."""

    temperature: float = 0.0
    """Sampling temperature, >= 0; 0 is greedy, 1 the teacher's own distribution. Nothing else (top-p, penalties)
    shapes it."""
    seed: int = 0
    """Every row and sample has a random stream of its own, made from it. Without meaning when greedy."""
    max_new_tokens: int = 1024
    """Tokens after which an answer is cut off, >= 1."""

    def __post_init__(self) -> None:
        if not 0 <= self.temperature < math.inf:
            raise ConfigError(f"temperature must be >= 0 (0 is greedy), got {self.temperature}.")
        if 0 < self.temperature < LOWEST_TEMPERATURE:
            raise ConfigError(f"temperature {self.temperature} is too low to divide by; 0 is greedy.")
        if self.max_new_tokens < 1:
            raise ConfigError(f"max_new_tokens must be >= 1, got {self.max_new_tokens}.")

    @property
    def greedy(self) -> bool:
        """Whether the likeliest token is always taken."""
        return self.temperature == 0

    def seed_of(self, key: Key) -> int:
        """The seed of one answer, in [0, 2^31): what the other answers are does not touch it."""
        text = f"{self.seed}:{key.row}:{key.sample}"
        return int.from_bytes(hashlib.sha256(text.encode()).digest()[:4]) >> 1


@dataclass(frozen=True, kw_only=True)
class Request:
    """One answer to be given."""

    key: Key
    chat: Conversation
    """Up to where the assistant is to speak."""
    place: str
    """The row, for messages."""


@dataclass(frozen=True, kw_only=True)
class Answer:
    """What the teacher said."""

    text: str
    finish_reason: Literal["stop", "length"]
    """``length`` where it was cut off."""
    generated_by: str
    """Who said it, as precisely as is known."""
    top_logprobs: Mapping[str, Any] | None = None
    """Where the engine gives them; see :func:`bridgegarden.teacher.server_logprobs.top_logprobs`."""


Outcome = tuple[Request, Answer | str]
"""A request, and its answer or in one line why there is none."""


class Engine(Protocol):
    """Something that answers."""

    @property
    def settings(self) -> Mapping[str, Any]:
        """Who answers, and whatever else the answers depend on, as plain values. No secrets: it is written to disk."""
        ...

    def answers(self, requests: Sequence[Request], decoding: Decoding) -> Generator[list[Outcome]]:
        """Answer `requests` in any order, a batch at a time. Closing the iterator ends it."""
        ...


@dataclass(frozen=True, kw_only=True)
class Questions:
    """Rows to be answered."""

    rows: Sequence[Mapping[str, Any]]
    """A ``datasets.Dataset`` is one; a :class:`~bridgegarden.data.Mix` says where each of its rows is."""
    columns: Columns = field(default_factory=Columns)
    """Where the prompt is, and where the answer goes."""
    samples: int = 1
    """Answers to each row, >= 1."""
    teacher_prompt: TeacherPrompt | None = None
    """What is asked in place of the row's own prompt, which stays in the row; None asks that one."""

    def __post_init__(self) -> None:
        if self.samples < 1:
            raise ConfigError(f"the number of samples must be >= 1, got {self.samples}.")

    def asked(self, row: Mapping[str, Any], place: str) -> Conversation:
        """What the teacher is asked by a row.

        Raises:
            DataError: the row has no prompt, or lacks a column of the teacher's.
        """
        chat = prompt(row, self.columns, place=place)
        return chat if self.teacher_prompt is None else self.teacher_prompt.apply(chat, row, place)

    def place(self, number: int) -> str:
        """What to call a row in messages."""
        return self.rows.place(number) if isinstance(self.rows, Mix) else f"train, row {number}"


@dataclass(frozen=True, kw_only=True)
class Progress:
    """How far it is, in answers."""

    total: int
    before: int
    """Given in earlier runs."""
    answered: int = 0
    """Given in this run, truncated ones included."""
    failed: int = 0
    """Not given in this run."""

    @property
    def done(self) -> int:
        """Requests that are over, one way or the other."""
        return self.before + self.answered + self.failed

    def __str__(self) -> str:
        failed = f", {self.failed} failed" if self.failed else ""
        return f"{self.before + self.answered}/{self.total} answers{failed}"


@dataclass(frozen=True, kw_only=True)
class GenerationSummary:
    """What came of it."""

    progress: Progress
    output: Path
    truncated: int
    """Answers cut off at `max_new_tokens`, those of earlier runs included."""
    truncated_kept: bool
    """Whether they are in `output` all the same."""
    errors: Path
    """Where failures are listed."""
    without_logprobs: int
    """Answers of this run that lack the log-probabilities that were asked for."""
    seconds: float

    def __str__(self) -> str:
        """One line."""
        told, rows = self.progress, self.progress.before + self.progress.answered
        rows -= 0 if self.truncated_kept else self.truncated
        parts = [f"{rows} of {told.total} answers in {self.output}"]
        if told.before:
            parts.append(f"{told.before} from before")
        if self.truncated:
            what = "kept" if self.truncated_kept else "left out (raise --max-new-tokens, or add --keep-truncated)"
            parts.append(f"{self.truncated} truncated, {what}")
        if told.failed:
            parts.append(f"{told.failed} failed, see {self.errors}; the same command tries them again")
        if self.without_logprobs:
            parts.append(f"{self.without_logprobs} without log-probabilities, which the server did not return")
        return "; ".join(parts)


def generate(
    questions: Questions,
    engine: Engine,
    output: Path,
    decoding: Decoding,
    *,
    keep_truncated: bool = False,
    on_progress: Callable[[Progress], None] = lambda _: None,
) -> GenerationSummary:
    """Write an answer to every row of `questions` to `output`, those that are there already excepted.

    A row of `output` is the row of the source with the answer where the source has or would have its own, and ``row``
    (its number in the source), ``sample``, ``finish_reason``, ``generated_by`` and, where there are any,
    ``top_logprobs``. What fails is listed beside it and tried again by the next call.

    Raises:
        ConfigError: a setting is out of range, `output` belongs to other settings, or the engine refuses all requests.
        DataError: a row has no prompt, `output` answers other rows or cannot be written.
        ModelError: one request after the other fails, or the first answer has no log-probabilities though they were
            asked for.
    """
    if questions.samples > 1 and decoding.greedy:
        raise ConfigError(f"{questions.samples} greedy answers to a row are the same; set a temperature, such as 1.")
    began = time.perf_counter()
    requests = _requests(questions)
    settings = {**engine.settings, "temperature": decoding.temperature, "max_new_tokens": decoding.max_new_tokens}
    settings["seed"] = None if decoding.greedy else decoding.seed
    if questions.teacher_prompt is not None:
        settings["teacher_prompt"] = str(questions.teacher_prompt)
    with AnswerFile(output, settings, keep_truncated=keep_truncated) as file:
        done = _finished(file, requests, questions)
        pending = [request for key, request in requests.items() if key not in done]
        progress = Progress(total=len(requests), before=len(done))
        work = _Work(questions, file, progress, on_progress, top_logprobs=settings.get("top_logprobs", 0))
        on_progress(work.progress)
        with closing(engine.answers(pending, decoding)) as batches:
            for batch in batches:
                work.take(batch)
        file.sort()
        return GenerationSummary(
            progress=work.progress,
            output=output,
            truncated=sum(reason == "length" for reason in done.values()) + work.truncated,
            truncated_kept=keep_truncated,
            errors=file.errors_path,
            without_logprobs=work.without_logprobs,
            seconds=time.perf_counter() - began,
        )


@dataclass
class _Work:
    """What has come of the requests so far."""

    questions: Questions
    file: AnswerFile
    progress: Progress
    on_progress: Callable[[Progress], None]
    top_logprobs: int
    truncated: int = 0
    without_logprobs: int = 0
    failed_in_a_row: int = 0

    def take(self, batch: Sequence[Outcome]) -> None:
        """Put a batch on disk.

        Raises:
            ModelError: nothing but failures for too long, or the first answer lacks what all of them are asked for.
        """
        answers, failures = [], []
        for request, outcome in batch:
            if isinstance(outcome, Answer) and not outcome.text.strip():
                outcome = "the answer is empty, so there is nothing to learn from it."
            if isinstance(outcome, Answer):
                lacks = self.top_logprobs > 0 and outcome.top_logprobs is None
                if lacks and self.progress.before + self.progress.answered + len(answers) == 0:
                    raise ModelError(_without_logprobs(outcome, self.top_logprobs))
                answers.append(self._row(request, outcome))
                self.truncated += outcome.finish_reason == "length"
                self.without_logprobs += lacks
                self.failed_in_a_row = 0
            else:
                failures.append({**request.key._asdict(), "error": outcome})
                self.failed_in_a_row += 1
        self.file.add(answers, failures)
        now = self.progress
        self.progress = replace(now, answered=now.answered + len(answers), failed=now.failed + len(failures))
        self.on_progress(self.progress)
        if self.failed_in_a_row >= GIVE_UP_AFTER:
            raise ModelError(
                f"{self.failed_in_a_row} requests failed one after the other, the last one because: "
                f"{failures[-1]['error']} Answers so far are in {self.file.path}; mend this and run the same again."
            )

    def _row(self, request: Request, answer: Answer) -> dict[str, Any]:
        source = self.questions.rows[request.key.row]
        row = with_answer(source, self.questions.columns, answer.text, place=request.place)
        row |= {**request.key._asdict(), "finish_reason": answer.finish_reason, "generated_by": answer.generated_by}
        row.pop("top_logprobs", None)
        return row if answer.top_logprobs is None else row | {"top_logprobs": answer.top_logprobs}


def _without_logprobs(answer: Answer, asked_for: int) -> str:
    return (
        f"{answer.generated_by} answers without log-probabilities, though {asked_for} a token were asked for, so its "
        "answers give no soft labels. Ask a server that returns them; or leave --top-logprobs out, and learn the "
        "answers as hard labels (objective: {preset: hard, hard_target: data})."
    )


def _requests(questions: Questions) -> dict[Key, Request]:
    """All of them; a row that cannot be asked or kept is found before anything is generated."""
    requests: dict[Key, Request] = {}
    for number, row in enumerate(questions.rows):
        place = questions.place(number)
        chat = questions.asked(row, place)
        check_can_be_written(row, place)
        for sample in range(questions.samples):
            key = Key(number, sample)
            requests[key] = Request(key=key, chat=chat, place=place)
    return requests


def _finished(file: AnswerFile, requests: Mapping[Key, Request], questions: Questions) -> dict[Key, str]:
    """Those of `requests` that `file` answers, with how each answer ended."""
    done: dict[Key, str] = {}
    for key, place, record in file.finished():
        if key not in requests:
            continue
        # By the row's own prompt: columns that the teacher's names may have been replaced by the answer.
        own = prompt(questions.rows[key.row], questions.columns, place=place)
        if prompt(record, questions.columns, place=place).messages != own.messages:
            raise DataError(
                f"{place}: answers another prompt than {requests[key].place} asks, so the data has changed since. Give "
                "another --output."
            )
        done[key] = record.get("finish_reason", "stop")
    return done
