"""The rule that a fitted probe makes, against its definition; and files that are no good."""

import json
import math
from dataclasses import replace

import pytest
import torch

from bridgegarden.errors import ConfigError
from bridgegarden.objective.alignment import Position
from bridgegarden.objective.head import select_support
from bridgegarden.objective.hybrid import HybridObjective, dense_student_support, hybrid_loss_from_logits
from bridgegarden.objective.kappa_probe import FEATURES, KINDS, LinearProbe, ProbeFile
from bridgegarden.objective.soft_weight import KappaProbe, ask
from bridgegarden.objective.support import TeacherSignal

V, N = 9, 40
generator = torch.Generator().manual_seed(0)
TEACHER = 2 * torch.randn(N, V, generator=generator, dtype=torch.float64)
STUDENT = 2 * torch.randn(N, V, generator=generator, dtype=torch.float64)
PROBE = LinearProbe(
    weights=(-0.7, 0.4, 1.3, 0.2, 0.9, -0.5, 0.1, -1.1),
    low=(0.9, 0.1, 0.2, *[0.0] * 5),
    high=(1.6, 0.6, 0.97, *[1.0] * 5),
    intercept=0.3,
    center=0.6,
    scale=0.45,
)
HELD = ProbeFile(
    probe=PROBE,
    kinds="sddllmmol",
    teacher={"teacher": "t", "weights": "w"},
    vocabulary="v",
    fitted={"standing": "ahead"},
)


@pytest.fixture
def written(tmp_path):
    """Write a probe's file, with changes; returns its path."""

    def write(**changes):
        path = tmp_path / "kappa_probe.json"
        path.write_text(json.dumps(HELD.to_dict() | changes))
        return path

    return write


def defined(row):
    """The soft weight of one position, number by number."""
    p, q = ([math.exp(x) for x in logits[row].tolist()] for logits in (TEACHER, STUDENT))
    p, q = [x / sum(p) for x in p], [x / sum(q) for x in q]
    first = max(range(V), key=lambda token: p[token])
    kappa = 0.3
    kappa += -0.7 * min(max(-sum(x * math.log(x) for x in p), 0.9), 1.6)
    kappa += 0.4 * min(max(p[first] - max(x for token, x in enumerate(p) if token != first), 0.1), 0.6)
    kappa += 1.3 * min(max(1 - q[first], 0.2), 0.97)
    kappa += {"s": 0.2, "d": 0.9, "l": -0.5, "m": 0.1, "o": -1.1}["sddllmmol"[first]]
    return 1 / (1 + math.exp((kappa - 0.6) / 0.45))


@pytest.mark.parametrize("k", [None, 2, 4])
def test_the_weight_is_what_its_definition_says_however_much_is_kept_of_the_teacher(written, k):
    rule = KappaProbe(str(written()))
    signal = TeacherSignal.from_logits(TEACHER, k=k)
    if k is None:
        student = dense_student_support(STUDENT, V, signal.argmax)
    else:
        assert signal.ids is not None
        student = select_support(STUDENT, signal.ids, signal.argmax, 1.0)
    got = ask(rule, signal, student, Position(torch.zeros(N, dtype=torch.long)))
    expected = torch.tensor([defined(row) for row in range(N)], dtype=torch.float64)
    assert expected.std() > 0.1
    torch.testing.assert_close(got, expected, rtol=1e-6, atol=1e-7)


def test_at_the_mean_of_its_predictions_a_probe_is_half_soft():
    features = torch.zeros(1, len(FEATURES), dtype=torch.float64)
    even = replace(PROBE, low=(0.0,) * 8, center=PROBE.intercept)
    assert even.soft_weight(features).item() == 0.5
    assert replace(even, center=PROBE.intercept + 0.45).soft_weight(features).item() == pytest.approx(
        1 / (1 + math.exp(-1))
    ), "less hangs on it than on the mean, so it is softer"


def test_no_gradient_flows_through_the_probe(written):
    student = STUDENT.reshape(4, 10, V).clone().requires_grad_()
    teacher, labels = TEACHER.reshape(4, 10, V), torch.arange(10).remainder(V).expand(4, -1)

    def gradient(rule):
        loss = hybrid_loss_from_logits(student, teacher, labels, HybridObjective(soft_weight=rule))
        return loss.soft_weight, torch.autograd.grad(loss.mean(), student)[0]

    weight, found = gradient(KappaProbe(str(written())))
    assert not weight.requires_grad
    _, constant = gradient(lambda signal, student, position, progress: weight)
    torch.testing.assert_close(found, constant, rtol=1e-12, atol=1e-14)


def test_a_file_is_read_as_it_was_written_and_told_from_another(written):
    rule = KappaProbe(str(written()))
    assert replace(rule.held, sha256="") == HELD
    assert HybridObjective(soft_weight=rule).probes == (rule,)
    changed = KappaProbe(str(written(center=0.61)))
    assert changed.held.sha256 != rule.held.sha256
    assert repr(changed) != repr(rule)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"format": "poem"}, "is no kappa probe"),
        ({"version": 2}, "is of version 2; this bridgegarden reads version 1"),
        ({"center": math.nan}, "holds NaN, which is no number"),
        ({"intercept": math.inf}, "holds Infinity, which is no number"),
        ({"scale": 0.0}, "scale must be > 0, got 0.0"),
        ({"scale": "1"}, "scale must be a finite number, got '1'"),
        ({"weights": {"entropy": 1.0}}, "weights must be of entropy, margin, disagreement, special"),
        ({"weights": dict.fromkeys(FEATURES, True)}, "weights.entropy must be a finite number, got True"),
        ({"high": dict.fromkeys(FEATURES, -1.0)}, "low must not be above high"),
        ({"low": dict.fromkeys(FEATURES, "0")}, "low.entropy must be a finite number, got '0'"),
        ({"kinds": "sdx"}, "kinds must be letters of sdlmo"),
        ({"kinds": ""}, "kinds must be letters of sdlmo"),
        ({"vocabulary": None}, "does not say for which teacher and tokenizer"),
    ],
)
def test_a_file_that_is_no_good_is_refused_by_name(written, changes, message):
    path = written(**changes)
    with pytest.raises(ConfigError, match=message) as caught:
        KappaProbe(str(path))
    assert str(path) in str(caught.value)
    assert "bridgegarden diagnose" in str(caught.value)


@pytest.mark.parametrize(("content", "message"), [(None, "cannot be read"), ("{", "is no JSON"), ("[]", "no kappa")])
def test_a_file_that_is_missing_or_no_json_is_refused_by_name(tmp_path, content, message):
    path = tmp_path / "probe.json"
    if content is not None:
        path.write_text(content)
    with pytest.raises(ConfigError, match=rf"kappa probe .*probe\.json: .*{message}"):
        KappaProbe(str(path))


@pytest.mark.parametrize(
    ("signal", "message"),
    [
        (TeacherSignal.from_logits(TEACHER, vocab_size=V - 1), "shares 9 tokens; this one shares 8"),
        (TeacherSignal.from_logits(TEACHER, k=1), "two likeliest tokens, and this teacher's signal keeps one"),
        (TeacherSignal.from_samples(TEACHER, 5, generator=generator), "signal holds draws"),
    ],
)
def test_a_teacher_that_the_probe_cannot_read_is_refused(written, signal, message):
    student = dense_student_support(STUDENT, V, signal.argmax)
    with pytest.raises(ConfigError, match=message):
        KappaProbe(str(written()))(signal, student)


def test_every_kind_of_token_is_a_feature():
    assert FEATURES[3:] == tuple(KINDS.values())
    assert len(PROBE.weights) == len(FEATURES)
