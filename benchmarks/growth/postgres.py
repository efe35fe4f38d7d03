"""LLM tasks a second with the store on PostgreSQL beside SQLite, and with two gateways that follow, in turns.

Both stores are durable. Jobs go to the gateway that leads; engines answer at once. *Idle*: two more gateways. *Read*:
besides, each of them streams all events to a client, and answers 20 requests a second for jobs.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from itertools import count
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory

import rig
import throughput
from rig import Client, Ends, Figure, Gateway

#: LLM tasks of a round, and rounds.
TASKS, ROUNDS = 2_000, 5
SHAPE = "one call"
SQLITE, ALONE, IDLE, READ = (
    "SQLite",
    "PostgreSQL",
    "PostgreSQL, two that follow, idle",
    "PostgreSQL, two that follow, read",
)


async def measure(quick: bool) -> list[Figure]:
    rates: dict[str, list[float]] = {arm: [] for arm in (SQLITE, ALONE, IDLE, READ)}
    with TemporaryDirectory(prefix="llmsched-growth-") as folder, rig.database(durable=True) as url:
        homes = (Path(folder, str(number)) for number in count())
        async with rig.engines(1, max_batch=throughput.CLIENTS) as urls:
            for number in range(1 if quick else ROUNDS):
                for arm in list(rates) if number % 2 == 0 else list(reversed(rates)):
                    store = None if arm == SQLITE else await rig.fresh(url)
                    async with gateways(next(homes), urls, store, 3 if arm in (IDLE, READ) else 1) as clients:
                        rates[arm].append(await rate(clients, reads=arm == READ, tasks=200 if quick else TASKS))
    middle = {arm: median(found) for arm, found in rates.items()}
    figures = [Figure(f"LLM tasks end to end, {SQLITE}", middle[SQLITE], "/s")]
    figures.append(Figure(f"LLM tasks end to end, {ALONE}", middle[ALONE], "/s", 300.0, at_most=False))
    for arm in (IDLE, READ):
        slower = [(a - b) / a * 100 for a, b in zip(rates[ALONE], rates[arm], strict=True)]
        figures.append(Figure(f"LLM tasks end to end, {arm}", middle[arm], "/s"))
        figures.append(Figure("  slower than alone, median of the rounds", median(slower), "%", 10.0))
    return figures


@asynccontextmanager
async def gateways(home: Path, engines: list[str], store: str | None, number: int) -> AsyncIterator[list[Client]]:
    """Clients of so many gateways on one store, the one that leads first."""
    async with AsyncExitStack() as stack:
        clients = []
        for k in range(number):
            folder = home / str(k)
            folder.mkdir(parents=True)
            gateway = Gateway(folder, engines=engines, settings={"store": store} if store else None)
            gateway.spawn()
            stack.push_async_callback(gateway.stop)
            client = await stack.enter_async_context(Client(gateway.url))
            await client.until_ready(gateway)
            clients.append(client)
        yield clients


async def rate(clients: list[Client], *, reads: bool, tasks: int) -> float:
    """LLM tasks a second."""
    leader, *others = clients
    await leader.put_application(throughput.name_of(SHAPE), throughput.definition(SHAPE))
    await throughput.through_service(leader, SHAPE, tasks // 10)
    async with AsyncExitStack() as stack:
        readers = []
        for other in others if reads else ():
            await stack.enter_async_context(Ends.watch(other))
            readers.append(asyncio.create_task(_read(other)))
        found, _ = await throughput.through_service(leader, SHAPE, tasks)
        for reader in readers:
            reader.cancel()
        await asyncio.gather(*readers, return_exceptions=True)
    return found


async def _read(client: Client) -> None:
    while True:
        for job in (await client.get("/v1/jobs?limit=10"))["items"]:
            await asyncio.sleep(0.05)
            await client.get(f"/v1/jobs/{job['id']}")
