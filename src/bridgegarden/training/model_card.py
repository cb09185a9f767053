"""The README.md of a trained model: where it comes from, how it was made, how it scores, how it is loaded."""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import yaml

HUB_NAME = re.compile(r"[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?")


@dataclass(frozen=True, kw_only=True)
class Origin:
    """A model or data set that went into the trained one."""

    name: str
    """Name on the hub, or a path."""
    is_local: bool
    """Whether it is a path. A path is shown by its last part: the rest tells about the machine, not the model."""
    revision: str | None = None
    """Commit or branch."""

    @property
    def hub_name(self) -> str | None:
        """The name, if it is one on the hub."""
        return None if self.is_local or not HUB_NAME.fullmatch(self.name) else self.name

    @property
    def shown(self) -> str:
        """For a reader, as Markdown."""
        name = re.split(r"[/\\]", self.name.rstrip("/\\"))[-1] if self.is_local else self.name
        text = code(name) + (" (local)" if self.is_local else "")
        return text if self.revision is None else f"{text} at {code(self.revision)}"


@dataclass(frozen=True, kw_only=True)
class ModelCard:
    """What a reader of a trained model wants to know."""

    student: Origin
    teacher: Origin
    data: tuple[Origin, ...]
    rows: int
    """Training rows that had something to learn."""
    fingerprint: str
    """Hash of the tokenised training rows."""
    objective: Mapping[str, Any]
    """Every field of the objective, and the preset it came from."""
    training: Mapping[str, Any]
    """The training arguments that matter."""
    metrics: Mapping[str, float]
    """At the end of training."""
    versions: Mapping[str, str]
    """Of packages."""
    end_of_turn: str
    """The token with which the model ends its turn."""
    has_chat_template: bool
    adapter: bool = False
    """Whether adapters were trained and merged."""
    repo: str | None = None
    """Its own name on the hub, if it is published there."""
    tags: tuple[str, ...] = field(default=("bridgegarden", "distillation", "knowledge-distillation", "trl"))

    def render(self) -> str:
        """The file, with its YAML front matter."""
        kind = "Adapters were trained and merged into the weights. " if self.adapter else ""
        sections = [
            "# Distilled model",
            f"A student, {self.student.shown}, distilled from the teacher {self.teacher.shown} with "
            f"[bridgegarden](https://pypi.org/project/bridgegarden/): hard and soft labels together. {kind}"
            f"It ends its turn with {code(self.end_of_turn)}.",
            "## Load it",
            self._usage(),
            "## How it was trained",
            _table("objective", _as_code(self.objective)),
            _table(
                "data",
                {
                    "rows from": ", ".join(origin.shown for origin in self.data),
                    "rows": f"{self.rows:,}",
                    "SHA-256": code(self.fingerprint),
                },
            ),
            _table("training", _as_code(self.training)),
            "## How it scores",
            "Per supervised token, in nats, at the end of training; names with `eval_` are on held-out rows. Lower "
            "losses mean a closer fit to the teacher and to the labels on given text, not better answers.",
            _table("metric", {name: f"{value:.5g}" for name, value in self.metrics.items()}),
            _table("package", _as_code(self.versions)),
        ]
        return f"---\n{self._front_matter()}---\n\n" + "\n\n".join(sections) + "\n"

    def _front_matter(self) -> str:
        front: dict[str, Any] = {"library_name": "transformers", "pipeline_tag": "text-generation"}
        # The hub takes names only: a path of this machine would make the card invalid.
        if self.student.hub_name is not None:
            front |= {"base_model": self.student.hub_name, "base_model_relation": "finetune"}
        if names := [origin.hub_name for origin in self.data if origin.hub_name is not None]:
            front["datasets"] = list(dict.fromkeys(names))
        return yaml.safe_dump(front | {"tags": list(self.tags)}, sort_keys=False, allow_unicode=True)

    def _usage(self) -> str:
        prompt = 'tokenizer("Once upon a time", return_tensors="pt")'
        if self.has_chat_template:
            prompt = (
                'tokenizer.apply_chat_template([{"role": "user", "content": "Hello"}], add_generation_prompt=True, '
                'return_tensors="pt", return_dict=True)'
            )
        name = self.repo or "THIS_FOLDER"
        return (
            "```python\nfrom transformers import AutoModelForCausalLM, AutoTokenizer\n\n"
            f'tokenizer = AutoTokenizer.from_pretrained("{name}")\n'
            f'model = AutoModelForCausalLM.from_pretrained("{name}")\n'
            f"inputs = {prompt}\n"
            "print(tokenizer.decode(model.generate(**inputs, max_new_tokens=100)[0]))\n```"
        )


def code(value: object) -> str:
    """`value` as Markdown code on one line, whatever characters it holds."""
    text = "".join(c if c.isprintable() else ascii(c)[1:-1] for c in str(value)) or " "
    longest = max((len(run) for run in re.findall("`+", text)), default=0)
    fence = "`" * (longest + 1)
    pad = " " if text.startswith("`") or text.endswith("`") else ""
    return f"{fence}{pad}{text}{pad}{fence}"


def _as_code(rows: Mapping[str, Any]) -> dict[str, str]:
    return {name: code(value) for name, value in rows.items()}


def _table(title: str, rows: Mapping[str, str]) -> str:
    lines = [f"| {title} | |", "|---|---|"]
    # A bar would end the cell, inside code too.
    return "\n".join([*lines, *(f"| {name} | {value.replace('|', chr(92) + '|')} |" for name, value in rows.items())])
