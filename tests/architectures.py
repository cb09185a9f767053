"""Every causal language model that transformers knows, tiny, and whether training it is training it.

``python -m tests.architectures [TYPE ...]`` builds each from its configuration alone, trains one step in each of
:data:`MODES` and holds loss and gradient norm against the slow path in float64, on the model's own logits, row by row.
It prints one line a type, and the table of docs/reliability.md.
"""

import copy
import tempfile
import warnings
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from datasets import Dataset
from transformers import AutoModelForCausalLM, AutoModelForImageTextToText, PreTrainedModel, PrinterCallback
from transformers.models.auto.configuration_auto import CONFIG_MAPPING
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES
from trl.trainer.sft_config import SFTConfig

from bridgegarden.causal_lm_policy import CausalLMPolicy
from bridgegarden.errors import BridgegardenError
from bridgegarden.objective.hybrid import HybridObjective, hybrid_loss_from_logits
from bridgegarden.objective.soft_weight import StaticWeight
from bridgegarden.training.trainer import HybridDistillationTrainer
from tests.tiny import VOCABULARY, tiny_tokenizer

Mode = Literal["plain", "packed", "checkpointing", "writing"]
MODES: tuple[Mode, ...] = ("plain", "packed", "checkpointing", "writing")
TYPES = tuple(sorted(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES))
WRAPPERS = ("llava", "mistral3", "qwen2_vl", "qwen2_5_vl", "qwen3_vl")
"""Vision-language models that are no causal ones to transformers, and are trained on text here."""

