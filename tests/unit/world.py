"""A small world for the scheduler: virtual time, recorded jobs, and as much bad luck as a seed decides.

`World` drives a `Scheduler` as the service does, and keeps its own accounts beside it: who runs what, which stages are
over, how often a task failed. From them it predicts, for every batch, which attempts are given up, which jobs end and
how, and which news is stale, and it refuses any dispatch that should not be. Only the order and the place of dispatches
are the scheduler's own. `run` raises AssertionError where the two disagree.
"""

from __future__ import annotations

import pickle
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from heapq import heappop, heappush
from random import Random
from typing import Any

from llmsched.model.application import Application
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
    JobClass,
    JobSubmitted,
    Outcome,
    StageExpanded,
    StageFailed,
    StagesRevealed,
    StageWithdrawn,
    TaskFailed,
    TaskFinished,
    TaskRef,
    TaskResult,
    Wakeup,
)
from llmsched.model.job import Job, StageState, TaskState
from llmsched.model.kinds import StageKind
from llmsched.model.recording import Recording
from llmsched.model.spec import StageSpec
from llmsched.model.unfolding import RecordedUnfolding, Unfolded
from llmsched.policies import POLICIES
from llmsched.policies import make_policy as make
from llmsched.policies.base import Policy
from llmsched.profiler import Outlook, Remaining
from llmsched.profiler.estimator import Running
from llmsched.scheduler import Backoff, Scheduler

#: Jitter, growth and the number of losses a task survives are the scheduler's; the times are short.
BACKOFF = Backoff(first=0.5, most=4.0, spread=0.5, max_losses=3)

#: After this nothing bad happens any more, so that everything comes to an end.
HORIZON = 30.0


class Clueless:
    """The truth for oracles in a world whose future nobody wrote down: nothing is left of any job."""

    def remaining(self, job: Job, running: Running | None = None) -> Remaining:
        return {}

    def outlook(self, job: Job, running: Running | None = None) -> Outlook:
        raise AssertionError("no policy asks the truth for a distribution")


def make_policy(name: str) -> Policy:
    """A fresh policy of the registry that has learned nothing."""
    return make(name, truth=Clueless())


@dataclass(frozen=True, slots=True)
class Luck:
    """How unkind a world is. Chances are per attempt, per job or (of executors) per second."""

    failing: float = 0.0
    #: … of failures: that no retry helps.
    fatal: float = 0.0
    #: … of attempts that were given up: that news of them arrives all the same.
    echo: float = 0.0
    #: … of stages: that nobody can use their output.
    unusable: float = 0.0
    cancelling: float = 0.0
    #: … of jobs: that nobody wants one of its stages any more.
    withdrawing: float = 0.0
    #: … of completed stages: that what follows is told before they are said to be complete.
    foretelling: float = 0.0
    losing: float = 0.0
    #: Executors changing their number of slots.
    resizing: float = 0.0
    #: … of batches: that another policy takes over.
    swapping: float = 0.0
    #: … of batches: that the scheduler's process dies and starts again from what was completed.
    crashing: float = 0.0
    #: Seconds a batch may wait for more events.
    tick: float = 0.0


