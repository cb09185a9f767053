"""Attribution: the identity, by sampling."""

import json
from dataclasses import replace

import pytest
import torch

from bridgegarden import exact
from bridgegarden.diagnostics.attribution import _Charge, _shares, attribute
from bridgegarden.diagnostics.exposure_bias import exposure_bias
from bridgegarden.diagnostics.rollout import Sampling
from bridgegarden.errors import ConfigError
from bridgegarden.statistics import Estimate
from tests.diagnostics.worlds import HORIZON, Enumeration, make_world


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def measure(world, *, prompts=100, seed=0, budget=4_000, temperature=1.0, samples=1):
    bias = exposure_bias(
        world.teacher,
        world.student,
        [()] * prompts,
        Sampling(samples=samples, max_new_tokens=HORIZON, temperature=temperature, max_rows=10_000),
        generator=generator(seed),
    )
    return bias, attribute(
        world.teacher, world.student, bias, budget=budget, generator=generator(seed + 1), max_rows=10_000
    )


@pytest.mark.parametrize("seed", range(4))
def test_the_total_and_every_range_agree_with_dynamic_programming(seed):
    world = make_world(seed)
    truth = exact.solve(world.process, world.student_table)
    _, got = measure(world, seed=seed, prompts=200)
    assert abs(got.total.mean - truth.exposure_bias) < 4 * got.total.stderr
    for share in got.by_position:
        wanted = truth.by_position.contribution[int(share.low) : int(share.high)].sum().item()
        assert abs(share.contribution.mean - wanted) <= 4 * share.contribution.stderr + 1e-9


def test_the_95_per_cent_intervals_hold_the_truth_in_90_to_99_per_cent_of_runs():
    # 100 prompts: with 40 the gap, whose spread is that of the skewed direct measurement, is covered 90 to 93% of the
    # time, on the edge of what is asked here. The total is covered 94 to 95% with either.
    world, runs, prompts = make_world(1), 100, 100
    truth = exact.solve(world.process, world.student_table).exposure_bias
    bias, got = measure(world, prompts=runs * prompts, seed=1000, budget=38_000)
    assert got.draws_per_text <= 3, "more would take the test too long"
    total = torch.tensor(got.per_prompt, dtype=torch.float64).view(runs, prompts)
    gap = total - bias.per_prompt().view(runs, prompts)
    for values, wanted in ((total, truth), (gap, 0.0)):
        intervals = [Estimate.over(row).interval() for row in values]
        assert 0.90 <= sum(low <= wanted <= high for low, high in intervals) / runs <= 0.99
    assert abs(got.gap.mean) < 4 * got.gap.stderr


def few_draws():
    """Few enough draws that all of them are among the largest; some at the last position, some at the one before.

    The world would go on where the texts are cut.
    """
    world = make_world(0, horizon=HORIZON + 2)
    for seed in range(200):
        bias, got = measure(world, prompts=5, samples=2, seed=seed, budget=60)
        places = [draw.position for draw in got.largest]
        if got.draws_per_text <= 2 and {HORIZON - 1, HORIZON - 2, 0} <= set(places):
            return world, bias, got
    raise AssertionError("no seed gives such draws")


