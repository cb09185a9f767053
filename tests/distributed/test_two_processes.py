"""Two processes train as one does on the joined batch, under DDP and under accelerate's FSDP2."""

from pathlib import Path

import pytest
import torch

from tests.distributed.trainer_cases import CACHE, cases, rows, train, weights
from tests.teacher.cache.conftest import build

NAMES = [name for sharding in ("ddp", "fsdp") for name in cases(sharding)]


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    """What one process finds in a case, on batches as large as both together have."""
    folder: Path = tmp_path_factory.mktemp("alone")
    build(folder / CACHE, rows=rows(24))
    kept: dict[str, tuple] = {}

    def find(name):
        sharding, case = name.split(": ")
        if case not in kept:
            kept[case] = (train(cases(sharding)[name], folder, folder / case, processes=1), weights(folder / case))
        return kept[case]

    return find


@pytest.mark.parametrize("name", NAMES)
def test_two_processes_train_as_one_does_on_the_joined_batch(trained, alone, name):
    folder, found = trained
    ours, (theirs, expected) = found[name], alone(name)
    assert "error" not in ours, ours["error"]
    wrapped = {"ddp": "DistributedDataParallel", "fsdp": "FSDP"}[name.split(":")[0]]
    assert ours["wrapped"].startswith(wrapped)
    assert (ours["sharded"] > 0) == (wrapped == "FSDP")
    assert ours["supervised_tokens"] == theirs["supervised_tokens"]
    # In 16 bits two halves of a batch round otherwise than the whole.
    tolerance = 5e-3 if "autocast" in name else 1e-5
    for term, values in theirs["log"].items():
        assert ours["log"][term] == pytest.approx(values, rel=tolerance), term
    assert ours["evaluation"] == pytest.approx(theirs["evaluation"], rel=tolerance)
    got = weights(folder / name.replace(": ", "-").replace(" ", "-"))
    assert got.keys() == expected.keys()
    for key, weight in expected.items():
        torch.testing.assert_close(
            got[key], weight, rtol=tolerance, atol=tolerance / 10, msg=lambda m, k=key: f"{k}: {m}"
        )


def test_a_process_without_a_supervised_token_takes_part(trained):
    tokens = trained[1]["ddp: masked"]["supervised_tokens"]
    assert tokens[0] < trained[1]["ddp: risk_guided"]["supervised_tokens"][0]
