"""What is decoded is what was encoded, within what docs/cache.md states."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from bridgegarden.objective.support import TeacherSignal
from bridgegarden.teacher.cache.forward import signal_arrays
from bridgegarden.teacher.cache.record import LEVELS, DamagedRecords, RecordFormat, SortedIds, TailPowers
from bridgegarden.teacher.cache.spec import Support
from tests.teacher.cache.conftest import cache_spec


def logits(count=200, width=270, scale=4.0):
    return torch.randn(count, width, generator=torch.Generator().manual_seed(0)) * scale


def round_trip(spec, values, seed=0):
    generator = torch.Generator().manual_seed(seed)
    signal = spec.support.signal(
        values, vocab_size=spec.vocab_size, exponents=spec.stored_exponents, generator=generator
    )
    layout = RecordFormat(spec)
    before = signal_arrays(signal, signal.max_logp, spec)
    return before, layout.decode(layout.encode(before))


def by_id(signals):
    return [
        dict(zip(ids.tolist(), logp.tolist(), strict=True)) for ids, logp in zip(signals.ids, signals.logp, strict=True)
    ]


@pytest.mark.parametrize("bits", [8, 16])
@pytest.mark.parametrize("k", [1, 2, 16, 200])
def test_top_k_keeps_ids_exactly_and_log_probabilities_within_the_distance_of_levels(k, bits):
    spec = cache_spec(Support(k=k), bits=bits)
    before, after = round_trip(spec, logits())
    assert (np.diff(after.ids, axis=1) > 0).all()
    levels = 2**bits - 2
    for position, (expected, found) in enumerate(zip(by_id(before), by_id(after), strict=True)):
        assert expected.keys() == found.keys()
        top, low = max(expected.values()), min(expected.values())
        for token, logp in expected.items():
            span = (top - low) * 1.001 + 1e-3
            apart = 2 * np.sqrt((top - logp) / span) / levels + 2 / levels**2 if span else 0
            assert abs(found[token] - logp) <= span * apart + 2e-3 * span + 1e-4, (position, token)
    for name in ("log_tail", "entropy", "argmax", "max_logp", "label_logp"):
        np.testing.assert_array_equal(getattr(after, name), getattr(before, name), err_msg=name)


@pytest.mark.parametrize("support", [Support(k=16), Support(kind="mass", k=16, mass=0.7), Support(k=400)])
def test_kept_tokens_and_tail_sum_to_one(support):
    _, after = round_trip(cache_spec(support), logits())
    np.testing.assert_allclose(np.exp(after.logp).sum(1) + np.exp(after.log_tail), 1.0, atol=1e-6)


@pytest.mark.parametrize("width", [259, 270])
def test_whole_vocabulary_needs_no_ids_and_has_a_tail_only_where_the_teacher_is_wider(width):
    spec = cache_spec(Support(k=400), teacher_width=width, bits=16)
    before, after = round_trip(spec, logits(width=width))
    assert after.ids is None
    assert (after.log_tail is None) == (width == 259)
    np.testing.assert_allclose(after.logp, before.logp, atol=2e-3)
    assert (after.argmax == before.argmax).all()


def test_mass_keeps_the_fewest_tokens_that_hold_it_and_puts_the_rest_in_the_tail():
    values = logits()
    signal = Support(kind="mass", k=32, mass=0.8).signal(values, vocab_size=270, exponents=(0.5,), generator=None)
    probabilities = values.softmax(-1).sort(descending=True).values
    for position, kept in enumerate((signal.ids >= 0).sum(-1).tolist()):
        held = probabilities[position, :kept].sum()
        assert held >= 0.8 or kept == 32
        assert kept == 1 or probabilities[position, : kept - 1].sum() < 0.8
    torch.testing.assert_close(signal.cells().exp().sum(-1), torch.ones(len(values)))
    ids = torch.where(signal.ids < 0, signal.ids[:, :1], signal.ids)
    outside = values.log_softmax(-1).scatter(1, ids, -torch.inf)
    torch.testing.assert_close(signal.log_tail, outside.logsumexp(-1), atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(signal.tail_powers[0.5], (0.5 * outside).logsumexp(-1), atol=1e-4, rtol=1e-4)


def test_empty_slots_come_back_empty():
    before, after = round_trip(cache_spec(Support(kind="mass", k=16, mass=0.7)), logits())
    assert ((after.ids < 0) == np.isneginf(after.logp)).all()
    assert [set(row) for row in after.ids.tolist()] == [set(row) for row in before.ids.tolist()]
    assert (after.ids[:, 0] >= 0).all()


def test_draws_come_back_with_their_repetitions():
    before, after = round_trip(cache_spec(Support(kind="sampled", k=20)), logits())
    assert (np.sort(before.ids, axis=1) == after.ids).all()
    assert after.log_tail is None
    assert (after.argmax == before.argmax).all()


def test_a_tie_does_not_hide_the_argmax():
    values = torch.zeros(3, 270)
    values[:, 7] = values[:, 3] = values[:, 200] = 5.0
    before, after = round_trip(cache_spec(), values)
    assert (after.argmax == before.argmax).all()


def test_a_token_within_half_a_level_of_the_likeliest_does_not_hide_it():
    values = torch.zeros(2, 270)
    values[:, 200] = 5.0
    values[:, 3] = 5.0 - 1e-6
    before, after = round_trip(cache_spec(), values)
    assert before.argmax.tolist() == after.argmax.tolist() == [200, 200]


def test_impossible_tokens_stay_impossible_and_very_unlikely_ones_possible():
    values = logits(20)
    values[:, 10] = -torch.inf
    values[:, 11] = -1e4
    _, after = round_trip(cache_spec(Support(k=400), bits=16), values)
    assert np.isneginf(after.logp[:, 10]).all()
    assert (after.logp[:, 11] < -99).all()
    assert np.isfinite(after.logp[:, 11]).all()


def test_a_teacher_that_is_certain_survives():
    values = torch.full((2, 270), -torch.inf)
    values[:, 4] = 0.0
    _, after = round_trip(cache_spec(), values)
    assert (after.argmax == 4).all()
    np.testing.assert_allclose(after.logp.max(1), 0.0, atol=1e-6)


@pytest.mark.parametrize(("vocabulary", "size"), [(49_152, 180), (151_936, 194), (256_000, 200)])
def test_sixty_four_tokens_take_at_most_two_hundred_bytes(vocabulary, size):
    spec = cache_spec(Support(k=64), vocab_size=vocabulary, teacher_width=vocabulary)
    assert RecordFormat(spec).bytes_per_position == size


def test_layout_on_disk_is_what_the_documentation_says():
    """A golden value: a change here is a change of the format's version."""
    fields = RecordFormat(cache_spec()).dtype.fields
    assert {name: (str(kind[0].base), kind[0].shape, kind[1]) for name, kind in fields.items()} == {
        "ids": ("uint8", (12,), 0),
        "codes": ("uint8", (16,), 12),
        "log_tail": ("float32", (), 28),
        "tail_powers": ("uint16", (3,), 32),
        "entropy": ("float32", (), 38),
        "max_logp": ("float32", (), 42),
        "label_logp": ("float32", (), 46),
        "span": ("float16", (), 50),
    }