_LAYERS = 4
_DEPTHS = [
    "num_hidden_layers",
    "n_layer",
    "n_layers",
    "num_layers",
    "decoder_layers",
    "encoder_layers",
    "num_decoder_layers",
    "num_encoder_layers",
    "num_blocks",
    "depth",
    "max_window_layers",
]
_SIZES = """
272 vocab_size decoder_vocab_size vocab_size_per_layer_input unpadded_vocab_size
32 hidden_size d_model n_embd embedding_size word_embed_proj_dim input_embedding_size output_embedding_size
32 embedding_dim attention_hidden_size lru_width router_hidden_size backbone_hidden_size pronunciation_embed_dim
32 shape_embed_dim moe_latent_size ple_embed_dim embed_dim out_hidden_size projection_dim
64 intermediate_size ffn_dim d_ff dff dim_ff n_inner moe_intermediate_size shared_expert_intermediate_size
64 decoder_ffn_dim encoder_ffn_dim ffn_hidden_size intermediate_size_mlp shared_intermediate_size emb_dim d_inner
64 expert_ffn_hidden_size feed_forward_size moe_shared_expert_intermediate_size dense_intermediate_size
64 shared_experts_intermediate_size mamba_d_ssm shape_vocab_size pronunciation_vocab_size
2 num_attention_heads n_head n_heads num_heads num_key_value_heads decoder_attention_heads attention_heads
2 encoder_attention_heads num_decoder_attention_heads num_encoder_attention_heads num_kv_heads
2 swa_num_attention_heads swa_num_key_value_heads linear_num_heads num_query_groups n_group topk_group
2 num_expert_group num_experts_per_tok num_experts_per_token moe_topk moe_k attn_layer_period layer_group_size
2 global_attn_every_n_layers no_rope_layer_interval interleave_moe_layer_step sliding_window_pattern
2 _sliding_window_pattern o_groups zero_expert_num linear_num_key_heads linear_num_value_heads
2 mamba_num_heads mamba_n_heads num_kv_shared_layers index_topk_blocks
1 first_k_dense_replace num_dense_layers n_shared_experts num_shared_experts moe_num_shared_experts mamba_n_groups
1 attn_layer_offset n_groups mamba_ngroups moe_layer_start_index
4 num_experts num_local_experts n_routed_experts moe_num_experts hidden_size_per_layer_input index_block_size
4 ple_conv_kernel_size mamba_dt_rank time_step_rank laurel_rank gated_norm_rank
8 qk_rope_head_dim q_lora_rank kv_lora_rank o_lora_rank state_size ssm_state_size mamba_d_state rotary_dim
8 sliding_window sliding_window_size window_size local_attention attention_window_size index_topk
8 attention_chunk_size adapter_rank hc_lowrank d_rel keep_window_size block_size num_buckets
16 index_n_heads head_dim v_head_dim qk_nope_head_dim dim_head d_head kv_channels linear_head_dim index_head_dim
16 swa_head_dim attention_head_dim linear_key_head_dim linear_value_head_dim global_head_dim attention_head_size
16 mamba_head_dim mamba_headdim mamba_d_head chunk_size mamba_chunk_size rel_extent
24 qk_head_dim
128 max_position_embeddings n_positions n_ctx max_seq_len model_max_length context_length max_target_positions
128 max_source_positions original_max_position_embeddings position_bias_max_distance num_position_embeddings
"""
SIZES = {name: int(line.split()[0]) for line in _SIZES.strip().splitlines() for name in line.split()[1:]}
SIZES |= dict.fromkeys(_DEPTHS, _LAYERS)
"""What is made small, by the names of configurations' fields."""
RANGES = ("initializer_range", "init_std", "embed_init_std")
_MAMBA: dict[str, Any] = {"mamba_n_heads": 4, "mamba_d_head": 16}
_ALTERNATING = ["linear_attention", "full_attention"] * 2
_ROPE = {"rope_type": "default", "rope_theta": 10000.0}
OWN: dict[str, dict[str, Any]] = {
    "axk1": {"head_dim": 8},
    "bamba": _MAMBA | {"attn_layer_indices": [1, 3]},
    "blenderbot": {"encoder_layers": _LAYERS},
    "blt": {"encoder_hash_byte_group_vocab": 64},
    "codegen": {"n_head": 4},
    "cohere_compass_text": {"rope_parameters": {"full_attention": _ROPE, "sliding_attention": _ROPE}},
    "dbrx": {
        "attn_config": {"rope_theta": 10000.0, "clip_qkv": 8.0, "kv_n_heads": 2},
        "ffn_config": {"ffn_hidden_size": 64, "moe_num_experts": 4, "moe_top_k": 2},
    },
    "deepseek_v2": {"num_experts_per_tok": 2, "n_group": 1, "topk_group": 1},
    "deepseek_v3": {"head_dim": 8},
    # Where a row is longer than that, its own code lets padding in.
    "doge": {"keep_window_size": 64},
    "dots1": {"n_routed_experts": 4, "num_experts_per_tok": 2, "n_shared_experts": 1, "n_group": 1, "topk_group": 1},
    "falcon_h1": _MAMBA,
    "gemma3n_text": {"num_kv_shared_layers": 0},
    "granitemoehybrid": _MAMBA | {"layer_types": _ALTERNATING},
    "hrm_text": {"num_hidden_layers": 1, "num_layers_per_stack": None},
    "hunyuan_v1_dense": {"head_dim": 16},
    "hunyuan_v1_moe": {"head_dim": 16},
    "lfm2": {"layer_types": ["conv", "full_attention"] * 2},
    "lfm2_moe": {"layer_types": ["conv", "full_attention"] * 2, "rope_parameters": _ROPE},
    "longcat_flash": {"head_dim": 8},
    "mamba2": {"num_heads": 4, "head_dim": 16},
    "mimo_v2_flash": {"head_dim": 32, "swa_head_dim": 32},
    "ministral": {"head_dim": 16},
    "nemotron": {"head_dim": 16, "num_key_value_heads": 2},
    "qwen2_5_vl_text": {"rope_parameters": {**_ROPE, "mrope_section": [2, 3, 3]}},
    "qwen2_vl_text": {"rope_parameters": {**_ROPE, "mrope_section": [2, 3, 3]}},
    "reformer": {"is_decoder": True, "axial_pos_embds": False, "max_position_embeddings": 128},
    "xmod": {"default_language": "en_XX"},
    "youtu": {"head_dim": 8},
    "zamba": {
        "attention_hidden_size": 64,
        "attention_head_dim": 32,
        "layers_block_type": ["linear_attention", "hybrid", "linear_attention", "hybrid"],
    },
    "zamba2": {
        "n_mamba_heads": 4,
        "mamba_headdim": 16,
        "attention_hidden_size": 64,
        "attention_head_dim": 32,
        "layers_block_type": ["linear_attention", "hybrid", "linear_attention", "hybrid"],
    },
}
"""What one type needs beside."""


def tiny_config(kind: str) -> Any:
    """The configuration of `kind` with every size small, no dropout and weights wide enough to tell models apart."""
    return _shrunk(CONFIG_MAPPING[kind], OWN.get(kind, {}))


