"""Incremental decoding, against a full forward of every prefix."""

import pytest
import torch
from transformers import (
    Gemma2ForCausalLM,
    GPT2Config,
    GPT2LMHeadModel,
    GPTNeoXConfig,
    GPTNeoXForCausalLM,
    MambaConfig,
    MambaForCausalLM,
)

from bridgegarden.causal_lm_policy import CausalLMPolicy
from bridgegarden.errors import ConfigError, DataError, ModelError
from bridgegarden.objective.divergences import forward_kl
from bridgegarden.objective.hybrid import HybridObjective, hybrid_loss_from_logits
from bridgegarden.policy import Decoding, Policy
from tests.tiny import tiny_config, tiny_model

VOCABULARY, END = 40, 0
PREFIXES = [[5, 6, 7, 8, 9, 10, 11], [3], [1, 2, 3, 4]]


def absolute_positions():
    torch.manual_seed(0)
    config = GPT2Config(vocab_size=VOCABULARY, n_embd=16, n_layer=2, n_head=2, n_positions=64, bos_token_id=0)
    return GPT2LMHeadModel(config)


def short_window():
    """Gemma 2 with a window of 4 tokens in every other layer, so that a test of a few tokens leaves it."""
    config = tiny_config("gemma2", VOCABULARY)
    config.sliding_window = 4
    torch.manual_seed(0)
    return Gemma2ForCausalLM(config)


def neox():
    torch.manual_seed(0)
    return GPTNeoXForCausalLM(
        GPTNeoXConfig(
            vocab_size=VOCABULARY,
            hidden_size=16,
            intermediate_size=32,
            num_hidden_layers=2,
            num_attention_heads=2,
            max_position_embeddings=64,
            bos_token_id=0,
            eos_token_id=0,
        )
    )


FAMILIES = {
    "llama": lambda: tiny_model("llama", VOCABULARY),
    "qwen2": lambda: tiny_model("qwen2", VOCABULARY),
    "gemma2": short_window,
    "gpt2": absolute_positions,
    "gpt_neox": neox,
}


@pytest.fixture(scope="module", params=FAMILIES)
def model(request):
    return FAMILIES[request.param]().eval()


def last_log_probs(model, text):
    """What the model itself says after `text`, alone in its batch."""
    with torch.no_grad():
        return model(torch.tensor([text]), use_cache=False).logits[0, -1].float().log_softmax(-1)


def expect(decoding, model, texts):
    want = torch.stack([last_log_probs(model, text) for text in texts])
    torch.testing.assert_close(decoding.log_probs(), want, rtol=1e-4, atol=1e-5)


def test_every_prefix_is_what_a_full_forward_says(model):
    policy = CausalLMPolicy(model, end_ids=[END])
    assert isinstance(policy, Policy)
    decoding, texts = policy.start(PREFIXES), [list(prefix) for prefix in PREFIXES]
    assert isinstance(decoding, Decoding)
    rows = torch.arange(3)
    for step in range(8):
        expect(decoding, model, texts)
        tokens = torch.tensor([7 + step, 20 - step, 30])
        decoding = decoding.extend(rows, tokens)
        for text, token in zip(texts, tokens.tolist(), strict=True):
            text.append(token)
    expect(decoding, model, texts)


def test_rows_can_be_repeated_reordered_and_dropped_and_old_decodings_stay_usable(model):
    policy = CausalLMPolicy(model, end_ids=[END])
    first = policy.start(PREFIXES)
    second = first.extend(torch.tensor([2, 0, 2, 2]), torch.tensor([9, 8, 7, 9]))
    texts = [[*PREFIXES[2], 9], [*PREFIXES[0], 8], [*PREFIXES[2], 7], [*PREFIXES[2], 9]]
    third = second.extend(torch.tensor([3, 1]), torch.tensor([4, 5]))
    fourth = second.extend(torch.arange(4), torch.tensor([1, 2, 3, 4]))
    expect(third, model, [[*texts[3], 4], [*texts[1], 5]])
    expect(fourth, model, [[*text, token] for text, token in zip(texts, (1, 2, 3, 4), strict=True)])
    expect(second, model, texts)
    expect(first, model, PREFIXES)


def test_texts_that_join_others_are_read_as_alone_and_nothing_is_kept_of_those_that_left(model):
    policy = CausalLMPolicy(model, end_ids=[END])
    before, texts = policy.start(PREFIXES), [list(prefix) for prefix in PREFIXES]
    decoding = before
    joining = [[[9, 8], [31, 32, 33, 34, 35, 36, 37, 38]], [[12]], [[13, 14, 15]]]
    for step, prefixes in enumerate(joining):
        decoding = decoding.beside(policy.start(prefixes))
        texts += [list(prefix) for prefix in prefixes]
        assert decoding.mask.shape[1] == max(map(len, texts))
        for _ in range(2):
            expect(decoding, model, texts)
            # The longest goes, and with it what only it needed.
            longest = max(range(len(texts)), key=lambda row: len(texts[row]))
            rows = torch.tensor([row for row in range(len(texts)) if row != longest or len(texts) < 3])
            tokens = torch.arange(len(rows)) + 5 + step
            decoding = decoding.extend(rows, tokens)
            texts = [[*texts[row], token] for row, token in zip(rows.tolist(), tokens.tolist(), strict=True)]
        expect(decoding, model, texts)
    expect(before, model, PREFIXES)


