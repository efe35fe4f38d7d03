"""How much later a client hears of a result because the service stands between it and the engine.

    python benchmarks/added_latency.py [--seconds N] [--phases N] [--rate R]

The engine takes 500 ms per call (25 tokens, one every 20 ms, whatever the batch); calls arrive in an open loop every
10 ms, so that 50 are in flight. Phases alternate between the direct path (the service's own engine client, straight to
the engine) and the service: from the moment a POST is due to the moment the client reads the job's completion event,
once with an event stream per job and once with one stream for all jobs. Both kinds of phase use the same schedule, the
same client process and the same engine process. The difference is every single time through the service minus the
median of the direct times: whatever else disturbs the machine counts against the service.
"""

from __future__ import annotations

import argparse
import asyncio
import time
from collections.abc import Awaitable, Callable

import orjson
import rig
from rig import Client, Figure

from llmsched.runtime.engine import CompletionRequest, EngineClient
from llmsched.runtime.scripts.script import prompt_of

PROMPT, OUTPUT = 200, 25
CALL_S = 0.5
CURVE = {"name": "half-a-second", "prefill_tokens_per_s": 1e9, "decode": [[1, CALL_S / OUTPUT]]}
NAME = "bench_one_call"


async def open_loop(call: Callable[[], Awaitable[float]], rate: float, seconds: float) -> list[float]:
    """Seconds from the moment each call was due to the moment `call` returns. Calls are due every 1 / rate seconds."""

    async def one(due: float) -> float:
        return await call() - due

    began, tasks = time.perf_counter() + 0.05, []
    for number in range(int(rate * seconds)):
        due = began + number / rate
        await asyncio.sleep(max(0.0, due - time.perf_counter()))
        tasks.append(asyncio.create_task(one(due)))
    return await asyncio.gather(*tasks)


class Direct:
    """The direct path."""

    def __init__(self, url: str) -> None:
        self.client = EngineClient(url)
        self._request = CompletionRequest(
            prompt=prompt_of("benchmark", PROMPT), max_tokens=OUTPUT, min_tokens=OUTPUT, ignore_eos=True
        )

    async def call(self) -> float:
        await self.client.complete(self._request)
        return time.perf_counter()


class OwnStream:
    """Submits a job and follows its own event stream."""

    def __init__(self, client: Client, body: bytes) -> None:
        self._client, self._body = client, body

    async def call(self) -> float:
        return await self._client.follow(await self._client.submit(self._body))


class SharedStream:
    """Submits jobs and hears of all of them on one stream."""

    def __init__(self, client: Client, body: bytes) -> None:
        self._client, self._body = client, body
        self._ended: dict[str, asyncio.Future[float]] = {}
        self.connected = asyncio.Event()

    async def listen(self) -> None:
        async for kind, data in self._client.all_events():
            self.connected.set()
            if kind == b"job.completed":
                self._of(orjson.loads(data)["job"]).set_result(time.perf_counter())

    async def call(self) -> float:
        id = await self._client.submit(self._body)
        return await self._of(id)

    def _of(self, id: str) -> asyncio.Future[float]:
        return self._ended.setdefault(id, asyncio.get_running_loop().create_future())


async def measure(seconds: float = 4.0, phases: int = 3, rate: float = 100.0) -> list[Figure]:
    body = rig.recorded(NAME, [rig.llm_stage("answer", 1, prompt=PROMPT, output=OUTPUT)])
    async with rig.engines(latency=CURVE) as urls, rig.gateway(urls) as (_, client):
        await client.put_application(NAME, rig.ONE_CALL)
        direct, own, shared = Direct(urls[0]), OwnStream(client, body), SharedStream(client, body)
        await direct.client.discover()
        for path in (direct, own):
            await open_loop(path.call, rate, 1.0)
        times: dict[str, list[float]] = {"direct": [], "own": [], "shared": []}
        for _ in range(phases):
            times["direct"] += await open_loop(direct.call, rate, seconds)
            times["own"] += await open_loop(own.call, rate, seconds)
            listening = asyncio.create_task(shared.listen())
            await shared.connected.wait()
            times["shared"] += await open_loop(shared.call, rate, seconds)
            listening.cancel()
            await asyncio.wait((listening,))
            shared.connected.clear()
        await direct.client.aclose()
    base = rig.percentiles(times["direct"], 50, 99)
    figures = [Figure("direct call p50", base[0], "ms"), Figure("direct call p99", base[1], "ms")]
    for key, name in (("own", "own event stream"), ("shared", "one stream for all jobs")):
        p50, p99 = rig.percentiles(times[key], 50, 99)
        figures += [
            Figure(f"through the service, {name}, p50", p50, "ms"),
            Figure(f"through the service, {name}, p99", p99, "ms"),
            Figure(f"added latency, {name}, p50", p50 - base[0], "ms", goal=10),
            Figure(f"added latency, {name}, p99", p99 - base[0], "ms", goal=40),
        ]
    return figures


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seconds", type=float, default=4.0, help="length of a phase")
    parser.add_argument("--phases", type=int, default=3, help="phases of each kind")
    parser.add_argument("--rate", type=float, default=100.0, help="calls per second")
    options = parser.parse_args()
    rig.show(rig.run(measure(options.seconds, options.phases, options.rate)))


if __name__ == "__main__":
    main()
