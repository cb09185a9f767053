"""Exact kappa of every token after every prefix: ours against prefixes expanded in Python, one forward each.

    python benchmarks/exact_kappa.py [--world dialogue] [--hidden 64] [--layers 2] [--rounds 3] [--markdown FILE]

The same problem of the same world, solved on one thread for two students: a small random `LlamaForCausalLM`, which sees
the prefix, and a table of log-probabilities by state. The routes:

* ``expanded``: every (prefix, token) is expanded on its own, along all that the teacher may write after it, with one
  call of the student for each prefix come by. This is the definition of Q, written down.
* ``shared``: one recursive walk over all prefixes, one call of the student for each, values handed up. The most that
  plain Python can do.
* ``ours``: prefixes in batches that share keys and values; for the table, states merged.

All must agree on every kappa. Then ours alone: a table of 10,000 states and 1,000 tokens where the horizon never cuts a
text off, where it does, and the first one as a class whose states and steps are Python.
"""

import argparse
import platform
import sys
import time
from collections.abc import Callable, Hashable, Sequence
from functools import partial
from pathlib import Path
from statistics import median
from typing import TypeVar

import torch
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM

from bridgegarden import exact
from bridgegarden.causal_lm_policy import CausalLMPolicy
from bridgegarden.exact import ExactSolution, Process, TabularProcess
from bridgegarden.exact.process import EndsOffScript
from bridgegarden.exact.tasks import WORLDS
from bridgegarden.exact.world import END

Prefix = tuple[int, ...]
T = TypeVar("T")


class Reference:
    """Kappa of every token after every prefix, in Python; `calls` counts the calls of `student`."""

    def __init__(self, process: Process, student: Callable[[Prefix, Hashable], Tensor], shared: bool) -> None:
        self.process, self.student, self.calls = process, student, 0
        self.kappa: dict[Prefix, list[float]] = {}
        if shared:
            self.walk((), process.initial)
        else:
            self.expand_all((), process.initial)

    def walk(self, prefix: Prefix, state: Hashable) -> float:
        """Expected loss from `prefix` on when the teacher writes; notes kappa on the way."""
        q = [0.0 if after is None else self.walk((*prefix, token), after) for token, after in self.after(prefix, state)]
        q_bar = self.note(prefix, state, q)
        return self.loss(prefix, state) + q_bar

    def expand_all(self, prefix: Prefix, state: Hashable) -> None:
        """Kappa at `prefix` and all prefixes after it, each Q from its own expansion."""
        after = self.after(prefix, state)
        self.note(prefix, state, [0.0 if s is None else self.cost((*prefix, token), s) for token, s in after])
        for token, following in after:
            if following is not None:
                self.expand_all((*prefix, token), following)

    def cost(self, prefix: Prefix, state: Hashable) -> float:
        """Expected loss from `prefix` on, along everything that the teacher may write."""
        chances = self.process.log_probs(state).exp().tolist()
        return self.loss(prefix, state) + sum(
            chances[token] * self.cost((*prefix, token), after)
            for token, after in self.after(prefix, state)
            if after is not None and chances[token] > 0
        )

    def after(self, prefix: Prefix, state: Hashable) -> list[tuple[int, Hashable | None]]:
        """Every token and the state after it, None where the text is over."""
        cut = len(prefix) + 1 == self.process.horizon
        steps = ((token, self.process.step(state, token)) for token in range(self.process.vocab_size))
        return [(token, None if cut or self.process.is_terminal(s) else s) for token, s in steps]

    def loss(self, prefix: Prefix, state: Hashable) -> float:
        self.calls += 1
        teacher, student = self.process.log_probs(state), self.student(prefix, state).double()
        p = teacher.exp()
        return torch.where(p > 0, p * (teacher - student), 0.0).sum().item()

    def note(self, prefix: Prefix, state: Hashable, q: list[float]) -> float:
        chances = self.process.log_probs(state).exp().tolist()
        q_bar = sum(chance * cost for chance, cost in zip(chances, q, strict=True) if chance > 0)
        self.kappa[prefix] = [cost - q_bar for cost in q]
        return q_bar

    def error(self, solution: ExactSolution) -> float:
        """Largest difference between any kappa and ours."""
        ours = solution.kappa[[solution.node_of(prefix) for prefix in self.kappa]]
        return (torch.tensor(list(self.kappa.values()), dtype=torch.float64) - ours).abs().max().item()


class InPython:
    """A `TabularProcess` whose states are tuples and whose steps are looked up one at a time."""

    def __init__(self, process: TabularProcess) -> None:
        self.horizon, self.vocab_size, self.initial = process.horizon, process.vocab_size, (0,)
        self.rows, self.terminal = process.table, process.terminal.tolist()
        self.following = process.following.tolist()

    def log_probs(self, state: tuple[int]) -> Tensor:
        return self.rows[state[0]]

    def step(self, state: tuple[int], token: int) -> tuple[int]:
        return (self.following[state[0]][token],)

    def is_terminal(self, state: tuple[int]) -> bool:
        return self.terminal[state[0]]

    def continuations(self, state: tuple[int]) -> range:
        return range(self.vocab_size)

    def meaning(self, state: tuple[int]) -> Hashable:
        return state


