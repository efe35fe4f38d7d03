"""A discrete-event world around the same `Scheduler` that the live service drives.

The world holds what a scheduler must not know: the recordings. Time jumps from one moment at which something happens to
the next; everything that is due at one moment is one batch, and its commands are carried out at once:

* LLM tasks go to a `DecodingServer` (prefill, then a decode rate l(b) shared by the batch; virtual time, so that one
  event costs O(log b));
* regular tasks hold a worker for their recorded seconds;
* the last task of a stage reveals what follows from it, in the same batch, exactly as the service does it;
* a dispatch with `max_tokens` is a slice: it ends after so many tokens with `SliceEnded`, and the next one of the task
  prefills the prompt and what was generated again, less what `prefix_cache` holds of it;
* with `shared_prefixes` calls of one stage begin alike, as those of recorded jobs do on an engine with a prefix cache:
  of a prompt only what is beyond the longest one that the stage had there is prefilled;
* an LLM call holds its slot for `overhead` seconds more than its engine needs: the service and the network;
* engines are lost and come back as `losses` say; an attempt fails with probability `failures`, halfway through.

The same seed gives the same faults to every policy: a draw belongs to (job, stage, task, attempt), not to a moment.
A moment at which only a prefill ends changes nothing that a scheduler knows, so it is no batch.
Deliberately absent: the network, the latency of the scheduler itself, KV caches that fill.
"""

from __future__ import annotations

import time
from array import array
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from heapq import heappop, heappush
from math import inf
from random import Random
from typing import NamedTuple, assert_never

from llmsched.errors import InvalidInput, UnknownName
from llmsched.model.application import Application
from llmsched.model.decoding import DecodingServer
from llmsched.model.events import (
    Batch,
    CancelTask,
    Dispatch,
    Event,
    ExecutorJoined,
    ExecutorLost,
    FinishJob,
    JobSubmitted,
    Outcome,
    Reveal,
    SliceEnded,
    StageExpanded,
    TaskFailed,
    TaskFinished,
    TaskRef,
    TaskResult,
    Wakeup,
)
from llmsched.model.latency import GENERIC_7B, LatencyCurve
from llmsched.model.unfolding import RecordedUnfolding
from llmsched.scheduler import Scheduler
from llmsched.workloads import Arrival, Prompts

#: What a prefix cache keeps is a multiple of this, as in vLLM.
_BLOCK_TOKENS = 16


class EngineLoss(NamedTuple):
    """The `engine`-th engine of the pool is gone at `at` and back `down` seconds later (inf: never)."""

    at: float
    engine: int
    down: float = inf


@dataclass(frozen=True, slots=True)
class Setup:
    """The machines of a world. Slots of each engine, worker slots by pool, and what goes wrong.

    Raises InvalidInput for machines that cannot be.
    """

    engines: tuple[int, ...] = (16,)
    workers: Mapping[str, int] = field(default_factory=lambda: {"cpu": 4})
    curve: LatencyCurve = GENERIC_7B
    llm_pool: str = "llm"
    losses: tuple[EngineLoss, ...] = ()
    #: Probability that an attempt fails.
    failures: float = 0.0
    #: Share of a sliced task's earlier tokens that need no second prefill.
    prefix_cache: float = 1.0
    #: Whether the prompts of one stage have their beginning in common, and engines cache it.
    shared_prefixes: bool = False
    #: Seconds between the engine's last token and the scheduler's hearing of it, and on the way there, together.
    overhead: float = 0.0
    seed: int = 0

    def __post_init__(self) -> None:
        if not self.engines or min(self.engines) < 1:
            raise InvalidInput(f"engines have {self.engines} slots; there must be one engine, and each needs a slot")
        for pool, slots in self.workers.items():
            if slots < 0:
                raise InvalidInput(f"pool {pool!r} has {slots} workers; it must be 0 or more", field="workers")
        if not 0 <= self.failures < 1:
            raise InvalidInput(f"failures is {self.failures:g}; it must be a probability below 1", field="failures")
        if not 0 <= self.overhead < inf:
            raise InvalidInput(f"overhead is {self.overhead:g}; it must be a number of seconds, 0 or more")
        if not 0 <= self.prefix_cache <= 1:
            raise InvalidInput(f"prefix_cache is {self.prefix_cache:g}; it must be a share, 0 to 1")
        for loss in self.losses:
            if not (0 <= loss.engine < len(self.engines) and loss.at >= 0 and loss.down > 0):
                raise InvalidInput(f"{loss} is impossible with {len(self.engines)} engines", field="losses")


