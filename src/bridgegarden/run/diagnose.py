"""A pair of models and prompts to a diagnosis: what ``bridgegarden diagnose`` does."""

import platform
import re
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from rich.console import Console
from rich.text import Text

from bridgegarden.causal_lm_policy import CausalLMPolicy
from bridgegarden.data import Columns, Source, end_of_turn_ids, vocabulary_size
from bridgegarden.data.audit import TokenTexts
from bridgegarden.data.encode import tokenizer_fingerprint
from bridgegarden.diagnostics.diagnose import diagnose
from bridgegarden.diagnostics.diagnosis import Diagnosis, DiagnosisSettings, Findings, ModelUsed
from bridgegarden.errors import ConfigError
from bridgegarden.files import write_json
from bridgegarden.preflight import ModelFacts, ModelReference, check_endings, compare_tokenizers, load_facts
from bridgegarden.recipe import Recipe, list_recipes, load_recipe
from bridgegarden.recipe.teacher import TranslationSection
from bridgegarden.report.diagnosis import diagnosis_page
from bridgegarden.report.diagnosis_across import ANNOUNCED
from bridgegarden.run.kappa_probe import probe_file
from bridgegarden.run.models import load_model, placed, usable_device
from bridgegarden.run.output import OutputFolder, check_writable, write_or_rescue
from bridgegarden.run.pair import tokenizers_of
from bridgegarden.run.prompts import Prompts, PromptSource, read_prompts
from bridgegarden.run.quiet import quiet_libraries
from bridgegarden.run.record import now, package_versions
from bridgegarden.run.rows import columns_of
from bridgegarden.run.teachers import LiveModel
from bridgegarden.terminal import Display, counted

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from bridgegarden.teacher.tokenizer_pair import TokenizerPair

PROBE = "kappa_probe"
"""What names of files of probes begin with."""
EVERY = 10.0
"""Seconds between lines where there is no terminal."""
NAMED = re.compile(r"([\w .+-]+)=(.+)")


@dataclass(frozen=True, kw_only=True)
class DiagnoseRequest:
    """What was asked for, as on the command line."""

    recipe: str | None = None
    """A recipe's file or shipped name; gives whatever the rest leaves open."""
    overrides: tuple[str, ...] = ()
    """Changes to the recipe."""
    teacher: str | None = None
    """A folder, or a name on the hub."""
    students: tuple[str, ...] = ()
    """The same, each also as NAME=MODEL; with a recipe they come beside its own."""
    prompts: str | None = None
    """A file, a folder or a data set on the hub."""
    columns: Columns = field(default_factory=Columns)
    """Which columns of it to read."""
    split: str = "train"
    """Which part of it, where it has parts."""
    limit: int | None = None
    """Prompts to write from, from the start; None is 64."""
    dtype: str | None = None
    """Of all weights; None is the recipe's, or what they were saved in."""
    output: Path | None = None
    """Folder for the result."""


@dataclass(frozen=True, kw_only=True)
class DiagnoseInputs:
    """What a request comes to."""

    teacher: ModelReference
    """Whose distribution is imitated."""
    students: dict[str, ModelReference]
    """By name, in order."""
    prompts: PromptSource
    """What they write from."""
    output: Path
    """Folder for the result."""
    notes: tuple[str, ...]
    """What was decided, for a person."""


class DiagnosisFiles(NamedTuple):
    """Where the result is."""

    folder: Path

    @property
    def report(self) -> Path:
        """The page."""
        return self.folder / "report.html"

    @property
    def result(self) -> Path:
        """The same for machines."""
        return self.folder / "result.json"

    def probe(self, diagnosis: Diagnosis, student: str) -> Path:
        """The probe that was fitted on a student."""
        names = [used.name for used in diagnosis.students]
        own = "" if len(names) == 1 else f"-{names.index(student)}-" + re.sub(r"[^\w.+-]+", "-", student)[:80]
        return self.folder / f"{PROBE}{own}.json"


