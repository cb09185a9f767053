import pickle
import re
import signal
from pathlib import Path

import pytest
import torch
from tokenizers import Tokenizer

from bridgegarden import errors
from bridgegarden.cli.main import NO_MEMORY, REFUSED
from bridgegarden.errors import (
    BridgegardenError,
    ConfigError,
    DataError,
    ModelError,
    NonFiniteError,
    Stopped,
    foreign,
    in_words,
    lookup,
    unknown_name,
)

KINDS = [
    kind for _, kind in sorted(vars(errors).items()) if isinstance(kind, type) and issubclass(kind, BridgegardenError)
]
PAGE = (Path(__file__).parents[1] / "docs" / "errors.md").read_text(encoding="utf-8")


@pytest.mark.parametrize("kind", KINDS)
def test_an_error_survives_pickling_with_its_message(kind):
    error = pickle.loads(pickle.dumps(kind("rows.jsonl:17: expected an object, got a list.")))
    assert type(error) is kind
    assert str(error) == "rows.jsonl:17: expected an object, got a list."


@pytest.mark.parametrize(
    ("kind", "builtin"),
    [(ConfigError, ValueError), (DataError, ValueError), (ModelError, ValueError), (NonFiniteError, ArithmeticError)],
)
def test_an_error_is_also_the_matching_builtin(kind, builtin):
    assert issubclass(kind, BridgegardenError)
    assert issubclass(kind, builtin)


@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_stop_is_an_interrupt_with_the_shell_s_status_and_survives_pickling(number, status):
    stop = pickle.loads(pickle.dumps(Stopped(number, "stopped at step 3.")))
    assert isinstance(stop, KeyboardInterrupt)
    assert (str(stop), stop.status) == ("stopped at step 3.", status)


def test_an_error_of_a_data_loader_s_worker_keeps_its_one_line():
    class Rows(torch.utils.data.Dataset):
        def __len__(self):
            return 1

        def __getitem__(self, index):
            raise DataError("shards/00000.arrow: missing. Build it again.")

    with pytest.raises(DataError) as caught:
        next(iter(torch.utils.data.DataLoader(Rows(), num_workers=1)))
    assert str(caught.value) == "shards/00000.arrow: missing. Build it again."


def refused(words: str) -> ConfigError:
    return ConfigError(f"training.optim: {words}.")


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (ValueError("Invalid rate: -1.0.\nSee the documentation."), "Invalid rate: -1.0"),
        (KeyError("evil"), "KeyError: evil"),
        (KeyError("The metric is not found"), "The metric is not found"),
        (AssertionError("no GPU here"), "AssertionError: no GPU here"),
        (MemoryError(), "MemoryError"),
        (FileNotFoundError(2, "No such file or directory", "x/y"), "No such file or directory: x/y"),
        (RuntimeError("w " * 1000), "w " * 148 + "w..."),
    ],
)
def test_what_a_library_raises_becomes_our_error_in_its_own_words(error, words):
    with pytest.raises(ConfigError) as caught, foreign(refused):
        raise error
    assert str(caught.value) == f"training.optim: {words}."
    assert caught.value.__cause__ is error
    assert in_words(error) == words


def test_a_panic_of_a_library_in_rust_becomes_our_error_too():
    backwards = '{"type": "FixedLength", "length": 0}'
    broken = Tokenizer.from_str(
        '{"model": {"type": "WordLevel", "vocab": {"a": 0}, "unk_token": "a"}, "pre_tokenizer": ' + backwards + "}"
    )
    with pytest.raises(ConfigError, match=r"^training\.optim: \w+"), foreign(refused):
        broken.encode("a text")


@pytest.mark.parametrize("error", [DataError("row 3: empty."), KeyboardInterrupt(), Stopped(signal.SIGTERM)])
def test_our_own_errors_and_interrupts_pass_through(error):
    with pytest.raises(type(error)) as caught, foreign(refused):
        raise error
    assert caught.value is error


TABLE = {"forward_kl": 1, "reverse_kl": 2, "total_variation": 3}


def test_lookup_returns_the_entry_of_that_name():
    assert lookup(TABLE, "reverse_kl", field="objective.divergence") == 2


def test_an_unknown_name_is_answered_with_the_place_the_closest_name_and_all_names():
    with pytest.raises(ConfigError) as caught:
        lookup(TABLE, "foward_kl", field="objective.divergence")
    assert str(caught.value) == (
        "objective.divergence: unknown name 'foward_kl'. Did you mean 'forward_kl'? "
        "Known: forward_kl, reverse_kl, total_variation."
    )


def test_nothing_is_suggested_when_nothing_is_close():
    message = str(unknown_name("xyz", TABLE, field="objective.divergence", kind="divergence"))
    assert "Did you mean" not in message
    assert message.startswith("objective.divergence: unknown divergence 'xyz'. Known:")


@pytest.mark.parametrize("name", [7, None, True])
def test_a_name_that_is_not_text_is_reported_rather_than_failing_otherwise(name):
    assert repr(name) in str(unknown_name(name, TABLE, field="objective"))


def test_every_kind_has_a_code_of_its_own_and_every_code_a_section():
    codes = {kind.code: kind for kind in KINDS if kind is not BridgegardenError}
    assert len(codes) == len(KINDS) - 1
    sections = dict(re.findall(r"^## (BG\d+)\n\n(.*?)(?=^## |\Z)", PAGE, flags=re.DOTALL | re.MULTILINE))
    assert list(sections) == sorted({*codes, NO_MEMORY, REFUSED})
    for code, text in sections.items():
        assert "**What to do.**" in text, code
        assert ("**Causes.**" in text) == (code in codes)
    rows = dict(re.findall(r"^\| \[(BG\d+)\]\(#bg\d+\) \| .* \| `(\w+)` \|$", PAGE, flags=re.MULTILINE))
    assert rows == {code: kind.__name__ for code, kind in codes.items()}
    assert {kind for kind in codes.values() if not issubclass(kind, ValueError)} == {NonFiniteError}
