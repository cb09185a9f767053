"""Everything that can be found wrong with a pair of models before any weights are loaded."""

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any

from bridgegarden.data import end_of_turn_ids
from bridgegarden.errors import ModelError, foreign, quoted
from bridgegarden.preflight.memory import MemoryEstimate, estimate_memory
from bridgegarden.preflight.models import (
    ModelFacts,
    ModelReference,
    TokenizerFacts,
    check_positions,
    load_facts,
    load_tokenizer,
    load_tokenizer_facts,
)
from bridgegarden.preflight.tokenizers import Endings, TokenizerMatch, check_endings, compare_tokenizers

if TYPE_CHECKING:
    from peft import LoraConfig
    from transformers import PreTrainedTokenizerBase

    from bridgegarden.teacher.tokenizer_pair import TokenizerPair

__all__ = [
    "Endings",
    "MemoryEstimate",
    "ModelFacts",
    "ModelReference",
    "Pair",
    "Preflight",
    "TokenizerFacts",
    "TokenizerMatch",
    "check_endings",
    "check_pair",
    "check_positions",
    "check_quantised",
    "compare_tokenizers",
    "estimate_memory",
    "load_facts",
    "load_tokenizer",
    "load_tokenizer_facts",
    "preflight",
    "quantisation",
    "quantiser_settings",
    "settings_text",
]


@dataclass(frozen=True, kw_only=True)
class Pair:
    """A teacher and a student that fit each other."""

    teacher: ModelFacts | None
    """None where it is on a server, and nothing is known of it but what it said."""
    student: ModelFacts
    match: TokenizerMatch
    """How the tokenizers compare."""
    endings: Endings
    """The tokenizer and chat template to train with, and where a turn ends."""
    named: TokenizerFacts | None = None
    """The teacher's tokenizer where the recipe names that alone; None where the teacher is known, or nothing of it."""
    others: tuple[ModelFacts, ...] = ()
    """Further teachers, which are mixed with the first; each was checked against the student."""
    tokens: "TokenizerPair | None" = None
    """How the teacher reads the rows where it has another tokenizer; None where it has the student's, or nothing of it
    is learnt but the data's labels."""
    asked: bool = True
    """Whether what the teacher says of the rows is read; not where nothing of it is learnt but the data's labels."""

    @property
    def teachers(self) -> tuple[ModelFacts, ...]:
        """All that are known."""
        return (() if self.teacher is None else (self.teacher,)) + self.others

    @property
    def teacher_tokens(self) -> TokenizerFacts | None:
        """The teacher's tokenizer and where it ends a turn; None where neither is known."""
        return self.teacher or self.named

    @property
    def warnings(self) -> tuple[str, ...]:
        """What may go wrong, each with what to do, the gravest first."""
        return self.endings.warnings + self.match.warnings

    @property
    def translates(self) -> bool:
        """Whether the teacher has another tokenizer, so that what it says is translated."""
        return self.match.relation == "translated"

    @property
    def read_by(self) -> "PreTrainedTokenizerBase":
        """In whose tokens the teacher reads the rows."""
        return self.endings.tokenizer if self.tokens is None else self.tokens.tokenizer

    @property
    def whose(self) -> str:
        """That tokenizer, for messages."""
        return "the student's" if self.tokens is None else self.tokens.whose

    @property
    def summary(self) -> str:
        """One line on tokenizer, chat template and end of turn."""
        count = len(self.endings.tokenizer)
        if self.translates:
            return self._translated_summary(count)
        relation = "the student's tokenizer" if self.teacher_tokens is None else "the same tokenizer"
        if self.teacher is not None and self.match.relation == "padded":
            relation += f", embeddings padded to {self.teacher.width} (teacher) and {self.student.width} (student) rows"
        source = self.endings.template_from
        template = "no chat template" if source is None else f"the {source}'s chat template"
        end = self.endings.tokenizer.convert_ids_to_tokens(self.endings.taught)
        return f"{relation}, {count} tokens; {template}, a turn ends with {end!r}"

    def _translated_summary(self, count: int) -> str:
        assert self.teacher_tokens is not None
        theirs, ours = self.teacher_tokens.tokenizer, self.endings.tokenizer
        end = end_of_turn_ids(theirs, self.teacher_tokens.generation_config)[0]
        sides = []
        for role, tokenizer, size, stop in (
            ("teacher", theirs, len(theirs), end),
            ("student", ours, count, self.endings.taught),
        ):
            template = "no chat template" if tokenizer.chat_template is None else "its own chat template"
            if role == "student" and self.endings.template_from == "recipe":
                template = "the recipe's chat template"
            ends = quoted(str(tokenizer.convert_ids_to_tokens(stop)))
            sides.append(f"{role}: {size:,} tokens, {template}, a turn ends with {ends}")
        return f"different tokenizers, the teacher's distribution is translated ({'; '.join(sides)})"


