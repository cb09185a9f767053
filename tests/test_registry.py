import pytest

from bridgegarden.errors import ConfigError
from bridgegarden.registry import lookup, unknown_name

TABLE = {"forward_kl": 1, "reverse_kl": 2, "total_variation": 3}


def test_lookup_returns_the_entry_of_that_name():
    assert lookup(TABLE, "reverse_kl", field="objective.divergence") == 2


def test_an_unknown_name_is_answered_with_the_place_the_closest_name_and_all_names():
    with pytest.raises(ConfigError) as caught:
        lookup(TABLE, "foward_kl", field="objective.divergence")
    assert str(caught.value) == (
        "objective.divergence: unknown name 'foward_kl'. Did you mean 'forward_kl'? "
        "Known: forward_kl, reverse_kl, total_variation."
    )


def test_nothing_is_suggested_when_nothing_is_close():
    message = str(unknown_name("xyz", TABLE, field="objective.divergence", kind="divergence"))
    assert "Did you mean" not in message
    assert message.startswith("objective.divergence: unknown divergence 'xyz'. Known:")


@pytest.mark.parametrize("name", [7, None, True])
def test_a_name_that_is_not_text_is_reported_rather_than_failing_otherwise(name):
    assert repr(name) in str(unknown_name(name, TABLE, field="objective"))
