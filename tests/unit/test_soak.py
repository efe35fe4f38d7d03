"""The soak's verdict: evidence of a service that kept its promises has no fault, and every planted fault is found."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from random import Random
from typing import Any

import pytest

from llmsched.model.events import TaskResult
from llmsched.model.job import JobStatus
from llmsched.model.kinds import StageKind
from llmsched.model.records import EventRecord, JobRecord, StageRecord

SOAK = Path(__file__).parents[2] / "benchmarks" / "soak"
MODULES = ("engine", "verdict", "processes", "faults", "load", "soak")


@pytest.fixture(scope="module")
def scripts() -> Iterator[dict[str, Any]]:
    """The modules by name, as they find each other when soak.py is run as a script."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(SOAK))
        yield {name: importlib.import_module(name) for name in MODULES}
        for name in MODULES:
            del sys.modules[name]


@pytest.fixture
def verdict(scripts: dict[str, Any]) -> Any:
    return scripts["verdict"]


def job(id: str, number: int, **fields: Any) -> JobRecord:
    """A job that was submitted at 100 and completed at 103."""
    usual: dict[str, Any] = {"status": JobStatus.COMPLETED, "finished_at": 103.0, "idempotency_key": f"key-{id}"}
    return JobRecord(id, number, "app", 1, 100.0, **(usual | fields))


def stage(of: str, name: str, position: int, at: float) -> StageRecord:
    return StageRecord(of, name, position, "done", StageKind.LLM, at, results=(TaskResult(1.0, 5, 7),))


def events(of: str, *types: str) -> list[EventRecord]:
    """Numbered from 1, a second apart; `type:stage` for those of a stage."""
    told = []
    for k, type in enumerate(types, 1):
        name, _, stage = type.partition(":")
        told.append(EventRecord(of, k, name, 99.0 + k, {"stage": stage} if stage else {}))
    return told


USUAL = ("job.submitted", "job.started", "stage.started:a", "stage.completed:a", "job.completed")


def evidence(verdict: Any) -> Any:
    """A recorded and a live job, a call alone and a group of two, as a service leaves them that keeps its promises.

    It was killed at 150 and back at 153, when everything of that was long over.
    """
    recorded = job("r", 1, result={"prompt_tokens": 5, "output_tokens": 7}, has_recording=True)
    live = job("l", 2, result={"answer": 4})
    alone = job("c", 3, result={"calls": 1}, idempotency_key=None)
    group = job("g", 4, result={"calls": 2}, idempotency_key=None, metadata={"group": "run"})
    row = verdict.Stored(recorded, events("r", *USUAL), [stage("r", "a", 1, 102.0)])
    rest = verdict.Rest(
        files={"socket": 9, "database": 3, "null": 2},
        connections=4,
        children={"keeper": 2, "runner": 2},
        tasks={"serve": 1, "watch": 4},
    )
    return verdict.Evidence(
        submissions=[
            verdict.Submission("key-r", "recorded", "app", 100.0, "r", result=recorded.result),
            verdict.Submission("key-l", "live", "app", 100.0, "l", sample="app/1"),
        ],
        calls=[
            verdict.Asked(100.0, None, "c", "answered", 103.0),
            verdict.Asked(100.0, "run", "g", "answered", 101.0),
            verdict.Asked(102.0, "run", "g", "answered", 103.0),
        ],
        stored=[
            row,
            *(verdict.Stored(j, events(j.id, *USUAL), [stage(j.id, "a", 1, 102.0)]) for j in (live, alone, group)),
        ],
        told={"r": told_of(row)},
        looked={"l": [("completed", {"answer": 4}, None)] * 2},
        heard=[(101.0, "r-a-0-1-abcdef"), (101.5, "l-a-0-1-abcdef")],
        faults=[verdict.Fault(101.0, "engine", "engine-1"), verdict.Fault(150.0, "gateway")],
        away=[(150.0, 153.0)],
        memory=[(float(t), 150.0 + 0.5 * (t % 7)) for t in range(120)],
        before=rest,
        after=replace(rest, files={"socket": 12, "database": 9, "pipe": 1}),
        workers=2,
        errors=[("job abandoned", '{"reason": "its calls ended with the service that they came to"}')],
    )


