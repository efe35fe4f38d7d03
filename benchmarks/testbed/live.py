"""One run of the testbed: a service of its own, as a user runs it, and recorded jobs over REST.

The service has a durable SQLite store in a temporary folder, the profiles of the bed, and does not learn meanwhile.
Emulated engines are a process that the service starts; a real engine is given by its URL.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import httpx
import numpy as np
from bed import SEED, Bed
from prometheus_client.parser import text_string_to_metric_families

from llmsched.cli.embedded import embedded_service, engines_ready
from llmsched.errors import BackendError
from llmsched.replay import ReplayRun, replay
from llmsched.runtime.api import Api

#: Histogram of an engine: seconds of a request, as the engine sees it.
_AT_ENGINE = "vllm:e2e_request_latency_seconds"
_AT_SERVICE = "llmsched_task_run_seconds"
_LAG = "llmsched_event_loop_lag_seconds"


@dataclass(frozen=True, slots=True)
class Measured:
    """A run, and how undisturbed it was. Milliseconds are real ones.

    call_ms: by how much a call is longer for the service than for its engine, mean; None where nobody tells.
    lag_ms: p99 of how late the service's event loop was, the upper edge of a bucket.
    """

    run: ReplayRun
    call_ms: float | None
    lag_ms: float | None

    def to_json(self) -> dict[str, Any]:
        run = self.run
        lag = np.array(run.lag) * 1000
        return {
            "times": [None if seconds is None else round(seconds, 3) for _, seconds in run.jobs],
            "decisions": run.decisions,
            "decision_ms": {k: None if value is None else round(value, 4) for k, value in run.decision_ms.items()},
            "makespan": round(run.makespan, 2),
            "busy": {pool: round(share, 3) for pool, share in run.utilisation.items()},
            "send_lag_ms": {"p50": round(float(np.median(lag)), 2), "max": round(float(lag.max()), 2)},
            "call_ms": None if self.call_ms is None else round(self.call_ms, 2),
            "loop_lag_p99_ms": self.lag_ms,
        }


async def emulated(bed: Bed, policy: str, speed: float, latency: str) -> Measured:
    """A run on emulated engines."""
    machines = {"emulate": len(bed.sizing.engines), "max-batch": bed.sizing.engines[0], "speed": speed}
    return await _run(bed, policy, machines | {"latency": latency}, speed)


async def real(bed: Bed, policy: str, url: str, latency: str) -> Measured:
    """A run on an engine that is there. latency: file of its calibration."""
    settings = bed.profiles.with_suffix(".toml")  # vLLM does not tell its slots, and no flag does
    settings.write_text(f'[[engines]]\nurl = "{url}"\nslots = {bed.sizing.engines[0]}\n')
    return await _run(bed, policy, {"config": settings, "latency": latency}, 1.0)


async def _run(bed: Bed, policy: str, machines: Mapping[str, object], speed: float) -> Measured:
    options = {"policy": policy, "profiles": bed.profiles, "workers": sum(bed.sizing.workers.values()), **machines}
    async with embedded_service(options) as (url, died), Api(url) as api:
        await engines_ready(api)
        slots = [engine["slots"] for engine in (await api.get("/v1/engines"))["items"]]
        if sorted(slots) != sorted(bed.sizing.engines):
            raise BackendError(f"the engines have {slots} slots and not {bed.sizing.engines}")
        engines = [engine["url"] for engine in (await api.get("/v1/engines"))["items"]]
        before = await _seen(engines)
        replaying = asyncio.create_task(replay(api, bed.arrivals, policy=policy, seed=SEED, speed=speed))
        try:
            await asyncio.wait({replaying, died}, return_when=asyncio.FIRST_COMPLETED)
            if not replaying.done():
                raise BackendError(f"the service has ended: {died.result()}")
            run = replaying.result()
        finally:
            replaying.cancel()
            await asyncio.gather(replaying, return_exceptions=True)
        metrics = await api.metrics()
        seconds, calls = (b - a for a, b in zip(before, await _seen(engines), strict=True))
        mine = sum(v for name, v in metrics.items() if name.startswith(f"{_AT_SERVICE}_sum{{") and _is_llm(bed, name))
        call_ms = (mine - seconds) / calls * 1000 if calls else None
        return Measured(run, call_ms, _p99_ms(metrics, _LAG))


def _is_llm(bed: Bed, name: str) -> bool:
    return f'pool="{bed.sizing.llm_pool}"' in name


async def _seen(engines: list[str]) -> tuple[float, float]:
    """Seconds of all requests, and how many, as the engines count them."""
    total, count = 0.0, 0.0
    async with httpx.AsyncClient(trust_env=False) as client:
        for url in engines:
            page = (await client.get(f"{url}/metrics")).text
            for family in text_string_to_metric_families(page):
                if family.name == _AT_ENGINE:
                    total += sum(s.value for s in family.samples if s.name.endswith("_sum"))
                    count += sum(s.value for s in family.samples if s.name.endswith("_count"))
    return total, count


def _p99_ms(metrics: Mapping[str, float], histogram: str) -> float | None:
    """The upper edge of the bucket that holds the 99th percentile."""
    buckets = sorted(
        (float(name.split('le="')[1].split('"')[0]), count)
        for name, count in metrics.items()
        if name.startswith(f"{histogram}_bucket")
    )
    if not buckets or not buckets[-1][1]:
        return None
    return next(edge for edge, count in buckets if count >= 0.99 * buckets[-1][1]) * 1000
