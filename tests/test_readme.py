"""What the README shows runs as it stands."""

import re
import tomllib
from pathlib import Path

import pytest

from bridgegarden.recipe import Recipe, load_recipe
from docs.figures.draw_badges import badges

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", README, flags=re.DOTALL)


@pytest.mark.slow
@pytest.mark.filterwarnings("default")
def test_the_python_of_the_readme_runs_and_trains(tmp_path, monkeypatch, capsys):
    (code,) = blocks("python")
    monkeypatch.chdir(tmp_path)
    exec(compile(code, "README.md", "exec"), {"__name__": "__main__"})
    assert "soft_weight" in capsys.readouterr().out


def test_the_recipe_of_the_readme_loads(tmp_path):
    (text,) = blocks("yaml")
    (tmp_path / "readme.yaml").write_text(text, encoding="utf-8")
    assert isinstance(load_recipe(str(tmp_path / "readme.yaml")), Recipe)


def test_every_file_that_the_readme_links_to_exists():
    targets = re.findall(r"\]\(([^)#]+)\)", README)
    assert targets
    for target in targets:
        assert target.startswith("https://") or (ROOT / target).exists(), target


def test_the_badges_are_what_the_package_declares():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    least = project["requires-python"].removeprefix(">=")
    versions = re.findall(r"Python :: (\d+\.\d+)", " ".join(project["classifiers"]))
    assert min(versions, key=lambda version: tuple(map(int, version.split(".")))) == least
    head = README.splitlines()[0]
    assert re.findall(r"!\[(.*?)\]", head) == [f"Python ≥ {least}", f"License: {project['license']}"]
    for file, value in (("badge-python.svg", f"≥ {least}"), ("badge-license.svg", project["license"])):
        text = (ROOT / "docs" / "figures" / file).read_text(encoding="utf-8")
        assert f"docs/figures/{file}" in head
        assert text == badges()[file]
        assert f">{value}</text>" in text
