"""The tutorials run from their first line to their last."""

import runpy
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow

SCRIPTS = sorted((Path(__file__).parents[1] / "docs" / "tutorials").glob("*.py"))


@pytest.mark.filterwarnings("ignore:'pin_memory' argument is set as true but no accelerator:UserWarning")
@pytest.mark.parametrize("script", SCRIPTS, ids=lambda script: script.stem)
def test_a_tutorial_runs(script, tmp_path, monkeypatch, capsys):
    if "import xllamacpp" in script.read_text(encoding="utf-8"):
        pytest.importorskip("xllamacpp", reason="needs llama.cpp: pip install --no-deps xllamacpp")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("no_proxy", "*")
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    runpy.run_path(str(script))
    assert len(capsys.readouterr().out.splitlines()) > 3


def test_there_are_tutorials_and_each_begins_with_its_title():
    assert len(SCRIPTS) >= 5
    for script in SCRIPTS:
        assert script.read_text(encoding="utf-8").startswith("# %% [markdown]\n# # ")