def told_of(stored: Any) -> list[Any]:
    """What a follower reads of a job."""
    return [(e.seq, e.type, {"job": e.job, "at": e.at, **e.data}) for e in stored.events]


def test_promises_that_were_kept_give_no_complaint(verdict: Any) -> None:
    wanted = ("recorded job", "live job", "call answered", "gateway fault", "engine fault", "job followed")
    assert verdict.judge(evidence(verdict), wanted=wanted) == []


def test_a_soak_that_did_nothing_is_no_success(verdict: Any) -> None:
    found = verdict.judge(evidence(verdict), wanted=("recorded job", "worker fault"))
    assert found == [("the soak shows something", "there was no worker fault")]
    assert {b.promise for b in verdict.judge(verdict.Evidence())} == {"nothing leaks", "memory is flat"}


# ------------------------------------------------------------------------------------------- planted faults

Plant = Callable[[Any, Any], None]
ONCE = "every accepted job is there exactly once"
RAN_ONCE = "a committed stage ran once"
RESULTS = "results are right and do not change"
CALL = "a call through the door is answered rightly and accounted for"


def _lose(e: Any, v: Any) -> None:
    del e.stored[1]


def _double(e: Any, v: Any) -> None:
    again = job("l2", 9, result={"answer": 4}, idempotency_key="key-l")
    e.stored.append(v.Stored(again, events("l2", *USUAL), [stage("l2", "a", 1, 102.0)]))


def _never_answer(e: Any, v: Any) -> None:
    e.submissions.append(v.Submission("key-x", "live", "app", 100.0))


def _hang(e: Any, v: Any) -> None:
    running = job("l", 2, status=JobStatus.RUNNING, finished_at=None)
    e.stored[1] = v.Stored(running, events("l", "job.submitted", "job.started"), [])
    e.looked = {}


def _plant_events(*types: str) -> Plant:
    def plant(e: Any, v: Any) -> None:
        e.stored[1] = replace(e.stored[1], events=events("l", *types))

    return plant


def _gap(e: Any, v: Any) -> None:
    first, _, *rest = e.stored[1].events
    e.stored[1] = replace(e.stored[1], events=[first, *rest])


def _lose_row(e: Any, v: Any) -> None:
    e.stored[1] = replace(e.stored[1], stages=[])


def _tell_twice(e: Any, v: Any) -> None:
    e.told["r"].insert(3, e.told["r"][2])


def _tell_otherwise(e: Any, v: Any) -> None:
    number, type, data = e.told["r"][3]
    e.told["r"][3] = (number, type, data | {"at": 1.0})


def _wrong_total(e: Any, v: Any) -> None:
    e.submissions[0].result = {"prompt_tokens": 5, "output_tokens": 8}


def _other_result(e: Any, v: Any) -> None:
    other = job("m", 9, result={"answer": 5})
    e.submissions.append(v.Submission("key-m", "live", "app", 100.0, "m", sample="app/1"))
    e.stored.append(v.Stored(other, events("m", *USUAL), [stage("m", "a", 1, 102.0)]))


def _change_result(e: Any, v: Any) -> None:
    e.looked["l"][0] = ("completed", {"answer": 5}, None)


def _ignore_cancel(e: Any, v: Any) -> None:
    e.submissions[1].cancelled_at = 99.0


def _run_again(e: Any, v: Any) -> None:
    e.away.append((103.2, 104.0))
    e.heard.append((104.5, "r-a-0-1-fedcba"))


def _garble(e: Any, v: Any) -> None:
    e.calls[0].wrong = "half of the numbers"


def _forget_call(e: Any, v: Any) -> None:
    del e.stored[2]


def _invent_call(e: Any, v: Any) -> None:
    more = job("d", 9, result={"calls": 1}, idempotency_key=None)
    e.stored.append(v.Stored(more, events("d", *USUAL), [stage("d", "a", 1, 102.0)]))


def _break_call(e: Any, v: Any) -> None:
    e.calls[0].outcome = "broken"


