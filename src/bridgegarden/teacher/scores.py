"""What a server lists at positions of a text, checked, and as arrays."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, NamedTuple

import msgspec
import numpy as np

from bridgegarden.teacher.foreign_values import EXCESS, Unfit, mapping, shown


class Row(NamedTuple):
    """What a server lists at one position."""

    ids: list[int]
    logps: list[float]
    """In nats, as the server orders them."""
    label_logp: float
    """Of the token that stands there."""


class TooFew(Unfit):
    """Fewer tokens are listed than were asked for."""


@dataclass(frozen=True)
class Scores:
    """What the teacher expected at N positions of a text, likeliest first."""

    ids: np.ndarray
    """``(N, K)`` int64."""
    logps: np.ndarray
    """``(N, K)`` float64, nats."""
    label_logps: np.ndarray
    """``(N,)`` float64, nats: of the tokens that stand there."""

    @classmethod
    def of(cls, rows: Sequence[Row], k: int, positions: Sequence[int]) -> "Scores":
        """The `k` likeliest tokens of each row.

        Args:
            rows: as a server lists them: `k` tokens, or one more where the one that stands there is none of them.
            k: how many were asked for.
            positions: of each row in the text, for messages.

        Raises:
            TooFew: there are not so many.
            Unfit: these are not log-probabilities of so many different tokens.
        """

        def place(number: int) -> str:
            return f"token {positions[number]}"

        for number, row in enumerate(rows):
            if not k <= len(row.ids) <= k + 1:
                error = TooFew if len(row.ids) < k else Unfit
                raise error(f"{place(number)}: {len(row.ids)} tokens are listed, and {k} were asked for")
        try:
            # A slot that is empty comes last.
            ids = np.array([row.ids if len(row.ids) > k else [*row.ids, -1] for row in rows], np.int64)
            given = [row.logps if len(row.logps) > k else [*row.logps, -np.inf] for row in rows]
            logps = np.array(given, np.float64)
            labels = np.array([row.label_logp for row in rows], np.float64)
        except (TypeError, ValueError, OverflowError):
            raise Unfit("token ids and log-probabilities: expected numbers") from None
        missing = np.isnan(logps).any(1)
        if missing.any():  # a null reads as one, and sorting would put it behind what is empty
            raise Unfit(f"{place(int(missing.argmax()))}: expected log-probabilities, got what is no number")
        order = np.argsort(-logps, axis=1, kind="stable")[:, :k]
        ids, logps = np.take_along_axis(ids, order, 1), np.take_along_axis(logps, order, 1)
        _check(ids, logps, labels, place)
        return cls(ids, np.minimum(logps, 0.0), np.minimum(labels, 0.0))


def _check(ids: np.ndarray, logps: np.ndarray, labels: np.ndarray, place: Callable[[int], str]) -> None:
    def refuse(bad: np.ndarray, words: Callable[[int], str]) -> None:
        if bad.any():
            number = int(bad.argmax())
            raise Unfit(f"{place(number)}: {words(number)}")

    values = np.concatenate([logps, labels[:, None]], axis=1)
    wrong = ~(values <= EXCESS)
    refuse(np.asarray(wrong.any(1)), lambda n: f"expected log-probabilities (<= 0), got {values[n][wrong[n]][0]}")
    masses = np.exp(logps).sum(1)
    refuse(
        np.asarray(masses > 1 + EXCESS),
        lambda n: f"expected probabilities that add up to 1 at most, got {masses[n]:.4g}",
    )
    in_order = np.sort(ids, axis=1)
    refuse((in_order[:, 1:] == in_order[:, :-1]).any(1), lambda n: "a token is listed twice")


class _Listed(msgspec.Struct, gc=False):
    logprob: float


class _Choice(msgspec.Struct):
    prompt_logprobs: list[msgspec.Raw] | None = None


class _Completion(msgspec.Struct):
    choices: list[_Choice]
    error: msgspec.Raw | None = None


_COMPLETION = msgspec.json.Decoder(_Completion)
_ENTRY = msgspec.json.Decoder(dict[int, _Listed])


def read_vllm_rows(text: str, ids: Sequence[int], positions: Sequence[int]) -> list[Row] | None:
    """What vLLM's reply `text` lists at `positions` of `ids`, where it is of the usual form; the rest is not read.

    A reply has hundreds of kilobytes, and this takes a fifth of the time that reading all of it does. None is any other
    form, for :func:`vllm_row` to tell what is wrong with it, if anything is.
    """
    try:
        reply = _COMPLETION.decode(text)
        given = reply.choices[0].prompt_logprobs
        if reply.error is not None or given is None or len(given) != len(ids):
            return None
        rows = []
        for at in positions:
            listed = _ENTRY.decode(given[at])
            logps = [entry.logprob for entry in listed.values()]
            if not _in_order(logps):
                return None
            rows.append(Row(list(listed), logps, listed[ids[at]].logprob))
    except (msgspec.MsgspecError, LookupError, UnicodeEncodeError, RecursionError):
        return None
    return rows


def vllm_row(entry: Any, label: int, at: int) -> Row:
    """One entry of ``prompt_logprobs``: ids to log-probability and rank, the token that stands there first.

    Raises:
        Unfit: it is none.
    """
    listed = mapping(entry, f"token {at}")
    own = listed.get(str(label))
    try:
        ids = list(map(int, listed))
    except ValueError:
        name = next(name for name in listed if not name.isdecimal())
        raise Unfit(
            f"token {at}: {shown(name)} is named as text, and ids are needed; ask a vLLM whose prompt_logprobs are "
            "keyed by id"
        ) from None
    if own is None:
        raise Unfit(not_listed(at, label))
    logps = [value["logprob"] for value in listed.values()]
    if not _in_order(logps):
        ranks = [value.get("rank") or 0 for value in listed.values()]
        pairs = pairwise(sorted(zip(ranks, logps, strict=True)))
        if any(low[1] < high[1] - EXCESS for low, high in pairs if low[0] < high[0]):
            raise Unfit(f"token {at}: the ranks are not in the order of the log-probabilities")
    return Row(ids, logps, own["logprob"])


def _in_order(logps: Sequence[float]) -> bool:
    """Whether all behind the first, which is of the token that stands there, come likeliest first."""
    return sorted(logps[1:], reverse=True) == logps[1:]


def not_listed(at: int, label: int) -> str:
    """What it means that the token at a position is not listed there."""
    return (
        f"token {at}: {label} stands there and is not listed, so what is listed belongs to another position or another "
        "vocabulary"
    )
