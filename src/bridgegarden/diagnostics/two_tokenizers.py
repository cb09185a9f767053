r"""Exposure bias of a student whose teacher has another tokenizer.

Each of the two writes in its own tokens, behind its own rendering of a prompt; the other reads the bytes in its own.
What the teacher says is translated into the student's vocabulary as for training
(:mod:`bridgegarden.teacher.translation`): some tokens with their mass and one cell for all else, so

.. math:: l(s) = D(p_{cells}(\cdot|s) \,\|\, q_{cells}(\cdot|s)) \le D(p(\cdot|s) \,\|\, q(\cdot|s))

for what merging cells does to a divergence. Where no cell is known it is zero. What the two lose is thus at least what
is said here, on both kinds of texts, and as much less as less is known there: the shares stand beside it. Exposure bias
is the difference of two such losses, and so bounded on neither side. (Some of what
the teacher was not asked for, its tail beyond the tokens that are kept, may belong to a cell, which then is too small.)

A text counts up to where either of the two has read as many of its own tokens as are allowed, whoever wrote it. Sums
over the bytes of the texts, in place of tokens, are comparable between students of different vocabularies.

How often a token is accepted is not defined, nor whether both have the same likeliest one: the tokens are not the same.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import torch
from torch import Tensor

from bridgegarden.causal_lm import input_device, read_hidden
from bridgegarden.causal_lm_policy import CausalLMPolicy
from bridgegarden.data.encode import IGNORED
from bridgegarden.data.teacher_prompt import TEACHER_LABELS
from bridgegarden.diagnostics.exposure_bias import ExposureBias
from bridgegarden.diagnostics.rollout import RollOuts, Sampling, roll_out
from bridgegarden.errors import DataError
from bridgegarden.objective.alignment import SupervisedPositions
from bridgegarden.objective.divergences import Divergence, total_variation
from bridgegarden.objective.head import chunks, default_chunk_tokens, select_support
from bridgegarden.objective.support import ABSENT_LOG_MASS, shared_cells
from bridgegarden.teacher.live import LiveTeacher
from bridgegarden.teacher.tokenizer_pair import TokenizerPair
from bridgegarden.teacher.translated import SHARES, TranslatedModel, TranslatedSignal
from bridgegarden.teacher.translation.align import align

TOP_K = 64
"""Tokens that are kept of the teacher: translating takes longer the more there are."""
NOTED = ("losses", "total_variation", "student_logp", "teacher_logp", "teacher_entropy", "teacher_max_prob")
"""What is known of a position."""


class Prompt(NamedTuple):
    """One prompt as both read it."""

    teacher: tuple[int, ...]
    student: tuple[int, ...]


class Text(NamedTuple):
    """One text, up to where it counts."""

    prompt: Prompt
    teacher: list[int]
    """The teacher's tokens of it."""
    student: list[int]
    """The student's."""
    cut: bool
    """Whether it is as long as allowed."""


class Scored(NamedTuple):
    """The texts of one writer, read by both."""

    texts: RollOuts
    """In the student's tokens."""
    shares: dict[str, float]
    """:data:`~bridgegarden.teacher.translated.SHARES`, means over their positions."""


@dataclass(frozen=True, kw_only=True)
class TwoTokenizers:
    """Exposure bias across tokenizers, with how much of the teacher is known."""

    bias: ExposureBias
    """Without what is not defined: its texts say nothing of acceptance."""
    on_teacher: Mapping[str, float]
    """:data:`~bridgegarden.teacher.translated.SHARES` on the teacher's texts."""
    on_student: Mapping[str, float]
    """The same on the student's."""
    student_texts: Sequence[Text]
    """What the student wrote, as both read it."""


