"""A Hugging Face causal language model as a :class:`~bridgegarden.policy.Policy`: many texts, followed token by token.

Prefixes are padded on the left and read once; from then on a token costs one position per row, and the projection to
the vocabulary is done for the last position alone.
"""

import copy
import inspect
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel
from transformers.cache_utils import Cache, DynamicCache, DynamicLayer, DynamicSlidingWindowLayer

from bridgegarden.causal_lm import architecture, cache_argument, decoder_of, head_of, head_size, input_device
from bridgegarden.errors import ConfigError, DataError, ModelError
from bridgegarden.model_probes import EARLIER, change, check_causal_lm, own_errors, probe_ids, probing
from bridgegarden.objective.support import ABSENT_LOG_MASS


class CausalLMPolicy:
    """The next-token distribution of `model` at temperature 1, evaluated in float32.

    With `vocab_size`, the vocabulary is the shared one plus one last cell, as in the objective: all mass that the model
    puts on ids from there on (padding rows of the embedding), or 1e-10 for a model that has no such ids. Policies with
    the same `vocab_size` thus have the same cells whatever the width of their heads, and the divergence between two of
    them is the soft loss that training minimises. A text that draws the last cell cannot go on: it has ended.

    No gradients; the model computes in evaluation mode, and is handed back in the mode it was in.
    """

    def __init__(self, model: PreTrainedModel, *, end_ids: Sequence[int], vocab_size: int | None = None) -> None:
        """
        Args:
            model: on the device where it is to run, its dtype kept; without the wrapping of adapters or of DDP.
            end_ids: tokens after which a text is over.
            vocab_size: how many token ids are shared with the models it is compared with; the tokenizer's. None:
                all rows of the model's own head, without a further cell.

        Raises:
            ConfigError: no `end_ids`, or one outside the vocabulary, or a `vocab_size` that the head does not have.
            ModelError: the head cannot be read, or the model cannot be followed token by token beside other texts.
        """
        width = head_size(model)
        shared = width if vocab_size is None else vocab_size
        if not 1 <= shared <= width:
            raise ConfigError(f"vocab_size must be between 1 and the rows of the model's head, {width}; got {shared}.")
        if not end_ids or not all(0 <= token < shared for token in end_ids):
            raise ConfigError(f"end_ids must name at least one token id below {shared}, got {list(end_ids)}.")
        if "position_ids" not in inspect.signature(decoder_of(model).forward).parameters:
            raise ModelError(f"{architecture(model)}: takes no position_ids, so padded batches would shift its texts.")
        check_causal_lm(model)
        self.model = model
        self.end_ids = tuple(end_ids)
        self.shared_size = shared
        """How many cells are tokens."""
        self.vocab_size = shared if vocab_size is None else shared + 1
        """Cells, the one for everything outside the shared vocabulary included."""
        self.window: int | None = getattr(model.config.get_text_config(), "max_position_embeddings", None)
        """Most tokens the model can read."""
        self._cache_argument = cache_argument(decoder_of(model))
        self._end_ids = torch.tensor(self.end_ids, device=input_device(model))
        self._check_side_by_side()

    def start(self, prefixes: Sequence[Sequence[int]]) -> "CausalLMDecoding":
        """Read `prefixes` in one padded batch.

        Raises:
            DataError: no prefix, an empty one, an id outside the shared vocabulary, or more tokens than fit.
        """
        if not prefixes or not all(len(prefix) for prefix in prefixes):
            raise DataError("a language model cannot start from nothing; each prefix needs at least one token.")
        if not all(0 <= token < self.shared_size for prefix in prefixes for token in prefix):
            raise DataError(f"a prefix holds a token id outside 0..{self.shared_size - 1}, the shared vocabulary.")
        width = max(map(len, prefixes))
        self._check_fits(width)
        pad, device = self.end_ids[0], input_device(self.model)
        ids = torch.tensor([[pad] * (width - len(prefix)) + list(prefix) for prefix in prefixes], device=device)
        lengths = torch.tensor([len(prefix) for prefix in prefixes], device=device)
        mask = (torch.arange(width, device=device) >= width - lengths[:, None]).long()
        positions = (mask.cumsum(-1) - 1).clamp(min=0)
        cache = DynamicCache(config=self.model.config.get_text_config())
        hidden = self._advance(ids, mask, positions, cache)
        for layer in cache.layers:
            if type(layer) not in (DynamicLayer, DynamicSlidingWindowLayer):
                raise ModelError(
                    f"{architecture(self.model)}: remembers its text in a {type(layer).__name__}; only keys and "
                    "values can be shared between texts. Recurrent and hybrid architectures are not supported here."
                )
        over = torch.isin(ids[:, -1], self._end_ids)
        return CausalLMDecoding(policy=self, cache=cache, mask=mask, lengths=lengths, hidden=hidden, over=over)

    def cells(self, hidden: Tensor) -> Tensor:
        """Log-probabilities from final hidden states: ``(N, D)`` to ``(N, vocab_size)`` float32 nats."""
        with torch.no_grad():
            head = head_of(self.model)
            # Of a model that is split over devices, the head may be on another one.
            logp = head.logits(hidden.to(head.weight.device)).to(hidden.device).float().log_softmax(-1)
            size = self.shared_size
            if self.vocab_size == size:
                return logp
            if logp.shape[1] == size:
                return torch.cat([logp, logp.new_full((len(logp), 1), ABSENT_LOG_MASS)], 1)
            # In place, so that no second (N, V) tensor is made.
            logp[:, size] = logp[:, size:].logsumexp(-1)
            return logp[:, : size + 1]

    def _advance(self, ids: Tensor, mask: Tensor, positions: Tensor, cache: Cache) -> Tensor:
        """Final hidden states ``(N, D)`` after the last of `ids`; `cache` grows by them."""
        was_training = self.model.training
        if was_training:
            self.model.eval()
        try:
            with torch.no_grad():
                output = decoder_of(self.model)(
                    input_ids=ids,
                    attention_mask=mask,
                    position_ids=positions,
                    use_cache=True,
                    **{self._cache_argument: cache},
                )
        finally:
            if was_training:
                self.model.train()
        return output.last_hidden_state[:, -1].to(ids.device)

    def _check_side_by_side(self) -> None:
        """Make sure that texts padded on the left, token by token, are read as each is alone."""
        with probing(self.model), own_errors(self.model, "cannot follow padded texts token by token."):
            ids = probe_ids(self.model) % self.shared_size
            texts = [text[text != self.end_ids[0]][None] for text in (ids[0, :EARLIER], ids[0, EARLIER:])]
            alone = [decoder_of(self.model)(input_ids=text, use_cache=False).last_hidden_state[:, -1] for text in texts]
            decoding = self.start([text[0, :-1].tolist() for text in texts])
            decoding = decoding.extend(torch.arange(2), torch.cat([text[0, -1:] for text in texts]))
            off = change(self.model, torch.cat(alone)[None].float(), decoding.hidden[None].float())
        if off > 0:
            raise ModelError(
                f"{architecture(self.model)}: texts that are written side by side do not come out as each would alone "
                f"(hidden states are off by {off:.2g} of their spread): its own code for padding or for kept keys and "
                "values is wrong. It cannot be followed token by token here."
            )

    def _check_fits(self, length: int) -> None:
        if self.window is not None and length > self.window:
            raise DataError(
                f"a text has {length} tokens, more than the {self.window} that {type(self.model).__name__} can read. "
                "Shorten the prompts or lower max_new_tokens."
            )


