"""Trees of phrases, and the script engine on a world small enough to write down: greet, choose, name it again."""

import math

import pytest
import torch

from bridgegarden.errors import ConfigError
from bridgegarden.exact.process import Process, Role, role, sample, trace
from bridgegarden.exact.world import (
    COMPLETE,
    END,
    LOST,
    PAD,
    UNKNOWN,
    Choices,
    ScriptProcess,
    Slot,
    State,
    World,
    fixed,
    phrase_tree,
    slipping,
    weighted,
    wording,
)
from tests.exact.walk import reachable_states, texts


class Cafe(World):
    """ "Please bring tea . So tea ." where a drink is a Bridge, and the cup it comes in a choice without a meaning."""

    name = "cafe"
    process = succeeds = problem_of = None

    def spoken(self):
        return ("tea", "milk", "water"), ["Please bring", "Kindly", ". So", "cup", "mug"]

    def prompt(self, problem, generator):
        return problem

    @property
    def slots(self):
        garden = wording(self, {"Please bring": 0.75, "Kindly": 0.25})
        return [garden, Slot("drink"), Slot("vessel"), fixed(self, ". So"), Slot("again"), fixed(self, ".")]


CAFE = Cafe()
DRINKS = range(CAFE.ids["tea"], CAFE.ids["tea"] + 3)
CUP, MUG = CAFE.ids["cup"], CAFE.ids["mug"]


class Order(ScriptProcess):
    """Somebody who wants milk; what is repeated is what was said."""

    def __init__(self):
        super().__init__(CAFE.slots, memory=(None, None), vocab_size=len(CAFE.vocabulary))

    def matters(self, memory):
        return memory[0]

    def choices(self, slot, memory):
        if slot.name == "vessel":
            return weighted((CUP, MUG), (3.0, 1.0), vocab_size=self.vocab_size)
        right = CAFE.ids["milk"] if slot.name == "drink" else memory[0]
        return slipping(DRINKS, right, slip_rate=0.2, vocab_size=self.vocab_size)

    def remember(self, slot, memory, token):
        return (memory[0], token) if slot.name == "vessel" else (token, memory[1])


ORDER = Order()


def follow(text, process=ORDER):
    state = process.initial
    for token in CAFE.encode(text):
        state = process.step(state, token)
    return state


def test_a_script_is_a_process_as_long_as_its_longest_wording():
    assert isinstance(ORDER, Process)
    assert ORDER.horizon == len(CAFE.encode("Please bring milk cup . So milk .")) + 1


def test_roles_are_read_off_what_is_remembered():
    tokens = [*CAFE.encode("Please bring milk cup . So milk ."), END]
    found = [role(ORDER, state) for state in trace(ORDER, tokens)]
    bridge, garden, forced = Role.BRIDGE, Role.GARDEN, Role.FORCED
    assert found == [garden, forced, bridge, garden, forced, forced, bridge, forced, forced]


def test_a_choice_is_spread_over_its_tokens_as_the_family_says():
    prob = ORDER.log_probs(follow("Kindly")).exp()
    assert prob[list(DRINKS)].tolist() == pytest.approx([0.1, 0.8, 0.1])
    assert prob.sum().item() == pytest.approx(1.0)
    assert ORDER.log_probs(follow("Kindly tea")).exp()[[CUP, MUG]].tolist() == pytest.approx([0.75, 0.25])


def test_later_slots_depend_on_what_was_written_not_on_what_was_right():
    prob = ORDER.log_probs(follow("Kindly water mug . So")).exp()
    assert prob[list(DRINKS)].tolist() == pytest.approx([0.1, 0.1, 0.8])


def test_all_texts_and_their_probabilities_are_those_of_the_slots():
    found = {CAFE.decode(tokens): prob for tokens, prob in texts(ORDER)}
    assert len(found) == 2 * 3 * 2 * 3
    assert found["Kindly milk mug. So milk."] == pytest.approx(0.25 * 0.8 * 0.25 * 0.8)
    assert found["Please bring tea cup. So water."] == pytest.approx(0.75 * 0.1 * 0.75 * 0.1)
    assert math.fsum(found.values()) == pytest.approx(1.0)


@pytest.mark.parametrize("text", ["tea", "Please tea", "Please bring cup", "Kindly milk milk", "Kindly milk cup ."])
def test_a_token_that_is_no_continuation_loses_the_script(text):
    before, after = follow(text), ORDER.step(follow(text), UNKNOWN)
    assert after == LOST
    if text != "Kindly milk cup .":
        assert before == LOST


def test_a_lost_text_can_only_be_ended_and_an_ended_one_goes_on_with_padding():
    lost = follow("tea tea")
    assert list(ORDER.continuations(lost)) == [END]
    assert ORDER.log_probs(lost)[END] == 0.0
    assert ORDER.step(lost, CUP) == LOST
    ended = ORDER.step(lost, END)
    assert ORDER.is_terminal(ended)
    assert ORDER.step(ended, CUP) == ended
    assert ORDER.log_probs(ended)[PAD] == 0.0
    assert list(ORDER.continuations(ended)) == [PAD]
    assert ORDER.meaning(lost) == ORDER.meaning(ended) == "off script"


def test_reading_a_text_gives_what_is_remembered_of_it_or_nothing():
    tokens = [*CAFE.encode("Kindly tea mug . So water ."), END]
    assert ORDER.read(tokens) == (CAFE.ids["water"], MUG)
    assert ORDER.read(tokens[:-1]) is None
    assert ORDER.read([*tokens, END]) is None
    assert ORDER.read([UNKNOWN, END]) is None
    assert ORDER.read([]) is None


def test_a_state_holds_no_more_than_what_can_be_read_off_the_prefix():
    generator = torch.Generator().manual_seed(0)
    for _ in range(20):
        tokens = sample(ORDER, generator)
        assert ORDER.read(tokens) == Order().read(tokens)
    assert len(reachable_states(ORDER)) == len(set(reachable_states(Order()) + reachable_states(ORDER)))


def test_a_slip_rate_of_zero_leaves_one_token_but_all_stay_on_script():
    found = slipping((3, 4, 5), 4, slip_rate=0.0, vocab_size=6)
    assert isinstance(found, Choices)
    assert found.tokens == (3, 4, 5)
    assert found.log_probs.exp().tolist() == [0, 0, 0, 0, 1, 0]


def test_a_slot_that_no_family_speaks_for_is_an_error_of_ours():
    silent = ScriptProcess([Slot("drink")], memory=(), vocab_size=len(CAFE.vocabulary))
    with pytest.raises(NotImplementedError, match="ScriptProcess does not say what may be written at slot 'drink'"):
        silent.log_probs(silent.initial)
    with pytest.raises(NotImplementedError, match="what slot 'drink' leaves in memory"):
        silent.remember(Slot("drink"), (), 3)


def test_states_are_compared_by_place_and_memory():
    assert State(slot=1, memory=(1,)) == State(slot=1, node=0, memory=(1,)) != State(slot=1, memory=(2,))


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