def _shrunk(cls: Any, own: dict[str, Any]) -> Any:
    default = cls()
    layers = next((getattr(default, name) for name in _DEPTHS if hasattr(default, name)), None)
    changed: dict[str, Any] = {}
    subs = getattr(cls, "sub_configs", {})
    for name, value in vars(default).items():
        if name in subs:
            if value is not None and name not in own:
                changed[name] = _shrunk(type(value), OWN.get(value.model_type, {}))
        elif name.startswith("_") and name not in SIZES:
            continue
        elif name in SIZES and type(value) in (int, float):
            changed[name] = min(SIZES[name], int(value)) if value > 0 else value
        elif name == "rope_parameters" and value and "mrope_section" in value:
            # Half of the heads' width, shared out between time, height and width.
            changed[name] = {**value, "mrope_section": [2, 3, 3]}
        elif name in RANGES:
            changed[name] = 0.15
        elif ("drop" in name or "pdrop" in name or "jitter" in name) and isinstance(value, float):
            changed[name] = 0.0
        elif name.endswith(("_token_id", "_token_index", "_index")) and isinstance(value, int) and value >= VOCABULARY:
            changed[name] = 256 if "pad" in name else 258
        elif isinstance(value, (list, tuple)) and len(value) == layers:
            changed[name] = _of_each_kind(value)
    return cls(**changed | own)


def _of_each_kind(values: Sequence[Any]) -> list[Any]:
    """So many as there are layers, each kind among them where there is room."""
    kinds = list({repr(value): value for value in values}.values())[:_LAYERS]
    return [*values[: _LAYERS - len(kinds)], *kinds]


def tiny_architecture(kind: str, seed: int = 0) -> PreTrainedModel:
    """A random model of `kind`, in float32."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        auto = AutoModelForImageTextToText if kind in WRAPPERS else AutoModelForCausalLM
        return auto.from_config(tiny_config(kind), dtype=torch.float32)


@dataclass(frozen=True)
class Verdict:
    """How one type fared in one mode."""

    kind: str
    mode: Mode
    verdict: Literal["equal", "refused", "differs", "traceback", "not built"]
    detail: str = ""


def rows() -> list[dict[str, list[int]]]:
    """Six rows of different lengths, each supervised after its fourth token."""
    generator = torch.Generator().manual_seed(3)
    lengths = torch.randint(10, 26, (6,), generator=generator).tolist()
    ids = [torch.randint(4, 250, (length,), generator=generator).tolist() for length in lengths]
    return [{"input_ids": row, "labels": [-100] * 4 + row[4:]} for row in ids]


OBJECTIVE = HybridObjective(soft_weight=StaticWeight(0.5), hard_target="data")


def trained(student: PreTrainedModel, teacher: PreTrainedModel, mode: Mode) -> tuple[float, float]:
    """Loss and gradient norm of one step of the trainer, as it logs them."""
    packed = {"packing": True, "max_length": 64, "per_device_train_batch_size": 4}
    with tempfile.TemporaryDirectory() as folder:
        arguments: dict[str, Any] = {
            "output_dir": folder,
            "max_steps": 1,
            "per_device_train_batch_size": 6,
            "learning_rate": 0.0,
            "optim": "sgd",
            "logging_steps": 1,
            "save_strategy": "no",
            "report_to": [],
            "bf16": False,
            "use_cpu": True,
            "disable_tqdm": True,
            "max_grad_norm": 1e9,
            "gradient_checkpointing": mode == "checkpointing",
        }
        trainer = HybridDistillationTrainer(
            student,
            teacher,
            OBJECTIVE,
            SFTConfig(**arguments | (packed if mode == "packed" else {})),
            train_dataset=Dataset.from_list(rows()),
            processing_class=tiny_tokenizer(),
        )
        trainer.remove_callback(PrinterCallback)
        trainer.train()
    logged = next(entry for entry in trainer.state.log_history if "grad_norm" in entry)
    return logged["loss"], logged["grad_norm"]


def reference(student: PreTrainedModel, teacher: PreTrainedModel) -> tuple[float, float]:
    """The same from each model's own logits, row by row and without padding, in float64 where its code allows it."""
    try:
        return _reference(copy.deepcopy(student).double(), copy.deepcopy(teacher).double())
    except RuntimeError:  # float32 written into the architecture's own code
        return _reference(copy.deepcopy(student), copy.deepcopy(teacher))


