"""The model card of a run."""

import os
from collections.abc import Mapping
from pathlib import Path

from bridgegarden.preflight import ModelFacts
from bridgegarden.run.checked import CheckedRun
from bridgegarden.run.record import package_versions

ARGUMENTS = (
    "max_steps",
    "num_train_epochs",
    "per_device_train_batch_size",
    "gradient_accumulation_steps",
    "learning_rate",
    "lr_scheduler_type",
    "warmup_steps",
    "optim",
    "weight_decay",
    "max_grad_norm",
    "max_length",
    "packing",
    "bf16",
    "fp16",
    "seed",
)
"""The training arguments that shape the result."""


def card_text(
    run: CheckedRun, training: Mapping[str, float], evaluation: Mapping[str, float], repo: str | None = None
) -> str:
    """README.md of the model that `run` trained, given its last metrics, and its name on the hub if it gets one."""
    from bridgegarden.training.model_card import ModelCard, Origin

    def origin(facts: ModelFacts) -> Origin:
        reference = facts.reference
        return Origin(name=reference.model, is_local=reference.is_local, revision=facts.stored_revision)

    recipe, endings = run.recipe, run.preflight.endings
    preset = {} if recipe.objective.preset is None else {"preset": recipe.objective.preset}
    arguments = run.arguments.to_dict()
    return ModelCard(
        student=origin(run.preflight.student),
        teacher=Origin(name=recipe.teacher.model, is_local=False)
        if run.preflight.teacher is None
        else origin(run.preflight.teacher),
        data=tuple(
            Origin(name=source.path, is_local=Path(os.path.expanduser(source.path)).exists())
            for source in recipe.data.sources
        ),
        rows=len(run.data.train),
        fingerprint=run.data.fingerprints["train"] or "",
        objective=preset
        | {"fields": run.objective_text}
        | ({} if run.on_policy_text is None else {"on-policy": run.on_policy_text}),
        training={name: arguments[name] for name in ARGUMENTS if arguments.get(name) is not None},
        metrics=dict(training) | {f"eval_{name}": value for name, value in evaluation.items()},
        versions=package_versions(),
        end_of_turn=str(endings.tokenizer.convert_ids_to_tokens(endings.taught)),
        has_chat_template=endings.template_from is not None,
        adapter=run.lora is not None,
        repo=repo,
    ).render()
