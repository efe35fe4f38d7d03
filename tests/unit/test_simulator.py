"""The simulated world against closed forms: who shares an engine with whom until when, and what trouble costs."""

from __future__ import annotations

import gc
from collections import Counter
from collections.abc import Iterator, Sequence
from itertools import pairwise
from random import Random
from typing import Any

import pytest

from llmsched.catalogue import installed_applications
from llmsched.errors import InvalidInput, UnknownName
from llmsched.model.application import Application
from llmsched.model.events import Batch, Command, Dispatch, Outcome, TaskFailed, TaskFinished, TaskResult
from llmsched.model.job import Job
from llmsched.model.kinds import StageKind
from llmsched.model.latency import GENERIC_7B, LatencyCurve
from llmsched.model.recording import RecordedStage, RecordedTask, Recording
from llmsched.policies.base import Pick, View
from llmsched.policies.fcfs import Fcfs
from llmsched.scheduler import Backoff, Scheduler
from llmsched.simulator import EngineLoss, Finished, Setup, Span, World
from llmsched.workloads import Arrival, Workload
from tests.unit.world import check_consistent

#: A token takes 10 ms alone and 15 ms for two, 20 for three; 1,000 prompt tokens a second.
CURVE = LatencyCurve.affine("test", alone=0.010, growth=0.5, prefill_tokens_per_s=1000)

BACKOFF = Backoff(first=1.0, most=4.0, spread=0.0, max_losses=2)


def application(name: str, *stages: dict[str, Any]) -> Application:
    return Application.parse({"name": name, "stages": list(stages)})


def stage(name: str, *after: str, kind: str = "llm", **more: Any) -> dict[str, Any]:
    return {"name": name, "kind": kind, "after": list(after), **more}


CALL = application("call", stage("ask", max_tasks=10))
TOOL = application("tool", stage("run", kind="regular", max_tasks=10))
#: A call, then a call and a tool at once, then a call.
DIAMOND = application(
    "diamond",
    stage("split"),
    stage("think", "split"),
    stage("look", "split", kind="regular"),
    stage("join", "think", "look"),
)
LOOP = application(
    "loop", {"loop": "try", "max_iterations": 3, "first": 1, "stages": [stage("go")]}, stage("end", "try")
)
APPLICATIONS = {a.name: a for a in (CALL, TOOL, DIAMOND, LOOP)}


def llm(prompt_tokens: int, output_tokens: int) -> RecordedTask:
    return RecordedTask(prompt_tokens, output_tokens)


def seconds(duration: float) -> RecordedTask:
    return RecordedTask(duration=duration)


def call(*tasks: RecordedTask) -> Recording:
    return Recording("call", "call#1", (RecordedStage("ask", StageKind.LLM, (), tasks),))


def tool(*tasks: RecordedTask) -> Recording:
    return Recording("tool", "tool#1", (RecordedStage("run", StageKind.REGULAR, (), tasks),))


DIAMOND_JOB = Recording(
    "diamond",
    "diamond#1",
    (
        RecordedStage("split", StageKind.LLM, (), (llm(500, 100),)),  # 0.5 + 1.0 s
        RecordedStage("think", StageKind.LLM, ("split",), (llm(200, 30),)),  # 0.2 + 0.3 s
        RecordedStage("look", StageKind.REGULAR, ("split",), (seconds(2.0),)),
        RecordedStage("join", StageKind.LLM, ("think", "look"), (llm(0, 50),)),  # 0.5 s
    ),
)


class Watched(Scheduler):
    """A scheduler that remembers what it was told and what it said, and is held to its invariants."""

    def __init__(self, policy: Fcfs | None = None) -> None:
        super().__init__(policy or Fcfs(), backoff=BACKOFF)
        self.batches: list[Batch] = []
        self.commands: list[Command] = []

    def handle(self, batch: Batch) -> list[Command]:
        commands = super().handle(batch)
        check_consistent(self)
        self.batches.append(batch)
        self.commands += commands
        return commands


