"""Last night under another policy: a store's history, simulated again. For `llmsched whatif`, and for the service.

    python -m llmsched.whatif

reads one line of JSON from standard input (store, policies, since, until, jobs, machines, curve, …: see `Request`) and
answers with lines of JSON: `{"done": n, "of": m}` now and then, in the end `{"result": document}` or `{"error":
sentence}`. Standard input stays open as long as somebody wants the answer; when it ends, so do we.
"""

from __future__ import annotations

import asyncio
import os
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import orjson

from llmsched.errors import InvalidInput, InvalidRecording, LlmschedError, ProfileError
from llmsched.model.application import Application
from llmsched.model.events import JobClass
from llmsched.model.kinds import StageKind
from llmsched.model.latency import LatencyCurve
from llmsched.model.recording import Recording
from llmsched.model.records import StageRecord, StoredJob
from llmsched.model.unfolding import pool_of
from llmsched.profiler import MIN_JOBS, Curves, Knowledge, Profile, fit
from llmsched.runtime.scripts.observed import is_observed
from llmsched.simulator.experiment import Choice, parse_policies
from llmsched.simulator.whatif import Machines, Past, answer
from llmsched.store.export import features_of, trace_of
from llmsched.store.store import Store
from llmsched.workloads import Arrival

#: So much nicer than the service is this.
NICENESS = 15
#: Jobs that are simulated at most, and that profiles learn from.
JOBS = 2_000
#: What is assumed where neither the history nor anybody else says.
SLOTS, WORKERS = 16, 4
#: Seconds between two lines of progress.
TOLD = 0.3


@dataclass(frozen=True, slots=True)
class Request:
    """policies: a comma list, the first being what others are compared with. since, until: unix seconds.

    engines: slots of each; workers: slots by pool. None: as the history tells, `engine_count` engines (None: as many as
    it names) of `engine_slots` slots, and `pool_workers` workers in every pool it names. curve: of engines, as JSON.
    max_wait, tenants: what the service tells every policy. fit_speed: whether the curve is fitted to the history.
    """

    store: str
    policies: str
    since: float
    until: float
    curve: Mapping[str, Any]
    jobs: int = JOBS
    engines: Sequence[int] | None = None
    workers: Mapping[str, int] | None = None
    engine_count: int | None = None
    engine_slots: int = SLOTS
    pool_workers: int = WORKERS
    max_wait: float | None = None
    tenants: Mapping[str, float] = field(default_factory=dict)
    fit_speed: bool = True

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


@dataclass(slots=True)
class History:
    """What a store says of some time. executors: names by pool, of LLM pools only."""

    past: Past
    executors: Mapping[str, set[str]]
    pools: set[str]


