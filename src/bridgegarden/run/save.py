"""The trained model and its card: on disk, whole or not at all, and from there to the hub."""

import os
import re
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from bridgegarden.errors import ConfigError
from bridgegarden.export.usage import BRIDGEGARDEN, elsewhere, with_transformers
from bridgegarden.files import partial
from bridgegarden.preflight import ModelFacts, Preflight
from bridgegarden.recipe import Recipe
from bridgegarden.run.checked import CheckedRun
from bridgegarden.run.checkpoints import checkpoints_in, put_aside_in
from bridgegarden.run.cut_student import cut_text
from bridgegarden.run.models import load_model
from bridgegarden.run.output import OutputFolder
from bridgegarden.run.record import package_versions

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from bridgegarden.training.trainer import HybridDistillationTrainer

CARD = "README.md"
NOT_OURS = ("training_args.bin", CARD)
"""What the trainer and PEFT add to a saved model: a pickle, and a card that says less than ours."""
REMEDY = (
    "Log in (hf auth login), check the network and training.hub_model_id, and run the same command again; or leave "
    "training.push_to_hub out."
)
HUB_NAME = re.compile(r"[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?")
ARGUMENTS = (
    "max_steps",
    "num_train_epochs",
    "per_device_train_batch_size",
    "gradient_accumulation_steps",
    "learning_rate",
    "lr_scheduler_type",
    "warmup_steps",
    "optim",
    "weight_decay",
    "max_grad_norm",
    "max_length",
    "packing",
    "bf16",
    "fp16",
    "seed",
)
"""The training arguments that shape the result."""


def save_trained(trainer: "HybridDistillationTrainer", folder: OutputFolder, checked: Preflight, card: str) -> None:
    """Save what was trained, to be given its name by :func:`publish_trained`: ``OUTPUT/model``, or the adapters as
    ``OUTPUT/adapter`` and merged as ``OUTPUT/model``.

    Every process of a distributed run must call this, since sharded weights are gathered.
    """
    adapters = hasattr(trainer.model, "peft_config")
    first = folder.adapter if adapters else folder.model
    model = _inner(trainer)
    set_generation_stops(model, checked.endings.stops)
    # The trainer turns the cache off, for good; a saved model without it generates slowly.
    model.config.use_cache = getattr(checked.student.config, "use_cache", True)
    if (sharding := getattr(trainer.accelerator.state, "fsdp_plugin", None)) is not None:
        # Checkpoints may be kept in pieces; what is published is whole.
        sharding.set_state_dict_type("FULL_STATE_DICT")
    trainer.save_model(str(partial(first)))
    trainer.accelerator.wait_for_everyone()
    if not trainer.accelerator.is_main_process:
        return
    _finish(partial(first), card)
    if adapters:
        _merge(partial(folder.adapter), partial(folder.model), checked, trainer.processing_class)
        _finish(partial(folder.model), card)


def publish_trained(folder: OutputFolder) -> None:
    """Give what was saved its name; the model, which says that the run is finished, at the very end."""
    if partial(folder.adapter).exists():
        folder.publish(folder.adapter)
    folder.publish(folder.model)


def set_generation_stops(model: "PreTrainedModel", stops: Sequence[int]) -> None:
    """Let generation of `model` stop at all of `stops`, and make sure that its settings can be saved.

    The trainer sets them to the tokenizer's end of text when training begins, hence once before and once after.
    """
    settings = model.generation_config
    assert settings is not None  # a causal language model has one
    settings.eos_token_id = list(stops)
    try:
        settings.validate(strict=True)
    except ValueError:
        # Several published models set a temperature without sampling, which can be loaded but not saved.
        settings.do_sample = True


def _inner(trainer: "HybridDistillationTrainer") -> "PreTrainedModel":
    model: Any = trainer.accelerator.unwrap_model(trainer.model)
    return model.get_base_model() if hasattr(model, "get_base_model") else model


