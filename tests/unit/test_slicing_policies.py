"""Policies that hand out slices: feedback queues (`fastserve`, `mlfq`) and planned batches (`scls`)."""

from __future__ import annotations

import pickle
from collections import Counter
from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmsched.catalogue import installed_applications
from llmsched.errors import InvalidInput
from llmsched.model.application import Application
from llmsched.model.events import (
    Batch,
    Command,
    Dispatch,
    Event,
    ExecutorJoined,
    ExecutorLost,
    JobCancelled,
    JobClass,
    JobSubmitted,
    Outcome,
    Reveal,
    SliceEnded,
    TaskFailed,
    TaskFinished,
    TaskRef,
    Wakeup,
)
from llmsched.model.latency import LatencyCurve
from llmsched.policies import make_policy as make
from llmsched.policies.base import Pick, Policy
from llmsched.policies.levels import Fastserve, Mlfq
from llmsched.policies.scls import Scls, cut
from llmsched.profiler import Knowledge
from llmsched.profiler.history import Curves
from llmsched.scheduler import Scheduler
from llmsched.simulator import EngineLoss, Setup, World
from llmsched.workloads import Arrival, Workload
from tests.unit.world import check_consistent

ASK = Application.parse({"name": "ask", "stages": [{"name": "ask", "kind": "llm", "max_tasks": 9}]})
RUN = Application.parse({"name": "run", "stages": [{"name": "run", "kind": "regular", "max_tasks": 9}]})

#: 1,000 prompt tokens a second, and 10 ms per token however many decode.
STEADY = Knowledge(curves=Curves(default=LatencyCurve("steady", 1000.0, ((1, 0.01),))))
#: Specification 10: l(N) = 0.01 + 0.001 N.
SPECIFIED = Knowledge(curves=Curves(default=LatencyCurve("specified", 1000.0, ((1, 0.011), (2, 0.012)))))


def submitted(
    number: int, *prompts: int, at: float = 0.0, template: Application = ASK, job_class: JobClass = JobClass.STANDARD
) -> JobSubmitted:
    """Job J<number> with one request per prompt length."""
    reveals = (Reveal(template.stages[0], prompts),)
    return JobSubmitted(f"J{number}", number, template, at, reveals, job_class=job_class)


def engine(name: str = "e", slots: int = 1) -> ExecutorJoined:
    return ExecutorJoined(name, "llm", slots)


def sliced(number: int, attempt: int, tokens: int) -> SliceEnded:
    return SliceEnded(TaskRef(f"J{number}", "ask", 0), attempt, tokens)


def at(scheduler: Scheduler, now: float, *events: Event) -> list[tuple[str, str, int | None, int | None]]:
    """(job, executor, max_tokens, priority) of what is dispatched."""
    commands: list[Command] = scheduler.handle(Batch(now, events))
    return [(c.task.job, c.executor, c.max_tokens, c.priority) for c in commands if isinstance(c, Dispatch)]


def picks(scheduler: Scheduler, pool: str = "llm") -> list[Pick]:
    """Everything the policy would start now."""
    scheduler.policy.begin(scheduler.view)
    return list(scheduler.policy.picks(pool, scheduler.view))


def levels(scheduler: Scheduler) -> dict[str, int | None]:
    """Job -> level, in the order of service."""
    return {pick.task.job.id: pick.priority for pick in picks(scheduler)}


def order(scheduler: Scheduler, pool: str = "llm") -> list[str]:
    return [f"{pick.task.job.id}.{pick.task.index}" for pick in picks(scheduler, pool)]


# ------------------------------------------------------------------------------------------------ feedback queues


def test_a_request_joins_the_first_level_whose_quantum_it_needs_for_its_first_token() -> None:
    """Specification 12: quanta .5 1 2 4 8, first tokens after 0.3, 0.5, 0.7 and 3.0 s: levels 0, 0, 1, 3."""
    policy = Fastserve(STEADY, q0=0.5, levels=5)
    scheduler = Scheduler(policy)
    prompts = (290, 490, 690, 2990)  # at 1,000 a second, and one token more: 10 ms

    at(scheduler, 0.0, *(submitted(n, prompt) for n, prompt in enumerate(prompts)))

    assert policy.quanta == (0.5, 1.0, 2.0, 4.0, 8.0)
    assert levels(scheduler) == {"J0": 0, "J1": 0, "J2": 1, "J3": 3}


