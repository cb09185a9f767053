"""What is written to GGUF, as transformers reads it; and what is refused before anything is written."""

import json
import re
from collections.abc import Callable
from typing import Any

import pytest
import torch
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedTokenizerFast

from bridgegarden.errors import ConfigError, ModelError
from bridgegarden.export.gguf_file import KINDS, check_kind, gguf_export
from bridgegarden.export.gguf_tokenizer import BPE_WORDS, Written
from bridgegarden.export.usage import TurnMarks, modelfile, turn_marks
from tests.architectures import tiny_architecture
from tests.export.models import TEXTS, random_model, sentencepiece_tokenizer, trained_tokenizer
from tests.tiny import VOCABULARY, tiny_tokenizer

TALK = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Ho"}, {"role": "user", "content": "?"}]


@pytest.mark.parametrize("name", ["llama", "llama, tied", "mistral", "qwen2", "qwen3", "gemma3"])
def test_transformers_reads_the_weights_that_were_written(name, tmp_path):
    # Of Qwen's heads it takes the size for granted.
    model = random_model(name, **({"head_dim": 128} if name == "qwen3" else {}))
    gguf_export("tiny", model, tiny_tokenizer(), [258]).write(tmp_path / "model.gguf", "F32")
    read = AutoModelForCausalLM.from_pretrained(tmp_path, gguf_file="model.gguf", dtype=torch.float32).state_dict()
    # Of Gemma's norms one was added and is taken away again.
    for key, weight in model.state_dict().items():
        torch.testing.assert_close(read[key], weight, rtol=0, atol=1e-6 if "gemma" in name else 0)


def test_transformers_reads_the_tokenizer_that_was_written(tmp_path):
    rules = next(rules for (rules, _), pre in BPE_WORDS.items() if pre == "llama-bpe")
    tokenizer = trained_tokenizer(rules, True)
    model = random_model("llama", len(tokenizer))
    gguf_export("tiny", model, tokenizer, [tokenizer.eos_token_id]).write(tmp_path / "model.gguf", "F16")
    read = AutoTokenizer.from_pretrained(tmp_path, gguf_file="model.gguf")
    assert [read(text).input_ids for text in TEXTS] == [tokenizer(text).input_ids for text in TEXTS]
    assert read.eos_token_id == tokenizer.eos_token_id
    assert read.chat_template == tokenizer.chat_template


@pytest.mark.parametrize("kind", KINDS)
def test_weights_are_rounded_by_no_more_than_their_bits(kind, tmp_path):
    model = random_model("llama")
    gguf_export("tiny", model, tiny_tokenizer(), [258]).write(tmp_path / "model.gguf", kind)
    read = AutoModelForCausalLM.from_pretrained(tmp_path, gguf_file="model.gguf", dtype=torch.float32).state_dict()
    bits = {"F32": 24, "F16": 11, "BF16": 8, "Q8_0": 8, "Q5_1": 5, "Q5_0": 5, "Q4_1": 4, "Q4_0": 4}[kind]
    for key, weight in model.state_dict().items():
        own = 24 if weight.dim() == 1 else max(bits, 8) if "embed" in key or "lm_head" in key else bits
        step = 2.0 * weight.abs().max() / 2**own
        assert (read[key] - weight).abs().max() <= step, key


DYNAMIC = {"rope_type": "dynamic", "factor": 2.0, "rope_theta": 1e4}
WINDOW = {"use_sliding_window": True, "sliding_window": 8, "max_window_layers": 0}
REFUSED = {
    "phi3": "architecture 'phi3' cannot be written",
    "mixtral": "architecture 'mixtral' cannot be written",
}


@pytest.mark.parametrize("kind", REFUSED)
def test_an_architecture_that_is_not_covered_is_refused_by_name(kind):
    with pytest.raises(ModelError, match=f"model 'x': the {REFUSED[kind]}.*Covered: llama, mistral, qwen2"):
        gguf_export("x", tiny_architecture(kind), tiny_tokenizer(), [258])