def _split_group(e: Any, v: Any) -> None:
    more = job("h", 9, result={"calls": 1}, idempotency_key=None, metadata={"group": "run"})
    e.stored.append(v.Stored(more, events("h", *USUAL), [stage("h", "a", 1, 102.0)]))


def _lose_call_of_group(e: Any, v: Any) -> None:
    shorter = replace(e.stored[3].job, result={"calls": 1})
    e.stored[3] = replace(e.stored[3], job=shorter)


def _leak(**more: Any) -> Plant:
    def plant(e: Any, v: Any) -> None:
        e.after = replace(e.after, **more)

    return plant


def _grow(e: Any, v: Any) -> None:
    e.memory = [(t, mb + t * 5 / 60) for t, mb in e.memory]  # 5 MB a minute


def _outlive(e: Any, v: Any) -> None:
    e.left_over.append("process 77 is still there")


def _err(e: Any, v: Any) -> None:
    e.errors.append(("attempt failed unexpectedly", "{}"))


def _abandon(e: Any, v: Any) -> None:
    e.errors.append(("job abandoned", '{"reason": "the result cannot be stored"}'))


def _complain(e: Any, v: Any) -> None:
    e.complaints.append("GET / had no answer")


@pytest.mark.parametrize(
    ("plant", "found"),
    [
        (_lose, [(ONCE, "job l was accepted and is not in the store")]),
        (_double, [(ONCE, "submission key-l became 2 jobs: l, l2")]),
        (_never_answer, [(ONCE, "submission key-x was never answered")]),
        (_hang, [("every job is over in the end", "job l of app is running"), ("a job begins once and ends once", "")]),
        (_gap, [("event numbers have no gap and no repeat", "job l has events … [1, 3, 4, 5] … of 4")]),
        (_plant_events(*USUAL[1:]), [("a job begins once and ends once", "")]),
        (_plant_events(*USUAL, "job.completed"), [("a job begins once and ends once", "")]),
        (_plant_events(*USUAL[:-1], "job.failed"), [("a job begins once and ends once", "")]),
        (
            _plant_events(*USUAL[:-1], "stage.completed:a", "job.completed"),
            [(RAN_ONCE, "stage a of job l completed 2 times")],
        ),
        (
            _plant_events(*USUAL[:-1], "stage.started:a", "job.completed"),
            [(RAN_ONCE, "stage a of job l has stage.started after its completion")],
        ),
        (_lose_row, [(RAN_ONCE, "rows and events of job l disagree about ['a']")]),
        (_tell_twice, [("a stream that was resumed tells every event once", "")]),
        (_tell_otherwise, [("a stream that was resumed tells every event once", "")]),
        (_wrong_total, [(RESULTS, "")]),
        (_other_result, [(RESULTS, "jobs l and m of app/1 have different results")]),
        (_change_result, [(RESULTS, "")]),
        (_ignore_cancel, [("a cancelled job ends as cancelled", "job l completed 4.0 s after its cancel")]),
        (
            _run_again,
            [
                (
                    "work that is over never runs again",
                    "an engine was asked for r-a-0-1-fedcba 2.5 s after that was over",
                )
            ],
        ),
        (_garble, [(CALL, "a call of job c got half of the numbers")]),
        (_forget_call, [(CALL, "a call was answered as job c, which is not in the store")]),
        (_invent_call, [(CALL, "1 calls became 2 jobs")]),
        (_break_call, [(CALL, "a call of job c broke off, and the service was there")]),
        (
            _split_group,
            [
                (
                    "calls of one group are one job",
                    "group run (answered, answered) is 2 jobs, and the service was not killed meanwhile",
                )
            ],
        ),
        (_lose_call_of_group, [("calls of one group are one job", "")]),
        (
            _leak(files={"socket": 18, "database": 10, "null": 4, "new": 1}),
            [
                ("nothing leaks", "18 open files of kind socket at rest, 9 before the load"),
                ("nothing leaks", "10 open files of kind database at rest, 3 before the load"),
                ("nothing leaks", "4 open files of kind null at rest, 2 before the load"),
            ],
        ),
        (_leak(connections=13), [("nothing leaks", "13 connections at rest, 4 before the load")]),
        (
            _leak(tasks={"serve": 1, "watch": 4, "relay": 3}),
            [("nothing leaks", "8 asyncio tasks at rest, 5 before the load: relay 0 -> 3")],
        ),
        (_leak(children={"keeper": 2, "runner": 3}), [("nothing leaks", "3 child processes 'runner' at rest")]),
        (_leak(children={"sleep 99": 1}), [("nothing leaks", "1 child processes 'sleep 99' at rest")]),
        (_grow, [("memory is flat", "the service grew by 5.00 MB a minute; 4.02 may be noise")]),
        (_outlive, [("what the service started ends with it", "process 77 is still there")]),
        (_err, [("the log has no error that no fault explains", "attempt failed unexpectedly {}")]),
        (_abandon, [("the log has no error that no fault explains", "")]),
        (_complain, [("clients get answers", "GET / had no answer")]),
    ],
)
def test_a_planted_fault_is_found(verdict: Any, plant: Plant, found: list[tuple[str, str]]) -> None:
    e = evidence(verdict)
    plant(e, verdict)
    broken = verdict.judge(e)
    assert [(b.promise, b.story if story else "") for b, (_, story) in zip(broken, found, strict=True)] == found


