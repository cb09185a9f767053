"""lm-eval's side of an evaluation: its tasks by name, with their data, and one call of it from model to scores."""

import contextlib
import hashlib
import json
import logging
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from lm_eval.api.group import Group
from lm_eval.tasks import TaskManager
from lm_eval.tasks._yaml_loader import load_yaml

from bridgegarden.data import Columns, end_of_turn_ids
from bridgegarden.errors import BridgegardenError, ConfigError, DataError, ModelError
from bridgegarden.evaluation.progress import our_bars
from bridgegarden.evaluation.results import KeptAnswers, Score, reported_ks
from bridgegarden.evaluation.tasks import FOLDER, GROUPS, RUNS_CODE, is_file, is_own, task_name
from bridgegarden.evaluation.tasks.programs import to_answer
from bridgegarden.evaluation.tasks.questions import Questions, read_questions, rows_task

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

EXPECTED = (
    "`pretrained` model kwarg is not of type `str`",
    "Passed an already-initialized model",
    "Custom kwargs can be passed to",
    "overrides existing task",
)
"""Parts of what lm-eval warns of in every run."""

FEWSHOT_SEED = 1234
"""lm-eval's own, so that prompts are those of published scores."""

SAMPLED = "_sampled"
"""Ends lm-eval's name of the variant of a task whose answers are drawn."""


@dataclass(frozen=True)
class LoadedTask:
    """What one name stands for."""

    name: str
    """As it was asked for, a file without its folder."""
    as_turns: bool
    """Whether it is asked as chat where there is a template, unless the user says otherwise."""
    objects: tuple[Any, ...]
    """lm-eval's tasks and groups: of our own tasks the greedy and, if wanted, the sampled variant."""

    @property
    def tasks(self) -> list[Any]:
        """Every single task."""
        return [task for item in self.objects for task in (item.get_all_tasks() if isinstance(item, Group) else [item])]

    @property
    def groups(self) -> list[Any]:
        """Every group of lm-eval, those within others included."""
        return [group for item in self.objects if isinstance(item, Group) for group in (item, *item.get_all_groups())]

    @property
    def names(self) -> list[str]:
        """lm-eval's names of all of it, groups first."""
        return list(dict.fromkeys([*(group.name for group in self.groups), *(task.task_name for task in self.tasks)]))


def load_tasks(
    names: Sequence[str], *, samples: int, temperature: float, columns: Columns | None = None
) -> list[LoadedTask]:
    """Tasks with their data, all of them before any is run.

    Args:
        names: of tasks, or of groups of lm-eval.
        samples: answers drawn to each problem of our own tasks; 0 is no such variant.
        temperature: of these draws.
        columns: where files of rows keep questions and answers; None looks for the usual names.

    Raises:
        ConfigError: a name is unknown, a package is missing, or a task would run programs unconfined.
        DataError: data sets cannot be had; names all of them.
    """
    # Indexing lm-eval's own thousands of tasks takes ten seconds.
    manager = TaskManager(include_path=str(FOLDER), include_defaults=not all(map(is_own, names)))
    for name in names:
        _check_name(name, manager)
    loaded: list[LoadedTask] = []
    missing: dict[str, Exception] = {}
    for name in names:
        try:
            questions = read_questions(name, columns or Columns()) if is_file(name) else None
            as_turns = name in GROUPS["offline"] if questions is None else questions.as_turns
            objects = _objects(name, questions, manager, samples, temperature)
            found = LoadedTask(task_name(name), as_turns, tuple(objects))
        except BridgegardenError:
            raise
        except ImportError as error:
            raise ConfigError(f"{name}: needs a package that is not installed ({_first_line(error)}).") from error
        except Exception as error:  # the hub's clients raise kinds of their own, which share no base
            missing[name] = error
            continue
        for task in found.tasks:
            if getattr(task, "UNSAFE_CODE", False) and not is_own(name):
                raise _unconfined(task.task_name)
        loaded.append(found)
    if missing:
        raise DataError(_missing(missing, manager))
    return loaded


