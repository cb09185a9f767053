import pytest

from bridgegarden.errors import ConfigError
from bridgegarden.plan.memory import KEPT_FREE, gibibytes, machine_of, parse_size


@pytest.mark.parametrize(
    ("text", "size"),
    [("80GiB", 80 * 2**30), ("80GB", 80 * 10**9), ("24G", 24 * 10**9), ("1.5gib", 3 * 2**29), (" 512 MiB", 2**29)],
)
def test_a_size_is_read_with_its_unit(text, size):
    assert parse_size(text) == size


@pytest.mark.parametrize("text", ["80GiBs", "GiB", "", "-3GB", "0GB", "80 apples", "8e3GB"])
def test_what_is_no_size_is_refused_with_an_example(text):
    with pytest.raises(ConfigError, match=r"--memory: .* is not a size; expected such as 80GiB"):
        parse_size(text)


@pytest.mark.parametrize(
    ("given", "option"),
    [
        ({"gpus": 10**30}, r"--gpus must be from 1 to 1e\+06, got a number of 31 digits"),
        ({"gpus": 10**400}, r"--gpus must be from 1 to 1e\+06, got a number of 401 digits"),
        ({"memory": "9" * 400 + "GiB"}, "--memory must be from 1 to"),
        ({"flops": float("nan")}, r"--flops must be from 1 to 1e\+30, got nan"),
        ({"flops": float("inf")}, "--flops must be from 1"),
        ({"flops": 1e-300}, "--flops must be from 1"),
        ({"utilisation": float("nan")}, "--utilisation must be from 0.0001 to 1, got nan"),
        ({"utilisation": 1e-320}, "--utilisation must be from 0.0001"),
    ],
)
def test_a_machine_beyond_all_machines_is_refused_in_one_line(given, option):
    with pytest.raises(ConfigError, match=option) as error:
        machine_of(**{"gpus": 1, **given})
    assert len(str(error.value)) < 120


def test_a_number_of_gpus_alone_means_h100s():
    machine = machine_of(gpus=4)
    assert (machine.name, machine.processes, machine.memory, machine.flops) == ("H100", 4, 80 * 2**30, 989e12)
    assert machine.usable == int(machine.memory * (1 - KEPT_FREE))


def test_what_is_given_wins_over_the_named_gpu():
    machine = machine_of(gpu="A100", memory="40GiB", flops=1e14)
    assert (machine.processes, machine.memory, machine.flops) == (1, 40 * 2**30, 1e14)


def test_an_unknown_gpu_is_refused_with_those_that_are_known():
    with pytest.raises(ConfigError, match=r"--gpu: unknown name 'voodoo2'; known: a100, .*--memory"):
        machine_of(gpu="voodoo2")


def test_small_sizes_are_shown_in_smaller_units():
    assert gibibytes(80 * 2**30) == "80.0 GiB"
    assert gibibytes(3 * 2**20) == "3.0 MiB"
