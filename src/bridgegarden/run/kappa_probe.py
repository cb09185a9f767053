"""Files of kappa probes: written beside a diagnosis, and held against the models of a run before it begins."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from bridgegarden.diagnostics.diagnose import token_kind
from bridgegarden.diagnostics.diagnosis import Reader
from bridgegarden.errors import ConfigError
from bridgegarden.objective.kappa_probe import AGAIN, ProbeFile
from bridgegarden.preflight import ModelFacts
from bridgegarden.run.models import model_identity

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from bridgegarden.diagnostics.fit_probe import FittedProbe
    from bridgegarden.objective.hybrid import HybridObjective


def probe_file(
    fitted: "FittedProbe",
    student: str,
    *,
    teacher: ModelFacts,
    tokenizer: "PreTrainedTokenizerBase",
    vocab_size: int,
    reader: Reader,
) -> ProbeFile:
    """What is written of a probe.

    Args:
        fitted: the probe.
        student: the name of the student that it was fitted on.
        teacher: of the same pair.
        tokenizer: the student's.
        vocab_size: tokens that both share.
        reader: ids to text.
    """
    return ProbeFile(
        probe=fitted.probe,
        kinds="".join(token_kind(reader, token, vocab_size) for token in range(vocab_size)),
        teacher=_identity(teacher),
        vocabulary=vocabulary_fingerprint(tokenizer, vocab_size),
        fitted={"student": student, **{k: v for k, v in fitted.to_dict().items() if k != "weights"}},
    )


def check_probes(
    objective: "HybridObjective",
    teachers: Sequence[ModelFacts],
    *,
    tokenizer: "PreTrainedTokenizerBase",
    vocab_size: int,
) -> tuple[str, ...]:
    """Make sure that the probes of `objective` are for these models; warnings of those that are no good.

    Args:
        objective: whose rules are looked at.
        teachers: all that are known; what a server has cannot be checked.
        tokenizer: the student's.
        vocab_size: tokens that all models share.

    Raises:
        ConfigError: a probe is of another tokenizer or another teacher.
    """
    warnings = []
    for rule in objective.probes:
        place, held = f"kappa probe {rule.file}", rule.held
        if len(held.kinds) != vocab_size or held.vocabulary != vocabulary_fingerprint(tokenizer, vocab_size):
            raise ConfigError(
                f"{place}: was fitted on a pair with another tokenizer ({len(held.kinds):,} tokens; here "
                f"{vocab_size:,}), so that token ids do not mean the same. {AGAIN}"
            )
        for facts in teachers:
            if _weights(held.teacher) != _weights(_identity(facts)):
                raise ConfigError(
                    f"{place}: was fitted on the teacher {held.teacher.get('teacher')}, whose weights are not those of "
                    f"{facts.reference.model}. {AGAIN}"
                )
        if held.fitted.get("standing") != "ahead":
            warnings.append(f"{place}: {held.fitted.get('reason', 'does not say how good it is.')}")
    return tuple(warnings)


def probe_hashes(objective: "HybridObjective") -> dict[str, str]:
    """Of every probe of `objective` what its file held, for what tells one run from another."""
    return {rule.file: rule.held.sha256 for rule in objective.probes}


def vocabulary_fingerprint(tokenizer: "PreTrainedTokenizerBase", vocab_size: int) -> str:
    """A hash of the tokens behind the first `vocab_size` ids: all that a probe depends on, whatever ends a text."""
    return hashlib.sha256(json.dumps(tokenizer.convert_ids_to_tokens(list(range(vocab_size)))).encode()).hexdigest()


def _identity(teacher: ModelFacts) -> dict[str, Any]:
    """Without its precision, which hardly matters to a probe."""
    return {name: value for name, value in model_identity(teacher).items() if name != "dtype"}


def _weights(identity: Mapping[str, Any]) -> tuple[Any, Any]:
    return identity.get("weights"), identity.get("revision")
