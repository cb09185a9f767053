"""A recipe whose models and data have been checked, with nothing heavy loaded yet; and ``--audit`` of its rows."""

from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING

from bridgegarden.data import TokenisedRow, audit_text, vocabulary_size
from bridgegarden.data.encode import Keep
from bridgegarden.data.teacher_prompt import TEACHER_IDS, TEACHER_LABELS
from bridgegarden.errors import ConfigError, ModelError, quoted
from bridgegarden.export.usage import gguf_fault
from bridgegarden.objective.loss_route import LossRoute, loss_route, route_text, whole_vocabulary_error
from bridgegarden.preflight import Pair, Preflight, preflight
from bridgegarden.recipe import Recipe, build_lora_config, build_objective, build_sft_config, describe_objective
from bridgegarden.run.cut_student import CutStudent
from bridgegarden.run.kappa_probe import check_probes, probe_hashes
from bridgegarden.run.output import OutputFolder
from bridgegarden.run.pair import recipe_pair, tell_decided
from bridgegarden.run.recipe_teacher import cache_folders
from bridgegarden.run.rows import RunData, mix_text, rules_of, training_rows
from bridgegarden.run.teachers import teacher_of
from bridgegarden.teacher.cache.manifest import MANIFEST, read_spec
from bridgegarden.training.measured import OF_TEACHER

if TYPE_CHECKING:
    from datasets import Dataset
    from peft import LoraConfig
    from rich.console import Console
    from trl.trainer.sft_config import SFTConfig

    from bridgegarden.objective.hybrid import HybridObjective

SAVE_KEYS = ("save_strategy", "save_steps", "save_total_limit", "save_only_model")
"""Settings by which a recipe says that it wants checkpoints kept."""
PREFETCHING_WORKERS = 2
"""Processes that read a teacher's cache ahead of a GPU, unless the recipe says otherwise."""
DEFAULT_LENGTH = 1024
"""Tokens a row is taken to have where nothing limits it, for the memory estimate."""
ROWS = 100
"""How many rows of a source are tokenised for the counts."""


@dataclass(frozen=True, kw_only=True)
class CheckedRun:
    """What every part of a run needs."""

    recipe: Recipe
    folder: OutputFolder
    arguments: "SFTConfig"
    lora: "LoraConfig | None"
    """None where every weight is trained."""
    preflight: Preflight
    data: RunData

    @property
    def is_main(self) -> bool:
        """Whether this process is the one of a distributed run that writes files."""
        return self.arguments.process_index == 0

    @property
    def objective(self) -> "HybridObjective":
        """What is minimised."""
        return build_objective(self.recipe.objective)

    @property
    def objective_text(self) -> str:
        """Every field of the objective, on one line."""
        return describe_objective(self.objective)

    @property
    def probes(self) -> dict[str, str]:
        """Of every file that the objective reads its content, by which one run is told from another."""
        return probe_hashes(self.objective)

    @property
    def on_policy_text(self) -> str | None:
        """Every setting of on-policy batches, on one line; None where there are none."""
        on_policy = self.recipe.on_policy
        return None if on_policy is None else ", ".join(f"{k}={v}" for k, v in asdict(on_policy).items())

    @property
    def loss_route(self) -> LossRoute:
        """What reads and writes the logits in the loss."""
        return loss_route(self.recipe.training.loss_kernel, self.arguments.device, self.preflight.student.dtype)

    @property
    def quantised(self) -> str | None:
        """The type of file that the student is trained for; None where it is trained as it is."""
        section = self.recipe.training.quantised
        return None if section is None else section.kind

    @property
    def keeps_checkpoints(self) -> bool:
        """Whether checkpoints stay once the model is saved. Else the newest two are kept only until then."""
        return _asks_for_checkpoints(self.recipe)


