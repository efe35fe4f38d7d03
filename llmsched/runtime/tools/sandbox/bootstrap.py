"""The first thing that runs in the process of the sandbox: it locks itself in, and then runs the code.

Standard library only, as little of it as can be, and no import of ours: `run.py` hands it over as compiled code, in a
job on descriptor 0. Another descriptor, the channel, leads back to the service: READY once the locks are on, or what
went wrong; then the verdicts on the checks, each behind a secret that never lies in a file the code could open. Code
that runs without checks does not get the channel.

The verdicts are made in the process that runs the code, so code that looks for the secret in this module's frames can
find it and forge them. Code that merely prints, exits or replaces functions cannot.
"""

from __future__ import annotations

import _ast
import ctypes
import os
import resource
import struct
import sys
from types import ModuleType

TYPE_CHECKING = False  # as `typing` has it, which takes longer to import than all the rest
if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from typing import Any, NoReturn

#: What tracebacks call the code, and a check.
FILE, CHECK_FILE = "main.py", "<check>"
READY = b"ready\n"
#: Longest message of a failed check and longest value in it, in characters.
MESSAGE_CHARS, VALUE_CHARS = 600, 200

_SIGKILL = 9
_PR_SET_PDEATHSIG, _PR_SET_SECCOMP, _PR_SET_NO_NEW_PRIVS = 1, 22, 38
_SECCOMP_MODE_FILTER = 2
_CREATE_RULESET, _ADD_RULE, _RESTRICT_SELF = 444, 445, 446
_PATH_BENEATH = 1
_CAPABILITY_VERSION = 0x20080522


class CheckTimeout(BaseException):
    """A check took too long. Not an Exception, lest an `except Exception` of the code's catches it."""


def main(job: Mapping[str, Any]) -> None:
    """Locks the process in, runs the code of `job`, and then its checks, which end the process.

    Should the locks not hold, the channel says so and the code does not run.
    """
    channel: int = job["channel"]
    checks: Sequence[str] = job["checks"]
    try:
        _lock(job)
    except BaseException as error:  # the border: whatever it is, the code must not run
        os.write(channel, f"{type(error).__name__}: {error}"[:MESSAGE_CHARS].encode(errors="replace"))
        os._exit(1)
    os.write(channel, READY)
    if not checks:
        os.close(channel)
    os.dup2(job["stdin"], 0)
    os.close(job["stdin"])
    report = _reporter(channel, job["secret"])
    module = ModuleType("__main__")
    module.__dict__["__builtins__"] = __builtins__
    sys.modules["__main__"] = module
    sys.argv = [FILE]
    try:
        exec(compile(job["source"], FILE, "exec", dont_inherit=True), module.__dict__)
    except SystemExit as error:
        if not checks:
            raise
        sys.stderr.write(f"the code ended its process: {error!r}\n")
        sys.exit(1)
    except BaseException as error:
        _complain(error, job["source"])
        sys.exit(1)
    if checks:
        _check_all(checks, module.__dict__, job["check_seconds"], report)


# ---------------------------------------------------------------------------------------------------- locks


def _lock(job: Mapping[str, Any]) -> None:
    if job["linux"]:
        _call("prctl", _PR_SET_PDEATHSIG, _SIGKILL, 0, 0, 0)
    if os.getppid() != job["parent"]:  # it died before we asked to die with it
        os._exit(1)
    os.nice(19)
    os.umask(0o077)
    os.environ.clear()
    _provide_exit()
    if job["linux"]:
        _be_first_to_go()
        _drop_capabilities()
        _call("prctl", _PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)
    for name, amount in job["rlimits"].items():
        _limit(getattr(resource, name), *amount)
    if job["landlock"] is not None:
        _close_files(**job["landlock"])
    if job["filter"] is not None:
        _close_calls(job["filter"])


def _provide_exit() -> None:
    """`exit` and `quit`, which come from `site`; it does not run here, since it opens site-packages."""
    import site

    site.setquit()


def _be_first_to_go() -> None:
    """When the machine runs out of memory, this process is the one to kill."""
    try:
        with open("/proc/self/oom_score_adj", "w") as file:
            file.write("1000")
    except OSError:  # no /proc: nothing is lost but this courtesy
        return


def _drop_capabilities() -> None:
    """Root is then an ordinary user, though one who owns nearly all files."""
    header = struct.pack("=Ii", _CAPABILITY_VERSION, 0)
    _call("capset", header, bytes(24))


def _limit(which: int, soft: int, hard: int) -> None:
    most = resource.getrlimit(which)[1]
    if most != resource.RLIM_INFINITY:
        soft, hard = min(soft, most), min(hard, most)
    resource.setrlimit(which, (soft, hard))


