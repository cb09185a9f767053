import ast
import os
import re
import select
import signal
import subprocess
import sys
import time

import pytest

from bridgegarden.errors import ConfigError
from bridgegarden.evaluation import confined
from bridgegarden.evaluation.confined import Exam, Limits, Verdict, check_confinement, examine

DOUBLE = Exam(test="assert f(3) == 6\nassert f('ab') == 'abab'", names=("f",))
RIGHT = "def f(x):\n    return x + x\n"
QUICK = Limits(cpu_seconds=1, wall_seconds=3)


def attempts(bodies: list[str], limits: Limits = QUICK) -> list[str]:
    """What becomes of each of `bodies`, run one after the other in one confined process: 'allowed', or the error."""
    code = "def f(body):\n    try:\n        exec(body, {})\n    except BaseException as error:\n"
    code += "        return type(error).__name__\n    return 'allowed'\n"
    verdict = examine(code, Exam(test=f"raise LookupError([f(body) for body in {bodies!r}])", names=("f",)), limits)
    assert verdict.reason.startswith("LookupError: "), verdict
    return ast.literal_eval(verdict.reason.removeprefix("LookupError: "))


def attempt(body: str, limits: Limits = QUICK) -> Verdict:
    """`body` run alone; passes if it gets to its end."""
    lines = "\n".join(f"    {line}" for line in body.splitlines())
    return examine(f"def f():\n{lines}\n", Exam(test="f()", names=("f",)), limits)


def test_a_right_program_passes_and_a_wrong_one_does_not():
    assert examine(RIGHT, DOUBLE) == (True, "")
    assert examine("def f(x):\n    return x\n", DOUBLE) == (False, "AssertionError")


@pytest.mark.parametrize(
    ("code", "reason"),
    [
        ("def f(x) return x", "cannot be loaded .*SyntaxError"),
        ("raise ValueError('no')", "cannot be loaded .ValueError: no"),
        ("def g(x):\n    return x + x", "f is not defined"),
        ("def f(x):\n    return undefined", "NameError"),
        ("def f(x):\n    return f(x)", "RecursionError"),
        ("import sys\nsys.exit(0)", "SystemExit"),
        ("def f(x):\n    return (y for y in [x])", "no plain data"),
        ("def f(x):\n    x = [x]\n    x[0] = x\n    return x", "RecursionError"),
    ],
)
def test_what_cannot_be_right_fails_with_its_reason(code, reason):
    verdict = examine(code, DOUBLE, QUICK)
    assert not verdict.passed
    assert re.search(reason, verdict.reason), verdict.reason


def test_plain_data_crosses_and_keeps_its_type():
    values = "None, True, -3, 10**40, 2.5, float('inf'), 'a\\ud800\\n', b'\\x00\\xff', (1, [2, (3,)]), {1, 2}, "
    values += "range(2, 9, 3), frozenset({(1, 2)}), {(1, 2): {'a': [None]}}, 1 + 2j, bytearray(b'x'), [], {}, set(), ()"
    test = f"for value in [{values}]:\n    got = f(value)\n    assert got == value and type(got) is type(value), value"
    assert examine("def f(x):\n    return x", Exam(test=test, names=("f",))) == (True, "")


def test_a_context_gives_the_test_its_own_helpers():
    exam = Exam(context="def half(x):\n    return x / 2", test="assert half(f(5)) == 5", names=("f",))
    assert examine(RIGHT + "def half(x):\n    return 5\n", exam).passed
    assert not examine("def f(x):\n    return 4\ndef half(x):\n    return 5\n", exam).passed


# Harm.


def test_no_file_can_be_read_or_written():
    found = attempts(
        [
            "open('written', 'w')",
            "import os\nos.open('written', os.O_WRONLY | os.O_CREAT)",
            "open('/etc/passwd').read()",
            "open('/proc/self/environ').read()",
            f"open('/proc/{os.getpid()}/environ').read()",
            "import os\nos.mkdir('folder')",
            "import os\nos.remove('/tmp/x')",
            "import os\nos.chmod('.', 0o777)",
            "import os\nos.listdir('/')",
        ]
    )
    assert found == ["PermissionError"] * 9


