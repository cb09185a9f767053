"""``bridgegarden prune``, and what ``train`` and ``compare`` do first: the student is cut out of the teacher, once."""

import gc
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bridgegarden.data.encode import TokenisedRow
from bridgegarden.errors import ConfigError, OutputError
from bridgegarden.files import sync_folder, write_json
from bridgegarden.preflight import ModelFacts, Pair, load_facts
from bridgegarden.recipe import Recipe
from bridgegarden.run.checked import CheckedRun
from bridgegarden.run.cut_student import NOTE, PARTS, CutStudent, spans_text
from bridgegarden.run.models import load_model, usable_device
from bridgegarden.run.output import check_writable, full_disk
from bridgegarden.run.pair import recipe_pair
from bridgegarden.run.quiet import quiet_libraries
from bridgegarden.run.rows import RunData
from bridgegarden.run.save import set_generation_stops
from bridgegarden.run.teachers import teacher_of
from bridgegarden.table import Column, Table
from bridgegarden.terminal import Display, counted, stderr_console

if TYPE_CHECKING:
    from rich.console import Console
    from transformers import PreTrainedModel

    from bridgegarden.pruning.importance import Importance

INFLUENCE = (
    "Influence: one minus the cosine between the residual stream before a layer and behind it, where a row's last "
    "learnt token is predicted. Layers go in this order."
)


@dataclass(frozen=True, kw_only=True)
class PruneResult:
    """What is kept of a teacher, and why."""

    folder: Path
    """Of the student."""
    made: bool
    """Whether it is there."""
    summary: str
    """How much is kept."""
    layers: int
    """Of the teacher."""
    kept: tuple[int, ...]
    """Of these, the student's."""
    influence: tuple[float, ...] | None
    """Of every layer of the teacher; None where it was not measured."""

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        return {
            "folder": str(self.folder),
            "made": self.made,
            "layers": self.layers,
            "kept": list(self.kept),
            "influence": None if self.influence is None else list(self.influence),
        }

    def __str__(self) -> str:
        """For a person."""
        where = f"The student is in {self.folder}" if self.made else "Nothing was written (--dry-run)."
        told = [] if self.influence is None else [INFLUENCE]
        return "\n".join([self.table().text(), *told, "", self.summary, where])

    def table(self) -> Table:
        """Every layer of the teacher."""
        stays = ["kept" if layer in self.kept else "" for layer in range(self.layers)]
        last = Column("", words=True)
        if self.influence is None:
            return Table(columns=["layer", last], rows=list(enumerate(stays)))
        order = sorted(range(self.layers), key=lambda layer: self.influence[layer])  # pyright: ignore[reportOptionalSubscript]
        place = {layer: number for number, layer in enumerate(order, start=1)}
        return Table(
            columns=["layer", "influence", "order", last],
            rows=[[n, f"{share:.4f}", place[n], stays[n]] for n, share in enumerate(self.influence)],
        )


def prune(recipe: Recipe, *, dry_run: bool = False, console: "Console | None" = None) -> PruneResult:
    """Cut the student of `recipe` out of its teacher, unless that was done before.

    Args:
        recipe: its section ``student`` says ``from: teacher``.
        dry_run: whether the teacher is only measured, and nothing is written.
        console: for progress; stderr if None.

    Raises:
        ConfigError: the recipe cuts nothing.
        OutputError: what is kept in the folder is something else, or it cannot be written.
        ModelError: the teacher cannot be read or cut.
        DataError: a row cannot be used.
    """
    if recipe.student.from_ is None:
        raise ConfigError("student.from: the recipe names a student and cuts none; set student.from=teacher.")
    console = console or stderr_console()
    with quiet_libraries(interactive=sys.stderr.isatty()):
        pair = recipe_pair(recipe)
        student = CutStudent.of(recipe)
        data = teacher_of(recipe).rows(pair)
        rows = student.calibration(data)
        note = student.check(student.decided_by(rows)) if student.folder.exists() else None
        made = note is not None
        if note is None:
            check_writable(student.folder.parent, "student.folder")
            note = _note(student, rows, console, None if dry_run else pair)
            made = not dry_run
        facts = student.facts
    influence = note.get("influence")
    return PruneResult(
        folder=student.folder,
        made=made,
        summary=student.summary(facts),
        layers=student.whole.layers,
        kept=tuple(note["kept"]["layers"]),
        influence=None if influence is None else tuple(influence),
    )


