"""The output folder of the quickstart: what is finished in it looks finished, and nothing else does."""

import hashlib
import json
import platform
import shutil
import sys
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bridgegarden.errors import ConfigError
from bridgegarden.quickstart import TEACHER
from bridgegarden.quickstart.result import ObjectiveRun, QuickstartResult, run_from_tree, to_tree
from bridgegarden.quickstart.settings import OBJECTIVES, QuickstartSettings
from bridgegarden.run.output import partial, write_json, write_text
from bridgegarden.run.record import package_versions

if TYPE_CHECKING:
    from transformers import PreTrainedModel

DECIDES = ("bridgegarden", "torch", "transformers", "trl", "tokenizers")
"""Packages whose version may change a number."""


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
        return self.path / "INCOMPLETE"

    def run(self, objective: str, seed: int) -> Path:
        """Numbers of one finished training."""
        return self.path / "runs" / f"{objective}-seed{seed}.json"

    def student(self, objective: str, seed: int) -> Path:
        """The student of one finished training, as a folder that ``from_pretrained`` loads."""
        return self.path / "students" / f"{objective}-seed{seed}"

    def begin(self, *, resume: bool) -> None:
        """Make the folder and mark it; unless `resume`, forget the trainings in it.

        Raises:
            ConfigError: the path is taken by a file.
        """
        if self.path.exists() and not self.path.is_dir():
            raise ConfigError(f"output: {self.path} is a file; expected a folder, or a name that is free.")
        self.path.mkdir(parents=True, exist_ok=True)
        write_text(
            self.marker,
            "A run of `bridgegarden quickstart` in this folder is under way or was interrupted. Until it finishes, "
            "result.json and report.html, if they are here, are those of an earlier run.\n",
        )
        if not resume:
            for name in ("runs", "students"):
                shutil.rmtree(self.path / name, ignore_errors=True)
        for name in ("runs", "students"):
            (self.path / name).mkdir(exist_ok=True)

    def finish(self, result: QuickstartResult) -> None:
        """Write what a finished run leaves, each file whole or not at all, and take the mark away."""
        from bridgegarden.quickstart.report import write_report

        write_report(result, self.report)
        write_json(self.result, result.to_dict())
        self.marker.unlink()

    def save_run(self, run: ObjectiveRun, student: "PreTrainedModel", key: str) -> None:
        """Keep a finished training: the student first, so that where there are numbers there is a model."""
        folder = self.student(run.objective, run.seed)
        for stale in (partial(folder), folder):
            shutil.rmtree(stale, ignore_errors=True)
        student.save_pretrained(partial(folder))
        partial(folder).rename(folder)
        write_json(self.run(run.objective, run.seed), {"key": key, "run": to_tree(run)})

    def finished_run(self, objective: str, seed: int, key: str) -> ObjectiveRun | None:
        """A training that was finished here with everything as `key` has it."""
        try:
            tree = json.loads(self.run(objective, seed).read_text(encoding="utf-8"))
            if tree["key"] != key or not self.student(objective, seed).is_dir():
                return None
            return run_from_tree(tree["run"])
        except (OSError, ValueError, KeyError, TypeError):
            # Missing, or not ours: trained again, and overwritten.
            return None


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
        "versions": dict(deciding_versions()),
    }
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


def deciding_versions() -> Mapping[str, Any]:
    """Python, the platform and the packages that decide the numbers."""
    packages = package_versions()
    return {
        "python": sys.version.split()[0],
        "platform": platform.platform(),
        **{name: packages[name] for name in DECIDES if name in packages},
    }
