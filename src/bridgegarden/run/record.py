"""What is written about a run: ``run.json`` (what it depended on), the model's card, the summary on a terminal."""

import os
import platform
import re
import stat
import sys
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bridgegarden.data import chat_template_fingerprint
from bridgegarden.errors import ConfigError
from bridgegarden.run.checked import CheckedRun
from bridgegarden.run.checkpoints import step_of
from bridgegarden.run.cut_student import cut_record
from bridgegarden.run.output import OutputFolder
from bridgegarden.table import Table
from bridgegarden.teacher.translated import SHARES
from bridgegarden.terminal import counted, duration

if TYPE_CHECKING:
    from bridgegarden.preflight import ModelFacts
    from bridgegarden.training.measured import Cost

TERMS = (
    "loss",
    "soft_loss",
    "hard_loss",
    "risk_loss",
    "soft_weight",
    "teacher_entropy",
    "student_entropy",
    "teacher_label_loss",
    "student_label_loss",
    "captured_mass",
    *SHARES,
    "acceptance",
    "acceptance_least",
)
"""Rows of the table, by the trainer's names."""

FREE_RUNNING = ("free_running_loss", "free_running_loss_stderr", "exposure_bias", "exposure_bias_stderr")
"""What was measured on the student's own texts, nats a text."""
PACKAGES = (
    "bridgegarden",
    "torch",
    "transformers",
    "trl",
    "peft",
    "accelerate",
    "datasets",
    "tokenizers",
    "safetensors",
)
QUANTISED = "quantised"
"""The type of GGUF file that a student was trained for; not there where it was trained as it is."""
HASH = re.compile(r"[0-9a-f]{40}|[0-9a-f]{64}")
LONGEST_CHAIN = 5
"""References that name each other, as git follows them."""
LARGEST = 1 << 26
"""Bytes of one of git's files. A repository of a million references packs them into about as many."""


@dataclass(frozen=True, kw_only=True)
class TrainSummary:
    """A finished run."""

    steps: int
    """Optimiser steps, those before a resumption included."""
    training: Mapping[str, float]
    """Means per supervised position of the last steps that were logged together."""
    evaluation: Mapping[str, float]
    """The same on held-out rows, by the trained model; empty without any."""
    free_running: Mapping[str, float]
    """`FREE_RUNNING` of the trained model; empty where the recipe does not ask for it."""
    tokens_per_second: float | None
    """Tokens that the student read, the median over logs; None if nothing was logged."""
    wall_seconds: float
    """From reading the recipe to the saved model."""
    peak_memory: int
    """Bytes: of the GPU that trained, or of this process where there was none."""
    cost: "Cost"
    """Tokens and seconds by phase, those before a resumption included."""
    model: Path
    """The trained student, as a folder that ``from_pretrained`` loads."""
    output: Path
    """The folder with everything about the run."""
    is_main: bool = True
    """Whether this is the process that speaks for all of a distributed run."""

    def table(self) -> Table:
        """For the terminal."""
        from bridgegarden.preflight.memory import gigabytes

        columns = {"training, last log": self.training}
        if self.evaluation:
            columns["evaluation"] = self.evaluation
        rows = [
            [term, *(_number(values.get(term)) for values in columns.values())]
            for term in TERMS
            if any(term in values for values in columns.values())
        ]
        speed = "" if self.tokens_per_second is None else f"{self.tokens_per_second:,.0f} tokens/s, "
        return Table(
            columns=["per supervised token, nats", *columns],
            rows=rows,
            title=f"Trained {counted(self.steps, 'step')}",
            note=f"{speed}{duration(self.wall_seconds)} in all, peak memory {gigabytes(self.peak_memory)}",
        )

    def _tokens(self) -> str:
        """What was worked on, in one line."""
        cost = self.cost
        written = f", {cost.generated_tokens:,} written by the student" if cost.answers else ""
        return (
            f"Tokens: {cost.student_tokens:,} through the student, {cost.teacher_tokens:,} through the teacher{written}"
        )

    def __str__(self) -> str:
        """The table and where the model is, as plain text."""
        return "\n".join([self.table().text(), *self._own_texts(), self._tokens(), f"The student is in {self.model}"])

    def _own_texts(self) -> list[str]:
        if not self.free_running:
            return []
        loss, loss_error, bias, bias_error = (self.free_running[name] for name in FREE_RUNNING)
        return [
            f"On texts of its own the student loses {loss:.4g} nats a text (standard error {loss_error:.2g}), "
            f"{bias:+.4g} ({bias_error:.2g}) against the teacher's texts"
        ]


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.4g}"


