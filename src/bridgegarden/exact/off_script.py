r"""A text that leaves the script is over.

A process says what it would write after any text it could have written. Off that script it has no distribution: any
cost charged there would measure what somebody made up, not the student. So a text ends with the token that leaves the
script, at no further cost, and how often that happens is reported beside the losses as a rate of violations.

The prefixes that remain are finitely many, whatever the student: every prefix of a text on script.
"""

from collections.abc import Hashable, Sequence
from enum import Enum
from typing import Generic, TypeVar

import torch
from torch import Tensor

from bridgegarden.exact.process import Process

StateT = TypeVar("StateT", bound=Hashable)


class OffScript(Enum):
    """The one state of all texts that have left the script."""

    ENDED = "off script"


class EndsOffScript(Generic[StateT]):
    """`process`, but a token that is none of its continuations ends the text."""

    def __init__(self, process: Process[StateT]):
        self.process = process
        self.vocab_size = process.vocab_size
        self.horizon = process.horizon
        self.initial: StateT | OffScript = process.initial

    def log_probs(self, state: StateT | OffScript) -> Tensor:
        """``(V,)`` float64 nats, as the process has them. Without meaning (uniform) once the text is off script."""
        if isinstance(state, OffScript):
            return torch.zeros(self.vocab_size, dtype=torch.float64).log_softmax(0)
        return self.process.log_probs(state)

    def step(self, state: StateT | OffScript, token: int) -> StateT | OffScript:
        """The state after `token`; an ended text stays as it is."""
        if isinstance(state, OffScript) or self.process.is_terminal(state):
            return state
        on_script = token in self.process.continuations(state)
        return self.process.step(state, token) if on_script else OffScript.ENDED

    def is_terminal(self, state: StateT | OffScript) -> bool:
        """Whether the text has ended, on script or by leaving it."""
        return isinstance(state, OffScript) or self.process.is_terminal(state)

    def continuations(self, state: StateT | OffScript) -> Sequence[int]:
        """Tokens after which the text is still on script; none once it has left."""
        return () if isinstance(state, OffScript) else self.process.continuations(state)

    def meaning(self, state: StateT | OffScript) -> Hashable:
        """As the process has it; leaving the script is a meaning of its own."""
        return state if isinstance(state, OffScript) else self.process.meaning(state)
