"""Workers: slots in which regular tasks run their handlers, with a timeout, a memory limit and a door that closes.

`ProcessWorkers` runs handlers in processes of their own; `InlineWorkers` runs them in the event loop, for tests. Both
keep the contract of `WorkerPool`: at most `slots` tasks at once, the others wait in order; whatever goes wrong with a
task is a `WorkerError`; when `run` returns or raises, the task no longer runs. Arguments that break the handler's
schema never reach it. Tools that live elsewhere take a slot like others and no process: both pools call them over HTTP.

No library: pebble 5.2 was tried and let a task hang whose handler called `os._exit(0)`, waited 3 s for every handler
that ignores SIGTERM (and so did every other timeout), gave up the whole pool when an idle process was killed, and left
a busy process running after `kill -9` of its parent. anyio's process workers cannot be closed or limited per pool.
"""

from __future__ import annotations

import asyncio
import inspect
import json
import logging
import os
import signal
import socket
import sys
from abc import ABC, abstractmethod
from collections.abc import AsyncIterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from dataclasses import asdict
from typing import Any, Protocol

from llmsched.errors import InvalidInput, InvalidSetting, UnknownName
from llmsched.runtime.tools.arguments import is_long
from llmsched.runtime.tools.handlers import Handler, HandlerRegistry, HttpTool, bind
from llmsched.runtime.tools.http_tools import HttpTools
from llmsched.runtime.tools.work import WorkerError, WorkerTask
from llmsched.runtime.tools.worker_process import HEADER, describe, encode_result, is_retryable, too_large

__all__ = ["InlineWorkers", "ProcessWorkers", "WorkerError", "WorkerPool", "WorkerTask"]

#: How long a worker may take to start and to import a handler's module, in seconds.
START_TIMEOUT = 60.0
#: How long an idle worker may take to leave in peace, and a killed one to be gone, in seconds.
EXIT_TIMEOUT = 1.0
#: What an answer may have beyond the handler's result: an error message, braces.
_ANSWER_BYTES = 64 << 10
MIN_MEMORY_MIB = 64
#: After these a process is not used again. A handler that ran out of memory may have left it full.
_FATAL = ("timeout", "worker_died", "memory")

#: What the interpreter of a worker is told to run; the settings are its only argument.
_PROGRAM = """
import json, sys
settings = json.loads(sys.argv[1])
sys.path[:] = settings.pop("sys_path")
from llmsched.runtime.tools.worker_process import main
main(**settings)
"""

logger = logging.getLogger(__name__)


class WorkerPool(Protocol):
    """What runs regular tasks."""

    @property
    def slots(self) -> int:
        """How many tasks run at once."""

    async def start(self) -> None:
        """Opens the pool. Processes start when the first task needs them."""

    async def run(self, task: WorkerTask) -> object:
        """The handler's result, as JSON values. Waits for a slot; the timeout counts from when the handler starts.

        Raises WorkerError and nothing else. Cancelling ends the handler.
        """

    async def hold(self, seconds: float, *, pool: str = "cpu") -> None:
        """Takes a slot for so long: a recorded task of a pool. Raises WorkerError when it closes meanwhile."""

    async def close(self, grace: float = 5.0) -> None:
        """Closes the pool for good: who waits for a slot fails at once, what runs is killed after `grace` seconds.

        Nothing of the pool is left afterwards. Closing twice is the same as closing once.
        """


