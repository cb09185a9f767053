"""One run at a time in an output folder."""

import errno
import fcntl
import os
from pathlib import Path

from bridgegarden.errors import ConfigError

NOT_SUPPORTED = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP)
"""What file systems without locks answer."""


class RunLock:
    """Held by the process that writes to a folder; the system itself releases what a killed one held.

    A record lock belongs to the process and not to what it forks: the workers of its data loader, which live on for
    some seconds after it was killed, do not keep the next attempt out.
    """

    def __init__(self, path: Path) -> None:
        """
        Args:
            path: the file that is locked; made when its folder is there.
        """
        self.path = path
        self._file: int | None = None

    def acquire(self) -> None:
        """Hold the folder, if it exists; a second time does nothing.

        Raises:
            ConfigError: another run holds it.
        """
        if self._file is not None or not self.path.parent.is_dir():
            return
        try:
            file = os.open(self.path, os.O_RDWR | os.O_CREAT, 0o644)
        except OSError as error:
            raise ConfigError(f"output: {self.path} cannot be written ({error.strerror}).") from error
        try:
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            os.close(file)
            if error.errno in NOT_SUPPORTED:
                return
            if error.errno not in (errno.EAGAIN, errno.EACCES):
                raise
            raise ConfigError(
                f"output: another run is at work in {self.path.parent.parent}; wait for it, or set another output "
                "(--set output=FOLDER)."
            ) from None
        self._file = file

    def release(self) -> None:
        """Let others in."""
        if self._file is not None:
            os.close(self._file)
            self._file = None

    def __enter__(self) -> "RunLock":
        return self

    def __exit__(self, *exception: object) -> None:
        self.release()
