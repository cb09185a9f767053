"""A diagnosis as a whole: what belongs together is together, budgets hold, an interrupt loses one part."""

import json
from dataclasses import replace

import pytest
import torch

from bridgegarden.diagnostics.diagnose import TalliedPolicy, Unwatched, diagnose, least_budget
from bridgegarden.diagnostics.diagnosis import DiagnosisSettings
from bridgegarden.diagnostics.exposure_bias import compare_students
from bridgegarden.diagnostics.rollout import Sampling
from bridgegarden.errors import ConfigError
from tests.diagnostics.small import WORDS, Words, small_diagnosis, small_findings, small_settings, students
from tests.diagnostics.worlds import HORIZON, VOCABULARY, make_world


@pytest.fixture(scope="module")
def findings():
    return small_findings()


def test_every_student_is_measured_on_the_same_texts_of_the_teacher(findings):
    near, far = findings.students
    assert near.exposure_bias.teacher_texts.tokens == far.exposure_bias.teacher_texts.tokens
    assert near.exposure_bias.teacher_loss.mean < far.exposure_bias.teacher_loss.mean
    measures = {one.measure for one in findings.differences}
    assert measures == {"exposure_bias", "student_loss", "teacher_loss"}
    assert all((one.first, one.second) == (near.name, far.name) for one in findings.differences)


def test_it_finds_what_its_parts_find_alone(findings):
    worlds, settings = students(), small_settings()
    alone = compare_students(
        worlds["near"].teacher,
        {name: world.student for name, world in worlds.items()},
        [()] * 20,
        Sampling(samples=settings.samples, max_new_tokens=settings.max_new_tokens),
        generator=torch.Generator().manual_seed(0),
    )
    for student in findings.students:
        assert student.exposure_bias.exposure_bias == alone[student.name].exposure_bias


def test_the_same_seed_gives_the_same_numbers_and_another_seed_others(findings):
    again, other = small_findings(), small_findings(seed=1)
    for one, two, three in zip(findings.students, again.students, other.students, strict=True):
        assert one.kappa == two.kappa
        assert one.attribution == two.attribution
        assert one.kappa != three.kappa


def test_the_parts_share_the_budget(findings):
    for student in findings.students:
        assert student.generated_tokens <= 1.2 * 3_000
        assert student.attribution is not None
        assert student.attribution.generated_tokens <= 1.2 * 3_000 / 4
        assert student.shown_kappa is not None
        assert student.kappa is not None
        assert student.kappa.generated_tokens > student.shown_kappa.generated_tokens


def test_the_texts_that_are_shown_are_the_students_own_with_kappa_where_it_was_measured(findings):
    for student in findings.students:
        own = student.exposure_bias.student_texts
        assert len(student.texts) == 2
        measured = {(place.text, place.position): place for place in student.shown_kappa.positions}
        measured |= {(place.text, place.position): place for place in student.kappa.positions}
        for text in student.texts:
            assert tuple(token.token for token in text.tokens) == own.tokens[text.text]
            assert text.prompt == text.text // own.samples
            for at, token in enumerate(text.tokens):
                assert token.student_surprise == pytest.approx(-own.student_logp[0, text.text, at].item())
                assert token.loss == own.losses[0, text.text, at].item()
                assert (token.kappa is not None) == ((text.text, at) in measured)
                assert token.teacher_top[0].prob == pytest.approx(own.teacher_max_prob[text.text, at].item())
                assert sum(likely.prob for likely in token.student_top) == pytest.approx(1.0)
        assert any(token.kappa is not None for text in student.texts for token in text.tokens)


def test_soft_weights_of_a_shown_token_are_the_rules_own(findings):
    token = findings.students[0].texts[0].tokens[0]
    p = make_world(0).process.log_probs(0).exp()
    assert token.soft_weights["confidence"] == pytest.approx(1 - p.max().item())
    entropy = -(p * p.log()).sum().item()
    assert token.soft_weights["entropy"] == pytest.approx(entropy / torch.tensor(float(VOCABULARY)).log().item())
    assert token.soft_weights["static"] == 0.5


def test_all_positions_in_order_are_measured_where_texts_are_shown():
    (student,) = small_findings(names=["near"], positions="all").students
    assert student.shown_kappa is None
    assert [place.text for place in student.kappa.positions] == sorted(place.text for place in student.kappa.positions)
    assert all(token.kappa is not None for token in student.texts[0].tokens)
    assert not student.advice.representative


def test_positions_of_the_highest_entropy_do_not_stand_for_the_texts():
    (student,) = small_findings(names=["near"], positions="uncertain").students
    entropies = [place.teacher_entropy for place in student.kappa.positions]
    assert entropies == sorted(entropies, reverse=True)
    assert not student.advice.representative


def test_every_token_that_is_named_can_be_read(findings):
    for student in findings.students:
        for place in student.kappa.positions:
            assert {action.token for action in place.actions} <= findings.tokens.keys()
    assert set(findings.tokens.values()) <= {*WORDS, "(outside)"}


