import re
from functools import partial
from pathlib import Path

import pytest

from bridgegarden.objective.divergences import DIVERGENCES, alpha_beta, forward_kl, jensen_shannon, reverse_kl
from bridgegarden.objective.hybrid import HybridObjective
from bridgegarden.objective.soft_weight import StaticWeight
from bridgegarden.teacher.cache.fidelity import (
    cache_warning,
    fidelity,
    measured_loss,
    softest,
    truncation_warning,
)
from bridgegarden.teacher.cache.info import kept_tokens
from bridgegarden.teacher.cache.spec import Support
from tests.teacher.cache.conftest import build, cache_spec

DOCS = Path(__file__).parents[3] / "docs" / "cache.md"
TOP_64 = Support(k=64)
UNMEASURED = {"head_tail_kl", "token_wise_kl", "lk_hybrid"}


def said(objective, mass=None, support=TOP_64, kept_in="cache"):
    return truncation_warning(objective, support, mass=mass, kept_in=kept_in)


def measured(loss, k=64, temperature=1.0):
    return next(row for row in fidelity() if (row.loss, row.k, row.temperature) == (loss, k, temperature))


def test_every_divergence_was_measured_at_both_temperatures_and_each_number_of_tokens():
    losses = {row.loss for row in fidelity()}
    known = DIVERGENCES.keys() - UNMEASURED
    assert losses >= known - {"alpha_beta"}
    assert {loss.split("(")[0] for loss in losses} == known
    counts = {row.k for row in fidelity()}
    assert {(row.loss, row.temperature, row.k) for row in fidelity()} == {
        (loss, t, k) for loss in losses for t in (1.0, 2.0) for k in counts
    }


@pytest.mark.parametrize("name", sorted(UNMEASURED))
def test_nothing_is_said_of_a_divergence_that_was_not_measured(name):
    assert said(HybridObjective(divergence=DIVERGENCES[name], soft_weight=StaticWeight(1.0)), mass=0.5) is None


def test_the_documentation_has_the_measured_numbers():
    text = DOCS.read_text(encoding="utf-8")
    heads, *rows = [
        [cell.strip() for cell in line.strip("|\n ").split("|")]
        for line in text.splitlines()
        if re.match(r"\| (loss \| dense|[a-z_]+(\(.*?\))?(, T = 2)? \| [\d.e+]+ \|)", line)
    ]
    table = {(cells[0], head): cell for cells in rows for head, cell in zip(heads, cells, strict=True)}
    shown = [row for row in fidelity() if f"top {row.k}" in heads]
    assert len(shown) >= 100
    for row in shown:
        name = row.loss + (", T = 2" if row.temperature == 2 else "")
        ratio, cosine = table[name, f"top {row.k}"].split(", ")
        assert (float(ratio), float(cosine)) == pytest.approx((row.ratio, row.cosine), abs=6e-4)


def test_nothing_is_said_of_the_forward_kl_with_as_much_mass_as_top_64_usually_hold():
    assert said(HybridObjective(), mass=measured("forward_kl").mass) is None
    assert said(HybridObjective()) is None
    assert said(HybridObjective(), mass=0.5) is not None


def test_what_is_said_is_what_was_measured_with_no_more_mass():
    row = measured("reverse_kl")
    text = said(HybridObjective(divergence=reverse_kl), mass=row.mass + 1e-4)
    assert text is not None
    assert "\n" not in text
    assert text.startswith("objective: reverse_kl depends on what is not kept of the teacher. Kept is top 64, with ")
    assert f"Where {row.mass:.3f} was kept (top 64, docs/cache.md), {row.ratio:.0%} of reverse_kl was left" in text
    assert f"cosine of {row.cosine:.2f} to" in text
    less = said(HybridObjective(divergence=reverse_kl), mass=row.mass - 1e-4)
    assert less is not None
    assert "(top 32, docs/cache.md)" in less


def test_a_temperature_is_named_with_the_mass_at_it():
    text = said(HybridObjective(temperature=2.0), mass=measured("forward_kl", temperature=2.0).mass)
    assert text is not None
    assert "forward_kl at temperature 2 depends" in text
    assert "of its probability at temperature 2 on average" in text
    assert "(top 64 at temperature 2, docs/cache.md)" in text
    assert text.endswith("or train at temperature 1.")


