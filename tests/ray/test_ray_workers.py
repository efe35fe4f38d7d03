"""Regular tasks on a real Ray cluster of two nodes on this machine (`make test-ray`)."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Any

import psutil
import pytest

ray = pytest.importorskip("ray", reason="ray is not installed (make test-ray does it)")
from ray.cluster_utils import Cluster  # noqa: E402

from llmsched.errors import BackendError, InvalidSetting  # noqa: E402
from llmsched.runtime.tools.handlers import HandlerRegistry, TaskContext, build_registry  # noqa: E402
from llmsched.runtime.tools.ray_workers import RayWorkers, slots_of  # noqa: E402
from llmsched.runtime.tools.work import WorkerError, WorkerTask  # noqa: E402
from tests.integration.service import in_process_service  # noqa: E402

pytestmark = [pytest.mark.filterwarnings("default"), pytest.mark.timeout(120)]

HANDLERS = "tests.ray.ray_handlers"
ROOT = Path(__file__).parents[2]
#: Two CPUs that are always there; a second node, with `extra`, comes and goes.
HEAD = {"num_cpus": 2, "resources": {"steady": 2}}
#: A node that does not answer for five seconds is lost.
IMPATIENT = {"health_check_initial_delay_ms": 3000, "health_check_period_ms": 1000, "health_check_failure_threshold": 5}


def patiently(start: Callable[[], Any], tries: int = 3) -> Any:
    """What `start` makes. Ray gives a node 30 s to come up, which is short where the machine has much else to do."""
    for left in reversed(range(tries)):
        try:
            return start()
        except Exception as error:
            if not left or "timed out during startup" not in str(error):
                raise
    raise AssertionError("unreachable")


@pytest.fixture(scope="module")
def cluster() -> Iterator[Any]:
    # Nodes find handlers as an operator would have it: by PYTHONPATH.
    given = {"PYTHONPATH": str(ROOT)}
    before = {name: os.environ.get(name) for name in given}
    os.environ.update(given)
    small = {"include_dashboard": False, "object_store_memory": 80_000_000}
    head = HEAD | small | {"_system_config": IMPATIENT}
    running = patiently(partial(Cluster, initialize_head=True, head_node_args=head))
    running.far = None
    # It blocks the event loop meanwhile: Ray wants the main thread for it.
    another = partial(running.add_node, num_cpus=1, resources={"extra": 1}, **small)
    running.add_far = partial(patiently, another)
    yield running
    running.shutdown()
    for name, value in before.items():
        if value is None:
            del os.environ[name]
        else:
            os.environ[name] = value


@pytest.fixture(scope="module")
def registry() -> HandlerRegistry:
    return build_registry([HANDLERS])


def task(handler: str, pool: str = "cpu", timeout: float = 60.0, **arguments: Any) -> WorkerTask:
    return WorkerTask(handler, arguments, timeout, TaskContext("job_1", "search", 2, 3, "job_1/search/2"), pool)


@asynccontextmanager
async def joined(
    cluster: Any, registry: HandlerRegistry, **needs: dict[str, float]
) -> AsyncIterator[tuple[RayWorkers, dict[str, int]]]:
    """Workers, and the slots that were told, by pool."""
    slots: dict[str, int] = {}
    pool = RayWorkers(registry, cluster.address, needs or {"cpu": {"CPU": 1}}, slots.__setitem__, interval=0.1)
    await pool.start()
    try:
        yield pool, slots
    finally:
        await pool.close(grace=0.0)


async def failure(awaitable: Any) -> tuple[str, bool, bool]:
    with pytest.raises(WorkerError) as caught:
        await awaitable
    return caught.value.reason, caught.value.retryable, caught.value.reached


async def until(condition: Any, seconds: float = 30.0) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it did not come true"
        await asyncio.sleep(0.02)


def pids(folder: Path) -> list[int]:
    return [int(file.name.removeprefix("pid-")) for file in folder.glob("pid-*")]


def is_gone(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


async def test_handlers_answer_as_in_a_worker_process(cluster: Any, registry: HandlerRegistry) -> None:
    async with joined(cluster, registry) as (pool, slots):
        assert slots == {"cpu": 2}
        assert await pool.run(task("ray_add", a=2, b=3)) == 5
        assert await pool.run(task("ray_context")) == ["job_1", "search", 2, 3, "job_1/search/2"]
        assert await failure(pool.run(task("ray_fail", message="no"))) == ("handler_error", True, True)
        assert await failure(pool.run(task("ray_refuse"))) == ("handler_error", False, True)
        assert await failure(pool.run(task("ray_nonsense"))) == ("bad_result", False, True)
        assert await failure(pool.run(task("ray_die"))) == ("worker_died", True, True)
        assert (await failure(pool.run(task("nobody"))))[0] == "unknown_handler"
        began = time.monotonic()
        await pool.hold(0.2)
        assert time.monotonic() - began >= 0.2
        sums = await asyncio.gather(*(pool.run(task("ray_add", a=k, b=1)) for k in range(50)))
        assert sums == list(range(1, 51))
    assert not ray.is_initialized()
    assert (await failure(pool.run(task("ray_add", a=1, b=1))))[0] == "worker_died"


async def test_timeouts_and_cancelling_reach_the_handler(
    cluster: Any, registry: HandlerRegistry, tmp_path: Path
) -> None:
    async with joined(cluster, registry) as (pool, _):
        late = failure(pool.run(task("ray_linger", timeout=0.5, folder=str(tmp_path))))
        assert await late == ("timeout", True, True)
        [pid] = pids(tmp_path)
        await until(lambda: is_gone(pid))

        (tmp_path / "two").mkdir()
        running = asyncio.create_task(pool.run(task("ray_linger", folder=str(tmp_path / "two"))))
        await until(lambda: pids(tmp_path / "two"))
        running.cancel()
        with pytest.raises(asyncio.CancelledError):
            await running
        [pid] = pids(tmp_path / "two")
        await until(lambda: is_gone(pid))
        assert await pool.run(task("ray_add", a=1, b=1)) == 2  # the slot is free again


async def test_pools_are_resources_and_slots_follow_the_cluster(cluster: Any, registry: HandlerRegistry) -> None:
    needs = {"cpu": {"CPU": 1.0}, "pair": {"CPU": 2.0, "steady": 1.0}, "far": {"extra": 0.5}}
    async with joined(cluster, registry, **needs) as (pool, slots):
        assert slots == {"cpu": 2, "pair": 1}  # `far` has none, as nothing else was ever said
        assert pool.slots == 3
        taken = await pool.run(task("ray_resources", pool="pair"))
        assert taken == {"CPU": 2.0, "steady": 1.0}
        cluster.far = cluster.add_far()
        await until(lambda: slots == {"cpu": 3, "pair": 1, "far": 2})
        assert await pool.run(task("ray_resources", pool="far")) == {"extra": 0.5}


async def test_a_job_of_the_service_survives_the_loss_of_a_node(cluster: Any, tmp_path: Path) -> None:
    application = {
        "stages": [
            {"name": "say", "kind": "llm", "prompt": "Say it", "max_tokens": 4},
            {
                "name": "wait",
                "kind": "regular",
                "after": ["say"],
                "handler": "ray_linger",
                "pool": "far",
                "retries": 0,
                "arguments": {"folder": str(tmp_path)},
            },
        ]
    }
    node = cluster.far or cluster.add_far()
    ray_pools = {"far": {"extra": 1.0}}
    async with in_process_service(
        tmp_path, handlers=[HANDLERS], ray=cluster.address, ray_pools=ray_pools, workers=1
    ) as service:
        assert (await service.put("/v1/applications/waits", json=application)).status_code == 200
        executors = service.context.service.scheduler.view.executors
        await until(lambda: "workers-far" in executors and executors["workers-far"].slots == 1)
        assert executors["workers-cpu"].slots == 1  # this pool runs here
        job = await service.submit(application="waits", input={})
        await until(lambda: pids(tmp_path))
        cluster.remove_node(node, allow_graceful=False)
        await until(lambda: executors["workers-far"].slots == 0)
        (tmp_path / "go").touch()
        cluster.far = cluster.add_far()
        done = await service.finished(job["id"])
        # No retries are allowed: a lost node is not a failure of the task.
        assert (done["status"], done["error"]) == ("completed", None)
        assert len(pids(tmp_path)) == 2


async def test_a_cluster_that_is_not_there_is_said_in_a_sentence(registry: HandlerRegistry) -> None:
    pool = RayWorkers(registry, "127.0.0.1:1", {"cpu": {"CPU": 1}}, lambda pool, slots: None)
    with pytest.raises(BackendError, match=r"the Ray cluster '127\.0\.0\.1:1' cannot be joined: .*ray start --head"):
        await pool.start()
    await pool.close()


def test_a_pool_that_takes_nothing_is_refused(registry: HandlerRegistry) -> None:
    with pytest.raises(InvalidSetting, match=r"ray_pools\.cpu is \{\}; it must name what one task takes"):
        RayWorkers(registry, "auto", {"cpu": {}}, lambda pool, slots: None)
    assert slots_of({"CPU": 3.0, "memory": 10.0}, {"num_cpus": 1.0, "memory": 4.0, "resources": {}}) == 2
