"""The tokenizer of the packaged teacher: the world's ids, and a chat template that generation can rely on."""

from typing import Any

import pytest
import torch
from jinja2.exceptions import TemplateError

from bridgegarden.exact.tasks.arithmetic import END, PAD, UNKNOWN, ArithmeticWorld, make_problems
from bridgegarden.quickstart.examples import prompt_ids
from bridgegarden.quickstart.tokenizer import build_tokenizer

WORLD = ArithmeticWorld()
TOKENIZER = build_tokenizer(WORLD)


def texts():
    generator = torch.Generator().manual_seed(0)
    return [(WORLD.prompt(problem, generator), WORLD.answer(problem, generator)) for problem in make_problems(100, 0)]


def chat(prompt, *answer):
    turns = [{"role": "user", "content": prompt}]
    return turns + [{"role": "assistant", "content": text} for text in answer]


def render(messages, **options) -> Any:
    return TOKENIZER.apply_chat_template(messages, return_dict=True, **options)


def ids(messages, **options) -> list[int]:
    return render(messages, **options)["input_ids"]


def test_ids_are_those_of_the_world():
    assert TOKENIZER.get_vocab() == dict(WORLD.ids)
    assert (TOKENIZER.pad_token_id, TOKENIZER.unk_token_id, TOKENIZER.eos_token_id) == (PAD, UNKNOWN, END)


def test_text_survives_the_round_trip():
    for pair in texts():
        for text in pair:
            encoded = TOKENIZER(text)["input_ids"]
            assert encoded == WORLD.encode(text)
            assert TOKENIZER.decode(encoded) == WORLD.decode(encoded) == text


def test_the_generation_prompt_begins_the_whole_conversation():
    for prompt, answer in texts():
        start = ids(chat(prompt), add_generation_prompt=True)
        whole = ids(chat(prompt, answer))
        assert start == prompt_ids(WORLD, prompt)
        assert whole == [*start, *WORLD.encode(answer), END]


def test_a_conversation_begins_its_continuation():
    (first, answer), (second, _) = texts()[:2]
    assert ids(chat(first, answer) + chat(second))[: len(ids(chat(first, answer)))] == ids(chat(first, answer))


def test_the_assistant_mask_covers_the_answer_and_its_end():
    prompt, answer = texts()[0]
    encoded = render(chat(prompt, answer), return_assistant_tokens_mask=True)
    assert sum(encoded["assistant_masks"]) == len(WORLD.encode(answer)) + 1
    assert encoded["assistant_masks"][-1] == 1


def test_conversations_are_short():
    assert max(len(ids(chat(prompt, answer))) for prompt, answer in texts()) < 80


def test_another_role_is_refused():
    with pytest.raises(TemplateError, match="roles are user and assistant, got system"):
        ids([{"role": "system", "content": "Be brief."}])


def test_words_outside_the_world_are_unknown():
    assert TOKENIZER("Start with elephants")["input_ids"][-1] == UNKNOWN
