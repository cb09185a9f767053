"""A disk that is full, said in one line; what could not be finished makes room."""

import errno
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager

from bridgegarden.errors import ConfigError
from bridgegarden.files import partial
from bridgegarden.run.checkpoints import SEAL, checkpoints_in
from bridgegarden.run.output import OutputFolder

FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
SIGNS = {
    **{os.strerror(number): os.strerror(number) for number in FULL},
    "PytorchStreamWriter failed writing": "PyTorch could write only a part of a file",
    "unexpected pos": "PyTorch could write only a part of a file",
}
"""What the messages of safetensors and PyTorch, which carry no error number, are known by, and what they mean."""


@contextmanager
def full_disk_is_one_line(folder: OutputFolder, *, is_main: bool) -> Iterator[None]:
    """Whatever the libraries raise when nothing more can be written under `folder` becomes a :class:`ConfigError`.

    The checkpoint or model that was being written is removed; earlier checkpoints stay.
    """
    from safetensors import SafetensorError

    try:
        yield
    except (OSError, RuntimeError, SafetensorError) as error:
        reason = _reason(error)
        if reason is None:
            raise
        if is_main:
            _remove_unfinished(folder)
        checkpoint, _ = folder.usable_checkpoint()
        onwards = "begins anew" if checkpoint is None else f"goes on from {checkpoint.name}"
        raise ConfigError(
            f"output: nothing more can be written to {folder.path} ({reason}). Make room on its disk (training."
            f"save_total_limit says how many checkpoints are kept), and run the same command again: it {onwards}."
        ) from error


def _remove_unfinished(folder: OutputFolder) -> None:
    for checkpoint in checkpoints_in(folder.checkpoints)[:1]:
        if not (checkpoint / SEAL).exists():
            shutil.rmtree(checkpoint, ignore_errors=True)
    for name in (folder.model, folder.adapter):
        shutil.rmtree(partial(name), ignore_errors=True)


def _reason(error: BaseException | None) -> str | None:
    """Why nothing can be written; None where that is not what `error` says."""
    while error is not None:
        if isinstance(error, OSError) and error.errno in FULL:
            return os.strerror(error.errno)
        for sign, meaning in SIGNS.items():
            if sign in str(error):
                return meaning
        error = error.__cause__ or error.__context__
    return None
