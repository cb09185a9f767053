"""What scoring rows costs this side of the server: processor time a row, against a server that answers at once.

    python benchmarks/scoring_client.py

The server is another process, on the loopback, with replies in the form of vLLM, SGLang or TRL's server that are made
beforehand. The client's processor time of all threads is divided by the rows; at 50 rows a second that is a share of
one core.
"""

import argparse
import json
import multiprocessing
import tempfile
import time
from collections.abc import Sequence
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np

from bridgegarden.teacher.cache.record import RecordFormat
from bridgegarden.teacher.cache.shard import Document, Entry
from bridgegarden.teacher.cache.spec import CacheSpec, Served, Support
from bridgegarden.teacher.scores import _COMPLETION, _ENTRY, _GENERATED, _SEQUENCES
from bridgegarden.teacher.scoring import Journal, ScoringEngine, scored_signals
from bridgegarden.teacher.scoring_api import Sglang, Trl, Vllm
from bridgegarden.teacher.scoring_check import Example
from bridgegarden.teacher.server_connection import Reply
from bridgegarden.teacher.server_requests import Line, Requests, Server

VOCABULARY = 151_936
ROWS_A_SECOND = 50


def body_of(kind: str, ids: list[int], asked: int, k: int) -> bytes:
    """A reply about `ids` in the form of one kind of server, of which the first `asked` are not learnt."""
    rng = np.random.default_rng(0)
    listed = [[index, *rng.choice(VOCABULARY, k, replace=False).tolist()] for index in ids]
    logps = [-11.0 - 1 / 3, *(-2.5 - rank / 3 for rank in range(k))]
    tree: Any
    if kind == "vllm":
        entries = [
            {
                str(token): {"logprob": logp, "rank": rank or k + 1, "decoded_token": " word"}
                for rank, (token, logp) in enumerate(zip(names, logps, strict=True))
            }
            for names in listed[1:]
        ]
        tree = {"model": "big", "choices": [{"text": "x", "prompt_logprobs": [None, *entries]}]}
    elif kind == "sglang":
        own = [[None, ids[asked - 1], None], *([logps[0], index, None] for index in ids[asked:])]
        tops = [[[logp, token, None] for token, logp in zip(n[1:], logps[1:], strict=True)] for n in listed[asked:]]
        tree = {"text": "", "meta_info": {"input_token_logprobs": own, "input_top_logprobs": [None, *tops]}}
    else:
        tree = {"logprobs": [[logps] * (len(ids) - asked)], "logprob_token_ids": [listed[asked:]]}
    return json.dumps(tree, separators=(",", ":")).encode()  # as these servers write it


