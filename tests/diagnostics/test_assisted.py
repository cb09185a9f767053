"""What is predicted of drafts, against transformers' assisted generation, which counts what it accepts.

``pytest -m slow tests/diagnostics/test_assisted.py -s`` prints both for a trained student.
"""

import math
from collections.abc import Sequence
from typing import Any, NamedTuple, cast

import pytest
import torch
from transformers import PreTrainedModel
from transformers.generation.candidate_generator import AssistedCandidateGenerator

from bridgegarden.causal_lm_policy import CausalLMPolicy
from bridgegarden.diagnostics.acceptance import DraftModel
from bridgegarden.diagnostics.exposure_bias import exposure_bias
from bridgegarden.diagnostics.rollout import Sampling, tempered
from bridgegarden.exact.tasks.arithmetic import ArithmeticWorld
from bridgegarden.exact.world import END
from bridgegarden.quickstart.result import QuickstartSettings
from bridgegarden.quickstart.student import load_teacher, prompt_ids, train_student, training_rows
from bridgegarden.statistics import Estimate
from bridgegarden.study.arms import OBJECTIVES

LONGEST = 40


def prompts(count: int) -> list[list[int]]:
    world, generator = ArithmeticWorld(), torch.Generator().manual_seed(3)
    return [prompt_ids(world, world.prompt(one, generator)) for one in world.problems(count, 3, split="test")]


class Cooled(NamedTuple):
    """A policy, or a decoding of it, at another temperature than 1."""

    inner: Any
    temperature: float

    @property
    def vocab_size(self) -> int:
        return self.inner.vocab_size

    def start(self, prefixes):
        return Cooled(self.inner.start(prefixes), self.temperature)

    def log_probs(self):
        return tempered(self.inner.log_probs(), self.temperature)

    def ended(self):
        return self.inner.ended()

    def extend(self, rows, tokens):
        return Cooled(self.inner.extend(rows, tokens), self.temperature)


def predicted(
    teacher: PreTrainedModel, student: PreTrainedModel, count: int, temperature: float, cooled: float = 1.0
) -> DraftModel:
    """At `temperature`, of a student that is `cooled` beside."""
    target, draft = CausalLMPolicy(teacher, end_ids=[END]), Cooled(CausalLMPolicy(student, end_ids=[END]), cooled)
    sampling = Sampling(samples=4 if temperature else 1, temperature=temperature, max_new_tokens=LONGEST, max_rows=256)
    generator = torch.Generator().manual_seed(0)
    return DraftModel.of(exposure_bias(target, draft, prompts(count), sampling, generator=generator))


class Counted(NamedTuple):
    """What one call of `generate` did."""

    tokens: int
    passes: int


def assisted(
    teacher: PreTrainedModel, student: PreTrainedModel, prompt: Sequence[int], drafted: int, temperature: float
) -> Counted:
    """One text, written with the student's help; each draft that is judged is a pass of the teacher."""
    judged: list[int] = []
    update = AssistedCandidateGenerator.update_candidate_strategy

    def counting(self, input_ids, scores, num_matches):
        judged.append(int(num_matches))
        return update(self, input_ids, scores, num_matches)

    config = student.generation_config
    # Drafts are always this long: by default they end where the draft is unsure, below a threshold of 0.4.
    config.num_assistant_tokens, config.num_assistant_tokens_schedule = drafted, "constant"
    config.assistant_confidence_threshold = 0.0
    sampling = {"do_sample": True, "temperature": temperature, "top_k": 0} if temperature else {"do_sample": False}
    ids = torch.tensor([prompt])
    AssistedCandidateGenerator.update_candidate_strategy = counting
    try:
        found = cast(Any, teacher).generate(
            ids,
            attention_mask=torch.ones_like(ids),
            assistant_model=student,
            max_new_tokens=LONGEST,
            eos_token_id=END,
            pad_token_id=END,
            **sampling,
        )
    finally:
        AssistedCandidateGenerator.update_candidate_strategy = update
    assert isinstance(found, torch.Tensor)
    written = found.shape[1] - len(prompt)
    # Every pass ends with a token of the teacher's own; what was accepted stands before it.
    assert written == sum(judged) + len(judged)
    return Counted(written, len(judged))


def counted(
    teacher: PreTrainedModel, student: PreTrainedModel, count: int, drafted: int, temperature: float
) -> Estimate:
    """Tokens a pass."""
    torch.manual_seed(drafted)
    found = [assisted(teacher, student, prompt, drafted, temperature) for prompt in prompts(count)]
    return Estimate.ratio([one.tokens for one in found], [one.passes for one in found])


def check(teacher: PreTrainedModel, student: PreTrainedModel, count: int, lengths: Sequence[int], temperature: float):
    # transformers (5.x) hands the draft the teacher's processors, its temperature among them, and the settings they
    # were made from: the draft is tempered twice. It is judged as what it is, so the text is the teacher's still.
    expected = predicted(teacher, student, count, temperature, cooled=temperature or 1.0)
    for drafted in lengths:
        draft = expected.teacher_texts.drafts[drafted - 1]
        seen = counted(teacher, student, count, drafted, temperature)
        said = draft.tokens_per_pass
        print(
            f"temperature {temperature:g}, {drafted} drafted: predicted {said.mean:.3f} +- {said.stderr:.3f}, "
            f"counted {seen.mean:.3f} +- {seen.stderr:.3f}, independent {draft.independent:.3f}"
        )
        assert said.mean > 1.2, "something is accepted"
        if temperature:
            assert abs(said.mean - seen.mean) < 4 * math.hypot(seen.stderr, said.stderr)
        else:
            assert said.mean == pytest.approx(seen.mean), "nothing is drawn: the same passes"


@pytest.fixture(scope="module")
def teacher():
    return load_teacher()


@pytest.fixture(scope="module")
def shaken(teacher):
    """The teacher with noise in its weights: a relative that often agrees."""
    student = load_teacher()
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in student.parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            parameter.add_(0.3 * parameter.std() * noise if parameter.ndim > 1 else 0)
    return student


def test_sampled_drafts_are_accepted_as_predicted(teacher, shaken):
    check(teacher, shaken, 30, [4], 1.0)


def test_greedy_drafts_are_accepted_exactly_as_predicted(teacher, shaken):
    check(teacher, shaken, 12, [3], 0.0)


@pytest.mark.slow
def test_drafts_of_a_trained_student_are_accepted_as_predicted(teacher):
    rows, settings = training_rows(ArithmeticWorld(), 1_000, 0), QuickstartSettings(steps=100)
    student = train_student(OBJECTIVES["soft"], 0, settings, rows, teacher, lambda step: None).model
    print()
    for temperature in (1.0, 0.6, 0.0):
        check(teacher, student.eval(), 30 if temperature else 12, [1, 2, 4, 8], temperature)
