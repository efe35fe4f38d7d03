"""What tracing asks of the service while it is off: a trace's context as text, and a tracer that does nothing.

Contexts are those of W3C Trace Context: `traceparent` and `tracestate`, as clients send them and as engines and tools
are sent them.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from contextvars import ContextVar
from typing import TYPE_CHECKING, NamedTuple, Protocol, Self

if TYPE_CHECKING:
    from llmsched.model.events import Dispatch, SliceEnded, TaskFailed, TaskFinished, TaskRef
    from llmsched.model.kinds import StageKind
    from llmsched.model.records import JobRecord
    from llmsched.runtime.engine import CompletionRequest
    from llmsched.runtime.engines import Engine
    from llmsched.runtime.run import JobRun
    from llmsched.runtime.scripts.observed import Call

#: Headers that the attempt at work sends along with whatever it asks for.
outgoing: ContextVar[dict[str, str]] = ContextVar("outgoing", default={})  # noqa: B039 (nobody changes it)

_PARENT = re.compile(r"(?!ff)[0-9a-f]{2}-(?!0{32})[0-9a-f]{32}-(?!0{16})[0-9a-f]{16}-[0-9a-f]{2}(-.*)?")
#: What the specification has every implementation keep of a `tracestate`.
_STATE_CHARS = 512


class TraceContext(NamedTuple):
    """Where a trace goes on. parent: a valid `traceparent`. state: the `tracestate` that came with it, or ""."""

    parent: str
    state: str = ""

    @classmethod
    def read(cls, parent: str | None, state: str | None) -> Self | None:
        """What a client sent; None for what is none, which the specification has ignored.

        >>> TraceContext.read("00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01", None).parent[3:7]
        '0af7'
        >>> TraceContext.read("00-00000000000000000000000000000000-b7ad6b7169203331-01", None)
        """
        parent = (parent or "").strip()
        if not _PARENT.fullmatch(parent) or (parent.startswith("00-") and len(parent) != 55):
            return None
        state = (state or "").strip()
        return cls(parent[:55], state if len(state) <= _STATE_CHARS and state.isascii() and state.isprintable() else "")


class Tracing(Protocol):
    """Hears what happens to jobs, where it happens; see `Spans`. Times are unix seconds."""

    #: Whether anything is traced: otherwise contexts that clients send are not even looked at.
    is_on: bool

    def job_began(self, run: JobRun) -> None:
        """New, or taken up after a restart."""

    def attempt_began(self, run: JobRun, command: Dispatch, kind: StageKind, at: float, queued: float) -> None:
        """queued: seconds since the task was ready. Called in the attempt's own asyncio task: sets `outgoing`."""

    def asked(self, task: TaskRef, engine: Engine, request: CompletionRequest | Call) -> None:
        """What the attempt asks of an engine."""

    def answered(
        self, task: TaskRef, prompt_tokens: int, output_tokens: int, finish_reason: str = "", first_s: float = 0.0
    ) -> None:
        """What the engine said. first_s: seconds to the first token; 0: not known."""

    def attempt_ended(self, task: TaskRef, event: TaskFinished | TaskFailed | SliceEnded | None, at: float) -> None:
        """None: it was given up."""

    def stage_ended(self, run: JobRun, stage: str, at: float) -> None: ...

    def job_ended(self, record: JobRecord, status: str, at: float, error: str | None) -> None:
        """Also of a job that a restart found, and that never began in this process."""

    def close(self) -> None:
        """Sends what is left; may take seconds."""


class Untraced:
    """Tracing that is off."""

    is_on = False

    def job_began(self, run: JobRun) -> None:
        pass

    def attempt_began(self, run: JobRun, command: Dispatch, kind: StageKind, at: float, queued: float) -> None:
        pass

    def asked(self, task: TaskRef, engine: Engine, request: CompletionRequest | Call) -> None:
        pass

    def answered(
        self, task: TaskRef, prompt_tokens: int, output_tokens: int, finish_reason: str = "", first_s: float = 0.0
    ) -> None:
        pass

    def attempt_ended(self, task: TaskRef, event: TaskFinished | TaskFailed | SliceEnded | None, at: float) -> None:
        pass

    def stage_ended(self, run: JobRun, stage: str, at: float) -> None:
        pass

    def job_ended(self, record: JobRecord, status: str, at: float, error: str | None) -> None:
        pass

    def close(self) -> None:
        pass


def is_wanted(environment: Mapping[str, str]) -> bool:
    """Whether OpenTelemetry's own variables ask for traces: they name an exporter or where traces go.

    >>> is_wanted({"OTEL_EXPORTER_OTLP_ENDPOINT": "http://collector:4318"}), is_wanted({})
    (True, False)
    """

    def of(name: str) -> str:
        return environment.get(name, "").strip().lower()

    if of("OTEL_SDK_DISABLED") == "true" or of("OTEL_TRACES_EXPORTER") == "none":
        return False
    return any(map(of, ("OTEL_TRACES_EXPORTER", "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "OTEL_EXPORTER_OTLP_ENDPOINT")))
