"""lm-eval in this process: a model in memory, and tasks by name."""

from dataclasses import asdict, dataclass, field
from importlib.metadata import version
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from bridgegarden.data import Columns
from bridgegarden.errors import ConfigError, MissingPackageError, ModelError, check_temperature
from bridgegarden.evaluation.confined import CONFINEMENT, check_confinement
from bridgegarden.evaluation.results import Evaluation
from bridgegarden.evaluation.tasks import RUNS_CODE, Chosen, choose, task_name

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from bridgegarden.evaluation.harness import Findings, LoadedTask, Request
    from bridgegarden.evaluation.results import KeptAnswers

BATCH_ON_CPU = 16
"""``auto`` without a GPU: lm-eval finds the largest batch by running out of memory, which a CPU does not survive."""


@dataclass(frozen=True, kw_only=True)
class EvaluationOptions:
    """How a model is evaluated."""

    tasks: tuple[str, ...] = ("offline",)
    """Names of groups (:data:`bridgegarden.evaluation.tasks.GROUPS`) or of tasks, or files of rows."""
    limit: int | None = None
    """At most so many problems of each task, >= 1; None is all."""
    samples: int = 1
    """Answers drawn to each problem of our own tasks beside the greedy one, >= 0."""
    temperature: float = 1.0
    """Of these draws, > 0. Nothing else (top-p, top-k, penalties) shapes them."""
    seed: int = 0
    """Of these draws."""
    batch_size: int | Literal["auto"] = "auto"
    """Sequences at a time, >= 1; ``auto`` is the most that the GPU holds, or 16 without one."""
    chat: Literal["auto", "always", "never"] = "auto"
    """Whether the chat template is used. ``auto``: if there is one, for the offline tasks and for files of rows of
    which training makes turns; not for benchmarks, nor for texts that training takes as they stand."""
    columns: Columns = field(default_factory=Columns)
    """Where files of rows keep questions and answers."""
    allow_code_execution: bool = False
    """Whether programs that the model writes may be run (confined)."""

    def __post_init__(self) -> None:
        for name, least in (("limit", 1), ("samples", 0)):
            value = getattr(self, name)
            if value is not None and value < least:
                raise ConfigError(f"{name} must be >= {least}, got {value}.")
        # Greedy answers are scored in any case.
        check_temperature(self.temperature, "temperature", greedy=False)
        if self.batch_size != "auto" and self.batch_size < 1:
            raise ConfigError(f"batch_size must be >= 1 or 'auto', got {self.batch_size}.")


class PreparedTasks(NamedTuple):
    """Tasks with their data."""

    chosen: Chosen
    loaded: "list[LoadedTask]"


def prepare_tasks(options: EvaluationOptions, *, quiet: bool = False) -> PreparedTasks:
    """Load all tasks, so that what is wrong with them is found before a model is loaded.

    Args:
        options: which.
        quiet: say nothing of it.

    Raises:
        ConfigError: a task is unknown, needs a package or leave to run code, or code cannot be confined here.
        DataError: a data set cannot be had.
    """
    check_installed()
    from bridgegarden.evaluation.harness import load_tasks, quiet_lm_eval
    from bridgegarden.terminal import stderr_console

    chosen = choose(options.tasks, allow_code_execution=options.allow_code_execution)
    if RUNS_CODE & set(chosen.tasks):
        check_confinement()
    console = stderr_console()
    console.quiet = quiet
    for task in chosen.left_out:
        console.print(
            f"{task} is left out: it runs what the model writes. Add --allow-code-execution to include it.",
            markup=False,
            soft_wrap=True,
        )
    console.print(f"loading tasks {', '.join(chosen.tasks)}", markup=False, soft_wrap=True)
    with quiet_lm_eval():
        loaded = load_tasks(
            chosen.tasks, samples=options.samples, temperature=options.temperature, columns=options.columns
        )
        return PreparedTasks(chosen, loaded)


def evaluate_model(
    model: "PreTrainedModel",
    tokenizer: "PreTrainedTokenizerBase",
    options: EvaluationOptions,
    *,
    name: str,
    prepared: PreparedTasks | None = None,
    kept: "KeptAnswers | None" = None,
) -> Evaluation:
    """Run tasks on a model that is in memory, on the device where it is.

    Args:
        model: put in evaluation mode here.
        tokenizer: its own.
        options: which tasks, and how.
        name: what to call the model.
        prepared: of :func:`prepare_tasks` with the same `options`, for one model only; None does it here.
        kept: where its answers are kept as they come, and those of an earlier run are taken from; None keeps none.

    Raises:
        ConfigError, DataError: as :func:`prepare_tasks`.
        ModelError: the model has no room for a task, or no chat template, or its logits are not finite.
    """
    if options.chat == "always" and not tokenizer.chat_template:
        raise ModelError("--chat always: the model's tokenizer has no chat template.")
    chosen, loaded = prepared or prepare_tasks(options)
    from bridgegarden.evaluation.harness import finite_logits, own_distribution, quiet_lm_eval, run_tasks

    model.eval()
    found: list[Findings] = []
    with quiet_lm_eval(), own_distribution(model, tokenizer), finite_logits(model, name):
        for chat in (True, False):
            part = [task for task in loaded if _as_chat(task, tokenizer, options) == chat]
            if part:
                found.append(run_tasks(model, tokenizer, part, _request(model, options, chat), kept))
    scores = [score for findings in found for score in findings.scores]
    order = [task_name(task) for task in chosen.tasks]
    scores.sort(key=lambda score: order.index(score.part_of or score.task))
    return Evaluation(
        model=name,
        scores=tuple(scores),
        problems=tuple(problem for findings in found for problem in findings.problems),
        settings=_settings(options, PreparedTasks(chosen, loaded), model, tokenizer),
    )


def check_installed() -> None:
    """Make sure that lm-eval is there.

    Raises:
        ConfigError: it is not.
    """
    from importlib.util import find_spec

    if find_spec("lm_eval") is None:
        raise MissingPackageError(
            "evaluating takes lm-eval, which is not installed. Install it: pip install 'bridgegarden[eval]'"
        )


def _as_chat(task: "LoadedTask", tokenizer: "PreTrainedTokenizerBase", options: EvaluationOptions) -> bool:
    if options.chat == "auto":
        return task.as_turns and bool(tokenizer.chat_template)
    return options.chat == "always"


def _request(model: "PreTrainedModel", options: EvaluationOptions, chat: bool) -> "Request":
    from bridgegarden.evaluation.harness import Request

    batch = options.batch_size
    if batch == "auto" and model.device.type == "cpu":
        batch = BATCH_ON_CPU
    return Request(limit=options.limit, batch_size=batch, seed=options.seed, chat=chat)


def _settings(
    options: EvaluationOptions, prepared: PreparedTasks, model: "PreTrainedModel", tokenizer: "PreTrainedTokenizerBase"
) -> dict[str, Any]:
    chosen, loaded = prepared
    asked_as_chat = [
        name for name, task in zip(chosen.tasks, loaded, strict=True) if _as_chat(task, tokenizer, options)
    ]
    code = RUNS_CODE & set(chosen.tasks)
    return {
        **asdict(options),
        "tasks": list(chosen.tasks),
        "left_out": list(chosen.left_out),
        "asked_as_chat": asked_as_chat,
        "confinement": CONFINEMENT if code else None,
        "device": str(model.device),
        "dtype": str(model.dtype).removeprefix("torch."),
        "parameters": model.num_parameters(),
        "lm_eval": version("lm-eval"),
    }
