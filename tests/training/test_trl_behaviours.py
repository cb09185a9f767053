"""What people do with TRL's ``SFTTrainer``, done with ours: it works, or is refused in one line that says why."""

import json
import math
import re
from dataclasses import fields
from inspect import signature
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset, DatasetDict, IterableDatasetDict
from transformers import EarlyStoppingCallback, TrainerCallback, TrainingArguments
from trl.trainer.sft_config import SFTConfig
from trl.trainer.sft_trainer import DataCollatorForLanguageModeling, SFTTrainer

from bridgegarden.data import Columns
from bridgegarden.errors import BridgegardenError, ConfigError
from bridgegarden.training.trainer import HybridDistillationTrainer
from tests.tiny import save_tiny, tiny_model, tiny_tokenizer

peft = pytest.importorskip("peft")
# transformers has new names for what people still write.
pytestmark = pytest.mark.filterwarnings("ignore:`gradient_checkpointing:FutureWarning")

QUESTION = [{"role": "user", "content": "one and one?"}]
ANSWER = [{"role": "assistant", "content": "two"}]
FORMATS: dict[str, dict[str, Any]] = {
    "text": {"text": "one and one is two"},
    "messages": {"messages": QUESTION + ANSWER},
    "prompt and completion": {"prompt": "one and one is", "completion": " two"},
    "turns of prompt and completion": {"prompt": QUESTION, "completion": ANSWER},
}


def rows(count: int = 8, kind: str = "text") -> Dataset:
    return Dataset.from_list([FORMATS[kind]] * count)


QUIET: dict[str, Any] = {
    "max_steps": 2,
    "per_device_train_batch_size": 4,
    "learning_rate": 1e-2,
    "lr_scheduler_type": "constant",
    "logging_steps": 1,
    "save_strategy": "no",
    "report_to": [],
    "bf16": False,
    "use_cpu": True,
    "disable_tqdm": True,
    "gradient_checkpointing": False,
}


def trainer_of(
    folder, *, train: Any = None, student: Any = None, args: Any = None, config: dict[str, Any] | None = None, **options
):
    if args is None:
        args = SFTConfig(**(QUIET | {"output_dir": str(folder / "trainer"), "max_length": 64} | (config or {})))
    return HybridDistillationTrainer(
        student or tiny_model("llama", 264, seed=2),
        tiny_model("llama", 264, seed=1),
        args=args,
        train_dataset=rows() if train is None else train,
        processing_class=tiny_tokenizer(),
        **options,
    )


def assert_trains(trainer: HybridDistillationTrainer) -> None:
    """The loss is a number, and what should be trained moves, all of it."""
    before = {name: p.detach().clone() for name, p in trainer.model.named_parameters() if p.requires_grad}
    trainer.train()
    assert math.isfinite(trainer.state.log_history[-1]["train_loss"])
    after = dict(trainer.model.named_parameters())
    assert before
    assert [name for name, value in before.items() if torch.equal(after[name], value)] == []


def test_transformers_own_arguments_are_taken(tmp_path):
    args = TrainingArguments(**(QUIET | {"output_dir": str(tmp_path / "trainer"), "learning_rate": 3e-3}))
    args.hub_token = "hf_secret"
    trainer = trainer_of(tmp_path, args=args)
    assert isinstance(trainer.args, SFTConfig)
    assert (trainer.args.learning_rate, trainer.args.hub_token) == (3e-3, "hf_secret")
    assert trainer.args.max_length == SFTConfig.__dataclass_fields__["max_length"].default
    assert_trains(trainer)


def test_arguments_of_transformers_that_contradict_the_objective_are_refused_too(tmp_path):
    args = TrainingArguments(output_dir=str(tmp_path), use_cpu=True, report_to=[], label_smoothing_factor=0.1)
    with pytest.raises(ConfigError, match=r"training\.label_smoothing_factor"):
        trainer_of(tmp_path, args=args)


@pytest.mark.parametrize("kind", FORMATS)
def test_rows_of_every_format_train(tmp_path, kind):
    assert_trains(trainer_of(tmp_path, train=rows(kind=kind)))


def test_a_student_by_its_path_is_loaded_in_the_dtype_that_is_asked_for(tmp_path):
    save_tiny(tmp_path / "student", tiny_model("llama", 264, seed=2))
    config = {"model_init_kwargs": {"dtype": "bfloat16"}, "learning_rate": 0.1}
    trainer = trainer_of(tmp_path, student=str(tmp_path / "student"), config=config)
    assert {p.dtype for p in trainer.model.parameters()} == {torch.bfloat16}
    assert_trains(trainer)


