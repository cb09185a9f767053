"""Every test: no network, one thread, nothing read from or written to the user's caches."""

import gc
import os
import sys
import tempfile

_home = tempfile.TemporaryDirectory(prefix="bridgegarden-tests-", ignore_cleanup_errors=True)
# Before anything imports torch or huggingface_hub: both read these once.
os.environ.update(
    HF_HOME=_home.name,
    HF_HUB_OFFLINE="1",
    HF_DATASETS_OFFLINE="1",
    MKL_NUM_THREADS="1",
    OMP_NUM_THREADS="1",
    TOKENIZERS_PARALLELISM="false",
)
if not os.path.exists("/dev/nvidiactl"):
    # Triton reads it once too, whoever imports it first: without a GPU its interpreter runs the loss kernels.
    os.environ["TRITON_INTERPRET"] = "1"

import pytest  # noqa: E402
from hypothesis import settings  # noqa: E402

# The same examples on every machine, and no failure because a machine is slow.
settings.register_profile("reproducible", derandomize=True, deadline=None, database=None)
settings.load_profile("reproducible")


_frozen = 0
"""How many modules there were when the collector was last told of them."""


def pytest_runtest_logfinish() -> None:
    """Trainers collect garbage often. What was imported is none, and looking through it took a third of the time."""
    global _frozen
    if len(sys.modules) > _frozen + 50:
        _frozen = len(sys.modules)
        gc.collect()
        gc.freeze()


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Slow tests run when asked for (``-m slow``), GPU tests where there is a GPU."""
    asked = config.getoption("markexpr") or ""
    for item in items:
        if item.get_closest_marker("slow") and "slow" not in asked:
            item.add_marker(pytest.mark.skip(reason="slow; run with -m slow"))
        if item.get_closest_marker("gpu"):
            import torch

            if not torch.cuda.is_available():
                item.add_marker(pytest.mark.skip(reason="needs a CUDA device"))
