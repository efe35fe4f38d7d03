"""Group commit: whatever queued up while the last transaction ran becomes the next one.

So a single write waits for one transaction only, and a thousand writes cost hardly more than one. Order is kept: no
write is durable before one that was appended earlier.

    durable            its future resolves, then `on_commit` is told
    database ill       everything waits, in order, and is tried again until it works; `healthy` is false meanwhile
    one write refused  (Conflict, InvalidInput, a bug) its own future fails, the others of its transaction are written
    our own bug, or another service took the store over: the journal stops; everything waiting and to come fails
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Sequence
from itertools import chain, repeat
from typing import NamedTuple, Protocol

from llmsched.errors import BackendError, Conflict, InvalidInput
from llmsched.model.records import Writes

log = logging.getLogger(__name__)

#: Rows of one transaction, which bounds its time and memory after the database was away for long.
MAX_ROWS = 5_000
#: Seconds between attempts; the last one is repeated.
RETRY_DELAYS = (0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0)


class Sink(Protocol):
    """What a journal asks of a store; see `Store.write` and `Store.fenced`."""

    @property
    def fenced(self) -> bool: ...

    async def write(self, writes: Writes, *, again: bool = False) -> None: ...


class _Entry(NamedTuple):
    writes: Writes
    done: asyncio.Future[None]


class Journal:
    """Writes to `store`; its task starts with the first `append`.

    on_commit: called with what a transaction wrote, in order; it must not raise.
    """

    def __init__(
        self,
        store: Sink,
        on_commit: Callable[[Writes], None] = lambda _: None,
        *,
        retry_delays: Sequence[float] = RETRY_DELAYS,
    ) -> None:
        self._store = store
        self._on_commit = on_commit
        self._retry_delays = retry_delays
        self._queue: list[_Entry] = []
        self._in_flight: list[_Entry] = []
        self._filled = asyncio.Event()
        self._task: asyncio.Task[None] | None = None
        self._stopped: str | None = None
        #: Whether the last attempt to write reached the database.
        self.healthy = True
        #: What went wrong last, a sentence; kept after the database came back.
        self.last_error: str | None = None

    @property
    def pending(self) -> int:
        """Appended writes that are not durable yet: what admission has to bound."""
        return len(self._queue) + len(self._in_flight)

    def append(self, writes: Writes, *, patience: float = 0.0) -> asyncio.Future[None]:
        """Resolves once `writes` is durable, all of it. Nobody has to wait for it: what it fails with is logged.

        patience: seconds it may wait for others to share a transaction with.
        Fails with Conflict or InvalidInput if the database refuses these writes, BackendError if the journal stopped.
        """
        done: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        if self._stopped is not None:
            _fail(_Entry(writes, done), BackendError(self._stopped))
            return done
        self._queue.append(_Entry(writes, done))
        if patience:
            asyncio.get_running_loop().call_later(patience, self._filled.set)
        else:
            self._filled.set()
        if self._task is None:
            self._task = asyncio.create_task(self._run(), name="journal")
        return done

    async def flush(self) -> None:
        """Waits until everything appended so far is durable or refused."""
        await asyncio.wait([self.append(Writes())])

    async def close(self, timeout: float = 10.0) -> None:
        """Writes what is queued, for at most `timeout` seconds; what is left then fails with BackendError."""
        try:
            await asyncio.wait_for(self.flush(), timeout)
        except TimeoutError:
            log.error("journal closed with writes left", extra={"writes": self.pending, "error": self.last_error})
        self._stop("the journal is closed")
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait([self._task])

    async def _run(self) -> None:
        try:
            while True:
                await self._filled.wait()
                while self._queue:
                    self._in_flight = self._take()
                    await self._commit(self._in_flight)
                    self._in_flight = []
                self._filled.clear()
        except Exception as error:
            self.healthy = False
            self.last_error = f"the journal has stopped: {error}"
            log.exception("journal stopped")
            self._stop(self.last_error)

    def _take(self) -> list[_Entry]:
        """The head of the queue that makes up the next transaction: at least one entry, at most MAX_ROWS rows."""
        rows = count = 0
        for entry in self._queue:
            rows += len(entry.writes)
            if count and rows > MAX_ROWS:
                break
            count += 1
        taken, self._queue = self._queue[:count], self._queue[count:]
        return taken

    async def _commit(self, entries: list[_Entry]) -> None:
        together = Writes()
        for entry in entries:
            together.extend(entry.writes)
        try:
            if together:
                await self._write(together)
        except BackendError:
            raise
        except Exception as error:
            if len(entries) == 1:
                self.last_error = str(error)
                _fail(entries[0], error)
                return
            for entry in entries:
                await self._commit([entry])
            return
        for entry in entries:
            if not entry.done.done():
                entry.done.set_result(None)
        if together:
            self._on_commit(together)

    async def _write(self, writes: Writes) -> None:
        """Raises BackendError only if it is of no use to try again."""
        again = False
        for delay in chain(self._retry_delays, repeat(self._retry_delays[-1])):
            try:
                await self._store.write(writes, again=again)
            except BackendError as error:
                if self.healthy:
                    log.error("database does not take writes", extra={"error": str(error)})
                self.healthy, self.last_error = False, str(error)
                if self._store.fenced:
                    raise
                again = True
                await asyncio.sleep(delay)
            except (Conflict, InvalidInput):  # refused, but by a database that is there
                self.healthy = True
                raise
            else:
                if not self.healthy:
                    log.info("database takes writes again")
                self.healthy = True
                return

    def _stop(self, reason: str) -> None:
        self._stopped = reason
        for entry in (*self._in_flight, *self._queue):
            _fail(entry, BackendError(f"perhaps not stored: {reason}"))
        self._in_flight, self._queue = [], []


def _fail(entry: _Entry, error: Exception) -> None:
    if not entry.done.done():
        entry.done.set_exception(error)
        entry.done.exception()  # counts as retrieved: whoever does not wait for it finds it in the log
        log.error("write refused", extra={"error": str(error), "rows": len(entry.writes)})
