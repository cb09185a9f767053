"""Student and teacher before the first step: each is what training takes it for, and they do not hold each other."""

import os
from collections.abc import Container, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple, cast

import torch
from accelerate import Accelerator
from datasets import Dataset
from torch import nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase, TrainingArguments

from bridgegarden.causal_lm import (
    add_hidden_loss,
    architecture,
    compiled,
    input_device,
    is_split,
    language_model_in,
    last_hidden,
    name_of,
    read_hidden,
    rows,
    stored_parts,
    take_off_wrappers,
)
from bridgegarden.data import vocabulary_size
from bridgegarden.data.teacher_prompt import TEACHER_IDS
from bridgegarden.errors import ConfigError, ModelError, unknown_name
from bridgegarden.fake_quantisation import QUANTISED, train_rounded, train_whole
from bridgegarden.model_probes import Collate, check_causal_lm, check_packing, position_table
from bridgegarden.teacher.by_row import TeachersByRow
from bridgegarden.teacher.cache.reader import CachesByRow, TeacherCache
from bridgegarden.teacher.live import LiveTeacher
from bridgegarden.teacher.mixture import MixedTeacher
from bridgegarden.teacher.protocol import DataTokens, ProcessTeacher, Teacher
from bridgegarden.teacher.translated import TranslatedCache, TranslatedModel
from bridgegarden.training.batches import CacheOfRows, Reach, RowCollator
from bridgegarden.training.student_writer import WHOLE


def as_teacher(teacher: Any, student: Any, *, adapters: bool) -> Teacher:
    """The teacher as a user gives it. Before it is frozen: a refused student must be left as it was."""
    if isinstance(teacher, Teacher):
        return teacher
    if isinstance(teacher, (str, Path)):
        return LiveTeacher.from_pretrained(teacher)
    if not isinstance(teacher, nn.Module):
        raise ConfigError(
            f"teacher: got {type(teacher).__name__}; expected a causal language model, its name or path, a "
            "LiveTeacher, a TeacherCache, or another Teacher."
        )
    if isinstance(student, nn.Module) and not adapters and language_model_in(student) is student:
        check_apart(student, teacher, adapters=False)
    return LiveTeacher(cast(PreTrainedModel, teacher))


def models_of(teacher: object) -> tuple[PreTrainedModel, ...]:
    """The models that are asked at every step: none, where what they said is on disk."""
    if isinstance(teacher, TranslatedModel):
        return models_of(teacher.teacher)
    if isinstance(teacher, MixedTeacher | TeachersByRow):
        return teacher.models
    return (teacher.model,) if isinstance(teacher, LiveTeacher) else ()


def gives_whole_vocabulary(teacher: Teacher, vocab_size: int) -> bool:
    """Whether the signals of `teacher` are about every one of `vocab_size` tokens, so that they have no ids."""
    match teacher:
        case LiveTeacher() | MixedTeacher() | TeachersByRow():
            return teacher.top_k is None or teacher.top_k >= vocab_size
        case TeacherCache():
            return teacher.spec.is_dense
        case CachesByRow():
            return any(cache.spec.is_dense for cache in teacher.caches)
        case _:
            return isinstance(teacher, ProcessTeacher)


def readers_of(teacher: object) -> int:
    """How many models read each token of a batch, where it holds no signals."""
    if isinstance(teacher, DataTokens):
        return 0
    if isinstance(teacher, TranslatedModel):
        return readers_of(teacher.teacher)
    return len(teacher.teachers) if isinstance(teacher, MixedTeacher) else 1


def take_hidden_loss(student: PreTrainedModel, teachers: Sequence[PreTrainedModel], args: TrainingArguments) -> None:
    """Teach `student` and the `teachers` in memory to call the loss, their decoders compiled where `args` say so."""
    # What is kept on other devices comes by hooks around every layer, which no compiler looks through.
    for model in (student, *(teacher for teacher in teachers if not is_split(teacher))):
        compiles = bool(args.torch_compile)
        decode = compiled(args.torch_compile_backend, args.torch_compile_mode) if compiles else last_hidden
        take_off_wrappers(model)
        add_hidden_loss(model, decode)


