"""A student that writes known text: it counts."""

from typing import Any

import torch
from datasets import Dataset

from tests.tiny import VOCABULARY, tiny_model

END = VOCABULARY - 1
"""The chat template's end of turn."""


def counting_student() -> Any:
    """A model that writes t + 1 after t, and nothing else: its decoder only looks at the last token."""
    student: Any = tiny_model("llama", 264, seed=2)
    with torch.no_grad():
        for layer in student.model.layers:
            layer.self_attn.o_proj.weight.zero_()
            layer.mlp.down_proj.weight.zero_()
        direction = torch.nn.functional.normalize(student.model.embed_tokens.weight, dim=-1)
        student.lm_head.weight.copy_(30 * direction.roll(1, 0))
    return student


def counting_rows() -> Dataset:
    """Prompts that count; what the data say next is nothing that the student would."""
    starts = [(250, 5), (10, 2), (253, 1), (100, 9), (256, 2), (40, 3), (120, 4), (249, 3)]
    rows = []
    for number, (start, length) in enumerate(starts):
        prompt = list(range(start - length + 1, start + 1))
        rows.append({"input_ids": [*prompt, 7, 7, 7], "labels": [-100] * length + [7, 7, 7], "row": 100 + number})
    return Dataset.from_list(rows)


def counted(row: dict, longest: int) -> tuple[list[int], list[int]]:
    """Prompt and answer of one of the rows above, by the definition of counting."""
    prompt = [token for token, label in zip(row["input_ids"], row["labels"], strict=True) if label == -100]
    return prompt, list(range(prompt[-1] + 1, END + 1))[:longest]
