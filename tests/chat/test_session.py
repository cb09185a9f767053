"""What is told of every token, against models asked by another way."""

import copy
import math
from typing import Any

import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from bridgegarden.causal_lm_policy import CausalLMPolicy
from bridgegarden.chat.session import Chat, ChatRequest, load_chat
from bridgegarden.errors import ConfigError, DataError, ModelError
from tests.tiny import TURN_END, VOCABULARY, save_tiny, tiny_model, tiny_tokenizer

SAID = {"messages": [{"role": "user", "content": "Hello"}]}
END = 258


def chat(student=None, teacher=None, *, tokenizer=None, vocab_size=VOCABULARY, seed=0) -> Chat:
    policies = [
        None if model is None else CausalLMPolicy(model, end_ids=[END], vocab_size=vocab_size)
        for model in (student or tiny_model("qwen2"), teacher)
    ]
    assert policies[0] is not None
    return Chat(
        policies[0],
        policies[1],
        tokenizer or tiny_tokenizer(),
        names=("small", teacher and "large"),
        generator=torch.Generator().manual_seed(seed),
    )


def answer(session: Chat, said=SAID, *, temperature=0.0, most=12):
    return list(session.write(session.prompt(said), temperature=temperature, max_new_tokens=most))


@torch.no_grad()
def in_float64(model, ids: list[int]) -> torch.Tensor:
    """Log-probabilities of what follows every token, by one forward of all of them: ``(T, VOCABULARY + 1)``."""
    prob = copy.deepcopy(model).double()(torch.tensor([ids])).logits[0].softmax(-1)
    rest = (
        prob[:, VOCABULARY:].sum(-1, keepdim=True) if prob.shape[1] > VOCABULARY else torch.full((len(ids), 1), 1e-10)
    )
    return torch.cat([prob[:, :VOCABULARY], rest], 1).log()


@pytest.mark.parametrize("temperature", [0.0, 1.0, 2.5])
def test_what_is_told_of_a_token_is_what_one_forward_in_float64_says(temperature):
    # The teacher has rows beyond the tokenizer, the student none: they meet in one further cell.
    student, teacher = tiny_model("qwen2"), tiny_model("llama", VOCABULARY + 5, hidden_size=48, seed=3)
    session = chat(student, teacher)
    prompt = session.prompt(SAID)
    written = list(session.write(prompt, temperature=temperature, max_new_tokens=24))
    ids = [*prompt, *(one.token for one in written)]
    for one, q, p in zip(
        written, *(in_float64(model, ids)[len(prompt) - 1 :] for model in (student, teacher)), strict=False
    ):
        assert one.teacher is not None
        for logp, said in ((q, one.student), (p, one.teacher)):
            assert said.log_prob == pytest.approx(logp[one.token].item(), abs=2e-5)
            assert said.entropy == pytest.approx(-(logp.exp() * logp).sum().item(), abs=2e-5)
            assert [likely.prob for likely in said.top] == pytest.approx(logp.exp().topk(5).values.tolist(), abs=1e-6)
            for likely in said.top:
                assert likely.prob == pytest.approx(logp[likely.token].exp().item(), abs=1e-6)
        assert one.distance == pytest.approx((p.exp() - q.exp()).abs().sum().item() / 2, abs=1e-6)
    if temperature == 0:
        assert [one.token for one in written] == [one.student.top[0].token for one in written]
    assert [one.ending is None for one in written] == [True] * (len(written) - 1) + [False]


def test_the_likeliest_tokens_are_those_that_transformers_generates():
    model: Any = tiny_model("llama", seed=4)
    session = chat(model)
    prompt = session.prompt(SAID)
    made = model.generate(
        torch.tensor([prompt]), do_sample=False, max_new_tokens=16, eos_token_id=END, pad_token_id=256
    )[0, len(prompt) :]
    said = "".join(one.said for one in answer(session, most=16))
    assert said == tiny_tokenizer().decode(made, skip_special_tokens=True)


def test_tokens_are_drawn_from_the_student_s_distribution():
    model = tiny_model("qwen2")
    with torch.no_grad():
        model.lm_head.weight.mul_(6)
    session, draws = chat(model), 150
    prompt = session.prompt(SAID)
    sharp = (in_float64(model, prompt)[-1] / 0.7).softmax(-1)
    drawn = [next(session.write(prompt, temperature=0.7, max_new_tokens=1)).token for _ in range(draws)]
    for token in sharp.topk(3).indices.tolist():
        share = sharp[token].item()
        assert abs(drawn.count(token) / draws - share) < 4 * (share * (1 - share) / draws) ** 0.5


def test_a_character_of_several_tokens_is_shown_when_it_is_whole(monkeypatch):
    tokenizer = tiny_tokenizer()
    text = "né 👩‍👩‍👧 世"
    ids = [*tokenizer(text)["input_ids"], END]
    session = chat(teacher=tiny_model("llama"))
    written = dictated(monkeypatch, session, ids)
    assert "".join(one.piece.gap + one.piece.text for one in written) == text + TURN_END
    assert "".join(one.said for one in written) == text
    assert "\ufffd" not in text
    assert [one.piece.text for one in written[1:3]] == ["", "é"]
    assert [one.ending for one in written] == [None] * (len(ids) - 1) + ["turn"]


def test_bytes_that_are_no_character_do_not_hold_back_what_follows(monkeypatch):
    tokenizer = tiny_tokenizer()
    lone = tokenizer("世")["input_ids"][0]
    written = dictated(monkeypatch, chat(), [lone] * 6 + tokenizer("ab")["input_ids"] + [END])
    assert [bool(one.piece.text) for one in written[:4]] == [False, False, False, True]
    assert written[-3].piece.text.endswith("a")
    assert written[-2].piece.text == "b"


