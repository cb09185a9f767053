"""A server's answer to the token ids that the teacher wrote, and what it said at each of them.

A row is trained on exactly those ids, also where the student's tokenizer would have cut the answer otherwise: the
log-probabilities are about them and no others.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any, NamedTuple

from bridgegarden.data import Columns, conversation, prompt
from bridgegarden.data.encode import IGNORED, RowTokeniser
from bridgegarden.teacher.foreign_values import Unfit
from bridgegarden.teacher.server_logprobs import SMALLEST_TAIL, KeptLogprobs, kept_logprobs, token_bytes
from bridgegarden.teacher.server_tokens import TokenTexts

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

NO_LOGPROBS = "no log-probabilities"
MALFORMED = "log-probabilities of another form than generate writes"
NOT_TOLD_APART = "tokens that their text does not tell apart"
OTHER_TOKENS = "tokens that are not the student's"
TWICE = "a token listed twice"
OTHER_END = "an end at which the student does not stop"
ADVICE: Mapping[str, str] = {
    NO_LOGPROBS: "ask again with --top-logprobs, from a server that returns them",
    MALFORMED: "generate these rows again",
    NOT_TOLD_APART: "let the server say token ids (vLLM: --return-tokens-as-token-ids)",
    OTHER_TOKENS: "take a student with the teacher's tokenizer",
    TWICE: "the server repeats itself",
    OTHER_END: "give the student the teacher's chat template",
}
"""Why a row gives no signal, and what helps."""


class Unusable(NamedTuple):
    """Why a row gives no signal."""

    reason: str
    """A key of :data:`ADVICE`."""
    detail: str


class Position(NamedTuple):
    """What the teacher said at one token, in nats."""

    ids: tuple[int, ...]
    """Kept tokens, likeliest first; all different."""
    logp: tuple[float, ...]
    """Their log-probabilities. With the tail they sum to one."""
    log_tail: float
    """Log of all other mass, at least that of :data:`SMALLEST_TAIL`."""
    entropy: float
    """A lower bound of the teacher's entropy; see :func:`least_entropy`."""
    label_logp: float
    """Log-probability of the token that was written, whether it is kept or not."""
    is_floored: bool
    """Whether the server's numbers left less than :data:`SMALLEST_TAIL` for the tail."""
    unnamed: int
    """Listed tokens whose ids are not known; their mass is in the tail."""


@dataclass(frozen=True, kw_only=True)
class AnsweredRow:
    """A row as it is trained on, with what the teacher said."""

    input_ids: list[int]
    labels: list[int]
    """The ids where the teacher wrote them, -100 elsewhere."""
    positions: list[Position]
    """One for each label, in order."""
    end_is_label: bool
    """Whether the server said that the teacher ended here, but not with what probability."""

    def truncated(self, max_length: int | None) -> "AnsweredRow":
        """The first `max_length` tokens."""
        if max_length is None or len(self.input_ids) <= max_length:
            return self
        labels = self.labels[:max_length]
        kept = len(labels) - labels.count(IGNORED)
        return replace(
            self,
            input_ids=self.input_ids[:max_length],
            labels=labels,
            positions=self.positions[:kept],
            end_is_label=False,
        )


