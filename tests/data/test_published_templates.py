"""Every chat template that TRL ships, which are those of the published families, on rows of every kind."""

import re
from itertools import groupby
from pathlib import Path

import pytest
import trl
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from bridgegarden.data import Columns, conversation, end_of_turn_ids, tokenise_row
from bridgegarden.data.encode import RowTokeniser
from bridgegarden.data.render import render
from bridgegarden.data.template import MANY, chat_format
from bridgegarden.errors import DataError

FOLDER = Path(trl.__file__).parent / "chat_templates"
NAMES = sorted(path.stem for path in FOLDER.glob("*.jinja"))
SPECIAL = re.compile(
    r"<\|[^|<>\s]+\|>|<｜[^｜<>\s]+｜>|<\|[a-z_]+>|<[a-z_]+\|>|<(?:start|end)_of_[a-z]+>|</?think>|</?tool_call>"
    r"|</?tool_response>|\[gMASK\]|<sop>|\[/?INST\]|<image>|</s>"
)
MARK = re.compile(r"\{%-?\s*(?:end)?generation\s*-?%\}")


def tokenizer_for(source: str) -> PreTrainedTokenizerFast:
    """One token a byte, and one for each special token that `source` holds."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    backend = Tokenizer(models.BPE(vocab={letter: index for index, letter in enumerate(alphabet)}, merges=[]))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    backend.decoder = decoders.ByteLevel()
    names = dict.fromkeys(["<bos>", "<eos>", "<|user|>", "<｜end▁of▁sentence｜>", *sorted(SPECIAL.findall(source))])
    backend.add_special_tokens([AddedToken(name, special=True) for name in names])
    eos = "<｜end▁of▁sentence｜>" if "end▁of▁sentence" in source else "<eos>"
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, bos_token="<bos>", eos_token=eos, pad_token="<eos>")
    tokenizer.chat_template = source
    return tokenizer


@pytest.fixture(scope="module")
def published():
    made: dict[str, PreTrainedTokenizerFast] = {}

    def get(name: str) -> PreTrainedTokenizerFast:
        if name not in made:
            source = (FOLDER / f"{name}.jinja").read_text(encoding="utf-8")
            twin = FOLDER / f"{name}_training.jinja"
            made[name] = tokenizer_for(source + (twin.read_text(encoding="utf-8") if twin.exists() else ""))
            made[name].chat_template = source
        return made[name]

    return get


def user(text):
    return {"role": "user", "content": text}


def answer(text, **more):
    return {"role": "assistant", "content": text, **more}


def call(name, arguments):
    return {"id": "call00001", "type": "function", "function": {"name": name, "arguments": arguments}}


FOUND = {"role": "tool", "name": "adder", "tool_call_id": "call00001", "content": "found1"}
TOOLS = [
    {
        "type": "function",
        "function": {
            "name": "adder",
            "description": "Adds.",
            "parameters": {"type": "object", "properties": {"keya": {"type": "string", "description": "A key."}}},
        },
    }
]
OBJECT = answer("", tool_calls=[call("adder", {"keya": "vala", "keyb": 17})])
TEXT = answer("", tool_calls=[call("adder", '{"keya": "vala", "keyb": 17}')])
SAID_BY_CALL = ["adder", "keya", "vala", "keyb", "17"]
KINDS = {
    "one turn": ([user("ask1"), answer("say1")], [["say1"]]),
    "two turns": ([user("ask1"), answer("say1"), user("ask2"), answer("say2")], [["say1"], ["say2"]]),
    "a system": ([{"role": "system", "content": "be1"}, user("ask1"), answer("say1")], [["say1"]]),
    "a call": ([user("ask1"), OBJECT], [SAID_BY_CALL]),
    "a call as text": ([user("ask1"), TEXT], [SAID_BY_CALL]),
    "a null argument": (
        [user("ask1"), answer("", tool_calls=[call("adder", {"keya": None})])],
        [["adder", "keya", "null|None"]],
    ),
    "tools": (
        [user("ask1"), OBJECT, FOUND, answer("say1"), user("ask2"), TEXT, FOUND, answer("say2")],
        [SAID_BY_CALL, ["say1"], SAID_BY_CALL, ["say2"]],
    ),
    "reasoning": ([user("ask1"), answer("say1", reasoning_content="thought1")], [["thought1", "say1"]]),
    "thinking": ([user("ask1"), answer("say1", thinking="thought1")], [["thought1", "say1"]]),
    "reasoning in the text": ([user("ask1"), answer("<think>\nthought1\n</think>\n\nsay1")], [["thought1", "say1"]]),
    "reasoning twice": (
        [
            user("ask1"),
            answer("say1", reasoning_content="thought1"),
            user("ask2"),
            answer("say2", reasoning_content="thought2"),
        ],
        [["thought1", "say1"], ["thought2", "say2"]],
    ),
}
"""Messages, and what each of the assistant's says."""
ASKED = ("ask1", "ask2", "be1", "found1")