@dataclass(frozen=True, kw_only=True)
class CheckedPair:
    """Models whose token ids mean the same, with nothing heavy loaded yet."""

    teacher: ModelFacts
    students: Mapping[str, ModelFacts]
    tokenizer: "PreTrainedTokenizerBase"
    """The first student's, with the chat template that is used."""
    vocab_size: int
    """Tokens that all models share."""
    end_ids: tuple[int, ...]
    """Tokens at which a text is over."""
    warnings: tuple[str, ...]
    tokens: "TokenizerPair | None" = None
    """How the teacher reads what the students do, where its tokenizer is another one."""

    @property
    def window(self) -> int | None:
        """Most tokens that all of them can read."""
        configs = [facts.config.get_text_config() for facts in (self.teacher, *self.students.values())]
        windows = [getattr(config, "max_position_embeddings", None) for config in configs]
        return min((window for window in windows if window is not None), default=None)


def diagnose_pair(
    request: DiagnoseRequest, settings: DiagnosisSettings, *, command: str = "", device: str | None = None
) -> tuple[Diagnosis, DiagnosisFiles]:
    """Diagnose a pair (or a teacher and several students), and write the page and the numbers.

    Args:
        request: which models and prompts.
        settings: how.
        command: what was typed, for the record.
        device: such as ``cuda:1``; None is a GPU if there is one.

    Raises:
        ConfigError: something is missing, or the budget is too small; or the result could only be written elsewhere.
        DataError: a row has no prompt, or fewer than two prompts are left.
        ModelError: a model cannot be used, or their tokenizers differ.
        KeyboardInterrupt: interrupted before there was anything to keep.
    """
    import torch

    from bridgegarden.terminal import stderr_console

    started, console, inputs = now(), stderr_console(), resolve(request)
    files = DiagnosisFiles(inputs.output.expanduser())
    check_writable(files.folder, "output")
    where = usable_device(device, "--device")
    with quiet_libraries(interactive=sys.stderr.isatty()):
        pair = _check(inputs)
        prompts = _prompts(inputs, pair, request.limit, settings)
        _tell(console, inputs, pair, prompts)
        policies = [_policy(facts, pair, where, console) for facts in (pair.teacher, *pair.students.values())]
        reader = TokenTexts(pair.tokenizer, shared_size=pair.vocab_size)
        findings = _findings(console, pair, policies, prompts, settings, reader)
    models = [("teacher", pair.teacher), *pair.students.items()]
    used = tuple(_used(name, facts, policy) for (name, facts), policy in zip(models, policies, strict=True))
    diagnosis = Diagnosis(
        teacher=used[0],
        students=used[1:],
        prompts=prompts.used,
        settings=settings,
        vocab_size=pair.vocab_size,
        findings=findings,
        warnings=pair.warnings,
        command=command,
        started=started,
        device=torch.cuda.get_device_name(where) if where.startswith("cuda") else where,
        versions={"python": sys.version.split()[0], "platform": platform.platform(), **package_versions()},
    )
    write_or_rescue(files.folder, lambda folder: _write(DiagnosisFiles(folder), diagnosis, pair, reader))
    return diagnosis, files


def _findings(
    console: "Console",
    pair: CheckedPair,
    policies: Sequence[CausalLMPolicy],
    prompts: Prompts,
    settings: DiagnosisSettings,
    reader: TokenTexts,
) -> Findings:
    """Of `policies`, the teacher's first, in sight of the user."""
    teacher, students = policies[0], dict(zip(pair.students, policies[1:], strict=True))
    total = len(prompts.ids) * settings.samples * settings.max_new_tokens * len(policies)
    total += settings.budget * len(students)
    if pair.tokens is not None:
        from bridgegarden.diagnostics.diagnose_across import diagnose_across
        from bridgegarden.diagnostics.two_tokenizers import PairReader, Prompt

        with DiagnoseDisplay(console, total) as display:
            return diagnose_across(
                {name: PairReader(pair.tokens, teacher, student) for name, student in students.items()},
                [Prompt(*ids) for ids in zip(prompts.teacher_ids, prompts.ids, strict=True)],
                settings,
                reader=reader,
                answers=list(zip(prompts.teacher_answers, prompts.answers, strict=True)),
                watcher=display,
            )
    with DiagnoseDisplay(console, total) as display:
        return diagnose(
            teacher,
            students,
            prompts.ids,
            settings,
            vocab_size=pair.vocab_size,
            reader=reader,
            answers=prompts.answers,
            watcher=display,
        )