@dataclass(frozen=True, kw_only=True)
class AnswerReader:
    """Reads the rows of an answers file."""

    tokenizer: "PreTrainedTokenizerBase"
    """The student's, with the chat template that is used."""
    stops: tuple[int, ...]
    """Ids at which the student's generation stops, the one that it is taught first."""
    vocab_size: int
    """Tokens of the student; ids from there on are the tail's."""
    k: int
    """Tokens kept a position, >= 1."""
    columns: Columns = field(default_factory=Columns)
    """Where prompt and answer are."""

    def read(self, row: Mapping[str, Any], *, place: str) -> AnsweredRow | Unusable:
        """One row: the prompt as the student's template writes it, then the ids that the teacher wrote.

        Only the generated answer is supervised: nothing is known of what the teacher thinks of earlier turns.

        Args:
            row: as ``generate`` writes it.
            place: where the row is, for messages.

        Raises:
            DataError: a column is missing or of the wrong type, or the template refuses the conversation.
        """
        try:
            said = kept_logprobs(row.get("top_logprobs"))
        except Unfit as error:
            return Unusable(MALFORMED, str(error))
        if said is None:
            return Unusable(NO_LOGPROBS, "there are none")
        asked = self._tokeniser.prompt(prompt(row, self.columns, place=place), place)
        ids = self._written(said, row, asked, place)
        if isinstance(ids, Unusable):
            return ids
        positions = self._positions(said, ids)
        if isinstance(positions, Unusable):
            return positions
        problem = self._problem(ids, row, place)
        if problem is not None:
            return problem
        end_is_label = row.get("finish_reason") != "length" and ids[-1] not in self.stops
        if end_is_label:
            ids, positions = [*ids, self.stops[0]], [*positions, label_alone(self.stops[0])]
        return AnsweredRow(
            input_ids=asked + ids,
            labels=[IGNORED] * len(asked) + ids,
            positions=positions,
            end_is_label=end_is_label,
        )

    @cached_property
    def _tokeniser(self) -> RowTokeniser:
        return RowTokeniser.of(self.tokenizer)

    @cached_property
    def _texts(self) -> TokenTexts:
        return TokenTexts(self.tokenizer, self.vocab_size)

    def _written(
        self, said: KeptLogprobs, row: Mapping[str, Any], asked: list[int], place: str
    ) -> list[int] | Unusable:
        """The ids that the teacher wrote: as the server says, or else as far as their text tells."""
        if said.token_ids is not None:
            outside = next((index for index in said.token_ids if index >= self.vocab_size), None)
            return list(said.token_ids) if outside is None else Unusable(OTHER_TOKENS, f"id {outside}")
        found = [self._texts.ids(token_bytes(name)) for name in said.tokens]
        for name, ids in zip(said.tokens, found, strict=True):
            if not ids:
                return Unusable(OTHER_TOKENS, repr(name))
        if all(len(ids) == 1 for ids in found):
            return [ids[0] for ids in found]
        # Ambiguous texts are settled if the student's tokenizer cuts the answer just so.
        whole = self._tokeniser.row(conversation(row, self.columns, place=place), place).input_ids
        usual = whole[len(asked) :]
        fits = whole[: len(asked)] == asked and len(found) in (len(usual), len(usual) - 1)
        if fits and all(index in ids for index, ids in zip(usual, found, strict=False)):
            return usual[: len(found)]
        first = next(name for name, ids in zip(said.tokens, found, strict=True) if len(ids) > 1)
        return Unusable(NOT_TOLD_APART, repr(first))

    def _positions(self, said: KeptLogprobs, ids: Sequence[int]) -> list[Position] | Unusable:
        positions = []
        for number, (index, label_logp) in enumerate(zip(ids, said.logprobs, strict=True)):
            names, logps = said.top_tokens[number], said.top_logprobs[number]
            if said.top_token_ids is not None:
                listed = [i if i < self.vocab_size else None for i in said.top_token_ids[number]]
            else:
                own = said.tokens[number], label_logp
                listed = [
                    index if (name, logp) == own else self._only(name) for name, logp in zip(names, logps, strict=True)
                ]
            named = [i for i in listed if i is not None]
            if len(set(named)) < len(named):
                return Unusable(TWICE, repr(self.tokenizer.convert_ids_to_tokens(max(named, key=named.count))))
            if listed[0] is None:
                ambiguous = self._texts.ids(token_bytes(names[0])) if said.top_token_ids is None else ()
                return Unusable(NOT_TOLD_APART if ambiguous else OTHER_TOKENS, repr(names[0]))
            positions.append(kept_position(listed, logps, label_logp, self.k))
        return positions

    def _only(self, name: str) -> int | None:
        ids = self._texts.ids(token_bytes(name))
        return ids[0] if len(ids) == 1 else None

    def _problem(self, ids: list[int], row: Mapping[str, Any], place: str) -> Unusable | None:
        """Whether `ids` spell the answer and end it: those of another vocabulary do not."""
        text = conversation(row, self.columns, place=place).messages[-1]["content"]
        end = self._spelt(ids[-1:])
        before_end = self._spelt(ids[:-1]).strip()
        if ids[-1] in self.stops:
            return None if before_end in (text.strip(), text.removesuffix(end).strip()) else _not_spelt(before_end)
        if self._spelt(ids).strip() == text.strip():
            return None
        return Unusable(OTHER_END, repr(end)) if before_end == text.strip() else _not_spelt(self._spelt(ids))

    def _spelt(self, ids: list[int]) -> str:
        text = self.tokenizer.decode(ids, skip_special_tokens=False, clean_up_tokenization_spaces=False)
        assert isinstance(text, str)
        return text


