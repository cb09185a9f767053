"""Phrase trees against the phrases they were made of."""

import math

import pytest

from bridgegarden.errors import ConfigError
from bridgegarden.exact.phrases import COMPLETE, first_phrases, phrase_at, phrase_tree


def test_a_phrase_tree_gives_every_phrase_its_weight():
    phrases = {(1,): 0.5, (2, 3): 0.2, (2, 4): 0.1, (0, 3, 3): 0.2}
    tree = phrase_tree(phrases, vocab_size=5)
    for phrase, weight in phrases.items():
        node, logp = 0, 0.0
        for token in phrase:
            logp += tree.log_probs[node, token].item()
            node = tree.children[node][token]
        assert node == COMPLETE
        assert logp == pytest.approx(math.log(weight))
    assert tree.log_probs.exp().sum(-1).tolist() == pytest.approx([1.0] * len(tree.children))
    assert tree.depth == 3


@pytest.mark.parametrize("phrases", [{(1,): 1.0, (1, 2): 1.0}, {(3, 1): 1.0, (3,): 1.0}])
def test_a_phrase_that_begins_another_is_refused(phrases):
    with pytest.raises(ConfigError, match="begins another"):
        phrase_tree(phrases, vocab_size=5)


@pytest.mark.parametrize("phrases", [{(): 1.0}, {(1,): 0.0}, {(1,): math.nan}])
def test_an_empty_or_weightless_phrase_is_refused(phrases):
    with pytest.raises(ConfigError, match="weight"):
        phrase_tree(phrases, vocab_size=5)


def test_phrases_are_drawn_in_proportion_to_their_weights():
    table = {"a": 2.0, "b": 1.0, "c": 1.0}
    drawn = [phrase_at(table, (place + 0.5) / 400) for place in range(400)]
    assert [drawn.count(phrase) for phrase in table] == [200, 100, 100]
    assert (phrase_at(table, 0.0), phrase_at(table, 1 - 1e-12)) == ("a", "c")


def test_the_first_phrases_keep_their_order_and_weights():
    assert list(first_phrases({"a": 2.0, "b": 1.0, "c": 1.0}, 2).items()) == [("a", 2.0), ("b", 1.0)]
