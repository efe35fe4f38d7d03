"""Clients that follow jobs to their end, whatever happens to the service, and what their story must be like then."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from itertools import cycle
from typing import Any

import httpx

from tests.integration.service import Client, Event, events_of

OVER = ("job.completed", "job.failed", "job.cancelled")


class Follower:
    """A client of one job's event stream that comes back with `Last-Event-ID` until the job is over.

    services: asked in turn; every time a stream ends, the next one. on_stage: called when a stage is over.
    """

    def __init__(
        self, services: Client | list[Client], id: str, *, on_stage: Callable[[], None] = lambda: None
    ) -> None:
        self.id = id
        self._on_stage = on_stage
        self.events: list[Event] = []
        self._services = cycle(services if isinstance(services, list) else [services])
        self.task = asyncio.create_task(self._follow())

    @property
    def is_over(self) -> bool:
        return bool(self.events) and self.events[-1][1] in OVER

    async def _follow(self) -> None:
        while not self.is_over:
            http = next(self._services).http
            headers = {"Last-Event-ID": str(self.events[-1][0])} if self.events else {}
            with suppress(httpx.HTTPError):  # killed in mid-stream, or not there again yet
                async with http.stream("GET", f"/v1/jobs/{self.id}/events", headers=headers) as answer:
                    if answer.status_code == 503:  # the database is away
                        continue
                    assert answer.status_code == 200
                    text = ""
                    async for chunk in answer.aiter_text():
                        whole, cut, text = (text + chunk).rpartition("\n\n")
                        new = events_of(whole + cut)
                        self.events += new
                        if any(type == "stage.completed" for _, type, _ in new):
                            self._on_stage()
            await asyncio.sleep(0.01)


def check_story(follower: Follower, recording: dict[str, Any]) -> None:
    """Every event once, in order; every stage completed once; one outcome, and it comes last."""
    assert [e[0] for e in follower.events] == list(range(1, len(follower.events) + 1))
    types = Counter(e[1] for e in follower.events)
    assert (types["job.submitted"], types["job.started"], types["job.completed"]) == (1, 1, 1)
    assert sum(types[t] for t in OVER) == 1
    assert follower.events[-1][1] == "job.completed"
    ran = {s["name"] for s in recording["stages"] if s["kind"] != "dynamic"}
    assert Counter(e[2]["stage"] for e in follower.events if e[1] == "stage.completed") == dict.fromkeys(ran, 1)
    over: set[str] = set()
    for _, type, data in follower.events:
        if type == "stage.completed":
            over.add(data["stage"])
        assert type != "stage.started" or data["stage"] not in over, f"{data} started after its completion"


def task_of(request_id: str) -> tuple[str, str]:
    """Job and stage behind a request id `job-stage-index-attempt-process`."""
    job, _, stage = request_id.rsplit("-", 3)[0].partition("-")
    return job, stage