def test_a_function_makes_texts_of_rows(tmp_path):
    data = Dataset.from_list([{"question": "1 + 1", "answer": "2"}] * 8)
    trainer = trainer_of(tmp_path, train=data, formatting_func=lambda row: f"{row['question']} = {row['answer']}")
    assert tiny_tokenizer().decode(trainer.train_dataset[0]["input_ids"]).startswith("1 + 1 = 2")
    assert_trains(trainer)


def test_a_stream_trains(tmp_path):
    assert_trains(trainer_of(tmp_path, train=rows().to_iterable_dataset()))


def test_rows_with_ids_and_labels_train_as_they_are(tmp_path):
    data = Dataset.from_list([{"input_ids": [5, 6, 7, 8], "labels": [-100, -100, 7, 8]}] * 8)
    trainer = trainer_of(tmp_path, train=data)
    assert trainer.train_dataset[0]["labels"] == [-100, -100, 7, 8]
    assert_trains(trainer)


def test_long_rows_are_cut(tmp_path):
    trainer = trainer_of(tmp_path, config={"max_length": 9})
    assert {len(ids) for ids in trainer.train_dataset["input_ids"]} == {9}


@pytest.mark.parametrize("given", ["configuration", "model"])
@pytest.mark.parametrize("reentrant", [None, True, False])
def test_adapters_train_with_and_without_gradient_checkpointing(tmp_path, given, reentrant):
    adapters = peft.LoraConfig(task_type="CAUSAL_LM", target_modules=["q_proj", "v_proj"], init_lora_weights=False)
    config = {} if reentrant is None else {"gradient_checkpointing": True}
    if reentrant is not None:
        config["gradient_checkpointing_kwargs"] = {"use_reentrant": reentrant}
    student = tiny_model("llama", 264, seed=2)
    base = {name: p.detach().clone() for name, p in student.named_parameters()}
    if given == "model":
        trainer = trainer_of(tmp_path, student=peft.get_peft_model(student, adapters), config=config)
    else:
        trainer = trainer_of(tmp_path, student=student, peft_config=adapters, config=config)
    assert_trains(trainer)
    for name, value in trainer.model.get_base_model().named_parameters():
        if "lora" not in name:
            assert torch.equal(value, base[name.replace(".base_layer", "")]), name


