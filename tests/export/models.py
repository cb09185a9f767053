"""Tiny random models of every architecture that is written to GGUF, with what each can have; and their tokenizers."""

from collections.abc import Mapping
from typing import Any, Literal

import torch
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel, PreTrainedTokenizerFast

from bridgegarden.export.gguf_tokenizer import DIGITS, GPT2
from tests.tiny import CHAT_TEMPLATE, END_OF_TEXT, TURN_END, TURN_START, VOCABULARY

LLAMA3 = {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
PLAIN = {"rope_type": "default", "rope_theta": 1e4}
ORIGINAL = {"rope_theta": 10_000.0, "original_max_position_embeddings": 32}
GEMMA = {"head_dim": 32, "query_pre_attn_scalar": 32, "sliding_window": 16, "tie_word_embeddings": True}
MODELS: Mapping[str, tuple[str, dict[str, Any]]] = {
    "llama": ("llama", {}),
    "llama, tied": ("llama", {"tie_word_embeddings": True}),
    "llama, heads of their own size": ("llama", {"head_dim": 16, "num_key_value_heads": 2}),
    "llama, biases": ("llama", {"attention_bias": True, "mlp_bias": True}),
    "llama, llama3": ("llama", {"rope_parameters": LLAMA3 | ORIGINAL}),
    "llama, linear": ("llama", {"rope_parameters": {"rope_type": "linear", "factor": 4.0, "rope_theta": 1e5}}),
    "llama, yarn": ("llama", {"rope_parameters": {"rope_type": "yarn", "factor": 4.0} | ORIGINAL}),
    "mistral": ("mistral", {"sliding_window": None}),
    "qwen2": ("qwen2", {"tie_word_embeddings": True}),
    "qwen2, yarn": ("qwen2", {"rope_parameters": {"rope_type": "yarn", "factor": 4.0} | ORIGINAL}),
    "qwen3": ("qwen3", {"head_dim": 16}),
    "gemma2": ("gemma2", {"final_logit_softcapping": 3.0, "attn_logit_softcapping": 2.0} | GEMMA),
    "gemma3": (
        "gemma3_text",
        GEMMA
        | {
            "num_hidden_layers": 6,
            "rope_parameters": {
                "sliding_attention": {"rope_type": "default", "rope_theta": 1e3},
                "full_attention": {"rope_type": "linear", "factor": 4.0, "rope_theta": 1e5},
            },
        },
    ),
}


def random_model(name: str, vocab_size: int = VOCABULARY, **settings: Any) -> PreTrainedModel:
    """The model of that name, in float32, with weights so large that whatever is left out of it shows."""
    kind, own = MODELS[name]
    sizes: dict[str, Any] = {
        "vocab_size": vocab_size,
        "hidden_size": 64,
        "intermediate_size": 96,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 1,
        "max_position_embeddings": 256,
        "bos_token_id": None,
        "eos_token_id": None,
        "pad_token_id": None,
        "tie_word_embeddings": False,
    }
    config = AutoConfig.for_model(kind, **sizes | own | settings)
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(5)
        model = AutoModelForCausalLM.from_config(config, dtype=torch.float32, attn_implementation="eager")
        for parameter in model.parameters():
            parameter.add_(torch.randn(parameter.shape), alpha=0.15)
    return model.eval()


DECOMPOSED = "a mark that follows its letter: cafe\u0301"
TEXTS = (
    "Hello, world! It's 2026 & we've 12345 tokens; don't you'll SHOUT?",
    "def f(x):\n    return x**2  # squared\n\n\n\tprint(f(10))\r\n",
    "  two spaces,   three, trailing  ",
    "naïve café — “quoted” … ½ ² ١٢٣ Straße ǅ",
    "你好，世界。日本語テキスト 한국어 텍스트",
    "emoji 👩‍👩‍👧 flags 🇩🇪 zero​width",
    DECOMPOSED,
    "http://example.org/a_b?c=1#d user@host.tld C++ $5.00 100% <b>x</b> ^~`|",
    "'S 'T 'RE 'll 'D 'm CamelCaseWords snake_case KEBAB-case",
    f"{TURN_START}user\nHello{TURN_END}\n{TURN_START}assistant\n",
    " ",
    "\n \n",
    "a",
)
"""What tokenizers cut otherwise from each other."""


def trained_tokenizer(
    rules: tuple[str, ...], ignore_merges: bool, merges: int = 400, composed: bool = False
) -> PreTrainedTokenizerFast:
    """Merges of bytes learnt from `TEXTS`, of words that are cut at `rules`, one after the other."""
    backend = Tokenizer(models.BPE(ignore_merges=ignore_merges))
    if composed:
        backend.normalizer = normalizers.NFC()
    steps = [
        pre_tokenizers.Digits(individual_digits=True)
        if rule == DIGITS
        else pre_tokenizers.Split(Regex(rule), behavior="isolated", invert=False)
        for rule in rules
        if rule != GPT2
    ]
    last = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=GPT2 in rules)
    backend.pre_tokenizer = pre_tokenizers.Sequence([*steps, last]) if steps else last
    backend.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=256 + merges, initial_alphabet=alphabet, show_progress=False)
    backend.train_from_iterator(TEXTS * 3, trainer)
    backend.add_special_tokens([AddedToken(token, special=True) for token in (END_OF_TEXT, TURN_START, TURN_END)])
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, eos_token=TURN_END, pad_token=END_OF_TEXT)
    tokenizer.chat_template = CHAT_TEMPLATE
    return tokenizer