def test_a_divergence_that_is_another_one_at_this_option_counts_as_that():
    assert measured_loss(HybridObjective(divergence=partial(jensen_shannon, beta=1.0))) == "reverse_kl"
    assert measured_loss(HybridObjective(divergence=partial(jensen_shannon, beta=0.3))) == "jensen_shannon"
    assert measured_loss(HybridObjective(divergence=partial(alpha_beta, alpha=1.0, beta=0.1))) == "forward_kl"
    near = HybridObjective(divergence=partial(alpha_beta, alpha=0.1, beta=0.7))
    assert measured_loss(near) == "alpha_beta(0.2, 0.7)"
    text = said(near)
    assert text is not None
    assert "objective: alpha_beta(alpha=0.1, beta=0.7) depends" in text
    assert "of alpha_beta(0.2, 0.7) was left" in text


def test_nothing_is_said_where_nothing_is_known_or_no_soft_loss_is_used():
    def own(teacher_logp, student_logp):
        return forward_kl(teacher_logp, student_logp)

    assert said(HybridObjective(divergence=own)) is None
    assert said(HybridObjective(divergence=reverse_kl, soft_weight=StaticWeight(0.0))) is None
    assert said(HybridObjective(), support=Support(kind="sampled", k=8)) is None


@pytest.mark.parametrize(
    ("kept_in", "remedy"),
    [
        ("cache", r"Let the teacher stay in memory, whole \(.*\), or train at temperature 1\.$"),
        ("memory", r"Leave teacher\.top_k out, or train at temperature 1\.$"),
        ("answers", r"Ask the server for more tokens \(generate --top-logprobs\), or train at temperature 1\.$"),
    ],
)
def test_the_remedy_is_one_that_can_be_taken(kept_in, remedy):
    text = said(HybridObjective(temperature=2.0), kept_in=kept_in)
    assert text is not None
    assert re.search(remedy, text)


def test_where_more_tokens_would_do_the_mass_that_did_is_asked_for():
    good = min((row for row in fidelity() if row.loss == "jensen_shannon" and row.is_good), key=lambda row: row.mass)
    text = said(HybridObjective(divergence=jensen_shannon), mass=good.mass - 0.03)
    assert text is not None
    mass = re.search(r"--replace --mass (0\.\d+) --top-k 1024\), or train forward_kl\.$", text)
    assert mass is not None
    assert good.mass <= float(mass[1]) < good.mass + 0.01
    assert said(HybridObjective(divergence=jensen_shannon), mass=float(mass[1])) is None
    forward = said(HybridObjective(), mass=0.5)
    assert forward is not None
    assert "or train" not in forward


def test_a_mass_that_is_asked_for_counts_before_anything_is_built():
    mass = Support(kind="mass", k=4096, mass=0.5)
    assert said(HybridObjective(), support=mass) is not None
    assert said(HybridObjective(), support=Support(k=4096)) is None


def test_a_sharpened_target_is_not_softer_than_the_teacher_and_a_flattened_one_is():
    assert softest(HybridObjective(sharpening=2.0)) == 1.0
    assert softest(HybridObjective(sharpening=0.5)) == 2.0
    assert softest(HybridObjective(temperature=3.0)) == 3.0


def test_a_cache_is_judged_by_the_mass_that_it_holds(tmp_path):
    folder = build(tmp_path / "cache", cache_spec(Support(k=128)))
    held = kept_tokens(folder)[-1].mass
    text = cache_warning(folder, HybridObjective(divergence=reverse_kl))
    assert text is not None
    assert f"Kept is top 128, with {held:.3f} of its probability on average." in text
    at_two = kept_tokens(folder, 0.5)[-1].mass
    assert at_two < held
    warm = cache_warning(folder, HybridObjective(temperature=2.0))
    assert warm is not None
    assert f"with {at_two:.3f} of its probability at temperature 2" in warm


def test_nothing_is_said_of_a_cache_of_the_whole_vocabulary_or_of_draws(tmp_path):
    for number, support in enumerate((Support(k=259), Support(kind="sampled", k=8))):
        folder = build(tmp_path / str(number), cache_spec(support, teacher_width=259), model=narrow_teacher())
        assert cache_warning(folder, HybridObjective(divergence=reverse_kl)) is None


def narrow_teacher():
    """Without padding rows, so that there is no tail."""
    from tests.tiny import VOCABULARY, tiny_model

    return tiny_model("llama", VOCABULARY, hidden_size=48, seed=1)