def learn_rounded(student: PreTrainedModel, kind: str | None, accelerator: Accelerator, *, adapters: bool) -> None:
    """Let `student` compute with its weights as a file of `kind` will hold them; None leaves them whole.

    Raises:
        ConfigError: no such kind, adapters, or weights that are split over processes.
        ModelError: as :func:`train_rounded`.
    """
    train_whole(student)
    if kind is None:
        return
    if kind not in QUANTISED:
        raise unknown_name(kind, QUANTISED, field="quantised")
    if adapters:
        raise ConfigError(
            "peft_config: what is exported are weights with their adapters merged in, and `quantised` would round "
            "those without. Leave one of them out."
        )
    if accelerator.distributed_type not in WHOLE:
        raise ConfigError(
            f"training.quantised: the student is sharded ({accelerator.distributed_type}): its weights are gathered in "
            "a type of fewer bits, and would be rounded from that, which the exported file is not. Train with "
            "DistributedDataParallel, or leave out training.quantised."
        )
    head: Any = student.get_output_embeddings()
    train_rounded(student, kind, [student.get_input_embeddings(), head])


def check_loaded(student: nn.Module | str, environment: Mapping[str, str] = os.environ) -> None:
    """Make sure that the first process of a machine has the weights of the student; under FSDP it may hand them on.

    One that is named by a string is still to be loaded.

    Raises:
        ModelError: it has not, so that there is nothing to probe, and nothing to train.
    """
    if isinstance(student, str) or int(environment.get("LOCAL_RANK") or 0) != 0:
        return
    if any(parameter.is_meta for parameter in student.parameters()):
        raise ModelError(
            f"student {architecture(language_model_in(student))}: on the meta device, where weights have no numbers. "
            "Load it (from_pretrained) where no such device is set, and whole (no offloading by device_map)."
        )


def check_models(
    student: nn.Module,
    teachers: Sequence[PreTrainedModel],
    *,
    packed_by: Collate | None,
    checkpointing: bool,
    data: Mapping[str, Any],
    translated: bool = False,
) -> Reach:
    """Probe a pair before it is trained, and hold its data against what it can read.

    Args:
        student: as it is trained, adapters included.
        teachers: the models that are asked, probed as language models already; none where they are not in memory.
        packed_by: what packs several rows into one row of a batch; None where rows stay alone.
        checkpointing: whether activations are computed anew in the backward.
        data: prepared data sets by name; those that are streamed are left to :meth:`Reach.check_batch`.
        translated: whether the teachers read tokens of their own in place of the student's.

    Raises:
        ConfigError: the student cannot compute activations anew.
        ModelError: a model that is not what training takes it for.
        DataError: a row that a model cannot read.
    """
    _check_adapters(student)
    inner = language_model_in(student)
    if checkpointing and not inner.supports_gradient_checkpointing:
        raise ConfigError(
            f"training.gradient_checkpointing: {architecture(inner)} does not support it. Set it to false."
        )
    # Under FSDP the first process of a machine may hold the weights for all until training begins, and probes them.
    if inner.device.type != "meta":
        check_causal_lm(inner)
    asked = {f"teacher {n}" if len(teachers) > 1 else "teacher": one for n, one in enumerate(teachers, start=1)}
    models = {"student": inner} | asked
    probed = {role: model for role, model in models.items() if model.device.type != "meta"}
    if packed_by is not None:
        for role, model in probed.items():
            check_packing(model, role, packed_by)
    reach = _reach({"student": inner}, probed.keys() & {"student"}) if translated else _reach(models, probed.keys())
    if asked:
        reach = replace(reach, teacher=_reach(asked, probed.keys() & asked.keys()))
    for name, dataset in data.items():
        if isinstance(dataset, Dataset) and "input_ids" in dataset.column_names:
            reach.check_rows(dataset, name)
    return reach


def _check_adapters(student: nn.Module) -> None:
    """Refuse adapters that put tokens of their own before the text, which labels know nothing of."""
    for config in getattr(student, "peft_config", {}).values():
        if config.is_prompt_learning and config.peft_type.value != "PREFIX_TUNING":
            raise ModelError(
                f"peft_config: {config.peft_type.value} puts virtual tokens before the text, which is not supported. "
                "Use LoRA or another adapter of weights, or prefix tuning."
            )


