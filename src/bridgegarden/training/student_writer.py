"""The student's own answers in place of the data's, in the batches that training is about to read."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
from accelerate import Accelerator
from accelerate.utils import DistributedType
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from bridgegarden.causal_lm_policy import CausalLMDecoding, CausalLMPolicy
from bridgegarden.data import end_of_turn_ids
from bridgegarden.data.teacher_prompt import TEACHER_IDS, TEACHER_LABELS, TEACHER_NUMBER
from bridgegarden.diagnostics.rollout import draw, tempered
from bridgegarden.errors import ConfigError, DataError
from bridgegarden.objective.alignment import IGNORE
from bridgegarden.teacher.tokenizer_pair import OWN_TEXTS, TokenizerPair
from bridgegarden.training.batches import ROW, TEACHER, RowCollator
from bridgegarden.training.measured import CostLedger
from bridgegarden.training.on_policy import OnPolicy, stream_seed

WHOLE = (DistributedType.NO, DistributedType.MULTI_CPU, DistributedType.MULTI_GPU)
"""Ways of running in which each process has all of the student's weights."""

SHARE_REFILLED = 0.25
"""Of the places for texts in progress, how many have to be free before the next prompts are read."""


class Answer(NamedTuple):
    """A text of the student."""

    tokens: list[int]
    """Token ids, the end token included where it was reached."""
    ended: bool
    """Whether it was."""


class StudentWriter:
    """Rewrites batches: a row keeps its prompt, and its answer becomes one that the student samples now.

    Prompts are padded on the left and read once; from then on a token costs one position a row, with keys and values
    kept. All texts of an optimiser step are written together, as many at once as a micro-batch has rows: where some
    have ended, prompts of the next micro-batches take their places. Only generated tokens are supervised, up to and
    including the end token. What is drawn depends on the seed, the step, the number of the batch and the process, and
    touches no random number of training.
    """

    def __init__(
        self,
        models: Sequence[PreTrainedModel],
        on_policy: OnPolicy,
        *,
        tokenizer: PreTrainedTokenizerBase,
        collator: Any,
        accelerator: Accelerator,
        vocab_size: int,
        seed: int,
        tokens: TokenizerPair | None = None,
    ) -> None:
        """
        Args:
            models: the student, without the wrapping of adapters or of DDP, on its device; then the teacher that will
                read the answers, if it is a model with the same tokenizer.
            on_policy: how much, and how, the student writes.
            tokenizer: of both.
            collator: what makes batches.
            accelerator: of the trainer.
            vocab_size: token ids that student and teacher share; no other is ever drawn.
            seed: of training.
            tokens: how a teacher with another tokenizer reads the answers; None where it has the student's.

        Raises:
            ConfigError: a collator of somebody else's, or a student whose weights are split over processes.
            ModelError: nothing says where an answer ends, or the student cannot be followed token by token.
        """
        if not isinstance(collator, RowCollator):
            raise ConfigError("data_collator: on_policy needs the trainer's own; leave it out.")
        if accelerator.distributed_type not in WHOLE:
            raise ConfigError(
                f"on_policy: the student is sharded ({accelerator.distributed_type}), and writing needs whole weights "
                "in each process. Train with DistributedDataParallel, or leave out on_policy."
            )
        ends = [token for model in models for token in end_of_turn_ids(tokenizer, model.generation_config)]
        ends = [token for token in dict.fromkeys(ends) if token < vocab_size]
        self._policy = CausalLMPolicy(models[0], end_ids=ends, vocab_size=vocab_size)
        self._on_policy, self._collator, self._accelerator, self._seed = on_policy, collator, accelerator, seed
        self._tokens = tokens
        windows = [getattr(model.config.get_text_config(), "max_position_embeddings", None) for model in models]
        self._window: int | None = min((window for window in windows if window is not None), default=None)

    def answer(self, batches: Sequence[Mapping[str, Any]], step: int, ledger: CostLedger) -> list[Mapping[str, Any]]:
        """The batches of optimiser step `step`, those whose turn it is rewritten and the others as they are."""
        asked = {
            index: _examples(batch)
            for index, batch in enumerate(batches)
            if self._on_policy.answers(seed=self._seed, step=step, batch=index)
        }
        heads = {index: [prompt for prompt in prompts if prompt] for index, (_, prompts) in asked.items()}
        process = self._accelerator.process_index
        uniforms = [
            self._uniforms(len(some), torch.Generator().manual_seed(stream_seed(self._seed, step, index, process)))
            for index, some in heads.items()
        ]
        prompts = [prompt for some in heads.values() for prompt in some]
        texts = iter(self._written(prompts, torch.cat(uniforms), max(map(len, heads.values()))) if prompts else ())
        return [
            self._answered(*asked[index], [next(texts) for _ in heads[index]], ledger) if index in asked else batch
            for index, batch in enumerate(batches)
        ]

    def write(
        self, prompts: Sequence[Sequence[int]], generator: torch.Generator, *, at_once: int | None = None
    ) -> list[Answer]:
        """One answer for each of `prompts`.

        Args:
            prompts: token ids.
            generator: for what is drawn.
            at_once: most texts in progress; None is all. What is drawn does not depend on it.

        Raises:
            DataError: a prompt that leaves no room for a single token.
        """
        return self._written(prompts, self._uniforms(len(prompts), generator), at_once or len(prompts))

    def _uniforms(self, count: int, generator: torch.Generator) -> Tensor:
        # Drawn for all steps at once: a text's numbers do not depend on when the others end.
        return torch.rand(count, self._on_policy.max_new_tokens, dtype=torch.float64, generator=generator)

    def _written(self, prompts: Sequence[Sequence[int]], uniforms: Tensor, at_once: int) -> list[Answer]:
        model = self._policy.model
        was_training = model.training
        # Evaluation mode: no dropout, and checkpointing layers, which would drop keys and values, are plain.
        model.eval()
        try:
            with torch.no_grad(), self._accelerator.autocast():
                return self._write(prompts, uniforms, at_once)
        finally:
            model.train(was_training)

    def _write(self, prompts: Sequence[Sequence[int]], uniforms: Tensor, at_once: int) -> list[Answer]:
        policy, stops = self._policy, torch.tensor(self._policy.end_ids)
        limits = torch.tensor([self._room(len(prompt)) for prompt in prompts])
        texts: list[list[int]] = [[] for _ in prompts]
        decoding: CausalLMDecoding | None = None
        rows, begun = torch.arange(0), 0
        while decoding is not None or begun < len(prompts):
            free = at_once - len(rows)
            # Not at every place that is free: to read prompts costs a forward, and to join them a copy.
            if begun < len(prompts) and (decoding is None or free >= SHARE_REFILLED * at_once):
                new = range(begun, min(begun + free, len(prompts)))
                started, begun = policy.start([prompts[row] for row in new]), new.stop
                decoding = started if decoding is None else decoding.beside(started)
                rows = torch.cat([rows, torch.tensor(new)])
            assert decoding is not None
            logp = tempered(decoding.log_probs()[:, : policy.shared_size], self._on_policy.temperature)
            steps = torch.tensor([len(texts[row]) for row in rows])
            tokens = draw(logp, uniforms[rows, steps]).cpu()
            del logp
            for row, token in zip(rows.tolist(), tokens.tolist(), strict=True):
                texts[row].append(token)
            going = (~torch.isin(tokens, stops) & (limits[rows] > steps + 1)).nonzero().squeeze(1)
            rows = rows[going]
            decoding = decoding.extend(going, tokens[going]) if len(going) else None
        return [Answer(text, text[-1] in policy.end_ids) for text in texts]

    def _room(self, prompt: int) -> int:
        longest = self._on_policy.max_new_tokens
        if self._window is None or prompt + longest <= self._window:
            return longest
        if prompt >= self._window:
            raise DataError(
                f"on_policy: a prompt of {prompt} tokens leaves no room for an answer: the models can read "
                f"{self._window}. Lower training.max_length."
            )
        return self._window - prompt

    def _answered(
        self,
        examples: list[dict[str, Any]],
        prompts: list[list[int]],
        answers: Sequence[Answer],
        ledger: CostLedger,
    ) -> Mapping[str, Any]:
        """A batch of `examples`, those with a prompt answered by `answers`."""
        asked = [example for example, prompt in zip(examples, prompts, strict=True) if prompt]
        heads = [prompt for prompt in prompts if prompt]
        for example, prompt, answer in zip(asked, heads, answers, strict=True):
            example["input_ids"] = prompt + answer.tokens
            example["labels"] = [IGNORE] * len(prompt) + answer.tokens
            if self._tokens is not None:
                example |= self._tokens.answered(example[TEACHER_IDS], example[TEACHER_LABELS], answer.tokens)
        ledger.add(
            answers=len(answers),
            ended_answers=sum(answer.ended for answer in answers),
            prompt_tokens=sum(map(len, heads)),
            generated_tokens=sum(len(answer.tokens) for answer in answers),
        )
        made = self._collator(examples)
        if self._tokens is not None:
            made[TEACHER][OWN_TEXTS] = torch.tensor(True)
        return made