def row_of(messages):
    tools = TOOLS if any("tool_calls" in message for message in messages) else None
    return conversation({"messages": messages, "tools": tools}, Columns(), place="row 7")


def tokenised(messages, tokenizer):
    return tokenise_row(row_of(messages), tokenizer, place="row 7")


def tokenised_or_refused(messages, tokenizer):
    try:
        return tokenised(messages, tokenizer)
    except DataError as error:
        return str(error)


def speeches(row, tokenizer):
    """The stretches of a row that are learnt, as text."""
    at, found = 0, []
    for learnt, group in groupby(label != -100 for label in row.labels):
        count = len(list(group))
        if learnt:
            found.append(tokenizer.decode(row.input_ids[at : at + count], skip_special_tokens=False))
        at += count
    return found


@pytest.mark.parametrize("name", NAMES)
def test_a_row_is_learnt_as_it_is_said_and_up_to_the_end_of_the_turn_or_it_is_refused(name, published):
    tokenizer = published(name)
    stops = {tokenizer.convert_ids_to_tokens(index) for index in end_of_turn_ids(tokenizer)}
    for kind, (messages, said) in KINDS.items():
        row = tokenised_or_refused(messages, tokenizer)
        if isinstance(row, str):
            assert re.fullmatch("row 7: the chat template .*", row), (kind, row)
            assert kind not in ("one turn", "two turns"), row
            continue
        found = speeches(row, tokenizer)
        assert len(found) == len(said), (kind, found)
        for speech, parts in zip(found, said, strict=True):
            assert all(re.search(part, speech) for part in parts), (kind, speech)
            assert '\\"' not in speech, (kind, "encoded twice", speech)
            assert not any(asked in speech for asked in ASKED), (kind, speech)
        assert any(found[-1].endswith(stop) for stop in stops), (kind, found[-1])
        assert tokenizer.decode(row.input_ids, skip_special_tokens=False).count("<bos>") <= 1


@pytest.mark.parametrize(
    ("name", "kinds"),
    {
        "qwen3": KINDS,
        "qwen3_5_think": KINDS,
        "qwen3_5_nothink": KINDS,
        "qwen3_6": KINDS,
        "qwen3_8": KINDS,
        "deepseekv3": ("two turns", "a call", "a call as text", "tools", "a null argument"),
        "deepseek_r1_distill": ("two turns", "reasoning", "reasoning in the text", "reasoning twice"),
        "glm4moe": ("two turns", "a call", "a call as text", "tools", "reasoning", "reasoning in the text"),
        "gptoss": ("two turns", "a system", "a call", "a call as text", "tools", "reasoning", "thinking"),
        "muse_glimmer": ("two turns", "a call", "tools", "reasoning twice"),
        "nemotron_3_nano": ("two turns", "a call", "a call as text", "tools", "reasoning", "reasoning in the text"),
        "nemotron_3_super": ("two turns", "a call", "tools", "reasoning"),
        "nemotron_3_ultra": ("two turns", "a call", "tools", "reasoning"),
        "cohere2": ("two turns", "a system", "reasoning in the text"),
        "qwen2_5": ("two turns", "a call", "a call as text", "tools", "a null argument"),
        "lfm2_2_5": ("two turns", "a call", "a call as text", "tools", "reasoning"),
        "gemma4_v5": ("two turns", "a call", "a call as text", "tools", "reasoning"),
        "llama3_1": ("two turns", "a system", "a call", "a call as text", "tools"),
        "smolvlm": ("two turns", "a system"),
        "idefics3": ("two turns", "a system"),
        "llava_next": ("two turns",),
    }.items(),
)
def test_what_a_family_can_write_trains(name, kinds, published):
    for kind in kinds:
        tokenised(KINDS[kind][0], published(name))