async def read(store: Store, since: float, until: float, newest: int, *, learns: bool, curve: LatencyCurve) -> History:
    """The completed jobs that were submitted in a time, and profiles of what was over before it.

    Raises InvalidInput for jobs with calls to several LLM pools.
    """
    stored = [s async for s in store.history(since=since, newest=4 * newest) if since <= s.job.submitted_at < until]
    left_out = max(0, len(stored) - newest)
    stored = sorted(stored[left_out:], key=lambda s: (s.job.submitted_at, s.job.number))
    notes = []
    if left_out:
        notes.append(
            f"only the {newest} newest of {len(stored) + left_out} jobs are simulated; ask for more with --jobs"
        )
    applications, unreadable = await _applications(store, {s.job.application for s in stored}), 0
    arrivals, seconds, executors, pools = [], [], dict[str, set[str]](), set[str]()
    calls, calling = 0, 0.0
    pace, recorded = _Pace(), []
    begin = stored[0].job.submitted_at if stored else since
    for one in stored:
        job, recording = one.job, _recording(one)
        if recording is None or job.application not in applications:
            unreadable += 1
            continue
        recorded.append(job.has_recording)
        arrivals.append(Arrival(job.submitted_at - begin, recording, JobClass(job.job_class), job.tenant))
        seconds.append((job.finished_at or job.submitted_at) - job.submitted_at)
        for stage in recording.stages:
            if stage.kind is not StageKind.DYNAMIC:
                pools.add(pool_of(applications[job.application], stage))
        for row in one.stages:
            if row.kind is StageKind.REGULAR and job.has_recording:
                pace.see(row)
            if row.kind is StageKind.LLM:
                executors.setdefault(row.pool, set()).update(filter(None, row.executors))
                calls += len(row.results)
                calling += sum(r.duration for r in row.results)
    if unreadable:
        notes.append(f"{unreadable} jobs are left out: no trace could hold them, or their application is gone")
    lost = [s for s in (await store.counts()).items() if s[0].value in ("failed", "cancelled") and s[1]]
    if lost:
        said = " and ".join(f"{n} {status.value}" for status, n in lost)
        notes.append(f"jobs that did not complete are not simulated ({said} in the whole store)")
    if any(is_observed(a) for a in applications.values()):
        notes.append("pauses of agents between their calls are not repeated")
    if (factor := pace.factor) < 1:
        notes.append(f"tools of recorded jobs take {factor:.2f} of their seconds, as they did: the service has a speed")
        faster = [replace(a, recording=_faster(a.recording, factor)) for a in arrivals]
        arrivals = [f if is_recorded else a for a, f, is_recorded in zip(arrivals, faster, recorded, strict=True)]
    knowledge = Knowledge(curves=Curves(default=curve))
    if learns:
        profiles, leaks = await _learn(store, since, applications, arrivals, curve)
        for profile in profiles:
            knowledge.put(profile)
        notes.append(_said(profiles, leaks))
    called = calling / calls if calls else None
    past = Past(tuple(arrivals), tuple(seconds), applications, knowledge, called, tuple(notes))
    return History(past, executors, pools)


class _Pace:
    """How much of their recorded seconds tools really take: less than all where a service runs with a speed.

    The history keeps the recorded seconds, not those, but when stages began and ended; stages of one task tell.
    """

    def __init__(self) -> None:
        #: (share that it took, recorded seconds)
        self._seen: list[tuple[float, float]] = []

    def see(self, row: StageRecord) -> None:
        if len(row.results) == 1 and row.started_at is not None and (seconds := row.results[0].duration) > 0:
            self._seen.append(((row.finished_at - row.started_at) / seconds, seconds))

    @property
    def factor(self) -> float:
        """The median over the recorded seconds; above 0.9 it is taken for 1: what calls cost besides is not a speed."""
        half = sum(seconds for _, seconds in self._seen) / 2
        for share, seconds in sorted(self._seen):
            half -= seconds
            if half <= 0:
                return share if 0 < share < 0.9 else 1.0
        return 1.0


def _faster(recording: Recording, factor: float) -> Recording:
    stages = tuple(
        replace(stage, tasks=tuple(replace(t, duration=t.duration * factor) for t in stage.tasks))
        for stage in recording.stages
    )
    return replace(recording, stages=stages)


async def _applications(store: Store, names: set[str]) -> dict[str, Application]:
    """In the newest version that is stored."""
    found = {}
    for name in sorted(names):
        record = await store.application(name)
        if record is not None:
            found[name] = Application.parse(record.definition, version=record.version)
    return found


def _recording(stored: StoredJob) -> Recording | None:
    try:
        return Recording.from_json(trace_of(stored.job, stored.stages, features_of(stored.job, stored.recording)))
    except InvalidRecording:
        return None


async def _learn(
    store: Store,
    since: float,
    applications: Mapping[str, Application],
    arrivals: Sequence[Arrival],
    curve: LatencyCurve,
) -> tuple[list[Profile], list[str]]:
    """Profiles of what was over before `since`; of what is simulated itself where that is too little: leaks."""
    profiles, leaks = [], []
    for name, application in applications.items():
        stored = store.history(application=name, until=since, newest=JOBS)
        before = [recording async for one in stored if (recording := _recording(one)) is not None]
        own = [a.recording for a in arrivals if a.recording.application == name]
        try:
            profiles.append(fit(application, before if len(before) >= MIN_JOBS else own, curves=Curves(default=curve)))
        except ProfileError:
            continue
        if len(before) < MIN_JOBS:
            leaks.append(name)
    return profiles, leaks