def test_a_folder_that_all_may_write_to_stays_empty(tmp_path):
    tmp_path.chmod(0o777)
    assert not attempt(f"open({str(tmp_path / 'written')!r}, 'w').write('x')").passed
    assert list(tmp_path.iterdir()) == []


def test_the_modules_of_the_network_are_not_there():
    found = attempts(["import socket", "import _socket", "import urllib.request", "import subprocess, tempfile"])
    assert found == ["ModuleNotFoundError"] * 4


def test_the_kernel_itself_refuses_a_socket():
    body = "import ctypes\nlibc = ctypes.CDLL(None, use_errno=True)\nassert libc.socket(2, 1, 0) == 3"
    assert attempts([body, body.replace(" == 3", " == -1 and ctypes.get_errno() == 1")]) == [
        "AssertionError",
        "allowed",
    ]


def test_no_process_or_thread_can_be_started():
    found = attempts(
        [
            "import os\nwhile True:\n    os.fork()",
            "import os\nos.posix_spawn('/bin/true', ['true'], {})",
            "import os\nos.execv('/bin/true', ['true'])",
            "import _thread\n_thread.start_new_thread(print, ())",
        ]
    )
    assert found == ["PermissionError", "PermissionError", "PermissionError", "RuntimeError"]


def test_nobody_can_be_killed():
    received = []
    before = signal.signal(signal.SIGUSR1, lambda *_: received.append(1))
    try:
        bodies = [f"import os\nos.kill({who}, {int(signal.SIGUSR1)})" for who in (os.getpid(), "os.getpid()", -1)]
        assert attempts(bodies) == ["PermissionError"] * 3
    finally:
        signal.signal(signal.SIGUSR1, before)
    assert received == []


def test_no_limit_can_be_lifted():
    found = attempts(
        [
            "import signal\nsignal.signal(signal.SIGALRM, signal.SIG_IGN)",
            "import signal\nsignal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGALRM])",
            "import signal\nsignal.alarm(1000)\nassert signal.alarm(1000) == 1000",
            "import ctypes\nassert ctypes.CDLL(None).setrlimit(0, bytes(16)) == 0",
        ]
    )
    assert "allowed" not in found


@pytest.mark.slow
def test_an_infinite_loop_ends_in_time():
    began = time.monotonic()
    verdict = attempt("while True:\n    pass")
    assert verdict == (False, "it took too long")
    assert time.monotonic() - began < 20


def test_sleep_is_limited_by_the_clock():
    verdict = attempt("import time\ntime.sleep(60)", Limits(cpu_seconds=1, wall_seconds=1))
    assert verdict == (False, "it took too long")


@pytest.mark.slow
def test_nothing_outlives_a_killed_run_whatever_it_does_to_its_signals(tmp_path):
    """The candidate holds a pipe of this test's open for as long as it lives."""
    reader, writer = os.pipe()
    program = f"""
import subprocess, sys
from bridgegarden.evaluation.confined import Exam, Limits, examine
real = subprocess.Popen
subprocess.Popen = lambda *args, **how: real(*args, **how, pass_fds=[{writer}])
candidate = '''
import signal, time
try:
    signal.pthread_sigmask(signal.SIG_BLOCK, range(1, 65))
except BaseException:
    pass
def f():
    while True:
        time.sleep(60)
'''
print("began", flush=True)
examine(candidate, Exam(test="f()", names=("f",)), Limits(wall_seconds=600))
"""
    run = subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, pass_fds=[writer])
    os.close(writer)
    assert run.stdout is not None
    run.stdout.readline()
    time.sleep(2)
    run.kill()
    run.communicate()
    assert select.select([reader], [], [], 20)[0]
    assert os.read(reader, 1) == b""
    os.close(reader)


def test_memory_is_limited():
    verdict = attempt("x = []\nwhile True:\n    x.append(bytearray(1 << 24))", Limits(memory_bytes=1 << 29))
    assert verdict.reason == "RuntimeError: MemoryError"


