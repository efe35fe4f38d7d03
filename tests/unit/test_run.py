"""One job's accounts: numbers that neither repeat nor skip, one row per stage, and a restart that goes on from rows."""

from __future__ import annotations

from dataclasses import replace
from random import Random

import pytest

from llmsched.errors import InvalidInput
from llmsched.model.application import Application
from llmsched.model.events import TaskRef, TaskResult
from llmsched.model.kinds import StageKind
from llmsched.model.recording import Recording
from llmsched.model.records import EventRecord, JobRecord, StageRecord
from llmsched.runtime.run import JobRun
from llmsched.runtime.scripts.script import RecordedScript
from llmsched.workloads import generate

#: A planner, a plan of two stages, and a join; `extra` is not in the recording and so skipped.
TEMPLATE = Application.parse(
    {
        "name": "planned",
        "stages": [
            {"name": "plan", "kind": "llm"},
            {
                "name": "tools",
                "kind": "dynamic",
                "after": ["plan"],
                "planner": "plan",
                "candidates": [{"name": "search"}, {"name": "math"}],
            },
            {"name": "join", "kind": "llm", "after": ["tools"]},
            {"name": "extra", "kind": "llm", "after": ["join"], "when": "false"},
        ],
    },
    version=1,
)
JOB = JobRecord("job_1", 1, "planned", 1, 10.0)


def recording(stages: int = 2) -> Recording:
    task = {"duration_s": 1.0, "tool": "search"}
    inner = [
        {"name": f"t{k}", "kind": "regular", "deps": ["plan"], "parent": "tools", "tasks": [task]}
        for k in range(stages)
    ]
    llm = [{"prompt_tokens": 7, "output_tokens": 3}]
    return Recording.from_json(
        {
            "app": "planned",
            "job_id": "r",
            "stages": [
                {"name": "plan", "kind": "llm", "deps": [], "tasks": llm},
                {"name": "tools", "kind": "dynamic", "deps": ["plan"], "tasks": []},
                *inner,
                {"name": "join", "kind": "llm", "deps": ["tools"], "tasks": llm * 2},
            ],
        }
    )


def a_run(stages: int = 2, record: JobRecord = JOB) -> JobRun:
    run = JobRun(record, TEMPLATE, RecordedScript("job_1", TEMPLATE, recording(stages)))
    assert run.unfold(run.script.begin(), 10.0) == ([], [])
    return run


def complete(run: JobRun, stage: str, at: float) -> tuple[list[StageRecord], list[EventRecord]]:
    """What the service does when the tasks of a stage are over."""
    for index in range(len(run.stages[stage].results)):
        run.start(TaskRef("job_1", stage, index), "e1", at - 1)
        last = run.finish_task(TaskRef("job_1", stage, index), TaskResult(1.0, 7, 3))
    assert last
    unfolded = run.script.complete(stage, run.stages[stage].outputs)
    rows, events = run.finish_stage(stage, at)
    if (parent := run.stages[stage].spec.parent) is not None:
        rows += run.close_dynamic(parent, at)
    more_rows, more_events = run.unfold(unfolded, at)
    return rows + more_rows, events + more_events


def names(rows: list[StageRecord]) -> list[tuple[int, str, str]]:
    return [(row.position, row.name, row.state) for row in rows]


def told(events: list[EventRecord]) -> list[tuple[int, str]]:
    return [(event.seq, event.type) for event in events]


def test_starting_is_told_once_per_job_and_stage() -> None:
    run = a_run()
    assert told(run.start(TaskRef("job_1", "plan", 0), "e1", 11.0)) == [(1, "job.started"), (2, "stage.started")]
    assert run.start(TaskRef("job_1", "plan", 0), "e2", 12.0) == []
    assert run.started_at == 11.0


def test_a_plan_is_told_when_it_is_known_and_closed_with_its_last_stage() -> None:
    run = a_run()
    rows, events = complete(run, "plan", 12.0)
    assert names(rows) == [(1, "plan", "done")]
    assert told(events) == [(3, "stage.completed"), (4, "stage.expanded")]
    assert events[1].data == {"stage": "tools", "stages": ["t0", "t1"]}
    assert names(complete(run, "t1", 13.0)[0]) == [(2, "t1", "done")]
    assert names(complete(run, "t0", 14.0)[0]) == [(3, "t0", "done"), (4, "tools", "done")]


