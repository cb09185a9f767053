"""The same mathematics on a GPU: against float64 on the CPU, never against itself. Skipped where there is none."""

from functools import partial
from pathlib import Path

import pytest
import torch
from datasets import Dataset
from trl.trainer.sft_config import SFTConfig

from bridgegarden.causal_lm_policy import CausalLMPolicy
from bridgegarden.data import chat_template_fingerprint, tokenizer_fingerprint
from bridgegarden.diagnostics.exposure_bias import exposure_bias
from bridgegarden.diagnostics.rollout import Sampling
from bridgegarden.objective.divergences import DIVERGENCES, alpha_beta
from bridgegarden.objective.fused import ProjectedTeacher, fused_hybrid_loss
from bridgegarden.objective.head import LanguageModelHead
from bridgegarden.objective.hybrid import HybridObjective
from bridgegarden.objective.soft_weight import TrainProgress
from bridgegarden.teacher.cache.reader import TeacherCache
from bridgegarden.teacher.cache.spec import DEFAULT_EXPONENTS, CacheSpec, Support
from bridgegarden.teacher.cache.writer import OneTeacher, build_cache
from bridgegarden.teacher.live import LiveTeacher
from bridgegarden.training.trainer import HybridDistillationTrainer
from tests.objective.presets import MECHANISMS, RANKED
from tests.tiny import VOCABULARY, tiny_model, tiny_tokenizer
from tests.training.conftest import token_rows

pytestmark = [pytest.mark.gpu, pytest.mark.filterwarnings("ignore::FutureWarning")]

N, V, D = 37, 500, 16
PROGRESS = TrainProgress(step=3, total_steps=20)
ALL_DIVERGENCES = {
    **{name: function for name, function in DIVERGENCES.items() if name != "alpha_beta"},
    "alpha_beta": partial(alpha_beta, alpha=0.2, beta=0.7),
}


