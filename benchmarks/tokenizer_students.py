"""Students with tokenizers that are not their teacher's, trained by each kind of label and by TRL's GOLD, and measured.

    python benchmarks/tokenizer_students.py FOLDER [--tokenizer parts] [--seeds 0 1 2] [--arms soft gold ...]
        [--rehearse]
    python docs/results/write_tokenizers.py FOLDER

The packaged word-level teacher and the quickstart's rows; a student of the quickstart's size whose byte-level BPE cuts
words in parts, or writes several words as one token (phrases). As students in use have learnt from texts before they
are distilled, one that was trained on the rows' text is where all trainings of a seed begin. Trainings that FOLDER
holds already are not repeated.
"""

import argparse
import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, cast

import torch
from datasets import Dataset
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers
from torch import Tensor
from transformers import LlamaForCausalLM, PreTrainedModel, PreTrainedTokenizerFast, Trainer, TrainingArguments
from trl.experimental.gold.gold_config import GOLDConfig
from trl.experimental.gold.gold_trainer import ULDLoss

from bridgegarden.exact.tasks.arithmetic import ArithmeticWorld, check_answer
from bridgegarden.exact.world import END, PAD, SPECIAL_TOKENS, ask
from bridgegarden.objective.alignment import IGNORE, SupervisedPositions
from bridgegarden.objective.support import TeacherSignal
from bridgegarden.quickstart.result import STUDENT_SIZE, QuickstartSettings
from bridgegarden.quickstart.student import (
    answer_log_probs,
    entropy,
    load_teacher,
    load_tokenizer,
    training_rows,
    write_answers,
)
from bridgegarden.study.arms import OBJECTIVES
from bridgegarden.study.students import Untrained, distil, new_llama
from bridgegarden.teacher.translation.byte_view import ByteView
from bridgegarden.teacher.translation.translate import Shares, Translated, Translation

LONGEST = 160
"""Tokens of an answer, at most."""
OURS = ("hard", "hard_data", "soft", "confidence", "static")
GOLD: Mapping[str, tuple[str, dict[str, Any]]] = {
    "gold": ("GOLD, as it is", {}),
    "gold_shifted": ("GOLD, bayesian", {"uld_token_merge_strategy": "bayesian"}),
    "gold_ends": (
        "GOLD, bayesian, with the end",
        {"uld_token_merge_strategy": "bayesian", "uld_skip_student_eos": False, "uld_skip_teacher_eos": False},
    ),
    "gold_hard": (
        "GOLD, bayesian, with the end and cross-entropy",
        {
            "uld_token_merge_strategy": "bayesian",
            "uld_skip_student_eos": False,
            "uld_skip_teacher_eos": False,
            "uld_crossentropy_weight": 1.0,
        },
    ),
}
"""Settings of TRL's GOLD, by what they change of its defaults."""
ARMS = (*OURS, *GOLD)
TOKENIZERS = {"parts": (340, True), "phrases": (400, False)}
"""Size of the vocabulary, and whether texts are cut at words before they are merged."""


@dataclass(frozen=True, kw_only=True)
class Plan:
    """How long everything is."""

    before: QuickstartSettings
    """How a student learns from texts alone."""
    then: QuickstartSettings
    """How it is distilled."""


WHOLE = Plan(
    before=QuickstartSettings(steps=700),
    then=QuickstartSettings(steps=150, learning_rate=1e-3, test_problems=300),
)
REHEARSAL = Plan(
    before=QuickstartSettings(steps=2, batch=4, train_problems=20),
    then=QuickstartSettings(steps=2, batch=4, train_problems=20, test_problems=4),
)
"""Shows that everything runs, and nothing else."""


def student_tokenizer(name: str, texts: Sequence[str]) -> PreTrainedTokenizerFast:
    """Byte-level BPE of `texts`, with the special tokens of the teacher under their ids."""
    size, cut = TOKENIZERS[name]
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=cut)
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=size,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        special_tokens=[AddedToken(token, special=True) for token in SPECIAL_TOKENS],
        max_token_length=None if cut else 24,
        show_progress=False,
    )
    backend.train_from_iterator(texts, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=backend, eos_token=SPECIAL_TOKENS[END], pad_token=SPECIAL_TOKENS[PAD], padding_side="right"
    )


