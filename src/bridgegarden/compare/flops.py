"""What a training costs in floating-point operations, estimated from the models' configurations and tokens read."""

from dataclasses import dataclass

from bridgegarden.compare.pair import Pair
from bridgegarden.compare.settings import ComparedRow
from bridgegarden.plan.work import StepFlops
from bridgegarden.preflight.flops import ForwardFlops, forward_flops
from bridgegarden.recipe import build_lora_config


@dataclass(frozen=True, kw_only=True)
class Work:
    """Tokens and positions of one training."""

    student_tokens: float
    """Read by the student, forward and backward."""
    student_positions: float
    """Of these, supervised: only they are projected to the vocabulary."""
    teacher_tokens: float = 0.0
    """Read by a teacher that is asked as training goes on."""
    teacher_positions: float = 0.0
    """Of these, supervised."""
    generated_tokens: float = 0.0
    """Written by the student."""
    prompt_tokens: float = 0.0
    """Read by the student before it wrote them."""


@dataclass(frozen=True, kw_only=True)
class PairFlops:
    """What a token costs each of the two models."""

    teacher: ForwardFlops
    student: ForwardFlops
    learning: StepFlops
    """Of the student, forward and backward."""
    context: float
    """Tokens that a token attends to, on average."""

    @classmethod
    def of(cls, pair: Pair) -> "PairFlops":
        """Of the models and rows of a recipe.

        Raises:
            ModelError: a model has layers whose operations cannot be counted.
        """
        lora = pair.recipe.student.lora
        learning = StepFlops.of(
            pair.student,
            lora=None if lora is None else build_lora_config(lora),
            gradient_checkpointing=bool(pair.recipe.training.arguments.get("gradient_checkpointing")),
        )
        return cls(
            teacher=forward_flops(pair.teacher.config),
            student=learning.forward,
            learning=learning,
            context=(pair.counts.tokens + 1) / 2,
        )

    def training(self, work: Work) -> float:
        """Operations of a training."""
        student = self.student.layers(self.context)
        learning = self.learning
        learnt = learning.layers(self.context) * work.student_tokens + learning.head * work.student_positions
        written = student * (work.prompt_tokens + work.generated_tokens) + self.student.head * work.generated_tokens
        return learnt + written + self._asked(work.teacher_tokens, work.teacher_positions)

    def cache(self, pair: Pair) -> float:
        """Operations of asking the teacher once about every row."""
        return self._asked(pair.counts.distinct_tokens, pair.counts.distinct_positions)

    def _asked(self, tokens: float, positions: float) -> float:
        return self.teacher.layers(self.context) * tokens + self.teacher.head * positions


def expected_work(pair: Pair, row: ComparedRow, steps: int) -> Work:
    """Of a training of `steps` steps, if the student's answers are as long as those of the data."""
    rows, counts = steps * pair.rows_a_step, pair.counts
    asked = row.on_policy
    return Work(
        student_tokens=rows * counts.tokens,
        student_positions=rows * counts.positions,
        teacher_tokens=rows * counts.tokens * asked,
        teacher_positions=rows * counts.positions * asked,
        generated_tokens=rows * counts.positions * row.lmbda,
        prompt_tokens=rows * counts.prompt * row.lmbda,
    )


def steps_of(pair: Pair, flops: PairFlops, row: ComparedRow, *, sharers: int) -> int:
    """Steps of `row` that cost what the recipe's steps cost on fixed data, the teacher's cache included.

    Args:
        pair: the recipe.
        flops: of its models.
        row: which objective.
        sharers: trainings that read one cache; each carries its share.
    """
    if not row.on_policy:
        return pair.steps
    fixed = ComparedRow(name="", label="", objective=row.objective)
    budget = flops.training(expected_work(pair, fixed, pair.steps))
    budget += flops.cache(pair) / sharers if sharers else 0.0
    return max(1, int(budget / flops.training(expected_work(pair, row, 1))))
