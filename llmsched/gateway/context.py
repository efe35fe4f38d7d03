"""What the routes work with, and who is asking."""

from __future__ import annotations

from collections.abc import Callable, Coroutine
from dataclasses import dataclass, field
from typing import Any

from fastapi import Request
from starlette.exceptions import HTTPException

from llmsched.gateway.auth import Caller, Keys
from llmsched.gateway.metrics import Metrics
from llmsched.gateway.operation_schemas import WhatIfForm
from llmsched.model.records import JobRecord
from llmsched.runtime.callbacks.delivery import Callbacks
from llmsched.runtime.replicas.election import Election
from llmsched.runtime.replicas.feed import Feed
from llmsched.runtime.replicas.intake import Intake
from llmsched.runtime.replicas.peer import Peer
from llmsched.runtime.service import Service
from llmsched.runtime.submission import NewJob
from llmsched.runtime.trends import Trends
from llmsched.runtime.whatifs import WhatIfs
from llmsched.store.journal import Journal
from llmsched.store.store import Store


@dataclass(slots=True)
class Replica:
    """What a gateway among several has besides. secret: by which the others know it when it leads."""

    election: Election
    intake: Intake
    peer: Peer
    feed: Feed
    secret: str


@dataclass(slots=True)
class Context:
    """The parts behind one gateway. start and stop: called when the server comes up and goes down."""

    service: Service
    store: Store
    journal: Journal
    metrics: Metrics
    trends: Trends
    callbacks: Callbacks
    whatifs: WhatIfs = field(default_factory=WhatIfs)
    #: What a simulation of the store's history is asked with: the form's wishes, and what there is.
    whatif_request: Callable[[WhatIfForm, float], dict[str, Any]] = lambda form, now: {}
    keys: Keys = field(default_factory=Keys)
    start: Callable[[], Coroutine[Any, Any, None]] | None = None
    stop: Callable[[], Coroutine[Any, Any, None]] | None = None
    #: Reads the settings anew; whether they hold now. None: they come from nowhere.
    reload: Callable[[], bool] | None = None
    #: Largest request body in bytes.
    max_body: int = 8 * 1024 * 1024
    #: Whether there is a page at /ui.
    ui: bool = True
    #: None: no other gateway works with the store.
    replica: Replica | None = None

    @property
    def leads(self) -> bool:
        """Whether this gateway schedules; if not, another one does, or nobody."""
        return self.replica is None or self.replica.election.leads

    async def submit(self, new: NewJob) -> tuple[JobRecord, bool]:
        """As `Service.submit`, whoever runs the job."""
        if self.replica is None or self.replica.election.leads:
            return await self.service.submit(new)
        return await self.replica.intake.submit(new)

    async def live(self, job: str) -> dict[str, Any]:
        """What the leader has in memory of a job: `stages`, as `Service.stages`, and `eta`; nothing if nobody says."""
        if self.replica is not None and not self.replica.election.leads:
            return await self.replica.peer.live(job)
        eta = self.service.foresight.eta(job, self.service.clock.now())
        return {"stages": self.service.stages(job), "eta": None if eta is None else eta.to_json()}


async def context_of(request: Request) -> Context:
    """The parts behind the gateway. Asynchronous, because FastAPI runs what is not in a thread: 0.2 ms per request."""
    context: Context = request.app.state.context
    return context


async def caller_of(request: Request) -> Caller:
    """Who is behind the request. Raises 401 where keys are required and none fits."""
    return await (await context_of(request)).keys(request)


async def tenant_of(request: Request) -> str:
    """The tenant behind the request. Raises what `caller_of` raises."""
    return (await caller_of(request)).tenant


async def admin(request: Request) -> None:
    """Raises 403 for a key that may not administer, and what `caller_of` raises."""
    if not (await caller_of(request)).is_admin:
        raise HTTPException(
            403,
            "this key may not change the service; ask with one that may: llmsched keys add TENANT --admin makes it",
        )
