"""A stranger's ``tokenizer.json``, read by a process of its own first: what ends that process, or never ends, does so
there. The code that reads it is in Rust, and some files make it abort rather than raise."""

import hashlib
import os
import signal
import subprocess
import sys
from pathlib import Path

from bridgegarden.terminal import one_line

SECONDS = 60
"""Processor time; reading the largest published file takes two."""
MEMORY = 4 << 30
"""Bytes of address space."""

_CHILD = """
import resource, sys
for limit, most in ((resource.RLIMIT_AS, sys.argv[2]), (resource.RLIMIT_CPU, sys.argv[3]), (resource.RLIMIT_CORE, 0)):
    resource.setrlimit(limit, (int(most), int(most)))
from tokenizers import Tokenizer
try:
    Tokenizer.from_file(sys.argv[1])
except BaseException as error:
    print(error)
    sys.exit(3)
"""

_seen: set[str] = set()
"""Hashes of files that did no harm."""


def fault_of_tokenizer_file(path: Path) -> str | None:
    """What is wrong with a tokenizer's file, found by reading it; None if nothing.

    What it does with text is tried later (:mod:`bridgegarden.preflight.bounded`).

    A file with the same content is tried once a process.
    """
    content = hashlib.sha256(path.read_bytes()).hexdigest()
    if content in _seen:
        return None
    try:
        done = subprocess.run(
            [sys.executable, "-P", "-c", _CHILD, str(path), str(MEMORY), str(SECONDS)],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=2 * SECONDS,
            env=os.environ | {"TOKENIZERS_PARALLELISM": "false", "MALLOC_ARENA_MAX": "2"},
        )
    except subprocess.TimeoutExpired:
        return f"reading it does not end within {2 * SECONDS} seconds"
    if done.returncode in (-signal.SIGXCPU, -signal.SIGKILL):
        return f"reading it takes more than {SECONDS} seconds"
    if done.returncode < 0:
        said = done.stderr.decode(errors="replace").strip().splitlines() or ["without a word"]
        ended = signal.Signals(-done.returncode).name
        return f"it ends the process that reads it ({ended}: {one_line(said[0])[:200]})"
    if done.returncode == 3:
        return one_line(done.stdout.decode(errors="replace"))[:200].rstrip(" .:")
    _seen.add(content)
    return None
