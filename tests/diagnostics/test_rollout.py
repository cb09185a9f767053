"""Roll-outs of language models, against a full forward of every prefix."""

import math

import pytest
import torch

from bridgegarden.causal_lm_policy import CausalLMPolicy
from bridgegarden.diagnostics.attribution import attribute
from bridgegarden.diagnostics.exposure_bias import exposure_bias
from bridgegarden.diagnostics.kappa import KappaSettings, measure_kappa
from bridgegarden.diagnostics.rollout import Sampling, draw, draw_by_weight, entropy, roll_out, tempered, walk
from bridgegarden.errors import DataError
from tests.diagnostics.worlds import HORIZON, make_world, recited
from tests.tiny import tiny_model

SHARED, END = 30, 0
PROMPTS = [(5, 6, 7, 8, 9), (3,), (1, 2, 3)]


def pair():
    teacher, student = tiny_model("llama", 32, seed=1).eval(), tiny_model("qwen2", 30, seed=2).eval()
    with torch.no_grad():
        for model in (teacher, student):
            model.get_output_embeddings().weight.mul_(10)
    return teacher, student


def policies(models):
    return [CausalLMPolicy(model, end_ids=[END], vocab_size=SHARED) for model in models]


def texts_of(teacher, student, writer, *, samples=2, max_rows=4, temperature=1.0):
    uniforms = torch.rand(3, samples, 8, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    return roll_out(
        teacher, [student], PROMPTS, writer=writer, uniforms=uniforms, max_rows=max_rows, temperature=temperature
    )


@pytest.mark.parametrize("who", [0, 1])
def test_every_number_is_what_full_forwards_of_the_prefixes_say(who):
    models = pair()
    sides = policies(models)
    found = texts_of(*sides, sides[who])
    for text, tokens in enumerate(found.tokens):
        assert len(tokens) == found.lengths[text]
        assert found.losses[0, text, len(tokens) :].eq(0).all()
        for position, token in enumerate(tokens):
            prefix = torch.tensor([found.prefix(text, position)])
            with torch.no_grad():
                p, q = (model(prefix).logits[0, -1].double().softmax(-1) for model in models)
            # Both models' padding rows are one cell, which the student, having none, is taken to leave nearly empty.
            tail = p[SHARED:].sum()
            loss = (p[:SHARED] * (p[:SHARED] / q[:SHARED]).log()).sum() + tail * (tail / 1e-10).log()
            spread = -(p[:SHARED] * p[:SHARED].log()).sum() - tail * tail.log()
            assert found.losses[0, text, position].item() == pytest.approx(loss.item(), rel=1e-3)
            assert found.teacher_entropy[text, position].item() == pytest.approx(spread.item(), rel=1e-3)
            if token < SHARED:
                assert found.teacher_logp[text, position].item() == pytest.approx(p[token].log().item(), rel=1e-3)
                assert found.student_logp[0, text, position].item() == pytest.approx(q[token].log().item(), rel=1e-3)
            distance = 0.5 * ((p[:SHARED] - q[:SHARED]).abs().sum() + tail)
            assert found.total_variation[0, text, position].item() == pytest.approx(distance.item(), rel=1e-3)
            assert found.overlap[0, text, position].item() == pytest.approx(1 - distance.item(), rel=1e-3)
            both = [part[:SHARED].argmax() if part[:SHARED].max() > part[SHARED:].sum() else SHARED for part in (p, q)]
            assert found.agreement[0, text, position].item() == (both[0] == both[1])
            if token < SHARED:
                ratio = (q[token] / p[token]).log().item()
                assert found.log_ratio[0, text, position].item() == pytest.approx(ratio, rel=1e-3, abs=1e-4)


def test_a_prompts_mean_is_over_its_own_texts():
    found = texts_of(*(sides := policies(pair())), sides[0], samples=2)
    values = torch.tensor([0.0, 1.0, 10.0, 12.0, 100.0, 104.0], dtype=torch.float64)
    assert found.per_prompt(values).tolist() == [0.5, 11.0, 102.0]
    assert [found.prefix(text, 0) for text in range(6)] == [prompt for prompt in PROMPTS for _ in range(2)]


@pytest.mark.parametrize("temperature", [0.5, 2.0])
def test_models_are_as_far_apart_as_at_the_temperature_of_the_texts(temperature):
    sides = policies(pair())
    found = texts_of(*sides, sides[0], temperature=temperature)
    logp = [policy.start([PROMPTS[0]]).log_probs().double() for policy in sides]
    p, q = ((part / temperature).softmax(-1) for part in logp)
    distance = 0.5 * (p - q).abs().sum()
    assert found.total_variation[0, 0, 0].item() == pytest.approx(distance.item(), rel=1e-4)
    untempered = 0.5 * (logp[0].exp() - logp[1].exp()).abs().sum()
    assert found.overlap[0, 0, 0].item() == pytest.approx(1 - untempered.item(), rel=1e-4)
    token = found.tokens[0][0]
    ratio = (q[0, token] / p[0, token]).log().item()
    assert found.log_ratio[0, 0, 0].item() == pytest.approx(ratio, rel=1e-4)


def test_impossible_tokens_add_nothing_to_the_entropy():
    logp = torch.tensor([[0.5, 0.0, 0.5], [0.0, 1.0, 0.0]]).log()
    torch.testing.assert_close(entropy(logp), torch.tensor([math.log(2), 0.0]))


def test_reading_what_was_written_gives_the_same_numbers():
    sides = policies(pair())
    written = texts_of(*sides, sides[1], samples=1)
    read = recited(*sides, PROMPTS, written.tokens, 8)
    torch.testing.assert_close(read.losses, written.losses, rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(read.teacher_max_prob, written.teacher_max_prob, rtol=1e-4, atol=1e-6)
    assert read.tokens == written.tokens


def test_texts_do_not_depend_on_how_many_go_at_a_time():
    sides = policies(pair())
    assert texts_of(*sides, sides[0]).tokens == texts_of(*sides, sides[0], max_rows=1).tokens


def test_greedy_texts_are_those_of_generate():
    models = pair()
    sides = policies(models)
    found = texts_of(*sides, sides[1], samples=1, temperature=0.0)
    for prompt, tokens in zip(PROMPTS, found.tokens, strict=True):
        ids = torch.tensor([prompt])
        out = models[1].generate(
            ids,
            attention_mask=torch.ones_like(ids),
            max_new_tokens=8,
            do_sample=False,
            eos_token_id=END,
            pad_token_id=END,
        )
        assert tuple(out[0, len(prompt) :].tolist()) == tokens


def test_all_diagnostics_run_on_language_models_and_agree_with_each_other():
    sides = policies(pair())
    generator = torch.Generator().manual_seed(0)
    bias = exposure_bias(*sides, PROMPTS * 8, Sampling(samples=1, max_new_tokens=5), generator=generator)
    shares = attribute(*sides, bias, budget=1500, generator=generator)
    assert abs(shares.gap.mean) < 4 * shares.gap.stderr
    settings = KappaSettings(budget=600, rounds=3, top=1)
    found = measure_kappa(*sides, bias.student_texts, settings, generator=generator)
    assert found.positions
    assert all(len(place.actions) in (1, 2) for place in found.positions)


def test_without_prompts_nothing_is_written():
    world = make_world(2)
    with pytest.raises(DataError, match="prompts: there are none"):
        recited(world.teacher, world.student, [], [], HORIZON)


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


def test_a_part_of_the_texts_is_every_number_of_these_texts():
    found = texts_of(*(sides := policies(pair())), sides[1])
    part = found.part([4, 1])
    assert part.prompts == (PROMPTS[2], PROMPTS[0])
    assert part.tokens == (found.tokens[4], found.tokens[1])
    for name, values in vars(found).items():
        if isinstance(values, torch.Tensor) and name != "lengths":
            dimension = values.ndim - 2
            assert torch.equal(getattr(part, name), values.index_select(dimension, torch.tensor([4, 1]))), name
    assert part.lengths.tolist() == found.lengths[[4, 1]].tolist()
