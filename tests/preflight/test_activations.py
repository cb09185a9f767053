import dataclasses

import pytest
import torch
from peft import LoraConfig
from transformers import AutoModelForCausalLM

from bridgegarden.preflight import activations
from bridgegarden.preflight.activations import Batch, MemoryTracker, student_memory, teacher_memory
from tests.tiny import tiny_config

BATCH = Batch(rows=2, length=64, supervised=40)
LORA = LoraConfig(task_type="CAUSAL_LM", r=4, target_modules="all-linear")


def config_of(family="llama", layers=2):
    return tiny_config(family, layers=layers)


def test_the_tracker_counts_what_is_alive_and_not_what_was_there():
    before = torch.zeros(1000)
    with MemoryTracker() as tracker:
        doubled = before * 2
        before.add_(1)
        view = doubled[:10]
        assert tracker.now == 4000
        more = doubled + 1
        del doubled
        assert tracker.now == 8000  # the view keeps it
        del view
        assert tracker.now == 4000
        del more
    assert tracker.mark() == 8000
    assert tracker.mark() == tracker.now == 0


@pytest.mark.parametrize("family", ["llama", "gemma2"])
def test_shapes_alone_give_the_peak_of_a_real_step(family):
    """The walk on fake tensors against the same step on real ones."""
    config = config_of(family)
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32).train()
    ids, mask = (torch.ones((BATCH.rows, BATCH.length), dtype=torch.long) for _ in range(2))
    mask[0, -1] = 0  # a batch without padding takes no mask
    with MemoryTracker() as tracker:
        hidden = model.base_model(input_ids=ids, attention_mask=mask, use_cache=False).last_hidden_state
        rows = torch.arange(BATCH.supervised) % BATCH.rows
        hidden = hidden[rows, rows]
        kept = tracker.now - 2 * 8 * BATCH.supervised  # the rows, and the remainder
        tracker.mark()
        loss = hidden.sum() + model.get_output_embeddings().weight.sum()
        loss.backward()
        whole = tracker.mark()
    found = student_memory(config, torch.float32, BATCH)
    assert found.at_loss == pytest.approx(kept, rel=0.02)
    assert max(found.backward_start, found.backward_end) == pytest.approx(whole, rel=0.12)


@pytest.mark.slow
def test_few_layers_tell_of_many(monkeypatch):
    config = config_of(layers=6)
    few = [student_memory(config, torch.float32, BATCH, gradient_checkpointing=g) for g in (False, True)]
    monkeypatch.setattr(activations, "FEW", 6)
    assert few == [student_memory(config, torch.float32, BATCH, gradient_checkpointing=g) for g in (False, True)]


def test_a_llama_layer_keeps_what_the_formula_says():
    """docs/plan.md: float32, sdpa, per token of a layer, in numbers of 4 bytes."""
    two, three = (student_memory(config_of(layers=n), torch.float32, BATCH).at_loss for n in (2, 3))
    hidden, inner, heads, kv, width = 32, 64, 2, 1, 16
    norms = 2 * (hidden + hidden + 1)
    attention = hidden + 4 * heads * width + 2 * kv * width + heads
    mlp = hidden + 4 * inner
    residual = 2 * hidden
    tokens = BATCH.rows * BATCH.length
    assert (three - two) / 4 / tokens == pytest.approx(norms + attention + mlp + residual, rel=0.1)


def test_checkpointing_keeps_one_row_a_layer():
    two, three = (
        student_memory(config_of(layers=n), torch.float32, BATCH, gradient_checkpointing=True).at_loss for n in (2, 3)
    )
    assert three - two == 4 * 32 * BATCH.rows * BATCH.length


def test_more_tokens_take_more():
    short, long = (student_memory(config_of(), torch.float32, dataclasses.replace(BATCH, rows=n)) for n in (2, 4))
    assert long.at_loss == pytest.approx(2 * short.at_loss, rel=0.05)


def test_gradients_are_all_there_in_the_end_unless_they_were_before():
    new, there = (student_memory(config_of(), torch.float32, BATCH, accumulates=a) for a in (False, True))
    weights = sum(p.numel() for p in AutoModelForCausalLM.from_config(config_of()).parameters())
    assert new.backward_end >= 4 * weights
    assert there.backward_end < new.backward_end


def test_autocast_halves_what_is_kept_and_copies_the_weights():
    full, half = (student_memory(config_of(), torch.float32, BATCH, autocast=a) for a in (None, torch.bfloat16))
    large = dataclasses.replace(BATCH, rows=64)
    full_large, half_large = (
        student_memory(config_of(), torch.float32, large, autocast=a).at_loss for a in (None, torch.bfloat16)
    )
    assert half_large < 0.8 * full_large
    assert half.at_loss > 0.5 * full.at_loss


@pytest.mark.parametrize("checkpointing", [False, True])
def test_adapters_have_small_gradients(checkpointing):
    arguments = {"gradient_checkpointing": checkpointing}
    whole = student_memory(config_of(), torch.float32, BATCH, **arguments)
    adapted = student_memory(config_of(), torch.float32, BATCH, lora=LORA, **arguments)
    assert adapted.backward_end < whole.backward_end


def test_a_teacher_leaves_only_what_is_asked_of_it():
    peak, left = teacher_memory(config_of(layers=5), torch.bfloat16, BATCH)
    assert left >= 2 * 32 * BATCH.supervised
    assert left < peak < student_memory(config_of(layers=5), torch.bfloat16, BATCH).at_loss
