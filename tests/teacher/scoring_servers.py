"""A tiny model behind a server that scores tokens that are there, in the forms of vLLM, SGLang, llama.cpp and TRL.

Each form is as their sources have it: nothing of the first token, vLLM's entries with the token of the text first and
then by rank, one entry more where that token is none of the likeliest.
"""

import json
import threading
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any

import torch
from transformers import PreTrainedModel

from tests.teacher.servers import Handler, OpenAIServer, running
from tests.tiny import tiny_tokenizer

Change = Callable[[torch.Tensor], torch.Tensor]


class ScoringHandler(Handler):
    server: "ScoringServer"

    def do_GET(self) -> None:
        about = self.server.model.about.get(self.path)
        self.reply(200, about) if about is not None else self.reply(404, {"error": {"message": "Not Found"}})

    def do_POST(self) -> None:
        content = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        with self.server.lock:
            self.server.seen.append(content)
            fault = self.server.faults.pop(0) if self.server.faults else self.server.always(content)
        if fault is None or not fault(self, content):
            self.reply(*self.server.model(self.path, content))


class ScoringServer(OpenAIServer):
    def __init__(self, model: "ScoringModel") -> None:
        super().__init__()
        self.RequestHandlerClass = ScoringHandler
        self.model = model


class ScoringModel:
    """Replies with the model's own distributions, or with what `change` and the flags make of them."""

    def __init__(self, model: PreTrainedModel, kind: str = "vllm") -> None:
        self.model, self.kind, self.tokenizer = model, kind, tiny_tokenizer()
        self.lock = threading.Lock()
        self.change: Change = lambda logits: logits
        """Of ``(T, V)`` logits, where text is scored."""
        self.writes: Change = lambda logits: logits
        """The same of what it writes."""
        self.renormalised = self.as_text = False
        self.shift = self.short_of = self.unsaid = 0
        self.most_listed = self.longest = 10**6
        self.says_of_limit = "Requested prompt logprobs of {wanted}, which is greater than max allowed: {most}"
        self.template: str | None = self.tokenizer.chat_template
        self.spelling = self.tokenizer
        self.asked: list[list[int]] = []
        """Texts that were scored."""
        self.about: dict[str, dict[str, Any]] = {
            "vllm": {"/version": {"version": "0.22.1"}},
            "sglang": {"/get_server_info": {"version": "0.5.14", "model_path": "tiny"}},
            "llama.cpp": {"/props": {"total_slots": 2, "build_info": "b1", "model_path": "tiny.gguf"}},
            "trl": {"/get_world_size/": {"world_size": 1}},
        }[kind]

    def __call__(self, path: str, content: dict[str, Any]) -> tuple[int, dict[str, Any]]:
        ids = content.get("prompt", content.get("input_ids"))
        if isinstance(ids, list) and len(ids) > self.longest:
            return 400, {"error": {"message": f"maximum context length is {self.longest} tokens, got {len(ids)}"}}
        if content.get("prompt_logprobs", 0) > self.most_listed:
            wanted = content["prompt_logprobs"]
            text = self.says_of_limit.format(wanted=wanted, most=self.most_listed)
            return 400, {"error": {"message": text}}
        with self.lock:
            match self.kind, path:
                case "vllm", "/v1/completions":
                    return 200, self._vllm(content)
                case "sglang", "/generate":
                    return 200, self._sglang(content)
                case "llama.cpp", "/completion":
                    return 200, self._llama_cpp(content)
                case "trl", "/get_sequence_logprobs/":
                    return 200, self._trl(content)
                case "vllm" | "sglang" | "llama.cpp", "/detokenize":
                    key = {"vllm": "prompt", "sglang": "text", "llama.cpp": "content"}[self.kind]
                    return 200, {key: self.spelling.decode(content["tokens"])}
                case "vllm", "/tokenize" if "messages" in content:
                    ids = self.tokenizer.apply_chat_template(
                        content["messages"], chat_template=self.template, add_generation_prompt=True, return_dict=True
                    )["input_ids"]
                    return 200, {"tokens": ids, "count": len(ids)}
        return 404, {"error": {"message": "Not Found"}}

    @torch.no_grad()
    def _logps(self, ids: list[int], change: Change) -> torch.Tensor:
        """``(T, V)``: row t is what is expected after token t."""
        return change(self.model(torch.tensor([ids])).logits[0].double()).log_softmax(-1)

    def _listed(self, logp: torch.Tensor, k: int) -> list[tuple[int, float]]:
        top = logp.topk(k - self.short_of if k > 1 else k)
        values = top.values.log_softmax(-1) if self.renormalised else top.values
        return list(zip(top.indices.tolist(), values.tolist(), strict=True))

    def _scored(self, ids: list[int], k: int) -> list[tuple[float, int, list[tuple[int, float]]] | None]:
        """Of every token its log-probability and rank, and what is listed there; None of the first."""
        self.asked.append(ids)
        logps = self._logps(ids, self.change)
        rows: list[Any] = [None]
        for at in range(1, len(ids)):
            logp = logps[max(0, at - 1 - self.shift)]
            rank = int((logp > logp[ids[at]]).sum()) + 1
            rows.append((float(logp[ids[at]]), rank, self._listed(logp, k)))
        return rows

    def _written(self, ids: list[int], most: int) -> list[tuple[int, float]]:
        found: list[tuple[int, float]] = []
        for _ in range(most):
            logp = self._logps(ids + [index for index, _ in found], self.writes)[-1]
            found.append((int(logp.argmax()), float(logp.max())))
        return found

    def _vllm(self, content: dict[str, Any]) -> dict[str, Any]:
        if "prompt_logprobs" not in content:
            written = self._written(content["prompt"], content["max_tokens"])
            given = {"tokens": [f"token_id:{i}" for i, _ in written], "token_logprobs": [logp for _, logp in written]}
            return {"choices": [{"text": "", "logprobs": given, "finish_reason": "length"}]}
        entries: list[Any] = []
        for at, row in enumerate(self._scored(content["prompt"], content["prompt_logprobs"])):
            if row is None:
                entries.append(None)
                continue
            logp, rank, listed = row
            ranked = [(content["prompt"][at], logp, rank), *((i, lp, n) for n, (i, lp) in enumerate(listed, start=1))]
            entries.append({self._name(i): self._entry(i, lp, n) for i, lp, n in ranked})
        return {"model": content["model"], "choices": [{"text": "x", "prompt_logprobs": entries}]}

    def _name(self, index: int) -> str:
        return f"<{self.tokenizer.decode([index])}>" if self.as_text else str(index)

    def _entry(self, index: int, logp: float, rank: int) -> dict[str, Any]:
        return {"logprob": logp, "rank": rank, "decoded_token": self.tokenizer.decode([index])}

    def _sglang(self, content: dict[str, Any]) -> dict[str, Any]:
        ids, most = content["input_ids"], content["sampling_params"]["max_new_tokens"]
        written = [[logp, index, None] for index, logp in self._written(ids, most)]
        meta: dict[str, Any] = {"output_token_logprobs": written}
        if "top_logprobs_num" in content:
            rows, start = self._scored(ids, content["top_logprobs_num"]), content["logprob_start_len"]
            kept = [None, *rows[start + 1 :]]
            meta["input_token_logprobs"] = [[r and r[0], i, None] for r, i in zip(kept, ids[start:], strict=True)]
            meta["input_top_logprobs"] = [r and [[lp, self._id(i), None] for i, lp in r[2]] for r in kept]
        return {"text": "", "meta_info": meta}

    def _id(self, index: int) -> int | str:
        return self.tokenizer.decode([index]) if self.as_text else index

    def _llama_cpp(self, content: dict[str, Any]) -> dict[str, Any]:
        ids, most = content["prompt"], content["n_predict"]
        if most > 1:
            written = self._written(ids, most)
            said = written[self.unsaid :]  # as of a character of several tokens, of which the last alone is said
            entries = [{"id": i, "logprob": lp, "top_logprobs": []} for i, lp in said]
            tokens = {"tokens": [i for i, _ in written]} if content.get("return_tokens") else {}
            return {"tokens_evaluated": len(ids), "completion_probabilities": entries, **tokens}
        self.asked.append(ids)
        logp = self._logps(ids, self.change)[-1]
        if "logit_bias" not in content and "\ufffd" in self.tokenizer.decode([int(logp.argmax())]):
            # As of a token that is no whole character.
            return {"tokens_evaluated": len(ids), "truncated": False, "content": "\ufffd"}
        top = [{"id": i, "logprob": lp} for i, lp in self._listed(logp, min(content["n_probs"], len(logp)))]
        return {"tokens_evaluated": len(ids), "truncated": False, "completion_probabilities": [{"top_logprobs": top}]}

    def _trl(self, content: dict[str, Any]) -> dict[str, Any]:
        [ids], [first] = content["sequences"], content["prompt_lengths"]
        logprobs, names = [], []
        for at, row in list(enumerate(self._scored(ids, content["top_logprobs"])))[first:]:
            assert row is not None
            logp, _, listed = row
            if ids[at] not in dict(listed):
                listed = [*listed, (ids[at], logp)]
            names.append([index for index, _ in listed])
            logprobs.append([value for _, value in listed])
        return {"logprobs": [logprobs], "logprob_token_ids": [names]}


def scoring(model: ScoringModel) -> AbstractContextManager[ScoringServer]:
    """A server until the end of the block."""
    return running(ScoringServer(model))
