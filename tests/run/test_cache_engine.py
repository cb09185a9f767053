import subprocess
import sys

import pytest
from click.testing import CliRunner

from bridgegarden.cli.main import cli
from bridgegarden.recipe import load_recipe
from bridgegarden.run.cache import CacheOptions, build_recipe_cache
from tests.teacher.cache.conftest import untimed


def build(*arguments):
    return CliRunner().invoke(cli, ["cache", "build", *map(str, arguments)])


def files(folder):
    return {str(path.relative_to(folder)): untimed(path.read_bytes()) for path in folder.rglob("*") if path.is_file()}


@pytest.fixture
def recipe(write_recipe, tmp_path):
    return write_recipe(teacher={"cache": str(tmp_path / "cache")})


@pytest.mark.slow
def test_the_command_starts_ray_by_itself_writes_the_same_files_and_prints_the_result_alone(recipe, tmp_path):
    command = [sys.executable, "-m", "bridgegarden", "cache", "build", recipe, "--engine", "ray", "--actors", "2"]
    done = subprocess.run(command, check=False, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    added, loss = done.stdout.splitlines()
    assert added.startswith(f"{tmp_path / 'cache'}: 30 rows added;")
    assert loss.startswith("the teacher's own loss on the rows there:")
    assert "starting Ray, whose actors load teacher" in done.stderr
    assert "Traceback" not in done.stderr
    build_recipe_cache(load_recipe(recipe, [f"teacher.cache={tmp_path / 'local'}"]), CacheOptions())
    assert files(tmp_path / "cache") == files(tmp_path / "local")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--actors", "2"), "--actors goes with --engine ray"),
        (("--engine", "ray", "--set", "teacher.device=cuda:1"), "'cuda:1' is one device"),
        (("--engine", "ray", "--set", "teacher.server=http://127.0.0.1:9/v1"), "for teachers that run here"),
    ],
)
def test_what_does_not_go_together_is_refused_before_anything_is_read(recipe, tmp_path, arguments, message):
    result = build(recipe, *arguments)
    assert result.exit_code == 2
    assert message in result.stderr
    assert not (tmp_path / "cache").exists()


def test_without_ray_one_line_says_how_to_get_it(recipe, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    result = build(recipe, "--engine", "ray")
    assert result.exit_code == 2
    assert len(result.stderr.strip().splitlines()) == 1
    assert "pip install 'bridgegarden[ray]'" in result.stderr
    assert not (tmp_path / "cache").exists()