def test_plain_queues_take_every_request_into_the_first() -> None:
    scheduler = Scheduler(Mlfq(STEADY, q0=0.5))
    at(scheduler, 0.0, *(submitted(n, prompt) for n, prompt in enumerate((290, 2990))))

    assert levels(scheduler) == {"J0": 0, "J1": 0}


def test_a_prompt_that_no_quantum_holds_joins_the_last_level() -> None:
    scheduler = Scheduler(Fastserve(STEADY, q0=0.5, levels=2))
    at(scheduler, 0.0, submitted(0, 10_000))

    assert [(p.priority, p.max_tokens) for p in picks(scheduler)] == [(1, None)]


def test_each_slice_uses_a_quantum_up_and_the_next_waits_one_level_lower() -> None:
    scheduler = Scheduler(Fastserve(STEADY, q0=0.5, levels=3))

    # 0.2 s of 0.5 read the prompt, 0.3 s give 30 tokens; then 1 s, of a cached prompt: 100; the last level has no end
    assert at(scheduler, 0.0, engine(), submitted(1, 200)) == [("J1", "e", 30, 0)]
    assert at(scheduler, 0.5, sliced(1, 1, 30)) == [("J1", "e", 100, 1)]
    assert at(scheduler, 1.5, sliced(1, 2, 100)) == [("J1", "e", None, 2)]


def test_a_demoted_request_makes_way_and_queues_behind_who_was_there() -> None:
    scheduler = Scheduler(Mlfq(STEADY, q0=0.5))
    at(scheduler, 0.0, engine(slots=2), submitted(1, 0), submitted(2, 0))

    # no slot is left; J1 is demoted, then J3 arrives, then J2 is demoted as well
    at(scheduler, 0.5, engine(slots=0), sliced(1, 1, 50))
    at(scheduler, 0.6, submitted(3, 0, at=0.6), sliced(2, 1, 50))

    assert list(levels(scheduler).items()) == [("J3", 0), ("J1", 1), ("J2", 1)]


def test_a_slice_is_never_shorter_than_sixteen_tokens() -> None:
    scheduler = Scheduler(Mlfq(STEADY, q0=0.5))

    # 0.45 s of the prompt leave 5 tokens, 5 s of it none
    assert at(scheduler, 0.0, engine(slots=2), submitted(1, 450), submitted(2, 5000)) == [
        ("J1", "e", 16, 0),
        ("J2", "e", 16, 0),
    ]


def test_quanta_are_turned_into_tokens_at_a_full_batch() -> None:
    """l(3) = 0.013 s: 0.5 s hold 38 tokens."""
    scheduler = Scheduler(Mlfq(SPECIFIED, q0=0.5))

    dispatched = at(scheduler, 0.0, engine("small", 1), engine("large", 3), submitted(1, 0))

    assert dispatched == [("J1", "small", 38, 0)]


def test_levels_shorter_than_an_iteration_are_passed_over() -> None:
    """An iteration takes 1.5 s, the quanta are 0.5, 1, 2 and 4 s: from level 0 to level 2."""
    slow = Knowledge(curves=Curves(default=LatencyCurve("slow", 1000.0, ((1, 1.5),))))
    plain, skipping = Scheduler(Mlfq(slow, q0=0.5, levels=4)), Scheduler(Fastserve(slow, q0=0.5, levels=4))

    assert at(plain, 0.0, engine(), submitted(1, 0)) == [("J1", "e", 16, 0)]
    assert at(plain, 24.0, sliced(1, 1, 16)) == [("J1", "e", 16, 2)]
    assert at(skipping, 0.0, engine(), submitted(1, 0)) == [("J1", "e", 16, 2)]


def test_who_waits_too_long_returns_to_the_first_level_and_begins_anew() -> None:
    scheduler = Scheduler(Fastserve(STEADY, q0=0.5, promote_after=10.0))
    at(scheduler, 0.0, submitted(1, 2990))  # level 3
    at(scheduler, 9.0, submitted(2, 0, at=9.0))
    assert list(levels(scheduler).items()) == [("J2", 0), ("J1", 3)]

    # due at 10 s, behind J2, which has been there since 9 s
    at(scheduler, 10.0, Wakeup())
    at(scheduler, 10.5, submitted(3, 0, at=10.5))
    assert list(levels(scheduler).items()) == [("J2", 0), ("J1", 0), ("J3", 0)]

    # its prompt is longer than the quantum, so that it gets 16 tokens; then it is demoted as everybody else
    assert at(scheduler, 11.0, engine()) == [("J2", "e", 50, 0)]
    assert at(scheduler, 11.5, sliced(2, 1, 50)) == [("J1", "e", 16, 0)]
    at(scheduler, 14.6, engine(slots=0), sliced(1, 1, 16))
    assert list(levels(scheduler).items()) == [("J3", 0), ("J2", 1), ("J1", 1)]


