import json

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig

from bridgegarden.errors import ConfigError, ModelError
from bridgegarden.evaluation.lm_eval import EvaluationOptions, evaluate_model
from bridgegarden.quickstart import TEACHER
from tests.tiny import tiny_model, tiny_tokenizer


@pytest.fixture(scope="module")
def teacher():
    torch.set_num_threads(1)
    return AutoModelForCausalLM.from_pretrained(TEACHER, dtype=torch.float32), AutoTokenizer.from_pretrained(TEACHER)


@pytest.fixture(scope="module")
def found(teacher):
    """Of the packaged teacher, who is right 60 % of the time when its answers are drawn (its training record)."""
    options = EvaluationOptions(tasks=("bridgegarden_arithmetic",), limit=120, samples=2, batch_size=120)
    return evaluate_model(*teacher, options, name="teacher")


@pytest.mark.slow
def test_the_packaged_teacher_scores_what_it_is_known_for(found):
    scores = {(score.decoding, score.metric): score for score in found.scores}
    known = json.loads((TEACHER / "training_record.json").read_text())["held_out"]
    assert scores["greedy", "acc"].mean == known["accuracy_greedy"]["mean"] == 1.0
    drawn = scores["sampled", "acc"]
    assert abs(drawn.mean - known["accuracy_sampled"]["mean"]) < 4 * (
        drawn.stderr + known["accuracy_sampled"]["stderr"]
    )
    assert drawn.mean < scores["sampled", "pass@2"].mean < 1


def test_standard_errors_are_over_problems(found):
    values = list(found.by_problem("bridgegarden_arithmetic", "acc", decoding="sampled").values())
    column = torch.tensor(values, dtype=torch.float64)
    score = next(score for score in found.scores if (score.decoding, score.metric) == ("sampled", "acc"))
    assert score.problems == len(values) == 120
    assert score.mean == pytest.approx(column.mean().item())
    assert score.stderr == pytest.approx(column.std().item() / 120**0.5)


def test_every_answer_is_kept_and_problems_can_be_paired(found):
    drawn = [problem for problem in found.problems if problem["decoding"] == "sampled"]
    greedy = [problem for problem in found.problems if problem["decoding"] == "greedy"]
    assert len({problem["problem"] for problem in greedy}) == 120
    assert {problem["problem"] for problem in greedy} == {problem["problem"] for problem in drawn}
    assert all(len(problem["answers"]) == 2 for problem in drawn)
    assert any(one != other for one, other in (problem["answers"] for problem in drawn))


def test_results_and_page_hold_what_decided_the_scores(found):
    settings = json.loads(json.dumps(found.to_dict()))["settings"]
    assert settings["asked_as_chat"] == ["bridgegarden_arithmetic"]
    assert (settings["limit"], settings["temperature"], settings["dtype"]) == (120, 1.0, "float32")
    assert "| bridgegarden_arithmetic | greedy | acc | 100.00 (≥ 97.0) | 120 |" in found.to_markdown()


@pytest.mark.slow
def test_the_same_seed_draws_the_same_answers_and_another_does_not(teacher):
    def drawn(seed):
        options = EvaluationOptions(tasks=("bridgegarden_arithmetic",), limit=8, samples=1, seed=seed)
        state = torch.get_rng_state()
        problems = evaluate_model(*teacher, options, name="teacher").problems
        assert torch.equal(state, torch.get_rng_state())
        return [problem["answers"] for problem in problems if problem["decoding"] == "sampled"]

    assert drawn(1) == drawn(1)
    assert drawn(1) != drawn(2)


def test_a_model_s_own_generation_settings_do_not_touch_its_scores_and_come_back(teacher):
    model, tokenizer = teacher
    usual = model.generation_config
    model.generation_config = own = GenerationConfig(eos_token_id=4, repetition_penalty=50.0, top_k=1, do_sample=True)
    try:
        options = EvaluationOptions(tasks=("bridgegarden_arithmetic",), limit=8, samples=0)
        assert evaluate_model(model, tokenizer, options, name="teacher").scores[0].mean == 1.0
        assert model.generation_config is own
    finally:
        model.generation_config = usual