class Pair:
    """The teacher, its rows, and the same rows in the tokens of a student."""

    def __init__(self, name: str, seed: int, plan: Plan) -> None:
        self.plan = plan
        self.world, self.name, self.seed = ArithmeticWorld(), name, seed
        self.teacher, tokenizer = load_teacher(), load_tokenizer()
        self.theirs = ByteView(cast(PreTrainedTokenizerFast, tokenizer), name="teacher")
        taught = training_rows(self.world, plan.then.train_problems, seed)
        self.answers = [[i for i in labels if i != IGNORE] for labels in taught["labels"]]
        self.asked = [
            ids[: len(ids) - len(answer)] for ids, answer in zip(taught["input_ids"], self.answers, strict=True)
        ]
        # The tokenizer is the same for all seeds: it is a part of the pair, not of a training.
        first = training_rows(self.world, plan.then.train_problems, 0)
        texts = [self.text([i for i in labels if i != IGNORE]) for labels in first["labels"]]
        self.tokenizer = student_tokenizer(name, texts)
        self.ours = ByteView(self.tokenizer, end=END, name="student")
        self.prompts = [self.prompt(ids) for ids in self.asked]
        self.targets = [self.written(answer) for answer in self.answers]

    def ask(self, folder: Path) -> None:
        """What the teacher says of every answer, once for all trainings of a seed."""
        kept = folder / f"teacher-{self.seed}.pt"
        if not kept.exists():
            began = time.process_time()
            logp = answer_log_probs(self.teacher, self.asked, self.answers).float()
            torch.save((logp, time.process_time() - began), kept)
        self.told, self.asking = torch.load(kept)

    def text(self, ids: Sequence[int]) -> str:
        """What the teacher's `ids` write: a space before each word."""
        return self.theirs.join([i for i in ids if i >= len(SPECIAL_TOKENS)]).decode()

    def prompt(self, ids: Sequence[int]) -> list[int]:
        """The same question, between the same marks."""
        return ask(self.ours.encode(self.text(ids).encode()) or [])

    def written(self, ids: Sequence[int]) -> list[int]:
        """The same answer, with its end."""
        return [*(self.ours.encode(self.text(ids).encode()) or []), END]

    def rows(self) -> Dataset:
        """What the student reads."""
        pairs = zip(self.prompts, self.targets, strict=True)
        return Dataset.from_list([{"input_ids": p + t, "labels": [IGNORE] * len(p) + t} for p, t in pairs])

    def student(self, folder: Path) -> PreTrainedModel:
        """Of the quickstart's size, trained on the rows' text; once for all trainings of a seed."""
        kept = folder / f"{self.name}-before-{self.seed}"
        if not kept.exists():
            config = new_llama(self.world, STUDENT_SIZE, self.seed).config
            config.vocab_size, config.max_position_embeddings = len(self.ours), 512
            with torch.random.fork_rng():
                torch.manual_seed(self.seed)
                model = LlamaForCausalLM(config)
            student = Untrained(model=model, tokenizer=self.tokenizer, seed=100 + self.seed)
            teacher, objective = TranslatedRows(self), OBJECTIVES["hard_data"].build()
            done = distil(
                student, teacher, objective, self.rows(), self.plan.before, on_step=lambda step: None, logging_steps=50
            )
            done.model.save_pretrained(kept)
        return LlamaForCausalLM.from_pretrained(kept)

    def read(self, ids: Sequence[int]) -> str:
        """What the student's `ids` say, in the world's writing."""
        return self.world.decode(self.world.encode(self.ours.join(ids).decode(errors="replace")))


class TranslatedRows:
    """What the teacher says of all rows, in the student's tokens: a `Teacher`."""

    name = "packaged, translated"

    def __init__(self, pair: Pair) -> None:
        logp = pair.told
        signal = TeacherSignal.from_logits(logp)
        signal = signal.with_labels(logp, torch.tensor([i for answer in pair.answers for i in answer]))
        began = time.process_time()
        translated: Translated = Translation(pair.theirs, pair.ours)(signal, pair.answers, pair.targets)
        self.translating = time.process_time() - began
        self.shares: Shares = translated.shares()
        found = translated.signal
        self.signal = replace(
            found,
            logp=found.logp.float(),
            **{name: getattr(found, name).float() for name in ("log_tail", "entropy", "max_logp", "label_logp")},
        )
        self.width = len(pair.ours)
        self._at: dict[tuple[int, ...], int] = {}
        place = 0
        for prompt, target in zip(pair.prompts, pair.targets, strict=True):
            self._at[(*prompt, *target)] = place
            place += len(target)

    def place(self, student_device: torch.device) -> None:
        """It is where the students are."""

    def at(
        self,
        positions: SupervisedPositions,
        inputs: Mapping[str, Any],
        *,
        vocab_size: int,
        exponents: tuple[float, ...],
    ) -> TeacherSignal:
        """See `Teacher`. A hard-only position's signal is the text's token, which every weight makes a hard label."""
        chosen = []
        counts = torch.bincount(positions.row, minlength=len(inputs["input_ids"])).tolist()
        for ids, count in zip(inputs["input_ids"].tolist(), counts, strict=True):
            while ids[-1] == PAD:
                ids.pop()
            start = self._at[tuple(ids)]
            chosen.append(torch.arange(start, start + count))
        return self.signal[torch.cat(chosen)]


