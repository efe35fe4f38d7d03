"""Who tells the end of jobs to their callback URLs.

```
the job's end is written ──same transaction──▶ callbacks: "delivering", due now
        due, and its host has room ──POST──▶ 2xx: "delivered"
                                             410, or too often, or too late: "given_up"
                                             anything else: due again later, twice as late each time, with jitter
```

What is owed is in the store, so a restart goes on with it, and a message may arrive twice: when the service dies
between an answer and writing it down. Its id and body are then the same.

Each host has a few requests at a time and all hosts together some more, so a receiver that hangs keeps nobody waiting
but itself. In memory is a bounded part of what is owed to each host, the rest is read when that has gone. Nothing here
is waited for by the scheduler.
"""

from __future__ import annotations

import asyncio
import logging
from collections import Counter, deque
from collections.abc import Awaitable, Callable, Coroutine, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from heapq import heappop, heappush
from random import Random
from typing import Any, Protocol

from llmsched.errors import BackendError, InvalidInput, LlmschedError
from llmsched.model.records import CallbackRecord, JobRecord, Writes
from llmsched.runtime.callbacks.signing import Secrets, sign
from llmsched.runtime.clock import Clock
from llmsched.runtime.ports import Journal
from llmsched.runtime.tools.http_tools import retry_after
from llmsched.runtime.tools.web import ForbiddenAddress, Page, check_url, post

log = logging.getLogger(__name__)

#: Seconds until what the database did not answer is tried again.
STORE_PATIENCE = 5.0
#: Seconds that running requests get when the service stops.
GRACE = 2.0


@dataclass(frozen=True, slots=True)
class Delivery:
    """How callbacks are delivered. Times are seconds.

    attempts, age: after so many attempts, or so long after the job's end, a callback is given up. backoff_first,
    backoff_most: before the second attempt, and at most before any further one. allow_private: targets may be anywhere.
    """

    attempts: int = 30
    age: float = 86_400.0
    timeout: float = 10.0
    backoff_first: float = 5.0
    backoff_most: float = 3_600.0
    allow_private: bool = False
    #: Requests at a time to one host, and to all.
    per_host: int = 4
    in_all: int = 64
    #: Of one host, in memory.
    held: int = 1_000

    def wait(self, attempts: int, random: Random) -> float:
        """Seconds after so many failed attempts: doubled with each, and up to half of it less by chance."""
        longest = min(self.backoff_most, self.backoff_first * 2.0 ** min(attempts - 1, 64))
        return longest * (1 - random.random() / 2)


class Outbox(Protocol):
    """What is asked of the store."""

    async def job(self, id: str) -> JobRecord | None: ...

    async def callbacks_owed(self) -> Mapping[str, int]: ...

    async def callbacks_of(self, host: str, limit: int) -> Sequence[CallbackRecord]: ...


class Listener(Protocol):
    """Hears how deliveries go. Durations are seconds."""

    def callback_tried(self, outcome: str) -> None:
        """outcome: "delivered", "refused" (a status that is none of success), "unreachable" or "forbidden"."""

    def callback_ended(self, state: str, seconds: float) -> None:
        """state: "delivered" or "given_up". seconds: since the job ended."""


Post = Callable[..., Awaitable[Page]]


def event_id(job: str) -> str:
    """What a job's callback is called: the same in every attempt, also where the job's end had to be found twice."""
    return f"evt_{job.removeprefix('job_')}"


def owed(record: JobRecord, at: float) -> list[CallbackRecord]:
    """What is to be written with the end of a job at `at`: its callback, if it asked for one."""
    if record.callback_url is None:
        return []
    return [CallbackRecord(record.id, check_url(record.callback_url).raw_host or "", at, at)]