def _reference(student: PreTrainedModel, teacher: PreTrainedModel) -> tuple[float, float]:
    student.train()
    teacher.eval()
    terms = []
    for row in rows():
        ids, labels = torch.tensor([row["input_ids"]]), torch.tensor([row["labels"]])
        with torch.no_grad():
            wanted = teacher(input_ids=ids, use_cache=False).logits
        own = student(input_ids=ids, use_cache=False).logits
        loss = hybrid_loss_from_logits(own, wanted, labels, OBJECTIVE, vocab_size=VOCABULARY)
        terms.append(loss.total[loss.mask])
    loss = torch.cat(terms).mean()
    loss.backward()
    squares = [p.grad.double().square().sum() for p in student.parameters() if p.grad is not None]
    return loss.item(), torch.stack(squares).sum().sqrt().item()


def written(model: PreTrainedModel) -> tuple[float, float]:
    """How far log-probabilities of texts followed side by side are from those of each text alone; 0 expected."""
    texts = [row["input_ids"] for row in rows()[:3]]
    policy = CausalLMPolicy(model, end_ids=[258], vocab_size=VOCABULARY)
    decoding = policy.start([text[:-2] for text in texts])
    for position in (-2, -1):
        decoding = decoding.extend(torch.arange(3), torch.tensor([text[position] for text in texts]))
    with torch.no_grad():
        alone = [model(input_ids=torch.tensor([text]), use_cache=False).logits[0, -1] for text in texts]
    # Of the last cell, the padding rows, nothing is said.
    wanted = torch.stack(alone).log_softmax(-1)[:, :VOCABULARY]
    off = (decoding.log_probs()[:, :VOCABULARY] - wanted).abs().max().item()
    return off, 0.0


def judged(kind: str, mode: Mode) -> Verdict:
    """Train (or have written) one step, and compare."""
    try:
        student, teacher = tiny_architecture(kind, 1), tiny_architecture(kind, 2)
        with torch.no_grad():
            student.eval()(input_ids=torch.tensor([rows()[0]["input_ids"]]), use_cache=False)
    except Exception as error:  # of whatever kind: configurations are guessed
        return Verdict(kind, mode, "not built", _line(error))
    try:
        if mode == "writing":
            got, wanted = written(teacher), (0.0, 0.0)
        else:
            wanted = None if teacher.config.is_encoder_decoder else reference(student, teacher)
            got = trained(student, teacher, mode)
    except BridgegardenError as error:
        return Verdict(kind, mode, "refused", _line(error))
    except Exception as error:  # what a user would see as a traceback is counted here
        return Verdict(kind, mode, "traceback", _line(error))
    assert wanted is not None
    close = all(abs(a - b) <= 1e-4 * max(abs(b), 1.0) for a, b in zip(got, wanted, strict=True))
    return Verdict(kind, mode, "equal" if close else "differs", f"{got} for {wanted}")


def _line(error: Exception) -> str:
    return f"{type(error).__name__}: {error}".strip().replace("\n", " ")[:300]


def main(kinds: Sequence[str], modes: Sequence[Mode]) -> None:
    """Judge all, line by line, and print the table."""
    warnings.simplefilter("ignore")
    counts: Counter[tuple[Mode, str]] = Counter()
    for kind in kinds or (*TYPES, *WRAPPERS):
        verdicts = [judged(kind, mode) for mode in modes]
        for verdict in verdicts:
            counts[verdict.mode, verdict.verdict] += 1
            print(f"{kind:28s} {verdict.mode:12s} {verdict.verdict:9s} {verdict.detail}", flush=True)
    names = ("equal", "refused", "differs", "traceback", "not built")
    print("\n| mode | " + " | ".join(names) + " |\n|---|" + "---|" * len(names))
    for mode in modes:
        print(f"| {mode} | " + " | ".join(str(counts[mode, name]) for name in names) + " |")


if __name__ == "__main__":
    import argparse

    import datasets
    import transformers

    datasets.disable_progress_bars()
    transformers.logging.set_verbosity(50)
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("types", nargs="*", help="all, if none is given")
    parser.add_argument("--modes", nargs="+", choices=MODES, default=MODES)
    given = parser.parse_args()
    main(given.types, given.modes)
