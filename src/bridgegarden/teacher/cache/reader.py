"""A teacher on disk in place of one in memory."""

import os
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from bridgegarden.data.encode import chat_template_fingerprint, tokenizer_fingerprint
from bridgegarden.data.teacher_prompt import check_number
from bridgegarden.errors import CacheError, ConfigError, MissingRowsError, TokenizerError
from bridgegarden.objective.alignment import SupervisedPositions
from bridgegarden.objective.hybrid import HybridObjective
from bridgegarden.objective.support import TeacherSignal
from bridgegarden.teacher.cache.manifest import (
    ShardRecord,
    build_command,
    finished_shards,
    read_spec,
    replace_command,
    shards_without_record,
)
from bridgegarden.teacher.cache.record import DamagedRecords, RecordFormat, Signals
from bridgegarden.teacher.cache.shard import Document, Shard, documents_in, documents_of
from bridgegarden.teacher.cache.spec import CacheSpec, short
from bridgegarden.teacher.cache.tensors import TensorDecoder, as_bytes

if TYPE_CHECKING:
    from datasets import Dataset
    from transformers import PreTrainedTokenizerBase

SIGNAL = "teacher_signal"
"""Where the collator puts the signals of a batch."""
RECORDS = "records"
"""Among them: what is not decoded yet."""
OPEN_SHARDS = 256
"""Shards that are mapped at a time: each takes a file descriptor."""
ROWS_NAMED = 5


