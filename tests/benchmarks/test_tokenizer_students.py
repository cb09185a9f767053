"""The study of students with other tokenizers, rehearsed: every kind of training, and the page."""

import importlib.util
import itertools
import json
from pathlib import Path
from types import ModuleType

import pytest

# TRL warns of its experimental parts when they are imported.
pytestmark = pytest.mark.filterwarnings("ignore")
ROOT = Path(__file__).parents[2]


def script(path: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(Path(path).stem, ROOT / path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.slow
def test_every_kind_of_student_is_trained_and_a_page_says_how_it_does(tmp_path: Path):
    study, page = script("benchmarks/tokenizer_students.py"), script("docs/results/write_tokenizers.py")
    arms = ("soft", "hard_data", "gold", "gold_hard")
    study.train(tmp_path, "phrases", (0, 1), arms, study.REHEARSAL)
    written = {path: path.stat().st_mtime_ns for path in tmp_path.glob("*.json")}
    study.train(tmp_path, "phrases", (0, 1), arms, study.REHEARSAL)
    assert {path: path.stat().st_mtime_ns for path in tmp_path.glob("*.json")} == written
    (tmp_path / "page").mkdir()
    page.write(tmp_path, tmp_path / "page")
    runs = json.loads((tmp_path / "page" / "tokenizers.json").read_text())
    assert {(run["arm"], run["seed"]) for run in runs} == {
        (arm, seed) for arm in ("teacher", "before", *arms) for seed in (0, 1)
    }
    # Everybody begins where the student was before, and is asked the same problems.
    assert len({len(run["greedy"]) for run in runs}) == 1
    text = (tmp_path / "page" / "tokenizers.md").read_text()
    assert all(f"| {page.label(arm)} |" in text for arm in ("teacher", "before", *arms))
    assert "told from zero" in text


def test_offsets_are_those_of_the_bytes_that_tokens_write():
    study = script("benchmarks/tokenizer_students.py")
    tokenizer = study.student_tokenizer("parts", [" We begin at 5 ."] * 3)
    view = study.ByteView(tokenizer, end=study.END)
    ids = [*(view.encode(b" We begin") or []), study.END]
    found = study.offsets(view, ids)
    assert found[0][0] == 0
    assert all(left[1] == right[0] for left, right in itertools.pairwise(found))
    assert found[-1] == (9, 9)
