"""What two processes found: launched once for all tests of a kind, since starting them takes half a minute."""

from pathlib import Path
from typing import Any

import pytest

from tests.distributed.launch import on_two_processes
from tests.distributed.trainer_cases import prepare


@pytest.fixture(scope="session")
def sharded(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """The cases of ``sharded_cases``."""
    return on_two_processes(tmp_path_factory.mktemp("sharded"), "sharded")


@pytest.fixture(scope="session")
def trained(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    """The cases of ``trainer_cases``, and the folder with what they saved."""
    folder = tmp_path_factory.mktemp("trained")
    prepare(folder)
    return folder, on_two_processes(folder, "trainer")