def _examples(batch: Mapping[str, Any]) -> tuple[list[dict[str, Any]], list[list[int]]]:
    """The rows of a batch without padding, and their prompts.

    A row with nothing supervised (its answer was cut off) has no prompt: it stays as it is.
    """
    ids, labels = batch["input_ids"].cpu(), batch["labels"].cpu()
    supervised = labels != IGNORE
    firsts = torch.where(supervised.any(1), supervised.int().argmax(1), 0).tolist()
    numbers = batch[ROW][:, 0].tolist() if ROW in batch else [None] * len(ids)
    examples, prompts = [], []
    for index, (first, number) in enumerate(zip(firsts, numbers, strict=True)):
        if first == 0 and supervised[index, 0]:
            where = f"sequence {index} of the batch" if number is None else f"row {number} of the data"
            raise DataError(
                f"on_policy: {where} is supervised from its first token, so there is no prompt to answer. Give rows "
                "with prompt and completion, or messages."
            )
        length = int(batch["attention_mask"][index].sum())
        example = {"input_ids": ids[index, :length].tolist(), "labels": labels[index, :length].tolist()}
        if TEACHER in batch:
            example |= _as_teacher_reads(batch[TEACHER], index)
        if TEACHER_NUMBER in batch:
            example[TEACHER_NUMBER] = int(batch[TEACHER_NUMBER][index, 0])
        examples.append(example if number is None else example | {ROW: number})
        prompts.append(example["input_ids"][:first])
    return examples, prompts


def _as_teacher_reads(batch: Mapping[str, Any], index: int) -> dict[str, list[int]]:
    """A row of what a teacher reads otherwise, without padding."""
    length = int(batch["attention_mask"][index].sum())
    return {
        TEACHER_IDS: batch["input_ids"][index, :length].tolist(),
        TEACHER_LABELS: batch["labels"][index, :length].tolist(),
    }
