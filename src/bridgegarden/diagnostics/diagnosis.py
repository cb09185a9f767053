"""Everything that one diagnosis found, as the page, the terminal and JSON show it."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, get_args

import torch
from torch import Tensor

from bridgegarden.data.audit import Piece
from bridgegarden.diagnostics.acceptance import DraftModel, check_cost_ratio
from bridgegarden.diagnostics.advise import Advice, soft_weights
from bridgegarden.diagnostics.attribution import Attribution
from bridgegarden.diagnostics.exposure_bias import ExposureBias, StudentDifference
from bridgegarden.diagnostics.fit_probe import FittedProbe
from bridgegarden.diagnostics.kappa import Choice, KappaResult, PositionKappa
from bridgegarden.diagnostics.kappa_across import Agreement
from bridgegarden.diagnostics.label_losses import LabelLosses
from bridgegarden.diagnostics.rollout import RollOuts, Sampling, walk
from bridgegarden.diagnostics.verdict import Verdict
from bridgegarden.errors import ConfigError, lookup
from bridgegarden.objective.divergences import DIVERGENCES, Divergence
from bridgegarden.policy import Policy
from bridgegarden.statistics import to_plain

TOP = 5
"""Likeliest tokens of each model at every place."""


class Reader(Protocol):
    """Token ids to text; :class:`~bridgegarden.data.audit.TokenTexts` is one."""

    def text(self, ids: Sequence[int]) -> str:
        """The text of several tokens."""
        ...

    def token(self, index: int) -> Piece:
        """A token in the middle of a text."""
        ...

    def pieces(self, before: Sequence[int], ids: Sequence[int]) -> list[Piece]:
        """Each of `ids`, which follow `before`."""
        ...

    def is_special(self, index: int) -> bool:
        """Whether a token is no text but a sign, such as the end of one."""
        ...


@dataclass(frozen=True)
class Likely:
    """One token that a model finds likely."""

    token: int
    """Its id."""
    prob: float
    """Its probability, at temperature 1."""


@dataclass(frozen=True, kw_only=True)
class ShownToken:
    """One token of a text, and what was thought before it was written."""

    token: int
    """Its id."""
    piece: Piece
    """Its text."""
    teacher_top: tuple[Likely, ...]
    """The teacher's likeliest tokens, in falling order."""
    student_top: tuple[Likely, ...]
    """The student's."""
    teacher_entropy: float
    """Nats, at temperature 1."""
    student_surprise: float
    """Minus the log-probability of the token under the student, nats."""
    loss: float
    """l(s), nats."""
    soft_weights: Mapping[str, float]
    r"""What each of `RULES` would take for :math:`\lambda` here."""
    kappa: PositionKappa | None
    """None where it was not measured."""


@dataclass(frozen=True, kw_only=True)
class ShownText:
    """One text."""

    text: int
    """Its number among the student's texts."""
    prompt: int
    """Number of its prompt."""
    prompt_text: str
    """What it was written from, special tokens included."""
    tokens: tuple[ShownToken, ...]
    """In order."""


@dataclass(frozen=True, kw_only=True)
class CostlyDraw:
    """One of the attribution's draws with the largest costs, in words."""

    text: int
    """Number of the student's text."""
    position: int
    """Tokens of the text before it."""
    before: str
    """The end of what stood before it."""
    student_token: Piece
    """A token that the student takes more often than the teacher."""
    teacher_token: Piece
    """One that the teacher takes more often."""
    cost: float
    """Later loss after the student's token minus that after the teacher's, nats; a single sample."""


