import json

import pytest
import torch

from bridgegarden.data import Columns
from bridgegarden.errors import ConfigError, ModelError
from bridgegarden.teacher.generate import Decoding, Questions, generate
from bridgegarden.teacher.local_generation import LocalEngine
from tests.tiny import tiny_model, tiny_tokenizer

PROMPTS = ["Hi.", "What is 2 + 2?", "Say something long, please.", "x", "Why?", "And now?", "A", "Once upon a time"]
STOP = 258


@pytest.fixture
def model():
    model = tiny_model("llama", hidden_size=48, seed=3).double()
    with torch.no_grad():  # so that some answers end, and none at once
        model.get_output_embeddings().weight[STOP] *= 3
    return model


def answers(model, tmp_path, prompts=PROMPTS, batch_size=3, name="out", columns=None, tokenizer=None, **decoding):
    engine = LocalEngine(model, tokenizer or tiny_tokenizer(), name="tiny", batch_size=batch_size)
    rows = [{"q": prompt, "prompt": prompt} for prompt in prompts]
    questions = Questions(rows=rows, columns=columns or Columns(prompt="q", completion="a"))
    output = tmp_path / f"{name}.jsonl"
    summary = generate(questions, engine, output, Decoding(**{"max_new_tokens": 12, **decoding}), keep_truncated=True)
    return [json.loads(line) for line in output.read_text().splitlines()], summary


def by_hand(model, ids, count, choose):
    """Token by token, without cache, batch or padding; None where the answer does not end."""
    said = []
    for _ in range(count):
        logits = model(torch.tensor([ids + said])).logits[0, -1]
        token = int(choose(logits))
        if token == STOP:
            return said, "stop"
        said.append(token)
    return said, "length"


def prompt_ids(prompt):
    text = f"<|im_start|>user\n{prompt}<|im_end|>\n<|im_start|>assistant\n"
    return tiny_tokenizer()(text)["input_ids"]


def test_greedy_answers_are_those_made_token_by_token(model, tmp_path):
    rows, _ = answers(model, tmp_path)
    for prompt, row in zip(PROMPTS, rows, strict=True):
        said, ending = by_hand(model, prompt_ids(prompt), 12, torch.argmax)
        assert row["finish_reason"] == ending
        assert row["a"] == tiny_tokenizer().decode(said, skip_special_tokens=True)


def test_the_model_s_own_penalties_and_cut_offs_do_not_count(model, tmp_path):
    plain, _ = answers(model, tmp_path)
    model.generation_config.repetition_penalty = 5.0
    model.generation_config.do_sample = True
    model.generation_config.top_k = 1
    again, _ = answers(model, tmp_path, name="again")
    assert again == plain
    assert model.generation_config.repetition_penalty == 5.0


@pytest.mark.parametrize("batch_size", [1, 8])
def test_a_sampled_answer_depends_on_its_seed_row_and_sample_alone(model, tmp_path, batch_size):
    one, _ = answers(model, tmp_path, temperature=1.0, seed=5)
    other, _ = answers(model, tmp_path, name="other", temperature=1.0, seed=5, batch_size=batch_size)
    assert one == other
    few, _ = answers(model, tmp_path, prompts=PROMPTS[:2], name="few", temperature=1.0, seed=5)
    assert few == one[:2]
    changed, _ = answers(model, tmp_path, name="changed", temperature=1.0, seed=6)
    assert sum(a["a"] != b["a"] for a, b in zip(one, changed, strict=True)) > 4


def test_samples_follow_the_distribution_at_the_temperature(model, tmp_path):
    engine = LocalEngine(model, tiny_tokenizer(), name="tiny", batch_size=500)
    count, temperature = 3000, 0.5
    questions = Questions(rows=[{"prompt": [{"role": "user", "content": "Hi."}]}], samples=count)
    draws = torch.zeros(259)
    original = engine._answer

    def noting(request, prompt, new):
        draws[new[0]] += 1
        return original(request, prompt, new)

    engine._answer = noting
    generate(
        questions,
        engine,
        tmp_path / "out.jsonl",
        Decoding(temperature=temperature, max_new_tokens=1),
        keep_truncated=True,
    )
    logits = model(torch.tensor([prompt_ids("Hi.")])).logits[0, -1]
    p = torch.softmax(logits / temperature, -1)
    error = (draws / draws.sum() - p).abs()
    assert draws.sum() == count
    assert (error < 4.5 * (p * (1 - p) / count).sqrt() + 1 / count).all()


def test_text_goes_on_where_the_prompt_stopped(model, tmp_path):
    rows, _ = answers(model, tmp_path, columns=Columns(), prompts=["2 + 2 ="])
    said, _ = by_hand(model, tiny_tokenizer()("2 + 2 =")["input_ids"], 12, torch.argmax)
    assert rows[0]["prompt"] + rows[0]["completion"] == "2 + 2 =" + tiny_tokenizer().decode(
        said, skip_special_tokens=True
    )


def test_a_prompt_that_does_not_fit_is_that_row_s_error(model, tmp_path):
    rows, summary = answers(model, tmp_path, prompts=["short", "long " * 120])
    assert [row["row"] for row in rows] == [0]
    assert summary.progress.failed == 1
    (error,) = (json.loads(line) for line in summary.errors.read_text().splitlines())
    assert "more than the model's 512" in error["error"]


def test_a_batch_of_nothing_is_refused(model):
    with pytest.raises(ConfigError, match="batch_size must be >= 1"):
        LocalEngine(model, tiny_tokenizer(), name="tiny", batch_size=0)


@pytest.mark.parametrize("temperature", [0.0, 1.0])
@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_a_teacher_that_does_not_know_what_comes_next_writes_nothing(model, tmp_path, temperature, value):
    with torch.no_grad():
        model.get_output_embeddings().weight.fill_(value)
    with pytest.raises(ModelError, match="teacher tiny: its next-token distribution is not finite"):
        answers(model, tmp_path, temperature=temperature)
    assert (tmp_path / "out.jsonl").read_text() == ""
