import pickle
import signal

import pytest
import torch

from bridgegarden.errors import BridgegardenError, ConfigError, DataError, ModelError, NonFiniteError, Stopped

KINDS = [BridgegardenError, ConfigError, DataError, ModelError, NonFiniteError]


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