class TeacherCache:
    """What a teacher said, read from a folder that ``bridgegarden cache build`` wrote; no teacher is in memory.

    Opened anew in every worker of a data loader. Shards are mapped into memory, and found by the content of a document.
    """

    def __init__(self, folder: str | Path) -> None:
        """
        Args:
            folder: the cache.

        Raises:
            ConfigError: there is no cache, or one of another version.
            DataError: a shard is missing or is not as long as it was.
        """
        self.folder = Path(os.path.expanduser(folder))
        self.spec = read_spec(self.folder)
        self._layout = RecordFormat(self.spec)
        self._decoder = TensorDecoder(self._layout)
        self._shards = list(finished_shards(self.folder).items())
        self._open: OrderedDict[int, Shard] = OrderedDict()
        self._index = _Index.of(self._shards, self._layout)

    def __getstate__(self) -> Path:
        return self.folder

    def __setstate__(self, folder: Path) -> None:
        self.__init__(folder)

    def __len__(self) -> int:
        """Documents."""
        return len(self._index.keys)

    def __iter__(self) -> Iterator[bytes]:
        """Keys of the documents, in the order of the shards."""
        return (key.tobytes() for key in self._index.keys)

    def __contains__(self, key: bytes) -> bool:
        return self._index.find(key) is not None

    @property
    def name(self) -> str:
        """The teacher's name or path."""
        return self.spec.teacher

    @property
    def caches(self) -> "tuple[TeacherCache, ...]":
        """Itself."""
        return (self,)

    @property
    def width(self) -> int:
        """Size of the vocabulary that signals are about."""
        return self.spec.vocab_size

    def place(self, student_device: torch.device) -> None:
        """Nothing to move: signals come with the batch."""

    def records(self, key: bytes) -> np.ndarray:
        """The records of a document, undecoded.

        Raises:
            KeyError: it is not in the cache.
            DataError: it is damaged.
        """
        shard, index = self._place(key)
        return self._shard(shard).records(index)

    def signals(self, key: bytes) -> Signals:
        """What the teacher said at the supervised positions of a document, in order; the label's log-probability too.

        Raises:
            KeyError: it is not in the cache.
            DataError: it is damaged.
        """
        shard, index = self._place(key)
        return self._shard(shard).signals(index)

    def collate(self, examples: Sequence[Mapping[str, Any]]) -> dict[str, Tensor]:
        """The records of a batch's supervised positions, in their order, for :meth:`at`: as they lie on disk, so that
        they are decoded on the device that they are copied to.

        Args:
            examples: the batch before it is padded: ``input_ids``, ``labels``, and ``seq_lengths`` where packed.

        Raises:
            DataError: a document is not in the cache, or what it holds of it is damaged.
        """
        documents = [document for example in examples for document in documents_in(example)]
        return {RECORDS: as_bytes(self._read(documents, self._layout.check_ids)[0])}

    def said(self, documents: Iterable[Document]) -> dict[str, Tensor]:
        """The signals at the supervised positions of `documents`, as tensors, in order.

        Raises:
            DataError: one is not in the cache, or what it holds of it is damaged.
        """
        return as_tensors(self._read(documents, self._layout.decode)[1])

    def _read(self, documents: Iterable[Document], use: Callable[[np.ndarray], Any]) -> tuple[np.ndarray, Any]:
        """The records of `documents`, and what `use` gives for them."""
        places = []
        for document in documents:
            found = self._index.find(document.key)
            if found is None:
                raise MissingRowsError(self._missing("a batch", [document.row], 1))
            places.append(found)
        parts = [self._shard(shard).records(index) for shard, index in places]
        records = np.concatenate(parts) if parts else np.zeros(0, self._layout.dtype)
        try:
            return records, use(records)
        except DamagedRecords:
            for shard, index in places:
                self._shard(shard).signals(index)
            raise

    def at(
        self,
        positions: SupervisedPositions,
        inputs: Mapping[str, Any],
        *,
        vocab_size: int,
        exponents: tuple[float, ...],
    ) -> TeacherSignal:
        """The signals that :meth:`collate` put into the batch `inputs`, under :data:`SIGNAL`. See :class:`Teacher`.

        `exponents` are those that :meth:`check_objective` has found to be stored.
        """
        assert vocab_size == self.spec.vocab_size
        parts = {name: part.to(positions.row.device) for name, part in inputs[SIGNAL].items()}
        signal = teacher_signal(self._decoded(parts[RECORDS]) if RECORDS in parts else parts, self.spec)
        assert len(signal.entropy) == len(positions)
        assert not self.spec.has_tail or set(exponents) <= signal.tail_powers.keys()
        return signal

    def _decoded(self, records: Tensor) -> dict[str, Tensor]:
        """By NumPy on a CPU, which is twice as fast there; the bits are the same."""
        if records.device.type == "cpu":
            return as_tensors(self._layout.decode(records.numpy().view(self._layout.dtype).reshape(-1)))
        return self._decoder.decode(records)

    def check_tokenizer(
        self, tokenizer: "PreTrainedTokenizerBase", max_length: int | None, whose: str = "the student's"
    ) -> None:
        """Make sure that rows become the same token ids as when the cache was built.

        Args:
            tokenizer: with which the teacher reads them now.
            max_length: to which they are cut.
            whose: it is, for messages.

        Raises:
            ModelError: the tokenizer or its chat template is another.
            ConfigError: rows are cut to another length.
        """
        for what, here, there in (
            ("tokenizer", tokenizer_fingerprint(tokenizer), self.spec.tokenizer),
            ("chat template", chat_template_fingerprint(tokenizer), self.spec.chat_template),
        ):
            if here != there:
                raise TokenizerError(
                    f"teacher cache {self.folder}: built with {what} {short(there)}, but rows are read with {whose}, "
                    f"{short(here)}: their token ids would be others. Take {what} and cache that belong together, or "
                    f"build anew. {replace_command(self.folder, self.spec)}"
                )
        if max_length != self.spec.max_length:
            raise CacheError(
                f"teacher cache {self.folder}: built with training.max_length {self.spec.max_length}, but it is now "
                f"{max_length}: longer rows are cut elsewhere. Set it back, or build anew. "
                f"{replace_command(self.folder, self.spec)}"
            )

    def check_objective(self, objective: HybridObjective) -> None:
        """Make sure that `objective` can be computed from what is stored.

        Raises:
            ConfigError: it needs a power sum of the tail that is not stored, or more than what is kept can give.
        """
        needed, support = objective.exponents, self.spec.support
        fault = objective.fault_of(kept=support.k, drawn=support.kind == "sampled")
        if fault is not None:
            raise CacheError(
                f"teacher cache {self.folder}: holds {support}; {fault}. Keep more of the likeliest tokens instead. "
                f"{replace_command(self.folder)}"
            )
        missing = [g for g in needed if self.spec.has_tail and g not in self.spec.stored_exponents]
        if not missing:
            return
        if self.spec.served is not None:
            why = (
                "which a server does not give and likeliest tokens do not determine. Take temperature 1, sharpening 1 "
                "and another rule for the soft weight (entropy of kind shannon, confidence, static), or a teacher on "
                "this machine."
            )
        else:
            why = (
                f"and stored are those of exponents {_listed(self.spec.exponents)}. Build it with this objective in "
                f"the recipe. {replace_command(self.folder, self.spec)}"
            )
        raise CacheError(
            f"teacher cache {self.folder}: the objective's temperature, sharpening or power entropy needs the tail's "
            f"sum of p^{missing[0]:g}, {why}"
        )

    def check_rows(self, dataset: "Dataset", name: str) -> None:
        """Make sure that the cache holds every document of a tokenised data set.

        Raises:
            DataError: some are missing.
        """
        self.check_documents(documents_of(dataset), name)

    def check_documents(self, documents: Iterable[Document], name: str) -> None:
        """Make sure that the cache holds every one of `documents`, of the data `name`.

        Raises:
            DataError: some are missing.
        """
        missing, total = [], 0
        for document in documents:
            total += 1
            if document.key not in self:
                missing.append(document.row)
        if missing:
            raise MissingRowsError(self._missing(f"{name} data", missing, total))

    def _place(self, key: bytes) -> tuple[int, int]:
        found = self._index.find(key)
        if found is None:
            raise KeyError(key)
        return found

    def _missing(self, what: str, rows: Sequence[int], total: int) -> str:
        shown = _listed(rows[:ROWS_NAMED]) + (", ..." if len(rows) > ROWS_NAMED else "")
        unread = shards_without_record(self.folder)
        if unread:
            why = (
                f"{len(unread)} of its shards are not read, since the file beside them is gone ({unread[0].name} has "
                f"no {unread[0].stem}.json). Copy those files, too, from where the cache was built; if they are lost:"
            )
        else:
            why = "It was built from other rows, or not to its end; what it holds is kept and what is missing is added."
        return (
            f"teacher cache {self.folder}: {what}: {len(rows)} of {total} rows are not in it (row {shown}). {why} "
            f"{build_command(self.folder)}"
        )

    def _shard(self, number: int) -> Shard:
        shard = self._open.pop(number, None)
        if shard is None:
            path, record = self._shards[number]
            shard = Shard.open(path, record, self._layout)
            if len(self._open) >= OPEN_SHARDS:
                self._open.popitem(last=False)
        self._open[number] = shard
        return shard


