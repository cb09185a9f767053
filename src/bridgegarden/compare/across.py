"""Students of a comparison whose teacher has another tokenizer: what they lose by the byte and by the token."""

from collections.abc import Mapping
from typing import TYPE_CHECKING

import torch

from bridgegarden.causal_lm_policy import CausalLMPolicy
from bridgegarden.compare.findings import summary
from bridgegarden.compare.pair import Pair
from bridgegarden.compare.result import CompareResult, Quantity
from bridgegarden.data import end_of_turn_ids, vocabulary_size
from bridgegarden.diagnostics.exposure_bias import ExposureBias, linearised
from bridgegarden.diagnostics.rollout import RollOuts, Sampling
from bridgegarden.diagnostics.two_tokenizers import PairReader, Prompt, compare_across
from bridgegarden.run.prompts import Prompts
from bridgegarden.table import BITS, Cell, Column, Table, mean_cell

if TYPE_CHECKING:
    from transformers import PreTrainedModel

PER_BYTE: Mapping[Quantity, str] = {
    "teacher_loss_per_byte": "L_dT, bits a byte",
    "student_loss_per_byte": "L_dθ, bits a byte",
    "exposure_bias_per_byte": "exposure bias, bits a byte",
}
"""By prompt in `Measured.by_unit`, nats a byte; values whose mean is the mean loss over the mean bytes."""
PER_TOKEN: Mapping[Quantity, str] = {
    "teacher_loss_per_token": "L_dT, nats a token",
    "student_loss_per_token": "L_dθ, nats a token",
    "exposure_bias_per_token": "exposure bias, nats a token",
}
"""The same by the student's token, nats."""
LEFT_OUT = (
    "Teacher and students cut texts into different tokens, so there is no entropy kept (of the teacher's a lower bound "
    "alone is known), no loss of the teacher on the data (its probability of a student's token is not always known) "
    "and no draft models (whose tokens the teacher would have to read)."
)
"""Which measures there are none of, and why."""


def drift_across(
    pair: Pair,
    teacher: "PreTrainedModel",
    student: "PreTrainedModel",
    prompts: Prompts,
    sampling: Sampling,
    generator: torch.Generator,
) -> tuple[dict[Quantity, dict[str, float]], dict[str, float]]:
    """What is measured on texts, by prompt, and how much of the teacher is known there."""
    assert pair.tokens is not None
    theirs = end_of_turn_ids(pair.teacher.tokenizer, pair.teacher.generation_config)
    policies = (
        CausalLMPolicy(model, end_ids=stops, vocab_size=size)
        for model, stops, size in (
            (teacher, theirs, vocabulary_size(pair.teacher.tokenizer)),
            (student, pair.endings.stops, pair.vocab_size),
        )
    )
    both = [Prompt(*ids) for ids in zip(prompts.teacher_ids, prompts.ids, strict=True)]
    reader = PairReader(pair.tokens, *policies)
    found = compare_across({"student": reader}, both, sampling, generator=generator)["student"]
    shares = {"teacher_texts": found.on_teacher, "student_texts": found.on_student}
    known = {name: one["exact_mass"] + one["approximate_mass"] for name, one in shares.items()}
    return losses_by_prompt(found.bias) | _ratios_by_prompt(found.bias), known


def losses_by_prompt(bias: ExposureBias) -> dict[Quantity, dict[str, float]]:
    """Losses summed over a text, mean over the texts of each prompt, and their difference; nats."""
    on_teacher, on_student = (_sums(texts) for texts in (bias.teacher_texts, bias.student_texts))
    columns = {"teacher_loss": on_teacher, "student_loss": on_student, "exposure_bias": on_student - on_teacher}
    return {name: _numbered(column) for name, column in columns.items()}


def _ratios_by_prompt(bias: ExposureBias) -> dict[Quantity, dict[str, float]]:
    found = {}
    for names, sized in ((PER_BYTE, _bytes), (PER_TOKEN, _tokens)):
        on_teacher, on_student = (
            linearised(_sums(texts), texts.per_prompt(sized(texts)))
            for texts in (bias.teacher_texts, bias.student_texts)
        )
        columns = (on_teacher, on_student, on_student - on_teacher)
        found |= {name: _numbered(column) for name, column in zip(names, columns, strict=True)}
    return found


def _sums(texts: RollOuts) -> torch.Tensor:
    return texts.per_prompt(texts.losses[0].sum(-1))


def _bytes(texts: RollOuts) -> torch.Tensor:
    assert texts.sizes is not None
    return texts.sizes


def _tokens(texts: RollOuts) -> torch.Tensor:
    return texts.lengths.double()


def _numbered(values: torch.Tensor) -> dict[str, float]:
    return {str(number): value for number, value in enumerate(values.tolist())}


def across_table(result: CompareResult) -> Table | None:
    """Losses by the byte and the token, and how much of the teacher is known; None where tokenizers are the same."""
    if not result.pair.translated or not result.objectives:
        return None
    rows = []
    for objective in result.objectives:
        means = [(summary(result, objective, name), BITS) for name in PER_BYTE]
        means += [(summary(result, objective, name), 1.0) for name in PER_TOKEN]
        cells = [mean_cell(mean.value, mean.interval, times=times) for mean, times in means]
        rows.append([result.label(objective), *cells, *(Cell(_known(result, objective, name)) for name in KNOWN)])
    return Table(
        columns=[
            "objective",
            *PER_BYTE.values(),
            *(Column(head, detail=True) for head in PER_TOKEN.values()),
            *KNOWN.values(),
        ],
        rows=rows,
        note="Means over seeds and prompts, of what is known: the teacher's probabilities of the student's tokens, all "
        "else as one, so losses are at least these; exposure bias, a difference of two, may be more or less. "
        "By the byte they can be held against those of students with "
        f"another vocabulary. {LEFT_OUT}",
    )


KNOWN = {"teacher_texts": "known, teacher's texts", "student_texts": "known, own texts"}


def _known(result: CompareResult, objective: str, name: str) -> str:
    measured = [run.measured for run in result.runs_of(objective).values() if run.measured is not None]
    shares = [one.known[name] for one in measured if one.known is not None]
    return f"{sum(shares) / len(shares):.0%}" if shares else "–"
