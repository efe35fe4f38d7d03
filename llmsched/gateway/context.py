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
from llmsched.runtime.callbacks.delivery import Callbacks
from llmsched.runtime.service import Service
from llmsched.runtime.trends import Trends
from llmsched.runtime.whatifs import WhatIfs
from llmsched.store.journal import Journal
from llmsched.store.store import Store


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
