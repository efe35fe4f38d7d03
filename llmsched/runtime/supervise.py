"""Processes the service starts itself: kept running, their output in our log, and gone when the service is.

Each command runs on a tether (`tether.py`), which ends it with all its descendants when the service exits, even by
`kill -9`. A command that dies is started again after 1 s, then 2, 4, … up to 60 s; never given up, always reported.

```
starting ──ready──▶ up ──exit──▶ waiting ──back-off over──▶ starting
    └──────exit, or not ready in time──────▲
```
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import shutil
import socket
import subprocess
import sys
from collections import deque
from collections.abc import Awaitable, Callable, Mapping, Sequence
from pathlib import Path
from random import Random
from typing import IO, Any

import orjson

TETHER = Path(__file__).with_name("tether.py")
#: Longer output lines are logged in pieces of this size.
MAX_LINE_BYTES = 16 << 10
#: Output lines remembered for the report of a death.
TAIL_LINES = 20
#: A command that was up this long starts its back-off anew.
STABLE_S = 60.0
#: Time between two questions whether a command is ready.
POLL_S = 0.2
#: Whether the tether still runs is looked at this often, in case nothing tells.
EXIT_CHECK_S = 1.0
#: How long the tether may take to end what it is told to kill.
KILL_S = 15.0

Announcement = dict[str, Any]


def _ignore(_: object) -> None:
    """Nobody listens."""


class Supervised:
    """A command that is kept running.

    name: in the log, as logger `llmsched.process.<name>`. env: added to our own environment.
    It is up when it has printed `announcements` lines of JSON objects on stdout and `ready`, if given, says so, for
    which it has `ready_timeout` seconds; otherwise it is started anew.
    on_up: called with the announcements. on_down: called with a sentence when it was up and is no more.
    grace: seconds between SIGTERM and SIGKILL. backoff: first and longest wait before a restart, in seconds; up to a
    quarter less at random.
    """

    def __init__(
        self,
        name: str,
        command: Sequence[str],
        *,
        random: Random,
        announcements: int = 0,
        ready: Callable[[], Awaitable[bool]] | None = None,
        ready_timeout: float = 900.0,
        on_up: Callable[[list[Announcement]], None] = _ignore,
        on_down: Callable[[str], None] = _ignore,
        env: Mapping[str, str] | None = None,
        grace: float = 10.0,
        backoff: tuple[float, float] = (1.0, 60.0),
    ) -> None:
        self.name = name
        self.command = list(command)
        #: What it is doing, for people: "up", "starting", "exited with status 1; starting again in 4.0 s", …
        self.status = "not started"
        #: Times it was started.
        self.starts = 0
        #: Its last lines of output.
        self.tail: deque[str] = deque(maxlen=TAIL_LINES)
        self._random = random
        self._wanted = announcements
        self._ready = ready
        self._ready_timeout = ready_timeout
        self._on_up = on_up
        self._on_down = on_down
        self._env = env or {}
        self._grace = grace
        self._backoff = backoff
        self._log = logging.getLogger(f"llmsched.process.{name}")
        self._up = asyncio.Event()
        self._stopping = asyncio.Event()
        self._announced: list[Announcement] = []
        self._has_announced = asyncio.Event()
        self._process: subprocess.Popen[bytes] | None = None
        self._task: asyncio.Task[None] | None = None

    @property
    def up(self) -> bool:
        """Whether it runs and is ready."""
        return self._up.is_set()

    def start(self) -> None:
        """Start the command and keep it running until `stop`. Call once, in the event loop."""
        assert self._task is None, f"{self.name} was started before"
        self._task = asyncio.create_task(self._run(), name=f"supervise {self.name}")

    async def wait_up(self, timeout: float) -> bool:
        """Wait until it is up; False if that takes longer than `timeout` seconds."""
        try:
            await asyncio.wait_for(self._up.wait(), timeout)
        except TimeoutError:
            return False
        return True

    async def stop(self, grace: float | None = None) -> None:
        """End it and everything it started: SIGTERM, and SIGKILL after `grace` seconds (default: the object's)."""
        if self._task is None:
            return
        self._stopping.set()
        for patience in (self._grace if grace is None else grace, KILL_S):
            self._terminate()
            await asyncio.wait({self._task}, timeout=patience)
            if self._task.done():
                await self._task
                return
        # Closes the pipe, which the tether takes for our death. Unkillable processes are all that can be left.
        self._task.cancel()
        await asyncio.wait({self._task})
        self._log.error("process=%s event=stop outcome=survived", self.name)

    async def _run(self) -> None:
        clock = asyncio.get_running_loop().time
        first, longest = self._backoff
        delay = first
        while not self._stopping.is_set():
            began = clock()
            story = await self._once()
            if self._stopping.is_set():
                break
            if clock() - began > STABLE_S:
                delay = first
            wait = delay * self._random.uniform(0.75, 1.0)
            delay = min(longest, 2 * delay)
            self._report(f"{story}; starting again in {wait:.1f} s")
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._stopping.wait(), wait)
        self.status = "stopped"

    async def _once(self) -> str:
        """Run the command from start to end; a sentence about how it ended."""
        self.status = "starting"
        self.starts += 1
        self._announced.clear()
        self._has_announced.clear()
        if not self._wanted:
            self._has_announced.set()
        reading, writing = os.pipe()
        try:
            self._process = self._spawn(reading)
            self._log.info("process=%s event=start pid=%d", self.name, self._process.pid)
            code = await self._attend(self._process)
        except OSError as error:
            return f"cannot be started: {error}"
        finally:
            os.close(reading)
            os.close(writing)
            self._process = None
            was_up = self.up
            self._up.clear()
        # The tether says 128 + n for a command ended by signal n; of its own such end we hear -n.
        story = f"exited with status {code}" if 0 <= code <= 128 else f"was ended by signal {max(-code, code - 128)}"
        if self.tail and not self._stopping.is_set():
            story += f" after saying {self.tail[-1]!r}"
        if was_up:
            self._on_down(f"{self.name} {story}")
        return story

    async def _attend(self, process: subprocess.Popen[bytes]) -> int:
        """Listen to a running tether until it ends; its status."""
        assert process.stdout is not None
        assert process.stderr is not None
        async with asyncio.TaskGroup() as group:
            pumps = [
                group.create_task(self._pump(process.stdout, self._stdout_line)),
                group.create_task(self._pump(process.stderr, self._line)),
            ]
            waiting = group.create_task(self._become_up())
            code = await self._exit(process, pumps)
            for task in (waiting, *pumps):
                task.cancel()
        return code

    def _spawn(self, leash: int) -> subprocess.Popen[bytes]:
        tether = [sys.executable, "-I", "-S", str(TETHER), str(leash), str(self._grace), "--"]
        return subprocess.Popen(
            [*tether, *self.command],
            bufsize=0,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            pass_fds=(leash,),
            # A Ctrl-C in the terminal is for the service, which then ends its processes in order.
            start_new_session=True,
            env=os.environ | self._env,
        )

    async def _exit(self, process: subprocess.Popen[bytes], pumps: list[asyncio.Task[None]]) -> int:
        """Wait for the end of the tether; its status.

        The end of the output tells of it. Not asyncio's subprocesses, which wait for that end only: whoever outlives a
        killed tether may hold the output open for ever.
        """
        while (code := process.poll()) is None:
            _, open_pumps = await asyncio.wait(pumps, timeout=EXIT_CHECK_S)
            if not open_pumps:
                await asyncio.sleep(EXIT_CHECK_S / 50)
        await asyncio.wait(pumps, timeout=EXIT_CHECK_S)
        return code

    async def _become_up(self) -> None:
        try:
            async with asyncio.timeout(self._ready_timeout):
                await self._has_announced.wait()
                while self._ready is not None and not await self._ready():  # noqa: ASYNC110 (of another process)
                    await asyncio.sleep(POLL_S)
        except TimeoutError:
            self._report(f"was not ready within {self._ready_timeout:g} s")
            self._terminate()
            return
        self._up.set()
        self.status = "up"
        self._log.info("process=%s event=up", self.name)
        self._on_up(list(self._announced))

    async def _pump(self, pipe: IO[bytes], line: Callable[[bytes], None]) -> None:
        """Hand on the lines of a pipe until its end, and close it."""
        loop = asyncio.get_running_loop()
        stream = asyncio.StreamReader()
        transport, _ = await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(stream), pipe)
        rest = b""
        try:
            while data := await stream.read(1 << 16):
                *lines, rest = (rest + data).split(b"\n")
                for each in lines:
                    line(each)
                if len(rest) > MAX_LINE_BYTES:
                    line(rest)
                    rest = b""
            if rest:
                line(rest)
        finally:
            transport.close()

    def _stdout_line(self, line: bytes) -> None:
        if line.startswith(b"{") and not self._has_announced.is_set():
            with contextlib.suppress(orjson.JSONDecodeError):
                self._announced.append(orjson.loads(line))
            if len(self._announced) == self._wanted:
                self._has_announced.set()
        self._line(line)

    def _line(self, line: bytes) -> None:
        text = line.decode(errors="replace").rstrip()
        if text:
            self.tail.append(text[:500])
            self._log.info("%s", text)

    def _terminate(self) -> None:
        if self._process is not None:
            self._process.terminate()

    def _report(self, story: str) -> None:
        self.status = story
        self._log.warning("process=%s event=down story=%s", self.name, story)


