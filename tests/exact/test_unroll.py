"""Which rows a text can be at, what they are called, and the prefixes of a policy, each asked once."""

import re

import pytest
import torch
from hypothesis import given

from bridgegarden import exact
from bridgegarden.errors import ConfigError, DataError, ModelError
from bridgegarden.exact import TablePolicy, TabularProcess, unroll
from bridgegarden.exact.unroll import reachable_layers
from tests.exact.enumeration import prefixes, random_process, state_after
from tests.exact.test_dynamic_programming import branching, small_worlds


@given(small_worlds)
def test_layers_hold_the_states_of_all_prefixes_of_their_length(world):
    process, _ = world
    layers = reachable_layers(process.following, process.terminal, process.initial, process.horizon)
    by_length = {}
    for prefix in prefixes(process):
        by_length.setdefault(len(prefix), set()).add(state_after(process, prefix))
    assert [set(layer.tolist()) for layer in layers] == [by_length[length] for length in sorted(by_length)]


def test_a_row_is_called_by_its_state_and_a_prefix_by_its_tokens():
    process, student = random_process(8, 5, 3, 5)
    assert exact.solve(process, student).unrolled.name(0) == "state 0"
    by_prefix = exact.solve(process, TablePolicy(process, student))
    row = int(by_prefix.nodes.row[by_prefix.node_of((0, 1))])
    assert by_prefix.unrolled.prefix(row) == (0, 1)
    assert by_prefix.unrolled.name(row) == f"prefix [0, 1] (state {state_after(process, (0, 1))})"


def test_entropies_and_losses_of_rows_are_those_of_their_distributions():
    process, student = random_process(2, 7, 4, 6)
    unrolled = exact.solve(process, student).unrolled
    for row in torch.cat(unrolled.layers).unique().tolist():
        for logp, entropy in (
            (process.table[row], unrolled.teacher_entropy[row]),
            (student[row], unrolled.student_entropy[row]),
        ):
            wanted = -sum(x.exp() * x for x in logp if x > -torch.inf)
            assert entropy.item() == pytest.approx(wanted.item())


class Recalling:
    """A student that answers differently to any two prefixes, and keeps a record of what it was asked."""

    def __init__(self, vocab_size, ended=lambda text: False):
        self.vocab_size = vocab_size
        self.is_ended = ended
        self.asked = []
        self.batches = []
        self.started = []

    def start(self, prefixes):
        self.started += [tuple(prefix) for prefix in prefixes]
        return Recall(self, [tuple(prefix) for prefix in prefixes])

    def row(self, text):
        generator = torch.Generator().manual_seed(hash(text) % 2**32)
        return torch.randn(self.vocab_size, generator=generator).log_softmax(-1)


class Recall:
    def __init__(self, policy, texts):
        self.policy, self.texts = policy, texts

    def log_probs(self):
        self.policy.asked += self.texts
        self.policy.batches.append(len(self.texts))
        return torch.stack([self.policy.row(text) for text in self.texts])

    def ended(self):
        return torch.tensor([self.policy.is_ended(text) for text in self.texts])

    def extend(self, rows, tokens):
        return Recall(
            self.policy,
            [(*self.texts[row], token) for row, token in zip(rows.tolist(), tokens.tolist(), strict=True)],
        )


PROMPT = (2, 1)


def solved(process, policy):
    return exact.solve(process, policy, prompt=PROMPT)


@pytest.mark.parametrize("batch", [1, 7, 512])
def test_every_prefix_that_goes_on_is_asked_about_exactly_once(batch, monkeypatch):
    monkeypatch.setattr(unroll, "ROWS_AT_ONCE", batch)
    process, _ = random_process(8, 5, 3, 5)
    policy = Recalling(3)
    solution = solved(process, policy)
    assert sorted(policy.asked) == sorted(PROMPT + prefix for prefix in prefixes(process))
    assert len(solution) == len(policy.asked) > 20
    assert policy.started == [PROMPT]
    assert max(policy.batches) <= batch
    assert {solution.prefix(node) for node in range(len(solution))} == set(prefixes(process))


