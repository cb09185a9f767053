"""What would wait for a GPU, found on a CPU."""

from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode


class WaitsForTheDevice(TorchDispatchMode):
    """Refuses what on a GPU would wait for all that was launched: values that Python reads, and shapes made of them."""

    WAITS = ("_local_scalar_dense", "is_nonzero", "nonzero", "equal", "masked_select", "_unique2", "item")

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.overloadpacket.__name__
        by_flags = name in ("index", "index_put", "index_put_") and any(
            index is not None and index.dtype == torch.bool for index in args[1]
        )
        waits = by_flags or name in self.WAITS
        assert not waits, f"{func} waits for the device"
        return func(*args, **(kwargs or {}))
