"""Launches that would not do what was asked, and the same rows in whatever they are kept."""

import json
from types import SimpleNamespace

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from accelerate.utils import DistributedType
from datasets import Dataset, IterableDataset
from trl import SFTConfig

from bridgegarden.data import Columns, load_rows
from bridgegarden.errors import ConfigError, DataError, ModelError
from bridgegarden.teacher.live import LiveTeacher
from bridgegarden.training import arguments
from bridgegarden.training.arguments import check_arguments, check_launch, launcher_processes, row_rules
from bridgegarden.training.batches import prepare
from bridgegarden.training.models import check_same_teacher
from tests.tiny import tiny_model, tiny_tokenizer


def accelerator(kind=DistributedType.NO, processes=1, gather=lambda value: value):
    return SimpleNamespace(distributed_type=kind, num_processes=processes, device=torch.device("cpu"), gather=gather)


@pytest.mark.parametrize(
    ("kind", "environment", "fsdp"),
    [
        (DistributedType.MULTI_CPU, {"ACCELERATE_USE_FSDP": "true"}, False),
        (DistributedType.MULTI_CPU, {}, True),
        (DistributedType.NO, {"ACCELERATE_USE_DEEPSPEED": "true"}, False),
    ],
)
def test_sharding_that_accelerate_left_out_is_refused(kind, environment, fsdp):
    asked = "DEEPSPEED" if "ACCELERATE_USE_DEEPSPEED" in environment else "FSDP"
    found = rf"launch: {asked} was asked for, but accelerate runs this as {kind.value} on 2 process"
    with pytest.raises(ConfigError, match=found):
        check_launch(accelerator(kind, 2), fsdp=fsdp, environment=environment)


def test_a_launch_that_is_as_it_was_asked_for_passes():
    check_launch(accelerator(DistributedType.FSDP, 8), fsdp=True, environment={"ACCELERATE_USE_FSDP": "true"})
    check_launch(accelerator(DistributedType.MULTI_CPU, 2), environment={"WORLD_SIZE": "2"})
    check_launch(accelerator(), environment={"ACCELERATE_USE_FSDP": "false"})


def test_one_process_where_several_were_asked_for_is_refused(monkeypatch):
    with pytest.raises(ConfigError, match="2 processes were asked for, but this one runs alone"):
        check_launch(accelerator(), environment={"WORLD_SIZE": "2"})
    command = ["python", "/bin/accelerate", "launch", "--cpu", "--num_processes", "3", "-m", "bridgegarden", "train"]
    monkeypatch.setattr(arguments, "_parent", lambda: command)
    with pytest.raises(ConfigError, match=r"3 processes .* torchrun --nproc_per_node 3"):
        check_launch(accelerator(), environment={})


@pytest.mark.parametrize(
    ("command", "processes"),
    [
        ("python /bin/accelerate launch --num_processes 4 train.py", 4),
        ("accelerate-launch launch --num-processes=2 train.py", 2),
        ("accelerate launch train.py", 1),
        ("accelerate launch --num_processes", 1),
        ("make launch --num_processes 4", 1),
        ("", 1),
    ],
)
def test_how_many_processes_a_command_line_asks_for(command, processes):
    assert launcher_processes(command.split()) == processes


def test_a_teacher_that_differs_between_processes_is_refused():
    teacher = LiveTeacher(tiny_model("llama", 264, seed=1))
    check_same_teacher(teacher, accelerator(processes=2, gather=lambda said: said.repeat(2)))
    other = accelerator(processes=2, gather=lambda said: torch.cat([said, 2 * said]))
    with pytest.raises(ModelError, match="not the same in every process"):
        check_same_teacher(teacher, other)


def test_a_teacher_whose_weights_are_in_another_process_is_refused():
    model = tiny_model("llama", 264)
    with pytest.raises(ModelError, match="its weights are not in this process"):
        LiveTeacher(model.to("meta"))
    split = tiny_model("llama", 264)
    # As DeepSpeed marks a parameter of which it has taken the rest away.
    split.lm_head.weight.ds_status = SimpleNamespace(name="NOT_AVAILABLE")
    with pytest.raises(ModelError, match="load the teacher before them"):
        LiveTeacher(split)


CHATS = [("What is 2 + 2?", "4"), ("Name a colour,\nplease.", "Blue, «or» green."), ("é", "ß")]
TEXTS = ["plain text", "more of it <|endoftext|> and a second document", "é"]


def chat(question, answer):
    return [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]


def settings(**arguments):
    return SFTConfig("unused", bf16=False, use_cpu=True, report_to="none", **arguments)


