"""What a diagnosis is of: which models, which prompts (as token ids), and where the result goes."""

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bridgegarden.data import Columns, Source, load_mix, place, prompt
from bridgegarden.data.encode import IGNORED, RowTokeniser
from bridgegarden.diagnostics.diagnosis import PromptsUsed
from bridgegarden.errors import ConfigError, DataError
from bridgegarden.preflight import ModelReference
from bridgegarden.recipe import DataSection, Recipe, list_recipes, load_recipe
from bridgegarden.run.output import OutputFolder
from bridgegarden.run.rows import columns_of
from bridgegarden.terminal import counted

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

NAMED = re.compile(r"([\w .+-]+)=(.+)")
DEFAULT_LIMIT = 64
"""Prompts, unless another number is asked for."""
TEXT = ".txt"
"""A file of this kind has a prompt on every line."""


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
    skip_bad: bool | None = None
    """Whether what is no JSON is left out; None where nothing says so."""

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
    if not teacher.judges_any_text:
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


@dataclass(frozen=True, kw_only=True)
class Prompts:
    """What the models write from."""

    ids: tuple[tuple[int, ...], ...]
    """Token ids, each prompt once."""
    used: PromptsUsed
    """The same in numbers."""


def read_prompts(
    source: PromptSource,
    tokenizer: "PreTrainedTokenizerBase",
    *,
    room: int | None,
    vocab_size: int,
    limit: int | None = None,
) -> Prompts:
    """The first prompts of `source`. Repeated ones are taken once: they would not be independent.

    Args:
        source: a text file has a prompt a line; anything else rows as for training, of which an answer is not read.
        tokenizer: of all models.
        room: most tokens of a prompt; longer ones are left out. None is no limit.
        vocab_size: of which ids may be.
        limit: most prompts.

    Raises:
        DataError: a row has no prompt, or fewer than two prompts are left.
        ModelError: the tokenizer has no chat template and needs one.
    """
    tokeniser = RowTokeniser.of(tokenizer)
    found: dict[tuple[int, ...], None] = {}
    left_out: list[str] = []
    rows, columns = _rows(source)
    for where, row in rows:
        ids = _ids(row, columns, tokeniser, where)
        if not ids or max(ids) >= vocab_size:
            raise DataError(f"{where}: {'an id outside the shared vocabulary' if ids else 'the prompt has no tokens'}.")
        if room is not None and len(ids) > room:
            left_out.append(f"{where}: {len(ids)} tokens, where {room} fit")
            continue
        found[ids] = None
        if len(found) == (limit or DEFAULT_LIMIT):
            break
    _check_enough(source.shown, len(found), left_out)
    used = PromptsUsed(source=source.shown, used=len(found), left_out=tuple(left_out), tokens=sum(map(len, found)))
    return Prompts(ids=tuple(found), used=used)


def _check_enough(name: str, count: int, left_out: list[str]) -> None:
    if count >= 2:
        return
    long = (
        f" {len(left_out)} are too long ({left_out[0]}): lower --max-new-tokens, or shorten them." if left_out else ""
    )
    raise DataError(
        f"{name}: {counted(count, 'prompt')} to write from; an error needs at least 2 different ones, "
        f"and 20 or more tell something.{long}"
    )


def _rows(source: PromptSource) -> tuple[Iterator[tuple[str, Mapping[str, Any]]], Columns]:
    """Each row with where it is, and which columns of it to read."""
    path = Path(source.sources[0].path).expanduser()
    if len(source.sources) == 1 and path.suffix.lower() == TEXT and path.is_file():
        try:
            lines = path.read_text(encoding="utf-8").splitlines()
        except UnicodeDecodeError as error:
            raise DataError(f"{path}: is not UTF-8 text ({error.reason} at byte {error.start}).") from error
        # A line is what a user says: it gets the chat template's turn, where there is one.
        said = enumerate(line for line in lines if line.strip())
        name = place(source.kind, str(path))
        return ((f"{name}, line {n}", {"prompt": line}) for n, line in said), Columns(prompt="prompt")
    mix = load_mix(source.sources, kind=source.kind, seed=source.seed, skip_bad=source.skip_bad)
    return ((mix.place(n), row) for n, row in enumerate(mix)), source.columns


def _ids(row: Mapping[str, Any], columns: Columns, tokeniser: RowTokeniser, where: str) -> tuple[int, ...]:
    if isinstance(row.get("input_ids"), list):
        labels = row.get("labels") or [IGNORED] * len(row["input_ids"])
        first = next((at for at, label in enumerate(labels) if label != IGNORED), len(labels))
        return tuple(row["input_ids"][:first])
    return tuple(tokeniser.prompt(prompt(row, columns, place=where), where))
