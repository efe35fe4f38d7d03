"""Request and response bodies of the REST contract."""

from __future__ import annotations

from datetime import date
from enum import StrEnum
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, JsonValue

from llmsched.model.events import JobClass
from llmsched.model.job import JobStatus
from llmsched.model.kinds import StageKind

EXAMPLE_RECORDING: dict[str, JsonValue] = {
    "app": "code_generation",
    "job_id": "example#1",
    "stages": [
        {"name": "test_gen", "kind": "llm", "deps": [], "tasks": [{"prompt_tokens": 250, "output_tokens": 104}]},
        {
            "name": "code_gen_0",
            "kind": "llm",
            "deps": ["test_gen"],
            "tasks": [{"prompt_tokens": 119, "output_tokens": 108}],
        },
        {
            "name": "code_exec_0",
            "kind": "regular",
            "deps": ["code_gen_0"],
            "tasks": [{"tool": "python_exec", "duration_s": 0.041}],
        },
    ],
}

EXAMPLE_APPLICATION: dict[str, JsonValue] = {
    "name": "summarize",
    "stages": [
        {"name": "draft", "kind": "llm", "prompt": "Summarise: {{ input.text }}", "max_tokens": 200},
        {"name": "polish", "kind": "llm", "after": ["draft"], "prompt": "Make it shorter: {{ stages.draft }}"},
    ],
}

_EXAMPLE_JOB: dict[str, JsonValue] = {
    "id": "job_01m7y7nf5pk8qby37hnf",
    "application": "code_generation",
    "version": 1,
    "status": "running",
    "class": "interactive",
    "submitted_at": 1795237264.56,
    "started_at": 1795237264.57,
    "finished_at": None,
    "deadline_s": 60.0,
    "metadata": {"customer": "c-17"},
    "recorded": True,
    "off_profile": [],
    "result": None,
    "error": None,
}
_EXAMPLE_STAGE: dict[str, JsonValue] = {
    "name": "test_gen",
    "kind": "llm",
    "state": "done",
    "after": [],
    "parent": None,
    "pool": "llm",
    "tasks": 1,
    "running": 0,
    "done": 1,
    "started_at": 1795237264.57,
    "finished_at": 1795237264.61,
    "prompt_tokens": 250,
    "output_tokens": 104,
    "executors": ["engine-1"],
}


def _example(example: JsonValue) -> ConfigDict:
    return ConfigDict(json_schema_extra={"examples": [example]})


class Form(BaseModel):
    """A request body: unknown fields are refused. `Any` is JSON, which `body.py` has made sure of."""

    model_config = ConfigDict(extra="forbid", strict=True)


class ClassName(StrEnum):
    INTERACTIVE = "interactive"
    STANDARD = "standard"
    BATCH = "batch"

    @property
    def job_class(self) -> JobClass:
        return JobClass[self.name]


class JobForm(Form):
    """A job to run: either an `input` for a live application, or a `recording` to replay faithfully."""

    model_config = _example({"application": "code_generation", "recording": EXAMPLE_RECORDING, "class": "interactive"})

    application: str = Field(min_length=1, max_length=64, description="name of a registered application")
    input: Any = Field(default=None, description="what the application's templates call `input`")
    recording: dict[str, Any] | None = Field(
        default=None, description="a whole trace job: it is executed exactly as recorded"
    )
    class_: Annotated[ClassName, Field(strict=False)] = Field(
        default=ClassName.STANDARD, alias="class", description="work of an earlier class always goes first"
    )
    metadata: dict[str, Any] = Field(default_factory=dict, description="kept and returned, never read")
    deadline_s: float | None = Field(
        default=None, gt=0, le=1e9, description="seconds from now in which it should be over; it counts in the order"
    )
    callback_url: str | None = Field(
        default=None,
        min_length=1,
        max_length=2000,
        description="where the job's end is POSTed to, signed: http or https, at a public address",
    )


class BatchForm(Form):
    """Several jobs; each is accepted or refused on its own."""

    model_config = _example({"jobs": [{"application": "code_generation", "recording": EXAMPLE_RECORDING}]})

    jobs: list[JobForm] = Field(min_length=1, max_length=1000)


