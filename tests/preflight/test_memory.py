import dataclasses
import io
from types import SimpleNamespace
from typing import cast

import pytest
import torch
from peft import LoraConfig, inject_adapter_in_model
from rich.console import Console

from bridgegarden.objective.fused import ProjectedTeacher, fused_hybrid_loss
from bridgegarden.objective.head import LanguageModelHead
from bridgegarden.objective.hybrid import HybridObjective
from bridgegarden.objective.support import TeacherSignal
from bridgegarden.preflight import (
    ModelFacts,
    ModelReference,
    Preflight,
    check_pair,
    estimate_memory,
    load_facts,
    preflight,
)
from bridgegarden.preflight.activations import MemoryTracker
from bridgegarden.preflight.memory import LOSS_BUFFERS, loss_bytes
from tests.tiny import save_tiny, tiny_model

POSITIONS = 64


@pytest.fixture(scope="module")
def pair(tmp_path_factory):
    folder = tmp_path_factory.mktemp("models")
    save_tiny(folder / "teacher", tiny_model("gemma2", 272, hidden_size=48))
    save_tiny(folder / "student", tiny_model("qwen2", 264))
    return (
        ModelReference(role="teacher", model=str(folder / "teacher"), dtype="bfloat16"),
        ModelReference(role="student", model=str(folder / "student")),
    )


def parts(estimate):
    return {part.name: part for part in estimate.parts}


def test_parameters_are_counted_exactly_and_tied_ones_once(pair):
    found = parts(estimate_memory(*map(load_facts, pair), positions=POSITIONS))
    student = sum(p.numel() for p in tiny_model("qwen2", 264).parameters())
    teacher = sum(p.numel() for p in tiny_model("gemma2", 272, hidden_size=48).parameters())
    assert found["student weights (float32)"].bytes == 4 * student
    assert found["gradients"].bytes == 4 * student
    assert found["optimizer states (AdamW)"].bytes == 8 * student
    assert found["teacher weights (bfloat16)"].bytes == 2 * teacher


def test_a_cached_teacher_takes_no_memory(pair):
    live, cached = (
        estimate_memory(*map(load_facts, pair), positions=POSITIONS, teacher_cached=cached) for cached in (False, True)
    )
    assert not [name for name in parts(cached) if name.startswith("teacher")]
    chunk = "loss, a chunk of logits"
    assert parts(live)[chunk].bytes == 6 * 4 * POSITIONS * 272
    assert parts(cached)[chunk].bytes == 2 * 4 * POSITIONS * 264


def test_adapters_are_what_is_trained(pair):
    lora = LoraConfig(task_type="CAUSAL_LM", r=4, target_modules="all-linear")
    found = parts(estimate_memory(*map(load_facts, pair), positions=POSITIONS, lora=lora))
    adapted = inject_adapter_in_model(lora, tiny_model("qwen2", 264))
    trained = sum(p.numel() for p in adapted.parameters() if p.requires_grad)
    assert found["adapters (float32)"].parameters == found["gradients"].parameters == trained
    assert found["optimizer states (AdamW)"].bytes == 8 * trained


def test_the_sum_is_of_all_parts_and_the_table_shows_it(pair):
    estimate = estimate_memory(*map(load_facts, pair), positions=POSITIONS)
    assert estimate.total == sum(part.bytes for part in estimate.parts)
    console = Console(width=80, file=io.StringIO())
    console.print(estimate.table())
    assert f"{estimate.total / 1e6:.1f} MB" in console.file.getvalue()  # pyright: ignore[reportAttributeAccessIssue]


def test_too_little_memory_is_warned_of(pair):
    estimate = estimate_memory(*map(load_facts, pair), positions=POSITIONS)
    assert estimate.warnings == ()
    (warning,) = dataclasses.replace(estimate, available=1000).warnings
    assert "student.lora" in warning


