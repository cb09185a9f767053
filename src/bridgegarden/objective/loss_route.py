"""Which code reads and writes a chunk of logits in the fused loss: PyTorch's operations, or Triton's kernels.

The result is the same to round-off. Nothing heavy is imported before something is asked for.
"""

import importlib.util
from typing import TYPE_CHECKING, Literal

from bridgegarden.errors import ConfigError, MissingPackageError

if TYPE_CHECKING:
    import torch

LossKernel = Literal["auto", "torch", "triton"]
"""What can be asked for; ``auto`` is what docs/benchmarks.md has shown to be the faster one on the device."""
LossRoute = Literal["torch", "triton"]
"""What is taken."""


def loss_route(asked: LossKernel, device: "torch.device", dtype: "torch.dtype") -> LossRoute:
    """The route for a student on `device` whose logits have `dtype`.

    ``auto`` is ``torch`` everywhere: the kernels have not been timed on a GPU, and what is not measured is no default.

    Raises:
        ConfigError: the kernels were asked for where they cannot run.
    """
    if asked == "triton":
        check_kernels(device, dtype)
        return "triton"
    return "torch"


def route_text(asked: LossKernel, route: LossRoute) -> str:
    """One line on the route that was taken, and why."""
    by = "Triton's kernels" if route == "triton" else "PyTorch's operations"
    why = "; Triton's kernels have not been timed on a GPU yet" if asked == "auto" else ""
    return f"loss by {by} (training.loss_kernel: {asked}{why})"


def check_kernels(device: "torch.device", dtype: "torch.dtype") -> None:
    """Whether the loss kernels can run on `device` over logits of `dtype`.

    Raises:
        MissingPackageError: no Triton.
        ConfigError: not a CUDA GPU, or float64, of which they would lose half the digits.
    """
    import torch

    if importlib.util.find_spec("triton") is None:
        raise MissingPackageError(
            "training.loss_kernel: triton needs the package triton, which is not installed; a CUDA build of PyTorch "
            "brings it. Install one, or set it to auto."
        )
    from bridgegarden.objective.kernels import INTERPRETED

    if device.type != "cuda" and not INTERPRETED:
        raise ConfigError(
            f"training.loss_kernel: triton needs a CUDA GPU, and the student is on {device}. Set it to auto."
        )
    if dtype == torch.float64:
        raise ConfigError(
            "training.loss_kernel: triton sums in float32, and the student is in float64. Set it to auto."
        )


def whole_vocabulary_error() -> ConfigError:
    """What is said where the kernels were asked for, and the teacher's signal has no ids."""
    return ConfigError(
        "training.loss_kernel: triton serves top-k and sampled teacher signals, and this teacher gives the whole "
        "vocabulary. Keep its likeliest tokens (teacher.top_k), or set it to auto."
    )