def _write(files: DiagnosisFiles, diagnosis: Diagnosis, pair: CheckedPair, reader: TokenTexts) -> None:
    write_json(files.result, diagnosis.to_dict())
    diagnosis_page(diagnosis).write(files.report)
    written: set[Path] = set()
    for student in diagnosis.findings.students:
        if student.probe is not None:
            held = probe_file(
                student.probe,
                student.name,
                teacher=pair.teacher,
                tokenizer=pair.tokenizer,
                vocab_size=pair.vocab_size,
                reader=reader,
            )
            written.add(files.probe(diagnosis, student.name))
            write_json(files.probe(diagnosis, student.name), held.to_dict())
    # What an earlier diagnosis left is of other models or texts than the report beside it.
    for old in set(files.folder.glob(f"{PROBE}*.json")) - written:
        old.unlink()


def _check(inputs: DiagnoseInputs) -> CheckedPair:
    teacher = load_facts(inputs.teacher)
    students = {name: load_facts(reference) for name, reference in inputs.students.items()}
    matches = [compare_tokenizers(teacher, facts, translates=True) for facts in students.values()]
    translated = _translates(teacher, students, [match.relation == "translated" for match in matches])
    endings = [check_endings(teacher, facts, translated=translated) for facts in students.values()]
    vocab_size = min(match.vocab_size for match in matches)
    stops = [index for ending in endings for index in ending.stops]
    if not translated:
        stops += end_of_turn_ids(teacher.tokenizer, teacher.generation_config)
    warnings = [text for part in (*endings, *matches) for text in part.warnings]
    return CheckedPair(
        teacher=teacher,
        students=students,
        tokenizer=endings[0].tokenizer,
        vocab_size=vocab_size,
        end_ids=tuple(dict.fromkeys(index for index in stops if index < vocab_size)),
        warnings=tuple(dict.fromkeys(warnings)),
        tokens=tokenizers_of(teacher, endings[0], TranslationSection()) if translated else None,
    )


def _translates(teacher: ModelFacts, students: Mapping[str, ModelFacts], differ: Sequence[bool]) -> bool:
    """Whether the students have another tokenizer than the teacher; they need one among them.

    Raises:
        ConfigError: some have the teacher's and some not, or they have several.
    """
    if not any(differ):
        return False
    named = list(students.items())
    kinds = {tokenizer_fingerprint(facts.tokenizer) for facts in students.values()}
    if len(kinds) > 1 or not all(differ):
        first, other = named[0][0], named[-1][0]
        raise ConfigError(
            f"--student: {first!r} and {other!r} (of {len(named)} students) have different tokenizers, and losses by "
            "their tokens cannot be held against each other. Diagnose one at a time; what their pages say in bits a "
            "byte can be compared."
        )
    return True


def _prompts(inputs: DiagnoseInputs, pair: CheckedPair, limit: int | None, settings: DiagnosisSettings) -> Prompts:
    return read_prompts(
        inputs.prompts,
        pair.tokenizer,
        room=None if pair.window is None else pair.window - settings.max_new_tokens,
        vocab_size=pair.vocab_size,
        limit=limit,
        asked=None if pair.tokens is None else pair.teacher.tokenizer,
    )


def _tell(console: "Console", inputs: DiagnoseInputs, pair: CheckedPair, prompts: Prompts) -> None:
    used = prompts.used
    console.print(Text(f"{counted(used.used, 'prompt')} from {used.source}, {used.tokens:,} tokens"), soft_wrap=True)
    for note in inputs.notes:
        console.print(Text(note), soft_wrap=True)
    for first in used.left_out[:1]:
        more = len(used.left_out) - 1
        console.print(
            Text(f"warning: too long and left out: {first}{f', and {more} more' if more else ''}"), soft_wrap=True
        )
    if pair.tokens is not None:
        console.print(Text(ANNOUNCED), soft_wrap=True)
    for warning in pair.warnings:
        console.print(Text.assemble(("warning: ", "yellow"), warning), soft_wrap=True)


