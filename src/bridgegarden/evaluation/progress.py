"""What a person sees while tasks are run: one labelled bar after another, in place of lm-eval's own."""

import time
from collections.abc import Iterable, Iterator, Sized
from contextlib import contextmanager
from typing import Any

from bridgegarden.terminal import TimeLeft, stderr_console

SECONDS_BETWEEN_LINES = 10.0
"""How often progress is told where there is no terminal."""

WORDS = {"generate_until": "writing answers", "loglikelihood": "weighing answers", "Tokenizing": "reading questions"}
"""What lm-eval is doing, by a part of what it calls it."""

_open: "set[Bar]" = set()


class Bar:
    """A bar with the time left on a terminal; elsewhere a plain line now and then. Made and used like tqdm's."""

    def __init__(
        self,
        items: Iterable[Any] = (),
        *,
        total: int | None = None,
        desc: str = "",
        disable: bool = False,
        **of_tqdm: Any,
    ) -> None:
        """
        Args:
            items: what is gone through, if it is iterated over.
            total: how many there are.
            desc: what is being done.
            disable: show nothing.
            of_tqdm: its other options, which mean nothing here.
        """
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

        self._items, self._shows = items, not disable
        self._total = total if total is not None else len(items) if isinstance(items, Sized) else None
        self._words = next((words for kind, words in WORDS.items() if kind in desc), desc)
        self._console = stderr_console()
        self._interactive = self._console.file.isatty() and not self._console.is_dumb_terminal
        columns = (
            BarColumn(bar_width=None),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TextColumn("{task.fields[left]}"),
        )
        self._bar = Progress(TextColumn("{task.description}"), *columns, console=self._console)
        self._task = self._bar.add_task(self._words, total=self._total, left="")
        self._done, self._told = 0, time.monotonic()
        self._clock = TimeLeft(self._total or 0)
        if self._shows and self._interactive:
            _open.add(self)
            self._bar.start()

    def __iter__(self) -> Iterator[Any]:
        try:
            for item in self._items:
                yield item
                self.update()
        finally:
            self.close()

    def update(self, n: int = 1) -> None:
        """`n` more are done."""
        self._done += n
        self._clock.update(self._done)
        left = self._clock.text()
        self._bar.update(self._task, completed=self._done, left=left)
        now = time.monotonic()
        if self._shows and not self._interactive and self._total and now - self._told >= SECONDS_BETWEEN_LINES:
            self._told = now
            text = f"{self._words}: {self._done:,} of {self._total:,}{left and ', ' + left}"
            self._console.print(text, markup=False, soft_wrap=True)

    def close(self) -> None:
        """Leave the bar as it stands."""
        if self in _open:
            _open.remove(self)
            self._bar.stop()


@contextmanager
def our_bars() -> Iterator[None]:
    """lm-eval's bars are ours; that of making prompts, which takes a moment, is not shown."""
    from lm_eval.api import model, task
    from lm_eval.models import huggingface

    theirs = task.tqdm, model.tqdm, huggingface.tqdm
    task.tqdm, model.tqdm, huggingface.tqdm = _unseen, Bar, Bar  # pyright: ignore
    try:
        yield
    finally:
        task.tqdm, model.tqdm, huggingface.tqdm = theirs
        for bar in tuple(_open):
            bar.close()


def _unseen(items: Iterable[Any], **of_tqdm: Any) -> Iterable[Any]:
    return items