@dataclass(frozen=True, kw_only=True)
class DiagnosisSettings:
    """How a pair is diagnosed."""

    samples: int = 2
    """Texts of each prompt that each model writes, >= 1."""
    temperature: float = 1.0
    """Of everything that is written, >= 0. The loss is at temperature 1."""
    max_new_tokens: int = 128
    """Most tokens of a text, >= 1."""
    budget: int = 200_000
    """Tokens to generate for kappa and attribution, for each student; what the texts themselves take comes on top."""
    positions: Choice = "random"
    """Which positions kappa is measured at: a random sample of all texts (which stands for them), all of them in order,
    or those of the highest teacher entropy first."""
    rounds: int = 8
    """Continuations of each action, >= 2."""
    top: int = 2
    """Likeliest tokens of each model in the action set of kappa, >= 1."""
    shown: int = 3
    """Texts of each student to look at token by token, >= 0."""
    divergence: str = "forward_kl"
    """D of the loss, by its name in recipes; without settings of its own."""
    max_rows: int = 32
    """Texts in progress at a time, >= 1; numbers depend on it by rounding alone."""
    cost_ratio: float | None = None
    """Time of a token of a student over that of one of the teacher, for its worth as a draft model; None takes the
    ratio of their parameters."""
    seed: int = 0
    """Of everything that is drawn."""

    def __post_init__(self) -> None:
        least = {"samples": 1, "temperature": 0, "max_new_tokens": 1, "budget": 1, "rounds": 2, "top": 1, "shown": 0}
        for name, bound in {**least, "max_rows": 1}.items():
            if not getattr(self, name) >= bound:
                raise ConfigError(f"diagnosis.{name} must be >= {bound}, got {getattr(self, name)}.")
        if self.cost_ratio is not None:
            check_cost_ratio(self.cost_ratio, "diagnosis.cost_ratio")
        if self.positions not in get_args(Choice):
            raise ConfigError(f"diagnosis.positions must be 'all', 'random' or 'uncertain', got {self.positions!r}.")
        lookup(DIVERGENCES, self.divergence, field="diagnosis.divergence")
        if self.divergence == "alpha_beta":
            raise ConfigError("diagnosis.divergence: alpha_beta needs two exponents; take one that needs none.")

    @property
    def sampling(self) -> Sampling:
        """How the texts of all models are written."""
        return Sampling(
            samples=self.samples,
            temperature=self.temperature,
            max_new_tokens=self.max_new_tokens,
            divergence=self.loss,
            max_rows=self.max_rows,
        )

    @property
    def loss(self) -> Divergence:
        """The function that `divergence` names."""
        return lookup(DIVERGENCES, self.divergence, field="diagnosis.divergence")


@dataclass(frozen=True, kw_only=True)
class StudentDiagnosis:
    """One student."""

    name: str
    """What it is called here."""
    exposure_bias: ExposureBias
    """What it loses on its own texts and on the teacher's."""
    draft_model: DraftModel | None
    """What it is worth as a draft model, from the same texts; None where the teacher has another tokenizer."""
    label_losses: LabelLosses | None
    """What it and the teacher lose on the answers of the rows; None where there are none."""
    kappa: KappaResult | None
    """Bridges and Gardens on its own texts; None if interrupted before, or where it is defined at no place."""
    shown_kappa: KappaResult | None
    """The same for the positions of `texts` alone; None where `kappa` covers them, or if interrupted before."""
    attribution: Attribution | None
    """Where its exposure bias comes from; None if interrupted before."""
    advice: Advice | None
    """Which rule for the soft weight suits; None without `kappa`."""
    probe: FittedProbe | None
    """A rule fitted on `kappa`, and whether it is worth using; None without `kappa`."""
    texts: tuple[ShownText, ...]
    """Some of its own texts, token by token."""
    largest: tuple[CostlyDraw, ...]
    """What cost most among the attribution's draws, largest first."""
    known: Mapping[str, Mapping[str, float]] | None = None
    """On ``teacher_texts`` and ``student_texts``, how much is known of a teacher with another tokenizer
    (:data:`~bridgegarden.teacher.translated.SHARES`); None where all is."""
    agreement: Agreement | None = None
    """At how many of its tokens kappa is defined, of a teacher with another tokenizer; None if interrupted before."""

    @property
    def generated_tokens(self) -> int:
        """Tokens of all continuations."""
        parts = (self.kappa, self.shown_kappa, self.attribution)
        return sum(part.generated_tokens for part in parts if part is not None)


