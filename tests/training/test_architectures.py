"""Training is training of the model's own logits, whatever the architecture, or it is refused by name.

All types that transformers has: ``python -m tests.architectures``.
"""

import pytest

from tests.architectures import MODES, judged

pytestmark = [pytest.mark.filterwarnings("ignore"), pytest.mark.slow]

KINDS = (
    *("afmoe", "apertus", "arcee", "bamba", "bart", "bert-generation", "bloom", "codegen", "cohere", "cohere2"),
    *("ctrl", "deepseek_v3", "deepseek_v32", "diffllama", "dots1", "exaone4", "falcon", "falcon_h1", "gemma", "gemma2"),
    *("gemma3", "gemma3_text", "glm4", "gpt2", "gpt_bigcode", "gpt_neo", "gpt_neox", "gpt_oss", "gptj", "granite"),
    *("granitemoehybrid", "jamba", "lfm2", "llama", "llama4_text", "mamba", "mamba2", "minimax", "mistral", "mixtral"),
    *("moshi", "mpt", "nemotron_h", "olmo2", "olmoe", "openai-gpt", "opt", "phi3", "qwen2", "qwen2_moe", "qwen3"),
    *("qwen3_moe", "qwen3_next", "roberta", "smollm3", "stablelm", "starcoder2", "xglm", "xlnet", "zamba2"),
)
PACKED = {
    "qwen2",
    "llama",
    "gemma2",
    "gemma3",
    "gpt2",
    "mistral",
    "mixtral",
    "phi3",
    "qwen3",
    "qwen3_moe",
    "llama4_text",
}
"""Some of those that keep packed rows apart, so that a probe that refuses everything would show."""
CAUSAL = set(KINDS) - {"bert-generation", "roberta", "xlnet"}


@pytest.mark.parametrize("kind", KINDS)
def test_every_architecture_equals_the_reference_or_is_refused_by_name(kind):
    for mode in MODES:
        verdict = judged(kind, mode)
        assert verdict.verdict in ("equal", "refused"), verdict
        if verdict.verdict == "refused":
            assert kind in verdict.detail or "ConfigError: training.gradient_checkpointing" in verdict.detail, verdict
        if (mode == "plain" and kind in CAUSAL) or (mode == "packed" and kind in PACKED):
            assert verdict.verdict == "equal", verdict
