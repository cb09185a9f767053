"""What would wait for a GPU, found on a CPU."""

from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode

WAITS = ("_local_scalar_dense", "is_nonzero", "nonzero", "equal", "masked_select", "_unique2", "item")


def waits_for_the_device(func: Any, args: tuple[Any, ...]) -> bool:
    """Whether an operation waits for all that was launched: values that Python reads, and shapes made of them."""
    name = func.overloadpacket.__name__
    by_flags = name in ("index", "index_put", "index_put_") and any(
        index is not None and index.dtype == torch.bool for index in args[1]
    )
    return by_flags or name in WAITS


class WaitsForTheDevice(TorchDispatchMode):
    """Refuses every such operation."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        assert not waits_for_the_device(func, args), f"{func} waits for the device"
        return func(*args, **(kwargs or {}))