def world(*jobs: tuple[float, Recording], scheduler: Scheduler | None = None, gantt: int = 0, **setup: Any) -> World:
    arrivals = [Arrival(at, recording) for at, recording in jobs]
    made = Setup(**({"engines": (2,), "workers": {"cpu": 1}, "curve": CURVE} | setup))
    return World(scheduler or Watched(), arrivals, APPLICATIONS, made, gantt=gantt)


def run(*jobs: tuple[float, Recording], **options: Any) -> World:
    return world(*jobs, **options).run()


def times(done: World) -> list[float]:
    """Completion times in order of arrival."""
    return [end.completion_time for end in sorted(done.finished)]


# -------------------------------------------------------------------------------------------------- closed forms


def test_a_job_alone_takes_its_critical_path() -> None:
    done = run((0.0, DIAMOND_JOB), gantt=1)
    assert done.finished == [Finished(0, "diamond", 0.0, pytest.approx(1.5 + 2.0 + 0.5), Outcome.COMPLETED)]
    assert sorted(done.spans) == [
        Span(0, "join", 0, "engine-0", pytest.approx(3.5), pytest.approx(4.0)),
        Span(0, "look", 0, "workers-cpu", pytest.approx(1.5), pytest.approx(3.5)),
        Span(0, "split", 0, "engine-0", 0.0, pytest.approx(1.5)),
        Span(0, "think", 0, "engine-0", pytest.approx(1.5), pytest.approx(2.0)),
    ]
    # 1.5 + 0.5 + 0.5 s of two slots, 2 s of one worker, in 4 s
    assert done.utilisation() == pytest.approx({"llm": 2.5 / 8, "cpu": 2 / 4})


def test_two_calls_on_one_engine_share_its_pace() -> None:
    # together they decode at 15 ms: 100 tokens take 1.5 s, then 100 of the other are left at 10 ms
    assert times(run((0.0, call(llm(0, 100), llm(0, 200))))) == pytest.approx([2.5])
    assert times(run((0.0, call(llm(0, 100))), (0.0, call(llm(0, 200))))) == pytest.approx([1.5, 2.5])


def test_calls_on_two_engines_do_not_slow_each_other() -> None:
    assert times(run((0.0, call(llm(0, 100), llm(0, 200))), engines=(1, 1))) == pytest.approx([2.0])


def test_a_prefill_delays_its_own_call_only() -> None:
    # the second call reads for 1 s while the first decodes its 100 tokens at 10 ms
    assert times(run((0.0, call(llm(0, 100))), (0.0, call(llm(1000, 100))))) == pytest.approx([1.0, 2.0])


def test_workers_take_tasks_in_turn() -> None:
    done = run((0.0, tool(seconds(1.0), seconds(2.0), seconds(3.0))), workers={"cpu": 2})
    assert times(done) == [4.0]  # 1 then 3 on one, 2 on the other
    assert done.busy["cpu"] == 6.0
    assert done.makespan == 4.0


def test_a_loop_ends_where_the_recording_does() -> None:
    stages = [RecordedStage("go_1", StageKind.LLM, (), (llm(0, 10),), iteration=1)]
    stages.append(RecordedStage("end", StageKind.LLM, ("go_1",), (llm(0, 20),)))
    assert times(run((5.0, Recording("loop", "l#1", tuple(stages))))) == pytest.approx([0.3])


def test_a_job_of_nothing_but_instants_is_over_when_it_arrives() -> None:
    assert times(run((1.0, tool(seconds(0.0), seconds(0.0))))) == [0.0]


# ------------------------------------------------------------------------------------------------------- batches


def test_jobs_that_are_over_are_freed_without_the_garbage_collector() -> None:
    """Job, stages and tasks know each other; a collection that looks at everything stops a busy service."""

    def jobs() -> list[Job]:
        return [o for o in gc.get_objects() if isinstance(o, Job)]

    gc.collect()
    others = jobs()
    gc.disable()
    try:
        done = run(*((float(k), call(llm(10, 10))) for k in range(20)))
        assert len(done.finished) == 20
        assert len(jobs()) == len(others) + 1  # the last one, until there is another batch
        done.scheduler.let_go()
        assert len(jobs()) == len(others)
    finally:
        gc.enable()


