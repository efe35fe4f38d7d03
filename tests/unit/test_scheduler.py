"""The scheduler's decisions, one at a time: events in, whole lists of commands out."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import replace
from random import Random
from typing import Any

import pytest

from llmsched.errors import InvalidTransition
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
    Reveal,
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
from llmsched.model.job import JobStatus, StageState, TaskState
from llmsched.model.kinds import StageKind
from llmsched.model.spec import StageSpec
from llmsched.policies import make_policy
from llmsched.policies.base import Change, Pick, Policy, View
from llmsched.policies.fcfs import Fcfs
from llmsched.policies.sjf import Sjf
from llmsched.scheduler import Backoff, Scheduler
from tests.unit.world import check_consistent


def application(*stages: dict[str, Any], name: str = "app") -> Application:
    return Application.parse({"name": name, "stages": list(stages)})


def stage(name: str, *after: str, kind: str = "llm", **more: Any) -> dict[str, Any]:
    return {"name": name, "kind": kind, "after": list(after), **more}


ONE = application(stage("a", max_tasks=10))
PAIR = application(stage("a", max_tasks=10), stage("b", "a"))
LOOP = application(
    stage("ask"),
    {"loop": "again", "max_iterations": 3, "first": 1, "after": ["ask"], "stages": [stage("try")]},
    stage("tell", "again"),
)
PLAN = application(
    stage("plan"),
    stage("tools", "plan", kind="dynamic", planner="plan", candidates=["search"]),
    stage("join", "tools"),
)

#: No jitter, so that every delay in a test can be read off: 1, 2, 4, 4, … seconds.
BACKOFF = Backoff(first=1.0, most=4.0, spread=0.0, max_losses=2)
RESULT = TaskResult(1.0)


class Bench:
    """A scheduler and the shortest way to talk to it. Checks after every batch that its state holds together."""

    def __init__(self, policy: Policy | None = None, backoff: Backoff = BACKOFF) -> None:
        self.scheduler = Scheduler(policy or Fcfs(), backoff=backoff)
        self._jobs = 0

    def at(self, at: float, *events: Event) -> list[Command]:
        commands = self.scheduler.handle(Batch(at, events))
        check_consistent(self.scheduler)
        return commands

    def state(self, stage: str) -> StageState:
        job, name = stage.split("/")
        return self.scheduler.view.jobs[job].stages[name].state

    def submit(
        self,
        job: str,
        template: Application = ONE,
        *,
        arrived_at: float | None = None,
        job_class: JobClass = JobClass.STANDARD,
        skipped: tuple[str, ...] = (),
        **stages: int,
    ) -> JobSubmitted:
        """stages: the revealed ones with their numbers of tasks; default: the first with one."""
        number, self._jobs = self._jobs, self._jobs + 1
        arrival = float(number) if arrived_at is None else arrived_at
        reveals = reveal(template, **(stages or {template.stages[0].name: 1}))
        return JobSubmitted(job, number, template, arrival, reveals, skipped, job_class)


@pytest.fixture
def bench() -> Iterator[Bench]:
    bench = Bench()
    yield bench
    check_consistent(bench.scheduler)


def reveal(template: Application, **stages: int) -> tuple[Reveal, ...]:
    return tuple(Reveal(template[name], (0,) * tasks) for name, tasks in stages.items())


def tool(name: str, *after: str, tasks: int = 1) -> Reveal:
    """A stage a plan asked for, in the place of `tools`."""
    return Reveal(StageSpec(name, StageKind.REGULAR, after=after, pool="cpu", parent="tools"), (0,) * tasks)


def ref(task: str) -> TaskRef:
    job, stage, index = task.split("/")
    return TaskRef(job, stage, int(index))


def engine(name: str, slots: int = 1) -> ExecutorJoined:
    return ExecutorJoined(name, "llm", slots)


def worker(name: str, slots: int = 1) -> ExecutorJoined:
    return ExecutorJoined(name, "cpu", slots)


def run(task: str, executor: str, attempt: int = 1) -> Dispatch:
    return Dispatch(ref(task), attempt, executor)


def stop(task: str, executor: str, attempt: int = 1) -> CancelTask:
    return CancelTask(ref(task), attempt, executor)


def done(task: str, attempt: int = 1) -> TaskFinished:
    return TaskFinished(ref(task), attempt, RESULT)


def unreached(task: str, attempt: int = 1) -> TaskFailed:
    return TaskFailed(ref(task), attempt, "connect: nobody listens", reached=False)


def failed(task: str, attempt: int = 1, **more: Any) -> TaskFailed:
    return TaskFailed(ref(task), attempt, "timeout: no answer", **more)


def expanded(
    stage: str, reveals: Iterable[Reveal] = (), skipped: tuple[str, ...] = (), results: tuple[TaskResult, ...] = ()
) -> StageExpanded:
    job, name = stage.split("/")
    return StageExpanded(job, name, tuple(reveals), skipped, results)


def completed(job: str) -> FinishJob:
    return FinishJob(job, Outcome.COMPLETED)


def ended_badly(job: str, reason: str) -> FinishJob:
    return FinishJob(job, Outcome.FAILED, reason)


# ------------------------------------------------------------------------------------------------------ order


def test_nothing_happens_without_events(bench: Bench) -> None:
    assert bench.at(0) == []
    assert bench.at(1, Wakeup()) == []
    assert bench.scheduler.next_wakeup() is None


def test_jobs_are_served_in_order_of_arrival(bench: Bench) -> None:
    bench.at(0, bench.submit("late", arrived_at=9), bench.submit("early", arrived_at=3))

    assert bench.at(10, engine("e", 2)) == [run("early/a/0", "e"), run("late/a/0", "e")]


def test_jobs_that_arrived_together_are_served_in_order_of_submission(bench: Bench) -> None:
    bench.at(0, *(bench.submit(job, arrived_at=0, a=1) for job in ("z", "y", "x")))

    assert bench.at(1, engine("e", 3)) == [run("z/a/0", "e"), run("y/a/0", "e"), run("x/a/0", "e")]


def test_a_job_is_served_as_a_whole_before_the_next(bench: Bench) -> None:
    template = application(stage("a"), stage("b"))
    bench.at(0, *(bench.submit(job, template, arrived_at=0, a=1, b=1) for job in ("z", "y")))

    assert bench.at(0, engine("e", 3)) == [run("z/a/0", "e"), run("z/b/0", "e"), run("y/a/0", "e")]


def test_a_job_is_served_in_topological_order_and_by_task(bench: Bench) -> None:
    template = application(stage("a", max_tasks=2), stage("b", max_tasks=2))
    bench.at(0, bench.submit("j", template, b=2, a=2))

    assert bench.at(0, engine("e", 4)) == [run(f"j/{t}", "e") for t in ("a/0", "a/1", "b/0", "b/1")]


def test_sjf_serves_the_application_with_the_least_declared_work() -> None:
    long = application(stage("a", expected={"output_tokens": 900}), name="long")
    short = application(stage("a", expected={"output_tokens": 100}), name="short")
    bench = Bench(Sjf())
    bench.at(
        0, bench.submit("l1", long), bench.submit("s1", short), bench.submit("l2", long), bench.submit("s2", short)
    )

    assert bench.at(1, engine("e", 3)) == [run("s1/a/0", "e"), run("s2/a/0", "e"), run("l1/a/0", "e")]


def test_a_better_job_of_the_same_batch_gets_the_slot_that_became_free(bench: Bench) -> None:
    bench.at(0, engine("e"), bench.submit("first", arrived_at=5))
    bench.at(1, bench.submit("second", arrived_at=6))

    better = bench.submit("better", arrived_at=1)
    assert bench.at(7, done("first/a/0"), expanded("first/a"), better) == [completed("first"), run("better/a/0", "e")]


def test_an_earlier_class_is_always_preferred(bench: Bench) -> None:
    jobs = [bench.submit(c.label, job_class=c, a=2) for c in reversed(JobClass)]
    bench.at(0, *jobs)

    assert bench.at(9, engine("e", 5)) == [
        run("interactive/a/0", "e"),
        run("interactive/a/1", "e"),
        run("standard/a/0", "e"),
        run("standard/a/1", "e"),
        run("batch/a/0", "e"),
    ]


class NewestFirst:
    """A policy that knows nothing of classes, and wishes for things."""

    keeps_classes = False

    def __init__(self, **wishes: Any) -> None:
        self.begun = 0
        self.wishes = wishes

    def on(self, change: Change, view: View) -> None:
        pass

    def begin(self, view: View) -> None:
        self.begun += 1

    def picks(self, pool: str, view: View) -> Iterator[Pick]:
        for ready in reversed(list(view.ready_stages(pool))):
            for index in ready.ready:
                assert ready.tasks
                yield Pick(ready.tasks[index], **self.wishes)


def test_classes_are_kept_apart_for_policies_that_do_not() -> None:
    bench = Bench(NewestFirst())
    classes = [JobClass.INTERACTIVE, JobClass.BATCH, JobClass.INTERACTIVE, JobClass.BATCH]
    bench.at(0, *(bench.submit(f"j{i}", job_class=c) for i, c in enumerate(classes)))

    assert bench.at(1, engine("e", 3)) == [run("j2/a/0", "e"), run("j0/a/0", "e"), run("j3/a/0", "e")]


def test_the_policy_is_asked_only_when_something_can_be_decided() -> None:
    policy = NewestFirst()
    bench = Bench(policy)

    bench.at(0, engine("e"))  # a slot and nothing to run
    bench.at(1, bench.submit("j", a=2))  # both
    bench.at(2, bench.submit("k"))  # something to run and no slot
    bench.at(3, done("j/a/0"))  # both

    assert policy.begun == bench.scheduler.stats.decisions == 2
    assert bench.scheduler.stats.batches == 4
    assert bench.scheduler.stats.dispatches == 2


def test_another_policy_can_take_over_at_any_time(bench: Bench) -> None:
    long = application(stage("a", max_tasks=3, expected={"output_tokens": 900}), name="long")
    short = application(stage("a", expected={"output_tokens": 100}), name="short")
    bench.at(0, engine("e"), bench.submit("l", long, a=3), bench.submit("s", short))

    bench.scheduler.use_policy(make_policy("sjf"))

    assert bench.at(1, done("l/a/0")) == [run("s/a/0", "e")]
    assert bench.at(2, done("s/a/0"), expanded("s/a")) == [completed("s"), run("l/a/1", "e")]
    assert bench.at(3, JobCancelled("l")) == [stop("l/a/1", "e"), FinishJob("l", Outcome.CANCELLED, "cancelled")]


# -------------------------------------------------------------------------------------------------- placement


def test_tasks_go_to_the_executor_with_the_fewest_running_ones(bench: Bench) -> None:
    bench.at(0, engine("x", 4), bench.submit("j", a=2))

    assert bench.at(1, engine("y", 4), bench.submit("k", a=4)) == [
        run("k/a/0", "y"),
        run("k/a/1", "y"),
        run("k/a/2", "x"),
        run("k/a/3", "y"),
    ]


def test_ties_go_to_the_executor_that_joined_first(bench: Bench) -> None:
    bench.at(0, engine("a"), engine("z"), engine("m"))
    bench.at(1, ExecutorLost("a"))
    bench.at(2, engine("a"))

    assert bench.at(3, bench.submit("j", a=3)) == [run("j/a/0", "z"), run("j/a/1", "m"), run("j/a/2", "a")]


def test_pools_do_not_share_slots(bench: Bench) -> None:
    template = application(stage("a", max_tasks=3), stage("b", kind="regular", max_tasks=3), stage("c", model="large"))
    bench.at(0, engine("e"), worker("w", 2))

    assert bench.at(1, bench.submit("j", template, a=3, b=3, c=1)) == [
        run("j/a/0", "e"),
        run("j/b/0", "w"),
        run("j/b/1", "w"),
    ]
    assert bench.at(2, ExecutorJoined("big", "large", 1)) == [run("j/c/0", "big")]


def test_a_wish_for_an_engine_is_honoured_while_it_has_a_slot() -> None:
    bench = Bench(NewestFirst(engine="y", max_tokens=7, priority=3))
    bench.at(0, engine("x", 2), engine("y", 1))

    assert bench.at(1, bench.submit("j", a=2)) == [
        Dispatch(ref("j/a/0"), 1, "y", max_tokens=7, priority=3),
        Dispatch(ref("j/a/1"), 1, "x", max_tokens=7, priority=3),
    ]


def test_a_wish_for_an_engine_of_another_pool_is_ignored() -> None:
    bench = Bench(NewestFirst(engine="w"))
    bench.at(0, engine("x"), worker("w"))

    assert bench.at(1, bench.submit("j")) == [run("j/a/0", "x")]


def test_draining_executors_finish_what_they_run_and_get_nothing_new(bench: Bench) -> None:
    bench.at(0, engine("e", 2), bench.submit("j", a=3))

    assert bench.at(1, engine("e", 0)) == []
    assert bench.at(2, done("j/a/0")) == []
    assert bench.at(3, done("j/a/1"), engine("new")) == [run("j/a/2", "new")]


def test_executors_may_lose_and_gain_slots(bench: Bench) -> None:
    bench.at(0, engine("e", 2), bench.submit("j", a=5))

    assert bench.at(1, engine("e", 1)) == []
    assert bench.at(2, done("j/a/0")) == []  # one runs, one slot
    assert bench.at(3, done("j/a/1")) == [run("j/a/2", "e")]
    assert bench.at(4, engine("e", 3)) == [run("j/a/3", "e"), run("j/a/4", "e")]


def test_jobs_wait_for_the_first_executor(bench: Bench) -> None:
    job = bench.submit("j")

    assert bench.at(0, job) == []
    assert [j.status for j in bench.scheduler.view.jobs.values()] == [JobStatus.QUEUED]
    assert bench.at(5, engine("e")) == [run("j/a/0", "e")]
    assert [j.status for j in bench.scheduler.view.jobs.values()] == [JobStatus.RUNNING]


# -------------------------------------------------------------------------------------------- failed attempts


def test_a_failed_attempt_is_repeated_elsewhere_after_its_back_off(bench: Bench) -> None:
    bench.at(0, engine("bad"), engine("good"), bench.submit("j"))

    assert bench.at(5, failed("j/a/0")) == []
    assert bench.scheduler.next_wakeup() == 6.0
    assert bench.at(5.9, Wakeup()) == []
    assert bench.at(6.0, Wakeup()) == [run("j/a/0", "good", attempt=2)]
    assert bench.scheduler.next_wakeup() is None
    assert bench.scheduler.stats.retries == 1


def test_the_executor_of_the_failure_is_used_when_no_other_has_a_slot(bench: Bench) -> None:
    bench.at(0, engine("bad"), engine("good"), bench.submit("j"), bench.submit("k"))
    bench.at(1, failed("j/a/0"))

    assert bench.at(2, Wakeup()) == [run("j/a/0", "bad", attempt=2)]


def test_the_executor_of_the_failure_is_avoided_however_idle_it_is(bench: Bench) -> None:
    bench.at(0, engine("bad", 9), bench.submit("j"))
    bench.at(1, failed("j/a/0"), engine("good", 9))
    bench.at(1.5, engine("bad", 0), bench.submit("k", a=2))  # two on the good one

    assert bench.at(2, engine("bad", 9)) == [run("j/a/0", "good", attempt=2)]


def test_a_batch_of_any_kind_repeats_what_is_due(bench: Bench) -> None:
    bench.at(0, engine("e"), bench.submit("j"))
    bench.at(1, failed("j/a/0"))

    assert bench.at(50, JobCancelled("nobody")) == [run("j/a/0", "e", attempt=2)]


def test_a_slot_is_not_kept_for_a_task_that_waits_out_its_back_off(bench: Bench) -> None:
    bench.at(0, engine("e"), bench.submit("j"), bench.submit("k"))

    assert bench.at(1, failed("j/a/0")) == [run("k/a/0", "e")]
    assert bench.at(2, Wakeup()) == []
    assert bench.at(3, done("k/a/0"), expanded("k/a")) == [completed("k"), run("j/a/0", "e", attempt=2)]


def test_the_back_off_doubles_up_to_its_bound() -> None:
    bench = Bench()
    template = application(stage("a", retries=4))
    bench.at(0, engine("e"), bench.submit("j", template))

    delays = []
    for attempt in range(1, 5):
        bench.at(100 * attempt, failed("j/a/0", attempt))
        wakeup = bench.scheduler.next_wakeup()
        assert wakeup is not None
        delays.append(wakeup - 100 * attempt)
        assert bench.at(wakeup, Wakeup()) == [run("j/a/0", "e", attempt + 1)]

    assert delays == [1, 2, 4, 4]


@pytest.mark.parametrize(("asked", "delay"), [(0.5, 1), (3.0, 3), (1e9, 4), (float("nan"), 4)])
def test_a_longer_wait_is_granted_up_to_the_bound(bench: Bench, asked: float, delay: float) -> None:
    bench.at(0, engine("e"), bench.submit("j"))
    bench.at(0, failed("j/a/0", retry_after=asked))

    assert bench.scheduler.next_wakeup() == delay


def test_jitter_stays_in_its_range_and_comes_from_the_seed() -> None:
    backoff = Backoff(first=1.0, most=30.0, spread=0.5)
    delays = [backoff.delay(3, Random(seed)) for seed in range(200)]

    assert all(3.0 <= delay <= 5.0 for delay in delays)  # 1 s x 2 x 2, plus or minus a quarter
    assert max(delays) - min(delays) > 1.5
    assert delays == [backoff.delay(3, Random(seed)) for seed in range(200)]


def test_a_job_fails_when_its_attempts_are_used_up(bench: Bench) -> None:
    template = application(stage("a", max_tasks=3, retries=1), stage("b", kind="regular"))
    bench.at(0, engine("e", 2), worker("w"), bench.submit("j", template, a=3, b=1), bench.submit("next"))
    bench.at(1, failed("j/a/0"))
    bench.at(2, Wakeup())

    assert bench.at(3, done("j/a/1")) == [run("j/a/0", "e", attempt=2)]
    assert bench.at(4, failed("j/a/0", 2)) == [
        stop("j/b/0", "w"),
        stop("j/a/2", "e"),
        ended_badly("j", "task a[0] failed 2 times, last: timeout: no answer"),
        run("next/a/0", "e"),
    ]


def test_a_job_fails_at_once_when_no_retry_can_help(bench: Bench) -> None:
    bench.at(0, engine("e", 2), bench.submit("j", a=3))

    assert bench.at(1, failed("j/a/1", retryable=False)) == [
        stop("j/a/0", "e"),
        ended_badly("j", "task a[1]: timeout: no answer"),
    ]
    assert bench.scheduler.next_wakeup() is None
    assert not bench.scheduler.view.jobs


def test_failures_are_counted_per_task(bench: Bench) -> None:
    template = application(stage("a", max_tasks=2, retries=1))
    bench.at(0, engine("e", 2), bench.submit("j", template, a=2))

    bench.at(1, failed("j/a/0"), failed("j/a/1"))
    assert bench.at(2, Wakeup()) == [run("j/a/0", "e", 2), run("j/a/1", "e", 2)]


def test_the_next_wakeup_is_the_earliest_of_a_job_that_still_exists(bench: Bench) -> None:
    bench.at(0, engine("e", 3), *(bench.submit(job) for job in ("x", "y", "z")))
    bench.at(1, failed("x/a/0"))
    bench.at(1, failed("y/a/0", retry_after=4))
    bench.at(1, failed("z/a/0", retry_after=2))

    assert bench.scheduler.next_wakeup() == 2.0
    bench.at(1, JobCancelled("x"))
    assert bench.scheduler.next_wakeup() == 3.0
    bench.at(1, JobCancelled("z"))
    assert bench.scheduler.next_wakeup() == 5.0
    bench.at(1, JobCancelled("y"))
    assert bench.scheduler.next_wakeup() is None


def test_a_new_job_of_an_old_name_does_not_inherit_its_back_off(bench: Bench) -> None:
    bench.at(0, engine("e", 2), bench.submit("j", a=2))
    bench.at(1, failed("j/a/0"), JobCancelled("j"))
    bench.at(1, bench.submit("j", a=2))

    assert bench.at(2, Wakeup()) == []
    assert bench.scheduler.next_wakeup() is None


# ------------------------------------------------------------------------------------ cancelled jobs, lost executors


def test_a_cancelled_job_stops_everywhere_and_frees_its_slots(bench: Bench) -> None:
    bench.at(0, engine("x"), engine("y"), bench.submit("j", a=4), bench.submit("k"))

    assert bench.at(1, JobCancelled("j")) == [
        stop("j/a/0", "x"),
        stop("j/a/1", "y"),
        FinishJob("j", Outcome.CANCELLED, "cancelled"),
        run("k/a/0", "x"),
    ]


def test_a_job_can_be_cancelled_before_it_started(bench: Bench) -> None:
    assert bench.at(0, bench.submit("j"), JobCancelled("j")) == [FinishJob("j", Outcome.CANCELLED, "cancelled")]
    assert bench.at(1, engine("e")) == []


def test_what_a_lost_executor_ran_starts_again_elsewhere_and_is_no_failure(bench: Bench) -> None:
    template = application(stage("a", max_tasks=2, retries=0))
    bench.at(0, engine("bad", 2), bench.submit("j", template, a=2))

    assert bench.at(1, ExecutorLost("bad", "connection refused"), engine("good", 2)) == [
        stop("j/a/0", "bad"),
        stop("j/a/1", "bad"),
        run("j/a/0", "good", attempt=2),
        run("j/a/1", "good", attempt=2),
    ]
    assert bench.scheduler.stats.retries == 0


def test_what_a_lost_executor_ran_waits_in_its_old_place(bench: Bench) -> None:
    bench.at(0, engine("e", 2), bench.submit("j", a=3), bench.submit("k"))
    bench.at(1, ExecutorLost("e"))

    assert bench.at(2, engine("e", 4)) == [
        run("j/a/0", "e", attempt=2),
        run("j/a/1", "e", attempt=2),
        run("j/a/2", "e"),
        run("k/a/0", "e"),
    ]


def test_losing_an_executor_uses_up_no_attempt(bench: Bench) -> None:
    template = application(stage("a", retries=1))
    bench.at(0, engine("e"), bench.submit("j", template))
    bench.at(1, ExecutorLost("e"), engine("e"))

    assert bench.at(2, failed("j/a/0", attempt=2)) == []
    assert bench.at(3, Wakeup()) == [run("j/a/0", "e", attempt=3)]


def test_an_executor_may_be_back_in_the_same_batch(bench: Bench) -> None:
    bench.at(0, engine("e"), bench.submit("j"))

    assert bench.at(1, ExecutorLost("e"), engine("e")) == [stop("j/a/0", "e"), run("j/a/0", "e", attempt=2)]


def test_a_task_that_keeps_losing_its_executor_fails_its_job(bench: Bench) -> None:
    bench.at(0, engine("e", 2), bench.submit("j", a=3), bench.submit("k"))
    for _ in range(BACKOFF.max_losses):
        bench.at(1, ExecutorLost("e"), engine("e", 2))

    assert bench.at(2, ExecutorLost("e")) == [
        stop("j/a/0", "e", 3),
        stop("j/a/1", "e", 3),
        ended_badly("j", "task a[0] lost its executor 3 times, last 'e'"),
    ]
    assert bench.at(3, engine("e")) == [run("k/a/0", "e")]


def test_an_attempt_that_never_reached_its_executor_uses_up_no_retry(bench: Bench) -> None:
    template = application(stage("a", retries=0))
    bench.at(0, engine("e"), bench.submit("j", template))

    assert bench.at(1, unreached("j/a/0")) == []
    assert bench.at(2, Wakeup()) == [run("j/a/0", "e", attempt=2)]  # back-off of the first loss: 1 s
    assert bench.at(3, unreached("j/a/0", 2)) == []
    assert bench.at(5, Wakeup()) == [run("j/a/0", "e", attempt=3)]  # of the second: 2 s
    assert bench.at(6, unreached("j/a/0", 3)) == [
        ended_badly("j", "task a[0] reached no executor, last: connect: nobody listens")
    ]


# ----------------------------------------------------------------------------------------------------- stale news


def test_stale_news_is_counted_and_dropped(bench: Bench) -> None:
    bench.at(0, engine("e", 2), bench.submit("j", a=2), bench.submit("gone"))
    bench.at(1, failed("j/a/0"), JobCancelled("gone"))
    bench.at(2, Wakeup())

    stale: list[Event] = [
        done("j/a/0", attempt=1),  # the second one runs
        failed("j/a/0", attempt=1),
        done("j/a/0", attempt=3),  # never started
        done("gone/a/0"),
        expanded("gone/a"),
        StageFailed("gone", "a", "bad_plan"),
        JobCancelled("gone"),
        JobCancelled("nobody"),
        ExecutorLost("nowhere"),
    ]
    assert bench.at(3, *stale) == []
    assert bench.scheduler.stats.stale == Counter(
        TaskFinished=3, TaskFailed=1, StageExpanded=1, StageFailed=1, JobCancelled=2, ExecutorLost=1
    )


def test_an_outcome_is_believed_once(bench: Bench) -> None:
    bench.at(0, engine("e"), bench.submit("j", a=2))

    assert bench.at(1, done("j/a/0"), done("j/a/0"), failed("j/a/0")) == [run("j/a/1", "e")]
    assert bench.scheduler.stats.stale == Counter(TaskFinished=1, TaskFailed=1)


# ------------------------------------------------------------------------------------------------------- structure


def test_a_stage_is_complete_with_its_last_task_and_over_when_it_was_expanded(bench: Bench) -> None:
    bench.at(0, engine("e", 4), bench.submit("j", PAIR, a=2))

    assert bench.at(1, done("j/a/1")) == []
    assert bench.at(2, done("j/a/0")) == []
    assert bench.state("j/a") is StageState.EXPANDING
    assert bench.at(3, expanded("j/a", reveal(PAIR, b=2))) == [run("j/b/0", "e"), run("j/b/1", "e")]
    assert bench.state("j/a") is StageState.DONE
    assert bench.at(4, done("j/b/0"), done("j/b/1"), expanded("j/b")) == [completed("j")]


def test_a_stage_waits_for_all_its_parents(bench: Bench) -> None:
    template = application(stage("a"), stage("b"), stage("c", "a", "b"))
    bench.at(0, engine("e", 4), bench.submit("j", template, a=1, b=1))

    assert bench.at(1, done("j/a/0"), expanded("j/a", reveal(template, c=1))) == []
    assert bench.at(2, done("j/b/0"), expanded("j/b")) == [run("j/c/0", "e")]


def test_a_recording_may_order_stages_differently(bench: Bench) -> None:
    template = application(stage("a"), stage("b"), stage("c", "a", "b"))
    early = Reveal(StageSpec("c", StageKind.LLM, after=("a",), pool="llm"), (0,))
    bench.at(0, engine("e", 4), bench.submit("j", template, a=1, b=1))

    assert bench.at(1, done("j/a/0"), expanded("j/a", [early])) == [run("j/c/0", "e")]


def test_a_loop_that_ends_early_skips_the_rest_of_its_chain(bench: Bench) -> None:
    bench.at(0, engine("e"), bench.submit("j", LOOP, ask=1))
    bench.at(1, done("j/ask/0"), expanded("j/ask", reveal(LOOP, try_1=1)))

    rest = ("try_2", "try_3")
    assert bench.at(2, done("j/try_1/0"), expanded("j/try_1", reveal(LOOP, tell=1), rest)) == [run("j/tell/0", "e")]
    assert bench.at(3, done("j/tell/0"), expanded("j/tell")) == [completed("j")]


def test_a_job_is_complete_when_all_that_is_left_is_skipped(bench: Bench) -> None:
    bench.at(0, engine("e"), bench.submit("j", LOOP, ask=1))

    rest = ("try_1", "try_2", "try_3", "tell")
    assert bench.at(1, done("j/ask/0"), expanded("j/ask", (), rest)) == [completed("j")]


def test_a_job_may_be_skipped_as_a_whole(bench: Bench) -> None:
    job = JobSubmitted("j", 0, PAIR, 0.0, reveals=(), skipped=("a", "b"))

    assert bench.at(0, job) == [completed("j")]


def test_a_plan_takes_the_place_of_its_dynamic_stage(bench: Bench) -> None:
    bench.at(0, engine("e"), worker("w", 2), bench.submit("j", PLAN))
    plan = [*reveal(PLAN, tools=0), tool("one", "plan"), tool("two", "plan", tasks=2), tool("sum", "one", "two")]

    assert bench.at(1, done("j/plan/0"), expanded("j/plan", plan)) == [run("j/one/0", "w"), run("j/two/0", "w")]
    assert bench.at(2, done("j/one/0"), expanded("j/one")) == [run("j/two/1", "w")]
    assert bench.at(3, done("j/two/0"), done("j/two/1"), expanded("j/two")) == [run("j/sum/0", "w")]
    assert bench.state("j/tools") is StageState.EXPANDING
    assert bench.at(4, done("j/sum/0"), expanded("j/sum", reveal(PLAN, join=1))) == [run("j/join/0", "e")]
    assert bench.state("j/tools") is StageState.DONE
    assert bench.at(5, done("j/join/0"), expanded("j/join")) == [completed("j")]


def test_an_empty_plan_is_over_at_once(bench: Bench) -> None:
    bench.at(0, engine("e"), bench.submit("j", PLAN))

    assert bench.at(1, done("j/plan/0"), expanded("j/plan", reveal(PLAN, tools=0, join=1))) == [run("j/join/0", "e")]


def test_an_empty_plan_may_be_the_end_of_a_job(bench: Bench) -> None:
    bench.at(0, engine("e"), bench.submit("j", PLAN))

    assert bench.at(1, done("j/plan/0"), expanded("j/plan", reveal(PLAN, tools=0), ("join",))) == [completed("j")]


def test_stages_may_wait_for_an_empty_plan_that_the_template_does_not_know(bench: Bench) -> None:
    bench.at(0, engine("e"), bench.submit("j", PAIR))
    extra = Reveal(StageSpec("extra", StageKind.DYNAMIC, after=("a",)))
    b = Reveal(StageSpec("b", StageKind.LLM, after=("extra",), pool="llm"), (0,))

    assert bench.at(1, done("j/a/0"), expanded("j/a", [b, extra])) == [run("j/b/0", "e")]


def test_a_stage_may_wait_for_a_part_of_a_plan_only(bench: Bench) -> None:
    bench.at(0, engine("e"), worker("w", 2), bench.submit("j", PLAN))
    bench.at(
        1, done("j/plan/0"), expanded("j/plan", [*reveal(PLAN, tools=0), tool("one", "plan"), tool("two", "plan")])
    )
    join = Reveal(StageSpec("join", StageKind.LLM, after=("one",), pool="llm"), (0,))

    assert bench.at(2, done("j/one/0"), expanded("j/one", [join])) == [run("j/join/0", "e")]
    assert bench.at(3, done("j/join/0"), expanded("j/join")) == []  # the other half of the plan still runs
    assert bench.at(4, done("j/two/0"), expanded("j/two")) == [completed("j")]


def test_a_job_fails_with_the_reason_of_its_stage(bench: Bench) -> None:
    bench.at(0, engine("e", 2), worker("w"), bench.submit("j", PLAN, plan=1), bench.submit("k"))

    reason = "bad_plan: it names the tool 'weather'"
    assert bench.at(1, done("j/plan/0"), StageFailed("j", "plan", reason)) == [
        ended_badly("j", f"stage 'plan': {reason}")
    ]


@pytest.mark.parametrize("inner", [(), (tool("x", "b"),)])
def test_a_job_that_can_never_go_on_is_failed(bench: Bench, inner: tuple[Reveal, ...]) -> None:
    template = application(
        stage("plan"),
        stage("tools", "plan", kind="dynamic", planner="plan", candidates=["x"]),
        stage("b", "plan"),
    )
    bench.at(0, engine("e"), bench.submit("j", template))

    [command] = bench.at(1, done("j/plan/0"), expanded("j/plan", [*reveal(template, tools=0), *inner]))
    waiting = "b, x" if inner else "b"
    assert command == ended_badly("j", f"nothing is left to run, yet these stages wait: {waiting}")


# --------------------------------------------------------------------------------------------------------- restart


def test_a_restored_job_goes_on_where_it_stopped(bench: Bench) -> None:
    submitted = bench.submit("j", PAIR, a=2)
    restored = expanded("j/a", reveal(PAIR, b=1), results=(RESULT, RESULT))

    assert bench.at(100, engine("e", 4), submitted, restored) == [run("j/b/0", "e")]
    tasks = bench.scheduler.view.jobs["j"].stages["a"].tasks
    assert tasks is not None
    assert [(t.state, t.result) for t in tasks] == [(TaskState.DONE, RESULT)] * 2
    assert bench.at(101, done("j/b/0"), expanded("j/b")) == [completed("j")]


def test_a_job_whose_stages_were_all_stored_is_complete_at_once(bench: Bench) -> None:
    a = expanded("j/a", reveal(PAIR, b=1), results=(RESULT,))
    b = expanded("j/b", results=(RESULT,))

    assert bench.at(0, engine("e", 4), bench.submit("j", PAIR), a, b) == [completed("j")]


def test_a_restored_plan_unfolds_again(bench: Bench) -> None:
    events: list[Event] = [
        bench.submit("j", PLAN),
        expanded("j/plan", [*reveal(PLAN, tools=0), tool("x", "plan"), tool("y", "x")], results=(RESULT,)),
        expanded("j/x", results=(RESULT,)),
    ]

    assert bench.at(0, engine("e"), worker("w"), *events) == [run("j/y/0", "w")]


def test_a_stage_is_not_restored_while_it_runs(bench: Bench) -> None:
    bench.at(0, engine("e"), bench.submit("j", a=2))

    with pytest.raises(
        InvalidTransition, match=r"<stage j/a ready, tasks 0/2> was reported complete while its tasks are"
    ):
        bench.scheduler.handle(Batch(1, (expanded("j/a", results=(RESULT, RESULT)),)))


# ----------------------------------------------------------------------------------------------- impossible stories


@pytest.mark.parametrize(
    ("event", "sentence"),
    [
        (JobSubmitted("j", 9, ONE, 0.0, ()), "job 'j' was submitted twice"),
        (
            expanded("j/b"),
            "stage j/b is waiting and cannot become done",
        ),
        (
            expanded("j/x"),
            "<job j app running, 2 stages open> has no stage 'x'; known: a, b",
        ),
        (
            ExecutorJoined("e", "cpu", 1),
            "<executor e of llm, 1/1> joined again in pool 'cpu'; it has to be lost first",
        ),
    ],
)
def test_an_impossible_story_is_told_as_one(bench: Bench, event: Event, sentence: str) -> None:
    bench.at(0, engine("e"), bench.submit("j", PAIR))

    with pytest.raises(InvalidTransition) as caught:
        bench.scheduler.handle(Batch(1, (event,)))

    assert str(caught.value) == sentence


@pytest.mark.parametrize(
    ("unfolded", "sentence"),
    [
        (expanded("j/a", reveal(PAIR, a=1)), "<stage j/a done, tasks 1/1> was revealed twice"),
        (
            expanded("j/a", reveal(PAIR, b=0)),
            "<stage j/b waiting, tasks 0/0> was revealed without tasks; a stage with none is skipped",
        ),
        (expanded("j/a", (), ("a",)), "stage j/a is done and cannot become skipped"),
        (expanded("j/a", (), ("x",)), "<job j app running, 1 stages open> has no stage 'x'; known: a, b"),
    ],
)
def test_an_impossible_unfolding_is_told_as_one(bench: Bench, unfolded: StageExpanded, sentence: str) -> None:
    bench.at(0, engine("e"), bench.submit("j", PAIR))

    with pytest.raises(InvalidTransition) as caught:
        bench.scheduler.handle(Batch(1, (done("j/a/0"), unfolded)))

    assert str(caught.value) == sentence


def test_a_dynamic_stage_is_not_completed_from_outside(bench: Bench) -> None:
    bench.at(0, engine("e"), bench.submit("j", PLAN))
    bench.at(1, done("j/plan/0"), expanded("j/plan", [*reveal(PLAN, tools=0), tool("x", "plan")]))

    with pytest.raises(InvalidTransition) as caught:
        bench.scheduler.handle(Batch(2, (expanded("j/tools"),)))

    assert str(caught.value) == (
        "<stage j/tools expanding, tasks 0/0> was reported complete; it is when the stages of its plan are"
    )


class Stubborn(NewestFirst):
    """Picks the first task it ever saw, again and again, for every pool."""

    def picks(self, pool: str, view: View) -> Iterator[Pick]:
        tasks = next(iter(view.jobs.values())).stages["a"].tasks
        assert tasks
        yield Pick(tasks[0])


def test_a_policy_that_picks_what_is_not_ready_is_named() -> None:
    bench = Bench(Stubborn())
    bench.scheduler.handle(Batch(0, (engine("e", 2), bench.submit("j", a=2))))

    with pytest.raises(InvalidTransition) as caught:
        bench.scheduler.handle(Batch(1, ()))

    assert str(caught.value) == (
        "policy Stubborn picked <task j/a[0] running, attempt 1, 0 failed, 0 lost, on e>, which is not ready in 'llm'"
    )


def test_a_policy_that_picks_for_the_wrong_pool_is_named() -> None:
    bench = Bench(Stubborn())
    template = application(stage("a"), stage("b", kind="regular"))
    bench.at(0, bench.submit("j", template, a=1, b=1))

    with pytest.raises(InvalidTransition) as caught:
        bench.scheduler.handle(Batch(1, (worker("w"),)))

    assert str(caught.value) == (
        "policy Stubborn picked <task j/a[0] ready, attempt 0, 0 failed, 0 lost, on None>, which is not ready in 'cpu'"
    )


def test_a_task_tells_its_story_when_it_is_asked_for_the_impossible(bench: Bench) -> None:
    bench.at(0, engine("e"), bench.submit("j"))
    task = bench.scheduler.view.jobs["j"].running[ref("j/a/0")]

    with pytest.raises(InvalidTransition) as caught:
        task.become(TaskState.RUNNING)

    assert str(caught.value) == "<task j/a[0] running, attempt 1, 0 failed, 0 lost, on e> cannot become running"


# ----------------------------------------------------------------------------- stages that somebody else decides about


CHAIN = application({"loop": "calls", "first": 1, "max_iterations": 3, "stages": [stage("call")]})


def revealed(job: str, **stages: tuple[str, ...]) -> StagesRevealed:
    """stages: with what they come after."""
    specs = [replace(CHAIN[name], after=after) for name, after in stages.items()]
    return StagesRevealed(job, tuple(Reveal(spec, (0,)) for spec in specs))


def withdrawn(stage: str) -> StageWithdrawn:
    return StageWithdrawn(*stage.split("/"), RESULT)


def test_an_open_stage_holds_its_job_until_the_next_is_known_or_none_comes(bench: Bench) -> None:
    assert bench.at(0, engine("e"), bench.submit("a", CHAIN)) == [run("a/call_1/0", "e")]
    assert bench.at(1, done("a/call_1/0")) == []
    assert bench.state("a/call_1") is StageState.EXPANDING
    assert bench.at(2, revealed("a", call_2=("call_1",)), expanded("a/call_1")) == [run("a/call_2/0", "e")]
    assert bench.at(3, done("a/call_2/0")) == []
    assert bench.at(4, expanded("a/call_2", skipped=("call_3",))) == [completed("a")]


def test_a_stage_revealed_beside_a_running_one_does_not_wait_for_it(bench: Bench) -> None:
    bench.at(0, engine("e", 2), bench.submit("a", CHAIN))

    assert bench.at(1, revealed("a", call_2=())) == [run("a/call_2/0", "e")]
    assert bench.at(2, done("a/call_2/0"), expanded("a/call_2"), done("a/call_1/0")) == []
    assert bench.at(3, expanded("a/call_1", skipped=("call_3",))) == [completed("a")]


def test_a_running_stage_that_is_withdrawn_frees_its_slot_and_counts_as_done(bench: Bench) -> None:
    bench.at(0, engine("e"), bench.submit("a", CHAIN), bench.submit("b"))

    assert bench.at(1, withdrawn("a/call_1")) == [stop("a/call_1/0", "e"), run("b/a/0", "e")]
    assert bench.state("a/call_1") is StageState.EXPANDING
    assert bench.at(2, done("a/call_1/0"), expanded("a/call_1", skipped=("call_2", "call_3"))) == [completed("a")]
    assert bench.scheduler.stats.stale == Counter({"TaskFinished": 1})


def test_a_waiting_stage_that_is_withdrawn_never_runs(bench: Bench) -> None:
    bench.at(0, bench.submit("a", CHAIN), withdrawn("a/call_1"))

    assert bench.at(1, engine("e")) == []
    assert bench.at(2, expanded("a/call_1", skipped=("call_2", "call_3"))) == [completed("a")]


def test_a_stage_withdrawn_in_its_back_off_is_not_tried_again(bench: Bench) -> None:
    bench.at(0, engine("e"), bench.submit("a", CHAIN))
    bench.at(1, failed("a/call_1/0"), withdrawn("a/call_1"))

    assert bench.scheduler.next_wakeup() is None
    assert bench.at(9, Wakeup()) == []


def test_withdrawing_what_is_over_is_stale_and_what_cannot_run_yet_a_mistake(bench: Bench) -> None:
    bench.at(0, engine("e"), bench.submit("a", PAIR), bench.submit("b"))
    bench.at(1, done("a/a/0"), withdrawn("a/a"), withdrawn("c/a"))

    assert bench.scheduler.stats.stale == Counter({"StageWithdrawn": 2})
    with pytest.raises(InvalidTransition, match="withdrawn before it could run"):
        bench.scheduler.handle(Batch(2, (withdrawn("a/b"),)))