@pytest.mark.parametrize(
    ("name", "settings", "words"),
    [
        ("llama", {"hidden_act": "relu"}, "the activation 'relu' in llama"),
        (
            "qwen2",
            {"rope_parameters": DYNAMIC},
            "rope_type 'dynamic'",
        ),
        ("gemma2", {"query_pre_attn_scalar": 7}, "query_pre_attn_scalar 7.*head_dim, which is 32"),
        ("gemma2", {"tie_word_embeddings": False}, "a head of its own weight in gemma2"),
        ("gemma2", {"layer_types": ["full_attention"] * 2}, "layer_types 'full_attention' of layer 0"),
        ("gemma3", {"attn_logit_softcapping": 5.0}, "attn_logit_softcapping"),
        (
            "qwen2",
            WINDOW,
            "see a window only in qwen2",
        ),
        ("qwen3", {"attention_bias": True}, "no place for model.layers.0.self_attn.q_proj.bias"),
    ],
)
def test_a_setting_that_llama_cpp_passes_over_is_refused_by_name(name, settings, words):
    with pytest.raises(ModelError, match=words):
        gguf_export("x", random_model(name, **settings), tiny_tokenizer(), [258])


def test_a_model_with_a_window_is_written_for_texts_within_it(tmp_path):
    export = gguf_export("x", random_model("mistral", sliding_window=16), tiny_tokenizer(), [258])
    assert any("at most 16 tokens" in note for note in export.notes)
    export.write(tmp_path / "model.gguf", "F32")
    read = AutoModelForCausalLM.from_pretrained(tmp_path, gguf_file="model.gguf")
    assert read.config.max_position_embeddings == 16


def tokenizer_of(pre: Any = None, normalizer: Any = None, **token: bool) -> PreTrainedTokenizerFast:
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {letter: row for row, letter in enumerate(letters)} | {"ab": 256}
    backend = Tokenizer(models.BPE(vocab=vocabulary, merges=[("a", "b")]))
    backend.pre_tokenizer = pre or pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    if normalizer is not None:
        backend.normalizer = normalizer
    backend.add_special_tokens([AddedToken("<end>", special=True, **token)])
    return PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="<end>")


@pytest.mark.parametrize(
    ("tokenizer", "words"),
    [
        (tokenizer_of(pre_tokenizers.ByteLevel(add_prefix_space=True)), "it cuts words by .*add_prefix_space"),
        (tokenizer_of(pre_tokenizers.Sequence([pre_tokenizers.Whitespace()])), "it cuts words by .*Whitespace"),
        (tokenizer_of(pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)), "none of llama.cpp's ways"),
        (tokenizer_of(normalizer=normalizers.Lowercase()), "changes a text before it is cut .normalizer Lowercase"),
        (tokenizer_of(lstrip=True), "its token '<end>' is matched with lstrip"),
    ],
)
def test_a_tokenizer_that_llama_cpp_does_not_have_is_refused(tokenizer, words):
    with pytest.raises(ModelError, match=rf"its tokenizer cannot be written as GGUF: .*{words}"):
        gguf_export("x", random_model("llama"), tokenizer, [257])


def changed(change: Callable[[Any], None]) -> PreTrainedTokenizerFast:
    """A tokenizer of SentencePiece's merges with something that llama.cpp has no equal for."""
    tokenizer = sentencepiece_tokenizer()
    tree = json.loads(tokenizer.backend_tokenizer.to_str())
    change(tree)
    return PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer.from_str(json.dumps(tree)), bos_token="<s>", eos_token="</s>"
    )


def metaspace(scheme: str, split: bool = False) -> Callable[[Any], None]:
    own = {"type": "Metaspace", "replacement": "▁", "prepend_scheme": scheme, "split": split}
    return lambda tree: tree.update(normalizer=None, pre_tokenizer=own)


def of_model(**own: Any) -> Callable[[Any], None]:
    return lambda tree: tree["model"].update(own)


def without(name: str) -> Callable[[Any], None]:
    return lambda tree: tree["model"]["vocab"].pop(name)


