"""The models of a recipe, loaded the same way everywhere: safetensors only, no code from the hub."""

from contextlib import nullcontext
from typing import TYPE_CHECKING

from bridgegarden.errors import ConfigError, ModelError, foreign
from bridgegarden.preflight import ModelFacts, ModelReference
from bridgegarden.recipe import Recipe, build_objective

if TYPE_CHECKING:
    from transformers import PreTrainedModel

SHOWN = 4


def references(recipe: Recipe) -> tuple[ModelReference | None, ModelReference]:
    """Teacher and student of a recipe. A teacher on a server that has said all that is learnt is None.

    Raises:
        ConfigError: as in :func:`teacher_reference`.
    """
    student, eos_token = recipe.student, recipe.training.arguments.get("eos_token")
    return (
        None if is_served(recipe) or is_done_teaching(recipe) else teacher_reference(recipe),
        ModelReference(
            role="student", model=student.model, revision=student.revision, dtype=student.dtype, eos_token=eos_token
        ),
    )


def is_served(recipe: Recipe) -> bool:
    """Whether the signals are those of a server's answers."""
    return recipe.teacher.server is not None and recipe.teacher.cache is not None


def is_done_teaching(recipe: Recipe) -> bool:
    """Whether all that is learnt of a server's teacher is its answers, which are the data: as hard labels alone."""
    teacher = recipe.teacher
    return teacher.server is not None and teacher.cache is None and build_objective(recipe.objective).learns_data_alone


def teacher_reference(recipe: Recipe) -> ModelReference:
    """The teacher of a recipe, on this machine.

    Raises:
        ConfigError: it is on a server.
    """
    teacher = recipe.teacher
    if teacher.server is not None:
        raise ConfigError(
            "teacher.server: a server does not give the distributions that training needs, but its answers may hold "
            "enough of them. Let it write some (bridgegarden generate RECIPE --top-logprobs 20) and keep what they "
            "hold (bridgegarden cache build RECIPE --set data.train=ANSWERS --set teacher.cache=FOLDER); learn answers "
            "without log-probabilities as hard labels (--set data.train=ANSWERS --set objective.preset=hard --set "
            "objective.hard_target=data); or train with a teacher.model of this machine, without teacher.server."
        )
    return ModelReference(role="teacher", model=teacher.model, revision=teacher.revision, dtype=teacher.dtype)


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