def test_every_number_of_a_small_attribution_is_what_its_draws_say():
    world, bias, got = few_draws()
    texts = bias.student_texts
    mass = texts.total_variation[0].sum(-1)
    by_prompt, by_range, by_sureness = [0.0] * 5, [0.0] * len(got.by_position), [0.0] * len(got.by_confidence)
    for draw in got.largest:
        part = mass[draw.text].item() * draw.cost / got.draws_per_text / 2
        by_prompt[draw.text // 2] += part
        place = next(i for i, share in enumerate(got.by_position) if share.low <= draw.position < share.high)
        by_range[place] += part / 5
        state = 0
        for token in texts.tokens[draw.text][: draw.position]:
            state = world.process.step(state, token)
        sureness = world.process.log_probs(state).max().exp().item()
        place = max(i for i, share in enumerate(got.by_confidence) if share.low <= sureness)
        by_sureness[place] += part / 5
    assert list(got.per_prompt) == pytest.approx(by_prompt)
    assert [share.contribution.mean for share in got.by_position] == pytest.approx(by_range)
    assert [share.contribution.mean for share in got.by_confidence] == pytest.approx(by_sureness)
    direct = bias.per_prompt().tolist()
    gap = torch.tensor([total - one for total, one in zip(by_prompt, direct, strict=True)], dtype=torch.float64)
    assert got.gap == pytest.approx(Estimate.cautious(gap))


def test_costs_are_of_what_is_left_of_a_text():
    """Nothing after the last token; one loss, that of the state a token leads to, after the one before it."""
    world, bias, got = few_draws()
    enumeration = Enumeration(world)

    def loss_after(draw, token):
        state = 0
        for written in (*bias.student_texts.tokens[draw.text][: draw.position], token):
            state = world.process.step(state, written)
        return 0.0 if world.process.is_terminal(state) else enumeration.loss(state)

    for draw in got.largest:
        if draw.position == HORIZON - 1:
            assert draw.cost == 0
        if draw.position == HORIZON - 2:
            apart = loss_after(draw, draw.student_token) - loss_after(draw, draw.teacher_token)
            assert draw.cost == pytest.approx(apart)


def test_the_last_range_holds_its_upper_end():
    texts = measure(make_world(0), prompts=4)[0].student_texts
    four = torch.arange(4)
    charge = _Charge(texts, four, four * 0, torch.ones(4).double(), *[torch.ones(4, HORIZON).double()] * 2, 1.0)
    values = torch.tensor([0.2, 0.5, 1.0, 1.0 + 1e-12])[:, None].expand(4, HORIZON)
    assert [share.contribution.mean for share in _shares((0.0, 0.5, 1.0), values, charge)] == [0.25, 0.75]


@pytest.mark.parametrize("temperature", [0.5, 1.3])
def test_the_identity_holds_at_the_temperature_of_the_texts(temperature):
    world = make_world(2)
    bias, got = measure(world, temperature=temperature, prompts=200)
    assert abs(got.gap.mean) < 4 * got.gap.stderr
    assert got.direct == bias.exposure_bias


def test_the_ranges_add_up_to_the_total():
    _, got = measure(make_world(0), samples=2)
    for shares in (got.by_position, got.by_confidence):
        assert sum(share.contribution.mean for share in shares) == pytest.approx(got.total.mean)


def test_an_exposure_bias_that_is_not_what_was_measured_is_found_out():
    bias, _ = measure(make_world(0))
    world = make_world(0)
    doubled = replace(bias.student_texts, losses=bias.student_texts.losses * 3)
    wrong = replace(bias, student_texts=doubled)
    got = attribute(world.teacher, world.student, wrong, budget=4_000, generator=generator(), max_rows=10_000)
    assert not got.agrees


def test_models_that_agree_cost_nothing_and_explain_nothing():
    world = make_world(0)._replace(student=make_world(0).teacher)
    _, got = measure(world, prompts=3)
    assert got.total.mean == got.gap.mean == got.generated_tokens == 0
    assert got.agrees
    assert got.largest == ()


def test_the_budget_is_kept():
    _, got = measure(make_world(0), budget=2000)
    assert got.draws_per_text > 1
    assert got.generated_tokens <= 1.15 * 2000


def test_a_budget_below_one_draw_a_text_says_what_is_enough():
    with pytest.raises(ConfigError, match=r"budget of 5 generated tokens is less than.*about \d+\. Raise it"):
        measure(make_world(0), budget=5)


def test_the_largest_draws_come_first_and_name_both_tokens():
    world = make_world(0)
    bias, got = measure(world)
    assert len(got.largest) == 20
    costs = [draw.cost for draw in got.largest]
    assert costs == sorted(costs, reverse=True)
    for draw in got.largest:
        state = 0
        for token in bias.student_texts.tokens[draw.text][: draw.position]:
            state = world.process.step(state, token)
        p, q = world.process.log_probs(state), world.student_table[state]
        assert q[draw.student_token] > p[draw.student_token]
        assert p[draw.teacher_token] > q[draw.teacher_token]


def test_the_result_is_plain_json():
    _, got = measure(make_world(0))
    document = json.loads(json.dumps(got.to_dict(), allow_nan=False))
    assert document["agrees"] is got.agrees
    assert document["by_confidence"][0]["contribution"]["n"] == 100
