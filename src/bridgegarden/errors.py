"""What can go wrong, by who can mend it.

Every error a user can cause derives from :class:`BridgegardenError` and from the matching builtin, carries one
message (so that it survives pickling between worker processes), and says where, what was got, what was expected
and what to do. The command line prints the message on one line, with the section of docs/errors.md that the error's
`code` names, and exits with status 2; anything else is our bug and keeps its traceback.

Libraries raise errors of their own about what a user gave. Where they are handed it, :func:`foreign` stands around the
call and around nothing of ours, so that a bug of ours is never shown as the user's mistake. A name that is looked up
and is not there, and a value that is quoted, are told in one way everywhere.
"""

import math
import signal
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from difflib import get_close_matches
from typing import Any, TypeVar

LONGEST_WORDS = 300
"""Characters of another library's message that are quoted."""
T = TypeVar("T")
TEMPERATURES = (0.001, 1000.0)
WEIGHTS_OFF_BY = 1e-6
"""How far from one the sum of a mixture's weights may be: thirds are written with a few digits."""
LONGEST_VALUE = 80
"""Characters of a value that are quoted."""


class BridgegardenError(Exception):
    """Base of every error that the user can mend."""

    code = "BG000"
    """What docs/errors.md has a section on; each kind has its own."""

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

    code = "BG100"


class UnknownNameError(ConfigError):
    """A name or key that is looked up and is not there."""

    code = "BG101"


class MissingPackageError(ConfigError):
    """What is asked for needs a package that is not installed."""

    code = "BG102"


class OutputError(ConfigError):
    """The folder for the results is taken, or cannot be written."""

    code = "BG103"


class CacheError(ConfigError):
    """A teacher's cache is not there, or does not fit what it is to be used for."""

    code = "BG104"


class ServerError(ConfigError):
    """A server's address or key cannot be used, or the server is none that can do this."""

    code = "BG105"


class DataError(BridgegardenError, ValueError):
    """A row, file or data set cannot be used as it is."""

    code = "BG200"


class DamagedError(DataError):
    """A file does not hold what was written to it."""

    code = "BG201"


class MissingRowsError(DataError):
    """Rows that a teacher's cache does not hold."""

    code = "BG202"


class ModelError(BridgegardenError, ValueError):
    """A model or tokenizer does not fit the other, the data, or what the library can do with it."""

    code = "BG300"


class TokenizerError(ModelError):
    """Token ids would not mean the same to both sides."""

    code = "BG301"


class ServedTeacherError(ModelError):
    """What a server says cannot be taken for the teacher's."""

    code = "BG302"


class NonFiniteError(BridgegardenError, ArithmeticError):
    """A loss or gradient became infinite or not a number; training on would only hide it."""

    code = "BG400"


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
def stopped_by_sigterm() -> Iterator[None]:
    """SIGTERM raises :class:`Stopped`, as Ctrl-C does its own; from a thread, signals are left as they are."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def stop(number: int, frame: object) -> None:
        raise Stopped(number)

    before = signal.signal(signal.SIGTERM, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


@contextmanager
def foreign(refusal: Callable[[str], BridgegardenError]) -> Iterator[None]:
    """Around a library's own code at work on what a user gave: whatever it raises becomes ``refusal(its words)``.

    Of any kind, since such code trusts what it is given: a setting out of range is an ``AssertionError`` to one
    library and a ``KeyError`` to the next, and neither a panic of a library in Rust nor ``sys.exit`` in a module
    that is imported is even an :class:`Exception`.

    Args:
        refusal: makes the error out of the library's words (:func:`in_words`): says where, and what to do.
    """
    try:
        yield
    except BridgegardenError:
        raise
    except BaseException as error:
        if not isinstance(error, Exception | SystemExit) and type(error).__module__ != "pyo3_runtime":
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


def unknown_name(name: object, known: Iterable[str], *, field: str, kind: str = "name") -> ConfigError:
    """The error for a name that is not one of `known`, with the closest known spelling.

    Args:
        name: what was found.
        known: every accepted name.
        field: where it was found, as a recipe path such as ``objective.divergence``.
        kind: what the name is of (``name``, ``key``, ``preset``).
    """
    names, given = sorted(known), quoted(name)
    close = get_close_matches(name if isinstance(name, str) else given, names, n=1)
    hint = f" Did you mean {close[0]!r}?" if close else ""
    return UnknownNameError(f"{field}: unknown {kind} {given}.{hint} Known: {', '.join(names)}.")


def check_weights(weights: Mapping[Any, float], place: str) -> None:
    """Refuse weights that are none of a mixture.

    Args:
        weights: by name.
        place: what names them.

    Raises:
        ConfigError: there are fewer than two, one is not positive, or they do not sum to one.
    """
    shown = ", ".join(f"{name}: {weight:g}" for name, weight in weights.items())
    if len(weights) < 2:
        raise ConfigError(f"{place}: a mixture is of two teachers or more, got {shown or 'none'}.")
    total = math.fsum(weights.values())
    if not all(weight > 0 for weight in weights.values()) or not abs(total - 1) <= WEIGHTS_OFF_BY:
        raise ConfigError(f"{place}: weights must be positive and sum to 1, got {shown}, which sum to {total:g}.")


def check_temperature(value: float, place: str, *, greedy: bool = True) -> None:
    """Refuse a temperature at which logits leave the range of float32.

    Args:
        value: the temperature.
        place: what names it.
        greedy: whether 0, the likeliest token, is one.

    Raises:
        ConfigError: it is out of range.
    """
    least, most = TEMPERATURES
    if not (least <= value <= most or (greedy and value == 0)):
        raise ConfigError(f"{place} must be {'0 (greedy) or ' if greedy else ''}in [{least}, {most}], got {value}.")


def quoted(value: object) -> str:
    """``repr`` of a value of a recipe, as far as a message has room for it."""
    try:
        text = repr(value)
    except ValueError:  # Python does not write out whole numbers of thousands of digits
        return "a number of thousands of digits"
    return text if len(text) <= LONGEST_VALUE else f"{text[: LONGEST_VALUE - 3]}..."


def lookup(table: Mapping[str, T], name: str, *, field: str) -> T:
    """The entry of `table` called `name`.

    Raises:
        ConfigError: when there is none; names `field` and suggests the closest entry.
    """
    if name not in table:
        raise unknown_name(name, table, field=field)
    return table[name]