def _reach(models: Mapping[str, PreTrainedModel], probed: Container[str]) -> Reach:
    named = {role: f"the {role}, {architecture(model)}," for role, model in models.items()}
    ids = {role: rows(model.get_input_embeddings().weight) for role, model in models.items()}  # pyright: ignore  an embedding's
    tables = {role: position_table(model) for role, model in models.items() if role in probed}
    known = {role: size for role, size in tables.items() if size is not None}
    least = min(ids, key=lambda role: ids[role])
    shortest = min(known, key=lambda role: known[role], default=None)
    if shortest is None:
        return Reach(ids=ids[least], ids_of=named[least])
    return Reach(ids=ids[least], ids_of=named[least], positions=known[shortest], positions_of=named[shortest])


def check_teacher_rows(teacher: object, data: Mapping[str, Any], collator: Any, *, on_policy: bool) -> None:
    """Make sure that a teacher with a prompt of its own is asked behind it, and that rows say which of several is
    asked.

    Args:
        teacher: of the trainer; one on disk has its signals filed under what it read.
        data: prepared data sets by name.
        collator: makes batches of them.
        on_policy: whether the student answers batches itself.

    Raises:
        ConfigError: it would be asked behind the student's prompt.
        DataError: a row does not say which teacher is its.
    """
    if isinstance(teacher, TeachersByRow):
        for name, rows in data.items():
            if isinstance(rows, Dataset):
                teacher.check_rows(rows, name)
    if isinstance(teacher, CacheOfRows) or not any(
        TEACHER_IDS in (getattr(rows, "column_names", None) or ()) for rows in data.values()
    ):
        return
    if on_policy:
        raise ConfigError(
            f"on_policy: rows have {TEACHER_IDS!r}, behind which the teacher judges the answers of the data; what the "
            "student writes has no such prompt. Leave out on_policy, or the column (remove_columns)."
        )
    if not isinstance(collator, RowCollator):
        raise ConfigError(
            f"data_collator: {type(collator).__name__} does not hand on {TEACHER_IDS!r}, so the teacher would be asked "
            "behind the student's prompt. Leave it out, or the column (remove_columns)."
        )


class _Memory(NamedTuple):
    """Where a parameter lies."""

    device: str
    start: int
    end: int
    name: str


def check_apart(student: nn.Module, teacher: nn.Module, *, adapters: bool) -> None:
    """Make sure that training `student` and freezing `teacher` do not touch the same weights.

    A student with adapters may read the frozen weights that its teacher reads, to save memory, as long as its layers
    are objects of its own: in shared layers the adapters would be the teacher's, too.

    Args:
        student: with its adapters, if it has any.
        teacher: the model that is imitated.
        adapters: whether the student trains adapters alone.

    Raises:
        ModelError: they share layers or weights; says which, and what to do.
    """
    own = {id(module) for module in student.modules()}
    both = [name for name, module in teacher.named_modules() if id(module) in own and _holds_parameters(module)]
    if both:
        what = "are one model" if both[0] == "" else f"share layers ({_shown(both)})"
        raise ModelError(
            f"teacher and student {what}: the teacher is frozen, and whatever is trained would be trained in it, too. "
            "Load the teacher a second time, e.g. with teacher=PATH."
        )
    trained = {name for name, parameter in student.named_parameters() if parameter.requires_grad}
    shared = [name for name in _overlapping(student, teacher) if not adapters or name in trained]
    if shared:
        raise ModelError(
            f"teacher and student share weights ({_shown(shared)}): the teacher is frozen, so they would be, too. Give "
            "one of the two a copy of its own, e.g. with teacher=PATH."
        )


def _overlapping(student: nn.Module, teacher: nn.Module) -> list[str]:
    """Names of the student's parameters that lie, in part or whole, where one of the teacher's does."""
    found: list[str] = []
    theirs: _Memory | None = None
    ours: list[_Memory] = []
    for memory, of_teacher in sorted([*((m, True) for m in _memory(teacher)), *((m, False) for m in _memory(student))]):
        if of_teacher:
            found += [m.name for m in ours if m.device == memory.device and m.end > memory.start]
            if theirs is None or theirs.device != memory.device or theirs.end < memory.end:
                theirs = memory
            ours = []
        else:
            if theirs is not None and theirs.device == memory.device and theirs.end > memory.start:
                found.append(memory.name)
            else:
                ours.append(memory)
    return found