def apart(tree: Any) -> None:
    """One merge into a token comes before those into others, and one behind."""
    merges = tree["model"]["merges"]
    at = next(at for at in range(1, len(merges)) if "".join(merges[at]) == "".join(merges[at - 1]))
    merges.append(merges.pop(at))


def looked_for_later(tree: Any) -> None:
    tree["added_tokens"][-1]["normalized"] = True


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (of_model(byte_fallback=False), "not with a byte for what is no token"),
        (of_model(ignore_merges=True), "not with a byte for what is no token"),
        (without("<0x1F>"), "no token for the byte <0x1F>"),
        (lambda tree: tree["model"]["merges"].pop(7), "it does not merge '.*' and '.*', although that is a token"),
        (apart, "before and after others"),
        # Runs of spaces, the shortest left part first.
        (lambda tree: tree["model"]["merges"].reverse(), "before and after others"),
        (lambda tree: tree.update(normalizer={"type": "Lowercase"}), "changes a text before it is cut"),
        (lambda tree: tree.update(pre_tokenizer={"type": "Whitespace"}), "it cuts words by .*Whitespace"),
        (metaspace("first"), "it puts spaces before words by Metaspace .prepend_scheme 'first', split False"),
        (metaspace("always"), "it puts spaces before words by Metaspace .prepend_scheme 'always', split False"),
        (
            metaspace("never", split=True),
            "it puts spaces before words by Metaspace .prepend_scheme 'never', split True",
        ),
        (looked_for_later, "its token '<table>' is looked for in a text that was changed before"),
    ],
)
def test_merges_of_characters_that_llama_cpp_has_no_scores_for_are_refused(change, words):
    with pytest.raises(ModelError, match=rf"its tokenizer cannot be written as GGUF: .*{words}"):
        gguf_export("x", random_model("llama", 700), changed(change), [2])


def test_a_tokenizer_larger_than_the_embedding_is_refused():
    with pytest.raises(ModelError, match="has 259 tokens, and its embedding only 100 rows"):
        gguf_export("x", random_model("llama", 100), tiny_tokenizer(), [258])


def test_a_kind_that_the_package_cannot_write_is_refused():
    with pytest.raises(ConfigError, match=r"'Q4_K' is no type of weights.*llama-quantize"):
        check_kind("Q4_K")


def test_a_number_that_is_not_finite_ends_the_writing_and_leaves_nothing(tmp_path):
    model = random_model("llama")
    model.model.norm.weight.data[3] = float("nan")
    with pytest.raises(ModelError, match=r"output_norm.weight: holds a number that is not finite"):
        gguf_export("x", model, tiny_tokenizer(), [258]).write(tmp_path / "model.gguf", "F32")
    assert not list(tmp_path.iterdir())
    model.model.norm.weight.data[3] = 1.0
    model.lm_head.weight.data[0, 0] = 1e6
    with pytest.raises(ModelError, match=r"output.weight: holds 1e.06, which is more than F16 has"):
        gguf_export("x", model, tiny_tokenizer(), [258]).write(tmp_path / "model.gguf", "F16")
    assert not list(tmp_path.iterdir())


TEMPLATES = {
    "chatml": (tiny_tokenizer().chat_template, {"user", "assistant", "system"}),
    "a system of its own": (
        "{% if messages[0].role != 'system' %}<s>Be good.</s>{% endif %}{% for m in messages %}<{{ m.role }}>"
        "{{ m.content | trim }}</{{ m.role }}>\n{% endfor %}{% if add_generation_prompt %}<assistant>{% endif %}",
        {"user", "assistant", "system"},
    ),
    "no system": (
        "{{ bos_token }}{% for m in messages %}{% if m.role == 'system' %}{{ raise_exception('none') }}{% endif %}"
        "<t>{{ 'model' if m.role == 'assistant' else m.role }}\n{{ m.content }}<e>\n{% endfor %}"
        "{% if add_generation_prompt %}<t>model\n{% endif %}",
        {"user", "assistant"},
    ),
}


