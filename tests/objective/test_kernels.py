"""The kernels against the same in float64 by PyTorch: compiled where there is a GPU, else by Triton's interpreter."""

import math
import os
import subprocess
import sys

import pytest
import torch

from bridgegarden.errors import ConfigError
from bridgegarden.objective.fused import FusedLoss, ProjectedTeacher, fused_hybrid_loss
from bridgegarden.objective.head import LanguageModelHead, select_support
from bridgegarden.objective.hybrid import HybridObjective
from bridgegarden.objective.soft_weight import TrainProgress
from bridgegarden.objective.support import StudentSupport, TeacherSignal
from tests.objective.presets import MECHANISMS, RANKED

pytest.importorskip("triton")

from bridgegarden.objective import kernels

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
if DEVICE == "cpu" and not kernels.INTERPRETED:
    pytest.skip("a GPU that this PyTorch cannot use", allow_module_level=True)
# The interpreter computes with numpy, which warns of a logarithm of zero where a GPU gives -inf.
pytestmark = pytest.mark.filterwarnings("ignore::RuntimeWarning:triton")

N, V, D = 5, 500, 8
TOLERANCE = {torch.float32: 2e-6, torch.bfloat16: 2**-7}
"""Of gradients, relative to the largest. The interpreter cuts bfloat16 off where a GPU rounds."""


@pytest.fixture(autouse=True)
def _several_blocks_a_row(monkeypatch):
    monkeypatch.setattr(kernels, "BLOCK", 128)


def chunk(k: int, dtype: torch.dtype, width: int = V):
    """Logits with impossible tokens, ids with repeats and empty slots, targets among the ids and outside them."""
    generator = torch.Generator().manual_seed(k)
    logits = (3 * torch.randn(N, width, generator=generator)).to(dtype)
    ids = torch.stack([torch.randperm(width, generator=generator)[:k] for _ in range(N)])
    target = torch.randint(0, width, (N,), generator=generator)
    target[0] = ids[0, -1]
    if k > 4:
        ids[1, 3:5] = ids[1, 0]
        target[1] = ids[1, 0]
        ids[2, -3:] = -1
    used = torch.zeros(N, width, dtype=torch.bool).scatter_(1, ids.clamp(min=0), True)
    used.scatter_(1, target.unsqueeze(1), True)
    logits[3:, ::2] = torch.where(used[3:, ::2], logits[3:, ::2], -math.inf)
    # Everything outside the support is impossible.
    logits[4] = torch.where(used[4], logits[4], -math.inf)
    target[4] = ids[4, 0]
    logits[4] = logits[4].masked_fill(~torch.zeros(width, dtype=torch.bool).scatter_(0, ids[4], True), -math.inf)
    return logits.to(DEVICE), ids.to(DEVICE), target.to(DEVICE)


def some_loss(student: StudentSupport, seeds: list[torch.Tensor]) -> torch.Tensor:
    """A function of all that a student's view has, with a random gradient at each."""
    parts = [student.logits, student.target_logit, student.log_rest, student.log_normaliser, student.tempered_log_rest]
    terms = (
        (torch.where(part == -math.inf, 0.0, part) * seed).sum()
        for part, seed in zip(parts, seeds, strict=True)
        if part is not None
    )
    return sum(terms, torch.zeros((), device=DEVICE))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("temperature", [1.0, 2.0])
