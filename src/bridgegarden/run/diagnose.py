"""A pair of models to its diagnosis: what ``bridgegarden diagnose`` does."""

import platform
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn
from rich.text import Text

from bridgegarden.causal_lm_policy import CausalLMPolicy
from bridgegarden.data import end_of_turn_ids
from bridgegarden.data.audit import TokenTexts
from bridgegarden.diagnostics.diagnose import diagnose
from bridgegarden.diagnostics.diagnosis import Diagnosis, DiagnosisSettings, ModelUsed
from bridgegarden.files import write_json
from bridgegarden.preflight import ModelFacts, ModelReference, check_endings, compare_tokenizers, load_facts
from bridgegarden.report.diagnosis import write_diagnosis
from bridgegarden.run.diagnose_inputs import DiagnoseInputs, DiagnoseRequest, Prompts, read_prompts, resolve
from bridgegarden.run.models import load_model, usable_device
from bridgegarden.run.output import check_writable, write_or_rescue
from bridgegarden.run.quiet import quiet_libraries
from bridgegarden.run.record import now, package_versions
from bridgegarden.terminal import TimeLeft, counted

if TYPE_CHECKING:
    from rich.console import Console
    from transformers import PreTrainedTokenizerBase
EVERY = 10.0
"""Seconds between lines where there is no terminal."""


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
        total = len(prompts.ids) * settings.samples * settings.max_new_tokens * len(policies)
        with DiagnoseDisplay(console, total + settings.budget * len(pair.students)) as display:
            findings = diagnose(
                policies[0],
                dict(zip(pair.students, policies[1:], strict=True)),
                prompts.ids,
                settings,
                vocab_size=pair.vocab_size,
                reader=TokenTexts(pair.tokenizer, shared_size=pair.vocab_size),
                watcher=display,
            )
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
        versions={
            "python": sys.version.split()[0],
            "platform": platform.platform(),
            **package_versions(),
        },
    )
    write_or_rescue(files.folder, lambda folder: _write(DiagnosisFiles(folder), diagnosis))
    return diagnosis, files


def _write(files: DiagnosisFiles, diagnosis: Diagnosis) -> None:
    write_json(files.result, diagnosis.to_dict())
    write_diagnosis(diagnosis, files.report)


def _check(inputs: DiagnoseInputs) -> CheckedPair:
    teacher = load_facts(inputs.teacher)
    students = {name: load_facts(reference) for name, reference in inputs.students.items()}
    matches = [compare_tokenizers(teacher, facts) for facts in students.values()]
    endings = [check_endings(teacher, facts) for facts in students.values()]
    vocab_size = min(match.vocab_size for match in matches)
    stops = [index for ending in endings for index in ending.stops]
    stops += end_of_turn_ids(teacher.tokenizer, teacher.generation_config)
    warnings = [text for part in (*endings, *matches) for text in part.warnings]
    return CheckedPair(
        teacher=teacher,
        students=students,
        tokenizer=endings[0].tokenizer,
        vocab_size=vocab_size,
        end_ids=tuple(dict.fromkeys(index for index in stops if index < vocab_size)),
        warnings=tuple(dict.fromkeys(warnings)),
    )


def _prompts(inputs: DiagnoseInputs, pair: CheckedPair, limit: int | None, settings: DiagnosisSettings) -> Prompts:
    return read_prompts(
        inputs.prompts,
        pair.tokenizer,
        room=None if pair.window is None else pair.window - settings.max_new_tokens,
        vocab_size=pair.vocab_size,
        limit=limit,
    )


def _tell(console: "Console", inputs: DiagnoseInputs, pair: CheckedPair, prompts: Prompts) -> None:
    from rich.text import Text

    used = prompts.used
    console.print(Text(f"{counted(used.used, 'prompt')} from {used.source}, {used.tokens:,} tokens"), soft_wrap=True)
    for note in inputs.notes:
        console.print(Text(note), soft_wrap=True)
    for first in used.left_out[:1]:
        more = len(used.left_out) - 1
        console.print(
            Text(f"warning: too long and left out: {first}{f', and {more} more' if more else ''}"), soft_wrap=True
        )
    for warning in pair.warnings:
        console.print(Text.assemble(("warning: ", "yellow"), warning), soft_wrap=True)


def _policy(facts: ModelFacts, pair: CheckedPair, device: str, console: "Console") -> CausalLMPolicy:
    reference: ModelReference = facts.reference
    console.print(f"loading {reference.role} {reference.model}", markup=False, soft_wrap=True)
    model = load_model(facts)
    model.to(device)  # pyright: ignore[reportArgumentType]
    return CausalLMPolicy(model, end_ids=pair.end_ids, vocab_size=pair.vocab_size)


def _used(name: str, facts: ModelFacts, policy: CausalLMPolicy) -> ModelUsed:
    return ModelUsed(
        name=name,
        model=facts.reference.model,
        commit=facts.commit,
        parameters=policy.model.num_parameters(),
        dtype=str(policy.model.dtype).removeprefix("torch."),
    )


class DiagnoseDisplay:
    """A bar on a terminal, plain lines elsewhere; a :class:`~bridgegarden.diagnostics.diagnose.Watcher`.

    A context manager. A phase that takes fewer tokens than were expected counts as whole once the next one begins.
    """

    def __init__(self, console: Console, total: int) -> None:
        """
        Args:
            console: where to.
            total: tokens of all phases, as far as is known.
        """
        self.console, self.total = console, max(total, 1)
        self.interactive = console.is_terminal and not console.is_dumb_terminal
        self._phase, self._planned, self._done, self._before = "", 0, 0, 0
        self._spoke = time.monotonic()
        self._clock = TimeLeft(self.total)
        self._bar = Progress(
            TextColumn("{task.description}", markup=False),
            BarColumn(bar_width=None),
            TaskProgressColumn(),
            TextColumn("{task.fields[left]}", markup=False),
            console=console,
            transient=True,
            disable=not self.interactive,
        )
        self._task = self._bar.add_task("", total=self.total, left="")

    def __enter__(self) -> "DiagnoseDisplay":
        self._bar.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self._bar.stop()

    def begin(self, phase: str, tokens: int) -> None:
        """A phase begins, which will take about so many tokens."""
        self._before += self._planned
        self._phase, self._planned, self._done = phase, tokens, 0
        self._show(force=True)

    def advance(self, tokens: int) -> None:
        """So many tokens more are done."""
        self._done += tokens
        self._show(force=False)

    @property
    def share(self) -> float:
        """How much of everything is done, from 0 to 1."""
        return min((self._before + min(self._done, self._planned)) / self.total, 1.0)

    def _show(self, *, force: bool) -> None:
        self._clock.update(self.share * self.total)
        left = self._clock.text()
        self._bar.update(self._task, description=self._phase, completed=self.share * self.total, left=left)
        now = time.monotonic()
        if self.interactive or (not force and now - self._spoke < EVERY):
            return
        self._spoke = now
        at = f"{self._done:,} of {self._planned:,} tokens" if self._done else f"up to {self._planned:,} tokens"
        self.console.print(Text(f"[{self.share:4.0%}] {self._phase}: {at}{left and ', ' + left}"), soft_wrap=True)
