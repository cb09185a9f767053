"""A stranger's tokenizer and chat template, tried in processes with limits before they are used in this one."""

import hashlib
import os
import resource
import signal
import subprocess
import sys
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

from bridgegarden.data.render import ANSWERED, ASKED, FOUND, TOOL, TemplateRefusal, called, render
from bridgegarden.terminal import one_line

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

CPU_SECONDS = 10
"""Of a processor; the trials take a hundredth of one."""
WALL_SECONDS = 120.0
MEMORY = 2**30
"""Bytes beyond what this process has."""
OUT_OF_MEMORY, FAILED = 3, 4
"""How the process says by its status what happened."""
FILE_SECONDS = 60
"""Processor time; reading the largest published file takes two."""
FILE_MEMORY = 4 << 30
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
_harmless: set[str] = set()
"""Hashes of files, and of tokenizers made of them, that did no harm."""


def fault_of_tokenizer_file(path: Path) -> str | None:
    """What is wrong with a tokenizer's file, found by reading it; None if nothing.

    What it does with text is tried later (:mod:`bridgegarden.preflight.trial`).

    A file with the same content is tried once a process.
    """
    content = hashlib.sha256(path.read_bytes()).hexdigest()
    if content in _harmless:
        return None
    try:
        done = subprocess.run(
            [sys.executable, "-P", "-c", _CHILD, str(path), str(FILE_MEMORY), str(FILE_SECONDS)],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=2 * FILE_SECONDS,
            env=os.environ | {"TOKENIZERS_PARALLELISM": "false", "MALLOC_ARENA_MAX": "2"},
        )
    except subprocess.TimeoutExpired:
        return f"reading it does not end within {2 * FILE_SECONDS} seconds"
    if done.returncode in (-signal.SIGXCPU, -signal.SIGKILL):
        return f"reading it takes more than {FILE_SECONDS} seconds"
    if done.returncode < 0:
        said = done.stderr.decode(errors="replace").strip().splitlines() or ["without a word"]
        ended = signal.Signals(-done.returncode).name
        return f"it ends the process that reads it ({ended}: {one_line(said[0])[:200]})"
    if done.returncode == 3:
        return one_line(done.stdout.decode(errors="replace"))[:200].rstrip(" .:")
    _harmless.add(content)
    return None


def fault_of_template(tokenizer: "PreTrainedTokenizerBase") -> str | None:
    """What is wrong with the chat template of `tokenizer` that must not be tried here, in words; None if nothing."""
    return _fault(lambda: _try_template(tokenizer), "its chat template")


def fault_of_tokenizer(tokenizer: "PreTrainedTokenizerBase", file: Path | None = None) -> str | None:
    """As :func:`fault_of_template`, of encoding and decoding, and of the template if there is one.

    What was made of the same `file` with the same settings is tried once a process.
    """
    content = None if file is None else _content(tokenizer, file)
    if content in _harmless:
        return None
    fault = _fault(lambda: _try_tokenizer(tokenizer), "its tokenizer")
    if fault is None and tokenizer.chat_template is not None:
        fault = fault_of_template(tokenizer)
    if fault is None and content is not None:
        _harmless.add(content)
    return fault


def _content(tokenizer: "PreTrainedTokenizerBase", file: Path) -> str:
    """A hash of all that `tokenizer`, which was read from `file`, does with text."""
    settings = {key: value for key, value in tokenizer.init_kwargs.items() if key != "name_or_path"}
    told = (type(tokenizer).__qualname__, settings, tokenizer.added_tokens_decoder, tokenizer.chat_template)
    return hashlib.sha256(file.read_bytes() + repr(told).encode(errors="surrogatepass")).hexdigest()


def _try_template(tokenizer: "PreTrainedTokenizerBase") -> None:
    again = [{**ASKED, "content": "Again?"}, {**ANSWERED, "content": "Again."}]
    for messages in ([ASKED], [ASKED, ANSWERED], [ASKED, ANSWERED, *again], [ASKED, called("object"), FOUND, ANSWERED]):
        for tools in (None, [TOOL]):
            for generation_prompt in (False, True):
                try:
                    render(messages, tokenizer, tools=tools, generation_prompt=generation_prompt)
                except TemplateRefusal as refusal:  # said later, by whoever needs the template
                    if isinstance(refusal.__cause__, MemoryError):
                        raise refusal.__cause__ from refusal


def _try_tokenizer(tokenizer: "PreTrainedTokenizerBase") -> None:
    ids = tokenizer("A question of 3 words?\n")["input_ids"]
    tokenizer.decode(ids)


def _fault(trial: Callable[[], None], what: str) -> str | None:
    if sys.platform != "linux":  # elsewhere a process that has threads cannot be copied safely
        return None
    status = _status_of(trial)
    if status == 0:
        return None
    if status in (OUT_OF_MEMORY, -signal.SIGKILL):
        return f"{what} takes more than {MEMORY // 2**30} GiB of memory for a few words."
    if status in (-signal.SIGXCPU, None):
        return f"{what} takes more than {CPU_SECONDS} seconds for a few words."
    return f"{what} fails on a few words of plain text. Is the file damaged?"


def _status_of(trial: Callable[[], None]) -> int | None:
    """The exit status of a copy of this process that runs `trial`, negative for a signal; None if it did not end."""
    with _ready_to_fork():
        child = os.fork()
        if child == 0:
            _run_and_exit(trial)
    ends = time.monotonic() + WALL_SECONDS
    while time.monotonic() < ends:
        ended, status = os.waitpid(child, os.WNOHANG)
        if ended:
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.002)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    return None


def _run_and_exit(trial: Callable[[], None]) -> NoReturn:
    """In the copy: nothing it says may reach the terminal, and nothing of this process may run at its end."""
    status = FAILED
    try:
        nowhere = os.open(os.devnull, os.O_RDWR)
        for stream in (0, 1, 2):
            os.dup2(nowhere, stream)
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, signal.SIG_DFL)
        with open("/proc/self/statm", encoding="ascii") as sizes:
            mapped = int(sizes.read().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (mapped + MEMORY, mapped + MEMORY))
        resource.setrlimit(resource.RLIMIT_CPU, (CPU_SECONDS, CPU_SECONDS + 1))
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        trial()
        status = 0
    except MemoryError:
        status = OUT_OF_MEMORY
    finally:
        os._exit(status)


@contextmanager
def _ready_to_fork() -> Iterator[None]:
    """Without what Python (threads) and the tokenizers library (its pool) say of a copy that uses neither."""
    name = "TOKENIZERS_PARALLELISM"
    told = os.environ.get(name)
    os.environ[name] = "false"
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)
            yield
    finally:
        if told is None:
            del os.environ[name]
        else:
            os.environ[name] = told
