"""Bodies of the routes for whoever watches the service (`operation.py`)."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, JsonValue

from llmsched.gateway.schemas import Eta, Form


def _example(example: JsonValue) -> ConfigDict:
    return ConfigDict(json_schema_extra={"examples": [example]})


class JobCounts(BaseModel):
    """Jobs of an application by state; those that are over since the service started."""

    queued: int = 0
    running: int = 0
    completed: int = 0
    failed: int = 0
    cancelled: int = 0


class PoolView(BaseModel):
    """ready: tasks that wait for a slot."""

    name: str
    slots: int = 0
    running: int = 0
    ready: int = 0


class ExecutorView(BaseModel):
    """An engine, or the workers of a pool."""

    id: str
    pool: str
    slots: int
    running: int
    state: Literal["up", "down", "draining"] = "up"
    is_engine: bool = True


class Recent(BaseModel):
    """The last quarter of an hour. Seconds, and milliseconds of one decision; null where nothing happened."""

    completed: int
    failed: int
    jct_mean: float | None
    jct_p50: float | None
    jct_p95: float | None
    decisions: int
    decision_ms_mean: float | None
    decision_ms_max: float | None


class Overview(BaseModel):
    """How the service is right now. trouble: what somebody should look at, in sentences."""

    model_config = _example(
        {
            "at": 1795237264.57,
            "version": "0.1.0",
            "started_at": 1795230000.0,
            "policy": "llmsched-pool",
            "active": 14,
            "jobs": {"code_generation": {"queued": 3, "running": 11, "completed": 803, "failed": 1, "cancelled": 0}},
            "pools": [{"name": "llm", "slots": 64, "running": 64, "ready": 12}],
            "executors": [
                {"id": "engine-1", "pool": "llm", "slots": 64, "running": 64, "state": "up", "is_engine": True}
            ],
            "recent": {
                "completed": 51,
                "failed": 0,
                "jct_mean": 8.1,
                "jct_p50": 5.2,
                "jct_p95": 30.4,
                "decisions": 1300,
                "decision_ms_mean": 0.31,
                "decision_ms_max": 2.4,
            },
            "trouble": [],
        }
    )

    at: float
    version: str
    started_at: float
    policy: str
    active: int
    jobs: dict[str, JobCounts]
    pools: list[PoolView]
    executors: list[ExecutorView]
    recent: Recent
    trouble: list[str]


class TrendsQuery(BaseModel):
    """How far back."""

    model_config = ConfigDict(extra="forbid")

    span: Literal["15m", "2h", "24h"] = "15m"


Column = list[float | None]


class PoolTrend(BaseModel):
    ready: Column
    running: Column
    slots: Column


class ApplicationTrend(BaseModel):
    jct_mean: Column


class TrendsView(BaseModel):
    """Columns of 180 numbers, oldest first, null where nothing was known. at: beginnings of steps, unix seconds.

    jct: completion times of the jobs that completed in the step, seconds; queue: seconds from ready to dispatched.
    """

    model_config = _example(
        {
            "span": "15m",
            "step_s": 5.0,
            "at": [1795237260.0],
            "submitted": [4],
            "completed": [3],
            "failed": [0],
            "jct_mean": [8.1],
            "jct_p50": [5.2],
            "jct_p95": [30.4],
            "queue_mean": [0.8],
            "active": [14],
            "decisions": [41],
            "decision_ms_mean": [0.31],
            "decision_ms_max": [2.4],
            "pools": {"llm": {"ready": [12], "running": [64], "slots": [64]}},
            "applications": {"code_generation": {"jct_mean": [8.1]}},
        }
    )

    span: str
    step_s: float
    at: list[float]
    submitted: Column
    completed: Column
    failed: Column
    jct_mean: Column
    jct_p50: Column
    jct_p95: Column
    queue_mean: Column
    active: Column
    decisions: Column
    decision_ms_mean: Column
    decision_ms_max: Column
    pools: dict[str, PoolTrend]
    applications: dict[str, ApplicationTrend]


class AheadView(BaseModel):
    """A job that goes before: tasks of it that do, and what the policy goes by. job: null of another tenant's."""

    job: str | None
    application: str | None
    class_: str = Field(serialization_alias="class")
    tasks: int
    why: dict[str, Any] | None = None