def test_a_promotion_is_dated_by_when_it_was_due_and_not_by_when_it_was_found() -> None:
    scheduler = Scheduler(Fastserve(STEADY, q0=0.5, promote_after=10.0))
    at(scheduler, 0.0, submitted(1, 2990))
    at(scheduler, 11.0, submitted(2, 0, at=11.0))
    at(scheduler, 30.0, Wakeup())

    assert list(levels(scheduler).items()) == [("J1", 0), ("J2", 0)]


def test_what_is_lost_joins_anew() -> None:
    scheduler = Scheduler(Fastserve(STEADY, q0=0.5))
    at(scheduler, 0.0, engine(), submitted(1, 200))
    assert at(scheduler, 0.5, sliced(1, 1, 30)) == [("J1", "e", 100, 1)]

    at(scheduler, 1.0, ExecutorLost("e"))
    assert levels(scheduler) == {"J1": 0}

    assert at(scheduler, 2.0, engine("f")) == [("J1", "f", 30, 0)], "the prompt has to be read again"


def test_what_failed_joins_anew() -> None:
    scheduler = Scheduler(Fastserve(STEADY, q0=0.5))
    at(scheduler, 0.0, engine(), submitted(1, 200))
    at(scheduler, 0.5, sliced(1, 1, 30))
    at(scheduler, 1.0, TaskFailed(TaskRef("J1", "ask", 0), 2, "timeout: no answer"))
    due = scheduler.next_wakeup()
    assert due is not None

    assert at(scheduler, due, Wakeup()) == [("J1", "e", 30, 0)]


def test_without_slices_nothing_is_cut_short() -> None:
    scheduler = Scheduler(Fastserve(STEADY, q0=0.5, slices=False))

    assert at(scheduler, 0.0, engine(slots=2), submitted(1, 2990), submitted(2, 0)) == [
        ("J2", "e", None, 0),
        ("J1", "e", None, 3),
    ]


def test_a_request_another_policy_started_is_demoted_from_where_it_would_have_joined() -> None:
    scheduler = Scheduler(Scls(STEADY))
    at(scheduler, 0.0, engine(), submitted(1, 690))

    scheduler.use_policy(Fastserve(STEADY, q0=0.5))

    assert at(scheduler, 2.0, sliced(1, 1, 128)) == [("J1", "e", 200, 2)]  # level 1, and one lower: 2 s


# -------------------------------------------------------------------------------------------------------- slices


def test_the_program_cuts_where_the_specification_does() -> None:
    """0.1 + 128 x 0.011; 0.2 + 128 x 0.012; and 1 + 128 x 0.011 more. All three at once: 3 + 128 x 0.013 = 4.664."""
    sizes, costs = cut([100, 100, 1000], 0.001, [128 * (0.01 + 0.001 * n) for n in (1, 2, 3)])

    assert sizes == [2, 1]
    assert costs == pytest.approx([0, 1.508, 1.736, 4.144])


def test_no_batch_is_larger_than_an_engine() -> None:
    assert cut([100] * 7, 0.0, [1.0, 1.0, 1.0]).sizes == [1, 3, 3]
    assert cut([], 0.001, [1.0]).sizes == []


def compositions(n: int, most: int) -> list[list[int]]:
    """All ways to write n as a sum of numbers up to `most`, in order."""
    if not n:
        return [[]]
    return [[first, *rest] for first in range(1, min(n, most) + 1) for rest in compositions(n - first, most)]


@given(
    st.lists(st.integers(0, 3000), min_size=1, max_size=8).map(sorted),
    st.floats(0.0, 0.01),
    st.lists(st.floats(0.0, 1.0), min_size=1, max_size=4).map(sorted),
)
def test_no_other_cut_takes_less_time(lengths: list[int], token: float, decoding: list[float]) -> None:
    def seconds(sizes: Sequence[int]) -> float:
        ends = [sum(sizes[: i + 1]) for i in range(len(sizes))]
        return sum(n * lengths[end - 1] * token + decoding[n - 1] for n, end in zip(sizes, ends, strict=True))

    sizes, costs = cut(lengths, token, decoding)

    assert sum(sizes) == len(lengths)
    assert costs[-1] == pytest.approx(seconds(sizes))
    assert costs[-1] == pytest.approx(min(map(seconds, compositions(len(lengths), len(decoding)))))


