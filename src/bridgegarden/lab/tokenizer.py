"""A word-level tokenizer with a chat template, whose ids are those of an exact world."""

from tokenizers import Tokenizer, decoders, pre_tokenizers
from tokenizers.models import WordLevel
from transformers import PreTrainedTokenizerFast

from bridgegarden.exact.vocabulary import ASSISTANT, END, PAD, SPECIAL_TOKENS, UNKNOWN, USER
from bridgegarden.exact.world import World

CHAT_TEMPLATE = (
    "{% for message in messages %}"
    "{% if message['role'] == 'user' %}" + SPECIAL_TOKENS[USER] + "{{ message['content'] }}" + SPECIAL_TOKENS[END] + ""
    "{% elif message['role'] == 'assistant' %}" + SPECIAL_TOKENS[ASSISTANT] + ""
    "{% generation %}{{ message['content'] }}" + SPECIAL_TOKENS[END] + "{% endgeneration %}"
    "{% else %}{{ raise_exception('roles are user and assistant, got ' + message['role']) }}"
    "{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}" + SPECIAL_TOKENS[ASSISTANT] + "{% endif %}"
)
"""Each turn ends with the end token, the assistant's included; a conversation is a prefix of every longer one."""


def build_tokenizer(world: World) -> PreTrainedTokenizerFast:
    """The tokenizer of `world`: token ids are places in `world.vocabulary`, words are split as `world.encode` does."""
    tokenizer = Tokenizer(WordLevel(dict(world.ids), unk_token=SPECIAL_TOKENS[UNKNOWN]))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.decoder = decoders.WordPiece(prefix="##", cleanup=True)
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token=SPECIAL_TOKENS[PAD],
        unk_token=SPECIAL_TOKENS[UNKNOWN],
        eos_token=SPECIAL_TOKENS[END],
        additional_special_tokens=[SPECIAL_TOKENS[USER], SPECIAL_TOKENS[ASSISTANT]],
        padding_side="right",
        model_max_length=128,
        clean_up_tokenization_spaces=False,
    )
    fast.chat_template = CHAT_TEMPLATE
    return fast
