"""The sandbox against code that means harm: none of it gets out, stays behind, or passes for something it is not."""

from __future__ import annotations

import asyncio
import errno
import os
import platform
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
import pytest_asyncio

from llmsched.errors import BackendError, InvalidInput, InvalidSetting
from llmsched.runtime.tools.handlers import TaskContext, build_registry
from llmsched.runtime.tools.sandbox import Check, Limits, Outcome, landlock, run_python, seccomp
from llmsched.runtime.tools.sandbox.directory import fresh_directory, remove, usage
from llmsched.runtime.tools.sandbox.run import lack, missing
from llmsched.runtime.tools.workers import ProcessWorkers, WorkerError, WorkerTask

pytestmark = pytest.mark.skipif(lack() is not None, reason=f"nothing to lock code in with: {lack()}")

#: Short, for code that uses up what it gets. A test that is to pass by any other limit has ten times as much.
SHORT = Limits(seconds=1.0, cpu_seconds=1)
#: What code must never see, in the environment of the process that runs it.
SECRET = "tell-nobody-7391"


@pytest.fixture(autouse=True)
def _leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Temporary files of the test's own, and after it neither a directory nor a process of a run."""
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setenv("SECRET", SECRET)
    monkeypatch.delenv("SANDBOX", raising=False)
    monkeypatch.setattr("tempfile.tempdir", None)
    before = {child.pid for child in psutil.Process().children(recursive=True)}
    yield
    assert [list(home.iterdir()) for home in tmp_path.glob("llmsched-sandbox-*")] in ([], [[]])
    assert [child for child in psutil.Process().children(recursive=True) if child.pid not in before] == []


def last_line(outcome: Outcome) -> str:
    return outcome.stderr.rstrip().rpartition("\n")[2]


# ------------------------------------------------------------------------------------------- ordinary code


def test_code_runs_to_its_end() -> None:
    outcome = run_python("import sys\nprint(6 * 7)\nprint('oh', file=sys.stderr)")
    assert (outcome.status, outcome.exit_code, outcome.stdout, outcome.stderr) == ("ok", 0, "42\n", "oh\n")
    assert outcome.passed


def test_an_exception_is_told_with_the_line_of_the_code_and_nothing_of_ours() -> None:
    outcome = run_python("def f():\n    return 1 / 0\n\nf()")
    assert (outcome.status, outcome.exit_code) == ("error", 1)
    assert re.sub(r"\n *[~^]+", "", outcome.stderr) == (
        'Traceback (most recent call last):\n  File "main.py", line 4, in <module>\n    f()\n'
        '  File "main.py", line 2, in f\n    return 1 / 0\nZeroDivisionError: division by zero\n'
    )


@pytest.mark.parametrize(
    ("source", "error"),
    [
        ("def f(:\n    pass", "SyntaxError: invalid syntax"),
        ("x = 1\0", "SyntaxError: source code string cannot contain null bytes"),
        ("x = '\ud800'", "UnicodeEncodeError: 'utf-8' codec can't encode character"),
        ("def f():\n    return f()\nf()", "RecursionError: maximum recursion depth exceeded"),
        ("(" * 10_000, "SyntaxError: too many nested parentheses"),
        ("print('\\ud800')", "UnicodeEncodeError: 'utf-8' codec can't encode character"),
        ("class E(Exception):\n    def __str__(self): 1 / 0\nraise E", "E: <exception str() failed>"),
        ("import yaml", "ModuleNotFoundError: No module named 'yaml'"),
        ("import llmsched", "ModuleNotFoundError: No module named 'llmsched'"),
    ],
)
def test_code_that_fails_says_why(source: str, error: str) -> None:
    outcome = run_python(source)
    assert outcome.status == "error"
    assert last_line(outcome).removeprefix("main.").startswith(error)


def test_the_standard_library_is_there() -> None:
    modules = (
        "asyncio bisect bz2 collections csv ctypes dataclasses datetime decimal enum fractions functools hashlib heapq"
        " itertools json lzma math multiprocessing random re sqlite3 ssl statistics string subprocess tempfile"
        " threading typing unittest uuid xml.etree.ElementTree zlib zoneinfo"
    )
    use = (
        "import sqlite3, tempfile, threading, hashlib\n"
        "database = sqlite3.connect('a.db'); database.execute('create table t (x)'); database.commit()\n"
        "tempfile.TemporaryFile().write(b'x')\n"
        "thread = threading.Thread(target=print, args=(hashlib.sha256(b'').hexdigest()[:8],)); thread.start()\n"
        "thread.join(); exit()"
    )
    outcome = run_python(f"import {modules.replace(' ', ', ')}\n{use}")
    assert (outcome.status, outcome.stdout, outcome.stderr) == ("ok", "e3b0c442\n", "")