@pytest.mark.parametrize(
    ("name", "ends"),
    {
        "cohere2": ("<|END_OF_TURN_TOKEN|>", "<|END_OF_TURN_TOKEN|>"),
        "gptoss": ("<|return|>", "<|call|>"),
        "glm4moe": ("<|user|>", "<|observation|>"),
        "gemma4_v5": ("<turn|>", "<|tool_response>"),
        "phi3": ("<|end|>", "<|end|>"),
        "deepseekv3": ("<｜end▁of▁sentence｜>", "<｜end▁of▁sentence｜>"),
        "qwen3": ("<|im_end|>", "<|im_end|>"),
        "llava_next": ("</s>", "</s>"),
    }.items(),
)
def test_the_end_of_a_turn_is_the_templates_own(name, ends, published):
    assert chat_format(published(name)).ends == ends


LONG = [
    message
    for number in range(MANY)
    for message in (user(f"ask{number}"), answer(f"say{number} " + "word " * (number % 7)))
]


@pytest.mark.parametrize("name", NAMES)
def test_the_beginning_of_a_row_is_what_the_whole_row_begins_with(name, published):
    reader = RowTokeniser.of(published(name))
    for messages in (KINDS["two turns"][0], KINDS["tools"][0], LONG[:6]):
        try:
            whole = reader.row(row_of(messages), "row 7")
        except DataError:
            continue
        size = len(whole.input_ids)
        for room in (9, size // 2, size - 1, size):
            part = reader.row(row_of(messages), "row 7", room=room)
            assert part.truncated(room) == whole.truncated(room)
            assert part.goes_on == (size > room)


@pytest.mark.parametrize("name", ["llama3", "qwen3", "gptoss", "phi3"])
def test_so_it_is_of_a_row_of_very_many_turns(name, published):
    reader, row = RowTokeniser.of(published(name)), row_of(LONG[: MANY + 4])
    whole = reader.row(row, "row 7")
    for room in (9, 300, len(whole.input_ids)):
        assert reader.row(row, "row 7", room=room).truncated(room) == whole.truncated(room)


def test_a_long_conversation_is_rendered_only_as_far_as_it_is_kept(published, monkeypatch):
    reader, rendered = RowTokeniser.of(published("llama3")), []

    def counted(messages, *arguments, **options):
        rendered.append(len(messages))
        return render(messages, *arguments, **options)

    monkeypatch.setattr("bridgegarden.data.template.render", counted)
    reader.row(row_of(LONG), "row 7", room=300)
    assert sum(rendered) < 3 * len(LONG)


def test_a_turn_that_others_follow_does_not_teach_a_token_that_ends_no_turn(published):
    tokenizer = published("gptoss")
    first, last = speeches(tokenised(KINDS["two turns"][0], tokenizer), tokenizer)
    assert first == "<|channel|>final<|message|>say1"
    assert last == "<|channel|>final<|message|>say2<|return|>"


def test_a_row_that_the_template_itself_can_write_is_not_rewritten(published):
    tokenizer = published("qwen3")
    messages = KINDS["two turns"][0]
    row = conversation({"prompt": messages[:3], "completion": messages[3:]}, Columns(), place="row")
    text = tokenizer.decode(tokenise_row(row, tokenizer).input_ids, skip_special_tokens=False)
    assert tokenizer.apply_chat_template(messages, tokenize=False).startswith(text)
    assert tokenizer.chat_template == (FOLDER / "qwen3.jinja").read_text(encoding="utf-8")


@pytest.mark.parametrize("name", [name for name in NAMES if name.endswith("_training")])
def test_marks_agree_with_what_is_found_without_them(name, published):
    tokenizer = published(name)
    bare = tokenizer_for(MARK.sub("", tokenizer.chat_template))
    if bare.get_vocab() != tokenizer.get_vocab():
        bare = PreTrainedTokenizerFast(tokenizer_object=tokenizer.backend_tokenizer, eos_token=tokenizer.eos_token)
        bare.chat_template, bare.bos_token = MARK.sub("", tokenizer.chat_template), "<bos>"
    compared = 0
    # After a tool's result DiffusionGemma's marks leave out the header, though no prompt writes it.
    apart = ("tools",) if name.startswith("diffusion") else ()
    for messages, _ in (KINDS[kind] for kind in KINDS if kind not in apart):
        try:
            unmarked = list(chat_format(bare)._cut(row_of(messages), "row"))
        except DataError:
            continue
        marked = tokenised(messages, tokenizer)
        assert speeches(marked, tokenizer) == [segment.text for segment in unmarked if segment.supervised]
        compared += 1
    assert compared or "deepseek" in name, "nothing to compare"
