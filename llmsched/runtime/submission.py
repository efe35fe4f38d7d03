"""What is handed in: a new job, its id, the limits of the service, and the checks it has to pass."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from random import Random
from typing import Any

import orjson

from llmsched.errors import BackendError, InvalidRecording, Overloaded
from llmsched.model.application import Application
from llmsched.model.events import JobClass
from llmsched.model.recording import Recording, input_features
from llmsched.runtime.ports import Journal
from llmsched.runtime.scripts.live import LiveScript
from llmsched.runtime.scripts.script import RecordedScript, Script
from llmsched.runtime.tracing.context import TraceContext


@dataclass(frozen=True, slots=True)
class Limits:
    """What the service takes on. Times are seconds."""

    active_jobs: int = 10_000
    pending_writes: int = 20_000
    tick_ms: float = 0.0
    #: Timeout of a regular task that names none.
    task_timeout: float = 600.0
    #: How long finished jobs are kept; None: for ever.
    retention: float | None = None
    #: Decisions kept for `GET /v1/decisions`.
    decisions: int = 1_000
    #: How long an observed job waits for another call before it is over.
    observed_idle: float = 30.0


@dataclass(frozen=True, slots=True)
class NewJob:
    """A submission that passed the gateway's form checks: exactly one of `input` and `recording` counts."""

    application: str
    input: Any = None
    recording: Any = None
    job_class: JobClass = JobClass.STANDARD
    tenant: str = ""
    metadata: Mapping[str, Any] = field(default_factory=dict)
    idempotency_key: str | None = None
    request_digest: str | None = None
    callback_url: str | None = None
    trace: TraceContext | None = None
    #: Seconds in which it should be over.
    deadline_s: float | None = None


def check_healthy(journal: Journal) -> None:
    """Raises BackendError where nothing can be written."""
    if not journal.healthy:
        raise BackendError("the database does not answer, so nothing can be accepted; retry soon")


def check_room(limits: Limits, journal: Journal, active: int) -> None:
    """Raises Overloaded where, with so many active jobs, no other is taken in."""
    if active >= limits.active_jobs:
        raise Overloaded(
            f"{active} jobs are active, at most {limits.active_jobs} are accepted; retry later", retry_after=2.0
        )
    if journal.pending >= limits.pending_writes:
        raise Overloaded("too many writes wait for the database; retry later", retry_after=1.0)


def read_recording(raw: Any, application: Application, longest_context: int | None) -> Recording:
    """The recording of a job of `application`, for engines whose context holds so many tokens (None: not known).

    Raises InvalidRecording.
    """
    try:
        recording = Recording.from_json(raw)
    except InvalidRecording as error:
        raise InvalidRecording(str(error), field=f"recording.{error.field}" if error.field else "recording") from None
    if recording.application != application.name:
        raise InvalidRecording(
            f"the recording is of application {recording.application!r}, the job of {application.name!r};"
            " submit it under its own application",
            field="recording.app",
        )
    if longest_context is not None and recording.longest_context > longest_context:
        raise InvalidRecording(
            f"the recording needs a context of {recording.longest_context} tokens, the engines hold {longest_context};"
            " start them with a larger --max-model-len or submit a shorter recording",
            field="recording",
        )
    return recording


def script_of(
    id: str,
    application: Application,
    input: Any,
    recording: Recording | None,
    describes: Callable[[], bool] = lambda: False,
) -> Script:
    """How the job runs: as recorded, or live on its input. describes: as in `LiveScript`."""
    if recording is not None:
        return RecordedScript(id, application, recording)
    return LiveScript(id, application, input, describes)


def features_of(input: Any, recording: Recording | None) -> Mapping[str, str | int]:
    """What is known of a job when it is submitted (`model.recording.FEATURES`)."""
    return input_features(input) if recording is None else recording.features


_ALPHABET = "0123456789abcdefghjkmnpqrstvwxyz"
_PAIRS = [a + b for a in _ALPHABET for b in _ALPHABET]
#: Asks the system for randomness once, not for every job. An id is no secret: who may see a job depends on its tenant.
_random = Random()


def new_job_id(now: float) -> str:
    """A job id that sorts by time: `job_` and 20 characters, the last ten random."""
    number = (int(now * 1000) << 50) | _random.getrandbits(50)
    return "job_" + "".join([_PAIRS[(number >> shift) & 1023] for shift in range(90, -1, -10)])


def digest_of(request: object) -> str:
    """Identifies a request body for idempotency: equal for equal JSON."""
    return hashlib.sha256(orjson.dumps(request, option=orjson.OPT_SORT_KEYS)).hexdigest()
