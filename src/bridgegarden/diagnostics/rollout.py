r"""Texts written by a policy, with the student's loss at every prefix they visit.

:math:`l(s) = D(p(\cdot|s) \,\|\, q(\cdot|s))`, p the teacher and q the student, always at temperature 1; only what is
*written* is tempered. Teacher and student are fed the same tokens in lockstep and the loss is taken while both
distributions are there, so memory does not grow with the length of the texts beyond keys and values.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
from torch import Tensor

from bridgegarden.errors import ConfigError, DataError, check_temperature
from bridgegarden.objective.divergences import Divergence, forward_kl, total_variation
from bridgegarden.policy import Decoding, Policy

DEFAULT_MAX_ROWS = 32
"""Texts in progress at a time, unless another number is asked for."""


class Visit(NamedTuple):
    """The M texts that are still going on, before their next token."""

    step: int
    """How many tokens were appended before, the same for all."""
    rows: Tensor
    """``(M,)`` which of the texts these are, on the CPU."""
    logp: tuple[Tensor, ...]
    """``(M, V)`` log-probabilities at temperature 1, of each decoding, all on the first one's device."""
    tokens: Tensor
    """``(M,)`` the tokens that come next, on the CPU."""


@dataclass(frozen=True, kw_only=True)
class RollOuts:
    """N texts, those of one prompt next to each other, as S students and their teacher see them.

    Tensors are on the CPU, float64, and zero from the end of a text on. T is the longest text allowed.
    """

    prompts: tuple[tuple[int, ...], ...]
    """Token ids that the texts begin with."""
    samples: int
    """Texts of each prompt: text i belongs to prompt ``i // samples``."""
    tokens: tuple[tuple[int, ...], ...]
    """Token ids written after the prompt, the end token included where it was reached."""
    lengths: Tensor
    """``(N,)`` int64: tokens of each text, which is how many prefixes it visited."""
    losses: Tensor
    """``(S, N, T)`` nats: l before each token, for each student."""
    total_variation: Tensor
    """``(S, N, T)`` in [0, 1]: distance of the two distributions at the temperature of the roll-outs."""
    student_logp: Tensor
    """``(S, N, T)`` nats: each token's log-probability under each student, at temperature 1."""
    teacher_logp: Tensor
    """``(N, T)`` nats: the same under the teacher."""
    teacher_entropy: Tensor
    """``(N, T)`` nats: the teacher's entropy before each token, at temperature 1."""
    teacher_max_prob: Tensor
    """``(N, T)``: probability of the teacher's likeliest token, at temperature 1."""

    @property
    def horizon(self) -> int:
        """Most tokens a text can have, T."""
        return self.losses.shape[-1]

    def prefix(self, text: int, position: int) -> tuple[int, ...]:
        """Token ids before the token at `position` of `text`, the prompt's included."""
        return self.prompts[text // self.samples] + self.tokens[text][:position]

    def of_student(self, index: int) -> "RollOuts":
        """The same texts with one of the students alone."""
        kept = slice(index, index + 1)
        return replace(
            self,
            losses=self.losses[kept],
            total_variation=self.total_variation[kept],
            student_logp=self.student_logp[kept],
        )

    def per_prompt(self, values: Tensor) -> Tensor:
        """Mean over the texts of each prompt: ``(..., N)`` to ``(..., P)``."""
        return values.unflatten(-1, (len(self.prompts), self.samples)).mean(-1)


def roll_out(
    teacher: Policy,
    students: Sequence[Policy],
    prompts: Sequence[Sequence[int]],
    *,
    writer: Policy,
    uniforms: Tensor,
    temperature: float = 1.0,
    divergence: Divergence = forward_kl,
    max_rows: int = DEFAULT_MAX_ROWS,
) -> RollOuts:
    """Let `writer` continue `prompts`, and score what it writes.

    Args:
        teacher: p.
        students: each a q, scored on the same texts.
        prompts: P prompts.
        writer: `teacher` or one of `students`.
        uniforms: ``(P, n, T)`` in [0, 1), float64: n texts of at most T tokens each. The same numbers with another
            writer give texts that differ only where the writers do.
        temperature: of the writer, >= 0.
        divergence: D.
        max_rows: texts in progress at a time; neither texts nor losses depend on it, up to rounding.

    Raises:
        ConfigError: a setting out of range.
        DataError: no prompts, or the policies have different vocabularies.
    """
    _check(teacher, students, prompts, temperature, max_rows)
    count, samples, horizon = uniforms.shape
    assert count == len(prompts)
    found = _Found(len(students), count * samples, horizon)
    texts = torch.full((count * samples, horizon), -1)
    scorer = _Scorer(teacher, students, writer, temperature, divergence)
    for rows in _batches([len(prompt) for prompt in prompts for _ in range(samples)], max_rows):
        starts, at = torch.unique(rows // samples, return_inverse=True)
        for visit in scorer.walk([prompts[i] for i in starts.tolist()], at, uniforms=uniforms.flatten(0, 1)[rows]):
            found.add(rows[visit.rows], visit, scorer)
            texts[rows[visit.rows], visit.step] = visit.tokens
    lengths = (texts >= 0).sum(-1)
    return found.roll_outs(prompts, samples, _as_tuples(texts, lengths), lengths)


def read_texts(
    teacher: Policy,
    students: Sequence[Policy],
    prompts: Sequence[Sequence[int]],
    texts: Sequence[Sequence[int]],
    *,
    horizon: int | None = None,
    temperature: float = 1.0,
    divergence: Divergence = forward_kl,
    max_rows: int = DEFAULT_MAX_ROWS,
) -> RollOuts:
    """As `roll_out`, for one given text per prompt (a data set's answers, say); `horizon` is the longest by default."""
    _check(teacher, students, prompts, temperature, max_rows)
    if len(texts) != len(prompts):
        raise DataError(f"texts: got {len(texts)} for {len(prompts)} prompts; expected one for each.")
    longest = max(map(len, texts))
    width = longest if horizon is None else horizon
    if width < longest:
        raise ConfigError(f"horizon: got {width}, shorter than the longest text, which has {longest} tokens.")
    found = _Found(len(students), len(texts), width)
    given = torch.tensor([[*text, *[0] * (width - len(text))] for text in texts])
    lengths = torch.tensor([len(text) for text in texts])
    scorer = _Scorer(teacher, students, teacher, temperature, divergence)
    visited = torch.zeros_like(lengths)
    for rows in _batches([len(prompt) for prompt in prompts], max_rows):
        starts = [prompts[i] for i in rows.tolist()]
        for visit in scorer.walk(starts, torch.arange(len(rows)), given=given[rows], limits=lengths[rows]):
            found.add(rows[visit.rows], visit, scorer)
            visited[rows[visit.rows]] += 1
    if not torch.equal(visited, lengths):
        bad = int(torch.nonzero(visited != lengths)[0])
        raise DataError(
            f"text {bad}: has {int(lengths[bad])} tokens, but ends after {int(visited[bad])}. Cut it there."
        )
    return found.roll_outs(prompts, 1, tuple(tuple(text) for text in texts), lengths)


def walk(
    decodings: Sequence[Decoding],
    at: Tensor,
    *,
    limits: Tensor,
    uniforms: Tensor | None = None,
    given: Tensor | None = None,
    temperature: float = 1.0,
) -> Iterator[Visit]:
    """Follow N texts until each has ended or has had its limit of visits.

    The first decoding writes: tokens are drawn from it at `temperature` with `uniforms`, or are those `given`. Texts
    that have ended are dropped from the batch.

    Args:
        decodings: of the same texts, one for each policy.
        at: ``(N,)`` the row of the decodings from which each text starts (rows may be shared).
        limits: ``(N,)`` most visits of each text.
        uniforms: ``(N, T)`` in [0, 1); what text i draws at step t is a function of ``uniforms[i, t]``.
        given: ``(N, T)`` token ids, instead of `uniforms`.
        temperature: of what is drawn; 0 takes the likeliest token.
    """
    rows = torch.nonzero(limits > 0).squeeze(1)
    at, step = at[rows], 0
    going = ~decodings[0].ended().cpu()[at]
    rows, at = rows[going], at[going]
    while len(rows):
        lead = decodings[0].log_probs()
        logp = (lead, *(decoding.log_probs().to(lead.device) for decoding in decodings[1:]))
        if not _is_identity(at, len(lead)):
            logp = tuple(part[at.to(lead.device)] for part in logp)
        if given is not None:
            tokens = given[rows, step]
        else:
            assert uniforms is not None
            tokens = draw(tempered(logp[0], temperature), uniforms[rows, step]).cpu()
        yield Visit(step, rows, logp, tokens)
        del lead, logp
        step += 1
        on = limits[rows] > step
        rows, at, tokens = rows[on], at[on], tokens[on]
        if not len(rows):
            return
        decodings = [decoding.extend(at, tokens) for decoding in decodings]
        at = torch.nonzero(~decodings[0].ended().cpu()).squeeze(1)
        rows = rows[at]


def tempered(logp: Tensor, temperature: float) -> Tensor:
    """Log-probabilities ``(..., V)`` at `temperature`, from those at 1; at 0 the first likeliest token has it all."""
    if temperature == 1.0:
        return logp
    if temperature == 0.0:
        likeliest = logp.argmax(-1, keepdim=True)
        return torch.full_like(logp, -torch.inf).scatter_(-1, likeliest, 0.0)
    return (logp / temperature).log_softmax(-1)


def draw(logp: Tensor, uniforms: Tensor) -> Tensor:
    """The token at which the cumulative probability passes each uniform number: ``(M, V)`` and ``(M,)`` to ``(M,)``.

    Summed in float64: in float32 the last of 150,000 tokens would be drawn with the wrong probability.
    """
    return draw_by_weight(logp.exp(), uniforms)


def draw_by_weight(weights: Tensor, uniforms: Tensor) -> Tensor:
    """As `draw`, from weights >= 0 that need not sum to one."""
    cumulative = weights.double().cumsum(-1)
    total = cumulative[:, -1]
    reached = torch.minimum(uniforms.to(total) * total, torch.nextafter(total, torch.zeros_like(total)))
    return torch.searchsorted(cumulative, reached.unsqueeze(-1), right=True).squeeze(-1)


def entropy(logp: Tensor) -> Tensor:
    """Shannon entropy, ``(..., V)`` log-probabilities to ``(...,)`` nats."""
    return -torch.where(logp > -torch.inf, logp.exp() * logp, 0.0).sum(-1)


@dataclass(frozen=True)
class _Scorer:
    """Starts all policies on the same prefixes, the writer first, and sorts out who is who."""

    teacher: Policy
    students: Sequence[Policy]
    writer: Policy
    temperature: float
    divergence: Divergence

    def walk(
        self,
        prefixes: Sequence[Sequence[int]],
        at: Tensor,
        *,
        uniforms: Tensor | None = None,
        given: Tensor | None = None,
        limits: Tensor | None = None,
    ) -> Iterator[Visit]:
        horizon = uniforms.shape[1] if uniforms is not None else 0
        yield from walk(
            [policy.start(prefixes) for policy in self._order],
            at,
            limits=torch.full((len(at),), horizon) if limits is None else limits,
            uniforms=uniforms,
            given=given,
            temperature=self.temperature,
        )

    @property
    def _order(self) -> list[Policy]:
        everyone = [self.teacher, *self.students]
        return [self.writer, *(policy for policy in everyone if policy is not self.writer)]

    def sides(self, visit: Visit) -> tuple[Tensor, list[Tensor]]:
        """The teacher's and the students' log-probabilities at a visit."""
        by_policy = dict(zip(map(id, self._order), visit.logp, strict=True))
        return by_policy[id(self.teacher)], [by_policy[id(student)] for student in self.students]


class _Found:
    """What is noted at every visit."""

    def __init__(self, students: int, texts: int, horizon: int) -> None:
        def empty(*shape: int) -> Tensor:
            return torch.zeros(*shape, dtype=torch.float64)

        self.per_student = {
            name: empty(students, texts, horizon) for name in ("losses", "total_variation", "student_logp")
        }
        self.of_teacher = {
            name: empty(texts, horizon) for name in ("teacher_logp", "teacher_entropy", "teacher_max_prob")
        }

    def add(self, rows: Tensor, visit: Visit, scorer: _Scorer) -> None:
        p, qs = scorer.sides(visit)
        tokens = visit.tokens.to(p.device).unsqueeze(-1)
        cell = (rows, visit.step)
        self.of_teacher["teacher_logp"][cell] = p.gather(-1, tokens).squeeze(-1).double().cpu()
        self.of_teacher["teacher_entropy"][cell] = entropy(p).double().cpu()
        self.of_teacher["teacher_max_prob"][cell] = p.amax(-1).exp().double().cpu()
        written_p = tempered(p, scorer.temperature)
        for index, q in enumerate(qs):
            distance = total_variation(written_p, tempered(q, scorer.temperature))
            self.per_student["losses"][index][cell] = scorer.divergence(p, q).double().cpu()
            self.per_student["total_variation"][index][cell] = distance.double().cpu()
            self.per_student["student_logp"][index][cell] = q.gather(-1, tokens).squeeze(-1).double().cpu()

    def roll_outs(
        self, prompts: Sequence[Sequence[int]], samples: int, tokens: tuple[tuple[int, ...], ...], lengths: Tensor
    ) -> RollOuts:
        return RollOuts(
            prompts=tuple(tuple(prompt) for prompt in prompts),
            samples=samples,
            tokens=tokens,
            lengths=lengths,
            **self.per_student,
            **self.of_teacher,
        )


def _batches(lengths: Sequence[int], max_rows: int) -> list[Tensor]:
    """Rows in batches of similar prompt length, so that little is padded; those of one prompt stay together."""
    order = torch.tensor(sorted(range(len(lengths)), key=lambda row: -lengths[row]))
    return [part.sort().values for part in order.split(max_rows)]


def _as_tuples(texts: Tensor, lengths: Tensor) -> tuple[tuple[int, ...], ...]:
    return tuple(tuple(row[:length]) for row, length in zip(texts.tolist(), lengths.tolist(), strict=True))


def _check(
    teacher: Policy,
    students: Sequence[Policy],
    prompts: Sequence[Sequence[int]],
    temperature: float,
    max_rows: int,
) -> None:
    check_temperature(temperature, "temperature")
    if max_rows < 1:
        raise ConfigError(f"max_rows must be >= 1, got {max_rows}.")
    if not len(prompts):
        raise DataError("prompts: there are none. Give at least two, which are the independent units of every error.")
    for student in students:
        if student.vocab_size != teacher.vocab_size:
            raise DataError(
                f"the teacher has {teacher.vocab_size} tokens, a student {student.vocab_size}. Make both policies with "
                "the same vocab_size, the tokenizer's."
            )


def _is_identity(at: Tensor, count: int) -> bool:
    return len(at) == count and bool((at == torch.arange(count)).all())