class JobQuery(BaseModel):
    """Which jobs to list."""

    model_config = ConfigDict(extra="forbid")

    status: JobStatus | None = Field(default=None, description="only jobs in this state")
    application: str | None = Field(default=None, description="only jobs of this application", examples=["web_search"])
    cursor: str | None = Field(default=None, description="`next_cursor` of the page before", examples=["bjQy"])
    limit: int = Field(default=50, ge=1, le=500)


class EngineForm(Form):
    """An engine to add. slots: its maximum batch; left out, the engine is asked."""

    model_config = _example({"url": "http://gpu-1:8000", "slots": 64})

    url: str = Field(pattern=r"^https?://[!-.0-~][!-~]*$", max_length=2048)
    slots: int | None = Field(default=None, ge=1, le=100_000)
    pool: str = Field(default="llm", pattern=r"^[A-Za-z][A-Za-z0-9_./:-]{0,127}$")
    model: str | None = Field(default=None, max_length=512)
    api_key: str | None = Field(default=None, max_length=4096, pattern=r"^[\x21-\x7e]*$")


class PolicyForm(Form):
    """The policy that orders ready work from now on."""

    model_config = _example({"name": "sjf"})

    name: str


class StageView(BaseModel):
    """A stage: waiting, ready, running, done or skipped. tasks: null until it is revealed. Times are unix seconds."""

    model_config = _example(_EXAMPLE_STAGE)

    name: str
    kind: StageKind
    state: Literal["waiting", "ready", "running", "done", "skipped"]
    after: list[str] = []
    parent: str | None = None
    pool: str = ""
    tasks: int | None = None
    running: int = 0
    done: int = 0
    started_at: float | None = None
    finished_at: float | None = None
    prompt_tokens: int | None = None
    output_tokens: int | None = None
    executors: list[str] = []


class Eta(BaseModel):
    """Unix seconds before which the job is done with a probability of 50 % and 90 %, as believed."""

    model_config = _example({"p50": 1795237267.81, "p90": 1795237272.4})

    p50: float
    p90: float


class CallbackView(BaseModel):
    """What became of telling a job's end to its `callback_url`.

    id: the `webhook-id` of every attempt. state: `pending` until the job is over, then `delivering`, at last
    `delivered` or `given_up`. error: of the last attempt that failed. Times are unix seconds.
    """

    model_config = _example(
        {
            "url": "https://example.org/hooks/llmsched",
            "id": "evt_01m7y7nf5pk8qby37hnf",
            "state": "delivering",
            "attempts": 2,
            "next_at": 1795237284.9,
            "ended_at": None,
            "error": "it answered 503",
        }
    )

    url: str
    id: str
    state: Literal["pending", "delivering", "delivered", "given_up"] = "pending"
    attempts: int = 0
    next_at: float | None = None
    ended_at: float | None = None
    error: str | None = None


class JobSummary(BaseModel):
    """A job without its stages. Times are unix seconds."""

    model_config = _example(_EXAMPLE_JOB)

    id: str
    application: str
    version: int
    status: JobStatus
    class_: ClassName = Field(serialization_alias="class")
    submitted_at: float
    started_at: float | None = None
    finished_at: float | None = None
    deadline_s: float | None = None
    metadata: dict[str, Any] = {}
    recorded: bool = False
    off_profile: list[str] = Field(
        default=[], description="how a job (its recording, or a plan) differs from its template"
    )
    result: Any = None
    error: str | None = None


class Forecast(BaseModel):
    """When a job with a deadline will probably be over, as believed when it was accepted. due: unix seconds.

    warning: a sentence where it will more likely than not be late.
    """

    model_config = _example({"due": 1795237324.56, "eta": {"p50": 1795237267.81, "p90": 1795237272.4}, "warning": None})

    due: float
    eta: Eta
    warning: str | None = None


class AcceptedJob(JobSummary):
    """A job that was accepted. forecast: null without a deadline, and where deadlines are not looked at (settings)."""

    model_config = _example(
        {
            **_EXAMPLE_JOB,
            "forecast": {
                "due": 1795237324.56,
                "eta": {"p50": 1795237267.81, "p90": 1795237272.4},
                "warning": None,
            },
        }
    )

    forecast: Forecast | None = None


