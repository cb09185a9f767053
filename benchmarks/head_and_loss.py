"""Time and memory of the language-model head and the loss, several routes side by side.

    python benchmarks/head_and_loss.py [--vocab 151936] [--tokens 512 1024 2048 4096] [--markdown FILE]
    python benchmarks/head_and_loss.py --device cuda --student 2048 --teacher 3584 --tokens 4096 16384 --repeats 5

Each route runs forward and backward on the same random hidden states. On a CPU in a process of its own: float32, one
thread, and memory is the peak of the resident set above what stood before (inputs and weights), so the weight's
gradient counts. On a GPU one after the other: bfloat16, and memory is the peak of what PyTorch allocated above what
stood before. A route that cannot run here is named with the reason. The routes:

* ``sft``: student logits, cross-entropy against the data (what plain fine-tuning pays).
* ``sft, trl``: the head of TRL's ``SFTTrainer``, with the entropy and the accuracy that it logs.
* ``sft, liger``: Liger's fused linear cross-entropy (``pip install liger-kernel``), on a GPU.
* ``sft, cut``: Apple's cut cross-entropy (``pip install cut-cross-entropy``); on a CPU its own compiled stand-in.
* ``trl distillation``: the loss of TRL's ``DistillationTrainer``, in chunks, from hidden states of both models.
* ``dense hybrid``: the hybrid loss as usually written, float32 logits of both models, static weight.
* ``trl gkd``: ``GKDTrainer.generalized_jsd_loss`` of TRL on dense logits of both models (no hard term).
* ``two-pass top-64``: ours over ``selected_logits``, whose backward projects again; teacher signal given (cached).
* ``fused top-64``: ours, gradients finished in the forward; teacher signal given (cached).
* ``kernels top-64``: the same by Triton's kernels, on a GPU; teacher signal given (cached).
* ``fused live top-64`` and ``fused live dense``: the same with the teacher projected chunk by chunk.

With ``TRITON_INTERPRET=1`` Triton's kernels, ours and others', run on a CPU, slowly, and all routes in one process:
that shows whether they run, and is no figure.
"""

import argparse
import ctypes
import gc
import importlib.util
import json
import os
import platform
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import torch
import torch.nn.functional as F

from bridgegarden.objective.fused import ProjectedTeacher, fused_hybrid_loss
from bridgegarden.objective.head import LanguageModelHead, selected_logits
from bridgegarden.objective.hybrid import HybridObjective
from bridgegarden.objective.support import StudentSupport, TeacherSignal

K = 64


class Problem:
    """Random hidden states and heads of a student and a teacher, and labels."""

    def __init__(self, tokens: int, vocab: int, student_width: int, teacher_width: int, device: str) -> None:
        generator = torch.Generator(device).manual_seed(0)
        dtype = torch.float32 if device == "cpu" else torch.bfloat16

        def random(rows: int, width: int, scale: float) -> torch.Tensor:
            return (scale * torch.randn(rows, width, generator=generator, device=device)).to(dtype)

        self.hidden = random(tokens, student_width, 1.0).requires_grad_()
        self.weight = random(vocab, student_width, student_width**-0.5).requires_grad_()
        self.teacher_hidden = random(tokens, teacher_width, 3.0)
        self.teacher_weight = random(vocab, teacher_width, teacher_width**-0.5)
        self.data = torch.randint(0, vocab, (tokens,), generator=generator, device=device)
        self.successor = torch.ones(tokens, dtype=torch.bool, device=device)
        self.successor[-1] = False
        self.objective = HybridObjective.preset("static", hard_target="data")
        self.vocab = vocab

    def cached_signal(self) -> TeacherSignal:
        """The top-k signal, made in small chunks so that making it leaves no mark on the peak."""
        head = LanguageModelHead(weight=self.teacher_weight)
        parts = [TeacherSignal.from_logits(head.logits(h), K) for h in self.teacher_hidden.split(32)]

        names = ("ids", "logp", "log_tail", "entropy", "argmax", "max_logp")
        fields: dict[str, Any] = {name: torch.cat([getattr(part, name) for part in parts]) for name in names}
        return TeacherSignal(**fields, vocab_size=self.vocab)


def sft(problem: Problem) -> Callable[[], torch.Tensor]:
    return lambda: F.cross_entropy((problem.hidden @ problem.weight.T).float(), problem.data)


def dense_hybrid(problem: Problem) -> Callable[[], torch.Tensor]:
    def loss() -> torch.Tensor:
        student = (problem.hidden @ problem.weight.T).float()
        with torch.no_grad():
            teacher = (problem.teacher_hidden @ problem.teacher_weight.T).float()
        soft = F.kl_div(student.log_softmax(-1), teacher.log_softmax(-1), reduction="none", log_target=True).sum(-1)
        hard = F.cross_entropy(student, problem.data, reduction="none")
        return (0.5 * soft + 0.5 * hard).mean()

    return loss


