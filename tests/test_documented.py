"""The code that the documentation shows: run, dry-run or checked, as ``tests/documented.py`` says."""

import ast
import json
import re
import shlex
import shutil
from collections import Counter
from pathlib import Path

import click
import pytest
import torch
import yaml
from click.testing import CliRunner

from bridgegarden.cli.main import cli
from bridgegarden.errors import ConfigError
from bridgegarden.exact.process import sample
from bridgegarden.exact.tasks.arithmetic import ArithmeticWorld
from bridgegarden.quickstart import TEACHER
from tests.documented import (
    MARK,
    PYTHON,
    ROOT,
    SHELL,
    WHOLE,
    YAML,
    Block,
    blocks,
    check_command,
    check_python,
    check_shell,
    check_yaml,
    inline_commands,
    own_recipe,
    written,
)

CLASSES = {"runs", "dry run", "checked"}


def test_every_block_has_a_class_and_each_class_has_blocks():
    found = Counter(block.kind for block in blocks())
    assert set(found) == CLASSES
    assert sum(found.values()) > 50
    assert all(block.kind == "runs" for block in blocks() if block.marked)


def test_every_block_that_can_be_typed_runs_or_says_why_not():
    typed = [one for one in blocks() if one.page.startswith("docs/") and one.language in (*SHELL, *PYTHON)]
    unsaid = [str(block) for block in typed if not MARK.fullmatch(block.mark)]
    assert not unsaid, f"mark these as tests/documented.py says: {', '.join(unsaid)}"
    assert sum(block.marked for block in typed) > 15
    for block in typed:
        for file in re.findall(r"tests/[\w/]*\w(?:\.py)?", block.mark):
            assert (ROOT / file).exists(), f"{block}: no {file}"


@pytest.mark.parametrize("block", [one for one in blocks() if one.language in SHELL], ids=str)
def test_what_a_shell_block_types_exists(block):
    check_shell(block.text)


@pytest.mark.parametrize("block", [one for one in blocks() if one.language in YAML], ids=str)
def test_what_a_recipe_says_is_taken(block):
    check_yaml(block.tree)


@pytest.mark.parametrize("block", [one for one in blocks() if one.language in PYTHON], ids=str)
def test_what_python_imports_and_calls_is_there(block):
    check_python(block.text)


def test_commands_in_running_text_exist():
    found = list(inline_commands())
    assert len(found) > 20
    for where, words in found:
        try:
            check_command(words[1:])
        except click.MissingParameter:  # what is named in passing need not be complete
            continue
        except (click.UsageError, AssertionError, ConfigError) as error:
            raise AssertionError(f"{where}: {error}") from error


@pytest.fixture(scope="module")
def pair(tmp_path_factory):
    """What a page's own names stand for.

    The packaged teacher with room for longer texts, a tiny student, rows of the teacher's world, a recipe, and
    configurations of TRL's.
    """
    from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

    folder = tmp_path_factory.mktemp("documented")
    shutil.copytree(TEACHER, folder / "teacher")
    config = json.loads((folder / "teacher" / "config.json").read_text(encoding="utf-8"))
    (folder / "teacher" / "config.json").write_text(json.dumps(config | {"max_position_embeddings": 2048}))
    tokenizer = AutoTokenizer.from_pretrained(TEACHER)
    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 2}
    LlamaForCausalLM(LlamaConfig(vocab_size=len(tokenizer), **sizes)).save_pretrained(folder / "student")
    tokenizer.save_pretrained(folder / "student")
    home = folder / "home"
    home.mkdir()
    world, generator = ArithmeticWorld(), torch.Generator().manual_seed(0)
    rows = []
    for problem in world.problems(16, 0, split="train"):
        question, answer = world.prompt(problem, generator), sample(world.process(problem), generator)
        answer = world.decode(answer[:-1])  # the last token ends the turn
        rows.append({"question": question, "answer": answer, "prompt": question, "completion": answer})
    for name in ("rows.jsonl", "held_out.jsonl"):
        (home / name).write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    recipe = {
        "teacher": {"model": str(folder / "teacher")},
        "student": {"model": str(folder / "student")},
        "data": {"train": "rows.jsonl", "eval": "held_out.jsonl", "prompt": "question", "completion": "answer"},
        "training": {"max_steps": 2, "per_device_train_batch_size": 8},
        "output": "runs/my",
    }
    (home / "my.yaml").write_text(json.dumps(recipe), encoding="utf-8")
    trl = {"model_name_or_path": "Qwen/Qwen2.5-3B", "dataset_name": "rows", "max_steps": 2}
    (home / "sft.yaml").write_text(yaml.safe_dump(trl), encoding="utf-8")
    trl |= {"teacher_model_name_or_path": "Qwen/Qwen2.5-7B-Instruct", "lmbda": 0.5, "beta": 0.5, "temperature": 0.9}
    (home / "gkd.yaml").write_text(yaml.safe_dump(trl), encoding="utf-8")
    return folder