def with_student(run: CheckedRun, console: "Console") -> CheckedRun:
    """`run` with the student that it trains: one that is cut out of the teacher is made now, if it is not there and
    the run is not finished.

    Raises:
        OutputError: as in :func:`made_student`.
        ModelError: likewise.
    """
    if run.recipe.student.from_ is None or run.folder.model.exists():
        return run
    # The other processes find what the first one makes.
    with run.arguments.main_process_first(local=False, desc="cutting the student out of the teacher"):
        student = made_student(run.recipe, run.preflight, run.data, console)
    return replace(run, preflight=replace(run.preflight, student=student))


def made_student(recipe: Recipe, pair: Pair, data: RunData, console: "Console") -> ModelFacts:
    """The student of `recipe`: what was named, or what is cut out of the teacher now, unless that was done before.

    Args:
        recipe: of the run.
        pair: its models.
        data: its rows, on the first of which the teacher is measured.
        console: is told.

    Raises:
        OutputError: the folder where it is kept holds something else, or cannot be written.
        ModelError: the teacher cannot be loaded or cut.
    """
    if recipe.student.from_ is None:
        return pair.student
    student = CutStudent.of(recipe)
    rows = student.calibration(data)
    if student.folder.exists():
        student.check(student.decided_by(rows))
    else:
        check_writable(student.folder.parent, "student.folder")
        _note(student, rows, console, pair)
    return load_facts(student.reference)


def _note(student: CutStudent, rows: Sequence[TokenisedRow], console: "Console", pair: Pair | None) -> dict[str, Any]:
    """Measure the teacher, choose, and write what is left of it, for `pair`; None only chooses. What is noted of it."""
    from bridgegarden.pruning.cut import Kept, choose, cut

    console.print(f"loading teacher {student.parent.reference.model}, to cut the student out of it", soft_wrap=True)
    model = load_model(student.parent)
    importance, width = _measured(student, model, rows, console), student.recipe.student.width
    if importance is None:
        assert not isinstance(student.layers, int)
        kept = Kept(layers=student.layers)
    else:
        groups = None if width is None or width.heads is None else width.heads // student.whole.group_size
        kept = choose(importance, student.layers, groups, None if width is None else width.channels)
    note = {
        **student.decided_by(rows),
        "kept": {"layers": list(kept.layers), "groups": kept.groups},
        "influence": None if importance is None else importance.layers.tolist(),
    }
    if pair is None:
        return note
    try:
        with full_disk(lambda reason: _no_room(student.folder, reason)):
            _write(student, cut(model, kept), note, pair)
    finally:
        del model
        gc.collect()
    folder = student.folder
    layers = spans_text(kept.layers)
    console.print(f"the student keeps the layers {layers}; it is in {folder}", markup=False, soft_wrap=True)
    return note


def _write(student: CutStudent, left: "PreTrainedModel", note: dict[str, Any], pair: Pair) -> None:
    """Keep what is left of the teacher, under its name when it is whole; another process may have been faster."""
    folder = student.folder
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=f".{folder.name}.") as own:
        unfinished = Path(own) / folder.name
        set_generation_stops(left, pair.endings.stops)
        left.save_pretrained(unfinished)
        student.parent.tokenizer.save_pretrained(unfinished)
        write_json(unfinished / NOTE, note)
        try:
            unfinished.rename(folder)
        except OSError:
            if not folder.is_dir():
                raise
            student.check({name: note[name] for name in PARTS})
        sync_folder(folder.parent)


def _no_room(folder: Path, reason: str) -> OutputError:
    return OutputError(
        f"student.folder: nothing more can be written to {folder} ({reason}). Make room on its disk, or name another "
        "(--set student.folder=FOLDER, or another output)."
    )


def _measured(
    student: CutStudent, model: "PreTrainedModel", rows: Sequence[TokenisedRow], console: "Console"
) -> "Importance | None":
    """The importance of the teacher's parts on `rows`; None where nothing has to be known of them."""
    from bridgegarden.pruning.importance import measure

    if not student.recipe.student.measures:
        return None
    arguments, section = student.recipe.training.arguments, student.recipe.teacher
    on_cpu = bool(arguments.get("use_cpu")) or section.device_map is not None
    model.to(usable_device("cpu" if on_cpu else section.device, "teacher.device"))  # pyright: ignore[reportArgumentType]
    with Display(console, "measuring the teacher", len(rows)) as display:
        found = measure(model, [(row.input_ids, row.labels) for row in rows], display.update)
    model.to("cpu")  # pyright: ignore[reportArgumentType]
    console.print(f"measured on {counted(len(rows), 'row')}", soft_wrap=True)
    return found
