"""Drawing and following."""

import pytest
import torch

from bridgegarden.diagnostics.walk import draw, draw_by_weight, tempered, walk
from tests.diagnostics.worlds import HORIZON, make_world


def test_draws_have_the_probabilities_they_are_drawn_with():
    logp = torch.tensor([0.1, 0.0, 0.6, 0.3]).double().log()
    uniforms = (torch.arange(10_000, dtype=torch.float64) + 0.5) / 10_000
    counts = draw(logp.expand(10_000, -1), uniforms).bincount(minlength=4)
    assert counts.tolist() == [1000, 0, 6000, 3000]


@pytest.mark.parametrize("uniform", [0.0, 1 - 2**-53])
def test_a_token_without_mass_is_never_drawn_even_at_the_ends(uniform):
    weights = torch.tensor([[0.0, 0.0, 0.3, 0.1, 0.0, 0.7, 0.0, 0.0]])
    drawn = draw_by_weight(weights, torch.tensor([uniform], dtype=torch.float64)).item()
    assert drawn == (2 if uniform == 0 else 5)


def test_float32_probabilities_of_a_large_vocabulary_keep_their_last_token():
    logp = torch.full((1, 200_001), 1e-6).log()
    uniforms = torch.tensor([1 - 1e-9], dtype=torch.float64)
    assert draw(logp, uniforms).item() == 200_000


def test_every_token_of_a_large_vocabulary_begins_where_the_one_before_it_ends():
    weights = torch.rand(1, 150_000, generator=torch.Generator().manual_seed(0))
    ends = weights.double().cumsum(-1).squeeze(0)
    tokens = torch.arange(1000, 149_000, 997)
    just_below, just_above = (ends[tokens] / ends[-1] + side * 1e-12 for side in (-1, 1))
    assert draw_by_weight(weights.expand(len(tokens), -1), just_below).tolist() == tokens.tolist()
    assert draw_by_weight(weights.expand(len(tokens), -1), just_above).tolist() == (tokens + 1).tolist()


@pytest.mark.parametrize("temperature", [0.3, 1.0, 2.5])
def test_temperature_is_a_power_of_the_probabilities(temperature):
    p = torch.tensor([0.7, 0.2, 0.1]).double()
    power = p ** (1 / temperature)
    torch.testing.assert_close(tempered(p.log(), temperature).exp(), power / power.sum())


def test_temperature_zero_is_the_likeliest_token():
    logp = torch.tensor([[0.2, 0.5, 0.3], [0.4, 0.2, 0.4]]).log()
    assert tempered(logp, 0.0).exp().tolist() == [[0, 1, 0], [1, 0, 0]]


def test_a_walk_visits_every_prefix_once_and_drops_what_has_ended():
    world = make_world(0)
    uniforms = torch.rand(40, HORIZON, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    limits = torch.arange(40) % (HORIZON + 1)
    seen = torch.zeros(40, HORIZON, dtype=torch.long)
    texts = [[] for _ in range(40)]
    starts = [policy.start([()]) for policy in (world.teacher, world.student)]
    for visit in walk(starts, torch.zeros(40, dtype=torch.long), limits=limits, uniforms=uniforms):
        seen[visit.rows, visit.step] += 1
        for row, token, logp in zip(visit.rows.tolist(), visit.tokens.tolist(), visit.logp[1], strict=True):
            torch.testing.assert_close(logp, world.student.start([texts[row]]).log_probs()[0])
            texts[row].append(token)
    for row, text in enumerate(texts):
        assert seen[row].tolist() == [1] * len(text) + [0] * (HORIZON - len(text))
        over = bool(world.teacher.start([text]).ended()[0])
        assert len(text) == limits[row] or over
        assert all(not world.teacher.start([text[:n]]).ended()[0] for n in range(len(text)))


def test_given_tokens_are_followed():
    world = make_world(2)
    given = torch.tensor([[2, 3, 1], [4, 2, 0]])
    visits = list(walk([world.teacher.start([(), ()])], torch.arange(2), limits=torch.tensor([3, 2]), given=given))
    assert [visit.tokens.tolist() for visit in visits] == [[2, 4], [3, 2], [1]]