@pytest.mark.parametrize("k", [1, 64, 300])
def test_values_and_gradients_are_those_in_float64(k, temperature, dtype):
    logits, ids, target = chunk(k, dtype)
    exact = logits.double().requires_grad_()
    truth = select_support(exact, ids, target, temperature)
    swept = kernels.SweptLogits.of(logits.clone(), ids, target, temperature)
    found = swept.student()
    for name in ("logits", "log_rest", "target_logit", "log_normaliser", "tempered_log_rest"):
        value, expected = getattr(found, name), getattr(truth, name)
        assert (value is None) == (expected is None)
        if value is not None:
            torch.testing.assert_close(value.double(), expected, rtol=2e-6, atol=2e-6)
    generator = torch.Generator().manual_seed(0)
    seeds = [torch.randn(N, k, generator=generator).to(DEVICE)]
    seeds += [torch.randn(N, generator=generator).to(DEVICE) for _ in range(4)]
    (expected,) = torch.autograd.grad(some_loss(truth, seeds), exact)
    _, gradient = swept.gradient(some_loss(found, seeds))
    assert gradient.dtype == dtype
    assert (gradient.double() - expected).abs().max() < TOLERANCE[dtype] * expected.abs().max()
    # Small gradients too: those of unlikely tokens are many.
    far = expected.abs() < 1e-3
    torch.testing.assert_close(gradient.double()[far], expected[far], rtol=2 * TOLERANCE[dtype] + 2e-5, atol=5e-8)


@pytest.mark.parametrize("width", [1, 127, 128, 129, 260])
def test_any_width_will_do(width):
    logits, ids, target = (part[:4] for part in chunk(1, torch.float32, width))
    exact = logits.double().requires_grad_()
    truth = select_support(exact, ids, target, 1.0)
    swept = kernels.SweptLogits.of(logits.clone(), ids, target, 1.0)
    torch.testing.assert_close(swept.student().log_normaliser.double(), truth.log_normaliser, rtol=2e-6, atol=2e-6)
    (expected,) = torch.autograd.grad(truth.log_normaliser.square().sum(), exact)
    _, gradient = swept.gradient(swept.student().log_normaliser.square().sum())
    torch.testing.assert_close(gradient.double(), expected, rtol=2e-5, atol=1e-6)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_gradient_takes_the_place_of_the_logits(dtype):
    logits, ids, target = chunk(64, dtype)
    swept = kernels.SweptLogits.of(logits, ids, target, 1.0)
    kept, gradient = swept.gradient(swept.student().log_normaliser.sum())
    assert gradient.data_ptr() == kept.data_ptr() == logits.data_ptr()


def test_logits_that_are_kept_are_as_they_were():
    logits, ids, target = chunk(64, torch.float32)
    swept = kernels.SweptLogits.of(logits.clone(), ids, target, 1.0)
    kept, gradient = swept.gradient(swept.student().log_normaliser.sum(), keep_logits=True)
    torch.testing.assert_close(kept, logits)
    torch.testing.assert_close(gradient, logits.softmax(1))


@pytest.mark.parametrize("place", ["at an id", "elsewhere"])
def test_a_logit_that_is_no_number_is_seen(place):
    logits, ids, target = chunk(64, torch.float32)
    outside = next(v for v in range(V) if v not in ids[0])
    logits[0, int(ids[0, 3]) if place == "at an id" else outside] = math.nan
    normaliser = kernels.SweptLogits.of(logits, ids, target, 1.0).student().log_normaliser
    assert bool(normaliser[0].isnan())
    assert bool(normaliser[1:].isfinite().all())


