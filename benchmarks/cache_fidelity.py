"""What a cache loses: the soft loss and its gradient from the cache, against the dense ones, on a real pair.

    python benchmarks/cache_fidelity.py TEACHER STUDENT ROWS [--prompt question --completion answer] [--rows 12]

TEACHER and STUDENT are model folders, ROWS a file of rows. At every supervised position the teacher's distribution is
kept as the cache keeps it (encoded to bytes and decoded again) and as it is (dense). Reported, over all positions:

* ``bytes``: of a position on disk. ``mass``: mean probability of the kept tokens.
* ``encoding``: the mean KL divergence of the decoded support from the exact one, nats: what the bits alone lose.
* for each divergence, the mean from the cache over the dense one, and the cosine between the two gradients with respect
  to the student's logits (one vector over all positions).
"""

import argparse
import platform
import resource
from dataclasses import dataclass, field

import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer

from bridgegarden.data import Columns, RowRules, load_rows, tokenise, vocabulary_size
from bridgegarden.objective.divergences import DIVERGENCES, forward_kl
from bridgegarden.objective.hybrid import HybridObjective, dense_student_support
from bridgegarden.objective.selected_logits import select_support
from bridgegarden.objective.soft_weight import StaticWeight
from bridgegarden.objective.support import TeacherSignal
from bridgegarden.teacher.cache.forward import signal_arrays
from bridgegarden.teacher.cache.reader import as_tensors, teacher_signal
from bridgegarden.teacher.cache.record import RecordFormat
from bridgegarden.teacher.cache.spec import DEFAULT_EXPONENTS, CacheSpec, Support

SHOWN = ("forward_kl", "reverse_kl", "jensen_shannon", "total_variation")
ENTRIES = [(k, 8) for k in (8, 16, 32, 64, 128)] + [(64, 16)]


@dataclass
class Sums:
    """Of one entry of the table."""

    positions: int = 0
    mass: float = 0.0
    encoding: float = 0.0
    value: dict[str, float] = field(default_factory=lambda: dict.fromkeys(SHOWN, 0.0))
    products: dict[str, Tensor] = field(default_factory=lambda: {name: torch.zeros(3).double() for name in SHOWN})
    """Of the two gradients: with each other, and each with itself."""


def cache_spec(k: int, bits: int, vocab_size: int, width: int) -> CacheSpec:
    """A spec of which only what shapes the bytes matters."""
    names = {"teacher": "", "revision": None, "weights": None, "dtype": "", "tokenizer": "", "chat_template": ""}
    sizes = {"vocab_size": vocab_size, "teacher_width": width, "max_length": None}
    return CacheSpec(**names, **sizes, support=Support(k=k), exponents=DEFAULT_EXPONENTS, bits=bits)  # pyright: ignore


def soft_loss(name: str, signal: TeacherSignal, logits: Tensor) -> tuple[float, Tensor]:
    """Sum over positions, and its gradient."""
    logits = logits.detach().requires_grad_()
    if signal.ids is None:
        student = dense_student_support(logits, signal.logp.shape[-1], signal.argmax)
    else:
        student = select_support(logits, signal.ids, signal.argmax, 1.0)
    objective = HybridObjective(divergence=DIVERGENCES[name], soft_weight=StaticWeight(1.0))
    loss = objective(signal, student, signal.argmax).soft.sum()
    return loss.item(), torch.autograd.grad(loss, logits)[0]


