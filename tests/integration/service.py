"""The service for tests: as a server process (`running_service`), or in this event loop (`in_process_service`).

    async with running_service(tmp_path, emulate=2, speed=200) as service:
        job = (await service.post("/v1/jobs", json={...})).json()
        await service.kill9()
        await service.restart()               # the same port and store

    async with in_process_service(tmp_path, emulate=1) as service:
        job = await service.submit(recording=a_recording())
        events = await service.story(job["id"])

Settings are those of `llmsched.config.Settings`, by name.
"""

from __future__ import annotations

import asyncio
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from pathlib import Path
from random import Random
from typing import Any
from uuid import uuid4

import httpx
import orjson
import psutil
from fastapi import FastAPI

from llmsched import bootstrap
from llmsched.config import Settings
from llmsched.gateway.app import create_app
from llmsched.gateway.context import Context
from llmsched.runtime.emulator import EmulatedEngine, emulated
from llmsched.runtime.emulator.answers import Answer
from llmsched.runtime.tracing.context import Tracing
from llmsched.workloads.generator import generate

#: Every process of a service inherits this variable, and is found by it wherever it has moved to.
_MARK = "LLMSCHED_TEST_RUN"


def a_recording(application: str = "code_generation", seed: int = 0) -> dict[str, Any]:
    """A generated job of an application, as `POST /v1/jobs` takes it under `recording`."""
    return generate(application, Random(seed)).to_json()


async def until(condition: Callable[[], object], seconds: float = 20.0, *, what: str = "the condition") -> None:
    """Asks every 10 ms, for things another process does; fails after `seconds`."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"{what} did not come true within {seconds:g} s"
        await asyncio.sleep(0.01)


class Client:
    """Requests to one service, and what tests do with a job. `http` is the client underneath."""

    http: httpx.AsyncClient

    async def get(self, path: str, **options: Any) -> httpx.Response:
        return await self.http.get(path, **options)

    async def post(self, path: str, **options: Any) -> httpx.Response:
        return await self.http.post(path, **options)

    async def put(self, path: str, **options: Any) -> httpx.Response:
        return await self.http.put(path, **options)

    async def delete(self, path: str, **options: Any) -> httpx.Response:
        return await self.http.delete(path, **options)

    async def submit(self, *, headers: Mapping[str, str] | None = None, **fields: Any) -> dict[str, Any]:
        """The accepted job. Without `application` it is that of the recording; `class_` is the field `class`."""
        if "class_" in fields:
            fields["class"] = fields.pop("class_")
        if "recording" in fields:
            fields.setdefault("application", fields["recording"]["app"])
        response = await self.post("/v1/jobs", json=fields, headers=headers)
        assert response.status_code == 202, response.text
        job: dict[str, Any] = response.json()
        return job

    async def story(self, id: str, **options: Any) -> list[Event]:
        """All events of a job; waits for its end."""
        response = await self.get(f"/v1/jobs/{id}/events", **options)
        assert response.status_code == 200, response.text
        return events_of(response.text)

    async def finished(self, id: str, **options: Any) -> dict[str, Any]:
        """The job's view once it is over."""
        await self.story(id, **options)
        job: dict[str, Any] = (await self.get(f"/v1/jobs/{id}", **options)).json()
        return job


#: One server-sent event: number (None in `/v1/events`), type, data.
Event = tuple[int | None, str, dict[str, Any]]


def events_of(text: str) -> list[Event]:
    """The events of a stream's text; comments are left out."""
    found: list[Event] = []
    for block in text.split("\n\n"):
        fields = dict(line.split(": ", 1) for line in block.splitlines() if line and not line.startswith(":"))
        if fields:
            number = int(fields["id"]) if "id" in fields else None
            found.append((number, fields["event"], orjson.loads(fields["data"])))
    return found


# -------------------------------------------------------------------------------------------- a server process