class Pair:
    """A student and a cached teacher at some positions."""

    def __init__(
        self, dtype: torch.dtype, softcap: float | None = None, scale: float = 1.0, bias: bool = False
    ) -> None:
        generator = torch.Generator().manual_seed(0)

        def random(*shape: int) -> torch.Tensor:
            # Rounded first, so that every dtype has the same problem.
            return torch.randn(*shape, generator=generator).bfloat16().to(DEVICE, dtype)

        self.hidden, self.weight = random(11, D).requires_grad_(), random(V, D).requires_grad_()
        self.bias = random(V).requires_grad_() if bias else None
        self.head = LanguageModelHead(weight=self.weight, bias=self.bias, softcap=softcap, scale=scale)
        self.teacher = ProjectedTeacher(random(11, D).double(), LanguageModelHead(weight=random(V, D).double()), 16, V)
        self.data = torch.randint(0, V, (11,), generator=generator).to(DEVICE)
        self.successor = torch.tensor([True] * 6 + [False] + [True] * 3 + [False], device=DEVICE)

    def loss(self, objective: HybridObjective, *, by_kernels: bool, measure: bool = False) -> FusedLoss:
        exponents = objective.exponents
        teacher = ProjectedTeacher(self.teacher.hidden, self.teacher.head, 16, V, exponents, labels=self.data)
        return fused_hybrid_loss(
            self.hidden,
            self.head,
            teacher,
            self.data,
            self.successor,
            objective,
            num_items=11,
            progress=TrainProgress(step=3, total_steps=20),
            chunk_tokens=4,
            measure_student=measure,
            kernels=by_kernels,
        )

    def gradients(self) -> list[torch.Tensor]:
        parts = (self.hidden, self.weight, self.bias)
        return [part.grad.double() for part in parts if part is not None and part.grad is not None]


OBJECTIVES = {
    **{name: HybridObjective.preset(name) for name in (*MECHANISMS, *RANKED)},
    "warm": HybridObjective.preset("risk_guided", temperature=2.0, hard_target="data"),
}