class CachesByRow:
    """A :class:`~bridgegarden.teacher.protocol.Teacher`: the caches of several, each asked about the rows of its own.

    A row says by its ``teacher_number`` whose it is, a packed row so of each of its documents. As one batch is computed
    from all of them, they keep the same of every position.
    """

    def __init__(self, caches: Sequence[TeacherCache]) -> None:
        """
        Args:
            caches: in the order of the teachers' numbers.

        Raises:
            ConfigError: there is none, or they keep other tokens, or other sums of the tail.
        """
        if not caches:
            raise ConfigError("teacher caches: got none; give at least one.")
        self.caches = tuple(caches)
        check_kept_alike([(cache.folder, cache.spec) for cache in self.caches])

    @property
    def name(self) -> str:
        """The teachers' names or paths."""
        return ", ".join(cache.name for cache in self.caches)

    @property
    def width(self) -> int:
        """Size of the vocabulary that signals are about."""
        return self.caches[0].width

    def place(self, student_device: torch.device) -> None:
        """Nothing to move: signals come with the batch."""

    def collate(self, examples: Sequence[Mapping[str, Any]]) -> dict[str, Tensor]:
        """As :meth:`TeacherCache.collate`, every document from the cache of its own teacher.

        Raises:
            DataError: a document does not say whose it is; and as there.
        """
        documents = [document for example in examples for document in documents_in(example)]
        starts = np.cumsum([0, *(document.positions for document in documents)])
        places, parts = [], []
        for number, cache in enumerate(self.caches):
            own = [index for index, document in enumerate(documents) if self._number(document) == number]
            parts.append(cache.said([documents[index] for index in own]))
            places += [np.arange(starts[index], starts[index + 1]) for index in own]
        order = torch.from_numpy(np.argsort(np.concatenate([np.zeros(0, np.int64), *places])))
        return {name: torch.cat([part[name] for part in parts])[order] for name in parts[0]}

    def at(
        self,
        positions: SupervisedPositions,
        inputs: Mapping[str, Any],
        *,
        vocab_size: int,
        exponents: tuple[float, ...],
    ) -> TeacherSignal:
        """The signals that :meth:`collate` put into the batch `inputs`; see :meth:`TeacherCache.at`."""
        return self.caches[0].at(positions, inputs, vocab_size=vocab_size, exponents=exponents)

    def check_objective(self, objective: HybridObjective) -> None:
        """Make sure that `objective` can be computed from what is stored; see :meth:`TeacherCache.check_objective`."""
        for cache in self.caches:
            cache.check_objective(objective)

    def check_rows(self, dataset: "Dataset", name: str) -> None:
        """Make sure that every document of a tokenised data set is in the cache of its teacher.

        Raises:
            DataError: some are missing, or do not say whose they are.
        """
        for number, cache in enumerate(self.caches):
            own = (document for document in documents_of(dataset) if self._number(document) == number)
            cache.check_documents(own, name)

    def _number(self, document: Document) -> int:
        return check_number(document.teacher_number, len(self.caches), f"row {document.row}")


