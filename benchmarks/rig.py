"""What the benchmarks share: engines and a gateway in processes of their own, a lean client, figures with goals.

The client is plain aiohttp with pre-encoded bodies, so that on a small machine the measured part is the service and
not its client. The gateway runs with its default settings (durable SQLite, access log on), its log in a file.
"""

from __future__ import annotations

import asyncio
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Coroutine, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any, TypeVar

import aiohttp
import asyncpg
import numpy as np
import orjson
import psutil
import uvloop

from llmsched.model.recording import Recording
from llmsched.runtime.supervise import free_port

T = TypeVar("T")

#: An application of one LLM call.
ONE_CALL = {"stages": [{"name": "answer", "kind": "llm"}]}


@dataclass(frozen=True, slots=True)
class Figure:
    """One measured number. goal: what it is held against, None for a number that only explains others."""

    name: str
    value: float
    unit: str
    goal: float | None = None
    #: whether the goal is an upper bound
    at_most: bool = True

    @property
    def is_met(self) -> bool:
        return self.goal is None or (self.value <= self.goal if self.at_most else self.value >= self.goal)

    def cells(self) -> tuple[str, str, str]:
        """Value, goal and verdict as they are printed."""
        if self.goal is None:
            return f"{_short(self.value)} {self.unit}", "", ""
        sign = "<=" if self.at_most else ">="
        goal = f"{sign} {_short(self.goal)} {self.unit}"
        return f"{_short(self.value)} {self.unit}", goal, "ok" if self.is_met else "MISSED"


def _short(value: float) -> str:
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"


def show(figures: Sequence[Figure]) -> None:
    """Prints figures as a table, goal and verdict beside each."""
    rows = [(f.name, *f.cells()) for f in figures]
    widths = [max(len(row[i]) for row in rows) for i in range(3)]
    for name, value, goal, verdict in rows:
        print(f"  {name:<{widths[0]}}  {value:>{widths[1]}}  {goal:<{widths[2]}}  {verdict}".rstrip(), flush=True)


def versions() -> str:
    """The versions the numbers belong to, one line."""
    packages = ("fastapi", "uvicorn", "httptools", "aiohttp", "sqlalchemy", "pydantic")
    return f"SQLite {_sqlite()}, " + ", ".join(f"{p} {version(p)}" for p in packages)


def _sqlite() -> str:
    import sqlite3

    return sqlite3.sqlite_version


def percentiles(seconds: Sequence[float], *q: float) -> list[float]:
    """In milliseconds."""
    return [float(p) * 1000 for p in np.percentile(np.asarray(seconds), q)]


def run(main: Coroutine[Any, Any, T]) -> T:
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        return runner.run(main)


# ------------------------------------------------------------------------------------------------ engines


@asynccontextmanager
async def engines(
    count: int = 1, *, latency: str | Path | dict[str, Any] = "instant", max_batch: int = 256, port: int = 0
) -> AsyncIterator[list[str]]:
    """URLs of emulated engines in one process of their own. latency: a curve by name, file or content."""
    with tempfile.TemporaryDirectory(prefix="llmsched-bench-") as folder:
        if isinstance(latency, dict):
            path = Path(folder, "latency.json")
            path.write_bytes(orjson.dumps(latency))  # noqa: ASYNC240 (before anything is measured)
            latency = path
        command = [sys.executable, "-m", "llmsched.runtime.emulator", "--exit-with-stdin"]
        options = {"engines": count, "port": port, "latency": latency, "max-batch": max_batch}
        command += [part for key, value in options.items() for part in (f"--{key}", str(value))]
        process = await asyncio.create_subprocess_exec(
            *command, stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE
        )
        assert process.stdout is not None
        try:
            async with asyncio.timeout(30):
                yield_urls = [orjson.loads(await process.stdout.readline())["url"] for _ in range(count)]
            yield yield_urls
        finally:
            if process.returncode is None:
                process.terminate()
            await process.wait()


# ----------------------------------------------------------------------------------------------- database


@contextmanager
def database(*, durable: bool = False) -> Iterator[str]:
    """URL of an empty database on a PostgreSQL server of its own. durable: it waits for the disk."""
    sys.path.append(str(Path(__file__).parents[1]))
    from tests.integration import databases

    folder = Path(tempfile.mkdtemp(prefix="llmsched-pg-", dir="/tmp"))  # a socket's path has 107 bytes at most
    try:
        with databases.server(folder, durable=durable):
            yield f"postgresql://llmsched@/postgres?host={folder}"
    finally:
        shutil.rmtree(folder, ignore_errors=True)


async def fresh(url: str) -> str:
    """The database, emptied."""
    connection = await asyncpg.connect(url)
    await connection.execute("DROP SCHEMA public CASCADE; CREATE SCHEMA public")
    await connection.close()
    return url