def trl_gkd(problem: Problem) -> Callable[[], torch.Tensor]:
    import warnings

    warnings.simplefilter("ignore")
    from trl.experimental.gkd import GKDTrainer

    def loss() -> torch.Tensor:
        student = problem.hidden @ problem.weight.T
        with torch.no_grad():
            teacher = problem.teacher_hidden @ problem.teacher_weight.T
        return GKDTrainer.generalized_jsd_loss(
            student.unsqueeze(0), teacher.unsqueeze(0), labels=problem.data.unsqueeze(0), beta=0.5
        )

    return loss


def trl_sft(problem: Problem) -> Callable[[], torch.Tensor]:
    from trl.kernels import ChunkedLogProbFunction
    from trl.trainer.utils import _CHUNKED_LOGPROB_CHUNK_SIZE

    logged = ("log_probs", "entropy", "is_top1")
    rest = 1.0, _CHUNKED_LOGPROB_CHUNK_SIZE, None, 1.0, logged
    return lambda: -ChunkedLogProbFunction.apply(problem.hidden, problem.weight, None, problem.data, *rest)[0].mean()


def liger(problem: Problem) -> Callable[[], torch.Tensor]:
    from liger_kernel.transformers.fused_linear_cross_entropy import (  # pyright: ignore[reportMissingImports]
        LigerFusedLinearCrossEntropyLoss,
    )

    loss = LigerFusedLinearCrossEntropyLoss()
    return lambda: loss(problem.weight, problem.hidden, problem.data)


def cut(problem: Problem) -> Callable[[], torch.Tensor]:
    from cut_cross_entropy import linear_cross_entropy  # pyright: ignore[reportMissingImports]

    impl = "cce" if problem.hidden.is_cuda else "torch_compile"
    return lambda: linear_cross_entropy(problem.hidden, problem.weight, problem.data, impl=impl)


def trl_distillation(problem: Problem) -> Callable[[], torch.Tensor]:
    from trl.kernels.chunked_divergence import ChunkedDivergenceFunction

    heads = problem.hidden, problem.weight, None, problem.teacher_hidden, problem.teacher_weight, None
    return lambda: ChunkedDivergenceFunction.apply(*heads, 0.5)[0].mean()


def two_pass(problem: Problem) -> Callable[[], torch.Tensor]:
    signal = problem.cached_signal()
    signal_ids = cast(torch.Tensor, signal.ids)

    def loss() -> torch.Tensor:
        ids = torch.cat([signal_ids, problem.data.unsqueeze(1)], 1)
        chosen = selected_logits(problem.hidden, problem.weight, ids)
        # The label is one cell more on the student's side only: give its mass back to the rest.
        label, kept = chosen.logits[:, -1], chosen.logits[:, :-1]
        among = (signal_ids == problem.data.unsqueeze(1)).any(1)
        rest = torch.where(among, chosen.log_rest, torch.logaddexp(chosen.log_rest, label))
        student = StudentSupport(kept, rest, label, chosen.log_normaliser)
        return problem.objective(signal, student, problem.data).mean()

    return loss


def fused(
    teacher: Callable[[Problem], object], *, kernels: bool = False
) -> Callable[[Problem], Callable[[], torch.Tensor]]:
    def route(problem: Problem) -> Callable[[], torch.Tensor]:
        source = teacher(problem)
        head = LanguageModelHead(weight=problem.weight)
        return lambda: (
            fused_hybrid_loss(
                problem.hidden,
                head,
                source,  # pyright: ignore[reportArgumentType]
                problem.data,
                problem.successor,
                problem.objective,
                num_items=len(problem.data),
                kernels=kernels,
            ).loss
        )

    return route


def live(top_k: int | None) -> Callable[[Problem], ProjectedTeacher]:
    return lambda problem: ProjectedTeacher(
        problem.teacher_hidden, LanguageModelHead(weight=problem.teacher_weight), top_k, problem.vocab
    )


ROUTES: dict[str, Callable[[Problem], Callable[[], torch.Tensor]]] = {
    "sft": sft,
    "sft, trl": trl_sft,
    "sft, liger": liger,
    "sft, cut": cut,
    "dense hybrid": dense_hybrid,
    "trl gkd": trl_gkd,
    "trl distillation": trl_distillation,
    "two-pass top-64": two_pass,
    "fused top-64": fused(Problem.cached_signal),
    "kernels top-64": fused(Problem.cached_signal, kernels=True),
    "fused live top-64": fused(live(K)),
    "fused live dense": fused(live(None)),
}
INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
PACKAGES = {"sft, liger": "liger_kernel", "sft, cut": "cut_cross_entropy", "kernels top-64": "triton"}


def why_not(route: str, device: str) -> str | None:
    """Why a route cannot run on `device`; None if it can."""
    package = PACKAGES.get(route)
    if package is not None and importlib.util.find_spec(package) is None:
        return f"the package {package} is not installed"
    if device == "cpu" and route in ("sft, liger", "kernels top-64") and not INTERPRETED:
        return "Triton's kernels need a GPU"
    return None


