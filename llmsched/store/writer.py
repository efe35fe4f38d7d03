"""The one connection a store writes through, kept open: statements and rows in, one durable transaction each.

SQLAlchemy compiles the statements; they run on the driver itself. Through SQLAlchemy's asyncio layer a small commit to
SQLite took 1.0 to 1.7 ms, most of it on the event loop, and 0.45 ms this way, nearly all of it in another thread.

A failed transaction left nothing behind and is told as
    Conflict       it clashes with stored rows
    InvalidInput   a value that the database cannot represent
    BackendError   anything that may be better next time; the connection is made anew
"""

from __future__ import annotations

import asyncio
import fcntl
import os
import socket
import sqlite3
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple, Protocol
from uuid import uuid4

import asyncpg

from llmsched.errors import BackendError, Conflict, InvalidInput, LlmschedError
from llmsched.store.location import Location
from llmsched.store.rows import Rows

#: Seconds to reach a database, and for one statement.
CONNECT_TIMEOUT = 10.0
STATEMENT_TIMEOUT = 60.0
#: Seconds that SQLite waits for another process (an export, an older service that ends) to let go of the file.
BUSY_TIMEOUT = 10.0
#: What the driver raises when the world fails us. (Its own internal errors include an unsuitable server.)
POSTGRES_FAILURES = (
    asyncpg.PostgresError,
    asyncpg.InterfaceError,
    asyncpg.InternalClientError,
    OSError,
    TimeoutError,
)
#: Seconds after which PostgreSQL gives up a transaction in which nothing happens: its gateway is frozen, or gone.
IDLE_IN_TRANSACTION = 2.0


class Statement(NamedTuple):
    """Compiled SQL and the rows it is run with, one after the other."""

    sql: str
    rows: Rows


class Writer(Protocol):
    @property
    def fenced(self) -> bool:
        """Another service leads: nothing is written any more."""

    async def run(self, work: Sequence[Statement]) -> int:
        """One transaction; rows affected by a single-row last statement."""

    async def close(self) -> None: ...


def this_service() -> str:
    """Names this process to whoever is refused because of it."""
    return f"process {os.getpid()} on {socket.gethostname()} ({uuid4().hex[:8]})"


def refused(shown: str, holder: str | None) -> Conflict:
    who = f" ({holder})" if holder else ""
    return Conflict(f"another llmsched service{who} works with {shown}; stop it or name another store", field="store")


# -------------------------------------------------------------------------------------------------- SQLite

#: Locks of this process, which the kernel would grant it twice.
_HELD: set[Path] = set()


def prepare_sqlite(connection: Any) -> None:
    """What every connection wants. FULL: in WAL mode, NORMAL would lose the last commits in a power cut."""
    cursor = connection.cursor()
    for pragma in (f"busy_timeout={int(BUSY_TIMEOUT * 1000)}", "synchronous=FULL", "foreign_keys=ON"):
        cursor.execute(f"PRAGMA {pragma}")
    cursor.close()