class JobAccount:
    """What the world knows of one job."""

    def __init__(self, number: int, application: Application, recording: Recording, arrival: float) -> None:
        self.id = f"job-{number}"
        self.number = number
        self.application = application
        self.recording = recording
        self.arrival = arrival
        self.job_class = JobClass(number % 3)
        #: Completed stages in order, with what their tasks cost: all that survives a crash.
        self.completed: list[tuple[str, tuple[TaskResult, ...]]] = []
        self.outcome: Outcome | None = None
        self.is_submitted = False
        self.forget()

    def forget(self) -> None:
        """What a crash leaves: nothing is known but `completed`."""
        self.unfolding = RecordedUnfolding(self.application, self.recording)
        self.specs: dict[str, StageSpec] = {}
        self.results: dict[str, list[TaskResult | None]] = {}
        self.over: set[str] = set()

    def learn(self, unfolded: Unfolded) -> None:
        for spec, prompt_tokens, _ in unfolded.reveals:
            assert spec.name not in self.specs, f"{self.id}: {spec.name} was revealed twice"
            self.specs[spec.name] = spec
            self.results[spec.name] = [None] * len(prompt_tokens)
        self.end(*unfolded.skipped)

    def end(self, *stages: str) -> None:
        """These stages are over, and with them every dynamic stage whose plan is."""
        self.over.update(stages)
        inner = {s.name: s.parent for s in self.specs.values() if s.parent is not None and s.name not in self.over}
        open_plans = [s for s in self.specs.values() if s.kind is StageKind.DYNAMIC and s.name not in self.over]
        for spec in open_plans:
            if self.over.issuperset(spec.after) and spec.name not in inner.values():
                self.end(spec.name)

    @property
    def is_active(self) -> bool:
        return self.is_submitted and self.outcome is None

    @property
    def is_over(self) -> bool:
        stages = {s.name for s in self.recording.stages} | {s.name for s in self.application.stages}
        return self.over == stages

    def waiting(self) -> list[TaskRef]:
        """Tasks that may run and are not done."""
        return [
            TaskRef(self.id, name, i)
            for name, spec in self.specs.items()
            if name not in self.over and self.over.issuperset(spec.after)
            for i, result in enumerate(self.results[name])
            if result is None
        ]


