"""What the packaged teacher says about the training answers of a seed, kept on disk: asked once for all students.

The vocabulary is small, so all of it is kept, in 16 bits a token: every objective is what it is with the teacher
itself, its temperature and entropies included.
"""

import shutil
from pathlib import Path
from typing import TYPE_CHECKING

from bridgegarden.data import chat_template_fingerprint, tokenizer_fingerprint, vocabulary_size
from bridgegarden.errors import BridgegardenError
from bridgegarden.quickstart import TEACHER
from bridgegarden.teacher.cache.documents import documents_of
from bridgegarden.teacher.cache.manifest import read_spec
from bridgegarden.teacher.cache.spec import CacheSpec
from bridgegarden.teacher.cache.support import Support
from bridgegarden.teacher.cache.weights import weights_fingerprint
from bridgegarden.teacher.cache.writer import BuildResult, build_cache

if TYPE_CHECKING:
    from datasets import Dataset
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


def keep_signals(
    folder: Path, rows: "Dataset", teacher: "PreTrainedModel", tokenizer: "PreTrainedTokenizerBase"
) -> BuildResult:
    """Ask `teacher` about what `folder` does not hold yet of `rows`; a cache of another kind there is removed first."""
    spec = signals_spec(teacher, tokenizer)
    if not _holds(folder, spec):
        shutil.rmtree(folder, ignore_errors=True)
    return build_cache(folder, teacher, [rows], spec)


def signals_spec(teacher: "PreTrainedModel", tokenizer: "PreTrainedTokenizerBase") -> CacheSpec:
    """The whole vocabulary of the packaged teacher at every token."""
    size = vocabulary_size(tokenizer)
    return CacheSpec(
        teacher=TEACHER.name,
        revision=None,
        weights=weights_fingerprint(TEACHER),
        dtype=str(teacher.dtype).removeprefix("torch."),
        tokenizer=tokenizer_fingerprint(tokenizer),
        chat_template=chat_template_fingerprint(tokenizer),
        max_length=None,
        vocab_size=size,
        teacher_width=teacher.config.vocab_size,
        support=Support(k=size),
        exponents=(),
        bits=16,
    )


def tokens_asked(rows: "Dataset") -> int:
    """Tokens of `rows` at which the teacher is asked; equal rows are asked once."""
    return sum(document.positions for document in {document.key: document for document in documents_of(rows)}.values())


def _holds(folder: Path, spec: CacheSpec) -> bool:
    try:
        return not read_spec(folder).differences(spec)
    except BridgegardenError:
        # Nothing there, or not ours to read: built anew.
        return False
