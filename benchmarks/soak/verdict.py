"""What a soak has shown, held against what the service promises: every broken promise, in one sentence each.

Pure: `Evidence` in, `Broken` out. Nothing here talks to a process, so that tests can plant a lost job or a leak and see
it found. Times are unix seconds of one machine.
"""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np

from llmsched.model.kinds import StageKind
from llmsched.model.records import EventRecord, JobRecord, StageRecord

OUTCOMES = {"job.completed": "completed", "job.failed": "failed", "job.cancelled": "cancelled"}

#: Seconds around a `kill -9` in which what was not promised yet may be gone: an answer of the door is sent before its
#: job is written, a cancellation is acknowledged before it is committed.
UNPROMISED_S = 10.0
#: Seconds after which a cancellation that was acknowledged has its effect.
LATE_S = 3.0
#: Seconds that a request may be on its way to a busy engine while its stage ends otherwise; what was over before the
#: process that asks was started has no such excuse.
ON_ITS_WAY_S, AGAIN_S = 30.0, 1.0
#: Share of submitted jobs that may fail because faults used up their attempts; any one may, in a short soak.
MOST_FAILED, MOST_FAILED_SHARE = 3, 0.02
#: Why a job may fail where engines and workers are killed: first words of reasons of attempts.
FAULTS = (
    *("connect", "timeout", "timeout_connect", "timeout_first_token", "timeout_silence", "timeout_total"),
    *("broken_stream", "bad_response", "http_500", "http_503", "worker_died"),
)
#: What may be more at rest than before the load: sockets, of workers that had not started and probes of engines; files
#: of a SQLite database, of which each reader of the pool opens three; other files; connections; asyncio tasks.
MOST_FILES = {"socket": 8, "database": 6}
MOST_OTHER_FILES, MOST_CONNECTIONS, MOST_TASKS = 1, 8, 2
#: Growth of resident memory that is flat, in MB a minute, and what shorter windows allow on top as their noise, in MB;
#: in windows of less than so many seconds three times that, because the process is young: it learns its first profiles.
FLAT_MB_PER_MINUTE, NOISE_MB, YOUNG_S = 2.0, 4.0, 90.0
#: What the service says that is no fault of its own when it was killed with calls of agents in flight.
_EXPECTED_ERRORS = {"job abandoned": "its calls ended with the service that they came to"}


class Broken(NamedTuple):
    """A promise that was not kept, and how one can see that."""

    promise: str
    story: str


@dataclass(slots=True)
class Submission:
    """One job as its client knows it. sample: jobs of the same have the same result; result: what it must be.

    kind: recorded or live. cancelled_at: when the service said yes to a cancellation.
    """

    key: str
    kind: str
    application: str
    at: float
    id: str | None = None
    sample: str | None = None
    result: Any = None
    cancelled_at: float | None = None


@dataclass(slots=True)
class Asked:
    """One call through the door. outcome: answered, refused, broken or left (by its client); None: it still waits.

    group: the client's name for a run of an agent. wrong: how the answer was not what was asked for.
    """

    at: float
    group: str | None = None
    job: str | None = None
    outcome: str | None = None
    ended_at: float = 0.0
    wrong: str = ""


@dataclass(frozen=True, slots=True)
class Stored:
    """A job as the store has it in the end."""

    job: JobRecord
    events: Sequence[EventRecord]
    stages: Sequence[StageRecord]


class Fault(NamedTuple):
    """kind: gateway, engine, worker, or the way in which an engine disappointed."""

    at: float
    kind: str
    target: str = ""


@dataclass(frozen=True, slots=True)
class Rest:
    """The service with nothing to do.

    files: open ones by what they are; connections: established; children: by command; tasks: of asyncio, by the
    coroutine that they run.
    """

    files: Mapping[str, int]
    connections: int
    children: Mapping[str, int]
    tasks: Mapping[str, int]
    rss_mb: float = 0.0


#: Number, type and data of an event as a client read it.
Told = tuple[int, str, Mapping[str, Any]]


