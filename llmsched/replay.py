"""Replays a workload of recorded jobs against a running service: open loop, at the recorded moments.

Completion times are the service's own (submission to completion, unix clock of the service); the lag with which this
client sent each job is reported beside them, so that a client that was too slow is seen.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from llmsched.errors import BackendError
from llmsched.runtime.api import Api, ApiError
from llmsched.workloads import Arrival

#: Attempts to hand in one job that the service has no room for.
_SUBMISSIONS = 20


@dataclass(slots=True)
class ReplayRun:
    """What one replay measured.

    jobs: (application, completion time in seconds or None for a job that did not complete), in order of arrival.
    lag: how late each job was sent, in seconds.
    """

    policy: str
    seed: int
    jobs: list[tuple[str, float | None]] = field(default_factory=list)
    lag: list[float] = field(default_factory=list)
    makespan: float = 0.0
    decisions: dict[str, float] = field(default_factory=dict)
    utilisation: dict[str, float] = field(default_factory=dict)

    @property
    def completion_times(self) -> list[float]:
        return [seconds for _, seconds in self.jobs if seconds is not None]

    def by_application(self) -> dict[str, list[float]]:
        times: dict[str, list[float]] = {}
        for application, seconds in self.jobs:
            if seconds is not None:
                times.setdefault(application, []).append(seconds)
        return dict(sorted(times.items()))

    def to_json(self) -> dict[str, Any]:
        """One entry of `runs` in the replay contract."""
        times = self.completion_times
        p50, p95, p99 = np.percentile(times, [50, 95, 99]).tolist() if times else (None, None, None)
        mean_ms = self.decisions.get("mean_ms")
        return {
            "policy": self.policy,
            "seed": self.seed,
            "jobs": len(times),
            "failed": len(self.jobs) - len(times),
            "mean_jct": float(np.mean(times)) if times else None,
            "p50_jct": p50,
            "p95_jct": p95,
            "p99_jct": p99,
            "makespan": self.makespan,
            "decisions": int(self.decisions.get("count", 0)),
            "decision_ms": {"mean": mean_ms, "p50": self.decisions.get("p50_ms"), "p99": self.decisions.get("p99_ms")},
            "utilisation": self.utilisation,
            "apps": {a: {"jobs": len(t), "mean_jct": float(np.mean(t))} for a, t in self.by_application().items()},
            "send_lag_ms": {
                "p50": float(np.percentile(self.lag, 50)) * 1000 if self.lag else None,
                "max": max(self.lag, default=0.0) * 1000,
            },
        }


async def replay(
    api: Api,
    arrivals: Sequence[Arrival],
    *,
    policy: str,
    seed: int,
    speed: float = 1.0,
    progress: Callable[[int, int], None] = lambda sent, done: None,
) -> ReplayRun:
    """Submits every arrival at its moment (seconds divided by `speed`) and waits until all jobs have ended.

    progress: called with the numbers of jobs sent and ended.
    Raises BackendError if the service stays away; ApiError if it refuses a job for good.
    """
    run = ReplayRun(policy, seed)
    follower = _Follower(api, lambda: progress(len(run.lag), follower.ended))
    before = await _counters(api)
    watching = asyncio.create_task(follower.watch())
    await follower.connected.wait()
    began = time.monotonic()
    sending = []
    for number, arrival in enumerate(arrivals):
        due = began + arrival.at / speed
        await asyncio.sleep(max(0.0, due - time.monotonic()))
        sending.append(asyncio.create_task(_send(api, arrival, f"{began}-{seed}-{number}")))
        run.lag.append(max(0.0, time.monotonic() - due))
        progress(len(run.lag), follower.ended)
    ids = await asyncio.gather(*sending)
    await follower.until(ids)
    watching.cancel()
    run.makespan = time.monotonic() - began
    for id, arrival in zip(ids, arrivals, strict=True):
        outcome, seconds = follower.ends[id]
        run.jobs.append((arrival.recording.application, seconds if outcome == "job.completed" else None))
    _summarise(run, before, await _counters(api))
    return run


async def _send(api: Api, arrival: Arrival, key: str) -> str:
    body = {"application": arrival.recording.application, "recording": arrival.recording.to_json()}
    for _ in range(_SUBMISSIONS):
        try:
            id: str = (await api.post("/v1/jobs", body, idempotency_key=key))["id"]
            return id
        except ApiError as error:
            if error.status not in (429, 503):
                raise
            await asyncio.sleep(error.retry_after or 1.0)
        except BackendError:
            await asyncio.sleep(0.5)
    raise BackendError(f"{api.url} took no job for {_SUBMISSIONS} attempts")


class _Follower:
    """Collects how jobs end, from the stream of all events; asks for single jobs where the stream had gaps."""

    def __init__(self, api: Api, changed: Callable[[], None]) -> None:
        self._api = api
        self._changed = changed
        self.ends: dict[str, tuple[str, float]] = {}
        self.connected = asyncio.Event()

    @property
    def ended(self) -> int:
        return len(self.ends)

    async def watch(self) -> None:
        while True:
            try:
                self.connected.set()
                async for kind, data in self._api.events("/v1/events"):
                    if kind in ("job.completed", "job.failed", "job.cancelled"):
                        self.ends[data["job"]] = (kind, data["seconds"])
                        self._changed()
            except BackendError:
                await asyncio.sleep(0.5)

    async def until(self, ids: Sequence[str]) -> None:
        """Waits until every one of these jobs has ended; looks for itself every few seconds."""
        while missing := [id for id in ids if id not in self.ends]:
            await asyncio.sleep(0.2 if len(missing) > 20 else 0.05)
            if int(time.monotonic() * 20) % 40 == 0:
                for id in missing[:50]:
                    await self._look(id)

    async def _look(self, id: str) -> None:
        try:
            job = await self._api.get(f"/v1/jobs/{id}")
        except BackendError:
            return
        if job["finished_at"] is not None:
            self.ends[id] = (f"job.{job['status']}", job["finished_at"] - job["submitted_at"])
            self._changed()


_DECISION = "llmsched_decision_seconds"


async def _counters(api: Api) -> dict[str, float]:
    """Every unlabelled sample and histogram bucket of decisions, and seconds of attempts by pool."""
    samples: dict[str, float] = {}
    for line in (await api.get("/metrics")).splitlines():
        if not line.startswith("#"):
            name, _, value = line.rpartition(" ")
            samples[name] = float(value)
    return samples


def _summarise(run: ReplayRun, before: dict[str, float], after: dict[str, float]) -> None:
    grown = {name: value - before.get(name, 0.0) for name, value in after.items()}
    count = grown.get(f"{_DECISION}_count", 0.0)
    run.decisions["count"] = count
    if count:
        run.decisions["mean_ms"] = grown[f"{_DECISION}_sum"] / count * 1000
        buckets = sorted(
            (float(name.split('le="')[1].split('"')[0]), total)
            for name, total in grown.items()
            if name.startswith(f"{_DECISION}_bucket")
        )
        for q in (50, 99):
            run.decisions[f"p{q}_ms"] = _quantile(buckets, q / 100) * 1000
    slots: dict[str, float] = {}
    for name, value in after.items():
        if name.startswith("llmsched_executor_slots{"):
            executor = name.split('"')[1]
            pool = executor.removeprefix("workers-") if executor.startswith("workers-") else "llm"
            slots[pool] = slots.get(pool, 0.0) + value
    for pool, offered in slots.items():
        busy = sum(
            v for n, v in grown.items() if n.startswith("llmsched_task_run_seconds_sum{") and f'pool="{pool}"' in n
        )
        if offered and run.makespan:
            run.utilisation[pool] = busy / (offered * run.makespan)


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


def to_json(settings: dict[str, Any], runs: Sequence[ReplayRun], *, seed: int = 0) -> dict[str, Any]:
    """The whole contract: settings, runs and a summary with paired changes and bootstrap intervals."""
    policies = list(dict.fromkeys(run.policy for run in runs))
    rng = np.random.default_rng(seed)
    times = {p: np.array([t for r in runs if r.policy == p for _, t in r.jobs], dtype=float) for p in policies}
    summary = [
        {
            "policy": policy,
            "mean_jct": None if np.isnan(own).all() else float(np.nanmean(own)),
            "ci95": _interval(own, rng),
            "vs": {
                other: _change(own, theirs, rng)
                for other, theirs in times.items()
                if other != policy and len(theirs) == len(own)
            },
        }
        for policy, own in times.items()
    ]
    return {"settings": settings, "runs": [run.to_json() for run in runs], "summary": summary}


def _interval(times: np.ndarray, rng: np.random.Generator) -> list[float] | None:
    """Bootstrap interval of the mean over jobs; None for fewer than two."""
    times = times[~np.isnan(times)]
    if len(times) < 2:
        return None
    low, high = np.percentile(rng.choice(times, (1000, len(times))).mean(axis=1), [2.5, 97.5]).tolist()
    return [low, high]


def _change(mine: np.ndarray, theirs: np.ndarray, rng: np.random.Generator) -> dict[str, Any] | None:
    """Change of the mean in per cent over jobs both completed, with a bootstrap interval over pairs of the same job."""
    both = ~(np.isnan(mine) | np.isnan(theirs))
    mine, theirs = mine[both], theirs[both]
    if len(mine) < 2:
        return None
    drawn = rng.integers(0, len(mine), (1000, len(mine)))
    ratios = mine[drawn].mean(axis=1) / theirs[drawn].mean(axis=1)
    low, high = ((np.percentile(ratios, [2.5, 97.5]) - 1) * 100).tolist()
    return {"change_pct": float((mine.mean() / theirs.mean() - 1) * 100), "ci95": [low, high]}
