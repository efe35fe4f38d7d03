"""The service under load: so many engines, so many active jobs, kept so; what a window of seconds shows.

One gateway per policy and number of jobs. The jobs are there before the first engine is; then engines come, and after
each addition, when things have settled, one window is measured. A job that ends is replaced at once.
"""

from __future__ import annotations

import asyncio
import json
import os
import sqlite3
import sys
import time
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import asdict, dataclass
from itertools import cycle
from pathlib import Path
from random import Random
from tempfile import TemporaryDirectory
from typing import Any

import profiled
import rig
from arithmetic import Buckets, per_job, value
from engines import SLOTS
from rig import Client, Gateway

from llmsched.catalogue import installed_applications
from llmsched.profiler import fit
from llmsched.runtime.learning.profiles import write_profile
from llmsched.workloads import APPLICATIONS, build_workload, generate

#: Recorded seconds of tools are divided by this, so that workers are never what is short.
SPEED, WORKERS = 100, 2_000
#: Different jobs that are submitted, over and over.
DIFFERENT = 3_000
#: Jobs that the profile of an application was learned from.
LEARNED = 300
#: Requests of the client that submits, in flight at once.
CLIENTS = 64
#: Seconds between the arrival of engines and the window.
SETTLING = 2.0
#: Jobs that run before anything is measured, so that what is loaded lazily is loaded.
WARM = 60
#: Beyond what any point needs; the default, 10,000, is the largest point itself.
MOST_JOBS = 20_000


@dataclass(frozen=True, slots=True)
class Point:
    """One window. Times in seconds, memory in bytes."""

    policy: str
    engines: int
    jobs: int
    #: Jobs that were active, mean of beginning and end.
    active: float
    seconds: float
    tasks_per_s: float
    jobs_per_s: float
    decisions: int
    decision_mean: float
    decision_p99: float
    lag_p50: float
    lag_p99: float
    #: Processor time of the gateway: share of one core, and per LLM task.
    processor: float
    processor_per_task: float
    #: Share of the engines' slots in use, mean of beginning and end.
    slots_used: float
    rss: float
    load: float


@dataclass(frozen=True, slots=True)
class Filling:
    """Jobs were submitted and nothing runs. Memory in bytes of resident set per job."""

    policy: str
    jobs: int
    jobs_per_s: float
    lag_p99: float
    rss_before: float
    rss_after: float

    @property
    def memory_per_job(self) -> float:
        return per_job(self.rss_before, self.rss_after, self.jobs)


@dataclass(frozen=True, slots=True)
class Inputs:
    """submissions: generated jobs of the six applications. profiles: a folder with what was learned of other such."""

    submissions: list[bytes]
    profiles: Path

    @classmethod
    def make(cls, folder: Path, seed: int = 6) -> Inputs:
        arrivals = build_workload("mixed", DIFFERENT, rate=1_000.0, seed=seed)
        rng, templates = Random(seed), installed_applications()
        for name in APPLICATIONS:
            profile = fit(templates[name], [generate(name, rng) for _ in range(LEARNED)])
            write_profile(folder, profile)
        return cls([rig.submission(arrival.recording) for arrival in arrivals], folder)