def _policy(facts: ModelFacts, pair: CheckedPair, device: str, console: "Console") -> CausalLMPolicy:
    reference: ModelReference = facts.reference
    console.print(f"loading {reference.role} {reference.model}", markup=False, soft_wrap=True)
    model = placed(load_model(facts), device)
    if pair.tokens is not None and facts is pair.teacher:
        stops = end_of_turn_ids(facts.tokenizer, facts.generation_config)
        return CausalLMPolicy(model, end_ids=stops, vocab_size=vocabulary_size(facts.tokenizer))
    return CausalLMPolicy(model, end_ids=pair.end_ids, vocab_size=pair.vocab_size)


def _used(name: str, facts: ModelFacts, policy: CausalLMPolicy) -> ModelUsed:
    return ModelUsed(
        name=name,
        model=facts.reference.model,
        commit=facts.commit,
        parameters=policy.model.num_parameters(),
        dtype=str(policy.model.dtype).removeprefix("torch."),
    )


def resolve(request: DiagnoseRequest) -> DiagnoseInputs:
    """Fill what is left open from the recipe.

    Raises:
        ConfigError: something is missing, or a name is used twice.
    """
    if request.recipe is None:
        return _without_recipe(request)
    recipe = load_recipe(request.recipe, request.overrides)
    own, note = _student_of(recipe)
    source, notes = _prompts_of(recipe, request), [note]
    if request.prompts is None and recipe.data.eval is None:
        notes.append(
            "prompts from data.train, which the student has seen in training; set data.eval, or give --prompts, for "
            "others"
        )
    return DiagnoseInputs(
        teacher=_teacher_of(recipe, request),
        students=_named([own, *(_reference(text, request) for text in request.students)]),
        prompts=source,
        output=request.output or recipe.output / "diagnosis",
        notes=tuple(notes),
    )


def _without_recipe(request: DiagnoseRequest) -> DiagnoseInputs:
    missing = [
        option
        for option, value in (
            ("--teacher", request.teacher),
            ("--student", request.students),
            ("--prompts", request.prompts),
        )
        if not value
    ]
    if missing:
        raise ConfigError(f"{', '.join(missing)} missing: give RECIPE, or --teacher, --student and --prompts.")
    if request.overrides:
        raise ConfigError("--set changes a recipe, and none is given.")
    assert request.teacher is not None
    assert request.prompts is not None
    students = _named([_reference(text, request) for text in request.students])
    name = re.sub(r"[^\w.+-]+", "-", "+".join(students))[:80].strip("-")
    return DiagnoseInputs(
        teacher=ModelReference(role="teacher", model=request.teacher, dtype=request.dtype or "auto"),
        students=students,
        prompts=_asked_for(request, request.columns),
        output=request.output or Path("runs/diagnosis") / name,
        notes=(),
    )


def _teacher_of(recipe: Recipe, request: DiagnoseRequest) -> ModelReference:
    teacher = recipe.teacher
    if teacher.prompt is not None:
        raise ConfigError(
            "teacher.prompt: diagnose has teacher and students go on from the same prompts, so the teacher is examined "
            "without what it alone is told. Say so: --set teacher.prompt=null."
        )
    if request.teacher is not None:
        return ModelReference(role="teacher", model=request.teacher, dtype=request.dtype or teacher.dtype)
    if not teacher.judges_any_text:
        raise ConfigError(
            f"{teacher.is_silent} at what the student writes, which is what is measured. Give the teacher's weights: "
            "--teacher FOLDER, or a name on the hub."
        )
    return replace(LiveModel(recipe).reference, dtype=request.dtype or teacher.dtype)


