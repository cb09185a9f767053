"""Fitting a probe of kappa, on planted positions whose truth is known, and on a world where nothing is planted."""

import json
import math
from dataclasses import replace

import numpy as np
import pytest
import torch

from bridgegarden.diagnostics.advise import advise
from bridgegarden.diagnostics.exposure_bias import exposure_bias
from bridgegarden.diagnostics.fit_probe import FittedProbe, _deal, _out_of_fold, features_at, fit_probe, kind_of, ridge
from bridgegarden.diagnostics.kappa import KappaSettings, measure_kappa
from bridgegarden.diagnostics.rollout import Sampling
from bridgegarden.objective.hybrid import dense_student_support
from bridgegarden.objective.kappa_probe import FEATURES, KINDS, _one_hot, features_of
from bridgegarden.objective.support import TeacherSignal
from bridgegarden.statistics import Estimate
from tests.diagnostics.test_advise import VOCABULARY, planted
from tests.diagnostics.worlds import make_world

KIND = "sdlmo"


def positions(kappa_of, *, prompts=30, each=6, noise=0.3, tails=3, seed=0):
    """Positions of which all that a probe sees is drawn by itself, and kappa is a function of it with noise."""
    rng = np.random.default_rng(seed)
    result = planted(lambda unsure, rng: 0.0, prompts=prompts, each=each, seed=seed)
    made = []
    for place in result.positions:
        entropy, margin, agreement, token = rng.uniform(0, 2), rng.uniform(), rng.uniform(), int(rng.integers(5))
        kappa = kappa_of(entropy, margin, 1 - agreement, KIND[token]) + noise * rng.standard_t(tails)
        made.append(
            replace(
                place,
                teacher_entropy=float(entropy),
                teacher_max_prob=float(rng.uniform(0.1, 1)),
                teacher_margin=float(margin),
                agreement=float(agreement),
                likeliest=token,
                state_kappa=Estimate(float(kappa), noise, 8),
            )
        )
    return replace(result, positions=tuple(made))


def fitted(result, seed=0) -> FittedProbe:
    generator = torch.Generator().manual_seed(seed)
    scores = advise(result, vocab_size=VOCABULARY, generator=generator, resamples=20).scores
    return fit_probe(
        result, scores, vocab_size=VOCABULARY, kind=lambda token: KIND[token], generator=generator, resamples=50
    )


def test_what_is_planted_is_found_and_beats_rules_that_cannot_see_it():
    got = fitted(positions(lambda entropy, margin, disagreement, kind: 2 * disagreement + (kind == "d")))
    assert got.standing == "ahead", got.reason
    assert got.score.spearman.interval.high < -0.5
    assert got.ahead.interval.low > 0
    weights = dict(zip(FEATURES, got.probe.weights, strict=True))
    assert weights["disagreement"] == pytest.approx(2, abs=0.4)
    others = [weights[name] for name in ("special", "letters", "marks", "other")]
    assert weights["digits"] - np.mean(others) == pytest.approx(1, abs=0.3)
    assert abs(weights["entropy"]) < 0.3
    assert "The probe predicts kappa, and aims better than" in got.reason or got.rival == "static"
    assert f"{got.score.gain.value / got.score.most:.0%} of the most" in got.reason or got.rival == "static"


def test_where_the_teachers_entropy_is_all_there_is_the_rule_without_a_file_is_named():
    got = fitted(positions(lambda entropy, margin, disagreement, kind: -entropy))
    assert got.rival == "entropy"
    assert got.standing == "as good", got.reason
    assert "that of the entropy rule, which needs no file: take that one" in got.reason


def test_where_there_is_nothing_to_predict_it_says_so():
    found = [fitted(positions(lambda *seen: 0.0, noise=1.0, each=3, seed=seed)) for seed in range(20)]
    used = sum(one.standing in ("ahead", "as good") for one in found)
    assert used <= 1, "an interval of 95% lies on the good side by chance once in 40"
    assert all("do not use it" in one.reason for one in found if one.standing not in ("ahead", "as good"))


def test_much_evidence_of_nothing_says_that_it_predicts_nothing():
    got = fitted(positions(lambda *seen: 0.0, noise=1.0, tails=100, prompts=1500, each=2))
    assert got.standing == "nothing"
    assert got.reason.startswith("The probe predicts nothing; do not use it.")


def test_positions_of_few_prompts_are_not_enough_however_many():
    got = fitted(positions(lambda entropy, margin, disagreement, kind: disagreement, prompts=5, each=80))
    assert got.standing == "too few"
    assert "Do not use it" in got.reason