class Load:
    """Submits, and keeps the number of active jobs what it is: each job that ends is followed by another."""

    def __init__(self, client: Client, bodies: Sequence[bytes]) -> None:
        self._client = client
        self._bodies: Iterator[bytes] = cycle(bodies)
        self._watch: asyncio.Task[None] | None = None
        self._open = asyncio.Event()
        self._ended: asyncio.Queue[bytes] = asyncio.Queue()
        self._submitters: list[asyncio.Task[None]] = []
        self.failed = 0
        self.completed = 0

    async def submit(self, jobs: int) -> None:
        await rig.in_parallel([self._client.submit(next(self._bodies)) for _ in range(jobs)], CLIENTS)

    @asynccontextmanager
    async def kept(self) -> AsyncIterator[None]:
        """While this is open, a job that ends is replaced."""
        self._watch = asyncio.create_task(self._listen())
        await self._open.wait()
        self._submitters = [asyncio.create_task(self._replace()) for _ in range(CLIENTS)]
        try:
            yield
        finally:
            for task in (self._watch, *self._submitters):
                task.cancel()
            await asyncio.wait((self._watch, *self._submitters))

    def check(self) -> None:
        """Raises RuntimeError if a job failed or the load has stopped."""
        if self.failed:
            raise RuntimeError(f"{self.failed} jobs failed or events were lost")
        for task in (self._watch, *self._submitters):
            if task is not None and task.done():
                task.result()

    async def _listen(self) -> None:
        async for kind, data in self._client.all_events():
            match kind:
                case b"":
                    self._open.set()
                case b"job.completed":
                    self.completed += 1
                    self._ended.put_nowait(data)
                case b"job.failed" | b"job.cancelled" | b"stream.lagged":
                    self.failed += 1

    async def _replace(self) -> None:
        while True:
            await self._ended.get()
            await self._client.submit(next(self._bodies))


@asynccontextmanager
async def gateway(
    policy: str, profiles: Path, checkout: Path | None = None
) -> AsyncIterator[tuple[Gateway, Client, Path]]:
    """A running gateway without engines, its client and its store. checkout: another llmsched than this one.

    It starts with profiles and learns no others: a fit in between would show in one window and not in another.
    """
    with TemporaryDirectory(prefix="llmsched-scale-") as folder:
        settings: dict[str, object] = {"policy": policy, "workers": WORKERS, "speed": SPEED, "profiles": profiles}
        variables = {"LLMSCHED_MAX_ACTIVE_JOBS": str(MOST_JOBS), "LLMSCHED_LEARN": "false"}
        server = Gateway(Path(folder), settings=settings, checkout=checkout, variables=variables)
        server.spawn()
        async with Client(server.url) as client:
            try:
                await client.until_ready(server, engines=False)
                yield server, client, Path(folder, "jobs.db")
            finally:
                await server.stop()


@asynccontextmanager
async def engines(count: int) -> AsyncIterator[list[str]]:
    """URLs of lean engines (`engines.py`), all in one process of their own."""
    command = [sys.executable, str(Path(__file__).with_name("engines.py")), str(count)]
    process = await asyncio.create_subprocess_exec(
        *command, stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE
    )
    assert process.stdout is not None
    try:
        async with asyncio.timeout(30):
            urls = [json.loads(await process.stdout.readline())["url"] for _ in range(count)]
        yield urls
    finally:
        if process.returncode is None:
            process.terminate()
        await process.wait()


async def until_idle(client: Client, timeout: float = 300.0) -> None:
    """Returns when no job is active. Raises TimeoutError."""
    async with asyncio.timeout(timeout):
        while value(await client.get("/metrics"), "llmsched_jobs_active"):  # noqa: ASYNC110 (another process)
            await asyncio.sleep(0.2)


async def warm_up(client: Client, load: Load, engine: str) -> None:
    """Runs a few jobs, and leaves the service without engines again."""
    await client.add_engine(engine)
    await load.submit(WARM)
    await until_idle(client)
    await client.remove_engines()
    await asyncio.sleep(1.0)


async def fill(server: Gateway, client: Client, load: Load, policy: str, jobs: int) -> Filling:
    before, scraped = server.rss_mb * 1e6, await client.get("/metrics")
    began = time.perf_counter()
    await load.submit(jobs)
    seconds = time.perf_counter() - began
    lag = _since(scraped, await client.get("/metrics"), "llmsched_event_loop_lag_seconds")
    await asyncio.sleep(0.5)
    return Filling(policy, jobs, jobs / seconds, lag.quantile(0.99), before, server.rss_mb * 1e6)