@pytest.mark.parametrize(("bits", "last"), [(8, 254), (16, 65534)])
def test_the_least_likely_token_has_the_last_level_and_an_empty_slot_the_code_after_it(bits, last):
    """A golden value: a change here is a change of the format's version."""
    layout = RecordFormat(cache_spec(Support(kind="mass", k=16, mass=0.99), bits=bits))
    values = torch.full((1, 270), -torch.inf)
    values[0, :3] = torch.tensor([3.0, 1.0, 2.0])
    signal = layout.spec.support.signal(
        values, vocab_size=layout.spec.vocab_size, exponents=layout.spec.stored_exponents, generator=None
    )
    (record,) = layout.encode(signal_arrays(signal, signal.max_logp, layout.spec))
    assert record["codes"][:3].tolist() == [0, last, round(last / 2**0.5)]
    assert set(record["codes"][3:].tolist()) == {last + 1}


@pytest.mark.parametrize(
    ("name", "value"),
    [
        *(("log_tail", 1.1), ("entropy", -1.1), ("entropy", 100.1), ("max_logp", -100.1), ("max_logp", 1.1)),
        *(("label_logp", 1.1), ("span", -1.0), ("span", 200.5), ("entropy", np.nan)),
    ],
)
def test_a_number_that_no_teacher_says_is_damage(name, value):
    layout = RecordFormat(cache_spec())
    signal = layout.spec.support.signal(
        logits(3), vocab_size=layout.spec.vocab_size, exponents=layout.spec.stored_exponents, generator=None
    )
    records = layout.encode(signal_arrays(signal, signal.max_logp, layout.spec))
    layout.check(records)
    records[name][1] = value
    with pytest.raises(DamagedRecords, match=name):
        layout.check(records)