class RunningService(Client):
    """`python -m llmsched serve` as a process of its own, with `url`, `pid` and `log` (all it ever said)."""

    def __init__(self, folder: Path, settings: Mapping[str, Any]) -> None:
        self._settings = dict(settings)
        self._folder = folder
        self._log_file = folder / f"service-{uuid4().hex[:8]}.log"
        self._mark = uuid4().hex
        self._process: subprocess.Popen[bytes] | None = None
        self.url = ""
        self.http = httpx.AsyncClient()

    @property
    def pid(self) -> int:
        assert self._process is not None, "the service was not started"
        return self._process.pid

    @property
    def log(self) -> str:
        return self._log_file.read_text(errors="replace")

    @property
    def is_running(self) -> bool:
        return self._process is not None and self._process.poll() is None

    def processes(self) -> list[psutil.Process]:
        """Everything alive that the service is made of, whoever is its parent by now."""
        found = []
        for process in psutil.process_iter():
            with suppress(psutil.Error, OSError):
                if process.environ().get(_MARK) == self._mark and process.status() != psutil.STATUS_ZOMBIE:
                    found.append(process)
        return found

    def use(self, **settings: Any) -> None:
        """From the next start on these settings take the place of those it had."""
        self._settings |= settings

    async def start(self, *, seconds: float = 30.0) -> None:
        """Starts it and waits until it listens; again after an end: on the same port, with the same store."""
        assert not self.is_running, "the service runs already"
        said = self._log_file.stat().st_size if self._log_file.exists() else 0
        environment = {k: v for k, v in os.environ.items() if not k.startswith("LLMSCHED_")} | {_MARK: self._mark}
        for key, value in self._settings.items():
            text = value if isinstance(value, str) else json.dumps(value, default=str)
            environment[f"LLMSCHED_{key.upper()}"] = text
        with self._log_file.open("ab") as log:
            self._process = subprocess.Popen(  # noqa: ASYNC220 (returns at once)
                [sys.executable, "-m", "llmsched", "serve"],
                cwd=self._folder,
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )

        def announced() -> str | None:
            assert self.is_running, f"the service ended at once:\n{self.log[-4000:]}"
            found = re.search(r"listens on (http://\S+)\n", self.log[said:])
            return found and found[1]

        await until(announced, seconds, what=f"'listens on URL' in {self._log_file}")
        self.url = announced() or ""
        self._settings["port"] = int(self.url.rpartition(":")[2])
        self.http.base_url = httpx.URL(self.url)

    async def until_ready(self, seconds: float = 30.0) -> None:
        """Waits until /ready is 200."""
        deadline = time.monotonic() + seconds
        while (answer := await self.get("/ready")).status_code != 200:
            assert time.monotonic() < deadline, f"not ready: {answer.text}\n{self.log[-4000:]}"
            await asyncio.sleep(0.02)

    async def kill9(self) -> None:
        """SIGKILL to the server process alone, as a crash would have it."""
        await self._end(signal.SIGKILL, 10.0)

    async def terminate(self, seconds: float = 30.0) -> int:
        """SIGTERM; its exit status. Fails if it takes longer than `seconds`."""
        return await self._end(signal.SIGTERM, seconds)

    async def restart(self, *, seconds: float = 30.0, ready: bool = True) -> None:
        """Starts it again after `kill9` or `terminate`; the latter is done first if it still runs."""
        if self.is_running:
            await self.terminate()
        await self.start(seconds=seconds)
        if ready:
            await self.until_ready(seconds)

    async def _end(self, number: int, seconds: float) -> int:
        assert self._process is not None, "the service was not started"
        self._process.send_signal(number)
        process = self._process
        await until(lambda: process.poll() is not None, seconds, what=f"the end of the service after signal {number}")
        return process.returncode

    async def gone(self, seconds: float = 15.0) -> None:
        """Waits until nothing of the service is left, and fails with what is."""
        try:
            await until(lambda: not self.processes(), seconds, what="the end of all processes of the service")
        except AssertionError:
            left = self.processes()
            lines = [f"{p.pid} {' '.join(p.cmdline())[:200]}" for p in left]
            for process in left:
                process.kill()
            raise AssertionError("left over:\n" + "\n".join(lines) + f"\n{self.log[-4000:]}") from None


@asynccontextmanager
async def running_service(
    folder: Path, *, store: str | None = None, ready: bool = True, **settings: Any
) -> AsyncIterator[RunningService]:
    """The real service on a free port; afterwards it is ended, and nothing of its process tree may be left.

    store: a store's URL (default: a SQLite file in `folder`). ready: whether to wait for /ready, which needs an engine
    that answers. settings: by default two workers and a grace of two seconds.
    """
    defaults = {"port": 0, "workers": 2, "grace": 2.0, "probe_interval": 0.2}
    service = RunningService(folder, defaults | {"store": store or f"sqlite:///{folder}/jobs.db"} | settings)
    async with service.http:
        try:
            await service.start()
            if ready:
                await service.until_ready()
            yield service
        finally:
            if service.is_running:
                await service.terminate()
            await service.gone()


# ------------------------------------------------------------------------------------------------- in this loop