class World:
    """Runs `jobs` (application, recording, arrival) through one scheduler after the other until all have ended."""

    def __init__(
        self,
        jobs: Sequence[tuple[Application, Recording, float]],
        *,
        policy: str = "fcfs",
        luck: Luck | None = None,
        seed: int = 0,
    ) -> None:
        self.rng = Random(seed)
        self.luck = luck or Luck()
        self.now = 0.0
        self.jobs = {job.id: job for job in (JobAccount(n, *args) for n, args in enumerate(jobs))}
        self.executors: dict[str, tuple[str, int]] = {}
        self.running: dict[TaskRef, Dispatch] = {}
        self.attempts: Counter[TaskRef] = Counter()
        self.failures: Counter[TaskRef] = Counter()
        self.losses: Counter[TaskRef] = Counter()
        #: Task -> (not before, at the latest) of its next attempt, while it waits out a back-off.
        self.resting: dict[TaskRef, tuple[float, float]] = {}
        self.stale: Counter[str] = Counter()
        self.finished: Counter[str] = Counter()
        #: Pickled batches (or the name of a new policy) and the commands they brought, of the current scheduler.
        self.journal: list[tuple[bytes | str, list[Command]]] = []
        self.calendar: list[tuple[float, int, Event]] = []
        self._entries = 0
        self._start_scheduler(policy)
        self._plan_fate()

    # ------------------------------------------------------------------------------------------------ fate

    def _plan_fate(self) -> None:
        for job in self.jobs.values():
            self._later(job.arrival, self._submission(job))
            if self.rng.random() < self.luck.cancelling:
                self._later(self.rng.uniform(0, HORIZON), JobCancelled(job.id))
            if self.luck.withdrawing and self.rng.random() < self.luck.withdrawing:
                self._later(self.rng.uniform(0, HORIZON), StageWithdrawn(job.id, "", TaskResult(0.0)))
        for pool in self._pools():
            for i in range(self.rng.randint(1, 3)):
                name = f"{pool}-{i}"
                self._later(0.0, ExecutorJoined(name, pool, self.rng.randint(1, 4)))
                self._plan_executor(name, pool)
            self._later(HORIZON, ExecutorJoined(f"{pool}-last", pool, 2))

    def _plan_executor(self, name: str, pool: str) -> None:
        at = 0.0
        rate = self.luck.losing + self.luck.resizing
        while rate and (at := at + self.rng.expovariate(rate)) < HORIZON:
            if self.rng.random() * rate < self.luck.losing:
                self._later(at, ExecutorLost(name, "gone"))
                if self.rng.random() < 0.7:  # else the next event finds it gone, or brings it back
                    self._later(
                        at + self.rng.choice((0.0, 0.5, 3.0)), ExecutorJoined(name, pool, self.rng.randint(1, 4))
                    )
            else:
                self._later(at, ExecutorJoined(name, pool, self.rng.randint(0, 4)))

    def _pools(self) -> list[str]:
        stages = [stage for job in self.jobs.values() for stage in job.application.stages]
        return sorted({"llm", "cpu"} | {stage.pool for stage in stages if stage.pool})

    def _later(self, at: float, event: Event) -> None:
        self._entries += 1
        heappush(self.calendar, (at, self._entries, event))

    def _submission(self, job: JobAccount) -> JobSubmitted:
        unfolded = job.unfolding.begin()
        job.learn(unfolded)
        return JobSubmitted(
            job.id, job.number, job.application, job.arrival, unfolded.reveals, unfolded.skipped, job.job_class
        )

    # ------------------------------------------------------------------------------------------------- time

    def run(self) -> None:
        """Until every job has ended and nothing is left to happen."""
        while self.advance():
            pass
        self._check_end()

    def advance(self) -> bool:
        """One batch; False if nothing is left to happen."""
        at = self._next()
        if at is None:
            return False
        self.now = at + (self.rng.random() * self.luck.tick if self.luck.tick else 0.0)
        if self.rng.random() < self.luck.swapping:
            self._swap_policy()
        crashes = self.now < HORIZON and self.rng.random() < self.luck.crashing
        self._step(self._crash() if crashes else [])
        return True

    def _next(self) -> float | None:
        wakeup = self.scheduler.next_wakeup()
        times = [t for t in (wakeup, self.calendar[0][0] if self.calendar else None) if t is not None]
        return max(self.now, min(times)) if times else None

    def _step(self, events: list[Event]) -> None:
        """One batch: these events, which are in the accounts already, and whatever is due."""
        self.ending: dict[str, Outcome] = {}
        self.given_up: Counter[tuple[TaskRef, int, str]] = Counter()
        while self.calendar and self.calendar[0][0] <= self.now:
            events += self._happen(heappop(self.calendar)[2])
        if not events:
            events.append(Wakeup())
        batch = Batch(self.now, tuple(events))
        stored = pickle.dumps(batch)
        commands = self.scheduler.handle(batch)
        self.journal.append((stored, list(commands)))
        self._obey(commands)
        self._check_order(commands)
        check_consistent(self.scheduler)

    # ----------------------------------------------------------------------------------------------- events

    def _happen(self, event: Event) -> list[Event]:
        """What the scheduler gets to hear of it, and what follows from it at once."""
        match event:
            case TaskFinished(ref, attempt) | TaskFailed(ref, attempt):
                return self._report(ref, attempt, event)
            case StageExpanded(id, stage):
                return self._expand(self.jobs[id], stage)
            case StageWithdrawn(id):
                return self._withdraw(self.jobs[id], event.result)
            case StageFailed(id):
                return self._concern(self.jobs[id], event, Outcome.FAILED)
            case JobCancelled(id):
                return self._concern(self.jobs[id], event, Outcome.CANCELLED)
            case JobSubmitted(id):
                self.jobs[id].is_submitted = True
                return [event]
            case ExecutorJoined(name, pool, slots):
                self.executors[name] = (pool, slots)
                return [event]
            case ExecutorLost(name):
                self._lose(name)
                return [event]
            case _:
                raise AssertionError(event)

    def _report(self, ref: TaskRef, attempt: int, event: TaskFinished | TaskFailed) -> list[Event]:
        current = self.running.get(ref)
        if current is None or current.attempt != attempt:
            return self._echo(event)
        del self.running[ref]
        job = self.jobs[ref.job]
        if isinstance(event, TaskFailed):
            self._fail(job, ref, event)
            return [event]
        results = job.results[ref.stage]
        assert results[ref.index] is None, f"{ref} finished twice"
        results[ref.index] = event.result
        if None in results:
            return [event]
        return [event, *self._complete(job, ref.stage)]

    def _fail(self, job: JobAccount, ref: TaskRef, event: TaskFailed) -> None:
        self.failures[ref] += 1
        nominal = min(BACKOFF.most, BACKOFF.first * 2 ** (self.failures[ref] - 1))
        asked = min(BACKOFF.most, event.retry_after)
        self.resting[ref] = (
            self.now + max(asked, nominal * (1 - BACKOFF.spread / 2)),
            self.now + max(asked, nominal * (1 + BACKOFF.spread / 2)),
        )
        if not event.retryable or self.failures[ref] > job.specs[ref.stage].retries:
            self._end(job, Outcome.FAILED)

    def _complete(self, job: JobAccount, stage: str) -> list[Event]:
        """The last task is done: what this reveals is found out, and told, at once or a little later."""
        event: StageExpanded | StageFailed
        if self.rng.random() < self.luck.unusable:
            event = StageFailed(job.id, stage, "bad_plan: nobody understands it")
        else:
            event = StageExpanded(job.id, stage)
        if self.rng.random() < 0.5:
            return self._happen(event)
        self._later(self.now + self.rng.choice((0.0, 0.5)), event)
        return []

    def _expand(self, job: JobAccount, stage: str) -> list[Event]:
        if not job.is_active:
            return self._echo(StageExpanded(job.id, stage))
        unfolded = job.unfolding.complete(stage)
        job.learn(unfolded)
        job.end(stage)
        job.completed.append((stage, tuple(r for r in job.results[stage] if r is not None)))
        if job.is_over:
            self._end(job, Outcome.COMPLETED)
        if self.luck.foretelling and unfolded.reveals and self.rng.random() < self.luck.foretelling:
            return [StagesRevealed(job.id, unfolded.reveals), StageExpanded(job.id, stage, (), unfolded.skipped)]
        return [StageExpanded(job.id, stage, unfolded.reveals, unfolded.skipped)]

    def _withdraw(self, job: JobAccount, result: TaskResult) -> list[Event]:
        """Of one of its stages that wait or run."""
        stages = sorted({ref.stage for ref in job.waiting()}) if job.is_active else []
        if not stages:
            return []
        stage = self.rng.choice(stages)
        results = job.results[stage]
        for index, known in enumerate(results):
            ref = TaskRef(job.id, stage, index)
            if known is None:
                results[index] = result
                self.resting.pop(ref, None)
                if ref in self.running:
                    self._give_up(ref)
        return [StageWithdrawn(job.id, stage, result), *self._complete(job, stage)]

    def _concern(self, job: JobAccount, event: JobCancelled | StageFailed, outcome: Outcome) -> list[Event]:
        if job.is_active:
            self._end(job, outcome)
            return [event]
        return self._echo(event)

    def _echo(self, event: Event) -> list[Event]:
        """News of what is no longer of interest may still arrive; then it is counted."""
        if self.rng.random() >= self.luck.echo:
            return []
        self.stale[type(event).__name__] += 1
        return [event]

    def _lose(self, name: str) -> None:
        if self.executors.pop(name, None) is None:
            self.stale["ExecutorLost"] += 1
            return
        for ref, dispatch in list(self.running.items()):
            if dispatch.executor == name and ref in self.running:
                self._give_up(ref)
                self.losses[ref] += 1
                if self.losses[ref] > BACKOFF.max_losses:
                    self._end(self.jobs[ref.job], Outcome.FAILED)

    def _end(self, job: JobAccount, outcome: Outcome) -> None:
        job.outcome = self.ending[job.id] = outcome
        for ref in [ref for ref in self.running if ref.job == job.id]:
            self._give_up(ref)

    def _give_up(self, ref: TaskRef) -> None:
        dispatch = self.running.pop(ref)
        self.given_up[ref, dispatch.attempt, dispatch.executor] += 1

    # --------------------------------------------------------------------------------------------- commands

    def _obey(self, commands: list[Command]) -> None:
        cancelled: Counter[tuple[TaskRef, int, str]] = Counter()
        ended: dict[str, Outcome] = {}
        for command in commands:
            match command:
                case CancelTask(ref, attempt, executor):
                    cancelled[ref, attempt, executor] += 1
                case FinishJob(id, outcome, reason):
                    ended[id] = outcome
                    self.finished[id] += 1
                    assert bool(reason) == (outcome is not Outcome.COMPLETED)
                case Dispatch():
                    self._start(command)
        assert cancelled == self.given_up
        assert ended == self.ending
        assert self.scheduler.stats.stale == self.stale

    def _start(self, dispatch: Dispatch) -> None:
        ref = dispatch.task
        job = self.jobs[ref.job]
        spec = job.specs[ref.stage]
        assert job.is_active, f"{ref} was started, but its job is {job.outcome}"
        assert ref in job.waiting(), f"{ref} was started before its time, or again"
        assert ref not in self.running, f"{ref} runs already"
        not_before, _ = self.resting.pop(ref, (0.0, 0.0))
        assert self.now >= not_before - 1e-9, f"{ref} was started at {self.now}, before {not_before}"
        pool, slots = self.executors[dispatch.executor]
        assert pool == spec.pool
        assert self._load(dispatch.executor) < slots, f"{dispatch.executor} is over-filled"
        self.attempts[ref] += 1
        assert dispatch.attempt == self.attempts[ref]
        self.running[ref] = dispatch
        duration = self.rng.choice((0.0, 0.5, 0.5, 1.0, 2.0, 4.0))
        self._later(self.now + duration, self._attempt_ends(dispatch, duration))

    def _attempt_ends(self, dispatch: Dispatch, duration: float) -> Event:
        if self.rng.random() < self.luck.failing:
            retryable = self.rng.random() >= self.luck.fatal
            retry_after = self.rng.choice((0.0, 0.0, 2.0, 1e9))
            return TaskFailed(dispatch.task, dispatch.attempt, "timeout: no answer", retryable, retry_after)
        return TaskFinished(dispatch.task, dispatch.attempt, TaskResult(duration, 10, 5))

    def _load(self, executor: str) -> int:
        return sum(d.executor == executor for d in self.running.values())

    # --------------------------------------------------------------------------------- restarts and policies

    def _start_scheduler(self, policy: str) -> None:
        self._policy = policy
        self._seed = self.rng.getrandbits(32)
        self.scheduler = Scheduler(make_policy(policy), backoff=BACKOFF, seed=self._seed)

    def _swap_policy(self) -> None:
        policy = self.rng.choice(sorted(POLICIES))
        self.scheduler.use_policy(make_policy(policy))
        self.journal.append((policy, []))

    def _crash(self) -> list[Event]:
        """The process dies. The next one hears of all unfinished jobs, and of what each of them has completed."""
        self._check_replay()
        self.journal.clear()
        own = (TaskFinished, TaskFailed, StageExpanded, StageFailed)
        self.calendar = [entry for entry in self.calendar if not isinstance(entry[2], own)]
        for counter in (self.running, self.attempts, self.failures, self.losses, self.resting, self.stale):
            counter.clear()
        self._start_scheduler(self._policy)
        events: list[Event] = [ExecutorJoined(name, *rest) for name, rest in self.executors.items()]
        for job in self.jobs.values():
            if job.is_active:
                job.forget()
                events.append(self._submission(job))
                for stage, results in job.completed:
                    unfolded = job.unfolding.complete(stage)
                    job.learn(unfolded)
                    job.results[stage] = list(results)
                    job.end(stage)
                    events.append(StageExpanded(job.id, stage, unfolded.reveals, unfolded.skipped, results))
        return events

    # ---------------------------------------------------------------------------------------------- promises

    def _ready(self) -> dict[str, list[TaskRef]]:
        """Tasks that certainly could start now, by pool."""
        ready: dict[str, list[TaskRef]] = {}
        for job in self.jobs.values():
            for ref in job.waiting() if job.is_active else ():
                _, latest = self.resting.get(ref, (0.0, 0.0))
                if ref not in self.running and self.now >= latest:
                    ready.setdefault(job.specs[ref.stage].pool, []).append(ref)
        return ready

    def _check_order(self, commands: list[Command]) -> None:
        """Work conserving, and no class is served while an earlier one waits."""
        ready = self._ready()
        for name, (pool, slots) in self.executors.items():
            assert self._load(name) >= slots or pool not in ready, f"{name} idles while {ready[pool]} wait"
        for command in commands:
            if isinstance(command, Dispatch):
                job = self.jobs[command.task.job]
                waiting = ready.get(job.specs[command.task.stage].pool, ())
                assert all(job.job_class <= self.jobs[ref.job].job_class for ref in waiting)

    def _check_end(self) -> None:
        assert self.finished == dict.fromkeys(self.jobs, 1)
        assert not self.running
        view = self.scheduler.view
        assert not view.jobs
        assert not any(view.ready.values())
        assert not any(e.running for e in view.executors.values())
        assert [(e.id, e.pool, e.slots) for e in view.executors.values()] == [
            (name, *rest) for name, rest in self.executors.items()
        ]
        self._check_replay()

    def _check_replay(self) -> None:
        """The recorded batches bring the same commands from a scheduler that has seen nothing else."""
        replayed = Scheduler(make_policy(self._policy), backoff=BACKOFF, seed=self._seed)
        for stored, commands in self.journal:
            if isinstance(stored, str):
                replayed.use_policy(make_policy(stored))
            else:
                assert replayed.handle(pickle.loads(stored)) == commands