# ------------------------------------------------------------------------------------------------ gateway


class Gateway:
    """One `llmsched serve` process; `start` and `kill` it as often as needed, it keeps port and store.

    checkout: folder of another llmsched than the installed one. variables: of its environment, besides ours.
    """

    def __init__(
        self,
        folder: Path,
        *,
        engines: Sequence[str] = (),
        settings: dict[str, object] | None = None,
        checkout: Path | None = None,
        variables: dict[str, str] | None = None,
    ) -> None:
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self.log = folder / "gateway.log"
        options = {"port": self.port, "store": f"sqlite:///{folder / 'jobs.db'}", "workers": 64} | (settings or {})
        self._command = [sys.executable, "-m", "llmsched", "serve"]
        self._command += [part for key, value in options.items() for part in (f"--{key}", str(value))]
        for url in engines:
            self._command += ["--engine", url]
        self._folder = folder
        self._environment = os.environ | (variables or {})
        if checkout is not None:
            self._environment["PYTHONPATH"] = str(checkout)
        self._process: subprocess.Popen[bytes] | None = None

    def spawn(self) -> None:
        with self.log.open("ab") as log:
            self._process = subprocess.Popen(
                self._command,
                cwd=self._folder,  # a package in the current folder would be found first
                env=self._environment,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
            )

    @property
    def pid(self) -> int:
        assert self._process is not None
        return self._process.pid

    @property
    def rss_mb(self) -> float:
        """Resident memory of the gateway process itself, in MB (10^6 bytes)."""
        return psutil.Process(self.pid).memory_info().rss / 1e6

    @property
    def cpu_s(self) -> float:
        """CPU seconds so far."""
        times = psutil.Process(self.pid).cpu_times()
        return times.user + times.system

    def connections(self) -> int:
        """Established TCP connections of the process."""
        return sum(c.status == psutil.CONN_ESTABLISHED for c in psutil.Process(self.pid).net_connections("tcp"))

    def check(self) -> None:
        """Raises RuntimeError, with its last words, if the process has ended."""
        if self._process is not None and self._process.poll() is not None:
            words = self.log.read_text(errors="replace")[-2000:]
            raise RuntimeError(f"the gateway ended with status {self._process.returncode}: {words}")

    def kill(self) -> None:
        """kill -9."""
        assert self._process is not None
        self._process.send_signal(signal.SIGKILL)
        self._process.wait()

    async def stop(self) -> None:
        if self._process is not None and self._process.poll() is None:
            self._process.terminate()
            try:
                async with asyncio.timeout(20):
                    await asyncio.to_thread(self._process.wait)
            except TimeoutError:
                self.kill()


@asynccontextmanager
async def gateway(engines: Sequence[str] = (), **settings: object) -> AsyncIterator[tuple[Gateway, Client]]:
    """A running gateway on a fresh SQLite store in a temporary folder, and a client; waits until it is ready."""
    with tempfile.TemporaryDirectory(prefix="llmsched-bench-") as folder:
        server = Gateway(Path(folder), engines=engines, settings={k.replace("_", "-"): v for k, v in settings.items()})
        server.spawn()
        async with Client(server.url) as client:
            try:
                await client.until_ready(server, engines=bool(engines))
                yield server, client
            finally:
                await server.stop()


# ------------------------------------------------------------------------------------------------- client


