"""A trained model as files for other programs (``bridgegarden export``)."""

import shutil
import sys
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from bridgegarden.errors import ConfigError, MissingPackageError, ModelError, OutputError
from bridgegarden.export.gguf_file import KINDS, check_kind, context_length, gguf_export
from bridgegarden.export.onnx_model import check_onnx_kind, write_onnx
from bridgegarden.export.usage import Made, folder_card, gguf_card, modelfile, with_onnxruntime, with_transformers
from bridgegarden.files import partial, sync_folder, write_text
from bridgegarden.preflight import ModelFacts, ModelReference, load_facts, quantisation
from bridgegarden.run.models import load_model
from bridgegarden.run.output import check_writable, full_disk, named_model
from bridgegarden.run.quiet import quiet_libraries
from bridgegarden.run.record import QUANTISED
from bridgegarden.run.save import CARD, Origin, set_generation_stops
from bridgegarden.teacher.foreign_values import read_json

if TYPE_CHECKING:
    from rich.console import Console
    from transformers import PreTrainedModel

Format = Literal["gguf", "onnx", "hf"]
NEEDS: dict[str, tuple[str, ...]] = {"gguf": ("gguf",), "onnx": ("onnx", "onnxscript", "onnxruntime"), "hf": ()}
"""Packages of the extra ``export`` that each format is written with."""
NOT_MADE_FOR = (
    "it was trained for a GGUF file of type {0} (training.quantised), which is written with --to gguf --quantise {0}"
)
OF_DTYPE = {"float32": "F32", "float16": "F16", "bfloat16": "BF16"}
"""Types in which nothing is lost, by the type in which weights were saved."""


@dataclass(frozen=True, kw_only=True)
class ExportTarget:
    """What is exported, to what, and where to."""

    source: str
    """A recipe's file or shipped name, whose trained student is meant; or a model's folder or name on the hub."""
    to: Format
    """The format."""
    overrides: tuple[str, ...] = ()
    """Changes to the recipe."""
    quantise: tuple[str, ...] = ()
    """Types of weights, a file of each; none is the one that the model was trained for, else that in which its weights
    were saved."""
    output: Path | None = None
    """Folder for the files; None is ``OUTPUT/export`` of a recipe, else ``runs/export/NAME``."""
    overwrite: bool = False
    """Whether files of the same names are replaced."""
    without_past: bool = False
    """Whether an ONNX graph takes whole texts only, and no keys and values of the tokens before."""


class Exported(NamedTuple):
    """One file, or folder, that was written."""

    path: Path
    kind: str
    """Type of its weights."""
    size: int
    """Bytes."""


class ExportResult(NamedTuple):
    """All that was written."""

    files: tuple[Exported, ...]
    beside: tuple[Path, ...]
    """Small files that go with them."""
    notes: tuple[str, ...]
    """What a user should know."""


def export_model(target: ExportTarget) -> ExportResult:
    """Write a trained model for other programs. Each file is there whole or not at all.

    Raises:
        ConfigError: no such recipe, it is not trained yet, a package is missing, a type of weights cannot be written,
            or a file is there already.
        ModelError: the model cannot be loaded, or the other program would compute or read something else.
    """
    from bridgegarden.terminal import stderr_console

    check_installed(target.to, f"--to {target.to}")
    for kind in target.quantise:
        CHECKS[target.to](kind)
    if target.without_past and target.to != "onnx":
        raise ConfigError(f"--without-past: is for --to onnx, and this is --to {target.to}.")
    model_name, folder = named_model(target.source, target.overrides, "export")
    folder = (target.output or folder).expanduser()
    name = _name(model_name, target)
    check_writable(folder, "--output")
    _refuse_adapter(model_name)
    console = stderr_console()
    with quiet_libraries(interactive=sys.stderr.isatty()):
        facts = load_facts(ModelReference(role="model", model=model_name))
        if (how := quantisation(facts)) is not None:
            raise ModelError(f"model {model_name!r}: its weights are quantised ({how}). Export it as it was before.")
        plain = "F32" if target.to == "onnx" else OF_DTYPE[str(facts.dtype).removeprefix("torch.")]
        made_for = trained_for(Path(model_name).expanduser())
        kinds = target.quantise or (made_for if made_for is not None and target.to == "gguf" else plain,)
        with full_disk(lambda reason: _no_room(folder, reason)):
            if target.to == "gguf":
                paths = {kind: folder / f"{name}-{kind}.gguf" for kind in kinds}
                beside = [of(path) for path in paths.values() for of in (_modelfile_of, _card_of)]
                _refuse_existing([*paths.values(), *beside], overwrite=target.overwrite)
                result = _write_gguf(name, facts, paths, console)
            else:
                paths = {kind: folder / f"{name}-{target.to}-{kind}" for kind in kinds}
                _refuse_existing(list(paths.values()), overwrite=target.overwrite)
                result = _write_folders(facts, paths, target, console)
        if made_for is None or made_for in kinds:
            return result
        return result._replace(notes=(*result.notes, NOT_MADE_FOR.format(made_for)))


