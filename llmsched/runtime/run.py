"""One active job as the service keeps it: its record, its script, and the accounts of its stages."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from llmsched.errors import InvalidInput
from llmsched.model.application import Application
from llmsched.model.events import JobSubmitted, StageExpanded, TaskRef, TaskResult
from llmsched.model.job import Job, JobStatus, Stage, StageState
from llmsched.model.kinds import StageKind
from llmsched.model.records import EventRecord, JobRecord, JobUpdate, StageRecord, Writes
from llmsched.model.spec import StageSpec
from llmsched.model.unfolding import Unfolded
from llmsched.runtime.deadlines import Forecast
from llmsched.runtime.scripts.script import Script
from llmsched.runtime.tracing.context import TraceContext


class StageRun:
    """The tasks of one revealed stage: who ran them, what they cost and what came out."""

    __slots__ = ("executors", "left", "outputs", "results", "spec", "started_at")

    def __init__(self, spec: StageSpec, tasks: int) -> None:
        self.spec = spec
        self.left = tasks
        self.results: list[TaskResult | None] = [None] * tasks
        self.outputs: list[Any] = [None] * tasks
        self.executors: list[str] = [""] * tasks
        self.started_at: float | None = None

    def view(self) -> dict[str, Any]:
        """The stage as clients may see it until its end is committed."""
        return {
            "name": self.spec.name,
            "kind": self.spec.kind.value,
            "state": "waiting" if self.started_at is None and self.left else "running",
            "after": list(self.spec.after),
            "parent": self.spec.parent,
            "pool": self.spec.pool,
            "tasks": len(self.results),
            "running": 0,
            "done": len(self.results) - self.left,
            "started_at": self.started_at,
        }


class JobRun:
    """Turns what happens to a job into the rows and events the store keeps of it.

    `seq` and `position` go on where the store stopped, so that a restart neither repeats nor skips a number.
    """

    __slots__ = (
        "_off_profile",
        "application",
        "ended_at",
        "features",
        "forecast",
        "pads",
        "position",
        "record",
        "script",
        "seq",
        "stages",
        "started_at",
        "trace",
        "unwritten",
    )

    def __init__(
        self,
        record: JobRecord,
        application: Application,
        script: Script,
        *,
        features: Mapping[str, str | int] | None = None,
        seq: int = 0,
        pads: bool = True,
    ) -> None:
        self.record = record
        self.application = application
        self.script = script
        #: What is known of its input.
        self.features: Mapping[str, str | int] = features or {}
        self.seq = seq
        self.position = 0
        self.stages: dict[str, StageRun] = {}
        self.started_at = record.started_at
        #: When the last of its stages ended: it may be found out later that it was the last.
        self.ended_at: float | None = None
        #: Whether it tells of stages that are skipped: in a long chain that says nothing.
        self.pads = pads
        #: All there is to write of it, while that waits for its end; None: everything is written as it happens.
        self.unwritten: Writes | None = None
        #: Where its trace goes on, if its client said so.
        self.trace: TraceContext | None = None
        #: What was said of its deadline when it was accepted.
        self.forecast: Forecast | None = None
        #: What of `script.off_profile` is written.
        self._off_profile = script.off_profile

    # ---------------------------------------------------------------------------------------------- events

    def event(self, type: str, at: float, data: dict[str, Any] | None = None) -> EventRecord:
        self.seq += 1
        return EventRecord(self.record.id, self.seq, type, at, data or {})

    def submission(self) -> EventRecord:
        """Its first event."""
        record = self.record
        data = {"application": record.application, "version": record.version, "class": record.job_class.label}
        return self.event("job.submitted", record.submitted_at, data)

    def unfold(self, unfolded: Unfolded, at: float) -> tuple[list[StageRecord], list[EventRecord]]:
        """Opens accounts for what was revealed; rows and events for what is over by that alone."""
        rows: list[StageRecord] = []
        events: list[EventRecord] = []
        for spec, prompt_tokens, _ in unfolded.reveals:
            self.stages[spec.name] = StageRun(spec, len(prompt_tokens))
        for spec, _, _ in unfolded.reveals:
            if spec.kind is StageKind.DYNAMIC:
                plan = [s.spec.name for s in self.stages.values() if s.spec.parent == spec.name]
                data: dict[str, Any] = {"stage": spec.name, "stages": plan}
                if self.script.off_profile != self._off_profile:
                    data["off_profile"] = list(self.script.off_profile)
                events.append(self.event("stage.expanded", at, data))
                rows += self.close_dynamic(spec.name, at)
        if unfolded.skipped and self.pads:
            events.append(self.event("stage.skipped", at, {"stages": list(unfolded.skipped)}))
            rows += (self._row(self.application[name], "skipped", at) for name in unfolded.skipped)
        return rows, events

    def departed(self) -> list[JobUpdate]:
        """What the record has to say besides, if a plan that was just revealed left the template."""
        if self.script.off_profile == self._off_profile:
            return []
        self._off_profile = self.script.off_profile
        return [JobUpdate(self.record.id, JobStatus.RUNNING, off_profile=self._off_profile)]

    def start(self, ref: TaskRef, executor: str, at: float) -> list[EventRecord]:
        """A task was dispatched; events for the first one of the job and of the stage."""
        stage = self.stages[ref.stage]
        stage.executors[ref.index] = executor
        events = []
        if self.started_at is None:
            self.started_at = at
            events.append(self.event("job.started", at))
        if stage.started_at is None:
            stage.started_at = at
            spec = stage.spec
            data = {"stage": spec.name, "kind": spec.kind.value, "pool": spec.pool, "tasks": len(stage.results)}
            events.append(self.event("stage.started", at, data))
        return events

    def finish_task(self, ref: TaskRef, result: TaskResult) -> bool:
        """Whether this was the last task of its stage."""
        stage = self.stages[ref.stage]
        stage.results[ref.index] = result
        stage.left -= 1
        return stage.left == 0

    def finish_stage(self, name: str, at: float) -> tuple[list[StageRecord], list[EventRecord]]:
        """Row and event of a completed stage."""
        stage = self.stages[name]
        self.ended_at = at
        results = [r for r in stage.results if r is not None]
        data = {
            "stage": name,
            "seconds": round(at - (stage.started_at or at), 6),
            "prompt_tokens": sum(r.prompt_tokens for r in results),
            "output_tokens": sum(r.output_tokens for r in results),
        }
        rows = [self._row(stage.spec, "done", at, stage)]
        return rows, [self.event("stage.completed", at, data)]

    def close_dynamic(self, name: str, at: float) -> list[StageRecord]:
        """The row of a dynamic stage if nothing of its plan is left."""
        if any(s.left for s in self.stages.values() if s.spec.parent == name):
            return []
        return [self._row(self.stages[name].spec, "done", at)]

    def _row(self, spec: StageSpec, state: str, at: float, stage: StageRun | None = None) -> StageRecord:
        self.position += 1
        named = spec.kind is StageKind.REGULAR or spec.parent is not None
        return StageRecord(
            job=self.record.id,
            name=spec.name,
            position=self.position,
            state=state,
            kind=spec.kind,
            after=spec.after,
            parent=spec.parent,
            iteration=spec.iteration,
            pool=spec.pool,
            executors=tuple(stage.executors) if stage else (),
            started_at=stage.started_at if stage else None,
            finished_at=at,
            results=tuple(r for r in stage.results if r is not None) if stage else (),
            tools=tuple(self.script.tool(spec.name, i) for i in range(len(stage.results))) if stage and named else (),
            outputs=list(stage.outputs) if stage and any(o is not None for o in stage.outputs) else None,
        )

    def views(self, job: Job | None) -> dict[str, dict[str, Any]]:
        """Its stages as clients may see them until their ends are committed. job: the scheduler's, while it has one."""
        if job is None:
            return {name: stage.view() for name, stage in self.stages.items()}
        return {stage.name: _view(stage, self.stages.get(stage.name)) for stage in job.stages.values()}

    # --------------------------------------------------------------------------------------------- restoring

    def submitted(self, unfolded: Unfolded) -> JobSubmitted:
        """The event that brings the job before the scheduler."""
        record = self.record
        return JobSubmitted(
            record.id,
            record.number,
            self.application,
            record.submitted_at,
            unfolded.reveals,
            unfolded.skipped,
            record.job_class,
            record.tenant,
            self.features,
            None if record.deadline_s is None else record.submitted_at + record.deadline_s,
        )

    def restore(self, rows: Iterable[StageRecord]) -> Iterable[StageExpanded]:
        """Replays stored stages, in the order they were committed, through the script.

        Raises InvalidInput when a stored output cannot be used any more.
        """
        for row in rows:
            self.position = row.position
            if row.state != "done" or row.kind is StageKind.DYNAMIC:
                continue
            stage = self.stages.get(row.name)
            if stage is None or len(stage.results) != len(row.results):
                raise InvalidInput(f"its stored stage {row.name!r} does not follow from the stages before it")
            stage.left, stage.results, stage.started_at = 0, list(row.results), row.started_at
            stage.executors = list(row.executors)
            stage.outputs = list(row.outputs or stage.outputs)
            unfolded = self.script.complete(row.name, stage.outputs) or Unfolded()
            self._off_profile = self.script.off_profile
            for spec, prompt_tokens, _ in unfolded.reveals:
                self.stages[spec.name] = StageRun(spec, len(prompt_tokens))
            yield StageExpanded(self.record.id, row.name, unfolded.reveals, unfolded.skipped, row.results)


def _view(stage: Stage, run: StageRun | None) -> dict[str, Any]:
    """A stage of an active job as clients may see it; run: its account, if it has one yet."""
    running = sum(1 for ref in stage.job.running if ref.stage == stage.name)
    state = "waiting"
    if stage.state in (StageState.READY, StageState.EXPANDING, StageState.DONE):
        started = running or stage.done_tasks or stage.state is not StageState.READY
        state = "running" if started else "ready"
    return {
        "name": stage.name,
        "kind": stage.kind.value,
        "state": state,
        "after": list(stage.spec.after),
        "parent": stage.spec.parent,
        "pool": stage.pool,
        "tasks": None if stage.tasks is None else len(stage.tasks),
        "running": running,
        "done": stage.done_tasks,
        "started_at": run.started_at if run else None,
    }