def _close_files(attributes: bytes, rules: Sequence[tuple[bytes, int]]) -> None:
    size = ctypes.c_size_t(len(attributes))
    ruleset = _call("syscall", ctypes.c_long(_CREATE_RULESET), attributes, size, 0)
    for path, rights in rules:
        file = os.open(path, os.O_PATH | os.O_CLOEXEC)
        beneath = struct.pack("=Qi", rights, file)
        _call("syscall", ctypes.c_long(_ADD_RULE), ruleset, _PATH_BENEATH, beneath, 0)
        os.close(file)
    _call("syscall", ctypes.c_long(_RESTRICT_SELF), ruleset, 0)
    os.close(ruleset)


def _close_calls(instructions: Sequence[tuple[int, int, int, int | None]]) -> None:
    own = os.getpid()
    packed = b"".join(struct.pack("=HBBI", c, t, f, own if k is None else k) for c, t, f, k in instructions)
    code = ctypes.create_string_buffer(packed, len(packed))
    program = struct.pack("@HP", len(instructions), ctypes.addressof(code))
    _call("prctl", _PR_SET_SECCOMP, _SECCOMP_MODE_FILTER, program, 0, 0)


def _call(name: str, *arguments: Any) -> int:
    """A function of the C library. Raises OSError when it fails."""
    result: int = _libc[name](*arguments)
    if result == -1:
        number = ctypes.get_errno()
        raise OSError(number, f"{name}{tuple(a for a in arguments if isinstance(a, int))}: {os.strerror(number)}")
    return result


_libc = ctypes.CDLL(None, use_errno=True)


# ------------------------------------------------------------------------------------------------- the code


def _complain(error: BaseException, source: str) -> None:
    """The traceback, without what lies below the code, and with its lines."""
    try:
        import linecache
        import traceback

        linecache.cache[FILE] = (len(source), None, source.splitlines(keepends=True), FILE)
        start = error.__traceback__
        while start is not None and start.tb_frame.f_code.co_filename != FILE:
            start = start.tb_next
        traceback.print_exception(type(error), error, start)
    except BaseException:  # an exception can be made so that it cannot be printed; MemoryError often cannot
        os.write(2, f"{_message(error)}\n".encode(errors="replace"))


# ------------------------------------------------------------------------------------------------ the checks


def _reporter(channel: int, secret: str) -> Callable[[str], None]:
    write, encode = os.write, str.encode  # which the code may replace

    def report(line: str) -> None:
        left = encode(f"{secret} {line}\n", "utf-8", "backslashreplace")
        while left:
            left = left[write(channel, left) :]

    return report


def _check_all(checks: Sequence[str], names: dict[str, Any], seconds: float, report: Callable[[str], None]) -> NoReturn:
    from signal import ITIMER_REAL, SIGALRM, setitimer, signal

    def too_long(*_: object) -> None:
        raise CheckTimeout(f"took longer than {seconds:g} s")

    leave = os._exit
    for index, check in enumerate(checks):
        try:
            signal(SIGALRM, too_long)
            setitimer(ITIMER_REAL, seconds)
            try:
                _check(check, names)
            finally:
                setitimer(ITIMER_REAL, 0)
        except BaseException as error:  # the border: whatever the code raises is the verdict
            report(f"{index} failed {_message(error)}")
        else:
            report(f"{index} passed")
    report("end")
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except BaseException:  # the code may have closed or replaced it
            continue
    leave(0)  # what the code left to be done at exit is not part of the checks


def _check(check: str, names: dict[str, Any]) -> None:
    tree = compile(check, CHECK_FILE, "exec", _ast.PyCF_ONLY_AST, dont_inherit=True)
    match tree:
        case _ast.Module(body=[_ast.Assert(test=_ast.Compare(left=left, ops=[_ast.Eq()], comparators=[right]))]):
            value = eval(compile(_ast.Expression(left), CHECK_FILE, "eval"), names)
            if not value == eval(compile(_ast.Expression(right), CHECK_FILE, "eval"), names):
                raise AssertionError(f"the left side is {_shown(value)}")
        case _:
            exec(compile(check, CHECK_FILE, "exec", dont_inherit=True), names)


def _shown(value: object) -> str:
    text = repr(value)
    return text if len(text) <= VALUE_CHARS else text[: VALUE_CHARS - 1] + "…"


def _message(error: BaseException) -> str:
    try:
        text = f"{type(error).__name__}: {error}" if str(error) else type(error).__name__
    except BaseException:  # its __str__ is the code's
        text = type(error).__name__
    text = " ".join(text.split())  # one line
    return text if len(text) <= MESSAGE_CHARS else text[: MESSAGE_CHARS - 1] + "…"


if __name__ == "llmsched_sandbox":  # run by `run.py`, which puts the job beside it
    main(job)  # type: ignore[name-defined]  # noqa: F821
