"""What is published: a wheel and a source distribution that are whole, and work where they are installed."""

import os
import subprocess
import sys
import tarfile
import tomllib
import zipfile
from email.parser import Parser
from importlib.metadata import version
from pathlib import Path

import click
import pytest

ROOT = Path(__file__).parents[1]

pytestmark = pytest.mark.slow


def run(*command: object, **options) -> str:
    done = subprocess.run([str(part) for part in command], capture_output=True, text=True, **options)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    """The source distribution, and the wheel that is built of it and nothing else."""
    folder = tmp_path_factory.mktemp("dist")
    run(sys.executable, "-m", "build", "--no-isolation", "--outdir", folder, ROOT)
    (sdist,), (wheel,) = folder.glob("*.tar.gz"), folder.glob("*.whl")
    return sdist, wheel


@pytest.fixture(scope="module")
def installed(built, tmp_path_factory):
    """A fresh environment with the wheel and no dependency."""
    folder = tmp_path_factory.mktemp("fresh")
    run(sys.executable, "-m", "venv", folder)
    python = folder / "bin" / "python"
    run(python, "-m", "pip", "install", "--no-deps", "--no-index", built[1])
    return python


def environment(**more: str) -> dict[str, str]:
    return {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")} | more


def test_both_are_as_the_index_wants_them(built):
    assert run(sys.executable, "-m", "twine", "check", "--strict", *built).count("PASSED") == 2


def test_the_wheel_holds_every_file_of_the_package_and_no_other(built):
    names = set(zipfile.ZipFile(built[1]).namelist())
    source = {
        path.relative_to(ROOT / "src").as_posix()
        for path in (ROOT / "src" / "bridgegarden").rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }
    assert {name for name in names if ".dist-info/" not in name} == source


def test_the_source_distribution_can_be_tested_and_its_pages_built(built):
    with tarfile.open(built[0]) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    wanted = {"tests/conftest.py", "mkdocs.yml", "docs/index.md", "examples/smollm2/README.md", "constraints-ci.txt"}
    assert wanted <= names
    assert not [name for name in names if name.startswith((".git/", "site/", "runs/", "build/", "dist/"))]


def test_it_is_imported_without_any_dependency(installed, tmp_path):
    code = "import bridgegarden; print(bridgegarden.__version__, bridgegarden.__file__)"
    said, place = run(installed, "-c", code, cwd=tmp_path, env=environment()).split()
    assert said == version("bridgegarden")
    assert Path(place).is_relative_to(installed.parents[1])


def test_its_command_and_recipes_work(installed, tmp_path):
    """With the dependencies of this environment, and the package of that one."""
    given = environment(PYTHONPATH=str(Path(click.__file__).parents[1]))
    command = installed.with_name("bridgegarden")
    assert "qwen2.5-7b-3b" in run(command, "recipes", "list", cwd=tmp_path, env=given)
    code = "import bridgegarden.quickstart as q; print(q.__file__, q.TEACHER)"
    for place in run(installed, "-c", code, cwd=tmp_path, env=given).split():
        assert Path(place).is_relative_to(installed.parents[1])
        assert Path(place).exists()


def test_only_versions_of_python_that_are_tested_are_declared(built):
    """CONTRIBUTING.md says which were tested, and the workflow runs them."""
    metadata = zipfile.ZipFile(built[1]).read(f"bridgegarden-{version('bridgegarden')}.dist-info/METADATA").decode()
    declared = {
        line.rpartition(" ")[2]
        for line in Parser().parsestr(metadata).get_all("Classifier") or []
        if line.startswith("Programming Language :: Python :: 3.")
    }
    workflow = (ROOT / ".github" / "workflows" / "ci.yml").read_text(encoding="utf-8")
    assert declared
    for minor in declared:
        assert f'"{minor}"' in workflow, minor
    lowest = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["requires-python"]
    assert lowest == ">=" + min(declared, key=lambda minor: int(minor.partition(".")[2]))
