"""What a training measures of itself: the terms of its loss, what they cost, which of them is no number; and whether
the teacher knows the data better than the student does."""

import json
import math
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, Literal, cast

import torch
from accelerate import Accelerator
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from bridgegarden.causal_lm import gathered_by_zero
from bridgegarden.diagnostics.label_losses import RowLoss
from bridgegarden.errors import NonFiniteError
from bridgegarden.objective.alignment import SupervisedPositions
from bridgegarden.objective.fused import FusedLoss
from bridgegarden.teacher.translated import SHARES

_NAMES = (
    *("loss", "soft_loss", "hard_loss", "risk_loss", "soft_weight", "position_weight"),
    *("teacher_entropy", "captured_mass"),
)
"""Terms, each of which has a sum over positions."""
_COUNTS = (
    *("positions", "with_risk", "student_entropy", "student_hits", "measured", "tokens"),
    *("teacher_label_loss", "student_label_loss", "labelled"),
    *("acceptance_least", "acceptance", "compared"),
)
"""What is counted behind them."""
OF_TEACHER = ("soft_loss", "teacher_entropy", "captured_mass", "teacher_label_loss", "acceptance", "acceptance_least")
"""Means that say nothing where no teacher is asked: they are not formed there."""
Phase = Literal["generation", "teacher", "step"]
Mode = Literal["train", "eval"]
COST_FILE = "cost.json"
"""In a checkpoint."""
LOGGED = ("teacher_tokens", "student_tokens", "generated_tokens")
"""Fields that every log has."""
ADVICE = {
    "teacher_entropy": "The teacher's own distribution is not finite: load it in bfloat16 or float32 (teacher.dtype).",
    "soft_loss": "The divergence is infinite where one side has no mass; see the chosen divergence's documentation.",
    "hard_loss": "The student's logits are not finite: lower the learning rate or check the student's weights.",
    "risk_loss": "The risk term squares the student's logits: lower objective.risk_alpha or the learning rate.",
    "soft_weight": "The rule for the soft weight gave no number.",
    "position_weight": "The rule for the weight of a position gave no number.",
    "loss": "The terms are finite one by one, but not their sum.",
}
"""By term, in the order in which they are looked at: the first that is not finite is the cause of the later ones."""


class TermSums:
    """Sums over positions since the last reset, kept on the device so that adding does not wait for it.

    Means are over *positions*, whatever the batches they came in: a batch with twice the tokens weighs twice.
    """

    def __init__(self, *, weighs_positions: bool = False) -> None:
        """
        Args:
            weighs_positions: whether a rule gives positions a weight; without one their mean is not formed.
        """
        self._sums: Tensor | None = None
        self._weighs_positions = weighs_positions

    def add(self, fused: FusedLoss, tokens: Tensor | int, shares: Tensor | None = None) -> None:
        """Add one batch.

        Args:
            fused: its loss and terms.
            tokens: how many tokens, supervised or not, the student read.
            shares: sums over positions of what :data:`~bridgegarden.teacher.translated.SHARES` are the means of, where
                the teacher's signal was translated: of every batch or of none.
        """
        terms = fused.terms
        columns = (
            *(terms.total, terms.soft, terms.hard, terms.risk, terms.soft_weight),
            *((terms.position_weight,) if self._weighs_positions else ()),
            *(fused.teacher_entropy, fused.captured_mass),
        )
        sums = [column.sum(dtype=torch.float64) for column in columns]
        entropy, hit = fused.student_entropy, fused.student_hit
        # Filled in on the device: a copy from the CPU's memory would wait for the GPU.
        count = sums[0].new_full((), len(terms.total))
        if not self._weighs_positions:
            sums.insert(_NAMES.index("position_weight"), count)
        sums += [
            count,
            terms.has_risk.sum(dtype=torch.float64),
            sums[0].new_zeros(()) if entropy is None else entropy.sum(dtype=torch.float64),
            sums[0].new_zeros(()) if hit is None else hit.sum(dtype=torch.float64),
            torch.zeros_like(count) if entropy is None else count,
            tokens.to(count) if isinstance(tokens, Tensor) else count.new_full((), tokens),
        ]
        known = ~fused.teacher_label_logp.isnan()
        sums += [
            -torch.where(known, fused.teacher_label_logp, 0.0).sum(dtype=torch.float64),
            -torch.where(known, fused.student_label_logp, 0.0).sum(dtype=torch.float64),
            known.sum(dtype=torch.float64),
        ]
        sums += [torch.zeros_like(count)] * 3 if fused.acceptance is None else _where_known(*fused.acceptance)
        batch = torch.stack(sums)
        if shares is not None:
            batch = torch.cat([batch, shares.to(batch)])
        self._sums = batch if self._sums is None else self._sums + batch

    def reset(self) -> Tensor | None:
        """Forget everything; returns the sums, or None when there were none."""
        sums, self._sums = self._sums, None
        return sums

    def tolist(self) -> list[float] | None:
        """The sums as plain numbers, None when there are none; nothing is forgotten."""
        return None if self._sums is None else self._sums.tolist()

    def restore(self, sums: list[float] | None, device: torch.device) -> bool:
        """Go on from what :meth:`tolist` gave; False, and from nothing, where those are other sums than these."""
        terms = len(_NAMES) + len(_COUNTS)
        known = sums is None or len(sums) in (terms, terms + len(SHARES))
        self._sums = None if sums is None or not known else torch.tensor(sums, dtype=torch.float64, device=device)
        return known