def _memory(model: nn.Module) -> Iterator[_Memory]:
    for name, parameter in model.named_parameters():
        for tensor in stored_parts(parameter):
            # Weights that are not here (meta, split by ZeRO-3) lie nowhere.
            if tensor.device.type == "meta" or tensor.numel() == 0:
                continue
            reach = sum((size - 1) * step for size, step in zip(tensor.shape, tensor.stride(), strict=True)) + 1
            start = tensor.data_ptr()
            yield _Memory(str(tensor.device), start, start + reach * tensor.element_size(), name)


def _holds_parameters(module: nn.Module) -> bool:
    return next(module.parameters(), None) is not None


def _shown(names: list[str]) -> str:
    return names[0] if len(names) == 1 else f"{names[0]} and {len(names) - 1} more"


def check_same_teacher(teacher: object, accelerator: Accelerator) -> None:
    """Make sure that a teacher in memory says the same in every process.

    Raises:
        ModelError: it does not: its weights were loaded in some of them alone, say.
    """
    if accelerator.num_processes == 1:
        return
    for model in models_of(teacher):
        _check_same(model, accelerator)


def _check_same(model: PreTrainedModel, accelerator: Accelerator) -> None:
    hidden, head = read_hidden(model, {"input_ids": torch.arange(4, device=input_device(model)).unsqueeze(0)})
    said = head.logits(hidden[0]).double().square().mean().sqrt().float().to(accelerator.device)
    everywhere = accelerator.gather(said.reshape(1))
    assert isinstance(everywhere, torch.Tensor)
    # Machines with other processors round otherwise.
    if not torch.allclose(everywhere, everywhere[:1].expand_as(everywhere), rtol=1e-2, atol=0):
        raise ModelError(
            f"teacher {name_of(model)}: it is not the same in every process: its logits on four tokens have the sizes "
            f"{', '.join(f'{value:.4g}' for value in everywhere.tolist())}. Load the same weights in every process, or "
            "train from a cache."
        )


def check_cached_teacher(
    cache: CacheOfRows,
    tokenizer: PreTrainedTokenizerBase,
    *,
    max_length: int | None,
    vocab_size: int,
    collator: Any,
    data: Mapping[str, Any],
) -> None:
    """Make sure that `cache` can stand for the teacher, at every position of the data.

    Args:
        cache: the teacher.
        tokenizer: the student's.
        max_length: tokens that rows are cut to.
        vocab_size: size of the vocabulary that student and cache share.
        collator: what makes batches.
        data: prepared data sets by name; None where there is none.

    Raises:
        ModelError: it was built with another tokenizer, or the student lacks tokens that it speaks of.
        ConfigError: rows are cut to another length; a collator of somebody else's; streamed data.
        DataError: rows that it does not hold.
    """
    if isinstance(cache, TranslatedCache):
        cache.check_student(vocab_size, max_length)
    for one in () if isinstance(cache, TranslatedCache) else cache.caches:
        one.check_tokenizer(tokenizer, max_length)
        whole = min(vocabulary_size(tokenizer), one.spec.teacher_width)
        if one.width < whole:
            raise ModelError(
                f"teacher cache {one.folder}: its signals are about the ids below {one.width} alone, and those of the "
                f"tokenizer go up to {whole - 1}. Build it again (bridgegarden cache build RECIPE --replace)."
            )
        if vocab_size < one.width:
            raise ModelError(
                f"teacher cache {one.folder}: its signals are about {one.width} tokens, of which the student has only "
                f"{vocab_size}."
            )
    if not isinstance(collator, RowCollator):
        raise ConfigError("data_collator: a teacher's cache needs the trainer's own; leave it out.")
    for name, dataset in data.items():
        if isinstance(dataset, Dataset):
            cache.check_rows(dataset, name)
        elif dataset is not None:
            raise ConfigError(f"{name} data: a streamed data set cannot be paired with a cache; load it whole.")
