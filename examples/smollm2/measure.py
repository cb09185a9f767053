"""Measure students against their teacher on rows that no student was trained on, and write it down as Markdown.

    python examples/smollm2/measure.py --teacher runs/smollm2/teacher --student runs/smollm2/student \
        --student runs/smollm2/180-steps/soft/model --data runs/smollm2/held_out.jsonl

Teacher-forced, on the positions that training supervises: soft loss KL(p || q), hard losses, agreement with the
teacher's argmax. Free-running: greedy continuations side by side.
"""

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from bridgegarden.errors import BridgegardenError, DataError, ModelError

if TYPE_CHECKING:
    from torch import Tensor

MEASURES = ("soft loss KL(p‖q)", "hard loss, teacher's argmax", "hard loss, data", "agreement with teacher's argmax")
HIGHER_IS_BETTER = MEASURES[3]
CHUNK = 128
"""Positions whose logits exist at one time: at 49,152 tokens, 25 MB a model."""


@dataclass(frozen=True, kw_only=True)
class Prompt:
    """A held-out row as the models see it."""

    question: str
    input_ids: "Tensor"
    """``(1, T)`` prompt and completion."""
    supervised: "Tensor"
    """``(N,)`` positions t whose token t + 1 is supervised."""

    @property
    def prompt_ids(self) -> "Tensor":
        """``(1, t + 1)`` what comes before the first supervised token."""
        return self.input_ids[:, : int(self.supervised[0]) + 1]


def read_prompts(data: Path, tokenizer: Any, limit: int | None) -> list[Prompt]:
    """The rows of `data` with the very masks of training."""
    import torch

    from bridgegarden.data import Columns, RowRules, load_rows, tokenise

    rows = load_rows(str(data), limit=limit)
    questions = rows["question"]
    rules = RowRules(columns=Columns(prompt="question", completion="answer"))
    tokenised = tokenise(rows, tokenizer, rules, name=data.name)
    prompts = []
    for row in tokenised.to_list():
        supervised = torch.tensor(row["labels"])[1:] != -100
        prompts.append(
            Prompt(
                question=questions[row["row"]],
                input_ids=torch.tensor([row["input_ids"]]),
                supervised=supervised.nonzero().squeeze(-1),
            )
        )
    if len(prompts) < 2:
        raise DataError(f"{data}: {len(prompts)} usable rows; a standard error needs at least 2.")
    return prompts


def load_model(directory: Path) -> Any:
    """A causal language model in float32, ready to be asked."""
    from transformers import AutoModelForCausalLM

    if not (directory / "config.json").is_file():
        raise ModelError(f"{directory}: no model there (no config.json). Run prepare.py or `bridgegarden train` first.")
    return AutoModelForCausalLM.from_pretrained(directory, dtype="float32").eval()


def student_names(directories: tuple[Path, ...]) -> list[str]:
    """What to call each student: its directory, or the run it lies in as `RUN/model`."""
    names = [place.parent.name if place.name == "model" else place.name for place in map(Path.resolve, directories)]
    return names if len(set(names)) == len(names) else [str(directory) for directory in directories]


def row_sums(models: list[Any], prompt: Prompt) -> "Tensor":
    """``(models, 4)`` MEASURES of each model against the first, summed over the supervised positions of one row."""
    import torch

    # No more than a chunk of positions is projected on the vocabulary at a time, whatever the length of the row.
    hidden = [model.base_model(prompt.input_ids, use_cache=False).last_hidden_state[0] for model in models]
    heads = [model.get_output_embeddings() for model in models]
    sums = torch.zeros(len(models), len(MEASURES), dtype=torch.float64)
    for positions in prompt.supervised.split(CHUNK):
        data_ids = prompt.input_ids[0, positions + 1, None]
        teacher_logp = heads[0](hidden[0][positions]).log_softmax(-1)
        argmax = teacher_logp.argmax(-1, keepdim=True)
        for index, (head, states) in enumerate(zip(heads, hidden, strict=True)):
            logp = head(states[positions]).log_softmax(-1)
            soft = teacher_logp.exp() * (teacher_logp - logp)
            agree = logp.argmax(-1, keepdim=True) == argmax
            terms = soft, -logp.gather(-1, argmax), -logp.gather(-1, data_ids), agree
            sums[index] += torch.stack([term.sum(dtype=torch.float64) for term in terms])
    return sums


def measure_rows(models: list[Any], prompts: list[Prompt]) -> tuple["Tensor", "Tensor"]:
    """``(rows, models, 4)`` sums over positions, and ``(rows,)`` how many positions each row has."""
    import torch

    with torch.inference_mode(), click.progressbar(prompts, label="held-out rows", file=sys.stderr) as progress:
        sums = torch.stack([row_sums(models, prompt) for prompt in progress])
    return sums, torch.tensor([len(prompt.supervised) for prompt in prompts], dtype=torch.float64)


def mean_and_stderr(sums: "Tensor", counts: "Tensor") -> tuple["Tensor", "Tensor"]:
    """Mean over positions, and its standard error over rows (rows are independent, the positions of a row are not).

    Args:
        sums: ``(rows, ...)`` sums over the positions of a row.
        counts: ``(rows,)`` positions.
    """
    rows = len(counts)
    counts = counts.reshape(-1, *[1] * (sums.ndim - 1))
    mean = sums.sum(0) / counts.sum()
    residuals = sums - mean * counts
    return mean, (rows / (rows - 1) * residuals.square().sum(0)).sqrt() / counts.sum()


