"""The machine that is planned for: how many processes, how much memory each has, how fast it may be."""

import re
from dataclasses import dataclass
from fractions import Fraction
from types import MappingProxyType
from typing import Literal

from bridgegarden.errors import ConfigError

Sharding = Literal["ddp", "fsdp", "zero3"]

GPUS = MappingProxyType(
    {
        "a100": (80, 312e12),
        "b200": (180, 2250e12),
        "h100": (80, 989e12),
        "h200": (139, 989e12),
        "l4": (24, 121e12),
        "l40s": (48, 362e12),
        "rtx4090": (24, 165e12),
    }
)
"""Memory in GiB and the vendor's figure for dense bfloat16 products a second, of the largest board of that name."""
KEPT_FREE = 0.1
"""Share of a device's memory that is not planned with: libraries, the driver, gaps between blocks, and that plans were
8 to 12 % too low where they were measured (docs/plan.md)."""
UTILISATION = 0.4
"""Share of the vendor's figure that a training reaches. An assumption; 0.3 to 0.5 is usual for dense models."""

_UNITS = {"": 1, "k": 10**3, "m": 10**6, "g": 10**9, "t": 10**12, "ki": 2**10, "mi": 2**20, "gi": 2**30, "ti": 2**40}


_BOUNDS = MappingProxyType(
    {
        "--gpus": (1, 10**6),
        "--memory": (1, 2**60),
        "--flops": (1, 1e30),
        "--utilisation": (1e-4, 1),
    }
)
"""What can be planned with: far beyond any machine, and small enough that every number of a plan is finite."""


@dataclass(frozen=True, kw_only=True)
class Machine:
    """Equal devices, a process on each."""

    name: str
    """For a reader."""
    processes: int
    memory: int
    """Bytes of each device."""
    flops: float | None
    """Operations a second of each at its best, in the vendor's words; None where it is not known."""
    utilisation: float = UTILISATION
    """Share of it that is reached, in (0, 1]."""
    sharding: Sharding = "ddp"
    """What the processes share: ``ddp`` nothing, ``fsdp`` and ``zero3`` the student's weights, gradients and optimiser
    states."""
    gpu: bool = True
    """Whether the devices are GPUs, so that training is in bfloat16 autocast unless the recipe says otherwise."""

    def __post_init__(self) -> None:
        given = (self.processes, self.memory, self.flops, self.utilisation)
        for (option, (low, high)), value in zip(_BOUNDS.items(), given, strict=True):
            if value is not None and not low <= value <= high:  # NaN is not, either
                raise ConfigError(f"{option} must be from {low:g} to {high:g}, got {_short(value)}.")

    @property
    def usable(self) -> int:
        """Bytes that are planned with."""
        return int(self.memory * (1 - KEPT_FREE))


def machine_of(
    *,
    gpus: int | None = None,
    gpu: str | None = None,
    memory: str | None = None,
    flops: float | None = None,
    utilisation: float = UTILISATION,
    sharding: Sharding = "ddp",
) -> Machine:
    """The machine that the options describe; with neither `gpus` nor `gpu`, this one.

    Args:
        gpus: how many; None is one of `gpu`, or what this machine has.
        gpu: a name of :data:`GPUS`; ``h100`` where only `gpus` is given.
        memory: of each, such as ``80GiB``; None is the named GPU's or this machine's.
        flops: operations a second of each at its best; None is the named GPU's.
        utilisation: share of them that is reached.
        sharding: what the processes share.

    Raises:
        ConfigError: a size that cannot be read, or an unknown GPU.
    """
    size = None if memory is None else parse_size(memory)
    if gpus is None and gpu is None:
        return _here(size, flops, utilisation, sharding)
    name = (gpu or "h100").lower()
    if name not in GPUS:
        raise ConfigError(f"--gpu: unknown name {gpu!r}; known: {', '.join(GPUS)}. Or give --memory and --flops.")
    gibibytes, peak = GPUS[name]
    return Machine(
        name=name.upper(),
        processes=gpus or 1,
        memory=size or gibibytes * 2**30,
        flops=flops or peak,
        utilisation=utilisation,
        sharding=sharding,
    )


def parse_size(text: str) -> int:
    """Bytes of ``80GiB``, ``80GB``, ``24G`` (as GB) or ``85899345920``.

    Raises:
        ConfigError: it is none of these.
    """
    found = re.fullmatch(r"\s*(\d{1,1000}(?:\.\d{1,1000})?)\s*([kmgt]?i?)b?\s*", text, re.IGNORECASE)
    unit = None if found is None else _UNITS.get(found[2].lower())
    size = 0 if found is None or unit is None else int(Fraction(found[1]) * unit)
    if size <= 0:
        raise ConfigError(f"--memory: {text!r} is not a size; expected such as 80GiB, 80GB or 24G.")
    return size


def _short(value: float) -> str:
    """A number of any size, for a message."""
    text = str(value)
    return text if len(text) <= 20 else f"a number of {len(text)} digits"


def gibibytes(count: float) -> str:
    """`count` bytes for a reader: GiB, or MiB below a tenth of one."""
    return f"{count / 2**30:,.1f} GiB" if count >= 2**30 / 10 else f"{count / 2**20:,.1f} MiB"


def _here(memory: int | None, flops: float | None, utilisation: float, sharding: Sharding) -> Machine:
    import psutil
    import torch

    if not torch.cuda.is_available():
        return Machine(
            name="this machine's CPU",
            processes=1,
            memory=memory or psutil.virtual_memory().total,
            flops=flops,
            utilisation=utilisation,
            sharding=sharding,
            gpu=False,
        )
    properties = torch.cuda.get_device_properties(0)
    squeezed = properties.name.lower().replace(" ", "")
    # The longest name that fits: an L40S is no L4.
    known = max((name for name in GPUS if name in squeezed), key=len, default=None)
    return Machine(
        name=properties.name,
        processes=torch.cuda.device_count(),
        memory=memory or properties.total_memory,
        flops=flops or (None if known is None else GPUS[known][1]),
        utilisation=utilisation,
        sharding=sharding,
    )
