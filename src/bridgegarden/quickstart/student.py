"""One student of the quickstart: its data, what the teacher says about it, its training, and how it does held out.

The teacher is asked once, and what it says is kept on disk: the vocabulary is small, so all of it, in 16 bits a token.
Every objective is then what it is with the teacher itself, its temperature and entropies included. On held-out problems
accuracy, fit by role, variety and exposure bias are measured, and one answer is looked at token by token.
"""

import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import torch
from datasets import Dataset
from torch import Tensor
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    DynamicCache,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from bridgegarden.causal_lm import cache_argument
from bridgegarden.data import chat_template_fingerprint, tokenizer_fingerprint, vocabulary_size
from bridgegarden.errors import BridgegardenError
from bridgegarden.exact.process import Role, answered_row, role, trace
from bridgegarden.exact.tasks.arithmetic import ArithmeticWorld, Problem, check_answer
from bridgegarden.exact.world import END, PAD, SPECIAL_TOKENS, ask
from bridgegarden.objective.soft_weight import ConfidenceWeight, EntropyWeight, StaticWeight
from bridgegarden.objective.support import TeacherSignal
from bridgegarden.quickstart import TEACHER
from bridgegarden.quickstart.result import STUDENT_SIZE, AnswerView, Measured, QuickstartSettings, TokenView, TopTokens
from bridgegarden.statistics import Estimate
from bridgegarden.study.arms import OBJECTIVES, ComparedObjective
from bridgegarden.study.students import Distilled, Untrained, distil, new_llama
from bridgegarden.teacher.cache.manifest import read_spec
from bridgegarden.teacher.cache.shard import documents_of
from bridgegarden.teacher.cache.spec import CacheSpec, Support, weights_fingerprint
from bridgegarden.teacher.cache.writer import BuildResult, OneTeacher, build_cache
from bridgegarden.teacher.protocol import Teacher

LOGS = 10
"""How many times a training logs its loss."""


BATCH = 250
"""Answers written or scored together."""


TOP = 5
"""How many of the likeliest tokens are kept."""


RULES = {"static": StaticWeight(), "confidence": ConfidenceWeight(), "entropy": EntropyWeight()}
"""Soft weights that depend on the position at most."""


PREFERRED_WRITER = "confidence"
"""Whose answer is shown, if it was trained."""


def load_teacher() -> PreTrainedModel:
    """The packaged teacher, in float32: bfloat16 is slow on most CPUs."""
    return AutoModelForCausalLM.from_pretrained(TEACHER, dtype=torch.float32, use_safetensors=True).eval()


def load_tokenizer() -> PreTrainedTokenizerBase:
    """The packaged teacher's, and its students'."""
    return AutoTokenizer.from_pretrained(TEACHER)


def training_rows(world: ArithmeticWorld, problems: int, seed: int) -> Dataset:
    """Token ids and labels of training problems with one answer each, drawn from the process, slips included.

    The packaged teacher is within a thousandth of a nat of the process: these are the answers that it would sample.
    """
    generator = torch.Generator().manual_seed(2 * seed)
    rows = []
    for row, problem in enumerate(world.problems(problems, seed, split="train")):
        prompt = prompt_ids(world, world.prompt(problem, generator))
        rows.append(answered_row(row, prompt, world.process(problem), generator))
    return Dataset.from_list(rows)