def _where_known(*columns: Tensor) -> list[Tensor]:
    """The sum of each column where it is a number, and how many of the last are."""
    sums = [torch.where(column.isnan(), 0.0, column).sum(dtype=torch.float64) for column in columns]
    return [*sums, (~columns[-1].isnan()).sum(dtype=torch.float64)]


def term_means(sums: Tensor) -> dict[str, float]:
    """Means by name, from (possibly gathered) sums; nats, except shares.

    ``risk_share`` is the share of positions that had a risk term. Terms nobody measured are left out.
    """
    terms = len(_NAMES) + len(_COUNTS)
    values, shares = sums[:terms].tolist(), sums[terms:].tolist()
    count, with_risk, entropy, hits, measured, tokens, *rest = values[len(_NAMES) :]
    *label_losses, labelled, least, accepted, compared = rest
    means = {name: value / count if count else math.nan for name, value in zip(_NAMES, values, strict=False)}
    means["risk_share"] = with_risk / count if count else math.nan
    if measured:
        means["student_entropy"] = means["entropy"] = entropy / measured
        means["mean_token_accuracy"] = hits / measured
    if labelled:
        means["teacher_label_loss"], means["student_label_loss"] = (loss / labelled for loss in label_losses)
    means |= {name: value / count if count else math.nan for name, value in zip(SHARES, shares, strict=False)}
    if compared:
        means["acceptance"], means["acceptance_least"] = accepted / compared, least / compared
    means["supervised_tokens"] = count
    means["tokens"] = tokens
    return means


def row_losses(fused: FusedLoss, positions: SupervisedPositions, rows: Tensor | None) -> list[RowLoss]:
    """What teacher and student lose on each row of a batch.

    Args:
        fused: the loss and its terms.
        positions: where they were computed.
        rows: ``(B, T)`` row of the data that each token came from; if None, each sequence is a row.
    """
    numbers = positions.row if rows is None else rows[positions.row, positions.column]
    known = ~fused.teacher_label_logp.isnan()
    found, places = numbers[known].unique(return_inverse=True)
    columns = [-fused.teacher_label_logp[known], -fused.student_label_logp[known], torch.ones_like(places)]
    sums = [
        torch.zeros(len(found), dtype=torch.float64).index_add_(0, places.cpu(), column.double().cpu()).tolist()
        for column in columns
    ]
    names = found.tolist() if rows is not None else [-1] * len(found)
    return [
        RowLoss(row, teacher, student, int(tokens)) for row, teacher, student, tokens in zip(names, *sums, strict=True)
    ]


