"""A method from outside the package: soft labels where the student agrees with the teacher, hard ones where not yet."""

from dataclasses import dataclass

from jaxtyping import Float
from torch import Tensor

from bridgegarden.objective.alignment import Position
from bridgegarden.objective.methods import Method
from bridgegarden.objective.soft_weight import TrainProgress, needs
from bridgegarden.objective.support import StudentSupport, TeacherSignal


@dataclass(frozen=True)
class Agreement:
    r"""As soft as the student finds the hard target likely: :math:`\lambda_t = q_t(a^*)^g`."""

    power: float = 1.0
    """The exponent g, > 0."""

    def __call__(
        self,
        signal: TeacherSignal,
        student: StudentSupport | None = None,
        position: Position | None = None,
        progress: TrainProgress | None = None,
    ) -> Float[Tensor, "*batch"]:
        return needs(student, self, "the student").target_logp().exp() ** self.power


METHOD = Method(label="agreement", fields={"soft_weight": Agreement()})
