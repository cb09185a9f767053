"""Several teachers in Ray's actors, and the bytes that one teacher gives."""

import os
import signal
import time
from functools import partial
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch
from datasets import Dataset
from transformers import AutoModelForCausalLM, PreTrainedModel

from bridgegarden.errors import ConfigError, ModelError
from bridgegarden.teacher.cache.info import check_cache
from bridgegarden.teacher.cache.manifest import finished_shards
from bridgegarden.teacher.cache.ray_engine import RayTeachers, ray_session, share_out
from bridgegarden.teacher.cache.spec import Support
from bridgegarden.teacher.cache.writer import SHARD_POSITIONS, BuildResult, build_cache
from tests.teacher.cache.conftest import build, cache_rows, cache_spec, teacher, untimed
from tests.tiny import save_tiny

pytestmark = pytest.mark.slow
SIZES = {"shard_positions": 40, "batch_tokens": 60}
"""Several shards of several batches."""


@pytest.fixture(scope="module", autouse=True)
def ray():
    """One Ray for all tests: it takes seconds to start."""
    with ray_session() as machines:
        yield machines


@pytest.fixture(scope="module")
def weights(tmp_path_factory) -> Path:
    return save_tiny(tmp_path_factory.mktemp("teacher"), teacher())


def load(folder: Path, log: Path, actors: int = 1, pause: float = 0.0) -> PreTrainedModel:
    """The teacher in `folder`, in an actor, which leaves its process id in `log` and takes `pause` seconds a batch.

    No actor begins before there are as many as `actors`, or the first might have done everything by then.
    """
    with log.open("a") as file:
        file.write(f"{os.getpid()}\n")
    patience = time.monotonic() + 120
    while len(log.read_text().split()) < actors and time.monotonic() < patience:
        time.sleep(0.05)
    model = AutoModelForCausalLM.from_pretrained(folder)
    model.get_input_embeddings().register_forward_pre_hook(lambda *_: time.sleep(pause))
    return model


def with_ray(folder: Path, load, data, spec, *, shard_positions: int = SHARD_POSITIONS, **options: Any) -> BuildResult:
    """A cache that Ray has built."""
    return build_cache(folder, RayTeachers(load, spec, **options), data, spec, shard_positions=shard_positions)


def files(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): untimed(path.read_bytes()) for path in folder.rglob("*") if path.is_file()}


def test_two_actors_write_the_files_that_one_teacher_writes(weights, tmp_path):
    log, told = tmp_path / "log", []
    result = with_ray(
        tmp_path / "ray",
        partial(load, weights, log, actors=2),
        [cache_rows()],
        cache_spec(),
        actors=2,
        on_progress=lambda *progress: told.append(progress),
        **SIZES,
    )
    assert files(tmp_path / "ray") == files(build(tmp_path / "local", **SIZES))
    pids = log.read_text().split()
    assert len(pids) == len(set(pids)) == 2
    assert str(os.getpid()) not in pids
    assert len(told) > 2
    assert told == sorted(told)
    assert told[-1] == (result.positions, result.positions)
    assert (result.documents, result.kept) == (24, 0)
    assert 0 < result.teacher_seconds < result.seconds
    for record in finished_shards(tmp_path / "ray").values():
        # The actors' processor time is not this process's.
        assert record.seconds > 0
        assert record.cpu_seconds is None


def test_an_actor_killed_midway_changes_nothing(weights, tmp_path):
    log, killed, spec = tmp_path / "log", [], cache_spec(Support(kind="sampled", k=8))

    def kill_one(done: int, total: int) -> None:
        if not killed:
            actor = int(log.read_text().split()[0])
            assert actor in {child.pid for child in psutil.Process().children(recursive=True)}
            os.kill(actor, signal.SIGKILL)
            killed.append((done, total))

    slow = partial(load, weights, log, actors=2, pause=0.3)
    with_ray(tmp_path / "ray", slow, [cache_rows()], spec, actors=2, on_progress=kill_one, **SIZES)
    done, total = killed[0]
    assert done < total / 2
    assert len(log.read_text().split()) >= 3
    check_cache(tmp_path / "ray")
    assert files(tmp_path / "ray") == files(build(tmp_path / "local", spec, **SIZES))


