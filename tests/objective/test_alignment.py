"""Which token each position predicts."""

import pytest
import torch

from bridgegarden.objective.alignment import Places, Position, SupervisedPositions

X = -100


def test_a_position_predicts_the_token_after_it():
    positions = SupervisedPositions.from_labels(torch.tensor([[X, X, 7, 8], [X, 5, X, 6]]))
    assert positions.row.tolist() == [0, 0, 1, 1]
    assert positions.column.tolist() == [1, 2, 0, 2]
    assert positions.target.tolist() == [7, 8, 5, 6]


def test_a_label_on_the_first_token_is_predicted_by_nobody():
    assert len(SupervisedPositions.from_labels(torch.tensor([[3, X, X]]))) == 0


def test_the_successor_is_the_next_token_of_the_same_row_and_nothing_else():
    positions = SupervisedPositions.from_labels(torch.tensor([[X, 1, 2, X, 4], [X, X, 5, 6, 7]]))
    assert positions.has_successor.tolist() == [True, False, False, True, True, False]


def test_no_successor_in_the_next_row_although_its_column_follows():
    positions = SupervisedPositions.from_labels(torch.tensor([[X, X, 5, X], [X, X, X, 6]]))
    assert positions.column.tolist() == [1, 2]
    assert positions.has_successor.tolist() == [False, False]


def test_no_successor_across_documents_of_a_packed_row():
    # Two documents of three tokens: the collator puts -100 on the first token of each.
    positions = SupervisedPositions.from_labels(torch.tensor([[X, 1, 2, X, 4, 5]]))
    assert positions.has_successor.tolist() == [True, False, True, False]


def test_values_are_taken_where_the_prediction_is_made():
    labels = torch.tensor([[X, X, 7], [X, 5, X]])
    hidden = torch.arange(6).reshape(2, 3, 1)
    assert SupervisedPositions.from_labels(labels).of(hidden).flatten().tolist() == [1, 3]


def test_no_supervised_token_gives_no_positions():
    positions = SupervisedPositions.from_labels(torch.full((2, 4), X))
    assert len(positions) == 0
    assert positions.has_successor.numel() == 0


@pytest.mark.parametrize("seed", range(5))
def test_places_count_from_the_start_of_each_answer_to_its_end(seed):
    """Against a loop, where answers end at random, some of them after one position."""
    goes_on = torch.rand(4, 9, generator=torch.Generator().manual_seed(seed)) < 0.6
    goes_on[:, -1] = False
    index, length = [], []
    for row in goes_on.tolist():
        answers, run = [], 0
        for more in row:
            run += 1
            if not more:
                answers.append(run)
                run = 0
        index.append([place for answer in answers for place in range(answer)])
        length.append([answer for answer in answers for _ in range(answer)])
    places = Places(goes_on)
    assert (places.index.tolist(), places.length.tolist()) == (index, length)
    flat = Places(goes_on.flatten())
    assert flat.index.reshape(4, 9).tolist() == index
    assert Position(torch.zeros(3, dtype=torch.long), flat, slice(4, 7)).length.tolist() == length[0][4:7]


def test_places_of_nothing_are_none():
    places = Places(torch.zeros(0, dtype=torch.bool))
    assert places.index.tolist() == places.length.tolist() == []
