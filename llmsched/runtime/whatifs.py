"""Questions of the kind "last night under another policy", answered in a process of their own, one at a time.

The process (`llmsched/whatif.py`) reads the store itself, so that the service's event loop touches no row of it and
simulates nothing; it is niced, and it ends with the service, however that goes, because its standard input then ends.
"""

from __future__ import annotations

import asyncio
import logging
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal
from uuid import uuid4

import orjson

from llmsched.errors import Conflict
from llmsched.runtime.child import child

log = logging.getLogger(__name__)

#: Seconds after which an answer is given up, and answers that are kept.
TIMEOUT, KEPT = 900.0, 20
#: The longest line that the process says.
_LINE = 16 * 1024 * 1024


@dataclass(slots=True)
class WhatIf:
    """One question, how far its answer is (simulated jobs, of so many), and what came of it. Times: unix seconds."""

    id: str
    tenant: str
    policies: list[str]
    since: float
    until: float
    asked_at: float
    status: Literal["running", "done", "failed"] = "running"
    done: int = 0
    of: int = 0
    ended_at: float | None = None
    error: str | None = None
    result: Mapping[str, Any] | None = field(default=None, repr=False)


class WhatIfs:
    """Asks and remembers. command: what is run, for tests."""

    def __init__(self, *, timeout: float = TIMEOUT, command: tuple[str, ...] = ("-m", "llmsched.whatif")) -> None:
        self._timeout = timeout
        self._command = command
        self._known: OrderedDict[str, WhatIf] = OrderedDict()
        self._task: asyncio.Task[None] | None = None
        #: Process id of the simulation that runs.
        self.pid: int | None = None

    def of(self, tenant: str) -> list[WhatIf]:
        """Of a tenant ('': of everybody), newest first."""
        return [w for w in reversed(self._known.values()) if tenant in ("", w.tenant)]

    def get(self, id: str, tenant: str) -> WhatIf | None:
        found = self._known.get(id)
        return found if found is not None and tenant in ("", found.tenant) else None

    def ask(self, request: Mapping[str, Any], policies: list[str], tenant: str, now: float) -> WhatIf:
        """Starts to answer. request: of `llmsched.whatif.Request`. Raises Conflict while another one is answered."""
        if self._task is not None and not self._task.done():
            raise Conflict("another question is being simulated; wait for its answer, or DELETE it")
        asked = WhatIf(f"whatif_{uuid4().hex[:12]}", tenant, policies, request["since"], request["until"], now)
        self._known[asked.id] = asked
        while len(self._known) > KEPT:
            self._known.popitem(last=False)
        self._task = asyncio.create_task(self._answer(asked, request), name="whatif")
        return asked

    async def cancel(self, asked: WhatIf) -> None:
        """Forgets a question, and stops whoever simulates it."""
        if asked.status == "running":
            await self.stop()
        self._known.pop(asked.id, None)

    async def stop(self) -> None:
        """Stops what runs; its process is gone when this returns."""
        if self._task is not None and not self._task.done():
            self._task.cancel()
            await asyncio.wait((self._task,))

    async def _answer(self, asked: WhatIf, request: Mapping[str, Any]) -> None:
        began = asyncio.get_running_loop().time()
        try:
            async with asyncio.timeout(self._timeout):
                await self._talk(asked, orjson.dumps(request) + b"\n")
        except TimeoutError:
            asked.error = f"the simulation took longer than {self._timeout:g} s; ask for fewer jobs"
        except OSError as error:
            asked.error = f"the simulation could not start: {error}"
        finally:
            asked.status = "done" if asked.result is not None else "failed"
            if asked.result is None and asked.error is None:
                asked.error = "the simulation was stopped"
            seconds = asyncio.get_running_loop().time() - began
            asked.ended_at = asked.asked_at + seconds
            if asked.result is not None:
                asked.done = asked.of
            told = {"id": asked.id, "status": asked.status, "seconds": round(seconds, 2), "jobs": asked.of}
            log.info("whatif answered", extra=told)

    async def _talk(self, asked: WhatIf, request: bytes) -> None:
        try:
            async with child(self._command, request, limit=_LINE) as process:
                self.pid = process.pid
                assert process.stdout is not None
                assert process.stderr is not None
                complaints = asyncio.create_task(process.stderr.read())
                try:
                    async for line in process.stdout:
                        said = orjson.loads(line)
                        asked.done, asked.of = said.get("done", asked.done), said.get("of", asked.of)
                        asked.result, asked.error = said.get("result"), said.get("error")
                    if asked.result is None and asked.error is None:
                        last = (await complaints).decode(errors="replace").strip().rpartition("\n")[2]
                        status = await process.wait()
                        asked.error = f"the simulation ended with status {status}: {last or 'no reason given'}"
                finally:
                    complaints.cancel()
        finally:
            self.pid = None
