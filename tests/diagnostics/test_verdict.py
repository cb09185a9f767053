"""Every answer of a verdict, from numbers made for it; and the losses on answers that one of them hangs on."""

from dataclasses import replace

import pytest
import torch

from bridgegarden.diagnostics.acceptance import DraftModel
from bridgegarden.diagnostics.exposure_bias import exposure_bias
from bridgegarden.diagnostics.label_losses import Answer, LabelLosses, RowLoss, answer_losses
from bridgegarden.diagnostics.rollout import Sampling
from bridgegarden.diagnostics.verdict import Verdict
from bridgegarden.report.diagnosis import diagnosis_page
from bridgegarden.report.diagnosis_words import verdict_lines
from bridgegarden.statistics import Estimate
from tests.diagnostics.small import small_diagnosis, small_findings
from tests.diagnostics.worlds import HORIZON, VOCABULARY, Enumeration, make_world


@pytest.fixture(scope="module")
def whole():
    return small_diagnosis(small_findings(names=["near"]))


def losses(teacher: float, student: float, rows: int = 40, spread: float = 0.02) -> LabelLosses:
    """On rows of ten tokens, whose differences are spread by so much a token."""
    noise = [spread * (-1) ** row for row in range(rows)]
    found = LabelLosses.over([RowLoss(row, 10 * teacher, 10 * (student + noise[row]), 10) for row in range(rows)])
    assert found is not None
    return found


def with_acceptance(model: DraftModel, share: float) -> DraftModel:
    estimate = Estimate(share, 0.001, 64)
    return replace(
        model,
        teacher_texts=replace(model.teacher_texts, acceptance=estimate),
        student_texts=replace(model.student_texts, acceptance=estimate),
    )


def verdict(whole, *, found=None, accepted=0.9, bias=None, speed=None, ratio=0.1, advice=None) -> Verdict:
    student = whole.findings.students[0]
    model = with_acceptance(student.draft_model, accepted)
    if speed is not None:
        drafts = tuple(replace(draft, tokens_per_pass=speed) for draft in model.teacher_texts.drafts)
        model = replace(model, teacher_texts=replace(model.teacher_texts, drafts=drafts))
    exposed = student.exposure_bias
    if bias is not None:
        exposed = replace(exposed, exposure_bias=bias, student_loss=Estimate(10.0, 0.1, 64))
    return Verdict.of(bias=exposed, draft_model=model, advice=advice, losses=found, cost_ratio=ratio)


@pytest.mark.parametrize(
    ("found", "accepted", "rows", "distilling"),
    [
        (losses(1.0, 0.5), 0.9, "worse", "will not help"),
        (losses(1.0, 0.5), 0.999, "worse", "will not help"),
        (losses(1.0, 1.0), 0.9, "no better", "will not help"),
        (losses(1.0, 1.0), 0.999, "no better", "nothing left"),
        (losses(0.5, 1.0), 0.9, "better", "can help"),
        (losses(0.5, 1.0), 0.999, "better", "nothing left"),
        (losses(0.9, 1.0, rows=7), 0.9, "undecided", "undecided"),
        (losses(0.9, 1.0, spread=0.5), 0.9, "undecided", "undecided"),
        (None, 0.9, "unknown", "undecided"),
        (None, 0.999, "unknown", "nothing left"),
        (None, 0.991, "unknown", "undecided"),
    ],
)
def test_whether_distillation_helps_hangs_on_the_rows_and_on_what_is_left_to_learn(
    whole, found, accepted, rows, distilling
):
    got = verdict(whole, found=found, accepted=accepted)
    assert (got.rows, got.distilling) == (rows, distilling)


@pytest.mark.parametrize(
    ("mean", "stderr", "drift"),
    [
        (3.0, 0.5, "drifts"),
        (-3.0, 0.5, "easier"),
        (0.2, 0.1, "does not drift"),
        (0.5, 0.1, "does not drift"),
        (0.5, 1.0, "undecided"),
        (0.0, float("inf"), "undecided"),
    ],
)
def test_drift_is_called_where_the_interval_says_so_and_it_is_worth_a_word(whole, mean, stderr, drift):
    assert verdict(whole, bias=Estimate(mean, stderr, 64)).drift == drift


@pytest.mark.parametrize(
    ("tokens", "stderr", "ratio", "draft"),
    [
        (2.0, 0.1, 0.1, "worth it"),
        (1.2, 0.01, 0.5, "not worth it"),
        (1.1, 0.1, 0.1, "undecided"),
        (2.0, float("inf"), 0.1, "undecided"),
    ],
)
def test_a_draft_model_is_worth_it_where_the_interval_of_its_speed_is_above_one(whole, tokens, stderr, ratio, draft):
    got = verdict(whole, speed=Estimate(tokens, stderr, 64), ratio=ratio)
    assert (got.draft, got.drafted) == (draft, 1)


@pytest.mark.parametrize("rule", ["confidence", "entropy", "static", None])
def test_the_rule_is_the_advices(whole, rule):
    advice = replace(whole.findings.students[0].advice, recommended=rule)
    assert verdict(whole, advice=advice).rule == rule
    assert verdict(whole).rule is None


