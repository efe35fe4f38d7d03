"""The connections a store reads through: a few beside the writer's, all in autocommit mode.

SQLite is read with the plain driver in a thread, one hand-over per query. Through aiosqlite, which hands every step of
a query to a thread and back, a query took 1.0 ms on an idle loop instead of 0.4, and on a busy one each hand-over waits
for its turn: at 100 event streams a second that was half of the service's processor time.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Protocol, TypeVar

from sqlalchemy import Connection, create_engine, event
from sqlalchemy.ext.asyncio import create_async_engine

from llmsched.store.location import Location
from llmsched.store.writer import connect_postgres, prepare_sqlite

T = TypeVar("T")

SQLITE_CONNECTIONS = 3
POSTGRES_CONNECTIONS = 5


class Reader(Protocol):
    async def call(self, work: Callable[[Connection], T]) -> T:
        """What `work` makes of a connection. Raises what it raises, and what the drivers do."""

    async def close(self) -> None: ...


class SqliteReader:
    def __init__(self, path: Path) -> None:
        self._engine = create_engine(
            f"sqlite:///{path}", isolation_level="AUTOCOMMIT", pool_size=SQLITE_CONNECTIONS, pool_reset_on_return=None
        )
        event.listen(self._engine, "connect", lambda connection, _: prepare_sqlite(connection))
        self._threads = ThreadPoolExecutor(SQLITE_CONNECTIONS, "llmsched-read")

    async def call(self, work: Callable[[Connection], T]) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._threads, self._call, work)

    async def close(self) -> None:
        await asyncio.to_thread(self._threads.shutdown)
        self._engine.dispose()

    def _call(self, work: Callable[[Connection], T]) -> T:
        with self._engine.connect() as connection:
            return work(connection)


class PostgresReader:
    def __init__(self, location: Location) -> None:
        self._engine = create_async_engine(
            "postgresql+asyncpg://",
            async_creator=lambda: connect_postgres(location),
            isolation_level="AUTOCOMMIT",
            pool_size=POSTGRES_CONNECTIONS,
            pool_reset_on_return=None,
        )

    async def call(self, work: Callable[[Connection], T]) -> T:
        async with self._engine.connect() as connection:
            return await connection.run_sync(work)

    async def close(self) -> None:
        await self._engine.dispose()
