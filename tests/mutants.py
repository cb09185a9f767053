"""Small faults put into the code one by one: which of them do the tests not notice?

``python -m tests.mutants --sample 100 --seed 0 objective exact`` draws 100 mutants of each package, runs for each the
test file that mirrors the mutated one and then, unless that has failed, the other tests of its folder, and prints those
that all passed. A mutant costs seconds, not a new interpreter: torch and its like are imported once, and each mutant's
tests run in a fork of that process, in a copy of the tree. What was found is kept in ``build/mutants.jsonl`` until the
mutated file changes or, of one that was not noticed, the tests: a run that was stopped goes on where it was.

A mutant is noticed where a test fails, or where tests take ten times as long as without it. Those in ``mutants.toml``
do what the code does, and are not counted.
"""

import argparse
import gc
import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
import tomllib
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory

from tests.mutations import Mutant, Source

ROOT = Path(__file__).parent.parent
SOURCE = Path("src/bridgegarden")
PACKAGES = ("objective", "exact", "diagnostics", "teacher/cache")
KEPT = ROOT / "build" / "mutants.jsonl"
EQUIVALENT = Path(__file__).with_suffix(".toml")
NOTICED = ("failed", "timeout")
PASSED, BROKEN, LATE = 0, 70, -signal.SIGALRM
"""Exit codes: no test failed, it did not come to any test, it took too long."""


def tests_of(path: str) -> list[str]:
    """What is run for a file: its mirror, where there is one, and all tests of its package."""
    inside = Path(path).relative_to(SOURCE)
    mirror = Path("tests") / inside.parent / f"test_{inside.name}"
    package = next((one for one in PACKAGES if inside.is_relative_to(one)), inside.parent)
    return [*([str(mirror)] if (ROOT / mirror).exists() else []), f"tests/{package}"]


@cache
def digest(path: Path) -> str:
    """Of a file, or of the tests in a folder."""
    files = sorted(path.rglob("*.py")) if path.is_dir() else [path]
    return hashlib.sha256(b"".join(file.read_bytes() for file in files)).hexdigest()


def key(mutant: Mutant) -> str:
    """Of the mutant and of the file that it is one of."""
    return hashlib.sha256(repr((mutant, digest(ROOT / mutant.path))).encode()).hexdigest()


def kept() -> dict[str, str]:
    """What was found before, by the mutant's key: its `outcome`."""
    lines = KEPT.read_text().splitlines() if KEPT.exists() else []
    return {one["key"]: one["found"] for one in map(json.loads, lines)}


def run_tests(tree: Path, tests: str, limit: float) -> int:
    """pytest's exit code in a fork of this process, in `tree`; `LATE` where it takes longer than `limit` seconds."""
    child = os.fork()
    if child == 0:
        code = BROKEN
        try:
            signal.setitimer(signal.ITIMER_REAL, limit)
            os.chdir(tree)
            for stream in (1, 2):
                os.dup2(os.open(os.devnull, os.O_WRONLY), stream)
            sys.dont_write_bytecode = True
            os.environ |= {"PYTHONDONTWRITEBYTECODE": "1", "PYTHONPATH": str(tree / "src")}
            others = [path for path in sys.path if path and not path.startswith(str(ROOT) + os.sep)]
            sys.path[:] = [str(tree / "src"), str(tree), *others]
            import pytest

            # hypothesis is there already; pytest would only say that its assertions are not rewritten.
            options = ["-xq", "-Wignore::pytest.PytestAssertRewriteWarning", f"--rootdir={tree}"]
            options += [f"-pno:{plugin}" for plugin in ("cacheprovider", "xdist", "anyio")]
            # Of Ray's files all tests are slow.
            options += ["-m", "slow or not slow"] if "ray" in tests else []
            code = pytest.main([*options, tests])
        finally:
            os._exit(code)
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    assert code != BROKEN, f"{tests} could not be run"
    return code


def outcome(mutant: Mutant, tree: Path, seconds: dict[str, float]) -> str:
    """One of `NOTICED`, or the tests that did not notice it."""
    file = tree / mutant.path
    whole = file.read_bytes()
    file.write_bytes(mutant.apply(whole))
    codes = (run_tests(tree, tests, 20 + 10 * seconds[tests]) for tests in tests_of(mutant.path))
    failed = next((code for code in codes if code != PASSED), None)
    file.write_bytes(whole)
    return survival(mutant) if failed is None else NOTICED[failed == LATE]


def survival(mutant: Mutant) -> str:
    """The outcome of a mutant that was not noticed, as long as the tests are these."""
    return digest(ROOT / tests_of(mutant.path)[-1])