def test_what_is_due_at_one_moment_is_one_batch() -> None:
    scheduler = Watched()
    run(
        (0.0, tool(seconds(2.0))),
        (0.0, tool(seconds(2.0))),
        (2.0, tool(seconds(1.0))),
        workers={"cpu": 2},
        scheduler=scheduler,
    )
    kinds = [(batch.at, [type(event).__name__ for event in batch.events]) for batch in scheduler.batches]
    assert kinds == [
        (0.0, ["ExecutorJoined", "ExecutorJoined"]),
        (0.0, ["JobSubmitted", "JobSubmitted"]),
        (2.0, ["TaskFinished", "StageExpanded", "TaskFinished", "StageExpanded", "JobSubmitted"]),
        (3.0, ["TaskFinished", "StageExpanded"]),
    ]


def test_the_end_of_a_prefill_is_no_batch() -> None:
    scheduler = Watched()
    run((0.0, call(llm(1000, 100))), scheduler=scheduler)
    assert [batch.at for batch in scheduler.batches] == [0.0, 0.0, pytest.approx(2.0)]


def test_one_decision_is_timed_per_batch_that_asked_the_policy() -> None:
    done = run((0.0, call(llm(0, 100))), (0.5, call(llm(0, 100))))
    assert len(done.decision_seconds) == done.scheduler.stats.decisions == 2
    assert min(done.decision_seconds) > 0


def test_nothing_is_told_ahead_of_its_time() -> None:
    scheduler = Watched()
    run((0.0, DIAMOND_JOB), scheduler=scheduler)
    first = next(batch for batch in scheduler.batches if batch.events and "Submitted" in type(batch.events[0]).__name__)
    assert [reveal.spec.name for reveal in first.events[0].reveals] == ["split"]  # type: ignore[union-attr]
    assert not any(hasattr(event, "recording") for batch in scheduler.batches for event in batch.events)


# ------------------------------------------------------------------------------------------------------- trouble


def test_the_tasks_of_a_lost_engine_go_on_elsewhere() -> None:
    done = run((0.0, call(llm(0, 100))), (0.0, call(llm(0, 100))), engines=(1, 1), losses=(EngineLoss(0.6, 0),))
    # the first call dies at 0.6 s; the only slot left is taken until 1 s
    assert times(done) == pytest.approx([2.0, 1.0])
    assert done.busy["llm"] == pytest.approx(0.6 + 1.0 + 1.0)


def test_an_engine_that_comes_back_begins_anew() -> None:
    done = run((0.0, call(llm(0, 100))), losses=(EngineLoss(0.6, 0, down=5.0),), gantt=1)
    assert times(done) == pytest.approx([6.6])
    assert [(s.started_at, s.ended_at) for s in done.spans] == [(0.0, 0.6), (5.6, pytest.approx(6.6))]


def test_an_engine_lost_too_often_fails_the_job() -> None:
    losses = tuple(EngineLoss(0.5 + k, 0, down=0.25) for k in range(3))
    done = run((0.0, call(llm(0, 100))), losses=losses)
    assert [end.outcome for end in done.finished] == [Outcome.FAILED]  # BACKOFF bears two


def test_jobs_that_nothing_will_finish_are_named() -> None:
    with pytest.raises(InvalidInput, match=r"^2 jobs can never finish: pool 'llm' has no executor left; give it one$"):
        run((0.0, call(llm(0, 100))), (9.0, call(llm(0, 1))), losses=(EngineLoss(0.5, 0),))
    with pytest.raises(InvalidInput, match=r"^1 jobs can never finish: pool 'cpu' has no executor left; give it one$"):
        run((0.0, tool(seconds(1.0))), workers={})


def test_a_failed_attempt_took_half_its_time_and_is_repeated_after_a_while() -> None:
    scheduler = Watched()
    done = run((0.0, call(llm(0, 100))), failures=0.5, seed=seed_where(fails=True, then=False), scheduler=scheduler)
    assert times(done) == pytest.approx([0.5 + 1.0 + 1.0])  # 50 tokens, a back-off of 1 s, 100 tokens
    failed = [event for batch in scheduler.batches for event in batch.events if isinstance(event, TaskFailed)]
    assert [event.attempt for event in failed] == [1]