@dataclass(frozen=True, kw_only=True)
class CausalLMDecoding:
    """Texts in progress; a :class:`~bridgegarden.policy.Decoding`."""

    policy: CausalLMPolicy
    """Whose texts."""
    cache: Cache
    """Keys and values of all tokens so far; its tensors are never written to."""
    mask: Tensor
    """``(N, T)`` 1 where `cache` holds a token of the text, 0 where padding."""
    lengths: Tensor
    """``(N,)`` tokens of each text."""
    hidden: Tensor
    """``(N, D)`` final hidden state of the last token."""
    over: Tensor
    """``(N,)`` bool: the text has ended."""

    def log_probs(self) -> Tensor:
        """``(N, V)`` float32 nats; projected anew at every call."""
        return self.policy.cells(self.hidden)

    def ended(self) -> Tensor:
        """``(N,)`` bool."""
        return self.over

    def extend(self, rows: Tensor, tokens: Tensor) -> "CausalLMDecoding":
        """The texts ``rows[i]`` followed by ``tokens[i]``; rows in order, all of them, cost no copy.

        Raises:
            DataError: the texts have become longer than the model can read.
        """
        policy, device = self.policy, self.mask.device
        rows, tokens = rows.to(device), tokens.to(device)
        policy._check_fits(int(self.lengths.max()) + 1)
        outside = tokens >= policy.shared_size
        ids = torch.where(outside, policy._end_ids[0], tokens)
        cache, mask, lengths = copy.copy(self.cache), self.mask, self.lengths
        cache.layers = [copy.copy(layer) for layer in self.cache.layers]
        over = self.over
        if not (len(rows) == len(lengths) and torch.equal(rows, torch.arange(len(rows), device=device))):
            mask, lengths, over = mask[rows], lengths[rows], over[rows]
            for layer in cache.layers:
                _select(layer, rows)
        mask = torch.cat([mask, mask.new_ones(len(rows), 1)], 1)
        hidden = policy._advance(ids[:, None], mask, lengths[:, None], cache)
        over = over | outside | torch.isin(ids, policy._end_ids)
        return CausalLMDecoding(policy=policy, cache=cache, mask=mask, lengths=lengths + 1, hidden=hidden, over=over)

    def beside(self, other: "CausalLMDecoding") -> "CausalLMDecoding":
        """The texts of both, in progress together: these, then those of `other`, a decoding of the same policy.

        What stands before the longest of them is let go, so that texts can join for as long as they come.
        """
        both = (self, other)
        width = max(int(decoding.lengths.max()) for decoding in both)
        cache = copy.copy(self.cache)
        cache.layers = [_joined(pair, width) for pair in zip(self.cache.layers, other.cache.layers, strict=True)]
        return CausalLMDecoding(
            policy=self.policy,
            cache=cache,
            mask=torch.cat([_ending(decoding.mask, width, -1) for decoding in both]),
            lengths=torch.cat([decoding.lengths for decoding in both]),
            hidden=torch.cat([decoding.hidden for decoding in both]),
            over=torch.cat([decoding.over for decoding in both]),
        )


def _joined(layers: tuple[Any, Any], width: int) -> Any:
    """A layer with the rows of both, as if each had read `width` tokens, the last of which are its text's."""
    joined = copy.copy(layers[0])
    if joined.is_sliding:
        joined.cumulative_length = width
        width = min(width, joined.sliding_window - 1)
    joined.keys = torch.cat([_ending(layer.keys, width, -2) for layer in layers])
    joined.values = torch.cat([_ending(layer.values, width, -2) for layer in layers])
    return joined


def _ending(values: Tensor, size: int, dim: int) -> Tensor:
    """The last `size` along `dim`; zeros before them where there are not as many."""
    here = values.shape[dim]
    if here >= size:
        return values.narrow(dim, here - size, size)
    shape = list(values.shape)
    shape[dim] = size - here
    return torch.cat([values.new_zeros(shape), values], dim)


def _select(layer: Any, rows: Tensor) -> None:
    """Point a copied cache layer at some of its rows; layers may lie on different devices."""
    at = rows.to(layer.keys.device)
    layer.keys, layer.values = layer.keys.index_select(0, at), layer.values.index_select(0, at)