async def window(server: Gateway, client: Client, policy: str, engines: int, jobs: int, seconds: float) -> Point:
    """What `seconds` of the service at work show."""
    load = os.getloadavg()[0]
    before, cpu, began = await client.get("/metrics"), server.cpu_s, time.perf_counter()
    await asyncio.sleep(seconds)
    cpu, took = server.cpu_s - cpu, time.perf_counter() - began
    after = await client.get("/metrics")
    decisions = _since(before, after, "llmsched_decision_seconds")
    lag = _since(before, after, "llmsched_event_loop_lag_seconds")
    tasks = _llm_tasks(after) - _llm_tasks(before)
    finished = value(after, "llmsched_jobs_finished_total") - value(before, "llmsched_jobs_finished_total")
    return Point(
        policy=policy,
        engines=engines,
        jobs=jobs,
        active=(value(before, "llmsched_jobs_active") + value(after, "llmsched_jobs_active")) / 2,
        seconds=took,
        tasks_per_s=tasks / took,
        jobs_per_s=finished / took,
        decisions=round(decisions.observations),
        decision_mean=decisions.mean,
        decision_p99=decisions.quantile(0.99),
        lag_p50=lag.quantile(0.5),
        lag_p99=lag.quantile(0.99),
        processor=cpu / took,
        processor_per_task=cpu / tasks if tasks else 0.0,
        slots_used=(_in_use(before) + _in_use(after)) / 2 / (engines * SLOTS),
        rss=server.rss_mb * 1e6,
        load=load,
    )


def _since(before: str, after: str, name: str) -> Buckets:
    try:
        return Buckets.read(after, name) - Buckets.read(before, name)
    except KeyError:  # a checkout from before there was this metric
        return Buckets({}, 0.0)


def _llm_tasks(exposition: str) -> float:
    return value(exposition, "llmsched_task_run_seconds_count", pool="llm")


def _in_use(exposition: str) -> float:
    return value(exposition, "llmsched_running_tasks") - value(
        exposition, "llmsched_running_tasks", executor="workers-cpu"
    )


async def profile(policy: str, jobs: int, count: int, seconds: float, inputs: Inputs) -> dict[str, Any]:
    """One window with py-spy looking on, and what it saw."""
    async with engines(count) as urls, gateway(policy, inputs.profiles) as (server, client, _):
        load = Load(client, inputs.submissions)
        await warm_up(client, load, urls[0])
        await load.submit(jobs)
        async with load.kept():
            for url in urls:
                await client.add_engine(url)
            await asyncio.sleep(SETTLING)
            watching = asyncio.create_task(profiled.profile(server.pid, seconds))
            point = await window(server, client, policy, count, jobs, seconds)
            groups = await watching
            load.check()
    return {"point": asdict(point), "groups": groups}


async def measure(
    policy: str, jobs: int, counts: Sequence[int], seconds: float, inputs: Inputs, checkout: Path | None = None
) -> tuple[Filling, list[Point]]:
    """Every window of one gateway. counts: of engines, ascending."""
    points = []
    async with (
        engines(max(counts)) as urls,
        gateway(policy, inputs.profiles, checkout) as (server, client, _),
    ):
        load = Load(client, inputs.submissions)
        await warm_up(client, load, urls[0])
        filling = await fill(server, client, load, policy, jobs)
        there = 0
        async with load.kept():
            for count in counts:
                for url in urls[there:count]:
                    await client.add_engine(url)
                there = count
                await asyncio.sleep(SETTLING)
                points.append(await window(server, client, policy, count, jobs, seconds))
                load.check()
                show(points[-1])
    return filling, points


