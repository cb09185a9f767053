"""What is known between two tokenizers, and what translating costs.

    python benchmarks/tokenizer_pairs.py TEACHER STUDENT TEXTS.jsonl COLUMN [--rows 60]
    python benchmarks/tokenizer_pairs.py TEACHER STUDENT TEXTS.jsonl COLUMN --prompt COLUMN --model FOLDER
        [--student 576x10] [--tolerance 0.02] [--threshold 0.5]

TEACHER and STUDENT are folders or names that `AutoTokenizer` loads. Without a model: at every student position of the
texts it is decided which student token the teacher's own token begins, and that is held against the student's own.

With a model of the teacher's it is asked about every text behind its prompt, its 64 likeliest tokens are translated,
and the masses are printed; how often the translated argmax is the token of the text, and the one that the teacher's own
argmax begins; and the processor time of translating, four rows at a time as a batch is, for the first time and once
decisions are there (the least of three times). With
``--student WIDTHxLAYERS`` that is held against a training step of a random Llama with the student's vocabulary on the
same rows: forward, hybrid loss at the answers' positions with the translated signals, backward, AdamW. What a trainer
does beside that is left out, which makes the share larger than it is.
"""

import json
import time
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import click
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig

from bridgegarden.objective.fused import fused_hybrid_loss
from bridgegarden.objective.head import LanguageModelHead
from bridgegarden.objective.hybrid import HybridObjective
from bridgegarden.objective.support import TeacherSignal
from bridgegarden.teacher.translation.align import align
from bridgegarden.teacher.translation.byte_view import ByteView
from bridgegarden.teacher.translation.first_token import FirstTokens
from bridgegarden.teacher.translation.translate import ALIGNED, HARD_ONLY, Translated, Translation

K = 64
STEPS = 6
"""Training steps that are timed, two more before them left out."""
ROWS_A_STEP = 4


class Row(NamedTuple):
    """An answer behind its prompt, as both read it."""

    teacher_prompt: list[int]
    teacher: list[int]
    """Tokens of the answer, the end included."""
    student_prompt: list[int]
    student: list[int]


def written(view: ByteView, text: str) -> list[int] | None:
    """The tokens of `text`, with a space before it where the vocabulary has words alone."""
    found = view.encode(text.encode())
    return view.encode(b" " + text.encode()) if found is None else found


def tally(teacher: ByteView, student: ByteView, texts: list[str]) -> Counter[str]:
    """Student positions of `texts` of each kind."""
    first, found = FirstTokens(teacher, student), Counter[str]()
    decided: dict[tuple[int, int], Any] = {}
    for text in texts:
        theirs, ours = written(teacher, text), written(student, text)
        if theirs is None or ours is None:
            found["cannot be written"] += 1
            continue
        held = align(teacher, student, theirs, ours)
        for place, inside, target in zip(held.token.tolist(), held.inside.tolist(), ours, strict=True):
            found["positions"] += 1
            found["conditional" if inside else "aligned"] += 1
            if place < 0:
                found["before the teacher's first byte"] += 1
                continue
            key = theirs[place], inside
            if key not in decided:
                decided[key] = first.after(key[:1], inside)
            known = decided[key]
            if known.token < 0:
                found["open"] += 1
                found["open, but not to the text's token"] += not known.reaches(student.ranks[target])
            else:
                found["proved" if known.proved else "tried"] += 1
                found["proved, but wrong" if known.proved else "tried, but wrong"] += known.token != target
    return found


def prompt_ids(tokenizer: Any, text: str) -> list[int]:
    """As the chat template renders it, where there is one."""
    if tokenizer.chat_template is None:
        return tokenizer.encode(text, add_special_tokens=False)
    messages = [{"role": "user", "content": text}]
    return tokenizer.apply_chat_template(messages, add_generation_prompt=True, tokenize=True, return_dict=False)


@torch.no_grad()
def asked(folder: str, rows: list[Row]) -> list[TeacherSignal]:
    """What the teacher says at each token of the answers."""
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    signals = []
    for row in rows:
        logits = model(torch.tensor([row.teacher_prompt + row.teacher])).logits[0, len(row.teacher_prompt) - 1 : -1]
        signals.append(TeacherSignal.from_logits(logits, K).with_labels(logits, torch.tensor(row.teacher)))
    return signals


