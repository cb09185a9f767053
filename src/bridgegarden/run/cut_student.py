"""The student that a recipe cuts out of its teacher, before any weight is loaded: what is asked for, where it is kept,
and whether what is kept there is that."""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bridgegarden.data.encode import TokenisedRow
from bridgegarden.errors import ConfigError, OutputError
from bridgegarden.preflight import ModelFacts, ModelReference, Pair, load_facts, load_tokenizer, quantisation
from bridgegarden.preflight.models import meta_model, parameter_count
from bridgegarden.pruning.shape import ARCHITECTURES, Shape, cut_config, possible_heads
from bridgegarden.recipe import Recipe
from bridgegarden.recipe.student import CALIBRATION, StudentSection
from bridgegarden.run.models import model_identity
from bridgegarden.run.rows import RunData, rules_of
from bridgegarden.teacher.cache.spec import weights_fingerprint
from bridgegarden.teacher.foreign_values import read_json

if TYPE_CHECKING:
    from transformers import PretrainedConfig

NOTE = "pruned.json"
"""Beside the weights of a student that was cut: out of what, on which rows, what was kept."""
PARTS = ("teacher", "asked", "rows")
"""What in it decides the student."""


@dataclass(frozen=True, kw_only=True)
class CutStudent:
    """A student that is cut out of the teacher, with no weights loaded; it need not have been made yet."""

    recipe: Recipe
    parent: ModelFacts
    """The teacher, as it was saved."""

    @classmethod
    def of(cls, recipe: Recipe, *, weights: bool = True) -> "CutStudent":
        """The student of `recipe`, whose section says ``from: teacher``.

        Args:
            recipe: names the teacher.
            weights: whether its weights have to be there.

        Raises:
            ConfigError: the teacher is not as deep or wide as the recipe takes it to be.
            ModelError: it cannot be read, or nothing can be cut out of it.
        """
        teacher = recipe.teacher
        reference = ModelReference(
            role="teacher", model=teacher.model, revision=teacher.revision, gguf_file=teacher.gguf_file
        )
        parent = load_facts(reference, weights=weights)
        how = None if teacher.gguf_file is not None else quantisation(parent)
        if how is not None:
            raise reference.error(
                f"its weights are quantised ({how}), and a student is cut out of whole ones (student.from). Take the "
                "model as it was before."
            )
        if parent.config.model_type not in ARCHITECTURES:
            raise reference.error(
                f"no student can be cut out of the architecture {parent.config.model_type!r} (student.from). Covered: "
                f"{', '.join(ARCHITECTURES)}. Cut it yourself, and name it as student.model."
            )
        student = cls(recipe=recipe, parent=parent)
        _check_depth(recipe.student, reference, student.whole.layers)
        _check_width(recipe.student, reference, parent.config)
        return student

    @property
    def folder(self) -> Path:
        """Where it is kept."""
        return self.recipe.student_folder

    @property
    def reference(self) -> ModelReference:
        """The model in that folder."""
        return cut_reference(self.recipe)

    @property
    def whole(self) -> Shape:
        """How deep and wide the teacher is."""
        return Shape.of(self.parent.config)

    @property
    def layers(self) -> tuple[int, ...] | int:
        """The layers that stay; or how many, where the teacher has to be measured to say which."""
        section = self.recipe.student
        if isinstance(section.keep, tuple):
            return section.keep
        if section.layers is None:
            return tuple(range(self.whole.layers))
        return tuple(range(section.layers)) if section.keep == "first" else section.layers

    @property
    def facts(self) -> ModelFacts:
        """What is known of it: of the folder; or, where that is not there yet, from the teacher's configuration.

        Which layers stay is then left open, and the first so many stand for them: all are of one size.

        Raises:
            OutputError: the folder holds something else.
            ModelError: what it holds cannot be read.
        """
        if self.folder.exists():
            self.check({"teacher": self._teacher, "asked": self._asked})
            return load_facts(self.reference)
        width = self.recipe.student.width
        layers = range(self.layers) if isinstance(self.layers, int) else self.layers
        sizes = {} if width is None else {"heads": width.heads, "channels": width.channels}
        like_parent = replace(self.parent.reference, role="student", eos_token=self.reference.eos_token)
        return ModelFacts(
            reference=self.reference,
            config=cut_config(self.parent.config, layers, **sizes),
            generation_config=self.parent.generation_config,
            tokenizer=load_tokenizer(like_parent, self.parent.commit),
            commit=None,
        )

    def calibration(self, data: RunData) -> list[TokenisedRow]:
        """The rows on which the teacher is measured; none where nothing is."""
        if not self.recipe.student.measures:
            return []
        rules = rules_of(self.recipe)
        rows = data.train.select(range(min(self.recipe.student.calibration or CALIBRATION, len(data.train))))
        whole = (TokenisedRow(input_ids=row["input_ids"], labels=row["labels"]) for row in map(dict, rows))
        cut = (row.truncated(rules.max_length, rules.keep) for row in whole)
        return [row for row in cut if row.supervised]

    def decided_by(self, rows: Sequence[TokenisedRow]) -> dict[str, Any]:
        """Everything that it depends on: the teacher's weights, what is asked for, and the rows."""
        digest = hashlib.sha256(repr([(row.input_ids, row.labels) for row in rows]).encode())
        told = {"count": len(rows), "sha256": digest.hexdigest()} if rows else None
        return {"teacher": self._teacher, "asked": self._asked, "rows": told}

    def check(self, wanted: Mapping[str, Any]) -> dict[str, Any]:
        """What is noted of the student in the folder, if it is what `wanted` says.

        Raises:
            OutputError: it is another, or nothing that was cut here.
        """
        advice = (
            "Remove that folder to have it cut anew, or name another (--set student.folder=FOLDER, or another output)."
        )
        note = noted(self.folder)
        if note is None:
            raise OutputError(f"student.folder: {self.folder} holds no student that was cut here. {advice}")
        words = {"teacher": "another teacher's weights", "rows": "other rows of data.train"}
        for part, value in wanted.items():
            if note[part] == value:
                continue
            if part == "asked":
                then, now = (_asked_text(asked) for asked in (note[part], value))
                raise OutputError(
                    f"student.folder: {self.folder} holds a student of {then}, and {now} is asked for. {advice}"
                )
            raise OutputError(f"student.folder: {self.folder} holds a student that was cut on {words[part]}. {advice}")
        return note

    def summary(self, student: ModelFacts) -> str:
        """One line on what is cut, before it is."""
        section = self.recipe.student
        measured = f", by what they do on the first {section.calibration or CALIBRATION} training rows"
        how = measured if section.measures else ""
        counts = [parameter_count(meta_model(facts.config)) / 1e6 for facts in (student, self.parent)]
        return (
            f"student: {sizes_text(student.config, self.whole)} of the teacher{how}; {counts[0]:,.1f} M of "
            f"{counts[1]:,.1f} M parameters"
        )

    @property
    def _teacher(self) -> dict[str, Any]:
        identity = model_identity(self.parent)
        names = ("weights",) if identity["weights"] is not None else ("teacher", "revision")
        return {name: identity[name] for name in names}

    @property
    def _asked(self) -> dict[str, Any]:
        width, whole = self.recipe.student.width, self.whole
        return {
            "layers": self.layers if isinstance(self.layers, int) else list(self.layers),
            "heads": whole.heads if width is None or width.heads is None else width.heads,
            "channels": whole.channels if width is None or width.channels is None else width.channels,
        }