@dataclass(frozen=True, kw_only=True)
class Phase:
    """One part of the work."""

    name: str
    """What was done."""
    seconds: float
    """How long it took."""


@dataclass(frozen=True, kw_only=True)
class Cost:
    """What a diagnosis took."""

    written: int
    """Tokens that a model wrote: texts and continuations."""
    distributions: int
    """Next-token distributions that were computed, of all models, beyond those of prefixes that were read at once."""
    read: int
    """Tokens of prefixes that models read at once."""
    phases: tuple[Phase, ...]
    """Part by part, in order; loading is not one of them."""

    @property
    def seconds(self) -> float:
        """Of all phases."""
        return sum(phase.seconds for phase in self.phases)


@dataclass(frozen=True, kw_only=True)
class Findings:
    """What was measured; `Diagnosis` adds where it comes from."""

    students: tuple[StudentDiagnosis, ...]
    """In the order given."""
    differences: tuple[StudentDifference, ...]
    """Every pair of students on the same prompts; empty for one student."""
    tokens: Mapping[int, str]
    """The text of every token id that is named in `students`."""
    cost: Cost
    """What it took."""
    interrupted: str | None
    """The phase that was interrupted; what came after it is missing. None for a whole diagnosis."""


@dataclass(frozen=True, kw_only=True)
class ModelUsed:
    """A model that took part."""

    name: str
    """What it is called here."""
    model: str
    """Its folder, or its name on the hub."""
    commit: str | None
    """Its commit on the hub; None for a folder."""
    parameters: int
    """Weights, tied ones once."""
    dtype: str
    """Of the weights."""


@dataclass(frozen=True, kw_only=True)
class PromptsUsed:
    """What the models wrote from."""

    source: str
    """File, folder or name on the hub."""
    used: int
    """Prompts."""
    left_out: tuple[str, ...]
    """Rows that are too long for the models, and why."""
    tokens: int
    """Tokens of all prompts."""


@dataclass(frozen=True, kw_only=True)
class Diagnosis:
    """One diagnosis, whole."""

    teacher: ModelUsed
    """Whose distribution is imitated."""
    students: tuple[ModelUsed, ...]
    """In the order of `findings.students`."""
    prompts: PromptsUsed
    """What was written from."""
    settings: DiagnosisSettings
    """How."""
    vocab_size: int
    """Tokens that all models share."""
    findings: Findings
    """What came out."""
    warnings: tuple[str, ...]
    """What may be wrong with the pair, as far as it shows before anything is loaded."""
    command: str
    """What was typed."""
    started: str
    """When, in UTC."""
    device: str
    """Where the models ran."""
    versions: Mapping[str, str]
    """Python, the platform, packages."""

    @property
    def translated(self) -> bool:
        """Whether the teacher has another tokenizer than the students, so that a part alone can be measured."""
        return any(student.known is not None for student in self.findings.students)

    def cost_ratio(self, name: str) -> float:
        """Time of a token of the student `name` over that of one of the teacher: as given, or by their parameters."""
        if self.settings.cost_ratio is not None:
            return self.settings.cost_ratio
        student = next(used for used in self.students if used.name == name)
        return student.parameters / self.teacher.parameters

    def verdict(self, student: StudentDiagnosis) -> Verdict:
        """What it comes to."""
        return Verdict.of(
            bias=student.exposure_bias,
            draft_model=student.draft_model,
            advice=student.advice,
            losses=student.label_losses,
            cost_ratio=self.cost_ratio(student.name),
        )

    def to_dict(self) -> dict[str, Any]:
        """As JSON can hold it; estimates with their 95% intervals."""
        tree = to_plain(self, leave_out=("findings",))
        found = to_plain(self.findings, leave_out=("students",))
        students = [
            to_plain(student, leave_out=("exposure_bias", "draft_model", "probe"))
            | {"exposure_bias": student.exposure_bias.to_dict(), "draft_model": self._draft_model(student)}
            | {"probe": None if student.probe is None else student.probe.to_dict()}
            | {"verdict": to_plain(self.verdict(student))}
            for student in self.findings.students
        ]
        found["cost"]["seconds"] = self.findings.cost.seconds
        return {**tree, "findings": {"students": students, **found}}

    def _draft_model(self, student: StudentDiagnosis) -> dict[str, Any] | None:
        """With the speed-up of every draft."""
        model, ratio = student.draft_model, self.cost_ratio(student.name)
        if model is None:
            return None
        tree = to_plain(model) | {"cost_ratio": ratio, "fastest": model.fastest(ratio).drafted}
        for name in ("teacher_texts", "student_texts"):
            for draft, one in zip(getattr(model, name).drafts, tree[name]["drafts"], strict=True):
                one["speed_up"] = to_plain(draft.speed_up(ratio))
        return tree


