"""How a model's weights are rounded to a few bits, and whether they can be used here."""

from collections.abc import Mapping
from typing import Any

from bridgegarden.errors import ModelError, foreign
from bridgegarden.preflight.models import ModelFacts


def quantisation(facts: ModelFacts) -> str | None:
    """How the weights of a model were rounded to a few bits, for a person; None where they were not, as is known."""
    if facts.reference.gguf_file is not None:
        return f"GGUF, {facts.reference.gguf_file}"
    if facts.reference.quantization is not None:
        package = "torchao" if "quant_type" in facts.reference.quantization else "bitsandbytes"
        return f"{package}, {settings_text(facts.reference.quantization)}"
    settings = getattr(facts.config, "quantization_config", None)
    if settings is None:
        return None
    return quantisation_of(settings)


def quantisation_of(settings: Any) -> str:
    """What the ``quantization_config`` of a config.json says, for a person."""
    method = settings.get("quant_method") if isinstance(settings, Mapping) else settings.quant_method
    return f"{getattr(method, 'value', method)}, as its config.json says"


def settings_text(settings: Mapping[str, Any]) -> str:
    """Settings in one line, in the order of their names: the same for the same settings."""
    return ", ".join(f"{name} {value}" for name, value in sorted(settings.items()))


def quantiser_settings(given: Mapping[str, Any]) -> Any:
    """``BitsAndBytesConfig`` or ``TorchAoConfig`` of the settings in a recipe.

    Raises:
        ImportError: the package that reads it is not there.
    """
    from transformers import BitsAndBytesConfig, TorchAoConfig

    if "quant_type" not in given:
        return BitsAndBytesConfig(**given)
    try:
        from torchao.quantization import Int8WeightOnlyConfig  # pyright: ignore[reportMissingImports]  optional
    except ImportError as error:
        raise ImportError(f"{error}: pip install torchao") from error
    return TorchAoConfig(Int8WeightOnlyConfig())  # the one that a recipe can name


def check_quantised(facts: ModelFacts) -> None:
    """Make sure that what a quantised model is read with is there, if it is one.

    Raises:
        ModelError: a package is missing, or this machine cannot compute with such weights.
    """
    from transformers.quantizers.auto import AutoHfQuantizer

    settings = getattr(facts.config, "quantization_config", None)
    wanted = facts.reference.quantization
    if wanted is not None and settings is not None:
        raise facts.reference.error(
            f"its weights are quantised already ({quantisation_of(settings)}), and teacher.quantization would do so "
            "again. Leave that out, or take the model as it was before."
        )
    if settings is None and wanted is None:
        return

    def refusal(words: str) -> ModelError:
        how = "are quantised, and" if wanted is None else "are to be quantised (teacher.quantization), which"
        other = "take the model as it was before" if wanted is None else "leave teacher.quantization out"
        return facts.reference.error(
            f"its weights {how} cannot be used here ({words}). Install what is missing, or {other}."
        )

    with foreign(refusal):
        given = quantiser_settings(wanted or {}) if settings is None else settings
        AutoHfQuantizer.from_config(given, pre_quantized=wanted is None).validate_environment(
            device_map=None, weights_only=True
        )