def trained_for(model: Path) -> str | None:
    """The type of GGUF file that the model in this folder of a run was trained for, as the run's record says."""
    record = model.resolve().parent / "run.json"
    if not (model.is_dir() and record.is_file()):
        return None
    kind = None
    with suppress(OSError, ValueError):  # somebody else's file
        tree = read_json(record)
        kind = tree.get(QUANTISED) if isinstance(tree, dict) else None
    return kind if kind in KINDS else None


def _no_room(folder: Path, reason: str) -> OutputError:
    return OutputError(
        f"--output: nothing more can be written to {folder} ({reason}). Make room on its disk, or give another folder "
        "(--output DIR)."
    )


def _write_folders(facts: ModelFacts, paths: dict[str, Path], target: ExportTarget, console: "Console") -> ExportResult:
    """A folder for each type of weights, renamed when all of it is there."""
    import torch

    files = []
    for kind, path in paths.items():
        console.print(f"loading model {facts.reference.model}", markup=False, soft_wrap=True)
        model = load_model(facts)
        _refuse_not_finite(model, facts.reference.model)
        unfinished = partial(path)
        shutil.rmtree(unfinished, ignore_errors=True)
        unfinished.mkdir(parents=True)
        try:
            if target.to == "onnx":
                console.print(f"writing {path.name}: tracing, then a comparison with PyTorch", soft_wrap=True)
                write_onnx(model, unfinished, kind, past=not target.without_past)
                model.config.save_pretrained(unfinished)
            else:
                console.print(f"writing {path.name}", soft_wrap=True)
                dtype = next(dtype for dtype, name in OF_DTYPE.items() if name == kind)
                model.to(getattr(torch, dtype)).save_pretrained(unfinished)  # pyright: ignore[reportCallIssue]
            facts.tokenizer.save_pretrained(unfinished)
            write_text(unfinished / CARD, _folder_card(path.name, facts, kind, target))
            if facts.generation_config is not None:
                set_generation_stops(model, _ends(facts))
                model.generation_config.save_pretrained(unfinished)  # pyright: ignore[reportOptionalMemberAccess]
            if path.exists():
                shutil.rmtree(path)
            unfinished.rename(path)
            sync_folder(path.parent)
        finally:
            shutil.rmtree(unfinished, ignore_errors=True)
        files.append(Exported(path, kind, sum(file.stat().st_size for file in path.rglob("*") if file.is_file())))
    return ExportResult(tuple(files), (), ())


def _folder_card(name: str, facts: ModelFacts, kind: str, target: ExportTarget) -> str:
    if target.to == "onnx":
        code = with_onnxruntime(facts.tokenizer, _ends(facts), past=not target.without_past)
        return folder_card("onnx", name, _made(facts, kind), code)
    code = with_transformers(".", chat=facts.tokenizer.chat_template is not None)
    return folder_card("transformers", name, _made(facts, kind), code)


def _made(facts: ModelFacts, kind: str) -> Made:
    reference = facts.reference
    origin = Origin(name=reference.model, is_local=reference.is_local, revision=facts.stored_revision)
    return Made(origin.shown, origin.hub_name, kind)


