"""Regular tasks on a Ray cluster: the `WorkerPool` whose processes are Ray's, on as many machines as it has.

    pool ──needs──▶ resources of one task, {"CPU": 1}        slots = tasks of that kind that the live nodes hold
    run(task) ──▶ a Ray task, never repeated by Ray ──▶ "it has begun", then the answer

A pool of the service stands for what one of its tasks needs of a node. How many of them fit on the nodes that are alive
is the pool's slots; nodes are counted every second, and `on_slots` hears of each change. A task whose node is lost is
told as `reached=False`: nobody counts it as a failure, and it queues again. One that waits in Ray's own queue because
others use the cluster too is taken back after `START_TIMEOUT`.

A Ray task streams two items, so that a handler's time counts from its start and not from its place in Ray's queue.
What it computes travels as JSON, as between the service and its own workers. Cancelling and timeouts kill the Ray
worker that runs the handler (what it started itself is not ours to find there). Nodes need this llmsched and the
modules of its handlers installed.

Absent: a limit on memory (give the pool's tasks `memory`), and life without the head: Ray ends a process that has lost
it for a minute, and the service is to be started again, as after any crash.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import asdict
from typing import Any

try:
    import ray
    from ray import exceptions as failures
except ImportError:
    ray = None

from llmsched.errors import BackendError, InvalidSetting
from llmsched.runtime.tools.handlers import Handler, HandlerRegistry
from llmsched.runtime.tools.http_tools import HttpTools
from llmsched.runtime.tools.ray_worker import perform, sleep
from llmsched.runtime.tools.work import WorkerError, WorkerTask
from llmsched.runtime.tools.workers import EXIT_TIMEOUT, START_TIMEOUT, Pool, as_json, overdue, read_answer

log = logging.getLogger(__name__)

#: Seconds in which somebody has to listen at the address of the cluster.
CONNECT_TIMEOUT = 5.0
#: Seconds between two counts of the nodes.
INTERVAL = 1.0
#: Tasks that are handed to Ray at once, at most.
MOST_AT_ONCE = 10_000
#: Resources of Ray that have a parameter of their own.
_NAMED = {"CPU": "num_cpus", "GPU": "num_gpus", "memory": "memory"}


class RayWorkers(Pool):
    """needs: resources of one task, by pool. on_slots: hears how many slots a pool has, at first and when that changes.

    Raises InvalidSetting where Ray is not installed or a pool needs nothing.
    """

    def __init__(
        self,
        registry: HandlerRegistry,
        address: str,
        needs: Mapping[str, Mapping[str, float]],
        on_slots: Callable[[str, int], None],
        *,
        max_result_bytes: int = 1 << 20,
        tools: HttpTools | None = None,
        interval: float = INTERVAL,
    ) -> None:
        if ray is None:
            raise InvalidSetting("ray is not installed; pip install 'llmsched[ray]', or leave ray out", field="ray")
        super().__init__(registry, MOST_AT_ONCE, tools)
        self._address = address
        self._needs = {pool: _needs(pool, need) for pool, need in needs.items()}
        self._on_slots = on_slots
        self._max_result_bytes = max_result_bytes
        self._interval = interval
        self._offered: dict[str, int] = dict.fromkeys(self._needs, 0)
        self._watch: asyncio.Task[None] | None = None
        self._tasks: dict[tuple[str, str], Any] = {}

    @property
    def pools(self) -> frozenset[str]:
        return frozenset(self._needs)

    @property
    def slots(self) -> int:
        return sum(self._offered.values())

    async def start(self) -> None:
        """Joins the cluster. Raises BackendError where there is none."""
        try:
            await _knock(self._address)
            # In a thread: it blocks, and in the main one it would take SIGTERM for itself.
            await asyncio.to_thread(self._join)
        except (
            Exception
        ) as error:  # Ray's own errors have no common root here: ConnectionError, RuntimeError, ValueError
            reason = str(error).strip().split("\n")[0]
            raise BackendError(
                f"the Ray cluster {self._address!r} cannot be joined: {reason}; start it with 'ray start --head',"
                " or leave ray out"
            ) from error
        await super().start()
        await self._count()
        self._watch = asyncio.create_task(self._follow(), name="ray nodes")

    async def hold(self, seconds: float, *, pool: str = "cpu") -> None:
        async with self._slot():
            await self._on_ray(pool, sleep, (seconds,), None)

    async def close(self, grace: float = 5.0) -> None:
        if self._watch is not None:
            self._watch.cancel()
            await asyncio.wait((self._watch,))
            self._watch = None
        await super().close(grace)
        if ray.is_initialized():
            await asyncio.to_thread(ray.shutdown)

    async def _perform(self, handler: Handler, task: WorkerTask) -> object:
        try:
            reference = handler.reference
        except InvalidSetting as error:
            raise WorkerError(str(error), reason="unknown_handler", retryable=False) from error
        question = (reference, as_json(task.arguments), asdict(task.context), self._max_result_bytes)
        return read_answer(await self._on_ray(task.pool, perform, question, task))

    async def _on_ray(self, pool: str, function: Any, arguments: tuple[Any, ...], task: WorkerTask | None) -> bytes:
        """What a Ray task yields after it has begun. Raises WorkerError; when cancelled, the task is gone."""
        items = self._remote(pool, function).remote(*arguments)
        is_over = False
        try:
            try:
                async with asyncio.timeout(START_TIMEOUT):
                    await _next(items)
            except TimeoutError:
                message = f"Ray did not begin the task within {START_TIMEOUT:g} s"
                raise WorkerError(message, reason="worker_died", reached=False) from None
            try:
                async with asyncio.timeout(None if task is None else task.timeout):
                    answer: bytes = await _next(items)
            except TimeoutError:
                assert task is not None, pool
                raise overdue(task) from None
            is_over = True
            return answer
        except failures.RayError as error:
            is_over = True
            raise _failed(error) from error
        finally:
            if not is_over:
                ray.cancel(items, force=True)
                await asyncio.shield(_gone(items))

    def _remote(self, pool: str, function: Any) -> Any:
        key = pool, function.__name__
        if key not in self._tasks:
            remote = ray.remote(max_retries=0, num_cpus=0)(function)
            self._tasks[key] = remote.options(**self._needs[pool])
        return self._tasks[key]

    def _join(self) -> None:
        ray.init(address=self._address, namespace="llmsched", log_to_driver=False, configure_logging=False)

    async def _follow(self) -> None:
        while True:
            await asyncio.sleep(self._interval)
            await self._count()

    async def _count(self) -> None:
        try:
            nodes = await asyncio.to_thread(ray.nodes)
        except Exception as error:  # whatever it is, the nodes are not known, and what was known is as good as any
            log.warning("Ray does not tell its nodes", extra={"reason": str(error)})
            return
        alive = [node["Resources"] for node in nodes if node["Alive"]]
        for pool, need in self._needs.items():
            slots = sum(slots_of(resources, need) for resources in alive)
            if slots != self._offered[pool]:
                log.info("Ray slots", extra={"pool": pool, "slots": slots, "nodes": len(alive)})
                self._offered[pool] = slots
                self._on_slots(pool, slots)


async def _knock(address: str) -> None:
    """Raises OSError where nobody listens at `host:port`: Ray itself asks for minutes, and cannot be interrupted."""
    host, colon, port = address.rpartition(":")
    if "://" in address or not (colon and port.isdecimal()):
        return
    try:
        async with asyncio.timeout(CONNECT_TIMEOUT):
            _, writer = await asyncio.open_connection(host.strip("[]"), int(port))
    except TimeoutError:
        raise OSError(f"nobody answers within {CONNECT_TIMEOUT:g} s") from None
    writer.close()


def slots_of(resources: Mapping[str, float], need: Mapping[str, Any]) -> int:
    """How many tasks with these needs (as `_needs` has them) a node with these resources holds.

    >>> slots_of({"CPU": 8.0, "GPU": 2.0}, {"num_cpus": 2.0, "resources": {}})
    4
    >>> slots_of({"CPU": 8.0}, {"num_cpus": 2.0, "resources": {"tpu": 1.0}})
    0
    """
    flat = {name: need[parameter] for name, parameter in _NAMED.items() if parameter in need} | dict(need["resources"])
    return min(int(resources.get(name, 0.0) / amount + 1e-9) for name, amount in flat.items())


def _needs(pool: str, need: Mapping[str, float]) -> dict[str, Any]:
    """What `options` of a Ray task takes. Raises InvalidSetting."""
    if not need or any(amount <= 0 for amount in need.values()):
        raise InvalidSetting(
            f"ray_pools.{pool} is {dict(need)!r}; it must name what one task takes, {{ CPU = 1 }} for example",
            field="ray_pools",
        )
    named: dict[str, Any] = {_NAMED[name]: amount for name, amount in need.items() if name in _NAMED}
    return named | {"resources": {name: amount for name, amount in need.items() if name not in _NAMED}}


async def _next(items: Any) -> Any:
    return await (await anext(items))


async def _gone(items: Any) -> None:
    """Waits a moment for the end of a task that was cancelled."""
    with suppress(failures.RayError, StopAsyncIteration, TimeoutError):
        async with asyncio.timeout(EXIT_TIMEOUT):
            while True:
                await _next(items)


def _failed(error: Exception) -> WorkerError:
    words = " ".join(str(error).split())[:300]
    if isinstance(error, failures.NodeDiedError | failures.LocalRayletDiedError):
        return WorkerError(f"its Ray node was lost: {words}", reason="worker_died", reached=False)
    if isinstance(error, failures.OutOfMemoryError):
        return WorkerError(f"the Ray node ran out of memory: {words}", reason="memory")
    return WorkerError(f"Ray could not run it: {words}", reason="worker_died")
