"""Replay against a service that is made up here: what is sent, what is measured, what survives, and the numbers."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import orjson
import pytest
from rich.console import Console

from llmsched import report
from llmsched.errors import BackendError
from llmsched.model.kinds import StageKind
from llmsched.model.recording import RecordedStage, RecordedTask, Recording
from llmsched.replay import ReplayRun, replay, to_json
from llmsched.runtime.api import Api, ApiError
from llmsched.workloads import Arrival


def arrivals(*at: float, application: str = "a") -> list[Arrival]:
    stage = RecordedStage("s", StageKind.LLM, (), (RecordedTask(1, 1),))
    return [Arrival(t, Recording(application, f"j{k}", (stage,))) for k, t in enumerate(at)]


class FakeService(httpx.AsyncBaseTransport):
    """Takes jobs and says how they end: job k was submitted at 100 + k and took k + 1 seconds.

    outcomes: by job number, "completed" elsewhere. answers: called with the number of each POST before it is taken; a
    response instead of None is what the client gets. lost: jobs whose end the stream does not tell.
    """

    def __init__(self) -> None:
        self.outcomes: dict[int, str] = {}
        self.answers: Callable[[int], httpx.Response | None] = lambda post: None
        self.lost: set[int] = set()
        self.breaks_after: int | None = None
        self.says_lagged = False
        self.metrics = ["", ""]
        self.jobs: dict[str, int] = {}
        self.posts = 0
        self.looks = 0
        self._told: asyncio.Queue[bytes | None] = asyncio.Queue()

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        match (request.method, request.url.path):
            case ("GET", "/metrics"):
                return httpx.Response(200, text=self.metrics.pop(0))
            case ("GET", "/v1/engines"):
                return httpx.Response(200, json={"items": [{"id": "e1", "pool": "llm"}, {"id": "e2", "pool": "big"}]})
            case ("GET", "/v1/events"):
                return httpx.Response(200, content=self._events())
            case ("POST", "/v1/jobs"):
                return await self._take(request)
            case ("GET", path) if path.startswith("/v1/jobs/"):
                self.looks += 1
                return httpx.Response(200, json=self._view(int(path.rpartition("_")[2])))
        raise AssertionError(request)

    async def _take(self, request: httpx.Request) -> httpx.Response:
        self.posts += 1
        answer = self.answers(self.posts)
        if answer is not None and answer.status_code != 599:
            return answer
        key = request.headers["Idempotency-Key"]
        if key not in self.jobs:
            number = self.jobs[key] = len(self.jobs)
            if number not in self.lost:
                self._told.put_nowait(self._news(number))
        if answer is not None:  # taken, and the answer is lost
            raise httpx.ReadError("connection lost")
        return httpx.Response(202, json={"id": f"job_{self.jobs[key]}"})

    def _view(self, number: int) -> dict[str, Any]:
        status = self.outcomes.get(number, "completed")
        return {"status": status, "submitted_at": 100.0 + number, "finished_at": 101.0 + 2 * number}

    def _news(self, number: int) -> bytes:
        outcome = self.outcomes.get(number, "completed")
        data = {"job": f"job_{number}", "at": 101.0 + 2 * number, "seconds": number + 1.0}
        return b"event: job.%s\ndata: %s\n\n" % (outcome.encode(), orjson.dumps(data))

    async def _events(self) -> AsyncIterator[bytes]:
        yield b": connected\n\n"
        told = 0
        while True:
            if self.breaks_after == told:
                self.breaks_after = None
                return
            yield await self._told.get() or b""
            told += 1
            if self.says_lagged:
                self.says_lagged = False
                yield b"event: stream.lagged\ndata: {}\n\n"


async def run(service: FakeService, planned: list[Arrival], **options: Any) -> ReplayRun:
    async with Api("http://fake", transport=service) as api:
        async with asyncio.timeout(10):
            return await replay(api, planned, policy="fcfs", seed=3, **options)


def shown(result: ReplayRun) -> list[float | None]:
    return [seconds for _, seconds in result.jobs]


async def test_jobs_are_sent_in_time_and_measured_by_the_service_clock() -> None:
    progress: list[tuple[int, int]] = []
    result = await run(
        FakeService(), arrivals(0.0, 0.01, 0.05), progress=lambda sent, ended: progress.append((sent, ended))
    )
    assert result.jobs == [("a", 1.0), ("a", 2.0), ("a", 3.0)]
    assert result.makespan == 5.0  # from 100 to 105
    assert len(result.lag) == 3
    assert max(result.lag) < 0.5
    assert progress[-1] == (3, 3)


async def test_speed_sends_faster_and_gives_emulated_seconds() -> None:
    loop = asyncio.get_running_loop()
    began = loop.time()
    result = await run(FakeService(), arrivals(0.0, 100.0), speed=1000.0)
    assert 0.1 <= loop.time() - began < 5.0
    assert shown(result) == [1000.0, 2000.0]
    assert result.makespan == 3000.0


async def test_jobs_that_do_not_complete_are_counted_as_failed() -> None:
    service = FakeService()
    service.outcomes = {1: "failed", 2: "cancelled"}
    result = await run(service, arrivals(0, 0, 0, 0))
    assert shown(result) == [1.0, None, None, 4.0]
    entry = result.to_json()
    assert (entry["jobs"], entry["failed"], entry["mean_jct"]) == (4, 2, 2.5)
    assert entry["apps"] == {"a": {"jobs": 2, "mean_jct": 2.5}}


async def test_a_stream_that_breaks_is_taken_up_and_the_gap_is_looked_into() -> None:
    service = FakeService()
    service.breaks_after, service.lost = 1, {1}
    result = await run(service, arrivals(0, 0, 0))
    assert shown(result) == [1.0, 2.0, 3.0]
    assert 1 <= service.looks <= 2


async def test_a_stream_that_lags_is_not_trusted() -> None:
    service = FakeService()
    service.says_lagged, service.lost = True, {1}
    assert shown(await run(service, arrivals(0, 0))) == [1.0, 2.0]


async def test_a_complete_stream_costs_no_further_request() -> None:
    service = FakeService()
    await run(service, arrivals(*[0.0] * 20))
    assert (service.posts, service.looks) == (20, 0)


@pytest.mark.parametrize("status", [429, 500, 503, 599])
async def test_a_job_is_handed_in_until_it_is_taken_and_never_twice(status: int) -> None:
    service = FakeService()
    busy = httpx.Response(status, headers={"Retry-After": "0"}, json={"detail": "full"})
    service.answers = lambda post: busy if post <= 2 else None
    result = await run(service, arrivals(0))
    assert (service.posts, len(service.jobs)) == (3, 1)
    assert shown(result) == [1.0]


async def test_a_job_that_is_refused_ends_the_replay_at_once() -> None:
    service = FakeService()
    headers = {"Content-Type": "application/problem+json"}
    refusal = httpx.Response(422, headers=headers, json={"detail": "too long", "field": "recording"})
    service.answers = lambda post: refusal
    with pytest.raises(ApiError, match=r"^too long$") as error:
        await run(service, arrivals(0, 3600))
    assert (error.value.status, error.value.field) == (422, "recording")


async def test_a_service_that_stays_away_ends_the_replay() -> None:
    service = FakeService()
    full = httpx.Response(503, headers={"Retry-After": "0"}, json={"detail": "the service is shutting down"})
    service.answers = lambda post: full
    with pytest.raises(BackendError, match=r"^the service is shutting down$"):
        await run(service, arrivals(0), patience=0.05)


# ------------------------------------------------------------------------------------------------- the counters


def page(decisions: float, seconds: float, quick: float, llm: float, cpu: float) -> str:
    return f"""# HELP x