class SqliteWriter:
    """Runs in a thread of its own."""

    fenced = False

    def __init__(self, location: Location, path: Path) -> None:
        self._location = location
        self._path = path.resolve()
        self._thread = ThreadPoolExecutor(1, "llmsched-store")
        self._connection: sqlite3.Connection | None = None
        self._lock: int | None = None
        self._closed = False

    async def run(self, work: Sequence[Statement]) -> int:
        return await asyncio.get_running_loop().run_in_executor(self._thread, self._run, work)

    async def lock_service(self) -> None:
        """Raises Conflict if another service holds the lock; it is released by `close` or the end of the process."""
        await asyncio.get_running_loop().run_in_executor(self._thread, self._lock_service)

    async def close(self) -> None:
        if not self._closed:
            self._closed = True
            await asyncio.get_running_loop().run_in_executor(self._thread, self._close)
            self._thread.shutdown()

    def _run(self, work: Sequence[Statement]) -> int:
        try:
            connection = self._connected()
            affected = 0
            with connection:
                for statement in work:
                    affected = connection.executemany(*statement).rowcount
            return affected
        except sqlite3.IntegrityError as error:
            raise _clash(str(error)) from error
        except (UnicodeEncodeError, OverflowError, sqlite3.DataError) as error:
            raise InvalidInput(f"cannot be stored: {error}") from error
        except sqlite3.ProgrammingError:
            raise  # a bug of ours
        except sqlite3.DatabaseError as error:
            self._disconnect()
            raise BackendError(f"the store {self._location.shown} failed: {error}") from error

    def _connected(self) -> sqlite3.Connection:
        if self._connection is None:
            # mode=rw: a file that was moved away must not be replaced by an empty one.
            self._connection = sqlite3.connect(
                f"{self._path.as_uri()}?mode=rw", uri=True, isolation_level="IMMEDIATE", check_same_thread=False
            )
            prepare_sqlite(self._connection)
        return self._connection

    def _disconnect(self) -> None:
        if self._connection is not None:
            self._connection.close()
            self._connection = None

    def _lock_service(self) -> None:
        path = self._path.with_name(self._path.name + ".lock")
        if path in _HELD:
            raise refused(self._location.shown, "this process")
        try:
            lock = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        except OSError as error:
            raise BackendError(f"the lock file {path} cannot be opened: {error.strerror}") from error
        try:
            # A record lock: unlike flock's it is not inherited by forked workers that outlive a killed service.
            fcntl.lockf(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            holder = os.pread(lock, 200, 0).decode(errors="replace")
            os.close(lock)
            raise refused(self._location.shown, holder) from error
        os.ftruncate(lock, 0)
        os.pwrite(lock, this_service().encode(), 0)
        self._lock = lock
        _HELD.add(path)

    def _close(self) -> None:
        self._disconnect()
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None
            _HELD.discard(self._path.with_name(self._path.name + ".lock"))


# ---------------------------------------------------------------------------------------------- PostgreSQL


class PostgresWriter:
    """Writes for whoever comes; with an `epoch` only as long as the lease has that one."""

    def __init__(self, location: Location) -> None:
        self._location = location
        self._turn = asyncio.Lock()
        self._connection: Any = None
        #: Of the lease under which this service leads; None: what it writes is nobody else's business.
        self.epoch: int | None = None
        self.fenced = False

    async def run(self, work: Sequence[Statement]) -> int:
        async with self._turn:
            try:
                connection = await self._connected()
                affected = 0
                async with connection.transaction():
                    if self.epoch is not None:
                        await self._check(connection, self.epoch)
                    for sql, rows in work:
                        if len(rows) == 1:
                            count = (await connection.execute(sql, *rows[0])).split()[-1]
                            affected = int(count) if count.isdigit() else 0
                        else:
                            await connection.executemany(sql, rows)
                return affected
            except asyncpg.IntegrityConstraintViolationError as error:
                raise _clash(f"{error.constraint_name}: {error.detail}") from error
            except (asyncpg.DataError, asyncpg.ProgramLimitExceededError) as error:
                raise InvalidInput(f"cannot be stored: {error}") from error
            except POSTGRES_FAILURES as error:
                self._disconnect()
                raise self._failed(error) from error
            except LlmschedError:
                raise
            except BaseException:
                self._disconnect()  # cancelled half-way: nobody knows what the connection is doing
                raise

    async def close(self) -> None:
        async with self._turn:
            if self._connection is not None:
                try:
                    await self._connection.close(timeout=CONNECT_TIMEOUT)
                except POSTGRES_FAILURES:
                    self._connection.terminate()
                self._connection = None

    async def _check(self, connection: Any, epoch: int) -> None:
        """Holds the lease's row to the end of the transaction: nobody takes it before that. Raises BackendError."""
        if not self.fenced:
            self.fenced = await connection.fetchval("SELECT epoch FROM lease WHERE id = 1 FOR SHARE") != epoch
        if self.fenced:
            raise BackendError(f"the store {self._location.shown} was taken over by another llmsched service")

    async def _connected(self) -> Any:
        if self._connection is None or self._connection.is_closed():
            self._connection = connection = await connect_postgres(self._location)
            await connection.execute(f"SET idle_in_transaction_session_timeout = {int(IDLE_IN_TRANSACTION * 1000)}")
        return self._connection

    def _disconnect(self) -> None:
        if self._connection is not None:
            self._connection.terminate()
            self._connection = None

    def _failed(self, error: BaseException) -> BackendError:
        reason = self._location.scrub(error) or type(error).__name__
        return BackendError(f"the store {self._location.shown} failed: {reason}")


async def connect_postgres(location: Location) -> Any:
    """A connection of its own. Raises one of POSTGRES_FAILURES."""
    return await asyncpg.connect(
        location.url,
        timeout=CONNECT_TIMEOUT,
        command_timeout=STATEMENT_TIMEOUT,
        server_settings={"application_name": "llmsched"},
    )


def _clash(detail: str) -> Conflict:
    if "idempotency" in detail:
        return Conflict("this idempotency key has been used already", field="idempotency_key")
    return Conflict(f"clashes with what is stored already ({detail})")
