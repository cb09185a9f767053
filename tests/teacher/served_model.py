"""A real, tiny language model behind the server of the tests, in the manners of several servers."""

import threading
from typing import Any, Literal

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from tests.tiny import tiny_model, tiny_tokenizer

Manner = Literal["token_ids", "llama.cpp", "bytes", "without_end"]
"""``token_ids``: vLLM, told to say ids. ``llama.cpp``: ids beside text, none for the end of turn. ``bytes``: text and
bytes. ``without_end``: so, and nothing of the end of turn, as hosted models."""


def sharp_teacher(vocab_size: int = 259) -> PreTrainedModel:
    """Less uniform than a random model is."""
    model: Any = tiny_model("llama", vocab_size, hidden_size=48, seed=1)
    with torch.no_grad():
        model.lm_head.weight *= 6
    return model.eval()


class ServedModel:
    """Replies as an OpenAI-compatible server; log-probabilities are at temperature 1.

    It writes nothing but letters, so that its answers are text, and ends its turn after 4 to 9 tokens: what it says of
    every token is the model's own distribution all the same.
    """

    def __init__(self, model: PreTrainedModel, manner: Manner = "token_ids") -> None:
        self.model = model
        self.tokenizer: PreTrainedTokenizerFast = tiny_tokenizer()
        self.manner = manner
        letters = [self.tokenizer.convert_tokens_to_ids(letter) for letter in "abcdefghijklmnopqrstuvwxyz"]
        self.letters = torch.tensor(letters)
        self.end = int(self.tokenizer.convert_tokens_to_ids("<|im_end|>"))
        self.lock = threading.Lock()

    def __call__(self, content: dict[str, Any]) -> dict[str, Any]:
        with self.lock:
            prompt = self.tokenizer.apply_chat_template(
                content["messages"], add_generation_prompt=True, return_dict=True
            )["input_ids"]
            ids, logps = self._write(list(prompt), content)
        said = [index for index in ids if index != self.end]
        reply = {
            "index": 0,
            "message": {"role": "assistant", "content": self.tokenizer.decode(said)},
            "finish_reason": "stop" if ids[-1] == self.end else "length",
        }
        if content.get("logprobs"):
            shown = len(said) if self.manner == "without_end" else len(ids)
            reply["logprobs"] = {
                "content": [
                    self._entry(index, logp, content["top_logprobs"])
                    for index, logp in zip(ids[:shown], logps, strict=False)
                ]
            }
        return {"model": content["model"], "choices": [reply]}

    @torch.no_grad()
    def _write(self, prompt: list[int], content: dict[str, Any]) -> tuple[list[int], list[torch.Tensor]]:
        generator = torch.Generator().manual_seed(content.get("seed", 0))
        ids, logps = [], []
        for step in range(content["max_tokens"]):
            logits = self.model(torch.tensor([prompt + ids])).logits[0, -1].float()
            logps.append(logits.log_softmax(-1))
            choice = logits[self.letters]
            if content["temperature"]:
                letter = torch.multinomial((choice / content["temperature"]).softmax(-1), 1, generator=generator)
            else:
                letter = choice.argmax()
            ids.append(self.end if step == 4 + len(prompt) % 6 else int(self.letters[letter]))
            if ids[-1] == self.end:
                break
        return ids, logps

    def _entry(self, index: int, logp: torch.Tensor, top: int) -> dict[str, Any]:
        likeliest = logp.topk(top).indices.tolist()
        if index not in likeliest:
            likeliest.append(index)  # as vLLM does
        listed = [self._token(other, float(logp[other])) for other in likeliest]
        return {**self._token(index, float(logp[index])), "top_logprobs": listed}

    def _token(self, index: int, logp: float) -> dict[str, Any]:
        if self.manner == "token_ids":
            return {"token": f"token_id:{index}", "logprob": logp, "bytes": list(f"token_id:{index}".encode())}
        text = self.tokenizer.decode([index])
        given = list(text.encode()) if index >= 256 else [index_byte(self.tokenizer, index)]
        if self.manner == "llama.cpp":
            text, given = ("", []) if index >= 256 else (text, given)
            return {"id": index, "token": text, "logprob": logp, "bytes": given}
        return {"token": text, "logprob": logp, "bytes": given}


def index_byte(tokenizer: PreTrainedTokenizerFast, index: int) -> int:
    """The byte that a token of the tiny tokenizer stands for."""
    from bridgegarden.teacher.server_logprobs import BYTE_OF

    return BYTE_OF[str(tokenizer.convert_ids_to_tokens(index))]