@pytest.mark.parametrize("name", TEMPLATES)
def test_marks_around_turns_are_those_of_the_chat_template(name):
    tokenizer, (template, roles) = tiny_tokenizer(), TEMPLATES[name]
    tokenizer.bos_token, tokenizer.chat_template = "<|endoftext|>", template
    marks = turn_marks(tokenizer, begins=True)
    assert marks is not None
    assert set(marks.around) == roles
    talks = [TALK, TALK[:1], *([[{"role": "system", "content": "S"}, *TALK]] if "system" in roles else [])]
    for talk in talks:
        wanted = tokenizer.apply_chat_template(talk, tokenize=False, add_generation_prompt=True)
        assert marks.render(talk) == wanted.removeprefix("<|endoftext|>")


def test_a_template_that_changes_messages_is_not_written_as_marks(tmp_path):
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = "{{ messages | length }}{% for m in messages %}<{{ m.role }}>{{ m.content }}{% endfor %}"
    assert turn_marks(tokenizer, begins=False) is None
    text = modelfile(tmp_path / "x.gguf", tokenizer, [258], 128, begins=False)
    assert text.startswith("FROM ./x.gguf\n# The chat template does more")
    assert text.endswith('PARAMETER stop "<|im_end|>"\nPARAMETER num_ctx 128\n')


def as_ollama_reads(text: str) -> list[tuple[str, str]]:
    """Instructions and their values by Ollama's reader (its parser.ParseFile): a value ends at a line's end outside of
    its quotes, in which nothing is escaped, and letters that are not printed are dropped."""
    found, rest = [], text
    while rest := rest.lstrip():
        line = rest.partition("\n")[0]
        if line.startswith("#"):
            rest = rest[len(line) :]
            continue
        name, rest = rest.split(" ", 1)
        if name == "PARAMETER":
            name, rest = rest.split(" ", 1)
        mark = '"""' if rest.startswith('"""') else '"' if rest.startswith('"') else ""
        value, rest = re.fullmatch(rf"{mark}(.*?){mark}[ \t]*(?:\n(.*)|\Z)", rest, re.DOTALL).groups("")
        found.append((name, "".join(letter for letter in value if letter.isprintable() or letter in "\n\t\r")))
    return found


@pytest.mark.parametrize("stop", ["</s>", "<｜end▁of▁sentence｜>", 'a "b" c', '"', "\t<t>\n", "a\u00a0b", '"""', " x "])
def test_ollama_reads_the_values_of_a_modelfile_as_they_were(stop, tmp_path):
    tokenizer: Any = tiny_tokenizer()
    tokenizer.add_special_tokens({"eos_token": stop})
    ids = [258, tokenizer.eos_token_id]
    marks = turn_marks(tokenizer, begins=False)
    text = modelfile(tmp_path / "my x.gguf", tokenizer, ids, 128, begins=False)
    said = as_ollama_reads(text)
    assert marks is not None
    sayable = stop not in ("a\u00a0b", '"""')
    stops = [("stop", value) for value in ["<|im_end|>", stop][: 1 + sayable]]
    assert said == [("FROM", "./my x.gguf"), ("TEMPLATE", marks.go()), *stops, ("num_ctx", "128")]
    assert (f"# no PARAMETER can name token {ids[1]}" in text) != sayable


def test_what_ollama_s_reader_drops_is_written_by_its_number():
    marks = {"user": ("\u00a0<u>", "{{\u200b\n"), "assistant": ("<a>", "</a>")}
    written = TurnMarks(around=marks, answer="<a>", opening="", without_system="").go()
    assert '{{ "\\U000000a0" }}<u>{{ .Content }}{{ "{{" }}{{ "\\U0000200b" }}\n' in written
    assert all(letter.isprintable() or letter == "\n" for letter in written)


