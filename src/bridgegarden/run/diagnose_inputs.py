"""What a diagnosis is of: which models, which prompts, and where the result goes."""

import re
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from bridgegarden.data import Columns, Source
from bridgegarden.errors import ConfigError
from bridgegarden.preflight import ModelReference
from bridgegarden.recipe import DataSection, Recipe, list_recipes, load_recipe
from bridgegarden.run.data import columns_of
from bridgegarden.run.output import OutputFolder

NAMED = re.compile(r"([\w .+-]+)=(.+)")


@dataclass(frozen=True, kw_only=True)
class DiagnoseRequest:
    """What was asked for, as on the command line."""

    recipe: str | None = None
    """A recipe's file or shipped name; gives whatever the rest leaves open."""
    overrides: tuple[str, ...] = ()
    """Changes to the recipe."""
    teacher: str | None = None
    """A folder, or a name on the hub."""
    students: tuple[str, ...] = ()
    """The same, each also as NAME=MODEL; with a recipe they come beside its own."""
    prompts: str | None = None
    """A file, a folder or a data set on the hub."""
    columns: Columns = field(default_factory=Columns)
    """Which columns of it to read."""
    split: str = "train"
    """Which part of it, where it has parts."""
    limit: int | None = None
    """Prompts to write from, from the start; None is 64."""
    dtype: str | None = None
    """Of all weights; None is the recipe's, or what they were saved in."""
    output: Path | None = None
    """Folder for the result."""


@dataclass(frozen=True, kw_only=True)
class PromptSource:
    """Where prompts are."""

    sources: tuple[Source, ...]
    """Files, folders or data sets on the hub."""
    kind: str
    """What to call them in messages."""
    columns: Columns
    """Which columns to read."""
    seed: int = 0
    """Decides which rows of sources with weights are drawn."""
    skip_bad: bool = False
    """Whether what is no JSON is left out."""

    @classmethod
    def of_recipe(cls, data: DataSection) -> "PromptSource":
        """The evaluation rows, or the training rows where there are none."""
        return cls(
            sources=data.eval_sources or data.sources,
            kind="train" if data.eval is None else "eval",
            columns=columns_of(data),
            seed=data.seed or 0,
            skip_bad=data.skip_bad_rows,
        )

    @property
    def shown(self) -> str:
        """The sources, for a person."""
        return ", ".join(source.path for source in self.sources)


@dataclass(frozen=True, kw_only=True)
class DiagnoseInputs:
    """What a request comes to."""

    teacher: ModelReference
    """Whose distribution is imitated."""
    students: dict[str, ModelReference]
    """By name, in order."""
    prompts: PromptSource
    """What they write from."""
    output: Path
    """Folder for the result."""
    notes: tuple[str, ...]
    """What was decided, for a person."""


def resolve(request: DiagnoseRequest) -> DiagnoseInputs:
    """Fill what is left open from the recipe.

    Raises:
        ConfigError: something is missing, or a name is used twice.
    """
    if request.recipe is None:
        return _without_recipe(request)
    recipe = load_recipe(request.recipe, request.overrides)
    own, note = _student_of(recipe)
    source, notes = _prompts_of(recipe, request), [note]
    if request.prompts is None and recipe.data.eval is None:
        notes.append(
            "prompts from data.train, which the student has seen in training; set data.eval, or give --prompts, for "
            "others"
        )
    return DiagnoseInputs(
        teacher=_teacher_of(recipe, request),
        students=_named([own, *(_reference(text, request) for text in request.students)]),
        prompts=source,
        output=request.output or recipe.output / "diagnosis",
        notes=tuple(notes),
    )


def _without_recipe(request: DiagnoseRequest) -> DiagnoseInputs:
    missing = [
        option
        for option, value in (
            ("--teacher", request.teacher),
            ("--student", request.students),
            ("--prompts", request.prompts),
        )
        if not value
    ]
    if missing:
        raise ConfigError(f"{', '.join(missing)} missing: give RECIPE, or --teacher, --student and --prompts.")
    if request.overrides:
        raise ConfigError("--set changes a recipe, and none is given.")
    assert request.teacher is not None
    assert request.prompts is not None
    students = _named([_reference(text, request) for text in request.students])
    name = re.sub(r"[^\w.+-]+", "-", "+".join(students))[:80].strip("-")
    return DiagnoseInputs(
        teacher=ModelReference(role="teacher", model=request.teacher, dtype=request.dtype or "auto"),
        students=students,
        prompts=_asked_for(request, request.columns),
        output=request.output or Path("runs/diagnosis") / name,
        notes=(),
    )


def _teacher_of(recipe: Recipe, request: DiagnoseRequest) -> ModelReference:
    teacher = recipe.teacher
    if request.teacher is not None:
        return ModelReference(role="teacher", model=request.teacher, dtype=request.dtype or teacher.dtype)
    if teacher.server is not None:
        raise ConfigError(
            "teacher.server: a server does not give its distribution at what the student writes, which is what is "
            "measured. Give the teacher's weights: --teacher FOLDER, or a name on the hub."
        )
    return ModelReference(
        role="teacher", model=teacher.model, revision=teacher.revision, dtype=request.dtype or teacher.dtype
    )


def _student_of(recipe: Recipe) -> tuple[tuple[str, ModelReference], str]:
    """The recipe's student, trained if it has been, with a line that says which.

    Trained, it is called by its objective's preset, else by the output folder's own name.
    """
    trained = OutputFolder(recipe.output).model
    reference = ModelReference(
        role="student", model=recipe.student.model, revision=recipe.student.revision, dtype=recipe.student.dtype
    )
    if trained.is_dir():
        reference = replace(reference, model=str(trained), revision=None)
        name = recipe.objective.preset or model_name(reference.model)
        return (name, reference), f"the trained student in {trained}"
    note = f"{trained} does not exist: the student is {recipe.student.model}, not yet trained"
    return (model_name(reference.model), reference), note


def _prompts_of(recipe: Recipe, request: DiagnoseRequest) -> PromptSource:
    if request.prompts is not None:
        return _asked_for(request, request.columns if request.columns != Columns() else columns_of(recipe.data))
    return PromptSource.of_recipe(recipe.data)


def _asked_for(request: DiagnoseRequest, columns: Columns) -> PromptSource:
    assert request.prompts is not None
    return PromptSource(sources=(Source(path=request.prompts, split=request.split),), kind="prompts", columns=columns)


def _reference(text: str, request: DiagnoseRequest) -> tuple[str, ModelReference]:
    match = NAMED.fullmatch(text)
    name, model = (match[1].strip(), match[2]) if match and not Path(text).exists() else (model_name(text), text)
    if Path(model).suffix in (".yaml", ".yml") or model in list_recipes():
        raise ConfigError(f"--student {model}: is a recipe; give its trained model, OUTPUT/model.")
    return name, ModelReference(role="student", model=model, dtype=request.dtype or "auto")


def model_name(model: str) -> str:
    """What to call a model: the end of its path or name; ``runs/hard/model`` is ``hard``."""
    path = Path(model).expanduser()
    if path.is_dir():
        path = path.resolve()
    return path.parent.name if path.name == "model" and path.parent.name else path.name or model


def _named(pairs: Sequence[tuple[str, ModelReference]]) -> dict[str, ModelReference]:
    students: dict[str, ModelReference] = {}
    for name, reference in pairs:
        if name in students or name == "teacher":
            raise ConfigError(
                f"--student {reference.model}: two models would be called {name!r}; give names: --student NAME=MODEL."
            )
        students[name] = reference
    return students
