"""One run of foreign code: its process from start to end, and what became of it.

The process is a bare interpreter (`-I -S`: the standard library and nothing else, no environment). It cannot start
others, so its end is the end of the run. It ends with the thread that called `run_python`, however that goes.

While it runs we look at it every LOOK_S seconds: the kernel has limits for one process's memory, time and descriptors,
but none for the threads of root's processes and none for the bytes below a directory.

Environment variable SANDBOX, for the operator alone, since handlers' arguments come from clients and models: "full"
(default) refuses to run anything where the kernel lacks Landlock or seccomp; "limits" does without both everywhere.
"""

from __future__ import annotations

import ctypes
import importlib.util
import marshal
import os
import platform
import secrets
import selectors
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, fields
from functools import lru_cache
from pathlib import Path
from typing import IO, Any, Literal

from llmsched.errors import BackendError, InvalidInput, InvalidSetting
from llmsched.runtime.tools.sandbox import landlock, seccomp
from llmsched.runtime.tools.sandbox.bootstrap import MESSAGE_CHARS, READY
from llmsched.runtime.tools.sandbox.directory import fresh_directory, usage

SWITCH = "SANDBOX"
LOOK_S = 0.05
#: After the last pipe closed, the process has ended or is about to, unless it closed them itself. Seconds.
_EXIT_LOOK_S = 0.002
_LINUX = sys.platform == "linux"
_PROGRAM = (
    "import marshal; job = marshal.loads(open(0, 'rb', closefd=False).read());"
    " exec(job.pop('program'), {'__name__': 'llmsched_sandbox', 'job': job})"
)

Status = Literal["ok", "error", "timeout", "memory", "output", "disk", "threads", "killed"]


@dataclass(frozen=True, slots=True)
class Limits:
    """What one run may use. Raises InvalidInput for what is not above zero."""

    #: Of wall-clock time.
    seconds: float = 20.0
    #: Of processor time, over all threads.
    cpu_seconds: int = 10
    #: Of wall-clock time, for each check.
    check_seconds: float = 5.0
    #: Of address space; the interpreter takes about 40.
    memory_mib: int = 512
    #: Of one file, and of all files together.
    file_mib: int = 16
    disk_mib: int = 64
    #: Files and directories together.
    files: int = 1000
    open_files: int = 64
    threads: int = 64
    #: Of stdout, and of stderr.
    output_bytes: int = 64 << 10

    def __post_init__(self) -> None:
        for limit in fields(self):
            if not getattr(self, limit.name) > 0:
                raise InvalidInput(f"limit {limit.name} is {getattr(self, limit.name)!r}, it must be above zero")