def dictated(monkeypatch, session: Chat, ids: list[int], said=SAID):
    """An answer of these tokens, whatever the student expects."""
    from bridgegarden.diagnostics import rollout

    tokens = iter(ids)
    monkeypatch.setattr(rollout, "draw", lambda logp, uniforms: torch.tensor([next(tokens)]))
    return answer(session, said, most=len(ids) + 5)


def test_an_answer_ends_where_the_models_can_read_no_more():
    session = chat(tiny_model("qwen2"), tiny_model("llama"))
    assert session.room == 512
    long = {"messages": [{"role": "user", "content": "x" * 470}]}
    prompt = session.prompt(long)
    written = answer(session, long, most=1000)
    assert len(prompt) + len(written) == 512
    assert written[-1].ending == "room"
    assert answer(session, most=3)[-1].ending == "length"
    with pytest.raises(DataError, match=r"conversation: it has 5\d\d tokens, and 512 is the most that can be read"):
        session.prompt({"messages": [{"role": "user", "content": "x" * 500}]})


@pytest.mark.parametrize(
    "said",
    [
        {},
        {"prompt": "x"},
        {"messages": []},
        {"messages": "x"},
        {"messages": [{"role": "tool", "content": "x"}]},
        {"messages": [{"role": "user", "content": 1}]},
        {"messages": [{"role": "user", "content": "x", "tool_calls": []}]},
        {"messages": [{"role": "user", "content": "x"}, {"role": "assistant", "content": "y"}]},
    ],
)
def test_what_is_no_conversation_is_refused(said):
    with pytest.raises(DataError, match="conversation: "):
        chat().prompt(said)


def test_an_answer_of_nothing_can_be_answered():
    turns = [*SAID["messages"], {"role": "assistant", "content": ""}, {"role": "user", "content": "Go on."}]
    ids = chat().prompt({"messages": turns})
    assert tiny_tokenizer().decode(ids).count("<|im_start|>assistant\n") == 2


def test_a_model_without_a_chat_template_goes_on_with_a_text():
    tokenizer = tiny_tokenizer(chat_template=False)
    session = chat(tokenizer=tokenizer)
    assert not session.takes_turns
    assert session.prompt({"prompt": "Once upon"}) == tokenizer("Once upon")["input_ids"]
    for said in ({"prompt": " "}, {"prompt": 3}, SAID, {"prompt": "x", **SAID}):
        with pytest.raises(DataError, match="expected 'prompt', a text"):
            session.prompt(said)


def test_words_and_the_space_between_them_are_the_text(monkeypatch):
    vocabulary = {word: at for at, word in enumerate(["<|u|>", "one", "two", "three", "<|end|>"])}
    backend = Tokenizer(models.WordLevel(vocabulary, unk_token="<|u|>"))
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    backend.decoder = decoders.WordPiece(prefix="##", cleanup=False)
    backend.add_special_tokens(["<|u|>", "<|end|>"])
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="<|end|>", unk_token="<|u|>")
    policy = CausalLMPolicy(tiny_model("qwen2", 5), end_ids=[4], vocab_size=5)
    session = Chat(policy, None, tokenizer, names=("small", None))
    written = dictated(monkeypatch, session, [3, 1, 4], {"prompt": "one two"})
    assert [one.said for one in written] == [" three", " one", ""]
    assert [one.piece.gap for one in written] == [" ", " ", " "]


@pytest.mark.parametrize(
    ("temperature", "most", "words"),
    [
        (math.nan, 5, "temperature must be"),
        (-1.0, 5, "temperature must be"),
        (1.0, 0, "max_new_tokens"),
        (1.0, 10**9, "max_new_tokens"),
    ],
)
def test_settings_out_of_range_are_refused_before_anything_is_written(temperature, most, words):
    session = chat()
    with pytest.raises(ConfigError, match=words):
        session.write(session.prompt(SAID), temperature=temperature, max_new_tokens=most)


def test_a_model_that_does_not_know_what_comes_next_is_named():
    teacher = tiny_model("llama")
    session = chat(teacher=teacher)
    with torch.no_grad():
        teacher.lm_head.weight.fill_(math.nan)
    with pytest.raises(ModelError, match="large: its next-token distribution is not finite"):
        answer(session)


def test_models_are_loaded_once_checked_and_called_by_their_names(tmp_path, capsys):
    save_tiny(tmp_path / "small", tiny_model("qwen2"))
    save_tiny(tmp_path / "large", tiny_model("llama", 264))
    session = load_chat(ChatRequest(model=str(tmp_path / "small"), against=str(tmp_path / "large"), device="cpu"))
    assert (session.name, session.teacher_name) == ("small", "large")
    assert session.student.vocab_size == VOCABULARY + 1
    assert not any(parameter.requires_grad for parameter in session.student.model.parameters())
    assert "loading student" in capsys.readouterr().err
    with pytest.raises(ModelError, match=r"^MODEL 'nowhere/at-all': "):
        load_chat(ChatRequest(model="nowhere/at-all"))
    with pytest.raises(ModelError, match=r"^--against 'nowhere/at-all': "):
        load_chat(ChatRequest(model=str(tmp_path / "small"), against="nowhere/at-all"))
    save_tiny(tmp_path / "other", tiny_model("llama", 264), tiny_tokenizer(turn_ids=(258, 257)))
    with pytest.raises(ModelError, match="have different tokenizers"):
        load_chat(ChatRequest(model=str(tmp_path / "small"), against=str(tmp_path / "other")))
