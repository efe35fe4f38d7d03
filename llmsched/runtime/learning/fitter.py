"""Fits profiles in a process of its own: reading history and learning from it cost seconds of processor time.

The process (`llmsched/fitting.py`) reads the store itself, so that the service's event loop touches no row of it; it is
niced, and it ends with the service, however that goes, because its standard input then ends.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import NamedTuple, Protocol

import orjson

from llmsched.errors import BackendError, ProfileError
from llmsched.model.application import Application
from llmsched.model.latency import LatencyCurve
from llmsched.runtime.child import child

#: Seconds after which a fit is given up; one of 2,000 jobs takes a few.
TIMEOUT = 300.0


class Fitted(NamedTuple):
    """A profile on its way to the store. body: see `runtime.profiles`."""

    version: int
    jobs: int
    body: bytes


class Fitter(Protocol):
    async def fit(self, application: Application, newest: int, learned_at: float) -> Fitted:
        """What the newest completed jobs teach.

        Raises ProfileError if they teach nothing, BackendError if the fit itself failed.
        """
        ...


class FitProcess:
    """Fits from the store at `store`, a URL. curves: of pools; default: of every other pool."""

    def __init__(
        self,
        store: str,
        default: LatencyCurve,
        curves: Mapping[str, LatencyCurve] | None = None,
        *,
        timeout: float = TIMEOUT,
    ) -> None:
        self._store = store
        self._curves = {"": default, **(curves or {})}
        self._timeout = timeout
        #: Process id of the fit that runs.
        self.pid: int | None = None

    async def fit(self, application: Application, newest: int, learned_at: float) -> Fitted:
        request = {
            "store": self._store,
            "application": application.name,
            "version": application.version,
            "newest": newest,
            "learned_at": learned_at,
            "curves": {pool: curve.to_json() for pool, curve in self._curves.items()},
        }
        try:
            async with asyncio.timeout(self._timeout):
                answer, complaint, status = await self._talk(orjson.dumps(request) + b"\n")
        except TimeoutError:
            raise BackendError(f"the fit of {application.name!r} took longer than {self._timeout:g} s") from None
        except OSError as error:
            raise BackendError(f"the fit of {application.name!r} could not start: {error}") from None
        line, _, body = answer.partition(b"\n")
        if status != 0 or not line:
            last = complaint.decode(errors="replace").strip().rpartition("\n")[2]
            raise BackendError(
                f"the fit of {application.name!r} ended with status {status}: {last or 'no reason given'}"
            )
        head = orjson.loads(line)
        if "error" in head:
            raise ProfileError(head["error"])
        return Fitted(head["version"], head["jobs"], body)

    async def _talk(self, request: bytes) -> tuple[bytes, bytes, int]:
        try:
            async with child(("-m", "llmsched.fitting"), request) as process:
                self.pid = process.pid
                assert process.stdout is not None
                assert process.stderr is not None
                answer, complaint = await asyncio.gather(process.stdout.read(), process.stderr.read())
                return answer, complaint, await process.wait()
        finally:
            self.pid = None
