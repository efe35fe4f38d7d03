"""Attempts in flight: each is an asyncio task that calls an engine or a worker and reports exactly once.

An attempt never raises: whatever happened comes out as `TaskFinished`, `TaskFailed` or `SliceEnded`. One that is given
up is aborted and reports nothing, so that news and the scheduler's accounts cannot disagree. What the slices of a task
generated is kept here exactly as long as the scheduler counts it (`Task.generated`): until the task is finished, fails
or is given up, or its job is over.
"""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

from llmsched.errors import InvalidInput
from llmsched.model.events import Dispatch, SliceEnded, TaskFailed, TaskFinished, TaskRef, TaskResult
from llmsched.model.kinds import StageKind
from llmsched.runtime.clock import Clock
from llmsched.runtime.engine import EngineError
from llmsched.runtime.engines import Engines
from llmsched.runtime.relay import relay
from llmsched.runtime.run import JobRun
from llmsched.runtime.scripts.observed import ObservedScript
from llmsched.runtime.scripts.replies import BadReply
from llmsched.runtime.slices import NOTHING, Partial, Slice
from llmsched.runtime.tools.handlers import TaskContext
from llmsched.runtime.tools.workers import WorkerError, WorkerPool
from llmsched.runtime.tracing.context import Tracing, Untraced

log = logging.getLogger(__name__)

#: Reasons of `EngineError` after which the engine cannot have started anything.
NEVER_REACHED = frozenset({"connect", "timeout_connect"})


@dataclass(slots=True)
class Attempt:
    """One dispatched task: who runs it, and since when."""

    run: JobRun
    command: Dispatch
    kind: StageKind
    started_at: float
    queued: float
    task: asyncio.Task[None] | None = None


#: Told how an attempt ended, with the output of a finished one.
Report = Callable[[Attempt, TaskFinished | TaskFailed | SliceEnded, Any], None]