def test_the_bill_counts_what_was_written(findings):
    biases = [student.exposure_bias for student in findings.students]
    texts = int(biases[0].teacher_texts.lengths.sum()) + sum(int(one.student_texts.lengths.sum()) for one in biases)
    continued = sum(student.generated_tokens for student in findings.students)
    assert findings.cost.written == texts + continued
    assert findings.cost.distributions > findings.cost.written
    assert next(phase.name for phase in findings.cost.phases) == "texts of the teacher and the students"
    assert findings.cost.seconds > 0


def test_a_tallied_policy_says_what_the_policy_says_and_counts():
    world, told = make_world(0), []
    policy = TalliedPolicy(world.teacher, told.append)
    decoding = policy.start([(1, 2), (3,)])
    assert torch.equal(decoding.log_probs(), world.teacher.start([(1, 2), (3,)]).log_probs())
    decoding.extend(torch.tensor([0, 0, 1]), torch.tensor([1, 2, 3]))
    assert (policy.read, policy.stepped, told) == (3, 3, [3])


class Interrupts(Unwatched):
    """Ctrl-C when a phase begins."""

    def __init__(self, phase: str) -> None:
        self.phase = phase

    def begin(self, phase: str, tokens: int) -> None:
        if phase == self.phase:
            raise KeyboardInterrupt


def interrupted_in(phase: str):
    worlds = students()
    return diagnose(
        worlds["near"].teacher,
        {"near": worlds["near"].student},
        [()] * 20,
        small_settings(),
        vocab_size=VOCABULARY,
        reader=Words(),
        watcher=Interrupts(phase),
    )


@pytest.mark.parametrize(
    ("phase", "kept"),
    [
        ("near: attribution", set()),
        ("near: kappa at the texts that are shown", {"attribution"}),
        ("near: kappa", {"attribution", "shown_kappa", "texts"}),
    ],
)
def test_an_interrupt_keeps_what_is_finished(phase, kept):
    found = interrupted_in(phase)
    assert found.interrupted == phase
    (student,) = found.students
    assert {
        name for name in ("attribution", "shown_kappa", "kappa", "advice", "texts") if getattr(student, name)
    } == kept


def test_an_interrupt_before_exposure_bias_leaves_nothing_to_keep():
    with pytest.raises(KeyboardInterrupt):
        interrupted_in("texts of the teacher and the students")


def test_a_budget_too_small_says_what_is_enough_and_that_much_is():
    with pytest.raises(
        ConfigError, match=r"budget: 30 generated tokens are too few for 'near'.*the least is"
    ) as caught:
        small_findings(names=["near"], budget=30)
    enough = int(str(caught.value).split("the least is ")[1].split(",")[0])
    found = small_findings(names=["near"], budget=enough)
    assert len(found.students[0].kappa.positions) >= 1
    assert least_budget(found.students[0].exposure_bias, small_settings()) == enough


LEAST = {
    **{"samples": 1, "temperature": 0, "max_new_tokens": 1, "budget": 1, "rounds": 2, "top": 1, "shown": 0},
    "max_rows": 1,
}


def test_every_setting_may_be_the_least_that_makes_sense():
    DiagnosisSettings(**LEAST)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        *(
            ({name: least - 1}, f"diagnosis.{name} must be >= {least}, got {least - 1}")
            for name, least in LEAST.items()
        ),
        ({"positions": "best"}, "diagnosis.positions must be 'all', 'random' or 'uncertain', got 'best'"),
        ({"divergence": "forward"}, "diagnosis.divergence: unknown name 'forward'"),
        ({"divergence": "alpha_beta"}, "alpha_beta needs two exponents"),
    ],
)
def test_settings_out_of_range_are_refused(settings, message):
    with pytest.raises(ConfigError, match=message):
        DiagnosisSettings(**settings)


def test_another_divergence_is_what_the_loss_is():
    forward = small_findings(names=["near"]).students[0].exposure_bias.teacher_loss
    variation = small_findings(names=["near"], divergence="total_variation").students[0].exposure_bias.teacher_loss
    assert 0 < variation.mean <= HORIZON
    assert variation != forward


def test_machines_get_the_same_content(findings):
    document = json.loads(json.dumps(small_diagnosis(findings).to_dict(), allow_nan=False))
    first = document["findings"]["students"][0]
    student = findings.students[0]
    assert first["exposure_bias"]["exposure_bias"]["mean"] == student.exposure_bias.exposure_bias.mean
    assert first["attribution"]["agrees"] is student.attribution.agrees
    assert first["advice"]["scores"][0]["spearman"]["value"] == student.advice.scores[0].spearman.value
    assert first["texts"][0]["tokens"][0]["piece"]["text"] in WORDS
    assert len(document["findings"]["differences"]) == 3
    cut = replace(findings, interrupted="near: kappa")
    assert small_diagnosis(cut).to_dict()["findings"]["interrupted"] == "near: kappa"