def test_an_empty_plan_is_over_when_it_is_known() -> None:
    rows, events = complete(a_run(stages=0), "plan", 12.0)
    assert names(rows) == [(1, "plan", "done"), (2, "tools", "done")]
    assert [event.type for event in events] == ["stage.completed", "stage.expanded"]


def test_a_stage_row_holds_what_every_task_cost() -> None:
    run = a_run()
    for stage in ("plan", "t0", "t1"):
        complete(run, stage, 12.0)
    rows, events = complete(run, "join", 20.0)
    assert names(rows) == [(5, "join", "done"), (6, "extra", "skipped")]
    join = rows[0]
    assert (join.kind, join.executors, join.started_at, join.finished_at) == (StageKind.LLM, ("e1", "e1"), 19.0, 20.0)
    assert join.results == (TaskResult(1.0, 7, 3),) * 2
    assert events[0].data == {"stage": "join", "seconds": 1.0, "prompt_tokens": 14, "output_tokens": 6}
    assert told(events)[-1] == (events[0].seq + 1, "stage.skipped")


def test_a_restored_run_goes_on_where_the_rows_end() -> None:
    first = a_run()
    rows = complete(first, "plan", 12.0)[0] + complete(first, "t1", 13.0)[0]

    second = a_run(record=replace(JOB, started_at=11.0))
    expanded = list(second.restore(rows))
    assert [e.stage for e in expanded] == ["plan", "t1"]
    assert expanded[0].results == (TaskResult(1.0, 7, 3),)
    assert [reveal.spec.name for reveal in expanded[0].reveals] == ["tools", "t0", "t1"]
    second.seq = first.seq  # which the service takes from the store
    assert complete(second, "t0", 30.0) == complete(first, "t0", 30.0)
    assert complete(second, "join", 31.0) == complete(first, "join", 31.0)


def test_a_restored_run_tells_of_no_second_start() -> None:
    run = a_run(record=replace(JOB, started_at=10.5))
    run.seq = 7
    assert told(run.start(TaskRef("job_1", "plan", 0), "e1", 11.0)) == [(8, "stage.started")]


@pytest.mark.parametrize("seed", range(20))
def test_every_prefix_of_the_rows_restores_to_the_same_future(seed: int) -> None:
    """Whatever was committed when the service died: what comes after is what would have come."""
    rng = Random(seed)
    job = generate(rng.choice(["llm_compiler", "task_automation"]), rng)
    template = Application.parse({"name": "bare", "stages": [{"name": "plan", "kind": "llm"}]}, version=1)

    def fresh() -> JobRun:
        run = JobRun(JOB, template, RecordedScript("job_1", template, job))
        run.unfold(run.script.begin(), 10.0)
        return run

    order = [s.name for s in job.stages if s.kind is not StageKind.DYNAMIC]
    whole = fresh()
    rows = [row for stage in order for row in complete(whole, stage, 12.0)[0]]
    cut = rng.randrange(len(rows))
    while rows[cut - 1].kind is StageKind.DYNAMIC or rows[cut].kind is StageKind.DYNAMIC:
        cut -= 1  # rows of one tick are committed together
    again = fresh()
    list(again.restore(rows[:cut]))
    left = [stage for stage in order if again.stages.get(stage) is None or again.stages[stage].left]
    later = [row for stage in left for row in complete(again, stage, 12.0)[0]]
    assert rows[:cut] + later == rows


def test_rows_that_do_not_follow_are_refused() -> None:
    first = a_run()
    complete(first, "plan", 12.0)
    t1 = complete(first, "t1", 13.0)[0]
    with pytest.raises(InvalidInput, match="'t1' does not follow"):
        list(a_run().restore(t1))


def test_what_is_over_but_not_committed_shows_as_running() -> None:
    run = a_run()
    assert run.stages["plan"].view()["state"] == "waiting"
    complete(run, "plan", 12.0)
    assert run.stages["plan"].view() == {
        "name": "plan",
        "kind": "llm",
        "state": "running",
        "after": [],
        "parent": None,
        "pool": "llm",
        "tasks": 1,
        "running": 0,
        "done": 1,
        "started_at": 11.0,
    }