class JobView(JobSummary):
    """A job with its stages. eta: null of a job that is over, and while nothing is learned about the application.
    callback: null of a job without a `callback_url`.
    """

    model_config = _example(
        {**_EXAMPLE_JOB, "stages": [_EXAMPLE_STAGE], "eta": {"p50": 1795237267.81, "p90": 1795237272.4}}
    )

    stages: list[StageView] = []
    eta: Eta | None = None
    callback: CallbackView | None = None


class JobPage(BaseModel):
    items: list[JobSummary]
    next_cursor: str | None = None


class CallbackMessage(BaseModel):
    """The body of a callback. type: `job.` and the job's status. timestamp: when the job ended, ISO 8601.

    data: the job as `GET /v1/jobs/{id}` has it, without stages. result_omitted: the result was too large to be sent
    along, ask for it.
    """

    model_config = _example(
        {
            "type": "job.failed",
            "timestamp": "2026-11-28T02:21:04.610+00:00",
            "data": {
                **_EXAMPLE_JOB,
                "status": "failed",
                "finished_at": 1795237264.61,
                "error": "http_500: it is broken",
            },
            "result_omitted": False,
        }
    )

    type: str
    timestamp: str
    data: JobSummary
    result_omitted: bool = False


class BatchItem(BaseModel):
    """What became of one job of a batch: its id, or why it was refused, in the words the job alone would have got."""

    model_config = _example(
        {"status": 202, "id": "job_01m7y7nf5pk8qby37hnf", "detail": None, "field": None, "forecast": None}
    )

    status: int
    id: str | None = None
    detail: str | None = None
    field: str | None = None
    forecast: Forecast | None = None


class BatchView(BaseModel):
    """In the order of the request."""

    items: list[BatchItem]


class ProfileView(BaseModel):
    """What was learned of an application. jobs: from so many. learned_at: unix seconds.

    estimator: the one at work; `mean` also where belief has become worse than that. scores: what each reached in
    cross-validation, errors relative to the mean remaining work.
    """

    model_config = _example(
        {
            "jobs": 412,
            "learned_at": 1795237201.3,
            "estimator": "history",
            "scores": {
                "history": {"mae": 0.31, "rmse": 0.52, "tau": 0.55, "cover50": 0.5, "cover90": 0.9, "points": 480}
            },
        }
    )

    jobs: int
    learned_at: float
    estimator: str
    scores: dict[str, dict[str, float | None]]


class ApplicationView(BaseModel):
    """A registered application. stages: the padded DAG. executable: whether jobs can run on an input.

    profile: null while nothing is learned about this version.
    """

    model_config = _example(
        {
            "name": "summarize",
            "version": 1,
            "digest": "8c1f0a3b9d2e",
            "description": "",
            "executable": True,
            "stages": [{"name": "draft", "kind": "llm", "after": [], "pool": "llm"}],
            "definition": EXAMPLE_APPLICATION,
            "profile": None,
        }
    )

    name: str
    version: int
    digest: str
    description: str = ""
    executable: bool
    stages: list[dict[str, Any]]
    definition: dict[str, Any]
    profile: ProfileView | None = None


class ApplicationPage(BaseModel):
    items: list[ApplicationView]
    next_cursor: str | None = None


class HandlerView(BaseModel):
    """What regular stages may name as their handler: a `python` function, or an `http` tool that lives elsewhere.

    description: one line. schema: the JSON Schema that its arguments are held to; null: it takes any.
    """

    model_config = _example(
        {
            "name": "sleep",
            "kind": "python",
            "description": "Does nothing for `seconds`.",
            "schema": {"type": "object", "properties": {"seconds": {"type": "number"}}, "required": ["seconds"]},
        }
    )

    name: str
    kind: Literal["python", "http"]
    description: str = ""
    schema_: dict[str, Any] | None = Field(default=None, serialization_alias="schema")


class HandlerPage(BaseModel):
    items: list[HandlerView]
    next_cursor: str | None = None


class EngineView(BaseModel):
    """An engine as the scheduler sees it. running: its own in-flight count, not a scraped number."""

    model_config = _example(
        {
            "id": "engine-1",
            "url": "http://gpu-1:8000",
            "model": "Qwen/Qwen3-8B",
            "pool": "llm",
            "slots": 64,
            "running": 12,
            "healthy": True,
            "draining": False,
            "max_model_len": 32768,
            "last_error": None,
        }
    )

    id: str
    url: str
    model: str | None
    pool: str
    slots: int
    running: int
    healthy: bool
    draining: bool
    max_model_len: int | None = None
    last_error: str | None = None


