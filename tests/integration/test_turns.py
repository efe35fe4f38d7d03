"""How much one turn of the service takes on: enough to be cheap, little enough that nothing else waits for long."""

from __future__ import annotations

import asyncio
from pathlib import Path

from llmsched.model.events import Batch, Command, Wakeup
from llmsched.runtime.service import MOST_EVENTS, Service
from tests.integration.service import in_process_service, until

NOTHING = Wakeup()


def batches_of(service: Service) -> list[int]:
    """Sizes of the batches that the scheduler is handed from now on."""
    sizes: list[int] = []
    handle = service.scheduler.handle

    def counted(batch: Batch) -> list[Command]:
        sizes.append(len(batch.events))
        return handle(batch)

    service.scheduler.handle = counted  # type: ignore[method-assign]
    return sizes


async def test_a_turn_takes_so_many_events_and_the_loop_looks_at_everything_else_in_between(tmp_path: Path) -> None:
    async with in_process_service(tmp_path) as running:
        service = running.context.service
        sizes = batches_of(service)
        for _ in range(2 * MOST_EVENTS + 3):
            service.post(NOTHING)
        seen = []
        while sum(sizes) < 2 * MOST_EVENTS + 3:
            await asyncio.sleep(0)
            seen.append(len(sizes))
        assert sizes == [MOST_EVENTS, MOST_EVENTS, 3]
        assert {1, 2, 3} <= set(seen)


async def test_what_tick_ms_held_back_is_one_batch(tmp_path: Path) -> None:
    async with in_process_service(tmp_path, tick_ms=5) as running:
        service = running.context.service
        sizes = batches_of(service)
        for _ in range(2 * MOST_EVENTS):
            service.post(NOTHING)
        await until(lambda: sizes)
        assert sizes[0] >= 2 * MOST_EVENTS  # and whatever else happened in these milliseconds


async def test_a_service_that_stops_leaves_nothing_in_its_queue(tmp_path: Path) -> None:
    async with in_process_service(tmp_path) as running:
        service = running.context.service
        sizes = batches_of(service)
        for _ in range(3 * MOST_EVENTS):
            service.post(NOTHING)
    assert sum(sizes) >= 3 * MOST_EVENTS