def test_a_student_in_half_precision_is_warned_of_unless_adapters_are_trained(pair):
    teacher, student = pair
    half = dataclasses.replace(student, dtype="bfloat16")
    assert "rounded away" in preflight(check_pair(teacher, half), positions=POSITIONS).warnings[-1]
    lora = LoraConfig(task_type="CAUSAL_LM", r=4, target_modules="all-linear")
    assert "rounded away" not in str(preflight(check_pair(teacher, half), positions=POSITIONS, lora=lora).warnings)


def test_a_teacher_on_a_server_takes_no_memory(pair):
    checked = preflight(check_pair(None, pair[1]), positions=POSITIONS)
    cached = preflight(check_pair(*pair), positions=POSITIONS, teacher_cached=True)
    assert checked.teacher is None
    assert checked.memory.parts == cached.memory.parts
    assert checked.summary.startswith("the student's tokenizer, 259 tokens; the student's chat template")


def test_the_summary_says_which_template_and_how_a_turn_ends(pair):
    checked = preflight(check_pair(*pair), positions=POSITIONS)
    assert isinstance(checked, Preflight)
    assert checked.summary == (
        "the same tokenizer, embeddings padded to 272 (teacher) and 264 (student) rows, 259 tokens; "
        "the student's chat template, a turn ends with '<|im_end|>'"
    )


CHUNK, WIDTH, SIZE = 32, 4000, 4


def peak_of_the_loss(kind: str, positions: int, *, half: bool) -> int:
    """Bytes that are alive at once while the loss and its gradients are made, a signal from disk not counted."""
    generator = torch.Generator().manual_seed(0)
    hidden, teacher_hidden = (torch.randn(positions, SIZE, generator=generator) for _ in range(2))
    weight, teacher_weight = (torch.randn(WIDTH, SIZE, generator=generator) for _ in range(2))
    head = LanguageModelHead(weight=teacher_weight)
    teacher = ProjectedTeacher(teacher_hidden, head, 8 if kind == "top_k" else None, WIDTH)
    with MemoryTracker() as tracker, torch.autocast("cpu", torch.bfloat16, enabled=half):
        signal = TeacherSignal.from_logits(head.logits(teacher_hidden).float(), 8) if kind == "cached" else teacher
        before, _ = tracker.now, tracker.mark()
        fused_hybrid_loss(
            hidden.requires_grad_(),
            LanguageModelHead(weight=weight.requires_grad_()),
            signal,
            torch.randint(0, WIDTH, (positions,), generator=generator),
            torch.ones(positions, dtype=torch.bool),
            HybridObjective(),
            num_items=positions,
            chunk_tokens=CHUNK,
        )
        return tracker.mark() - before


@pytest.mark.slow
@pytest.mark.parametrize("kind", LOSS_BUFFERS)
@pytest.mark.parametrize("half", [False, True])
def test_the_loss_takes_what_its_formula_says_however_many_tokens_there_are(kind, half, monkeypatch):
    short, long = (peak_of_the_loss(kind, positions, half=half) for positions in (4 * CHUNK, 16 * CHUNK))
    # What is recorded of a position, and its hidden states' gradient: not a hundredth of its logits.
    assert long - short < 12 * CHUNK * 4 * WIDTH / 100
    monkeypatch.setattr("bridgegarden.preflight.memory.default_chunk_tokens", lambda *given: CHUNK)
    config = SimpleNamespace(get_text_config=lambda: SimpleNamespace(hidden_size=SIZE))
    facts = cast(ModelFacts, SimpleNamespace(config=config, width=WIDTH, dtype=torch.float32))
    planned = loss_bytes(
        None if kind == "cached" else facts,
        facts,
        positions=16 * CHUNK,
        device_type="cuda",
        top_k=8 if kind == "top_k" else None,
        half=half,
        free=0,
    )
    assert short == pytest.approx(planned + 4 * WIDTH * SIZE, rel=0.05)  # and the gradient of the head
