"""From a recipe to a trained model: what ``bridgegarden train`` does."""

from bridgegarden.run.checked import audit
from bridgegarden.run.record import TrainSummary
from bridgegarden.run.rehearsal import check_settings
from bridgegarden.run.train import train

__all__ = ["TrainSummary", "audit", "check_settings", "train"]