def show_texts(
    teacher: Policy,
    student: Policy,
    texts: RollOuts,
    numbers: Sequence[int],
    kappas: Sequence[PositionKappa],
    *,
    vocab_size: int,
    reader: Reader,
) -> tuple[ShownText, ...]:
    """Look at the texts `numbers` of the only student in `texts`.

    Args:
        teacher: p.
        student: q.
        texts: written by the student.
        numbers: which of them.
        kappas: of any positions, under the numbers that texts and prompts have in `texts`.
        vocab_size: real vocabulary, for the entropy rule.
        reader: ids to text.
    """
    if not numbers:
        return ()
    measured = {(place.text, place.position): place for place in kappas}
    tops = _tops([teacher, student], texts.part(numbers))
    weights = soft_weights(texts.teacher_entropy, texts.teacher_max_prob, vocab_size)
    found = []
    for row, number in enumerate(numbers):
        prompt, ids = texts.prompts[number // texts.samples], texts.tokens[number]
        tokens = tuple(
            ShownToken(
                token=ids[at],
                piece=piece,
                teacher_top=tops[row][at][0],
                student_top=tops[row][at][1],
                teacher_entropy=texts.teacher_entropy[number, at].item(),
                student_surprise=-texts.student_logp[0, number, at].item(),
                loss=texts.losses[0, number, at].item(),
                soft_weights={name: weight[number, at].item() for name, weight in weights.items()},
                kappa=measured.get((number, at)),
            )
            for at, piece in enumerate(reader.pieces(prompt, ids))
        )
        found.append(
            ShownText(text=number, prompt=number // texts.samples, prompt_text=reader.text(prompt), tokens=tokens)
        )
    return tuple(found)


def _tops(policies: Sequence[Policy], texts: RollOuts) -> list[list[list[tuple[Likely, ...]]]]:
    """For each text, position and policy its likeliest tokens."""
    given = torch.tensor([[*ids, *[0] * (texts.horizon - len(ids))] for ids in texts.tokens])
    found: list[list[list[tuple[Likely, ...]]]] = [[] for _ in texts.tokens]
    steps = walk(
        [policy.start(texts.prompts) for policy in policies],
        torch.arange(len(texts.tokens)),
        limits=texts.lengths,
        given=given,
    )
    for visit in steps:
        for row, number in enumerate(visit.rows.tolist()):
            found[number].append([likeliest(logp[row]) for logp in visit.logp])
    return found


def likeliest(logp: Tensor) -> tuple[Likely, ...]:
    """The `TOP` likeliest of ``(V,)`` log-probabilities, in falling order."""
    best = logp.topk(min(TOP, len(logp)))
    probs = best.values.exp().tolist()
    return tuple(Likely(token, prob) for token, prob in zip(best.indices.tolist(), probs, strict=True))