@dataclass(slots=True)
class Evidence:
    """Everything that was seen. workers: slots for regular tasks, each of which may keep a worker of two processes."""

    submissions: list[Submission] = field(default_factory=list)
    calls: list[Asked] = field(default_factory=list)
    stored: list[Stored] = field(default_factory=list)
    #: Events as followers read them, by job.
    told: dict[str, list[Told]] = field(default_factory=dict)
    #: (status, result, error) of jobs that are over, by job, whenever a client looked.
    looked: dict[str, list[tuple[str, Any, str | None]]] = field(default_factory=dict)
    #: What engines were asked: moment and request id, in order.
    heard: list[tuple[float, str]] = field(default_factory=list)
    faults: list[Fault] = field(default_factory=list)
    #: When the service was killed, and when it was back.
    away: list[tuple[float, float]] = field(default_factory=list)
    #: Resident MB of the service that lived through the last part: (seconds, MB).
    memory: list[tuple[float, float]] = field(default_factory=list)
    before: Rest | None = None
    after: Rest | None = None
    workers: int = 0
    #: Seconds without a call after which a run of an agent is over.
    idle: float = 0.0
    #: Processes that outlived what started them.
    left_over: list[str] = field(default_factory=list)
    #: What the service logged as an error, as message and details, and lines that are no log lines.
    errors: list[tuple[str, str]] = field(default_factory=list)
    #: What clients and the supervisor saw and nobody may see.
    complaints: list[str] = field(default_factory=list)

    def was_away(self, since: float, until: float) -> bool:
        """Whether the service was killed, or not back yet, at some moment between two."""
        return any(killed <= until and back >= since for killed, back in self.away)


def judge(evidence: Evidence, *, wanted: Iterable[str] = ()) -> list[Broken]:
    """Every broken promise. wanted: kinds of work and faults without which the soak has shown nothing."""
    found: list[Broken] = []
    for check in _CHECKS:
        found += check(evidence)
    done = counts(evidence)
    found += (Broken("the soak shows something", f"there was no {w}") for w in wanted if not done.get(w))
    return found


def counts(evidence: Evidence) -> dict[str, int]:
    """How much there was of each kind of work and fault."""
    done: Counter[str] = Counter(f"{s.kind} job" for s in evidence.submissions if s.id)
    done.update(f"call {a.outcome}" for a in evidence.calls)
    done.update(f"{f.kind} fault" for f in evidence.faults)
    done["cancelled job"] = sum(s.cancelled_at is not None for s in evidence.submissions)
    done["job followed"] = len(evidence.told)
    return dict(done)


# ------------------------------------------------------------------------------------------------ jobs


def _accepted_once(evidence: Evidence) -> Iterator[Broken]:
    """Nothing accepted is lost, and nothing is there twice."""
    promise = "every accepted job is there exactly once"
    stored = {s.job.id: s.job for s in evidence.stored}
    of_key: defaultdict[str, list[str]] = defaultdict(list)
    for job in stored.values():
        if job.idempotency_key is not None:
            of_key[job.idempotency_key].append(job.id)
    keys = set()
    for submission in evidence.submissions:
        keys.add(submission.key)
        theirs = of_key.get(submission.key, [])
        if submission.id is None:
            yield Broken(promise, f"submission {submission.key} was never answered")
        elif submission.id not in stored:
            yield Broken(promise, f"job {submission.id} was accepted and is not in the store")
        if len(theirs) > 1:
            yield Broken(promise, f"submission {submission.key} became {len(theirs)} jobs: {', '.join(theirs)}")
        elif submission.id is not None and theirs and theirs != [submission.id]:
            yield Broken(promise, f"submission {submission.key} was answered with {submission.id} and is {theirs[0]}")
    for key in of_key.keys() - keys:
        yield Broken(promise, f"job {of_key[key][0]} has key {key}, which nobody used")
    double = [id for id, n in Counter(s.id for s in evidence.submissions if s.id).items() if n > 1]
    yield from (Broken(promise, f"job {id} was given to two submissions") for id in double)


def _over(evidence: Evidence) -> Iterator[Broken]:
    for stored in evidence.stored:
        job = stored.job
        if not job.is_finished or job.finished_at is None:
            yield Broken("every job is over in the end", f"job {job.id} of {job.application} is {job.status.value}")


def _stories(evidence: Evidence) -> Iterator[Broken]:
    for stored in evidence.stored:
        yield from story(stored)