def test_either_engine_goes_on_where_the_other_was_stopped(weights, tmp_path):
    def stop(done: int, total: int) -> None:
        if done > total / 2:
            raise KeyboardInterrupt

    whole = files(build(tmp_path / "whole", **SIZES))
    two = partial(load, weights, tmp_path / "two", actors=2)
    with pytest.raises(KeyboardInterrupt):
        with_ray(tmp_path / "a", two, [cache_rows()], cache_spec(), actors=2, on_progress=stop, **SIZES)
    assert 0 < len(finished_shards(tmp_path / "a")) < len(finished_shards(tmp_path / "whole"))
    build(tmp_path / "a", **SIZES)
    with pytest.raises(KeyboardInterrupt):
        build(tmp_path / "b", on_progress=stop, **SIZES)
    kept = {path: path.stat().st_mtime_ns for path in finished_shards(tmp_path / "b")}
    one = partial(load, weights, tmp_path / "one")
    result = with_ray(tmp_path / "b", one, [cache_rows()], cache_spec(), actors=1, **SIZES)
    assert kept
    assert result.kept > 0
    assert all(path.stat().st_mtime_ns == then for path, then in kept.items())
    assert files(tmp_path / "a") == files(tmp_path / "b") == whole


def test_a_cache_that_lacks_nothing_asks_no_actor(weights, tmp_path):
    build(tmp_path / "cache", **SIZES)
    result = with_ray(
        tmp_path / "cache", partial(load, weights, tmp_path / "log"), [cache_rows()], cache_spec(), **SIZES
    )
    assert (result.documents, result.kept) == (0, 24)
    assert not (tmp_path / "log").exists()


def test_what_is_wrong_in_an_actor_is_said_as_it_is_without_ray(tmp_path):
    broken = teacher()
    with torch.no_grad():
        broken.model.embed_tokens.weight[251] = torch.nan
    weights = save_tiny(tmp_path / "teacher", broken)
    rows = Dataset.from_list([*cache_rows(3).to_list(), {"input_ids": [251, 3, 4], "labels": [-100, 3, 4], "row": 77}])
    with pytest.raises(ModelError, match=r"^teacher tiny: its distribution is not finite in row 77 .* weights\.$"):
        with_ray(tmp_path / "cache", partial(load, weights, tmp_path / "log"), [rows], cache_spec(), actors=1)


@pytest.mark.parametrize(
    ("machines", "actors", "use_gpus", "expected"),
    [
        ([{"CPU": 8}], None, True, (1, 8, 0)),
        ([{"CPU": 8}], 2, True, (2, 4, 0)),
        ([{"CPU": 8}], 3, True, (3, 2, 0)),
        ([{"CPU": 1}], 2, True, (2, 0.5, 0)),
        ([{"CPU": 16}, {"CPU": 4}], None, True, (2, 8, 0)),
        ([{"CPU": 16}, {"CPU": 4}, {"memory": 9}], 5, True, (5, 4, 0)),
        ([{"CPU": 8, "GPU": 2}, {"CPU": 8, "GPU": 4}], None, True, (6, 1, 1)),
        ([{"CPU": 8, "GPU": 2}], 1, True, (1, 1, 1)),
        ([{"CPU": 8, "GPU": 2}], None, False, (1, 8, 0)),
    ],
)
def test_all_actors_find_room_and_leave_little_idle(machines, actors, use_gpus, expected):
    share = share_out(machines, actors, use_gpus=use_gpus)
    assert share == expected
    assert sum(machine.get("CPU", 0) // share.cpus for machine in machines) >= share.actors


def test_more_actors_than_gpus_and_machines_without_anything_are_refused():
    with pytest.raises(ConfigError, match=r"--actors 3: each takes a GPU, and Ray has 2"):
        share_out([{"CPU": 8, "GPU": 2}], 3, use_gpus=True)
    with pytest.raises(ConfigError, match="neither GPUs nor CPUs"):
        share_out([{"memory": 1}], None, use_gpus=True)