@dataclass(frozen=True, kw_only=True)
class Preflight(Pair):
    """A pair of models that can be distilled, with what that takes."""

    memory: MemoryEstimate

    @property
    def warnings(self) -> tuple[str, ...]:
        return super().warnings + self.memory.warnings + self._precision_warnings()

    def _precision_warnings(self) -> tuple[str, ...]:
        """Updates of a usual size vanish in 8 bits of mantissa."""
        dtype = str(self.student.dtype).removeprefix("torch.")
        if self.student.dtype.itemsize >= 4 or any(part.name.startswith("adapters") for part in self.memory.parts):
            return ()
        return (
            f"the student's weights are trained in {dtype}, in which updates below about 1/256 of a weight are rounded "
            "away. Set student.dtype: float32 (bfloat16 autocast keeps it fast), or train adapters.",
        )


def check_pair(
    teacher: ModelReference | TokenizerFacts | None,
    student: ModelReference | ModelFacts,
    *,
    max_length: int | None = None,
    chat_template: str | None = None,
    weights: bool = True,
    translates: bool = False,
    asked: bool = True,
    loaded: bool = True,
) -> Pair:
    """Check that `teacher` can teach `student`, from configurations and tokenizers alone.

    Args:
        teacher: the model that is imitated. Where it is elsewhere, so that it is cached, its tokenizer, or None.
        student: the model that is trained; or what is known of one that has not been made yet.
        max_length: tokens of a row at most; None if rows are not cut.
        chat_template: a file with the chat template to use; None is the student's, or else the teacher's.
        weights: whether the files of weights have to be there.
        translates: whether the teacher may have another tokenizer, so that what it says is translated.
        asked: whether the teacher reads the rows.
        loaded: whether the teacher's weights are needed, besides the student's.

    Raises:
        ModelError: a model cannot be used, or not on rows of that length, or their tokenizers differ where they must
            not, or in a way that cannot be translated.
    """
    known = load_facts(teacher, weights=weights and loaded) if isinstance(teacher, ModelReference) else teacher
    of_teacher = known if isinstance(known, ModelFacts) else None
    of_student = student if isinstance(student, ModelFacts) else load_facts(student, weights=weights)
    for facts in (of_teacher if asked else None, of_student):
        check_positions(facts, max_length)
    match = compare_tokenizers(known, of_student, translates=translates)
    translated = match.relation == "translated"
    return Pair(
        teacher=of_teacher,
        student=of_student,
        match=match,
        endings=check_endings(known, of_student, chat_template, translated=translated, asked=asked),
        named=None if known is of_teacher else known,
        asked=asked,
    )


def preflight(
    pair: Pair,
    *,
    positions: int,
    lora: "LoraConfig | None" = None,
    use_cpu: bool = False,
    teacher_cached: bool = False,
    top_k: int | None = None,
) -> Preflight:
    """Check that `pair`, of :func:`check_pair`, can be trained, and estimate the memory that this takes.

    Args:
        pair: models that fit each other.
        positions: tokens of a batch at most.
        lora: adapters to train in place of all weights.
        use_cpu: whether the run is kept off accelerators.
        teacher_cached: whether what the teacher says is read from disk, so that its weights are not loaded.
        top_k: tokens that are kept of what a teacher in memory says; None is all.

    Raises:
        ModelError: weights that would be loaded are quantised in a way that cannot be read here.
    """
    for facts in (*(() if teacher_cached else pair.teachers), pair.student):
        check_quantised(facts)
    memory = estimate_memory(
        pair.teacher,
        pair.student,
        positions=positions,
        lora=lora,
        use_cpu=use_cpu,
        teacher_cached=teacher_cached,
        top_k=top_k,
        others=pair.others,
    )
    return Preflight(**{field.name: getattr(pair, field.name) for field in fields(Pair)}, memory=memory)


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