def rows_of(dataset, tokenizer, columns=None, formatting_func=None, **arguments):
    """Ids and labels of every row, as the trainer prepares them."""
    args = settings(**arguments)
    rules = row_rules(args, columns, formatting_func)
    prepared = prepare(dataset, tokenizer, rules, args, packing=False, name="train")
    return [(list(row["input_ids"]), list(row["labels"])) for row in prepared]


@pytest.fixture(scope="module")
def chatml():
    return tiny_tokenizer()


@pytest.fixture(scope="module")
def plain():
    return tiny_tokenizer(chat_template=False)


def expected(question, answer):
    """Written out by hand: ids of bytes, and only the answer with its end token learnt."""
    tokenizer = tiny_tokenizer(chat_template=False)
    before = tokenizer(f"<|im_start|>user\n{question}<|im_end|>\n<|im_start|>assistant\n")["input_ids"]
    after = tokenizer(f"{answer}<|im_end|>")["input_ids"]
    return before + after, [-100] * len(before) + after


def masked(question, answer, name):
    ids, labels = expected(question, answer)
    if name == "labels":
        return {"input_ids": ids, "labels": labels}
    return {"input_ids": ids, name: [int(label != -100) for label in labels]}


def sharegpt(question, answer):
    return {"conversations": [{"from": "human", "value": question}, {"from": "gpt", "value": answer}]}


SHAPES = {
    "messages": (lambda q, a: {"messages": chat(q, a)}, None),
    "messages beside text": (lambda q, a: {"messages": chat(q, a), "text": "note"}, None),
    "messages beside prompt": (lambda q, a: {"messages": chat(q, a), "prompt": "other", "completion": "other"}, None),
    "messages under another name": (lambda q, a: {"talk": chat(q, a), "text": "note"}, Columns(messages="talk")),
    "pair of messages": (lambda q, a: {"prompt": chat(q, a)[:1], "completion": chat(q, a)[1:]}, None),
    "pair beside text": (lambda q, a: {"prompt": chat(q, a)[:1], "completion": chat(q, a)[1:], "text": "note"}, None),
    "conversations": (lambda q, a: {"conversations": chat(q, a)}, None),
    "ShareGPT": (sharegpt, None),
    "ShareGPT beside text": (lambda q, a: {**sharegpt(q, a), "id": "x", "text": "note"}, None),
    "Alpaca": (lambda q, a: {"instruction": q, "input": "", "output": a, "text": "note"}, None),
    "named columns": (lambda q, a: {"q": q, "a": a, "text": "note"}, Columns(prompt="q", completion="a")),
    "ids and labels": (lambda q, a: masked(q, a, "labels"), None),
    "ids and a completion mask": (lambda q, a: masked(q, a, "completion_mask"), None),
    "ids and assistant masks": (lambda q, a: masked(q, a, "assistant_masks"), None),
}


def jsonl(rows, folder):
    path = folder / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return load_rows(str(path))


def parquet(rows, folder):
    pq.write_table(pa.Table.from_pylist(rows), folder / "rows.parquet")
    return load_rows(str(folder / "rows.parquet"))


def saved(rows, folder):
    Dataset.from_list(rows).save_to_disk(str(folder / "saved"))
    return load_rows(str(folder / "saved"))


CONTAINERS = {
    "in memory": lambda rows, folder: Dataset.from_list(rows),
    "torch format": lambda rows, folder: Dataset.from_list(rows).with_format("torch"),
    "streamed": lambda rows, folder: Dataset.from_list(rows).to_iterable_dataset(),
    "streamed in shards": lambda rows, folder: Dataset.from_list(rows).to_iterable_dataset(num_shards=3),
    "streamed in torch format": lambda rows, folder: Dataset.from_list(rows).to_iterable_dataset().with_format("torch"),
    "generated": lambda rows, folder: IterableDataset.from_generator(lambda: iter(rows)),
    "mapped stream": lambda rows, folder: Dataset.from_list(rows).to_iterable_dataset().map(lambda row: row),
    "jsonl": jsonl,
    "parquet": parquet,
    "saved": saved,
}


@pytest.mark.parametrize("container", CONTAINERS)
@pytest.mark.parametrize("shape", SHAPES)
def test_the_same_conversations_give_the_same_ids_and_labels(shape, container, chatml, tmp_path):
    make, columns = SHAPES[shape]
    dataset = CONTAINERS[container]([make(*pair) for pair in CHATS], tmp_path)
    assert rows_of(dataset, chatml, columns) == [expected(*pair) for pair in CHATS]


