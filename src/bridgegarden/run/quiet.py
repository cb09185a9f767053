"""What the libraries underneath print, where we say it better or it need not alarm anybody."""

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

from bridgegarden.terminal import plain

SAID_BETTER = "The tokenizer has new PAD/BOS/EOS tokens"
"""transformers sets the model's end-of-text ids to the tokenizer's; preflight has said what a turn ends with."""

OUTDATED_PEFT = "`is_gradient_checkpointing` is deprecated"
"""PEFT asks transformers by a name that is going out of use; nobody here can change that."""


@contextmanager
def quiet_libraries(*, interactive: bool) -> Iterator[None]:
    """Without progress bars of data sets and weights; those of downloads stay on a terminal.

    Args:
        interactive: whether stderr is a terminal.
    """
    import datasets
    import huggingface_hub.utils as hub
    from transformers.utils import logging as transformers_logging

    data_bars, weight_bars = datasets.are_progress_bars_disabled(), transformers_logging.is_progress_bar_enabled()
    download_bars = not hub.are_progress_bars_disabled()
    logger = logging.getLogger("transformers.trainer_utils")
    datasets.disable_progress_bars()
    transformers_logging.disable_progress_bar()  # and that of downloads with it
    if interactive and download_bars:
        hub.enable_progress_bars()
    logger.addFilter(_is_news)
    handlers = list(logging.getLogger("transformers").handlers)
    for handler in handlers:
        handler.addFilter(_made_plain)
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message=OUTDATED_PEFT, category=FutureWarning)
            yield
    finally:
        logger.removeFilter(_is_news)
        for handler in handlers:
            handler.removeFilter(_made_plain)
        if weight_bars:
            transformers_logging.enable_progress_bar()
        if download_bars:
            hub.enable_progress_bars()
        if not data_bars:
            datasets.enable_progress_bars()


def _is_news(record: logging.LogRecord) -> bool:
    return not record.getMessage().startswith(SAID_BETTER)


def _made_plain(record: logging.LogRecord) -> bool:
    """What it quotes of a model's files must not reach the terminal as it is."""
    record.msg, record.args = plain(record.getMessage()), None
    return True