def test_batches_go_longest_first_to_the_engine_with_the_least_to_do() -> None:
    """Specification 10: r3 alone takes 2.408 s and goes to engine 0; r1 and r2 take 1.736 s and go to engine 1."""
    scheduler = Scheduler(Scls(SPECIFIED))
    requests = [submitted(n, prompt) for n, prompt in ((1, 100), (2, 100), (3, 1000))]

    dispatched = at(scheduler, 0.0, engine("e0", 3), engine("e1", 3), *requests)

    assert dispatched == [("J3", "e0", 128, 0), ("J1", "e1", 128, 0), ("J2", "e1", 128, 0)]


def test_a_request_is_as_long_as_its_prompt_and_what_it_has_generated() -> None:
    scheduler = Scheduler(Scls(SPECIFIED))
    at(scheduler, 0.0, engine(slots=2), submitted(1, 100), submitted(2, 150))

    at(scheduler, 2.0, engine(slots=0), sliced(1, 1, 128), sliced(2, 1, 64))

    assert [(p.task.job.id, p.why) for p in picks(scheduler)] == [
        ("J2", {"input_tokens": 214}),
        ("J1", {"input_tokens": 228}),
    ]


def test_what_comes_between_two_plans_follows_them_shortest_first() -> None:
    """Batches [5000] of 6.408 s, [500] of 1.908 s and [100 100] of 1.736 s; the first two start at once."""
    scheduler = Scheduler(Scls(SPECIFIED))
    at(scheduler, 0.0, engine(slots=2), submitted(1, 100, 100, 500, 5000))

    at(scheduler, 1.0, submitted(2, 300, 200, at=1.0))

    waiting = picks(scheduler)
    assert [f"{p.task.job.id}.{p.task.index}" for p in waiting] == ["J1.0", "J1.1", "J2.1", "J2.0"]
    assert [p.why for p in waiting] == [{"batch": 2}, {"batch": 2}, {"input_tokens": 200}, {"input_tokens": 300}]


@pytest.mark.parametrize(
    ("options", "now", "why"),
    [
        ({}, 2.9, {"input_tokens": 100}),
        ({}, 3.0, {"batch": 0}),
        ({"least_interval": 5.0}, 4.9, {"input_tokens": 100}),
        ({"least_interval": 5.0}, 5.0, {"batch": 0}),
        ({"interval_share": 10.0}, 15.0, {"input_tokens": 100}),
        ({"interval_share": 10.0}, 15.1, {"batch": 0}),
    ],
)
def test_plans_are_made_once_per_interval(options: dict[str, Any], now: float, why: dict[str, int]) -> None:
    """At 0 s the engine is assigned 0.1 + 1.408 s, half of which is less than the least interval of 3 s."""
    scheduler = Scheduler(Scls(SPECIFIED, **options))
    at(scheduler, 0.0, engine(slots=1), submitted(1, 100))
    at(scheduler, 1.0, submitted(2, 100, at=1.0))  # finds no slot

    [dispatch] = scheduler.handle(Batch(now, (engine(slots=2),)))

    assert isinstance(dispatch, Dispatch)
    assert dispatch.why == why


def test_an_interval_goes_by_the_engine_with_the_least_to_do() -> None:
    """Five requests on two engines of one slot, 0.128 x 11 s each: three on one, two on the other."""
    policy = Scls(SPECIFIED, least_interval=0.0)
    scheduler = Scheduler(policy)

    at(scheduler, 10.0, engine("e0"), engine("e1"), submitted(1, 0, 0, 0, 0, 0))

    assert policy._due == {"llm": pytest.approx(10.0 + 0.5 * 2 * 1.408)}


def test_an_empty_engine_is_reason_enough_to_plan() -> None:
    """The batch [100 300] goes to e1: e0 has 1.508 - 0.5 s to go."""
    scheduler = Scheduler(Scls(SPECIFIED))
    at(scheduler, 0.0, engine("e0", 2), submitted(1, 100))

    assert at(scheduler, 0.5, engine("e1", 2), submitted(2, 300, 100, at=0.5)) == [("J2", "e1", 128, 0)] * 2