@dataclass(frozen=True, slots=True)
class Check:
    """What became of one check. message: why it failed; empty if it passed."""

    passed: bool
    message: str = ""


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of the code.

    | status | |
    |---|---|
    | ok | it ran to its end, and so did the checks, whether they passed or not |
    | error | it raised, or it exited with another code than 0, or before its checks were done |
    | timeout | wall clock or processor time was up |
    | memory | MemoryError |
    | output, disk, threads | it printed, stored or started more than it may |
    | killed | a signal ended it: it crashed, or the machine ran out of memory |

    exit_code: minus the signal, if one ended it. stdout, stderr: cut at the limit, which the text then says; what is
    not UTF-8, and NUL, is "\\ufffd". seconds: of wall-clock time, with the start of the interpreter.
    checks: one for each that was asked for.
    """

    status: Status
    exit_code: int
    stdout: str
    stderr: str
    seconds: float
    checks: tuple[Check, ...] = ()

    @property
    def passed(self) -> bool:
        """Whether it ran to its end and passed every check."""
        return self.status == "ok" and all(check.passed for check in self.checks)


_DEFAULT = Limits()


def run_python(source: str, *, stdin: str = "", checks: Sequence[str] = (), limits: Limits = _DEFAULT) -> Outcome:
    """Runs `source` as a program, alone and locked in, and waits for its end.

    checks: statements (mostly `assert`) that run one after another where `source` left off, whether or not those
    before passed. A verdict comes on a way of its own, so that what the code prints or how it exits cannot stand for
    it; see `bootstrap.py` for what code can do that sets out to deceive.

    Raises InvalidSetting when this machine cannot lock the code in, or SANDBOX is set to something unknown, and
    BackendError or OSError when the process cannot be started. Nothing has run then.
    """
    is_full = _is_full()
    began = time.monotonic()
    with fresh_directory() as directory, tempfile.TemporaryFile() as job, tempfile.TemporaryFile() as given:
        given.write(stdin.encode(errors="replace"))
        given.seek(0)
        secret = secrets.token_hex(16)
        channel, theirs = os.pipe()
        try:
            order = {
                "program": _bootstrap(),
                "source": source,
                "checks": list(checks),
                "check_seconds": limits.check_seconds,
                "secret": secret,
                "channel": theirs,
                "stdin": given.fileno(),
                "parent": os.getpid(),
                "linux": _LINUX,
                "rlimits": _rlimits(limits),
                **_locks(str(directory), is_full),
            }
            job.write(marshal.dumps(order))
            job.seek(0)
            process = _start(directory, job, given, theirs)
        except BaseException:
            os.close(channel)
            raise
        finally:
            os.close(theirs)
        with process:
            run = _Run(process, channel, directory, limits, len(checks))
            try:
                run.watch(began + limits.seconds)
            finally:
                run.end()
    if not run.has_run:
        raise BackendError(f"the sandbox cannot be locked, so the code did not run: {_text(run.said) or run.stderr}")
    return run.outcome(secret, time.monotonic() - began)


class _Run:
    """The process, what it has said so far, and why we ended it if we did."""

    def __init__(
        self, process: subprocess.Popen[bytes], channel: int, directory: Path, limits: Limits, checks: int
    ) -> None:
        self._process = process
        self._directory = directory
        self._limits = limits
        self._checks = checks
        self._status: int | None = None
        self._cpu_seconds = 0.0
        #: Why we ended it.
        self._ended: Status | None = None
        assert process.stdout is not None
        assert process.stderr is not None
        self._channel = channel
        self._out, self._err = process.stdout.fileno(), process.stderr.fileno()
        for pipe in (self._out, self._err, channel):  # somebody else may hold the other end when the process is gone
            os.set_blocking(pipe, False)
        self._read = {self._out: bytearray(), self._err: bytearray(), channel: bytearray()}
        report = len(READY) + (checks + 1) * (100 + 8 * MESSAGE_CHARS)
        self._most = {self._out: limits.output_bytes, self._err: limits.output_bytes, channel: report}

    @property
    def said(self) -> bytes:
        """What came through the channel."""
        return bytes(self._read[self._channel])

    @property
    def has_run(self) -> bool:
        """Whether the code has begun, or could not because we were out of patience."""
        return self.said.startswith(READY) or (not self.said and self._ended is not None)

    @property
    def stderr(self) -> str:
        return _text(self._read[self._err])

    def watch(self, deadline: float) -> None:
        """Returns when the process has ended, or is to be ended."""
        next_look = time.monotonic() + LOOK_S
        with selectors.DefaultSelector() as selector:
            for pipe in self._read:
                selector.register(pipe, selectors.EVENT_READ)
            left = set(self._read)
            while self._ended is None and not self._has_exited():
                now = time.monotonic()
                if now >= deadline:
                    self._ended = "timeout"
                elif now >= next_look:
                    self._ended = self._look()
                    next_look = time.monotonic() + LOOK_S
                if self._ended is not None:
                    break
                wait = max(0.0, min(deadline, next_look) - now)
                if not left:
                    time.sleep(min(wait, _EXIT_LOOK_S))
                for key, _ in selector.select(wait) if left else ():
                    if not self._take(key.fd):
                        selector.unregister(key.fd)
                        left.discard(key.fd)
        for pipe in left:  # what it said last
            while self._ended is None and self._take(pipe):
                pass

    def end(self) -> None:
        """Nothing of the process is left afterwards."""
        if self._status is None:
            # The whole group, for where only limits hold it, it may have started others. Not yet waited for, it keeps
            # its number, so this can hit nobody else.
            with suppress(ProcessLookupError, PermissionError):
                os.killpg(self._process.pid, signal.SIGKILL)
            self._collect(0)
        os.close(self._channel)

    def outcome(self, secret: str, seconds: float) -> Outcome:
        assert self._status is not None
        code = os.waitstatus_to_exitcode(self._status)
        verdicts, is_complete = self._verdicts(secret)
        status: Status
        if self._ended is not None:
            status = self._ended
        elif code == -signal.SIGXCPU or (code == -signal.SIGKILL and self._cpu_seconds >= self._limits.cpu_seconds):
            status = "timeout"
        elif code < 0:
            status = "killed"
        elif code == 0 and is_complete:
            status = "ok"
        elif self.stderr.rstrip().rpartition("\n")[2].startswith("MemoryError"):
            status = "memory"
        else:
            status = "error"
        out, err = (self._shown(pipe) for pipe in (self._out, self._err))
        return Outcome(status, code, out, err, seconds, verdicts)

    def _take(self, pipe: int) -> bool:
        """Reads what there is; False at the end, or if there is nothing."""
        try:
            got = os.read(pipe, 1 << 16)
        except BlockingIOError:
            return False
        self._read[pipe] += got
        if len(self._read[pipe]) > self._most[pipe]:
            self._ended = "output"
        return bool(got)

    def _look(self) -> Status | None:
        size, entries = usage(self._directory)
        if size > self._limits.disk_mib << 20 or entries > self._limits.files:
            return "disk"
        with suppress(OSError):  # gone, or a system without /proc
            if os.stat(f"/proc/{self._process.pid}/task").st_nlink - 2 > self._limits.threads:
                return "threads"
        return None

    def _has_exited(self) -> bool:
        if not _LINUX:  # where some versions of Python have no waitid
            return self._status is not None or self._collect(os.WNOHANG)
        return os.waitid(os.P_PID, self._process.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None

    def _collect(self, options: int) -> bool:
        pid, status, used = os.wait4(self._process.pid, options)
        if pid:
            self._status = status
            self._cpu_seconds = used.ru_utime + used.ru_stime
            self._process.returncode = os.waitstatus_to_exitcode(status)
        return bool(pid)

    def _shown(self, pipe: int) -> str:
        most = self._most[pipe]
        text = _text(self._read[pipe][:most])
        return text if len(self._read[pipe]) <= most else f"{text}\n[cut after {most} bytes]\n"

    def _verdicts(self, secret: str) -> tuple[tuple[Check, ...], bool]:
        """The verdict on each check, and whether the last of them was followed by the end."""
        found: dict[str, Check] = {}
        is_complete = not self._checks
        for line in _text(self.said.removeprefix(READY)).split("\n"):
            match line.split(" "):
                case [known, "end"] if known == secret:
                    is_complete = len(found) == self._checks
                case [known, index, "passed"] if known == secret:
                    found.setdefault(index, Check(True))
                case [known, index, "failed", *message] if known == secret:
                    found.setdefault(index, Check(False, " ".join(message)))
        missing = Check(False, "not decided: the run ended before or during this check")
        return tuple(found.get(str(index), missing) for index in range(self._checks)), is_complete


def _start(directory: Path, job: IO[bytes], given: IO[bytes], channel: int) -> subprocess.Popen[bytes]:
    # Some interpreters find their own library only so; the code does not see it.
    kept = {key: os.environ[key] for key in ("LD_LIBRARY_PATH",) if key in os.environ}
    # The interpreter behind a virtual environment: it finds no site-packages, and no pyvenv.cfg that leads to some.
    python = getattr(sys, "_base_executable", None) or sys.executable
    return subprocess.Popen(
        [python, "-I", "-S", "-B", "-X", "utf8", "-c", _PROGRAM],
        cwd=directory,
        env=kept,
        stdin=job,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        pass_fds=(given.fileno(), channel),
        start_new_session=True,
    )


@lru_cache(1)
def _bootstrap() -> Any:
    """The compiled code of `bootstrap.py`, which is the child's too: it is the same interpreter."""
    name = "llmsched.runtime.tools.sandbox.bootstrap"
    found = importlib.util.find_spec(name)
    assert found is not None
    return found.loader.get_code(name)  # type: ignore[union-attr]  # a loader of files has it