def _write_gguf(name: str, facts: ModelFacts, paths: dict[str, Path], console: "Console") -> ExportResult:
    from bridgegarden.terminal import Display

    ends = _ends(facts)
    console.print(f"loading model {facts.reference.model}", markup=False, soft_wrap=True)
    export = gguf_export(name, load_model(facts), facts.tokenizer, ends)
    files, beside = [], []
    for kind, path in paths.items():
        path.parent.mkdir(parents=True, exist_ok=True)
        words = f"writing {path.name}"
        with Display(console, words, percent=True) as display:
            export.write(path, kind, lambda done, total, d=display: d.update(done, total=total))
        files.append(Exported(path, kind, path.stat().st_size))
        text = modelfile(path, facts.tokenizer, ends, context_length(facts.config), begins=export.vocabulary.begins)
        write_text(_modelfile_of(path), text)
        chat = export.vocabulary.chat_template is not None
        write_text(_card_of(path), gguf_card(path, text, _made(facts, kind), export.notes, chat=chat))
        beside += [_modelfile_of(path), _card_of(path)]
    return ExportResult(tuple(files), tuple(beside), export.notes)


def _ends(facts: ModelFacts) -> list[int]:
    """Ids at which generation stops."""
    settings: Any = facts.generation_config
    stops = None if settings is None else settings.eos_token_id
    if stops is None:
        stops = facts.tokenizer.eos_token_id
    return [] if stops is None else list(stops) if isinstance(stops, Sequence) else [stops]


def _name(model_name: str, target: ExportTarget) -> str:
    """What files are called after: the model's own name, or that of the run which trained it."""
    path = Path(model_name).expanduser()
    if not path.is_dir():
        return model_name.rpartition("/")[2]
    own = path.resolve()
    return own.parent.name if model_name != target.source and own.name == "model" else own.name


def _modelfile_of(gguf: Path) -> Path:
    return gguf.with_suffix(".Modelfile")


def _card_of(gguf: Path) -> Path:
    return gguf.with_suffix(".md")


def check_installed(to: Format, place: str) -> None:
    """Make sure that what a format is written with is there.

    Raises:
        MissingPackageError: names the extra that brings it.
    """
    missing = [package for package in NEEDS[to] if find_spec(package) is None]
    if missing:
        raise MissingPackageError(
            f"{place}: needs {', '.join(missing)}. Install the extra: pip install 'bridgegarden[export]'"
        )


def _refuse_not_finite(model: "PreTrainedModel", name: str) -> None:
    for parameter, values in model.state_dict().items():
        if values.is_floating_point() and not values.isfinite().all():
            raise ModelError(
                f"model {name!r}: {parameter} holds a number that is not finite. Did its training diverge?"
            )


def _refuse_adapter(model_name: str) -> None:
    path = Path(model_name).expanduser()
    if (path / "adapter_config.json").is_file() and not (path / "config.json").is_file():
        raise ModelError(
            f"model {model_name!r}: is an adapter, not a whole model. Give the model into which it is merged, which a "
            "run keeps beside it (OUTPUT/model), or the recipe."
        )


def _check_hf_kind(kind: str) -> None:
    if kind not in OF_DTYPE.values():
        known = ", ".join(OF_DTYPE.values())
        raise ConfigError(f"--quantise: {kind!r} is no type of weights for --to hf; it has {known}.")


CHECKS: dict[str, Callable[[str], None]] = {"gguf": check_kind, "onnx": check_onnx_kind, "hf": _check_hf_kind}
"""What refuses a type of weights, by format."""


def _refuse_existing(paths: Sequence[Path], *, overwrite: bool) -> None:
    there = [path for path in paths if path.exists() or path.is_symlink()]
    if there and not overwrite:
        raise ConfigError(
            f"--output: {there[0]} is there already. Give another folder (--output DIR), or --overwrite to replace it."
        )
    for path in there:
        wanted = "file" if path.suffix in (".gguf", ".Modelfile", ".md") else "folder"
        if path.is_symlink() or path.is_dir() != (wanted == "folder"):
            raise ConfigError(
                f"--output: {path} is no {wanted} that could be replaced; move it away, or give another folder "
                "(--output DIR)."
            )