def test_code_starts_with_nothing_of_ours() -> None:
    outcome = run_python(
        "import os, sys\n"
        "def is_open(n):\n"
        "    try: os.fstat(n)\n"
        "    except OSError: return False\n"
        "    return True\n"
        "print(dict(os.environ), os.listdir('.'), [n for n in range(60) if is_open(n)], sys.argv, sys.stdin.read())\n"
        "print(__name__, sorted(globals().keys() - {'is_open', 'os', 'sys'}))"
    )
    assert outcome.stdout == (
        "{} [] [0, 1, 2] ['main.py'] \n__main__ ['__builtins__', '__doc__', '__loader__', '__name__', '__package__',"
        " '__spec__']\n"
    )


def test_stdin_is_what_was_given() -> None:
    assert run_python("print(input() + '!', input())", stdin="naïve\n☃").stdout == "naïve! ☃\n"


def test_a_program_of_a_megabyte_runs() -> None:
    lines = "x = 1  # nothing\n" * 65_000
    assert run_python(lines + "print(x)").stdout == "1\n"


def test_output_that_is_no_text_is_made_one() -> None:
    outcome = run_python(r"import sys; sys.stdout.buffer.write(b'\xff\x00ok\xed\xa0\x80')")
    assert (outcome.status, outcome.stdout) == ("ok", "��ok���")


def test_exit_codes_are_told() -> None:
    found = [(o.status, o.exit_code) for o in (run_python(f"raise SystemExit({code})") for code in ("0", "3", "'no'"))]
    assert found == [("ok", 0), ("error", 3), ("error", 1)]


def test_limits_must_be_above_zero() -> None:
    with pytest.raises(InvalidInput, match="limit memory_mib is 0, it must be above zero"):
        Limits(memory_mib=0)


# ------------------------------------------------------------------------------------------------ escapes

SYSCALL = "import ctypes, os\nlibc = ctypes.CDLL(None, use_errno=True)\n"
DENIED = "PermissionError: [Errno 1] Operation not permitted"
CLOSED = "PermissionError: [Errno 13] Permission denied"

