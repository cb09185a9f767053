"""What a server lists at positions of a text, checked, and as arrays."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import chain, pairwise
from typing import Any, NamedTuple, cast

import msgspec
import numpy as np

from bridgegarden.teacher.foreign_values import EXCESS, LARGEST_ID, Unfit, mapping, shown


class Row(NamedTuple):
    """What a server lists at one position."""

    ids: list[int]
    logps: list[float]
    """In nats, as the server orders them."""
    label_logp: float
    """Of the token that stands there."""


class Listed(NamedTuple):
    """What a server lists at N positions, as it orders them; one slot more than K, which is empty (-1, ``-inf``) where
    the token that stands there is among the K."""

    ids: np.ndarray
    """``(N, K + 1)`` int64."""
    logps: np.ndarray
    """``(N, K + 1)`` float64, nats."""
    label_logps: np.ndarray
    """``(N,)`` float64, nats: of the tokens that stand there."""


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

        for at, row in zip(positions, rows, strict=True):
            if not k <= len(row.ids) <= k + 1:
                error = TooFew if len(row.ids) < k else Unfit
                raise error(f"token {at}: {len(row.ids)} tokens are listed, and {k} were asked for")
        try:
            # A slot that is empty comes last.
            ids = np.array([row.ids if len(row.ids) > k else [*row.ids, -1] for row in rows], np.int64)
            given = [row.logps if len(row.logps) > k else [*row.logps, -np.inf] for row in rows]
            logps = np.array(given, np.float64)
            labels = np.array([row.label_logp for row in rows], np.float64)
        except (TypeError, ValueError, OverflowError):
            raise Unfit("token ids and log-probabilities: expected numbers") from None
        return cls.of_listed(Listed(ids, logps, labels), positions)

    @classmethod
    def of_listed(cls, listed: "Listed", positions: Sequence[int]) -> "Scores":
        """As :meth:`of`, where as many are listed as have to be.

        Raises:
            Unfit: as there.
        """

        def place(number: int) -> str:
            return f"token {positions[number]}"

        ids, logps, labels = listed
        missing = np.isnan(logps).any(1)
        if missing.any():  # a null reads as one, and sorting would put it behind what is empty
            raise Unfit(f"{place(int(missing.argmax()))}: expected log-probabilities, got what is no number")
        order = np.argsort(-logps, axis=1, kind="stable")[:, :-1]
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


class _Entry(msgspec.Struct, gc=False):
    logprob: float


class _Choice(msgspec.Struct):
    prompt_logprobs: list[msgspec.Raw] | None = None


class _Completion(msgspec.Struct):
    choices: list[_Choice]
    error: msgspec.Raw | None = None


class _Pair(msgspec.Struct, array_like=True, gc=False):
    logprob: float | None
    id: int


class _Meta(msgspec.Struct):
    input_token_logprobs: list[_Pair]
    input_top_logprobs: list[list[_Pair] | None]


class _Generated(msgspec.Struct):
    meta_info: _Meta
    error: msgspec.Raw | None = None


class _Sequences(msgspec.Struct):
    logprobs: list[list[list[float]]]
    logprob_token_ids: list[list[list[int]]]
    error: msgspec.Raw | None = None


_COMPLETION = msgspec.json.Decoder(_Completion)
_ENTRY = msgspec.json.Decoder(dict[int, _Entry])
_GENERATED = msgspec.json.Decoder(_Generated)
_SEQUENCES = msgspec.json.Decoder(_Sequences)

# What follows reads replies of the usual form, which have hundreds of kilobytes, in a fifth of the time that reading
# all of one does: nothing is done token by token but by what is compiled. None is any other form, for the slow readers
# to tell what is wrong with it, if anything is.
ReadUsual = Callable[[str, Sequence[int], Sequence[int], int], Listed | None]


def _unless_unusual(read: ReadUsual) -> ReadUsual:
    def usual(text: str, ids: Sequence[int], positions: Sequence[int], k: int) -> Listed | None:
        try:
            return read(text, ids, positions, k)
        except (msgspec.MsgspecError, LookupError, TypeError, ValueError, OverflowError, RecursionError):
            return None

    return usual


def _filled(
    counts: Sequence[int], ids: Iterable[int], logps: Iterable[float | None], k: int
) -> tuple[np.ndarray, np.ndarray] | None:
    """``(N, K + 1)`` ids and log-probabilities of which so many are listed in each row; None where it is another
    number, or an id is none."""
    listed = np.array(counts)
    if not ((listed == k) | (listed == k + 1)).all():
        return None
    filled = np.arange(k + 1) < listed[:, None]
    names, values = np.full(filled.shape, -1), np.full(filled.shape, -np.inf)
    names[filled] = found = np.fromiter(ids, np.int64, listed.sum())
    if found.min() < 0 or found.max() > LARGEST_ID:
        return None
    values[filled] = np.fromiter(cast(Iterable[float], logps), np.float64, listed.sum())  # a null is a TypeError
    return names, values


@_unless_unusual
def read_vllm(text: str, ids: Sequence[int], positions: Sequence[int], k: int) -> Listed | None:
    """What vLLM's reply `text` lists at `positions` of `ids`."""
    reply = _COMPLETION.decode(text)
    given = reply.choices[0].prompt_logprobs
    if reply.error is not None or given is None or len(given) != len(ids):
        return None
    entries = [_ENTRY.decode(given[at]) for at in positions]
    logps = [listed.logprob for entry in entries for listed in entry.values()]
    found = _filled(list(map(len, entries)), chain.from_iterable(entries), logps, k)
    if found is None or not (found[1][:, 1:-1] >= found[1][:, 2:]).all():  # those behind the one that stands there
        return None
    labels = [entry[ids[at]].logprob for at, entry in zip(positions, entries, strict=True)]
    return Listed(*found, np.array(labels))


@_unless_unusual
def read_sglang(text: str, ids: Sequence[int], positions: Sequence[int], k: int) -> Listed | None:
    """What SGLang's reply `text` lists at `positions` of `ids`, of which it speaks from the one before the first on."""
    reply, start = _GENERATED.decode(text), positions[0] - 1
    own, tops = reply.meta_info.input_token_logprobs, reply.meta_info.input_top_logprobs
    if reply.error is not None or not len(own) == len(tops) == len(ids) - start:
        return None
    stand, rows = [own[at - start] for at in positions], [tops[at - start] or [] for at in positions]
    if [pair.id for pair in stand] != [ids[at] for at in positions]:
        return None
    pairs = [pair for row in rows for pair in row]
    found = _filled(list(map(len, rows)), [pair.id for pair in pairs], [pair.logprob for pair in pairs], k)
    return None if found is None else Listed(*found, np.array([pair.logprob for pair in stand], np.float64))


@_unless_unusual
def read_trl(text: str, ids: Sequence[int], positions: Sequence[int], k: int) -> Listed | None:
    """What the reply `text` of TRL's server lists at `positions` of `ids`, of which it speaks from the first on."""
    reply, first = _SEQUENCES.decode(text), positions[0]
    [logps], [names] = reply.logprobs, reply.logprob_token_ids
    counts = list(map(len, names))
    if reply.error is not None or len(names) != len(ids) - first or counts != list(map(len, logps)):
        return None
    rows = [at - first for at in positions]
    flat = chain.from_iterable(names[row] for row in rows), chain.from_iterable(logps[row] for row in rows)
    found = _filled([counts[row] for row in rows], *flat, k)
    if found is None:
        return None
    labels = [logps[row][names[row].index(ids[at])] for at, row in zip(positions, rows, strict=True)]
    return Listed(*found, np.array(labels))


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