def train_student(
    objective: ComparedObjective,
    seed: int,
    settings: QuickstartSettings,
    rows: Dataset,
    teacher: PreTrainedModel | Teacher,
    on_step: Callable[[int], None],
) -> Distilled:
    """Distil `teacher` into a new student. Depends on its arguments and the libraries' versions alone.

    Args:
        objective: what to minimise.
        seed: decides the first weights and the order of the rows; the same for every objective.
        settings: steps, batch and learning rate.
        rows: of `training_rows`.
        teacher: a model, asked at every step, or a cache of what it said about `rows`.
        on_step: called with the number of steps done.
    """
    return distil(
        Untrained(model=new_llama(ArithmeticWorld(), STUDENT_SIZE, seed), tokenizer=load_tokenizer(), seed=seed),
        teacher,
        objective.build(),
        rows,
        settings,
        on_step=on_step,
        logging_steps=max(1, settings.steps // LOGS),
        include_num_input_tokens_seen="non_padding",
    )


def keep_signals(
    folder: Path, rows: Dataset, teacher: PreTrainedModel, tokenizer: PreTrainedTokenizerBase
) -> BuildResult:
    """Ask `teacher` about what `folder` does not hold yet of `rows`; a cache of another kind there is removed first."""
    spec = signals_spec(teacher, tokenizer)
    if not _holds(folder, spec):
        shutil.rmtree(folder, ignore_errors=True)
    return build_cache(folder, OneTeacher(lambda: teacher, spec), [rows], spec)


def signals_spec(teacher: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> CacheSpec:
    """The whole vocabulary of the packaged teacher at every token."""
    size = vocabulary_size(tokenizer)
    return CacheSpec(
        teacher=TEACHER.name,
        revision=None,
        weights=weights_fingerprint(TEACHER),
        dtype=str(teacher.dtype).removeprefix("torch."),
        tokenizer=tokenizer_fingerprint(tokenizer),
        chat_template=chat_template_fingerprint(tokenizer),
        max_length=None,
        vocab_size=size,
        teacher_width=teacher.config.vocab_size,
        support=Support(k=size),
        exponents=(),
        bits=16,
    )


def tokens_asked(rows: Dataset) -> int:
    """Tokens of `rows` at which the teacher is asked; equal rows are asked once."""
    return sum(document.positions for document in {document.key: document for document in documents_of(rows)}.values())


def _holds(folder: Path, spec: CacheSpec) -> bool:
    try:
        return not read_spec(folder).differences(spec)
    except BridgegardenError:
        # Nothing there, or not ours to read: built anew.
        return False


@dataclass(frozen=True, kw_only=True)
class HeldOut:
    """Test problems, with an answer to each that the teacher sampled."""

    world: ArithmeticWorld
    """Where the problems are from."""

    seed: int
    """Decided the problems, their wordings and everything that is sampled."""

    teacher: PreTrainedModel
    """Scores every model's answers."""

    problems: list[Problem]
    """Distinct, and none of them in the training split."""

    prompts: list[list[int]]
    """Token ids that generation starts from."""

    answers: list[list[int]]
    """The teacher's, sampled at temperature 1, the end token included where it was reached."""

    roles: list[Role]
    """Of every token of `answers`, one after the other."""

    teacher_logp: Tensor
    """``(N, V)`` float64 nats: the teacher before every token of `answers`."""


class PerProblem(NamedTuple):
    """A model's values, one per held-out problem, ``(n,)`` float64. The KLs leave out problems without such a token."""

    right_sampled: Tensor
    """1 where the sampled answer is right."""
    right_greedy: Tensor
    """1 where the likeliest answer is right."""
    kl_bridge: Tensor
    """Mean KL at the Bridges of the teacher's answer."""
    kl_garden: Tensor
    """Mean KL at its Gardens."""
    garden_entropy: Tensor
    """The model's entropy summed over the Gardens of the teacher's answer."""
    teacher_garden_entropy: Tensor
    """The teacher's."""
    teacher_loss: Tensor
    """KL summed over the teacher's answer."""
    student_loss: Tensor
    """KL summed over the model's own answer."""

    def measured(self) -> Measured:
        """Means with standard errors over problems."""
        return Measured(
            accuracy_sampled=Estimate.over(self.right_sampled),
            accuracy_greedy=Estimate.over(self.right_greedy),
            kl_bridge=Estimate.over(self.kl_bridge),
            kl_garden=Estimate.over(self.kl_garden),
            diversity=Estimate.ratio(self.garden_entropy, self.teacher_garden_entropy),
            teacher_loss=Estimate.over(self.teacher_loss),
            student_loss=Estimate.over(self.student_loss),
            exposure_bias=Estimate.over(self.student_loss - self.teacher_loss),
        )


def hold_out(world: ArithmeticWorld, teacher: PreTrainedModel, problems: int, seed: int) -> HeldOut:
    """`problems` test problems with the teacher's answers."""
    drawn = world.problems(problems, seed, split="test")
    generator = torch.Generator().manual_seed(2 * seed + 1)
    prompts = [prompt_ids(world, world.prompt(problem, generator)) for problem in drawn]
    answers = whole_answers(teacher, world, drawn, prompts, torch.Generator().manual_seed(seed))
    roles: list[Role] = []
    for problem, answer in zip(drawn, answers, strict=True):
        process = world.process(problem)
        roles += [role(process, state) for state in trace(process, answer)]
    return HeldOut(
        world=world,
        seed=seed,
        teacher=teacher,
        problems=drawn,
        prompts=prompts,
        answers=answers,
        roles=roles,
        teacher_logp=answer_log_probs(teacher, prompts, answers),
    )


def examine(model: PreTrainedModel, held_out: HeldOut) -> PerProblem:
    """`model` on every held-out problem. Its own answers are drawn with the random numbers that the teacher's were."""
    world, problems, prompts = held_out.world, held_out.problems, held_out.prompts
    sampled = whole_answers(model, world, problems, prompts, torch.Generator().manual_seed(held_out.seed))
    greedy = whole_answers(model, world, problems, prompts, None)
    logp = answer_log_probs(model, prompts, held_out.answers)
    kl = _kl(held_out.teacher_logp, logp)
    own = _kl(answer_log_probs(held_out.teacher, prompts, sampled), answer_log_probs(model, prompts, sampled))
    gardens = torch.tensor([found == Role.GARDEN for found in held_out.roles])
    return PerProblem(
        right_sampled=right_answers(world, problems, sampled),
        right_greedy=right_answers(world, problems, greedy),
        kl_bridge=_mean_where(kl, torch.tensor([found == Role.BRIDGE for found in held_out.roles]), held_out.answers),
        kl_garden=_mean_where(kl, gardens, held_out.answers),
        garden_entropy=_sums(torch.where(gardens, entropy(logp), 0.0), held_out.answers),
        teacher_garden_entropy=_sums(torch.where(gardens, entropy(held_out.teacher_logp), 0.0), held_out.answers),
        teacher_loss=_sums(kl, held_out.answers),
        student_loss=_sums(own, sampled),
    )


def prompt_ids(world: ArithmeticWorld, prompt: str) -> list[int]:
    """The ids that generation starts from."""
    return ask(world.encode(prompt))


@torch.inference_mode()
def write_answers(
    model: PreTrainedModel, prompts: Sequence[list[int]], *, tokens: int, generator: torch.Generator | None = None
) -> list[list[int]]:
    """The model's answers to `prompts`, at most `tokens` long, cut before the end token.

    Args:
        model: any causal LM of `transformers`.
        prompts: token ids, as generation starts from.
        tokens: most tokens of an answer.
        generator: draws at temperature 1 from the whole distribution; None takes the likeliest token.
    """
    width = max(map(len, prompts))
    ids = torch.tensor([[PAD] * (width - len(prompt)) + prompt for prompt in prompts])
    mask = torch.tensor([[0] * (width - len(prompt)) + [1] * len(prompt) for prompt in prompts])
    positions = (mask.cumsum(-1) - 1).clamp(min=0)
    written = torch.empty(len(prompts), 0, dtype=torch.long)
    ended = torch.zeros(len(prompts), dtype=torch.bool)
    # One that the model makes would have to be read off its output, where it goes by two names.
    named = {cache_argument(model): DynamicCache(config=model.config)}
    while written.shape[1] < tokens and not ended.all():
        output = model(input_ids=ids, attention_mask=mask, position_ids=positions, use_cache=True, **named)
        logits = output.logits[:, -1].float()
        chosen = logits.argmax(-1, keepdim=True)
        if generator is not None:
            chosen = torch.multinomial(logits.softmax(-1), 1, generator=generator)
        ids = chosen.masked_fill(ended[:, None], END)
        ended = ended | (ids[:, 0] == END)
        written = torch.cat([written, ids], 1)
        mask = torch.cat([mask, torch.ones_like(ids)], 1)
        positions = positions[:, -1:] + 1
    return [row[: row.index(END)] if END in row else row for row in written.tolist()]


def whole_answers(
    model: PreTrainedModel,
    world: ArithmeticWorld,
    problems: Sequence[Problem],
    prompts: Sequence[list[int]],
    generator: torch.Generator | None,
) -> list[list[int]]:
    """The answers of `model`, each with its end token unless the horizon cut it off; `generator` as `write_answers`."""
    horizon = world.process(problems[0]).horizon
    answers: list[list[int]] = []
    for start in range(0, len(prompts), BATCH):
        answers += write_answers(model, prompts[start : start + BATCH], tokens=horizon, generator=generator)
    return [answer if len(answer) == horizon else [*answer, END] for answer in answers]


@torch.inference_mode()
def answer_log_probs(model: PreTrainedModel, prompts: Sequence[list[int]], answers: Sequence[list[int]]) -> Tensor:
    """``(N, V)`` float64 nats: `model` before each of the N answer tokens, one answer after the other."""
    found = []
    for start in range(0, len(prompts), BATCH):
        pairs = list(zip(prompts[start : start + BATCH], answers[start : start + BATCH], strict=True))
        width = max(len(prompt) + len(answer) for prompt, answer in pairs)
        ids = torch.tensor([prompt + answer + [PAD] * (width - len(prompt + answer)) for prompt, answer in pairs])
        logits = model(input_ids=ids, attention_mask=(ids != PAD).long(), use_cache=False).logits
        for row, (prompt, answer) in enumerate(pairs):
            first = len(prompt) - 1
            found.append(logits[row, first : first + len(answer)].double().log_softmax(-1))
    return torch.cat(found)


def entropy(logp: Tensor) -> Tensor:
    """``(*batch, V)`` nats to ``(*batch,)`` nats."""
    return -torch.where(logp > -torch.inf, logp.exp() * logp, 0.0).sum(-1)


def _kl(teacher_logp: Tensor, logp: Tensor) -> Tensor:
    return (teacher_logp.exp() * (teacher_logp - logp)).sum(-1)


def right_answers(world: ArithmeticWorld, problems: Sequence[Problem], answers: Sequence[list[int]]) -> Tensor:
    """``(n,)`` float64: 1 where an answer is right."""
    right = [check_answer(problem, world.decode(answer)) for problem, answer in zip(problems, answers, strict=True)]
    return torch.tensor(right, dtype=torch.float64)


def _sums(values: Tensor, answers: Sequence[list[int]]) -> Tensor:
    """Sum over the tokens of each answer."""
    owner = torch.repeat_interleave(torch.tensor([len(answer) for answer in answers]))
    return torch.zeros(len(answers), dtype=torch.float64).index_add_(0, owner, values.double())


def _mean_where(values: Tensor, mask: Tensor, answers: Sequence[list[int]]) -> Tensor:
    """Mean over the tokens of each answer where `mask` holds; answers without any are left out."""
    counts = _sums(mask, answers)
    return (_sums(torch.where(mask, values, 0.0), answers) / counts)[counts > 0]


def view_answer(students: Mapping[str, PreTrainedModel], held_out: HeldOut) -> AnswerView:
    """An answer to the first held-out problem, sampled from one of `students` (keys of `OBJECTIVES`)."""
    writer = PREFERRED_WRITER if PREFERRED_WRITER in students else next(iter(students))
    problem, prompt = held_out.problems[0], held_out.prompts[0]
    generator = torch.Generator().manual_seed(held_out.seed)
    answer = whole_answers(students[writer], held_out.world, [problem], [prompt], generator)[0]
    process = held_out.world.process(problem)
    roles = [role(process, state) for state in trace(process, answer)]
    teacher_logp = answer_log_probs(held_out.teacher, [prompt], [answer])
    logps = {name: answer_log_probs(student, [prompt], [answer]) for name, student in students.items()}
    signal = TeacherSignal.from_logits(teacher_logp)
    weights = {name: rule(signal) for name, rule in RULES.items()}
    vocabulary = held_out.world.vocabulary
    views = [
        TokenView(
            text=vocabulary[token],
            role=roles[position].value,
            soft_weights={name: weight[position].item() for name, weight in weights.items()},
            teacher_top=_top(teacher_logp[position], vocabulary),
            student_tops={name: _top(logp[position], vocabulary) for name, logp in logps.items()},
            student_surprise={name: -logp[position, token].item() for name, logp in logps.items()},
        )
        for position, token in enumerate(answer)
        if token != END
    ]
    asked = held_out.world.decode([token for token in prompt if token >= len(SPECIAL_TOKENS)])
    return AnswerView(prompt=asked, tokens=tuple(views), written_by=OBJECTIVES[writer].label)


def _top(logp: Tensor, vocabulary: tuple[str, ...]) -> TopTokens:
    probabilities, ids = logp.exp().topk(TOP)
    return tuple((vocabulary[i], p) for i, p in zip(ids.tolist(), probabilities.tolist(), strict=True))
