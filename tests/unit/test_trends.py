"""Trends: rings of steps that never grow, and columns that line up."""

from __future__ import annotations

from llmsched.model.job import Executor
from llmsched.policies.base import View
from llmsched.runtime.observer import Several
from llmsched.runtime.trends import RINGS, STEPS, TIMES, Ring, Trends


class Clock:
    now = 1000.0


def trends() -> tuple[Trends, Clock]:
    clock = Clock()
    return Trends(lambda: clock.now), clock


def test_what_happens_is_counted_in_the_step_it_happened_in() -> None:
    made, clock = trends()
    made.job_submitted("a", "standard")
    made.job_finished("a", "completed", 2.0)
    made.job_finished("b", "completed", 4.0)
    made.job_finished("b", "failed", 9.0)
    made.task_started("llm", "a", 0.5)
    made.decided(0.002)
    made.decided(0.004)
    clock.now += 5.0
    made.job_finished("a", "completed", 7.0)

    columns = made.to_json("15m")
    assert columns["at"][-2:] == [1000.0, 1005.0]
    assert all(len(columns[name]) == STEPS for name in ("completed", "jct_mean", "active", "decisions"))
    assert columns["completed"][-3:] == [None, 2, 1]
    assert columns["failed"][-2:] == [1, 0]
    assert columns["jct_mean"][-2:] == [3.0, 7.0]
    assert columns["queue_mean"][-2:] == [0.5, None]
    assert (columns["decision_ms_mean"][-2], columns["decision_ms_max"][-2]) == (3.0, 4.0)
    assert columns["applications"]["a"]["jct_mean"][-2:] == [2.0, 7.0]
    assert columns["applications"]["b"]["jct_mean"][-2:] == [4.0, None]
    assert made.finished == {"a": {"completed": 2}, "b": {"completed": 1, "failed": 1}}


def test_what_is_is_the_mean_of_the_looks_of_a_step() -> None:
    made, _ = trends()
    view = View(executors={"e": Executor("e", "llm", 4, 0)})
    made.look(view)
    view.executors["e"].slots = 2
    made.look(view)

    pools = made.to_json("15m")["pools"]
    assert [pools["llm"][key][-1] for key in ("ready", "running", "slots")] == [0.0, 0.0, 3.0]


def test_the_last_quarter_of_an_hour_in_one_line() -> None:
    made, clock = trends()
    made.job_finished("a", "completed", 100.0)
    clock.now += 16 * 60
    for seconds in (1.0, 2.0, 3.0):
        made.job_finished("a", "completed", seconds)

    recent = made.recent()
    assert (recent["completed"], recent["jct_mean"], recent["jct_p50"]) == (3, 2.0, 2.0)
    assert recent["decision_ms_mean"] is None
    assert sum(n or 0 for n in made.to_json("2h")["completed"]) == 4, "the longer rings still know"


def test_a_day_of_work_takes_no_more_memory_than_its_steps() -> None:
    ring, busy = Ring(RINGS["15m"]), Trends(lambda: 0.0)
    for k in range(10 * STEPS):
        ring.now(5.0 * k)
    for _ in range(10 * TIMES):
        busy.job_finished("a", "completed", 1.0)

    assert len(ring._steps) == STEPS
    assert len(busy._rings["24h"].now(0.0).times) == TIMES
    assert busy.to_json("24h")["completed"][-1] == 10 * TIMES


def test_several_observers_hear_the_same() -> None:
    (one, _), (other, _) = trends(), trends()
    both = Several(one, other)
    both.job_finished("a", "completed", 1.0)
    both.decided(0.1)
    both.task_ended("llm", "a", 1.0)
    both.task_retried("llm", "x")
    both.task_sliced("llm")
    both.explored()
    both.estimated("a", 1.0)

    assert one.to_json("15m") == other.to_json("15m")