def test_only_the_oldest_are_planned_when_many_wait() -> None:
    scheduler = Scheduler(Scls(SPECIFIED, planned=2))
    for now, prompt in enumerate((9000, 100, 500, 10)):
        at(scheduler, now, submitted(now, prompt, at=now))

    # J0 and J1, each its own batch, the longer one first; the others follow, the shortest first
    dispatched = at(scheduler, 4.0, engine(slots=4))
    assert [job for job, *_ in dispatched] == ["J0", "J1", "J3", "J2"]


@pytest.mark.parametrize(
    ("static", "expected"),
    [
        (False, [("J4", "e0"), ("J3", "e1"), ("J2", "e1")]),
        (True, [("J3", "e1"), ("J2", "e1"), ("J4", "e0")]),
    ],
)
def test_a_static_batch_follows_those_whose_engine_is_done(static: bool, expected: list[tuple[str, str]]) -> None:
    """Batches of 9.408, 7.408 and 5.408 s. By estimate e0 has nothing left to do (1.408 - 2 s), and it joined first;
    but it still runs, so that in static mode what is planned for it only gets the slots that others leave."""
    scheduler = Scheduler(Scls(SPECIFIED, static=static))
    at(scheduler, 0.0, engine("e0", 2), submitted(1, 0))

    dispatched = at(scheduler, 2.0, engine("e1", 2), *(submitted(n, 2000 * n, at=2.0) for n in (2, 3, 4)))

    assert [(job, where) for job, where, *_ in dispatched] == expected


def test_a_request_does_not_go_back_to_the_engine_where_it_failed() -> None:
    scheduler = Scheduler(Scls(SPECIFIED))
    at(scheduler, 0.0, engine("e0", 1), submitted(1, 100))
    at(scheduler, 0.5, engine("e1", 1), TaskFailed(TaskRef("J1", "ask", 0), 1, "timeout: no answer"))
    due = scheduler.next_wakeup()
    assert due is not None

    assert at(scheduler, due, Wakeup()) == [("J1", "e1", 128, 0)]


def test_plans_keep_classes_apart() -> None:
    scheduler = Scheduler(Scls(SPECIFIED))
    classes = [JobClass.BATCH, JobClass.STANDARD, JobClass.INTERACTIVE] * 2
    jobs = [submitted(n, 9000 * n, job_class=c) for n, c in enumerate(classes, 1)]
    at(scheduler, 0.0, *jobs)

    assert order(scheduler) == ["J3.0", "J6.0", "J2.0", "J5.0", "J1.0", "J4.0"], "no plan: the shortest first"
    dispatched = at(scheduler, 0.0, engine(slots=6))
    assert [job for job, *_ in dispatched] == ["J6", "J3", "J5", "J2", "J4", "J1"], "a plan: the longest first"


# --------------------------------------------------------------------------------------------- what all three promise


@pytest.mark.parametrize("name", ["fastserve", "mlfq", "scls"])
def test_regular_tasks_are_first_come_first_served_and_never_cut(name: str) -> None:
    scheduler = Scheduler(make(name))
    at(scheduler, 5.0, submitted(2, 0, at=1.0, template=RUN), submitted(1, 0, 0, at=0.5, template=RUN))

    assert order(scheduler, "cpu") == ["J1.0", "J1.1", "J2.0"]
    assert {(p.max_tokens, p.priority) for p in picks(scheduler, "cpu")} == {(None, None)}


@pytest.mark.parametrize("name", ["fastserve", "mlfq", "scls"])
def test_nothing_is_kept_of_a_job_that_left(name: str) -> None:
    scheduler = Scheduler(make(name))
    at(scheduler, 0.0, engine(slots=2), *(submitted(n, 100, 200, 300) for n in range(50)))
    at(scheduler, 1.0, sliced(0, 1, 16))
    at(scheduler, 2.0, *(JobCancelled(f"J{n}") for n in range(50)))

    assert len(pickle.dumps(scheduler.policy)) < 2_000


