"""The program of one worker: a process that runs handlers, and one that sees to it that nothing outlives the service.

```
service ──socket──┬── keeper            waits for the end of either neighbour
                  └── runner            reads calls, runs handlers, answers
                        └── whatever a handler started
```

The service kills a worker by closing its end of the socket, and the kernel closes it however the service dies. The
keeper then kills the runner and all its descendants. When the runner dies by itself the keeper kills those it left
behind and exits with its status. Should the keeper be killed, the kernel kills the runner. Half-closing the socket asks
the runner to leave in peace. (Elsewhere than on Linux: only its process group, and not when the keeper is killed.)

A message is its length (4 bytes, big endian) and a JSON object:

    {"load": [module, qualname]}                                 import a handler; answered like a call
    {"call": [module, qualname], "arguments": {}, "context": {}} call it, which must have been loaded
    {"result": …}  or  {"error": [reason, message, retryable]}   the answer

JSON and not pickle, so that what runs in a worker can never run code in the service. SIGTERM does nothing here: whoever
sends it to all processes of the service means the service, which decides what becomes of running tasks.
"""

from __future__ import annotations

import ctypes
import inspect
import json
import os
import resource
import select
import signal
import struct
import threading
import traceback
from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import Any, BinaryIO, NoReturn

from llmsched.errors import InvalidInput, InvalidSetting
from llmsched.runtime.tether import LINUX, PR_SET_CHILD_SUBREAPER, PR_SET_PDEATHSIG, descendants
from llmsched.runtime.tools.handlers import TaskContext, bind, find_function

HEADER = struct.Struct("!I")
MAX_MESSAGE_CHARS = 1000


def main(fd: int, memory_mib: int | None, max_result_bytes: int) -> None:
    """Runs a worker that talks to the service over the socket `fd`."""
    os.set_inheritable(fd, False)
    signal.signal(signal.SIGTERM, lambda *_: None)  # not SIG_IGN, which programs started by handlers would inherit
    prctl = ctypes.CDLL(None).prctl if LINUX else lambda *_: None
    prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    keeper = os.getpid()
    runner = os.fork()
    if runner:
        _keep(runner, fd)
    os.setpgid(0, 0)
    prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    if os.getppid() != keeper:  # it died before we asked
        return
    if memory_mib is not None:
        resource.setrlimit(resource.RLIMIT_AS, (memory_mib << 20, memory_mib << 20))
    with (
        suppress(ConnectionError),  # the service is gone, or waits no more: the keeper is about to kill us
        open(fd, "rb", closefd=False) as calls,
        open(fd, "wb", closefd=False) as answers,
    ):
        _serve(calls, answers, max_result_bytes)


def _keep(runner: int, fd: int) -> NoReturn:
    """Waits until the runner or the service is gone, ends what is left of the worker, and exits."""

    def end_with_the_service() -> None:
        hang_up = select.poll()
        hang_up.register(fd, 0)  # no events: poll still tells that the other side closed
        hang_up.poll()
        _kill(runner)

    threading.Thread(target=end_with_the_service, daemon=True).start()
    pid = status = 0
    while pid != runner:  # orphans that we adopted are collected on the way
        pid, status = os.waitpid(-1, 0)
    if LINUX:
        _end_the_adopted()
    else:
        with suppress(ProcessLookupError):
            os.killpg(runner, signal.SIGKILL)
    code = os.waitstatus_to_exitcode(status)
    os._exit(code if code >= 0 else 128 - code)  # as a shell tells of a signal


def _end_the_adopted() -> None:
    """Whatever the runner left behind is ours now; those we kill may leave children, so look until there are none."""
    with suppress(ChildProcessError):
        while True:
            for pid in descendants(os.getpid()):
                _kill(pid)
            os.waitpid(-1, 0)


def _kill(pid: int) -> None:
    with suppress(ProcessLookupError):
        os.kill(pid, signal.SIGKILL)