class Attempts:
    """Starts attempts and gives them up.

    report: called once per attempt that was not given up. speed: recorded regular tasks hold a worker for their seconds
    divided by it. task_timeout: seconds of a regular task whose stage names none.
    """

    def __init__(
        self,
        engines: Engines,
        workers: WorkerPool,
        clock: Clock,
        report: Report,
        *,
        speed: float = 1.0,
        task_timeout: float = 600.0,
        tracing: Tracing | None = None,
    ) -> None:
        self._engines = engines
        self._workers = workers
        self._clock = clock
        self._report = report
        self._speed = speed
        self._task_timeout = task_timeout
        self._tracing = tracing or Untraced()
        self._running: dict[TaskRef, Attempt] = {}
        #: What the slices of unfinished tasks generated so far, by job.
        self._partials: dict[str, dict[TaskRef, Partial]] = {}
        #: Part of every request id, so that an engine never sees one again after a restart.
        self._boot = os.urandom(3).hex()

    def __len__(self) -> int:
        return len(self._running)

    def start(self, run: JobRun, command: Dispatch, kind: StageKind, queued: float = 0.0) -> None:
        """queued: seconds since the task was ready."""
        attempt = self._running[command.task] = Attempt(run, command, kind, self._clock.now(), queued)
        attempt.task = asyncio.create_task(self._go(attempt))

    def give_up(self, ref: TaskRef) -> None:
        """Aborts the attempt at a task, if one is in flight; its outcome reaches nobody."""
        attempt = self._running.pop(ref, None)
        if attempt is not None and attempt.task is not None:
            self._keep(ref, NOTHING)
            attempt.task.cancel()
            self._tracing.attempt_ended(ref, None, self._clock.now())

    def give_up_on(self, *, executor: str | None = None, job: str | None = None) -> None:
        """Aborts every attempt on an executor, or of a job."""
        for ref, attempt in list(self._running.items()):
            if ref.job == job or attempt.command.executor == executor:
                self.give_up(ref)
        if job is not None:
            self.forget(job)

    def forget(self, job: str) -> None:
        """Drops what slices of a job generated: it is over."""
        self._partials.pop(job, None)

    def give_up_all(self) -> list[asyncio.Task[None]]:
        """Aborts everything; the asyncio tasks, some of which need a moment to end."""
        ending = [attempt.task for attempt in self._running.values() if attempt.task is not None]
        for ref in list(self._running):
            self.give_up(ref)
        self._partials.clear()
        return ending

    async def _go(self, attempt: Attempt) -> None:
        ref, number = attempt.command.task, attempt.command.attempt
        event: TaskFinished | TaskFailed | SliceEnded
        output: Any = None
        partial = NOTHING
        self._tracing.attempt_began(attempt.run, attempt.command, attempt.kind, attempt.started_at, attempt.queued)
        try:
            if attempt.kind is StageKind.LLM:
                event, output, partial = await self._call_engine(attempt.run, attempt.command)
            else:
                result, output = await self._call_worker(attempt.run, attempt.command)
                event = TaskFinished(ref, number, result)
        except EngineError as error:
            reached = error.reason not in NEVER_REACHED
            event = TaskFailed(
                ref, number, f"{error.reason}: {error}", error.retryable, error.retry_after or 0.0, reached
            )
        except WorkerError as error:
            event = TaskFailed(
                ref, number, f"{error.reason}: {error}", error.retryable, error.retry_after or 0.0, error.reached
            )
        except BadReply as error:
            event = TaskFailed(ref, number, f"bad_output: {error}", error.can_repair)
        except Exception as error:  # a bug of ours, or of a dependency: the job must hear of it, the service goes on
            log.exception("attempt failed unexpectedly", extra={"task": str(ref), "attempt": number})
            event = TaskFailed(ref, number, f"internal: {type(error).__name__}: {error}")
        if self._running.get(ref) is attempt:
            del self._running[ref]
            self._keep(ref, partial)
            self._tracing.attempt_ended(ref, event, self._clock.now())
            self._report(attempt, event, output)

    def _keep(self, ref: TaskRef, partial: Partial) -> None:
        """What the slices of a task generated so far, from now on; NOTHING forgets it."""
        if partial is not NOTHING:
            self._partials.setdefault(ref.job, {})[ref] = partial
        elif (of_job := self._partials.get(ref.job)) is not None:
            of_job.pop(ref, None)
            if not of_job:
                del self._partials[ref.job]

    async def _call_engine(self, run: JobRun, command: Dispatch) -> tuple[TaskFinished | SliceEnded, Any, Partial]:
        """How it ended; the output, if it is whole; else what there is of it so far."""
        ref = command.task
        so_far = self._partials.get(ref.job, {}).get(ref, NOTHING)
        engine = self._engines[command.executor]
        spec = run.stages[ref.stage].spec
        id = f"{ref.job}-{ascii(ref.stage)[1:-1]}-{ref.index}-{command.attempt}-{self._boot}"
        if isinstance(run.script, ObservedScript):
            call = run.script.calls[ref.stage]
            self._tracing.asked(ref, engine, call)
            answered = await relay(
                call, engine, priority=command.priority or 0, request_id=id, retries=spec.retries, clock=self._clock
            )
            run.script.count(answered)
            self._tracing.answered(ref, answered.prompt_tokens, answered.output_tokens)
            return TaskFinished(ref, command.attempt, answered), None, NOTHING
        try:
            request = run.script.llm(ref.stage, ref.index)
        except InvalidInput as error:
            raise EngineError(str(error), reason="template", retryable=False, engine_fault=False) from None
        timeouts = engine.client.timeouts
        if spec.timeout is not None:
            timeouts = replace(timeouts, total=spec.timeout)
        piece = Slice.of(request, so_far, command.max_tokens)
        request = replace(
            piece.request,
            priority=command.priority or 0,
            request_id=id,
            timeouts=timeouts,
        )
        self._tracing.asked(ref, engine, request)
        completion = await engine.complete(request, self._clock)
        self._tracing.answered(
            ref,
            completion.prompt_tokens,
            completion.output_tokens,
            completion.finish_reason,
            completion.first_token_s,
        )
        joined, is_over = piece.join(completion)
        if not is_over:
            return SliceEnded(ref, command.attempt, completion.output_tokens), None, joined
        result = TaskResult(joined.duration, joined.prompt_tokens, joined.output_tokens)
        output = run.script.read(ref.stage, ref.index, joined.text)
        return TaskFinished(ref, command.attempt, result), output, NOTHING

    async def _call_worker(self, run: JobRun, command: Dispatch) -> tuple[TaskResult, Any]:
        ref = command.task
        began = self._clock.now()
        try:
            work = run.script.work(ref.stage, ref.index)
        except InvalidInput as error:
            raise WorkerError(str(error), reason="template", retryable=False) from None
        if isinstance(work, float):
            await self._workers.hold(work / self._speed, pool=run.stages[ref.stage].spec.pool)
            # At another speed what it took here is no reference work, which history and estimators are about.
            return TaskResult(self._clock.now() - began if self._speed == 1.0 else work), None
        spec = run.stages[ref.stage].spec
        key = f"{ref.job}/{ref.stage}/{ref.index}"
        task = replace(
            work,
            timeout=spec.timeout or self._task_timeout,
            pool=spec.pool,
            context=TaskContext(ref.job, ref.stage, ref.index, command.attempt, key),
        )
        output = await self._workers.run(task)
        return TaskResult(self._clock.now() - began), output