@pytest.mark.parametrize(
    ("name", "options", "sentence"),
    [
        ("fastserve", {"q0": 0}, "q0 is 0; it must be a number above 0, at most 1e+06"),
        ("fastserve", {"ratio": 1.0}, "ratio is 1.0; it must be a number above 1, at most 1000"),
        ("mlfq", {"ratio": float("nan")}, "ratio is nan; it must be a number above 1, at most 1000"),
        ("mlfq", {"levels": 0}, "levels is 0; it must be a whole number from 1 to 32"),
        ("mlfq", {"levels": 2.5}, "levels is 2.5; it must be a whole number from 1 to 32"),
        ("mlfq", {"promote_after": True}, "promote_after is True; it must be a number above 0, at most inf"),
        ("mlfq", {"slices": "off"}, "slices is 'off'; it must be true or false"),
        ("scls", {"slice": 0}, "slice is 0; it must be a whole number from 1 to 1000000"),
        ("scls", {"planned": 1.5}, "planned is 1.5; it must be a whole number from 1 to 1000000"),
        ("scls", {"static": 1}, "static is 1; it must be true or false"),
        ("scls", {"interval_share": -0.1}, "interval_share is -0.1; it must be a number from 0 to 1000000"),
        ("scls", {"least_interval": "3"}, "least_interval is '3'; it must be a number from 0 to 1000000"),
    ],
)
def test_a_bad_option_is_one_sentence(name: str, options: dict[str, Any], sentence: str) -> None:
    with pytest.raises(InvalidInput) as caught:
        make(name, **options)

    assert str(caught.value) == sentence
    assert caught.value.field == next(iter(options))


class Watched(Scheduler):
    """A scheduler that counts the tokens it is told of, and is held to its invariants."""

    def __init__(self, policy: Policy) -> None:
        super().__init__(policy)
        #: Task -> tokens of slices since it began, or began again; and in all once it is finished.
        self.generated: Counter[TaskRef] = Counter()
        self.finished: dict[TaskRef, int] = {}
        self.cut = 0

    def handle(self, batch: Batch) -> list[Command]:
        running = {ref: task.executor for job in self.view.jobs.values() for ref, task in job.running.items()}
        for event in batch.events:
            match event:
                case SliceEnded(ref, _, tokens):
                    self.generated[ref] += tokens
                    self.cut += 1
                case TaskFinished(ref, _, result):
                    self.finished[ref] = result.output_tokens
                case TaskFailed(ref):
                    del self.generated[ref]
                case ExecutorLost(executor):
                    for ref in [ref for ref, where in running.items() if where == executor]:
                        del self.generated[ref]
                case _:
                    pass
        commands = super().handle(batch)
        check_consistent(self)
        return commands


@pytest.fixture(scope="module")
def mixed() -> list[Arrival]:
    return Workload.load("mixed-nodoc").arrivals(40, 0.9, 3)


#: Each slice may fail, and three failures of a task are one too many.
TROUBLE = {"failures": 0.01, "losses": (EngineLoss(20.0, 0, 30.0),), "prefix_cache": 0.5}


@pytest.mark.parametrize("trouble", [{}, TROUBLE], ids=["kind", "trouble"])
@pytest.mark.parametrize(
    ("name", "options"),
    [("fastserve", {"q0": 0.3}), ("mlfq", {"q0": 0.3}), ("scls", {"slice": 64}), ("scls", {"static": True})],
    ids=["fastserve", "mlfq", "scls", "scls-static"],
)
def test_every_job_finishes_with_exactly_its_tokens(
    name: str, options: dict[str, Any], trouble: dict[str, Any], mixed: list[Arrival]
) -> None:
    scheduler = Watched(make(name, **options))

    world = World(scheduler, mixed, installed_applications(), Setup((4, 3), {"cpu": 3}, **trouble)).run()

    assert len(world.finished) == len(mixed)
    assert {f.outcome for f in world.finished} == {Outcome.COMPLETED}
    assert scheduler.cut > 50, "slices happened"
    told = Counter(ref.job for ref in scheduler.finished)
    assert told == {f"job-{n}": arrival.recording.n_tasks for n, arrival in enumerate(mixed)}
    tokens = Counter[str]()
    for ref, output in scheduler.finished.items():
        tokens[ref.job] += output
        assert scheduler.generated[ref] < max(1, output), "the last slice generated something"
    for n, arrival in enumerate(mixed):
        assert tokens[f"job-{n}"] == sum(t.output_tokens for s in arrival.recording.stages for t in s.tasks)


@pytest.mark.parametrize(("one", "other"), [*pairwise(("fcfs", "fastserve", "scls", "mlfq", "fcfs"))])
def test_policies_take_over_from_each_other_in_the_middle(one: str, other: str, mixed: list[Arrival]) -> None:
    class Swapping(Watched):
        def handle(self, batch: Batch) -> list[Command]:
            if batch.at > 20.0 and self.policy is first:
                self.use_policy(make(other))
            return super().handle(batch)

    first = make(one)
    world = World(Swapping(first), mixed, installed_applications(), Setup((4, 3), {"cpu": 3})).run()

    assert {f.outcome for f in world.finished} == {Outcome.COMPLETED}
    assert len(world.finished) == len(mixed)
