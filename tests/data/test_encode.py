import random

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken, Regex, Tokenizer, models, normalizers, pre_tokenizers
from transformers import AutoTokenizer, GenerationConfig, PreTrainedTokenizerBase, PreTrainedTokenizerFast

from bridgegarden.data import (
    Columns,
    chat_template_fingerprint,
    conversation,
    end_of_turn_ids,
    prompt,
    tokenise_row,
    tokenizer_fingerprint,
)
from bridgegarden.data.encode import RowTokeniser
from bridgegarden.errors import DataError, ModelError

TEMPLATES = ["chatml", "llama3", "gemma", "deepseek_coder", "phi", "thinking", "sentencepiece"]
TWO_TURNS = [
    {"role": "user", "content": "What is the capital of France?"},
    {"role": "assistant", "content": "The capital is Paris."},
    {"role": "user", "content": "Two plus two?"},
    {"role": "assistant", "content": "four"},
]


def read(row, **columns):
    return conversation(row, Columns(**columns), place="row")


def context(row):
    """The ids before the first that is learnt."""
    return row.input_ids[: next(at for at, label in enumerate(row.labels) if label != -100)]


@pytest.mark.parametrize("name", TEMPLATES)
def test_labels_are_the_ids_or_ignored_and_end_with_the_stop_token(name, request):
    tokenizer = request.getfixturevalue(name)
    row = tokenise_row(read({"messages": TWO_TURNS}), tokenizer)
    stop = end_of_turn_ids(tokenizer)[0]
    assert all(label in (-100, index) for index, label in zip(row.input_ids, row.labels, strict=True))
    assert row.labels[-1] == stop
    assert row.labels.count(stop) == 2, "one stop per assistant turn"


@pytest.mark.parametrize("name", TEMPLATES)
def test_what_is_learnt_is_what_the_assistant_said_and_nothing_else(name, request, learnt):
    tokenizer = request.getfixturevalue(name)
    row = tokenise_row(read({"messages": TWO_TURNS}), tokenizer)
    text = learnt(row, tokenizer)
    stop = tokenizer.convert_ids_to_tokens(end_of_turn_ids(tokenizer)[0])
    said = [part.strip() for part in text.split(stop)]
    assert said == ["The capital is Paris.", "four", ""]


@pytest.mark.parametrize("name", TEMPLATES)
def test_the_ids_before_the_answer_are_those_that_generation_would_see(name, request):
    tokenizer = request.getfixturevalue(name)
    row = tokenise_row(read({"messages": TWO_TURNS[:2]}), tokenizer)
    prompt = tokenizer.apply_chat_template(TWO_TURNS[:1], add_generation_prompt=True, date_string="26 Jul 2024")
    assert context(row) == prompt["input_ids"]


@pytest.mark.parametrize("name", TEMPLATES)
def test_ids_are_those_of_the_rendered_conversation_where_nothing_merges(name, request):
    tokenizer = request.getfixturevalue(name)
    row = tokenise_row(read({"messages": TWO_TURNS}), tokenizer)
    whole = tokenizer.apply_chat_template(TWO_TURNS, date_string="26 Jul 2024")["input_ids"]
    assert row.input_ids == whole[: len(row.input_ids)]


def test_a_word_planted_in_each_role_is_learnt_only_from_the_assistant(chatml, learnt):
    roles = ["system", "user", "assistant", "tool", "assistant", "user", "assistant"]
    messages = [{"role": role, "content": f"planted{at}{role}"} for at, role in enumerate(roles)]
    row = tokenise_row(read({"prompt": messages[:3], "completion": messages[3:]}), chatml)
    text = learnt(row, chatml)
    assert text == "planted4assistant<|im_end|>planted6assistant<|im_end|>"
    assert all(message["content"] in chatml.decode(row.input_ids) for message in messages)


def test_the_template_begins_the_text_with_one_bos_only(llama3):
    row = tokenise_row(read({"messages": TWO_TURNS[:2]}), llama3)
    assert row.input_ids[0] == llama3.bos_token_id
    assert row.input_ids.count(llama3.bos_token_id) == 1


