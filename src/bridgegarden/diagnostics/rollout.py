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
class Sampling:
    """How many texts are written, and how, to measure exposure bias."""

    samples: int = 4
    """Texts a prompt and writer, >= 1."""
    temperature: float = 1.0
    """Of what is written, >= 0 (0 is greedy). The loss is at temperature 1."""
    max_new_tokens: int = 256
    """Most tokens of a text, >= 1."""
    divergence: Divergence = forward_kl
    """D of the loss."""
    max_rows: int = DEFAULT_MAX_ROWS
    """Texts in progress at a time: what memory is bounded by."""

    def uniforms(self, prompts: int, students: int, generator: torch.Generator) -> Tensor:
        """``(prompts, samples, max_new_tokens)`` in [0, 1): what decides every token, the same for all who write.

        Raises:
            ConfigError: a setting out of range, or no students.
        """
        if not students or self.samples < 1 or self.max_new_tokens < 1:
            raise ConfigError(
                f"exposure bias: needs a student, samples >= 1 and max_new_tokens >= 1; got {students} students, "
                f"samples={self.samples}, max_new_tokens={self.max_new_tokens}."
            )
        return torch.rand(prompts, self.samples, self.max_new_tokens, generator=generator, dtype=torch.float64)


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
    overlap: Tensor
    r"""``(S, N, T)`` in [0, 1]: :math:`\sum_a \min(p(a), q(a))` before each token, one minus the distance at
    temperature 1."""
    agreement: Tensor
    """``(S, N, T)`` 1 where both models have the same likeliest token, else 0."""
    log_ratio: Tensor
    """``(S, N, T)`` nats: log q of each token minus its log p, both at the temperature of the roll-outs; infinite where
    one of them cannot write it."""
    student_logp: Tensor
    """``(S, N, T)`` nats: each token's log-probability under each student, at temperature 1."""
    teacher_logp: Tensor
    """``(N, T)`` nats: the same under the teacher."""
    teacher_entropy: Tensor
    """``(N, T)`` nats: the teacher's entropy before each token, at temperature 1."""
    teacher_max_prob: Tensor
    """``(N, T)``: probability of the teacher's likeliest token, at temperature 1."""
    sizes: Tensor | None = None
    """``(N,)`` float64: bytes of each text, its end one more; None where nobody counted them."""
    cut: Tensor | None = None
    """``(N,)`` 1 where a text is as long as allowed, else 0; None: those of T tokens are."""

    @property
    def full(self) -> Tensor:
        """``(N,)`` 1 where a text is as long as allowed, else 0."""
        return (self.lengths == self.horizon).double() if self.cut is None else self.cut.double()

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
        return replace(self, **{name: getattr(self, name)[kept] for name in OF_STUDENTS})

    def part(self, numbers: Sequence[int]) -> "RollOuts":
        """The texts `numbers` alone, each with its prompt as if it had no other."""
        rows = torch.tensor(numbers, dtype=torch.long)
        return replace(
            self,
            prompts=tuple(self.prompts[number // self.samples] for number in numbers),
            samples=1,
            tokens=tuple(self.tokens[number] for number in numbers),
            lengths=self.lengths[rows],
            **{name: getattr(self, name)[:, rows] for name in OF_STUDENTS},
            **{name: getattr(self, name)[rows] for name in OF_TEACHER},
            sizes=None if self.sizes is None else self.sizes[rows],
            cut=None if self.cut is None else self.cut[rows],
        )

    def per_prompt(self, values: Tensor) -> Tensor:
        """Mean over the texts of each prompt: ``(..., N)`` to ``(..., P)``."""
        return values.unflatten(-1, (len(self.prompts), self.samples)).mean(-1)


OF_STUDENTS = ("losses", "total_variation", "overlap", "agreement", "log_ratio", "student_logp")
"""What is noted of each student."""
OF_TEACHER = ("teacher_logp", "teacher_entropy", "teacher_max_prob")
"""What is noted of the teacher."""


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
        writer: `teacher`, one of `students` or anybody else of their vocabulary.
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
    everyone = [writer, *(policy for policy in (teacher, *students) if policy is not writer)]
    for rows in _batches([len(prompt) for prompt in prompts for _ in range(samples)], max_rows):
        starts, at = torch.unique(rows // samples, return_inverse=True)
        decodings = [policy.start([prompts[i] for i in starts.tolist()]) for policy in everyone]
        limits = torch.full((len(at),), horizon)
        drawn = uniforms.flatten(0, 1)[rows]
        for visit in walk(decodings, at, limits=limits, uniforms=drawn, temperature=temperature):
            logp = dict(zip(map(id, everyone), visit.logp, strict=True))
            written = visit._replace(rows=rows[visit.rows])
            found.add(written, logp[id(teacher)], [logp[id(student)] for student in students], temperature, divergence)
    return found.roll_outs(prompts, samples)


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


class _Found:
    """What is noted at every visit."""

    def __init__(self, students: int, texts: int, horizon: int) -> None:
        def empty(*shape: int) -> Tensor:
            return torch.zeros(*shape, dtype=torch.float64)

        self.per_student = {name: empty(students, texts, horizon) for name in OF_STUDENTS}
        self.of_teacher = {name: empty(texts, horizon) for name in OF_TEACHER}
        self.tokens = torch.full((texts, horizon), -1)

    def add(self, visit: Visit, p: Tensor, qs: Sequence[Tensor], temperature: float, divergence: Divergence) -> None:
        """What teacher and students say before the tokens of `visit`, whose rows are the numbers of texts."""
        tokens = visit.tokens.to(p.device).unsqueeze(-1)
        cell = (visit.rows, visit.step)

        def of_token(logp: Tensor) -> Tensor:
            return logp.gather(-1, tokens).squeeze(-1)

        self.tokens[cell] = visit.tokens
        highest, likeliest = p.max(-1)
        found = {"teacher_logp": of_token(p), "teacher_entropy": entropy(p), "teacher_max_prob": highest.exp()}
        for name, values in found.items():
            self.of_teacher[name][cell] = values.double().cpu()
        written_p = tempered(p, temperature)
        for index, q in enumerate(qs):
            written_q = tempered(q, temperature)
            distance = total_variation(written_p, written_q)
            ratio = of_token(written_q) - of_token(written_p)
            found = {
                "losses": divergence(p, q),
                "total_variation": distance,
                "overlap": 1 - (distance if temperature == 1.0 else total_variation(p, q)),
                "agreement": q.argmax(-1) == likeliest,
                # What neither can write was written by somebody else, and says nothing of these two.
                "log_ratio": torch.where(ratio.isnan(), 0.0, ratio),
                "student_logp": of_token(q),
            }
            for name, values in found.items():
                self.per_student[name][index][cell] = values.double().cpu()

    def roll_outs(self, prompts: Sequence[Sequence[int]], samples: int) -> RollOuts:
        lengths = (self.tokens >= 0).sum(-1)
        rows = zip(self.tokens.tolist(), lengths.tolist(), strict=True)
        return RollOuts(
            prompts=tuple(tuple(prompt) for prompt in prompts),
            samples=samples,
            tokens=tuple(tuple(row[:length]) for row, length in rows),
            lengths=lengths,
            **self.per_student,
            **self.of_teacher,
        )


def _batches(lengths: Sequence[int], max_rows: int) -> list[Tensor]:
    """Rows in batches of similar prompt length, so that little is padded; those of one prompt stay together."""
    order = torch.tensor(sorted(range(len(lengths)), key=lambda row: -lengths[row]))
    return [part.sort().values for part in order.split(max_rows)]


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
