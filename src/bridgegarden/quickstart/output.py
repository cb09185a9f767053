"""The output folder of the quickstart: what is finished in it looks finished, and nothing else does."""

import hashlib
import shutil
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from bridgegarden.quickstart import TEACHER
from bridgegarden.quickstart.result import ObjectiveRun, QuickstartResult
from bridgegarden.quickstart.settings import QuickstartSettings
from bridgegarden.run.output import partial
from bridgegarden.study.arms import OBJECTIVES
from bridgegarden.study.kept import StudyFolder, deciding_versions, keep, kept, key_of

if TYPE_CHECKING:
    from transformers import PreTrainedModel

SIGNALS = "whole vocabulary in 16 bits, from a cache"
"""How the students learn what the teacher says; it is in the key, as the numbers' last digits depend on it."""


class QuickstartFolder(StudyFolder):
    """With the students, and what the teacher says, beside result and report."""

    command = "bridgegarden quickstart"

    def run(self, objective: str, seed: int) -> Path:
        """Numbers of one finished training."""
        return self.path / "runs" / f"{objective}-seed{seed}.json"

    def student(self, objective: str, seed: int) -> Path:
        """The student of one finished training, as a folder that ``from_pretrained`` loads."""
        return self.path / "students" / f"{objective}-seed{seed}"

    def signals(self, seed: int) -> Path:
        """What the teacher says about the training answers of a seed: a teacher's cache."""
        return self.path / "caches" / f"seed{seed}"

    def forget(self) -> None:
        """Remove the trainings that are kept."""
        for name in ("caches", "runs", "students"):
            shutil.rmtree(self.path / name, ignore_errors=True)

    def save(self, result: QuickstartResult) -> None:
        """Write what a finished run leaves."""
        from bridgegarden.quickstart.report import report_page

        self.finish(result.to_dict(), report_page(result))

    def save_run(self, run: ObjectiveRun, student: "PreTrainedModel", key: str) -> None:
        """Keep a finished training: the student first, so that where there are numbers there is a model."""
        from bridgegarden.quickstart.student import load_tokenizer

        folder = self.student(run.objective, run.seed)
        for stale in (partial(folder), folder):
            shutil.rmtree(stale, ignore_errors=True)
        student.save_pretrained(partial(folder))
        # So that `diagnose`, `evaluate` and whoever else takes a model's folder can take this one.
        load_tokenizer().save_pretrained(partial(folder))
        partial(folder).rename(folder)
        keep(self.run(run.objective, run.seed), key, run)

    def finished_run(self, objective: str, seed: int, key: str) -> ObjectiveRun | None:
        """A training that was finished here with everything as `key` has it."""
        if not self.student(objective, seed).is_dir():
            return None
        return kept(self.run(objective, seed), key, ObjectiveRun)


def run_key(objective: str, seed: int, settings: QuickstartSettings) -> str:
    """A hash of everything that the numbers of one training depend on."""
    from bridgegarden.exact.tasks.arithmetic import ArithmeticWorld
    from bridgegarden.quickstart.models import STUDENT_SIZE
    from bridgegarden.recipe import describe_objective

    shared = {name: value for name, value in settings.to_dict().items() if name not in ("objectives", "seeds")}
    parts = {
        "objective": describe_objective(OBJECTIVES[objective].build()),
        "seed": seed,
        "settings": shared,
        "world": asdict(ArithmeticWorld()),
        "student": asdict(STUDENT_SIZE),
        "teacher": hashlib.sha256((TEACHER / "model.safetensors").read_bytes()).hexdigest(),
        "signals": SIGNALS,
        "versions": dict(deciding_versions()),
    }
    return key_of(parts)