def _rlimits(limits: Limits) -> dict[str, tuple[int, int]]:
    """(soft, hard) by name. At the hard limit of processor time the kernel kills; the soft one asks first."""
    file, memory = limits.file_mib << 20, limits.memory_mib << 20
    return {
        "RLIMIT_CORE": (0, 0),
        "RLIMIT_CPU": (limits.cpu_seconds, limits.cpu_seconds + 1),
        "RLIMIT_FSIZE": (file, file),
        "RLIMIT_NOFILE": (limits.open_files, limits.open_files),
        "RLIMIT_AS": (memory, memory),
    }


# ------------------------------------------------------------------------------------------- what this kernel can


def missing(system: str, machine: str, landlock_version: int, has_seccomp: bool) -> str | None:
    """What keeps a machine from locking code in, as the start of a sentence; None if nothing does.

    >>> missing("Darwin", "arm64", 0, False)
    'Darwin has no Landlock and no seccomp'
    """
    if system != "Linux":
        return f"{system} has no Landlock and no seccomp"
    if machine not in seccomp.MACHINES:
        return f"there is no list of system calls for {machine}, only for {' and '.join(seccomp.MACHINES)}"
    if not landlock_version:
        return (
            "this kernel offers no Landlock (Linux 5.13 and later do, unless it is left out at boot or in a container)"
        )
    if not has_seccomp:
        return "this kernel offers no seccomp filters"
    return None


