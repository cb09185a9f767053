"""The section ``student``: a model, or what is cut out of the teacher."""

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import pairwise
from types import MappingProxyType
from typing import Literal

from bridgegarden.errors import ConfigError, unknown_name
from bridgegarden.recipe.teacher import DType, TeacherKind
from bridgegarden.recipe.training import LoraSection
from bridgegarden.recipe.values import require_positive, require_text

KEEP = ("all", "first")
"""Words for `StudentSection.keep`."""
CALIBRATION = 64
"""Rows on which a teacher is measured where a recipe does not say how many."""
NO_WEIGHTS: Mapping[TeacherKind, str] = MappingProxyType(
    {
        "server": "teacher.server keeps its weights to itself",
        "answers": "teacher.server keeps its weights to itself",
        "recorded": "teacher.only_cache says that its weights are not here",
        "mixed": "teacher.mix has several models",
        "mixed_cached": "teacher.mix has several models",
        "by_row": "teacher.by has several models",
        "by_row_cached": "teacher.by has several models",
    }
)
"""Why a student cannot be cut out of a teacher of that kind."""


@dataclass(frozen=True, kw_only=True)
class WidthSection:
    """How wide the layers of a student are that is cut out of the teacher. In each the heads and channels stay whose
    activations are largest over the calibration rows; the hidden size stays the teacher's."""

    heads: int | None = None
    """Attention heads of a layer, in whole groups that share keys and values; null is all."""
    channels: int | None = None
    """Channels of a layer's MLP (``intermediate_size``); null is all."""

    def __post_init__(self) -> None:
        if self.heads is None and self.channels is None:
            raise ConfigError("student.width is empty; give heads, channels or both, or leave it out.")
        require_positive("student.width.heads", self.heads)
        require_positive("student.width.channels", self.channels)


@dataclass(frozen=True, kw_only=True)
class StudentSection:
    """The model that is trained: one that is there, or what is cut out of the teacher (docs/prune.md)."""

    model: str = ""
    """Name on the hub, or a folder; needed unless `from` says where it comes from."""
    revision: str | None = None
    """Branch, tag or commit on the hub; null is the newest."""
    from_: Literal["teacher"] | None = None
    """``teacher``: the student begins as the teacher with fewer layers, heads or channels; null is `model`."""
    layers: int | None = None
    """With `from`: how many of the teacher's layers stay, those that change the residual stream most over the
    calibration rows, unless `keep` says which; null is all."""
    keep: str | tuple[int, ...] | None = None
    """With `from`: which layers stay, as a list of their numbers from 0; or ``first``, the first `layers` of them; or
    ``all``."""
    width: WidthSection | None = None
    """With `from`: how wide they are; null is as wide as the teacher's."""
    calibration: int | None = None
    """With `from`: on how many training rows, from the first, the teacher is measured, >= 1; null is 64."""
    folder: str | None = None
    """With `from`: where the student is kept as it begins; null is ``OUTPUT/student``."""
    dtype: DType = "auto"
    """Type of the weights; ``auto`` is the type they were saved in."""
    lora: LoraSection | None = None
    """Train adapters only; null trains every weight. ``{}`` takes the defaults. Needs the extra ``peft``."""

    def __post_init__(self) -> None:
        if self.from_ is None:
            for name in ("layers", "keep", "width", "calibration", "folder"):
                if getattr(self, name) is not None:
                    raise ConfigError(f"student.{name}: says what is cut out of the teacher; add from: teacher.")
            if not self.model:
                raise ConfigError("student: key 'model' is missing; it has no default. Or say from: teacher.")
            require_text("student.model", self.model)
            return
        for name in ("model", "revision"):
            if getattr(self, name):
                raise ConfigError(f"student.{name}: with student.from the teacher is the model; leave one of them out.")
        self._check_layers()
        require_positive("student.calibration", self.calibration)
        if self.calibration is not None and not self.measures:
            raise ConfigError(
                "student.calibration: nothing is measured where keep says which layers stay and width is left out; "
                "leave it out, too."
            )
        if self.folder is not None:
            require_text("student.folder", self.folder)

    def _check_layers(self) -> None:
        require_positive("student.layers", self.layers)
        if isinstance(self.keep, str) and self.keep not in KEEP:
            raise unknown_name(self.keep, KEEP, field="student.keep", kind="word")
        if isinstance(self.keep, tuple):
            self._check_list(self.keep)
        if self.keep == "first" and self.layers is None:
            raise ConfigError("student.keep: is 'first', and student.layers does not say how many; give both.")
        if self.keep not in (None, "first") and self.layers is not None:
            raise ConfigError("student.layers: student.keep says how many layers stay; leave one of them out.")
        if self.keep is None and self.layers is None and self.width is None:
            raise ConfigError("student.from: nothing is cut; give layers, keep or width (keep: all is the teacher).")

    def _check_list(self, keep: tuple[int, ...]) -> None:
        if not keep:
            raise ConfigError("student.keep is an empty list; name at least one layer.")
        if keep[0] < 0 or any(one >= other for one, other in pairwise(keep)):
            raise ConfigError(
                f"student.keep: expected numbers of layers from 0, each larger than the one before, got {list(keep)}."
            )

    @property
    def measures(self) -> bool:
        """Whether the teacher is measured to find out what stays."""
        return self.width is not None or (self.layers is not None and self.keep is None)

    @property
    def name(self) -> str:
        """What a reader calls it."""
        return self.model if self.from_ is None else "cut out of the teacher"

    def check_teacher(self, kind: TeacherKind) -> None:
        """Make sure that the student can be cut out of a teacher of that kind, if it is to be.

        Raises:
            ConfigError: its weights are not on this machine, or it is several models.
        """
        if self.from_ is not None and kind in NO_WEIGHTS:
            raise ConfigError(
                f"student.from: a student is cut out of the weights of one model, and {NO_WEIGHTS[kind]}. Cut it "
                "where they are (bridgegarden prune RECIPE), and name its folder as student.model."
            )