def offsets(view: ByteView, ids: Sequence[int]) -> list[tuple[int, int]]:
    """Where each token's bytes begin and end; the end of the turn is nothing."""
    found, at = [], 0
    for index in ids:
        stop = at + (0 if index == END else len(view.tokens[index]))
        found.append((at, stop))
        at = stop
    return found


class GoldTrainer(Trainer):
    """GOLD's loss on the teacher's rows, of which the teacher was asked before, and none of the student's own texts."""

    def __init__(self, pair: Pair, loss: ULDLoss, arguments: TrainingArguments, model: PreTrainedModel) -> None:
        self.pair, self.loss = pair, loss
        numbers = Dataset.from_list([{"row": row} for row in range(len(pair.prompts))])
        self.logp = pair.told.split([len(answer) for answer in pair.answers])
        super().__init__(model, arguments, train_dataset=numbers, data_collator=self.batch)

    def batch(self, numbers: list[dict[str, int]]) -> dict[str, Tensor]:
        """Both models' tokens of the same rows."""
        pair, chosen = self.pair, [number["row"] for number in numbers]
        sides = {
            "": (pair.ours, [(pair.prompts[row], pair.targets[row]) for row in chosen]),
            "teacher_": (pair.theirs, [(pair.asked[row], pair.answers[row]) for row in chosen]),
        }
        found = {}
        for side, (view, rows) in sides.items():
            width = max(len(p) + len(t) for p, t in rows)
            ids, labels = torch.full((len(rows), width), PAD), torch.full((len(rows), width), IGNORE)
            bytes_at = torch.zeros(len(rows), width, 2, dtype=torch.long)
            for line, (prompt, target) in enumerate(rows):
                whole = len(prompt) + len(target)
                ids[line, :whole] = torch.tensor(prompt + target)
                labels[line, len(prompt) : whole] = torch.tensor(target)
                bytes_at[line, len(prompt) : whole] = torch.tensor(offsets(view, target))
            found |= {f"{side}input_ids": ids, f"{side}labels": labels, f"{side}offsets": bytes_at}
        told = torch.zeros(*found["teacher_input_ids"].shape, self.logp[0].shape[-1])
        for line, row in enumerate(chosen):
            first = len(pair.asked[row]) - 1
            told[line, first : first + len(self.logp[row])] = self.logp[row]
        return found | {"told": told}

    def compute_loss(self, model: Any, inputs: dict[str, Tensor], *args: Any, **kwargs: Any) -> Any:
        """As `GOLDTrainer` has it."""
        ids, theirs = inputs["input_ids"], inputs["teacher_input_ids"]
        logits = model(input_ids=ids, attention_mask=(ids != PAD).long()).logits
        return self.loss(
            logits,
            inputs["told"],
            inputs["labels"],
            inputs["teacher_labels"],
            ids,
            theirs,
            student_byte_offsets=inputs["offsets"],
            teacher_byte_offsets=inputs["teacher_offsets"],
        )