# ------------------------------------------------------------------------------------------------- excuses


def _fail(e: Any, v: Any, error: str) -> None:
    failed = replace(e.stored[1].job, status=JobStatus.FAILED, error=error, result=None)
    told = events("l", *USUAL[:-1], "job.failed")
    e.stored[1] = v.Stored(failed, told, e.stored[1].stages)
    e.looked = {}


def test_a_job_may_fail_for_the_faults_it_met_and_for_nothing_else(verdict: Any) -> None:
    died = "task 0 of stage 'a' failed 3 times, last: worker_died: the worker process was killed by SIGKILL"
    met, spared, bug = evidence(verdict), evidence(verdict), evidence(verdict)
    _fail(met, verdict, died)
    _fail(spared, verdict, died)
    spared.faults = [verdict.Fault(104.0, "engine"), verdict.Fault(102.0, "gateway")]
    _fail(bug, verdict, "task 0 of stage 'a': internal: KeyError: 'a'")
    promise = "jobs fail only where faults used up their attempts"
    assert verdict.judge(met) == []
    assert verdict.judge(spared) == [(promise, f"job l of app failed: {died}")]
    assert verdict.judge(bug) == [(promise, "job l of app failed: task 0 of stage 'a': internal: KeyError: 'a'")]


def test_many_failures_are_too_many_whatever_explains_them(verdict: Any) -> None:
    e = evidence(verdict)
    for k in range(4):
        error = "task 0 of stage 'a' failed 3 times, last: connect: nobody listens"
        failed = job(f"f{k}", 10 + k, status=JobStatus.FAILED, error=error)
        e.submissions.append(verdict.Submission(f"key-f{k}", "live", "app", 100.0, f"f{k}"))
        e.stored.append(verdict.Stored(failed, events(f"f{k}", "job.submitted", "job.started", "job.failed"), []))
    assert verdict.judge(e) == [("jobs fail only where faults used up their attempts", "4 of 6 jobs failed; 3 may")]


def test_a_kill_excuses_what_was_not_promised_yet(verdict: Any) -> None:
    """Answers of the door that were not written, runs of agents in the middle, cancellations not yet committed."""
    for plant in (_forget_call, _split_group, _lose_call_of_group, _break_call, _ignore_cancel):
        e = evidence(verdict)
        e.away = [(101.5, 101.9)]
        plant(e, verdict)
        assert verdict.judge(e) == []


def test_a_call_that_its_client_left_may_come_too_late_for_its_group(verdict: Any) -> None:
    e = evidence(verdict)
    e.calls.insert(2, verdict.Asked(101.5, "run", None, "left", 101.6))
    assert verdict.judge(e) == []  # it never came
    _split_group(e, verdict)
    assert verdict.judge(e) == []  # it came after the last one
    e.stored[-1] = replace(e.stored[-1], job=replace(e.stored[-1].job, result={"calls": 2}))
    told = "3 calls of group run (answered, left, answered) are 4 in its jobs"
    assert verdict.judge(e) == [("calls of one group are one job", told)]


