"""Learns profiles from a store's history: for `llmsched fit`, and as a process of the service's.

    python -m llmsched.fitting

reads one line of JSON from standard input (store, application, version, newest, learned_at, curves) and answers with
one line of JSON: `{"error": sentence}` for a history that teaches nothing, else `{"version", "jobs"}` and, behind the
line, the packed profile. Standard input stays open as long as the service wants the answer; when it ends, so do we.
"""

from __future__ import annotations

import asyncio
import os
import sys
import threading
from typing import Any

import orjson

from llmsched.errors import InvalidRecording, LlmschedError, ProfileError
from llmsched.model.application import Application
from llmsched.model.latency import LatencyCurve
from llmsched.model.recording import Recording
from llmsched.profiler import Curves, Profile, fit
from llmsched.profiler.history import Layout
from llmsched.runtime.learning.profiles import pack
from llmsched.store.export import features_of, trace_of
from llmsched.store.store import Store

#: So much nicer than the service is a fit.
NICENESS = 10


async def recordings_of(store: Store, application: Application, newest: int) -> list[Recording]:
    """The newest completed jobs of an application, oldest first.

    Jobs of an earlier version count if its stages were the same; jobs that no trace could hold are left out.
    """
    fits: dict[int, bool] = {application.version: True}
    columns = Layout.of(application).columns
    found = []
    async for job, recording, stages in store.history(application=application.name, newest=newest):
        if job.version not in fits:
            record = await store.application(application.name, job.version)
            fits[job.version] = (
                record is not None
                and Layout.of(Application.parse(record.definition, version=record.version)).columns == columns
            )
        if fits[job.version]:
            try:
                found.append(Recording.from_json(trace_of(job, stages, features_of(job, recording))))
            except InvalidRecording:
                continue
    return found


async def fit_stored(
    store: Store, application: Application, newest: int, learned_at: float, curves: Curves | None = None
) -> Profile:
    """The profile of an application's newest completed jobs. Raises ProfileError if they teach nothing."""
    return fit(application, await recordings_of(store, application, newest), curves=curves, learned_at=learned_at)


async def _answer(request: dict[str, Any]) -> bytes:
    curves = {pool: LatencyCurve.from_json(curve) for pool, curve in request["curves"].items()}
    default = curves.pop("")
    async with await Store.open(request["store"], create=False) as store:
        record = await store.application(request["application"], request["version"])
        if record is None:
            raise ProfileError(f"application {request['application']!r} has no version {request['version']}")
        application = Application.parse(record.definition, version=record.version)
        profile = await fit_stored(
            store, application, request["newest"], request["learned_at"], Curves(curves, default)
        )
    return orjson.dumps({"version": profile.version, "jobs": profile.jobs}) + b"\n" + pack(profile)


def main() -> None:
    """Reads the request, answers it, and is gone when nobody waits any more."""
    os.nice(NICENESS)
    request = orjson.loads(sys.stdin.buffer.readline())
    threading.Thread(target=_leave_at_end_of_input, daemon=True).start()
    try:
        answer = asyncio.run(_answer(request))
    except ProfileError as error:
        answer = orjson.dumps({"error": str(error)}) + b"\n"
    except LlmschedError as error:  # the store is away: one sentence is enough
        sys.exit(str(error))
    sys.stdout.buffer.write(answer)


def _leave_at_end_of_input() -> None:
    os.read(sys.stdin.fileno(), 1)  # not the buffered stream, whose lock would hang the end of the interpreter
    os._exit(3)


if __name__ == "__main__":
    main()
