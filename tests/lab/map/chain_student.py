"""One student of the chain world as a Hugging Face model: the same function as a column of a stack, by another road."""

import torch
from torch import Tensor, nn
from transformers import GenerationMixin, PretrainedConfig, PreTrainedModel
from transformers.modeling_outputs import BaseModelOutput, CausalLMOutput

from bridgegarden.exact.tasks.chain import ChainWorld
from bridgegarden.lab.map.rows import Context, Problems, Worlds, features, kinds
from bridgegarden.lab.map.students import Weights

SIZES = {"modulus": 5, "steps": 3, "wordings": 6}
WORLD = ChainWorld(teacher="unsure", seed=3, **SIZES)
WORLDS = Worlds.of([WORLD, OTHER := ChainWorld(teacher="wrong_in_places", seed=4, **SIZES)])
"""Another teacher for each seed."""
PROMPT = 4 + 2 * WORLD.steps
"""Tokens of a prompt: the number, the operations and their operands, and three marks."""
OFF = -1e6
"""The logit of a token that cannot stand at a position."""


class ChainConfig(PretrainedConfig):
    model_type = "chain_student"

    def __init__(self, hidden_size: int = 8, vocab_size: int = len(WORLD.vocabulary), **kwargs):
        super().__init__(tie_word_embeddings=False, **kwargs)
        self.hidden_size, self.vocab_size = hidden_size, vocab_size
        self.wide = features(WORLD, Problems.of(WORLD.problems(1, 0)))(0, Context(*torch.zeros(2, 1).long())).shape[-1]


class ChainDecoder(PreTrainedModel):
    config_class = ChainConfig

    def __init__(self, config: ChainConfig):
        super().__init__(config)
        self.first = nn.Linear(config.wide, config.hidden_size)
        self.second = nn.Linear(config.hidden_size, config.hidden_size)
        # Tokens are read by what they say; this one is there for those who ask how many there are.
        self.tokens = nn.Embedding(config.vocab_size, 1)
        self.tokens.requires_grad_(False)
        self.post_init()

    def get_input_embeddings(self) -> nn.Embedding:
        return self.tokens

    def forward(self, input_ids: Tensor, **kwargs) -> BaseModelOutput:
        shape = *input_ids.shape, self.config.hidden_size + 3
        hidden = torch.zeros(shape, dtype=self.first.weight.dtype, device=input_ids.device)
        for place in range(min(2 * WORLD.steps + 1, input_ids.shape[1] - PROMPT + 1)):
            inputs = self._features(input_ids, place).to(hidden.dtype)
            inner = self.second(self.first(inputs).relu()).relu()
            kind = 2 if place == 2 * WORLD.steps else place % 2
            mark = nn.functional.one_hot(torch.tensor(kind), 3).to(hidden).expand(len(inner), 3)
            hidden[:, PROMPT - 1 + place] = torch.cat([inner, mark], -1)
        return BaseModelOutput(last_hidden_state=hidden)

    def _features(self, ids: Tensor, place: int) -> Tensor:
        def read(position: int, first: int, size: int) -> Tensor:
            return (ids[:, position] - first).clamp(0, size - 1)

        steps, zero = range(WORLD.steps), WORLD.first_value
        operations = torch.stack([read(2 + 2 * step, WORLD.ids["plus"], 3) for step in steps], -1)
        operands = torch.stack([read(3 + 2 * step, zero + 1, WORLD.modulus - 1) for step in steps], -1)
        start = read(1, zero, WORLD.modulus)
        value = read(PROMPT + place - 1 - place % 2, zero, WORLD.modulus) if place > 1 else start
        last = PROMPT + place - 2 + place % 2
        wording = read(last, WORLD.first_wording, WORLD.wordings) + 1 if place else torch.zeros_like(start)
        return features(WORLD, Problems(start, operations, operands))(place, Context(value, wording))


class ChainStudent(PreTrainedModel, GenerationMixin):
    config_class = ChainConfig
    base_model_prefix = "decoder"

    def __init__(self, config: ChainConfig):
        super().__init__(config)
        self.decoder = ChainDecoder(config)
        self.lm_head = nn.Linear(config.hidden_size + 3, config.vocab_size)
        self.post_init()

    def get_output_embeddings(self) -> nn.Linear:
        return self.lm_head

    def forward(self, input_ids: Tensor, **kwargs) -> CausalLMOutput:
        return CausalLMOutput(logits=self.lm_head(self.decoder(input_ids).last_hidden_state))

    @classmethod
    def of(cls, weights: Weights, seed: int, arm: int) -> "ChainStudent":
        """The student in column ``[seed, arm]`` of a stack."""
        model = cls(ChainConfig(hidden_size=weights.first.shape[-1])).to(weights.first.dtype)

        def own(tensor: Tensor) -> Tensor:
            return tensor[seed, arm].detach()

        with torch.no_grad():
            for layer, name in ((model.decoder.first, "first"), (model.decoder.second, "second")):
                layer.weight.copy_(own(getattr(weights, name)).T)
                layer.bias.copy_(own(getattr(weights, f"{name}_bias"))[0])
            head = model.lm_head.weight
            head.zero_()
            head[:, -3:] = OFF
            model.lm_head.bias.zero_()
            for number, kind in enumerate(kinds(WORLD)):
                rows = slice(first := first_token(kind.name), first + kind.width)
                matrix, bias = weights.head(kind.name)
                head[rows, :-3] = own(matrix).T
                head[rows, -3 + number] = 0.0
                model.lm_head.bias[rows] = own(bias)[0]
        # The marks say which tokens can stand where; they are not learnt.
        head.register_hook(lambda gradient: torch.cat([gradient[:, :-3], torch.zeros_like(gradient[:, -3:])], 1))
        return model

    def column(self, name: str) -> Tensor:
        """One tensor of the stack that this student would be."""
        if name.startswith(("first", "second")):
            layer = getattr(self.decoder, name.removesuffix("_bias"))
            return layer.bias[None] if name.endswith("bias") else layer.weight.T
        (kind,) = [kind for kind in kinds(WORLD) if kind.name == name.removesuffix("_bias")]
        rows = slice(first := first_token(kind.name), first + kind.width)
        return self.lm_head.bias[None, rows] if name.endswith("bias") else self.lm_head.weight[rows, :-3].T


def first_token(kind: str) -> int:
    return {"wording": WORLD.first_wording, "value": WORLD.first_value, "end": WORLD.ids["<|end|>"]}[kind]
