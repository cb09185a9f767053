"""The teacher that ships with the package: it loads as any model does, and is what its record says."""

import json
import math

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig

from bridgegarden.exact.process import Role
from bridgegarden.exact.tasks.arithmetic import ArithmeticWorld, check_answer
from bridgegarden.exact.world import END, PAD
from bridgegarden.quickstart import TEACHER
from bridgegarden.quickstart.result import STUDENT_SIZE
from bridgegarden.quickstart.student import right_answers, whole_answers, write_answers
from bridgegarden.quickstart.train_teacher import (
    TeacherTraining,
    draw_example,
    kl_by_role,
    save_teacher,
    train,
)
from bridgegarden.study.students import build_tokenizer, new_llama

WORLD = ArithmeticWorld()


@pytest.fixture(scope="module")
def teacher():
    return AutoModelForCausalLM.from_pretrained(TEACHER, dtype=torch.float32).eval()


@pytest.fixture(scope="module")
def record():
    return json.loads((TEACHER / "training_record.json").read_text())


@pytest.fixture(scope="module")
def examples():
    generator = torch.Generator().manual_seed(7)
    return [draw_example(WORLD, problem, generator) for problem in ArithmeticWorld().problems(150, 7, split="test")]


def test_the_folder_is_small_and_holds_no_pickle():
    files = list(TEACHER.iterdir())
    assert sum(file.stat().st_size for file in files) < 6e6
    assert {file.suffix for file in files} <= {".safetensors", ".json", ".jinja"}


def test_the_weights_are_bfloat16_as_saved():
    model = AutoModelForCausalLM.from_pretrained(TEACHER, dtype="auto")
    assert model.dtype == torch.bfloat16


def test_the_packaged_tokenizer_is_the_one_that_the_world_builds():
    packaged, built = AutoTokenizer.from_pretrained(TEACHER), build_tokenizer(WORLD)
    assert packaged.get_vocab() == built.get_vocab()
    assert packaged.chat_template == built.chat_template
    assert packaged.backend_tokenizer.to_str() == built.backend_tokenizer.to_str()


def test_generation_draws_from_the_whole_distribution_and_stops_at_the_end_token():
    config = GenerationConfig.from_pretrained(TEACHER)
    assert (config.do_sample, config.temperature, config.top_k, config.top_p) == (True, 1.0, 0, 1.0)
    assert (config.eos_token_id, config.pad_token_id) == (END, PAD)


def test_the_teacher_follows_the_process(teacher, examples):
    kl = kl_by_role(teacher, examples)
    assert kl[Role.GARDEN].mean() < 0.02
    assert kl[Role.FORCED].mean() < 0.02
    assert kl[Role.BRIDGE].mean() < 0.03


def test_greedy_answers_are_right_and_sampled_ones_slip(teacher, examples):
    def right(generator):
        problems, prompts = [one.problem for one in examples], [one.prompt_ids for one in examples]
        return right_answers(WORLD, problems, whole_answers(teacher, WORLD, problems, prompts, generator)).mean()

    assert right(None) >= 0.99
    sampled = right(torch.Generator().manual_seed(0))
    assert abs(sampled - 0.9**5) < 4 * math.sqrt(0.9**5 * (1 - 0.9**5) / len(examples))


def test_the_record_describes_the_files_beside_it(teacher, record, examples):
    assert record["parameters"] == teacher.num_parameters()
    assert record["world"] == {"modulus": 7, "steps": 3, "wordings": 8, "slip_rate": 0.1}
    for role, kl in kl_by_role(teacher, examples).items():
        recorded = record["held_out"][f"kl_{role}"]
        error = math.hypot(recorded["stderr"], (kl.std() / math.sqrt(len(kl))).item())
        assert abs(kl.mean().item() - recorded["mean"]) < 5 * error + 1e-6


def test_generate_of_transformers_writes_the_same_greedy_answers(teacher, examples):
    tokenizer = AutoTokenizer.from_pretrained(TEACHER, padding_side="left")
    prompts = [tokenizer.decode(example.prompt_ids) for example in examples[:8]]
    encoded = tokenizer(prompts, return_tensors="pt", padding=True)
    written = teacher.generate(**encoded, do_sample=False, temperature=None, top_p=None, top_k=None)
    texts = tokenizer.batch_decode(written[:, encoded["input_ids"].shape[1] :], skip_special_tokens=True)
    ours = write_answers(teacher, [example.prompt_ids for example in examples[:8]], tokens=40)
    assert texts == [WORLD.decode(answer) for answer in ours]
    assert all(check_answer(example.problem, text) for example, text in zip(examples, texts, strict=False))


def test_training_depends_on_its_seed_alone(tmp_path):
    setting = TeacherTraining(steps=3, batch=4, problems=20)
    state = torch.get_rng_state()
    first, curve = train(setting, WORLD, lambda line: None)
    second, again = train(setting, WORLD, lambda line: None)
    assert curve == again
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), second.parameters(), strict=True))
    assert torch.equal(torch.get_rng_state(), state)
    save_teacher(first, WORLD, tmp_path)
    assert {file.name for file in tmp_path.iterdir()} == {f.name for f in TEACHER.iterdir()} - {"training_record.json"}


def test_the_student_is_several_times_smaller(teacher):
    assert teacher.num_parameters() > 5 * new_llama(WORLD, STUDENT_SIZE, seed=0).num_parameters()