@pytest.mark.slow
def test_programs_of_a_random_model_are_run_and_fail():
    options = EvaluationOptions(tasks=("offline",), limit=1, allow_code_execution=True)
    found = evaluate_model(tiny_model("llama"), tiny_tokenizer(chat_template=False), options, name="random")
    assert [(score.task, score.decoding) for score in found.scores] == [
        ("bridgegarden_arithmetic", "greedy"),
        ("bridgegarden_arithmetic", "sampled"),
        ("bridgegarden_programs", "greedy"),
        ("bridgegarden_programs", "sampled"),
    ]
    assert {score.mean for score in found.scores} == {0.0}
    assert found.settings["asked_as_chat"] == []
    assert "seccomp" in found.settings["confinement"]


def test_a_chat_model_gets_the_function_as_a_question_in_its_template(monkeypatch):
    from lm_eval.models.huggingface import HFLM

    asked = []

    def answer(self, requests, disable_tqdm=False):
        asked.extend(request.args for request in requests)
        return ["```python\ndef add(a, b):\n    return a + b\n```" for _ in requests]

    monkeypatch.setattr(HFLM, "generate_until", answer)
    options = EvaluationOptions(tasks=("bridgegarden_programs",), limit=1, samples=0, allow_code_execution=True)
    found = evaluate_model(tiny_model("llama"), tiny_tokenizer(), options, name="chat")
    ((text, settings),) = asked
    assert text.startswith("<|im_start|>user\nComplete this Python function.")
    assert text.endswith("```<|im_end|>\n<|im_start|>assistant\n")
    assert settings["until"] == []
    assert found.scores[0].mean == 1.0


@pytest.mark.parametrize("samples", [0, 1])
def test_a_model_whose_logits_are_no_numbers_has_no_scores(samples):
    model = tiny_model("llama")
    with torch.no_grad():
        model.get_output_embeddings().weight[7, 0] = torch.nan
    options = EvaluationOptions(tasks=("bridgegarden_arithmetic",), limit=2, samples=samples)
    with pytest.raises(ModelError, match="mine: its logits are not finite"):
        evaluate_model(model, tiny_tokenizer(), options, name="mine")


def test_a_window_too_short_for_the_questions_is_refused(teacher):
    model = tiny_model("llama")
    model.config.max_position_embeddings = 40
    with pytest.raises(ModelError, match=r"its longest question has \d+ tokens, and the model reads at most 40"):
        evaluate_model(model, tiny_tokenizer(), EvaluationOptions(tasks=("bridgegarden_arithmetic",)), name="short")


def test_chat_without_a_template_is_refused():
    with pytest.raises(ModelError, match="--chat always: the model's tokenizer has no chat template"):
        evaluate_model(
            tiny_model("llama"), tiny_tokenizer(chat_template=False), EvaluationOptions(chat="always"), name="base"
        )


@pytest.mark.parametrize(
    ("settings", "match"),
    [
        ({"limit": 0}, "limit must be >= 1"),
        ({"samples": -1}, "samples must be >= 0"),
        ({"temperature": 0.0}, "temperature must be in \\[0.001, 1000.0\\], got 0.0"),
        ({"batch_size": 0}, "batch_size must be >= 1 or 'auto'"),
    ],
)
def test_settings_out_of_range_are_refused(settings, match):
    with pytest.raises(ConfigError, match=match):
        EvaluationOptions(**settings)


def test_without_lm_eval_it_says_what_to_install(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=r"takes lm-eval, which is not installed. Install it: pip install"):
        evaluate_model(tiny_model("llama"), tiny_tokenizer(), EvaluationOptions(), name="any")
