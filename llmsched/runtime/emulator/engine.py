"""Emulated engines: one, several in one process, and the blocking function behind `llmsched emulate`."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import socket
import sys
from collections import deque
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import replace

import orjson
from aiohttp import web

from llmsched.errors import InvalidSetting
from llmsched.model.decoding import DecodingServer
from llmsched.model.latency import LatencyCurve
from llmsched.runtime.emulator.answers import read_script
from llmsched.runtime.emulator.api import Api
from llmsched.runtime.emulator.faults import Fault, Faults
from llmsched.runtime.emulator.metrics import EngineMetrics
from llmsched.runtime.emulator.paced import PacedServer
from llmsched.runtime.emulator.prefix import PrefixCache
from llmsched.runtime.emulator.settings import DEFAULT_CACHE_BLOCKS, EmulatorSettings, read_latency_curve

#: connections that may wait for `accept`
_BACKLOG = 4096
#: seconds that requests in progress get when the engine stops, before they are cut off
_GRACE_S = 0.05


class EmulatedEngine:
    """One vLLM server that is not: an HTTP port, a `DecodingServer` in real time, counters and faults."""

    def __init__(self, settings: EmulatorSettings) -> None:
        self.settings = settings
        #: where it listens, once started
        self.url = ""
        #: what goes wrong at the moment
        self.faults = Faults()
        cache = PrefixCache(settings.cache_blocks if settings.prefix_cache else 0)
        self._paced = PacedServer(settings.latency, settings.max_batch, settings.speed, cache)
        self._metrics = EngineMetrics(settings, self._paced)
        self._request_ids: deque[str] = deque(maxlen=10_000)
        self._runner: web.AppRunner | None = None

    @property
    def server(self) -> DecodingServer:
        """The model, to look at."""
        return self._paced.server

    @property
    def cache(self) -> PrefixCache:
        """The prefix cache, to look at."""
        return self._paced.cache

    @property
    def request_ids(self) -> list[str]:
        """The `X-Request-Id` of the last generating requests that came, oldest first."""
        return list(self._request_ids)

    @property
    def requests(self) -> dict[str, int]:
        """Requests that left the engine, by finish reason, as in vllm:request_success_total."""
        return dict(self._metrics.requests)

    def fault(self, kind: str, *, count: int | None = None, delay_s: float = 5.0, scope: str = "completions") -> None:
        """From now on requests meet this fault (see `FaultKind`). Raises InvalidInput."""
        self.faults.current = Fault.of(kind, count=count, delay_s=delay_s, scope=scope)

    def clear(self) -> None:
        """No more fault; requests that hang go on hanging."""
        self.faults.current = None

    async def start(self, host: str = "127.0.0.1", port: int = 0) -> None:
        """Listen; `url` says where. Raises InvalidSetting if the port cannot be had. May follow `stop`."""
        assert self._runner is None, "the engine is running"
        listener = _listen(host, port)
        api = Api(self.settings, self._paced, self._metrics, self.faults, self._request_ids)
        self._runner = web.AppRunner(api.app, access_log=None, handler_cancellation=True, shutdown_timeout=_GRACE_S)
        await self._runner.setup()
        await web.SockSite(self._runner, listener, backlog=_BACKLOG).start()
        name = f"[{host}]" if ":" in host else host
        self.url = f"http://{name}:{listener.getsockname()[1]}"

    async def stop(self) -> None:
        """Close the port and every connection; requests in progress are aborted."""
        if self._runner is not None:
            runner, self._runner = self._runner, None
            await runner.cleanup()
            self._paced.close()


async def serve_emulators(
    settings: EmulatorSettings,
    *,
    engines: int = 1,
    host: str = "127.0.0.1",
    port: int = 0,
    fault: Fault | None = None,
    announce: Callable[[str], None] | None = None,
    stop: asyncio.Event | None = None,
) -> None:
    """Run `engines` alike engines on ports port, port + 1, … (0: free ones) until `stop` is set.

    announce: gets one JSON line per engine once all of them listen: url, model, slots.
    Raises InvalidSetting if a port cannot be had; then none runs.
    """
    if engines < 1:
        raise InvalidSetting(f"engines must be at least 1, not {engines}", field="engines")
    fleet = [EmulatedEngine(settings) for _ in range(engines)]
    try:
        for number, engine in enumerate(fleet):
            engine.faults.current = fault
            await engine.start(host, port + number if port else 0)
        for engine in fleet:
            line = {"url": engine.url, "model": settings.model, "slots": settings.max_batch}
            (announce or _print_line)(orjson.dumps(line).decode())
        await (stop or asyncio.Event()).wait()
    finally:
        await asyncio.gather(*(engine.stop() for engine in fleet))


def run(
    host: str = "127.0.0.1",
    port: int = 8100,
    engines: int = 1,
    latency: str | LatencyCurve = "generic-7b",
    max_batch: int = 16,
    speed: float = 1.0,
    model: str = "emulated",
    scheduling_policy: str = "priority",
    max_model_len: int = 32_768,
    seed: int = 0,
    api_key: str | None = None,
    prefix_cache: bool = True,
    cache_blocks: int = DEFAULT_CACHE_BLOCKS,
    script: str | None = None,
    *,
    fault: Fault | None = None,
    exit_with_stdin: bool = False,
) -> None:
    """Emulated engines until SIGTERM or SIGINT; blocks. Raises InvalidInput for bad values.

    latency: the name of a curve, a file that `calibrate` wrote, or a curve. script: what `read_script` takes.
    exit_with_stdin: also stop when standard input ends. A parent that holds the other end of a pipe then
    takes its engines with it, however it dies.
    """
    settings = EmulatorSettings(
        model=model,
        latency=read_latency_curve(latency) if isinstance(latency, str) else latency,
        max_batch=max_batch,
        speed=speed,
        scheduling_policy=scheduling_policy,
        max_model_len=max_model_len,
        seed=seed,
        api_key=api_key,
        prefix_cache=prefix_cache,
        cache_blocks=cache_blocks,
        answer=None if script is None else read_script(script),
    )

    async def main() -> None:
        stop = asyncio.Event()
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, stop.set)
        if exit_with_stdin:
            _watch_stdin(loop, stop)
        await serve_emulators(settings, engines=engines, host=host, port=port, fault=fault, stop=stop)

    asyncio.run(main())


@asynccontextmanager
async def emulated(settings: EmulatorSettings | None = None, **changes: object) -> AsyncIterator[EmulatedEngine]:
    """An engine on a free loopback port of the running loop, for tests.

    changes: fields of `EmulatorSettings`, over `settings` or its defaults.
    """
    engine = EmulatedEngine(replace(settings or EmulatorSettings(), **changes))  # type: ignore[arg-type]
    await engine.start()
    try:
        yield engine
    finally:
        await engine.stop()


def _listen(host: str, port: int) -> socket.socket:
    if not 0 <= port <= 65_535:
        raise InvalidSetting(f"a port is a number from 0 to 65535, not {port}", field="port")
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        return socket.create_server((host, port), family=family, backlog=_BACKLOG)
    except OSError as error:
        raise InvalidSetting(f"cannot listen on {host} port {port}: {error}", field="port") from None


def _watch_stdin(loop: asyncio.AbstractEventLoop, stop: asyncio.Event) -> None:
    descriptor = sys.stdin.fileno()

    def read() -> None:
        if not os.read(descriptor, 4096):
            loop.remove_reader(descriptor)
            stop.set()

    with contextlib.suppress(PermissionError):  # a plain file or /dev/null cannot be watched, and never ends
        loop.add_reader(descriptor, read)


def _print_line(line: str) -> None:
    print(line, flush=True)
