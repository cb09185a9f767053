"""What can go wrong, by who can mend it.

Every error a user can cause derives from :class:`BridgegardenError` and from the matching builtin, carries one
message (so that it survives pickling between worker processes), and says where, what was got, what was expected
and what to do. The command line prints the message on one line and exits with status 2; anything else is our bug
and keeps its traceback.
"""

import signal


class BridgegardenError(Exception):
    """Base of every error that the user can mend."""

    def __init__(self, message: str = "") -> None:
        """
        Args:
            message: one line. PyTorch makes the error of a data loader's worker anew, of the same kind, with the
                worker's traceback for a message: the line that it ends with is taken.
        """
        last = f"\n{type(self).__module__}.{type(self).__qualname__}: "
        if message.startswith("Caught ") and last in message:
            message = message.rpartition(last)[2].rstrip("\n")
        super().__init__(message)


class ConfigError(BridgegardenError, ValueError):
    """A setting is unknown, out of range, or contradicts another."""


class DataError(BridgegardenError, ValueError):
    """A row, file or data set cannot be used as it is."""


class ModelError(BridgegardenError, ValueError):
    """A model or tokenizer does not fit the other, the data, or what the library can do with it."""


class NonFiniteError(BridgegardenError, ArithmeticError):
    """A loss or gradient became infinite or not a number; training on would only hide it."""


class Stopped(KeyboardInterrupt):
    """A run was asked to stop, by Ctrl-C or SIGTERM; what was done so far is kept, and the same command goes on."""

    def __init__(self, number: int, message: str | None = None) -> None:
        """
        Args:
            number: the signal.
            message: one line for the user.
        """
        name = signal.Signals(number).name
        super().__init__(f"stopped by {name}. The same command goes on." if message is None else message)
        self.number = number

    @property
    def status(self) -> int:
        """What the process ends with, as shells count it: 130 after SIGINT, 143 after SIGTERM."""
        return 128 + self.number

    def __reduce__(self) -> "tuple[type[Stopped], tuple[int, str]]":
        return type(self), (self.number, str(self))
