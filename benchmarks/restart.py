"""How soon a gateway with 2,000 unfinished jobs in its store is ready again after kill -9.

    python benchmarks/restart.py [--jobs N]

Recorded jobs of the six applications are submitted to slow engines; when all are accepted and some of their stages are
committed, the gateway is killed. It is then started three times: twice it is killed again as soon as it is ready, the
third time engines that answer at once let every job finish. Ready means that `/ready` complains of nothing but engines.
Seconds count from the start of the process, its imports included.
"""

from __future__ import annotations

import argparse
import asyncio
import tempfile
import time
from pathlib import Path
from statistics import median

import rig
from rig import Client, Figure, Gateway

from llmsched.workloads import build_workload

STARTS = 3
#: Engines on which no job finishes in the time this takes.
SLOW = {"name": "slow", "prefill_tokens_per_s": 1e6, "decode": [[1, 0.1]]}
#: Seconds the jobs run before the kill.
RUNNING = 3.0


async def _unfinished(client: Client) -> int:
    """Active jobs by the gateway's own metrics."""
    lines = (await client.get("/metrics")).splitlines()
    return int(sum(float(line.rpartition(" ")[2]) for line in lines if line.startswith("llmsched_jobs_active{")))


async def measure(jobs: int = 2_000) -> list[Figure]:
    bodies = [rig.submission(arrival.recording) for arrival in build_workload("mixed", jobs, rate=1000.0, seed=2)]
    seconds = []
    with tempfile.TemporaryDirectory(prefix="llmsched-bench-") as folder:
        async with rig.engines(latency=SLOW, max_batch=256) as urls:
            server = Gateway(Path(folder), engines=urls, settings={"speed": 1000})
            server.spawn()
            async with Client(server.url) as client:
                await client.until_ready(server)
                await rig.in_parallel([client.submit(body) for body in bodies], 64)
                await asyncio.sleep(RUNNING)
                unfinished = await _unfinished(client)
                server.kill()
            port = int(urls[0].rpartition(":")[2])
        for last in range(STARTS):
            async with Client(server.url) as client:
                began = time.perf_counter()
                server.spawn()
                await client.until_ready(server, engines=False)
                seconds.append(time.perf_counter() - began)
                restored = await _unfinished(client)
                if last < STARTS - 1:
                    server.kill()
                    continue
                async with rig.engines(port=port, max_batch=256):
                    began = time.perf_counter()
                    while left := await _unfinished(client):
                        server.check()
                        await asyncio.sleep(0.2)
                        if time.perf_counter() - began > 600:
                            break
                    finishing = time.perf_counter() - began
                    lost = await _not_completed(client, jobs)
        await server.stop()
    return [
        Figure("unfinished jobs when the gateway was killed", unfinished, "jobs"),
        Figure("of them active after the restart", restored, "jobs", goal=unfinished, at_most=False),
        Figure("ready after", median(seconds), "s", goal=5.0),
        Figure("slowest start", max(seconds), "s"),
        Figure("all finished, with instant engines, within", finishing, "s"),
        Figure("jobs lost or failed", left + lost, "jobs", goal=0),
    ]


async def _not_completed(client: Client, jobs: int) -> int:
    """How many of all jobs ever submitted are not completed."""
    completed, cursor = 0, ""
    while True:
        page = await client.get(f"/v1/jobs?status=completed&limit=500{cursor}")
        completed += len(page["items"])
        if page["next_cursor"] is None:
            return jobs - completed
        cursor = f"&cursor={page['next_cursor']}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--jobs", type=int, default=2_000)
    options = parser.parse_args()
    rig.show(rig.run(measure(options.jobs)))


if __name__ == "__main__":
    main()