def teacher_signal(parts: Mapping[str, Tensor], spec: CacheSpec) -> TeacherSignal:
    """What the objective takes, from the fields of :class:`~bridgegarden.teacher.cache.record.Signals` as tensors."""
    powers = {g: parts["tail_powers"][:, column] for column, g in enumerate(spec.stored_exponents)}
    share = 1 / spec.support.k
    return TeacherSignal(
        ids=parts["ids"].long() if "ids" in parts else None,
        logp=parts["logp"],
        log_tail=parts.get("log_tail"),
        entropy=parts["entropy"],
        argmax=parts["argmax"].long(),
        max_logp=parts["max_logp"],
        vocab_size=spec.vocab_size,
        weights=torch.full_like(parts["logp"], share) if spec.support.kind == "sampled" else None,
        tail_powers=powers,
        label_logp=parts["label_logp"],
    )


def as_tensors(signals: Signals) -> dict[str, Tensor]:
    """Decoded positions as tensors; what a cache of this kind does not have is left out."""
    return {name: torch.from_numpy(values) for name, values in signals._asdict().items() if values is not None}


@dataclass(frozen=True)
class _Index:
    """Where every document lies. Arrays, not a dictionary: ten million documents take 300 MB, not 2 GB."""

    keys: np.ndarray
    """``(D, 16)`` bytes."""
    shard: np.ndarray
    """Number of the shard."""
    place: np.ndarray
    """Number of the document in its shard."""

    @classmethod
    def of(cls, shards: Iterable[tuple[Path, ShardRecord]], layout: RecordFormat) -> "_Index":
        keys = [Shard.open(path, record, layout).keys.copy() for path, record in shards]
        sizes = [len(part) for part in keys]
        return cls(
            np.concatenate(keys) if keys else np.zeros((0, 16), np.uint8),
            np.repeat(np.arange(len(sizes), dtype=np.int32), sizes),
            np.concatenate([np.arange(size, dtype=np.int32) for size in sizes]) if sizes else np.zeros(0, np.int32),
        )

    @cached_property
    def _order(self) -> np.ndarray:
        return np.argsort(self._prefixes, kind="stable")

    @cached_property
    def _prefixes(self) -> np.ndarray:
        return np.ascontiguousarray(self.keys[:, :8]).view("<u8").reshape(-1)

    @cached_property
    def _sorted(self) -> np.ndarray:
        return self._prefixes[self._order]

    def find(self, key: bytes) -> tuple[int, int] | None:
        """Shard and place of a document, or None."""
        at = int(np.searchsorted(self._sorted, np.frombuffer(key[:8], "<u8")[0]))
        while at < len(self._sorted) and self._sorted[at].tobytes() == key[:8]:
            index = self._order[at]
            if self.keys[index].tobytes() == key:
                return int(self.shard[index]), int(self.place[index])
            at += 1
        return None


def check_kept_alike(caches: Sequence[tuple[Path, CacheSpec]]) -> None:
    """Make sure that what caches hold can stand in one batch.

    Args:
        caches: the folder and the kind of each.

    Raises:
        ConfigError: two of them keep other tokens, or other sums of the tail.
    """
    (first, one), *others = caches
    names = ("", "a tail: ", "tail sums of exponents ", "signals about the ids below ")
    for folder, other in others:
        for what, here, there in zip(names, _kept(one), _kept(other), strict=True):
            if here != there:
                raise CacheError(
                    f"teacher caches {first} and {folder}: one holds {what}{here or 'none'}, the other "
                    f"{what}{there or 'none'}; a batch needs the same of both. Build both with the same options and "
                    "objective (bridgegarden cache build RECIPE --replace)."
                )


def _kept(spec: CacheSpec) -> tuple[object, ...]:
    """What has to be the same for signals to stand in one batch."""
    return spec.support, "yes" if spec.has_tail else "no", _listed(spec.stored_exponents), spec.vocab_size


def _listed(values: Iterable[object]) -> str:
    return ", ".join(str(value) for value in values)