def markdown_table(header: list[str], rows: list[list[str]]) -> str:
    """A Markdown table; the first column is text, the others are numbers."""
    lines = [header, ["---", *["---:"] * (len(header) - 1)], *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def losses_table(names: list[str], models: list[Any], sums: "Tensor", counts: "Tensor") -> str:
    """Every model's measures with standard errors."""
    means, errors = mean_and_stderr(sums, counts)
    rows = [
        [name, str(model.config.num_hidden_layers), *[f"{m:.3f} ± {e:.3f}" for m, e in zip(mean, error, strict=True)]]
        for name, model, mean, error in zip(names, models, means, errors, strict=True)
    ]
    return markdown_table(["model", "layers", *MEASURES], rows)


def differences_table(names: list[str], sums: "Tensor", counts: "Tensor") -> str:
    """Each student minus the best of its column, paired by row: much sharper than the difference of two means."""
    means, _ = mean_and_stderr(sums, counts)
    best = [
        int(means[:, column].argmax() if measure == HIGHER_IS_BETTER else means[:, column].argmin())
        for column, measure in enumerate(MEASURES)
    ]
    rows = []
    for index, name in enumerate(names):
        cells = []
        for column, winner in enumerate(best):
            mean, error = mean_and_stderr(sums[:, index, column] - sums[:, winner, column], counts)
            cells.append("**best**" if index == winner else f"{mean:+.3f} ± {error:.3f}")
        rows.append([name, *cells])
    return markdown_table(["student", *MEASURES], rows)


def continuation(model: Any, tokenizer: Any, prompt: Prompt, new_tokens: int) -> str:
    """What `model` writes greedily after the prompt, `…` where it was cut."""
    import torch

    ids = prompt.prompt_ids
    with torch.inference_mode():
        written = model.generate(ids, attention_mask=torch.ones_like(ids), do_sample=False, max_new_tokens=new_tokens)[
            0, ids.shape[1] :
        ]
    ended = int(written[-1]) == tokenizer.eos_token_id
    return tokenizer.decode(written, skip_special_tokens=True).strip() + ("" if ended else " …")


def table_cell(text: str) -> str:
    """Text of a model as the content of one Markdown cell, with nothing in it that Markdown or HTML would act on."""
    for character, written in (("&", "&amp;"), ("<", "&lt;"), (">", "&gt;"), ("|", "\\|"), ("*", "\\*"), ("`", "\\`")):
        text = text.replace(character, written)
    return "<br>".join(text.splitlines())


def continuations_section(
    names: list[str], models: list[Any], tokenizer: Any, prompts: list[Prompt], new_tokens: int
) -> str:
    """The prompts, each with what every model makes of it."""
    parts = [f"### Greedy continuations ({new_tokens} tokens at most; … where cut)"]
    with click.progressbar(prompts, label="continuations", file=sys.stderr) as progress:
        for prompt in progress:
            texts = [table_cell(continuation(model, tokenizer, prompt, new_tokens)) for model in models]
            rows = [[name, text] for name, text in zip(names, texts, strict=True)]
            parts += [f"> {table_cell(prompt.question)}", markdown_table(["model", "continuation"], rows)]
    return "\n\n".join(parts).replace("---:", "---")


def report(
    teacher: Path, students: tuple[Path, ...], data: Path, *, rows: int | None, shown: int, new_tokens: int
) -> str:
    """The whole measurement as Markdown."""
    from transformers import AutoTokenizer

    models = [load_model(directory) for directory in (teacher, *students)]
    for directory, model in zip(students, models[1:], strict=True):
        if model.config.vocab_size != models[0].config.vocab_size:
            sizes = f"{model.config.vocab_size} tokens, the teacher {models[0].config.vocab_size}"
            raise ModelError(f"{directory}: has {sizes}; they must share one vocabulary to be compared.")
    tokenizer = AutoTokenizer.from_pretrained(teacher)
    prompts = read_prompts(data, tokenizer, rows)
    names = ["teacher", *student_names(students)]
    sums, counts = measure_rows(models, prompts)
    parts = [
        f"### Held-out rows: {len(prompts)} rows, {int(counts.sum())} supervised positions",
        "Mean per position in nats, teacher-forced, ± one standard error over rows.",
        losses_table(names, models, sums, counts),
    ]
    if len(students) > 1:
        parts += ["Each student minus the best of its column, paired by row:"]
        parts += [differences_table(names[1:], sums[:, 1:], counts)]
    if shown:
        parts += [continuations_section(names, models, tokenizer, prompts[:shown], new_tokens)]
    return "\n\n".join(parts)


Directory = click.Path(exists=True, file_okay=False, path_type=Path)


@click.command()
@click.option("--teacher", type=Directory, required=True)
@click.option("--student", "students", type=Directory, required=True, multiple=True, help="Give it once per student.")
@click.option("--data", type=click.Path(exists=True, dir_okay=False, path_type=Path), required=True)
@click.option("--rows", type=click.IntRange(min=2), help="Only the first rows of the data.")
@click.option("--prompts", type=click.IntRange(min=0), default=3, show_default=True, help="Prompts to continue.")
@click.option("--new-tokens", type=click.IntRange(min=1), default=120, show_default=True, help="At most, each.")
@click.option("--markdown", type=click.Path(dir_okay=False, path_type=Path), help="Write there as well as on stdout.")
def measure(
    teacher: Path,
    students: tuple[Path, ...],
    data: Path,
    rows: int | None,
    prompts: int,
    new_tokens: int,
    markdown: Path | None,
) -> None:
    """Compare every --student with the --teacher on held-out DATA."""
    try:
        text = report(teacher, students, data, rows=rows, shown=prompts, new_tokens=new_tokens)
    except BridgegardenError as error:
        click.echo(f"Error: {error}", err=True)
        sys.exit(2)
    click.echo(text)
    if markdown is not None:
        markdown.write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__":
    measure()
