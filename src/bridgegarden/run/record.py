"""``run.json``: what a run depended on, so that it can be understood and repeated."""

import platform
import sys
from collections.abc import Mapping
from dataclasses import asdict
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from bridgegarden.data import chat_template_fingerprint
from bridgegarden.errors import ConfigError
from bridgegarden.run.checked import CheckedRun
from bridgegarden.run.checkpoints import step_of
from bridgegarden.run.commit import git_commit
from bridgegarden.run.output import OutputFolder
from bridgegarden.run.summary import TrainSummary

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
        "data": run.data.fingerprints,
        "rows": {"train": len(run.data.train), "eval": None if held_out is None else len(held_out)},
        "teacher": {
            "model": run.recipe.teacher.model,
            "commit": None if facts.teacher is None else facts.teacher.commit,
        },
        "student": {"model": facts.student.reference.model, "commit": facts.student.commit},
        "tokenizers": facts.match.relation,
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
        ConfigError: the content of the data, or the commit of a model, differs.
    """
    if before.get("data") != now["data"]:
        raise ConfigError(
            f"output: {folder.path} was trained on other rows: the content behind data.train or data.eval, or the "
            "tokenizer, has changed since. Restore it to go on, or set another output (--set output=FOLDER)."
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
