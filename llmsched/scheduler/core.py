"""The heart of llmsched: jobs, executors and one policy, as a state machine that only moves in `handle`.

    Scheduler.handle(Batch(at, events)) -> list[Command]
    Scheduler.next_wakeup() -> float | None          # hand in Batch(then, (Wakeup(),)) at that time, or any batch later

Invariants, at the end of every `handle` (property tests hold it to them):

* a task runs at most once at a time, and on exactly one executor;
* no executor runs more tasks than it has slots, except after its slots were reduced (draining);
* work conserving: no pool has both a free slot and a ready task;
* every submitted job ends in exactly one `FinishJob`; afterwards nothing of it is left here;
* the same batches give the same commands (ordered containers, a seeded `Random`, no clock).

News of a stale attempt, of an unknown job or of an unknown executor is counted and dropped in one place. Whether an
attempt is repeated, where and when, is decided here, so that it is simulated and tested like everything else.

Absent on purpose: texts, prompts and results (they travel by reference, the store has them), admission limits (the
gateway's), and everything the world has not revealed yet.
"""

from __future__ import annotations

import heapq
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from itertools import islice
from random import Random
from typing import assert_never

from llmsched.errors import InvalidTransition
from llmsched.model.events import (
    Batch,
    CancelTask,
    Command,
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
    Wakeup,
)
from llmsched.model.job import Executor, Job, JobStatus, Stage, StageState, Task, TaskState
from llmsched.model.kinds import StageKind
from llmsched.policies.base import (
    JobArrived,
    JobChanged,
    JobLeft,
    Pick,
    Policy,
    StageDrained,
    StageReady,
    TaskEnded,
    TaskReady,
    TaskStarted,
    View,
)
from llmsched.scheduler.capacity import Capacity
from llmsched.scheduler.retry import Backoff


@dataclass(slots=True)
class SchedulerStats:
    """Counters since the start; read, never written, by others."""

    batches: int = 0
    #: Batches in which the policy was asked for an order.
    decisions: int = 0
    dispatches: int = 0
    retries: int = 0
    #: Dropped news, by kind of event.
    stale: Counter[str] = field(default_factory=Counter)