def vllm_command(
    model: str,
    port: int,
    *,
    host: str = "127.0.0.1",
    max_num_seqs: int | None = None,
    python: str | None = None,
    extra_args: Sequence[str] = (),
) -> list[str]:
    """The command of a local vLLM server with priority scheduling.

    `vllm serve` where that is on the PATH; its server module of the interpreter `python` (default: ours) otherwise, or
    when `python` is given.
    """
    program = None if python else shutil.which("vllm")
    command = (
        [program, "serve", model]
        if program
        else [python or sys.executable, "-m", "vllm.entrypoints.openai.api_server", "--model", model]
    )
    command += ["--host", host, "--port", str(port), "--scheduling-policy", "priority"]
    if max_num_seqs is not None:
        command += ["--max-num-seqs", str(max_num_seqs)]
    return [*command, *extra_args]


def emulator_command(
    engines: int = 1,
    *,
    port: int = 0,
    model: str | None = None,
    latency: str | None = None,
    max_batch: int | None = None,
    speed: float | None = None,
    script: str | None = None,
) -> list[str]:
    """The command of so many emulated engines in one process; it announces each (`url`, `model`, `slots`) when ready.

    port: of the first engine; 0 picks free ones. What is None is left to the emulator's defaults.
    """
    command = [sys.executable, "-m", "llmsched.runtime.emulator", "--engines", str(engines), "--port", str(port)]
    options = {"model": model, "latency": latency, "max-batch": max_batch, "speed": speed, "script": script}
    for option, value in options.items():
        if value is not None:
            command += [f"--{option}", str(value)]
    return command


def free_port(host: str = "127.0.0.1") -> int:
    """A TCP port nobody listens on at this moment."""
    with socket.create_server((host, 0)) as server:
        port: int = server.getsockname()[1]
        return port