@pytest.mark.parametrize("reentrant", [True, False])
def test_gradient_checkpointing_changes_nothing(tmp_path, reentrant):
    config = {"gradient_checkpointing": True, "gradient_checkpointing_kwargs": {"use_reentrant": reentrant}}
    plain, saving = trainer_of(tmp_path), trainer_of(tmp_path, config=config)
    plain.train()
    saving.train()
    for ours, theirs in zip(saving.model.parameters(), plain.model.parameters(), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("packs", [None, False])
def test_evaluation_rows_are_packed_as_training_rows_are_unless_told_otherwise(tmp_path, packs):
    config = {"packing": True, "max_length": 64, "eval_packing": packs}
    trainer = trainer_of(tmp_path, train=rows(), eval_dataset=rows(), config=config)
    assert len(trainer.train_dataset) < 8
    assert len(trainer.eval_dataset) == (len(trainer.train_dataset) if packs is None else 8)
    assert_trains(trainer)
    assert math.isfinite(trainer.evaluate()["eval_loss"])


def test_rows_without_padding_train_as_rows_with_it(tmp_path):
    data = Dataset.from_list([{"text": "x" * (3 + number)} for number in range(8)])
    losses = []
    for padding_free in (False, True):
        trainer = trainer_of(tmp_path, train=data, config={"padding_free": padding_free, "max_length": None})
        trainer.train()
        losses.append([entry["loss"] for entry in trainer.state.log_history if "loss" in entry])
    assert losses[1] == pytest.approx(losses[0], rel=1e-5)


def held_out(container: str) -> Any:
    data = rows(4)
    parts = {"first": data, "second": data}
    match container:
        case "rows":
            return data
        case "stream":
            return data.to_iterable_dataset()
        case "dictionary":
            return parts
        case "dictionary of streams":
            return {name: part.to_iterable_dataset() for name, part in parts.items()}
        case "DatasetDict":
            return DatasetDict(parts)
    return IterableDatasetDict({name: part.to_iterable_dataset() for name, part in parts.items()})


CONTAINERS = ("rows", "stream", "dictionary", "dictionary of streams", "DatasetDict", "IterableDatasetDict")


@pytest.mark.parametrize("when", ["given to the trainer", "given to evaluate"])
@pytest.mark.parametrize("container", CONTAINERS)
def test_evaluation_takes_rows_in_any_container(tmp_path, container, when):
    data = held_out(container)
    early = when == "given to the trainer"
    trainer = trainer_of(tmp_path, eval_dataset=data if early else None)
    expected = trainer_of(tmp_path, eval_dataset=rows(4)).evaluate()["eval_loss"]
    metrics = trainer.evaluate() if early else trainer.evaluate(data)
    names = ("eval_loss",) if container in ("rows", "stream") else ("eval_first_loss", "eval_second_loss")
    assert [metrics[name] for name in names] == pytest.approx([expected] * len(names))


def test_the_best_model_is_found_and_training_stopped_by_a_name_that_trl_logs(tmp_path):
    config = {
        **{"eval_strategy": "steps", "eval_steps": 1, "save_strategy": "steps", "save_steps": 1, "max_steps": 6},
        **{"load_best_model_at_end": True, "metric_for_best_model": "eval_mean_token_accuracy", "learning_rate": 0.0},
    }
    trainer = trainer_of(tmp_path, eval_dataset=rows(4), config=config, callbacks=[EarlyStoppingCallback(2)])
    trainer.train()
    assert trainer.state.global_step == 3
    assert trainer.state.best_metric == trainer.state.log_history[1]["eval_mean_token_accuracy"]
    assert trainer.state.best_model_checkpoint.endswith("checkpoint-1")


def test_metrics_of_ones_own_are_added_by_a_callback(tmp_path):
    class Own(TrainerCallback):
        def on_evaluate(self, args, state, control, metrics, **kwargs):
            metrics["eval_twice"] = 2 * metrics["eval_loss"]

    trainer = trainer_of(tmp_path, eval_dataset=rows(4), callbacks=[Own()])
    metrics = trainer.evaluate()
    assert metrics["eval_twice"] == 2 * metrics["eval_loss"]


@pytest.mark.parametrize("name", ["compute_metrics", "preprocess_logits_for_metrics", "compute_loss_func"])
def test_functions_of_logits_are_refused(tmp_path, name):
    with pytest.raises(ConfigError, match=name.split("_logits")[0].replace("preprocess", "compute_metrics")):
        trainer_of(tmp_path, **{name: lambda *_: {}})


@pytest.mark.parametrize("strategy", ["wrapped", "bfd_split"])
def test_packing_that_cuts_documents_is_refused(tmp_path, strategy):
    with pytest.raises(ConfigError, match=r"training\.packing_strategy.*Use 'bfd'"):
        trainer_of(tmp_path, config={"packing": True, "packing_strategy": strategy})


def own_options() -> set[str]:
    theirs = {field.name for field in fields(SFTConfig)} - {field.name for field in fields(TrainingArguments)}
    return theirs | (set(signature(SFTTrainer.__init__).parameters) - {"self"})


def documented_options() -> dict[str, str]:
    """What docs/trainer.md says of each option, in tables."""
    page = (Path(__file__).parents[2] / "docs" / "trainer.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| (`[^|]*) \| ([^|]*) \|", page, re.MULTILINE)
    return {name: here for options, here in rows for name in re.findall(r"`(\w+)", options)}


def test_every_option_of_trl_s_trainer_is_documented():
    assert own_options() - set(documented_options()) == set()


TRAINS, REFUSED = True, False
TRIED: dict[str, list[tuple[dict[str, Any], bool]]] = {
    "activation_offloading": [({}, REFUSED)],
    "assistant_only_loss": [({}, REFUSED), ({"train": "messages"}, TRAINS)],
    "chat_template_path": [({"chat_template_path": "template.jinja", "train": "messages"}, TRAINS)],
    "completion_only_loss": [({}, REFUSED), ({"train": "prompt and completion"}, TRAINS)],
    "dataset_kwargs": [({"dataset_kwargs": {"evil": 1}}, REFUSED), ({"dataset_kwargs": {}}, TRAINS)],
    "dataset_num_proc": [({"dataset_num_proc": 2}, TRAINS)],
    "dataset_text_field": [({"dataset_text_field": "text"}, TRAINS)],
    "eos_token": [({"eos_token": "<|im_end|>"}, TRAINS), ({"eos_token": "<|im_start|>", "train": "messages"}, REFUSED)],
    "eval_packing": [({}, REFUSED), ({"packing": True}, TRAINS)],
    "loss_type": [({"loss_type": "dft"}, REFUSED), ({"loss_type": "nll"}, TRAINS)],
    "max_length": [({"max_length": 1}, REFUSED), ({"max_length": 8}, TRAINS), ({"max_length": None}, TRAINS)],
    "model_init_kwargs": [({"model_init_kwargs": {}}, TRAINS)],
    "packing": [({}, TRAINS), ({"max_length": None}, REFUSED)],
    "packing_strategy": [({"packing_strategy": "wrapped", "packing": True}, REFUSED)],
    "pad_to_multiple_of": [({"pad_to_multiple_of": 7}, TRAINS)],
    "pad_token": [({"pad_token": "<|im_end|>"}, TRAINS)],
    "padding_free": [({}, TRAINS), ({"max_length": None}, TRAINS)],
    "router_aux_loss_coef": [({"router_aux_loss_coef": 0.0}, TRAINS)],
    "shuffle_dataset": [({}, TRAINS)],
    "truncation_mode": [({"truncation_mode": "keep_end"}, TRAINS), ({"truncation_mode": "evil"}, REFUSED)],
    "trust_remote_code": [({}, TRAINS)],
}
"""By field, what is set (the field to True, if it is not named) and what comes of it."""


@pytest.mark.filterwarnings("ignore:.*deprecated and will be removed:FutureWarning")
@pytest.mark.parametrize("name", sorted({field.name for field in fields(SFTConfig)} & own_options()))
def test_an_option_does_what_the_docs_say(tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    Path("template.jinja").write_text(str(tiny_tokenizer().chat_template), encoding="utf-8")
    said = documented_options()[name]
    for given, trains in TRIED[name]:
        config = {name: True, **given}
        train = rows(kind=config.pop("train", "text"))
        if trains:
            assert any(word in said for word in ("honoured", "no effect", "`dft` refused")), said
            assert_trains(trainer_of(tmp_path, train=train, config=config))
            continue
        assert "refused" in said
        with pytest.raises(BridgegardenError, match=name):
            trainer_of(tmp_path, train=train, config=config)


def test_rows_without_padding_are_cut_to_the_length_limit_and_train_as_padded_ones(tmp_path):
    data = Dataset.from_list([{"text": "x" * (3 + 4 * number)} for number in range(8)])
    losses = []
    for config in ({}, {"padding_free": True}, {"padding_free": True, "pad_to_multiple_of": 16}):
        trainer = trainer_of(tmp_path, train=data, eval_dataset=data, config={"max_length": 16, **config})
        assert max(map(len, trainer.train_dataset["input_ids"])) == 16 == trainer.args.max_length
        trainer.train()
        losses.append([entry["loss"] for entry in trainer.state.log_history if "loss" in entry])
        losses[-1].append(trainer.evaluate(data.select(range(4, 8)))["eval_loss"])
    assert losses[1] == pytest.approx(losses[0], rel=1e-5)
    assert losses[2] == pytest.approx(losses[0], rel=1e-5)


@pytest.mark.filterwarnings("ignore:`pad_token` is deprecated:FutureWarning")
@pytest.mark.parametrize("token", ["<|endoftext|>", "<|im_end|>", "a"])
def test_what_pads_is_neither_read_nor_learnt(tmp_path, token):
    data = Dataset.from_list([{"text": "ab" * (3 + number)} for number in range(8)])
    trainer, plain = (trainer_of(tmp_path, train=data, config=config) for config in ({"pad_token": token}, {}))
    assert trainer.data_collator.collator.pad_token_id == tiny_tokenizer().convert_tokens_to_ids(token)
    for one in (trainer, plain):
        one.train()
    assert trainer.state.log_history[0]["loss"] == plain.state.log_history[0]["loss"]


SKIP: dict[str, Any] = {"dataset_kwargs": {"skip_prepare_dataset": True}}
IDS = {"input_ids": [5, 6, 7, 8], "labels": [-100, -100, 7, 8]}


def test_rows_that_are_not_to_be_prepared_train_as_they_are(tmp_path):
    data = Dataset.from_list([IDS, {"input_ids": [5, 6, 7], "labels": [-100, 6, 7]}] * 4)
    losses = []
    for config in ({}, SKIP):
        trainer = trainer_of(tmp_path, train=data, eval_dataset=data, config=config)
        assert ("row" in trainer.train_dataset.column_names) == (config == {})
        trainer.train()
        losses.append([entry["loss"] for entry in trainer.state.log_history if "loss" in entry])
        losses[-1].append(trainer.evaluate()["eval_loss"])
    assert losses[0] == losses[1]


def test_rows_that_a_transform_makes_are_trained_on_where_none_are_prepared(tmp_path):
    data = rows()
    data.set_transform(lambda batch: {name: [value] * len(batch["text"]) for name, value in IDS.items()})
    assert_trains(trainer_of(tmp_path, train=data, config={**SKIP, "remove_unused_columns": False}))


@pytest.mark.parametrize(
    ("config", "options", "words"),
    [
        ({"shuffle_dataset": True}, {}, r"training\.dataset_kwargs: .* training\.shuffle_dataset would be ignored"),
        ({}, {"columns": Columns(text="text")}, r"training\.dataset_kwargs: .* columns would be ignored"),
        ({}, {"formatting_func": str}, r"training\.dataset_kwargs: .* formatting_func would be ignored"),
        ({}, {"train": rows()}, r"train data: has text, but no 'input_ids'"),
        ({}, {"eval_dataset": rows()}, r"eval data: has text, but no 'input_ids'"),
    ],
)
def test_what_would_be_ignored_where_no_rows_are_prepared_is_refused(tmp_path, config, options, words):
    with pytest.raises(BridgegardenError, match=words):
        trainer_of(tmp_path, **{"train": Dataset.from_list([IDS] * 8), "config": {**SKIP, **config}, **options})


@pytest.mark.parametrize("config", [{"pad_to_multiple_of": 8}, {"pad_token": "<|im_end|>"}])
@pytest.mark.filterwarnings("ignore:`pad_token` is deprecated:FutureWarning")
def test_padding_is_not_set_beside_a_collator_that_pads(tmp_path, config):
    with pytest.raises(ConfigError, match=rf"training\.{next(iter(config))}: is up to data_collator"):
        trainer_of(tmp_path, config=config, data_collator=DataCollatorForLanguageModeling(0))


def test_a_number_of_processes_is_told_to_make_no_difference(tmp_path, caplog):
    trainer_of(tmp_path, config={"dataset_num_proc": 2})
    assert "training.dataset_num_proc: makes no difference" in caplog.text


def test_training_rows_are_required(tmp_path):
    with pytest.raises(ValueError, match="`train_dataset` is required"):
        HybridDistillationTrainer(
            tiny_model("llama", 264),
            tiny_model("llama", 264, seed=1),
            args=SFTConfig(**QUIET, output_dir=str(tmp_path)),
        )


@pytest.mark.parametrize("adapters", [False, True])
def test_the_model_is_tagged(tmp_path, adapters):
    options = {"peft_config": peft.LoraConfig(task_type="CAUSAL_LM", target_modules=["q_proj"])} if adapters else {}
    trainer = trainer_of(tmp_path, **options)
    assert {"bridgegarden", "distillation"} <= set(trainer.model.model_tags)


def test_a_checkpoint_is_gone_on_from(tmp_path):
    config = {"save_strategy": "steps", "save_steps": 2, "max_steps": 4}
    whole = trainer_of(tmp_path, config=config)
    whole.train()
    resumed = trainer_of(tmp_path, config=config)
    resumed.train(resume_from_checkpoint=str(tmp_path / "trainer" / "checkpoint-2"))
    for ours, theirs in zip(resumed.model.parameters(), whole.model.parameters(), strict=True):
        assert torch.equal(ours, theirs)
    logged = [trainer.state.log_history[-2]["num_tokens"] for trainer in (whole, resumed)]
    assert logged[0] == logged[1]


def test_a_checkpoint_whose_log_window_has_other_sums_is_gone_on_from_with_a_word(tmp_path, caplog):
    config = {"save_strategy": "steps", "save_steps": 1, "max_steps": 2, "logging_steps": 2}
    whole = trainer_of(tmp_path, config=config)
    whole.train()
    checkpoint = tmp_path / "trainer" / "checkpoint-1"
    window = json.loads((checkpoint / "log_window_0.json").read_text())
    window["terms"].pop()
    (checkpoint / "log_window_0.json").write_text(json.dumps(window))
    resumed = trainer_of(tmp_path, config=config)
    resumed.train(resume_from_checkpoint=str(checkpoint))
    assert "checkpoint-1: written by another version, which logged other terms" in caplog.text
    for ours, theirs in zip(resumed.model.parameters(), whole.model.parameters(), strict=True):
        assert torch.equal(ours, theirs)
    first, line = (trainer.state.log_history[-2] for trainer in (whole, resumed))
    assert line["loss"] == first["loss"]
    assert line["supervised_tokens"] == first["supervised_tokens"] / 2