class Scheduler:
    """Orders the ready tasks of all jobs with `policy` and places them on the least loaded executor.

    policy: fresh and used by nobody else. backoff: when failed attempts are repeated. seed: of the jitter.
    """

    def __init__(self, policy: Policy, *, backoff: Backoff | None = None, seed: int = 0) -> None:
        self._policy = policy
        self._backoff = backoff or Backoff()
        self._rng = Random(seed)
        self._view = View()
        self._capacity = Capacity(self._view.executors)
        #: Tasks that wait out a back-off: (due, counter, task).
        self._delayed: list[tuple[float, int, Task]] = []
        #: Jobs that ended in the last batch, while whoever hands in batches may still look at them.
        self._left: list[Job] = []
        self._joined = 0
        self._counter = 0
        self._commands: list[Command] = []
        self.stats = SchedulerStats()

    # ------------------------------------------------------------------------------------------- the surface

    @property
    def view(self) -> View:
        """The whole state, to be read only."""
        return self._view

    @property
    def policy(self) -> Policy:
        return self._policy

    def handle(self, batch: Batch) -> list[Command]:
        """Takes in everything that happened at one moment and says what is to be done now.

        Raises InvalidTransition if the world tells an impossible story (a bug; the state is then undefined).
        """
        self._view.now = batch.at
        self.stats.batches += 1
        commands: list[Command] = []
        self._commands = commands
        self.let_go()
        self._requeue_due()
        for event in batch.events:
            self._apply(event)
        self._dispatch()
        return commands

    def let_go(self) -> None:
        """Takes apart the jobs that ended in the last batch: nobody looks at them any more.

        The next batch does it, too; this is for whoever may be idle for long before that.
        """
        for job in self._left:
            job.dissolve()
        self._left.clear()

    def next_wakeup(self) -> float | None:
        """When a batch is due even if nothing happens; None: never."""
        while self._delayed and self._is_stale_delay(self._delayed[0][2]):
            heapq.heappop(self._delayed)
        return self._delayed[0][0] if self._delayed else None

    def use_policy(self, policy: Policy) -> None:
        """Replaces the policy while jobs run; the new one is told of everything that waits."""
        self._policy = policy
        for job in self._view.jobs.values():
            policy.on(JobArrived(job), self._view)
            for stage in job.stages.values():
                if stage.ready:
                    policy.on(StageReady(stage), self._view)
            for task in job.running.values():
                policy.on(TaskStarted(task), self._view)

    # ----------------------------------------------------------------------------------------------- events

    def _apply(self, event: Event) -> None:
        match event:
            case TaskFinished():
                self._finished(event)
            case TaskFailed():
                self._failed(event)
            case SliceEnded():
                self._sliced(event)
            case StageExpanded():
                self._expanded(event)
            case StagesRevealed(job_id, reveals):
                if job := self._known(job_id, event):
                    self._unfold(job, reveals, ())
            case StageWithdrawn():
                self._withdrawn(event)
            case StageFailed(job_id, stage, reason):
                if job := self._known(job_id, event):
                    self._finish(job, Outcome.FAILED, f"stage {stage!r}: {reason}")
            case JobSubmitted():
                self._submitted(event)
            case JobCancelled(job_id):
                if job := self._known(job_id, event):
                    self._finish(job, Outcome.CANCELLED, "cancelled")
            case ExecutorJoined(executor_id, pool, slots):
                self._executor_joined(executor_id, pool, slots)
            case ExecutorLost(executor_id):
                self._executor_lost(executor_id, event)
            case Wakeup():
                pass
            case _:
                assert_never(event)

    def _known(self, job_id: str, event: Event) -> Job | None:
        job = self._view.jobs.get(job_id)
        if job is None:
            self.stats.stale[type(event).__name__] += 1
        return job

    def _attempt(self, ref: TaskRef, attempt: int, event: Event) -> Task | None:
        """The running task an event speaks of, or None if its news is stale."""
        job = self._view.jobs.get(ref.job)
        task = job.running.get(ref) if job else None
        if task is None or task.attempt != attempt:
            self.stats.stale[type(event).__name__] += 1
            return None
        return task

    def _submitted(self, event: JobSubmitted) -> None:
        if event.job in self._view.jobs:
            raise InvalidTransition(f"job {event.job!r} was submitted twice")
        job = Job(
            event.job,
            event.number,
            event.application,
            event.arrived_at,
            event.job_class,
            event.tenant,
            event.features,
            event.due,
        )
        self._view.jobs[job.id] = job
        self._policy.on(JobArrived(job), self._view)
        self._unfold(job, event.reveals, event.skipped)

    def _expanded(self, event: StageExpanded) -> None:
        job = self._known(event.job, event)
        if job is None:
            return
        stage = self._stage(job, event.stage)
        if stage.kind is StageKind.DYNAMIC:
            raise InvalidTransition(f"{stage!r} was reported complete; it is when the stages of its plan are")
        if stage.state is StageState.READY:
            self._restore(stage, event)
        stage.become(StageState.DONE)
        job.open_stages -= 1
        self._unfold(job, event.reveals, event.skipped, finished=stage)

    def _restore(self, stage: Stage, event: StageExpanded) -> None:
        """A stored stage that completed before a restart: its tasks are done without having run here."""
        tasks = stage.tasks or ()
        if len(event.results) != len(tasks) or any(t.state is not TaskState.READY for t in tasks):
            raise InvalidTransition(f"{stage!r} was reported complete while its tasks are {tasks!r}")
        self._unready(stage)
        for task, result in zip(tasks, event.results, strict=True):
            task.become(TaskState.DONE)
            task.result = result
        stage.done_tasks = len(tasks)
        stage.become(StageState.EXPANDING)

    def _finished(self, event: TaskFinished) -> None:
        task = self._attempt(event.task, event.attempt, event)
        if task is None:
            return
        task.result = event.result
        stage = task.stage
        stage.done_tasks += 1
        task.job.revision += 1
        self._release(task, TaskState.DONE)
        if stage.done_tasks == len(stage.tasks or ()):
            stage.become(StageState.EXPANDING)

    def _failed(self, event: TaskFailed) -> None:
        task = self._attempt(event.task, event.attempt, event)
        if task is None:
            return
        task.failures += event.reached
        task.generated = 0
        task.losses += not event.reached
        task.avoid = task.executor
        self._release(task, TaskState.BACKOFF)
        where = f"task {task.stage.name}[{task.index}]"
        if not event.retryable:
            self._finish(task.job, Outcome.FAILED, f"{where}: {event.reason}")
        elif task.failures > task.stage.spec.retries:
            self._finish(task.job, Outcome.FAILED, f"{where} failed {task.failures} times, last: {event.reason}")
        elif task.losses > self._backoff.max_losses:
            self._finish(task.job, Outcome.FAILED, f"{where} reached no executor, last: {event.reason}")
        else:
            self.stats.retries += 1
            nominal = self._backoff.delay(task.failures if event.reached else task.losses, self._rng)
            delay = max(nominal, min(self._backoff.most, event.retry_after))
            self._counter += 1
            heapq.heappush(self._delayed, (self._view.now + delay, self._counter, task))

    def _sliced(self, event: SliceEnded) -> None:
        """The task had its share of tokens and queues again, as a task that never failed."""
        task = self._attempt(event.task, event.attempt, event)
        if task is None:
            return
        task.generated += event.output_tokens
        self._release(task, TaskState.READY)
        self._make_ready(task)

    def _withdrawn(self, event: StageWithdrawn) -> None:
        job = self._known(event.job, event)
        if job is None:
            return
        stage = self._stage(job, event.stage)
        if stage.state is not StageState.READY:
            if not (stage.is_over or stage.state is StageState.EXPANDING):
                raise InvalidTransition(f"{stage!r} was withdrawn before it could run")
            self.stats.stale[type(event).__name__] += 1
            return
        if stage.ready:
            self._unready(stage)
        for task in stage.tasks or ():
            if task.state is TaskState.DONE:
                continue
            task.result = event.result
            stage.done_tasks += 1
            if task.state is TaskState.RUNNING:
                assert task.executor is not None, task
                self._commands.append(CancelTask(task.ref, task.attempt, task.executor))
                self._release(task, TaskState.DONE)
            else:
                task.become(TaskState.DONE)
        job.revision += 1
        stage.become(StageState.EXPANDING)

    def _executor_joined(self, executor_id: str, pool: str, slots: int) -> None:
        executor = self._view.executors.get(executor_id)
        if executor is None:
            executor = self._view.executors[executor_id] = Executor(executor_id, pool, slots, self._joined)
            self._joined += 1
        elif executor.pool == pool:
            executor.slots = slots
        else:
            raise InvalidTransition(f"{executor!r} joined again in pool {pool!r}; it has to be lost first")
        self._view.machines += 1
        self._capacity.changed(executor)

    def _executor_lost(self, executor_id: str, event: Event) -> None:
        executor = self._view.executors.pop(executor_id, None)
        if executor is None:
            self.stats.stale[type(event).__name__] += 1
            return
        self._view.machines += 1
        self._capacity.lost(executor)
        for ref, task in executor.running.items():
            if ref not in task.job.running:
                continue  # its job failed with an earlier task of this loop
            self._commands.append(CancelTask(ref, task.attempt, executor_id))
            task.losses += 1
            task.generated = 0
            self._release(task, TaskState.READY)
            if task.losses > self._backoff.max_losses:
                self._finish(
                    task.job,
                    Outcome.FAILED,
                    f"task {task.stage.name}[{task.index}] lost its executor {task.losses} times, last {executor_id!r}",
                )
            else:
                self._make_ready(task)

    # -------------------------------------------------------------------------------------------- structure

    def _unfold(
        self, job: Job, reveals: Iterable[Reveal], skipped: Iterable[str], finished: Stage | None = None
    ) -> None:
        """Takes in what is newly known of the job's structure and starts what became ready."""
        job.revision += 1
        for name in skipped:
            self._stage(job, name).become(StageState.SKIPPED)
            job.open_stages -= 1
        for reveal in reveals:
            self._reveal(job, reveal)
        if finished is not None and finished.spec.parent is not None:
            self._close_dynamic(job, finished.spec.parent)
        # Again until nothing starts: a plan that turns out empty is over at once, and others may wait for it.
        while startable := [s for s in job.stages.values() if s.is_startable]:
            for stage in startable:
                self._start(job, stage)
        self._policy.on(JobChanged(job), self._view)
        if job.open_stages == 0:
            self._finish(job, Outcome.COMPLETED, "")
        elif not any(s.is_active for s in job.stages.values()):
            waiting = ", ".join(s.name for s in job.stages.values() if s.state is StageState.WAITING)
            self._finish(job, Outcome.FAILED, f"nothing is left to run, yet these stages wait: {waiting}")

    def _stage(self, job: Job, name: str) -> Stage:
        try:
            return job.stages[name]
        except KeyError:
            raise InvalidTransition(f"{job!r} has no stage {name!r}; known: {', '.join(job.stages)}") from None

    def _reveal(self, job: Job, reveal: Reveal) -> None:
        stage = job.stages.get(reveal.spec.name) or job.add(reveal.spec)
        if stage.state is not StageState.WAITING or stage.is_revealed:
            raise InvalidTransition(f"{stage!r} was revealed twice")
        stage.spec = reveal.spec
        texts = reveal.texts or (None,) * len(reveal.prompt_tokens)
        prompts = zip(reveal.prompt_tokens, texts, strict=True)
        stage.tasks = tuple(Task(stage, i, tokens, text) for i, (tokens, text) in enumerate(prompts))

    def _start(self, job: Job, stage: Stage) -> None:
        if stage.kind is StageKind.DYNAMIC:
            stage.become(StageState.EXPANDING)
            self._close_dynamic(job, stage.name)
            return
        if not stage.tasks:
            raise InvalidTransition(f"{stage!r} was revealed without tasks; a stage with none is skipped")
        stage.become(StageState.READY)
        for task in stage.tasks:
            task.ready_at = self._view.now
        stage.ready.extend(range(len(stage.tasks)))
        self._ready(stage)

    def _close_dynamic(self, job: Job, name: str) -> None:
        """A dynamic stage is done as soon as every stage of its plan is over (at once for an empty plan)."""
        stage = job.stages[name]
        if stage.state is StageState.EXPANDING and all(s.is_over for s in job.inner(name)):
            stage.become(StageState.DONE)
            job.open_stages -= 1

    def _finish(self, job: Job, outcome: Outcome, reason: str) -> None:
        for task in list(job.running.values()):
            assert task.executor is not None, task
            self._commands.append(CancelTask(task.ref, task.attempt, task.executor))
            if executor := self._view.executors.get(task.executor):
                del executor.running[task.ref]
                self._capacity.changed(executor)
        job.running.clear()
        for stage in job.stages.values():
            if stage.ready:
                self._unready(stage)
        job.status = JobStatus(outcome.value)
        del self._view.jobs[job.id]
        self._policy.on(JobLeft(job), self._view)
        self._commands.append(FinishJob(job.id, outcome, reason))
        self._left.append(job)

    # ------------------------------------------------------------------------------------------ ready tasks

    def _ready(self, stage: Stage) -> None:
        self._view.ready.setdefault(stage.pool, {})[stage.job.id, stage.name] = stage
        self._policy.on(StageReady(stage), self._view)

    def _unready(self, stage: Stage) -> None:
        stage.ready.clear()
        del self._view.ready[stage.pool][stage.job.id, stage.name]
        self._policy.on(StageDrained(stage), self._view)

    def _make_ready(self, task: Task) -> None:
        """Puts a task that ran before back among the ready ones, in its place."""
        stage = task.stage
        task.ready_at = self._view.now
        was_empty = not stage.ready
        stage.ready.append(task.index)
        stage.ready.sort()
        if was_empty:
            self._ready(stage)
        else:
            self._policy.on(TaskReady(task), self._view)

    def _release(self, task: Task, state: TaskState) -> None:
        """The attempt is over: its slot is free again."""
        ref = task.ref
        del task.job.running[ref]
        executor = self._view.executors.get(task.executor or "")
        if executor is not None:
            executor.running.pop(ref, None)
            self._capacity.changed(executor)
        task.executor = None
        task.become(state)
        self._policy.on(TaskEnded(task), self._view)

    def _is_stale_delay(self, task: Task) -> bool:
        return task.state is not TaskState.BACKOFF or self._view.jobs.get(task.job.id) is not task.job

    def _requeue_due(self) -> None:
        while self._delayed and self._delayed[0][0] <= self._view.now:
            task = heapq.heappop(self._delayed)[2]
            if not self._is_stale_delay(task):
                task.become(TaskState.READY)
                self._make_ready(task)

    # --------------------------------------------------------------------------------------------- dispatch

    def _dispatch(self) -> None:
        view = self._view
        pools = [pool for pool in self._capacity.pools() if view.ready.get(pool)]
        if not pools:
            return
        self.stats.decisions += 1
        self._policy.begin(view)
        for pool in pools:
            for pick in self._picks(pool, self._capacity.free(pool)):
                self._place(pick, pool)

    def _picks(self, pool: str, free: int) -> list[Pick]:
        """The first `free` picks of the policy, classes kept apart; drawn before anything is dispatched."""
        picks = self._policy.picks(pool, self._view)
        if not self._policy.keeps_classes:
            classes = {stage.job.job_class for stage in self._view.ready_stages(pool)}
            if len(classes) > 1:
                picks = iter(sorted(picks, key=lambda pick: pick.task.job.job_class))
        return list(islice(picks, free))

    def _place(self, pick: Pick, pool: str) -> None:
        task = pick.task
        stage = task.stage
        if task.state is not TaskState.READY or task.pool != pool:
            raise InvalidTransition(
                f"policy {type(self._policy).__name__} picked {task!r}, which is not ready in {pool!r}"
            )
        executor = self._executor_for(pick)
        task.become(TaskState.RUNNING)
        stage.ready.remove(task.index)
        if not stage.ready:
            self._unready(stage)
        task.attempt += 1
        task.executor = executor.id
        task.started_at = self._view.now
        ref = task.ref
        executor.running[ref] = task
        self._capacity.changed(executor)
        stage.job.running[ref] = task
        stage.job.status = JobStatus.RUNNING
        self.stats.dispatches += 1
        self._commands.append(Dispatch(ref, task.attempt, executor.id, pick.max_tokens, pick.priority, pick.why))
        self._policy.on(TaskStarted(task), self._view)

    def _executor_for(self, pick: Pick) -> Executor:
        """The policy's wish where it has a slot, else the executor with the fewest running tasks.

        The executor where the task's last attempt failed is used only when no other has a slot. Ties go to the
        executor that joined first. Source: LLMSched, section IV-D ("fewest running tasks").
        """
        task = pick.task
        if pick.engine is not None:
            wish = self._view.executors.get(pick.engine)
            if wish is not None and wish.pool == task.pool and wish.free:
                return wish
        return self._capacity.least_loaded(task.pool, task.avoid)
