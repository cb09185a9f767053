"""What a cache loses: the soft loss and its gradient from the cache, against the dense ones, on a real pair.

    python benchmarks/cache_fidelity.py TEACHER STUDENT ROWS [--prompt question --completion answer] [--rows 12]
                                        [--csv src/bridgegarden/teacher/cache/fidelity.csv]

TEACHER and STUDENT are model folders, ROWS a file of rows. At every supervised position the teacher's distribution is
kept as the cache keeps it (encoded to bytes and decoded again) and as it is (dense). Reported, over all positions:

* ``bytes``: of a position on disk, before what lies around the records. ``mass``: mean probability of the kept tokens,
  at temperature 1 and 2.
* ``encoding``: the mean KL divergence of the decoded support from the exact one, nats: what the bits alone lose.
* for each divergence at both temperatures, the mean from the cache over the dense one, and the cosine between the two
  gradients with respect to the student's logits (one vector over all positions).

``--csv`` writes the losses of the entries with a number of tokens: what warnings about a cache are made from.
"""

import argparse
import csv
import platform
import resource
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import NamedTuple

import pyarrow as pa
import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer

from bridgegarden.data import Columns, RowRules, load_rows, tokenise, vocabulary_size
from bridgegarden.objective.divergences import DIVERGENCES, Divergence, forward_kl
from bridgegarden.objective.head import select_support
from bridgegarden.objective.hybrid import HybridObjective, dense_student_support
from bridgegarden.objective.soft_weight import StaticWeight
from bridgegarden.objective.support import TeacherSignal
from bridgegarden.teacher.cache.forward import signal_arrays
from bridgegarden.teacher.cache.reader import as_tensors, teacher_signal
from bridgegarden.teacher.cache.record import RecordFormat
from bridgegarden.teacher.cache.spec import DEFAULT_EXPONENTS, CacheSpec, Support

NEED_OPTIONS = {
    f"alpha_beta({alpha:g}, {beta:g})": partial(DIVERGENCES["alpha_beta"], alpha=alpha, beta=beta)
    for alpha, beta in ((0.5, 0.5), (0.2, 0.7), (0.0, 0.0))
}
SHOWN: Mapping[str, Divergence] = {n: f for n, f in DIVERGENCES.items() if n != "alpha_beta"} | NEED_OPTIONS
TEMPERATURES = (1.0, 2.0)
LOSSES = [(name, temperature) for temperature in TEMPERATURES for name in SHOWN]


class Kept(NamedTuple):
    """An entry of the tables."""

    support: Support
    bits: int = 8

    @property
    def has_losses(self) -> bool:
        """Whether it is in the table of losses: as many tokens everywhere, in the usual bits."""
        return self.support.kind == "topk" and self.bits == 8


ENTRIES = [
    *(Kept(Support(k=k)) for k in (1, 8, 16, 32, 64, 128, 512, 2048)),
    Kept(Support(k=64), 16),
    *(Kept(Support(kind="mass", mass=mass, k=1024)) for mass in (0.95, 0.99, 0.999)),
]


@dataclass
class Sums:
    """Of one entry, or of the dense losses."""

    positions: int = 0
    bytes: int = 0
    mass: dict[float, float] = field(default_factory=lambda: dict.fromkeys(TEMPERATURES, 0.0))
    encoding: float = 0.0
    value: dict[tuple[str, float], float] = field(default_factory=lambda: dict.fromkeys(LOSSES, 0.0))
    products: dict[tuple[str, float], Tensor] = field(
        default_factory=lambda: {loss: torch.zeros(3).double() for loss in LOSSES}
    )
    """Of the two gradients: with each other, and each with itself."""


def cache_spec(kept: Kept, vocab_size: int, width: int) -> CacheSpec:
    """A spec of which only what shapes the bytes matters."""
    names = {"teacher": "", "revision": None, "weights": None, "dtype": "", "tokenizer": "", "chat_template": ""}
    sizes = {"vocab_size": vocab_size, "teacher_width": width, "max_length": None}
    return CacheSpec(**names, **sizes, support=kept.support, exponents=DEFAULT_EXPONENTS, bits=kept.bits)  # pyright: ignore


def soft_loss(loss: tuple[str, float], signal: TeacherSignal, logits: Tensor) -> tuple[float, Tensor]:
    """Sum over positions, and its gradient."""
    name, temperature = loss
    logits = logits.detach().requires_grad_()
    if signal.ids is None:
        student = dense_student_support(logits, signal.logp.shape[-1], signal.argmax, temperature)
    else:
        student = select_support(logits, signal.ids, signal.argmax, temperature)
    objective = HybridObjective(divergence=SHOWN[name], soft_weight=StaticWeight(1.0), temperature=temperature)
    value = objective(signal, student, signal.argmax).soft.sum()
    return value.item(), torch.autograd.grad(value, logits)[0]


def stored_bytes(kept: Kept, records: bytes) -> int:
    """What the records of a document take in a shard."""
    return len(pa.compress(records, codec="zstd", asbytes=True)) if kept.support.kind == "mass" else len(records)


