"""The programs that run a model, each asked for the same: to read a prompt, to write on, token by token, and how likely
a row is to it.

Run as ``python -m bridgegarden.export.runtimes MODEL SETTINGS``, it measures one round for every empty line that it is
given, and scores the row in any other.
"""

import json
import resource
import sys
import time
import urllib.request
from collections.abc import Callable, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any, Literal, NamedTuple

from bridgegarden.errors import ConfigError
from bridgegarden.export.onnx_model import MODEL, run_session, session_of

Runtime = Literal["transformers", "onnxruntime", "llama.cpp"]
Seconds = tuple[float, float]
"""For the prompt, and for what is written."""
Round = Callable[[int, int], Seconds]
"""So many tokens are read, and so many written."""
Score = Callable[[Sequence[int], Sequence[int]], float]
"""Of a row's ids, and of the places (from 1) of those that count: minus the sum of their log-probabilities, in nats."""


class Opened(NamedTuple):
    """A model, ready to be asked."""

    run: Round
    score: Score


PACKAGES: dict[Runtime, tuple[str, str]] = {
    "transformers": ("transformers", "pip install transformers"),
    "onnxruntime": ("onnxruntime", "pip install 'bridgegarden[export]'"),
    "llama.cpp": ("xllamacpp", "pip install xllamacpp"),
}
"""What each is imported as, and how it is installed."""


FORCED = 1e6
"""Added to a logit, it leaves no choice."""
EVERY = 10**6
"""More tokens than any vocabulary has."""


def runtime_of(path: Path) -> Runtime:
    """Which program the files at `path` are for.

    Raises:
        ConfigError: none of these.
    """
    if path.is_file() and path.suffix == ".gguf":
        return "llama.cpp"
    if (path / MODEL).is_file():
        return "onnxruntime"
    if (path / "config.json").is_file():
        return "transformers"
    raise ConfigError(
        f"{path}: is neither a GGUF file, nor a folder with {MODEL} or config.json. Give what `bridgegarden export` "
        "wrote, or a model's folder."
    )


def context_of(path: Path, runtime: Runtime) -> int | None:
    """Tokens that a model has room for; None where its files do not say."""
    if runtime == "llama.cpp":
        from gguf import GGUFReader

        fields = GGUFReader(path).fields
        return next((int(field.contents()) for key, field in fields.items() if key.endswith(".context_length")), None)
    return json.loads((path / "config.json").read_text(encoding="utf-8")).get("max_position_embeddings")


def opened(path: Path, threads: int, room: int) -> Opened:
    """The model at `path`, with room for so many tokens."""
    return {"transformers": _transformers, "onnxruntime": _onnxruntime, "llama.cpp": _llama_cpp}[runtime_of(path)](
        path, threads, room
    )


def _transformers(path: Path, threads: int, room: int) -> Opened:
    import torch
    from transformers import AutoModelForCausalLM

    torch.set_num_threads(threads)
    model: Any = AutoModelForCausalLM.from_pretrained(path, dtype="auto", use_safetensors=True).eval()

    @torch.inference_mode()
    def run(prompt: int, decode: int) -> Seconds:
        began = time.perf_counter()
        made = model(torch.ones(1, prompt, dtype=torch.long), use_cache=True, logits_to_keep=1)
        read = time.perf_counter()
        for _ in range(decode):
            new = made.logits[:, -1:].argmax(-1)
            made = model(new, past_key_values=made.past_key_values, use_cache=True)
        return read - began, time.perf_counter() - read

    @torch.inference_mode()
    def score(ids: Sequence[int], places: Sequence[int]) -> float:
        logits = model(torch.tensor([ids])).logits[0]
        before, own = [place - 1 for place in places], [ids[place] for place in places]
        logp = logits[before].double().log_softmax(-1)
        return -float(logp.gather(1, torch.tensor(own)[:, None]).sum())

    return Opened(run, score)