def test_plain_text_is_prompt_completion_and_end_of_text(llama3, learnt):
    row = tokenise_row(read({"prompt": "Two plus two is", "completion": " four"}), llama3)
    assert context(row) == llama3("Two plus two is")["input_ids"]
    assert row.input_ids[0] == llama3.bos_token_id
    assert learnt(row, llama3) == " four<|eot_id|>"


def test_a_completion_that_brings_its_end_of_text_gets_no_second(plain):
    bare = tokenise_row(read({"prompt": "Two", "completion": " four"}), plain)
    ended = tokenise_row(read({"prompt": "Two", "completion": " four<|endoftext|>"}), plain)
    assert ended == bare
    with pytest.raises(DataError, match=r"row 3: the completion holds the end-of-text token '<\|endoftext\|>' before"):
        tokenise_row(read({"prompt": "p", "completion": "a<|endoftext|>b"}), plain, place="row 3")
    with pytest.raises(DataError, match="row: the completion is only the token"):
        tokenise_row(read({"prompt": "p", "completion": "<|endoftext|>"}), plain)


def test_a_question_and_its_answer_become_turns_where_there_is_a_template_and_text_where_there_is_none(chatml, plain):
    row = {"question": "Two plus two?", "answer": "four"}
    pair = read(row, prompt="question", completion="answer")
    assert "<|im_start|>user\nTwo plus two?" in chatml.decode(tokenise_row(pair, chatml).input_ids)
    assert plain.decode(tokenise_row(pair, plain).input_ids) == "Two plus two?four<|endoftext|>"
    text = read({"prompt": "Two plus two?", "completion": "four"})
    assert chatml.decode(tokenise_row(text, chatml).input_ids) == "Two plus two?four<|endoftext|>"


def test_messages_without_a_template_are_refused(plain):
    with pytest.raises(ModelError, match="has no chat template"):
        tokenise_row(read({"messages": TWO_TURNS}), plain)


def test_text_after_a_sentencepiece_prompt_gets_no_space_of_its_own(sentencepiece):
    spaced = tokenise_row(read({"prompt": "Two plus two is", "completion": " four"}), sentencepiece)
    assert spaced.input_ids == [*sentencepiece("Two plus two is four")["input_ids"], sentencepiece.eos_token_id]
    merged = tokenise_row(read({"prompt": "Two plus two is ", "completion": "four"}), sentencepiece)
    assert sentencepiece.decode(merged.input_ids) == "<s> Two plus two is four</s>"
    assert context(merged) == sentencepiece("Two plus two is ")["input_ids"]


def test_an_unknown_word_at_the_end_of_the_prompt_does_not_swallow_the_completion(words):
    row = tokenise_row(read({"prompt": "go violet", "completion": "red green"}), words)
    assert words.convert_ids_to_tokens(row.input_ids) == ["go", "<unk>", "red", "green", "</s>"]
    assert row.labels[:2] == [-100, -100]


def test_an_end_of_text_that_the_tokenizer_adds_is_not_put_between_prompt_and_completion(plain):
    from tokenizers import processors

    plain.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single="$A <|endoftext|>", special_tokens=[("<|endoftext|>", 0)]
    )
    row = tokenise_row(read({"prompt": "Two plus two is", "completion": " four"}), plain)
    assert plain.decode(row.input_ids) == "Two plus two is four<|endoftext|>"


TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(prompt=TEXT, completion=TEXT.filter(str.strip))
def test_any_text_is_kept_whole_and_cut_where_the_completion_begins(chatml, learnt, prompt, completion):
    row = tokenise_row(read({"prompt": prompt, "completion": completion}), chatml)
    assert chatml.decode(row.input_ids) == prompt + completion + "<|endoftext|>"
    assert learnt(row, chatml) == completion + "<|endoftext|>"
    turns = read({"prompt": prompt, "completion": completion}, prompt="prompt")
    assert learnt(tokenise_row(turns, chatml), chatml) == completion + "<|im_end|>"


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(prompt=TEXT.filter(str.strip), completion=TEXT.filter(str.strip))
def test_sentencepiece_text_is_kept_whole_too(sentencepiece, prompt, completion):
    prompt, completion = prompt.replace("\u2581", ""), completion.replace("\u2581", "") or "x"
    row = tokenise_row(read({"prompt": prompt, "completion": completion}), sentencepiece)
    whole = sentencepiece.decode([*sentencepiece(prompt + completion)["input_ids"], sentencepiece.eos_token_id])
    assert sentencepiece.decode(row.input_ids) == whole


