"""The libraries underneath keep off the terminal while a command of ours runs, in workers as in the first process.

Their bars are off, since we show progress ourselves. What they log, or warn a user of, comes as one plain line, once,
after the library's name; unless we say the same better, or it is news to nobody. What they warn programmers of, such as
names that go out of use, is not for the terminal at all; Python shows it where it is asked to
(``PYTHONWARNINGS=default``).
"""

import logging
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import Any

from bridgegarden.terminal import one_line

SAID_BETTER = (
    # The model's end-of-text ids become the tokenizer's; preflight has said what a turn ends with.
    "The tokenizer has new PAD/BOS/EOS tokens",
    # Tied weights, which a checkpoint holds once; one that lacks others does not fit its seal.
    "There were missing keys in the checkpoint model loaded",
    # bitsandbytes of a faster kernel that it would download, where it is imported.
    "Failed to load CPU gemm_4bit_forward",
    # Every attempt to reach the hub; what comes of them is said once.
    "thrown while requesting",
    "Retrying in ",
)
"""Parts of messages that a user is not shown."""

LIBRARIES = ("datasets", "dill", "huggingface_hub", "torch", "transformers")
"""Those that write their log to the terminal themselves, and not by way of the root's."""

FOR_PROGRAMMERS = (DeprecationWarning, PendingDeprecationWarning, FutureWarning, ResourceWarning, ImportWarning)

LONGEST = 400
"""Characters of a line."""


@contextmanager
def quiet_libraries(*, interactive: bool) -> Iterator[None]:
    """Without the libraries' bars and, but for plain lines, without their words; bars of downloads stay on a terminal.

    Args:
        interactive: whether stderr is a terminal.
    """
    with _no_bars(interactive), _plain_lines():
        yield


@contextmanager
def no_gguf_bar() -> Iterator[None]:
    """Without the bar of weights in a GGUF file, which transformers' own switch does not reach."""
    reader: Any = import_module("transformers.modeling_gguf_pytorch_utils")
    usual = reader.tqdm
    reader.tqdm = partial(usual, disable=True)
    try:
        yield
    finally:
        reader.tqdm = usual


@contextmanager
def _no_bars(interactive: bool) -> Iterator[None]:
    import datasets
    import huggingface_hub.utils as hub
    from transformers.utils import logging as transformers_logging

    data_bars, weight_bars = datasets.are_progress_bars_disabled(), transformers_logging.is_progress_bar_enabled()
    download_bars = not hub.are_progress_bars_disabled()
    datasets.disable_progress_bars()
    transformers_logging.disable_progress_bar()  # and that of downloads with it
    if interactive and download_bars:
        hub.enable_progress_bars()
    try:
        yield
    finally:
        if weight_bars:
            transformers_logging.enable_progress_bar()
        if download_bars:
            hub.enable_progress_bars()
        if not data_bars:
            datasets.enable_progress_bars()


@contextmanager
def _plain_lines() -> Iterator[None]:
    """Logs and warnings of libraries as our lines. Handlers of others, such as files, get what they always got."""
    lines = _Lines()
    exchanged = [
        (logger, handler)
        for name, logger in logging.root.manager.loggerDict.items()
        if isinstance(logger, logging.Logger) and name.partition(".")[0] in LIBRARIES
        for handler in logger.handlers
        if isinstance(handler, logging.StreamHandler) and not isinstance(handler, logging.FileHandler)
    ]
    for logger, handler in exchanged:
        logger.removeHandler(handler)
        logger.addHandler(lines)
    last, logging.lastResort = logging.lastResort, lines
    try:
        with warnings.catch_warnings():
            if not sys.warnoptions:
                warnings.showwarning = lines.warn
            yield
    finally:
        logging.lastResort = last
        for logger, handler in exchanged:
            logger.removeHandler(lines)
            logger.addHandler(handler)


class _Lines(logging.Handler):
    """One line on stderr for each message, the first time that it comes."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self._said: set[str] = set()

    def emit(self, record: logging.LogRecord) -> None:
        self._say(record.name.partition(".")[0], record.getMessage())

    def warn(
        self,
        message: Warning | str,
        category: type[Warning],
        filename: str,
        lineno: int,
        file: object = None,
        line: str | None = None,
    ) -> None:
        """What Python calls with a warning that it would show."""
        if not issubclass(category, FOR_PROGRAMMERS):
            self._say(_library(filename), str(message))

    def _say(self, library: str, message: str) -> None:
        if any(part in message for part in SAID_BETTER):
            return
        text = one_line(f"{library}: {message}")
        if text not in self._said:
            self._said.add(text)
            print(text if len(text) <= LONGEST else f"{text[:LONGEST]}...", file=sys.stderr)


def _library(filename: str) -> str:
    """The package that a file of Python's belongs to."""
    parts = Path(filename).parts
    return parts[parts.index("site-packages") + 1] if "site-packages" in parts[:-1] else Path(filename).stem
