"""The side door: calls of agents that know nothing of llmsched, taken in as observed jobs (see `observed.py`).

A call without a group is a job of its own. Calls of one group (a name that the client chose, per tenant) are one job,
which ends when a call says that it is the last, or when none has come for `idle` seconds; what comes later under the
name begins another job. `finished_at` is the end of the last call, however long it took to be sure of that.

A call's promise is its connection, so nothing is written before it is sent: a job's rows are held back until the job is
over, or for `HELD_S` if that takes longer. Everything of a job goes with it; nothing here grows with their number.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

from llmsched.errors import BackendError, Conflict, InvalidInput, UnknownName, show
from llmsched.model.application import Application
from llmsched.model.events import (
    Event,
    JobCancelled,
    JobClass,
    Outcome,
    Reveal,
    StageExpanded,
    StageFailed,
    StagesRevealed,
    StageWithdrawn,
    TaskResult,
)
from llmsched.model.records import JobRecord
from llmsched.model.spec import A_NAME, NAME
from llmsched.runtime.applications import Applications
from llmsched.runtime.clock import Clock
from llmsched.runtime.engines import Engines
from llmsched.runtime.relay import RETRY_AFTER
from llmsched.runtime.run import JobRun
from llmsched.runtime.scripts.observed import Call, Client, Failure, ObservedScript, chain, is_observed
from llmsched.runtime.submission import features_of, new_job_id
from llmsched.runtime.tracing.context import TraceContext

log = logging.getLogger(__name__)

#: Applications of calls that name none: alone, and in groups.
ALONE, GROUPED = "chat", "agent"
#: The model of whoever does not care.
ANY_MODEL = "llmsched"
#: Where calls for any model go, if there is such a pool.
USUAL_POOL = "llm"
#: Seconds that a job's rows may wait for its end.
HELD_S = 0.25
#: Observed applications that clients may bring into being by naming them.
MOST_APPLICATIONS = 256
STOPPING = "the service is shutting down; retry in a few seconds"
#: The client went away. (nginx's number; nobody is left to read it.)
CLIENT_GONE = 499


class UnknownModel(UnknownName):
    """A call asks for a model that no engine serves."""


class Ask(NamedTuple):
    """What a client wants. fields: the body `raw`, read. group, application: the client's names; None: it gave none."""

    path: str
    raw: bytes
    fields: Mapping[str, Any]
    tenant: str = ""
    group: str | None = None
    application: str | None = None
    job_class: JobClass = JobClass.INTERACTIVE
    is_last: bool = False
    trace: TraceContext | None = None


class House(Protocol):
    """What the door needs of the service behind it."""

    applications: Applications
    engines: Engines
    clock: Clock

    @property
    def next_number(self) -> int: ...

    def check_open(self) -> None: ...

    def check_room(self, tenant: str) -> None: ...

    def describes(self) -> bool: ...

    def take_in(self, run: JobRun, reveal: Reveal) -> None: ...

    def write_out(self, run: JobRun) -> None: ...

    def post(self, event: Event) -> None: ...


@dataclass(slots=True, eq=False)
class _Observed:
    """An observed job. key: the name of its group while it takes more calls."""

    run: JobRun
    script: ObservedScript
    key: tuple[str, str] | None


