"""A Ray to run in: the cluster that is there, or one of our own on this machine; without telemetry, and quiet."""

import logging
import os
import sys
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stdout

from bridgegarden.errors import ConfigError

STORE_BYTES = 512 << 20
"""Shared memory of a Ray of our own; token ids and records on their way that take more go to its folder on the disk."""

SETTINGS = {"RAY_USAGE_STATS_ENABLED": "0", "RAY_BACKEND_LOG_LEVEL": "fatal"}
"""Nothing is reported to Ray's makers. Below fatal, Ray's core complains of how Ray Data makes its actors."""


def check_ray() -> None:
    """Make sure that Ray Data can be used.

    Raises:
        ConfigError: it is not installed.
    """
    try:
        import ray.data  # noqa: F401  only whether it is there
    except ImportError as error:
        raise ConfigError(
            "--engine ray: Ray Data is not installed. Install it with: pip install 'bridgegarden[ray]'"
        ) from error


@contextmanager
def ray_session() -> Iterator[Sequence[Mapping[str, float]]]:
    """Run in Ray; yields what each of its machines has.

    A Ray that this process uses already is used and left running. Else ``RAY_ADDRESS`` names a cluster; without it, Ray
    is started on this machine and stopped afterwards.

    Raises:
        ConfigError: Ray is not installed, or the cluster cannot be reached.
    """
    with _quiet():
        check_ray()
        import ray

        ours = not ray.is_initialized()
        if ours:
            _start()
        try:
            yield [node["Resources"] for node in ray.nodes() if node["Alive"]]
        finally:
            if ours:
                ray.shutdown()


def _start() -> None:
    import ray

    for name, value in SETTINGS.items():
        os.environ.setdefault(name, value)
    silent = {"log_to_driver": False, "logging_level": logging.CRITICAL}
    address = os.environ.get("RAY_ADDRESS")
    if not address:
        with _core_silent():
            ray.init("local", include_dashboard=False, object_store_memory=STORE_BYTES, **silent)
        return
    try:
        with _core_silent():
            ray.init(address, **silent)
    except ConnectionError as error:
        raise ConfigError(
            f"--engine ray: no Ray answers at RAY_ADDRESS={address}. Start one there (ray start --head), or unset "
            "RAY_ADDRESS to have one started on this machine."
        ) from error


@contextmanager
def _quiet() -> Iterator[None]:
    logger = logging.getLogger("ray.data")
    level = logger.level
    logger.setLevel(logging.CRITICAL)
    try:
        # Ray tells of actors that died on stdout, which is for results.
        with redirect_stdout(sys.stderr), warnings.catch_warnings():
            # Ray Data sets its own outdated options, and warns of them.
            warnings.filterwarnings("ignore", category=DeprecationWarning, module=r"ray\.")
            yield
    finally:
        logger.setLevel(level)


@contextmanager
def _core_silent() -> Iterator[None]:
    """Ray's core tells the terminal, past Python's stderr, that it was told to be silent."""
    sys.stderr.flush()
    terminal = os.dup(2)
    try:
        with open(os.devnull, "wb") as nowhere:
            os.dup2(nowhere.fileno(), 2)
        yield
    finally:
        os.dup2(terminal, 2)
        os.close(terminal)