def told(whole, **changes) -> dict[str, str]:
    """The lines of the only student, with other numbers."""
    student = replace(whole.findings.students[0], **changes)
    diagnosis = replace(whole, findings=replace(whole.findings, students=(student,)))
    return dict(verdict_lines(diagnosis, student))


@pytest.mark.parametrize(
    ("found", "head", "why"),
    [
        (
            losses(1.0, 0.5),
            "Distillation will not help here.",
            "the teacher is worse than the student: it loses 1 nats",
        ),
        (losses(1.0, 1.0), "Distillation will not help here.", "the teacher is no better than the student"),
        (losses(0.5, 1.0), "Distillation can help here.", "knows the rows better"),
        (losses(0.9, 1.0, rows=7), "Whether distillation can help is undecided.", "at least 8 rows"),
        (None, "Whether distillation can help is undecided.", "have no answers"),
    ],
)
def test_the_first_line_says_what_is_decided_and_by_what(whole, found, head, why):
    lines = told(whole, label_losses=found)
    assert len(lines) == 4
    assert why in lines[head]


def test_the_other_lines_say_what_is_decided_and_what_to_do(whole):
    student = whole.findings.students[0]
    alike = told(whole, draft_model=with_acceptance(student.draft_model, 0.999))
    assert "writes as its teacher does" in alike["There is nothing left to distil here."]
    bias = replace(student.exposure_bias, student_loss=Estimate(10.0, 0.1, 64))
    heads = {
        3.0: "It drifts.",
        -3.0: "It does not drift.",
        0.1: "It does not drift.",
        0.9: "Whether it drifts is undecided.",
    }
    for mean, head in heads.items():
        changed = replace(bias, exposure_bias=Estimate(mean, 0.6 if mean == 0.9 else 0.1, 64))
        assert head in told(whole, exposure_bias=changed), mean
    for rule, head in {"static": "Take a static rule.", "entropy": "Take the entropy rule."}.items():
        assert head in told(whole, advice=replace(student.advice, recommended=rule))
    undecided = told(whole, advice=replace(student.advice, recommended=None, more_tokens=123_456))
    assert "123,456 more tokens" in undecided["Which rule suits is undecided."]
    assert "As a draft model it makes the teacher slower." in told(whole), "it costs as much as the teacher"


def test_the_verdict_is_first_on_the_page_and_in_the_result(whole, tmp_path):
    text = diagnosis_page(whole).write(tmp_path / "report.html").read_text(encoding="utf-8").replace("&#39;", "'")
    places = [text.index(part) for line in verdict_lines(whole, whole.findings.students[0]) for part in line]
    assert places == sorted(places)
    assert places[-1] < text.index("wrote 2 texts from each of")
    (tree,) = whole.to_dict()["findings"]["students"]
    assert tree["verdict"]["distilling"] == "undecided"
    assert tree["label_losses"] is None


def test_losses_on_answers_are_those_of_their_learnt_tokens_token_by_token():
    world, other = make_world(0), make_world(0, difference=0.2)
    process, on = world.process, []
    for first in range(1, VOCABULARY):
        tokens = [first]
        while len(tokens) < 6 and not process.is_terminal(state_after(process, tokens)):
            tokens.append(
                next(t for t in range(1, VOCABULARY) if not process.is_terminal(state_after(process, [*tokens, t])))
            )
        on.append(tuple(tokens))
    long, also = sorted(on, key=len)[-2:]
    ended = (*long[:2], 0, 1, 2)
    answers = [
        Answer((), long, (True, False, True, True, False, True)),
        Answer((), also, (True,) * 6),
        Answer((), ended, (True,) * 5),
        Answer((), (*long, 1), (False,) * 6 + (True,)),
    ]
    found = answer_losses(world.teacher, {"a": world.student, "b": other.student}, answers, longest=6, max_rows=2)
    for name, side in (("a", world), ("b", other)):
        truth, sums, count = Enumeration(side), [0.0, 0.0], 0
        for answer in answers[:3]:
            for place, token in enumerate(answer.tokens):
                state = state_after(process, answer.tokens[:place])
                if process.is_terminal(state):
                    break
                if answer.learnt[place]:
                    count += 1
                    sums[0] -= truth.p(state)[token].log().item()
                    sums[1] -= truth.q(state)[token].log().item()
        assert count == 4 + 6 + 3, "a text is over at its end, whatever follows"
        assert (found[name].rows, found[name].tokens) == (3, count), "nothing of the last is learnt within six tokens"
        assert found[name].teacher == pytest.approx(sums[0] / count)
        assert found[name].student == pytest.approx(sums[1] / count)
    assert answer_losses(world.teacher, {"a": world.student}, [], longest=6, max_rows=2) == {}


def state_after(process, tokens) -> int:
    state = process.initial
    for token in tokens:
        state = process.step(state, token)
    return state


def test_a_draft_model_of_the_teacher_itself_has_nothing_left_to_learn():
    world = make_world(0)
    sampling = Sampling(samples=2, max_new_tokens=HORIZON, max_rows=500)
    bias = exposure_bias(world.teacher, world.teacher, [()] * 20, sampling, generator=torch.Generator().manual_seed(0))
    found = Verdict.of(bias=bias, draft_model=DraftModel.of(bias), advice=None, losses=None, cost_ratio=0.1)
    assert found.distilling == "undecided", "no spread is no knowledge"
