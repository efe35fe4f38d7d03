"""2,000 jobs in flight at once: do all of them finish, and is nothing left of them?

    python benchmarks/in_flight.py [--jobs N]

Recorded jobs of the six applications (generated, seeded) are submitted before there is an engine, so that all of them
are in flight when engines with 2,048 slots are added, which read prompts slowly and then answer fast: that keeps two
thousand calls open at a time without spending the machine on chunks. A quarter of the jobs are followed on event
streams of their own. Memory is the resident set of the gateway's process, sampled every 50 ms; connections are its
established TCP connections.
"""

from __future__ import annotations

import argparse
import asyncio
import time
from dataclasses import dataclass, field

import rig
from rig import Client, Ends, Figure, Gateway

from llmsched.workloads import build_workload

ENGINES, SLOTS = 4, 512
#: 1,000 prompt tokens a second: a call of the mean length waits 2.3 s for its first token.
CURVE = {"name": "slow-reader", "prefill_tokens_per_s": 1000.0, "decode": [[1, 0.0005]]}
#: Seconds a gateway at rest has to give memory and connections back.
REST = 10.0


@dataclass(slots=True)
class Peaks:
    """The highest values seen."""

    rss_mb: float = 0.0
    connections: int = 0
    running: float = 0.0
    _task: asyncio.Task[None] | None = field(default=None, repr=False)

    async def sample(self, server: Gateway, client: Client) -> None:
        count = 0
        while True:
            self.rss_mb = max(self.rss_mb, server.rss_mb)
            if count % 20 == 0:
                self.connections = max(self.connections, server.connections())
                _, tasks = await left_over(client)
                self.running = max(self.running, tasks)
            count += 1
            await asyncio.sleep(0.05)


async def left_over(client: Client) -> tuple[float, float]:
    """(active jobs, running tasks) by the gateway's own metrics."""
    jobs = tasks = 0.0
    for line in (await client.get("/metrics")).splitlines():
        if line.startswith("llmsched_jobs_active{"):
            jobs += float(line.rpartition(" ")[2])
        elif line.startswith("llmsched_running_tasks{"):
            tasks += float(line.rpartition(" ")[2])
    return jobs, tasks


async def measure(jobs: int = 2_000) -> list[Figure]:
    arrivals = build_workload("mixed", jobs, rate=1000.0, seed=1)
    bodies = [rig.submission(arrival.recording) for arrival in arrivals]
    async with (
        rig.engines(ENGINES, latency=CURVE, max_batch=SLOTS) as urls,
        # Recorded tools run as fast as prompts are read: their seconds are not what is measured here.
        rig.gateway(workers=1_000, speed=20) as (server, client),
    ):
        await asyncio.sleep(2.0)
        before, open_before = server.rss_mb, server.connections()
        peaks = Peaks()
        sampling = asyncio.create_task(peaks.sample(server, client))
        began = time.perf_counter()
        async with Ends.watch(client) as ends:
            ids = await rig.in_parallel([client.submit(body) for body in bodies], 64)
            submitted = time.perf_counter() - began
            followers = [asyncio.create_task(client.follow(id)) for id in ids[::4]]
            active, _ = await left_over(client)
            for url in urls:
                await client.add_engine(url)
            began = time.perf_counter()
            await ends.until(jobs, timeout=900)
            await asyncio.gather(*followers)
        seconds = time.perf_counter() - began
        sampling.cancel()
        await asyncio.wait((sampling,))
        await client.close_idle()
        resting = time.perf_counter()
        while (left := await left_over(client)) != (0.0, 0.0) and time.perf_counter() - resting < REST:  # noqa: ASYNC110
            await asyncio.sleep(0.1)
        await client.close_idle()
        await asyncio.sleep(REST / 2)  # engine connections are kept for 2 s
        after, open_after = server.rss_mb, server.connections()
    return [
        Figure("jobs that finished", ends.completed, f"of {jobs:,}", goal=jobs, at_most=False),
        Figure("all submitted within", submitted, "s"),
        Figure("all finished, after the engines came, within", seconds, "s"),
        Figure("jobs in flight when the engines came", active, "jobs", goal=jobs, at_most=False),
        Figure("most tasks running at once", peaks.running, "tasks"),
        Figure("most connections of the gateway", peaks.connections, "connections"),
        Figure("gateway memory before", before, "MB"),
        Figure("gateway memory, peak", peaks.rss_mb, "MB", goal=600),
        Figure("gateway memory after", after, "MB", goal=2 * before),
        Figure("jobs left over", left[0], "jobs", goal=0),
        Figure("tasks left over", left[1], "tasks", goal=0),
        # One per engine is of the health probes.
        Figure("connections left over", open_after - open_before, "connections", goal=ENGINES),
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--jobs", type=int, default=2_000)
    options = parser.parse_args()
    rig.show(rig.run(measure(options.jobs)))


if __name__ == "__main__":
    main()
