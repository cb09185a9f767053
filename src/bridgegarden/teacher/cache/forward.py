"""What a teacher says about documents, as records: a model that is run, or one that was asked before."""

import time
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedModel

from bridgegarden.causal_lm import freeze, input_device, read_hidden
from bridgegarden.errors import ModelError
from bridgegarden.model_probes import check_causal_lm
from bridgegarden.objective.alignment import IGNORE, SupervisedPositions
from bridgegarden.objective.head import LanguageModelHead, chunks, default_chunk_tokens
from bridgegarden.objective.support import TeacherSignal
from bridgegarden.teacher.answers import AnsweredRow, Position
from bridgegarden.teacher.cache.record import RecordFormat, Signals
from bridgegarden.teacher.cache.shard import Document, Entry, document_key
from bridgegarden.teacher.cache.spec import CacheSpec
from bridgegarden.teacher.mixture import Mixture, mixture_logits


class WorkingTeacher:
    """A teacher that is asked about batches of documents, and how long it took."""

    def __init__(self, model: PreTrainedModel | Mixture, layout: RecordFormat) -> None:
        """
        Args:
            model: on its device, or several that are mixed; frozen here.
            layout: what is made of its distributions.

        Raises:
            ModelError: its head cannot be read.
        """
        for member in model.models if isinstance(model, Mixture) else (model,):
            freeze(member)
            check_causal_lm(member)
        self._model = model
        self._layout = layout
        self.seconds = 0.0
        """Spent in the teacher so far."""

    def entries(
        self, batches: Iterable[Sequence[Document]], on_batch: Callable[[Sequence[Document]], None] | None = None
    ) -> list[Entry]:
        """What it says about the documents of `batches`, in their order; `on_batch` is told of every batch."""
        coming: list[Future[list[Entry]]] = []
        # Bytes are made beside the teacher, which does not wait for them until the end.
        with ThreadPoolExecutor(max_workers=1) as encoder:
            for batch in batches:
                before = time.perf_counter()
                signals = teacher_signals(self._model, batch, self._layout.spec)
                self.seconds += time.perf_counter() - before
                coming.append(encoder.submit(encoded, batch, signals, self._layout))
                if on_batch is not None:
                    on_batch(batch)
        return [entry for future in coming for entry in future.result()]


class AnswersEngine:
    """Has been told what the teacher said. An :class:`~bridgegarden.teacher.cache.writer.Engine`."""

    seconds = 0.0
    """The server's time was spent when it answered."""
    clocks = ()

    def __init__(self, spec: CacheSpec) -> None:
        """
        Args:
            spec: what is kept.
        """
        self._layout = RecordFormat(spec)
        self._records: dict[bytes, np.ndarray] = {}

    def add(self, row: AnsweredRow) -> None:
        """Tell it a row, which is encoded at once: as objects it takes ten times the memory. Of equal ones the first
        counts."""
        key = document_key(np.asarray(row.input_ids, np.int32), np.asarray(row.labels, np.int32))
        if key not in self._records:
            self.add_signals(key, position_arrays(row.positions, self._layout.spec))

    def add_signals(self, key: bytes, signals: Signals) -> None:
        """Tell it what was said at the positions of a document."""
        self._records[key] = self._layout.encode(signals)

    def entries(self, shards: Sequence[Sequence[Document]]) -> Generator[list[Entry], None, None]:
        """What it said about the documents of each shard, in order."""
        for shard in shards:
            yield [Entry(document.key, self._records[document.key]) for document in shard]


class _Read(NamedTuple):
    """What one model makes of a batch."""

    hidden: Tensor
    """``(N, D)`` at supervised positions."""
    head: LanguageModelHead


def _read(model: PreTrainedModel, inputs: Mapping[str, Tensor], positions: SupervisedPositions) -> _Read:
    hidden, head = read_hidden(model, inputs)
    return _Read(positions.of(hidden), head)


def teacher_signals(model: PreTrainedModel | Mixture, documents: Sequence[Document], spec: CacheSpec) -> list[Signals]:
    """What `model` says at the supervised positions of `documents`, in order and in chunks; one forward of each model.

    Raises:
        ModelError: the teacher's distribution is not finite somewhere.
    """
    models = model.models if isinstance(model, Mixture) else (model,)
    weights = model.weights if isinstance(model, Mixture) else (1.0,)
    device = input_device(models[0])
    inputs, labels = _padded([document.as_read for document in documents], device)
    positions = SupervisedPositions.from_labels(labels)
    parts = []
    with torch.no_grad(), torch.autocast(device.type, enabled=False):
        read = [_read(member, inputs, positions) for member in models]
        place = read[0].hidden.device
        target = positions.target.to(place)
        widest = max((part.head for part in read), key=lambda head: head.vocab_size)
        for rows, generator in _walk(documents, spec, widest, place):
            logits = [part.head.logits(part.hidden[rows]) for part in read]
            said = logits[0] if len(logits) == 1 else mixture_logits(logits, weights)
            signal, label_logp = _signals(said, target[rows], spec, generator)
            _check_finite(signal, rows.start, documents, spec)
            parts.append(signal_arrays(signal, label_logp, spec))
    return parts