def test_a_failed_regular_attempt_too() -> None:
    done = run((0.0, tool(seconds(4.0))), failures=0.5, seed=seed_where("run", fails=True, then=False))
    assert times(done) == [2.0 + 1.0 + 4.0]


def seed_where(stage: str = "ask", *, fails: bool, then: bool) -> int:
    """A seed whose first two attempts of the first task fail, or do not, half of the time."""

    def fate(seed: int, attempt: int) -> bool:
        return Random(f"{seed}/job-0/{stage}[0]/{attempt}").random() < 0.5

    return next(s for s in range(100) if (fate(s, 1), fate(s, 2)) == (fails, then))


def test_failures_come_at_the_asked_rate_and_end_jobs_that_have_too_many() -> None:
    jobs = [(float(k), call(*[llm(10, 5)] * 4)) for k in range(300)]
    scheduler = Watched()
    done = run(*jobs, failures=0.3, scheduler=scheduler)
    failed = sum(isinstance(event, TaskFailed) for batch in scheduler.batches for event in batch.events)
    started = scheduler.stats.dispatches
    assert failed / started == pytest.approx(0.3, abs=4 * (0.3 * 0.7 / started) ** 0.5)  # four standard deviations
    outcomes = Counter(end.outcome for end in done.finished)
    # a task is given up after three failures: 1 - (1 - 0.027)^4 = 10.4 % of the jobs
    assert outcomes[Outcome.FAILED] / 300 == pytest.approx(0.104, abs=4 * (0.104 * 0.896 / 300) ** 0.5)
    assert sum(outcomes.values()) == 300


def test_a_failing_job_frees_the_slots_of_its_other_tasks() -> None:
    # the tool of two tasks: one fails for good while the other would hold the worker for an hour
    hour = tool(seconds(2.0), seconds(3600.0))
    done = run((0.0, hour), (0.0, tool(seconds(1.0))), workers={"cpu": 2}, failures=0.5, seed=_doomed())
    ends = sorted(done.finished)
    assert ends[0].outcome is Outcome.FAILED
    assert ends[1].finished_at < 100
    assert not done._running
    assert not done._jobs


def _doomed() -> int:
    """A seed where the first task fails three times, and nothing else fails at its first attempts."""

    def fate(seed: int, ref: str, attempt: int) -> bool:
        return Random(f"{seed}/{ref}/{attempt}").random() < 0.5

    for seed in range(10_000):
        first = all(fate(seed, "job-0/run[0]", attempt) for attempt in (1, 2, 3))
        if first and not fate(seed, "job-0/run[1]", 1) and not fate(seed, "job-1/run[0]", 1):
            return seed
    raise AssertionError


def test_faults_are_the_same_whatever_the_order() -> None:
    """Common random numbers: a fault belongs to an attempt of a task, not to a moment."""
    jobs = [(0.1 * k, call(llm(10, 5 + k), llm(10, 40))) for k in range(40)]

    def faults(policy: Fcfs) -> set[tuple[object, int]]:
        scheduler = Watched(policy)
        run(*jobs, failures=0.2, scheduler=scheduler)
        events = [event for batch in scheduler.batches for event in batch.events]
        return {(event.task, event.attempt) for event in events if isinstance(event, TaskFailed)}

    assert faults(Fcfs()) == faults(Backwards())
    assert faults(Fcfs())


class Backwards(Fcfs):
    """The last job first."""

    def key(self, stage: Any, view: View) -> float:
        return -super().key(stage, view)


# -------------------------------------------------------------------------------------------------------- slices


class Sliced(Fcfs):
    """First come, first served, `tokens` at a time."""

    def __init__(self, tokens: int) -> None:
        super().__init__()
        self._tokens = tokens

    def picks(self, pool: str, view: View) -> Iterator[Pick]:
        return (pick._replace(max_tokens=self._tokens if pool == "llm" else None) for pick in super().picks(pool, view))


