"""A teacher on this machine that writes answers, a batch of prompts of similar length at a time."""

from collections.abc import Generator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Float, Int
from torch import Tensor
from transformers import GenerationConfig, LogitsProcessor, LogitsProcessorList, PreTrainedModel

from bridgegarden.causal_lm import freeze
from bridgegarden.data import end_of_turn_ids
from bridgegarden.data.encode import RowTokeniser
from bridgegarden.errors import ConfigError, DataError, ModelError
from bridgegarden.teacher.generate import Answer, Decoding, Outcome, Request

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


class LocalEngine:
    """Answers from a model in memory, in its own chat template. An :class:`~bridgegarden.teacher.generate.Engine`.

    Sampling adds Gumbel noise to the logits over the temperature and takes the largest, which is a draw from the
    softmax. The noise of an answer comes from its own random stream: order, batch size, other rows and resumption do
    not touch it. What they do touch is the last digits of logits (kernels depend on shapes, and shorter prompts of a
    batch are padded), so the same seed on the same kind of device gives the same answers except where two tokens are
    that close to each other; with one row a batch there is no such exception.
    """

    def __init__(
        self, model: PreTrainedModel, tokenizer: "PreTrainedTokenizerBase", *, name: str, batch_size: int = 16
    ) -> None:
        """
        Args:
            model: on the device where it is to run. Frozen, and put in evaluation mode here.
            tokenizer: its own.
            name: what to call it where answers say who gave them.
            batch_size: prompts at a time, >= 1.

        Raises:
            ConfigError: `batch_size` < 1.
            ModelError: nothing says where an answer ends.
        """
        if batch_size < 1:
            raise ConfigError(f"batch_size must be >= 1, got {batch_size}.")
        freeze(model)
        self.name, self.batch_size = name, batch_size
        self._model, self._tokenizer = model, tokenizer
        self._tokeniser = RowTokeniser.of(tokenizer)
        self._stops = end_of_turn_ids(tokenizer, model.generation_config)

    @property
    def settings(self) -> Mapping[str, Any]:
        """The model's name."""
        return {"generated_by": self.name}

    def answers(self, requests: Sequence[Request], decoding: Decoding) -> Generator[list[Outcome]]:
        """Answer `requests`, those with the longest prompts first: if memory is short, it is so at once."""
        prompts: list[tuple[Request, list[int]]] = []
        failures: list[Outcome] = []
        for request in requests:
            try:
                ids = self._tokeniser.prompt(request.chat, request.place)
                self._check_fits(ids, decoding)
                prompts.append((request, ids))
            except DataError as error:
                failures.append((request, str(error)))
        if failures:
            yield failures
        prompts.sort(key=lambda prompt: -len(prompt[1]))
        for start in range(0, len(prompts), self.batch_size):
            batch = prompts[start : start + self.batch_size]
            written = self._generate([ids for _, ids in batch], [request for request, _ in batch], decoding)
            yield [
                (request, self._answer(request, ids, new)) for (request, ids), new in zip(batch, written, strict=True)
            ]

    def _check_fits(self, prompt: Sequence[int], decoding: Decoding) -> None:
        window = getattr(self._model.config.get_text_config(), "max_position_embeddings", None)
        if not prompt:
            raise DataError("the prompt has no tokens.")
        if window is not None and len(prompt) + decoding.max_new_tokens > window:
            raise DataError(
                f"the prompt has {len(prompt)} tokens, which with {decoding.max_new_tokens} new ones are more than the "
                f"model's {window}. Lower --max-new-tokens, or shorten the prompt."
            )

    def _generate(
        self, prompts: Sequence[list[int]], requests: Sequence[Request], decoding: Decoding
    ) -> list[list[int]]:
        """New tokens for each prompt, as far as they go."""
        device = self._model.device
        width = max(map(len, prompts))
        pad = self._stops[0]
        inputs = torch.tensor([[pad] * (width - len(ids)) + ids for ids in prompts], device=device)
        mask = torch.tensor([[0] * (width - len(ids)) + [1] * len(ids) for ids in prompts], device=device)
        processors = LogitsProcessorList([_Finite(self.name)])
        if not decoding.greedy:
            processors.append(_OwnNoise(decoding, requests, device))
        # Not the model's own settings, which may hold penalties and cut-offs: they would not be its distribution.
        usual, self._model.generation_config = self._model.generation_config, GenerationConfig()
        settings = GenerationConfig(
            do_sample=False,
            max_new_tokens=decoding.max_new_tokens,
            eos_token_id=list(self._stops),
            pad_token_id=pad,
        )
        try:
            with torch.no_grad():
                out = self._model.generate(  # pyright: ignore[reportCallIssue]  a method that transformers mixes in
                    inputs, attention_mask=mask, generation_config=settings, logits_processor=processors
                )
        finally:
            self._model.generation_config = usual
        assert isinstance(out, Tensor)
        return out[:, width:].tolist()

    def _answer(self, request: Request, prompt: list[int], new: list[int]) -> Answer:
        ends = [at for at, token in enumerate(new) if token in self._stops]
        said = new[: ends[0]] if ends else new
        text = self._after(prompt, said) if request.chat.form == "text" else self._text(said)
        return Answer(text=text, finish_reason="stop" if ends else "length", generated_by=self.name)

    def _after(self, prompt: list[int], said: list[int]) -> str:
        """Text that goes on where a prompt stopped: decoded alone, SentencePiece would take its first space away."""
        before, whole = self._text(prompt), self._text(prompt + said)
        return whole.removeprefix(before) if whole.startswith(before) else self._text(said)

    def _text(self, ids: list[int]) -> str:
        text = self._tokenizer.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False)
        assert isinstance(text, str)
        return text


class _Finite(LogitsProcessor):
    """Nothing changed; a model that does not know what comes next is not asked on."""

    def __init__(self, name: str) -> None:
        self._name = name

    def __call__(self, input_ids: Int[Tensor, "B T"], scores: Float[Tensor, "B V"]) -> Float[Tensor, "B V"]:
        # Without an end a largest logit is not finite either.
        if not scores.amax(-1).isfinite().all():
            raise ModelError(
                f"teacher {self._name}: its next-token distribution is not finite, so what it writes would mean "
                "nothing. Load it in bfloat16 or float32 (teacher.dtype); if that changes nothing, its weights are "
                "damaged."
            )
        return scores


class _OwnNoise(LogitsProcessor):
    """Logits over the temperature, plus Gumbel noise from a stream for each row."""

    def __init__(self, decoding: Decoding, requests: Sequence[Request], device: torch.device) -> None:
        self._temperature = decoding.temperature
        self._streams = [torch.Generator(device).manual_seed(decoding.seed_of(request.key)) for request in requests]

    def __call__(self, input_ids: Int[Tensor, "B T"], scores: Float[Tensor, "B V"]) -> Float[Tensor, "B V"]:
        waits = torch.empty(scores.shape, dtype=torch.float32, device=scores.device)
        for row, stream in enumerate(self._streams):
            waits[row].exponential_(generator=stream)
        return scores.float() / self._temperature - waits.clamp_min(torch.finfo(torch.float32).tiny).log()