def test_the_size_of_the_batches_changes_nothing(monkeypatch):
    process, _ = random_process(8, 5, 3, 5)
    whole = solved(process, Recalling(3))
    monkeypatch.setattr(unroll, "ROWS_AT_ONCE", 2)
    cut = solved(process, Recalling(3))
    for node in range(len(whole)):
        other = cut.node_of(whole.prefix(node))
        assert cut.prefix(other) == whole.prefix(node)
        assert torch.equal(cut.kappa[other], whole.kappa[node])
        assert cut.student_visitation[other] == whole.student_visitation[node]


def test_a_student_in_float32_that_reads_whole_prefixes_closes_the_identity():
    process, _ = random_process(8, 5, 3, 5)
    solution = solved(process, Recalling(3))
    assert solution.identity_error < 1e-10
    node = solution.node_of((0,))
    said = Recalling(3).row((*PROMPT, 0)).double().exp()
    assert torch.allclose(solution.unrolled.student[solution.nodes.row[node]], said, atol=1e-6)


def test_a_policy_that_looks_at_the_state_alone_is_solved_like_its_table():
    process, student = random_process(9, 6, 3, 5)
    table, policy = exact.solve(process, student), exact.solve(process, TablePolicy(process, student))
    for name in ("teacher_loss", "student_loss", "exposure_bias", "violation_rate", "student_entropy"):
        assert getattr(table, name) == pytest.approx(getattr(policy, name), abs=1e-12)
    assert torch.allclose(table.by_position.contribution, policy.by_position.contribution, atol=1e-12)
    for role, share in table.by_role.items():
        assert share[1:] == pytest.approx(policy.by_role[role][1:], abs=1e-12)
    assert table.student_probability(lambda s: s % 2 == 0) == pytest.approx(
        policy.student_probability(lambda s: s % 2 == 0)
    )


def test_texts_that_are_over_are_not_asked_about():
    process, _ = branching([0.5, 0.5])
    policy = Recalling(2)
    exact.solve(process, policy, prompt=PROMPT)
    assert policy.asked == [PROMPT, (*PROMPT, 0)]


def test_too_many_prefixes_are_refused_with_the_count_and_the_limit():
    process, _ = random_process(8, 5, 3, 12)
    with pytest.raises(ConfigError, match=r"at least \d+ distinct prefixes of up to \d+ tokens, the limit .* is 50"):
        exact.solve(process, Recalling(3), prompt=PROMPT, max_nodes=50)


def test_a_policy_that_ends_a_text_which_goes_on_is_refused():
    process, _ = random_process(8, 5, 3, 5)
    policy = Recalling(3, ended=lambda text: text == (*PROMPT, 0))
    with pytest.raises(ModelError, match="says that a text of 1 tokens has ended, the process goes on from state"):
        solved(process, policy)


def test_a_policy_with_another_vocabulary_is_refused():
    with pytest.raises(ModelError, match="the student's policy has 4 tokens, the process 3"):
        solved(random_process(8, 5, 3, 5)[0], Recalling(4))


def test_a_row_that_is_no_distribution_is_refused_by_where_it_stands():
    class Wrong(Recalling):
        def row(self, text):
            return super().row(text) + (0.5 if len(text) == 3 else 0.0)

    with pytest.raises(DataError, match=r"student, a prefix of 1 tokens at state \d: .* sums to 1\.64"):
        solved(random_process(8, 5, 3, 5)[0], Wrong(3))


def test_a_process_that_is_over_before_its_first_token_is_refused():
    process = TabularProcess(torch.zeros(1, 1), torch.zeros(1, 1), torch.tensor([True]), horizon=3)
    for student in (torch.zeros(1, 1), TablePolicy(process, torch.zeros(1, 1))):
        with pytest.raises(DataError, match="the initial state is terminal"):
            exact.solve(process, student)


def test_as_many_prefixes_as_the_limit_are_allowed_and_one_more_is_refused():
    process, _ = random_process(8, 5, 3, 4)
    refused = []
    for limit in range(1, 200):
        try:
            exact.solve(process, Recalling(3), prompt=PROMPT, max_nodes=limit)
            break
        except ConfigError as error:
            refused.append(tuple(map(int, re.findall(r"at least (\d+) .* limit max_nodes is (\d+)", str(error))[0])))
    assert len(refused) > 5
    assert all(count > limit for count, limit in refused)
    assert refused[-1] == (limit, limit - 1)