def check_consistent(scheduler: Scheduler) -> None:
    """The scheduler's own state holds together: executors, jobs, stages, tasks and ready lists tell one story."""
    view = scheduler.view
    running = {ref: task for e in view.executors.values() for ref, task in e.running.items()}
    assert sum(len(e.running) for e in view.executors.values()) == len(running), "a task runs on two executors"
    assert running == {ref: task for job in view.jobs.values() for ref, task in job.running.items()}
    for executor in view.executors.values():
        assert all(t.state is TaskState.RUNNING and t.executor == executor.id for t in executor.running.values())
    stages = [stage for job in view.jobs.values() for stage in job.stages.values()]
    for stage in stages:
        tasks = stage.tasks or ()
        is_ready = stage.state is StageState.READY
        assert stage.ready == [t.index for t in tasks if is_ready and t.state is TaskState.READY], stage
        assert stage.done_tasks == sum(t.state is TaskState.DONE for t in tasks), stage
        assert is_ready or not any(t.ref in running for t in tasks), stage
    ready = {(s.job.id, s.name): s for s in stages if s.ready}
    assert ready == {key: s for pool in view.ready.values() for key, s in pool.items()}
    assert all(s.pool == pool for pool, queue in view.ready.items() for s in queue.values())
    for job in view.jobs.values():
        assert job.open_stages == sum(not s.is_over for s in job.stages.values()), job
    for pool, queue in view.ready.items():
        assert not queue or not any(e.free for e in view.in_pool(pool)), f"{pool} idles"