llmsched_decision_seconds_bucket{{le="0.001"}} {quick}
llmsched_decision_seconds_bucket{{le="0.01"}} {decisions}
llmsched_decision_seconds_bucket{{le="+Inf"}} {decisions}
llmsched_decision_seconds_count {decisions}
llmsched_decision_seconds_sum {seconds}
llmsched_executor_slots{{executor="e1"}} 2.0
llmsched_executor_slots{{executor="e2"}} 1.0
llmsched_executor_slots{{executor="workers-cpu"}} 4.0
llmsched_task_run_seconds_sum{{application="a",pool="llm"}} {llm}
llmsched_task_run_seconds_sum{{application="b",pool="llm"}} {llm}
llmsched_task_run_seconds_sum{{application="a",pool="cpu"}} {cpu}
"""


async def test_decisions_and_utilisation_are_the_growth_of_the_counters() -> None:
    service = FakeService()
    service.metrics = [page(100, 1.0, 50, 10.0, 0.0), page(200, 1.2, 100, 13.0, 2.0)]
    result = await run(service, arrivals(0, 0, 0))  # over 5 s
    assert result.decisions == 100
    # 50 of 100 took up to 1 ms, the rest up to 10 ms: the median is 1 ms, the 99th percentile 1 + 9 × 49 / 50
    assert result.decision_ms == pytest.approx({"mean": 2.0, "p50": 1.0, "p99": 9.82})
    assert result.utilisation == pytest.approx({"llm": 6.0 / (2 * 5), "big": 0.0, "cpu": 2.0 / (4 * 5)})


async def test_counters_that_begin_anew_are_counted_from_zero() -> None:
    service = FakeService()
    service.metrics = [page(100, 1.0, 50, 10.0, 5.0), page(40, 0.02, 40, 2.0, 1.0)]
    result = await run(service, arrivals(0, 0, 0))
    assert result.decisions == 40
    assert result.decision_ms["mean"] == pytest.approx(0.5)
    assert result.utilisation["llm"] == pytest.approx(4.0 / 10)


# ------------------------------------------------------------------------------------------------- the document


def a_run(policy: str, *seconds: float | None, applications: str = "") -> ReplayRun:
    names = applications or "a" * len(seconds)
    return ReplayRun(policy, 0, jobs=list(zip(names, seconds, strict=True)), lag=[0.001, 0.003], makespan=9.0)


def test_the_document_has_the_keys_of_the_contract() -> None:
    runs = [a_run("fcfs", 1.0, 3.0, applications="ab"), a_run("sjf", 1.0, 1.0, applications="ab")]
    document = orjson.loads(orjson.dumps(to_json({"workload": "mixed"}, runs)))
    assert document.keys() == {"settings", "runs", "summary"}
    assert document["runs"][0] == {
        "policy": "fcfs",
        "seed": 0,
        "jobs": 2,
        "failed": 0,
        "mean_jct": 2.0,
        "p50_jct": 2.0,
        "p95_jct": pytest.approx(2.9),
        "p99_jct": pytest.approx(2.98),
        "mean_request": None,
        "mean_slowdown": None,
        "max_slowdown": None,
        "jain": None,
        "makespan": 9.0,
        "decisions": 0,
        "decision_ms": {"mean": None, "p50": None, "p99": None},
        "utilisation": {},
        "apps": {"a": {"jobs": 1, "mean_jct": 1.0}, "b": {"jobs": 1, "mean_jct": 3.0}},
        "send_lag_ms": {"p50": pytest.approx(2.0), "p99": pytest.approx(2.98), "max": pytest.approx(3.0)},
    }
    fcfs, sjf = document["summary"]
    assert (fcfs["policy"], fcfs["mean_jct"], fcfs["vs"].keys()) == ("fcfs", 2.0, {"sjf"})
    assert sjf["vs"]["fcfs"]["change_pct"] == pytest.approx(-50.0)
    assert sjf["ci95"] == [1.0, 1.0]


def test_changes_compare_the_same_jobs() -> None:
    mine, theirs = a_run("new", 2.0, 4.0, None, 6.0), a_run("old", 4.0, 8.0, 1.0, None)
    entry = to_json({}, [theirs, mine])["summary"][1]
    assert entry["mean_jct"] == 4.0
    change = entry["vs"]["old"]  # of the first two jobs: 3 against 6, and exactly half in every resample
    assert change["change_pct"] == pytest.approx(-50.0)
    assert change["ci95"] == pytest.approx([-50.0, -50.0])


def test_an_interval_covers_the_mean_and_shrinks_with_more_jobs() -> None:
    rng = np.random.default_rng(0)
    few, many = (to_json({}, [a_run("p", *rng.exponential(1.0, n).tolist())])["summary"][0] for n in (20, 2000))
    for entry in (few, many):
        low, high = entry["ci95"]
        assert low < entry["mean_jct"] < high
    # the 95 % interval of a mean of n exponentials is about 4 / sqrt(n) wide; within a third
    assert many["ci95"][1] - many["ci95"][0] == pytest.approx(4 / 2000**0.5, rel=0.33)


def test_the_same_runs_give_the_same_document() -> None:
    runs = [a_run("fcfs", 1.0, 5.0, 2.0), a_run("sjf", 2.0, 3.0, 2.0)]
    assert to_json({}, runs) == to_json({}, runs)


def test_nothing_completed_is_a_document_too() -> None:
    document = to_json({"speed": 1.0}, [a_run("fcfs", None, None), a_run("sjf", 1.0, None)])
    assert document["summary"] == [
        {"policy": "fcfs", "mean_jct": None, "ci95": None, "vs": {}},
        {"policy": "sjf", "mean_jct": 1.0, "ci95": None, "vs": {}},
    ]
    assert orjson.dumps(document)
    assert "–" in text_of(document)


# --------------------------------------------------------------------------------------------- table and picture


def text_of(document: dict[str, Any]) -> str:
    console = Console(width=140, record=True, file=open("/dev/null", "w"))  # noqa: SIM115
    with console.file:
        console.print(report.table(document))
        return console.export_text()


def test_the_table_says_what_was_compared() -> None:
    runs = [a_run("fcfs", 2.0, 4.0, None), a_run("sjf", 1.0, 2.0, 3.0)]
    text = text_of(to_json({"speed": 20.0}, runs))
    assert "Job completion time in emulated seconds" in text
    assert "mean against" in text
    first, second = (line for line in text.splitlines() if line.startswith((" fcfs", " sjf")))
    assert first.split()[:4] == ["fcfs", "3", "1", "3.00"]
    assert "-50.0 % (-50 … -50)" in second


def test_the_table_of_one_policy_compares_nothing() -> None:
    text = text_of(to_json({"speed": 1.0}, [a_run("fcfs", 2.0, 4.0)]))
    assert "Job completion time in seconds" in text
    assert "against" not in text
    assert "failed" not in text


def test_the_picture_is_a_png(tmp_path: Path) -> None:
    runs = [a_run("fcfs", 2.0, 4.0, None), a_run("sjf", None, None, None)]
    path = report.plot(to_json({"speed": 2.0}, runs), runs, tmp_path / "new", title="three jobs")
    assert path == tmp_path / "new/completion_times.png"
    assert path.read_bytes().startswith(b"\x89PNG")