class EnginePage(BaseModel):
    items: list[EngineView]
    next_cursor: str | None = None


class PolicyView(BaseModel):
    """A policy, and whether it is the one at work."""

    model_config = _example({"name": "fcfs", "line": "jobs in arrival order", "source": "Spark FIFO", "active": True})

    name: str
    line: str
    source: str
    active: bool


class PolicyPage(BaseModel):
    items: list[PolicyView]
    next_cursor: str | None = None


class DispatchView(BaseModel):
    """A task that was sent to an executor.

    why: what the policy went by, such as `estimate` (seconds of work left), `reduction`, `draw` or `explored`; null of
    a policy that goes by the order of arrival alone.
    """

    job: str
    stage: str
    task: int
    executor: str
    why: dict[str, Any] | None = None


class DecisionView(BaseModel):
    """What was dispatched where, in order of preference, and how many stages still wait, by pool."""

    model_config = _example(
        {
            "at": 1795237264.57,
            "policy": "fcfs",
            "events": 2,
            "milliseconds": 0.21,
            "dispatched": [
                {
                    "job": "job_01m7y7nf5pk8qby37hnf",
                    "stage": "test_gen",
                    "task": 0,
                    "executor": "engine-1",
                    "why": {"estimate": 3.1},
                }
            ],
            "waiting": {"llm": 3},
        }
    )

    at: float
    policy: str
    events: int
    milliseconds: float
    dispatched: list[DispatchView]
    waiting: dict[str, int]


class DecisionPage(BaseModel):
    """Newest first."""

    items: list[DecisionView]
    next_cursor: str | None = None


class QuotaView(BaseModel):
    """What a tenant may have; null: as it likes. active_jobs: at once. burst: accepted at once after a pause."""

    model_config = _example({"active_jobs": 100, "jobs_per_s": 5.0, "burst": 20})

    active_jobs: int | None
    jobs_per_s: float | None
    burst: int


class TenantView(BaseModel):
    """A tenant. weight: of its turns, where tenants take turns. quota: null if it has none."""

    model_config = _example(
        {
            "name": "research",
            "weight": 2.0,
            "quota": {"active_jobs": 100, "jobs_per_s": 5.0, "burst": 20},
            "active_jobs": 12,
        }
    )

    name: str
    weight: float
    quota: QuotaView | None = None
    active_jobs: int


class TenantPage(BaseModel):
    items: list[TenantView]
    next_cursor: str | None = None


class _Used(BaseModel):
    jobs: int
    completed: int
    failed: int
    cancelled: int
    prompt_tokens: int
    output_tokens: int
    llm_seconds: float
    regular_seconds: float


_EXAMPLE_USED: dict[str, JsonValue] = {
    "jobs": 120,
    "completed": 117,
    "failed": 1,
    "cancelled": 0,
    "prompt_tokens": 182340,
    "output_tokens": 61210,
    "llm_seconds": 1480.2,
    "regular_seconds": 37.5,
}


class UsageDay(_Used):
    """What was used on one day (UTC)."""

    model_config = _example({"date": "2026-11-27", **_EXAMPLE_USED})

    date: date


class UsageView(_Used):
    """What a tenant used from one day to another (UTC). jobs: submitted; the other counts: ended in this way.

    Tokens and seconds are those of committed stages: attempts that failed or were repeated do not count. Seconds are
    those that calls and handlers took, side by side or not.
    """

    model_config = _example(
        {
            "tenant": "research",
            "since": "2026-10-29",
            "until": "2026-11-28",
            **_EXAMPLE_USED,
            "days": [{"date": "2026-11-27", **_EXAMPLE_USED}],
        }
    )

    tenant: str
    since: date
    until: date
    days: list[UsageDay]


class Status(BaseModel):
    """Of the process (`ok`) or of the service (`ready`)."""

    model_config = _example({"status": "ready"})

    status: str


class Version(BaseModel):
    """What runs. started_at: unix seconds. leads: whether this gateway schedules. leader: URL of the one that does."""

    model_config = _example(
        {"version": "0.1.0", "policy": "fcfs", "started_at": 1795237260.0, "leads": True, "leader": None}
    )

    version: str
    policy: str
    started_at: float
    leads: bool = True
    leader: str | None = None
