"""kappa by roll-outs, against dynamic programming and against enumeration."""

import json

import pytest
import torch

from bridgegarden import exact
from bridgegarden.diagnostics.kappa import KappaSettings, Kind, measure_kappa
from bridgegarden.diagnostics.rollout import RollOuts, roll_out
from bridgegarden.errors import ConfigError
from bridgegarden.statistics import Estimate
from tests.diagnostics.worlds import HORIZON, VOCABULARY, Enumeration, make_world, recited


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def write(world, *, prompts=6, seed=0, by=None) -> RollOuts:
    uniforms = torch.rand(prompts, 1, HORIZON, generator=generator(seed), dtype=torch.float64)
    return roll_out(
        world.teacher, [world.student], [()] * prompts, writer=by or world.teacher, uniforms=uniforms, max_rows=1000
    )


def measure(world, texts, *, seed=0, **settings):
    settings = {"budget": 10**9, "rounds": 60, "choose": "all", "max_rows": 10_000} | settings
    return measure_kappa(world.teacher, world.student, texts, KappaSettings(**settings), generator=generator(seed))


@pytest.mark.parametrize("top", [1, 2, VOCABULARY])
def test_every_action_agrees_with_dynamic_programming_and_with_enumeration(top):
    world = make_world(0)
    truth, enumerated = exact.solve(world.process, world.student_table), Enumeration(world)
    texts = write(world)
    got = measure(world, texts, top=top, rounds=200)
    assert len(got.positions) == sum(map(len, texts.tokens)) == got.candidates
    for place in got.positions:
        prefix = texts.tokens[place.text][: place.position]
        kappa = enumerated.kappa(prefix)
        node = truth.node_of(prefix)
        assert truth.kappa_at(torch.tensor([node]))[0].tolist() == pytest.approx(kappa)
        for action in place.actions:
            assert abs(action.kappa.mean - kappa[action.token]) <= 4 * action.kappa.stderr + 1e-12
        state = sum(kappa[action.token] for action in place.actions)
        assert abs(place.state_kappa.mean - state) <= 4 * place.state_kappa.stderr + 1e-12
        assert abs(place.contribution.mean - enumerated.contribution(prefix)) <= 4 * place.contribution.stderr + 1e-12
        assert truth.student_kappa[node].item() == pytest.approx(enumerated.contribution(prefix))


def test_the_95_per_cent_interval_holds_the_truth_in_at_least_90_per_cent_of_runs():
    world, runs = make_world(2), 200
    prefix, rounds = (2, 3), 30
    texts = recited(world.teacher, world.student, [()] * runs, [(*prefix, 3)] * runs, HORIZON)
    everything = measure(world, texts, rounds=rounds, top=1)
    places = [place for place in everything.positions if place.position == 2]
    kappa, contribution = Enumeration(world).kappa(prefix), Enumeration(world).contribution(prefix)
    state = sum(kappa[action.token] for action in places[0].actions)

    def share(estimates: list[Estimate], truth: float) -> float:
        return sum(low <= truth <= high for low, high in (e.interval() for e in estimates)) / runs

    assert len(places) == runs
    assert share([place.state_kappa for place in places], state) >= 0.90
    assert share([place.contribution for place in places], contribution) >= 0.90
    for column, action in enumerate(places[0].actions):
        assert share([place.actions[column].kappa for place in places], kappa[action.token]) >= 0.90
    means = torch.tensor([place.state_kappa.mean for place in places])
    assert abs(means.mean() - state) < 4 * means.std() / runs**0.5, "the average of many runs shows a bias"


def test_tempered_continuations_are_those_of_the_tempered_world():
    world = make_world(2)
    texts, enumerated = write(world, prompts=2), Enumeration(world, temperature=0.5)
    for place in measure(world, texts, temperature=0.5, rounds=150).positions:
        prefix = texts.tokens[place.text][: place.position]
        p = enumerated.p(enumerated.after(prefix)[0])
        for action in place.actions:
            assert action.teacher_prob == pytest.approx(p[action.token].item())
            assert abs(action.kappa.mean - enumerated.kappa(prefix)[action.token]) <= 4 * action.kappa.stderr + 1e-12


def test_kinds_follow_the_interval_and_the_threshold():
    world = make_world(2)
    texts = write(world, prompts=10)
    found = {threshold: measure(world, texts, threshold=threshold, rounds=20) for threshold in (-1.0, -0.1, 1.0)}
    for threshold, got in found.items():
        for place in got.positions:
            low, high = place.state_kappa.interval()
            wanted = Kind.BRIDGE if low > threshold else Kind.GARDEN if high < threshold else Kind.UNDECIDED
            assert place.kind == wanted
        assert sum(got.count(kind) for kind in Kind) == len(got.positions)
    assert found[-1.0].count(Kind.BRIDGE) > 0
    assert found[-0.1].count(Kind.UNDECIDED) > 0
    assert found[1.0].count(Kind.GARDEN) == len(found[1.0].positions)


