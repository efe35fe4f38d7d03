"""The engines of the service: who they are, whether they are well, and telling the scheduler when that changes.

One `Engine` per vLLM server. A probe asks it every few seconds; its breaker opens after consecutive faults or missed
probes, and the scheduler hears `ExecutorLost` or `ExecutorJoined`. Nobody waits for another engine's trouble.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass, replace
from random import Random
from typing import TypeVar

from llmsched.errors import Conflict, InvalidInput, UnknownName
from llmsched.model.events import Event, ExecutorJoined, ExecutorLost
from llmsched.runtime.breaker import Breaker, State
from llmsched.runtime.clock import Clock
from llmsched.runtime.engine import (
    Completion,
    CompletionRequest,
    EngineClient,
    EngineError,
    EngineInfo,
    Relayed,
    Timeouts,
)

log = logging.getLogger(__name__)

T = TypeVar("T")

#: Slots of an engine that neither the configuration nor the server itself tells the size of.
DEFAULT_SLOTS = 16

#: Seconds an engine that came back waits at most before somebody looks.
LONGEST_BACKOFF = 10.0


@dataclass(frozen=True, slots=True)
class EngineSpec:
    """How an engine is configured. model and slots: None asks the server. pool: see `StageSpec.pool`."""

    url: str
    pool: str = "llm"
    model: str | None = None
    slots: int | None = None
    api_key: str | None = None
    name: str | None = None


class Engine:
    """One vLLM server as the service sees it."""

    def __init__(
        self, id: str, spec: EngineSpec, client: EngineClient, breaker: Breaker, post: Callable[[Event], None]
    ) -> None:
        self.id = id
        self.spec = spec
        self.client = client
        self.info: EngineInfo | None = None
        self.draining = False
        self.last_error = ""
        self._breaker = breaker
        self._post = post
        #: Set to have it probed now.
        self.due = asyncio.Event()
        #: Its last call failed by its own fault: health checks alone do not prove that it works.
        self._is_suspect = False
        #: Slots the scheduler was last told of; None while it does not know the engine.
        self._offered: int | None = None

    @property
    def slots(self) -> int:
        known = self.info.slots if self.info else None
        return self.spec.slots or known or DEFAULT_SLOTS

    @property
    def model(self) -> str | None:
        return self.client.model

    @property
    def is_healthy(self) -> bool:
        """Takes work, or would if it were not draining."""
        return self._offered is not None

    def serves(self, model: str) -> bool:
        """Whether it answers to this name of a model."""
        return model == self.model or (self.info is not None and model in self.info.models)

    async def complete(self, request: CompletionRequest, clock: Clock) -> Completion:
        """The engine's answer; faults count for its breaker.

        Raises EngineError.
        """
        return await self._judged(self.client.complete(request), clock)

    async def relay(self, path: str, body: bytes, reply: Relayed, request_id: str, clock: Clock) -> None:
        """Passes a request through to the engine and its answer to `reply`; faults count for its breaker.

        Raises EngineError.
        """
        await self._judged(self.client.relay(path, body, reply, request_id=request_id), clock)

    async def _judged(self, answer: Awaitable[T], clock: Clock) -> T:
        try:
            result = await answer
        except EngineError as error:
            self.last_error = str(error)
            self._is_suspect = error.engine_fault
            if error.engine_fault and self._breaker.fault(clock.now()):
                # Once this failure is reported: the engine's loss would silence it, and it would count as no failure.
                asyncio.get_running_loop().call_soon(self._settle)
            raise
        self._is_suspect = False
        if self._breaker.success(clock.now()):
            self._settle()
        return result

    async def probe(self, clock: Clock) -> None:
        """Asks for its health, of one without work also for its model and limits, and after faults for a token."""
        well = await self.client.alive()
        if well and self._offered is None:
            well = await self._discover()
        elif not well:
            self.last_error = "does not answer its health check"
        self._breaker.probe(well, clock.now())
        self._settle()

    def look(self, clock: Clock) -> None:
        """It may have come up just now: probes it at once, whatever its back-off."""
        self._breaker.next_probe = clock.now()
        self.due.set()

    def next_probe(self, clock: Clock) -> float:
        """Seconds until the next probe is due."""
        return max(0.05, self._breaker.next_probe - clock.now())

    async def _discover(self) -> bool:
        try:
            self.info = await self.client.discover()
            if self._is_suspect:
                await self.client.generates()  # rather than let a task find out that it still hangs
        except EngineError as error:
            self.last_error = str(error)
            return False
        return True

    def drain(self, draining: bool) -> None:
        """Takes no new work (or takes it again); what runs finishes."""
        self.draining = draining
        self._settle()

    def resize(self, slots: int | None) -> None:
        """Offers so many slots from now on; None: as many as the engine itself says."""
        self.spec = replace(self.spec, slots=slots)
        self._settle()

    def _settle(self) -> None:
        """Tells the scheduler when what the engine offers has changed."""
        if self.info is None or self._breaker.state is State.OPEN:
            self.lose(self.last_error)
            return
        offer = 0 if self.draining else self._breaker.admits(self.slots)
        if offer == self._offered:
            return
        if self._offered is None:
            log.info("engine up", extra={"engine": self.id, "url": self.client.url, "slots": self.slots})
        self._offered = offer
        self._post(ExecutorJoined(self.id, self.spec.pool, offer))

    def lose(self, reason: str) -> None:
        """The engine is gone: what ran there is repeated elsewhere."""
        if self._offered is not None:
            self._offered = None
            log.warning("engine down", extra={"engine": self.id, "url": self.client.url, "reason": reason})
            self._post(ExecutorLost(self.id, reason))


class Engines:
    """All engines by id, each with its probe.

    post: hands events to the scheduler's queue. interval: seconds between probes of one engine.
    """

    def __init__(
        self,
        post: Callable[[Event], None],
        clock: Clock,
        *,
        timeouts: Timeouts | None = None,
        interval: float = 2.0,
        seed: int = 0,
    ) -> None:
        self._post = post
        self._clock = clock
        self.timeouts = timeouts or Timeouts()
        self._interval = interval
        self._rng = Random(seed)
        self._engines: dict[str, Engine] = {}
        self._probes: dict[str, asyncio.Task[None]] = {}
        self._count = 0

    def __iter__(self) -> Iterator[Engine]:
        return iter(self._engines.values())

    def __len__(self) -> int:
        return len(self._engines)

    def __getitem__(self, id: str) -> Engine:
        try:
            return self._engines[id]
        except KeyError:
            raise UnknownName.of("engine", id, self._engines) from None

    def __contains__(self, id: object) -> bool:
        return id in self._engines

    def add(self, spec: EngineSpec) -> Engine:
        """Registers an engine; it takes work as soon as it answers.

        Raises Conflict for a URL or name that is already there.
        """
        if spec.slots is not None and not 1 <= spec.slots <= 100_000:
            raise InvalidInput(f"slots is {spec.slots}; an engine has between 1 and 100000", field="slots")
        client = EngineClient(spec.url, model=spec.model, api_key=spec.api_key, timeouts=self.timeouts)
        for other in self:
            if other.client.url == client.url:
                raise Conflict(f"engine {other.id!r} already serves {client.url}", field="url")
        self._count += 1
        id = spec.name or f"engine-{self._count}"
        if id in self._engines:
            raise Conflict(f"there is already an engine named {id!r}", field="name")
        if id.startswith("workers-"):
            raise InvalidInput(f"an engine cannot be named {id!r}; workers- begins the names of workers", field="name")
        breaker = Breaker(Random(self._rng.random()), interval=self._interval, cap=LONGEST_BACKOFF)
        engine = Engine(id, spec, client, breaker, self._post)
        self._engines[id] = engine
        self._probes[id] = asyncio.create_task(self._watch(engine), name=f"probe {id}")
        return engine

    async def remove(self, id: str) -> None:
        """Forgets an engine; what runs there is repeated elsewhere."""
        engine = self[id]
        probe = self._probes.pop(id)
        probe.cancel()
        engine.lose("removed")  # before anybody else may act: nothing is to be sent to an engine that is not here
        del self._engines[id]
        await asyncio.wait((probe,))
        await engine.client.aclose()

    def longest_context(self, pool: str) -> int | None:
        """Tokens (prompt and output) every known engine of the pool can hold; None while none tells."""
        known = [e.info.max_model_len for e in self if e.spec.pool == pool and e.info and e.info.max_model_len]
        return min(known, default=None)

    async def close(self) -> None:
        for id in list(self._engines):
            engine = self._engines.pop(id)
            probe = self._probes.pop(id)
            probe.cancel()
            await asyncio.wait((probe,))
            await engine.client.aclose()

    async def _watch(self, engine: Engine) -> None:
        while True:
            await engine.probe(self._clock)
            engine.due.clear()
            # Not wait_for: that of Python 3.11 forgets to be cancelled when the event comes at the same moment.
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(engine.next_probe(self._clock)):
                    await engine.due.wait()
