"""What PyTorch decodes is what NumPy decodes, to the bit, and nothing of it waits for a device."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from bridgegarden.teacher.cache.forward import signal_arrays
from bridgegarden.teacher.cache.record import DamagedRecords, RecordFormat, SortedIds
from bridgegarden.teacher.cache.spec import Support
from bridgegarden.teacher.cache.tensors import TensorDecoder, as_bytes, decode_sorted
from tests.teacher.cache.conftest import cache_spec
from tests.teacher.cache.test_forward import served_spec
from tests.waiting import WaitsForTheDevice

SPECS = {
    **{f"top {k}, {bits} bits": cache_spec(Support(k=k), bits=bits) for k in (1, 16, 200) for bits in (8, 16)},
    "mass": cache_spec(Support(kind="mass", k=16, mass=0.7)),
    "dense": cache_spec(Support(k=400), teacher_width=270),
    "dense, no tail": cache_spec(Support(k=400), teacher_width=270, vocab_size=270),
    "draws": cache_spec(Support(kind="sampled", k=12)),
    "no sums": cache_spec(Support(k=16), exponents=()),
    "large": cache_spec(Support(k=64), vocab_size=40_000, teacher_width=40_100),
}


def records_of(spec, count: int = 30) -> tuple[RecordFormat, np.ndarray]:
    generator = torch.Generator().manual_seed(0)
    logits = 4 * torch.randn(count, spec.teacher_width, generator=generator)
    # A teacher that is certain, one that finds most impossible, and one that finds all alike.
    logits[0, 3], logits[1, 20:], logits[2] = 300.0, -torch.inf, 0.0
    signal = spec.support.signal(
        logits, vocab_size=spec.vocab_size, exponents=spec.stored_exponents, generator=generator
    )
    layout = RecordFormat(spec)
    return layout, layout.encode(signal_arrays(signal, signal.max_logp, spec))


def assert_same_bits(layout: RecordFormat, records: np.ndarray) -> None:
    expected = {name: values for name, values in layout.decode(records)._asdict().items() if values is not None}
    found = TensorDecoder(layout).decode(as_bytes(records))
    assert found.keys() == expected.keys()
    for name, values in expected.items():
        assert found[name].numpy().dtype == values.dtype, name
        assert found[name].contiguous().numpy().tobytes() == values.tobytes(), name


@pytest.mark.parametrize("name", SPECS)
def test_the_bits_are_those_that_numpy_decodes(name):
    layout, records = records_of(SPECS[name])
    assert_same_bits(layout, records)
    for count in (0, 1):
        assert_same_bits(layout, records[:count])


def test_a_label_that_a_server_gave_alone_is_not_known_here_either():
    layout, records = records_of(served_spec())
    records["codes"][:5] = layout.nothing
    records["codes"][:5, 0] = 0
    records["log_tail"][:5] = layout.least_tail - 1e-2
    assert np.isnan(layout.decode(records).label_logp).sum() == 5
    assert_same_bits(layout, records)


@pytest.mark.parametrize("name", SPECS)
def test_decoding_waits_for_nothing_once_its_tables_are_there(name):
    layout, records = records_of(SPECS[name])
    decoder, code = TensorDecoder(layout), as_bytes(records)
    decoder.decode(code)
    with WaitsForTheDevice():
        decoder.decode(code)


@given(st.data())
def test_any_sorted_ids_come_back(data):
    count, largest = data.draw(st.integers(1, 70)), data.draw(st.integers(0, 200_000))
    rows = data.draw(st.lists(st.lists(st.integers(0, largest), min_size=count, max_size=count), max_size=4))
    ids = np.sort(np.array(rows, dtype=np.int64).reshape(-1, count), axis=1)
    code = SortedIds(count, largest).encode(ids)
    assert decode_sorted(SortedIds(count, largest), torch.from_numpy(code)).tolist() == ids.tolist()
    assert not SortedIds(count, largest).doubtful(code)[(ids < largest >> 1).all(1)].any()


@given(st.data())
def test_what_numpy_would_refuse_is_found_without_decoding_it(data):
    """Every damage to a list of ids: bits turned, any bytes at all."""
    size = data.draw(st.integers(20, 400))
    spec = cache_spec(Support(k=data.draw(st.sampled_from([1, 3, 16]))), vocab_size=size, teacher_width=size)
    layout, records = records_of(spec, count=4)
    for _ in range(data.draw(st.integers(0, 3))):
        row, byte = data.draw(st.integers(0, 3)), data.draw(st.integers(0, records["ids"].shape[1] - 1))
        records["ids"][row, byte] = data.draw(st.integers(0, 255))
    errors = []
    for look in (layout.decode, layout.check_ids):
        try:
            look(records)
        except DamagedRecords:
            errors.append(look.__name__)
    assert errors in ([], ["decode", "check_ids"])


def test_an_argmax_that_no_token_has_is_found_without_decoding():
    layout, records = records_of(SPECS["draws"])
    records["argmax"][7] = layout.spec.vocab_size
    with pytest.raises(DamagedRecords, match="is not in the vocabulary"):
        layout.check_ids(records)
