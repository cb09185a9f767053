"""What scoring rows costs this side of the server: processor time a row, against a server that answers at once.

    python benchmarks/scoring_client.py

The server is another process, on the loopback, with replies in vLLM's form that are made beforehand. The client's
processor time of all threads is divided by the rows; at 50 rows a second that is a share of one core.
"""

import argparse
import json
import multiprocessing
import tempfile
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.request import ProxyHandler, Request, build_opener

import numpy as np

from bridgegarden.teacher.cache.record import RecordFormat
from bridgegarden.teacher.cache.shard import Document
from bridgegarden.teacher.cache.spec import CacheSpec, Served, Support
from bridgegarden.teacher.scoring import Journal, ScoringEngine, scored_signals
from bridgegarden.teacher.scoring_api import Vllm
from bridgegarden.teacher.scoring_check import Example
from bridgegarden.teacher.server_connection import Reply
from bridgegarden.teacher.server_requests import Line, Requests, Server

VOCABULARY = 151_936
ROWS_A_SECOND = 50


def serve(port: Any, ids: list[int], k: int) -> None:
    """Reply to everything with the same, at once."""
    rng = np.random.default_rng(0)
    entries: list[Any] = [None]
    for index in ids[1:]:
        listed = [index, *rng.choice(VOCABULARY, k, replace=False).tolist()]
        logps = [-9.0, *(-0.5 - 0.3 * rank for rank in range(k))]
        entries.append(
            {
                str(token): {"logprob": logp - 2, "rank": k + 1 if rank == 0 else rank, "decoded_token": " word"}
                for rank, (token, logp) in enumerate(zip(listed, logps, strict=True))
            }
        )
    body = json.dumps({"model": "big", "choices": [{"text": "x", "prompt_logprobs": entries}]}).encode()

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


def measure(rows: int, tokens: int, asked: int, k: int) -> None:
    """Score so many rows of so many tokens, of which the first `asked` are not learnt, and print what a row took."""
    ids = np.random.default_rng(1).integers(0, VOCABULARY, tokens, dtype=np.int32)
    labels = np.where(np.arange(tokens) < asked, -100, ids).astype(np.int32)
    there, here = multiprocessing.Pipe()
    process = multiprocessing.get_context("spawn").Process(target=serve, args=(here, ids.tolist(), k), daemon=True)
    process.start()
    server = Server(base_url=f"http://127.0.0.1:{there.recv()}", model="big")
    served = Served(temperature=1.0, source="scored", api="vllm")
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
        api = Vllm(server, {})
        engine._ask(documents[:16], api, requests, journal, count)
        began, cpu = time.perf_counter(), time.process_time()
        engine._ask(documents, api, requests, journal, count)
        took, used = time.perf_counter() - began, time.process_time() - cpu
        assert not engine.unscored
        print(
            f"{tokens} tokens, {tokens - asked} learnt, top {k} ({layout.bytes_per_position} bytes a position): "
            f"{1000 * used / rows:.2f} ms of processor time a row, {used / rows * ROWS_A_SECOND:.1%} of a core at "
            f"{ROWS_A_SECOND} rows/s; {rows / took:.0f} rows/s at most here"
        )
        parts(server.base_url, api, documents[0], spec)
    process.terminate()


def parts(url: str, api: Vllm, document: Document, spec: CacheSpec, times: int = 100) -> None:
    """Print what of a row's time is HTTP and what is ours, by doing each alone."""
    request = Request(url, b"{}", {"Content-Type": "application/json"})
    body = build_opener(ProxyHandler({})).open(request).read().decode()
    ids, layout = document.ids.tolist(), RecordFormat(spec)
    read = api.reader(ids, (np.flatnonzero(document.labels[1:] != -100) + 1).tolist(), spec.support.k)
    reply = Reply(body, held_key=False)

    async def fetch(line: Line, _: int) -> int:
        return await line.ask("completions", {"prompt": ids}, lambda reply: len(reply.text))

    def ask() -> None:
        for _ in Requests(api.server).outcomes(range(times), fetch):
            pass

    took = []
    for work, repeats in (
        (ask, 1),
        (lambda: read(reply), times),
        (lambda: layout.encode(scored_signals(read(reply), spec)), times),
        (lambda: json.loads(body), times),
    ):
        began = time.process_time()
        for _ in range(repeats):
            work()
        took.append(1000 * (time.process_time() - began) / times)
    print(
        f"  of that, alone: {took[0]:.2f} ms of HTTP, {took[1]:.2f} ms to read {len(body):,} characters, "
        f"{took[2] - took[1]:.2f} ms to keep what they say; json.loads of all of them would be {took[3]:.2f} ms"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=400)
    given = parser.parse_args()
    for tokens, asked, k in ((32, 16, 20), (128, 64, 20), (512, 256, 20)):
        measure(given.rows, tokens, asked, k)


if __name__ == "__main__":
    main()