@dataclass(frozen=True, kw_only=True)
class Cost:
    """Of a training since it began, resumptions included, summed over processes. Evaluations are not counted.

    Tokens are real ones: padding is not counted, although a device may work on it.
    """

    teacher_tokens: int = 0
    """Tokens through the teacher's forward; none with a cached teacher."""
    student_tokens: int = 0
    """Tokens through the student's forward and backward."""
    prompt_tokens: int = 0
    """Tokens through the student's forward before it began to write."""
    generated_tokens: int = 0
    """Tokens sampled from the student, one forward of a single position each."""
    answers: int = 0
    """Texts that the student wrote."""
    ended_answers: int = 0
    """Those of them that ended by themselves, before ``max_new_tokens``."""
    generation_seconds: float = 0.0
    """Wall time of writing."""
    teacher_seconds: float = 0.0
    """Wall time of the teacher's forward up to its final hidden states."""
    student_seconds: float = 0.0
    """Wall time of the student's forward and backward, head and loss included, and in them the teacher's head."""

    def since(self, before: "Cost") -> "Cost":
        """What came on top of `before`."""
        return Cost(**{f.name: getattr(self, f.name) - getattr(before, f.name) for f in fields(Cost)})


class CostLedger:
    """The books of one process; :meth:`total` adds up those of all.

    On a GPU phases are measured with events on its stream, which waits for nothing until somebody asks.
    """

    def __init__(self, accelerator: Accelerator) -> None:
        self._accelerator = accelerator
        self._before = Cost()
        self.logged = Cost()
        """What the last log told."""
        self._own: dict[str, Tensor | int] = {f.name: 0 for f in fields(Cost) if f.type is int}
        self._seconds: dict[Phase, float] = dict.fromkeys(("generation", "teacher", "step"), 0.0)
        self._events: list[tuple[Phase, torch.cuda.Event, torch.cuda.Event]] = []

    def add(self, **counts: Tensor | int) -> None:
        """Add to the counts of :class:`Cost`, by name; what is counted on a GPU is read when somebody asks."""
        for name, count in counts.items():
            self._own[name] += count

    @contextmanager
    def phase(self, phase: Phase, *, counted: bool = True) -> Iterator[None]:
        """The time of what runs inside; ``step`` is everything about a batch, so ``teacher`` lies within it."""
        if not counted:
            yield
        elif self._accelerator.device.type == "cuda":
            began, ended = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            began.record()
            yield
            ended.record()
            self._events.append((phase, began, ended))
            if len(self._events) >= 1000:
                self._settle()
        else:
            began_at = time.perf_counter()
            yield
            self._seconds[phase] += time.perf_counter() - began_at

    def total(self) -> Cost:
        """Of all processes. In a distributed run every one of them has to ask."""
        self._settle()
        seconds = {
            "generation_seconds": self._seconds["generation"],
            "teacher_seconds": self._seconds["teacher"],
            "student_seconds": self._seconds["step"] - self._seconds["teacher"],
        }
        # Whole microseconds, so that one sum of integers carries everything, exactly.
        self._own = {name: int(count) for name, count in self._own.items()}
        numbers = [*self._own.values(), *(round(1e6 * value) for value in seconds.values())]
        if self._accelerator.num_processes > 1:
            mine = torch.tensor(numbers, device=self._accelerator.device)
            numbers = cast(Tensor, self._accelerator.reduce(mine, "sum")).tolist()
        counts = dict(zip(self._own, numbers, strict=False))
        spent = {name: value / 1e6 for name, value in zip(seconds, numbers[len(counts) :], strict=True)}
        own = {**counts, **spent}
        return Cost(**{name: value + getattr(self._before, name) for name, value in own.items()})

    def log(self, *, writes: bool) -> dict[str, float]:
        """What is logged: tokens so far, and how the student wrote since the last time. Every process has to call this.

        Args:
            writes: whether the student writes in this training.
        """
        total = self.total()
        new, self.logged = total.since(self.logged), total
        logs: dict[str, float] = {name: getattr(total, name) for name in LOGGED}
        if writes and new.answers:
            logs["answer_length"] = new.generated_tokens / new.answers
            logs["answers_ended"] = new.ended_answers / new.answers
            seconds = new.generation_seconds / self._accelerator.num_processes
            logs["generated_tokens_per_second"] = new.generated_tokens / seconds
        return logs

    def save(self, checkpoint: str) -> None:
        """Write the total into a checkpoint. In a distributed run every process has to call this."""
        total = self.total()
        if self._accelerator.is_main_process:
            (Path(checkpoint) / COST_FILE).write_text(json.dumps(asdict(total), indent=2) + "\n", encoding="utf-8")

    def begin(self, checkpoint: str | None) -> None:
        """Start from nothing, or from what a checkpoint says; one without books counts as nothing."""
        self.__init__(self._accelerator)
        file = None if checkpoint is None else Path(checkpoint) / COST_FILE
        if file is not None and file.is_file():
            self._before = self.logged = Cost(**json.loads(file.read_text(encoding="utf-8")))

    def _settle(self) -> None:
        for phase, began, ended in self._events:
            ended.synchronize()
            self._seconds[phase] += began.elapsed_time(ended) / 1000
        self._events.clear()