def test_a_request_may_be_late_at_a_busy_engine_but_not_for_ever(verdict: Any) -> None:
    e = evidence(verdict)
    e.heard += [(109.0, "r-a-0-1-abcdef"), (133.0, "r-a-0-2-abcdef")]
    again = "an engine was asked for r-a-0-2-abcdef 31.0 s after that was over"
    assert verdict.judge(e) == [("work that is over never runs again", again)]


def test_a_kill_excuses_no_lost_job(verdict: Any) -> None:
    e = evidence(verdict)
    e.away = [(100.0, 103.0)]
    _lose(e, verdict)
    assert verdict.judge(e) == [(ONCE, "job l was accepted and is not in the store")]


# --------------------------------------------------------------------------------------------- load and faults


def test_a_seed_plans_the_same_faults_and_the_last_life_has_half_of_the_time(scripts: dict[str, Any]) -> None:
    plan = scripts["faults"].plan
    planned = plan(600.0, Random(5))
    assert planned == plan(600.0, Random(5)) != plan(600.0, Random(6))
    kills = [f.at for f in planned if f.kind == "gateway"]
    assert len(kills) == 10
    assert max(kills) <= 300.0
    assert {f.kind for f in planned} == {"gateway", "engine", "worker", "answer"}


def test_a_short_soak_has_a_kill_too(scripts: dict[str, Any]) -> None:
    assert sum(f.kind == "gateway" for f in scripts["faults"].plan(20.0, Random(0))) == 1


def test_answers_of_the_door_are_read_to_the_last_number(scripts: dict[str, Any]) -> None:
    heard, text = scripts["load"]._heard, scripts["engine"].counted(3)
    chunk = b'data: {"choices": [{"delta": {"content": "%s"}}]}'
    parts = [chunk % b"0 1", chunk % b" 2"]
    whole = b'{"choices": [{"message": {"content": "0 1 2"}}]}'
    assert text == "0 1 2"
    assert heard(200, whole, False, text) == ("answered", "")
    assert heard(200, b"\n\n".join([*parts, b"data: [DONE]", b""]), True, text) == ("answered", "")
    assert heard(200, b"\n\n".join([*parts, b'data: {"error": {"message": "x"}}', b""]), True, text) == ("refused", "")
    assert heard(503, b"", True, text) == ("refused", "")
    twice = heard(200, b"\n\n".join([*parts, parts[1], b"data: [DONE]", b""]), True, text)
    assert twice == ("answered", "'0 1 2 2'… in place of the numbers")
    cut = heard(200, b"\n\n".join([*parts, b""]), True, text)
    assert (cut[0], cut[1].startswith("a stream that ends with")) == ("refused", True)


def test_the_summary_says_which_promises_were_broken(scripts: dict[str, Any], verdict: Any) -> None:
    broken = [verdict.Broken("nothing leaks", f"story {k}")._asdict() for k in range(12)]
    memory = {"mb_per_minute": None}
    told = {
        **{"seed": 7, "settings": {"seconds": 120.0, "store": "sqlite"}, "jobs": {"live app": {"completed": 3}}},
        **{"counts": {"live job": 3}, "engine_requests": 9, "stages": 3, "events": 15, "disconnects": 0},
        **{"streams_resumed": 0, "service_lives": 2, "service_start_s": [1.5], "engine_restarts": 0, "cpu_share": 0.2},
        **{"memory": memory, "rest": {"before": None, "after": None}},
    }
    assert list(scripts["soak"].summary(told | {"broken": []}))[-1] == "every promise was kept"
    last = list(scripts["soak"].summary(told | {"broken": broken}))[-13:]
    assert last[:2] == ["12 BROKEN PROMISES", "  nothing leaks:"]
    assert last[2:] == [*(f"    story {k}" for k in range(10)), "    … and 2 more"]
