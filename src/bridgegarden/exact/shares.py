"""Exposure bias taken apart: what each position of a text and each role has to do with it."""

from typing import NamedTuple

from torch import Tensor


class PerPosition(NamedTuple):
    """What happens at each position, ``(T,)`` each, nats."""

    teacher_mass: Tensor
    """Probability that the teacher's text is still going on."""
    student_mass: Tensor
    """The same for the student's text."""
    teacher_loss: Tensor
    """Expected loss there on the teacher's text; sums to `teacher_loss`."""
    student_loss: Tensor
    """Expected loss there on the student's text; sums to `student_loss`."""
    contribution: Tensor
    """Exposure bias that the student's choice *there* causes, wherever it is paid; sums to `exposure_bias`."""


class RoleShare(NamedTuple):
    """What happens at the nodes of one role, nats."""

    nodes: int
    """Number of nodes."""
    teacher_visits: float
    """Expected number of tokens of the teacher's text that are chosen there."""
    student_visits: float
    """The same for the student's text."""
    teacher_loss: float
    """Expected loss there on the teacher's text; the roles sum to `teacher_loss`."""
    student_loss: float
    """Expected loss there on the student's text; the roles sum to `student_loss`."""
    contribution: float
    """Exposure bias that the student's choices there cause; the roles sum to `exposure_bias`."""
