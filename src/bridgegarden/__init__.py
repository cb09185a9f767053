"""Distil a large language model into a small one with hybrid hard and soft labels.

The public names. They are imported on first use, so that ``import bridgegarden`` needs neither PyTorch nor TRL.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from bridgegarden.objective.divergences import forward_kl
    from bridgegarden.objective.head import selected_logits
    from bridgegarden.objective.hybrid import HybridObjective, hybrid_loss_from_logits
    from bridgegarden.objective.soft_weight import (
        ConfidenceWeight,
        CurriculumWeight,
        EntropyWeight,
        StaticWeight,
        TrainProgress,
    )
    from bridgegarden.objective.support import TeacherSignal
    from bridgegarden.recipe import load_recipe
    from bridgegarden.teacher.cache.reader import TeacherCache
    from bridgegarden.teacher.live import LiveTeacher
    from bridgegarden.training.on_policy import OnPolicy
    from bridgegarden.training.trainer import HybridDistillationTrainer

    __version__: str

__all__ = [
    "ConfidenceWeight",
    "CurriculumWeight",
    "EntropyWeight",
    "HybridDistillationTrainer",
    "HybridObjective",
    "LiveTeacher",
    "OnPolicy",
    "StaticWeight",
    "TeacherCache",
    "TeacherSignal",
    "TrainProgress",
    "__version__",
    "forward_kl",
    "hybrid_loss_from_logits",
    "load_recipe",
    "selected_logits",
]

_HOME = {
    "ConfidenceWeight": "objective.soft_weight",
    "CurriculumWeight": "objective.soft_weight",
    "EntropyWeight": "objective.soft_weight",
    "HybridDistillationTrainer": "training.trainer",
    "HybridObjective": "objective.hybrid",
    "LiveTeacher": "teacher.live",
    "OnPolicy": "training.on_policy",
    "StaticWeight": "objective.soft_weight",
    "TeacherCache": "teacher.cache.reader",
    "TeacherSignal": "objective.support",
    "TrainProgress": "objective.soft_weight",
    "forward_kl": "objective.divergences",
    "hybrid_loss_from_logits": "objective.hybrid",
    "load_recipe": "recipe",
    "selected_logits": "objective.head",
}


def __getattr__(name: str) -> Any:
    if name == "__version__":
        from importlib.metadata import version

        value = version("bridgegarden")
    elif name in _HOME:
        value = getattr(import_module(f"{__name__}.{_HOME[name]}"), name)
    else:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