def test_slices_of_a_cached_prompt_cost_nothing() -> None:
    whole, sliced = (run((0.0, DIAMOND_JOB), scheduler=Watched(p)) for p in (Fcfs(), Sliced(7)))
    assert times(sliced) == pytest.approx(times(whole))
    assert sliced.busy == pytest.approx(whole.busy)
    assert sliced.scheduler.stats.dispatches > whole.scheduler.stats.dispatches


def test_slices_without_a_cache_read_everything_again() -> None:
    done = run((0.0, call(llm(100, 30))), scheduler=Watched(Sliced(10)), prefix_cache=0.0)
    # 100, 110 and 120 tokens to read, 30 to decode
    assert times(done) == pytest.approx([0.100 + 0.110 + 0.120 + 0.30])


def test_calls_of_a_stage_read_what_they_share_once() -> None:
    job = call(llm(100, 10), llm(100, 10), llm(150, 10))
    # one after the other: 100 tokens to read, then 4 (whole blocks of 16, and the last token is always read), then 54
    done = run((0.0, job), engines=(1,), shared_prefixes=True)
    assert times(done) == pytest.approx([0.100 + 0.004 + 0.054 + 0.30])
    assert times(run((0.0, job), engines=(1,))) == pytest.approx([0.350 + 0.30])


def test_a_call_holds_its_slot_for_what_the_service_adds() -> None:
    done = run((0.0, call(llm(100, 10), llm(100, 10))), engines=(1,), overhead=0.05)
    assert times(done) == pytest.approx([2 * (0.100 + 0.10 + 0.05)])
    assert done.busy["llm"] == pytest.approx(0.5)


def test_the_duration_of_a_sliced_call_is_that_of_all_its_slices() -> None:
    scheduler = Watched(Sliced(10))
    run((0.0, call(llm(100, 30))), scheduler=scheduler, prefix_cache=0.0)
    [result] = [e.result for b in scheduler.batches for e in b.events if isinstance(e, TaskFinished)]
    assert result == TaskResult(pytest.approx(0.100 + 0.110 + 0.120 + 0.30), 100, 30)


def test_slices_conserve_tokens() -> None:
    jobs = [(0.05 * k, call(*[llm(10 * k, 3 + 7 * k)] * 2)) for k in range(20)]
    scheduler = Watched(Sliced(16))
    run(*jobs, scheduler=scheduler)
    sliced: Counter[str] = Counter()
    last: dict[str, int] = {}
    for event in (event for batch in scheduler.batches for event in batch.events):
        if type(event).__name__ == "SliceEnded":
            sliced[str(event.task)] += event.output_tokens  # type: ignore[union-attr]
        elif type(event).__name__ == "TaskFinished":
            last[str(event.task)] = event.result.output_tokens  # type: ignore[union-attr]
    for k, (_, recording) in enumerate(jobs):
        total = recording.stages[0].tasks[0].output_tokens
        for index in range(2):
            name = f"job-{k}/ask[{index}]"
            assert last[name] == total
            assert sliced[name] == (total - 1) // 16 * 16


# -------------------------------------------------------------------------------------------------- conservation


@pytest.fixture(scope="module")
def mixed() -> Sequence[Arrival]:
    return Workload.load("mixed-nodoc").arrivals(60, 0.9, 3)


def simulated(arrivals: Sequence[Arrival], setup: Setup, policy: Fcfs | None = None, gantt: int = 0) -> World:
    return World(Scheduler(policy or Fcfs()), arrivals, installed_applications(), setup, gantt=gantt).run()


def test_slot_time_is_where_the_tasks_were(mixed: Sequence[Arrival]) -> None:
    done = simulated(mixed, Setup((4, 4), {"cpu": 3}), gantt=len(mixed))
    by_executor = Counter[str]()
    for span in done.spans:
        by_executor[span.executor] += span.ended_at - span.started_at  # type: ignore[assignment]
    assert done.busy["llm"] == pytest.approx(by_executor["engine-0"] + by_executor["engine-1"])
    assert done.busy["cpu"] == pytest.approx(by_executor["workers-cpu"])
    assert done.busy["cpu"] == pytest.approx(sum(arrival.recording.regular_seconds for arrival in mixed))
    assert len(done.spans) == sum(arrival.recording.n_tasks for arrival in mixed)
    assert [end.number for end in sorted(done.finished)] == list(range(len(mixed)))