def _merge(adapter: Path, merged: Path, checked: Preflight, tokenizer: Any) -> None:
    """Into freshly loaded weights: those of the trainer may be sharded or wrapped."""
    from peft import PeftModel

    model: Any = PeftModel.from_pretrained(load_model(checked.student), str(adapter))
    whole = model.merge_and_unload()
    set_generation_stops(whole, checked.endings.stops)
    whole.save_pretrained(merged)
    tokenizer.save_pretrained(merged)


def _finish(saved: Path, card: str) -> None:
    for name in NOT_OURS:
        (saved / name).unlink(missing_ok=True)
    (saved / CARD).write_text(card, encoding="utf-8")


def remove_checkpoints(folder: OutputFolder) -> None:
    """Remove what a run can be taken up from: the model is saved, and nobody asked to keep what led to it.

    What else is in the trainer's folder, such as a tracker's files, stays.
    """
    for checkpoint in (*checkpoints_in(folder.checkpoints), *put_aside_in(folder.checkpoints)):
        shutil.rmtree(checkpoint, ignore_errors=True)
    for path in (folder.lock, folder.checkpoints / CARD):
        path.unlink(missing_ok=True)
    if folder.checkpoints.is_dir() and not any(folder.checkpoints.iterdir()):
        folder.checkpoints.rmdir()


@dataclass(frozen=True, kw_only=True)
class HubTarget:
    """Where a finished model is published."""

    repo: str
    """``owner/name``."""
    private: bool | None
    """Whether only its owner sees it; None is what the owner's account does by default."""
    revision: str | None
    """Branch; None is the main one."""


def hub_target(recipe: Recipe) -> HubTarget | None:
    """Where `recipe` wants its model published, asked of the hub; None where it does not.

    The name is ``training.hub_model_id``, or that of the output folder, of whoever is logged in.

    Raises:
        ConfigError: the hub cannot be reached, nobody is logged in, or a name is none.
    """
    arguments = recipe.training.arguments
    if not arguments.get("push_to_hub"):
        return None
    from huggingface_hub import HfApi
    from huggingface_hub.utils import validate_repo_id

    given = arguments.get("hub_model_id") or recipe.output.resolve().name
    with hub_errors("training.push_to_hub: the model could not be published in the end", REMEDY):
        validate_repo_id(given)
        user = HfApi().whoami()["name"]
    return HubTarget(
        repo=given if "/" in given else f"{user}/{given}",
        private=arguments.get("hub_private_repo"),
        revision=arguments.get("hub_revision"),
    )


def push(model: Path, target: HubTarget) -> str:
    """Publish the folder `model`, every file of it; the address of the commit.

    Raises:
        ConfigError: it cannot be; the folder stays as it is.
    """
    from huggingface_hub import HfApi

    api = HfApi()
    with hub_errors(f"training.push_to_hub: {model} is finished, but could not be published as {target.repo}", REMEDY):
        api.create_repo(target.repo, private=target.private, exist_ok=True)
        if target.revision is not None:
            api.create_branch(target.repo, branch=target.revision, exist_ok=True)
        done = api.upload_folder(
            repo_id=target.repo,
            folder_path=model,
            revision=target.revision,
            commit_message="Publish the distilled student",
        )
    return str(done)


@contextmanager
def hub_errors(what: str, remedy: str) -> Iterator[None]:
    """Whatever the hub, or the way to it, refuses becomes one line.

    Raises:
        ConfigError: `what` did not work, why, and `remedy`.
    """
    # That of whichever HTTP library this version is built on.
    from huggingface_hub.errors import HTTPError  # pyright: ignore[reportPrivateImportUsage]  imported there to be caught

    try:
        yield
    except (OSError, ValueError, HTTPError) as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0].rstrip(" .:")
        raise ConfigError(f"{what} ({reason}). {remedy}") from error