def local(text: str, folder: Path) -> str:
    """A page's code with models that are here, and few steps of it."""
    models = ("Qwen/Qwen2.5-7B-Instruct", "Qwen/Qwen2.5-72B-Instruct")
    for theirs, here in {
        **dict.fromkeys(models, str(folder / "teacher")),
        **dict.fromkeys(("STUDENT", "Qwen/Qwen2.5-3B"), str(folder / "student")),
        "max_steps=1000": 'max_steps=2, report_to="none", bf16=False',
        "max_steps: 1000": "max_steps: 2",
        "dtype: bfloat16": "dtype: float32",
        "layers: 10": "layers: 2",
    }.items():
        text = re.sub(rf"(?<![\w/]){re.escape(theirs)}\b", lambda _, here=here: here, text)
    return text


def typed(words: list[str], where: str) -> str:
    """What a command prints, which must end well."""
    assert words[0] == "bridgegarden", f"{where} runs {words[0]}"
    done = CliRunner().invoke(cli, words[1:])
    assert done.exit_code == 0, f"{where}: {' '.join(words)}: {done.output}"
    return done.stdout


def changed(text: str, recipe: Path) -> None:
    """The reader writes a recipe, or puts a part of one into what there is."""
    tree, before = yaml.safe_load(text), yaml.safe_load(recipe.read_text(encoding="utf-8"))
    recipe.write_text(text if set(tree) >= WHOLE else yaml.safe_dump(before | tree), encoding="utf-8")


SLOW = TRAINED = ("docs/export.md",)
"""Pages that begin with a student that was trained."""
RUN = sorted({block.page for block in blocks() if block.kind == "runs"})


@pytest.mark.filterwarnings("ignore:'pin_memory' argument is set as true but no accelerator:UserWarning")
@pytest.mark.parametrize("page", [pytest.param(one, marks=[pytest.mark.slow] * (one in SLOW)) for one in RUN])
def test_blocks_that_are_marked_run(page, pair, tmp_path, monkeypatch):
    """One after the other in one folder; a recipe is `my.yaml`."""
    here = shutil.copytree(pair / "home", tmp_path / "home")
    monkeypatch.chdir(here)
    if page in TRAINED:
        typed(["bridgegarden", "train", "my.yaml"], "what was before")
    for block in [one for one in blocks() if one.page == page and one.kind == "runs"]:
        text = local(block.text, pair)
        if block.language in PYTHON:
            exec(compile(text, str(block), "exec"), {"__name__": "__main__"})
        elif block.language in YAML:
            changed(text, here / "my.yaml")
        else:
            for words, target in written(text):
                printed = typed(words, str(block))
                if target is not None:
                    (here / target).write_text(printed, encoding="utf-8")


def trainings() -> dict[str, list[str]]:
    """What `bridgegarden train` is given after a recipe of the reader's, once each, by where it stands first."""
    found: dict[str, list[str]] = {}
    for block in blocks():
        for words in block.commands if block.language in SHELL else []:
            changes = [word for word in words[3:] if word not in ("--audit", "--dry-run")]
            reader_s = words[:2] == ["bridgegarden", "train"] and not own_recipe(words[2])
            if reader_s and changes and changes not in found.values():
                found[f"{block} {' '.join(changes)}"] = changes
    return found


@pytest.mark.parametrize("where", trainings())
def test_a_training_that_is_typed_can_be_tried(where, pair, tmp_path):
    recipe = tmp_path / "my.yaml"
    tree = {
        "teacher": {"model": str(TEACHER)},
        "student": {"model": str(pair / "student")},
        "data": {"train": str(pair / "home" / "rows.jsonl"), "prompt": "question", "completion": "answer"},
    }
    recipe.write_text(json.dumps(tree), encoding="utf-8")
    done = CliRunner().invoke(cli, ["train", str(recipe), "--dry-run", *trainings()[where]])
    assert done.exit_code == 0, done.output


RECIPES = [block for block in blocks() if block.kind == "dry run" and block.language in YAML]


@pytest.mark.parametrize("block", RECIPES, ids=str)
def test_a_whole_recipe_can_be_tried(block, tmp_path):
    (tmp_path / "my.yaml").write_text(block.text, encoding="utf-8")
    done = CliRunner().invoke(cli, ["train", str(tmp_path / "my.yaml"), "--dry-run"])
    assert done.exit_code == 0, done.output


# What the checks are for: each of these is wrong in one place.