def cut_reference(recipe: Recipe) -> ModelReference:
    """The student of a recipe that cuts it out of the teacher, in the folder where it is kept."""
    return ModelReference(
        role="student",
        model=str(recipe.student_folder),
        dtype=recipe.student.dtype,
        eos_token=recipe.training.arguments.get("eos_token"),
        place="student.from",
    )


def noted(folder: Path) -> dict[str, Any] | None:
    """What is noted of the student in `folder` that was cut; None where none was."""
    try:
        note = read_json(folder / NOTE)
    except (OSError, ValueError):
        return None
    kept = note.get("kept") if isinstance(note, dict) else None
    known = isinstance(kept, dict) and isinstance(kept.get("layers"), list) and all(part in note for part in PARTS)
    return note if known else None


def cut_record(recipe: Recipe) -> dict[str, Any]:
    """What a run's record says of the student that was cut; empty where none was, or it is not there any more."""
    note = None if recipe.student.from_ is None else noted(recipe.student_folder)
    if note is None:
        return {}
    weights = weights_fingerprint(recipe.student_folder)
    return {"cut": {"kept": note["kept"]["layers"], "weights": weights}}


def cut_text(recipe: Recipe, pair: Pair) -> str | None:
    """What a model's card says of a student that was cut: how much of the teacher it has, and which layers."""
    note = None if recipe.student.from_ is None else noted(recipe.student_folder)
    if note is None or pair.teacher is None:
        return None
    student = CutStudent.of(recipe, weights=False)
    return f"{sizes_text(pair.student.config, student.whole)}: layers {spans_text(note['kept']['layers'])}"