def test_the_weights_of_a_prompt_do_not_depend_on_its_own_kappa():
    result = positions(lambda entropy, margin, disagreement, kind: disagreement)
    features = features_at(result, lambda token: KIND[token])
    kappa = torch.tensor([place.state_kappa.mean for place in result.positions], dtype=torch.float64)
    prompts = [place.prompt for place in result.positions]
    folds = _deal(prompts, torch.Generator().manual_seed(0))
    assert all(len({folds[i].item() for i, name in enumerate(prompts) if name == one}) == 1 for one in set(prompts))
    before, changed = _out_of_fold(features, kappa, folds), kappa.clone()
    changed[folds == 3] += 100 * torch.randn(int((folds == 3).sum()), generator=torch.Generator().manual_seed(1))
    after = _out_of_fold(features, changed, folds)
    torch.testing.assert_close(after[folds == 3], before[folds == 3], rtol=0, atol=0)
    assert (after[folds != 3] - before[folds != 3]).abs().max() > 0.05


def test_ridge_is_least_squares_with_rows_that_pull_every_standardised_weight_to_zero():
    rng = np.random.default_rng(0)
    x = rng.normal(size=(50, len(FEATURES))) * rng.uniform(0.1, 5, len(FEATURES)) + 3
    x[:, 4] = 1.0  # never varies
    y = rng.normal(size=50)
    probe = ridge(torch.tensor(x), torch.tensor(y), 0.3)
    spread = x.std(0)
    varied = [j for j in range(len(FEATURES)) if j != 4]
    z = (x[:, varied] - x[:, varied].mean(0)) / spread[varied]
    rows = np.vstack([z / np.sqrt(50), np.sqrt(0.3) * np.eye(len(varied))])
    target = np.concatenate([(y - y.mean()) / np.sqrt(50), np.zeros(len(varied))])
    expected = np.linalg.lstsq(rows, target, rcond=None)[0] / spread[varied]
    np.testing.assert_allclose(np.array(probe.weights)[varied], expected, rtol=1e-9)
    assert probe.weights[4] == 0
    predicted = y.mean() + (x[:, varied] - x[:, varied].mean(0)) @ expected
    np.testing.assert_allclose(probe.kappa(torch.tensor(x)), predicted, rtol=1e-9)
    assert probe.center == pytest.approx(predicted.mean())
    assert probe.scale == pytest.approx(predicted.std())


def test_kappa_that_is_the_same_everywhere_makes_a_static_rule():
    x = torch.randn(20, len(FEATURES), dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    probe = ridge(x, torch.full((20,), 0.7, dtype=torch.float64), 0.1)
    assert probe.soft_weight(x).tolist() == [0.5] * 20


def test_features_of_measured_positions_are_those_that_the_rule_sees_there():
    world = make_world(1)
    generator = torch.Generator().manual_seed(0)
    bias = exposure_bias(
        world.teacher, world.student, [()] * 6, Sampling(samples=1, max_new_tokens=6), generator=generator
    )
    settings = KappaSettings(budget=2_000, rounds=2, top=1)
    result = measure_kappa(world.teacher, world.student, bias.student_texts, settings, generator=generator)
    assert len(result.positions) >= 8
    prefixes = [bias.student_texts.prefix(place.text, place.position) for place in result.positions]
    teacher, student = (policy.start(prefixes).log_probs() for policy in (world.teacher, world.student))
    signal = TeacherSignal.from_logits(teacher)
    kinds = _one_hot(KIND, torch.device("cpu"))
    seen = features_of(signal, dense_student_support(student, 5, signal.argmax), kinds)
    torch.testing.assert_close(features_at(result, lambda token: KIND[token]), seen, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize(
    ("text", "special", "kind"),
    [
        ("<|end|>", True, "special"),
        (" 42", False, "digits"),
        ("x2", False, "digits"),
        (" therefore", False, "letters"),
        ("é", False, "letters"),
        (" +=", False, "marks"),
        ("\n ", False, "other"),
        ("", False, "other"),
    ],
)
def test_kinds_of_tokens_are_read_off_their_text(text, special, kind):
    assert KINDS[kind_of(text, special=special)] == kind


def test_all_of_a_fit_is_finite_json():
    got = fitted(positions(lambda *seen: 0.0, each=2, prompts=4))
    tree = json.loads(json.dumps(got.to_dict(), allow_nan=False))
    assert set(tree["weights"]) == set(FEATURES)
    assert all(math.isfinite(value) for value in tree["weights"].values())