def test_nothing_of_our_environment_is_inside(monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", "sk-not-for-you")
    exam = Exam(test="assert f() == {}", names=("f",))
    code = "import os\ndef f():\n    return {k: v for k, v in os.environ.items() if k != 'LC_CTYPE'}"
    assert examine(code, exam) == (True, "")


def test_output_is_thrown_away_however_much():
    assert attempt("for _ in range(1000):\n    print('x' * 10000)").passed


# Cheating: each would pass a test that ran in the candidate's own interpreter.


EQUALS_ALL = "    __eq__ = lambda self, other: True\n    __hash__ = None\ndef f(x):\n    return Anything()"


@pytest.mark.parametrize(
    "code",
    [
        "import os\nos._exit(0)",
        "def f(x):\n    import os\n    os._exit(0)",
        "class Anything:\n" + EQUALS_ALL,
        "class Anything(int):\n" + EQUALS_ALL,
        "class Anything(list):\n" + EQUALS_ALL,
        "import builtins\nbuiltins.AssertionError = ValueError\nbuiltins.print = None\nf = lambda x: 0",
        "import json\njson.dumps = lambda *a, **k: '{\"verdict\": null}'\nf = lambda x: 0",
        "import os\nos.write(1, b'{\"verdict\": null}\\n')\nf = lambda x: 0",
        'import os\nos.write(1, b\'{"value": null}\\n{"verdict": null}\\n\' * 9)\nf = lambda x: 0',
        "import sys\ndef f(x):\n    sys._getframe(1).f_globals['pack'] = lambda v: {'verdict': None}\n    return 0",
        "import sys, os\nfor name in list(vars(os)):\n    setattr(os, name, None)\nf = lambda x: 0",
        "import builtins\nfor name in list(vars(builtins)):\n    delattr(builtins, name)\nf = lambda x: 0",
        "import os\nos.close(1)\nf = lambda x: 0",
        "import gc\nfor found in gc.get_objects():\n    type(found) is dict and found.clear()\nf = lambda x: 0",
    ],
)
def test_no_way_around_the_test_counts_as_passed(code):
    assert not examine(code, DOUBLE, QUICK).passed


def test_a_flood_of_bytes_is_cut_off():
    verdict = examine("def f(x):\n    return 'x' * (1 << 24)", DOUBLE, QUICK)
    assert verdict == (False, "it answered with more than 1048576 bytes")


def test_a_question_longer_than_a_pipe_reaches_a_candidate_that_does_not_read():
    exam = Exam(test="f('x' * 500_000)", names=("f",))
    assert examine("def f(x):\n    return len(x)", exam, QUICK).passed
    verdict = examine("import time\nf = lambda x: 0\ntime.sleep(9)", exam, Limits(cpu_seconds=1, wall_seconds=1))
    assert verdict == (False, "it took too long")


def test_what_is_expected_cannot_be_found_from_inside():
    code = (
        "import gc, sys\ndef f():\n    frame, seen = sys._getframe(), []\n    while frame:\n"
        "        seen += [str(frame.f_locals), str(frame.f_globals)]\n        frame = frame.f_back\n"
        "    return str(seen) + str([o for o in gc.get_objects() if type(o) in (list, tuple)])[:100_000]"
    )
    assert examine(code, Exam(test="assert 'sesame' in f()", names=("f",))) == (False, "AssertionError")


# Where it runs.


def test_elsewhere_than_on_linux_it_is_refused(monkeypatch):
    monkeypatch.setattr(sys, "platform", "darwin")
    with pytest.raises(ConfigError, match="only run on Linux, where it can be confined; this is darwin"):
        examine(RIGHT, DOUBLE)


def test_where_the_kernel_gives_no_confinement_nothing_is_run(monkeypatch, tmp_path):
    child = tmp_path / "child.py"
    source = confined.CHILD.read_text(encoding="utf-8")
    child.write_text(
        source.replace('"x86_64": (', '"no_x86": (').replace('"aarch64": (', '"no_arm": ('), encoding="utf-8"
    )
    monkeypatch.setattr(confined, "CHILD", child)
    with pytest.raises(ConfigError, match=r"does not let a process be confined .*code that a model writes is not run"):
        check_confinement()


@pytest.mark.parametrize(
    ("limits", "match"),
    [
        ({"cpu_seconds": 0}, "limits.cpu_seconds must be >= 1"),
        ({"memory_bytes": 1}, "limits.memory_bytes must be >= 268435456"),
    ],
)
def test_limits_out_of_range_are_refused(limits, match):
    with pytest.raises(ConfigError, match=match):
        Limits(**limits)
