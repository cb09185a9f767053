"""Launches that would not do what was asked."""

from types import SimpleNamespace

import pytest
import torch
from accelerate.utils import DistributedType

from bridgegarden.errors import ConfigError, ModelError
from bridgegarden.teacher.live import LiveTeacher
from bridgegarden.training import launch
from bridgegarden.training.launch import check_launch, check_same_teacher, launcher_processes
from tests.tiny import tiny_model


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
    monkeypatch.setattr(launch, "_parent", lambda: command)
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
