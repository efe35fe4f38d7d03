"""The live service: jobs in, scheduler in the middle, engines and workers behind, the store beside.

The life of a job, in eight steps:

1. `submit` validates it, writes it, and returns only when the write is durable;
2. `JobSubmitted` goes into the queue; the next tick hands everything queued to the scheduler as one batch;
3. the scheduler answers with commands: `Dispatch` starts an attempt as its own asyncio task;
4. the attempt calls an engine or a worker, never raises, and queues `TaskFinished`, `TaskFailed` or `SliceEnded`;
5. with the last task of a stage, the job's script says what the completion reveals: `StageExpanded` joins the batch;
6. rows and events of the tick are committed together, behind the dispatches: a crash repeats uncommitted work;
7. committed events reach whoever watches; 8. `FinishJob` closes the accounts.

Calls of agents that know nothing of jobs come in at a side door (`door.py`), and then go the same way.

The tick runs as soon as the event loop is free, so what happened meanwhile is one batch, of at most `MOST_EVENTS`: the
rest waits until the loop has looked at everything else. `tick_ms` holds a batch back longer, and all of it is one then.

News and accounts agree with the scheduler because an attempt reports at most once, and an attempt that the scheduler is
about to give up (executor lost, job cancelled) is silenced in the moment the event is queued.

What is in memory can be made again from what is stored. So a bug of ours (the scheduler was told an impossible story)
or a store that takes no more writes ends the service: it drops everything that is not durable, `failed` is set, and
whoever runs it exits and is started again. What one job produced and no database can represent fails that job alone.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from typing import Any, assert_never, cast

from llmsched.errors import BackendError, Conflict, InvalidInput
from llmsched.model.events import (
    Batch,
    CancelTask,
    Dispatch,
    Event,
    ExecutorJoined,
    ExecutorLost,
    FinishJob,
    JobCancelled,
    JobSubmitted,
    Outcome,
    Reveal,
    SliceEnded,
    StageExpanded,
    StageFailed,
    StagesRevealed,
    StageWithdrawn,
    TaskFailed,
    TaskFinished,
    TaskRef,
)
from llmsched.model.job import JobStatus
from llmsched.model.records import EventRecord, JobRecord, JobUpdate, Writes
from llmsched.model.unfolding import Unfolded
from llmsched.policies import make_policy
from llmsched.policies.base import Policy, reads_prompts
from llmsched.profiler import Knowledge
from llmsched.profiler.lengths import Model
from llmsched.runtime.admission import Claims, Found, accept, restore
from llmsched.runtime.applications import Applications
from llmsched.runtime.attempts import Attempt, Attempts
from llmsched.runtime.callbacks.delivery import owed
from llmsched.runtime.clock import Clock
from llmsched.runtime.deadlines import Admission, Deadlines, Forecast
from llmsched.runtime.door import STOPPING, Door
from llmsched.runtime.engines import Engines
from llmsched.runtime.hub import Hub
from llmsched.runtime.learning.foresight import Foresight
from llmsched.runtime.learning.learner import Learner
from llmsched.runtime.ledger import Ledger
from llmsched.runtime.numbers import Numbers
from llmsched.runtime.observer import Observer, Silent
from llmsched.runtime.ports import Journal, Memory
from llmsched.runtime.run import JobRun
from llmsched.runtime.scripts.observed import ObservedScript
from llmsched.runtime.submission import Limits, NewJob, check_healthy, check_room
from llmsched.runtime.tenants import OverQuota, Quotas
from llmsched.runtime.timeline import Timeline
from llmsched.runtime.tools.handlers import HandlerRegistry
from llmsched.runtime.tools.workers import WorkerPool
from llmsched.runtime.tracing.context import Tracing, Untraced
from llmsched.scheduler import Backoff, Scheduler

log = logging.getLogger(__name__)

#: Events that one turn takes. What the loop does in one pass is bounded by what a turn sets off: without a bound, the
#: thousand calls of 64 engines that are answered at about the same time are handled, and their successors sent, in one
#: go, so that those are answered at about the same time again, and everything else waits for half a second.
MOST_EVENTS = 8


class Service:
    """Owns the scheduler and everything that moves; `start` it once, `stop` it once.

    speed: recorded regular tasks hold a worker for their seconds divided by it (emulated engines run as much faster).
    policy_options: what every policy is told besides its name, `max_wait` and `tenants` for example. lengths: the model
    of policies that go by predicted lengths; None: the one that ships. deadlines: what becomes of jobs that will
    probably be late.
    """

    def __init__(
        self,
        *,
        policy: str,
        store: Memory,
        journal: Journal,
        applications: Applications,
        workers: WorkerPool,
        handlers: HandlerRegistry,
        clock: Clock,
        hub: Hub | None = None,
        observer: Observer | None = None,
        foresight: Foresight | None = None,
        learner: Learner | None = None,
        limits: Limits | None = None,
        backoff: Backoff | None = None,
        engines: Callable[[Callable[[Event], None]], Engines] | None = None,
        speed: float = 1.0,
        seed: int = 0,
        policy_options: Mapping[str, Any] | None = None,
        lengths: Model | None = None,
        tracing: Tracing | None = None,
        quotas: Quotas | None = None,
        deadlines: Admission = "off",
        numbers: Numbers | None = None,
    ) -> None:
        self.policy_name = policy
        self._lengths = lengths
        self._policy_options = dict(policy_options or {})
        self.foresight = foresight or Foresight(Knowledge(), speed=speed, observer=observer)
        self.scheduler = Scheduler(self._policy(policy), backoff=backoff, seed=seed)
        self.engines = engines(self.post) if engines else Engines(self.post, clock, seed=seed)
        self.workers = workers
        self.handlers = handlers
        self.applications = applications
        self.hub = hub or Hub()
        self.limits = limits or Limits()
        self.quotas = Quotas() if quotas is None else quotas
        self.deadlines = Deadlines(self.foresight, deadlines)
        self.clock = clock
        self.started_at = clock.now()
        self.is_ready = False
        self.is_stopping = False
        #: Set when the service cannot go on and its process has to end; `failure` is the reason.
        self.failed = asyncio.Event()
        self.failure: BaseException | None = None
        #: The last decisions, oldest first.
        self.decisions: deque[dict[str, Any]] = deque(maxlen=self.limits.decisions)
        #: When tasks of the last jobs ran where.
        self.timeline = Timeline()
        self._store = store
        self._journal = journal
        self._observer = observer or Silent()
        self._learner = learner
        self.tracing = tracing or Untraced()
        self.numbers = numbers or Numbers()
        self._submitting = 0
        self._claims = Claims(store)
        self._ledger = Ledger(journal, self.hub, self._observer, self._refused)
        self._attempts = Attempts(
            self.engines,
            workers,
            clock,
            self._reported,
            speed=speed,
            task_timeout=self.limits.task_timeout,
            tracing=self.tracing,
        )
        #: Where calls of agents come in that know nothing of jobs.
        self.door = Door(self, idle=self.limits.observed_idle)
        self._taking_up = asyncio.Lock()
        self._queue: list[Event] = []
        #: Jobs of which something new is known in this tick, and the events that shall tell what follows from it.
        self._news: dict[str, list[EventRecord]] = {}
        self._tick_due: asyncio.Handle | None = None
        self._wakeup: asyncio.TimerHandle | None = None
        self._chores: list[asyncio.Task[None]] = []
        #: Nobody minds any more what becomes of the last writes: the next process finds out.
        self._closed = False
        self._idle = asyncio.Event()

    # ---------------------------------------------------------------------------------------- life of the service

    async def start(self, pools: Mapping[str, int]) -> None:
        """Takes up where the last process stopped. pools: worker slots by pool."""
        self.numbers.last = await self._store.last_number()
        await self._restore()
        await self.workers.start()
        for pool, slots in pools.items():
            self.post(ExecutorJoined(f"workers-{pool}", pool, slots))
        if self.limits.retention is not None:
            self._chores.append(asyncio.create_task(self._forget(self.limits.retention), name="retention"))
        if self._learner is not None:
            self._chores.append(asyncio.create_task(self._learner.run(), name="learning"))
        self.is_ready = True

    async def stop(self, grace: float = 10.0) -> None:
        """Starts nothing new, gives running attempts `grace` seconds, and hands the journal what is left to write.

        Jobs that are not finished go on with the next process.
        """
        self.is_ready, self.is_stopping = False, True
        self.door.close()
        if self.failure is None:
            await self._drain(grace)
        ending = [*self._chores, *self._attempts.give_up_all()]
        self.door.abort(STOPPING)
        for chore in self._chores:
            chore.cancel()
        self._disarm()
        self._tick()
        self._disarm()
        if ending:
            await asyncio.wait(ending, timeout=5.0)
        await self.engines.close()
        await self.workers.close()
        self._closed = True

    async def _drain(self, grace: float) -> None:
        for executor in list(self.scheduler.view.executors.values()):
            self._queue.append(ExecutorJoined(executor.id, executor.pool, 0))
        if not self._attempts and not self._queue:
            return
        self._schedule_tick()
        self._idle.clear()
        try:
            async with asyncio.timeout(grace):
                await self._idle.wait()
        except TimeoutError:
            log.info("stopping with attempts in flight", extra={"attempts": len(self._attempts)})

    def fail(self, error: BaseException) -> None:
        """The end: memory and store no longer agree, and the store is right. Nothing more is run, written or told."""
        if self.failure is not None or self._closed:
            return
        log.critical("the service cannot go on", exc_info=error)
        self.failure = error
        self.is_ready, self.is_stopping = False, True
        self._queue.clear()
        self._ledger.unwritten.clear()
        self._attempts.give_up_all()
        self._disarm()
        self._idle.set()
        self.door.abort(f"the service cannot go on: {error}")
        self.hub.close()
        self.failed.set()

    def _disarm(self) -> None:
        for handle in (self._tick_due, self._wakeup):
            if handle is not None:
                handle.cancel()
        self._tick_due = self._wakeup = None

    async def _restore(self) -> None:
        began = time.perf_counter()
        found = await restore(self._store, self.applications, self.describes, traced=self.tracing.is_on)
        self._take_up(found)
        if any(found):
            seconds = round(time.perf_counter() - began, 3)
            told = {"jobs": len(found.restored), "failed": len(found.hopeless), "observed": len(found.orphans)}
            log.info("jobs restored", extra=told | {"seconds": seconds})

    async def take_up(self, ids: Sequence[str]) -> None:
        """Runs jobs that were accepted elsewhere, those among these that are not run already.

        Raises BackendError where the database does not answer.
        """
        async with self._taking_up:
            new = [id for id in ids if id not in self._ledger.runs and id not in self._ledger.leaving]
            found = await restore(self._store, self.applications, self.describes, traced=self.tracing.is_on, ids=new)
            told = await self._store.told(new)
            self._take_up(found)
            for id in ids:
                self._ledger.of(id).met.append(id)
            self._ledger.publish(told)
            self._schedule_tick()

    def _take_up(self, found: Found) -> None:
        restored, hopeless, orphans = found
        for run, events in restored:
            self._ledger.enter(run)
            for event in events:
                self.post(event)
        for record, seq, reason in hopeless:
            self._ledger.owned(record)
            self._abandon(record, seq + 1, f"cannot be restored: {reason}")
        for record, seq, ended_at in orphans:
            self._ledger.owned(record)
            if ended_at is None:
                self._abandon(record, seq + 1, "its calls ended with the service that they came to")
            else:
                self._conclude(record, seq + 1, JobStatus.COMPLETED, ended_at)

    def _abandon(self, record: JobRecord, seq: int, reason: str) -> None:
        """Fails a job that the scheduler does not know."""
        log.error("job abandoned", extra={"job": record.id, "reason": reason})
        self._conclude(record, seq, JobStatus.FAILED, self.clock.now(), reason)

    def _conclude(self, record: JobRecord, seq: int, status: JobStatus, at: float, reason: str | None = None) -> None:
        """Ends a job that the scheduler does not know."""
        seconds = at - record.submitted_at
        told = {"error": reason} if reason else {"seconds": round(seconds, 6)}
        writes = self._ledger.of(record.id)
        writes.updates.append(JobUpdate(record.id, status, None, at, None, reason))
        writes.events.append(EventRecord(record.id, seq, f"job.{status.value}", at, told))
        writes.callbacks.extend(owed(record, at))
        self._observer.job_finished(record.application, status.value, seconds)
        self.tracing.job_ended(record, status.value, at, reason)
        self._schedule_tick()

    async def _forget(self, retention: float) -> None:
        while True:
            purged = 0
            try:
                purged = await self._store.purge(self.clock.now() - retention, 1_000)
            except BackendError as error:
                log.warning("old jobs could not be deleted", extra={"error": str(error)})
            await asyncio.sleep(0.1 if purged == 1_000 else min(60.0, retention))

    # -------------------------------------------------------------------------------------------------- clients

    @property
    def active_jobs(self) -> int:
        return len(self._ledger.runs)

    def active_by_application(self) -> dict[str, int]:
        counts: dict[str, int] = {}
        for run in self._ledger.runs.values():
            counts[run.record.application] = counts.get(run.record.application, 0) + 1
        return counts

    async def submit(self, new: NewJob) -> tuple[JobRecord, bool]:
        """The accepted job, durable, and whether it is new (False: an idempotency key was used again).

        A caller that goes away in the middle changes nothing: what was written is also run.
        Raises InvalidInput, UnknownName, Conflict (idempotency key used for another request), Overloaded, or
        BackendError (the database is away, or this service is about to be).
        """
        return await asyncio.shield(asyncio.ensure_future(self._claims.once(new, self._admit)))

    async def _admit(self, new: NewJob) -> JobRecord:
        self.check_room(new.tenant)
        application = self.applications.newest(new.application)
        context = self.engines.longest_context("llm")
        run, submitted, writes = accept(
            new,
            application,
            self.next_number,
            longest_context=context,
            clock=self.clock,
            describes=self.describes,
        )
        run.forecast = self.deadlines.judge(submitted, self.clock.now())
        record = run.record
        self.quotas.take(record.tenant, record.submitted_at)
        self.numbers.last = record.number
        self._submitting += 1
        self._ledger.owned(record)
        try:
            await self._journal.append(writes)
        except BaseException as error:
            del self._ledger.tenants[record.id]
            if isinstance(error, BackendError):
                self.fail(error)
            raise
        finally:
            self._submitting -= 1
        for used in writes.usage:
            self._observer.used(used)
        self._ledger.runs[record.id] = run
        self._observer.job_submitted(record.application, record.job_class.label)
        self.post(submitted)
        return record

    @property
    def next_number(self) -> int:
        """Of the job that comes next."""
        return self.numbers.after(self.clock.now())

    def take_in(self, run: JobRun, reveal: Reveal) -> None:
        """Brings an observed job before the scheduler, of which nothing is written yet."""
        record, unfolded = run.record, Unfolded((reveal,))
        self.quotas.take(record.tenant, record.submitted_at)
        self.numbers.last = record.number
        self._ledger.enter(run)
        run.unwritten = Writes(jobs=[(record, None)], events=[run.submission()])
        run.unfold(unfolded, record.submitted_at)
        self._observer.job_submitted(record.application, record.job_class.label)
        self.post(run.submitted(unfolded))

    def write_out(self, run: JobRun) -> None:
        """What is to be written of a job waits for its end no longer."""
        if self._ledger.release(run):
            self._schedule_tick()

    def check_open(self) -> None:
        """Raises BackendError where nothing new can be begun."""
        if self.is_stopping:
            raise BackendError(STOPPING)
        check_healthy(self._journal)

    def check_room(self, tenant: str) -> None:
        """Raises Overloaded or BackendError where no job of this tenant can be taken in now."""
        self.check_open()
        check_room(self.limits, self._journal, self.active_jobs + self._submitting)
        try:
            self.quotas.check(tenant, self._ledger.tenants.active[tenant], self.clock.now())
        except OverQuota as refusal:
            self._observer.over_quota(tenant, refusal.quota)
            raise

    def committed(self, writes: Writes) -> None:
        """The journal's news that these writes are durable: now others may see them."""
        self._ledger.committed(writes)

    @property
    def active_by_tenant(self) -> Mapping[str, int]:
        return self._ledger.tenants.active

    @property
    def tenant_weights(self) -> Mapping[str, float]:
        return self._policy_options.get("tenants") or {}

    def forecast(self, id: str) -> Forecast | None:
        """What was said of an active job's deadline when it was accepted."""
        run = self._ledger.runs.get(id)
        return None if run is None else run.forecast

    def open_tenant(self, id: str) -> str | None:
        """The tenant of a job whose last event is still to be published; None of every other."""
        return self._ledger.tenants.get(id)

    def cancel(self, id: str) -> bool:
        """Whether the job was active and is now being cancelled."""
        if id not in self._ledger.runs:
            return False
        self.post(JobCancelled(id))
        return True

    def stages(self, id: str) -> dict[str, dict[str, Any]]:
        """What runs right now, by stage, for the job view: state, tasks, running and done; empty for others.

        Read the committed stages after this, and let them win: what is over but not committed still counts as running
        here, because a crash would make it run again.
        """
        run = self._ledger.runs.get(id) or self._ledger.leaving.get(id)
        return {} if run is None else run.views(self.scheduler.view.jobs.get(id))

    def use_policy(self, name: str) -> None:
        """Orders everything by another policy from the next tick on. Raises UnknownName."""
        self.scheduler.use_policy(self._policy(name))
        self.policy_name = name
        self._schedule_tick()

    def use_weights(self, weights: Mapping[str, float]) -> None:
        """Tenants take turns by these from the next tick on; not at all by none."""
        if weights != self.tenant_weights:
            self._policy_options["tenants"] = dict(weights)
            self.use_policy(self.policy_name)

    def _policy(self, name: str) -> Policy:
        knowledge = self.foresight.knowledge
        return make_policy(name, knowledge=knowledge, lengths=self._lengths, **self._policy_options)

    def describes(self) -> bool:
        """Whether live jobs say what their prompts are like: the policy at work reads them."""
        return reads_prompts(self.scheduler.policy)

    # --------------------------------------------------------------------------------------------------- ticking

    def post(self, event: Event) -> None:
        """Queues an event for the next tick; may be called from anywhere in the event loop."""
        if self.failure is not None:
            return
        match event:
            case ExecutorLost(executor):
                self._attempts.give_up_on(executor=executor)
            case JobCancelled(job) | StageFailed(job):
                self._attempts.give_up_on(job=job)
            case ExecutorJoined() if self.is_stopping:
                return
            case _:
                pass
        self._queue.append(event)
        self._schedule_tick()

    def _schedule_tick(self) -> None:
        if self._tick_due is None:
            loop = asyncio.get_running_loop()
            if self.limits.tick_ms:
                self._tick_due = loop.call_later(self.limits.tick_ms / 1000, self._tick)
            else:
                self._tick_due = loop.call_soon(self._tick)

    def _tick(self) -> None:
        if self.failure is None:
            try:
                self._take_turn()
            except Exception as error:  # never to go on with: a half-told batch leaves the scheduler undefined
                self.fail(error)

    def _take_turn(self) -> None:
        self._tick_due = None
        most = len(self._queue) if self.limits.tick_ms or self.is_stopping else MOST_EVENTS
        queued, self._queue = self._queue[:most], self._queue[most:]
        now = self.clock.now()
        events: list[Event] = []
        for event in queued:
            events.append(event)
            match event:
                case TaskFinished():
                    events += self._account(event, now)
                case StageWithdrawn(job, stage, result):
                    events += self._account(TaskFinished(TaskRef(job, stage, 0), 0, result), now)
                case StagesRevealed():
                    events += self._reveal(event, now)
                case JobSubmitted(job):
                    self._news[job] = []
                    self.tracing.job_began(self._ledger.runs[job])
                case _:
                    pass
        before = self.scheduler.stats.decisions
        began = time.perf_counter()
        commands = self.scheduler.handle(Batch(now, tuple(events)))
        seconds = time.perf_counter() - began
        for event in events:
            if isinstance(event, TaskFailed):
                self._count_retry(event)
        dispatched = []
        for command in commands:
            match command:
                case Dispatch():
                    self._dispatch(command, now)
                    dispatched.append(command)
                    if command.why is not None and command.why.get("explored"):
                        self._observer.explored()
                case CancelTask(ref):
                    self._attempts.give_up(ref)
                case FinishJob():
                    self._finish(command, now)
                case _:
                    assert_never(command)
        if self.scheduler.stats.decisions > before:
            self._observer.decided(seconds)
            self._explain(now, seconds, len(events), dispatched)
        self._foresee(now)
        self.scheduler.let_go()
        self._ledger.commit(self.clock.now())
        self._arm()
        if self._queue and self._tick_due is None:
            self._tick_due = asyncio.get_running_loop().call_soon(self._tick)
        if not self._attempts and not self._queue:
            self._idle.set()

    def _foresee(self, now: float) -> None:
        """Believes anew about jobs with news, and tells it with them."""
        for id, told in self._news.items():
            job = self.scheduler.view.jobs.get(id)
            eta = None if job is None else self.foresight.look(job, now)
            if eta is not None:
                for event in told:
                    cast("dict[str, Any]", event.data)["eta"] = eta.to_json()
        self._news.clear()

    def _count_retry(self, event: TaskFailed) -> None:
        job = self.scheduler.view.jobs.get(event.task.job)
        if job is not None:
            self._observer.task_retried(job.stages[event.task.stage].pool, event.reason.partition(":")[0])

    def _arm(self) -> None:
        if self._wakeup is not None:
            self._wakeup.cancel()
            self._wakeup = None
        due = self.scheduler.next_wakeup()
        if due is not None:
            self._wakeup = asyncio.get_running_loop().call_later(max(0.0, due - self.clock.now()), self._schedule_tick)

    def _refused(self, job: str, writes: Writes, error: BaseException) -> None:
        """The store did not take what was to be written of a job."""
        is_final = any(update.finished_at is not None for update in writes.updates)
        if isinstance(error, Conflict) or not isinstance(error, InvalidInput | RecursionError):
            self.fail(error)
        elif job in self._ledger.runs:
            self.post(StageFailed(job, writes.stages[-1].name if writes.stages else "", f"cannot be stored: {error}"))
        elif job in self._ledger.leaving and is_final:
            run = self._ledger.leaving.pop(job)
            self._abandon(run.record, run.seq + 1, f"the result cannot be stored: {error}")
        elif is_final:
            self.fail(error)
        # else: it went on and is over, which is stored; only this part of its story is missing

    def _explain(self, now: float, seconds: float, events: int, dispatched: list[Dispatch]) -> None:
        self.decisions.append(
            {
                "at": now,
                "policy": self.policy_name,
                "events": events,
                "milliseconds": round(seconds * 1000, 4),
                "dispatched": [
                    {
                        "job": d.task.job,
                        "tenant": self._ledger.tenants.get(d.task.job, ""),
                        "stage": d.task.stage,
                        "task": d.task.index,
                        "executor": d.executor,
                        "why": d.why,
                    }
                    for d in dispatched
                ],
                "waiting": {pool: len(stages) for pool, stages in self.scheduler.view.ready.items() if stages},
            }
        )

    def _account(self, event: TaskFinished, now: float) -> list[Event]:
        """What follows from the last finished task of a stage."""
        run = self._ledger.runs.get(event.task.job)
        if run is None or not run.stages[event.task.stage].left or not run.finish_task(event.task, event.result):
            return []
        name = event.task.stage
        try:
            unfolded = run.script.complete(name, run.stages[name].outputs)
        except InvalidInput as error:
            return [StageFailed(run.record.id, name, str(error))]
        rows, notes = run.finish_stage(name, now)
        self.tracing.stage_ended(run, name, now)
        self._news.setdefault(run.record.id, []).extend(notes)
        if (parent := run.stages[name].spec.parent) is not None:
            rows += run.close_dynamic(parent, now)
        more_rows, more_notes = run.unfold(unfolded or Unfolded(), now)
        writes = self._ledger.of(run.record.id)
        writes.stages.extend(rows + more_rows)
        writes.events.extend(notes + more_notes)
        writes.updates.extend(run.departed())
        if unfolded is None:
            return []
        return [StageExpanded(run.record.id, name, unfolded.reveals, unfolded.skipped)]

    def _reveal(self, event: StagesRevealed, now: float) -> list[Event]:
        """Opens accounts of calls that came in; the stage before them was left open for that."""
        run = self._ledger.runs.get(event.job)
        if run is None:
            return []
        assert isinstance(run.script, ObservedScript), run.record
        run.unfold(Unfolded(event.reveals), now)
        before = run.script.take(event.reveals)
        return [] if before is None else [StageExpanded(event.job, before)]

    def _finish(self, command: FinishJob, now: float) -> None:
        run = self._ledger.leave(command.job)
        self._attempts.forget(command.job)
        self.timeline.finished(command.job, now)
        self.door.finished(command.job, command.outcome, command.reason)
        record, outcome, error = run.record, command.outcome, command.reason or None
        result = None
        if outcome is Outcome.COMPLETED:
            now = run.ended_at or now
            try:
                result = run.script.result()
            except InvalidInput as failure:
                outcome, error = Outcome.FAILED, str(failure)
        data = {"seconds": round(now - record.submitted_at, 6)} | ({"error": error} if error else {})
        writes = self._ledger.of(record.id)
        writes.updates.append(JobUpdate(record.id, JobStatus(outcome.value), run.started_at, now, result, error))
        writes.events.append(run.event(f"job.{outcome.value}", now, data))
        writes.callbacks.extend(owed(record, now))
        self._observer.job_finished(record.application, outcome.value, now - record.submitted_at)
        self.tracing.job_ended(record, outcome.value, now, error)
        completed = outcome is Outcome.COMPLETED
        self.foresight.ended(record.id, now, completed=completed)
        if completed and self._learner is not None:
            self._learner.completed(record.application)

    # -------------------------------------------------------------------------------------------------- attempts

    def _dispatch(self, command: Dispatch, now: float) -> None:
        ref = command.task
        run = self._ledger.runs[ref.job]
        task = self.scheduler.view.jobs[ref.job].running[ref]
        first = run.started_at is None
        self._ledger.of(ref.job).events.extend(run.start(ref, command.executor, now))
        if first:
            self._ledger.of(ref.job).updates.append(JobUpdate(ref.job, JobStatus.RUNNING, now, None, None, None))
        self._observer.task_started(task.pool, run.record.application, now - task.ready_at)
        self.timeline.started(ref, command.attempt, command.executor, now)
        self._attempts.start(run, command, task.stage.kind, now - task.ready_at)

    def _reported(self, attempt: Attempt, event: TaskFinished | TaskFailed | SliceEnded, output: Any) -> None:
        """An attempt that the scheduler still counts on is over."""
        run, ref, now = attempt.run, event.task, self.clock.now()
        stage = run.stages[ref.stage]
        self._observer.task_ended(stage.spec.pool, run.record.application, now - attempt.started_at)
        match event:
            case TaskFinished():
                stage.outputs[ref.index] = output
                self.timeline.ended(ref, "done", now)
            case TaskFailed(_, number, reason):
                self.timeline.ended(ref, "failed", now)
                note = {"stage": ref.stage, "task": ref.index, "attempt": number, "reason": reason}
                self._ledger.of(ref.job).events.append(run.event("task.failed", now, note))
            case SliceEnded():
                self.timeline.ended(ref, "sliced", now)
                self._observer.task_sliced(stage.spec.pool)
            case _:
                assert_never(event)
        self.post(event)
