"""Whether a server's scores can be trusted, found out before anything is kept of it.

A server that is wrong answers as promptly as one that is right: replicas with other weights, log-probabilities at a
sampling temperature or of the listed tokens alone, positions off by one, another vocabulary. Each of these shows in a
contradiction between two of its own replies, or between its words and the student's.
"""

import itertools
import math
from collections.abc import Callable, Coroutine, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

import numpy as np

from bridgegarden.data import Conversation, vocabulary_size
from bridgegarden.errors import ServedTeacherError
from bridgegarden.teacher.foreign_values import shown
from bridgegarden.teacher.scores import Scores, TooFew
from bridgegarden.teacher.scoring_api import Api
from bridgegarden.teacher.server_connection import BadReply
from bridgegarden.teacher.server_requests import Line, Refused, Requests

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

LONGEST_TEXT = 32
"""Tokens of the text that is scored again and again."""
WRITTEN = 8
"""Tokens that the teacher writes for the test."""
TIMES = 2
"""How often the text is scored side by side, and then again over new connections."""
MEAN_TOLERANCE, LARGEST_TOLERANCE = 0.1, 0.6
"""Nats by which two log-probabilities of the same token may differ, on average over positions and at one of them. A
server in bfloat16 rounds logits of 16 to 32 to eighths, and rounds another way in another batch."""
LIKELY = math.log(1e-3)
UNNAMED = 0.1
"""Largest share of the probability, on average, on ids that the tokenizer lacks. A model of its family may have a few
tokens more, which come at few positions."""
OTHER_WEIGHTS = (
    "The server has another model, or its weights in another precision or quantisation. Name here what is served there "
    "(and teacher.dtype), serve what is here, or leave teacher.check_against out to take the server's word"
)
AS_WRITTEN = "its greedy answer, as it was written and scored"
"""A test that not every server lets be made, nor llama.cpp where the answer begins with half a character."""


@dataclass(frozen=True, kw_only=True)
class Example:
    """A row on which a server is tested."""

    ids: Sequence[int]
    """As the teacher reads it: in the student's tokens, unless another tokenizer is `named`."""
    asked: int
    """Tokens of it before the first that is learnt."""
    tokenizer: "PreTrainedTokenizerBase"
    chat: Conversation | None = None
    """What is asked in it; None where there is no prompt."""
    prompt_ids: Sequence[int] = ()
    """That, as `tokenizer` and its template write it."""
    named: str | None = None
    """The tokenizer that the recipe says the teacher has; None is the student's."""
    own_template: bool = False
    """Whether rows are written with that tokenizer's chat template, and not with the student's."""

    @property
    def reader(self) -> str:
        """Whose tokens they are, for messages."""
        return "the student" if self.named is None else f"the tokenizer {self.named}"


class Weights(Protocol):
    """The weights that a server should have, on this machine."""

    @property
    def name(self) -> str:
        """As the recipe has it."""
        ...

    @property
    def width(self) -> int:
        """Tokens that they have logits for."""
        ...

    def log_probabilities(self, texts: Sequence[Sequence[int]]) -> list[np.ndarray]:
        """Of every token behind every position of each text of ids, ``(T, V)``, nats.

        Raises:
            ModelError: they cannot be loaded.
        """
        ...


@dataclass(frozen=True, kw_only=True)
class Agreement:
    """How far two ways of asking for the same log-probabilities agree."""

    test: str
    positions: int
    mean: float
    """Of the absolute difference, nats."""
    largest: float

    def __str__(self) -> str:
        apart = f"{self.mean:.2g} nats apart on average, {self.largest:.2g} at most"
        return f"{self.test}: {apart} ({self.positions} positions)"


@dataclass(frozen=True, kw_only=True)
class ScoringReport:
    """What was found out about a server that scores."""

    api: str
    says: str
    """Its version and model, as it says."""
    agreements: tuple[Agreement, ...]
    template: str
    """How its chat template compares with the student's."""
    vocabulary: str
    """Whether it spells ids as the student does."""

    @property
    def compared(self) -> list[str]:
        """How far each test agreed, or that it was not made."""
        made = [str(agreement) for agreement in self.agreements]
        if any(agreement.test == AS_WRITTEN for agreement in self.agreements):
            return made
        return [*made, f"{AS_WRITTEN}: not compared (the server does not say its tokens one by one)"]

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        return asdict(self)

    def lines(self) -> list[str]:
        """For a person."""
        return [
            f"scored by      {self.says}",
            *(f"self-test      {agreement}" for agreement in self.compared),
            f"self-test      vocabulary: {self.vocabulary}",
            f"self-test      chat template: {self.template}",
        ]


