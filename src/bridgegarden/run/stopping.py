"""How a training is stopped from outside: Ctrl-C, or the SIGTERM that a machine gets before it is taken away."""

import os
import signal
import sys
import threading
from contextlib import suppress
from types import FrameType
from typing import Any

from bridgegarden.errors import Stopped

SIGNALS = (signal.SIGINT, signal.SIGTERM)


class StopSignals:
    """While held, SIGINT and SIGTERM end the run in order; from a thread, signals are left as they are.

    Where a step is being trained, the first one only asks (:attr:`asked`): the step is finished and saved. Elsewhere,
    and the second time, :class:`~bridgegarden.errors.Stopped` is raised at once.
    """

    def __init__(self) -> None:
        self.asked: int | None = None
        """The signal that asked for the end."""
        self.can_wait = False
        """Whether somebody looks at :attr:`asked`."""
        self.speaks = True
        """Whether this process tells the user."""
        self._process = os.getpid()
        self._before: dict[int, Any] = {}

    def __enter__(self) -> "StopSignals":
        if threading.current_thread() is threading.main_thread():
            self._before = {number: signal.signal(number, self._arrived) for number in SIGNALS}
        return self

    def __exit__(self, *exception: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _arrived(self, number: int, frame: FrameType | None) -> None:
        if os.getpid() != self._process:
            return  # a worker of the data loader, which ends with its parent
        if not self.can_wait or self.asked is not None:
            raise Stopped(number)
        self.asked = number
        if self.speaks:
            # Not through a console, whose lock the interrupted code may hold.
            name = signal.Signals(number).name
            with suppress(OSError):  # stderr may have gone away
                os.write(sys.__stderr__.fileno() if sys.__stderr__ else 2, _SAID.format(name).encode())


_SAID = "{}: finishing this step and saving it. Once more to stop at once.\n"