def card_text(
    run: CheckedRun, training: Mapping[str, float], evaluation: Mapping[str, float], hub: HubTarget | None
) -> str:
    """README.md of the model that `run` trained, given its last metrics, and where it is published if it is."""

    def origin(facts: ModelFacts) -> Origin:
        reference = facts.reference
        return Origin(name=reference.model, is_local=reference.is_local, revision=facts.stored_revision)

    recipe, endings = run.recipe, run.preflight.endings
    shares = dict(enumerate((recipe.teacher.mix or {}).values()))
    teachers = [origin(one) for one in run.preflight.teachers] or [Origin(name=recipe.teacher.name, is_local=False)]
    preset = {} if recipe.objective.preset is None else {"preset": recipe.objective.preset}
    arguments = run.arguments.to_dict()
    return ModelCard(
        student=origin(run.preflight.student),
        cut=cut_text(recipe, run.preflight),
        teachers=tuple((shares.get(number), one) for number, one in enumerate(teachers)),
        data=tuple(
            Origin(name=source.path, is_local=Path(os.path.expanduser(source.path)).exists())
            for source in recipe.data.sources
        ),
        rows=len(run.data.train),
        fingerprint=run.data.fingerprints["train"] or "",
        objective=preset
        | {"fields": run.objective_text}
        | ({} if run.on_policy_text is None else {"on-policy": run.on_policy_text})
        | ({} if recipe.teacher.prompt is None else {"the teacher's prompt": str(recipe.teacher.prompt)})
        | ({} if run.preflight.tokens is None else {"tokenizers": f"two, {run.preflight.tokens.settings_text}"}),
        training={name: arguments[name] for name in ARGUMENTS if arguments.get(name) is not None},
        quantised=run.quantised,
        metrics=dict(training) | {f"eval_{name}": value for name, value in evaluation.items()},
        versions=package_versions(),
        end_of_turn=str(endings.tokenizer.convert_ids_to_tokens(endings.taught)),
        has_chat_template=endings.template_from is not None,
        asked=run.preflight.asked,
        # Answers that the teacher wrote are hard labels of a distillation all the same.
        **({} if run.preflight.asked or recipe.teacher.writes_rows else {"tags": ("bridgegarden", "trl")}),
        adapter=run.lora is not None,
        repo=None if hub is None else hub.repo,
        elsewhere=elsewhere(
            "." if hub is None else hub.repo,
            run.preflight.student.config,
            endings.tokenizer,
            kind=run.quantised or "Q8_0",
            adapter=run.lora is not None,
        ),
    ).render()


@dataclass(frozen=True, kw_only=True)
class Origin:
    """A model or data set that went into the trained one."""

    name: str
    """Name on the hub, or a path."""
    is_local: bool
    """Whether it is a path. A path is shown by its last part: the rest tells about the machine, not the model."""
    revision: str | None = None
    """Commit or branch."""

    @property
    def hub_name(self) -> str | None:
        """The name, if it is one on the hub."""
        return None if self.is_local or not HUB_NAME.fullmatch(self.name) else self.name

    @property
    def shown(self) -> str:
        """For a reader, as Markdown."""
        name = re.split(r"[/\\]", self.name.rstrip("/\\"))[-1] if self.is_local else self.name
        text = code(name) + (" (local)" if self.is_local else "")
        return text if self.revision is None else f"{text} at {code(self.revision)}"