def _named(facts: "ModelFacts") -> dict[str, Any]:
    return {"model": facts.reference.model, "commit": facts.commit}


def _by_name(run: CheckedRun) -> dict[str, Any]:
    """Of several teachers with rows of their own each one, by name."""
    return {
        name: _named(facts) for name, facts in zip(run.recipe.teacher.of or {}, run.preflight.teachers, strict=True)
    }


def run_record(run: CheckedRun) -> dict[str, Any]:
    """The record of a run that begins now."""
    facts = run.preflight
    held_out = run.data.evaluation
    return {
        "started": now(),
        "finished": None,
        "went_on_from": [],
        "seed": run.arguments.seed,
        "objective": run.objective_text,
        "on_policy": run.on_policy_text,
        "loss_kernel": run.loss_route,
        **({} if run.quantised is None else {QUANTISED: run.quantised}),
        "data": run.data.fingerprints,
        **({"probes": run.probes} if run.probes else {}),
        "rows": {"train": len(run.data.train), "eval": None if held_out is None else len(held_out)},
        "teacher": {
            "model": run.recipe.teacher.name,
            "commit": None if facts.teacher is None else facts.teacher.commit,
            **({} if run.recipe.teacher.tokenizer is None else {"tokenizer": run.recipe.teacher.tokenizer}),
            **({} if run.recipe.teacher.mix is None else {"mixed": [_named(one) for one in facts.teachers]}),
            **({} if run.recipe.teacher.by is None else {"by_row": _by_name(run)}),
            **({} if run.recipe.teacher.prompt is None else {"prompt": str(run.recipe.teacher.prompt)}),
            **({} if facts.asked else {"asked": False}),
        },
        "student": {
            "model": facts.student.reference.model,
            "commit": facts.student.commit,
            **cut_record(run.recipe),
        },
        "tokenizers": facts.match.relation,
        **({} if facts.tokens is None else {"translation": facts.tokens.settings}),
        "chat_template": facts.endings.template_from,
        "chat_template_sha256": chat_template_fingerprint(facts.endings.tokenizer),
        "python": sys.version.split()[0],
        "platform": platform.platform(),
        "packages": package_versions(),
        "git_commit": git_commit(),
    }


def finished_record(record: Mapping[str, Any], summary: TrainSummary) -> dict[str, Any]:
    """`record` with what came of the run."""
    return {
        **record,
        "finished": now(),
        "steps": summary.steps,
        "training": dict(summary.training),
        "evaluation": dict(summary.evaluation),
        "free_running": dict(summary.free_running),
        "tokens_per_second": summary.tokens_per_second,
        "wall_seconds": round(summary.wall_seconds, 3),
        "peak_memory_bytes": summary.peak_memory,
        "cost": {name: round(value, 3) for name, value in asdict(summary.cost).items()},
    }


def continued_record(folder: OutputFolder, record: dict[str, Any], checkpoint: Path | None) -> dict[str, Any]:
    """`record` of a run that goes on in `folder`: of the earlier attempt, with where this one takes it up.

    Args:
        folder: where it is.
        record: of a run that would begin now.
        checkpoint: from where the run goes on; None where it begins, or is finished.

    Raises:
        ConfigError: the earlier attempt was made with other rows or models.
    """
    if checkpoint is None and not folder.model.exists():
        return record
    before = folder.earlier_record()
    assert before is not None  # the folder was checked
    _check_same_run(folder, before, record)
    if checkpoint is None:
        return before
    went_on = [*before["went_on_from"], {"step": step_of(checkpoint), "time": now()}]
    return {**record, "started": before["started"], "went_on_from": went_on}


