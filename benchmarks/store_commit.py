"""What durable writes cost: commits and rows per second on SQLite and, where one is given, PostgreSQL.

    python benchmarks/store_commit.py [--postgres postgresql://user@host/scratch] [--seconds 2]

One line is one pattern of writes, into a fresh SQLite file in the working directory or into the given database (whose
llmsched tables are then filled). `alone`: one client of the journal that waits for each commit; `x50`: fifty at once,
each waiting for its own; `batch`: single transactions of 50 jobs, 200 stages and 300 events, made included.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import platform
import tempfile
import time
from collections.abc import Awaitable, Callable
from itertools import chain, count
from statistics import median, quantiles

import orjson

from llmsched.model.events import TaskResult
from llmsched.model.kinds import StageKind
from llmsched.model.records import EventRecord, JobRecord, StageRecord, Writes
from llmsched.store.journal import Journal
from llmsched.store.store import Store

#: As long as the mean recorded job of the public traces (2.5 kB).
RECORDING = orjson.dumps(
    {"app": "bench", "stages": [{"name": f"stage_{i}", "deps": [], "tasks": [i]} for i in range(50)]}
)


def submission(number: int) -> Writes:
    """What accepting a job writes: 3 rows."""
    id = f"job_{number:026d}"
    record = JobRecord(id, number, "bench", 1, submitted_at=1.7e9 + number, metadata={"n": number})
    return Writes(
        jobs=[(record, RECORDING)], events=[EventRecord(id, 1, "job.submitted", 1.7e9, {"class": "standard"})]
    )


def progress(number: int, stages: int, events: int) -> Writes:
    """What the stages of a job write while it runs."""
    id = f"job_{number:026d}"
    result = (TaskResult(1.25, 900, 130),)
    return Writes(
        stages=[
            StageRecord(id, f"s{k}", k, "done", StageKind.LLM, 1.7e9, pool="llm", executors=("e1",), results=result)
            for k in range(1, stages + 1)
        ],
        events=[
            EventRecord(id, 1 + k, "stage.completed", 1.7e9, {"stage": f"s{k}", "seconds": 1.25, "output_tokens": 130})
            for k in range(1, events + 1)
        ],
    )


def group(numbers: range) -> Writes:
    total = Writes()
    for number in numbers:
        total.extend(submission(number))
        total.extend(progress(number, 4, 5))
    return total


async def repeat(seconds: float, work: Callable[[], Awaitable[None]]) -> list[float]:
    """Seconds that each call took, one after the other for so long."""
    times: list[float] = []
    end = time.perf_counter() + seconds
    while (began := time.perf_counter()) < end:
        await work()
        times.append(time.perf_counter() - began)
    return times


def report(name: str, times: list[float], elapsed: float, rows: int, commits: int) -> None:
    p50, p99 = median(times) * 1e3, quantiles(times, n=100)[98] * 1e3
    print(
        f"  {name:<6} {commits / elapsed:6.0f} commits/s {len(times) / elapsed:7.0f} writes/s"
        f" {rows / elapsed:8.0f} rows/s   p50 {p50:6.2f} ms   p99 {p99:6.2f} ms"
    )


async def measure(url: str, seconds: float) -> None:
    async with await Store.open(url) as store:
        numbers = count(await store.last_number() + 1)
        transactions: list[int] = []
        journal = Journal(store, lambda writes: transactions.append(len(writes)))

        async def submit() -> None:
            await journal.append(submission(next(numbers)))

        async def batch() -> None:
            first = next(numbers)
            for _ in range(49):
                next(numbers)
            await store.write(group(range(first, first + 50)))
            transactions.append(50 * 11)

        for name, writers, work in (("alone", 1, submit), ("x50", 50, submit), ("batch", 1, batch)):
            transactions.clear()
            began = time.perf_counter()
            times = await asyncio.gather(*(repeat(seconds, work) for _ in range(writers)))
            elapsed = time.perf_counter() - began
            report(name, list(chain.from_iterable(times)), elapsed, sum(transactions), len(transactions))
        await journal.close()


def main() -> None:
    parser = argparse.ArgumentParser(description="commits and rows per second of the store")
    parser.add_argument("--postgres", default=os.environ.get("LLMSCHED_TEST_POSTGRES"), help="a scratch database")
    parser.add_argument("--seconds", type=float, default=2.0, help="per pattern")
    options = parser.parse_args()
    print(f"durable commits, {platform.machine()}, {os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}")
    with tempfile.TemporaryDirectory(prefix="store-commit-", dir=".") as folder:
        print("SQLite (WAL, synchronous=FULL)")
        asyncio.run(measure(f"sqlite:///{folder}/jobs.db", options.seconds))
    if options.postgres:
        print("PostgreSQL")
        asyncio.run(measure(options.postgres, options.seconds))
    else:
        print("PostgreSQL: not measured; name a scratch database with --postgres")


if __name__ == "__main__":
    main()