@dataclass(frozen=True, kw_only=True)
class Request:
    """How tasks are run."""

    limit: int | None
    batch_size: int | Literal["auto"]
    seed: int
    chat: bool
    """Whether the prompts are a user's turns in the chat template."""


class Findings(NamedTuple):
    """What came of some tasks; see :class:`~bridgegarden.evaluation.results.Evaluation`."""

    scores: list[Score]
    problems: list[dict[str, Any]]


def run_tasks(
    model: "PreTrainedModel",
    tokenizer: "PreTrainedTokenizerBase",
    loaded: Sequence[LoadedTask],
    request: Request,
    kept: KeptAnswers | None = None,
) -> Findings:
    """Run `loaded` on `model`, and keep its answers in `kept` as they come.

    Raises:
        ModelError: a prompt and the answer to it are longer than what the model can read.
    """
    import torch
    from lm_eval.evaluator import evaluate
    from lm_eval.models.huggingface import HFLM

    harness: Any = HFLM  # lm-eval's registry hides its type
    lm = harness(pretrained=model, tokenizer=tokenizer, batch_size=request.batch_size)
    if kept is not None:
        kept.attach(lm)
    for item in loaded:
        for task in item.tasks:
            _prepare(task, lm, request, own=is_own(item.name))
    devices = [] if model.device.type == "cpu" else [model.device]
    # What lm-eval prints is which batch size it found.
    with contextlib.redirect_stdout(sys.stderr), our_bars(), torch.random.fork_rng(devices):
        # What was drawn for other problems is not to be drawn again for those that are left.
        torch.manual_seed(request.seed + (kept.found if kept is not None else 0))
        try:
            # Not `simple_evaluate`: it also seeds everything and spends seconds on describing the machine.
            results = evaluate(
                lm=lm,
                task_dict=_merged(loaded),
                limit=request.limit,
                apply_chat_template=request.chat,
                fewshot_as_multiturn=True,
                confirm_run_unsafe_code=True,  # `load_tasks` lets none through that is not ours
            )
        except AssertionError as error:
            if "must be less than model's maximum sequence length" not in str(error):
                raise
            raise ModelError(f"the model reads at most {lm.max_length} tokens, which is too few ({error}).") from error
    assert results is not None
    return Findings(_scores(results, loaded), _problems(results, loaded))


@contextlib.contextmanager
def own_distribution(model: "PreTrainedModel", tokenizer: "PreTrainedTokenizerBase") -> Iterator[None]:
    """Without the model's own generation settings, whose penalties and cut-offs would make it another model."""
    from transformers import GenerationConfig

    usual = model.generation_config
    stops = list(end_of_turn_ids(tokenizer, usual))
    model.generation_config = GenerationConfig(eos_token_id=stops, pad_token_id=stops[0])
    try:
        yield
    finally:
        model.generation_config = usual


@contextlib.contextmanager
def finite_logits(model: "PreTrainedModel", name: str) -> Iterator[None]:
    """Stop where `model` gives no numbers: tasks would count that as wrong answers.

    The last position of every row is looked at. It sees all the others, and padding is on the left where it writes.

    Raises:
        ModelError: a logit is not a number, or infinite.
    """
    import torch

    def check(module: Any, inputs: Any, output: Any) -> None:
        if not torch.isfinite(output.logits[:, -1].amax(-1)).all():
            raise ModelError(
                f"{name}: its logits are not finite, so that its scores would mean nothing. Load it in bfloat16 or "
                "float32 (--dtype), or mend its weights."
            )

    hook = model.register_forward_hook(check)
    try:
        yield
    finally:
        hook.remove()


@contextlib.contextmanager
def quiet_lm_eval() -> Iterator[None]:
    """Its warnings, without those that every run has; and not its notes."""
    logger = logging.getLogger("lm_eval")
    level = logger.level
    names = ("lm_eval.models.huggingface", "lm_eval.api.task", "lm_eval.tasks._index", "lm_eval.evaluator")
    logger.setLevel(logging.WARNING)
    for name in names:
        logging.getLogger(name).addFilter(_is_news)
    try:
        yield
    finally:
        logger.setLevel(level)
        for name in names:
            logging.getLogger(name).removeFilter(_is_news)