def self_test(
    api: Api, requests: Requests, k: int, example: Example, say: Callable[[str], None], weights: Weights | None = None
) -> ScoringReport:
    """Compare a server with itself, its words with the tokenizer's, and its numbers with those of its weights.

    Args:
        api: its kind.
        requests: to it.
        k: how many tokens are asked for.
        example: what is asked about.
        say: is told what was found, and of a chat template that differs.
        weights: those that it should have; None where they are not here.

    Raises:
        ModelError: it contradicts itself or `weights`, or has another vocabulary. Names both values, and where.
    """
    test = _Test(api, requests, k, example)
    say(f"testing the server: {api.says}")
    vocabulary = test.vocabulary()
    scores = test.scores(k, TIMES)
    agreements = [test.again(scores), test.fewer(scores[0])]
    written = test.written()
    if written is not None:
        agreements.append(written)
    if weights is not None:
        say(f"loading {weights.name}, to compare the server with it")
        agreements.append(test.against(weights))
    test.check_listed()
    template, differs = test.template()
    report = ScoringReport(
        api=api.name, says=api.says, agreements=tuple(agreements), template=template, vocabulary=vocabulary
    )
    for line in report.compared:
        say(f"  {line}")
    if differs:
        say(f"warning: {api.title}'s chat template is not the one that the rows are written with: {template}.")
    return report


class _Scored(NamedTuple):
    """A text, and what the server says at some of its positions."""

    ids: list[int]
    positions: list[int]
    scores: Scores