@pytest.mark.parametrize(
    "line",
    [
        "bridgegarden tune my.yaml",
        "bridgegarden cache rebuild my.yaml",
        "bridgegarden train my.yaml --resume",
        "bridgegarden train my.yaml --set training.max_step=3",
        "bridgegarden train my.yaml \\\n  --set objective.preset=confidense",
        "bridgegarden plan my.yaml --sharding fsdp3",
        "bridgegarden train my.yaml other.yaml",
        "accelerate launch -m bridgegarden train my.yaml --fast",
        "accelerate launch --config_file examples/launch/none.yaml -m bridgegarden train my.yaml",
        "A=1 bridgegarden tune my.yaml",
        "ls && bridgegarden tune my.yaml | cat",
        "python docs/write_nothing.py",
        "python benchmarks/head_and_loss.py --tokenz 3",
        "make everything",
        "pip install 'bridgegarden[rays]'",
        "pip install -e '.[devel]'",
        "pytest tests/test_nothing.py::test_x",
    ],
)
def test_a_shell_block_that_is_wrong_is_found(line):
    with pytest.raises((AssertionError, click.UsageError, ConfigError)):
        check_shell(line)


@pytest.mark.parametrize(
    "tree",
    [
        {"objective": {"presett": "soft"}},
        {"training": {"max_step": 3}},
        {"teacher": {"model": "T", "top_k": 0}},
        {"on_policy": {"lmbda": 2}},
    ],
)
def test_a_recipe_that_is_wrong_is_found(tree):
    with pytest.raises(ConfigError):
        check_yaml(tree)


@pytest.mark.parametrize(
    "code",
    [
        "from bridgegarden import HybridTrainer",
        "HybridObjective(temperatur=2.0)",
        "from bridgegarden.statistics import paired_differences",
        "TeacherCache('a', 'b', 'c', 'd', 'e')",
        "teacher = ByteView(tokenizer, title='x')",
        "f(",
    ],
)
def test_python_that_is_wrong_is_found(code):
    with pytest.raises((AssertionError, SyntaxError)):
        check_python(code)


def test_a_block_in_a_list_and_one_with_a_mark_are_read(tmp_path):
    from tests.documented import blocks_of

    page = tmp_path / "page.md"
    listed = "* a\n\n  ```bash\n  ls\n  ```\n\n  <!-- not run: b -->\n  ```sh\n  ls\n  ```\n\n"
    page.write_text(f"{listed}<!-- runs -->\n```python\nx = 1\n```\n\n```text\nno\n```\n")
    assert blocks_of(page) == [
        Block("page.md", 3, "bash", "ls", ""),
        Block("page.md", 8, "sh", "ls", "not run: b"),
        Block("page.md", 13, "python", "x = 1\n", "runs"),
    ]


@pytest.mark.parametrize(
    "mark", ["", "run", "not run", "not run:", "runs in test_x.py", "runs in tests/x", "runs twice"]
)
def test_a_mark_that_says_nothing_is_none(mark):
    assert not MARK.fullmatch(mark)


def test_where_a_command_writes_is_read_and_what_a_comment_says_is_not():
    text = "bridgegarden env my.yaml > a.txt   # and > b\nbridgegarden env \\\n  my.yaml  # > c"
    assert [(words[1:3], target) for words, target in written(text)] == [
        (["env", "my.yaml"], "a.txt"),
        (["env", "my.yaml"], None),
    ]


def named_tests(place: Path) -> list[tuple[str, bool]]:
    """The tests of a file or folder by name, and whether they are slow ones, which pytest leaves out unless asked."""
    found = []
    for path in sorted(place.rglob("test_*.py")) if place.is_dir() else [place]:
        tree = ast.parse(path.read_text(encoding="utf-8"))
        named = [n for n in ast.walk(tree) if isinstance(n, ast.FunctionDef) and n.name.startswith("test_")]
        whole = [n for n in tree.body if isinstance(n, ast.Assign) and ast.unparse(n.targets[0]) == "pytestmark"]
        all_slow = any("mark.slow" in ast.unparse(n) for n in whole)
        found += [(n.name, all_slow or any("mark.slow" in ast.unparse(d) for d in n.decorator_list)) for n in named]
    return found


COMMANDS = [
    pytest.param(" ".join(typed.split()), id=f"{page.name}: {' '.join(typed.split())}")
    for page in sorted([*ROOT.glob("docs/*.md"), *ROOT.glob("examples/*/*.md"), ROOT / "README.md"])
    for typed in re.findall(r"`(pytest\s[^`]*tests/[^`]*)`", page.read_text(encoding="utf-8"))
]


@pytest.mark.parametrize("typed", COMMANDS)
def test_a_pytest_command_runs_what_it_names_and_asks_for_slow_tests_where_they_are_meant(typed):
    words = shlex.split(typed)
    places = [ROOT / word for word in words if word.startswith("tests/")]
    asked, chosen = (words[words.index(option) + 1] if option in words else "" for option in ("-m", "-k"))
    tests = [one for place in places for one in named_tests(place)]
    # What is chosen may be a parameter, too: of words that are in no name nothing is known.
    meant = [one for one in tests if all(word in one[0] for word in chosen.split(" and "))] or tests
    assert meant, "there are none"
    if asked == "slow":
        assert any(slow for _, slow in meant), "none of them is slow"
    elif not asked:
        assert sum(slow for _, slow in meant) < len(meant) / 2, "most are slow and would be skipped: add -m slow"