class Door:
    """Takes in calls and ends their jobs. idle: seconds without a call after which a group is over."""

    def __init__(self, house: House, *, idle: float = 30.0) -> None:
        self._house = house
        self._idle = idle
        self._jobs: dict[str, _Observed] = {}
        self._groups: dict[tuple[str, str], _Observed] = {}
        #: (when it is to be written, job), in that order.
        self._held: deque[tuple[float, JobRun]] = deque()
        self._registering: dict[str, asyncio.Task[Application]] = {}
        self._timer: asyncio.TimerHandle | None = None

    def __len__(self) -> int:
        """Observed jobs that are not over."""
        return len(self._jobs)

    # ------------------------------------------------------------------------------------------------- calls

    async def open(self, ask: Ask, client: Client) -> Call:
        """A call that waits for its turn from now on.

        Raises UnknownModel, InvalidInput, Conflict (the names do not go together), Overloaded or BackendError.
        """
        self._house.check_open()
        pool, model = self._pool_of(ask.fields.get("model"))
        observed = self._group_of(ask)
        if observed is None:
            name = ask.application or (ALONE if ask.group is None else GROUPED)
            application = self._known(name) or await self._register(name)
            observed = self._group_of(ask)  # perhaps another call was faster meanwhile
        house = self._house
        now = house.clock.now()
        call = Call(ask.path, ask.raw, ask.fields, pool, model, client, now, ask.trace, waits_since=now)
        call.is_grouped = ask.group is not None
        if observed is None:
            house.check_room(ask.tenant)
            observed = self._begin(ask, application, call)
        else:
            call.job = observed.run.record.id
            reveal = observed.script.arrive(call)
            house.post(StagesRevealed(call.job, (reveal,)))
        if ask.is_last or not call.is_grouped:
            observed.script.is_ended = True
            self._forget_group(observed)
        call.over.add_done_callback(lambda _: self._over(call))
        return call

    def leave(self, call: Call) -> None:
        """The client has gone away: the engine is spared the rest, and a job of this one call is cancelled."""
        call.cut(Failure(CLIENT_GONE, "the client went away"))

    def _begin(self, ask: Ask, application: Application, call: Call) -> _Observed:
        house = self._house
        record = JobRecord(
            id=new_job_id(call.arrived_at),
            number=house.next_number,
            application=application.name,
            version=application.version,
            submitted_at=call.arrived_at,
            job_class=ask.job_class,
            tenant=ask.tenant,
            metadata={} if ask.group is None else {"group": ask.group},
        )
        call.job = record.id
        script = ObservedScript(application, house.describes)
        run = JobRun(record, application, script, features=features_of(None, None), pads=False)
        run.trace = call.trace
        key = None if ask.group is None else (ask.tenant, ask.group)
        observed = self._jobs[record.id] = _Observed(run, script, key)
        if key is not None:
            self._groups[key] = observed
        reveal = script.arrive(call)
        script.take((reveal,))
        house.take_in(run, reveal)
        self._held.append((call.arrived_at + HELD_S, run))
        self._watch()
        return observed

    def _over(self, call: Call) -> None:
        observed = self._jobs.get(call.job)
        if observed is None:
            return
        now = self._house.clock.now()
        observed.script.over(call, now)
        if not call.is_cut:
            return
        failure = call.over.result()
        assert failure is not None, call
        if call.is_grouped:
            self._house.post(StageWithdrawn(call.job, call.stage, TaskResult(0.0)))
        elif failure.status == CLIENT_GONE:
            self._house.post(JobCancelled(call.job))
        else:
            self._house.post(StageFailed(call.job, call.stage, failure.message))

    # -------------------------------------------------------------------------------------------------- jobs

    def finished(self, job: str, outcome: Outcome, reason: str) -> None:
        """The job is over, whatever its calls wait for."""
        observed = self._jobs.pop(job, None)
        if observed is None:
            return
        self._forget_group(observed)
        status = 410 if outcome is Outcome.CANCELLED else 503
        for call in list(observed.script.calls.values()):
            call.settle(Failure(status, f"job {job} is over: {reason or outcome.value}", "job_over"))

    def close(self) -> None:
        """The service stops: groups that wait for more calls are over, calls that wait for an engine are sent away."""
        for observed in list(self._groups.values()):
            self._end(observed)
        for call in self._calls():
            if call.attempt is None:
                call.cut(Failure(503, STOPPING, "shutting_down", retry_after=RETRY_AFTER))
        self._disarm()

    def abort(self, reason: str) -> None:
        """Nothing goes on any more, and nobody shall wait for it. reason: a sentence."""
        for call in self._calls():
            call.settle(Failure(503, reason, "shutting_down", retry_after=RETRY_AFTER))
        self._disarm()

    def _calls(self) -> list[Call]:
        return [call for observed in self._jobs.values() for call in observed.script.calls.values()]

    def _end(self, observed: _Observed) -> None:
        self._forget_group(observed)
        if (ending := observed.script.end()) is not None:
            stage, skipped = ending
            self._house.post(StageExpanded(observed.run.record.id, stage, (), skipped))

    def _group_of(self, ask: Ask) -> _Observed | None:
        """The job that a call belongs to, if there is one that takes it. Raises Conflict."""
        if ask.group is None:
            return None
        observed = self._groups.get((ask.tenant, ask.group))
        if observed is None:
            return None
        application = observed.run.record.application
        if ask.application not in (None, application):
            raise Conflict(
                f"job {show(ask.group)} is one of application {application!r}, not of {ask.application!r};"
                " end it first, or use another name for the job",
                field="x-llmsched-application",
            )
        if observed.script.is_full:
            self._end(observed)
            return None
        return observed

    def _forget_group(self, observed: _Observed) -> None:
        if observed.key is not None:
            self._groups.pop(observed.key, None)
            observed.key = None

    # ------------------------------------------------------------------------------------------------- names

    def models(self) -> dict[str, int | None]:
        """What can be asked for, and the tokens that its context holds: any model, pools, and what engines serve."""
        found: dict[str, int | None] = {ANY_MODEL: None}
        for engine in self._house.engines:
            longest = engine.info.max_model_len if engine.info else None
            served = engine.info.models if engine.info else ()
            for name in (engine.spec.pool, engine.model, *served):
                if name:
                    found[name] = longest
        return found

    def _pool_of(self, model: Any) -> tuple[str, str | None]:
        """Where a call goes, and the model that it insists on. Raises UnknownModel or BackendError."""
        engines = list(self._house.engines)
        if not engines:
            raise BackendError("no engine is configured; add one with POST /v1/engines or --engine URL")
        pools = dict.fromkeys(engine.spec.pool for engine in engines)
        if model in (None, "", ANY_MODEL):
            return (USUAL_POOL if USUAL_POOL in pools else next(iter(pools))), None
        if not isinstance(model, str):
            raise InvalidInput(f"model is {show(model)}; it must be a name", field="model")
        if model in pools:
            return model, None
        for engine in engines:
            if engine.serves(model):
                return engine.spec.pool, model
        for engine in engines:
            if engine.info is None:  # it did not answer yet: perhaps this is what it serves
                return engine.spec.pool, model
        raise UnknownModel.of("model", model[:200], self.models(), field="model")

    def _known(self, name: str) -> Application | None:
        """The observed application of a name. Raises InvalidInput or Conflict if there can be none."""
        if not NAME.fullmatch(name):
            raise InvalidInput(
                f"x-llmsched-application is {show(name)}: a name {A_NAME}", field="x-llmsched-application"
            )
        try:
            found = self._house.applications.newest(name)
        except UnknownName:
            return None
        if not is_observed(found):
            raise Conflict(
                f"application {name!r} has a template of its own, which calls cannot be stages of; name another one"
                " in x-llmsched-application",
                field="x-llmsched-application",
            )
        return found

    async def _register(self, name: str) -> Application:
        """A new observed application, registered once however many calls name it first."""
        if name not in self._registering:
            if sum(map(is_observed, self._house.applications)) >= MOST_APPLICATIONS:
                raise InvalidInput(
                    f"there are {MOST_APPLICATIONS} observed applications already; use one of them, or delete some",
                    field="x-llmsched-application",
                )
            put = self._house.applications.put(chain(name, 1) if name == ALONE else chain(name))
            task = self._registering[name] = asyncio.create_task(put)
            task.add_done_callback(lambda _: self._registering.pop(name, None))
        return await asyncio.shield(self._registering[name])

    # ---------------------------------------------------------------------------------------------- watching

    def _watch(self) -> None:
        if self._timer is None and (self._jobs or self._held):
            interval = min(HELD_S, self._idle / 4)
            self._timer = asyncio.get_running_loop().call_later(interval, self._look)

    def _disarm(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _look(self) -> None:
        """What time alone brings about."""
        self._timer = None
        now = self._house.clock.now()
        while self._held and self._held[0][0] <= now:
            self._house.write_out(self._held.popleft()[1])
        for observed in list(self._groups.values()):
            script = observed.script
            if not script.calls and script.last_end is not None and now - script.last_end >= self._idle:
                self._end(observed)
        self._send_away(now)
        self._watch()

    def _send_away(self, now: float) -> None:
        """Calls that have waited long for a pool without a healthy engine."""
        engines = self._house.engines
        patience = engines.timeouts.first_token
        well = {engine.spec.pool for engine in engines if engine.is_healthy}
        for call in self._calls():
            if call.attempt is None and call.pool not in well and now - call.waits_since >= patience:
                message = f"no engine of pool {call.pool!r} was healthy for {patience:g} s; ask again later"
                call.cut(Failure(503, message, "no_engine", retry_after=RETRY_AFTER))