def _said(profiles: Sequence[Profile], leaks: Sequence[str]) -> str:
    if not profiles:
        return "policies that learn know only what templates declare: there are too few jobs to learn from"
    if not leaks:
        return "policies that learn know the jobs that were over before that time"
    return (
        f"too few jobs of {', '.join(leaks)} were over before that time: policies that learn know the very jobs they"
        " order, which makes them look a little too good"
    )


def machines_of(request: Request, history: History) -> tuple[Machines, list[str]]:
    """The machines of a request, as the history tells where it says nothing; sentences about what was assumed.

    Raises InvalidInput for jobs with calls to several LLM pools.
    """
    llm = sorted(history.executors)
    if len(llm) > 1:
        raise InvalidInput(f"these jobs call the LLM pools {', '.join(llm)}; only one can be simulated yet")
    pool = llm[0] if llm else "llm"
    notes = []
    engines: Sequence[int]
    if request.engines:
        engines = request.engines
    else:
        named = max(1, len(history.executors.get(pool, ())))
        engines = (request.engine_slots,) * (request.engine_count or named)
        notes.append(
            f"the history names {named} engine{'s' * (named > 1)}, and not how many slots they had: --engines, --slots"
        )
    workers = dict(request.workers or {})
    assumed = sorted(history.pools - {pool} - workers.keys())
    workers |= dict.fromkeys(assumed, request.pool_workers)
    if assumed:
        notes.append(f"nobody says how many workers {', '.join(assumed)} had; {request.pool_workers} are assumed")
    options = {"max_wait": request.max_wait, "tenants": dict(request.tenants)}
    workers = {name: n for name, n in workers.items() if n}
    return Machines(tuple(engines), workers, LatencyCurve.from_json(request.curve), pool, options), notes


def simulate(request: Request, progress: Callable[[int, int], object] = lambda done, of: None) -> dict[str, Any]:
    """The document of `llmsched.simulator.whatif.answer`. Raises InvalidInput, or BackendError (store)."""
    choices: tuple[Choice, ...] = parse_policies(request.policies)
    for choice in choices:
        choice.predicts  # noqa: B018 (raises InvalidInput for an option with a bad value)
    curve = LatencyCurve.from_json(request.curve)

    async def work() -> History:
        async with await Store.open(request.store, create=False) as store:
            learns = any(choice.learns for choice in choices)
            return await read(store, request.since, request.until, request.jobs, learns=learns, curve=curve)

    history = asyncio.run(work())
    machines, notes = machines_of(request, history)
    of = len(history.past.arrivals) * len(choices)
    progress(0, of)
    document = answer(
        history.past, machines, choices, fit_speed=request.fit_speed, progress=lambda done: progress(done, of)
    )
    document["assumptions"][1:1] = notes
    document["settings"] |= {"since": request.since, "until": request.until}
    return document


def main() -> None:
    """Reads the request, answers it, and is gone when nobody waits any more."""
    os.nice(NICENESS)
    request = Request(**orjson.loads(sys.stdin.buffer.readline()))
    threading.Thread(target=_leave_at_end_of_input, daemon=True).start()
    told = 0.0

    def progress(done: int, of: int) -> None:
        nonlocal told
        if time.monotonic() - told > TOLD:
            told = time.monotonic()
            _say({"done": done, "of": of})

    try:
        _say({"result": simulate(request, progress)})
    except LlmschedError as error:
        _say({"error": str(error)})


def _say(line: Mapping[str, Any]) -> None:
    sys.stdout.buffer.write(orjson.dumps(line, option=orjson.OPT_APPEND_NEWLINE))
    sys.stdout.buffer.flush()


def _leave_at_end_of_input() -> None:
    os.read(sys.stdin.fileno(), 1)  # not the buffered stream, whose lock would hang the end of the interpreter
    os._exit(3)


if __name__ == "__main__":
    main()