@pytest.mark.parametrize("name", OBJECTIVES)
def test_every_objective_is_that_of_float64(name):
    exact, fast, plain = Pair(torch.float64), Pair(torch.float32), Pair(torch.float32)
    truth = exact.loss(OBJECTIVES[name], by_kernels=False, measure=True)
    found = fast.loss(OBJECTIVES[name], by_kernels=True, measure=True)
    truth.loss.backward()
    found.loss.backward()
    plain.loss(OBJECTIVES[name], by_kernels=False).loss.backward()
    torch.testing.assert_close(found.loss.double(), truth.loss, rtol=1e-5, atol=1e-5)
    for a, b, other in zip(fast.gradients(), exact.gradients(), plain.gradients(), strict=True):
        # In float32 the gradient of a reverse KL loses digits whatever the route.
        assert (a - b).norm() < 1e-5 * b.norm() + 1.1 * (other - b).norm()
    for field in ("student_entropy", "student_label_logp", "captured_mass", "teacher_entropy"):
        torch.testing.assert_close(getattr(found, field).double(), getattr(truth, field).double(), rtol=1e-4, atol=1e-5)
    assert torch.equal(found.student_hit, truth.student_hit)
    for bound, true in zip(found.acceptance, truth.acceptance, strict=True):
        torch.testing.assert_close(bound.double(), true.double(), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("kind", [{"softcap": 2.0}, {"scale": 0.3}, {"bias": True}, {"softcap": 3.0, "bias": True}])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_cap_a_scale_and_a_bias_are_the_heads_own(kind, dtype):
    exact, fast = Pair(torch.float64, **kind), Pair(dtype, **kind)
    truth = exact.loss(OBJECTIVES["warm"], by_kernels=False)
    found = fast.loss(OBJECTIVES["warm"], by_kernels=True)
    truth.loss.backward()
    found.loss.backward()
    tolerance = {torch.float32: 1e-5, torch.bfloat16: 2e-2}[dtype]
    torch.testing.assert_close(found.loss.double(), truth.loss, rtol=tolerance, atol=tolerance)
    for a, b in zip(fast.gradients(), exact.gradients(), strict=True):
        assert (a - b).norm() < tolerance * b.norm()


def test_without_a_gradient_the_values_are_the_same():
    pair = Pair(torch.bfloat16)
    with torch.no_grad():
        plain = pair.loss(OBJECTIVES["warm"], by_kernels=False, measure=True)
        found = pair.loss(OBJECTIVES["warm"], by_kernels=True, measure=True)
    torch.testing.assert_close(found.terms.total, plain.terms.total, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(found.student_entropy, plain.student_entropy, rtol=1e-4, atol=1e-4)


def test_no_positions_are_a_zero():
    pair = Pair(torch.float32)
    none = pair.teacher[:0]
    loss = fused_hybrid_loss(
        pair.hidden[:0],
        pair.head,
        none,
        pair.data[:0],
        pair.successor[:0],
        HybridObjective.preset("risk_guided"),
        num_items=0,
        measure_student=True,
        kernels=True,
    ).loss
    loss.backward()
    assert loss.item() == 0.0
    assert not bool(pair.weight.grad.any())


def test_a_sampled_signal_has_ids_that_repeat():
    exact, fast = Pair(torch.float64), Pair(torch.float32)
    logits = exact.teacher.head.logits(exact.teacher.hidden)
    signal = TeacherSignal.from_samples(logits, 40, generator=torch.Generator(DEVICE).manual_seed(0))
    losses = []
    for pair, by_kernels in ((exact, False), (fast, True)):
        pair.teacher = signal
        loss = fused_hybrid_loss(
            pair.hidden,
            pair.head,
            signal,
            pair.data,
            pair.successor,
            HybridObjective.preset("static"),
            num_items=11,
            kernels=by_kernels,
        ).loss
        loss.backward()
        losses.append(loss.double())
    torch.testing.assert_close(losses[1], losses[0], rtol=1e-5, atol=1e-5)
    for a, b in zip(fast.gradients(), exact.gradients(), strict=True):
        assert (a - b).norm() < 1e-5 * b.norm()


def test_a_teacher_of_the_whole_vocabulary_is_refused():
    pair = Pair(torch.float32)
    with pytest.raises(ConfigError, match="top-k and sampled teacher signals"):
        fused_hybrid_loss(
            pair.hidden,
            pair.head,
            TeacherSignal.from_logits(pair.teacher.head.logits(pair.teacher.hidden)),
            pair.data,
            pair.successor,
            HybridObjective(),
            num_items=11,
            kernels=True,
        )


def test_float64_is_refused():
    with pytest.raises(ConfigError, match="sums in float32, and the student is in float64"):
        Pair(torch.float64).loss(HybridObjective(), by_kernels=True)


def test_without_triton_they_are_refused(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ConfigError, match="needs the package triton, which is not installed"):
        Pair(torch.float32).loss(HybridObjective(), by_kernels=True)


COMPILE = """
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from bridgegarden.objective import kernels

FLOATS, OTHERS = "*fp32", {"stride": "i32", "width": "i32", "count": "i32", "inverse_temperature": "fp32"}
OTHERS |= {"ids": "*i64", "target_ids": "*i64"}
for dtype in ("*bf16", "*fp32"):
    for constants in ({"TEMPERED": False, "MEAN": False}, {"TEMPERED": True, "MEAN": True}):
        for kernel in (kernels._sum_up, kernels._spread_out, kernels._put_in_place):
            known = {**constants, "BLOCK": 4096, "SLOTS": 64}
            names = kernel.arg_names
            types = {"logits": dtype, "out": dtype, **OTHERS, **dict.fromkeys(known, "constexpr")}
            source = ASTSource(
                fn=kernel,
                signature={name: types.get(name, FLOATS) for name in names},
                constexprs={(names.index(name),): value for name, value in known.items() if name in names},
            )
            compiled = triton.compile(source, target=GPUTarget("cuda", 90, 32), options={"num_warps": 8})
            print(kernel.__name__, len(compiled.asm["cubin"]) > 0)
"""


@pytest.mark.slow
def test_every_kernel_compiles_for_a_gpu_where_there_is_none(tmp_path):
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    environment["TRITON_CACHE_DIR"] = str(tmp_path)
    done = subprocess.run(
        [sys.executable, "-c", COMPILE], env=environment, capture_output=True, text=True, timeout=300, check=False
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == ["_sum_up", "True", "_spread_out", "True", "_put_in_place", "True"] * 4