def test_the_divergence_of_decoded_from_exact_is_small():
    spec = cache_spec(Support(k=64))
    values = logits(scale=3.0)
    before, after = round_trip(spec, values)
    exact = TeacherSignal.from_logits(values, 64, spec.vocab_size)
    order = torch.from_numpy(np.argsort(before.ids, axis=1))
    truth = exact.logp.gather(1, order)
    kl = (truth.exp() * (truth - torch.from_numpy(after.logp))).sum(1)
    assert kl.abs().mean() < 1e-4


@given(st.data())
def test_sorted_ids_come_back_as_they_were(data):
    largest = data.draw(st.integers(0, 300_000))
    count = data.draw(st.integers(1, 70))
    rows = data.draw(st.lists(st.lists(st.integers(0, largest), min_size=count, max_size=count), max_size=5))
    ids = np.sort(np.array(rows, dtype=np.int64).reshape(-1, count), axis=1)
    code = SortedIds(count, largest)
    encoded = code.encode(ids)
    assert encoded.shape == (len(ids), code.width)
    assert (code.decode(encoded) == ids).all()


@pytest.mark.parametrize("row", [[0] * 64, [151_936] * 64, [*range(63), 151_936], list(range(151_873, 151_937))])
def test_extremes_fit(row):
    code = SortedIds(64, 151_936)
    assert code.decode(code.encode(np.array([row]))).tolist() == [row]


def test_rows_that_do_not_hold_as_many_ids_are_refused():
    code = SortedIds(4, 300)
    encoded = code.encode(np.array([[1, 70, 140, 299], [0, 1, 2, 3]]))
    for first, second in ((0b1, 0), (0b1, 0b1_0000)):  # one taken away, one moved to the other row
        harmed = encoded.copy()
        harmed[0, 0] ^= first
        harmed[1, 0] ^= second
        with pytest.raises(ValueError, match="not 4 ids"):
            code.decode(harmed)


def test_sixty_four_ids_of_a_large_vocabulary_take_106_bytes():
    assert SortedIds(64, 151_936).width == 106


def test_no_more_than_two_bits_an_id_above_the_least_possible():
    from math import comb, log2

    for count, largest in ((8, 49_152), (64, 49_152), (64, 256_000), (128, 151_936)):
        least = log2(comb(largest + 1, count))
        assert 8 * SortedIds(count, largest).width <= least + 2 * count + 16


EXPONENTS = (0.1, 0.5, 1.0, 2.0)


def tails(tokens):
    """Log-probabilities of tails from one token to evenly spread ones, most of them nearly nothing."""
    generator = torch.Generator().manual_seed(0)
    values = torch.randn(50, tokens, generator=generator, dtype=torch.float64) * torch.linspace(0, 40, 50)[:, None]
    return values.log_softmax(1) - torch.rand(50, 1, generator=generator, dtype=torch.float64) * 80


@pytest.mark.parametrize("tokens", [1, 2, 300, 5000])
def test_a_sum_is_off_by_half_a_level_at_most(tokens):
    logp = tails(tokens)
    truth = torch.stack([(g * logp).logsumexp(1) for g in EXPONENTS], 1).numpy()
    log_tail = logp.logsumexp(1).numpy()
    layout = TailPowers(EXPONENTS, tokens)
    found = layout.decode(layout.encode(truth, log_tail), log_tail)
    most = np.abs(1 - np.array(EXPONENTS)) * np.log(max(tokens, 2)) / (2 * LEVELS)
    assert (np.abs(found - truth) <= most + 1e-6 * np.abs(truth) + 1e-9).all()


def test_the_bound_that_is_documented_holds_for_a_large_vocabulary():
    assert 0.9 * np.log(256_000) / (2 * LEVELS) < 9e-5


def test_both_ends_are_reached_and_nothing_stays_nothing():
    layout = TailPowers((0.5,), 100)
    log_tail = np.array([-3.0, -3.0, -np.inf], np.float32)
    sums = np.array([[-1.5], [-1.5 + 0.5 * np.log(100)], [-np.inf]])
    codes = layout.encode(sums, log_tail)
    assert codes.ravel().tolist() == [0, LEVELS, 0]
    np.testing.assert_allclose(layout.decode(codes, log_tail), sums, rtol=1e-6)


def test_rounding_beyond_an_end_is_cut_there():
    layout = TailPowers((0.1, 2.0), 100)
    log_tail = np.array([-3.0])
    sums = np.array([[-0.3 - 1e-3, -6.0 + 1e-3]])
    np.testing.assert_allclose(layout.decode(layout.encode(sums, log_tail), log_tail), [[-0.3, -6.0]], rtol=1e-6)