def check_run(
    recipe: Recipe, folder: OutputFolder, arguments: "SFTConfig", console: "Console", *, asked: bool = False
) -> CheckedRun:
    """Models, then data: whatever can be found wrong without loading weights. Tells `console` what was found.

    Args:
        recipe: what to do.
        folder: where to.
        arguments: of the trainer.
        console: for what was found.
        asked: whether what the teacher says of the rows is read even where nothing of it is learnt.

    Raises:
        ModelError: the models cannot be used, or not with each other.
        DataError: a row cannot be used.
        ConfigError: PEFT is missing, or a kappa probe is of other models.
    """
    lora = None if recipe.student.lora is None else build_lora_config(recipe.student.lora)
    # What the student writes comes on top of a prompt that may be as long as a row.
    written = 0 if recipe.on_policy is None else recipe.on_policy.max_new_tokens
    positions = arguments.per_device_train_batch_size * ((arguments.max_length or DEFAULT_LENGTH) + written)
    teacher = teacher_of(recipe)
    pair = recipe_pair(recipe, translates=True, asked=asked or not recipe.learns_data_alone)
    checked = preflight(
        pair,
        positions=positions,
        lora=lora,
        use_cpu=arguments.use_cpu,
        teacher_cached=recipe.free_running is None and (recipe.teacher.is_cached or not pair.asked),
        top_k=recipe.teacher.top_k,
    )
    _check_with_student(arguments, checked)
    if recipe.training.quantised is not None:
        _check_quantised(checked)
    probes = check_probes(
        build_objective(recipe.objective),
        checked.teachers,
        tokenizer=checked.endings.tokenizer,
        vocab_size=checked.match.vocab_size,
    )
    report(console, checked, (teacher.warnings(checked) if checked.asked else ()) + probes)
    _choose_loss(recipe, arguments, checked, console)
    if recipe.student.from_ is not None:
        cut = CutStudent.of(recipe).summary(checked.student)
        console.print(cut, markup=False, soft_wrap=True)
    data = teacher.rows(checked)
    tell_decided(console, checked, data.train)
    if data.mix is not None:
        console.print(data.mix, markup=False, soft_wrap=True)
    return CheckedRun(recipe=recipe, folder=folder, arguments=arguments, lora=lora, preflight=checked, data=data)


def _check_with_student(arguments: "SFTConfig", checked: Preflight) -> None:
    """Settings that mean something to one student and nothing to the next."""
    tokenizer = checked.endings.tokenizer
    for name in ("eos_token", "pad_token"):
        token = getattr(arguments, name)
        if token is not None and token not in tokenizer.get_vocab():
            raise ConfigError(f"training.{name}: {quoted(token)} is no token of the student's; leave it out.")
    metric = (arguments.metric_for_best_model or "").removeprefix("eval_")
    if metric in OF_TEACHER and not checked.asked:
        raise ConfigError(
            f"training.metric_for_best_model: {metric!r} is about the teacher, which is not asked where hard labels of "
            "the data are all that is learnt. Take 'loss', or leave it out."
        )
    text = checked.student.config.get_text_config()
    if arguments.router_aux_loss_coef and not hasattr(text, "output_router_logits"):
        raise ConfigError("training.router_aux_loss_coef: the student is no mixture of experts; leave it out.")


def _choose_loss(recipe: Recipe, arguments: "SFTConfig", checked: Preflight, console: "Console") -> None:
    """Refuse kernels that cannot serve the run, and say by what its loss is computed where there is a choice."""
    asked = recipe.training.loss_kernel
    route = loss_route(asked, arguments.device, checked.student.dtype)
    if route == "triton" and _whole_vocabulary(recipe, checked):
        raise whole_vocabulary_error()
    if asked != "auto" or arguments.device.type == "cuda":
        console.print(route_text(asked, route), markup=False, soft_wrap=True)


def _whole_vocabulary(recipe: Recipe, pair: Pair) -> bool:
    """Whether the loss would see the teacher's whole distribution; what is translated, or a label, is some of it."""
    section = recipe.teacher
    if pair.translates or not pair.asked or not (section.is_cached or section.reads_batches):
        return False
    if section.is_cached:
        return any(read_spec(folder).is_dense for folder in cache_folders(recipe) if (folder / MANIFEST).exists())
    return section.top_k is None or section.top_k >= vocabulary_size(pair.endings.tokenizer)


def _check_quantised(checked: Preflight) -> None:
    """A student that is trained for a file has to be one that can be written to it.

    Raises:
        ModelError: it is not.
    """

    fault = gguf_fault(checked.student.config, checked.endings.tokenizer)
    if fault is not None:
        raise ModelError(f"training.quantised: the student {checked.student.reference.model!r}: {fault}")