class PairReader:
    """A teacher and a student with different tokenizers, both in memory, that write and read."""

    def __init__(
        self, tokens: TokenizerPair, teacher: CausalLMPolicy, student: CausalLMPolicy, *, top_k: int = TOP_K
    ) -> None:
        """
        Args:
            tokens: of both; whatever is known is used, however little.
            teacher: in its own tokens.
            student: in its own.
            top_k: tokens that are kept of the teacher at a position.
        """
        self.tokens, self.teacher, self.student = tokens.at_threshold(0.0), teacher, student
        self._asked = TranslatedModel(LiveTeacher(teacher.model, top_k=top_k), self.tokens)

    def write(self, prompts: Sequence[Prompt], sampling: Sampling, uniforms: Tensor, *, teachers: bool) -> list[Text]:
        """Texts of the teacher or of the student, those of one prompt next to each other.

        Args:
            prompts: what they begin with.
            sampling: how.
            uniforms: ``(P, n, T)``, as :func:`roll_out` takes them.
            teachers: whether it is the teacher that writes.
        """
        writer = self.teacher if teachers else self.student
        begins = [prompt.teacher if teachers else prompt.student for prompt in prompts]
        found = roll_out(
            writer,
            [],
            begins,
            writer=writer,
            uniforms=uniforms,
            temperature=sampling.temperature,
            max_rows=sampling.max_rows,
        )
        return [
            self.text(prompts[number // found.samples], ids, uniforms.shape[-1], teachers=teachers)
            for number, ids in enumerate(found.tokens)
        ]

    def text(self, prompt: Prompt, ids: Sequence[int], most: int, *, teachers: bool) -> Text:
        """What one of them wrote, as both read it, up to `most` tokens of either."""
        writer, pair = self.teacher if teachers else self.student, self.tokens
        written = [index for index in ids if index < writer.shared_size]
        other = pair.as_student_writes(written) if teachers else pair.as_teacher_writes(written)
        return self.counted(prompt, *((written, other) if teachers else (other, written)), room=(most, most))

    def counted(self, prompt: Prompt, theirs: list[int], ours: list[int], *, room: tuple[int, int]) -> Text:
        """The same text in the tokens of both, up to where either has read what there is `room` for: the teacher's
        tokens, and the student's."""
        pair = self.tokens
        cut = len(theirs) >= room[0] or len(ours) >= room[1]
        theirs, ours = theirs[: room[0]], ours[: room[1]]
        size = len(pair.translation.teacher.join(theirs))
        begins, at = [], 0
        for index in ours:
            begins.append(at)
            at += len(pair.translation.student.tokens[index])
        counted = sum(begin < size for begin in begins) if cut else len(ours)
        return Text(prompt, theirs, ours[:counted], cut)

    def both_begin(self, text: Text) -> list[int]:
        """For each of the student's tokens of `text` the place of the teacher's that begins at the same byte, or -1."""
        found: list[int] = []
        before = 0
        for their_ids, our_ids in self.tokens.paired(text.student, text.teacher):
            held = align(self.tokens.translation.teacher, self.tokens.translation.student, their_ids, our_ids)
            places = zip(held.token.tolist(), held.inside.tolist(), strict=True)
            found += [before + at if at >= 0 and not inside else -1 for at, inside in places]
            before += len(their_ids)
        return found

    def score(self, texts: Sequence[Text], samples: int, most: int, divergence: Divergence, max_rows: int) -> Scored:
        """What both say along `texts`, `samples` of each prompt, of at most `most` tokens.

        Raises:
            DataError: there is no text with a token that both can read.
        """
        kept = [row for row, text in enumerate(texts) if text.student]
        if not kept:
            raise DataError(
                "exposure bias: in no text is there a token that both can read. Is what the teacher writes in the "
                "student's vocabulary?"
            )
        noted = {name: torch.zeros(len(texts), most, dtype=torch.float64) for name in NOTED}
        sums, count = torch.zeros(len(SHARES), dtype=torch.float64), 0
        order = sorted(kept, key=lambda row: -len(texts[row].student))
        for first in range(0, len(order), max_rows):
            rows = order[first : first + max_rows]
            values, facts = self._read([texts[row] for row in rows], divergence)
            sums, count, at = sums + facts, count + len(values["losses"]), 0
            for row in rows:
                length = len(texts[row].student)
                for name, value in values.items():
                    noted[name][row, :length] = value[at : at + length]
                at += length
        shares = dict(zip(SHARES, (sums / max(count, 1)).tolist(), strict=True))
        return Scored(self._roll_outs(texts, samples, most, noted), shares)

    def _read(self, texts: Sequence[Text], divergence: Divergence) -> tuple[dict[str, Tensor], Tensor]:
        """``(M,)`` each of `NOTED` at the positions of the texts, in order, and the sums of what is known."""
        ours = [_row(text.prompt.student, text.student) for text in texts]
        theirs = [_row(text.prompt.teacher, text.teacher) for text in texts]
        examples = [
            {"labels": own["labels"], TEACHER_LABELS: other["labels"]} for own, other in zip(ours, theirs, strict=True)
        ]
        pairs = self.tokens.of_batch(examples)
        assert sum(len(pair[1]) for pair in pairs) == sum(len(text.student) for text in texts)
        asked = _batch(theirs, self.tokens.pad_id) | self.tokens.aligned(examples)
        with torch.no_grad():
            signal = self._asked.at(
                SupervisedPositions.from_labels(asked["labels"]), asked, vocab_size=self._asked.width, exponents=()
            )
            return self._held_against(signal, _batch(ours, self.student.end_ids[0]), divergence), signal.sums

    def _held_against(
        self, signal: TranslatedSignal, batch: dict[str, Tensor], divergence: Divergence
    ) -> dict[str, Tensor]:
        model, positions = self.student.model, SupervisedPositions.from_labels(batch["labels"])
        here = {name: value.to(input_device(model)) for name, value in batch.items() if name != "labels"}
        hidden, head = read_hidden(model, here)
        hidden = positions.of(hidden)
        parts: dict[str, list[Tensor]] = {name: [] for name in NOTED}
        for rows in chunks(len(positions), default_chunk_tokens(head.vocab_size, hidden.device.type)):
            logits, said = head.logits(hidden[rows]).float().cpu(), signal[rows]
            assert said.ids is not None
            assert said.hard_only is not None
            student = select_support(logits, said.ids, positions.target[rows], 1.0)
            assert student.log_rest is not None
            # Of a student whose every token is a cell nothing is left, while the teacher's tail is never quite empty.
            least = student.log_normaliser + ABSENT_LOG_MASS
            student = replace(student, log_rest=torch.maximum(student.log_rest, least))
            p, q = shared_cells(said, student)
            unknown = said.hard_only
            parts["losses"].append(torch.where(unknown, 0.0, divergence(p, q)))
            parts["total_variation"].append(torch.where(unknown, 0.0, total_variation(p, q)))
            parts["student_logp"].append(student.target_logp())
            assert said.label_logp is not None
            parts["teacher_logp"].append(said.label_logp)
            parts["teacher_entropy"].append(torch.where(unknown, 0.0, said.entropy))
            parts["teacher_max_prob"].append(torch.where(unknown, 0.0, said.max_logp.exp()))
        return {name: torch.cat(values).double() for name, values in parts.items()}

    def _roll_outs(self, texts: Sequence[Text], samples: int, most: int, noted: dict[str, Tensor]) -> RollOuts:
        nowhere = torch.full((1, len(texts), most), torch.nan, dtype=torch.float64)
        of_student = {name: noted[name].unsqueeze(0) for name in ("losses", "total_variation", "student_logp")}
        student = self.tokens.translation.student
        return RollOuts(
            prompts=tuple(text.prompt.student for text in texts[::samples]),
            samples=samples,
            tokens=tuple(tuple(text.student) for text in texts),
            lengths=torch.tensor([len(text.student) for text in texts]),
            **of_student,
            overlap=nowhere,
            agreement=nowhere,
            log_ratio=nowhere,
            **{name: noted[name] for name in ("teacher_logp", "teacher_entropy", "teacher_max_prob")},
            sizes=torch.tensor([len(student.join(text.student)) for text in texts], dtype=torch.float64),
            cut=torch.tensor([text.cut for text in texts], dtype=torch.float64),
        )


def compare_across(
    readers: Mapping[str, PairReader], prompts: Sequence[Prompt], sampling: Sampling, *, generator: torch.Generator
) -> dict[str, TwoTokenizers]:
    """Exposure bias of several students of one teacher and one vocabulary, on the same prompts, texts of the teacher
    and random numbers; as :func:`~bridgegarden.diagnostics.exposure_bias.compare_students`.

    Args:
        readers: each student with the teacher, by name.
        prompts: at least two; they are the independent units of the errors.
        sampling: how texts are written; a text has at most `max_new_tokens` of either's tokens.
        generator: on the CPU.

    Raises:
        ConfigError: a setting out of range, or no students.
        DataError: fewer than two prompts, or a loss that is not finite.
    """
    uniforms = sampling.uniforms(len(prompts), len(readers), generator)
    lead = next(iter(readers.values()))
    teachers = lead.write(prompts, sampling, uniforms, teachers=True)
    found = {}
    for name, reader in readers.items():
        written = (teachers, reader.write(prompts, sampling, uniforms, teachers=False))
        on_teacher, on_student = (
            reader.score(texts, sampling.samples, sampling.max_new_tokens, sampling.divergence, sampling.max_rows)
            for texts in written
        )
        bias = ExposureBias.of(on_teacher.texts, on_student.texts, temperature=sampling.temperature)
        found[name] = TwoTokenizers(
            bias=bias, on_teacher=on_teacher.shares, on_student=on_student.shares, student_texts=written[1]
        )
    return found


def _row(prompt: Sequence[int], text: Sequence[int]) -> dict[str, Any]:
    return {"input_ids": [*prompt, *text], "labels": [IGNORED] * len(prompt) + list(text)}


def _batch(rows: Sequence[Mapping[str, Any]], pad: int) -> dict[str, Tensor]:
    width = max(len(row["input_ids"]) for row in rows)

    def filled(name: str, value: int) -> Tensor:
        return torch.tensor([[*row[name], *[value] * (width - len(row[name]))] for row in rows])

    ids, labels = filled("input_ids", pad), filled("labels", IGNORED)
    lengths = torch.tensor([len(row["input_ids"]) for row in rows])
    return {"input_ids": ids, "labels": labels, "attention_mask": (torch.arange(width) < lengths[:, None]).long()}
