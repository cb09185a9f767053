"""The trained model on disk, whole or not at all, and from there to the hub."""

import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bridgegarden.errors import ConfigError
from bridgegarden.files import partial
from bridgegarden.preflight import Preflight
from bridgegarden.recipe import Recipe
from bridgegarden.run.checkpoints import checkpoints_in, put_aside_in
from bridgegarden.run.models import load_model
from bridgegarden.run.output import OutputFolder

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from bridgegarden.training.trainer import HybridDistillationTrainer

CARD = "README.md"
NOT_OURS = ("training_args.bin", CARD)
"""What the trainer and PEFT add to a saved model: a pickle, and a card that says less than ours."""


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
    with _errors("training.push_to_hub: the model could not be published in the end"):
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
    with _errors(f"training.push_to_hub: {model} is finished, but could not be published as {target.repo}"):
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
def _errors(what: str) -> Iterator[None]:
    # That of whichever HTTP library this version is built on.
    from huggingface_hub.errors import HTTPError  # pyright: ignore[reportPrivateImportUsage]

    try:
        yield
    except (OSError, ValueError, HTTPError) as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0].rstrip(" .:")
        raise ConfigError(
            f"{what} ({reason}). Log in (hf auth login), check the network and training.hub_model_id, and run the same "
            "command again; or leave training.push_to_hub out."
        ) from error
