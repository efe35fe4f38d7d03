"""Regular tasks a second on a local Ray cluster, beside the service's own worker processes, in turns."""

from __future__ import annotations

import asyncio
import os
import time
from importlib.util import find_spec
from pathlib import Path
from statistics import median

from rig import Figure

from llmsched.runtime.tools.handlers import TaskContext, build_registry
from llmsched.runtime.tools.work import WorkerTask
from llmsched.runtime.tools.workers import ProcessWorkers, WorkerPool

HANDLERS = "tests.integration.worker_handlers"
#: Tasks of a round, how many at a time, rounds, and processors that the cluster claims to have.
TASKS, AT_ONCE, ROUNDS, PROCESSORS = 1_000, 8, 3, 8


async def measure(quick: bool) -> list[Figure]:
    """Nothing where Ray is not installed."""
    if find_spec("ray") is None:
        return []
    from ray.cluster_utils import Cluster

    from llmsched.runtime.tools.ray_workers import RayWorkers

    os.environ["PYTHONPATH"] = str(Path(__file__).parents[2])  # where nodes find the handlers
    head = {"num_cpus": PROCESSORS, "include_dashboard": False, "object_store_memory": 80_000_000}
    running = Cluster(initialize_head=True, head_node_args=head)
    registry = build_registry([HANDLERS])
    pools: dict[str, WorkerPool] = {
        "own": ProcessWorkers(registry, AT_ONCE),
        "Ray": RayWorkers(registry, running.address, {"cpu": {"CPU": 1}}, lambda pool, slots: None),
    }
    rates: dict[str, list[float]] = {name: [] for name in pools}
    alone: dict[str, list[float]] = {name: [] for name in pools}
    tasks = 50 if quick else TASKS
    try:
        for pool in pools.values():
            await pool.start()
            await run(pool, 4 * AT_ONCE, AT_ONCE)  # the processes are there
        for number in range(1 if quick else ROUNDS):
            for name in list(pools) if number % 2 == 0 else list(reversed(pools)):
                rates[name].append(tasks / await run(pools[name], tasks, AT_ONCE))
                alone[name].append(await run(pools[name], tasks // 5, 1) / (tasks // 5) * 1e3)
    finally:
        for pool in pools.values():
            await pool.close(grace=0.0)
        running.shutdown()
    return [
        Figure(f"tasks, {AT_ONCE} at a time, Ray", median(rates["Ray"]), "/s", 200.0, at_most=False),
        Figure(f"tasks, {AT_ONCE} at a time, own processes", median(rates["own"]), "/s"),
        Figure("a task alone, Ray", median(alone["Ray"]), "ms"),
        Figure("a task alone, own processes", median(alone["own"]), "ms"),
    ]


async def run(pool: WorkerPool, tasks: int, at_once: int) -> float:
    """Seconds that so many trivial tasks take."""
    task = WorkerTask("add", {"a": 1, "b": 2}, 60.0, TaskContext("job_1", "sum", 0, 0, "job_1/sum/0"), "cpu")
    left = iter(range(tasks))

    async def work() -> None:
        for _ in left:
            await pool.run(task)

    began = time.perf_counter()
    await asyncio.gather(*(work() for _ in range(at_once)))
    return time.perf_counter() - began