# ------------------------------------------------------------------------------------------------ random jobs


def random_job(rng: Random) -> tuple[Application, Recording]:
    """A small application and one run of it, usual or not."""
    return rng.choice((_wide, _chain, _planned, _odd))(rng)


def _application(name: str, *stages: dict[str, Any]) -> Application:
    return Application.parse({"name": name, "stages": list(stages)})


def _recording(name: str, *stages: dict[str, Any]) -> Recording:
    return Recording.from_json({"app": name, "job_id": "x#0", "stages": list(stages)})


def _spec(name: str, kind: str, *after: str, **more: Any) -> dict[str, Any]:
    return {"name": name, "kind": kind, "after": list(after), **more}


def _run(name: str, kind: str, *deps: str, tasks: int = 1, **more: Any) -> dict[str, Any]:
    task = {"prompt_tokens": 10, "output_tokens": 5} if kind == "llm" else {"duration_s": 1.0, "tool": name[:1]}
    return {"name": name, "kind": kind, "deps": list(deps), "tasks": [task] * (kind != "dynamic" and tasks), **more}


def _wide(rng: Random) -> tuple[Application, Recording]:
    """Parallel stages of several tasks; the last one is optional, its pool another model."""
    stages = [("split", "llm", ()), ("a", "llm", ("split",)), ("b", "regular", ("split",)), ("join", "llm", ("a", "b"))]
    last = _spec("polish", "llm", "join", model="large", retries=0)
    application = _application("wide", *(_spec(n, k, *after, max_tasks=4) for n, k, after in stages), last)
    runs = [_run(n, k, *after, tasks=rng.randint(1, 4)) for n, k, after in stages]
    return application, _recording("wide", *runs, *([_run("polish", "llm", "join")] if rng.random() < 0.5 else []))