def loss_and_gradients(
    objective: HybridObjective, device: str, dtype: torch.dtype, top_k: int | None = None, *, kernels: bool = False
):
    """Of one random problem, rounded to `dtype` before anything is computed; moved to the CPU in float64."""
    generator = torch.Generator().manual_seed(0)

    def random(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    hidden, weight, teacher_hidden, teacher_weight = random(N, D), random(V, D), random(N, D), random(V, D)
    data = torch.randint(0, V, (N,), generator=generator).to(device)
    rounded = [part.bfloat16().to(device, dtype) for part in (hidden, weight, teacher_hidden, teacher_weight)]
    hidden, weight = rounded[0].requires_grad_(), rounded[1].requires_grad_()
    teacher = ProjectedTeacher(rounded[2], LanguageModelHead(weight=rounded[3]), top_k, V, objective.exponents)
    following = torch.ones(N, dtype=torch.bool, device=device)
    following[-1] = False
    fused = fused_hybrid_loss(
        hidden,
        LanguageModelHead(weight=weight),
        teacher,
        data,
        following,
        objective,
        num_items=N,
        progress=PROGRESS,
        chunk_tokens=8,
        kernels=kernels,
    )
    fused.loss.backward()
    return [part.detach().double().cpu() for part in (fused.loss, hidden.grad, weight.grad)]


def errors(
    objective: HybridObjective, device: str, dtype: torch.dtype, top_k: int | None = None, *, kernels: bool = False
) -> list[float]:
    """Relative errors of loss and gradients against float64 on the CPU."""
    truth = loss_and_gradients(objective, "cpu", torch.float64, top_k)
    found = loss_and_gradients(objective, device, dtype, top_k, kernels=kernels)
    return [float((a - b).norm() / b.norm()) for a, b in zip(found, truth, strict=True)]


@pytest.mark.parametrize("divergence", ALL_DIVERGENCES)
@pytest.mark.parametrize("top_k", [None, 16])
def test_every_divergence_agrees_with_float64_on_the_cpu(divergence, top_k):
    objective = HybridObjective(divergence=ALL_DIVERGENCES[divergence], risk_alpha=0.1, hard_target="data")
    assert max(errors(objective, "cuda", torch.float32, top_k)) < 1e-3


@pytest.mark.parametrize("preset", MECHANISMS)
def test_bfloat16_on_a_gpu_is_no_further_off_than_on_a_cpu(preset):
    objective = HybridObjective.preset(preset)
    on_cpu = errors(objective, "cpu", torch.bfloat16)
    for ours, theirs in zip(errors(objective, "cuda", torch.bfloat16), on_cpu, strict=True):
        assert ours < 1.5 * theirs + 2e-3


@pytest.mark.parametrize("preset", MECHANISMS)
def test_the_kernels_in_bfloat16_are_no_further_off_than_pytorch_on_a_cpu(preset):
    objective = HybridObjective.preset(preset)
    on_cpu = errors(objective, "cpu", torch.bfloat16, 16)
    for ours, theirs in zip(errors(objective, "cuda", torch.bfloat16, 16, kernels=True), on_cpu, strict=True):
        assert ours < 1.5 * theirs + 2e-3


@pytest.mark.parametrize("preset", [*MECHANISMS, *RANKED])
@pytest.mark.parametrize(("top_k", "kernels"), [(None, False), (16, False), (16, True)])
def test_nothing_in_the_walk_over_chunks_waits_for_the_gpu(preset, top_k, kernels):
    objective = HybridObjective.preset(preset)
    generator = torch.Generator("cuda").manual_seed(0)
    hidden, weight, teacher_hidden, teacher_weight = (
        torch.randn(rows, D, generator=generator, device="cuda") for rows in (N, V, N, V)
    )
    data = torch.randint(0, V, (N,), generator=generator, device="cuda")
    projection = LanguageModelHead(weight=teacher_weight)
    teacher = ProjectedTeacher(teacher_hidden, projection, top_k, V, objective.exponents, labels=data)
    successor = torch.ones(N, dtype=torch.bool, device="cuda")
    head = LanguageModelHead(weight=weight.requires_grad_())

    def loss() -> torch.Tensor:
        return fused_hybrid_loss(
            hidden, head, teacher, data, successor, objective, num_items=N, progress=PROGRESS, kernels=kernels
        ).loss

    # Once before, for what is loaded and compiled the first time.
    loss().backward()
    torch.cuda.set_sync_debug_mode("error")
    try:
        loss().backward()
    finally:
        torch.cuda.set_sync_debug_mode("default")


def train(tmp_path: Path, teacher, *, use_cpu: bool, **arguments) -> HybridDistillationTrainer:
    defaults = {
        "max_steps": 4,
        "per_device_train_batch_size": 4,
        "learning_rate": 1e-3,
        "lr_scheduler_type": "constant",
        "logging_steps": 1,
        "save_strategy": "no",
        "report_to": [],
        "bf16": False,
        "gradient_checkpointing": False,
        "use_cpu": use_cpu,
        "disable_tqdm": True,
        "max_length": 64,
        "seed": 0,
    }
    trainer = HybridDistillationTrainer(
        tiny_model("llama", 264, seed=2),
        teacher,
        HybridObjective.preset("risk_guided"),
        SFTConfig(str(tmp_path / "out"), **(defaults | arguments)),
        train_dataset=token_rows(),
        processing_class=tiny_tokenizer(),
    )
    trainer.train()
    return trainer


def history(trainer: HybridDistillationTrainer, name: str) -> list[float]:
    return [entry[name] for entry in trainer.state.log_history if name in entry]


def live():
    return LiveTeacher(tiny_model("llama", 270, hidden_size=48, seed=1))


@pytest.mark.parametrize("packing", [False, True])
def test_training_on_a_gpu_follows_training_on_a_cpu(tmp_path, packing):
    on_gpu = train(tmp_path, live(), use_cpu=False, packing=packing)
    on_cpu = train(tmp_path, live(), use_cpu=True, packing=packing)
    assert next(on_gpu.model.parameters()).is_cuda
    for name in ("loss", "soft_loss", "hard_loss", "risk_loss", "grad_norm", "teacher_entropy"):
        assert history(on_gpu, name) == pytest.approx(history(on_cpu, name), rel=2e-3), name


def test_bfloat16_autocast_with_checkpointed_gradients_trains(tmp_path):
    mixed = train(tmp_path, live(), use_cpu=False, bf16=True, gradient_checkpointing=True)
    exact = train(tmp_path, live(), use_cpu=True)
    assert history(mixed, "loss") == pytest.approx(history(exact, "loss"), rel=3e-2)


def test_a_cache_built_on_a_gpu_trains_as_the_live_teacher_does(tmp_path):
    tokenizer = tiny_tokenizer()
    rows: Dataset = token_rows()
    spec = CacheSpec(
        teacher="tiny",
        revision=None,
        weights=None,
        dtype="float32",
        tokenizer=tokenizer_fingerprint(tokenizer),
        chat_template=chat_template_fingerprint(tokenizer),
        max_length=64,
        vocab_size=VOCABULARY,
        teacher_width=270,
        support=Support(k=VOCABULARY),
        exponents=DEFAULT_EXPONENTS,
        bits=16,
    )
    teacher = tiny_model("llama", 270, hidden_size=48, seed=1).cuda()
    build_cache(tmp_path / "cache", OneTeacher(lambda: teacher, spec), [rows], spec)
    cached = train(tmp_path, TeacherCache(tmp_path / "cache"), use_cpu=False)
    asked = train(tmp_path, live(), use_cpu=False)
    assert history(cached, "loss") == pytest.approx(history(asked, "loss"), rel=1e-3)


def test_exposure_bias_on_a_gpu_is_that_on_a_cpu():
    """The same random numbers write the same texts, unless two tokens are as likely to the last bit."""
    prompts = [[5, 6, 7], [3], [1, 2, 3, 4]]

    def measured(device: str):
        models = [tiny_model("llama", 64, seed=seed).to(device) for seed in (1, 2)]
        policies = [CausalLMPolicy(model, end_ids=(0,)) for model in models]
        generator = torch.Generator().manual_seed(0)
        return exposure_bias(*policies, prompts, Sampling(samples=4, max_new_tokens=12), generator=generator)

    on_gpu, on_cpu = measured("cuda"), measured("cpu")
    assert on_gpu.exposure_bias.mean == pytest.approx(on_cpu.exposure_bias.mean, abs=1e-3)
    assert on_gpu.student_loss.mean == pytest.approx(on_cpu.student_loss.mean, rel=1e-3)