def baseline(tree: Path, tests: set[str]) -> dict[str, float]:
    """Seconds that the tests take as the code is; ends the run where one fails."""
    seconds = {}
    for one in sorted(tests):
        begin = time.monotonic()
        if (code := run_tests(tree, one, 3600)) != PASSED:
            sys.exit(f"{one}: fails before anything is mutated (exit code {code}).")
        seconds[one] = time.monotonic() - begin
    return seconds


def copy_tree(folder: Path) -> Path:
    """What git knows of, or would add."""
    listed = subprocess.check_output(["git", "ls-files", "-co", "--exclude-standard"], cwd=ROOT, text=True)
    for name in filter(lambda name: (ROOT / name).exists(), listed.splitlines()):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(ROOT / name, folder / name)
    return folder


def work(todo: list[Mutant], tree: Path, seconds: dict[str, float]) -> int:
    """Start a process that tries mutants one after the other and keeps what it finds; its number."""
    worker = os.fork()
    if worker == 0:
        try:
            for mutant in todo:
                found = outcome(mutant, tree, seconds)
                with KEPT.open("a") as file:
                    file.write(json.dumps({"key": key(mutant), "found": found, "mutant": mutant}) + "\n")
            os._exit(0)
        finally:
            os._exit(BROKEN)
    return worker


def difference(mutant: Mutant) -> tuple[str, str]:
    return mutant.difference((ROOT / mutant.path).read_bytes())


def chosen(package: str, sample: int | None, seed: int) -> list[Mutant]:
    """The mutants of a folder or file below the package that are to be tried."""
    listed = tomllib.loads(EQUIVALENT.read_text())["equivalent"]
    known = {(one["file"], one["within"], one["line"], one["mutant"]) for one in listed}
    path = SOURCE / package
    files = sorted((ROOT / path).rglob("*.py")) if (ROOT / path).is_dir() else [ROOT / path]
    every = [one for file in files for one in Source(str(file.relative_to(ROOT)), file.read_bytes()).mutants()]
    # By what they change: a change elsewhere leaves the sample as it is.
    every.sort(key=lambda one: hashlib.sha256(repr((seed, one.path, *difference(one))).encode()).digest())
    drawn = every[: sample or len(every)]
    different = [
        one for one in drawn if (one.path, one.within((ROOT / one.path).read_bytes()), *difference(one)) not in known
    ]
    print(
        f"{package}: {len(drawn)} of {len(every)} mutants, {len(drawn) - len(different)} of them equivalent", flush=True
    )
    return different


def main() -> None:
    """Print the survivors and the score of each package."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("packages", nargs="*", default=PACKAGES, help="folders or files below src/bridgegarden")
    parser.add_argument("--sample", type=int, help="mutants of each package, drawn at random; all unless given")
    parser.add_argument("--seed", type=int, default=0, help="of the sample")
    parser.add_argument("--jobs", type=int, default=2, help="mutants at a time")
    given = parser.parse_args()
    mutants = {package: chosen(package, given.sample, given.seed) for package in given.packages}
    before = kept()
    todo = [one for drawn in mutants.values() for one in drawn if before.get(key(one)) not in (*NOTICED, survival(one))]
    KEPT.parent.mkdir(exist_ok=True)
    # What takes long to import and is never mutated, before the forks; the first sets how many threads torch takes.
    for name in ("tests.conftest", "beartype", "datasets", "peft", "pytest", "scipy.stats", "transformers", "trl"):
        __import__(name)
    # Or every run of the collector, of which pytest makes some, would walk over all of it again.
    gc.freeze()
    with TemporaryDirectory(prefix="mutants-") as folder:
        trees = [copy_tree(Path(folder) / str(number)) for number in range(given.jobs)]
        seconds = baseline(trees[0], {tests for one in todo for tests in tests_of(one.path)})
        workers = [work(todo[number :: given.jobs], tree, seconds) for number, tree in enumerate(trees)]
        assert sum([os.waitpid(worker, 0)[1] for worker in workers]) == 0, "a worker could not go on"
    after = kept()
    for drawn in mutants.values():
        for one in sorted(drawn):
            if after[key(one)] not in NOTICED:
                print(f"{one.path}:{one.line}", *difference(one), sep="\n    ")
    for package, drawn in mutants.items():
        found = [after[key(one)] for one in drawn]
        noticed = sum(one in NOTICED for one in found)
        share = noticed / max(len(found), 1)
        print(f"{package}: {noticed} of {len(found)} noticed ({share:.1%}), {found.count('timeout')} of them by time")


if __name__ == "__main__":
    main()