def test_an_answer_ends_as_it_does_where_a_talk_ends_with_it():
    tokenizer = tiny_tokenizer()
    template = str(tokenizer.chat_template)
    # As SmolLM2's: a system of its own, whose end is also an answer's.
    tokenizer.chat_template = (
        "{% if messages[0].role != 'system' %}<|im_start|>system\nBe good.<|im_end|>\n{% endif %}" + template
    )
    marks = turn_marks(tokenizer, begins=False)
    assert marks is not None
    assert marks.around["assistant"] == ("<|im_start|>assistant\n", "<|im_end|>\n")
    assert marks.opening + marks.without_system == "<|im_start|>system\nBe good.<|im_end|>\n"


def test_rows_without_a_token_are_given_names_of_their_own():
    vocabulary = gguf_export("x", random_model("llama", VOCABULARY + 5), tiny_tokenizer(), [258]).vocabulary
    assert len(set(vocabulary.tokens)) == VOCABULARY + 5


TOKENIZERS: dict[str, Callable[[], Any]] = {
    **{pre: lambda key=key: trained_tokenizer(*key, composed=key[0] == QWEN) for key, pre in BPE_WORDS.items()},
    "prefix": sentencepiece_tokenizer,
    "gemma": lambda: sentencepiece_tokenizer("gemma"),
    "never": lambda: sentencepiece_tokenizer("never"),
}
QWEN = next(rules for (rules, _), pre in BPE_WORDS.items() if pre == "qwen2")


@pytest.mark.parametrize("name", TOKENIZERS)
def test_only_a_tokenizer_that_reads_as_the_file_does_is_taken_for_its_own(name, tmp_path):
    tokenizer = TOKENIZERS[name]()
    path, width = tmp_path / "model.gguf", len(tokenizer) + 3
    gguf_export("x", random_model("llama", width), tokenizer, [tokenizer.eos_token_id]).write(path, "F32")
    written = Written.of(path)
    assert written.fault_of(tokenizer) is None
    assert written.ends == [tokenizer.eos_token_id]
    assert written.chat_template == tokenizer.chat_template
    # What transformers makes of the file is sometimes another; it is not taken unless it gives the same ids.
    theirs: Any = AutoTokenizer.from_pretrained(tmp_path, gguf_file=path.name)
    fault = written.fault_of(theirs)
    assert (fault is None) == (name in ("gpt-2", "dbrx", "qwen2"))
    differing = [text for text in TEXTS if theirs(text).input_ids != tokenizer(text).input_ids]
    assert fault is not None or name == "qwen2" or differing == []


@pytest.mark.parametrize("change", ["pattern", "merge", "token", "special", "beginning"])
def test_a_tokenizer_that_differs_in_anything_is_not_the_file_s(change, tmp_path):
    key = next(key for key, pre in BPE_WORDS.items() if pre == "gpt-2")
    tokenizer: Any = trained_tokenizer(*key)
    path = tmp_path / "model.gguf"
    gguf_export("x", random_model("llama", len(tokenizer)), tokenizer, [tokenizer.eos_token_id]).write(path, "F32")
    tree = json.loads(tokenizer.backend_tokenizer.to_str())
    vocabulary, merges = tree["model"]["vocab"], tree["model"]["merges"]
    if change == "pattern":
        tree["pre_tokenizer"]["use_regex"] = True
        tree["pre_tokenizer"] = {"type": "Sequence", "pretokenizers": [DIGITS_APART, tree["pre_tokenizer"]]}
    elif change == "merge":
        merges[0], merges[1] = merges[1], merges[0]
    elif change == "token":
        first, second = list(vocabulary)[:2]
        vocabulary[first], vocabulary[second] = vocabulary[second], vocabulary[first]
    elif change == "special":
        tree["added_tokens"].pop(0)
    other = PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer.from_str(json.dumps(tree)), eos_token="<|im_end|>", bos_token="<|im_start|>"
    )
    if change == "beginning":
        other.backend_tokenizer.post_processor = processors.TemplateProcessing(
            single="<|im_start|> $A", special_tokens=[("<|im_start|>", other.bos_token_id)]
        )
    assert Written.of(path).fault_of(other) is not None


DIGITS_APART = {"type": "Digits", "individual_digits": True}