class Pool(ABC):
    """What all pools share: slots, the door, the check of arguments, and tools that live elsewhere."""

    def __init__(self, registry: HandlerRegistry, slots: int, tools: HttpTools | None) -> None:
        if slots < 1:
            raise InvalidSetting(f"a worker pool needs at least one slot, not {slots}", field="workers")
        self._registry = registry
        self._tools = tools or HttpTools()
        #: Where long arguments are checked, one after the other, so that the event loop stays free.
        self._checker = ThreadPoolExecutor(1, thread_name_prefix="check arguments")
        self._slots = slots
        self._free = asyncio.Semaphore(slots)
        #: Slots that closing has taken out of use.
        self._retired = 0
        self._open = False
        self._closing = asyncio.Lock()
        #: The stays of those who wait for a slot and of those who have one; ending a stay throws its owner out.
        self._waiting: set[asyncio.Timeout] = set()
        self._running: set[asyncio.Timeout] = set()

    @property
    def slots(self) -> int:
        return self._slots

    async def start(self) -> None:
        self._open = not self._retired

    async def run(self, task: WorkerTask) -> object:
        async with self._slot():
            try:
                handler = self._registry.get(task.handler)
            except UnknownName as error:
                raise WorkerError(str(error), reason="unknown_handler", retryable=False) from error
            await self._check(task)
            if isinstance(handler, HttpTool):
                return await self._call_tool(handler, task)
            return await self._perform(handler, task)

    async def hold(self, seconds: float, *, pool: str = "cpu") -> None:
        async with self._slot():
            await asyncio.sleep(seconds)

    async def close(self, grace: float = 5.0) -> None:
        self._open = False
        async with self._closing:
            _throw_out(self._waiting)
            try:
                async with asyncio.timeout(grace):
                    await self._retire_slots()
            except TimeoutError:
                _throw_out(self._running)
                await self._retire_slots()
            await self._tools.close()
            self._checker.shutdown(wait=False)

    @abstractmethod
    async def _perform(self, handler: Handler, task: WorkerTask) -> object: ...

    async def _check(self, task: WorkerTask) -> None:
        check = self._registry.check_of(task.handler)
        if check is None:
            return
        try:
            if is_long(task.arguments):
                await asyncio.get_running_loop().run_in_executor(self._checker, check, task.arguments)
            else:
                check(task.arguments)
        except InvalidInput as error:
            raise WorkerError(str(error), reason="bad_arguments", retryable=False) from error

    async def _call_tool(self, tool: HttpTool, task: WorkerTask) -> object:
        allowed = asyncio.timeout(task.timeout)
        try:
            async with allowed:
                return await self._tools.call(tool, task)
        except TimeoutError:
            raise overdue(task) from None

    @asynccontextmanager
    async def _slot(self) -> AsyncIterator[None]:
        if not self._open:
            raise WorkerError("the worker pool is not open", reason="worker_died")
        stay = asyncio.timeout(None)
        try:
            async with stay:
                self._waiting.add(stay)
                async with self._free:
                    self._waiting.discard(stay)
                    self._running.add(stay)
                    yield
        except TimeoutError:
            raise WorkerError("the worker pool closed before the task was done", reason="worker_died") from None
        finally:
            self._waiting.discard(stay)
            self._running.discard(stay)

    async def _retire_slots(self) -> None:
        while self._retired < self._slots:
            await self._free.acquire()
            self._retired += 1


def _throw_out(stays: set[asyncio.Timeout]) -> None:
    while stays:
        stays.pop().reschedule(0.0)


# ------------------------------------------------------------------------------------------------ processes