def _is_news(record: logging.LogRecord) -> bool:
    return not any(part in record.getMessage() for part in EXPECTED)


def _merged(loaded: Sequence[LoadedTask]) -> dict[str, Any]:
    """`loaded` as ``TaskManager.load`` gives what is named together."""
    groups = {group.name: group for item in loaded for group in item.groups}
    return {
        "tasks": {task.task_name: task for item in loaded for task in item.tasks},
        "groups": groups,
        "group_map": {name: group.child_names for name, group in groups.items()},
    }


def _prepare(task: Any, lm: Any, request: Request, *, own: bool) -> None:
    if task.config.num_fewshot is None:
        task.set_config("num_fewshot", 0)
    task.set_fewshot_seed(FEWSHOT_SEED)
    if own:
        if request.chat and task.task_name.removesuffix(SAMPLED) in RUNS_CODE and task.config.num_fewshot == 0:
            # A chat model answers with a block of code, which what ends a continuation would cut off.
            task.set_config("doc_to_text", to_answer)
            task.set_config("generation_kwargs", {"until": []}, update=True)
        _make_room(task, lm, request)


def _make_room(task: Any, lm: Any, request: Request) -> None:
    """Shorten the longest answer, if the model cannot read so much; lm-eval would cut the question instead."""
    texts = [task.doc_to_text(row) for row in task.eval_docs]
    if request.chat:
        texts = [lm.apply_chat_template([{"role": "user", "content": text}]) for text in texts]
    longest = max(len(lm.tok_encode(text)) for text in texts)
    wanted = task.config.generation_kwargs["max_gen_toks"]
    room = lm.max_length - longest
    if room < 1:
        raise ModelError(
            f"{task.task_name}: its longest question has {longest} tokens, and the model reads at most {lm.max_length}."
        )
    task.set_config("generation_kwargs", {"max_gen_toks": min(wanted, room)}, update=True)


def _scores(results: Mapping[str, Any], loaded: Sequence[LoadedTask]) -> list[Score]:
    scores: list[Score] = []
    for item in loaded:
        decoding = {task.task_name: _decoding(task) for task in item.tasks}
        for name in item.names:
            values = results["results"].get(name, {})
            for key, mean in values.items():
                metric, comma, filter_name = key.partition(",")
                if not comma or metric.endswith("_stderr") or not isinstance(mean, int | float):
                    continue
                stderr = values.get(f"{metric}_stderr,{filter_name}")
                task = _own_name(name)
                scores.append(
                    Score(
                        task=task,
                        metric=metric,
                        filter=filter_name,
                        decoding=decoding.get(name) or _decoding(item.tasks[0]),
                        mean=float(mean),
                        stderr=float(stderr) if isinstance(stderr, int | float) else None,
                        problems=int(values["sample_len"]),
                        part_of=None if task == item.name else item.name,
                    )
                )
    return scores


def _own_name(name: str) -> str:
    """Of our own tasks the name that both variants have."""
    own = name.removesuffix(SAMPLED)
    return own if is_own(own) else name


def _decoding(task: Any) -> str:
    if task.OUTPUT_TYPE != "generate_until":
        return "likelihood"
    return "sampled" if (task.config.generation_kwargs or {}).get("do_sample") else "greedy"


def _problems(results: Mapping[str, Any], loaded: Sequence[LoadedTask]) -> list[dict[str, Any]]:
    return [
        _problem(task, sample)
        for item in loaded
        for task in item.tasks
        for sample in results["samples"][task.task_name]
    ]


def _problem(task: Any, sample: Mapping[str, Any]) -> dict[str, Any]:
    found = {
        "task": _own_name(task.task_name),
        "decoding": _decoding(task),
        "filter": sample["filter"],
        "problem": _hash(sample),
        "scores": {metric: sample[metric] for metric in sample["metrics"] if isinstance(sample[metric], int | float)},
    }
    answers = sample["resps"][0]
    return {**found, "answers": list(answers)} if all(isinstance(text, str) for text in answers) else found