def test_the_default_threshold_is_a_tenth_of_a_texts_loss():
    world = make_world(0)
    texts = write(world, prompts=9)
    assert measure(world, texts, rounds=2).threshold == pytest.approx(0.1 * texts.losses.sum().item() / 9)


def test_the_last_token_before_the_horizon_costs_nothing_later():
    """Although the world would go on."""
    world = make_world(3, horizon=HORIZON + 2)
    texts = write(world, prompts=20)
    last = [place for place in measure(world, texts, rounds=2).positions if place.position == HORIZON - 1]
    assert last
    assert all(place.state_kappa == (0.0, 0.0, 2) and place.contribution.mean == 0 for place in last)


def test_the_token_before_it_costs_the_loss_of_the_state_it_leads_to():
    world = make_world(3)
    enumeration = Enumeration(world)
    texts = write(world, prompts=20)
    measured = measure(world, texts, rounds=2, top=VOCABULARY).positions
    before = [place for place in measured if place.position == HORIZON - 2]
    assert before
    for place in before:
        wanted = enumeration.kappa(texts.tokens[place.text][: HORIZON - 2])
        for action in place.actions:
            assert action.kappa.mean == pytest.approx(wanted[action.token])


@pytest.mark.parametrize("limit", [1, 5])
def test_as_many_positions_are_measured_as_asked_for(limit):
    world = make_world(0)
    places = measure(world, write(world), rounds=2, choose="uncertain", limit=limit).positions
    assert len(places) == limit


def test_positions_are_chosen_as_asked():
    world = make_world(0)
    texts = write(world)
    spread = measure(world, texts, rounds=2, choose="uncertain").positions
    entropies = [place.teacher_entropy for place in spread]
    assert entropies == sorted(entropies, reverse=True)
    shuffled = measure(world, texts, rounds=2, choose="random", limit=5).positions
    assert len(shuffled) == 5
    assert [(place.text, place.position) for place in shuffled] != [(0, position) for position in range(5)]


def test_the_budget_is_kept_and_no_position_is_left_half_done():
    world = make_world(0)
    texts = write(world, prompts=40)
    got = measure(world, texts, rounds=10, budget=3000, choose="random")
    assert 0 < len(got.positions) < got.candidates
    assert got.generated_tokens <= 1.15 * got.budget
    assert all(place.state_kappa.n == 10 for place in got.positions)


def test_positions_measured_on_a_budget_are_the_same_as_without():
    world = make_world(0)
    texts = write(world, prompts=40)
    some, more = (measure(world, texts, rounds=4, budget=b, max_rows=24).positions for b in (2000, 4000))
    # Their errors are not: no place is surer than all are on average.
    assert [place.state_kappa.mean for place in more[: len(some)]] == [place.state_kappa.mean for place in some]


def test_a_budget_too_small_for_one_position_says_what_is_enough():
    world = make_world(2)
    texts = recited(world.teacher, world.student, [()] * 2, [(2, 3, 1)] * 2, HORIZON)
    with pytest.raises(ConfigError, match=r"20 generated tokens are too few.*about 96 are needed"):
        measure(world, texts, rounds=8, budget=20)
    measure(world, texts, rounds=8, budget=96)


def test_a_student_that_is_its_teacher_contributes_nothing():
    world = make_world(0)
    twin = world._replace(student=world.teacher)
    texts = write(twin)
    got = measure(twin, texts, rounds=4)
    assert all(place.contribution.mean == place.state_kappa.mean == 0 for place in got.positions)


def test_the_result_is_plain_json():
    world = make_world(0)
    document = json.loads(json.dumps(measure(world, write(world), rounds=2).to_dict(), allow_nan=False))
    first = document["positions"][0]
    assert first["kind"] in ("bridge", "garden", "undecided")
    assert set(first["actions"][0]) == {"token", "teacher_prob", "student_prob", "kappa"}


def test_every_setting_may_be_the_least_that_makes_sense():
    least = {"budget": 1, "rounds": 2, "top": 1, "max_rows": 1, "temperature": 0}
    assert KappaSettings(**least).continuations == 2 * (2 + 2)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"budget": 0}, "kappa.budget must be >= 1, got 0"),
        ({"rounds": 1}, "kappa.rounds must be >= 2, got 1"),
        ({"top": 0}, "kappa.top must be >= 1"),
        ({"max_rows": 0}, "kappa.max_rows must be >= 1"),
        ({"temperature": -0.1}, "kappa.temperature must be >= 0"),
        ({"choose": "best"}, "kappa.choose must be 'all', 'random' or 'uncertain', got 'best'"),
    ],
)
def test_settings_out_of_range_are_refused(settings, message):
    with pytest.raises(ConfigError, match=message):
        KappaSettings(**({"budget": 1} | settings))
