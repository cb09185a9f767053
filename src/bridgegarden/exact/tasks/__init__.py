"""The finite-state worlds that ship with the package, at sizes that can be solved exactly in seconds."""

from collections.abc import Callable, Mapping
from functools import partial
from types import MappingProxyType

from bridgegarden.exact.tasks.arithmetic import ArithmeticWorld
from bridgegarden.exact.tasks.control import ControlWorld
from bridgegarden.exact.tasks.dialogue import DialogueWorld
from bridgegarden.exact.tasks.program import ProgramWorld
from bridgegarden.exact.world import World

WORLDS: Mapping[str, Callable[..., World]] = MappingProxyType(
    {
        "dialogue": partial(DialogueWorld, people=3, things=3, days=4, wordings=2, prompt_wordings=2),
        "arithmetic": partial(
            ArithmeticWorld, modulus=5, steps=2, wordings=2, closings=1, prompt_wordings=1, restate=False
        ),
        "program": partial(ProgramWorld, variables=3, constants=3, wordings=2, prompt_wordings=1),
        "control": partial(ControlWorld, people=6, topics=6, tones=4, hours=4, wordings=2, prompt_wordings=1),
    }
)
"""Each family at the size of the lab; fields given to an entry override its sizes."""