def training_arguments(recipe: Recipe, folder: OutputFolder) -> "SFTConfig":
    """TRL's arguments, with what the command decides.

    Raises:
        ConfigError: TRL refuses them.
    """
    watched = recipe.free_running
    arguments = build_sft_config(
        recipe.training,
        folder.checkpoints,
        evaluate=recipe.data.eval is not None,
        select_by=None if watched is None else watched.select_by,
    )
    arguments.disable_tqdm = True
    # The trainer would publish its checkpoints as it goes on; the command publishes the finished model.
    arguments.push_to_hub = False
    if not _asks_for_checkpoints(recipe):
        # Two, so that there is one to fall back on.
        arguments.save_total_limit = 2
    if arguments.device.type == "cpu":
        arguments.dataloader_pin_memory = False
    elif recipe.teacher.is_cached and "dataloader_num_workers" not in recipe.training.arguments:
        # Signals are read and decoded while the GPU computes. On a CPU workers would only take its cores.
        arguments.dataloader_num_workers = PREFETCHING_WORKERS
    if arguments.n_gpu > 1:
        # Several visible GPUs and one process: train on the first, and leave the others to `teacher.device`.
        arguments._n_gpu = 1
    return arguments


def report(console: "Console", checked: Preflight, warnings: tuple[str, ...]) -> None:
    """What preflight found, for a person, with `warnings` of the teacher."""
    from rich.text import Text

    console.print(Text(checked.summary), soft_wrap=True)
    console.print(checked.memory.table())
    for warning in checked.warnings + warnings:
        console.print(Text.assemble(("warning: ", "yellow"), warning), soft_wrap=True)


def _asks_for_checkpoints(recipe: Recipe) -> bool:
    return any(key in recipe.training.arguments for key in SAVE_KEYS)


def audit(recipe: Recipe) -> str:
    """The first row of each source with what is learnt marked, counts over the first rows, and warnings.

    Raises:
        DataError: one of the first rows cannot be used.
        ModelError: the models do not fit together.
    """
    teacher = teacher_of(recipe)
    pair = recipe_pair(recipe, translates=True, asked=not recipe.learns_data_alone)
    endings = pair.endings
    max_length, rules = recipe.training.arguments["max_length"], rules_of(recipe, pair.tokens, cut=False)
    several = len(recipe.data.sources) > 1
    mix = training_rows(recipe.data, None if several else ROWS)
    head = replace(mix, parts=tuple(part.first(ROWS) for part in mix.parts if len(part.rows)))
    made = teacher.tokenised(head, pair, rules)
    rows, counts = [], []
    before = 0
    for part, data in zip(head.parts, made, strict=True):
        first = _row(data, 0).truncated(max_length, rules.keep)
        number = data[0]["row"] - (0 if "row" in part.rows.column_names else before)
        rows.append(f"{part.name}, row {number}: {audit_text(first, endings.tokenizer)}")
        if first.teacher is not None:
            rows.append(f"as the teacher reads it: {audit_text(first.teacher, pair.read_by)}")
        of = f" of {part.name}" if several else ""
        counts.append(f"first {len(part.rows)} rows{of}: {_counts(data, len(part.rows), max_length, rules.keep)}")
        before += part.total
    template = "none; plain text" if endings.template_from is None else f"the {endings.template_from}'s"
    end = endings.tokenizer.convert_ids_to_tokens(endings.taught)
    told = mix_text(mix)
    return "\n".join(
        [
            *rows,
            "",
            f"chat template: {template}",
            f"end of turn:   {end!r} (id {endings.taught})",
            *(() if told is None else (told,)),
            *counts,
            *(f"warning: {warning}" for warning in pair.warnings),
        ]
    )


def _counts(tokenised: "Dataset", read: int, max_length: int | None, keep: Keep) -> str:
    rows = [_row(tokenised, index) for index in range(len(tokenised))]
    lengths = [len(row.input_ids) for row in rows]
    parts = [
        f"{sum(lengths) / len(rows):.0f} tokens a row (at most {max(lengths)})",
        f"{sum(row.supervised for row in rows) / sum(lengths):.0%} supervised",
    ]
    if max_length is not None:
        cut = [row.truncated(max_length, keep) for row in rows if len(row.input_ids) > max_length]
        lost = sum(row.supervised == 0 for row in cut) + read - len(rows)
        parts += [f"{len(cut)} longer than training.max_length {max_length}", f"{lost} with nothing left to learn"]
    return ", ".join(parts)


def _row(dataset: "Dataset", index: int) -> TokenisedRow:
    row = dataset[index]
    asked = TokenisedRow(input_ids=row[TEACHER_IDS], labels=row[TEACHER_LABELS]) if TEACHER_IDS in row else None
    return TokenisedRow(input_ids=row["input_ids"], labels=row["labels"], teacher=asked)
