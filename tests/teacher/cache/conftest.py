"""Caches of a tiny teacher's signals."""

import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset

from bridgegarden.data import chat_template_fingerprint, tokenizer_fingerprint
from bridgegarden.teacher.cache.spec import CacheSpec, Support
from bridgegarden.teacher.cache.writer import OneTeacher, build_cache
from tests.tiny import VOCABULARY, tiny_model, tiny_tokenizer

WIDTH = 270
"""Rows of the teacher's projection: more than the tokenizer has tokens."""


def teacher() -> Any:
    """Less uniform than a random model is."""
    model: Any = tiny_model("llama", WIDTH, hidden_size=48, seed=1)
    with torch.no_grad():
        model.lm_head.weight *= 8
    return model


def cache_rows(count: int = 24, seed: int = 0) -> Dataset:
    """Rows of different lengths and content, their second half supervised."""
    generator = torch.Generator().manual_seed(seed)
    rows = []
    for number in range(count):
        length = int(torch.randint(4, 20, (), generator=generator))
        ids = torch.randint(0, 250, (length,), generator=generator).tolist()
        rows.append({"input_ids": ids, "labels": [-100] * (length // 2) + ids[length // 2 :], "row": 100 + number})
    return Dataset.from_list(rows)


def cache_spec(support: Support | None = None, **changes: Any) -> CacheSpec:
    """The spec of a cache that the tiny trainers accept."""
    tokenizer = tiny_tokenizer()
    spec = CacheSpec(
        teacher="tiny",
        revision=None,
        weights="a" * 64,
        dtype="float32",
        tokenizer=tokenizer_fingerprint(tokenizer),
        chat_template=chat_template_fingerprint(tokenizer),
        max_length=64,
        vocab_size=VOCABULARY,
        teacher_width=WIDTH,
        support=support or Support(k=16),
        exponents=(0.1, 0.5, 2.0),
    )
    return replace(spec, **changes)


def build(folder: Path, spec: CacheSpec | None = None, rows: Dataset | None = None, **options: Any) -> Path:
    """A cache in `folder`, of several shards."""
    options = {"shard_positions": 40, "batch_tokens": 60} | options
    spec = spec or cache_spec()
    own = {name: options.pop(name) for name in ("batch_tokens", "on_progress") if name in options}
    model = options.pop("model", None)
    engine = OneTeacher(lambda: model or teacher(), spec, **own)
    build_cache(folder, engine, [rows or cache_rows()], spec, **options)
    return folder


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    """A cache of :func:`cache_rows`."""
    return build(tmp_path / "cache")


def untimed(content: bytes) -> bytes:
    """A file of a cache without what its building took, the only thing in which two builds of the same differ."""
    return re.sub(rb',\n  "(cpu_)?seconds": (null|[\d.e-]+)', b"", content)
