"""What a person sees while tasks are run: one labelled bar after another, in place of lm-eval's own."""

from collections.abc import Iterable, Iterator, Sized
from contextlib import contextmanager
from typing import Any

from bridgegarden.terminal import Display, stderr_console

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
        self._items, self._shows, self._done = items, not disable, 0
        total = total if total is not None else len(items) if isinstance(items, Sized) else None
        words = next((words for kind, words in WORDS.items() if kind in desc), desc)
        self._display = Display(stderr_console(), words, total)
        if self._shows:
            _open.add(self)
            self._display.__enter__()

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
        if self._shows:
            self._display.update(self._done)

    def close(self) -> None:
        """Leave the bar as it stands."""
        if self in _open:
            _open.remove(self)
            self._display.__exit__()


@contextmanager
def our_bars() -> Iterator[None]:
    """lm-eval's bars are ours; that of making prompts, which takes a moment, is not shown."""
    from lm_eval.api import model, task
    from lm_eval.models import huggingface

    theirs = task.tqdm, model.tqdm, huggingface.tqdm
    task.tqdm, model.tqdm, huggingface.tqdm = _unseen, Bar, Bar
    try:
        yield
    finally:
        task.tqdm, model.tqdm, huggingface.tqdm = theirs
        for bar in tuple(_open):
            bar.close()


def _unseen(items: Iterable[Any], **of_tqdm: Any) -> Iterable[Any]:
    return items
