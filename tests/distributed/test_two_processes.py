"""Two processes train as one does on the joined batch, under DDP and under accelerate's FSDP2."""

from pathlib import Path

import pytest
import torch

from tests.distributed.trainer_cases import cases, prepare, run_recipe, train, weights

pytestmark = pytest.mark.slow
NAMES = [name for sharding in ("ddp", "fsdp") for name in cases(sharding)]


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    """What one process finds in a case, on batches as large as both together have."""
    folder: Path = tmp_path_factory.mktemp("alone")
    prepare(folder)
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
    # FSDP writes a tied head beside the embedding, as the same numbers.
    if head := got.keys() - expected.keys():
        assert (head, name) == ({"lm_head.weight"}, "fsdp: tied")
        torch.testing.assert_close(got.pop("lm_head.weight"), got["model.embed_tokens.weight"], rtol=0, atol=0)
    assert got.keys() == expected.keys()
    for key, weight in expected.items():
        torch.testing.assert_close(
            got[key], weight, rtol=tolerance, atol=tolerance / 10, msg=lambda m, k=key: f"{k}: {m}"
        )


def test_a_process_without_a_supervised_token_takes_part(trained):
    tokens = trained[1]["ddp: masked"]["supervised_tokens"]
    assert tokens[0] < trained[1]["ddp: risk_guided"]["supervised_tokens"][0]


@pytest.mark.parametrize("sharding", ["ddp", "fsdp"])
def test_a_recipe_gives_the_student_that_one_process_gives(trained, tmp_path, sharding):
    """Also where FSDP lets one process alone load the student: the teacher is whole in both."""
    folder, found = trained
    ours = found[f"{sharding}: recipe"]
    assert "error" not in ours, ours["error"]
    theirs = run_recipe(folder, tmp_path / "alone", processes=1)
    assert ours["is_main"]
    assert ours["loss"] == pytest.approx(theirs["loss"], rel=1e-5)
    assert ours["evaluation"] == pytest.approx(theirs["evaluation"], rel=1e-5)
    got, expected = weights(folder / f"{sharding}-recipe" / "model"), weights(tmp_path / "alone" / "model")
    assert got.keys() == expected.keys()
    start = weights(folder / "student")
    assert any((weight - start[key]).abs().max() > 1e-4 for key, weight in expected.items())
    for key, weight in expected.items():
        torch.testing.assert_close(got[key], weight, rtol=1e-5, atol=1e-6)