WORDS = ("Two plus two", "is four,", "the capital of France", "Paris!", "\n", "user", "12345", "naïve", "家\t")


def long_text(seed, size=30_000):
    draw = random.Random(seed)
    return " ".join(draw.choice(WORDS) for _ in range(size // 8))


@pytest.mark.parametrize("shape", ["text", "completion", "prompt", "message"])
@pytest.mark.parametrize("name", ["plain", "chatml", "llama3", "phi", "sentencepiece", "words"])
def test_of_a_long_text_the_beginning_is_what_all_of_it_begins_with(name, shape, request):
    tokenizer = request.getfixturevalue(name)
    if shape == "message" and tokenizer.chat_template is None:
        pytest.skip("has no chat template")
    for seed, room in enumerate((2, 17, 128)):
        text = long_text(seed)
        row = {
            "text": {"text": text},
            "completion": {"prompt": "Go on.", "completion": text},
            "prompt": {"prompt": text, "completion": "Paris"},
            "message": {"messages": [{"role": "user", "content": "Go on."}, {"role": "assistant", "content": text}]},
        }[shape]
        whole = tokenise_row(read(row), tokenizer)
        part = RowTokeniser.of(tokenizer).row(read(row), "row", room=room)
        assert room < len(part.input_ids) < room + 60 < len(whole.input_ids)
        assert part.truncated(room) == whole.truncated(room)


def test_of_a_long_text_only_the_beginning_is_encoded(plain, monkeypatch):
    encoded = []
    call = type(plain).__call__

    def counted(self, text, **options):
        encoded.append(len(text))
        return call(self, text, **options)

    monkeypatch.setattr(type(plain), "__call__", counted)
    text = long_text(0, 1_000_000)
    RowTokeniser.of(plain).row(read({"text": text}), "row", room=128)
    assert sum(encoded) < len(text) / 10


def test_digits_that_are_grouped_from_the_end_of_a_number_are_encoded_whole():
    words = ["<eos>", "<unk>", "1", "2", "12", "21", "121", "212"]
    backend = Tokenizer(models.WordLevel({word: index for index, word in enumerate(words)}, unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.Split(Regex(r"\d{1,3}(?=(\d{3})*$)"), "isolated")
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="<eos>", unk_token="<unk>")
    for digits in (9000, 9001, 9002):
        row = read({"text": ("12" * 5000)[:digits]})
        whole = tokenise_row(row, tokenizer)
        assert RowTokeniser.of(tokenizer).row(row, "row", room=8).truncated(8) == whole.truncated(8)


def test_the_first_token_of_a_row_is_never_learnt(plain):
    row = tokenise_row(read({"prompt": "", "completion": "x"}), plain)
    assert row.labels == row.input_ids
    assert row.supervised == len(row.labels) - 1


def test_generation_stops_at_every_token_that_anyone_calls_an_end_the_taught_one_first(chatml, plain, llama3):
    assert end_of_turn_ids(chatml) == (2, 0)
    assert end_of_turn_ids(chatml, GenerationConfig(eos_token_id=[7, 2])) == (2, 7, 0)
    assert end_of_turn_ids(chatml, GenerationConfig(eos_token_id=9)) == (2, 9, 0)
    assert end_of_turn_ids(plain) == (0,)
    assert end_of_turn_ids(llama3) == (llama3.eos_token_id,)


def test_a_tokenizer_that_names_no_end_is_refused(plain):
    plain.eos_token = None
    with pytest.raises(ModelError, match="names no end-of-turn token: it has neither eos_token nor chat template"):
        end_of_turn_ids(plain)
    assert end_of_turn_ids(plain, GenerationConfig(eos_token_id=5)) == (5,)
    with pytest.raises(ModelError, match="has no eos_token, so a student trained on plain text would never learn to"):
        tokenise_row(read({"prompt": "p", "completion": "c"}), plain)


@pytest.mark.parametrize("name", TEMPLATES)
def test_a_prompt_alone_has_the_ids_before_the_answer(name, request):
    tokenizer = request.getfixturevalue(name)
    for row in ({"messages": TWO_TURNS[:2]}, {"prompt": TWO_TURNS[:1], "completion": TWO_TURNS[1:2]}):
        asked = prompt(row, Columns(), place="row")
        assert RowTokeniser.of(tokenizer).prompt(asked, "row") == context(tokenise_row(read(row), tokenizer))


def test_a_plain_prompt_alone_has_the_ids_before_the_completion(llama3, plain, sentencepiece):
    row = {"prompt": "two plus", "completion": " two"}
    for tokenizer in (llama3, plain, sentencepiece):
        asked = prompt(row, Columns(), place="row")
        assert RowTokeniser.of(tokenizer).prompt(asked, "row") == context(tokenise_row(read(row), tokenizer))
    asked = prompt({"q": "two plus"}, Columns(prompt="q"), place="row")
    assert RowTokeniser.of(plain).prompt(asked, "row") == plain("two plus")["input_ids"]


def test_a_prompt_that_a_template_has_written_already_gets_no_second_bos(llama3, learnt):
    rendered = llama3.apply_chat_template(TWO_TURNS[:1], tokenize=False, add_generation_prompt=True)
    row = tokenise_row(read({"prompt": rendered, "completion": "Paris"}), llama3)
    assert row.input_ids.count(llama3.bos_token_id) == 1
    assert context(row) == llama3(rendered, add_special_tokens=False)["input_ids"]
    assert learnt(row, llama3) == "Paris<|eot_id|>"
    asked = RowTokeniser.of(llama3).prompt(prompt({"prompt": rendered}, Columns(), place="row"), "row")
    assert asked == context(row)


def test_a_rendered_prompt_in_a_named_column_is_refused_rather_than_wrapped_again(chatml):
    rendered = chatml.apply_chat_template(TWO_TURNS[:1], tokenize=False, add_generation_prompt=True)
    row = read({"q": rendered, "a": "Paris"}, prompt="q", completion="a")
    with pytest.raises(DataError, match=r"^row 2: the prompt ends with .*assistant', so a chat template has"):
        tokenise_row(row, chatml, place="row 2")


def test_a_tokenizer_keeps_its_fingerprint_when_saved_used_or_given_a_template(chatml, tmp_path):
    want = tokenizer_fingerprint(chatml)
    chatml(["a", "b b"], padding="max_length", truncation=True, max_length=3)
    assert tokenizer_fingerprint(chatml) == want
    chatml.pad_token = "<|im_end|>"
    chatml.chat_template = "other"
    assert tokenizer_fingerprint(chatml) == want
    chatml.save_pretrained(tmp_path)
    assert tokenizer_fingerprint(AutoTokenizer.from_pretrained(tmp_path)) == want


def test_a_tokenizer_that_encodes_otherwise_has_another_fingerprint(chatml, llama3):
    found = [tokenizer_fingerprint(chatml), tokenizer_fingerprint(llama3)]
    chatml.eos_token = "<|im_end|>"
    found.append(tokenizer_fingerprint(chatml))
    chatml.add_tokens([AddedToken("<new>")])
    found.append(tokenizer_fingerprint(chatml))
    chatml.backend_tokenizer.normalizer = normalizers.NFC()
    found.append(tokenizer_fingerprint(chatml))
    assert len(set(found)) == 5


def test_a_tokenizer_that_cannot_be_read_as_a_whole_is_refused():
    class Opaque(PreTrainedTokenizerBase):
        pass

    with pytest.raises(ModelError, match=r"tokenizer Opaque is not backed by the tokenizers library"):
        tokenizer_fingerprint(Opaque())


def test_chat_templates_are_told_apart(chatml, gemma, plain):
    found = {chat_template_fingerprint(tokenizer) for tokenizer in (chatml, gemma, plain)}
    assert len(found) == 3
    want = chat_template_fingerprint(chatml)
    chatml.eos_token = "<|im_end|>"
    assert chat_template_fingerprint(chatml) == want