class Callbacks:
    """Delivers what is owed; `start` it, tell it what is `committed`, `stop` it.

    body: the message about a job that is over, the same each time. random: of the jitter. send: `post`.
    """

    def __init__(
        self,
        store: Outbox,
        journal: Journal,
        clock: Clock,
        secrets: Secrets,
        body: Callable[[JobRecord], bytes],
        listener: Listener,
        *,
        settings: Delivery | None = None,
        random: Random | None = None,
        send: Post = post,
    ) -> None:
        self.settings = settings or Delivery()
        #: How many are not over, in memory or not.
        self.owed = 0
        self._store = store
        self._journal = journal
        self._clock = clock
        self._secrets = secrets
        self._body = body
        self._listener = listener
        self._random = random or Random()
        self._send = send
        #: In memory, by job; which hosts have more in the store.
        self._held: dict[str, CallbackRecord] = {}
        self._held_of: Counter[str] = Counter()
        self._more: set[str] = set()
        #: Reads in flight, and what is over since they began: they may still find it.
        self._refills = 0
        self._gone: set[str] = set()
        #: (due, job): later; due, by host, until the host has room.
        self._later: list[tuple[float, str]] = []
        self._due: dict[str, deque[str]] = {}
        self._running: Counter[str] = Counter()
        self._room = asyncio.Semaphore(self.settings.in_all)
        self._tasks: set[asyncio.Task[None]] = set()
        self._timer: asyncio.TimerHandle | None = None
        self._is_open = False

    def check(self, url: str, tenant: str) -> None:
        """Raises InvalidInput for a URL that could never be called, or not signed."""
        try:
            check_url(url, allow_private=self.settings.allow_private)
        except InvalidInput as error:
            raise InvalidInput(f"callback_url: {error}", field="callback_url") from None
        if not self._secrets.of(tenant):
            raise InvalidInput(
                "callback_url needs a secret to sign with, and this service has none; set LLMSCHED_CALLBACK_SECRETS or"
                " callback_secrets_file, or follow GET /v1/jobs/{id}/events",
                field="callback_url",
            )

    # ------------------------------------------------------------------------------------------- what is owed

    async def start(self) -> None:
        """Begins with what the last process left; before anything new can be committed. Raises BackendError."""
        counts = await self._store.callbacks_owed()
        self.owed = sum(counts.values())
        self._is_open = True
        self._more.update(counts)
        if counts:
            log.info("callbacks owed", extra={"callbacks": self.owed, "hosts": len(counts)})
            self._begin(self._refill(*counts))

    async def stop(self, grace: float = GRACE) -> None:
        """Begins nothing new and forgets everything; the next `start`, here or elsewhere, finds it in the store.

        grace: seconds that running requests get.
        """
        self._is_open = False
        if self._timer is not None:
            self._timer.cancel()
        if self._tasks:
            _, cut = await asyncio.wait(self._tasks, timeout=grace if self._running else 0)
            for task in cut:
                task.cancel()
            if cut:
                await asyncio.wait(cut)
        for kept in (self._held, self._held_of, self._more, self._later, self._due):
            kept.clear()
        self.owed = 0

    def committed(self, writes: Writes) -> None:
        """The journal's news: what is new here is owed from now on. (What comes while it is stopped, `start` finds.)"""
        if not self._is_open:
            return
        for callback in writes.callbacks:
            if callback.attempts == 0 and not callback.is_over:
                self.owed += 1
                self._hold(callback)
        self._turn()

    def _hold(self, callback: CallbackRecord) -> None:
        """Keeps a callback in memory, if there is room for more of its host."""
        if callback.job in self._held:
            return
        if self._held_of[callback.host] >= self.settings.held:
            self._more.add(callback.host)
            return
        self._held_of[callback.host] += 1
        self._held[callback.job] = callback
        heappush(self._later, (callback.due_at, callback.job))

    async def _refill(self, *hosts: str) -> None:
        """Reads what more is owed to these hosts."""
        for host in hosts:
            if host not in self._more:
                continue
            self._more.discard(host)
            self._refills += 1
            try:
                found = await self._store.callbacks_of(host, self.settings.held + 1)
                for callback in found:
                    if callback.job not in self._gone:
                        self._hold(callback)
            except BackendError as error:
                log.warning("callbacks cannot be read", extra={"host": host, "error": str(error)})
                self._more.add(host)
                asyncio.get_running_loop().call_later(STORE_PATIENCE, self._want, host)
                continue
            finally:
                self._refills -= 1
                if not self._refills:
                    self._gone.clear()
            if len(found) > self.settings.held:
                self._more.add(host)
                self._want(host)
            self._turn()

    def _want(self, host: str) -> None:
        """Reads more, if there is more and half of the room for it is free."""
        if self._is_open and host in self._more and self._held_of[host] <= self.settings.held // 2:
            self._begin(self._refill(host))

    def _drop(self, callback: CallbackRecord) -> None:
        """Nothing more is owed."""
        self.owed -= 1
        del self._held[callback.job]
        self._held_of[callback.host] -= 1
        if not self._held_of[callback.host]:
            del self._held_of[callback.host]
        if self._refills:
            self._gone.add(callback.job)
        self._want(callback.host)

    # --------------------------------------------------------------------------------------------- who is next

    def _turn(self) -> None:
        """Starts whatever is due and has room, and comes back when the next is due."""
        if not self._is_open:
            return
        now = self._clock.now()
        while self._later and self._later[0][0] <= now:
            _, job = heappop(self._later)
            host = self._held[job].host
            self._due.setdefault(host, deque()).append(job)
            self._start(host)
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if self._later:
            self._timer = asyncio.get_running_loop().call_later(self._later[0][0] - now, self._turn)

    def _start(self, host: str) -> None:
        due = self._due.get(host)
        while due and self._running[host] < self.settings.per_host and self._is_open:
            self._running[host] += 1
            self._begin(self._deliver(self._held[due.popleft()]))
        if not due:
            self._due.pop(host, None)

    def _begin(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._ended)

    def _ended(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            log.error("a callback failed unexpectedly", exc_info=error)

    async def _deliver(self, callback: CallbackRecord) -> None:
        """One attempt, and what follows from it."""
        host, attempts = callback.host, callback.attempts + 1
        later = self._clock.now() + self.settings.wait(attempts, self._random)
        after = replace(callback, attempts=attempts, due_at=later)  # so it stays if we have a bug
        try:
            async with self._room:
                after = await self._tried(callback)
                await self._journal.append(Writes(callbacks=[after]), patience=0.1)
        except LlmschedError as error:  # the journal's: the job is gone, or nothing is written any more
            log.warning("what became of a callback is not stored", extra={"job": callback.job, "error": str(error)})
        finally:
            self._running[host] -= 1
            if not self._running[host]:
                del self._running[host]
            if after.is_over:
                self._drop(callback)
            else:
                self._held[callback.job] = after
                heappush(self._later, (after.due_at, after.job))
            self._start(host)
            self._turn()

    # ---------------------------------------------------------------------------------------------- one attempt

    async def _tried(self, callback: CallbackRecord) -> CallbackRecord:
        """What is known of it after one more attempt, if there could be one."""
        try:
            job = await self._store.job(callback.job)
        except BackendError as failure:
            log.warning("a callback waits for the database", extra={"job": callback.job, "error": str(failure)})
            return replace(callback, due_at=self._clock.now() + STORE_PATIENCE)
        if job is None or job.callback_url is None:
            return replace(callback, state="given_up", error="its job was deleted", ended_at=self._clock.now())
        outcome, error, wait = await self._post(job)
        now, attempts = self._clock.now(), callback.attempts + 1
        self._listener.callback_tried(outcome)
        said = {"job": job.id, "host": callback.host, "attempt": attempts}
        if error is None:
            log.info("callback delivered", extra=said)
            self._listener.callback_ended("delivered", now - callback.owed_at)
            return replace(callback, state="delivered", attempts=attempts, ended_at=now, error=None)
        due = now + max(self.settings.wait(attempts, self._random), min(wait, self.settings.backoff_most))
        if wait < 0 or attempts >= self.settings.attempts or due - callback.owed_at > self.settings.age:
            log.error("callback given up", extra=said | {"error": error})
            self._listener.callback_ended("given_up", now - callback.owed_at)
            return replace(callback, state="given_up", attempts=attempts, ended_at=now, error=error)
        log.warning("callback failed", extra=said | {"error": error, "wait": round(due - now, 3)})
        return replace(callback, attempts=attempts, due_at=due, error=error)

    async def _post(self, job: JobRecord) -> tuple[str, str | None, float]:
        """The outcome, what went wrong, and the seconds the receiver wants us to wait; below 0: for ever.

        What went wrong is shown to the client, who shall not learn from it what this machine sees of its own network.
        """
        assert job.callback_url is not None, job
        secrets = self._secrets.of(job.tenant)
        if not secrets:
            return "forbidden", "there is no secret to sign it with; set LLMSCHED_CALLBACK_SECRETS", 0.0
        body = self._body(job)
        headers = sign(secrets, event_id(job.id), int(self._clock.now()), body) | {"Content-Type": "application/json"}
        allow = self.settings.allow_private
        try:
            page = await self._send(
                job.callback_url, body, headers=headers, timeout=self.settings.timeout, allow_private=allow
            )
        except ForbiddenAddress:
            return "forbidden", "its host leads to an address that is not public", 0.0
        except (BackendError, InvalidInput) as error:
            return "unreachable", str(error), 0.0
        if 200 <= page.status < 300:
            return "delivered", None, 0.0
        if page.status == 410:
            return "refused", "it answered 410: nobody wants it any more", -1.0
        is_redirect = 300 <= page.status < 400
        why = f"it answered {page.status}" + ("; redirects are not followed" if is_redirect else "")
        wait = None
        with suppress(ValueError, OverflowError):
            wait = retry_after(page.retry_after)
        return "refused", why, wait or 0.0
