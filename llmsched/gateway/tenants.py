"""`/v1/tenants`: who there is, what each may have, has right now, and used."""

from __future__ import annotations

import time
from datetime import date, timedelta
from typing import Annotated, Any

from fastapi import APIRouter, Depends, Query

from llmsched.errors import InvalidInput
from llmsched.gateway.auth import Caller
from llmsched.gateway.body import JsonRoute
from llmsched.gateway.context import Context, caller_of, context_of
from llmsched.gateway.problems import NotFound, responses
from llmsched.gateway.schemas import QuotaView, TenantPage, TenantView, UsageView
from llmsched.model.records import Usage
from llmsched.runtime.tenants import DAY

router = APIRouter(prefix="/v1", tags=["tenants"], route_class=JsonRoute, responses=responses(401, 503))

Here = Annotated[Context, Depends(context_of)]
Who = Annotated[Caller, Depends(caller_of)]

_EPOCH = date(1970, 1, 1)
#: Days that one answer reaches back at most.
LONGEST = 366


@router.get("/tenants")
async def tenants(here: Here, caller: Who) -> TenantPage:
    """Every tenant with a key, a weight, a quota, jobs or a past, by name; without the right to administer: oneself."""
    return TenantPage(items=[_tenant(here, name) for name in await _seen_by(here, caller)])


@router.get("/tenants/{name}", responses=responses(404))
async def tenant(name: str, here: Here, caller: Who) -> TenantView:
    """One tenant: what it may have, and how many of its jobs are active."""
    await _check(here, caller, name)
    return _tenant(here, name)


@router.get("/tenants/{name}/usage", responses=responses(404, 422))
async def usage(
    name: str,
    here: Here,
    caller: Who,
    since: Annotated[date | None, Query(description="first day (UTC); by default 30 days ago")] = None,
    until: Annotated[date | None, Query(description="last day (UTC); by default today")] = None,
) -> UsageView:
    """What a tenant used, in all and by day (UTC): of stages and jobs that are over. Days without use are left out."""
    last = until or _EPOCH + timedelta(days=int(time.time() // DAY))
    first = since or last - timedelta(days=30)
    if not 0 <= (last - first).days < LONGEST:
        raise InvalidInput(f"{first} to {last} is no span of 1 to {LONGEST} days; ask for another", field="since")
    await _check(here, caller, name)
    days = await here.store.usage(name, (first - _EPOCH).days, (last - _EPOCH).days)
    total = Usage(name, 0)
    for day in days:
        total = total.plus(day)
    listed = [_numbers(day) | {"date": _EPOCH + timedelta(days=day.day)} for day in days]
    of = {"tenant": name, "since": first, "until": last, "days": listed}
    return UsageView.model_validate(_numbers(total) | of)


def _numbers(used: Usage) -> dict[str, Any]:
    numbers = used._asdict()
    del numbers["tenant"], numbers["day"]
    return numbers


async def _seen_by(here: Context, caller: Caller) -> list[str]:
    if not caller.is_admin:
        return [caller.tenant]
    service = here.service
    named = {*here.keys.tenants, *service.quotas.names, *service.tenant_weights, *service.active_by_tenant}
    return sorted({*named, *await here.store.users()} - {""})


async def _check(here: Context, caller: Caller, name: str) -> None:
    """Raises NotFound for a tenant that the caller may not see or that nobody knows."""
    if name not in await _seen_by(here, caller):
        raise NotFound(f"there is no tenant {name[:64]!r}; GET /v1/tenants lists those there are")


def _tenant(here: Context, name: str) -> TenantView:
    service = here.service
    quota = service.quotas.of(name)
    return TenantView(
        name=name,
        weight=service.tenant_weights.get(name, 1.0),
        quota=None if quota is None else QuotaView(**{k: getattr(quota, k) for k in QuotaView.model_fields}),
        active_jobs=service.active_by_tenant.get(name, 0),
    )
