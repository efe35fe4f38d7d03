"""What is remembered of jobs, stages, events and applications: rows as values, whatever database holds them.

Times are unix seconds. JSON is what `json.loads` may return. `Writes` is what one transaction writes.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple, TypeAlias

from llmsched.model.events import JobClass, TaskResult
from llmsched.model.job import JobStatus
from llmsched.model.kinds import StageKind

Json: TypeAlias = Any

#: A job in one of these will still change.
UNFINISHED = (JobStatus.QUEUED, JobStatus.RUNNING)


@dataclass(frozen=True, slots=True)
class JobRecord:
    """One job as it was submitted, and how far it came.

    number: submission order, unique. input: of a live job; a recorded one has `has_recording` instead.
    request_digest: of the request that `idempotency_key` belongs to. off_profile: how a recording, or a plan of a live
    job, differs from its template, one sentence each.
    """

    id: str
    number: int
    application: str
    version: int
    submitted_at: float
    status: JobStatus = JobStatus.QUEUED
    job_class: JobClass = JobClass.STANDARD
    tenant: str = ""
    started_at: float | None = None
    finished_at: float | None = None
    input: Json = None
    has_recording: bool = False
    metadata: Mapping[str, Json] = field(default_factory=dict)
    deadline_s: float | None = None
    callback_url: str | None = None
    idempotency_key: str | None = None
    request_digest: str | None = None
    off_profile: tuple[str, ...] = ()
    result: Json = None
    error: str | None = None

    @property
    def is_finished(self) -> bool:
        return self.status not in UNFINISHED


@dataclass(frozen=True, slots=True)
class StageRecord:
    """One stage that is over.

    position: 1, 2, … in the order in which the job's stages were committed. state: "done" or "skipped". results,
    executors and tools: one entry per task. outputs: the tasks' outputs of a live job, None of a recorded one.
    """

    job: str
    name: str
    position: int
    state: str
    kind: StageKind
    finished_at: float
    started_at: float | None = None
    after: tuple[str, ...] = ()
    parent: str | None = None
    iteration: int | None = None
    pool: str = ""
    executors: tuple[str, ...] = ()
    results: tuple[TaskResult, ...] = ()
    tools: tuple[str | None, ...] = ()
    outputs: Json = None


@dataclass(frozen=True, slots=True)
class EventRecord:
    """Something clients are told of a job. seq: 1, 2, … per job."""

    job: str
    seq: int
    type: str
    at: float
    data: Mapping[str, Json] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class JobUpdate:
    """New values of a stored job; None leaves a value as it is."""

    id: str
    status: JobStatus
    started_at: float | None = None
    finished_at: float | None = None
    result: Json = None
    error: str | None = None
    off_profile: tuple[str, ...] | None = None


@dataclass(frozen=True, slots=True)
class CallbackRecord:
    """What is still to be told to a job's `callback_url`, or how that ended.

    host: of the URL. owed_at: since when, the end of the job. due_at: of the next attempt. state: "delivering",
    "delivered" or "given_up". attempts: made so far. error: of the last one that failed.
    """

    job: str
    host: str
    owed_at: float
    due_at: float
    state: str = "delivering"
    attempts: int = 0
    ended_at: float | None = None
    error: str | None = None

    @property
    def is_over(self) -> bool:
        return self.state != "delivering"


class TraceRecord(NamedTuple):
    """The W3C trace context that a job's client sent: its `traceparent` and its `tracestate` (or "")."""

    job: str
    parent: str
    state: str


@dataclass(frozen=True, slots=True)
class ApplicationRecord:
    """One version of an application, as it was registered."""

    name: str
    version: int
    digest: str
    definition: Mapping[str, Json]
    created_at: float


@dataclass(frozen=True, slots=True)
class KeyRecord:
    """An API key that was given out. digest: SHA-256 of the whole key, in hexadecimal; the key itself is not kept."""

    id: str
    tenant: str
    digest: str
    is_admin: bool
    created_at: float
    revoked_at: float | None = None
    note: str = ""


class Usage(NamedTuple):
    """What a tenant used on one day (days since the unix epoch, UTC): of committed stages and of jobs that ended.

    jobs: submitted. seconds: of attempts that were not in vain, on engines (llm) and workers (regular).
    """

    tenant: str
    day: int
    jobs: int = 0
    completed: int = 0
    failed: int = 0
    cancelled: int = 0
    prompt_tokens: int = 0
    output_tokens: int = 0
    llm_seconds: float = 0.0
    regular_seconds: float = 0.0

    def plus(self, other: Usage) -> Usage:
        """Both together, under this one's tenant and day."""
        sums: list[Any] = [a + b for a, b in zip(self[2:], other[2:], strict=True)]
        return Usage(self.tenant, self.day, *sums)


class Leader(NamedTuple):
    """The gateway that leads, or did so last.

    secret: by which gateways know each other. active_jobs: when it renewed its lease.
    """

    epoch: int
    holder: str
    url: str
    secret: str
    active_jobs: int
    is_alive: bool


class StoredJob(NamedTuple):
    """A job with all that was stored of it. recording: the JSON it was submitted with; stages: by position."""

    job: JobRecord
    recording: bytes | None
    stages: list[StageRecord]


@dataclass(slots=True)
class Writes:
    """What one transaction writes, in this order. jobs: new ones, each with the JSON of its recording or None.
    callbacks: new, or instead of what was known of them. usage: what is added to that of the tenants; it comes with at
    least one event. arrivals: of `jobs`, those that the leader has yet to take up. met: jobs that it has.

    >>> a = Writes(events=[EventRecord("j", 1, "queued", 0.0)])
    >>> a.extend(Writes(events=[EventRecord("j", 2, "running", 1.0)]))
    >>> len(a), bool(Writes())
    (2, False)
    """

    jobs: list[tuple[JobRecord, bytes | None]] = field(default_factory=list)
    stages: list[StageRecord] = field(default_factory=list)
    events: list[EventRecord] = field(default_factory=list)
    updates: list[JobUpdate] = field(default_factory=list)
    callbacks: list[CallbackRecord] = field(default_factory=list)
    traces: list[TraceRecord] = field(default_factory=list)
    usage: list[Usage] = field(default_factory=list)
    arrivals: list[str] = field(default_factory=list)
    met: list[str] = field(default_factory=list)

    def extend(self, other: Writes) -> None:
        """Adds everything of `other` behind what is here."""
        self.jobs += other.jobs
        self.stages += other.stages
        self.events += other.events
        self.updates += other.updates
        self.callbacks += other.callbacks
        self.traces += other.traces
        self.usage += other.usage
        self.arrivals += other.arrivals
        self.met += other.met

    def __add__(self, other: Writes) -> Writes:
        total = Writes()
        total.extend(self)
        total.extend(other)
        return total

    def __len__(self) -> int:
        """Rows to write."""
        told = len(self.events) + len(self.updates) + len(self.callbacks) + len(self.usage)
        told += len(self.arrivals) + len(self.met)
        return len(self.jobs) + len(self.stages) + len(self.traces) + told