def together(signals: list[TeacherSignal]) -> TeacherSignal:
    """Those of several rows as a batch has them."""
    names = ("ids", "logp", "log_tail", "entropy", "argmax", "max_logp", "label_logp")
    return replace(signals[0], **{name: torch.cat([getattr(one, name) for one in signals]) for name in names})


def seconds(pair: Translation, signals: list[TeacherSignal], rows: list[Row]) -> float:
    """Processor seconds a student position of translating every row, as many at a time as a batch has."""
    batches = [slice(first, first + ROWS_A_STEP) for first in range(0, len(rows), ROWS_A_STEP)]
    joined = [together(signals[batch]) for batch in batches]
    began = time.process_time()
    for signal, batch in zip(joined, batches, strict=True):
        pair(signal, [row.teacher for row in rows[batch]], [row.student for row in rows[batch]])
    return (time.process_time() - began) / sum(len(row.student) for row in rows)


def translated(pair: Translation, signals: list[TeacherSignal], rows: list[Row]) -> list[Translated]:
    """Every row."""
    return [pair(signal, [row.teacher], [row.student]) for signal, row in zip(signals, rows, strict=True)]


def agreement(pair: Translation, signals: list[TeacherSignal], rows: list[Row], found: list[Translated]) -> list[str]:
    """Where positions are hard only, and how often the argmax is what it should be."""
    counts, decided = Counter[str](), FirstTokens(pair.teacher, pair.student)
    for signal, row, one in zip(signals, rows, found, strict=True):
        held = align(pair.teacher, pair.student, row.teacher, row.student)
        counts["asked"] += len(row.teacher)
        counts["teacher right"] += int((signal.argmax == torch.tensor(row.teacher)).sum())
        soft = one.kind != HARD_ONLY
        counts["soft"] += int(soft.sum())
        digits = torch.tensor([pair.student.tokens[index].strip().isdigit() for index in row.student])
        counts["numbers"] += int(digits.sum())
        counts["numbers, hard only"] += int((digits & ~soft).sum())
        counts["others"] += int((~digits).sum())
        counts["others, hard only"] += int((~digits & ~soft).sum())
        counts["right"] += int((one.signal.argmax == torch.tensor(row.student))[soft].sum())
        for at in (one.kind == ALIGNED).nonzero()[:, 0].tolist():
            known = decided.after([int(signal.argmax[held.token[at]])], 0)
            counts["compared"] += known.token >= 0
            counts["same"] += known.token == int(one.signal.argmax[at])

    def share(part: str, whole: str) -> str:
        return f"{counts[part] / max(1, counts[whole]):.1%} of {counts[whole]}"

    return [
        f"hard only: of numbers {share('numbers, hard only', 'numbers')}, of others "
        f"{share('others, hard only', 'others')}",
        f"the teacher's argmax is its token of the text: {share('teacher right', 'asked')}",
        f"at soft positions the translated argmax is the student's token of the text: {share('right', 'soft')}",
        "where both begin and the teacher's argmax is decided, it begins the translated argmax: "
        f"{share('same', 'compared')}",
    ]


