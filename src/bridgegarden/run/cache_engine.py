"""Which teachers fill a recipe's cache: one in this process, or several in Ray's actors."""

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from bridgegarden.errors import ConfigError
from bridgegarden.preflight import ModelFacts
from bridgegarden.recipe import Recipe
from bridgegarden.run.cache_progress import BuildDisplay
from bridgegarden.run.models import load_model

if TYPE_CHECKING:
    from datasets import Dataset
    from rich.console import Console
    from transformers import PreTrainedModel

    from bridgegarden.run.cache import CacheOptions
    from bridgegarden.teacher.cache.spec import CacheSpec
    from bridgegarden.teacher.cache.writer import BuildResult


def check_engine(recipe: Recipe, options: "CacheOptions") -> None:
    """Make sure that the engine can run, before anything is read.

    Raises:
        ConfigError: Ray is not installed, or a setting does not go with the engine.
    """
    if options.engine == "local":
        if options.actors is not None:
            raise ConfigError("cache: --actors goes with --engine ray; without it there is one teacher.")
        return
    from bridgegarden.teacher.cache.ray_session import check_ray

    if recipe.teacher.server is not None:
        raise ConfigError("cache: --engine ray is for teachers that run here, and teacher.server's does not.")
    device = recipe.teacher.device
    if device is not None and device.startswith("cuda:"):
        raise ConfigError(
            f"teacher.device: {device!r} is one device, and --engine ray gives each actor a GPU of its own. Leave it "
            "out, or say cuda or cpu."
        )
    check_ray()


def fill_recipe_cache(
    recipe: Recipe,
    teacher: ModelFacts,
    folder: Path,
    data: Sequence["Dataset"],
    spec: "CacheSpec",
    options: "CacheOptions",
    console: "Console",
) -> "BuildResult":
    """Load the teacher, as often as the engine needs it, and fill the cache in `folder`.

    Raises:
        ConfigError: the cache cannot be built there, or the engine cannot run.
        ModelError: the teacher cannot be used.
    """
    from bridgegarden.teacher.cache.ray_engine import build_cache_with_ray
    from bridgegarden.teacher.cache.writer import build_cache

    on_cpu = bool(recipe.training.arguments.get("use_cpu"))
    load = partial(load_teacher, teacher, recipe.teacher.device or ("cpu" if on_cpu else None))
    name = recipe.teacher.model
    if options.engine == "local":
        console.print(f"loading teacher {name}", markup=False, soft_wrap=True)
        fill = partial(build_cache, folder, load())
    else:
        console.print(f"starting Ray, whose actors load teacher {name}", markup=False, soft_wrap=True)
        use_gpus = not on_cpu and recipe.teacher.device != "cpu"
        fill = partial(build_cache_with_ray, folder, load, actors=options.actors, use_gpus=use_gpus)
    with BuildDisplay(console) as display:
        return fill(data, spec, part=options.part, batch_tokens=options.batch_tokens, on_progress=display)


def load_teacher(teacher: ModelFacts, device: str | None) -> "PreTrainedModel":
    """The teacher on `device`; None is a GPU if this process may use one."""
    import torch

    device = device or ("cuda" if torch.cuda.is_available() else "cpu")
    return load_model(teacher).to(device)  # pyright: ignore[reportArgumentType]