class Finished(NamedTuple):
    """One job that is over. Seconds since the first arrival."""

    number: int
    application: str
    arrived_at: float
    finished_at: float
    outcome: Outcome

    @property
    def completion_time(self) -> float:
        return self.finished_at - self.arrived_at


class Span(NamedTuple):
    """One attempt of a task on an executor: a bar of a Gantt chart."""

    job: int
    stage: str
    task: int
    executor: str
    started_at: float
    ended_at: float


class _Running(NamedTuple):
    """An attempt at work. tokens: what this dispatch decodes, 0 on a worker. sequence: its id on the server."""

    command: Dispatch
    started_at: float
    tokens: int
    fails: bool
    sequence: str


class _Job:
    """What the world knows of an unfinished job."""

    __slots__ = ("asked_at", "generated", "left", "number", "prefixes", "ran", "unfolding")

    def __init__(self, number: int, unfolding: RecordedUnfolding) -> None:
        self.number = number
        self.unfolding = unfolding
        #: Stage -> tasks that are not done yet.
        self.left: dict[str, int] = {}
        #: LLM tasks that were dispatched and are not done -> when they first could have been.
        self.asked_at: dict[TaskRef, float] = {}
        #: Tokens that earlier slices of a task decoded.
        self.generated: dict[TaskRef, int] = {}
        #: Seconds that these slices took.
        self.ran: dict[TaskRef, float] = {}
        #: (stage, engine) -> tokens of the longest prompt that went there.
        self.prefixes: dict[tuple[str, int], int] = {}

    def learn(self, reveals: Iterable[Reveal]) -> None:
        for spec, prompt_tokens, _ in reveals:
            self.left[spec.name] = len(prompt_tokens)

    def cached(self, stage: str, engine: int, prompt_tokens: int) -> int:
        """Of a prompt that goes to an engine now, the tokens it has: whole blocks, and never the last token."""
        longest = self.prefixes.get((stage, engine), 0)
        self.prefixes[stage, engine] = max(longest, prompt_tokens)
        return max(0, min(longest, prompt_tokens - 1)) // _BLOCK_TOKENS * _BLOCK_TOKENS

    def forget(self, ref: TaskRef) -> tuple[int, float]:
        """Tokens and seconds of a task's earlier slices, which count no more."""
        return self.generated.pop(ref, 0), self.ran.pop(ref, 0.0)


def job_name(number: int) -> str:
    """The id under which the `number`-th arrival is submitted."""
    return f"job-{number}"