def serve(port: Any, body: bytes) -> None:
    """Reply to everything with the same, at once."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, format: str, *args: Any) -> None:
            pass

        def do_POST(self) -> None:
            self.rfile.read(int(self.headers["Content-Length"]))
            head = f"HTTP/1.1 200 OK\r\nContent-Length: {len(body)}\r\n\r\n".encode()
            self.wfile.write(head + body)

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    port.send(server.server_port)
    server.serve_forever()


def measure(kind: str, rows: int, tokens: int, asked: int, k: int) -> None:
    """Score so many rows of so many tokens, of which the first `asked` are not learnt, and print what a row took."""
    ids = np.random.default_rng(1).integers(0, VOCABULARY, tokens, dtype=np.int32)
    labels = np.where(np.arange(tokens) < asked, -100, ids).astype(np.int32)
    there, here = multiprocessing.Pipe()
    body = body_of(kind, ids.tolist(), asked, k)
    process = multiprocessing.get_context("spawn").Process(target=serve, args=(here, body), daemon=True)
    process.start()
    server = Server(base_url=f"http://127.0.0.1:{there.recv()}", model="big")
    served = Served(temperature=1.0, source="scored", api=kind)
    same: dict[str, Any] = {"revision": None, "weights": None, "dtype": "unknown", "max_length": None}
    spec = CacheSpec(
        teacher="big",
        tokenizer="0",
        chat_template="0",
        vocab_size=VOCABULARY,
        teacher_width=VOCABULARY,
        support=Support(k=k),
        exponents=(),
        served=served,
        **same,
    )
    with tempfile.TemporaryDirectory() as folder:
        example: Any = Example(ids=ids.tolist(), asked=asked, tokenizer=None)  # pyright: ignore[reportArgumentType]
        requests = Requests(server)
        engine = ScoringEngine(
            requests=requests, server=server, spec=spec, folder=Path(folder), example=example, say=print
        )
        documents = [Document(ids=ids, labels=labels, row=row) for row in range(rows)]
        count: Any = type("Nothing", (), {"add": lambda self, positions, *, failed: None})()
        journal, layout = Journal(Path(folder), RecordFormat(spec)), RecordFormat(spec)
        api = KINDS[kind][0](server, {})
        engine._ask(documents[:16], api, requests, journal, count)
        journal.held.clear()
        began, cpu = time.perf_counter(), time.process_time()
        engine._ask(documents, api, requests, journal, count)
        took, used = time.perf_counter() - began, time.process_time() - cpu
        assert not engine.unscored
        print(
            f"{api.title}, {tokens} tokens, {tokens - asked} learnt, top {k} ({layout.bytes_per_position} bytes a "
            f"position): {1000 * used / rows:.2f} ms of processor time a row, {used / rows * ROWS_A_SECOND:.1%} of a "
            f"core at {ROWS_A_SECOND} rows/s; {rows / took:.0f} rows/s at most here"
        )
        parts(body.decode(), api, documents[0], spec, journal)
    process.terminate()


def parts(body: str, api: Any, document: Document, spec: CacheSpec, journal: Journal, times: int = 200) -> None:
    """Print what of a row's time is HTTP, JSON, and ours, by doing each alone."""
    ids, layout = document.ids.tolist(), RecordFormat(spec)
    positions = (np.flatnonzero(document.labels[1:] != -100) + 1).tolist()
    read = api.reader(ids, positions, spec.support.k)
    reply, parse = Reply(body, held_key=False), KINDS[api.name][1]
    signals = scored_signals(read(reply), spec)
    entry = Entry(document.key, layout.encode(signals))

    async def fetch(line: Line, _: int) -> int:
        return await line.ask("completions", {"prompt": ids}, lambda reply: len(reply.text))

    def ask() -> None:
        for _ in Requests(api.server).outcomes(range(times), fetch):
            pass

    took = []
    for work, repeats in (
        (ask, 1),
        (lambda: parse(body, positions), times),
        (lambda: read(reply), times),
        (lambda: layout.encode(scored_signals(read(reply), spec)), times),
        (lambda: journal.add(*entry), times),
        (lambda: json.loads(body), times),
    ):
        began = time.process_time()
        for _ in range(repeats):
            work()
        took.append(1000 * (time.process_time() - began) / times)
    http, parsed, all_read, kept, written, loads = took
    print(
        f"  alone: {http:.2f} ms of HTTP, {parsed:.2f} ms to parse {len(body):,} characters (json.loads: {loads:.2f}), "
        f"{all_read - parsed:.2f} ms to check and sort what they say, {kept - all_read:.2f} ms to encode it, "
        f"{written:.2f} ms to write it down"
    )


def parse_vllm(body: str, positions: Sequence[int]) -> Any:
    """What cannot be left out: the JSON of what is learnt, and of the rest where it ends."""
    given = _COMPLETION.decode(body).choices[0].prompt_logprobs
    assert given is not None
    for at in positions:
        _ENTRY.decode(given[at])


KINDS: dict[str, tuple[Any, Any]] = {
    "vllm": (Vllm, parse_vllm),
    "sglang": (Sglang, lambda body, positions: _GENERATED.decode(body)),
    "trl": (Trl, lambda body, positions: _SEQUENCES.decode(body)),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=400)
    parser.add_argument("--kinds", nargs="+", default=list(KINDS), choices=list(KINDS))
    given = parser.parse_args()
    for kind in given.kinds:
        for tokens, asked, k in ((32, 16, 20), (128, 64, 20), (512, 256, 20)):
            measure(kind, given.rows, tokens, asked, k)


if __name__ == "__main__":
    main()