def show(point: Point) -> None:
    print(
        f"  {point.policy}, {point.engines} engines, {point.active:,.0f} jobs: {point.tasks_per_s:,.0f} tasks/s,"
        f" {point.jobs_per_s:,.0f} jobs/s, decision {point.decision_mean * 1e6:,.0f} us"
        f" (p99 {point.decision_p99 * 1e6:,.0f}), lag p99 {point.lag_p99 * 1e3:.1f} ms,"
        f" processor {point.processor:.0%}, {point.processor_per_task * 1e6:,.0f} us/task,"
        f" slots {point.slots_used:.0%}, {point.rss / 1e6:,.0f} MB",
        flush=True,
    )


@dataclass(frozen=True, slots=True)
class Drain:
    """So many jobs, there before the engines were, run to their end: the same work whoever does it."""

    seconds: float
    tasks_per_s: float
    jobs_per_s: float
    processor_per_task: float
    decision_mean: float
    lag_p50: float
    lag_p99: float


async def drain(policy: str, jobs: int, count: int, inputs: Inputs, checkout: Path | None = None) -> Drain:
    """Runs `jobs` to their end on `count` engines. checkout: as in `gateway`."""
    async with engines(count) as urls, gateway(policy, inputs.profiles, checkout) as (server, client, _):
        load = Load(client, inputs.submissions)
        await warm_up(client, load, urls[0])
        await load.submit(jobs)
        for url in urls:
            await client.add_engine(url)
        before, cpu, began = await client.get("/metrics"), server.cpu_s, time.perf_counter()
        await until_idle(client)
        seconds, cpu = time.perf_counter() - began, server.cpu_s - cpu
        after = await client.get("/metrics")
    tasks = _llm_tasks(after) - _llm_tasks(before)
    lag = _since(before, after, "llmsched_event_loop_lag_seconds")
    return Drain(
        seconds=seconds,
        tasks_per_s=tasks / seconds,
        jobs_per_s=jobs / seconds,
        processor_per_task=cpu / tasks,
        decision_mean=_since(before, after, "llmsched_decision_seconds").mean,
        lag_p50=lag.quantile(0.5),
        lag_p99=lag.quantile(0.99),
    )


async def growth(jobs: int, inputs: Inputs) -> dict[str, Any]:
    """What the database holds of so many completed jobs, in bytes per job: in all, and by table."""
    async with engines(16) as urls, gateway("fcfs", inputs.profiles) as (server, client, path):
        for url in urls:
            await client.add_engine(url)
        await asyncio.sleep(1.0)
        load = Load(client, inputs.submissions)
        empty = _size(path)
        await load.submit(jobs)
        await until_idle(client)
        await server.stop()  # which moves the log into the file
        return {
            "jobs": jobs,
            "per_job": per_job(empty, _size(path), jobs),
            "submitted_per_job": sum(map(len, inputs.submissions)) / len(inputs.submissions),
            "tables": {name: size / jobs for name, size in _tables(path).items()},
        }


def _size(path: Path) -> float:
    """Pages of the database that are in use, in bytes, whether they are in the file or in its log already."""
    with sqlite3.connect(path) as connection:
        [pages], [free], [size] = (
            connection.execute(f"PRAGMA {p}").fetchone() for p in ("page_count", "freelist_count", "page_size")
        )
    connection.close()
    return float((pages - free) * size)


def _tables(path: Path) -> dict[str, float]:
    """Bytes by table, its indexes with it; nothing where this SQLite cannot tell."""
    with sqlite3.connect(path) as connection:
        try:
            found = connection.execute(
                "SELECT m.tbl_name, sum(d.pgsize) FROM dbstat d JOIN sqlite_schema m ON m.name = d.name"
                " GROUP BY m.tbl_name ORDER BY 2 DESC"
            ).fetchall()
        except sqlite3.OperationalError:
            found = []
    connection.close()
    return {name: float(size) for name, size in found}


def to_json(filling: Filling, points: Sequence[Point]) -> Mapping[str, Any]:
    return {
        "filling": asdict(filling) | {"memory_per_job": filling.memory_per_job},
        "points": [asdict(point) for point in points],
    }