def kept_position(ids: Sequence[int | None], logps: Sequence[float], label_logp: float, k: int) -> Position:
    """What is kept of one position.

    A server gives no tail: it is one minus the kept mass, in float64. Its log-probabilities are float32 at best, so
    less than :data:`SMALLEST_TAIL` is rounding, of either sign. The tail is taken to be that then, and all masses are
    divided by their sum.

    Args:
        ids: of the listed tokens, likeliest first; None where it is not known. The first is.
        logps: their log-probabilities, nats.
        label_logp: that of the token that was written.
        k: how many tokens to keep at most.
    """
    named = [(index, logp) for index, logp in zip(ids, logps, strict=True) if index is not None]
    kept = named[:k]
    mass = math.fsum(math.exp(logp) for _, logp in kept)
    tail = max(1 - mass, SMALLEST_TAIL)
    excess = math.log(mass + tail) if tail > 1 - mass else 0.0
    return Position(
        ids=tuple(index for index, _ in kept),
        logp=tuple(logp - excess for _, logp in kept),
        log_tail=math.log(tail) - excess,
        entropy=least_entropy(logps, label_logp),
        label_logp=min(label_logp, 0.0),
        is_floored=tail > 1 - mass,
        unnamed=len(ids) - len(named),
    )


def label_alone(index: int) -> Position:
    """A position of which no more is known than the token that the teacher wrote there.

    Its forward KL is the hard label's loss, whatever the soft weight. Drawn at temperature 1 the token is an unbiased
    estimate of the teacher's distribution, and chosen greedily the teacher's likeliest one.
    """
    return kept_position([index], [0.0], 0.0, 1)._replace(is_floored=False)


def least_entropy(logps: Sequence[float], label_logp: float) -> float:
    r"""The least entropy that a teacher with these likeliest tokens can have, about.

    .. math:: -\sum_{listed} p \log p - r \log \min(r, m)

    with r the mass of all others and m the probability of the least likely listed token: each of the others has at most
    m, and at most r. The token that was drawn may be listed whatever its probability, so it is left out of m.

    Args:
        logps: log-probabilities of the listed tokens, nats.
        label_logp: that of the token that was drawn.

    Returns:
        Nats, at most r log(V - K) below the teacher's entropy.
    """
    masses = [math.exp(logp) for logp in logps]
    rest = max(1 - math.fsum(masses), SMALLEST_TAIL)
    total = math.fsum(masses) + rest
    least = min((logp for logp in logps if logp != label_logp), default=0.0)
    of_listed = math.fsum(mass / total * math.log(mass / total) for mass in masses if mass > 0)
    return -of_listed - rest / total * min(math.log(rest / total), least)


def _not_spelt(text: str) -> Unusable:
    return Unusable(OTHER_TOKENS, f"spelt by the student's tokenizer they are {text[:40]!r}")