def step_seconds(size: str, vocabulary: int, rows: list[Row], found: list[Translated]) -> float:
    """Processor seconds of training a random Llama, for each position of the answers."""
    width, layers = map(int, size.split("x"))
    heads = max(2, width // 64)
    config = LlamaConfig(
        vocab_size=vocabulary,
        hidden_size=width,
        intermediate_size=width * 8 // 3,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=heads,
        tie_word_embeddings=True,
    )
    torch.manual_seed(0)
    model: Any = AutoModelForCausalLM.from_config(config, dtype=torch.float32).train()
    optimizer, objective = torch.optim.AdamW(model.parameters(), lr=1e-4), HybridObjective.preset("static")
    seconds, positions = 0.0, 0
    for step in range(STEPS + 2):
        chosen = [(step * ROWS_A_STEP + index) % len(rows) for index in range(ROWS_A_STEP)]
        began = time.process_time()
        longest = max(len(rows[index].student_prompt) + len(rows[index].student) for index in chosen)
        ids = torch.zeros(ROWS_A_STEP, longest, dtype=torch.long)
        for line, index in enumerate(chosen):
            whole = rows[index].student_prompt + rows[index].student
            ids[line, : len(whole)] = torch.tensor(whole)
        hidden = model.model(ids).last_hidden_state
        losses = []
        for line, index in enumerate(chosen):
            row = rows[index]
            start, count = len(row.student_prompt) - 1, len(row.student)
            successor = torch.ones(count, dtype=torch.bool)
            successor[-1] = False
            losses.append(
                fused_hybrid_loss(
                    hidden[line, start : start + count],
                    LanguageModelHead(weight=model.lm_head.weight),
                    found[index].signal,
                    torch.tensor(row.student),
                    successor,
                    objective,
                    num_items=sum(len(rows[index].student) for index in chosen),
                ).loss
            )
        torch.stack(losses).sum().backward()
        optimizer.step()
        optimizer.zero_grad()
        if step >= 2:
            seconds += time.process_time() - began
            positions += sum(len(rows[index].student) for index in chosen)
    return seconds / positions


def masses(found: list[Translated]) -> str:
    """Means over all positions."""
    counts = [len(one.kind) for one in found]
    shares = [one.shares() for one in found]
    fields = shares[0]._fields
    means = [sum(n * getattr(s, f) for n, s in zip(counts, shares, strict=True)) / sum(counts) for f in fields]
    return ", ".join(f"{field.replace('_', ' ')} {mean:.1%}" for field, mean in zip(fields, means, strict=True))


@click.command()
@click.argument("teacher")
@click.argument("student")
@click.argument("texts", type=click.Path(exists=True, path_type=Path))
@click.argument("column")
@click.option("--rows", "count", default=60, show_default=True, help="Last rows that are read.")
@click.option("--prompt", help="Column of what the texts are answers to.")
@click.option("--model", help="The teacher's.")
@click.option("--student", "sizes", multiple=True, help="WIDTHxLAYERS of a student whose training steps are timed.")
@click.option("--threshold", default=0.5, show_default=True)
@click.option("--tolerance", default=0.02, show_default=True)
def main(
    teacher: str,
    student: str,
    texts: Path,
    column: str,
    count: int,
    prompt: str | None,
    model: str | None,
    sizes: tuple[str, ...],
    threshold: float,
    tolerance: float,
) -> None:
    """Print shares of positions, and with a model masses and times."""
    torch.set_num_threads(1)
    lines = [json.loads(line) for line in texts.read_text(encoding="utf-8").splitlines()[-count:]]
    tokenizers = [AutoTokenizer.from_pretrained(name) for name in (teacher, student)]
    views = [ByteView(tokenizer, name=name) for tokenizer, name in zip(tokenizers, (teacher, student), strict=True)]
    found = tally(views[0], views[1], [line[column] for line in lines])
    for name, number in found.items():
        click.echo(f"{name}: {number} ({number / max(found['positions'], 1):.2%})")
    if model is None:
        return
    rows = []
    for line in lines:
        ids = [written(view, line[column]) for view in views]
        before = [prompt_ids(tokenizer, line[prompt] if prompt else "\n") for tokenizer in tokenizers]
        if ids[0] is not None and ids[1] is not None:
            ends = [[view.end] if view.end is not None else [] for view in views]
            rows.append(Row(before[0], [*ids[0], *ends[0]], before[1], [*ids[1], *ends[1]]))
    signals, pair = asked(model, rows), Translation(views[0], views[1], threshold=threshold, tolerance=tolerance)
    first = seconds(pair, signals, rows)
    later = min(seconds(pair, signals, rows) for _ in range(3))
    results = translated(pair, signals, rows)
    click.echo(f"of the teacher's {K} likeliest tokens: {masses(results)}")
    click.echo("\n".join(agreement(pair, signals, rows, results)))
    click.echo(f"translating a position: {1e6 * later:.0f} us of processor time, {1e6 * first:.0f} at first")
    for size in sizes:
        step = step_seconds(size, len(views[1]), rows, results)
        click.echo(f"training {size} on a position: {1e3 * step:.2f} ms; translating is {later / step:.1%} of that")


if __name__ == "__main__":
    main()