def _student_of(recipe: Recipe) -> tuple[tuple[str, ModelReference], str]:
    """The recipe's student, trained if it has been, with a line that says which.

    Trained, it is called by its objective's preset, else by the output folder's own name.
    """
    trained, section = OutputFolder(recipe.output).model, recipe.student
    begins = section.model if section.from_ is None else str(recipe.student_folder)
    reference = ModelReference(role="student", model=begins, revision=section.revision, dtype=section.dtype)
    if trained.is_dir():
        reference = replace(reference, model=str(trained), revision=None)
        name = recipe.objective.preset or model_name(reference.model)
        return (name, reference), f"the trained student in {trained}"
    if section.from_ is not None and not recipe.student_folder.is_dir():
        raise ConfigError(
            f"student.from: neither {trained} nor {begins} exists, so there is no student yet. Cut it out of the "
            "teacher (bridgegarden prune RECIPE), train it (bridgegarden train RECIPE), or name one (--student MODEL)."
        )
    note = f"{trained} does not exist: the student is {begins}, not yet trained"
    return (model_name(reference.model), reference), note


def _prompts_of(recipe: Recipe, request: DiagnoseRequest) -> PromptSource:
    if request.prompts is not None:
        return _asked_for(request, request.columns if request.columns != Columns() else columns_of(recipe.data))
    return PromptSource.of_recipe(recipe.data)


def _asked_for(request: DiagnoseRequest, columns: Columns) -> PromptSource:
    assert request.prompts is not None
    return PromptSource(sources=(Source(path=request.prompts, split=request.split),), kind="prompts", columns=columns)


def _reference(text: str, request: DiagnoseRequest) -> tuple[str, ModelReference]:
    match = NAMED.fullmatch(text)
    name, model = (match[1].strip(), match[2]) if match and not Path(text).exists() else (model_name(text), text)
    if Path(model).suffix in (".yaml", ".yml") or model in list_recipes():
        raise ConfigError(f"--student {model}: is a recipe; give its trained model, OUTPUT/model.")
    return name, ModelReference(role="student", model=model, dtype=request.dtype or "auto")


def model_name(model: str) -> str:
    """What to call a model: the end of its path or name; ``runs/hard/model`` is ``hard``."""
    path = Path(model).expanduser()
    if path.is_dir():
        path = path.resolve()
    return path.parent.name if path.name == "model" and path.parent.name else path.name or model


def _named(pairs: Sequence[tuple[str, ModelReference]]) -> dict[str, ModelReference]:
    students: dict[str, ModelReference] = {}
    for name, reference in pairs:
        if name in students or name == "teacher":
            raise ConfigError(
                f"--student {reference.model}: two models would be called {name!r}; give names: --student NAME=MODEL."
            )
        students[name] = reference
    return students


class DiagnoseDisplay(Display):
    """A bar over all phases; a :class:`~bridgegarden.diagnostics.diagnose.Watcher`.

    A phase that takes fewer tokens than were expected counts as whole once the next one begins.
    """

    def __init__(self, console: Console, total: int) -> None:
        """
        Args:
            console: where to.
            total: tokens of all phases, as far as is known.
        """
        super().__init__(console, "getting ready", max(total, 1), percent=True, lasting=False)
        self.total = max(total, 1)
        self._phase, self._planned, self._done, self._before = "", 0, 0, 0

    def begin(self, phase: str, tokens: int) -> None:
        """A phase begins, which will take about so many tokens."""
        self._before += self._planned
        self._phase, self._planned, self._done = phase, tokens, 0
        self._show(now=True)

    def advance(self, tokens: int) -> None:
        """So many tokens more are done."""
        self._done += tokens
        self._show(now=False)

    @property
    def share(self) -> float:
        """How much of everything is done, from 0 to 1."""
        return min((self._before + min(self._done, self._planned)) / self.total, 1.0)

    def _show(self, *, now: bool) -> None:
        at = f"{self._done:,} of {self._planned:,} tokens" if self._done else f"up to {self._planned:,} tokens"
        line = f"[{self.share:4.0%}] {self._phase}: {at}"
        self.update(self.share * self.total, words=self._phase, line=line, now=now)
