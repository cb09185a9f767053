"""What a report of a fault needs to say: versions, devices, threads, and the recipe without its secrets."""

import os
import platform
import re
from collections.abc import Iterator, Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from bridgegarden.errors import BridgegardenError, in_words
from bridgegarden.recipe.load import list_recipes, load_recipe, read_recipe_text
from bridgegarden.recipe.values import REMOVED, SECRET_TEXT, is_secret, read_yaml, read_yaml_file, write_yaml
from bridgegarden.run.record import PACKAGES, git_commit

OPTIONAL = (
    "bitsandbytes",
    "deepspeed",
    "gguf",
    "lm_eval",
    "ray",
    "torchao",
    "triton",
    "kernels",
    "liger-kernel",
    "flash-attn",
)
"""Packages that change what is run where they are there."""
VARIABLES = (
    *("CUDA_VISIBLE_DEVICES", "CUDA_LAUNCH_BLOCKING", "PYTORCH_CUDA_ALLOC_CONF", "PYTORCH_ALLOC_CONF"),
    *("OMP_NUM_THREADS", "MKL_NUM_THREADS", "TOKENIZERS_PARALLELISM", "TRITON_INTERPRET"),
    *("HF_HUB_OFFLINE", "HF_DATASETS_OFFLINE", "WORLD_SIZE", "LOCAL_RANK"),
)
"""Variables that change what is run. None of them holds a secret or a path."""


def environment() -> dict[str, Any]:
    """Versions, machine, devices and threads, as plain values. What cannot be found out is said in its place."""
    return {
        "bridgegarden": _installed("bridgegarden"),
        "commit": git_commit(),
        "python": f"{platform.python_version()} ({platform.python_implementation()})",
        "platform": platform.platform(),
        "packages": {name: found for name in (*PACKAGES[1:], *OPTIONAL) if (found := _installed(name))},
        "processors": {"machine": os.cpu_count(), "usable": _usable_processors()},
        "memory": _memory(),
        **_torch(),
        "variables": {name: os.environ[name] for name in VARIABLES if name in os.environ},
    }


def environment_text(recipe: str | None = None) -> str:
    """:func:`environment` as lines for a report, and below it the recipe and whether it can be read.

    Args:
        recipe: path of a recipe's file, or the name of a shipped one. One that is broken is shown as well.
    """
    lines = list(_lines(environment()))
    if recipe is not None:
        shown = recipe_without_secrets(recipe)
        lines += ["", f"recipe {_homeless(recipe)}: {shown['read']}", "", shown["text"].rstrip("\n")]
    return "\n".join(lines)


def recipe_without_secrets(recipe: str) -> dict[str, str]:
    """What a recipe's file says, with what looks like a secret removed.

    Removed are the values of keys that are called after a token, key, password or secret; keys of the kinds that hubs
    and servers give out; the user, password and query of addresses; and the home folder. Comments are not shown.

    Returns:
        ``text``, YAML, and ``read``: *can be read*, or the error, without the secrets.

    Raises:
        ConfigError: there is no such file, and no shipped recipe of that name.
    """
    removed: set[str] = set()
    if not Path(recipe).is_file() and recipe not in list_recipes():
        load_recipe(recipe)  # says what is there instead
    try:
        tree = read_yaml(read_recipe_text(recipe), recipe) if recipe in list_recipes() else read_yaml_file(Path(recipe))
        text = write_yaml(_cleaned(tree, removed))
    except (BridgegardenError, OSError) as error:
        return {"text": "(not shown)", "read": _homeless(SECRET_TEXT.sub(REMOVED, in_words(error)))}
    try:
        load_recipe(recipe)
    except BridgegardenError as error:
        said = SECRET_TEXT.sub(REMOVED, str(error))
        for secret in sorted(removed, key=len, reverse=True):
            said = said.replace(secret, REMOVED)
        return {"text": text, "read": _homeless(said)}
    return {"text": text, "read": "can be read"}


def _cleaned(value: Any, removed: set[str], key: str = "") -> Any:
    """`value` of a YAML file without secrets, which are put into `removed`."""
    if value is not None and is_secret(key) and not isinstance(value, bool):
        removed.update(_leaves(value))
        return REMOVED
    if isinstance(value, Mapping):
        return {name: _cleaned(each, removed, str(name)) for name, each in value.items()}
    if isinstance(value, list):
        return [_cleaned(each, removed, key) for each in value]
    if not isinstance(value, str):
        return value
    removed.update(SECRET_TEXT.findall(value))
    return _homeless(_address(SECRET_TEXT.sub(REMOVED, value), removed))


def _leaves(value: Any) -> Iterator[str]:
    if isinstance(value, Mapping | list):
        for each in value.values() if isinstance(value, Mapping) else value:
            yield from _leaves(each)
    elif str(value):
        yield str(value)


def _address(text: str, removed: set[str]) -> str:
    """`text` without the user, password and query of an address."""
    if "://" not in text:
        return text
    try:
        parts = urlsplit(text)
    except ValueError:
        removed.add(text)
        return REMOVED
    before, at, host = parts.netloc.rpartition("@")
    hidden = [part for part in (before, parts.query, parts.fragment) if part]
    removed.update(hidden)
    removed.update(part for part in before.split(":") if part)
    kept = f"{parts.scheme}://{REMOVED + at if before else ''}{host}{parts.path}"
    return kept + (f"?{REMOVED}" if parts.query or parts.fragment else "")


def _homeless(text: str) -> str:
    """`text` without the name of whoever's home folder it is."""
    home = os.path.expanduser("~")
    return text if home in ("", "/", "~") else re.sub(rf"{re.escape(home)}(?=/|$|[\s'\",:;])", "~", text)


def _installed(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _usable_processors() -> int | None:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()


def _memory() -> str:
    import psutil

    memory = psutil.virtual_memory()
    return f"{memory.total / 2**30:.1f} GiB, of which {memory.available / 2**30:.1f} GiB are free"


def _torch() -> dict[str, Any]:
    """Threads and devices as PyTorch sees them."""
    try:
        import torch

        threads = {"intra-op": torch.get_num_threads(), "inter-op": torch.get_num_interop_threads()}
        return {"threads": threads, "devices": list(_devices(torch))}
    except Exception as error:  # a broken installation is what such a report is about
        return {"devices": [f"PyTorch does not work here: {type(error).__name__}: {in_words(error)}"]}


def _devices(torch: Any) -> Iterator[str]:
    if torch.cuda.is_available():
        for index in range(torch.cuda.device_count()):
            facts = torch.cuda.get_device_properties(index)
            bfloat16 = "bfloat16" if torch.cuda.is_bf16_supported() else "no bfloat16"
            yield (
                f"cuda:{index} {facts.name}, {facts.total_memory / 2**30:.1f} GiB, compute capability "
                f"{facts.major}.{facts.minor}, {bfloat16}, CUDA {torch.version.cuda or torch.version.hip}"
            )
    elif torch.backends.mps.is_available():
        yield "mps"
    else:
        yield f"cpu only (PyTorch built for CUDA {torch.version.cuda})" if torch.version.cuda else "cpu only"


def _lines(facts: Mapping[str, Any]) -> Iterator[str]:
    for name, value in facts.items():
        if isinstance(value, Mapping):
            value = ", ".join(f"{key} {each}" for key, each in value.items())
        elif isinstance(value, list):
            value = "; ".join(value)
        yield f"{name}: {value if value not in (None, '') else 'none'}"
