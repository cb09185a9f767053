"""From a recipe to a trained model: what ``bridgegarden train`` does."""

from bridgegarden.run.audit import audit
from bridgegarden.run.rehearsal import check_settings
from bridgegarden.run.summary import TrainSummary
from bridgegarden.run.train import train

__all__ = ["TrainSummary", "audit", "check_settings", "train"]