def encoded(documents: Sequence[Document], parts: Sequence[Signals], layout: RecordFormat) -> list[Entry]:
    """The signals of :func:`teacher_signals` as bytes, document by document."""
    records = np.concatenate([layout.encode(part) for part in parts])
    ends = np.cumsum([document.positions for document in documents])
    blocks = np.split(records, ends[:-1])
    return [Entry(document.key, block) for document, block in zip(documents, blocks, strict=True)]


def _padded(documents: Sequence[Document], device: torch.device) -> tuple[dict[str, Tensor], Tensor]:
    shape = len(documents), max(len(document.ids) for document in documents)
    ids, labels, mask = torch.zeros(shape, dtype=torch.long), torch.full(shape, IGNORE), torch.zeros(shape).long()
    for index, document in enumerate(documents):
        length = len(document.ids)
        ids[index, :length] = torch.tensor(document.ids)
        labels[index, :length] = torch.tensor(document.labels)
        mask[index, :length] = 1
    return {"input_ids": ids.to(device), "attention_mask": mask.to(device)}, labels.to(device)


def _walk(
    documents: Sequence[Document], spec: CacheSpec, head: LanguageModelHead, device: torch.device
) -> Iterator[tuple[slice, torch.Generator | None]]:
    """Positions of the batch in chunks. Draws begin anew with every document, from a seed that is its key."""
    size = default_chunk_tokens(head.vocab_size, device.type)
    if spec.support.kind != "sampled":
        yield from ((rows, None) for rows in chunks(sum(document.positions for document in documents), size))
        return
    start = 0
    for document in documents:
        generator = torch.Generator(device).manual_seed(int.from_bytes(document.key[:7], "little"))
        for rows in chunks(document.positions, size):
            yield slice(start + rows.start, start + rows.stop), generator
        start += document.positions


def _signals(
    logits: Tensor, labels: Tensor, spec: CacheSpec, generator: torch.Generator | None
) -> tuple[TeacherSignal, Tensor]:
    """The signal of one chunk of positions, and the log-probability of what stands in the data."""
    signal = spec.support.signal(
        logits, vocab_size=spec.vocab_size, exponents=spec.stored_exponents, generator=generator
    )
    return signal, logits.gather(1, labels.unsqueeze(1)).squeeze(1).float() - logits.float().logsumexp(1)


def signal_arrays(signal: TeacherSignal, label_logp: Tensor, spec: CacheSpec) -> Signals:
    """A signal as it is encoded."""

    def array(values: Tensor) -> np.ndarray:
        return values.float().cpu().numpy()

    powers = [array(signal.tail_powers[g]) for g in spec.stored_exponents]
    return Signals(
        ids=None if signal.ids is None else signal.ids.int().cpu().numpy(),
        logp=array(signal.logp),
        log_tail=None if signal.log_tail is None else array(signal.log_tail),
        tail_powers=np.stack(powers, 1) if powers else np.zeros((len(label_logp), 0), np.float32),
        entropy=array(signal.entropy),
        argmax=signal.argmax.int().cpu().numpy(),
        max_logp=array(signal.max_logp),
        label_logp=array(label_logp),
    )


def _check_finite(signal: TeacherSignal, start: int, documents: Sequence[Document], spec: CacheSpec) -> None:
    bad = (~torch.isfinite(signal.entropy)).nonzero().flatten()
    if bad.numel():
        ends = np.cumsum([document.positions for document in documents])
        document = documents[int(np.searchsorted(ends, start + int(bad[0]), side="right"))]
        raise ModelError(
            f"teacher {spec.teacher}: its distribution is not finite in row {document.row} of the data, run in "
            f"{spec.dtype}. Load it in bfloat16 or float32 (teacher.dtype), or check its weights."
        )


def position_arrays(positions: Sequence[Position], spec: CacheSpec) -> Signals:
    """Positions as they are encoded: empty slots have the id -1 and no mass."""
    shape = len(positions), spec.slots
    ids, logp = np.full(shape, -1, np.int32), np.full(shape, -np.inf, np.float32)
    for row, position in enumerate(positions):
        ids[row, : len(position.ids)] = position.ids
        logp[row, : len(position.logp)] = position.logp

    def column(values: Iterable[float]) -> np.ndarray:
        return np.fromiter(values, np.float32, len(positions))

    return Signals(
        ids=ids,
        logp=logp,
        log_tail=column(position.log_tail for position in positions),
        tail_powers=np.zeros((len(positions), 0), np.float32),
        entropy=column(position.entropy for position in positions),
        argmax=ids[:, 0],
        max_logp=logp[:, 0],
        label_logp=column(position.label_logp for position in positions),
    )