@dataclass(frozen=True, kw_only=True)
class ModelCard:
    """What a reader of a trained model wants to know."""

    student: Origin
    cut: str | None = None
    """What it has of the teacher out of which it was cut; None where it was not."""
    teachers: tuple[tuple[float | None, Origin], ...]
    """Each with its weight in the mixture; None where there is one."""
    data: tuple[Origin, ...]
    rows: int
    """Training rows that had something to learn."""
    fingerprint: str
    """Hash of the tokenised training rows."""
    objective: Mapping[str, Any]
    """Every field of the objective, and the preset it came from."""
    training: Mapping[str, Any]
    """The training arguments that matter."""
    metrics: Mapping[str, float]
    """At the end of training."""
    versions: Mapping[str, str]
    """Of packages."""
    end_of_turn: str
    """The token with which the model ends its turn."""
    has_chat_template: bool
    quantised: str | None = None
    """The type of GGUF file that it was trained for."""
    asked: bool = True
    """Whether the teacher was asked about the rows; not where it was trained on hard labels of the data alone."""
    adapter: bool = False
    """Whether adapters were trained and merged."""
    repo: str | None = None
    """Its own name on the hub, if it is published there."""
    elsewhere: str = ""
    """How it becomes what other programs run, as Markdown."""
    tags: tuple[str, ...] = ("bridgegarden", "distillation", "knowledge-distillation", "trl")

    def render(self) -> str:
        """The file, with its YAML front matter."""
        kind = "Adapters were trained and merged into the weights. " if self.adapter else ""
        sections = [
            "# Distilled model" if self.asked else "# Trained model",
            f"A student, {self._student()}, {self._how()}. {kind}It ends its turn with {code(self.end_of_turn)}.",
            *self._made_for(),
            "## Run it",
            "In this folder, with transformers:" if self.repo is None else "With transformers:",
            with_transformers(self.repo or ".", chat=self.has_chat_template),
            *([self.elsewhere] if self.elsewhere else []),
            "## How it was trained",
            card_table("objective", _as_code(self.objective)),
            card_table(
                "data",
                {
                    "rows from": ", ".join(origin.shown for origin in self.data),
                    "rows": f"{self.rows:,}",
                    "SHA-256": code(self.fingerprint),
                },
            ),
            card_table("training", _as_code(self.training)),
            "## How it scores",
            "Per supervised token, in nats, at the end of training; names with `eval_` are on held-out rows. Lower "
            "losses mean a closer fit to the teacher and to the labels on given text, not better answers.",
            card_table("metric", {name: f"{value:.5g}" for name, value in self.metrics.items()}),
            card_table("package", _as_code(self.versions)),
        ]
        return f"---\n{self._front_matter()}---\n\n" + "\n\n".join(sections) + "\n"

    def _student(self) -> str:
        return self.student.shown if self.cut is None else f"cut out of its teacher ({self.cut})"

    def _how(self) -> str:
        if self.asked:
            return f"distilled from {self._taught_by()} with {BRIDGEGARDEN}: hard and soft labels together"
        return f"trained with {BRIDGEGARDEN} on hard labels of the data alone, without asking {self._taught_by()}"

    def _made_for(self) -> list[str]:
        if self.quantised is None:
            return []
        return [
            f"It was trained as a GGUF file of type {self.quantised} holds it: its weights here are whole, and were "
            "rounded to that file's in every forward. The metrics below are those of the file."
        ]

    def _taught_by(self) -> str:
        shares = [one.shown if weight is None else f"{weight:g} x {one.shown}" for weight, one in self.teachers]
        if len(shares) == 1:
            return f"the teacher {shares[0]}"
        if all(weight is None for weight, _ in self.teachers):
            return f"several teachers, each for rows of its own ({', '.join(shares)}),"
        return f"a mixture of teachers, {' + '.join(shares)},"

    def _front_matter(self) -> str:
        front: dict[str, Any] = {"library_name": "transformers", "pipeline_tag": "text-generation"}
        # The hub takes names only: a path of this machine would make the card invalid.
        base = self.student.hub_name if self.cut is None else self.teachers[0][1].hub_name
        if base is not None:
            front |= {"base_model": base, "base_model_relation": "finetune"}
        if names := [origin.hub_name for origin in self.data if origin.hub_name is not None]:
            front["datasets"] = list(dict.fromkeys(names))
        return yaml.safe_dump(front | {"tags": list(self.tags)}, sort_keys=False, allow_unicode=True)


def code(value: object) -> str:
    """`value` as Markdown code on one line, whatever characters it holds."""
    text = "".join(c if c.isprintable() else ascii(c)[1:-1] for c in str(value)) or " "
    longest = max((len(run) for run in re.findall("`+", text)), default=0)
    fence = "`" * (longest + 1)
    pad = " " if text.startswith("`") or text.endswith("`") else ""
    return f"{fence}{pad}{text}{pad}{fence}"


def _as_code(rows: Mapping[str, Any]) -> dict[str, str]:
    return {name: code(value) for name, value in rows.items()}


def card_table(title: str, rows: Mapping[str, str]) -> str:
    """Names and values as Markdown."""
    lines = [f"| {title} | |", "|---|---|"]
    # A bar would end the cell, inside code too.
    return "\n".join([*lines, *(f"| {name} | {value.replace('|', chr(92) + '|')} |" for name, value in rows.items())])
