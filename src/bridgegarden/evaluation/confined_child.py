"""What runs inside a confined process. Executed as a script with ``python -I -S``; imports nothing of the package.

It reads lines of JSON and writes lines of JSON. The first line sets its limits. Then every module that a candidate may
import is loaded, and the process gives up, for good, every system call but those of pure computation: from there on the
kernel refuses to open a file or a socket, to start a process or thread, to signal, to trace. The second line says what
it is to be:

* ``{"candidate": SOURCE}`` runs code that a model wrote and then answers ``{"call": NAME, "args": ..., "kwargs": ...}``
  with ``{"value": ...}`` or ``{"raised": WHY}``;
* ``{"examiner": {"context": SOURCE, "test": SOURCE, "names": [...]}}`` runs a test. The functions it tests live in
  another process: calling one writes a line and reads the answer. It ends with ``{"verdict": null | WHY}``.

Values cross as plain data, so nothing that a candidate defines ever meets the test: no object that equals everything,
no patched builtin, no early exit that looks like success. The candidate never sees what is expected of it.
"""

import builtins
import ctypes
import importlib
import io
import json
import os
import platform
import resource
import signal
import sys
from collections.abc import Callable
from typing import Any

MODULES = """
_strptime abc array ast base64 binascii bisect calendar cmath collections collections.abc contextlib copy dataclasses
datetime decimal difflib enum fractions functools hashlib heapq inspect io itertools json keyword math numbers operator
os pprint queue random re secrets statistics string struct sys textwrap time traceback types typing unicodedata warnings
weakref zlib
"""
"""What a candidate may import; nothing else can be read from the disk once it runs."""

# Numbers of the system calls that stay, by machine: memory, clocks, random numbers, locks, open pipes, the end. Not
# the one that blocks signals: the clock's would never arrive.
X86_64 = "0 1 3 5 8 9 10 11 12 15 24 25 28 35 39 60 96 98 100 186 201 202 219 228 229 230 231 318"
AARCH64 = "57 62 63 64 80 93 94 98 101 113 114 115 124 128 139 153 165 169 172 178 214 215 216 222 226 233 278"
KEPT = {
    "x86_64": (0xC000003E, [int(number) for number in X86_64.split()]),
    "aarch64": (0xC00000B7, [int(number) for number in AARCH64.split()]),
}
PR_SET_PDEATHSIG, PR_SET_NO_NEW_PRIVS, PR_SET_SECCOMP, SECCOMP_MODE_FILTER = 1, 38, 22, 2
LOAD_WORD, JUMP_IF_EQUAL, RETURN = 0x20, 0x15, 0x06
KILL_PROCESS, REFUSE, ALLOW = 0x80000000, 0x00050001, 0x7FFF0000
"""What a filter returns; `REFUSE` makes the call fail with EPERM."""
NUMBER_AT, MACHINE_AT = 0, 4
"""Offsets in ``struct seccomp_data``."""


class Instruction(ctypes.Structure):
    """``struct sock_filter``."""

    _fields_ = [("code", ctypes.c_ushort), ("yes", ctypes.c_ubyte), ("no", ctypes.c_ubyte), ("k", ctypes.c_uint)]


class Program(ctypes.Structure):
    """``struct sock_fprog``."""

    _fields_ = [("length", ctypes.c_ushort), ("instructions", ctypes.POINTER(Instruction))]


class Discard:
    """Where a candidate prints to."""

    encoding = "utf-8"

    def write(self, text: str) -> int:
        return len(text)

    def flush(self) -> None:
        pass

    def isatty(self) -> bool:
        return False


def limit(limits: dict[str, int]) -> None:
    """Bound what this process can use up. Kernel limits, so that they hold even if the parent dies."""
    for what, value in (
        (resource.RLIMIT_AS, limits["memory_bytes"]),
        (resource.RLIMIT_FSIZE, 0),
        (resource.RLIMIT_NPROC, 0),
        (resource.RLIMIT_NOFILE, 3),
        (resource.RLIMIT_CORE, 0),
    ):
        resource.setrlimit(what, (value, value))
    end_with_parent(limits["parent"])
    used = resource.getrusage(resource.RUSAGE_SELF)
    cpu = int(used.ru_utime + used.ru_stime) + 1 + limits["cpu_seconds"]
    resource.setrlimit(resource.RLIMIT_CPU, (cpu, cpu + 1))
    # Whoever started this process may have handed on signals that are ignored or blocked.
    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, [signal.SIGALRM])
    signal.alarm(limits["wall_seconds"])


def end_with_parent(parent: int) -> None:
    """Have the kernel kill this process as soon as the one that started it is gone, however it went.

    Raises:
        OSError: the kernel does not offer it.
    """
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0) != 0:
        raise OSError(ctypes.get_errno(), f"prctl({PR_SET_PDEATHSIG}) failed")
    if os.getppid() != parent:  # it went before that was said
        os.kill(os.getpid(), signal.SIGKILL)


