"""The models of a recipe, loaded the same way everywhere: safetensors only, no code from the hub."""

from contextlib import nullcontext
from typing import TYPE_CHECKING

from bridgegarden.errors import ConfigError, ModelError, foreign
from bridgegarden.preflight import ModelFacts

if TYPE_CHECKING:
    from transformers import PreTrainedModel

SHOWN = 4


def load_model(facts: ModelFacts, *, spread: bool = False) -> "PreTrainedModel":
    """The weights of a model that passed preflight, on the CPU.

    Args:
        facts: what preflight found.
        spread: leave out what this process does not hold where FSDP or ZeRO-3 is on, as the trainer wants the student.

    Raises:
        ModelError: its files cannot be read, or lack weights (which would be random).
    """
    from transformers import AutoModelForCausalLM

    from bridgegarden.sharded_head import whole_in_every_process

    def refusal(words: str) -> ModelError:
        return facts.reference.error(f"its weights cannot be loaded ({words}). Are its files complete?")

    with foreign(refusal), nullcontext() if spread else whole_in_every_process():
        model, info = AutoModelForCausalLM.from_pretrained(
            facts.reference.location,
            revision=facts.stored_revision,
            dtype=facts.dtype,
            use_safetensors=True,
            trust_remote_code=False,
            output_loading_info=True,
        )  # pyright: ignore[reportGeneralTypeIssues]  a pair, with loading info
    missing = sorted(info["missing_keys"])
    if missing:
        shown = ", ".join(missing[:SHOWN]) + (", ..." if len(missing) > SHOWN else "")
        raise facts.reference.error(
            f"its files lack {len(missing)} weights ({shown}), which would be random. Are its files complete, and of "
            f"the architecture that its config.json names ({facts.config.model_type})?"
        )
    return model


def usable_device(name: str | None, place: str) -> str:
    """The device `name`, on which a number was put and read back; a GPU, or else the CPU, where it is None.

    Args:
        name: as PyTorch writes it, such as ``cuda:1``.
        place: what names it, such as ``teacher.device``.

    Raises:
        ConfigError: there is no such device here, or nothing can be computed on it.
    """
    import torch

    if name is None:
        return "cuda" if torch.cuda.is_available() else "cpu"
    there = ["cpu", *(f"cuda:{i}" for i in range(torch.cuda.device_count()))]

    def refusal(words: str) -> ConfigError:
        return ConfigError(f"{place}: {name!r} is no device of this machine ({words}). It has: {', '.join(there)}.")

    with foreign(refusal):
        torch.zeros(1, device=name).tolist()
    return name