def add_row(teacher: Tensor, student: Tensor, vocab_size: int, sums: dict[tuple[int, int], Sums], dense: Sums) -> None:
    """Add the positions of one row, given both models' logits there."""
    exact = TeacherSignal.from_logits(teacher, vocab_size=vocab_size)
    truth = {name: soft_loss(name, exact, student) for name in SHOWN}
    for name, (value, _) in truth.items():
        dense.value[name] += value
    for (k, bits), entry in sums.items():
        spec = cache_spec(k, bits, vocab_size, teacher.shape[-1])
        layout = RecordFormat(spec)
        kept = spec.support.signal(
            teacher, vocab_size=vocab_size, exponents=spec.stored_exponents, generator=torch.Generator()
        )
        decoded = layout.decode(layout.encode(signal_arrays(kept, kept.max_logp, spec)))
        signal = teacher_signal(as_tensors(decoded), spec)
        assert kept.ids is not None
        order = kept.ids.argsort(1)
        cells = torch.cat([kept.logp.gather(1, order), kept.cells()[:, -1:]], 1)
        entry.positions += len(teacher)
        entry.mass += kept.captured_mass.sum().item()
        entry.encoding += forward_kl(cells.double(), signal.cells().double()).sum().item()
        for name in SHOWN:
            value, gradient = soft_loss(name, signal, student)
            exact_gradient = truth[name][1]
            entry.value[name] += value
            pairs = (gradient, exact_gradient), (gradient, gradient), (exact_gradient, exact_gradient)
            entry.products[name] += torch.stack([(a * b).sum().double() for a, b in pairs])


def measure(teacher: str, student: str, rows: str, columns: Columns, count: int) -> list[str]:
    """The table's lines."""
    tokenizer = AutoTokenizer.from_pretrained(teacher)
    models = [AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32) for folder in (teacher, student)]
    data = tokenise(load_rows(rows, limit=count), tokenizer, RowRules(columns=columns, max_length=512))
    sums, dense = {entry: Sums() for entry in ENTRIES}, Sums()
    vocab_size = min(vocabulary_size(tokenizer), *(model.config.vocab_size for model in models))
    for row in data.with_format("torch"):
        assert isinstance(row, dict)
        where = row["labels"][1:] != -100
        with torch.no_grad():
            logits = [model(input_ids=row["input_ids"][None]).logits[0, :-1][where] for model in models]
        add_row(logits[0], logits[1], vocab_size, sums, dense)
    return lines(sums, dense, vocab_size, models[0].config.vocab_size)


def lines(sums: dict[tuple[int, int], Sums], dense: Sums, vocab_size: int, width: int) -> list[str]:
    """Markdown."""
    positions = next(iter(sums.values())).positions
    means = ", ".join(f"{name} {dense.value[name] / positions:.4f}" for name in SHOWN)
    result = [
        f"{positions} positions, V = {vocab_size}; dense means in nats: {means}",
        "",
        "| K | bits | bytes | mass | encoding | " + " | ".join(f"{name} ratio | cosine" for name in SHOWN) + " |",
        "|---" * (5 + 2 * len(SHOWN)) + "|",
    ]
    for (k, bits), entry in sums.items():
        size = RecordFormat(cache_spec(k, bits, vocab_size, width)).bytes_per_position
        cells = [f"{k}", f"{bits}", f"{size}", f"{entry.mass / positions:.4f}", f"{entry.encoding / positions:.1e}"]
        for name in SHOWN:
            cross, ours, theirs = entry.products[name].tolist()
            cells += [f"{entry.value[name] / dense.value[name]:.4f}", f"{cross / (ours * theirs) ** 0.5:.5f}"]
        result.append(f"| {' | '.join(cells)} |")
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("teacher")
    parser.add_argument("student")
    parser.add_argument("data")
    parser.add_argument("--prompt")
    parser.add_argument("--completion")
    parser.add_argument("--rows", type=int, default=12)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    columns = Columns(prompt=arguments.prompt, completion=arguments.completion)
    print("\n".join(measure(arguments.teacher, arguments.student, arguments.data, columns, arguments.rows)))
    used = resource.getrusage(resource.RUSAGE_SELF)
    print(f"\none thread, {platform.machine()}, torch {torch.__version__}; {used.ru_utime + used.ru_stime:.0f} CPU s")


if __name__ == "__main__":
    main()