def train_gold(pair: Pair, arm: str, folder: Path) -> tuple[PreTrainedModel, float]:
    """A student, and processor seconds."""
    model, settings = pair.student(folder), pair.plan.then
    loss = ULDLoss(
        GOLDConfig(str(folder / "gold"), use_cpu=True, bf16=False, use_uld_loss=True, **GOLD[arm][1]),
        student_tokenizer=pair.tokenizer,
        teacher_tokenizer=load_tokenizer(),
    )
    arguments = TrainingArguments(
        str(folder / "gold"),
        max_steps=settings.steps,
        per_device_train_batch_size=settings.batch,
        learning_rate=settings.learning_rate,
        lr_scheduler_type="cosine",
        warmup_steps=max(1, settings.steps // 20),
        adam_beta2=0.95,
        weight_decay=0.01,
        seed=pair.seed,
        use_cpu=True,
        remove_unused_columns=False,
        dataloader_pin_memory=False,
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
    )
    began = time.process_time()
    GoldTrainer(pair, loss, arguments, model).train()
    model.config.use_cache = True
    return model.eval(), time.process_time() - began


def measure(pair: Pair, model: PreTrainedModel, own: bool) -> dict[str, Any]:
    """A model on held-out problems; `own` is the teacher with its own tokens."""
    world, count = pair.world, pair.plan.then.test_problems
    problems = world.problems(count, 1000 + pair.seed, split="test")
    generator = torch.Generator().manual_seed(pair.seed)
    asked = [world.prompt_ids(problem, generator) for problem in problems]
    prompts = asked if own else [pair.prompt(ids) for ids in asked]
    drawn = torch.Generator().manual_seed(pair.seed)
    sampled = write_answers(model, prompts, tokens=LONGEST, generator=drawn)
    greedy = write_answers(model, prompts, tokens=LONGEST)
    read = world.decode if own else pair.read
    told = write_answers(pair.teacher, asked, tokens=LONGEST, generator=torch.Generator().manual_seed(7 + pair.seed))
    reference = [[*answer, END] if own else pair.written(answer) for answer in told]
    logp = answer_log_probs(model, prompts, reference)
    ids = torch.tensor([i for answer in reference for i in answer])
    spread = entropy(answer_log_probs(model, prompts, [[*answer, END] for answer in sampled])).sum().item()
    return {
        "greedy": [int(check_answer(p, read(a))) for p, a in zip(problems, greedy, strict=True)],
        "sampled": [int(check_answer(p, read(a))) for p, a in zip(problems, sampled, strict=True)],
        "entropy": spread / count,
        "loss": -logp.gather(1, ids[:, None]).sum().item() / count,
    }


def train(folder: Path, name: str, seeds: Sequence[int], arms: Sequence[str], plan: Plan) -> None:
    """Everything that `folder` does not hold yet."""
    folder.mkdir(parents=True, exist_ok=True)
    for seed in seeds:
        wanted = [arm for arm in ("teacher", "before", *arms) if not (folder / f"{name}-{arm}-{seed}.json").exists()]
        if not wanted:
            continue
        pair = Pair(name, seed, plan)
        pair.ask(folder)
        rows, told = pair.rows(), TranslatedRows(pair)
        facts = {
            "settings": {key: getattr(plan.then, key) for key in ("steps", "batch", "learning_rate", "train_problems")},
            "steps before": plan.before.steps,
            "shares": told.shares._asdict(),
            "asking": pair.asking,
            "translating": told.translating,
            "vocabulary": len(pair.ours),
            "tokens": sum(map(len, pair.targets)) / len(pair.targets),
            "words": sum(map(len, pair.answers)) / len(pair.answers),
        }
        for arm in wanted:
            seconds = 0.0
            if arm in ("teacher", "before"):
                found = measure(pair, pair.teacher if arm == "teacher" else pair.student(folder), own=arm == "teacher")
            else:
                if arm in GOLD:
                    model, seconds = train_gold(pair, arm, folder)
                else:
                    student = Untrained(model=pair.student(folder), tokenizer=pair.tokenizer, seed=seed)
                    done = distil(
                        student,
                        told,
                        OBJECTIVES[arm].build(),
                        rows,
                        plan.then,
                        on_step=lambda step: None,
                        logging_steps=50,
                    )
                    model, seconds = done.model, done.cpu_seconds
                found = measure(pair, model, own=False)
            found |= {"tokenizer": name, "arm": arm, "seed": seed, "seconds": seconds, **facts}
            (folder / f"{name}-{arm}-{seed}.json").write_text(json.dumps(found), encoding="utf-8")
            right = {key: sum(found[key]) / len(found[key]) for key in ("greedy", "sampled")}
            print(
                name,
                arm,
                seed,
                right,
                f"entropy {found['entropy']:.2f} loss {found['loss']:.2f} {seconds:.0f} s",
                flush=True,
            )


def main() -> None:
    """Train what is wanted."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--tokenizer", default="parts", choices=list(TOKENIZERS))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--arms", nargs="+", default=list(ARMS), choices=ARMS)
    parser.add_argument("--rehearse", action="store_true", help="a few steps and rows, to see that it runs")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    train(
        arguments.folder,
        arguments.tokenizer,
        arguments.seeds,
        arguments.arms,
        REHEARSAL if arguments.rehearse else WHOLE,
    )


if __name__ == "__main__":
    main()