class InProcessService(Client):
    """The gateway without a socket. `context` has its parts, `engines` the emulated ones behind it.

    A response comes when it is complete, so an event stream comes when its job is over; `stream` reads one as it goes.
    """

    def __init__(self, app: FastAPI, context: Context, engines: list[EmulatedEngine]) -> None:
        self.app = app
        self.context = context
        self.engines = engines
        transport = httpx.ASGITransport(app, raise_app_exceptions=False)
        self.http = httpx.AsyncClient(transport=transport, base_url="http://test", timeout=30.0)

    async def stop_engines(self) -> None:
        """All emulated engines go away; what runs there is cut off."""
        for engine in self.engines:
            await engine.stop()

    @asynccontextmanager
    async def stream(self, path: str, headers: Mapping[str, str] | None = None) -> AsyncIterator[LiveStream]:
        """An event stream that is read chunk by chunk, by a client that goes away at the end of the block."""
        live = LiveStream(self.app, path, headers or {})
        try:
            yield live
        finally:
            await live.disconnect()


class LiveStream:
    """One GET whose client takes the body only when asked: the server waits meanwhile, as before a full socket."""

    def __init__(self, app: FastAPI, path: str, headers: Mapping[str, str]) -> None:
        self._chunks: asyncio.Queue[bytes | None] = asyncio.Queue(1)
        self._gone = asyncio.Event()
        self._asked = False
        self._text = ""
        self.status: int | None = None
        scope = {
            "type": "http",
            "asgi": {"version": "3.0"},
            "http_version": "1.1",
            "method": "GET",
            "scheme": "http",
            "path": path,
            "raw_path": path.encode(),
            "query_string": b"",
            "root_path": "",
            "headers": [(k.lower().encode(), v.encode()) for k, v in headers.items()],
            "client": ("test", 1),
            "server": ("test", 80),
        }
        self._task = asyncio.create_task(self._run(app, scope))

    async def _run(self, app: FastAPI, scope: dict[str, Any]) -> None:
        await app(scope, self._receive, self._send)
        await self._chunks.put(None)

    async def _receive(self) -> dict[str, Any]:
        if not self._asked:
            self._asked = True
            return {"type": "http.request", "body": b"", "more_body": False}
        await self._gone.wait()
        return {"type": "http.disconnect"}

    async def _send(self, message: Any) -> None:
        if message["type"] == "http.response.start":
            self.status = message["status"]
        elif message.get("body"):
            await self._chunks.put(message["body"])

    async def next(self, seconds: float = 10.0) -> list[Event]:
        """The events that arrived next, at least one; none when the stream has ended."""
        while not (found := self._whole_events()):
            chunk = await asyncio.wait_for(self._chunks.get(), seconds)
            if chunk is None:
                return []
            self._text += chunk.decode()
        return found

    async def connected(self, seconds: float = 10.0) -> None:
        """Waits for the first chunk, whatever it is."""
        chunk = await asyncio.wait_for(self._chunks.get(), seconds)
        self._text += (chunk or b"").decode()

    def _whole_events(self) -> list[Event]:
        whole, cut, rest = self._text.rpartition("\n\n")
        self._text = rest
        return events_of(whole + cut)

    async def rest(self) -> list[Event]:
        """Everything until the stream ends by itself."""
        found: list[Event] = []
        while some := await self.next():
            found += some
        return found

    async def disconnect(self) -> None:
        """The client goes away; returns when the server has noticed and ended the request."""
        self._gone.set()
        while not self._task.done():
            with suppress(asyncio.QueueEmpty):
                self._chunks.get_nowait()
            await asyncio.wait((self._task,), timeout=0.01)
        await self._task


@asynccontextmanager
async def in_process_service(
    folder: Path,
    *,
    emulate: int = 1,
    speed: float = 1000.0,
    max_batch: int = 16,
    max_model_len: int = 32_768,
    answer: Answer | None = None,
    store: str | None = None,
    tracing: Tracing | None = None,
    **settings: Any,
) -> AsyncIterator[InProcessService]:
    """The service in this event loop, with `emulate` engines in it too, all healthy when the block begins.

    store: a store's URL (default: a SQLite file in `folder`). answer: what the model says; None: filler. tracing: None:
    as the environment has it. settings: see `Settings`.
    """
    async with AsyncExitStack() as stack:
        fleet = [
            await stack.enter_async_context(
                emulated(speed=speed, max_batch=max_batch, max_model_len=max_model_len, seed=k, answer=answer)
            )
            for k in range(emulate)
        ]
        defaults: dict[str, Any] = {"workers": 2, "grace": 0.0, "probe_interval": 0.5, "speed": speed}
        defaults |= {"store": store or f"sqlite:///{folder}/jobs.db"}
        defaults["engines"] = [{"url": engine.url} for engine in fleet]
        context = await bootstrap.build(Settings(**(defaults | settings)), tracing=tracing)
        app = create_app(context)
        service = InProcessService(app, context, fleet)
        async with service.http, app.router.lifespan_context(app):
            engines = context.service.engines
            await until(lambda: all(e.is_healthy for e in engines), what="the health of every engine")
            yield service