@dataclass(frozen=True, kw_only=True)
class LogWindow:
    """The sums of one process."""

    loss_sum: float
    """Of the losses since the last log."""
    loss_sum_logged: float
    """Of those before."""
    last_logged_step: int
    terms: list[float] | None
    """Of the terms of the loss, as ``TermSums`` lists them; None where there are none."""
    cost_logged: Cost
    """What had been spent at the last log."""
    seconds: float | None
    """Since the last log; None before the first step."""

    def save(self, checkpoint: Path, process: int) -> None:
        """Write it beside the rest of `checkpoint`."""
        _path(checkpoint, process).write_text(json.dumps(asdict(self)), encoding="utf-8")

    @classmethod
    def load(cls, checkpoint: Path, process: int) -> "LogWindow | None":
        """What :meth:`save` wrote; None in a checkpoint that was written without it."""
        path = _path(checkpoint, process)
        if not path.is_file():
            return None
        window: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        cost = Cost(**window.pop("cost_logged"))
        return cls(cost_logged=cost, **window)


def _path(checkpoint: Path, process: int) -> Path:
    return checkpoint / f"log_window_{process}.json"


class TrainingLog:
    """What one process has measured since it logged, and what has been spent: the terms, the costs, and the clock."""

    def __init__(self, accelerator: Accelerator, *, weighs_positions: bool, asks_teacher: bool) -> None:
        """
        Args:
            accelerator: of the processes whose means and costs are logged.
            weighs_positions: whether a rule gives positions a weight.
            asks_teacher: whether one is asked; without one nothing is said of it.
        """
        self._accelerator = accelerator
        self.terms = {mode: TermSums(weighs_positions=weighs_positions) for mode in ("train", "eval")}
        """By what the student is doing."""
        self.costs = CostLedger(accelerator)
        self._clock: float | None = None
        self._left_out = () if weighs_positions else ("position_weight",)
        self._left_out += () if asks_teacher else OF_TEACHER

    def start_clock(self) -> None:
        """Start the clock that ``tokens_per_second`` is read from, unless it runs."""
        if self._clock is None:
            self._clock = time.perf_counter()

    def means(self, mode: Mode) -> dict[str, float]:
        """Means since the last time, over all processes, by name; none where nothing was measured."""
        sums = self.terms[mode].reset()
        if sums is None:
            return {}
        # float32 carries the sums over processes (not every backend and device has float64).
        if self._accelerator.num_processes > 1:
            sums = cast(Tensor, self._accelerator.reduce(sums.float(), "sum"))
        return {name: value for name, value in term_means(sums).items() if name not in self._left_out}

    def of_training(self, *, writes: bool) -> dict[str, float]:
        """What a training logs of the steps since the last time, the loss left out, which the trainer has itself.

        Args:
            writes: whether the student writes in this training.
        """
        means = self.means("train")
        means.pop("loss", None)
        tokens = means.pop("tokens", None)
        clock, self._clock = self._clock, None
        if tokens is None:
            return means
        if clock is not None:
            means["tokens_per_second"] = tokens / (time.perf_counter() - clock)
        means |= self.costs.log(writes=writes)
        return {**means, "num_tokens": means["student_tokens"]}

    def window(self, *, loss_sum: float, loss_sum_logged: float, last_logged_step: int) -> LogWindow:
        """What a checkpoint keeps of it, beside the sums that the trainer has itself."""
        return LogWindow(
            loss_sum=loss_sum,
            loss_sum_logged=loss_sum_logged,
            last_logged_step=last_logged_step,
            terms=self.terms["train"].tolist(),
            cost_logged=self.costs.logged,
            seconds=None if self._clock is None else time.perf_counter() - self._clock,
        )

    def take_up(self, window: LogWindow) -> bool:
        """Go on from what a checkpoint kept; False, and from no terms, where it kept others than these."""
        self.costs.logged = window.cost_logged
        if window.seconds is not None:
            self._clock = time.perf_counter() - window.seconds
        return self.terms["train"].restore(window.terms, self._accelerator.device)