def test_an_engine_never_runs_more_than_it_has_slots(mixed: Sequence[Arrival]) -> None:
    done = simulated(mixed, Setup((3,), {"cpu": 2}), gantt=len(mixed))
    for executor, slots in (("engine-0", 3), ("workers-cpu", 2)):
        own = [span for span in done.spans if span.executor == executor]
        steps = sorted([(s.started_at, 1) for s in own] + [(s.ended_at, -1) for s in own])
        running = most = 0
        for (at, step), (then, _) in pairwise([*steps, (float("inf"), 0)]):
            running += step
            most = max(most, running) if then > at else most
        assert most == slots


def test_decoding_takes_at_least_as_long_as_alone(mixed: Sequence[Arrival]) -> None:
    done = simulated(mixed, Setup((8,), {"cpu": 3}), gantt=len(mixed))
    for span in done.spans:
        task = next(s for s in mixed[span.job].recording.stages if s.name == span.stage).tasks[span.task]
        alone = task.duration or GENERIC_7B.reference(task.prompt_tokens, task.output_tokens)
        assert span.ended_at - span.started_at >= alone - 1e-9


def test_nothing_of_a_job_is_left_when_it_is_over(mixed: Sequence[Arrival]) -> None:
    losses = (EngineLoss(20.0, 0, 10.0), EngineLoss(40.0, 1, 10.0))
    done = simulated(mixed, Setup((4, 4), {"cpu": 3}, failures=0.1, losses=losses), Sliced(64))
    assert (done._jobs, done._running, done._sequences) == ({}, {}, {})
    assert all(server.running == server.waiting == 0 for server in done._servers)
    assert done.scheduler.view.jobs == {}


def test_the_same_world_runs_the_same(mixed: Sequence[Arrival]) -> None:
    setup = Setup((4, 4), {"cpu": 3}, failures=0.1, losses=(EngineLoss(20.0, 0, 10.0),))
    assert simulated(mixed, setup).finished == simulated(mixed, setup).finished


def test_the_end_of_every_job_is_told() -> None:
    told: list[int] = []
    made = world((0.0, call(llm(0, 10))), (0.0, call(llm(0, 10))), (9.0, call(llm(0, 10))))
    made.run(lambda: told.append(len(made.finished)))
    assert told == [2, 2, 3]


# ----------------------------------------------------------------------------------------------------- bad input


@pytest.mark.parametrize(
    ("setup", "sentence"),
    [
        ({"engines": ()}, r"engines have \(\) slots; there must be one engine"),
        ({"engines": (4, 0)}, r"engines have \(4, 0\) slots"),
        ({"workers": {"cpu": -1}}, "pool 'cpu' has -1 workers"),
        ({"failures": 1.0}, "failures is 1; it must be a probability below 1"),
        ({"failures": float("nan")}, "failures is nan"),
        ({"overhead": -1.0}, "overhead is -1"),
        ({"prefix_cache": 1.5}, "prefix_cache is 1.5"),
        ({"losses": (EngineLoss(1.0, 1),)}, "impossible with 1 engines"),
    ],
)
def test_machines_that_cannot_be_are_refused(setup: dict[str, Any], sentence: str) -> None:
    with pytest.raises(InvalidInput, match=sentence):
        Setup(**setup)


def test_a_job_of_an_unknown_application_is_refused() -> None:
    with pytest.raises(UnknownName, match="unknown application 'cal'; did you mean 'call'"):
        run((0.0, Recording("cal", "x#1", call(llm(0, 1)).stages)))


def test_every_dispatch_is_answered_once() -> None:
    scheduler = Watched()
    run(*[(0.2 * k, DIAMOND_JOB) for k in range(10)], scheduler=scheduler)
    dispatched = Counter(c.task for c in scheduler.commands if isinstance(c, Dispatch))
    assert set(dispatched.values()) == {1}
    assert len(dispatched) == 40
    assert not scheduler.stats.stale