def sentencepiece_tokenizer(
    how: Literal["prefix", "gemma", "never"] = "prefix", *, tied: bool = True
) -> PreTrainedTokenizerFast:
    """Merges of characters learnt from `TEXTS`, a byte for what is no token, as transformers has SentencePiece's BPE.

    Args:
        how: what is done with spaces: one before every stretch of text; none, as Gemma has it; none, by Metaspace.
        tied: whether runs of spaces have one rank, as those of Llama 2 and Mistral.
    """
    learnt = Tokenizer(models.BPE())
    learnt.normalizer = normalizers.Replace(" ", "▁")
    trainer = trainers.BpeTrainer(vocab_size=500, show_progress=False)
    learnt.train_from_iterator([f" {text}" for text in TEXTS[:4]] * 3, trainer)
    pieces = sorted(learnt.get_vocab(), key=lambda piece: learnt.get_vocab()[piece])
    runs = ["▁" * size for size in range(2, 17)]
    made = [piece for piece in pieces if len(piece) > 1 and piece not in runs]
    names = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256)), *runs, *made]
    names += [piece for piece in pieces if len(piece) == 1]
    vocabulary = {piece: row for row, piece in enumerate(names)}

    def splits(piece: str) -> list[tuple[str, str]]:
        pairs = [(piece[:at], piece[at:]) for at in range(1, len(piece))]
        return [pair for pair in pairs if pair[0] in vocabulary and pair[1] in vocabulary]

    of_runs = [pair for piece in runs for pair in splits(piece)]
    if tied:
        of_runs.sort(key=lambda pair: (len(pair[0]), len(pair[1])), reverse=True)
    merges = [pair for piece in made for pair in splits(piece)]
    merges = [*merges, *of_runs] if tied else [*of_runs, *merges]
    backend = Tokenizer(
        models.BPE(vocab=vocabulary, merges=merges, unk_token="<unk>", fuse_unk=True, byte_fallback=True)
    )
    steps = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
    if how == "prefix":
        backend.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
        steps.append(decoders.Strip(" ", 1, 0))
    elif how == "gemma":
        backend.normalizer = normalizers.Replace(" ", "▁")
        backend.pre_tokenizer = pre_tokenizers.Split(" ", "merged_with_previous")
    else:
        backend.pre_tokenizer = pre_tokenizers.Metaspace("▁", "never", split=False)
    backend.decoder = decoders.Sequence(steps)
    special = ["<unk>", "<s>", "</s>", TURN_START, TURN_END]
    backend.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in special])
    backend.add_tokens([AddedToken("<table>", special=False, normalized=False)])
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend, bos_token="<s>", eos_token="</s>", unk_token="<unk>", add_bos_token=True
    )
    tokenizer.chat_template = CHAT_TEMPLATE
    return tokenizer
