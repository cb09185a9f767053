"""Files of ours as llama.cpp itself reads and computes them."""

import random
from unicodedata import normalize

import pytest
import torch

from bridgegarden.export.gguf_file import KINDS, gguf_export
from bridgegarden.export.gguf_tokenizer import BPE_WORDS
from tests.export.llama_cpp import LlamaCpp
from tests.export.models import DECOMPOSED, MODELS, TEXTS, random_model, sentencepiece_tokenizer, trained_tokenizer
from tests.tiny import TURN_END, TURN_START, VOCABULARY, tiny_tokenizer

IDS = torch.randint(0, 256, (60,), generator=torch.Generator().manual_seed(0)).tolist()
EXACT = 2e-5
"""Nats. Both compute in float32, in another order."""
GELU = 2e-3
"""Nats. llama.cpp looks Gemma's activation up in a table of sixteen bits."""
ROUNDED = {"F16": 0.02, "BF16": 0.1, **dict.fromkeys(("Q8_0", "Q5_1", "Q5_0", "Q4_1", "Q4_0"), 0.3)}
"""Nats, of any token: llama.cpp rounds what it multiplies such weights with too, to eight or sixteen bits."""


def expected(model, ids):
    with torch.no_grad():
        return model(torch.tensor([ids])).logits[0, -1].log_softmax(-1)


@pytest.mark.parametrize("name", MODELS)
def test_llama_cpp_computes_every_architecture_as_transformers_does(name, tmp_path):
    model, path = random_model(name), tmp_path / "model.gguf"
    gguf_export("tiny", model, tiny_tokenizer(), [258]).write(path, "F32")
    llama, ids = LlamaCpp(path), IDS
    written = []
    for _ in range(3):
        ours = expected(model, ids + written)
        theirs = torch.tensor(llama.logps(ids + written, VOCABULARY))
        assert (theirs - ours).abs().max() < (GELU if "gemma" in name else EXACT)
        written.append(int(ours.argmax()))
    assert llama.greedy(ids, 3) == written


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind != "F32"])
def test_llama_cpp_computes_rounded_weights_as_transformers_does_with_the_same(kind, tmp_path):
    from transformers import AutoModelForCausalLM

    path = tmp_path / "model.gguf"
    gguf_export("tiny", random_model("llama"), tiny_tokenizer(), [258]).write(path, kind)
    model = AutoModelForCausalLM.from_pretrained(tmp_path, gguf_file=path.name, dtype=torch.float32).eval()
    theirs = torch.tensor(LlamaCpp(path).logps(IDS, VOCABULARY))
    off = (theirs - expected(model, IDS)).abs().max().item()
    assert off < ROUNDED[kind]


@pytest.mark.parametrize(("rules", "whole"), BPE_WORDS, ids=BPE_WORDS.values())
def test_llama_cpp_reads_every_text_to_the_ids_of_the_tokenizer(rules, whole, tmp_path):
    pre, path = BPE_WORDS[rules, whole], tmp_path / "model.gguf"
    tokenizer = trained_tokenizer(rules, whole, composed=pre == "qwen2")
    model = random_model("llama", len(tokenizer) + 3)  # rows without a token, too
    export = gguf_export("tiny", model, tokenizer, [tokenizer.eos_token_id])
    assert export.vocabulary.pre == pre
    export.write(path, "F32")
    llama = LlamaCpp(path)
    differing = [text for text in TEXTS if llama.ids(text) != tokenizer(text).input_ids]
    assert differing == ([DECOMPOSED] if export.notes else [])
    assert bool(export.notes) == (pre in ("qwen2", "tekken"))
    for text in TEXTS:
        assert llama.text(tokenizer(text).input_ids) == (text if pre != "qwen2" else normalize("NFC", text))
    talk = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Ho"}, {"role": "user", "content": "?"}]
    assert llama.rendered(talk) == tokenizer.apply_chat_template(talk, tokenize=False, add_generation_prompt=True)


PARTS = (
    *[
        " ",
        "  ",
        "a",
        "aa",
        "ab",
        "▁",
        "\n",
        "\t",
        "\r",
        "é",
        "e\u0301",
        "👩",
        "\u200d",
        "世",
        "ß",
        "0",
        "--",
        "\ufffd",
    ],
    *["<s>", "</s>", "<unk>", "<0x0A>", "<table>", TURN_START, TURN_END, "The", " two", "wor", "ld"],
)
"""What hostile texts are made of."""


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("how", ["prefix", "gemma", "never"])
def test_llama_cpp_reads_every_text_to_the_ids_of_sentencepiece_s_merges(how, tied, tmp_path):
    tokenizer, path = sentencepiece_tokenizer(how, tied=tied), tmp_path / "model.gguf"
    export = gguf_export("tiny", random_model("llama", len(tokenizer) + 3), tokenizer, [2])
    assert (export.vocabulary.model, export.notes) == ("llama", ())
    export.write(path, "F32")
    llama, draw = LlamaCpp(path), random.Random(0)
    texts = [*TEXTS, *("".join(draw.choices(PARTS, k=draw.randint(1, 20))) for _ in range(150))]
    texts += [letter * size for letter in " a-\n世" for size in (2, 3, 5, 8, 15, 16, 17, 31, 33, 64, 77, 200)]
    assert [text for text in texts if llama.ids(text) != tokenizer(text).input_ids] == []
    assert tokenizer("a").input_ids[0] == tokenizer.bos_token_id
    without = [
        text for text in texts if llama.ids(text, special=False) != tokenizer.encode(text, add_special_tokens=False)
    ]
    assert without == []
    for text in (text for text in TEXTS if TURN_END not in text):
        assert llama.text(tokenizer(text, add_special_tokens=False).input_ids) == " " * (how == "prefix") + text
    talk = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Ho"}, {"role": "user", "content": "?"}]
    assert llama.rendered(talk) == tokenizer.apply_chat_template(talk, tokenize=False, add_generation_prompt=True)