class _Test:
    """One server and one text."""

    def __init__(self, api: Api, requests: Requests, k: int, example: Example) -> None:
        self._api, self._requests, self._k, self._example = api, requests, k, example
        # Around where the answer begins: what is asked is less certain than what is answered.
        start = max(0, min(example.asked - LONGEST_TEXT // 2, len(example.ids) - LONGEST_TEXT))
        self._text = list(example.ids[: start + LONGEST_TEXT])
        self._positions = list(range(max(1, start), len(self._text)))
        self._scored: list[_Scored] = []

    def scores(self, k: int, times: int) -> list[Scores]:
        """The text scored so often, side by side, and once more when that is over, over another connection."""

        async def score(line: Line, _: int) -> Scores:
            return await self._api.score(line, self._text, self._positions, k)

        return self._all(range(times), score, k) + self._all(range(1), score, k)

    def again(self, scores: Sequence[Scores]) -> Agreement:
        """Replicas that have other weights or settings, and numbers that depend on what else is computed."""
        first = scores[0]
        self._scored.append(_Scored(self._text, self._positions, first))
        differences = np.concatenate([_apart(first, other) for other in scores[1:]])
        where = int(differences.argmax()) % len(self._positions)
        other = scores[1 + int(differences.argmax()) // len(self._positions)]
        values = first.label_logps[where], other.label_logps[where]
        return self._agreement(
            "the same text again",
            differences,
            where,
            values,
            "its replies to the same text differ, as those of replicas with other weights or settings do. Ask one "
            "replica, or give all the same weights",
        )

    def fewer(self, scores: Scores) -> Agreement:
        """Log-probabilities of the listed tokens alone, which depend on how many are listed."""
        [alone, _] = self.scores(1, 1)
        differences = np.abs(alone.logps[:, 0] - scores.logps[:, 0])
        where = int(differences.argmax())
        values = scores.logps[where, 0], alone.logps[where, 0]
        return self._agreement(
            f"the likeliest token, listed alone and among {self._k}",
            differences,
            where,
            values,
            "the log-probability of a token depends on how many are listed, so they are made to add up to one. Switch "
            "that off: those of the whole vocabulary are needed",
        )

    def written(self) -> Agreement | None:
        """What the teacher writes greedily, and scored: finds log-probabilities of another temperature or position."""
        asked = list(self._example.ids[: max(1, self._example.asked)])

        async def write(line: Line, _: int) -> list[tuple[int, float]] | None:
            return await self._api.written(line, asked, WRITTEN)

        [found] = self._all(range(1), write)
        if not found:
            return None
        tokens, own = [index for index, _ in found], np.array([logp for _, logp in found])
        positions = list(range(len(asked), len(asked) + len(tokens)))

        async def score(line: Line, _: int) -> Scores:
            return await self._api.score(line, asked + tokens, positions, self._k)

        [scores] = self._all(range(1), score)
        self._scored.append(_Scored(asked + tokens, positions, scores))
        differences = np.abs(scores.label_logps - own)
        where = int(differences.argmax())
        return self._agreement(
            AS_WRITTEN,
            differences,
            where,
            (own[where], scores.label_logps[where]),
            "what it says of the tokens it writes is not what it says when it scores them: one of the two is at "
            "another temperature, after penalties, or of the position before or after. Let it give raw "
            "log-probabilities (vLLM: --logprobs-mode raw_logprobs), without speculative decoding",
            token=tokens[where],
            at=positions[where],
        )

    def against(self, weights: Weights) -> Agreement:
        """Other weights, or the same in another precision: both look like a server that is right."""
        largest = max(max(*ids, int(scores.ids[:, 0].max())) for ids, _, scores in self._scored)
        if largest >= weights.width:
            raise ServedTeacherError(
                f"{self._place}: it writes or lists token {largest}, and {weights.name} (teacher.check_against) has "
                f"logits for {weights.width:,}. {OTHER_WEIGHTS}."
            )
        found = []
        whole = weights.log_probabilities([scored.ids for scored in self._scored])
        for (ids, positions, scores), ours in zip(self._scored, whole, strict=True):
            for row, at in enumerate(positions):
                top = int(scores.ids[row, 0])
                said = {ids[at]: scores.label_logps[row], top: scores.logps[row, 0]}
                pairs = [(token, logp, ours[at - 1, token]) for token, logp in said.items()]
                # One so unlikely that rounding decides says nothing; the likeliest always does.
                counted = [pair for pair in pairs if pair[0] == top or max(pair[1:]) > LIKELY]
                found.append((*max(counted, key=lambda pair: abs(pair[1] - pair[2])), at))
        differences = np.array([abs(theirs - mine) for _, theirs, mine, _ in found])
        where = int(differences.argmax())
        token, theirs, mine, at = found[where]
        return self._agreement(
            f"the weights that are here, {weights.name}",
            differences,
            where,
            (theirs, mine),
            f"what it says is not what {weights.name} says here (teacher.check_against). {OTHER_WEIGHTS}",
            token=token,
            at=at,
        )

    def vocabulary(self) -> str:
        """Whether the server spells the ids as they are spelt here."""
        ids, reader = self._text, self._example.reader
        said = self._spelt(ids)
        if said is None:
            return "not compared (the server does not spell ids)"
        if _bare(said) == _bare(self._ours(ids)):
            return f"ids are spelt as by {reader}"
        for index in dict.fromkeys(ids):
            theirs = self._spelt([index])
            if theirs is not None and _bare(theirs) != _bare(self._ours([index])):
                raise ServedTeacherError(
                    f"{self._place}: it has another vocabulary than {reader}: id {index} is {shown(theirs)} there "
                    f"and {shown(self._ours([index]))} here. {self._other_tokenizer}"
                )
        return f"ids together are spelt otherwise than by {reader}, each alone alike"

    def check_listed(self) -> None:
        """Whether what it expects are tokens that there are: also of a server that does not spell ids.

        Raises:
            ModelError: much of the probability is on ids that the tokenizer does not have.
        """
        size = vocabulary_size(self._example.tokenizer)
        ids, logps = (np.concatenate([getattr(one.scores, name) for one in self._scored]) for name in ("ids", "logps"))
        outside = ids >= size
        share = float(np.where(outside, np.exp(logps), 0.0).sum(1).mean())
        if share > UNNAMED:
            raise ServedTeacherError(
                f"{self._place}: {share:.0%} of the probability that it gives is on ids that {self._example.reader} "
                f"does not have, such as {int(ids[outside][0])}; the last one here is {size - 1}, and no more than "
                f"{UNNAMED:.0%} was expected beyond it. {self._other_tokenizer}"
            )

    @property
    def _other_tokenizer(self) -> str:
        """What to do about ids that mean something else there."""
        if self._example.named is None:
            return "Take a student with the teacher's tokenizer, or name that tokenizer (teacher.tokenizer)."
        return "Name the tokenizer of the model that is served (teacher.tokenizer)."

    def template(self) -> tuple[str, bool]:
        """How the server would write what the example asks, and whether that differs."""
        example = self._example
        if example.chat is None or example.chat.tools or example.chat.variables:
            return "not compared (the row has no plain prompt)", False

        async def ask(line: Line, chat: Conversation) -> list[int] | None:
            return await self._api.prompt_ids(line, chat)

        [theirs] = self._all([example.chat], ask)
        if theirs is None:
            return "not compared (the server does not say)", False
        ours = list(example.prompt_ids)
        if theirs == ours:
            return "the server would write the prompt in the same ids", False
        at = next((n for n, pair in enumerate(zip(ours, theirs, strict=False)) if pair[0] != pair[1]), None)
        at = min(len(ours), len(theirs)) if at is None else at
        give = "give that (data.chat_template)"
        if example.own_template:
            give = "save that with the tokenizer (teacher.tokenizer)"
        return (
            f"token {at} of the first row's prompt is {self._word(ours, at)} in the rows and {self._word(theirs, at)} "
            f"there. The rows' ids are what is scored; if the teacher was trained with its own template, {give}",
            True,
        )

    @property
    def _place(self) -> str:
        return self._requests.server.base_url

    def _all(
        self, jobs: Sequence[Any], work: Callable[[Line, Any], Coroutine[Any, Any, Any]], listed: int = 1
    ) -> list[Any]:
        """What comes of `jobs`, which ask for so many tokens of the text, over connections of their own."""
        outcomes = []
        for _, outcome in itertools.chain.from_iterable(self._requests.outcomes(list(jobs), work)):
            if isinstance(outcome, Refused):
                raise ServedTeacherError(
                    f"{self._place}: the self-test of the server failed: {outcome}{self._advice(outcome, listed)}"
                )
            outcomes.append(outcome)
        return outcomes

    def _advice(self, refused: Refused, listed: int) -> str:
        """What to do where it is the number of tokens that was too large; nothing where it may be anything else."""
        why = refused.why
        if not isinstance(why, TooFew) and not (isinstance(why, BadReply) and listed > 1 and self._lists_one(why)):
            return ""
        return f" To list more, {self._api.more.format(k=self._k)}; or keep fewer (--top-k)."

    def _lists_one(self, bad: BadReply) -> bool:
        """Whether a server that refuses a request for the text, as its client's fault, takes the same for one token."""
        if bad.status is None or not 400 <= bad.status < 500:
            return False

        async def score(line: Line, _: int) -> Scores:
            return await self._api.score(line, self._text, self._positions, 1)

        [(_, outcome)] = itertools.chain.from_iterable(self._requests.outcomes([0], score))
        return not isinstance(outcome, Refused)

    def _spelt(self, ids: Sequence[int]) -> str | None:
        async def ask(line: Line, _: int) -> str | None:
            return await self._api.spelt(line, ids)

        return self._all(range(1), ask)[0]

    def _ours(self, ids: Sequence[int]) -> str:
        tokenizer = self._example.tokenizer
        text = tokenizer.decode(list(ids), skip_special_tokens=False, clean_up_tokenization_spaces=False)
        assert isinstance(text, str)
        return text

    def _word(self, ids: Sequence[int], at: int) -> str:
        return f"{shown(self._ours([ids[at]]))} ({ids[at]})" if at < len(ids) else "its end"

    def _agreement(
        self,
        test: str,
        differences: np.ndarray,
        where: int,
        values: tuple[float, float],
        trouble: str,
        *,
        token: int | None = None,
        at: int | None = None,
    ) -> Agreement:
        found = Agreement(
            test=test, positions=len(differences), mean=float(differences.mean()), largest=float(differences.max())
        )
        if not (found.mean <= MEAN_TOLERANCE and found.largest <= LARGEST_TOLERANCE):  # nor is NaN taken for rounding
            at = self._positions[where] if at is None else at
            token = self._text[at] if token is None else token
            raise ServedTeacherError(
                f"{self._place}: {trouble}. Token {at} ({shown(self._ours([token]))}): {values[0]:.4g} and "
                f"{values[1]:.4g} nats; over {found.positions} positions they are {found.mean:.2g} apart on average "
                f"and {found.largest:.2g} at most, where {MEAN_TOLERANCE:g} and {LARGEST_TOLERANCE:g} are taken for "
                "rounding."
            )
        return found


def _apart(one: Scores, other: Scores) -> np.ndarray:
    """How far two replies are apart at each position, ``(N,)`` nats.

    Of the log-probabilities of listed tokens, weighted by their probabilities; or of the token that stands there, if
    that is more and it is not so unlikely that rounding decides.
    """
    same = one.ids[:, :, None] == other.ids[:, None, :]
    theirs = np.where(same, other.logps[:, None, :], -np.inf).max(2)
    # One that the other does not list has at most the probability of the last that it does.
    theirs = np.where(np.isneginf(theirs), np.minimum(other.logps[:, -1:], one.logps), theirs)
    listed = (np.exp(one.logps) * np.abs(one.logps - theirs)).sum(1)
    likely = np.maximum(one.label_logps, other.label_logps) > LIKELY
    return np.maximum(listed, np.where(likely, np.abs(one.label_logps - other.label_logps), 0.0))


def _bare(text: str) -> str:
    """Without spaces, which decoders put and drop as they like."""
    return "".join(text.split())