def add_row(teacher: Tensor, student: Tensor, vocab_size: int, sums: dict[Kept, Sums], dense: Sums) -> None:
    """Add the positions of one row, given both models' logits there."""
    exact = TeacherSignal.from_logits(teacher, vocab_size=vocab_size)
    signals = {}
    for kept, entry in sums.items():
        spec = cache_spec(kept, vocab_size, teacher.shape[-1])
        layout = RecordFormat(spec)
        signal = spec.support.signal(
            teacher, vocab_size=vocab_size, exponents=spec.stored_exponents, generator=torch.Generator()
        )
        records = layout.encode(signal_arrays(signal, signal.max_logp, spec))
        decoded = teacher_signal(as_tensors(layout.decode(records)), spec)
        assert signal.ids is not None
        order = torch.where(signal.ids < 0, vocab_size, signal.ids).argsort(1)
        cells = torch.cat([signal.logp.gather(1, order), signal.cells()[:, -1:]], 1)
        entry.positions += len(teacher)
        entry.bytes += stored_bytes(kept, records.tobytes())
        for temperature in TEMPERATURES:
            entry.mass[temperature] += (1 - decoded.cells(temperature)[:, -1].double().exp()).sum().item()
        entry.encoding += forward_kl(cells.double(), decoded.cells().double()).sum().item()
        if kept.has_losses:
            signals[kept] = decoded
    for loss in LOSSES:
        value, truth = soft_loss(loss, exact, student)
        dense.value[loss] += value
        for kept, signal in signals.items():
            value, gradient = soft_loss(loss, signal, student)
            sums[kept].value[loss] += value
            pairs = (gradient, truth), (gradient, gradient), (truth, truth)
            sums[kept].products[loss] += torch.stack([(a * b).sum().double() for a, b in pairs])


class Measured(NamedTuple):
    """Everything that the tables say."""

    sums: dict[Kept, Sums]
    dense: Sums
    vocab_size: int


def measure(teacher: str, student: str, rows: str, columns: Columns, count: int) -> Measured:
    """Both models on the first rows."""
    tokenizer = AutoTokenizer.from_pretrained(teacher)
    models = [AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32) for folder in (teacher, student)]
    data = tokenise(load_rows(rows, limit=count), tokenizer, RowRules(columns=columns, max_length=512))
    sums, dense = {kept: Sums() for kept in ENTRIES}, Sums()
    vocab_size = min(vocabulary_size(tokenizer), *(model.config.vocab_size for model in models))
    for row in data.with_format("torch"):
        assert isinstance(row, dict)
        where = row["labels"][1:] != -100
        with torch.no_grad():
            logits = [model(input_ids=row["input_ids"][None]).logits[0, :-1][where] for model in models]
        add_row(logits[0], logits[1], vocab_size, sums, dense)
    return Measured(sums, dense, vocab_size)


def fidelity(entry: Sums, dense: Sums, loss: tuple[str, float]) -> tuple[float, float]:
    """Ratio of the losses, and cosine between their gradients."""
    cross, ours, theirs = entry.products[loss].tolist()
    return entry.value[loss] / dense.value[loss], cross / (ours * theirs) ** 0.5


def lines(measured: Measured) -> list[str]:
    """Markdown: what is kept, then what each loss makes of it."""
    sums, dense = measured.sums, measured.dense
    positions = next(iter(sums.values())).positions
    result = [
        f"{positions} positions, V = {measured.vocab_size}",
        "",
        "| kept | bits | bytes | mass | mass at T = 2 | encoding, nats |",
        "|---" * 6 + "|",
    ]
    for kept, entry in sums.items():
        mass = " | ".join(f"{entry.mass[temperature] / positions:.4f}" for temperature in TEMPERATURES)
        result.append(
            f"| {kept.support} | {kept.bits} | {entry.bytes / positions:.0f} | {mass} "
            f"| {entry.encoding / positions:.1e} |"
        )
    entries = {kept: entry for kept, entry in sums.items() if kept.has_losses}
    names = [str(kept.support) for kept in entries]
    result += ["", f"| loss | dense, nats | {' | '.join(names)} |", "|---" * (2 + len(names)) + "|"]
    for loss in LOSSES:
        cells = [loss[0] + ("" if loss[1] == 1 else f", T = {loss[1]:g}"), f"{dense.value[loss] / positions:.4g}"]
        for entry in entries.values():
            ratio, cosine = fidelity(entry, dense, loss)
            cells.append(f"{ratio:.3f}, {cosine:.4f}")
        result.append(f"| {' | '.join(cells)} |")
    return result


def write_csv(measured: Measured, path: str) -> None:
    """Loss by loss, ascending in the number of kept tokens."""
    with open(path, "w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(["loss", "temperature", "k", "mass", "ratio", "cosine"])
        for loss in LOSSES:
            for kept, entry in measured.sums.items():
                if kept.has_losses:
                    numbers = entry.mass[loss[1]] / entry.positions, *fidelity(entry, measured.dense, loss)
                    writer.writerow([loss[0], f"{loss[1]:g}", kept.support.k, *(f"{n:.4f}" for n in numbers)])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("teacher")
    parser.add_argument("student")
    parser.add_argument("data")
    parser.add_argument("--prompt")
    parser.add_argument("--completion")
    parser.add_argument("--rows", type=int, default=12)
    parser.add_argument("--csv")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    columns = Columns(prompt=arguments.prompt, completion=arguments.completion)
    measured = measure(arguments.teacher, arguments.student, arguments.data, columns, arguments.rows)
    print("\n".join(lines(measured)))
    if arguments.csv:
        write_csv(measured, arguments.csv)
    used = resource.getrusage(resource.RUSAGE_SELF)
    print(f"\none thread, {platform.machine()}, torch {torch.__version__}; {used.ru_utime + used.ru_stime:.0f} CPU s")


if __name__ == "__main__":
    main()
