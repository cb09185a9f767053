"""Which route the loss takes, and what is said where one cannot be taken."""

import sys

import pytest
import torch

from bridgegarden.errors import ConfigError
from bridgegarden.objective.loss_route import loss_route, route_text

CPU, GPU = torch.device("cpu"), torch.device("cuda")


@pytest.mark.parametrize("asked", ["auto", "torch"])
@pytest.mark.parametrize("device", [CPU, GPU])
def test_what_is_not_measured_is_not_the_default_and_is_not_imported(asked, device, monkeypatch):
    monkeypatch.setitem(sys.modules, "bridgegarden.objective.kernels", None)
    assert loss_route(asked, device, torch.bfloat16) == "torch"


def test_a_gpu_with_triton_gets_what_is_asked_for():
    pytest.importorskip("triton")
    assert loss_route("triton", GPU, torch.bfloat16) == "triton"


def test_without_triton_the_kernels_are_refused_on_any_device(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=r"^training\.loss_kernel: triton needs the package triton, .* Install one"):
        loss_route("triton", GPU, torch.bfloat16)


def test_without_a_gpu_the_kernels_are_refused(monkeypatch):
    monkeypatch.setattr(pytest.importorskip("bridgegarden.objective.kernels"), "INTERPRETED", False)
    with pytest.raises(ConfigError, match=r"^training\.loss_kernel: .* needs a CUDA GPU, and the student is on cpu"):
        loss_route("triton", CPU, torch.float32)


def test_float64_is_refused():
    pytest.importorskip("triton")
    with pytest.raises(ConfigError, match=r"^training\.loss_kernel: .* sums in float32, and the student is in float64"):
        loss_route("triton", GPU, torch.float64)


def test_what_is_said_of_a_route_names_the_key_that_chose_it():
    assert route_text("triton", "triton") == "loss by Triton's kernels (training.loss_kernel: triton)"
    assert "PyTorch's operations (training.loss_kernel: auto; " in route_text("auto", "torch")
