"""What can go wrong, by who can mend it.

Every error a user can cause derives from :class:`BridgegardenError` and from the matching builtin, carries one
message (so that it survives pickling between worker processes), and says where, what was got, what was expected
and what to do. The command line prints the message on one line and exits with status 2; anything else is our bug
and keeps its traceback.

Libraries raise errors of their own about what a user gave. Where they are handed it, :func:`foreign` stands around the
call and around nothing of ours, so that a bug of ours is never shown as the user's mistake.
"""

import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager

LONGEST_WORDS = 300
"""Characters of another library's message that are quoted."""


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


@contextmanager
def foreign(refusal: Callable[[str], BridgegardenError]) -> Iterator[None]:
    """Around a library's own code at work on what a user gave: whatever it raises becomes ``refusal(its words)``.

    Of any kind, since such code trusts what it is given: a setting out of range is an ``AssertionError`` to one
    library and a ``KeyError`` to the next, and a panic of a library in Rust is not even an :class:`Exception`.

    Args:
        refusal: makes the error out of the library's words (:func:`in_words`): says where, and what to do.
    """
    try:
        yield
    except BridgegardenError:
        raise
    except BaseException as error:
        if not isinstance(error, Exception) and type(error).__module__ != "pyo3_runtime":
            raise
        raise refusal(in_words(error)) from error


def in_words(error: BaseException) -> str:
    """What an error of another library says, as a part of a sentence of ours."""
    if isinstance(error, OSError) and error.strerror and error.errno is not None:
        return error.strerror if error.filename is None else f"{error.strerror}: {error.filename}"
    said = str(error.args[0]) if isinstance(error, KeyError) and error.args else str(error)
    lines = [line for line in map(str.strip, said.splitlines()) if line]
    if not lines:
        return type(error).__name__
    words = lines[0].rstrip(" .:")
    words = words if len(words) <= LONGEST_WORDS else f"{words[: LONGEST_WORDS - 3]}..."
    # The text of these is a name or a fragment, which says nothing by itself.
    alone = " " in words and not isinstance(error, AssertionError | MemoryError)
    return words if alone else f"{type(error).__name__}: {words}"