def story(stored: Stored) -> Iterator[Broken]:
    """What is wrong with the events of one job."""
    job, events = stored.job, stored.events
    numbers = [e.seq for e in events]
    if numbers != list(range(1, len(numbers) + 1)):
        yield Broken("event numbers have no gap and no repeat", f"job {job.id} has events {_shown(numbers)}")
    types = [e.type for e in events]
    ends = [t for t in types if t in OUTCOMES]
    once = "a job begins once and ends once"
    if types[:1] != ["job.submitted"] or types.count("job.submitted") != 1:
        yield Broken(once, f"job {job.id} begins with {types[:3]}")
    if len(ends) != 1 or types[-1:] != ends:
        yield Broken(once, f"job {job.id} has the outcomes {ends}, and its last event is {types[-1:]}")
    elif OUTCOMES[ends[0]] != job.status.value:
        yield Broken(once, f"job {job.id} is {job.status.value} and its last event is {ends[0]}")
    completed = Counter(e.data["stage"] for e in events if e.type == "stage.completed")
    ran = {s.name for s in stored.stages if s.state == "done" and s.kind is not StageKind.DYNAMIC}
    ran_once = "a committed stage ran once"
    for stage, times in completed.items():
        if times > 1:
            yield Broken(ran_once, f"stage {stage} of job {job.id} completed {times} times")
    if ran != set(completed):
        only = sorted(ran ^ set(completed))
        yield Broken(ran_once, f"rows and events of job {job.id} disagree about {only}")
    over: set[str] = set()
    for event in events:
        stage = event.data.get("stage")
        if event.type == "stage.completed":
            over.add(stage)
        elif event.type in ("stage.started", "task.failed") and stage in over:
            yield Broken(ran_once, f"stage {stage} of job {job.id} has {event.type} after its completion")


def _told(evidence: Evidence) -> Iterator[Broken]:
    """Followers, who were cut off and came back, read what is stored, in order."""
    promise = "a stream that was resumed tells every event once"
    stored = {s.job.id: s for s in evidence.stored}
    for id, told in evidence.told.items():
        if id not in stored:
            continue  # which is said elsewhere
        true = [(e.seq, e.type, {"job": e.job, "at": e.at, **e.data}) for e in stored[id].events]
        if told != true[: len(told)]:
            where = next((k for k, (a, b) in enumerate(zip(told, true, strict=False)) if a != b), len(true))
            numbers = [number for number, _, _ in told]
            yield Broken(promise, f"a follower of job {id} read other events from place {where + 1}: {_shown(numbers)}")


def _results(evidence: Evidence) -> Iterator[Broken]:
    promise = "results are right and do not change"
    of_sample: dict[str, tuple[str, Any]] = {}
    stored = {s.job.id: s.job for s in evidence.stored}
    for submission in evidence.submissions:
        job = stored.get(submission.id or "")
        if job is None or job.status.value != "completed":
            continue
        if submission.result is not None and job.result != submission.result:
            yield Broken(promise, f"job {job.id} has the result {job.result}, not {submission.result}")
        if submission.sample is not None:
            first, result = of_sample.setdefault(submission.sample, (job.id, job.result))
            if result != job.result:
                yield Broken(promise, f"jobs {first} and {job.id} of {submission.sample} have different results")
    for id, looks in evidence.looked.items():
        job = stored.get(id)
        last = None if job is None else (job.status.value, job.result, job.error)
        if last is not None and any(look != last for look in looks):
            statuses = [status for status, _, _ in looks]
            yield Broken(promise, f"job {id} was seen over as {statuses}, with another result or error than stored")


def _cancelled(evidence: Evidence) -> Iterator[Broken]:
    """A cancelled job is cancelled, unless it was over at that moment or the service was killed before the commit."""
    stored = {s.job.id: s.job for s in evidence.stored}
    for submission in evidence.submissions:
        job, at = stored.get(submission.id or ""), submission.cancelled_at
        if job is None or job.finished_at is None or at is None or job.status.value == "cancelled":
            continue
        if job.finished_at > at + LATE_S and not evidence.was_away(at - UNPROMISED_S, at + UNPROMISED_S):
            late = job.finished_at - at
            yield Broken(
                "a cancelled job ends as cancelled", f"job {job.id} {job.status.value} {late:.1f} s after its cancel"
            )


def _failures(evidence: Evidence) -> Iterator[Broken]:
    """Jobs fail for the faults that were injected, and rarely: that is what retries are for."""
    promise = "jobs fail only where faults used up their attempts"
    mine = {s.id for s in evidence.submissions}
    failed = [s.job for s in evidence.stored if s.job.id in mine and s.job.status.value == "failed"]
    for job in failed:
        if not excused(job, evidence.faults):
            yield Broken(promise, f"job {job.id} of {job.application} failed: {job.error}")
    most = max(MOST_FAILED, MOST_FAILED_SHARE * len(mine))
    if len(failed) > most:
        yield Broken(promise, f"{len(failed)} of {len(mine)} jobs failed; {most:.0f} may")