def large_table(
    cut: bool, states: int = 10_000, tokens: int = 1_000, positions: int = 20
) -> tuple[TabularProcess, Tensor]:
    """A random process and student. `cut`: any state may follow any, until the horizon; else one layer per position."""
    generator = torch.Generator().manual_seed(0)
    teacher, student = torch.randn(2, states, tokens, generator=generator, dtype=torch.float64).log_softmax(-1)
    if cut:
        following = torch.randint(0, states, (states, tokens), generator=generator)
        terminal = torch.rand(states, generator=generator) < 0.1
    else:
        width = states // positions
        layer = torch.arange(states) // width
        following = torch.randint(0, width, (states, tokens), generator=generator)
        following += (layer + 1).clamp(max=positions - 1).unsqueeze(1) * width
        terminal = layer == positions - 1
    terminal[0] = False
    return TabularProcess(teacher, following, terminal, horizon=positions), student


def small_llama(vocab_size: int, hidden: int, layers: int) -> LlamaForCausalLM:
    config = LlamaConfig(
        vocab_size=vocab_size,
        hidden_size=hidden,
        intermediate_size=2 * hidden,
        num_hidden_layers=layers,
        num_attention_heads=4,
        num_key_value_heads=4,
        max_position_embeddings=256,
    )
    torch.manual_seed(0)
    return LlamaForCausalLM(config).eval()


def timed(work: Callable[[], T], rounds: int) -> tuple[T, float, float]:
    """Result, and the median processor and wall seconds of `rounds` runs."""
    results, cpu, wall = [], [], []
    for _ in range(rounds):
        before = time.process_time(), time.perf_counter()
        results.append(work())
        cpu.append(time.process_time() - before[0])
        wall.append(time.perf_counter() - before[1])
    return results[-1], median(cpu), median(wall)


def compare(world_name: str, hidden: int, layers: int, rounds: int) -> list[str]:
    """Rows of the first table."""
    world = WORLDS[world_name]()
    (problem,) = world.problems(1, 0)
    prompt = world.prompt_ids(problem, torch.Generator().manual_seed(0))
    process = EndsOffScript(world.process(problem))
    model = small_llama(process.vocab_size, hidden, layers)

    @torch.no_grad()
    def forward(prefix: Prefix, _: Hashable) -> Tensor:
        return model(torch.tensor([[*prompt, *prefix]])).logits[0, -1].double().log_softmax(-1)

    def by_state(state: Hashable) -> Tensor:
        return (0.9 * process.log_probs(state).exp() + 0.1 / process.vocab_size).log()

    def solved(student: object, prompt: Sequence[int] = ()) -> ExactSolution:
        solution = exact.solve(process, student, prompt=prompt)
        assert solution.kappa.isfinite().all()
        return solution

    rows = []
    for name, called, ours in (
        ("Llama", forward, lambda: solved(CausalLMPolicy(model, end_ids=[END]), prompt)),
        ("table", lambda _, state: by_state(state), lambda: solved(by_state)),
    ):
        solution, cpu, wall = timed(ours, rounds)
        rows.append(f"| {name} | ours | {len(solution):,} | {cpu:.3f} ({wall:.3f}) | 1 | |")
        print(rows[-1], flush=True)
        for route in ("shared", "expanded"):
            slow, slow_cpu, slow_wall = timed(partial(Reference, process, called, route == "shared"), 1)
            rows.append(
                f"| {name} | {route} | {slow.calls:,} | {slow_cpu:.2f} ({slow_wall:.2f}) "
                f"| {slow_cpu / cpu:,.0f} | {slow.error(solution):.0e} |"
            )
            print(rows[-1], flush=True)
    return rows


def large(rounds: int) -> list[str]:
    """Rows of the second table."""
    rows = []
    for name, cut, in_python in (
        ("as arrays, every text fits the horizon", False, False),
        ("as arrays, the horizon cuts texts", True, False),
        ("states and steps in Python, every text fits", False, True),
    ):
        process, student = large_table(cut)
        world = InPython(process) if in_python else process
        table = (lambda state, student=student: student[state[0]]) if in_python else student
        solution, cpu, wall = timed(
            lambda world=world, table=table: exact.solve(world, table), 1 if in_python else rounds
        )
        rows.append(f"| {name} | {len(solution):,} | {cpu:.2f} ({wall:.2f}) | {solution.identity_error:.0e} |")
        print(rows[-1], flush=True)
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--world", default="dialogue", choices=list(WORLDS))
    parser.add_argument("--hidden", type=int, default=64)
    parser.add_argument("--layers", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=3, help="runs of ours, of which the median is shown")
    parser.add_argument("--markdown", type=Path)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    sys.setrecursionlimit(10_000)
    print(f"one thread, {platform.machine()}, torch {torch.__version__}; processor seconds (wall seconds)\n")
    first = [
        f"| student, {arguments.world} world | route | evaluations of it | seconds | times ours | largest difference |",
        "|---|---|---|---|---|---|",
    ]
    print("\n".join(first))
    first += compare(arguments.world, arguments.hidden, arguments.layers, arguments.rounds)
    second = ["| table of 10,000 states x 1,000 tokens | nodes | ours, s | identity error |", "|---|---|---|---|"]
    print("\n" + "\n".join(second))
    second += large(arguments.rounds)
    if arguments.markdown:
        arguments.markdown.write_text("\n".join([*first, "", *second]) + "\n")


if __name__ == "__main__":
    main()