def _chain(rng: Random) -> tuple[Application, Recording]:
    """A loop that ends somewhere, and a stage that waits for the whole of it."""
    body = (_spec("think", "llm"), _spec("act", "llm", "think"), _spec("tool", "regular", "act"))
    loop = {"loop": "step", "max_iterations": 3, "after": ["ask"], "stages": list(body)}
    application = _application("chain", _spec("ask", "llm"), loop, _spec("tell", "regular", "step"))
    runs, last = [_run("ask", "llm")], "ask"
    for k in range(rng.randint(0, 3)):
        runs += [_run(f"think_{k}", "llm", last), _run(f"act_{k}", "llm", f"think_{k}")]
        last = f"act_{k}"
        if rng.random() < 0.3:
            break
        runs.append(_run(f"tool_{k}", "regular", last))
        last = f"tool_{k}"
    return application, _recording("chain", *runs, _run("tell", "regular", last))


def _planned(rng: Random) -> tuple[Application, Recording]:
    """A plan of up to five stages in any shape, some outside the candidates; the last stage waits for some or all."""
    tools = _spec(
        "tools", "dynamic", "plan", planner="plan", candidates=["s", {"name": "m", "kind": "llm"}], max_stages=4
    )
    application = _application("planned", _spec("plan", "llm"), tools, _spec("join", "llm", "tools"))
    inner: list[dict[str, Any]] = []
    for i in range(rng.randint(0, 5)):
        deps = [stage["name"] for stage in inner if rng.random() < 0.4]
        kind = rng.choice(("llm", "regular"))
        inner.append(
            _run(f"{rng.choice('sx')}_{i}", kind, *(deps or ["plan"]), tasks=rng.randint(1, 2), parent="tools")
        )
    some = [stage["name"] for stage in inner if rng.random() < 0.5]
    join = [_run("join", "llm", *(some or ["tools"]))] if rng.random() < 0.8 else []
    return application, _recording("planned", _run("plan", "llm"), _run("tools", "dynamic", "plan"), *inner, *join)


def _odd(rng: Random) -> tuple[Application, Recording]:
    """A recording that has little to do with its template: stages are missing, new, of another kind or order."""
    application, usual = rng.choice((_wide, _chain, _planned))(rng)
    names = [stage.name for stage in application.stages if rng.random() < 0.6] + ["new", "newer"]
    rng.shuffle(names)
    runs: list[dict[str, Any]] = []
    for i, name in enumerate(names):
        deps = [n for n in names[:i] if rng.random() < 0.3]
        kind = rng.choice(("llm", "regular", "dynamic") if deps else ("llm", "regular"))
        runs.append(_run(name, kind, *deps, tasks=rng.randint(1, 3)))
        if kind == "dynamic" and rng.random() < 0.5:
            runs.append(_run(f"{name}_inner", "llm", *deps, parent=name))
    return application, _recording(usual.application, *runs)
