"""The tokenizer of a world: the world's ids, and a chat template that generation can rely on."""

from typing import Any

import pytest
import torch
from jinja2.exceptions import TemplateError

from bridgegarden.exact.process import sample
from bridgegarden.exact.tasks import WORLDS
from bridgegarden.exact.tasks.arithmetic import ArithmeticWorld
from bridgegarden.exact.world import END, PAD, UNKNOWN
from bridgegarden.study.students import build_tokenizer

ALL = {name: make() for name, make in WORLDS.items()} | {"quickstart": ArithmeticWorld()}
TOKENIZERS = {name: build_tokenizer(world) for name, world in ALL.items()}


@pytest.fixture(params=list(ALL))
def name(request):
    return request.param


def drawn(name):
    """Problems with a prompt, its ids, and an answer."""
    world = ALL[name]
    for seed, problem in enumerate(world.problems(60, 0)):
        prompt, ids_of_prompt = (make(problem, seeded(seed)) for make in (world.prompt, world.prompt_ids))
        yield prompt, ids_of_prompt, world.decode(sample(world.process(problem), seeded(seed)))


def seeded(seed):
    return torch.Generator().manual_seed(seed)


def test_ids_are_those_of_the_world(name):
    tokenizer = TOKENIZERS[name]
    assert tokenizer.get_vocab() == dict(ALL[name].ids)
    assert (tokenizer.pad_token_id, tokenizer.unk_token_id, tokenizer.eos_token_id) == (PAD, UNKNOWN, END)


def test_text_survives_the_round_trip(name):
    for prompt, _, answer in drawn(name):
        for text in (prompt, answer):
            encoded = TOKENIZERS[name](text)["input_ids"]
            assert encoded == ALL[name].encode(text)
            assert TOKENIZERS[name].decode(encoded) == ALL[name].decode(encoded) == text


def test_the_generation_prompt_begins_the_whole_conversation(name):
    for prompt, ids_of_prompt, answer in drawn(name):
        start = ids(name, chat(prompt), add_generation_prompt=True)
        assert start == ids_of_prompt
        assert ids(name, chat(prompt, answer)) == [*start, *ALL[name].encode(answer), END]


def test_a_conversation_begins_its_continuation(name):
    (first, _, answer), (second, _, _) = list(drawn(name))[:2]
    conversation = ids(name, chat(first, answer))
    assert ids(name, chat(first, answer) + chat(second))[: len(conversation)] == conversation


def test_the_assistant_mask_covers_the_answer_and_its_end(name):
    prompt, _, answer = next(drawn(name))
    encoded = render(name, chat(prompt, answer), return_assistant_tokens_mask=True)
    assert sum(encoded["assistant_masks"]) == len(ALL[name].encode(answer)) + 1
    assert encoded["assistant_masks"][-1] == 1


def test_conversations_are_short(name):
    assert max(len(ids(name, chat(prompt, answer))) for prompt, _, answer in drawn(name)) < 80


def test_another_role_is_refused(name):
    with pytest.raises(TemplateError, match="roles are user and assistant, got system"):
        ids(name, [{"role": "system", "content": "Be brief."}])


def test_words_outside_the_world_are_unknown(name):
    assert TOKENIZERS[name]("elephants .")["input_ids"] == [UNKNOWN, ALL[name].ids["."]]


def chat(prompt, *answer):
    turns = [{"role": "user", "content": prompt}]
    return turns + [{"role": "assistant", "content": text} for text in answer]


def render(name, messages, **options) -> Any:
    return TOKENIZERS[name].apply_chat_template(messages, return_dict=True, **options)


def ids(name, messages, **options) -> list[int]:
    return render(name, messages, **options)["input_ids"]