def test_whole_rows_in_order_share_their_keys_and_values():
    policy = CausalLMPolicy(tiny_model("llama", VOCABULARY), end_ids=[END])
    first = policy.start(PREFIXES)
    before = first.cache.layers[0].keys
    same = first.extend(torch.arange(3), torch.tensor([1, 2, 3]))
    assert first.cache.layers[0].keys is before
    assert same.cache.layers[0].keys.shape[2] == before.shape[2] + 1


def test_a_text_has_ended_after_an_end_token_whether_read_or_drawn():
    policy = CausalLMPolicy(tiny_model("llama", VOCABULARY), end_ids=[END, 4])
    decoding = policy.start([[1, 4], [4, 1], [2]])
    assert decoding.ended().tolist() == [True, False, False]
    decoding = decoding.extend(torch.tensor([0, 1, 2]), torch.tensor([1, 0, 2]))
    assert decoding.ended().tolist() == [True, True, False]


@pytest.mark.parametrize("width", [35, 36, 41])
def test_what_lies_beyond_the_shared_vocabulary_is_one_last_cell(width):
    model = tiny_model("llama", width).eval()
    decoding = CausalLMPolicy(model, end_ids=[END], vocab_size=35).start(PREFIXES)
    logp, full = decoding.log_probs(), torch.stack([last_log_probs(model, prefix) for prefix in PREFIXES])
    torch.testing.assert_close(logp[:, :35], full[:, :35], rtol=1e-4, atol=1e-5)
    beyond = full[:, 35:].exp().sum(-1) if width > 35 else torch.full((3,), 1e-10)
    torch.testing.assert_close(logp[:, 35].exp(), beyond, rtol=1e-4, atol=0.0)
    assert decoding.extend(torch.arange(3), torch.tensor([35, 1, 2])).ended().tolist() == [True, False, False]


def test_the_divergence_of_two_policies_is_the_soft_loss_of_training():
    teacher, student = tiny_model("llama", 43, seed=1).eval(), tiny_model("qwen2", 38, seed=2).eval()
    text = [5, 6, 7, 8, 9]
    policies = [CausalLMPolicy(model, end_ids=[END], vocab_size=38) for model in (teacher, student)]
    logp = [policy.start([text[:-1]]).log_probs() for policy in policies]
    with torch.no_grad():
        logits = [model(torch.tensor([text])).logits for model in (student, teacher)]
    loss = hybrid_loss_from_logits(logits[0], logits[1], torch.tensor([text]), HybridObjective())
    assert forward_kl(*logp).item() == pytest.approx(loss.soft[0, -1].item(), rel=1e-4)


def test_the_mode_of_the_model_is_handed_back_and_nothing_keeps_a_gradient():
    config = GPT2Config(vocab_size=VOCABULARY, n_embd=16, n_layer=2, n_head=2, resid_pdrop=0.5, bos_token_id=0)
    model = GPT2LMHeadModel(config).train()
    policy = CausalLMPolicy(model, end_ids=[END])
    decoding = policy.start(PREFIXES).extend(torch.arange(3), torch.tensor([1, 2, 3]))
    again = policy.start(PREFIXES).extend(torch.arange(3), torch.tensor([1, 2, 3]))
    assert model.training
    assert all(module.training for module in model.modules())
    assert torch.equal(decoding.log_probs(), again.log_probs()), "dropout was on"
    assert not decoding.log_probs().requires_grad


def test_a_half_precision_model_gives_float32():
    model = tiny_model("llama", VOCABULARY).to(torch.bfloat16)
    logp = CausalLMPolicy(model, end_ids=[END]).start(PREFIXES).log_probs()
    assert logp.dtype == torch.float32
    torch.testing.assert_close(logp.exp().sum(-1), torch.ones(3))


@pytest.mark.parametrize(
    ("prefixes", "message"),
    [([], "at least one token"), ([[1], []], "at least one token"), ([[1, 40]], "outside 0..39"), ([[1] * 65], "65")],
)
def test_prefixes_that_cannot_be_read_are_refused(prefixes, message):
    with pytest.raises(DataError, match=message):
        CausalLMPolicy(absolute_positions(), end_ids=[END]).start(prefixes)


def test_a_text_that_outgrows_the_model_is_refused():
    decoding = CausalLMPolicy(absolute_positions(), end_ids=[END]).start([[1] * 64])
    with pytest.raises(DataError, match=r"65 tokens, more than the 64.*lower max_new_tokens"):
        decoding.extend(torch.tensor([0]), torch.tensor([1]))


def test_settings_that_do_not_fit_the_model_are_refused():
    model = tiny_model("llama", VOCABULARY)
    with pytest.raises(ConfigError, match=r"between 1 and the rows.*40; got 41"):
        CausalLMPolicy(model, end_ids=[END], vocab_size=41)
    for end_ids in ([], [40]):
        with pytest.raises(ConfigError, match="at least one token id below 40"):
            CausalLMPolicy(model, end_ids=end_ids)


def test_a_model_with_another_memory_than_keys_and_values_is_refused():
    config = MambaConfig(vocab_size=VOCABULARY, hidden_size=16, num_hidden_layers=1, state_size=4)
    with pytest.raises(ModelError, match="takes no position_ids"):
        CausalLMPolicy(MambaForCausalLM(config), end_ids=[END])