#: Should one of them get out one day, it does no harm: signals are 0, modes and owners stay, forks come to an end.
ESCAPES = {
    "fork bomb": ("import os\nfor _ in range(6): os.fork()", DENIED),
    "fork bomb in threads": (
        "import os, threading\nerrors = []\ndef fork():\n  try: os.fork()\n  except OSError as e: errors.append(e)\n"
        "threads = [threading.Thread(target=fork) for _ in range(8)]\n[t.start() for t in threads]\n"
        "[t.join() for t in threads]\nassert len(errors) == 8\nraise errors[0]",
        DENIED,
    ),
    "subprocess": ("import subprocess\nsubprocess.run(['/bin/sh', '-c', 'true'])", DENIED),
    "subprocess without vfork": (
        "import subprocess\nsubprocess._USE_VFORK = False\nsubprocess.run(['/bin/true'], preexec_fn=print)",
        DENIED,
    ),
    "posix_spawn": ("import os\nos.posix_spawn('/bin/true', ['true'], {})", DENIED),
    "multiprocessing": ("import multiprocessing as m\nm.get_context('fork').Process(target=print).start()", DENIED),
    "forkserver": ("import multiprocessing as m\nm.get_context('spawn').Process(target=print).start()", DENIED),
    "pty": ("import pty\npty.fork()", "OSError: out of pty devices"),
    "exec": ("import os\nos.execv('/bin/sh', ['sh'])", DENIED),
    "asyncio subprocess": ("import asyncio\nasyncio.run(asyncio.create_subprocess_exec('true'))", DENIED),
    "parent's environment": ("import os\nopen(f'/proc/{os.getppid()}/environ')", CLOSED),
    "parent's memory": ("import os\nopen(f'/proc/{os.getppid()}/mem', 'r+b')", CLOSED),
    "parent's directory": ("import os\nos.readlink(f'/proc/{os.getppid()}/cwd')", CLOSED),
    "own environment": ("open('/proc/self/environ')", CLOSED),
    "passwords": ("open('/etc/passwd')", CLOSED),
    "root directory": ("import os\nos.listdir('/')", CLOSED),
    "processes": ("import os\nos.listdir('/proc')", CLOSED),
    "site-packages": (f"import os\nos.listdir({str(Path(pytest.__file__).parents[1])!r})", CLOSED),
    "symlink out": ("import os\nos.symlink('/etc/passwd', 'x')\nopen('x')", CLOSED),
    "directory symlink out": ("import os\nos.symlink('/etc', 'x')\nopen('x/passwd')", CLOSED),
    "hard link in": ("import os\nos.link('/etc/passwd', 'x')", "OSError: [Errno 18] Invalid cross-device link"),
    "leave the directory": ("open('../x', 'w')", CLOSED),
    "shared memory": ("open('/dev/shm/x', 'w')", CLOSED),
    "named shared memory": (
        "from multiprocessing import shared_memory\nshared_memory.SharedMemory(create=True, size=1 << 30)",
        CLOSED,
    ),
    "anonymous file": ("import os\nos.memfd_create('x')", DENIED),
    "terminal": ("open('/dev/tty')", CLOSED),
    "write to the library": ("import os\nopen(os.__file__, 'a')", CLOSED),
    "cut the library": ("import os\nos.truncate(os.__file__, os.stat(os.__file__).st_size)", DENIED),
    "cut the library by opening it": (
        "import os, email.mime as empty\nos.open(empty.__file__, os.O_RDONLY | os.O_TRUNC)",
        DENIED,
    ),
    "into the library": ("import os\nos.mkdir(os.path.dirname(os.__file__) + '/x')", CLOSED),
    "read the interpreter": ("import sys\nopen(sys.executable)", CLOSED),
    "chmod": ("import os\nos.chmod('/etc/passwd', 0o644)", DENIED),
    "fchmod": ("import os\nos.fchmod(os.open(os.__file__, os.O_RDONLY), 0o644)", DENIED),
    "chown": ("import os\nos.chown('/etc/passwd', 0, 0)", DENIED),
    "utime": ("import os\nos.utime('/etc/passwd')", DENIED),
    "xattr": ("import os\nos.setxattr('/etc/passwd', 'user.x', b'1')", DENIED),
    "TCP": ("import socket\nsocket.create_connection(('127.0.0.1', 80))", DENIED),
    "UDP": ("import socket\nsocket.socket(socket.AF_INET, socket.SOCK_DGRAM)", DENIED),
    "UNIX socket": ("import socket\nsocket.socket(socket.AF_UNIX)", DENIED),
    "pair of sockets": ("import socket\nsocket.socketpair()", DENIED),
    "netlink": ("import socket\nsocket.socket(socket.AF_NETLINK, socket.SOCK_RAW)", DENIED),
    "kill the parent": ("import os\nos.kill(os.getppid(), 0)", DENIED),
    "kill init": ("import os\nos.kill(1, 0)", DENIED),
    "kill all": ("import os\nos.kill(-1, 0)", DENIED),
    "kill the group": ("import os\nos.killpg(0, 0)", DENIED),
    "signal by owner": ("import fcntl, os\nfcntl.fcntl(os.pipe()[0], fcntl.F_SETOWN, os.getppid())", DENIED),
    "signal by descriptor": ("import os\nos.pidfd_open(os.getppid())", DENIED),
    "limits of the parent": ("import os, resource as r\nr.prlimit(os.getppid(), r.RLIMIT_CPU)", DENIED),
    "more processor time": ("import resource as r\nr.setrlimit(r.RLIMIT_CPU, (99, 99))", "ValueError: not allowed"),
    "more memory": ("import resource as r\nr.setrlimit(r.RLIMIT_AS, (-1, -1))", "ValueError: not allowed"),
    "more priority": ("import os\nos.nice(-5)", DENIED),
    "another user": ("import os\nos.setuid(0)", DENIED),
    "a session": ("import os\nos.setsid()", DENIED),
    "chroot": ("import os\nos.chroot('.')", DENIED),
    "device": ("import os, stat\nos.mknod('x', 0o600 | stat.S_IFBLK, os.makedev(8, 0))", DENIED),
    "outlive the parent": (SYSCALL + "libc.prctl(1, 0)\nraise OSError(ctypes.get_errno(), '')", "PermissionError"),
    "privileges back": (
        SYSCALL + "data = (ctypes.c_uint * 6)(*[-1] * 6); head = (ctypes.c_uint * 2)(0x20080522, 0)\n"
        "assert libc.capset(head, data) == -1; raise OSError(ctypes.get_errno(), '')",
        "PermissionError",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", ESCAPES)
def test_there_is_no_way_out(name: str) -> None:
    source, error = ESCAPES[name]
    outcome = run_python(source)
    assert (outcome.status, outcome.exit_code) == ("error", 1)
    assert error in outcome.stderr
    assert SECRET not in outcome.stdout + outcome.stderr


def test_the_files_of_the_service_are_closed(tmp_path: Path) -> None:
    database = tmp_path / "jobs.db"
    database.write_text("jobs")
    for path in (database, Path(__file__), Path.home(), Path(sys.executable), tmp_path):
        outcome = run_python(f"import os\nos.open({str(path)!r}, os.O_RDONLY)")
        assert last_line(outcome) == f"{CLOSED}: {str(path)!r}"
    assert run_python(f"open({str(database)!r}, 'w')").status == "error"
    assert database.read_text() == "jobs"


@pytest.mark.parametrize(
    "harm",
    [
        "os.unlink(path)",
        "os.truncate(path, 0)",
        "os.open(path, os.O_RDONLY | os.O_TRUNC)",
        "os.open(path, os.O_RDWR)",
        "os.rename(path, path + '2')",
        "os.rename(path, 'x')",
        "os.link(path, 'y')",
        "os.replace('x', path)",
        "os.chmod(path, 0)",
        "os.utime(path, (0, 0))",
        "shutil.rmtree(os.path.dirname(path))",
        "os.symlink(os.path.dirname(path), 'y') or os.unlink('y/victim')",
        "os.mkdir(path + '2')",
    ],
)
def test_a_file_outside_stays_as_it_is(tmp_path: Path, harm: str) -> None:
    victim = tmp_path / "outside" / "victim"
    victim.parent.mkdir()
    victim.write_text("safe")
    before = victim.stat()

    outcome = run_python(f"import os, shutil\nopen('x', 'w').close()\npath = {str(victim)!r}\n{harm}")

    assert outcome.status == "error"
    assert re.match(r"(PermissionError|OSError): \[Errno (1|13|18)\] ", last_line(outcome))
    after = victim.stat()
    assert (list(victim.parent.iterdir()), victim.read_text()) == ([victim], "safe")
    assert (after.st_mode, after.st_ino, after.st_mtime_ns) == (before.st_mode, before.st_ino, before.st_mtime_ns)


def test_a_service_that_listens_is_not_reached(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as tcp, socket.socket(socket.AF_UNIX) as unix:
        unix.bind(str(tmp_path / "door"))
        unix.listen()
        for family, address in (("INET", tcp.getsockname()), ("UNIX", unix.getsockname())):
            source = f"import socket\nsocket.socket(socket.AF_{family}).connect({address!r})"
            assert last_line(run_python(source)) == DENIED


def test_raw_system_calls_are_refused_as_well() -> None:
    column = seccomp.MACHINES[platform.machine()][0]
    numbers = {name: both[column] for name, both in seccomp.REFUSED.items() if both[column] is not None}
    outcome = run_python(
        SYSCALL + f"for name, number in {numbers!r}.items():\n"
        "    result = libc.syscall(ctypes.c_long(number), 0, 0, 0, 0, 0, 0)\n"
        "    print(name, result, ctypes.get_errno())"
    )
    assert outcome.stdout.splitlines() == [f"{name} -1 {errno.EPERM}" for name in numbers]
    clone3, clone = 435, {"x86_64": 56, "aarch64": 220}[platform.machine()]
    outcome = run_python(
        SYSCALL + f"for number, flags in (({clone3}, 0), ({clone}, 17), ({clone}, 0x10000000), ({clone}, 0x4111)):\n"
        "    print(libc.syscall(ctypes.c_long(number), ctypes.c_long(flags), 0, 0, 0, 0), ctypes.get_errno())"
    )
    assert outcome.stdout.splitlines() == [f"-1 {errno.ENOSYS}", *[f"-1 {errno.EPERM}"] * 3]


@pytest.mark.skipif(platform.machine() != "x86_64", reason="only x86_64 has a second way into the kernel")
def test_the_system_calls_of_another_architecture_end_the_process() -> None:
    # mov eax, 20 (getpid of i386); int 0x80; ret
    outcome = run_python(
        "import ctypes, mmap\nmemory = mmap.mmap(-1, 4096, prot=7)\n"
        r"memory.write(b'\xb8\x14\x00\x00\x00\xcd\x80\xc3')"
        "\nctypes.CFUNCTYPE(ctypes.c_int)(ctypes.addressof(ctypes.c_char.from_buffer(memory)))()"
    )
    assert (outcome.status, outcome.exit_code) == ("killed", -signal.SIGSYS)


# ------------------------------------------------------------------------------------------- using things up

USES_UP: dict[str, tuple[str, str]] = {
    "endless loop": ("while True: pass", "timeout"),
    "endless sleep": ("import time\ntime.sleep(1000)", "timeout"),
    "endless loop in C": ("sum(range(10**15))", "timeout"),
    "a loop that ignores every signal": (
        "import contextlib, signal\nfor n in range(1, 65):\n  with contextlib.suppress(OSError, ValueError):"
        " signal.signal(n, signal.SIG_IGN)\nwhile True: pass",
        "timeout",
    ),
    "a process that stops itself": ("import os, signal\nos.kill(os.getpid(), signal.SIGSTOP)", "timeout"),
    "a thread that never ends": (
        "import threading\nthreading.Thread(target=threading.Event().wait).start()",
        "timeout",
    ),
    "an exit that never ends": ("import atexit, time\natexit.register(time.sleep, 1000)", "timeout"),
    "closed descriptors": ("import os\nos.closerange(0, 64)\nwhile True: pass", "timeout"),
    "memory, bit by bit": ("x = []\nwhile True: x.append('x' * 10**7)", "memory"),
    "memory, at once": ("bytearray(10**12)", "memory"),
    "output": ("while True: print('x' * 1000)", "output"),
    "output of errors": ("import sys\nwhile True: sys.stderr.write('x' * 1000)", "output"),
    "output behind Python": ("import os\nwhile True: os.write(1, b'x' * 1000)", "output"),
    "many files": ("i = 0\nwhile True:\n  open(str(i), 'w').close(); i += 1", "disk"),
    "many files of some size": ("i = 0\nwhile True:\n  open(str(i), 'w').write('x' * 10**6); i += 1", "disk"),
    "deep directories": ("import os\nwhile True:\n  os.mkdir('d'); os.chdir('d')", "disk"),
    "threads": (
        "import threading, time\nthreading.stack_size(32768)\n"
        "while True: threading.Thread(target=time.sleep, args=(60,)).start()",
        "threads",
    ),
    "a file too large": ("f = open('x', 'wb')\nwhile True: f.write(b'x' * 10**6)", "error"),
    "descriptors": ("f = []\nwhile True: f.append(open('x', 'w'))", "error"),
    "a signal to itself": ("import os\nos.kill(os.getpid(), 9)", "killed"),
    "a crash": ("import ctypes\nctypes.string_at(0)", "killed"),
}


def test_code_that_has_no_time_to_begin_has_timed_out() -> None:
    outcome = run_python("print(1)", checks=["pass"], limits=Limits(seconds=1e-6))
    assert (outcome.status, outcome.stdout, outcome.checks) == ("timeout", "", (Check(False, NOT_DECIDED),))


@pytest.mark.parametrize("name", USES_UP)
def test_code_that_uses_up_what_it_gets_is_stopped(name: str) -> None:
    source, status = USES_UP[name]
    limits = SHORT if status == "timeout" else Limits(seconds=20, cpu_seconds=20)
    outcome = run_python(source, limits=limits)
    assert outcome.status == status
    assert len(outcome.stdout) + len(outcome.stderr) < 70_000


def test_processor_time_is_limited_apart_from_the_clock() -> None:
    outcome = run_python("while True: pass", limits=Limits(seconds=60, cpu_seconds=1))
    assert (outcome.status, outcome.exit_code) == ("timeout", -signal.SIGXCPU)


def test_output_is_cut_and_says_so() -> None:
    outcome = run_python("print('x' * 200)", limits=Limits(output_bytes=100))
    assert (outcome.status, outcome.stdout) == ("output", "x" * 100 + "\n[cut after 100 bytes]\n")
    assert run_python("print('x' * 99)", limits=Limits(output_bytes=100)).status == "ok"


def test_no_core_is_dumped_and_the_priority_is_the_lowest() -> None:
    outcome = run_python("import os, resource\nprint(os.getpriority(0, 0), resource.getrlimit(resource.RLIMIT_CORE))")
    assert outcome.stdout == "19 (0, 0)\n"


# -------------------------------------------------------------------------------------------------- checks

ADD = "def add(a, b):\n    return a + b"


def test_each_check_gets_its_verdict() -> None:
    checks = ["assert add(1, 2) == 3", "assert add(1, 2) == 4", "assert add('a', 1) == 'a1'", "assert not add(1, 2)"]
    outcome = run_python(ADD, checks=[*checks, "assert add(2, 2) > 5, 'too small'", "x = add(1, 2)", "assert x == 3"])
    assert outcome.status == "ok"
    assert not outcome.passed
    assert outcome.checks == (
        Check(True),
        Check(False, "AssertionError: the left side is 3"),
        Check(False, 'TypeError: can only concatenate str (not "int") to str'),
        Check(False, "AssertionError"),
        Check(False, "AssertionError: too small"),
        Check(True),
        Check(True),
    )


def test_code_that_passes_every_check_has_passed() -> None:
    assert run_python(ADD, checks=["assert add(1, 2) == 3", "assert add(0, 0) == 0"]).passed


def test_a_check_that_hangs_fails_and_the_others_go_on() -> None:
    source = "def f(n):\n    while n:\n        try: pass\n        except Exception: pass\n    return n"
    limits = Limits(check_seconds=0.2)
    outcome = run_python(source, checks=["assert f(1) == 0", "assert f(0) == 0"], limits=limits)
    assert outcome.checks == (Check(False, "CheckTimeout: took longer than 0.2 s"), Check(True))


NOT_DECIDED = "not decided: the run ended before or during this check"


@pytest.mark.parametrize(
    ("source", "status"),
    [
        ("import os\nprint('2 passed')\nos._exit(0)", "error"),
        ("import sys\nsys.exit(0)", "error"),
        ("raise SystemExit", "error"),
        ("def add(a, b):\n    import os\n    os._exit(0)", "error"),
        ("def add(a, b):\n    import os\n    os.kill(os.getpid(), 15)", "killed"),
        ("1 / 0", "error"),
    ],
)
def test_code_that_ends_before_its_checks_has_not_passed(source: str, status: str) -> None:
    outcome = run_python(source, checks=["assert add(1, 2) == 3", "pass"])
    assert (outcome.status, outcome.checks) == (status, (Check(False, NOT_DECIDED),) * 2)
    assert not outcome.passed


@pytest.mark.parametrize(
    "source",
    [
        # Says so on every descriptor there is.
        "import os\nfor n in range(1, 60):\n  try: os.write(n, b'ready\\n0 passed\\nend\\n')\n  except OSError: pass",
        # Looks for the secret in what is written.
        "import os\nseen = []\nwrite = os.write\nos.write = lambda n, b: seen.append(b) or write(n, b)",
        "import builtins\nbuiltins.AssertionError = ValueError\nbuiltins.eval = builtins.exec = lambda *a: True",
        "import sys\nsys.settrace(lambda *a: None)",
        "import sys, io\nsys.stdout = sys.stderr = io.StringIO()",
        "import signal\nsignal.signal = signal.setitimer = lambda *a: None",
    ],
)
def test_code_that_pretends_does_not_pass(source: str) -> None:
    outcome = run_python(source + "\ndef add(a, b): return 4", checks=["assert add(1, 2) == 3"])
    assert not outcome.passed
    assert [check.passed for check in outcome.checks] == [False]


def test_leaving_from_within_a_check_is_a_failure() -> None:
    outcome = run_python("import sys\ndef add(a, b): sys.exit(0)", checks=["assert add(1, 2) == 3", "assert 1 == 1"])
    assert outcome.checks == (Check(False, "SystemExit: 0"), Check(True))


def test_what_the_code_left_for_its_exit_does_not_delay_the_verdict() -> None:
    source = "import atexit, threading\natexit.register(threading.Event().wait)\nthreading.Thread(target=input).start()"
    assert run_python(source, checks=["assert 1 == 1"]).passed


# ------------------------------------------------------------------------------------------- what is left over


def test_a_directory_is_removed_however_deep_and_however_closed(tmp_path: Path) -> None:
    top = tmp_path / "top"
    top.mkdir()
    here = os.open(top, os.O_RDONLY)
    for _ in range(100):  # longer than a path may be
        os.mkdir("d" * 50, dir_fd=here)
        inner = os.open("d" * 50, os.O_RDONLY, dir_fd=here)
        os.close(here)
        here = inner
    os.symlink(__file__, "link", dir_fd=here)
    os.close(here)
    (top / "closed").mkdir()
    (top / "closed" / "file").touch()
    (top / "closed").chmod(0)
    assert usage(top)[1] > 10**6

    remove(top)

    assert not top.exists()
    assert Path(__file__).exists()


def test_what_a_killed_run_left_is_deleted_by_the_next() -> None:
    code = (
        "from llmsched.runtime.tools.sandbox import run_python\nrun_python('print(1, flush=True)\\nwhile True: pass')"
    )
    with subprocess.Popen([sys.executable, "-c", code]) as parent:
        while not (found := [c for c in psutil.Process(parent.pid).children() if c.nice() == 19]):
            assert parent.poll() is None
        parent.kill()
    assert psutil.wait_procs(found, timeout=10)[1] == []  # it ended with its parent

    with fresh_directory() as directory:
        assert list(directory.parent.iterdir()) == [directory]


def test_a_directory_in_use_is_left_alone() -> None:
    with fresh_directory() as first, fresh_directory() as second:
        assert first.is_dir()
        assert second.is_dir()
        assert first != second


def test_a_home_that_is_not_ours_is_not_used(tmp_path: Path) -> None:
    (tmp_path / f"llmsched-sandbox-{os.geteuid()}").mkdir(mode=0o755)
    with pytest.raises(BackendError, match="is not a directory of our own with mode 700"):
        run_python("print(1)")


# --------------------------------------------------------------------------------------------- requirements


@pytest.mark.parametrize(
    ("machine", "lacks"),
    [
        (("Linux", "x86_64", 1, True), None),
        (("Linux", "aarch64", 7, True), None),
        (("Darwin", "arm64", 0, False), "Darwin has no Landlock and no seccomp"),
        (("Linux", "riscv64", 7, True), "there is no list of system calls for riscv64, only for x86_64 and aarch64"),
        (("Linux", "x86_64", 7, False), "this kernel offers no seccomp filters"),
    ],
)
def test_what_a_machine_lacks_is_named(machine: tuple[str, str, int, bool], lacks: str | None) -> None:
    assert missing(*machine) == lacks


def test_a_kernel_without_landlock_is_told_which_has_it() -> None:
    assert "Linux 5.13" in (missing("Linux", "x86_64", 0, True) or "")


def test_the_operator_may_say_that_limits_are_enough(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("SANDBOX", "limits")
    file = tmp_path / "open"
    file.write_text("seen")
    outcome = run_python(f"print(open({str(file)!r}).read())")
    assert (outcome.status, outcome.stdout) == ("ok", "seen\n")
    assert run_python("while True: pass", limits=SHORT).status == "timeout"
    # What it started ends with it, though it holds the pipes open.
    source = "import subprocess, sys\nsubprocess.Popen([sys.executable, '-c', 'while True: pass'])"
    assert run_python(source, limits=SHORT).status == "ok"


def test_an_unknown_switch_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SANDBOX", "off")
    with pytest.raises(InvalidSetting, match="SANDBOX is 'off'; set it to 'full' or 'limits'"):
        run_python("print(1)")


def test_code_does_not_run_where_the_locks_do_not_hold(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(landlock, "ruleset", lambda version: b"\0" * 8)  # nothing handled, which the kernel refuses
    with pytest.raises(BackendError, match=r"cannot be locked, so the code did not run: OSError: .*No message"):
        run_python("print(1)")


# ------------------------------------------------------------------------------------------------ the filter


def verdict(machine: str, number: int, *arguments: int, pid: int = 77) -> int:
    """What the filter returns for a system call: a small machine for the instructions that it is made of."""
    program = seccomp.build_filter(machine)
    words = {0: number, 4: seccomp.MACHINES[machine][1]} | {16 + 8 * i: a for i, a in enumerate(arguments)}
    at = register = 0
    while True:
        code, if_true, if_false, k = program[at]
        value = pid if k is None else k
        at += 1
        match code:
            case 0x20:
                register = words.get(value, 0)
            case 0x54:
                register &= value
            case 0x15:
                at += if_true if register == value else if_false
            case 0x25:
                at += if_true if register > value else if_false
            case 0x35:
                at += if_true if register >= value else if_false
            case 0x06:
                return value
            case _:
                raise AssertionError(code)


ALLOW, REFUSE, UNKNOWN = 0x7FFF0000, 0x00050001, 0x00050026


@pytest.mark.parametrize("machine", seccomp.MACHINES)
def test_the_filter_decides_every_call(machine: str) -> None:
    column = seccomp.MACHINES[machine][0]
    listed: dict[int, int] = {}
    for table, result in ((seccomp.ALLOWED, ALLOW), (seccomp.IDLE, 0x00050000), (seccomp.REFUSED, REFUSE)):
        listed |= {number: result for both in table.values() if (number := both[column]) is not None}
    conditional = {rule.numbers[column] for rule in seccomp.RULES.values()}
    assert not listed.keys() & conditional
    for number in [*range(600), 0x40000000 + 1]:
        if number not in conditional:
            assert verdict(machine, number) == listed.get(number, UNKNOWN), number


@pytest.mark.parametrize("machine", seccomp.MACHINES)
def test_the_filter_looks_at_arguments(machine: str) -> None:
    column = seccomp.MACHINES[machine][0]

    def asked(name: str, *arguments: int) -> int:
        number = seccomp.RULES[name].numbers[column]
        assert number is not None
        return verdict(machine, number, *arguments)

    assert [asked("kill", pid, 9) for pid in (77, 78, 0, 1, 0xFFFFFFFF)] == [ALLOW, *[REFUSE] * 4]
    assert [asked("tgkill", pid, 77, 9) for pid in (77, 78)] == [ALLOW, REFUSE]
    assert [asked("prlimit64", pid) for pid in (0, 77, 78)] == [ALLOW, ALLOW, REFUSE]
    assert [asked("clone", flags) for flags in (0x3D0F00, 0x7D0F00, 17, 0x3D0F00 | 1 << 29)] == [
        ALLOW, ALLOW, REFUSE, REFUSE,
    ]  # fmt: skip
    assert [asked("openat", 0, 0, flags) for flags in (0o2000000, 0o1102, 0o1000)] == [ALLOW, ALLOW, REFUSE]


@pytest.mark.parametrize(("machine", "header"), [("x86_64", "x86_64-linux-gnu/asm/unistd_64.h"), ("aarch64", "")])
def test_the_numbers_are_those_of_the_kernel(machine: str, header: str) -> None:
    path = Path("/usr/include") / (header or "asm-generic/unistd.h")
    if not path.is_file():
        pytest.skip(f"no {path}")
    text = path.read_text()
    numbers = {name: int(n) for name, n in re.findall(r"#define __NR(?:3264)?_(\w+)\s+(\d+)", text)}
    column = seccomp.MACHINES[machine][0]
    conditional = {name: rule.numbers for name, rule in seccomp.RULES.items()}
    tables = {**seccomp.ALLOWED, **seccomp.IDLE, **seccomp.REFUSED, **conditional}
    wrong = {
        name: both[column]
        for name, both in tables.items()
        if both[column] is not None and numbers.get(name, both[column]) != both[column]
    }
    assert wrong == {}


# --------------------------------------------------------------------------------------- in the worker pool


@pytest_asyncio.fixture
async def workers() -> AsyncIterator[ProcessWorkers]:
    pool = ProcessWorkers(build_registry(["llmsched.apps.code_generation.handlers"], installed=False), 2)
    await pool.start()
    yield pool
    await pool.close()


def run_tests(code: str, timeout: float = 60.0) -> WorkerTask:
    arguments: dict[str, Any] = {"code": code, "tests": ["assert add(1, 2) == 3"]}
    return WorkerTask("code_generation.run_tests", arguments, timeout, TaskContext("j", "s", 0, 1, "j/s/0"))


@pytest.mark.parametrize("name", ["fork bomb", "kill the parent", "kill all", "outlive the parent", "TCP"])
async def test_a_worker_survives_the_escapes(workers: ProcessWorkers, name: str) -> None:
    good = asyncio.create_task(workers.run(run_tests(ADD)))
    bad: Any = await workers.run(run_tests(ESCAPES[name][0]))
    assert bad["passed"] is False
    assert bad["failed"] == [{"test": "assert add(1, 2) == 3", "message": NOT_DECIDED}]
    done: Any = await good
    assert done["passed"] is True
    assert done == await workers.run(run_tests(ADD))


async def test_a_worker_survives_code_that_uses_everything_up(workers: ProcessWorkers) -> None:
    names = ("memory, bit by bit", "threads", "output", "many files of some size", "deep directories", "a crash")
    results: list[Any] = await asyncio.gather(*(workers.run(run_tests(USES_UP[name][0])) for name in names))
    assert [(result["passed"], result["report"].splitlines()[0]) for result in results] == [
        (False, "The code needed more memory than it may have."),
        (False, "The code started more threads than it may and was stopped."),
        (False, "The code printed more than it may and was stopped."),
        (False, "The code wrote more to files than it may and was stopped."),
        (False, "The code wrote more to files than it may and was stopped."),
        (False, "The code crashed its interpreter."),
    ]
    good: Any = await workers.run(run_tests(ADD))
    assert good["passed"] is True


async def test_the_timeout_of_a_task_ends_what_runs_in_the_sandbox(workers: ProcessWorkers) -> None:
    began = time.monotonic()
    with pytest.raises(WorkerError, match=r"ran longer than its 1 s") as error:
        await workers.run(run_tests("import time\ntime.sleep(1000)", timeout=1.0))
    assert error.value.reason == "timeout"
    assert time.monotonic() - began < 20
    good: Any = await workers.run(run_tests(ADD))
    assert good["passed"] is True


async def test_a_job_whose_worker_has_no_sandbox_is_told_why_and_not_tried_again(
    workers: ProcessWorkers, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SANDBOX", "off")  # as the operator's mistake; a kernel without Landlock takes the same way
    with pytest.raises(WorkerError, match="SANDBOX is 'off'; set it to 'full' or 'limits'") as error:
        await workers.run(run_tests(ADD))
    assert (error.value.reason, error.value.retryable) == ("handler_error", False)