def _serve(calls: BinaryIO, answers: BinaryIO, max_result_bytes: int) -> None:
    handlers: dict[tuple[str, str], Callable[[dict[str, Any], TaskContext], Any]] = {}
    runner = os.getpid()
    while header := calls.read(HEADER.size):
        (size,) = HEADER.unpack(header)
        match json.loads(calls.read(size)):
            case {"load": [module, qualname]}:
                try:
                    handlers[module, qualname] = bind(find_function(module, qualname))
                    answer = b'{"result":null}'
                except InvalidSetting as error:
                    answer = _error("unknown_handler", str(error), retryable=False)
            case {"call": [module, qualname], "arguments": arguments, "context": context}:
                answer = _perform(handlers[module, qualname], arguments, TaskContext(**context), max_result_bytes)
                if os.getpid() != runner:  # a fork that a handler made and did not end has our socket too
                    os._exit(0)
        answers.write(HEADER.pack(len(answer)) + answer)
        answers.flush()


def call(
    module: str, qualname: str, arguments: dict[str, Any], context: dict[str, Any], max_result_bytes: int
) -> bytes:
    """The answer of a handler that may not have been imported yet."""
    try:
        function = bind(find_function(module, qualname))
    except InvalidSetting as error:
        return _error("unknown_handler", str(error), retryable=False)
    return _perform(function, arguments, TaskContext(**context), max_result_bytes)


def _perform(
    function: Callable[[dict[str, Any], TaskContext], Any],
    arguments: dict[str, Any],
    context: TaskContext,
    max_result_bytes: int,
) -> bytes:
    try:
        result = function(arguments, context)
        if inspect.isawaitable(result):
            from asyncio import run  # 40 ms

            result = run(_wait_for(result))
    except MemoryError:
        return _error("memory", "the handler needed more memory than a worker has", retryable=True)
    except BaseException as error:  # the border: whatever a handler raises, SystemExit too, is news for the service
        return _error("handler_error", describe(error), retryable=is_retryable(error))
    try:
        encoded = encode_result(result)
    except ValueError as error:
        return _error("bad_result", str(error), retryable=False)
    except MemoryError:
        return _error("memory", "the handler's result needs more memory than a worker has", retryable=True)
    if len(encoded) > max_result_bytes:
        return _error("too_large", too_large(len(encoded), max_result_bytes), retryable=False)
    return b'{"result":%b}' % encoded


async def _wait_for(result: Awaitable[Any]) -> Any:
    return await result


def _error(reason: str, message: str, *, retryable: bool) -> bytes:
    return json.dumps({"error": [reason, message, retryable]}).encode()


# ------------------------------------------------------------------------- also what in-memory workers go by


def encode_result(result: Any) -> bytes:
    """What a handler returned, as JSON. Raises ValueError, with a sentence, for what JSON or UTF-8 cannot say.

    >>> encode_result({"found": [1, 2.5, "é", None]})
    b'{"found":[1,2.5,"\\xc3\\xa9",null]}'
    >>> encode_result(float("nan"))  # doctest: +ELLIPSIS
    Traceback (most recent call last):
    ValueError: the handler's result is not JSON: Out of range float values are not JSON compliant...
    """
    try:
        return json.dumps(result, ensure_ascii=False, allow_nan=False, separators=(",", ":")).encode()
    except (TypeError, ValueError, RecursionError) as error:
        raise ValueError(f"the handler's result is not JSON: {_shorten(str(error))}") from error


def too_large(size: int, limit: int) -> str:
    return f"the handler's result has {size} bytes and may have {limit}"


def describe(error: BaseException) -> str:
    """What was raised and where, in one line of bounded length."""
    frames = traceback.extract_tb(error.__traceback__)
    where = f" ({os.path.basename(frames[-1].filename)}, line {frames[-1].lineno})" if frames else ""
    what = "".join(traceback.format_exception_only(error))
    return _shorten(" ".join(what.split())) + where


def is_retryable(error: BaseException) -> bool:
    """Whether another attempt could end better than with `error`."""
    return not isinstance(error, InvalidInput)


def _shorten(text: str) -> str:
    return text if len(text) <= MAX_MESSAGE_CHARS else text[: MAX_MESSAGE_CHARS - 1] + "…"