def spans_text(numbers: Sequence[int]) -> str:
    """``0-3, 7, 9-11``."""
    spans: list[list[int]] = []
    for number in numbers:
        if spans and number == spans[-1][-1] + 1:
            spans[-1].append(number)
        else:
            spans.append([number])
    return ", ".join(str(span[0]) if len(span) == 1 else f"{span[0]}-{span[-1]}" for span in spans)


def sizes_text(config: "PretrainedConfig", whole: Shape) -> str:
    """``10 of 30 layers, 6 of 9 heads``: how much of a whole model one of `config` has."""
    own = Shape.of(config)
    pairs = (("layers", own.layers, whole.layers), ("heads", own.heads, whole.heads))
    pairs += (("channels", own.channels, whole.channels),)
    cut = [f"{left:,} of {there:,} {name}" for name, left, there in pairs if left != there]
    return ", ".join(cut) or f"all {whole.layers} layers"


def _asked_text(asked: Any) -> str:
    layers = asked["layers"] if isinstance(asked, dict) else None
    if not isinstance(asked, dict):
        return "another cut"
    depth = f"{layers} layers" if isinstance(layers, int) else f"the layers {', '.join(map(str, layers or ()))}"
    return f"{depth}, {asked.get('heads')} heads and {asked.get('channels')} channels"


def _check_depth(section: StudentSection, reference: ModelReference, layers: int) -> None:
    if section.layers is not None and section.layers >= layers:
        raise ConfigError(
            f"student.layers: is {section.layers}, and the teacher {reference.model} has {layers} layers. Give fewer, "
            "or keep: all for all of them."
        )
    if isinstance(section.keep, tuple) and section.keep[-1] >= layers:
        raise ConfigError(
            f"student.keep: names layer {section.keep[-1]}, and the teacher {reference.model} has {layers} layers, "
            f"from 0 to {layers - 1}."
        )


def _check_width(section: StudentSection, reference: ModelReference, config: "PretrainedConfig") -> None:
    whole, width = Shape.of(config), section.width
    if width is None:
        return
    if width.channels is not None and width.channels >= whole.channels:
        raise ConfigError(
            f"student.width.channels: is {width.channels}, and layers of the teacher {reference.model} have "
            f"{whole.channels}. Give fewer, or leave it out."
        )
    if width.heads is None:
        return
    possible = possible_heads(config)
    if width.heads not in possible:
        shown = ", ".join(map(str, possible)) or "no other number"
        raise ConfigError(
            f"student.width.heads: is {width.heads}; of the {whole.heads} heads of the teacher {reference.model}, of "
            f"which {whole.group_size} share keys and values, {config.model_type} can have {shown}."
        )
