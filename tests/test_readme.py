"""What the README shows runs as it stands."""

import re
import subprocess
import sys
from pathlib import Path

from bridgegarden.recipe import Recipe, load_recipe

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", README, flags=re.DOTALL)


def test_the_python_of_the_readme_runs_and_trains(tmp_path):
    (code,) = blocks("python")
    result = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    assert "soft_weight" in result.stdout


def test_the_recipe_of_the_readme_loads(tmp_path):
    (text,) = blocks("yaml")
    (tmp_path / "readme.yaml").write_text(text, encoding="utf-8")
    assert isinstance(load_recipe(str(tmp_path / "readme.yaml")), Recipe)


def test_every_file_that_the_readme_links_to_exists():
    targets = re.findall(r"\]\(([^)#]+)\)", README)
    assert targets
    for target in targets:
        assert target.startswith("https://") or (ROOT / target).exists(), target