def _check_same_run(folder: OutputFolder, before: Mapping[str, Any], now: Mapping[str, Any]) -> None:
    """Refuse to go on with other rows or models than the run began with.

    Args:
        folder: where it is.
        before: the record of the run that began.
        now: the record of a run that would begin now.

    Raises:
        ConfigError: the content of the data, the commit of a model, or the student that was cut, differs.
    """
    if before.get("data") != now["data"]:
        raise ConfigError(
            f"output: {folder.path} was trained on other rows: the content behind data.train or data.eval, or the "
            "tokenizer, has changed since. Restore it to go on, or set another output (--set output=FOLDER)."
        )
    cuts = [(record.get("student") or {}).get("cut") for record in (before, now)]
    if None not in cuts and cuts[0] != cuts[1]:
        raise ConfigError(
            f"output: {folder.path} was trained from another student: {now['student']['model']} has been cut anew "
            "since, and is not what it was. Put the former back to go on, or set another output (--set output=FOLDER)."
        )
    if before.get("probes") != now.get("probes"):
        raise ConfigError(
            f"output: {folder.path} was trained with another content of {', '.join(now.get('probes') or ['a probe'])}. "
            "Restore that file to go on, or set another output (--set output=FOLDER)."
        )
    for role in ("teacher", "student"):
        then = (before.get(role) or {}).get("commit")
        if then != now[role]["commit"]:
            raise ConfigError(
                f"output: {folder.path} was trained with {role} {now[role]['model']} at commit {then}, which is now at "
                f"{now[role]['commit']}. Set {role}.revision to the former to go on, or set another output "
                "(--set output=FOLDER)."
            )


def package_versions() -> dict[str, str]:
    """Of what is installed of the packages a run depends on."""
    versions = {}
    for name in PACKAGES:
        try:
            versions[name] = version(name)
        except PackageNotFoundError:  # PEFT is optional, and a checkout need not be installed
            continue
    return versions


def now() -> str:
    """The time, for a file."""
    return datetime.now(UTC).isoformat(timespec="seconds")


def git_commit() -> str | None:
    """The commit of the working directory; None outside a repository, before the first commit, and where references are
    kept in another form than files (``reftable``)."""
    try:
        here = Path.cwd()
    except FileNotFoundError:
        return None
    for folder in (here, *here.parents):
        git = _git_folder(folder)
        if git is not None:
            return _commit(git)
    return None


def _git_folder(folder: Path) -> Path | None:
    """Where the repository of a working tree is kept: in ``.git``, or where that file says (worktrees, submodules)."""
    git = folder / ".git"
    if git.is_dir():
        return git
    text = _content(git)
    return None if text is None or not text.startswith("gitdir:") else folder / text.removeprefix("gitdir:").strip()


def _commit(git: Path) -> str | None:
    # A worktree has a HEAD of its own and shares the references.
    shared = git / (_content(git / "commondir") or "").strip()
    name = "HEAD"
    for _ in range(LONGEST_CHAIN):
        found = (_content(git / name) or _content(shared / name) or _packed(shared, name)).strip()
        if HASH.fullmatch(found):
            return found
        name = found.removeprefix("ref:").strip()
        if not found.startswith("ref:") or not name.startswith("refs/") or ".." in name:
            return None
    return None


def _packed(git: Path, name: str) -> str:
    """The commit of a reference in the file that holds many; empty where it is not there."""
    for line in (_content(git / "packed-refs") or "").splitlines():
        commit, _, packed = line.partition(" ")
        if packed == name:
            return commit
    return ""


def _content(path: Path) -> str | None:
    """Of an ordinary file: a pipe would keep us waiting, and a device has no end."""
    try:
        with os.fdopen(os.open(path, os.O_RDONLY | os.O_NONBLOCK), "rb") as file:
            facts = os.fstat(file.fileno())
            if not stat.S_ISREG(facts.st_mode) or facts.st_size > LARGEST:
                return None
            return file.read(LARGEST).decode("utf-8", "replace")
    except (OSError, ValueError):  # also a path with a null character
        return None