class World:
    """One run: `World(scheduler, arrivals, applications, setup).run()`.

    gantt: of how many jobs, by order of arrival, `spans` are kept. prompts: what their prompts are like.
    Raises UnknownName if an application is missing.
    """

    def __init__(
        self,
        scheduler: Scheduler,
        arrivals: Sequence[Arrival],
        applications: Mapping[str, Application],
        setup: Setup | None = None,
        *,
        gantt: int = 0,
        prompts: Prompts | None = None,
    ) -> None:
        self.scheduler = scheduler
        self.setup = setup = setup or Setup()
        #: Jobs that are over, in the order in which they ended.
        self.finished: list[Finished] = []
        self.spans: list[Span] = []
        #: Seconds the core took for each batch in which it asked the policy.
        self.decision_seconds = array("d")
        #: Seconds from the moment an LLM task could first be dispatched to its last token: what a request scheduler
        #: is about.
        self.request_seconds = array("d")
        #: Slot seconds used, by pool.
        self.busy: dict[str, float] = {setup.llm_pool: 0.0} | dict.fromkeys(setup.workers, 0.0)
        for arrival in arrivals:
            if arrival.recording.application not in applications:
                raise UnknownName.of("application", arrival.recording.application, applications)
        self._arrivals = arrivals
        self._applications = applications
        self._gantt = gantt
        self._prompts = prompts
        self._next_arrival = 0
        self._servers = [DecodingServer(setup.curve, slots) for slots in setup.engines]
        self._engine_of = {f"engine-{k}": k for k in range(len(setup.engines))}
        self._pool_of = dict.fromkeys(self._engine_of, setup.llm_pool) | {f"workers-{p}": p for p in setup.workers}
        #: (next event of the server, engine); an entry that is not what `_due` says is skipped.
        self._engine_heap: list[tuple[float, int]] = []
        self._due = [inf] * len(setup.engines)
        #: (end, counter, task, attempt), also of calls that the engine has answered; given up attempts are skipped.
        self._worker_heap: list[tuple[float, int, TaskRef, int]] = []
        self._faults: list[tuple[float, int, Event]] = []
        self._counter = 0
        self._jobs: dict[str, _Job] = {}
        self._running: dict[TaskRef, _Running] = {}
        #: Sequence id on a server -> its task, for the attempts that still matter.
        self._sequences: dict[str, TaskRef] = {}

    # ---------------------------------------------------------------------------------------------- the loop

    def run(self, ended: Callable[[], object] = lambda: None) -> World:
        """Runs until every job is over; returns itself. `ended` is called at the end of each job.

        Raises InvalidInput if jobs are left that nothing will ever finish: no executor is there for their tasks.
        """
        self._handle(0.0, list(self._joining()))
        told = 0
        while (at := self._next()) < inf:
            events = self._happening(at)
            wakeup = self.scheduler.next_wakeup()
            if events or (wakeup is not None and wakeup <= at):
                self._handle(at, events or [Wakeup()])
            while told < len(self.finished):
                told += 1
                ended()
        if len(self.finished) < len(self._arrivals):
            raise self._stuck()
        return self

    @property
    def makespan(self) -> float:
        """Seconds from the first arrival to the last completion."""
        return max((f.finished_at for f in self.finished), default=0.0)

    def utilisation(self) -> dict[str, float]:
        """Share of the slot seconds of each pool that was used, lost engines counted as if they were there."""
        slots: dict[str, int] = {self.setup.llm_pool: sum(self.setup.engines)}
        slots |= {pool: n for pool, n in self.setup.workers.items() if n}
        span = self.makespan
        return {pool: self.busy[pool] / (n * span) if span else 0.0 for pool, n in slots.items()}

    def _stuck(self) -> InvalidInput:
        view = self.scheduler.view
        served = {executor.pool for executor in view.executors.values() if executor.slots}
        pools = sorted({stage.pool for stages in view.ready.values() for stage in stages.values()} - served)
        assert pools, "jobs are left although every pool has executors"
        left = len(self._arrivals) - len(self.finished)
        names = ", ".join(map(repr, pools))
        return InvalidInput(f"{left} jobs can never finish: pool {names} has no executor left; give it one")

    def _joining(self) -> Iterable[Event]:
        for k, slots in enumerate(self.setup.engines):
            yield ExecutorJoined(f"engine-{k}", self.setup.llm_pool, slots)
        for pool, slots in self.setup.workers.items():
            yield ExecutorJoined(f"workers-{pool}", pool, slots)
        for loss in self.setup.losses:
            name = f"engine-{loss.engine}"
            self._push_fault(loss.at, ExecutorLost(name, "lost"))
            if loss.down < inf:
                joined = ExecutorJoined(name, self.setup.llm_pool, self.setup.engines[loss.engine])
                self._push_fault(loss.at + loss.down, joined)

    def _push_fault(self, at: float, event: Event) -> None:
        self._counter += 1
        heappush(self._faults, (at, self._counter, event))

    def _next(self) -> float:
        """When something happens next; inf once every job is over."""
        if len(self.finished) == len(self._arrivals):
            return inf
        at = self._arrivals[self._next_arrival].at if self._next_arrival < len(self._arrivals) else inf
        if self._worker_heap:
            at = min(at, self._worker_heap[0][0])
        heap = self._engine_heap
        while heap and heap[0][0] != self._due[heap[0][1]]:
            heappop(heap)
        if heap:
            at = min(at, heap[0][0])
        if self._faults:
            at = min(at, self._faults[0][0])
        wakeup = self.scheduler.next_wakeup()
        return at if wakeup is None else min(at, wakeup)

    def _happening(self, at: float) -> list[Event]:
        """Everything that is due at this moment: losses first, then ends of tasks, then arrivals."""
        events: list[Event] = []
        while self._faults and self._faults[0][0] <= at:
            event = heappop(self._faults)[2]
            events.append(event)
            if isinstance(event, ExecutorLost):
                self._lose(event.executor, at)
        heap = self._engine_heap
        while heap and heap[0][0] <= at:
            due, engine = heappop(heap)
            if due == self._due[engine]:
                for id, _ in self._servers[engine].advance(at):
                    if (ref := self._sequences.get(id)) is not None:
                        self._answered(ref, at, events)
                self._plan(engine)
        while self._worker_heap and self._worker_heap[0][0] <= at:
            _, _, ref, attempt = heappop(self._worker_heap)
            running = self._running.get(ref)
            if running is not None and running.command.attempt == attempt:
                self._ended(ref, at, events)
        while self._next_arrival < len(self._arrivals) and self._arrivals[self._next_arrival].at <= at:
            events.append(self._arrive(self._arrivals[self._next_arrival]))
        return events

    def _handle(self, at: float, events: list[Event]) -> None:
        stats = self.scheduler.stats
        decisions = stats.decisions
        began = time.perf_counter()
        commands = self.scheduler.handle(Batch(at, tuple(events)))
        seconds = time.perf_counter() - began
        if stats.decisions > decisions:
            self.decision_seconds.append(seconds)
        for command in commands:
            match command:
                case Dispatch():
                    self._dispatch(command, at)
                case CancelTask(ref, attempt):
                    self._cancel(ref, attempt, at)
                case FinishJob(job, outcome, _):
                    self._finish(job, outcome, at)
                case _:
                    assert_never(command)

    # ---------------------------------------------------------------------------------------- jobs and stages

    def _arrive(self, arrival: Arrival) -> JobSubmitted:
        number = self._next_arrival
        self._next_arrival += 1
        recording = arrival.recording
        application = self._applications[recording.application]
        id = job_name(number)
        texts = None if self._prompts is None else self._prompts.of(recording)
        job = self._jobs[id] = _Job(number, RecordedUnfolding(application, recording, texts))
        reveals, skipped = job.unfolding.begin()
        job.learn(reveals)
        due = None if arrival.deadline_s is None else arrival.at + arrival.deadline_s
        return JobSubmitted(
            id,
            number,
            application,
            arrival.at,
            reveals,
            skipped,
            arrival.job_class,
            arrival.tenant,
            recording.features,
            due,
        )

    def _finish(self, id: str, outcome: Outcome, at: float) -> None:
        number = self._jobs.pop(id).number
        arrival = self._arrivals[number]
        self.finished.append(Finished(number, arrival.recording.application, arrival.at, at, outcome))

    # --------------------------------------------------------------------------------------------------- tasks

    def _dispatch(self, command: Dispatch, at: float) -> None:
        ref = command.task
        job = self._jobs[ref.job]
        task = job.unfolding.task(ref.stage, ref.index)
        fails = bool(self.setup.failures) and self._draw(ref, command.attempt) < self.setup.failures
        engine = self._engine_of.get(command.executor)
        self._counter += 1
        if engine is None:
            self._running[ref] = _Running(command, at, 0, fails, "")
            seconds = task.duration / 2 if fails else task.duration
            heappush(self._worker_heap, (at + seconds, self._counter, ref, command.attempt))
            return
        if ref not in job.asked_at:
            job.asked_at[ref] = self.scheduler.view.jobs[ref.job].running[ref].ready_at
        had = job.generated.get(ref, 0)
        tokens = task.output_tokens - had
        if command.max_tokens is not None:
            tokens = min(tokens, command.max_tokens)
        if fails:
            tokens = max(1, tokens // 2)
        prompt = round((task.prompt_tokens + had) * (1 - self.setup.prefix_cache)) if had else task.prompt_tokens
        if self.setup.shared_prefixes and not had:
            prompt -= job.cached(ref.stage, engine, prompt)
        id = str(self._counter)
        self._running[ref] = _Running(command, at, tokens, fails, id)
        self._sequences[id] = ref
        self._servers[engine].submit(id, prompt, tokens, at, command.priority or 0)
        self._plan(engine)

    def _plan(self, engine: int) -> None:
        at = self._servers[engine].next_event()
        due = inf if at is None else at
        if due != self._due[engine]:
            self._due[engine] = due
            if due < inf:
                heappush(self._engine_heap, (due, engine))

    def _answered(self, ref: TaskRef, at: float, events: list[Event]) -> None:
        """The engine is done with an attempt; the scheduler hears of it now or a little later."""
        if not self.setup.overhead:
            self._ended(ref, at, events)
            return
        running = self._running[ref]
        del self._sequences[running.sequence]
        self._running[ref] = running._replace(sequence="")
        self._counter += 1
        heappush(self._worker_heap, (at + self.setup.overhead, self._counter, ref, running.command.attempt))

    def _ended(self, ref: TaskRef, at: float, events: list[Event]) -> None:
        """The world is done with an attempt; what the scheduler hears of it."""
        running = self._close(ref, at)
        attempt = running.command.attempt
        job = self._jobs[ref.job]
        task = job.unfolding.task(ref.stage, ref.index)
        had, ran = job.forget(ref)
        ran += at - running.started_at
        if running.fails:
            events.append(TaskFailed(ref, attempt, "simulated: the attempt failed"))
            return
        if had + running.tokens < task.output_tokens:
            job.generated[ref], job.ran[ref] = had + running.tokens, ran
            events.append(SliceEnded(ref, attempt, running.tokens))
            return
        if ref in job.asked_at:
            self.request_seconds.append(at - job.asked_at.pop(ref))
        result = TaskResult(ran, task.prompt_tokens, task.output_tokens)
        events.append(TaskFinished(ref, attempt, result))
        job.left[ref.stage] -= 1
        if not job.left[ref.stage]:
            del job.left[ref.stage]
            reveals, skipped = job.unfolding.complete(ref.stage)
            job.learn(reveals)
            events.append(StageExpanded(ref.job, ref.stage, reveals, skipped))

    def _close(self, ref: TaskRef, at: float) -> _Running:
        """Nothing runs for this task any more; its slot time is accounted for."""
        running = self._running.pop(ref)
        self._sequences.pop(running.sequence, None)
        executor = running.command.executor
        self.busy[self._pool_of[executor]] += at - running.started_at
        number = self._jobs[ref.job].number
        if number < self._gantt:
            self.spans.append(Span(number, ref.stage, ref.index, executor, running.started_at, at))
        return running

    def _cancel(self, ref: TaskRef, attempt: int, at: float) -> None:
        running = self._running.get(ref)
        if running is None or running.command.attempt != attempt:
            return  # ended in this very batch, or went down with its engine
        self._close(ref, at)
        engine = self._engine_of.get(running.command.executor)
        if engine is not None and running.sequence:
            self._servers[engine].abort(running.sequence, at)
            self._plan(engine)

    def _lose(self, executor: str, at: float) -> None:
        """Everything on the engine is gone; its server begins anew."""
        engine = self._engine_of[executor]
        for ref in [ref for ref, running in self._running.items() if running.command.executor == executor]:
            self._close(ref, at)
            self._jobs[ref.job].forget(ref)
        for job in self._jobs.values():
            job.prefixes = {key: n for key, n in job.prefixes.items() if key[1] != engine}
        self._servers[engine] = DecodingServer(self.setup.curve, self.setup.engines[engine])
        self._due[engine] = inf

    def _draw(self, ref: TaskRef, attempt: int) -> float:
        return Random(f"{self.setup.seed}/{ref}/{attempt}").random()
