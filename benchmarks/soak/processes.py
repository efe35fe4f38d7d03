"""The processes of a soak: engines, and the service under a supervisor that starts it again whenever it is gone.

On Linux the soak makes itself the parent of every orphan below it, so that nothing that the service started can leave
the tree unseen.
"""

from __future__ import annotations

import asyncio
import ctypes
import json
import os
import random
import signal
import socket
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil
from verdict import Rest

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
_PR_SET_CHILD_SUBREAPER = 36

#: Seconds that a start, or an end in order, may take on a machine that does other things too.
START_S = 180.0


def adopt_orphans() -> None:
    """From now on descendants that lose their parent become our children. Does nothing where that is not possible."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)


def reap(own: set[int]) -> None:
    """Collects dead orphans that we adopted. own: children whose status somebody else waits for."""
    for child in psutil.Process().children():
        with suppress(psutil.Error, ChildProcessError):
            if child.pid not in own and child.status() == psutil.STATUS_ZOMBIE:
                os.waitpid(child.pid, os.WNOHANG)


def environment(**more: str) -> dict[str, str]:
    """Ours without settings of the service, which its user may have, and with the checkout to import from."""
    ours = {k: v for k, v in os.environ.items() if not k.startswith("LLMSCHED_")}
    return ours | {"PYTHONPATH": str(ROOT)} | more


async def until(condition: Callable[[], Awaitable[object]], seconds: float, what: str) -> None:
    """Asks ten times a second. Raises TimeoutError."""
    deadline = time.monotonic() + seconds
    while not await condition():
        if time.monotonic() > deadline:
            raise TimeoutError(f"{what} did not come true within {seconds:g} s")
        await asyncio.sleep(0.1)


class Engine:
    """An emulated engine on a port of its own, which it keeps."""

    def __init__(self, number: int, folder: Path, speed: float) -> None:
        self.name = f"engine-{number}"
        self.port = _free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self.heard = folder / f"{self.name}.heard"
        self._speed = speed
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def pid(self) -> int | None:
        """None while it is down."""
        return self._process.pid if self._process is not None and self._process.poll() is None else None

    def start(self) -> None:
        command = [sys.executable, str(HERE / "engine.py"), str(self.port), str(self.heard), str(self._speed)]
        self._process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, env=environment(), start_new_session=True
        )

    def kill(self) -> None:
        assert self._process is not None
        self._process.kill()
        self._process.wait()

    def stop(self) -> None:
        """Lets it end with its input, or else kills it."""
        if self._process is None:
            return
        assert self._process.stdin is not None
        self._process.stdin.close()
        try:
            self._process.wait(10)
        except subprocess.TimeoutExpired:
            self.kill()

    def requests(self) -> list[tuple[float, str]]:
        """When it was asked for what, over all its lives."""
        if not self.heard.exists():
            return []
        lines = (line.partition(" ") for line in self.heard.read_text().splitlines())
        return [(float(at), id) for at, _, id in lines if id]


class Service:
    """`llmsched serve` as a process, on a port that it keeps; `keep` starts it again when it is gone.

    settings: as in its environment. lives: how often it was started; on_death: told of an end that nobody ordered.
    """

    def __init__(self, folder: Path, settings: Mapping[str, Any], on_death: Callable[[str], None]) -> None:
        self.port = _free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self.log = folder / "service.log"
        self.lives = 0
        #: Seconds from start to listening, of every life.
        self.starts: list[float] = []
        #: When it was killed, and when it was back.
        self.away: list[tuple[float, float]] = []
        self._killed_at: float | None = None
        self._counts = folder / "tasks.json"
        self._settings = {"port": self.port, "log_format": "json", **settings}
        self._on_death = on_death
        self._ordered = False
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def pid(self) -> int | None:
        return self._process.pid if self._process is not None and self._process.poll() is None else None

    @property
    def process(self) -> psutil.Process | None:
        with suppress(psutil.Error):
            return None if self.pid is None else psutil.Process(self.pid)
        return None

    async def start(self) -> None:
        """Returns when it accepts connections. Raises TimeoutError or RuntimeError with its last words."""
        values = {k: v if isinstance(v, str) else json.dumps(v) for k, v in self._settings.items()}
        began = time.monotonic()
        with self.log.open("ab") as log:
            self._process = subprocess.Popen(  # noqa: ASYNC220 (returns at once)
                [sys.executable, str(HERE / "served.py"), str(self._counts), "serve"],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                cwd=self.log.parent,
                env=environment(**{f"LLMSCHED_{k.upper()}": v for k, v in values.items()}),
                start_new_session=True,
            )
        self._ordered = False
        self.lives += 1

        async def listens() -> bool:
            if self.pid is None:
                raise RuntimeError(f"the service ended at once: {self.log.read_text(errors='replace')[-2000:]}")
            with suppress(OSError):
                (await asyncio.open_connection("127.0.0.1", self.port))[1].close()
                return True
            return False

        await until(listens, START_S, "a listening service")
        self.starts.append(time.monotonic() - began)
        if self._killed_at is not None:
            self.away.append((self._killed_at, time.time()))
            self._killed_at = None

    async def keep(self, after: float = 0.3) -> None:
        """Starts it again, `after` seconds after it is gone, for ever."""
        while True:
            await asyncio.sleep(0.05)
            if self._process is not None and (code := self._process.poll()) is not None:
                if not self._ordered:
                    self._on_death(f"the service ended by itself with status {code}")
                await asyncio.sleep(after)
                await self.start()

    def kill(self) -> None:
        """`kill -9`, of the server process alone."""
        self._ordered, self._killed_at = True, time.time()
        assert self._process is not None
        self._process.kill()
        self._process.wait()

    async def terminate(self, seconds: float = START_S) -> int:
        """SIGTERM; its exit status. Raises TimeoutError."""
        assert self._process is not None
        process, self._ordered = self._process, True
        process.send_signal(signal.SIGTERM)

        async def ended() -> bool:
            return process.poll() is not None

        await until(ended, seconds, "the end of the service after SIGTERM")
        return process.returncode

    def children(self) -> list[psutil.Process]:
        """Everything below it."""
        process = self.process
        with suppress(psutil.Error):
            return [] if process is None else process.children(recursive=True)
        return []

    def workers(self) -> list[psutil.Process]:
        """The processes of its workers: keepers, and the runners that do the work."""
        return [child for child in self.children() if self._kind(child) in ("keeper", "runner")]

    def _kind(self, process: psutil.Process) -> str:
        """What a process below it is for."""
        try:
            command = " ".join(process.cmdline())
            is_child = process.ppid() == self.pid
        except psutil.Error:
            return "gone"
        if "worker_process" in command:
            return "keeper" if is_child else "runner"
        return "fit" if "llmsched.fitting" in command else command[:60] or "gone"

    async def rest(self) -> Rest:
        """What it holds right now."""
        process = self.process
        assert process is not None, "the service is down"
        with process.oneshot():
            sockets = process.net_connections("tcp")
            return Rest(
                files=self._files(),
                connections=sum(c.status == psutil.CONN_ESTABLISHED for c in sockets),
                children=dict(Counter(map(self._kind, self.children()))),
                tasks=await self.tasks(),
                rss_mb=process.memory_info().rss / 1e6,
            )

    def _files(self) -> dict[str, int]:
        """How many of its open files are what: socket, pipe, anon_inode, database, or the name of a file."""
        found: Counter[str] = Counter()
        for link in Path(f"/proc/{self.pid}/fd").iterdir():
            with suppress(OSError):
                name = os.readlink(link).partition(":[")[0].rpartition("/")[2]
                found["database" if ".db" in name else name.partition(":")[0]] += 1
        return dict(found)

    async def tasks(self) -> dict[str, int]:
        """Its asyncio tasks by the coroutine they run."""
        assert self.pid is not None, "the service is down"
        self._counts.unlink(missing_ok=True)
        os.kill(self.pid, signal.SIGUSR1)

        async def written() -> bool:
            return self._counts.exists()

        await until(written, 10.0, "an answer to SIGUSR1")
        counts: dict[str, int] = json.loads(self._counts.read_text())
        return counts

    def said(self) -> tuple[list[tuple[str, str]], Counter[str]]:
        """(errors, how often it warned of what) of its whole log; a line that is no log line is an error."""
        errors: list[tuple[str, str]] = []
        warnings: Counter[str] = Counter()
        for line in self.log.read_text(errors="replace").splitlines():
            try:
                entry = json.loads(line)
            except json.JSONDecodeError:
                if line.strip() and "listens on" not in line:
                    errors.append(("a line that is no log line:", line))
                continue
            if entry["level"] in ("error", "critical"):
                details = {k: v for k, v in entry.items() if k not in ("level", "logger", "message")}
                errors.append((entry["message"], json.dumps(details)))
            elif entry["level"] == "warning":
                warnings[entry["message"]] += 1
        return errors, warnings


def _free_port() -> int:
    """One below those that the system gives to outgoing connections, which could take it while its owner is down."""
    while True:
        port = random.randrange(20_000, 32_000)
        with suppress(OSError), socket.create_server(("127.0.0.1", port)):
            return port