class Client:
    """A client of the gateway that costs little."""

    def __init__(self, url: str) -> None:
        self.url = url
        self._session: aiohttp.ClientSession

    async def __aenter__(self) -> Client:
        self._open()
        return self

    def _open(self) -> None:
        self._session = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(limit=0, keepalive_timeout=60),
            timeout=aiohttp.ClientTimeout(total=900),
            headers={"content-type": "application/json"},
            read_bufsize=1 << 20,
        )

    async def close_idle(self) -> None:
        """Closes every connection; the next request opens a new one."""
        await self._session.close()
        self._open()

    async def __aexit__(self, *_: object) -> None:
        await self._session.close()

    async def until_ready(self, server: Gateway, *, engines: bool = True, timeout: float = 60.0) -> float:
        """Seconds until /ready says so (engines=False: until only engines are missing)."""
        began = time.perf_counter()
        while time.perf_counter() - began < timeout:
            server.check()
            try:
                async with self._session.get(f"{self.url}/ready") as response:
                    body = await response.read()
                    if response.status == 200 or (not engines and b"engine" in body):
                        return time.perf_counter() - began
            except aiohttp.ClientConnectionError:
                pass
            await asyncio.sleep(0.005)
        raise TimeoutError(f"{self.url} was not ready within {timeout:g} s")

    async def get(self, path: str) -> Any:
        async with self._session.get(self.url + path) as response:
            body = await response.read()
            assert response.status == 200, body
            return orjson.loads(body) if response.content_type == "application/json" else body.decode()

    async def put_application(self, name: str, definition: dict[str, Any]) -> None:
        async with self._session.put(f"{self.url}/v1/applications/{name}", data=orjson.dumps(definition)) as response:
            assert response.status == 200, await response.text()

    async def add_engine(self, url: str) -> None:
        async with self._session.post(f"{self.url}/v1/engines", data=orjson.dumps({"url": url})) as response:
            assert response.status in (200, 201), await response.text()

    async def remove_engines(self) -> None:
        """All of them, at once: what runs there is repeated elsewhere."""
        for engine in (await self.get("/v1/engines"))["items"]:
            async with self._session.delete(f"{self.url}/v1/engines/{engine['id']}") as response:
                assert response.status == 204, await response.text()

    async def submit(self, body: bytes) -> str:
        """The id of the accepted job."""
        async with self._session.post(f"{self.url}/v1/jobs", data=body) as response:
            answer = await response.read()
            assert response.status == 202, answer
            id: str = orjson.loads(answer)["id"]
            return id

    async def follow(self, id: str) -> float:
        """Reads the event stream of a job to its end; the moment (perf_counter) of the completion event."""
        async with self._session.get(f"{self.url}/v1/jobs/{id}/events") as response:
            tail, completed = b"", 0.0
            async for chunk in response.content.iter_any():  # to its end, so that the connection can be used again
                tail = tail[-32:] + chunk
                if not completed and b"event: job.completed" in tail:
                    completed = time.perf_counter()
        if not completed:
            raise RuntimeError(f"the events of {id} ended without job.completed: {tail!r}")
        return completed

    async def all_events(self) -> AsyncIterator[tuple[bytes, bytes]]:
        """(type, data) of every event of every job; a first empty pair once the stream is open."""
        async with self._session.get(f"{self.url}/v1/events", timeout=aiohttp.ClientTimeout(total=None)) as response:
            yield b"", b""
            rest = b""
            async for chunk in response.content.iter_any():
                *frames, rest = (rest + chunk).split(b"\n\n")
                for frame in frames:
                    head, _, data = frame.partition(b"\ndata: ")
                    yield head.removeprefix(b"event: "), data


class Ends:
    """Counts how jobs end, from the stream of all events."""

    def __init__(self, client: Client) -> None:
        self._client = client
        self._open = asyncio.Event()
        self._changed = asyncio.Event()
        self.completed = 0
        self.failed: list[bytes] = []
        #: perf_counter of the last completion
        self.last = 0.0

    @classmethod
    @asynccontextmanager
    async def watch(cls, client: Client) -> AsyncIterator[Ends]:
        ends = cls(client)
        task = asyncio.create_task(ends._watch())
        await ends._open.wait()
        try:
            yield ends
        finally:
            task.cancel()
            await asyncio.wait((task,))

    async def _watch(self) -> None:
        async for kind, data in self._client.all_events():
            match kind:
                case b"":
                    self._open.set()
                case b"job.completed":
                    self.completed += 1
                    self.last = time.perf_counter()
                    self._changed.set()
                case b"job.failed" | b"job.cancelled" | b"stream.lagged":
                    self.failed.append(data)
                    self._changed.set()

    async def until(self, count: int, timeout: float = 300.0) -> None:
        """Waits until so many jobs have completed. Raises RuntimeError if one failed, TimeoutError."""
        async with asyncio.timeout(timeout):
            while self.completed < count:
                if self.failed:
                    raise RuntimeError(f"{len(self.failed)} jobs did not complete, first: {self.failed[0]!r}")
                self._changed.clear()
                await self._changed.wait()


def recorded(application: str, stages: Sequence[dict[str, Any]]) -> bytes:
    """The body of a submission of a recorded job with these stages."""
    recording = {"app": application, "job_id": "benchmark", "stages": list(stages)}
    return orjson.dumps({"application": application, "recording": recording})


def submission(recording: Recording) -> bytes:
    """The body of a submission of a recording."""
    return orjson.dumps({"application": recording.application, "recording": recording.to_json()})


def llm_stage(name: str, tasks: int, *, prompt: int, output: int, deps: Sequence[str] = ()) -> dict[str, Any]:
    """A recorded LLM stage of so many alike parallel calls."""
    call = {"prompt_tokens": prompt, "output_tokens": output}
    return {"name": name, "kind": "llm", "deps": list(deps), "tasks": [call] * tasks}


async def in_parallel(work: Sequence[Coroutine[Any, Any, Any]], limit: int) -> list[Any]:
    """Results of all of them, at most `limit` at a time."""
    gate = asyncio.Semaphore(limit)

    async def one(task: Coroutine[Any, Any, Any]) -> Any:
        async with gate:
            return await task

    return await asyncio.gather(*(one(task) for task in work))
