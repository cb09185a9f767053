"""The finished model on the hub, where a recipe asks for it: under the output's own name, with our card."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from bridgegarden.errors import ConfigError
from bridgegarden.recipe import Recipe


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
