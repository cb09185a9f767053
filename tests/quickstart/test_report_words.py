import pytest

from bridgegarden.quickstart.report import interval_words, percent
from bridgegarden.table import plus_minus, span
from tests.quickstart.made_up import made_up_result


@pytest.mark.parametrize(
    ("mean", "half", "texts"),
    [
        (0.30211, 0.0033, ("0.3021", "0.0033")),
        (53.7449, 0.998, ("53.7", "1.0")),
        (60.3, 4.26, ("60.3", "4.3")),
        (-0.1583, 0.056, ("−0.158", "0.056")),
        (52.6, 16.2, ("53", "16")),
        (98.0, 0.0, ("98.0", "0.0")),
        (0.0, 1e-9, ("0.00000", "0.00000")),
    ],
)
def test_a_mean_has_as_many_digits_as_its_interval_allows(mean, half, texts):
    assert plus_minus(mean, half) == texts


def test_an_interval_names_its_unit_once():
    assert span((0.785, 0.84), percent) == "78.5 to 84 %"


def test_what_an_interval_is_over_depends_on_the_number_of_seeds():
    assert interval_words(made_up_result()).endswith("the 1,000 problems of the only seed")
    assert interval_words(made_up_result(seeds=(0, 1, 2))).endswith("the 3 seeds")