def _hash(sample: Mapping[str, Any]) -> str:
    """The same for the same problem, whatever the limit and the order."""
    content = json.dumps([sample["doc_id"], sample["doc_hash"]])
    return hashlib.sha256(content.encode()).hexdigest()[:16]


def _check_name(name: str, manager: TaskManager) -> None:
    if is_file(name):
        return
    entry = manager.task_index.get(name)
    if entry is None:
        close = get_close_matches(name, [*GROUPS, *manager.all_tasks], n=1)
        hint = f" Did you mean {close[0]!r}?" if close else ""
        raise ConfigError(
            f"--tasks: unknown task {name!r}.{hint} Known: the groups {', '.join(GROUPS)}, and all that "
            "`lm-eval ls tasks` lists; or a file of rows (.jsonl, .parquet)."
        )
    if (entry.cfg or {}).get("unsafe_code") and not is_own(name):
        raise _unconfined(name)


def _unconfined(name: str) -> ConfigError:
    return ConfigError(
        f"{name}: lm-eval runs what the model writes with all the rights of this process, so it is not run here. What "
        f"is run, confined: {', '.join(sorted(RUNS_CODE))}."
    )


def _objects(
    name: str, questions: Questions | None, manager: TaskManager, samples: int, temperature: float
) -> list[Any]:
    config = _own_config(name, questions) if is_own(name) else None
    loaded = manager.load([name if config is None or questions is None else config])
    groups = loaded.get("groups", {})
    inner = {child for group in groups.values() for child in group.child_names}
    objects: list[Any] = [group for group in groups.values() if group.name not in inner]
    objects += [] if groups else list(loaded["tasks"].values())
    if config is not None and samples:
        objects += manager.load([_sampled(config, samples, temperature)])["tasks"].values()
    return objects


def _own_config(name: str, questions: Questions | None) -> dict[str, Any]:
    if questions is not None:
        return rows_task(name, questions, load_yaml(FOLDER / "bridgegarden_arithmetic.yaml"))
    return load_yaml(FOLDER / f"{name}.yaml")


def _sampled(config: Mapping[str, Any], samples: int, temperature: float) -> dict[str, Any]:
    """The task of `config` with `samples` draws from the model's whole distribution in the place of greedy answers."""
    usual = config["metric_list"][0]
    metrics = [{**usual, "metric": f"pass@{k}"} for k in reported_ks(samples) if k > 1]
    draws = {"do_sample": True, "temperature": temperature, "top_k": 0, "top_p": 1.0}
    return {
        **config,
        "task": config["task"] + SAMPLED,
        "repeats": samples,
        "metric_list": [usual, *metrics],
        "generation_kwargs": {**config["generation_kwargs"], **draws},
    }


def _missing(errors: Mapping[str, Exception], manager: TaskManager) -> str:
    sets = {name: sorted(set(_data_sets(name, manager))) for name in errors}
    listed = ", ".join(f"{name} ({', '.join(found) or 'unknown data set'})" for name, found in sets.items())
    first = next(iter(errors))
    return (
        f"nothing was run: there is no data for {listed}. For {first}: {_first_line(errors[first])}. Check the network "
        "and, for sets with restricted access, `hf auth login`; or fetch them where there is a network (`hf download "
        f"--repo-type dataset {(sets[first] or ['NAME'])[0]}`) and copy the cache (HF_HOME) here; or leave these tasks "
        "out with --tasks. --tasks offline needs no network."
    )


def _data_sets(name: str, manager: TaskManager) -> Iterator[str]:
    """Names on the hub of what a task, or a group with all its tasks, reads."""
    entry = manager.task_index.get(name)
    if entry is None:
        return
    config = entry.cfg or {}
    if "dataset_path" in config:
        yield config["dataset_path"]
        return
    members = config.get("task")
    # A tag is an entry whose `tags` are its members; a task's own name is no member of it.
    for member in members if isinstance(members, list) else entry.tags:
        inner = member if isinstance(member, str) else member.get("task") or member.get("group")
        if isinstance(inner, str) and inner != name:
            yield from _data_sets(inner, manager)


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0][:200].rstrip(" .")