def give_up_system_calls() -> None:
    """Leave the kernel's `KEPT` calls and no other, irrevocably.

    Raises:
        OSError: the kernel, or this machine's architecture, does not offer it.
    """
    if platform.machine() not in KEPT:
        raise OSError(f"no list of system calls for {platform.machine()}")
    machine, numbers = KEPT[platform.machine()]
    steps = [(LOAD_WORD, 0, 0, MACHINE_AT), (JUMP_IF_EQUAL, 1, 0, machine), (RETURN, 0, 0, KILL_PROCESS)]
    steps.append((LOAD_WORD, 0, 0, NUMBER_AT))
    for number in numbers:
        steps += [(JUMP_IF_EQUAL, 0, 1, number), (RETURN, 0, 0, ALLOW)]
    steps.append((RETURN, 0, 0, REFUSE))
    program = Program(len(steps), (Instruction * len(steps))(*(Instruction(*step) for step in steps)))
    libc = ctypes.CDLL(None, use_errno=True)
    for arguments in ((PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0), (PR_SET_SECCOMP, SECCOMP_MODE_FILTER, ctypes.byref(program))):
        if libc.prctl(*arguments) != 0:
            raise OSError(ctypes.get_errno(), f"prctl({arguments[0]}) failed")


def pack(value: Any) -> Any:
    """Plain data as JSON; what is not JSON's own is a one-key object named after its type.

    Raises:
        TypeError: it is none.
    """
    if value is None or isinstance(value, str | bool | int | float):
        return value if type(value) in (type(None), str, bool, int, float) else _base(value)
    if isinstance(value, list):
        return [pack(item) for item in value]
    for kind in (tuple, set, frozenset):
        if isinstance(value, kind):
            return {kind.__name__: [pack(item) for item in value]}
    if isinstance(value, dict):
        return {"dict": [[pack(key), pack(item)] for key, item in value.items()]}
    if isinstance(value, bytes | bytearray):
        return {type(value).__name__: value.hex()}
    if isinstance(value, complex):
        return {"complex": [value.real, value.imag]}
    if isinstance(value, range):
        return {"range": [value.start, value.stop, value.step]}
    raise TypeError(f"a {type(value).__name__} is no plain data")


def _base(value: Any) -> Any:
    """An instance of a subclass of a JSON type, as that type."""
    return next(kind(value) for kind in (str, bool, int, float) if isinstance(value, kind))


def unpack(packed: Any) -> Any:
    """What :func:`pack` was given."""
    if isinstance(packed, list):
        return [unpack(item) for item in packed]
    if not isinstance(packed, dict):
        return packed
    ((kind, content),) = packed.items()
    match kind:
        case "tuple" | "set" | "frozenset":
            return getattr(builtins, kind)(map(unpack, content))
        case "dict":
            return {unpack(key): unpack(item) for key, item in content}
        case "bytes" | "bytearray":
            return getattr(builtins, kind).fromhex(content)
        case "complex" | "range":
            return getattr(builtins, kind)(*content)
    raise ValueError(f"unknown kind {kind!r}")


def be_candidate(source: str, read: Callable[[], Any], write: Callable[[Any], None]) -> None:
    """Run `source`, then answer calls of what it defines."""
    # Kept where a candidate that patches modules and builtins spoils only its own answers.
    reason, packed, unpacked, get, base = _reason, pack, unpack, dict.get, BaseException
    names: dict[str, Any] = {"__name__": "candidate"}
    try:
        exec(compile(source, "candidate", "exec"), names)
    except base as error:
        write({"raised": reason(error)})
        return
    write({"value": None})
    while (question := read()) is not None:
        try:
            function = get(names, question["call"])
            if function is None:
                raise NameError(f"{question['call']} is not defined")
            answer = {"value": packed(function(*unpacked(question["args"]), **unpacked(question["kwargs"])))}
        except base as error:
            answer = {"raised": reason(error)}
        write(answer)


def be_examiner(exam: dict[str, Any], read: Callable[[], Any], write: Callable[[Any], None]) -> None:
    """Run a test of functions that are in another process."""

    def proxy(name: str) -> Callable[..., Any]:
        def ask(*args: Any, **kwargs: Any) -> Any:
            write({"call": name, "args": pack(args), "kwargs": pack(kwargs)})
            answer = read()
            if "raised" in answer:
                raise RuntimeError(answer["raised"])
            return unpack(answer["value"])

        return ask

    names: dict[str, Any] = {"__name__": "examiner"}
    try:
        exec(compile(exam["context"], "context", "exec"), names)
        names.update((name, proxy(name)) for name in exam["names"])
        exec(compile(exam["test"], "test", "exec"), names)
    except BaseException as error:
        write({"verdict": _reason(error)})
    else:
        write({"verdict": None})


def _reason(error: BaseException) -> str:
    try:
        text = " ".join(str(error).split())[:200]
    except BaseException:
        text = ""
    return f"{type(error).__name__}: {text}" if text else type(error).__name__


def main() -> None:
    questions, answers = sys.stdin.buffer, sys.stdout.buffer
    load, dump = json.loads, json.dumps

    def read() -> Any:
        line = questions.readline()
        return load(line) if line else None

    def write(message: Any) -> None:
        answers.write(dump(message).encode() + b"\n")
        answers.flush()

    limits = read()
    sys.stdin, sys.stdout, sys.stderr = io.StringIO(), Discard(), Discard()
    try:
        for module in MODULES.split():
            importlib.import_module(module)
        limit(limits)
        give_up_system_calls()
    except (ImportError, OSError, ValueError) as error:
        write({"refused": _reason(error)})
        return
    write({"ready": True})
    task = read()
    if "candidate" in task:
        be_candidate(task["candidate"], read, write)
    else:
        be_examiner(task["examiner"], read, write)


if __name__ == "__main__":
    main()