@pytest.mark.parametrize("container", CONTAINERS)
def test_the_same_texts_give_the_same_ids_all_of_them_learnt(container, plain, tmp_path, caplog):
    whole = [plain(text + "<|endoftext|>")["input_ids"] for text in TEXTS]
    want = [(ids, ids) for ids in whole]

    def made(rows):
        return CONTAINERS[container](rows, tmp_path)

    assert rows_of(made([{"text": text, "id": 3} for text in TEXTS]), plain) == want
    assert rows_of(made([{"body": text} for text in TEXTS]), plain, dataset_text_field="body") == want
    assert rows_of(made([{"body": text} for text in TEXTS]), plain, Columns(text="body")) == want
    formatted = made([{"words": text.split(" ")} for text in TEXTS])
    assert rows_of(formatted, plain, formatting_func=lambda row: " ".join(row["words"])) == want
    assert rows_of(made([{"input_ids": ids} for ids in whole]), plain) == want
    assert "every token is learnt" in caplog.text


@pytest.mark.parametrize("container", ["in memory", "streamed", "generated"])
def test_what_trl_is_told_about_data_holds_in_every_container(container, plain, chatml, tmp_path):
    def made(row):
        return CONTAINERS[container]([row], tmp_path)

    pair = {"prompt": "p" * 12, "completion": "abcdefgh"}
    ids = plain("p" * 12 + "abcdefgh<|endoftext|>")["input_ids"]
    assert rows_of(made(pair), plain, completion_only_loss=False) == [(ids, ids)]
    kept = [(ids[-16:], [-100] * 7 + ids[-9:])]
    with pytest.warns(FutureWarning, match="keep_end"):
        assert rows_of(made(pair), plain, truncation_mode="keep_end", max_length=16) == kept
    assert rows_of(made(pair), plain, max_length=16) == [(ids[:16], [-100] * 12 + ids[12:16])]
    row = {"messages": chat("q", "a"), "chat_template_kwargs": {"word": "Hi."}}
    speaking = tiny_tokenizer()
    speaking.chat_template = "{{ word | default('') }}" + str(speaking.chat_template)
    assert rows_of(made(row), speaking)[0][0] == plain("Hi.")["input_ids"] + expected("q", "a")[0]


def test_two_names_for_what_is_read_are_refused():
    with pytest.raises(ConfigError, match=r"^training\.dataset_text_field: names 'body', and `columns` names 'q', 'a'"):
        row_rules(settings(dataset_text_field="body"), Columns(prompt="q", completion="a"))
    with pytest.raises(ConfigError, match=r"^training\.truncation_mode: got 'middle'; expected"):
        row_rules(settings(truncation_mode="middle"))


def test_shuffling_is_by_the_seed_and_loses_nothing(plain):
    rows = [{"text": f"text {number}"} for number in range(50)]
    for data in (Dataset.from_list(rows), Dataset.from_list(rows).to_iterable_dataset()):
        as_given = rows_of(data, plain)
        shuffled = rows_of(data, plain, shuffle_dataset=True, seed=1)
        assert shuffled != as_given
        assert sorted(shuffled) == sorted(as_given)
        assert shuffled == rows_of(data, plain, shuffle_dataset=True, seed=1)
        assert shuffled != rows_of(data, plain, shuffle_dataset=True, seed=2)


def test_what_is_no_data_set_is_refused(plain):
    with pytest.raises(DataError, match=r"^train data: is list; expected a datasets\.Dataset \(Dataset\.from_list"):
        rows_of([{"text": "t"}], plain)


@pytest.mark.parametrize("asked", [{"fsdp": "full_shard"}, {"ACCELERATE_USE_FSDP": "true"}])
def test_compiling_weights_that_are_gathered_between_layers_is_refused(tmp_path, monkeypatch, asked):
    args = SFTConfig(output_dir=str(tmp_path), torch_compile=True, report_to=[], use_cpu=True, bf16=False)
    for name, value in asked.items():
        monkeypatch.setenv(name, value) if name.isupper() else setattr(args, name, value)
    with pytest.raises(ConfigError, match=r"^training\.torch_compile: not with FSDP"):
        check_arguments(args, {})


def test_a_launcher_that_would_compile_the_loss_with_the_model_is_refused(tmp_path, monkeypatch):
    args = SFTConfig(output_dir=str(tmp_path), report_to=[], use_cpu=True, bf16=False)
    monkeypatch.setenv("ACCELERATE_DYNAMO_BACKEND", "NO")
    check_arguments(args, {})
    monkeypatch.setenv("ACCELERATE_DYNAMO_BACKEND", "INDUCTOR")
    with pytest.raises(ConfigError, match=r"--dynamo_backend .*training\.torch_compile"):
        check_arguments(args, {})