def _is_full() -> bool:
    """Whether code is to be locked in, or only limited. Raises InvalidSetting if it shall and cannot."""
    match os.environ.get(SWITCH, "full"):
        case "limits":
            return False
        case "full" | "":
            lacking = lack()
            if lacking is None:
                return True
            raise InvalidSetting(
                f"{lacking}, so code that a model wrote does not run here; use another machine, or set {SWITCH}=limits"
                " in the service's environment if limits on time and memory are enough for you (docs/sandbox.md)"
            )
        case other:
            raise InvalidSetting(f"{SWITCH} is {other!r}; set it to 'full' or 'limits'")


@lru_cache(1)
def lack() -> str | None:
    """What keeps this machine from locking code in; None if nothing does."""
    if not _LINUX:
        return missing(platform.system(), platform.machine(), 0, False)
    pr_get_seccomp = 21
    has_seccomp = ctypes.CDLL(None).prctl(pr_get_seccomp, 0, 0, 0, 0) >= 0
    return missing(platform.system(), os.uname().machine, landlock.version(), has_seccomp)


def _locks(directory: str, is_full: bool) -> Mapping[str, Any]:
    if not is_full:
        return {"landlock": None, "filter": None}
    known = landlock.version()
    rules = [*landlock.readable(), landlock.writable(directory, known)]
    return {
        "landlock": {"attributes": landlock.ruleset(known), "rules": rules},
        "filter": seccomp.build_filter(os.uname().machine),
    }


def _text(raw: bytes | bytearray) -> str:
    return raw.decode("utf-8", "replace").replace("\0", "\ufffd")
