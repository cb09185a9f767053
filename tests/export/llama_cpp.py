"""llama.cpp itself, as the tests ask it."""

import json
import urllib.request
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

xllamacpp = pytest.importorskip("xllamacpp", reason="needs llama.cpp: pip install --no-deps xllamacpp")


class LlamaCpp:
    """A file served by llama.cpp, on one thread."""

    def __init__(self, path: Path, context: int = 256) -> None:
        params = xllamacpp.CommonParams()
        params.model.path, params.port, params.warmup, params.fit_params = str(path), 0, False, False
        params.n_ctx, params.n_parallel = context, 1
        params.cache_type_k = params.cache_type_v = xllamacpp.ggml_type.GGML_TYPE_F32
        params.flash_attn_type = xllamacpp.llama_flash_attn_type.LLAMA_FLASH_ATTN_TYPE_DISABLED
        params.cpuparams.n_threads = params.cpuparams_batch.n_threads = 1
        self.server = xllamacpp.Server(params)

    def ask(self, path: str, body: Any = None) -> Any:
        request = urllib.request.Request(
            f"{self.server.listening_address}/{path}",
            None if body is None else json.dumps(body).encode(),
            {"Content-Type": "application/json"},
        )
        with urllib.request.build_opener(urllib.request.ProxyHandler({})).open(request, timeout=60) as reply:
            return json.loads(reply.read())

    def ids(self, text: str, *, special: bool = True) -> list[int]:
        return self.ask("tokenize", {"content": text, "add_special": special, "parse_special": True})["tokens"]

    def text(self, ids: Sequence[int]) -> str:
        return self.ask("detokenize", {"tokens": list(ids)})["content"]

    def rendered(self, messages: Sequence[dict[str, str]]) -> str:
        return self.ask("apply-template", {"messages": list(messages)})["prompt"]

    def logps(self, ids: Sequence[int], width: int) -> list[float]:
        """Nats of every token after `ids`. What it writes is of no use here: beside a part of a character it lists
        nothing, so it is made to write a letter."""
        settings = {"n_predict": 1, "n_probs": width, "temperature": 1.0, "top_k": 0, "logit_bias": [["a", 1e6]]}
        reply = self.ask("completion", {"prompt": list(ids), **settings})
        found = {entry["id"]: entry["logprob"] for entry in reply["completion_probabilities"][0]["top_logprobs"]}
        return [found[token] for token in range(width)]

    def greedy(self, ids: Sequence[int], count: int) -> list[int]:
        """The likeliest continuation."""
        settings = {"n_predict": count, "temperature": 0, "return_tokens": True}
        return self.ask("completion", {"prompt": list(ids), **settings})["tokens"]
