"""Two files of answers to a win rate: what ``bridgegarden judge`` does."""

from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from bridgegarden.data import Columns, Conversation, RowsAsWritten, conversation, load_rows, place
from bridgegarden.errors import DataError
from bridgegarden.evaluation.judge import JudgeResult, Pair, judge
from bridgegarden.files import write_json
from bridgegarden.run.output import check_writable, write_or_rescue
from bridgegarden.teacher.server import Server, ServerEngine
from bridgegarden.teacher.server_connection import api_key


@dataclass(frozen=True, kw_only=True)
class JudgeOptions:
    """What the command line says beside the files and the server."""

    output: Path
    """Folder: ``judge.json``, and ``verdicts.jsonl``, which later runs add to."""
    columns: Columns = field(default_factory=Columns)
    """Where rows keep prompt and answer."""
    limit: int | None = None
    """At most so many pairs."""
    api_key_env: str | None = None
    """Name of the variable with the key; None is ``OPENAI_API_KEY``, if it is set."""


def judge_answers(first: str, second: str, server: Server, options: JudgeOptions) -> JudgeResult:
    """Compare the answers of two files to the same prompts.

    Raises:
        ConfigError: a setting is out of range, or the judge refuses the key.
        DataError: a file cannot be read, or the files have no prompt in common.
        ModelError: the judge fails again and again.
    """
    from bridgegarden.terminal import stderr_console

    console = stderr_console()
    check_writable(options.output, "output")
    pairs, alone = read_pairs(first, second, options.columns)
    if alone:
        console.print(f"{alone} answers have no partner in the other file and are left out", markup=False)
    pairs = pairs[: options.limit]
    console.print(f"asking {server.model} at {server.base_url} about {len(pairs)} pairs", markup=False, soft_wrap=True)
    engine = ServerEngine(
        server, api_key(options.api_key_env), lambda line: console.print(line, markup=False, soft_wrap=True)
    )
    shown = -1

    def show(done: int, total: int) -> None:
        nonlocal shown
        percent = 100 * done // max(total, 1)
        if percent // 5 > shown // 5 or done == total:
            console.print(f"{done}/{total} verdicts", markup=False)
            shown = percent

    result = judge(pairs, engine, options.output / "verdicts.jsonl", on_progress=show)
    tree = {"a": first, "b": second, "unpaired": alone, **result.to_dict()}
    write_or_rescue(options.output, lambda folder: write_json(folder / "judge.json", tree))
    return result


def read_pairs(first: str, second: str, columns: Columns) -> tuple[list[Pair], int]:
    """Pairs of answers to the same prompt, the i-th of one file with the i-th of the other; and how many stay alone.

    Raises:
        DataError: a file cannot be read, or there is no pair.
    """
    left, right = _answers(first, columns), _answers(second, columns)
    pairs = [
        Pair(asked, a, b) for asked in left if asked in right for a, b in zip(left[asked], right[asked], strict=False)
    ]
    if not pairs:
        raise DataError(
            f"{first} and {second}: no prompt has an answer in both. Let both systems answer the same rows "
            "(bridgegarden generate)."
        )
    return pairs, sum(map(len, left.values())) + sum(map(len, right.values())) - 2 * len(pairs)


def _answers(source: str, columns: Columns) -> Mapping[str, list[str]]:
    """Answers by prompt, in order."""
    found: dict[str, list[str]] = defaultdict(list)
    for number, row in enumerate(RowsAsWritten(load_rows(source))):
        asked, answer = _split(conversation(row, columns, place=f"{place('answers', source)}, row {number}"))
        found[asked].append(answer)
    return found


def _split(chat: Conversation) -> tuple[str, str]:
    """What was asked, as text, and the last answer."""
    last = max(place for place, message in enumerate(chat.messages) if message["role"] == "assistant")
    before: list[dict[str, Any]] = list(chat.messages[:last])
    if len(before) == 1:
        return before[0]["content"], chat.messages[last]["content"]
    turns = "\n\n".join(f"[{message['role']}]\n{message['content']}" for message in before)
    return turns, chat.messages[last]["content"]
