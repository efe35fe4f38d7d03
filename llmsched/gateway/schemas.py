"""Request and response bodies of the REST contract."""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated, Any

import orjson
from pydantic import BaseModel, ConfigDict, Field, JsonValue, model_validator

from llmsched.model.events import JobClass

_EXAMPLE_RECORDING: dict[str, JsonValue] = {
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


class Form(BaseModel):
    """A request body: unknown fields are refused, and what is accepted can be stored."""

    model_config = ConfigDict(extra="forbid", strict=True)

    @model_validator(mode="before")
    @classmethod
    def _storable(cls, body: Any) -> Any:
        try:
            orjson.dumps(body)
        except (TypeError, orjson.JSONEncodeError) as error:
            raise ValueError(f"the body cannot be stored: {error}") from None
        return body


class ClassName(StrEnum):
    INTERACTIVE = "interactive"
    STANDARD = "standard"
    BATCH = "batch"

    @property
    def job_class(self) -> JobClass:
        return JobClass[self.name]


class JobForm(Form):
    """A job to run: an `input` for a live application, or a `recording` to replay faithfully."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {"application": "code_generation", "recording": _EXAMPLE_RECORDING, "class": "interactive"},
            ]
        }
    )

    application: str = Field(min_length=1, max_length=64, description="name of a registered application")
    input: JsonValue = Field(default=None, description="what the application's templates call `input`")
    recording: dict[str, JsonValue] | None = Field(
        default=None, description="a whole trace job: it is executed exactly as recorded"
    )
    class_: Annotated[ClassName, Field(strict=False)] = Field(
        default=ClassName.STANDARD, alias="class", description="work of an earlier class always goes first"
    )
    metadata: dict[str, JsonValue] = Field(default_factory=dict, description="kept and returned, never read")
    deadline_s: float | None = Field(
        default=None, gt=0, allow_inf_nan=False, description="not supported by this version: leave it out"
    )
    callback_url: str | None = Field(default=None, description="not supported by this version: leave it out")

    @model_validator(mode="after")
    def _consistent(self) -> JobForm:
        given = self.model_fields_set
        if "input" in given and self.recording is not None:
            raise ValueError("a job has either an input or a recording, not both")
        if "input" not in given and self.recording is None:
            raise ValueError("a job needs an input or a recording")
        if self.deadline_s is not None:
            raise ValueError("deadline_s is not supported by this version; leave it out, or use class: interactive")
        if self.callback_url is not None:
            raise ValueError(
                "callback_url is not supported by this version; leave it out and follow GET /v1/jobs/{id}/events"
            )
        return self


class BatchForm(Form):
    """Several jobs; each is accepted or refused on its own."""

    jobs: list[JobForm] = Field(min_length=1, max_length=1000)


class EngineForm(Form):
    """An engine to add. slots: its maximum batch; left out, the engine is asked."""

    model_config = ConfigDict(json_schema_extra={"examples": [{"url": "http://gpu-1:8000", "slots": 64}]})

    url: str = Field(pattern=r"^https?://[^\s/]+", max_length=2048)
    slots: int | None = Field(default=None, ge=1, le=100_000)
    pool: str = Field(default="llm", pattern=r"^[A-Za-z][A-Za-z0-9_./:-]{0,127}$")
    model: str | None = Field(default=None, max_length=512)
    api_key: str | None = Field(default=None, max_length=4096, pattern=r"^[\x21-\x7e]*$")


class PolicyForm(Form):
    """The policy that orders ready work from now on."""

    model_config = ConfigDict(json_schema_extra={"examples": [{"name": "sjf"}]})

    name: str


class StageView(BaseModel):
    """A stage: waiting, ready, running, done or skipped. tasks: null until it is revealed. Times are unix seconds."""

    name: str
    kind: str
    state: str
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
    """Seconds from now until completion, as believed."""

    p50: float
    p90: float


class JobSummary(BaseModel):
    """A job without its stages. status: queued, running, completed, failed or cancelled. Times are unix seconds."""

    id: str
    application: str
    version: int
    status: str
    class_: str = Field(serialization_alias="class")
    submitted_at: float
    started_at: float | None = None
    finished_at: float | None = None
    metadata: dict[str, Any] = {}
    recorded: bool = False
    off_profile: list[str] = Field(default=[], description="how a recording differs from its template")
    result: Any = None
    error: str | None = None


class JobView(JobSummary):
    """A job with its stages. eta: null while nothing is learned about the application."""

    stages: list[StageView] = []
    eta: Eta | None = None


class JobPage(BaseModel):
    items: list[JobSummary]
    next_cursor: str | None = None


class BatchItem(BaseModel):
    """What became of one job of a batch: its id, or the reason it was refused."""

    status: int
    id: str | None = None
    detail: str | None = None


class BatchView(BaseModel):
    items: list[BatchItem]


class ApplicationView(BaseModel):
    """A registered application. stages: the padded DAG. executable: whether jobs can run on an input."""

    name: str
    version: int
    digest: str
    description: str = ""
    executable: bool
    stages: list[dict[str, Any]]
    definition: dict[str, Any]


class ApplicationPage(BaseModel):
    items: list[ApplicationView]
    next_cursor: str | None = None


class EngineView(BaseModel):
    """An engine as the scheduler sees it. running: its own in-flight count, not a scraped number."""

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
    name: str
    line: str
    source: str
    active: bool


class PolicyPage(BaseModel):
    items: list[PolicyView]
    next_cursor: str | None = None


class DecisionPage(BaseModel):
    """Newest first: what was dispatched where, in order of preference, and how many stages still wait."""

    items: list[dict[str, Any]]
    next_cursor: str | None = None