def non_finite_loss(step: str, fused: FusedLoss, positions: SupervisedPositions, rows: Tensor | None) -> NonFiniteError:
    """The error for a loss that is not finite.

    Args:
        step: which step it is.
        fused: the loss and its terms.
        positions: where they were computed.
        rows: ``(B, T)`` row of the data that each token came from, if known.
    """
    terms = fused.terms
    values = (
        *(fused.teacher_entropy, terms.soft, terms.hard, terms.risk, terms.soft_weight, terms.position_weight),
        terms.total,
    )
    for (name, advice), value in zip(ADVICE.items(), values, strict=True):
        bad = (~torch.isfinite(value)).nonzero().flatten()
        if bad.numel():
            where = _where(rows, positions.row[bad], positions.column[bad])
            found = f"{name} is {value[bad[0]].item()} at {bad.numel()} of {len(positions)} positions"
            return NonFiniteError(f"{step}: {found}, {where}. {advice}")
    return NonFiniteError(f"{step}: the loss is {fused.loss.item()}, though every position's is finite.")


def non_finite_gradient(step: str, norm: float, rows: Sequence[Tensor]) -> NonFiniteError:
    """The error for a gradient norm that is not finite, with the `rows` of the step's batches."""
    ids = sorted({int(row) for batch in rows for row in batch.unique().tolist() if row >= 0})
    return NonFiniteError(
        f"{step}: the gradient norm is {norm} although the loss is finite; rows of this step: {ids or 'unknown'}. The "
        "student was not updated. Lower the learning rate, or train in bfloat16 or float32 rather than float16."
    )


def _where(rows: Tensor | None, row: Tensor, column: Tensor) -> str:
    if rows is None:
        return f"first at position {int(column[0])} of sequence {int(row[0])} of the batch"
    ids = sorted(set(rows[row, column].tolist()))
    shown = ", ".join(map(str, ids[:8])) + (", ..." if len(ids) > 8 else "")
    return f"rows of the data: {shown} (first at position {int(column[0])} of its sequence)"


def check_finite_weights(model: nn.Module, step: int) -> None:
    """Make sure that every weight that was trained is a number, before any is saved.

    A gradient can be finite and its update not; after the last step no loss would tell.

    Args:
        model: its parameters may be sharded; each process looks at its own part.
        step: the step after which they are saved.

    Raises:
        NonFiniteError: names the first that is not finite.
    """
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        with gathered_by_zero([parameter]):
            weight = parameter.detach()
            weight = weight.to_local() if isinstance(weight, DTensor) else weight
            # In one pass without memory of its own, unlike a mask.
            if weight.numel() == 0 or torch.isfinite(torch.stack(torch.aminmax(weight))).all():
                continue
            bad = weight.numel() - int(torch.isfinite(weight).sum())
            raise NonFiniteError(
                f"step {step}: {bad:,} of the {weight.numel():,} weights of {name} are not finite after the update, so "
                "nothing was saved. Lower training.learning_rate; what was saved before is as it was."
            )
