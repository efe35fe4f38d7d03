"""Who of several gateways on one PostgreSQL leads: one row, whose epoch grows with each leader.

    run out (by the database's clock), given back, or not renewed and its session gone ──▶ who comes first takes it
    the leader renews it several times before it runs out
    each transaction of the leader locks the row and looks at the epoch first (`PostgresWriter`)

So clocks of gateways do not matter, and a leader that was frozen, or cut off for longer than the lease lasts, can write
nothing once another one leads. A transaction it was frozen in holds the row for `IDLE_IN_TRANSACTION` seconds at most.

The same connection hears of jobs that other gateways accepted, and holds a small number that is this gateway's own.
"""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Callable
from typing import Any

from llmsched.errors import BackendError
from llmsched.model.records import Leader
from llmsched.store.location import Location
from llmsched.store.writer import POSTGRES_FAILURES, connect_postgres, this_service

#: Channel of PostgreSQL's notifications that says: there are arrivals.
ARRIVALS = "llmsched_arrivals"
#: Class of PostgreSQL's advisory locks for the numbers of gateways, of which there are so many.
_NUMBERS = 0x6C6C6E
MOST_GATEWAYS = 1024

_NOW = "extract(epoch FROM clock_timestamp())::float8"
_SESSION = "SELECT extract(epoch FROM backend_start)::float8 FROM pg_stat_activity WHERE pid = pg_backend_pid()"
_IS_GONE = (
    "NOT EXISTS (SELECT FROM pg_stat_activity a"
    " WHERE a.pid = lease.pid AND extract(epoch FROM a.backend_start)::float8 = lease.session)"
)
_TAKE = f"""
    UPDATE lease SET epoch = epoch + 1, holder = $1, url = $2, secret = $3, renewed_at = {_NOW}, lasts = $4,
        pid = pg_backend_pid(), session = $5, active_jobs = 0
    WHERE id = 1 AND ({_NOW} > renewed_at + lasts OR ({_NOW} > renewed_at + lasts / 2 AND {_IS_GONE}))
    RETURNING epoch
"""
_RENEW = f"""
    UPDATE lease SET renewed_at = {_NOW}, pid = pg_backend_pid(), session = $2, active_jobs = $3
    WHERE id = 1 AND epoch = $1
"""
_LOOK = f"SELECT epoch, holder, url, secret, active_jobs, {_NOW} <= renewed_at + lasts AS is_alive FROM lease"
_GIVE_BACK = "UPDATE lease SET renewed_at = 0, lasts = 0 WHERE id = 1 AND epoch = $1"


class Lease:
    """One gateway's side of it. url: where the others reach this one. seconds: without renewal, until it runs out.

    on_arrivals: called when another gateway accepted jobs, and when that may have been missed.
    Every method raises BackendError where the database does not answer.
    """

    def __init__(self, location: Location, url: str, seconds: float, on_arrivals: Callable[[], None]) -> None:
        self.url = url
        self.seconds = seconds
        self.holder = this_service()
        self.secret = secrets.token_urlsafe(24)
        #: What makes numbers of jobs differ between gateways, below `MOST_GATEWAYS`.
        self.number = 0
        #: Of this gateway's own lead; None: it does not lead.
        self.epoch: int | None = None
        self._location = location
        self._on_arrivals = on_arrivals
        self._turn = asyncio.Lock()
        self._connection: Any = None
        self._session = 0.0
        self._was_connected = False
        self._patient_until = 0.0

    async def take(self) -> bool:
        """Whether this gateway leads from now on: nobody else does.

        After the database was away, all leases have run out. Then whoever led comes first, and others a while later.
        """
        async with self._turn:
            connection = await self._connected()
            if asyncio.get_running_loop().time() < self._patient_until:
                return False
            mine = (self.holder, self.url, self.secret, self.seconds, self._session)
            self.epoch = await self._ask(connection.fetchval(_TAKE, *mine))
        return self.epoch is not None

    async def renew(self, active_jobs: int) -> bool:
        """Whether this gateway still leads."""
        async with self._turn:
            connection = await self._connected()
            done: str = await self._ask(connection.execute(_RENEW, self.epoch, self._session, active_jobs))
        return done == "UPDATE 1"

    async def look(self) -> Leader:
        """Who leads, or did so last (epoch 0: nobody ever did)."""
        async with self._turn:
            connection = await self._connected()
            return Leader(*await self._ask(connection.fetchrow(_LOOK)))

    async def close(self) -> None:
        """Gives the lease back, if it is ours: the next one need not wait."""
        async with self._turn:
            if self._connection is None:
                return
            try:
                if self.epoch is not None and not self._connection.is_closed():
                    await self._connection.execute(_GIVE_BACK, self.epoch)
                await self._connection.close(timeout=self.seconds)
            except POSTGRES_FAILURES:
                self._connection.terminate()
            self._connection = None

    async def _connected(self) -> Any:
        if self._connection is None or self._connection.is_closed():
            try:
                async with asyncio.timeout(2 * self.seconds):
                    self._connection = connection = await connect_postgres(self._location)
                    # A lost renewal costs nothing; waiting for the disk would, several times a second.
                    await connection.execute("SET synchronous_commit = off")
                    await connection.execute(f"SET lock_timeout = {int(self.seconds * 1000)}")
                    self._session = await connection.fetchval(_SESSION)
                    self.number = await self._own_number(connection)
                    await connection.add_listener(ARRIVALS, lambda *_: self._on_arrivals())
            except POSTGRES_FAILURES as error:
                raise self._failed(error) from error
            if self._was_connected:
                self._patient_until = asyncio.get_running_loop().time() + self.seconds
            self._was_connected = True
            self._on_arrivals()
        return self._connection

    async def _own_number(self, connection: Any) -> int:
        """The last one again if it is free, else the first that is."""
        number: int
        for number in (self.number, *range(MOST_GATEWAYS)):
            if await connection.fetchval("SELECT pg_try_advisory_lock($1, $2)", _NUMBERS, number):
                return number
        raise BackendError(f"more than {MOST_GATEWAYS} gateways work with {self._location.shown}; stop some of them")

    async def _ask(self, question: Any) -> Any:
        try:
            async with asyncio.timeout(2 * self.seconds):
                return await question
        except POSTGRES_FAILURES as error:
            raise self._failed(error) from error

    def _failed(self, error: BaseException) -> BackendError:
        if self._connection is not None:
            self._connection.terminate()
            self._connection = None
        reason = self._location.scrub(error) or type(error).__name__
        return BackendError(f"the store {self._location.shown} failed: {reason}")
