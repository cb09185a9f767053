"""How good answers are: scores of a recipe or a model (``bridgegarden evaluate``), and a judge of two (``judge``)."""

import re
import signal
import sys
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from bridgegarden.data import (
    Columns,
    Conversation,
    RowsAsWritten,
    conversation,
    load_rows,
    place,
    tokenizer_fingerprint,
)
from bridgegarden.errors import ConfigError, DataError, Stopped
from bridgegarden.evaluation.judge import JudgeResult, Pair, judge
from bridgegarden.evaluation.lm_eval import EvaluationOptions, PreparedTasks, evaluate_model, prepare_tasks
from bridgegarden.evaluation.results import Evaluation, KeptAnswers
from bridgegarden.files import write_json, write_text
from bridgegarden.preflight import ModelFacts, ModelReference, load_facts
from bridgegarden.run.models import gguf_facts, load_model, model_identity, placed, usable_device
from bridgegarden.run.output import check_writable, named_model, named_recipe, write_or_rescue
from bridgegarden.run.quiet import quiet_libraries
from bridgegarden.run.record import git_commit, now, package_versions
from bridgegarden.run.rows import columns_of
from bridgegarden.teacher.server import Server, ServerEngine
from bridgegarden.teacher.server_connection import api_key

if TYPE_CHECKING:
    from transformers import PreTrainedModel


@dataclass(frozen=True, kw_only=True)
class EvaluateTarget:
    """What is evaluated, and where."""

    source: str
    """A recipe's file or shipped name, whose trained student is meant; or a model's folder, its name on the hub, or a
    GGUF file."""
    overrides: tuple[str, ...] = ()
    """Changes to the recipe."""
    output: Path | None = None
    """Folder for the result; None is ``OUTPUT/evaluation/TASKS`` of a recipe, else ``runs/evaluation/NAME/TASKS``."""
    dtype: str = "auto"
    """Type of the weights; ``auto`` is the type they were saved in, and float32 of a GGUF file."""
    device: str | None = None
    """Such as ``cuda:1``; None is a GPU if there is one."""
    tokenizer: str | None = None
    """Of a GGUF file, the model that it was made of; None finds one (:func:`~bridgegarden.run.models.gguf_facts`)."""


class EvaluationFiles(NamedTuple):
    """Where the result is."""

    folder: Path

    @property
    def results(self) -> Path:
        """Scores and settings."""
        return self.folder / "results.json"

    @property
    def answers(self) -> Path:
        """The model's answers while they come; gone once the result is there."""
        return self.folder / "answers.jsonl"

    @property
    def page(self) -> Path:
        """The same to read."""
        return self.folder / "results.md"

    @property
    def problems(self) -> Path:
        """Scores and answers, a line for each task and problem."""
        return self.folder / "problems.jsonl"


def evaluate_target(target: EvaluateTarget, options: EvaluationOptions) -> tuple[Evaluation, EvaluationFiles]:
    """Evaluate a model and write what was found.

    Answers are on disk as they come: after whatever ended a run, the same call asks only for those that are missing.

    Raises:
        ConfigError: no such recipe, it is not trained yet, or a setting or task cannot be used; or the result could
            only be written elsewhere.
        DataError: a data set cannot be had.
        ModelError: the model cannot be loaded, or does not fit a task.
        Stopped: interrupted.
    """
    from bridgegarden.terminal import counted, stderr_console

    model_name, folder = named_model(target.source, target.overrides, "evaluation")
    recipe = named_recipe(target.source, target.overrides)
    if recipe is not None:  # what it was taught on says how files of rows are read
        options = replace(options, columns=columns_of(recipe.data))
    files = EvaluationFiles((target.output or folder / _label(options.tasks)).expanduser())
    check_writable(files.folder, "output")
    device = usable_device(target.device, "--device")
    console = stderr_console()
    with quiet_libraries(interactive=sys.stderr.isatty()):
        facts = _facts(model_name, target)
        prepared = prepare_tasks(options)
        console.print(f"loading model {model_name}", markup=False, soft_wrap=True)
        model = placed(load_model(facts), device)
        if facts.reference.gguf_file is not None and facts.generation_config is not None:
            model.generation_config = facts.generation_config
        with KeptAnswers(files.answers, _deciding(facts, device, options)) as kept:
            if kept.found:
                console.print(f"going on with {counted(kept.found, 'answer')} of an earlier run", soft_wrap=True)
            found = _evaluated(model_name, model, facts, options, prepared, kept)
            settings = {"commit": facts.commit, "packages": package_versions(), "git_commit": git_commit()}
            if facts.reference.tokenizer is not None:
                settings["tokenizer"] = facts.reference.tokenizer
            found = replace(found, settings={**found.settings, **settings, "date": now()})
            write_or_rescue(files.folder, lambda folder: _write(EvaluationFiles(folder), found))
            kept.remove()
    return found, files


def _facts(model_name: str, target: EvaluateTarget) -> ModelFacts:
    path = Path(model_name).expanduser()
    if path.suffix.lower() == ".gguf":
        return gguf_facts(path, dtype=target.dtype, tokenizer=target.tokenizer)
    if target.tokenizer is not None:
        raise ConfigError(f"--tokenizer: is for a GGUF file, and {model_name} is a model with a tokenizer of its own.")
    return load_facts(ModelReference(role="model", model=model_name, dtype=target.dtype))


def _evaluated(
    name: str,
    model: "PreTrainedModel",
    facts: ModelFacts,
    options: EvaluationOptions,
    prepared: PreparedTasks,
    kept: KeptAnswers,
) -> Evaluation:
    try:
        return evaluate_model(model, facts.tokenizer, options, name=name, prepared=prepared, kept=kept)
    except KeyboardInterrupt:
        words = "interrupted. The answers so far are kept; the same command goes on."
        raise Stopped(signal.SIGINT, words) from None


def _deciding(facts: ModelFacts, device: str, options: EvaluationOptions) -> dict[str, Any]:
    """What a model's answer depends on beside the question."""
    identity, packages = model_identity(facts), package_versions()
    return {
        "weights": identity["weights"] or facts.commit,
        "config": facts.config.to_json_string(use_diff=False),
        "tokenizer": tokenizer_fingerprint(facts.tokenizer),
        "dtype": str(facts.dtype),
        "device": device.partition(":")[0],
        "seed": options.seed,
        "packages": {name: packages.get(name) for name in ("torch", "transformers", "tokenizers", "lm-eval")},
    }


def _label(tasks: Sequence[str]) -> str:
    """A folder's name for what is run: another choice of tasks does not overwrite it."""
    return re.sub(r"[^\w.-]+", "-", "+".join(tasks))[:80].strip("-")


def _write(files: EvaluationFiles, found: Evaluation) -> None:
    write_json(files.results, found.to_dict())
    write_text(files.page, found.to_markdown())
    write_text(files.problems, found.problem_lines())


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