def excused(job: JobRecord, faults: Sequence[Fault]) -> bool:
    """Whether a failed job met a fault that explains its reason."""
    words = re.findall(r"[a-z_0-9]+(?=:)", job.error or "")
    met = any(job.submitted_at <= f.at <= (job.finished_at or f.at) and f.kind != "gateway" for f in faults)
    return met and any(word in FAULTS for word in words)


# ------------------------------------------------------------------------------------------------ engines


def _asked_once(evidence: Evidence) -> Iterator[Broken]:
    """No engine heard of a stage, or of a job, after that was over."""
    promise = "work that is over never runs again"
    over = {(row.job, row.name): row.finished_at for s in evidence.stored for row in s.stages if row.state == "done"}
    ended = {s.job.id: s.job.finished_at for s in evidence.stored if s.job.finished_at is not None}
    first: dict[str, float] = {}
    for at, request in evidence.heard:
        job, stage = stage_of(request)
        process = request.rpartition("-")[2]
        end = over.get((job, stage), ended.get(job))
        born = max((killed for killed, _ in evidence.away if killed < first.setdefault(process, at)), default=0.0)
        if end is not None and at > end + (ON_ITS_WAY_S if born <= end else AGAIN_S):
            yield Broken(promise, f"an engine was asked for {request} {at - end:.1f} s after that was over")


def stage_of(request: str) -> tuple[str, str]:
    """Job and stage behind a request id, `job-stage-index-attempt-process`.

    >>> stage_of("job_01-code_gen_0-0-1-a1b2c3")
    ('job_01', 'code_gen_0')
    """
    job, _, stage = request.rsplit("-", 3)[0].partition("-")
    return job, stage


# ------------------------------------------------------------------------------------------------ the door


def _calls(evidence: Evidence) -> Iterator[Broken]:
    """Calls of agents: each of one job, answered whole or not at all."""
    promise = "a call through the door is answered rightly and accounted for"
    stored = {s.job.id: s.job for s in evidence.stored}
    groups: defaultdict[str, list[Asked]] = defaultdict(list)
    alone: list[Asked] = []
    for call in evidence.calls:
        (alone if call.group is None else groups[call.group]).append(call)
        if call.wrong:
            yield Broken(promise, f"a call of job {call.job} got {call.wrong}")
        if call.outcome is None:
            yield Broken(promise, f"a call of job {call.job} was never answered")
        if call.outcome == "broken" and not evidence.was_away(call.at, call.ended_at):
            yield Broken(promise, f"a call of job {call.job} broke off, and the service was there")
        job = stored.get(call.job or "")
        is_excused = evidence.was_away(call.at, call.ended_at + UNPROMISED_S)
        if call.outcome == "answered" and not is_excused:
            if call.job is None or job is None:
                yield Broken(promise, f"a call was answered as job {call.job}, which is not in the store")
            elif call.group is None and job.status.value != "completed":
                yield Broken(promise, f"job {job.id} was answered and is {job.status.value}")
    shared = [id for id, n in Counter(c.job for c in alone if c.job).items() if n > 1]
    yield from (Broken(promise, f"job {id} was given to two calls that belong to none") for id in shared)
    mine = {s.id for s in evidence.submissions}
    observed = [job for id, job in stored.items() if id not in mine and job.idempotency_key is None]
    lonely = [job for job in observed if "group" not in job.metadata]
    if len(lonely) > len(alone):
        yield Broken(promise, f"{len(alone)} calls became {len(lonely)} jobs")
    of_group: defaultdict[str, list[JobRecord]] = defaultdict(list)
    for job in observed:
        if "group" in job.metadata:
            of_group[job.metadata["group"]].append(job)
    for name in of_group.keys() - groups.keys():
        yield Broken(promise, f"job {of_group[name][0].id} is of group {name}, which nobody called")
    for name, calls in groups.items():
        yield from _group(evidence, name, calls, of_group[name])


def _group(evidence: Evidence, name: str, calls: Sequence[Asked], jobs: Sequence[JobRecord]) -> Iterator[Broken]:
    """A run of an agent is one job, unless the service was killed before that was over: without a last call, later.

    A call that its client left at once may never come, or after the next one on another connection, which may have been
    the last: then it is a job of its own.
    """
    promise = "calls of one group are one job"
    left = sum(call.outcome == "left" for call in calls)
    if evidence.was_away(calls[0].at, calls[-1].ended_at + evidence.idle + UNPROMISED_S):
        if len(jobs) > len(calls):
            yield Broken(promise, f"{len(calls)} calls of group {name} became {len(jobs)} jobs")
        return
    told = ", ".join(str(call.outcome) for call in calls)
    if not min(1, len(calls) - left) <= len(jobs) <= max(1, left + (left < len(calls))):
        yield Broken(promise, f"group {name} ({told}) is {len(jobs)} jobs, and the service was not killed meanwhile")
        return
    yield from (
        Broken(promise, f"job {job.id} of calls that were {told} is {job.status.value}")
        for job in jobs
        if job.status.value != "completed"
    )
    counted = sum((job.result or {}).get("calls", 0) for job in jobs)
    if not len(calls) - left <= counted <= len(calls):
        yield Broken(promise, f"{len(calls)} calls of group {name} ({told}) are {counted} in its jobs")