class ProcessWorkers(Pool):
    """Runs every task in one of at most `slots` processes, which start on demand and are used again.

    A task that runs too long, is cancelled, or breaks its process costs that process, with everything it started; the
    next task gets a fresh one. A process has `memory_mib` of address space (None: no limit),
    an empty stdin, none of the service's files and sockets, and of its environment all but `LLMSCHED_…`, where secrets
    are. Handlers print to the service's stderr.

    Raises InvalidSetting for less than one slot or too little memory.
    """

    def __init__(
        self,
        registry: HandlerRegistry,
        slots: int = 2,
        *,
        memory_mib: int | None = 2048,
        max_result_bytes: int = 1 << 20,
        tools: HttpTools | None = None,
    ) -> None:
        super().__init__(registry, slots, tools)
        if memory_mib is not None and memory_mib < MIN_MEMORY_MIB:
            raise InvalidSetting(f"a worker needs at least {MIN_MEMORY_MIB} MiB, not {memory_mib}", field="memory_mib")
        self._memory_mib = memory_mib
        self._max_result_bytes = max_result_bytes
        self._idle: list[_Worker] = []
        #: Processes on their way out.
        self._ending: set[asyncio.Task[object]] = set()

    async def close(self, grace: float = 5.0) -> None:
        await super().close(grace)
        while self._idle:
            self._dismiss(self._idle.pop(), EXIT_TIMEOUT)
        await asyncio.gather(*self._ending)

    async def _perform(self, handler: Handler, task: WorkerTask) -> object:
        try:
            reference = handler.reference
        except InvalidSetting as error:
            raise WorkerError(str(error), reason="unknown_handler", retryable=False) from error
        worker = await self._take()
        is_fit = False
        try:
            result = await self._call(worker, reference, task)
            is_fit = True
        except WorkerError as error:
            is_fit = error.reason not in _FATAL
            if not is_fit:
                logger.warning("worker %d ends: %s", worker.pid, error)
            raise
        finally:
            if is_fit:
                self._idle.append(worker)
            else:  # The slot stays taken until the process is gone, unless somebody cancels twice.
                await asyncio.shield(self._dismiss(worker))
        return result

    async def _take(self) -> _Worker:
        while self._idle:
            worker = self._idle.pop()
            if worker.is_alive:
                return worker
            self._dismiss(worker)
        try:
            return await _Worker.start(self._memory_mib, self._max_result_bytes)
        except OSError as error:
            raise WorkerError(f"a worker process could not start: {error}", reason="worker_died") from error

    async def _call(self, worker: _Worker, reference: tuple[str, str], task: WorkerTask) -> object:
        module, qualname = reference
        if reference not in worker.loaded:
            try:
                async with asyncio.timeout(START_TIMEOUT):
                    await worker.ask({"load": [module, qualname]})
            except TimeoutError:
                message = f"module {module!r} was not imported within {START_TIMEOUT:g} s"
                raise WorkerError(message, reason="worker_died") from None
            worker.loaded.add(reference)
        call = {"call": [module, qualname], "arguments": task.arguments, "context": asdict(task.context)}
        try:
            async with asyncio.timeout(task.timeout):
                return await worker.ask(call)
        except TimeoutError:
            raise overdue(task) from None

    def _dismiss(self, worker: _Worker, grace: float = 0.0) -> asyncio.Task[object]:
        ending: asyncio.Task[object] = asyncio.create_task(worker.end(grace))
        self._ending.add(ending)
        ending.add_done_callback(self._ending.discard)
        return ending


class _Worker:
    """The service's end of one worker process, which answers one call at a time."""

    def __init__(
        self,
        process: asyncio.subprocess.Process,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
        max_answer_bytes: int,
    ) -> None:
        self._process = process
        self._reader = reader
        self._writer = writer
        self._max_answer_bytes = max_answer_bytes
        #: References of the handlers it has imported.
        self.loaded: set[tuple[str, str]] = set()

    @classmethod
    async def start(cls, memory_mib: int | None, max_result_bytes: int) -> _Worker:
        """Raises OSError."""
        ours, theirs = socket.socketpair()
        with theirs:
            reader, writer = await asyncio.open_unix_connection(sock=ours)
            try:
                settings = {
                    "sys_path": sys.path,
                    "fd": theirs.fileno(),
                    "memory_mib": memory_mib,
                    "max_result_bytes": max_result_bytes,
                }
                process = await asyncio.create_subprocess_exec(
                    *(sys.executable, "-P", "-u", "-c", _PROGRAM, json.dumps(settings)),
                    stdin=asyncio.subprocess.DEVNULL,
                    stdout=2,
                    pass_fds=(theirs.fileno(),),
                    start_new_session=True,  # Ctrl-C is for the service
                    env={key: value for key, value in os.environ.items() if not key.startswith("LLMSCHED_")},
                )
            except BaseException:
                writer.transport.abort()
                raise
        return cls(process, reader, writer, max_result_bytes + _ANSWER_BYTES)

    @property
    def pid(self) -> int:
        return self._process.pid

    @property
    def is_alive(self) -> bool:
        return self._process.returncode is None and not self._reader.at_eof()

    async def ask(self, question: Mapping[str, Any]) -> object:
        """The answer. Raises WorkerError; when that is fatal, or when cancelled, the worker is of no more use."""
        body = as_json(question).encode()
        try:
            self._writer.write(HEADER.pack(len(body)) + body)
            await self._writer.drain()
            (size,) = HEADER.unpack(await self._reader.readexactly(HEADER.size))
            if size > self._max_answer_bytes:
                raise WorkerError(f"the worker process answered with {size} bytes", reason="worker_died")
            encoded = await self._reader.readexactly(size)
        except (asyncio.IncompleteReadError, ConnectionError):
            cause = _cause_of_death(await self.end())
            raise WorkerError(f"the worker process {cause} during the task", reason="worker_died") from None
        return read_answer(encoded)

    async def end(self, grace: float = 0.0) -> int:
        """Ends the process, with `grace` seconds to leave in peace, and returns its exit code."""
        if grace and self._process.returncode is None and not self._writer.transport.is_closing():
            self._writer.write_eof()
            await self._gone_within(grace)
        self._writer.transport.abort()
        if not await self._gone_within(EXIT_TIMEOUT):
            self._process.kill()
        return await self._process.wait()

    async def _gone_within(self, seconds: float) -> bool:
        try:
            async with asyncio.timeout(seconds):
                await self._process.wait()
        except TimeoutError:
            return False
        return True


