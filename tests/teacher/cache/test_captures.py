"""Files of other programs: every number from the definition of its format."""

import math
import struct
from pathlib import Path

import numpy as np
import pytest

from bridgegarden.errors import ConfigError
from bridgegarden.teacher.answers import Position
from bridgegarden.teacher.cache.captures import Alignment, Bin, CaptureReader, DistillKitConfig, Lists, position_at

PATH = Path("rows.parquet")
SMALL = DistillKitConfig(
    d=1000,
    k=7,
    exact_k=2,
    exact_dtype="bfloat16",
    terms=(0, 1, "sqrt"),
    term_dtype="float32",
    bins=(
        Bin(scale_dtype="float16", element_bits=3, num_elements=3),
        Bin(scale_dtype="float32", element_bits=1, num_elements=1),
    ),
    delta_encoding=True,
    normalize_t=False,
)


def packed(values, bits):
    text = "".join(f"{value:0{bits}b}" for value in values)
    text += "0" * (-len(text) % 8)
    return [int(text[at : at + 8], 2) for at in range(0, len(text), 8)]


@pytest.mark.parametrize("delta", [True, False])
@pytest.mark.parametrize("normalised", [True, False])
def test_distillkit_s_compression_is_undone_as_it_is_defined(delta, normalised):
    config = DistillKitConfig(**{**SMALL.__dict__, "delta_encoding": delta, "normalize_t": normalised})
    exact, terms, whole, sign = (-0.25, -1.5), (-0.5, -0.125, 0.25), (5, 0, 7), (0,)
    content = b"".join(struct.pack("<f", value)[2:] for value in exact)  # a bfloat16 is the upper half of a float32
    content += struct.pack("<3f", *terms)
    content += struct.pack("<e", 0.0625) + bytes(packed(whole, 3)) + struct.pack("<f", 0.5) + bytes(packed(sign, 1))
    tokens = [999, 3, 512, 7, 0, 255, 256]
    ids, logp = config.decoded([packed(tokens, 10)], [list(content)])
    residuals = [(5 - 4) * 0.0625, (0 - 4) * 0.0625, (7 - 4) * 0.0625, -0.5, 0.0]
    ranks = [rank / 4 if normalised else float(rank) for rank in range(5)]
    fit = [terms[0] + terms[1] * rank + terms[2] * math.sqrt(rank) for rank in ranks]
    expected = [*exact, *(a + b for a, b in zip(fit, residuals, strict=True))]
    if delta:
        expected = [sum(expected[: at + 1]) for at in range(7)]
    np.testing.assert_array_equal(ids[0], tokens)
    np.testing.assert_allclose(logp[0], expected, rtol=1e-6)


def test_bytes_of_another_length_than_the_configuration_s_are_refused():
    with pytest.raises(ValueError, match="3 and 2 bytes a token, and the configuration says 9 and 25"):
        SMALL.decoded([[1, 2, 3]], [[1, 2]])


@pytest.mark.parametrize(
    "text", ["", "d: 9", "d: 9\nk: 2\nexact_k: 3\n", "d: 9\nk: 2\nexact_k: 1\npolynomial_terms: [cos]\n", "[1]", "{"]
)
def test_a_configuration_of_another_form_is_refused_with_its_file(tmp_path, text):
    (tmp_path / "compression_config.yaml").write_text(text)
    with pytest.raises(ConfigError, match=r"compression_config\.yaml: cannot be read as DistillKit's configuration"):
        DistillKitConfig.beside(tmp_path)


def test_a_position_keeps_the_likeliest_and_puts_the_rest_into_the_tail():
    ids, logp = np.array([4, 9, 2, 0]), np.array([math.log(0.2), math.log(0.5), math.log(0.1), -1e9])
    position = position_at(ids, logp, 2, vocab_size=10, k=2)
    assert isinstance(position, Position)
    assert position.ids == (9, 4)
    np.testing.assert_allclose(np.exp(position.logp), [0.5, 0.2])
    assert math.exp(position.log_tail) == pytest.approx(0.3)
    assert math.exp(position.label_logp) == pytest.approx(0.1)


def test_the_place_that_fits_the_labels_is_found_from_either_side():
    generator = np.random.default_rng(0)
    ids = generator.integers(0, 100, 40)
    for off in (-1, 0, 1):
        places = [np.array([ids[(at + 1 - off) % 40], 101]) for at in range(39)]
        lists = Lists(None, places, [np.log([0.7, 0.2])] * 39, from_end=False)
        alignment = Alignment(200)
        alignment.add(lists, ids, range(1, 40), 0)
        assert alignment.better == (None if off == 0 else -off)


def test_columns_tell_the_format_and_a_name_another_column():
    assert CaptureReader.of(PATH, ["mine"], "auto", "mine").kind == "axolotl"
    assert CaptureReader.of(PATH, ["token_ids", "top_values", "logprobs"], "axolotl", None).columns == ("logprobs",)
    assert CaptureReader.of(PATH, ["token_ids", "top_values", "logprobs"], "auto", None).kind == "distillkit"
    with pytest.raises(ConfigError, match="Name the column with --column"):
        CaptureReader.of(PATH, ["logprobs"], "distillkit", None)


def test_a_label_that_is_not_listed_has_what_it_would_have_if_the_rest_were_spread_evenly():
    ids = np.array([5, 6, 7, 8])
    lists = Lists(None, [np.array([1, 2])] * 3, [np.log([0.5, 0.3])] * 3, from_end=False)
    alignment = Alignment(12)
    alignment.add(lists, ids, [2], 0)
    assert alignment.means == pytest.approx(dict.fromkeys((-1, 0, 1), math.log(0.2 / 10)))


@pytest.mark.parametrize(("rows", "found"), [(5, None), (7, None), (14, 1), (40, 1)])
def test_another_place_is_taken_for_better_only_beyond_3_3_standard_errors(rows, found):
    """Of so many positions one in two fits better there by two nats: the standard error is one over their root."""
    alignment = Alignment(1000)
    for row in range(rows):
        here, later = (math.log(0.1), math.log(0.1) + 2 * (row % 2)) if row else (math.log(0.1),) * 2
        lists = [np.array([9, 1]), np.array([9, 1]), np.array([9, 1])]
        # Moved one later, the list of the token before is about this one.
        logps = [np.array([later, -9.0]), np.array([here, -9.0]), np.array([here - 5, -9.0])]
        alignment.add(Lists(None, lists, logps, from_end=False), np.array([0, 0, 9, 0]), [2], 0)
    gain = alignment.means[1] - alignment.means[0]
    differences = [2.0 * (row % 2) for row in range(rows)]
    error = np.std(differences) / math.sqrt(rows)
    assert gain == pytest.approx(np.mean(differences))
    assert (alignment.better is not None) == (gain > max(0.5, 3.3 * error))
    assert alignment.better == found


def test_what_a_configuration_leaves_out_is_as_distillkit_has_it(tmp_path):
    (tmp_path / "compression_config.yaml").write_text("d: 9\nk: 2\nexact_k: 2\n")
    config = DistillKitConfig.beside(tmp_path)
    assert (config.delta_encoding, config.normalize_t, config.exact_dtype) == (True, False, "float32")
    assert (config.terms, config.bins) == ((), ())
