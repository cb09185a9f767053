"""Rows that weigh nothing."""

from datasets import Dataset

from bridgegarden.training.collator import evened
from tests.training.conftest import token_rows


def test_rows_are_added_of_which_nothing_is_supervised():
    rows = token_rows(7)
    even = evened(rows, 4)
    assert even.to_list()[:7] == rows.to_list()
    assert len(even) == 8
    assert set(even[7]["labels"]) == {-100}
    assert len(even[7]["labels"]) == len(even[7]["input_ids"])
    assert even.features == rows.features


def test_rows_that_come_out_even_and_those_without_labels_stay_as_they_are():
    rows, plain = token_rows(8), Dataset.from_list([{"input_ids": [1, 2]}] * 3)
    assert evened(rows, 4) is rows
    assert evened(plain, 2) is plain
