"""Replays a workload of recorded jobs against a running service: open loop, at the recorded moments.

Completion times are the service's own (submission to completion, by its clock); the lag with which this client sent
each job is reported beside them, so that a client that was too slow is seen. The service may restart meanwhile: jobs
are handed in again under the same idempotency key, and only the counters (decisions, utilisation) begin anew with it.
"""

from __future__ import annotations

import asyncio
import time
import uuid
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np

from llmsched.errors import BackendError
from llmsched.model.latency import GENERIC_7B, LatencyCurve
from llmsched.runtime.api import Api, ApiError, Unavailable
from llmsched.simulator.statistics import Run, samples_of, summary
from llmsched.workloads import Arrival

#: Seconds for which a service that does not answer is borne, as during a restart.
PATIENCE = 120.0
#: Seconds without any news after which the jobs that are left are looked at one by one.
_SILENCE = 10.0


@dataclass(slots=True)
class ReplayRun(Run):
    """What one replay measured. Seconds are the service's, times the speed of the replay (emulated seconds).

    lag: how late each job was sent, in real seconds.
    """

    lag: list[float] = field(default_factory=list)

    @property
    def lag_ms(self) -> dict[str, float]:
        """Of all jobs: p50, p99 and max, in milliseconds."""
        quantiles = np.percentile(self.lag or [0.0], [50, 99, 100]) * 1000
        return dict(zip(("p50", "p99", "max"), quantiles.tolist(), strict=True))

    def to_json(self) -> dict[str, Any]:
        """One entry of `runs` in the replay contract."""
        return {**Run.to_json(self), "send_lag_ms": self.lag_ms}  # a dataclass with slots has no argument-free super()


async def replay(
    api: Api,
    arrivals: Sequence[Arrival],
    *,
    policy: str,
    seed: int,
    speed: float = 1.0,
    curve: LatencyCurve = GENERIC_7B,
    progress: Callable[[int, int], None] = lambda sent, ended: None,
    patience: float = PATIENCE,
) -> ReplayRun:
    """Submits every arrival at its moment (seconds divided by `speed`) and waits until all jobs have ended.

    policy, seed: noted in the run. curve: of an engine, for what a job takes alone (slowdowns). progress: called with
    the numbers of jobs sent and ended. patience: seconds for which a service that does not answer is borne.
    Raises BackendError if the service stays away, ApiError as soon as it refuses a job for good.
    """
    run = ReplayRun(policy, seed, lag=[0.0] * len(arrivals))
    sent: list[str] = []
    follower = _Follower(api, lambda: progress(len(sent), len(follower.ends)))
    name = uuid.uuid4().hex
    before = await api.metrics()
    watching = asyncio.create_task(follower.watch())
    await follower.connected.wait()

    async def send(number: int, due: float) -> str:
        await asyncio.sleep(due - time.monotonic())
        run.lag[number] = max(0.0, time.monotonic() - due)
        id = await _submit(api, arrivals[number], f"replay-{name}-{number}", patience)
        sent.append(id)
        progress(len(sent), len(follower.ends))
        return id

    try:
        began = time.monotonic()
        async with asyncio.TaskGroup() as group:
            sending = [group.create_task(send(k, began + arrival.at / speed)) for k, arrival in enumerate(arrivals)]
        ids = [task.result() for task in sending]
        await follower.until(ids, patience)
    except ExceptionGroup as failures:
        raise failures.exceptions[0] from None
    finally:
        watching.cancel()
        await asyncio.wait([watching])
    ends = [follower.ends[id] for id in ids]
    for arrival, end in zip(arrivals, ends, strict=True):
        run.jobs.append((arrival.recording.application, end.seconds * speed if end.completed else None))
        run.alone.append(arrival.recording.alone_seconds(curve))
    wall = max(e.at for e in ends) - min(e.at - e.seconds for e in ends) if ends else 0.0
    run.makespan = wall * speed
    engines = {e["id"]: e["pool"] for e in (await api.get("/v1/engines"))["items"]}
    _summarise(run, before, await api.metrics(), engines, wall)
    return run


async def _submit(api: Api, arrival: Arrival, key: str, patience: float) -> str:
    """The id of the job; hands it in again until the service takes it."""
    body = {"application": arrival.recording.application, "recording": arrival.recording.to_json()}
    until = time.monotonic() + patience
    while True:
        try:
            id: str = (await api.post("/v1/jobs", body, idempotency_key=key))["id"]
            return id
        except Unavailable as error:
            if time.monotonic() > until:
                raise
            await asyncio.sleep(0.5 if error.retry_after is None else error.retry_after)


class _End(NamedTuple):
    """How a job ended: unix time, and seconds since its submission."""

    completed: bool
    at: float
    seconds: float


