"""Intervals where few units were seen and what matters is rare, against dynamic programming.

``python -m tests.diagnostics.test_small_budgets`` prints how often each interval held the truth, the table of
docs/diagnose.md, in some two minutes.
"""

from dataclasses import replace

import pytest
import torch

from bridgegarden import exact
from bridgegarden.diagnostics.attribution import attribute
from bridgegarden.diagnostics.exposure_bias import ExposureBias
from bridgegarden.diagnostics.kappa import KappaSettings, Kind, measure_kappa
from bridgegarden.diagnostics.rollout import RollOuts, roll_out
from bridgegarden.statistics import Estimate
from tests.diagnostics.worlds import World, make_world, rare_disasters

RUNS = 300


def generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def written(world: World, writer, *, prompts: int, samples: int, seed: int) -> RollOuts:
    """Texts of all runs at once; the same random numbers for every writer of a seed."""
    uniforms = torch.rand(prompts, samples, world.process.horizon, generator=generator(seed), dtype=torch.float64)
    return roll_out(
        world.teacher, [world.student], [()] * prompts, writer=writer, uniforms=uniforms, max_rows=prompts * samples
    )


def part(texts: RollOuts, first: int, count: int) -> RollOuts:
    """Of some prompts."""
    rows = slice(first * texts.samples, (first + count) * texts.samples)
    return replace(
        texts,
        prompts=texts.prompts[first : first + count],
        tokens=texts.tokens[rows],
        lengths=texts.lengths[rows],
        **{name: getattr(texts, name)[:, rows] for name in ("losses", "total_variation", "student_logp")},
        **{name: getattr(texts, name)[rows] for name in ("teacher_logp", "teacher_entropy", "teacher_max_prob")},
    )


def biases(world: World, *, prompts: int, samples: int, runs: int = RUNS) -> list[ExposureBias]:
    """One for each run."""
    texts = [
        written(world, writer, prompts=runs * prompts, samples=samples, seed=5)
        for writer in (world.teacher, world.student)
    ]
    return [
        ExposureBias.of(*(part(one, run * prompts, prompts) for one in texts), temperature=1.0) for run in range(runs)
    ]


def held(estimates: list[Estimate], truth: float) -> float:
    """Share of the intervals that hold the truth."""
    return sum(low - 1e-9 <= truth <= high + 1e-9 for low, high in (one.interval() for one in estimates)) / len(
        estimates
    )


NO_SPREAD, SOME = 0.0, 0.5
"""How uneven the world is: texts without a disaster all lose the same, or nearly the same."""


def coverage_of_biases(prompts: int, samples: int, uneven: float, runs: int = RUNS) -> dict[str, float]:
    """By measure."""
    world = rare_disasters(uneven=uneven)
    truth = exact.solve(world.process, world.student_table)
    found = biases(world, prompts=prompts, samples=samples, runs=runs)
    names = ("exposure_bias", "exposure_bias_per_token", "student_loss", "teacher_loss")
    return {name: held([getattr(one, name) for one in found], getattr(truth, name)) for name in names}


def coverage_of_attribution(prompts: int, uneven: float, runs: int) -> dict[str, float]:
    """Of the parts of the first two positions, from which all comes, and of the total."""
    world = rare_disasters(uneven=uneven)
    truth = exact.solve(world.process, world.student_table)
    parts: list[list[Estimate]] = [[], [], []]
    for run, bias in enumerate(biases(world, prompts=prompts, samples=1, runs=runs)):
        got = attribute(
            world.teacher, world.student, bias, budget=20 * prompts, generator=generator(run), max_rows=10_000
        )
        for column, one in zip(parts, (*got.by_position[:2], None), strict=True):
            column.append(got.total if one is None else one.contribution)
    wanted = [*truth.by_position.contribution[:2].tolist(), truth.exposure_bias]
    return dict(zip(("position 0", "position 1", "total"), map(held, parts, wanted), strict=True))


def coverage_of_kappa(rounds: int, uneven: float, runs: int) -> dict[str, float]:
    """Of kappa(s) at the start, whose actions lead to a disaster 1 time in 10, and what the places are called."""
    world = rare_disasters(uneven=uneven)
    truth = exact.solve(world.process, world.student_table)
    texts = written(world, world.student, prompts=24, samples=1, seed=3)
    wanted = truth.kappa[truth.node_of(())].sum().item()
    settings = KappaSettings(budget=10**9, rounds=rounds, choose="random", limit=48, max_rows=10_000)
    found: list[Estimate] = []
    gardens = 0
    for run in range(runs):
        got = measure_kappa(world.teacher, world.student, texts, settings, generator=generator(run))
        starts = [place for place in got.positions if place.position == 0]
        assert all(wanted > 4 * got.threshold for _ in starts), "the start is a Bridge"
        found += [place.state_kappa for place in starts]
        gardens += sum(place.kind == Kind.GARDEN for place in starts)
    return {"kappa(s)": held(found, wanted), "called a Garden": gardens / len(found)}


def test_no_spread_is_no_knowledge_of_exposure_bias():
    """The teacher's own texts have a disaster in a hundred, so that most runs see none."""
    assert min(coverage_of_biases(10, 1, NO_SPREAD, runs=150).values()) >= 0.93
    assert min(coverage_of_biases(24, 2, NO_SPREAD, runs=150).values()) >= 0.93


def test_skewed_losses_widen_the_interval_of_exposure_bias():
    assert coverage_of_biases(24, 2, SOME, runs=150)["exposure_bias"] >= 0.93


def test_a_range_in_which_no_draw_cost_anything_is_not_known_to_cost_nothing():
    assert min(coverage_of_attribution(10, NO_SPREAD, runs=60).values()) >= 0.93


@pytest.mark.parametrize("uneven", [NO_SPREAD, SOME])
def test_a_place_whose_rounds_saw_nothing_is_no_garden(uneven):
    found = coverage_of_kappa(8, uneven, runs=15)
    assert found["kappa(s)"] >= 0.95
    assert found["called a Garden"] == 0


def test_caution_hardly_widens_an_interval_where_nothing_is_rare():
    found = biases(make_world(0), prompts=100, samples=2, runs=20)
    plain = [Estimate.over(one.per_prompt()).stderr for one in found]
    assert all(one.exposure_bias.stderr < 1.4 * stderr for one, stderr in zip(found, plain, strict=True))


def print_how_often_every_interval_holds_the_truth() -> None:
    for uneven in (NO_SPREAD, SOME):
        for prompts, samples in ((5, 1), (10, 1), (24, 2), (64, 2)):
            print(f"uneven {uneven}, {prompts} x {samples}:", coverage_of_biases(prompts, samples, uneven))
        for prompts in (10, 24, 64):
            print(f"uneven {uneven}, {prompts} prompts:", coverage_of_attribution(prompts, uneven, runs=200))
        for rounds in (4, 8, 16, 30):
            print(f"uneven {uneven}, {rounds} rounds:", coverage_of_kappa(rounds, uneven, runs=40))


if __name__ == "__main__":
    print_how_often_every_interval_holds_the_truth()
