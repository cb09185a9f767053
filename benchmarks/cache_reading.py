"""How fast a cache is read: documents in random order, as a shuffled training asks for them.

    python benchmarks/cache_reading.py [--documents 2000] [--positions 100] [--vocab 151936] [--k 64]

Writes made-up signals to a temporary folder, reads every document once in random order, eight at a time, and prints
microseconds of CPU a position: with ``TeacherCache.collate`` (keys, lookup, decoding, tensors), the part of it that is
not decoding, and the same records from Parquet files with Zstandard, in row groups of 8 documents, undecoded.
"""

import argparse
import platform
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch

from bridgegarden.teacher.cache.manifest import write_spec
from bridgegarden.teacher.cache.reader import TeacherCache
from bridgegarden.teacher.cache.record import RecordFormat, Signals
from bridgegarden.teacher.cache.shard import Entry, document_key, documents_in, write_shard
from bridgegarden.teacher.cache.spec import DEFAULT_EXPONENTS, CacheSpec, Support
from bridgegarden.teacher.cache.writer import shard_path

DOCUMENTS_A_SHARD = 500
BATCH = 8


def made_up(arguments: argparse.Namespace) -> tuple[CacheSpec, list[dict[str, Any]], list[Entry]]:
    """Rows, half of each a prompt, and records for them."""
    names = {"teacher": "", "revision": None, "weights": None, "dtype": "", "tokenizer": "", "chat_template": ""}
    sizes = {"vocab_size": arguments.vocab, "teacher_width": arguments.vocab, "max_length": None}
    spec = CacheSpec(**names, **sizes, support=Support(k=arguments.k), exponents=DEFAULT_EXPONENTS)
    rng, count, layout = np.random.default_rng(0), arguments.positions, RecordFormat(spec)
    rows, entries = [], []
    for _ in range(arguments.documents):
        ids = rng.integers(0, arguments.vocab, 2 * count).astype(np.int32)
        labels = np.where(np.arange(2 * count) < count, -100, ids).astype(np.int32)
        rows.append({"input_ids": ids.tolist(), "labels": labels.tolist()})
        entries.append(Entry(document_key(ids, labels), layout.encode(signals(rng, count, spec))))
    return spec, rows, entries


def signals(rng: np.random.Generator, count: int, spec: CacheSpec) -> Signals:
    """As spread as a teacher's: log-probabilities fall off as the logarithm of the rank."""
    slots = spec.slots
    ids = np.sort(
        rng.integers(0, spec.vocab_size // slots, (count, slots)) + np.arange(slots) * (spec.vocab_size // slots)
    )
    weights = -2 * np.log(np.arange(1, slots + 1)) + rng.normal(0, 0.3, (count, slots))
    logp = rng.permuted(weights - np.log(np.exp(weights).sum(1, keepdims=True) * 1.05), axis=1).astype(np.float32)
    scalars = [np.abs(rng.normal(3, 1, count)).astype(np.float32) for _ in range(3)]
    return Signals(
        ids=ids,
        logp=logp,
        log_tail=-scalars[0],
        tail_powers=rng.normal(2, 1, (count, len(DEFAULT_EXPONENTS))).astype(np.float32),
        entropy=scalars[1],
        argmax=np.take_along_axis(ids, logp.argmax(1)[:, None], 1)[:, 0],
        max_logp=logp.max(1),
        label_logp=-scalars[2],
    )


def write(folder: Path, spec: CacheSpec, entries: Sequence[Entry]) -> list[pq.ParquetFile]:
    """The cache, and the same as Parquet."""
    (folder / "shards").mkdir()
    write_spec(folder, spec)
    files = []
    for number, start in enumerate(range(0, len(entries), DOCUMENTS_A_SHARD)):
        part = entries[start : start + DOCUMENTS_A_SHARD]
        write_shard(shard_path(folder, number), part, RecordFormat(spec))
        path = folder / f"{number}.parquet"
        table = pa.table({"records": pa.array([entry.records.tobytes() for entry in part], pa.binary())})
        pq.write_table(table, path, compression="zstd", row_group_size=BATCH, use_dictionary=False)
        files.append(pq.ParquetFile(path, memory_map=True))
    return files


def cpu_microseconds(function: Callable[[], object], positions: int) -> float:
    """A position."""
    began = time.process_time()
    function()
    return 1e6 * (time.process_time() - began) / positions


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--documents", type=int, default=2000)
    parser.add_argument("--positions", type=int, default=100)
    parser.add_argument("--vocab", type=int, default=151_936)
    parser.add_argument("--k", type=int, default=64)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    spec, rows, entries = made_up(arguments)
    order = np.random.default_rng(1).permutation(len(rows)).tolist()
    positions = arguments.documents * arguments.positions
    with tempfile.TemporaryDirectory() as name:
        parquet = write(Path(name), spec, entries)
        cache = TeacherCache(name)

        def collate() -> None:
            for start in range(0, len(order), BATCH):
                batch = (rows[index] for index in order[start : start + BATCH])
                cache.said(document for row in batch for document in documents_in(row))

        def records() -> None:
            for index in order:
                np.array(cache.records(entries[index].key))

        def from_parquet() -> None:
            for index in order:
                shard, place = divmod(index, DOCUMENTS_A_SHARD)
                parquet[shard].read_row_group(place // BATCH)["records"][place % BATCH].as_buffer()

        for what, function in (
            ("collate, all of it", collate),
            ("lookup and copy alone", records),
            ("Parquet with Zstandard, undecoded", from_parquet),
        ):
            print(f"{what:<34} {cpu_microseconds(function, positions):8.2f} us of CPU a position")
        sizes = (sum(path.stat().st_size for path in Path(name).rglob(f"*.{kind}")) for kind in ("arrow", "parquet"))
        print("bytes a position: {:.1f} (ours), {:.1f} (Parquet)".format(*(size / positions for size in sizes)))
    print(f"{positions:,} positions, K = {arguments.k}, V = {arguments.vocab}; one thread, {platform.machine()}")


if __name__ == "__main__":
    main()