class _Follower:
    """Learns how jobs end: from the stream of all events, and by asking for each where the stream may have gaps."""

    def __init__(self, api: Api, changed: Callable[[], None]) -> None:
        self._api = api
        self._changed = changed
        self._news = asyncio.Event()
        self._has_gap = False
        self.ends: dict[str, _End] = {}
        #: Set when the stream first listens, or failed to.
        self.connected = asyncio.Event()

    async def watch(self) -> None:
        while True:
            try:
                async for kind, data in self._api.events("/v1/events"):
                    match kind:
                        case "stream.connected":
                            self.connected.set()
                        case "job.completed" | "job.failed" | "job.cancelled":
                            self._end(data["job"], _End(kind == "job.completed", data["at"], data["seconds"]))
                        case "stream.lagged":
                            self._gap()
                        case _:
                            pass
            except (BackendError, ApiError):
                pass  # asking for the jobs themselves will tell
            self._gap()
            await asyncio.sleep(0.5)

    async def until(self, ids: Sequence[str], patience: float) -> None:
        """Waits until every one of these jobs has ended. Raises BackendError if the service stays away."""
        answered = time.monotonic()
        while missing := [id for id in ids if id not in self.ends]:
            self._news.clear()
            if self._has_gap:
                try:
                    self._has_gap = False
                    for id in missing:
                        await self._look(id)
                    answered = time.monotonic()
                except BackendError:
                    self._has_gap = True
                    if time.monotonic() - answered > patience:
                        raise
                    await asyncio.sleep(0.5)
                continue
            try:
                await asyncio.wait_for(self._news.wait(), _SILENCE)
            except TimeoutError:
                self._has_gap = True

    async def _look(self, id: str) -> None:
        job = await self._api.get(f"/v1/jobs/{id}")
        if job["finished_at"] is not None:
            seconds = job["finished_at"] - job["submitted_at"]
            self._end(id, _End(job["status"] == "completed", job["finished_at"], seconds))

    def _end(self, id: str, end: _End) -> None:
        self.ends[id] = end
        self._news.set()
        self._changed()

    def _gap(self) -> None:
        self._has_gap = True
        self.connected.set()
        self._news.set()


_DECISION = "llmsched_decision_seconds"
_SLOTS = 'llmsched_executor_slots{executor="'
_RAN = "llmsched_task_run_seconds_sum{"


def _summarise(
    run: ReplayRun, before: Mapping[str, float], after: Mapping[str, float], engines: Mapping[str, str], wall: float
) -> None:
    """Decisions and utilisation from the growth of the service's counters over `wall` seconds.

    engines: id -> pool. A counter that shrank began anew, with a restarted service.
    """
    grown = {name: value - (b if value >= (b := before.get(name, 0.0)) else 0.0) for name, value in after.items()}
    count = grown.get(f"{_DECISION}_count", 0.0)
    run.decisions = int(count)
    if count:
        buckets = sorted(
            (float(name.split('le="')[1].split('"')[0]), total)
            for name, total in grown.items()
            if name.startswith(f"{_DECISION}_bucket")
        )
        mean = grown[f"{_DECISION}_sum"] / count
        run.decision_ms = {
            "mean": mean * 1000,
            "p50": _quantile(buckets, 0.5) * 1000,
            "p99": _quantile(buckets, 0.99) * 1000,
        }
    slots: dict[str, float] = {}
    for name, value in after.items():
        if name.startswith(_SLOTS):
            executor = name.removeprefix(_SLOTS).split('"')[0]
            pool = engines.get(executor) or executor.removeprefix("workers-")
            slots[pool] = slots.get(pool, 0.0) + value
    for pool, offered in slots.items():
        busy = sum(v for n, v in grown.items() if n.startswith(_RAN) and f'pool="{pool}"' in n)
        if offered and wall:
            run.utilisation[pool] = busy / (offered * wall)


def _quantile(buckets: Sequence[tuple[float, float]], q: float) -> float:
    """Upper edge of the bucket that holds the quantile, interpolated as Prometheus does. Seconds."""
    total = buckets[-1][1]
    lower, below = 0.0, 0.0
    for edge, count in buckets:
        if count >= q * total:
            if edge == float("inf"):
                return lower
            return lower + (edge - lower) * ((q * total - below) / (count - below) if count > below else 0.0)
        lower, below = edge, count
    return lower


def to_json(settings: dict[str, Any], runs: Sequence[ReplayRun]) -> dict[str, Any]:
    """The whole contract: settings, runs and a summary with paired changes and bootstrap intervals over jobs."""
    return {
        "settings": settings,
        "runs": [run.to_json() for run in runs],
        "summary": summary(samples_of(runs)),
    }