def read_answer(encoded: bytes) -> object:
    """The result in an answer of `worker_process`. Raises WorkerError for what it says went wrong."""
    try:
        answer = json.loads(encoded)
    except (ValueError, RecursionError) as error:  # JSON it is, but nested deeper than we can follow
        message = f"the handler's result cannot be read: {error}"
        raise WorkerError(message, reason="bad_result", retryable=False) from error
    if "error" in answer:
        reason, message, retryable = answer["error"]
        raise WorkerError(message, reason=reason, retryable=retryable)
    result: object = answer["result"]
    return result


def _cause_of_death(code: int) -> str:
    number = -code if code < 0 else code - 128
    try:
        return f"was killed by {signal.Signals(number).name}"
    except ValueError:
        return f"exited with code {code}"


def as_json(arguments: Mapping[str, Any]) -> str:
    try:
        return json.dumps(arguments)
    except (TypeError, ValueError, RecursionError) as error:
        message = f"the handler's arguments are not JSON: {error}"
        raise WorkerError(message, reason="bad_arguments", retryable=False) from error


def overdue(task: WorkerTask) -> WorkerError:
    return WorkerError(f"handler {task.handler!r} ran longer than its {task.timeout:g} s", reason="timeout")


# ------------------------------------------------------------------------------------------- in the event loop


class InlineWorkers(Pool):
    """Runs handlers in the event loop: no processes, hence for tests and trusted `async` handlers only.

    Timeouts and cancelling end an `async` handler where it awaits; a plain function blocks the loop and runs to its
    end. There is no memory limit.

    Raises InvalidSetting for less than one slot.
    """

    def __init__(
        self,
        registry: HandlerRegistry,
        slots: int = 2,
        *,
        max_result_bytes: int = 1 << 20,
        tools: HttpTools | None = None,
    ) -> None:
        super().__init__(registry, slots, tools)
        self._max_result_bytes = max_result_bytes

    async def _perform(self, handler: Handler, task: WorkerTask) -> object:
        function = bind(handler.function)
        arguments = json.loads(as_json(task.arguments))
        allowed = asyncio.timeout(task.timeout)
        try:
            async with allowed:
                result = function(arguments, task.context)
                if inspect.isawaitable(result):
                    result = await result
        except MemoryError as error:
            raise WorkerError("the handler needed more memory than a worker has", reason="memory") from error
        except (Exception, SystemExit) as error:
            if allowed.expired():
                raise overdue(task) from None
            raise WorkerError(describe(error), reason="handler_error", retryable=is_retryable(error)) from error
        try:
            encoded = encode_result(result)
        except ValueError as error:
            raise WorkerError(str(error), reason="bad_result", retryable=False) from error
        if len(encoded) > self._max_result_bytes:
            raise WorkerError(too_large(len(encoded), self._max_result_bytes), reason="too_large", retryable=False)
        return json.loads(encoded)