def _onnxruntime(path: Path, threads: int, room: int) -> Opened:
    import numpy as np

    session = session_of(path / MODEL, threads)
    if not any(node.name.startswith("past.") for node in session.get_inputs()):
        raise ConfigError(f"{path}: its graph takes no keys and values; export it without --without-past.")

    def run(prompt: int, decode: int) -> Seconds:
        began = time.perf_counter()
        logits, kept = run_session(session, np.ones((1, prompt), np.int64), np.ones((1, prompt), np.int64))
        read = time.perf_counter()
        for written in range(1, decode + 1):
            new, mask = logits[:, -1:].argmax(-1), np.ones((1, prompt + written), np.int64)
            logits, kept = run_session(session, new, mask, kept)
        return read - began, time.perf_counter() - read

    def score(ids: Sequence[int], places: Sequence[int]) -> float:
        logits, _ = run_session(session, np.array([ids]), np.ones((1, len(ids)), np.int64))
        found = logits[0, [place - 1 for place in places]].astype(np.float64)
        own = found[np.arange(len(places)), [ids[place] for place in places]]
        largest = found.max(-1)
        return float((largest + np.log(np.exp(found - largest[:, None]).sum(-1)) - own).sum())

    return Opened(run, score)


def _llama_cpp(path: Path, threads: int, room: int) -> Opened:
    xllamacpp: Any = import_module("xllamacpp")

    params = xllamacpp.CommonParams()
    params.model.path, params.port, params.warmup, params.fit_params = str(path), 0, False, False
    params.n_ctx, params.n_parallel, params.n_gpu_layers = room, 1, 0
    params.cpuparams.n_threads = params.cpuparams_batch.n_threads = threads
    server = xllamacpp.Server(params)
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))

    def ask(ids: Sequence[int], **settings: Any) -> Any:
        body = json.dumps({"prompt": list(ids)} | settings).encode()
        address = f"{server.listening_address}/completion"
        request = urllib.request.Request(address, body, {"Content-Type": "application/json"})
        with opener.open(request) as reply:
            return json.loads(reply.read())

    def run(prompt: int, decode: int) -> Seconds:
        # The first token comes with the prompt.
        settings = {"n_predict": decode + 1, "ignore_eos": True, "cache_prompt": False, "temperature": 0}
        times = ask([1] * prompt, **settings)["timings"]
        if (times["prompt_n"], times["predicted_n"]) != (prompt, decode + 1):
            raise ConfigError(f"{path}: llama.cpp read and wrote other numbers of tokens than it was asked for.")
        return times["prompt_ms"] / 1000, times["predicted_ms"] / 1000

    def logp(before: Sequence[int], token: int) -> float:
        # It is made to write that token; what it tells is of its own distribution all the same.
        settings = {"n_predict": 1, "temperature": 1.0, "top_k": 0, "cache_prompt": True}
        told = ask(before, n_probs=1, logit_bias=[[token, FORCED]], **settings).get("completion_probabilities")
        if told and told[0]["id"] == token:
            return told[0]["logprob"]
        # Beside a part of a character it tells nothing: then a letter is written, and all tokens are listed.
        told = ask(before, n_probs=EVERY, logit_bias=[["a", FORCED]], **settings)["completion_probabilities"]
        return next(one["logprob"] for one in told[0]["top_logprobs"] if one["id"] == token)

    def score(ids: Sequence[int], places: Sequence[int]) -> float:
        return -sum(logp(ids[:place], ids[place]) for place in places)

    return Opened(run, score)


def _serve() -> None:
    path, options = Path(sys.argv[1]), json.loads(sys.argv[2])
    room = max(options["prompt"] + options["decode"], options["longest"]) + 8
    model = opened(path, options["threads"], room)
    _say({})
    for line in sys.stdin:
        if line.strip():
            row = json.loads(line)
            _say({"nats": model.score(row["ids"], row["places"])})
        else:
            prompt, decode = model.run(options["prompt"], options["decode"])
            _say({"prompt": prompt, "decode": decode, "memory": _largest_memory()})


def _say(told: dict[str, float]) -> None:
    print("\n" + json.dumps(told), flush=True)


def _largest_memory() -> int:
    """Bytes that this process took at most. What the system counts for it (``ru_maxrss``) includes its parent's."""
    status = Path("/proc/self/status")
    if status.exists():
        return next(1024 * int(line.split()[1]) for line in status.read_text().splitlines() if line[:6] == "VmHWM:")
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


if __name__ == "__main__":
    _serve()