def measure(
    route: str, tokens: int, vocab: int, student: int, teacher: int, repeats: int, device: str
) -> dict[str, float]:
    """Seconds (process CPU and wall, the fastest of `repeats`) and peak MiB above the start, in this process."""
    torch.set_num_threads(1)
    on_gpu = device != "cpu"
    problem = Problem(tokens, vocab, student, teacher, device)
    loss = ROUTES[route](problem)
    if on_gpu:
        torch.cuda.synchronize()
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated() if on_gpu else reset_peak()
    times = []
    # On a GPU the first time also loads kernels; where it is the only one, it is what there is.
    for _ in range(repeats):
        problem.hidden.grad = problem.weight.grad = None
        cpu, wall = time.process_time(), time.perf_counter()
        loss().backward()
        if on_gpu:
            torch.cuda.synchronize()
        times.append((time.process_time() - cpu, time.perf_counter() - wall))
    peak = (torch.cuda.max_memory_allocated() - before) / 2**20 if on_gpu else (resident("VmHWM") - before) / 1024
    return {"cpu_s": min(times)[0], "wall_s": min(w for _, w in times), "peak_mib": peak}


def where(device: str) -> str:
    """What it ran on, and in which precision."""
    if device == "cpu":
        return f"float32, one thread, {platform.machine()}"
    return f"bfloat16, {torch.cuda.get_device_name()}"


def resident(field: str) -> int:
    """KiB of resident memory of this process, now (``VmRSS``) or at its peak (``VmHWM``). Linux only."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(field + ":"))


def reset_peak() -> int:
    """Make the peak the present resident size; returns it in KiB.

    What was freed goes back to the system first: kept by the allocator, a route would find it there for nothing.
    """
    gc.collect()
    ctypes.CDLL("libc.so.6").malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5")
    return resident("VmRSS")


def row_of(route: str, tokens: int, arguments: argparse.Namespace) -> str:
    """Markdown of one route: in a process of its own where that is how memory is measured."""
    sizes = tokens, arguments.vocab, arguments.student, arguments.teacher, arguments.repeats, arguments.device
    if arguments.device == "cpu" and not INTERPRETED:
        names = ("--tokens", "--vocab", "--student", "--teacher", "--repeats", "--device")
        options = [part for name, value in zip(names, sizes, strict=True) for part in (name, str(value))]
        done = subprocess.run([sys.executable, __file__, "--one", route, *options], capture_output=True, text=True)
        if done.returncode:
            raise RuntimeError(done.stderr)
        result = json.loads(done.stdout.strip().rpartition("\n")[2])
    else:
        result = measure(route, *sizes)
        gc.collect()
    return f"| {route} | {tokens} | {result['cpu_s']:.3f} | {result['wall_s']:.3f} | {result['peak_mib']:.0f} |"


def options() -> argparse.ArgumentParser:
    """Of the command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--vocab", type=int, default=151_936)
    parser.add_argument("--tokens", type=int, nargs="+", default=[512, 1024, 2048])
    parser.add_argument("--student", type=int, default=512, help="hidden size of the student")
    parser.add_argument("--teacher", type=int, default=1024, help="hidden size of the teacher")
    parser.add_argument("--routes", nargs="+", choices=list(ROUTES), help="all by default")
    parser.add_argument("--repeats", type=int, default=2)
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--markdown", type=Path)
    parser.add_argument("--one", help=argparse.SUPPRESS)
    return parser


def main() -> None:
    arguments = options().parse_args()
    if arguments.one:
        tokens = arguments.tokens[0]
        sizes = tokens, arguments.vocab, arguments.student, arguments.teacher, arguments.repeats, arguments.device
        print(json.dumps(measure(arguments.one, *sizes)))
        return
    lines = [
        f"V = {arguments.vocab}, hidden {arguments.student} (student) and {arguments.teacher} (teacher), "
        f"{where(arguments.device)}, torch {torch.__version__}",
        "",
        "| route | tokens | CPU s | wall s | peak MiB |",
        "|---|---|---|---|---|",
    ]
    print("\n".join(lines), flush=True)
    failed = False
    for tokens in arguments.tokens:
        for route in arguments.routes or ROUTES:
            reason = why_not(route, arguments.device)
            if reason is None:
                try:
                    row = row_of(route, tokens, arguments)
                except Exception as error:
                    failed, reason = True, f"failed: {str(error).strip().splitlines()[-1]}"
            if reason is not None:
                row = f"| {route} | {tokens} | not run: {reason} | | |"
            print(row, flush=True)
            lines.append(row)
    if arguments.markdown:
        arguments.markdown.write_text("\n".join(lines) + "\n")
    if failed:
        raise SystemExit("a route failed; the table says why")


if __name__ == "__main__":
    main()