class PlaceView(BaseModel):
    """Where a job stands in a pool. place: tasks before its first; null: beyond what was looked at, or not placed yet.

    jobs_ahead: whose tasks these are; ahead: the first ten of them. why: what the policy goes by for this job.
    """

    pool: str
    ready: int
    place: int | None
    is_exact: bool
    jobs_ahead: int
    ahead: list[AheadView]
    why: dict[str, Any] | None = None
    slots: int
    running: int


class RunningView(BaseModel):
    stage: str
    task: int
    executor: str
    started_at: float


class BackOffView(BaseModel):
    """A task that failed and is tried again after a while. losses: how often its executor was lost."""

    stage: str
    task: int
    failures: int
    losses: int


class BlockedView(BaseModel):
    stage: str
    waits_for: list[str]


class WhyView(BaseModel):
    """Why a job is not further. sentences: the same for people. remaining: expected seconds of work alone, by pool."""

    model_config = _example(
        {
            "job": "job_01m7y7nf5pk8qby37hnf",
            "policy": "sjf",
            "line": "jobs of the application with the least mean work first",
            "sentences": ["1 task waits for pool llm behind 2 tasks of 1 other job; 64 of 64 slots are taken"],
            "places": [
                {
                    "pool": "llm",
                    "ready": 1,
                    "place": 2,
                    "is_exact": True,
                    "jobs_ahead": 1,
                    "ahead": [
                        {
                            "job": "job_01m7y7nf5pk8qby37abc",
                            "application": "web_search",
                            "class": "standard",
                            "tasks": 2,
                            "why": {"estimate": 3.1},
                        }
                    ],
                    "why": {"estimate": 5.2},
                    "slots": 64,
                    "running": 64,
                }
            ],
            "running": [],
            "backing_off": [],
            "blocked": [{"stage": "code_exec_0", "waits_for": ["code_gen_0"]}],
            "remaining": {"llm": 5.2, "cpu": 0.1},
            "eta": {"p50": 1795237267.81, "p90": 1795237272.4},
        }
    )

    job: str
    policy: str
    line: str
    sentences: list[str] = []
    places: list[PlaceView] = []
    running: list[RunningView] = []
    backing_off: list[BackOffView] = []
    blocked: list[BlockedView] = []
    remaining: dict[str, float] = {}
    eta: Eta | None = None


class SpanView(BaseModel):
    """One attempt of a task. ended_at: null while it runs."""

    stage: str
    task: int
    attempt: int
    executor: str
    started_at: float
    ended_at: float | None = None
    outcome: Literal["running", "done", "failed", "sliced", "given_up"]


class TimelineView(BaseModel):
    """is_exact: False where only stages are known, whose tasks then begin with them. now: unix seconds."""

    model_config = _example(
        {
            "spans": [
                {
                    "stage": "test_gen",
                    "task": 0,
                    "attempt": 1,
                    "executor": "engine-1",
                    "started_at": 1795237264.57,
                    "ended_at": 1795237264.61,
                    "outcome": "done",
                }
            ],
            "is_exact": True,
            "now": 1795237270.0,
        }
    )

    spans: list[SpanView]
    is_exact: bool
    now: float


class WhatIfForm(Form):
    """policies: the first is what others are compared with; options as in `llmsched:eps=0.1`. last_s: how far back."""

    model_config = _example({"policies": ["llmsched-pool", "fcfs"], "last_s": 86400, "jobs": 1000})

    policies: list[str] = Field(min_length=1, max_length=8)
    last_s: float = Field(default=86_400.0, gt=0, allow_inf_nan=False)
    jobs: int = Field(default=1_000, ge=1, le=5_000, description="at most, the newest")


class WhatIfView(BaseModel):
    """A question and its answer. done: simulated jobs of `of`. Times are unix seconds."""

    model_config = _example(
        {
            "id": "whatif_0f9c5a3be9a4",
            "status": "running",
            "policies": ["llmsched-pool", "fcfs"],
            "since": 1795150864.0,
            "until": 1795237264.0,
            "asked_at": 1795237264.0,
            "ended_at": None,
            "done": 312,
            "of": 1606,
            "error": None,
            "result": None,
        }
    )

    id: str
    status: Literal["running", "done", "failed"]
    policies: list[str]
    since: float
    until: float
    asked_at: float
    ended_at: float | None = None
    done: int
    of: int
    error: str | None = None
    result: dict[str, Any] | None = None


class WhatIfPage(BaseModel):
    items: list[WhatIfView]
    next_cursor: str | None = None
