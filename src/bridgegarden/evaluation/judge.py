"""Which of two systems answers better, as another model sees it.

Every pair of answers is shown in both orders, because judges favour a place; what does not survive the swap is a tie.
Judges also favour length, so lengths stand beside the win rate.
"""

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path

from bridgegarden.data import Conversation
from bridgegarden.errors import DataError, ModelError
from bridgegarden.evaluation.judge_question import (
    LONGEST_REPLY,
    REMINDER,
    Choice,
    Pair,
    Question,
    question,
    read_verdict,
)
from bridgegarden.evaluation.judge_result import Judged, JudgeResult
from bridgegarden.files import AppendedLines
from bridgegarden.teacher.answer_file import Key
from bridgegarden.teacher.generate import GIVE_UP_AFTER, Answer, Decoding, Engine, Outcome, Request

ROUNDS = 3
"""Times that a question is put to a judge whose replies hold no verdict."""
EQUAL: Choice = "tie"
DECODING = Decoding(temperature=0.0, max_new_tokens=LONGEST_REPLY)


def judge(
    pairs: Sequence[Pair], engine: Engine, cache: Path, *, on_progress: Callable[[int, int], None] = lambda *_: None
) -> JudgeResult:
    """Ask a judge about every pair, in both orders; verdicts that `cache` holds are not asked for again.

    Equal answers are a tie without asking. Pairs without a verdict in one of the orders are left out and counted.

    Args:
        pairs: what to compare.
        engine: the judge, such as a :class:`~bridgegarden.teacher.server.ServerEngine`.
        cache: file that verdicts are appended to as they come, each with a hash of all that decided it.
        on_progress: told how many questions have a verdict, and how many there are.

    Raises:
        ConfigError: the judge refuses all requests, or another process writes `cache`.
        DataError: fewer than two prompts have a verdict, or `cache` is damaged.
        ModelError: one request after the other fails.
    """
    name = json.dumps(dict(engine.settings), sort_keys=True)
    questions = [
        question(place, pair, name, swapped=swapped)
        for place, pair in enumerate(pairs)
        if pair.first.strip() != pair.second.strip()
        for swapped in (False, True)
    ]
    with closing(Verdicts(cache)) as verdicts:
        _Session(questions, engine, verdicts, on_progress).ask()
        known: dict[tuple[int, bool], Choice | None] = {
            (one.pair, one.swapped): verdicts.known.get(one.key) for one in questions
        }
    judged = [
        Judged(pair, in_order, swapped)
        for place, pair in enumerate(pairs)
        if (in_order := known.get((place, False), EQUAL)) and (swapped := known.get((place, True), EQUAL))
    ]
    return JudgeResult.of(judged, judge=engine.settings, failed=len(pairs) - len(judged))


class Verdicts:
    """Verdicts on disk, by the hash of their question."""

    def __init__(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self._lines = AppendedLines(path, locked=True)
        self.known: dict[str, Choice] = {}
        for number, record in self._lines.records():
            if record.get("verdict") not in ("first", "second", "tie") or not isinstance(record.get("key"), str):
                self.close()
                raise DataError(f"{path}:{number}: is no verdict. Remove the line, or give another --output.")
            self.known[record["key"]] = record["verdict"]

    def add(self, found: Iterable[tuple[str, Choice, str]]) -> None:
        """Keep keys, verdicts and what was said."""
        records = [{"key": key, "verdict": verdict, "reply": reply} for key, verdict, reply in found]
        self._lines.append(records)
        self.known |= {key: verdict for key, verdict, _ in found}

    def close(self) -> None:
        """Let another process write."""
        self._lines.close()


@dataclass
class _Session:
    """The questions of one run, and how far they are."""

    questions: Sequence[Question]
    engine: Engine
    verdicts: Verdicts
    on_progress: Callable[[int, int], None]
    failed_in_a_row: int = 0
    said: dict[str, str] = field(default_factory=dict)
    """Replies without a verdict, by the key of their question."""

    def ask(self) -> None:
        """Put every question that has no verdict, and again where the reply holds none."""
        self._tell()
        for number in range(ROUNDS):
            open_ones = {one.key: one for one in self.questions if one.key not in self.verdicts.known}
            if number:
                open_ones = {key: one for key, one in open_ones.items() if key in self.said}
            if not open_ones:
                return
            requests = {Key(place, number): one for place, one in enumerate(open_ones.values())}
            with closing(self.engine.answers([self._request(*item) for item in requests.items()], DECODING)) as batches:
                for batch in batches:
                    self._take(batch, requests)

    def _request(self, key: Key, asked: Question) -> Request:
        messages = asked.messages
        if asked.key in self.said:
            reply = self.said[asked.key].strip() or "(nothing)"
            messages += ({"role": "assistant", "content": reply}, {"role": "user", "content": REMINDER})
        chat = Conversation(messages=messages, learn_from=len(messages), form="chat")
        return Request(key=key, chat=chat, place=f"pair {asked.pair}")

    def _take(self, batch: Sequence[Outcome], requests: Mapping[Key, Question]) -> None:
        found: list[tuple[str, Choice, str]] = []
        why = ""
        for request, outcome in batch:
            key = requests[request.key].key
            reply = outcome.text if isinstance(outcome, Answer) else None
            verdict = None if reply is None else read_verdict(reply)
            if reply is not None and verdict is not None:
                found.append((key, verdict, reply))
                self.failed_in_a_row = 0
                continue
            self.failed_in_a_row += 1
            if reply is None:
                assert not isinstance(outcome, Answer)
                why = outcome.reason
                self.said.pop(key, None)  # not worth asking again in this run: the engine has tried
            else:
                why = f"the reply holds no verdict ({' '.join(reply.split())[:100]!r})."
                self.said[key] = reply
        self.verdicts.add(found)
        self._tell()
        if self.failed_in_a_row >= GIVE_UP_AFTER:
            raise ModelError(
                f"judge: {self.failed_in_a_row} questions failed one after the other, the last one because: {why} "
                "Verdicts so far are kept; mend this and run the same again."
            )

    def _tell(self) -> None:
        self.on_progress(sum(one.key in self.verdicts.known for one in self.questions), len(self.questions))
