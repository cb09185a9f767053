"""``bridgegarden export``: a trained model for other programs."""

from pathlib import Path
from typing import Any

import click

from bridgegarden.cli.options import SET, example, taken
from bridgegarden.errors import ConfigError
from bridgegarden.terminal import say


@click.command(
    "export",
    short_help="Write a trained model for other programs: llama.cpp, Ollama, onnxruntime.",
    epilog=example("bridgegarden export my.yaml --to gguf --quantise Q8_0,Q4_0"),
)
@click.argument("source", metavar="RECIPE|MODEL")
@SET
@click.option(
    "--to",
    type=click.Choice(["gguf", "onnx", "hf"]),
    required=True,
    help="gguf: a file for llama.cpp and Ollama. onnx: a folder for onnxruntime. hf: one for transformers.",
)
@click.option(
    "--quantise",
    metavar="KIND[,KIND]",
    help="gguf: F32, F16, BF16, Q8_0, Q5_1, Q5_0, Q4_1, Q4_0; onnx: F32, int8; hf: F32, F16, BF16.  [default: the type "
    "that the model was trained for (gguf), else that of its weights; onnx: F32]",
)
@click.option("--output", metavar="DIR", type=click.Path(path_type=Path), help="Folder for the files.")
@click.option("--without-past", is_flag=True, help="onnx: a graph of whole texts, without keys and values.")
@click.option("--overwrite", is_flag=True, help="Replace files of the same names.")
def export_command(quantise: str | None, **options: Any) -> None:
    """Write a trained model for other programs: of RECIPE its student, or MODEL, a folder or a name on the hub.

    Writes DIR/NAME-KIND.gguf for each KIND, with a Modelfile for Ollama and a card beside it; or a folder,
    DIR/NAME-onnx-KIND or DIR/NAME-hf-KIND. What the other program would compute or read otherwise is refused. DIR is
    OUTPUT/export of a recipe, else runs/export/MODEL. Needs the extra: pip install 'bridgegarden[export]'.
    """
    from bridgegarden.run.export import ExportTarget, export_model

    kinds = tuple(dict.fromkeys(kind.strip() for kind in (quantise or "").split(",") if kind.strip()))
    if quantise is not None and not kinds:
        raise ConfigError(
            f"--quantise: {quantise!r} names nothing; expected types of weights separated by commas, such as Q8_0,Q4_0."
        )
    result = export_model(taken(ExportTarget, options, quantise=kinds))
    for note in result.notes:
        say(f"note: {note}", err=True)
    for file in result.files:
        say(f"{file.path}  {file.size / 1e6:,.1f} MB")
    for path in result.beside:
        say(path)
