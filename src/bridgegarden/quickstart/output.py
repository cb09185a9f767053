"""The output folder of the quickstart: what is finished in it looks finished, and nothing else does."""

import hashlib
import shutil
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from bridgegarden.jobs.kept import begin_folder, deciding_versions, keep, kept, key_of, mark_of
from bridgegarden.lab.objectives import OBJECTIVES
from bridgegarden.quickstart import TEACHER
from bridgegarden.quickstart.result import ObjectiveRun, QuickstartResult, run_from_tree, to_tree
from bridgegarden.quickstart.settings import QuickstartSettings
from bridgegarden.run.output import partial, write_json

if TYPE_CHECKING:
    from transformers import PreTrainedModel

SIGNALS = "whole vocabulary in 16 bits, from a cache"
"""How the students learn what the teacher says; it is in the key, as the numbers' last digits depend on it."""


@dataclass(frozen=True)
class QuickstartFolder:
    """``OUTPUT``. While a run is under way, or if it was interrupted, the file ``INCOMPLETE`` lies in it."""

    path: Path

    @property
    def result(self) -> Path:
        """All numbers."""
        return self.path / "result.json"

    @property
    def report(self) -> Path:
        """For a reader."""
        return self.path / "report.html"

    @property
    def marker(self) -> Path:
        """Says that the newest run here did not finish, or has not yet."""
        return mark_of(self.path)

    def run(self, objective: str, seed: int) -> Path:
        """Numbers of one finished training."""
        return self.path / "runs" / f"{objective}-seed{seed}.json"

    def student(self, objective: str, seed: int) -> Path:
        """The student of one finished training, as a folder that ``from_pretrained`` loads."""
        return self.path / "students" / f"{objective}-seed{seed}"

    def signals(self, seed: int) -> Path:
        """What the teacher says about the training answers of a seed: a teacher's cache."""
        return self.path / "caches" / f"seed{seed}"

    def begin(self, *, resume: bool) -> None:
        """Make the folder and mark it; unless `resume`, forget the trainings in it.

        Raises:
            ConfigError: the path is taken by a file.
        """
        begin_folder(self.path, command="bridgegarden quickstart", results="result.json and report.html")
        for name in ("caches", "runs", "students"):
            if not resume:
                shutil.rmtree(self.path / name, ignore_errors=True)
            (self.path / name).mkdir(exist_ok=True)

    def finish(self, result: QuickstartResult) -> None:
        """Write what a finished run leaves, each file whole or not at all, and take the mark away."""
        from bridgegarden.quickstart.report import write_report

        write_report(result, self.report)
        write_json(self.result, result.to_dict())
        self.marker.unlink()

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
        keep(self.run(run.objective, run.seed), key, to_tree(run))

    def finished_run(self, objective: str, seed: int, key: str) -> ObjectiveRun | None:
        """A training that was finished here with everything as `key` has it."""
        if not self.student(objective, seed).is_dir():
            return None
        return kept(self.run(objective, seed), key, run_from_tree)


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