# ------------------------------------------------------------------------------------------------ the process


def _rest(evidence: Evidence) -> Iterator[Broken]:
    """At rest again, the service holds no more than before."""
    before, after = evidence.before, evidence.after
    promise = "nothing leaks"
    if before is None or after is None:
        yield Broken(promise, "the service never came to rest")
        return
    for kind, now in after.files.items():
        was = before.files.get(kind, 0)
        if now > was + MOST_FILES.get(kind, MOST_OTHER_FILES):
            yield Broken(promise, f"{now} open files of kind {kind} at rest, {was} before the load")
    for what, most, was, now in (
        ("connections", MOST_CONNECTIONS, before.connections, after.connections),
        ("asyncio tasks", MOST_TASKS, sum(before.tasks.values()), sum(after.tasks.values())),
    ):
        if now > was + most:
            more = f": {_grown(before.tasks, after.tasks)}" if what == "asyncio tasks" else ""
            yield Broken(promise, f"{now} {what} at rest, {was} before the load{more}")
    for command, count in after.children.items():
        if count > (evidence.workers if command in ("keeper", "runner") else 0):
            yield Broken(promise, f"{count} child processes '{command}' at rest")


def _grown(before: Mapping[str, int], after: Mapping[str, int]) -> str:
    grown = {name: (before.get(name, 0), n) for name, n in after.items() if n > before.get(name, 0)}
    return ", ".join(f"{name} {was} -> {n}" for name, (was, n) in sorted(grown.items()))


def _memory(evidence: Evidence) -> Iterator[Broken]:
    if len(evidence.memory) < 10:
        yield Broken("memory is flat", f"there are {len(evidence.memory)} samples of it; run the soak longer")
        return
    slope, most = growth(evidence.memory), flat(evidence.memory)
    if slope > most:
        yield Broken("memory is flat", f"the service grew by {slope:.2f} MB a minute; {most:.2f} may be noise")


def growth(memory: Sequence[tuple[float, float]]) -> float:
    """MB a minute: the median of the slopes between all samples (Theil and Sen), which a single step does not move.

    >>> growth([(0.0, 100.0), (30.0, 101.0), (60.0, 102.0)])
    2.0
    """
    thin = memory[:: max(1, len(memory) // 300)]
    at, mb = np.array(thin).T
    first, second = np.triu_indices(len(at), 1)
    return float(np.median((mb[second] - mb[first]) / (at[second] - at[first]))) * 60


def flat(memory: Sequence[tuple[float, float]]) -> float:
    """The growth in MB a minute that still counts as none in a window of this length."""
    window = memory[-1][0] - memory[0][0]
    return FLAT_MB_PER_MINUTE + NOISE_MB * (1 if window >= YOUNG_S else 3) * 60 / window


def _left_over(evidence: Evidence) -> Iterator[Broken]:
    yield from (Broken("what the service started ends with it", line) for line in evidence.left_over)


def _errors(evidence: Evidence) -> Iterator[Broken]:
    for message, details in evidence.errors:
        if not (message in _EXPECTED_ERRORS and _EXPECTED_ERRORS[message] in details):
            yield Broken("the log has no error that no fault explains", f"{message} {details}"[:600])


def _complaints(evidence: Evidence) -> Iterator[Broken]:
    yield from (Broken("clients get answers", complaint) for complaint in evidence.complaints)


_CHECKS = (
    *(_accepted_once, _over, _stories, _told, _results, _cancelled, _failures),
    *(_asked_once, _calls, _rest, _memory, _left_over, _errors, _complaints),
)


def _shown(numbers: Sequence[int]) -> str:
    """The first numbers that do not follow from the one before, in their surroundings."""
    wrong = next((k for k, (a, b) in enumerate(zip(numbers, range(1, len(numbers) + 1), strict=True)) if a != b), 0)
    return f"… {list(numbers[max(0, wrong - 2) : wrong + 4])} … of {len(numbers)}"
