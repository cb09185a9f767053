"""On-policy distillation: which share of the batches the student answers itself, how, and what cannot go with it.

No PyTorch here, so that a recipe can be read without it. :mod:`bridgegarden.training.student_writer` does the work.
"""

import hashlib
import random
from dataclasses import dataclass

from bridgegarden.errors import ConfigError, check_temperature


@dataclass(frozen=True, kw_only=True)
class OnPolicy:
    """The student writes the answers of some batches, and the teacher judges them token by token.

    The prompt of a row is everything before its first supervised token. Within an optimiser step every text is written
    by the student as it was when the step began.
    """

    lmbda: float
    """Share of the batches (micro-batches, under gradient accumulation) that the student answers, in [0, 1]; the others
    keep the answers of the data. TRL's name and meaning."""
    temperature: float = 1.0
    """Sampling temperature, >= 0; 0 takes the likeliest token. Not the temperature of the loss."""
    max_new_tokens: int = 128
    """Tokens after which a text that has not ended is cut, >= 1."""

    def __post_init__(self) -> None:
        if not 0 <= self.lmbda <= 1:
            raise ConfigError(f"on_policy.lmbda must be in [0, 1], got {self.lmbda}.")
        check_temperature(self.temperature, "on_policy.temperature")
        if self.max_new_tokens < 1:
            raise ConfigError(f"on_policy.max_new_tokens must be >= 1, got {self.max_new_tokens}.")

    def answers(self, *, seed: int, step: int, batch: int) -> bool:
        """Whether the student answers the micro-batch numbered `batch` of the optimiser step `step`.

        A draw that depends on nothing else: all processes of a distributed run make the same one, and so does a run
        that was resumed.
        """
        return random.Random(stream_seed(seed, step, batch)).random() < self.lmbda


def stream_seed(*numbers: int) -> int:
    """A seed below 2^63 for a stream of random numbers that belongs to `numbers` alone."""
    digest = hashlib.sha256("/".join(map(str, numbers)).encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1


def check_on_policy(on_policy: OnPolicy | None, *, cached: bool, data_labels: bool, packed: bool) -> None:
    """Refuse what cannot be done with texts that the student writes.

    Args:
        on_policy: None, or a share of zero, goes with everything.
        cached: whether the teacher is on disk.
        data_labels: whether the hard label is the token in the data, and counts.
        packed: whether a row of a batch may hold several rows of the data.

    Raises:
        ConfigError: says which, and what to do.
    """
    if on_policy is None or on_policy.lmbda == 0:
        return
    if cached:
        raise ConfigError(
            "on_policy: the teacher has to judge what the student writes, and its cache knows only the texts of the "
            "data. Use the model itself (leave out teacher.cache and teacher.server), or leave out on_policy."
        )
    if data_labels:
        raise ConfigError(
            "on_policy: with objective.hard_target 'data' the hard label in the student's text would be the student's "
            "own token, which teaches nothing. Use 'teacher_argmax', or soft labels alone (objective.preset: soft)."
        )
    if packed:
        raise ConfigError(
            "on_policy: a packed row holds several prompts, and one prompt a row is answered. Set training.packing and "
            "training.padding_free to false."
        )
