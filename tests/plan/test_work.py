"""The formulas beside what a step of real training is counted to take."""

import itertools

import numpy as np
import pytest
import torch
from datasets import Dataset
from torch.utils.flop_counter import FlopCounterMode
from trl.trainer.sft_config import SFTConfig

from bridgegarden.objective.hybrid import HybridObjective
from bridgegarden.plan.work import Rows, Schedule, training_work
from bridgegarden.preflight import ModelReference, load_facts
from bridgegarden.preflight.flops import StepFlops, forward_flops
from bridgegarden.recipe import build_lora_config, build_objective
from bridgegarden.recipe.objective import ObjectiveSection
from bridgegarden.recipe.training import LoraSection
from bridgegarden.training.trainer import HybridDistillationTrainer
from tests.tiny import save_tiny, tiny_model, tiny_tokenizer

ROWS, TOKENS, LEARNT = 4, 48, 24


@pytest.fixture
def pair(tmp_path):
    """Facts of a teacher and a student whose heads take about as much as their layers."""
    facts = []
    for role, hidden in (("teacher", 32), ("student", 64)):
        model = tiny_model("llama", vocab_size=1024, hidden_size=hidden, layers=4)
        folder = save_tiny(tmp_path / role, model, tiny_tokenizer())
        facts.append(load_facts(ModelReference(role="model", model=str(folder), dtype="float32")))
    return facts


def counted(student, teacher, lora, tmp_path, checkpointing, objective=None):
    """Operations of a step, as PyTorch counts them, of a trainer on eager attention, which hides nothing from it."""
    ids = torch.randint(0, 250, (ROWS, TOKENS), generator=torch.Generator().manual_seed(0)).tolist()
    rows = [{"input_ids": row, "labels": [-100] * (TOKENS - LEARNT) + row[-LEARNT:]} for row in ids]
    trainer = HybridDistillationTrainer(
        model=student,
        teacher=teacher,
        objective=objective or HybridObjective(),
        train_dataset=Dataset.from_list(rows),
        processing_class=tiny_tokenizer(),
        peft_config=lora,
        args=SFTConfig(
            output_dir=str(tmp_path / "trainer"),
            max_steps=1,
            per_device_train_batch_size=ROWS,
            report_to=[],
            save_strategy="no",
            bf16=False,
            gradient_checkpointing=checkpointing,
            use_cpu=True,
            disable_tqdm=True,
        ),
    )
    addmm = {torch.ops.aten.addmm_: lambda added, left, right, *_, **__: 2 * left[0] * left[1] * right[1]}
    with FlopCounterMode(display=False, custom_mapping=addmm) as counter:
        trainer.train()
    return counter.get_total_flops()


@pytest.mark.slow
@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("adapters", [None, 4, 16])
def test_a_step_takes_what_it_is_counted_to_take(adapters, checkpointing, pair, tmp_path):
    from transformers import AutoModelForCausalLM

    teacher, student = (
        AutoModelForCausalLM.from_pretrained(facts.reference.model, attn_implementation="eager") for facts in pair
    )
    lora = None if adapters is None else build_lora_config(LoraSection(r=adapters, lora_alpha=adapters))
    step = StepFlops.of(pair[1], lora=lora, gradient_checkpointing=checkpointing)
    asked = forward_flops(pair[0].config)
    # Eager attention computes what the causal mask hides, so every token attends to all.
    expected = ROWS * TOKENS * (step.layers(TOKENS) + asked.layers(TOKENS))
    expected += ROWS * LEARNT * (step.head + asked.head)
    got = counted(student, teacher, lora, tmp_path, checkpointing)
    # Checkpointing leaves out each layer's last product; the first layer's input gets no gradient under adapters.
    assert got == pytest.approx(expected, rel=0.04 if checkpointing else 0.02)


def test_ranking_positions_first_takes_both_heads_once_more(pair, tmp_path):
    from transformers import AutoModelForCausalLM

    models = [
        AutoModelForCausalLM.from_pretrained(facts.reference.model, attn_implementation="eager") for facts in pair[::-1]
    ]
    plain, ranked = (
        counted(*models, None, tmp_path / name, False, build_objective(ObjectiveSection(preset=name)))
        for name in ("reverse_kl", "token_importance")
    )
    heads = sum(forward_flops(facts.config).head for facts in pair)
    # Entropies and what of a draw would be accepted are products too.
    assert ranked - plain == pytest.approx(ROWS * LEARNT * heads, rel=0.03)
    rows, schedule = (
        Rows(lengths=np.full(ROWS, TOKENS), supervised=np.full(ROWS, LEARNT)),
        Schedule(batch=ROWS, accumulation=1, processes=1, steps=1, rows_read=ROWS),
    )
    step = StepFlops.of(pair[1], lora=None, gradient_checkpointing=False)
    plans = [training_work(step, pair[0], rows, schedule, on_policy=None, ranks=ranks) for ranks in (False, True)]
    assert plans[1].total - plans[0].total == ROWS * LEARNT * heads


LENGTHS = np.array([3, 4, 4, 7, 9, 12])
RAGGED = Rows(lengths=LENGTHS, supervised=np.array([1, 2, 2, 3, 5, 6]))


@pytest.mark.parametrize("batch", [1, 2, 3, 6])
def test_padding_is_the_mean_over_all_batches_there_can_be(batch):
    longest = [max(chosen) for chosen in itertools.combinations(LENGTHS.tolist(), batch)]
    assert RAGGED.padded_mean(batch, lambda length: length) == pytest.approx(np.mean(longest))
    assert RAGGED.padded_mean(batch, lambda length: length**2) == pytest.approx(np.mean(np.square(longest)))


def test_a_batch_larger_than_the_data_is_all_of_it():
    assert RAGGED.padded_mean(100, lambda length: length) == pytest.approx(12)


def test_the_largest_batch_is_of_the_longest_rows():
    batch = RAGGED.largest_batch(2)
    assert (batch.rows, batch.length, batch.supervised) == (2, 12, 11)


def test_what_the_student_writes_makes_rows_longer():
    batch = RAGGED.largest_batch(2, extra=5)
    assert (batch.length, batch.supervised) == (17, 21)


def test_packing_leaves_the_tokens_and_drops_the_padding():
    packed = RAGGED.packed(13)
    assert packed.count == 3
    assert packed.tokens == 39
    assert packed.positions == pytest.approx(RAGGED.positions)
    assert packed.padded_mean(2, lambda length: length) == pytest.approx(13)
