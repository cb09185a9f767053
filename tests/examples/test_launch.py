"""The files for ``accelerate launch``, read by accelerate itself."""

import os
from pathlib import Path

import pytest
import yaml
from accelerate.commands.config.config_args import load_config_from_file
from accelerate.commands.launch import _validate_launch_command, launch_command_parser
from accelerate.utils import DistributedType, FullyShardedDataParallelPlugin
from accelerate.utils.launch import prepare_deepspeed_cmd_env, prepare_multi_gpu_env, prepare_simple_launcher_cmd_env

FOLDER = Path(__file__).parents[2] / "examples" / "launch"
FILES = sorted(FOLDER.glob("*.yaml"))
PROCESSES = {
    "one-gpu": (DistributedType.NO, 1, 1),
    "eight-gpus-ddp": (DistributedType.MULTI_GPU, 8, 1),
    "eight-gpus-fsdp2": (DistributedType.FSDP, 8, 1),
    "eight-gpus-zero3": (DistributedType.DEEPSPEED, 8, 1),
    "multi-node-fsdp2": (DistributedType.FSDP, 16, 2),
}
COMMAND = ["-m", "bridgegarden", "train", "recipe.yaml"]


def resolved(file, *more):
    """The arguments that ``accelerate launch`` ends up with."""
    parsed = launch_command_parser().parse_args(["--config_file", str(file), *more, *COMMAND])
    return _validate_launch_command(parsed)[0]


@pytest.fixture
def environment(monkeypatch):
    """Lets a test live in the environment of a launched process."""

    def enter(variables):
        for name, value in variables.items():
            if name.startswith(("ACCELERATE_", "FSDP_", "PARALLELISM_")):
                monkeypatch.setenv(name, value)
        # The plugin writes to it.
        monkeypatch.setenv("FSDP_CPU_RAM_EFFICIENT_LOADING", variables.get("FSDP_CPU_RAM_EFFICIENT_LOADING", "false"))

    return enter


def test_every_file_is_tested():
    assert {file.stem for file in FILES} == PROCESSES.keys()


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_accelerate_reads_every_key(file):
    kind, processes, machines = PROCESSES[file.stem]
    config = load_config_from_file(str(file))
    assert (config.distributed_type, config.num_processes, config.num_machines) == (kind, processes, machines)
    # Unknown keys above are refused by accelerate, those of a section are taken without a word.
    known = {action.dest for action in launch_command_parser()._actions}
    written = yaml.safe_load(file.read_text())
    for section in ("fsdp_config", "deepspeed_config"):
        assert written.get(section, {}).keys() <= known
        assert (section in written) == (kind.value == section.split("_")[0].upper())


def test_an_unknown_key_is_refused(tmp_path):
    spoilt = tmp_path / "spoilt.yaml"
    spoilt.write_text((FOLDER / "one-gpu.yaml").read_text() + "nmu_processes: 2\n")
    with pytest.raises(ValueError, match="nmu_processes"):
        load_config_from_file(str(spoilt))


@pytest.mark.parametrize("name", ["eight-gpus-fsdp2", "multi-node-fsdp2"])
def test_the_processes_of_an_fsdp_launch_build_the_plugin_that_is_written_down(name, environment):
    more = ["--machine_rank", "1", "--main_process_ip", "10.0.0.1"] if name.startswith("multi") else []
    args = resolved(FOLDER / f"{name}.yaml", *more)
    variables = prepare_multi_gpu_env(args)
    assert variables["ACCELERATE_USE_FSDP"] == "true"
    environment(variables)
    plugin = FullyShardedDataParallelPlugin()
    assert (plugin.fsdp_version, plugin.reshard_after_forward) == (2, True)
    assert plugin.cpu_ram_efficient_loading
    assert plugin.activation_checkpointing is False
    assert "SHARDED_STATE_DICT" in str(plugin.state_dict_type)
    assert "transformer_auto_wrap_policy" in str(plugin.auto_wrap_policy)
    # `bridgegarden train` asks for the whole of the model it publishes.
    plugin.set_state_dict_type("FULL_STATE_DICT")
    assert "FULL_STATE_DICT" in str(plugin.state_dict_type)
    if more:
        assert (args.machine_rank, args.main_process_ip, args.num_processes) == (1, "10.0.0.1", 16)


def test_a_zero_launch_says_stage_three_and_saves_a_whole_model():
    args = resolved(FOLDER / "eight-gpus-zero3.yaml")
    args.deepspeed_fields_from_accelerate_config = ""
    variables = prepare_deepspeed_cmd_env(args)[1]
    assert variables["ACCELERATE_USE_DEEPSPEED"] == "true"
    assert variables["ACCELERATE_DEEPSPEED_ZERO_STAGE"] == "3"
    assert variables["ACCELERATE_DEEPSPEED_ZERO3_SAVE_16BIT_MODEL"] == "true"
    assert variables["ACCELERATE_DEEPSPEED_ZERO3_INIT"] == "true"


def test_one_gpu_is_one_ordinary_process():
    command, variables = prepare_simple_launcher_cmd_env(resolved(FOLDER / "one-gpu.yaml"))
    assert command[-4:] == COMMAND
    assert not {"WORLD_SIZE", "ACCELERATE_USE_FSDP"} & (variables.keys() - os.environ.keys())
