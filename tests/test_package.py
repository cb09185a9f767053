"""The package as a whole: its public names, what importing it costs, and what its wheel carries."""

import re
import subprocess
import sys
import tomllib
import zipfile
from importlib.metadata import version
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

import bridgegarden

ROOT = Path(__file__).parents[1]
SOURCE = ROOT / "src" / "bridgegarden"
ARCHITECTURE = ROOT / "docs" / "architecture.md"


def python(code: str) -> str:
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout


@pytest.mark.parametrize("name", bridgegarden.__all__)
def test_a_public_name_can_be_imported(name):
    assert getattr(bridgegarden, name) is not None


def test_an_unknown_attribute_is_refused_in_python_s_own_words():
    with pytest.raises(AttributeError, match="module 'bridgegarden' has no attribute 'forward_kl_divergence'"):
        _ = bridgegarden.forward_kl_divergence


def test_the_version_is_the_installed_one():
    assert bridgegarden.__version__ == version("bridgegarden")


def test_dir_lists_the_public_names_before_they_are_used():
    assert python("import bridgegarden; print(set(bridgegarden.__all__) <= set(dir(bridgegarden)))") == "True\n"


@pytest.mark.parametrize(
    "code",
    [
        "import bridgegarden",
        "import bridgegarden.cli.main as m; [m.cli.get_command(None, name) for name in m.COMMANDS]",
        "import bridgegarden.recipe as r; [r.describe_recipe(name) for name in r.list_recipes()]",
    ],
    ids=["the package", "every command", "the shipped recipes"],
)
def test_heavy_libraries_are_not_imported_by(code):
    heavy = "{'torch', 'transformers', 'trl', 'datasets', 'numpy', 'pandas', 'pyarrow'}"
    assert python(f"import sys; {code}; print(sorted({heavy} & set(sys.modules)))") == "[]\n"


def test_the_wheel_carries_the_recipes_and_the_type_marker(tmp_path):
    from hatchling.builders.wheel import WheelBuilder

    (wheel,) = WheelBuilder(str(ROOT)).build(directory=str(tmp_path), versions=["standard"])
    names = set(zipfile.ZipFile(wheel).namelist())
    recipes = {f"bridgegarden/recipes/{f.name}" for f in (ROOT / "src/bridgegarden/recipes").glob("*.yaml")}
    assert recipes
    assert recipes | {"bridgegarden/py.typed", "bridgegarden/cli/main.py"} <= names
    assert not [name for name in names if name.startswith("tests")]


def test_the_lowest_versions_that_are_tested_are_those_that_are_declared():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    extras = [line for name, lines in project["optional-dependencies"].items() if name != "dev" for line in lines]
    declared = [Requirement(line) for line in (*project["dependencies"], *extras)]
    text = (ROOT / "constraints-lowest.txt").read_text(encoding="utf-8")
    pins = [Requirement(line) for line in text.splitlines() if not line.startswith("#")]
    tested = {canonicalize_name(pin.name): Version(str(pin.specifier).removeprefix("==")) for pin in pins}
    lowest = {
        canonicalize_name(one.name): Version(spec.version)
        for one in declared
        for spec in one.specifier
        if spec.operator == ">="
    }
    # The oldest PyTorch that can be had for processors alone stands for the lower bound.
    assert tested.pop("torch") >= lowest.pop("torch")
    assert tested == lowest


def test_every_file_that_the_architecture_names_is_there():
    folder, named, lacking = SOURCE, 0, []
    for line in ARCHITECTURE.read_text(encoding="utf-8").splitlines():
        if line.startswith("#"):
            title = line.removeprefix("### ")
            folder = SOURCE / title if title.endswith("/") and "," not in title else SOURCE
        for name in re.findall(r"`([\w/]+\.py)`", line):
            named += 1
            places = (folder / name, SOURCE / name, ROOT / name)
            lacking += [] if any(place.is_file() for place in places) else [name]
    assert named > 100
    assert lacking == []
