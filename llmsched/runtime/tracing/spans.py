"""Spans of jobs, stages and attempts, named and filled as OpenTelemetry's conventions for generative AI have it.

```
invoke_workflow APPLICATION            the job, child of the context that its client sent (if it sent one)
└── stage NAME                         from its first dispatch to its end
    ├── chat MODEL | text_completion MODEL     one attempt at an LLM task: an engine gets its context
    └── execute_tool HANDLER                   one attempt at a regular task: an HTTP tool gets its context
```

The ids of jobs' and stages' spans follow from their names, and so does the trace id of a job whose client sent no
context (one that it did send is stored with the job). So a restarted service goes on in the same trace, and what the
last process sent of a job still has its parents. A span is sent when it ends: what was at work when a service was
killed is not seen, and a job's span comes from the process that ends the job.

No prompts, answers or arguments are in here.

Source: github.com/open-telemetry/semantic-conventions-genai (status: development), attributes of release 1.41; ours are
called `llmsched.*`.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib.metadata import entry_points
from typing import Any
from urllib.parse import urlsplit

from opentelemetry.context import Context
from opentelemetry.sdk.resources import SERVICE_NAME, Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor
from opentelemetry.sdk.trace.id_generator import RandomIdGenerator
from opentelemetry.trace import Link, Span, SpanKind, Status, StatusCode, get_current_span, set_span_in_context
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

from llmsched import __version__
from llmsched.errors import InvalidSetting
from llmsched.model.events import Dispatch, SliceEnded, TaskFailed, TaskFinished, TaskRef
from llmsched.model.kinds import StageKind
from llmsched.model.records import JobRecord
from llmsched.runtime.engine import CompletionRequest
from llmsched.runtime.engines import Engine
from llmsched.runtime.run import JobRun
from llmsched.runtime.scripts.observed import Call, ObservedScript
from llmsched.runtime.tracing.context import TraceContext, outgoing

_W3C = TraceContextTextMapPropagator()
#: Characters of a text in an attribute.
_LONGEST = 500
#: Fields of a request that have an attribute of their own, and what they are.
_REQUEST: Mapping[str, Any] = {"max_tokens": int, "temperature": (int, float), "top_p": (int, float), "seed": int}


def from_environment(environment: Mapping[str, str] = os.environ) -> Spans:
    """Tracing as `OTEL_*` variables have it: exporters, protocol, endpoint, sampler, batches, resource.

    Raises InvalidSetting for an exporter that is not installed.
    """
    resource = Resource.create({} if environment.get("OTEL_SERVICE_NAME") else {SERVICE_NAME: "llmsched"})
    ids = NamedIds()
    provider = TracerProvider(resource=resource, id_generator=ids, shutdown_on_exit=False)
    for name in environment.get("OTEL_TRACES_EXPORTER", "").split(","):
        provider.add_span_processor(BatchSpanProcessor(_exporter(name.strip() or "otlp", environment)))
    return Spans(provider, ids)


def _exporter(name: str, environment: Mapping[str, str]) -> Any:
    if name == "otlp":
        protocol = environment.get("OTEL_EXPORTER_OTLP_TRACES_PROTOCOL") or environment.get(
            "OTEL_EXPORTER_OTLP_PROTOCOL", "http/protobuf"
        )
        name = {"grpc": "otlp_proto_grpc", "http/protobuf": "otlp_proto_http"}.get(protocol, f"otlp with {protocol}")
    found = list(entry_points(group="opentelemetry_traces_exporter", name=name))
    if not found:
        known = sorted({point.name for point in entry_points(group="opentelemetry_traces_exporter")})
        raise InvalidSetting(
            f"OTEL_TRACES_EXPORTER asks for {name!r}, which is not installed; install its package (grpc:"
            f" opentelemetry-exporter-otlp-proto-grpc) or use one of {', '.join(known)}",
            field="OTEL_TRACES_EXPORTER",
        )
    return found[0].load()()


class NamedIds(RandomIdGenerator):
    """Random ids, except for the span that `name` was just set for: its ids follow from that."""

    name: str | None = None

    def generate_span_id(self) -> int:
        return super().generate_span_id() if self.name is None else self._digest("span", 8)

    def generate_trace_id(self) -> int:
        return super().generate_trace_id() if self.name is None else self._digest("trace", 16)

    def _digest(self, kind: str, size: int) -> int:
        digest = hashlib.sha256(f"{kind} {self.name}".encode(errors="replace")).digest()
        return int.from_bytes(digest[:size]) or 1


@dataclass(slots=True)
class _Job:
    """The spans of one job that have not ended. context: with the job's span in it."""

    span: Span
    context: Context
    stages: dict[str, Span] = field(default_factory=dict)


class Spans:
    """`Tracing` by OpenTelemetry. ids: those of `provider`."""

    is_on = True

    def __init__(self, provider: TracerProvider, ids: NamedIds) -> None:
        self._provider = provider
        self._ids = ids
        self._tracer = provider.get_tracer("llmsched", __version__)
        self._jobs: dict[str, _Job] = {}
        self._attempts: dict[TaskRef, Span] = {}

    def close(self) -> None:
        self._provider.shutdown()

    # --------------------------------------------------------------------------------------------------- jobs

    def job_began(self, run: JobRun) -> None:
        self._jobs[run.record.id] = self._job(run.record, run.trace)

    def job_ended(self, record: JobRecord, status: str, at: float, error: str | None) -> None:
        job = self._jobs.pop(record.id, None) or self._job(record, None)
        for span in job.stages.values():
            span.end(_ns(at))
        job.span.set_attribute("llmsched.job.status", status)
        if status == "failed":
            job.span.set_attribute("error.type", "job_failed")
            job.span.set_status(Status(StatusCode.ERROR, _plain(error or "")))
        job.span.end(_ns(at))

    def _job(self, record: JobRecord, trace: TraceContext | None) -> _Job:
        attributes: dict[str, Any] = {
            "gen_ai.operation.name": "invoke_workflow",
            "gen_ai.workflow.name": record.application,
            "llmsched.application.version": record.version,
            "llmsched.job.id": record.id,
            "llmsched.job.class": record.job_class.label,
        }
        if record.tenant:
            attributes["llmsched.tenant"] = _plain(record.tenant)
        self._ids.name = record.id
        span = self._tracer.start_span(
            f"invoke_workflow {record.application}",
            _context(trace),
            SpanKind.INTERNAL,
            attributes,
            start_time=_ns(record.submitted_at),
        )
        self._ids.name = None
        return _Job(span, set_span_in_context(span, Context()))

    # ------------------------------------------------------------------------------------------------- stages

    def stage_ended(self, run: JobRun, stage: str, at: float) -> None:
        job = self._jobs.get(run.record.id)
        span = None if job is None else job.stages.pop(stage, None)
        if span is not None:
            span.end(_ns(at))

    def _stage(self, job: _Job, run: JobRun, name: str) -> Span:
        stage = run.stages[name]
        if name in job.stages:
            return job.stages[name]
        spec = stage.spec
        attributes: dict[str, Any] = {
            "llmsched.stage.name": _plain(name),
            "llmsched.stage.kind": spec.kind.value,
            "llmsched.stage.tasks": len(stage.results),
            "llmsched.pool": spec.pool,
        }
        if spec.parent is not None:
            attributes["llmsched.stage.parent"] = _plain(spec.parent)
        if spec.iteration is not None:
            attributes["llmsched.stage.iteration"] = spec.iteration
        context, links = job.context, []
        call = run.script.calls.get(name) if isinstance(run.script, ObservedScript) else None
        if call is not None and call.is_grouped and call.trace is not None:
            # One of several calls of an agent, which has a span of its own around each of them.
            context, links = _context(call.trace), [Link(job.span.get_span_context())]
        self._ids.name = f"{run.record.id}/{name}"
        span = self._tracer.start_span(
            f"stage {_plain(name)}", context, attributes=attributes, links=links, start_time=_ns(stage.started_at or 0)
        )
        self._ids.name = None
        job.stages[name] = span
        return span

    # ----------------------------------------------------------------------------------------------- attempts

    def attempt_began(self, run: JobRun, command: Dispatch, kind: StageKind, at: float, queued: float) -> None:
        ref = command.task
        job = self._jobs.get(ref.job)
        if job is None:
            return
        attributes: dict[str, Any] = {
            "llmsched.task.index": ref.index,
            "llmsched.attempt": command.attempt,
            "llmsched.executor": command.executor,
            "llmsched.queue_seconds": round(queued, 6),
        }
        name, span_kind = f"call {_plain(ref.stage)}", SpanKind.CLIENT
        if kind is not StageKind.LLM:
            tool = _plain(run.script.tool(ref.stage, ref.index) or ref.stage)
            name, span_kind = f"execute_tool {tool}", SpanKind.INTERNAL
            attributes |= {"gen_ai.operation.name": "execute_tool", "gen_ai.tool.name": tool}
            attributes["gen_ai.tool.type"] = "function"
        context = set_span_in_context(self._stage(job, run, ref.stage), Context())
        span = self._tracer.start_span(name, context, span_kind, attributes, start_time=_ns(at))
        self._attempts[ref] = span
        headers: dict[str, str] = {}
        _W3C.inject(headers, set_span_in_context(span, Context()))
        outgoing.set(headers)

    def asked(self, task: TaskRef, engine: Engine, request: CompletionRequest | Call) -> None:
        span = self._attempts.get(task)
        if span is None:
            return
        if isinstance(request, Call):
            is_chat = request.path.endswith("/chat/completions")
            fields: Mapping[str, Any] = request.fields
            span.set_attribute("gen_ai.request.stream", request.is_stream)
        else:
            is_chat, fields = request.messages is not None, {name: getattr(request, name) for name in _REQUEST}
        operation, model = "chat" if is_chat else "text_completion", engine.client.model
        where = urlsplit(engine.client.url)
        span.update_name(f"{operation} {model}" if model else operation)
        span.set_attributes(
            {
                "gen_ai.operation.name": operation,
                "gen_ai.provider.name": "vllm",
                "server.address": where.hostname or "",
                "server.port": where.port or (443 if where.scheme == "https" else 80),
            }
        )
        if model:
            span.set_attribute("gen_ai.request.model", model)
        for name, kind in _REQUEST.items():
            value: Any = fields.get(name)
            if isinstance(value, kind) and not isinstance(value, bool) and abs(value) < 2**63:
                span.set_attribute(f"gen_ai.request.{name}", value)

    def answered(
        self, task: TaskRef, prompt_tokens: int, output_tokens: int, finish_reason: str = "", first_s: float = 0.0
    ) -> None:
        span = self._attempts.get(task)
        if span is None:
            return
        span.set_attribute("gen_ai.usage.input_tokens", prompt_tokens)
        span.set_attribute("gen_ai.usage.output_tokens", output_tokens)
        if finish_reason:
            span.set_attribute("gen_ai.response.finish_reasons", [_plain(finish_reason)])
        if first_s:
            span.set_attribute("gen_ai.response.time_to_first_chunk", round(first_s, 6))

    def attempt_ended(self, task: TaskRef, event: TaskFinished | TaskFailed | SliceEnded | None, at: float) -> None:
        span = self._attempts.pop(task, None)
        if span is None:
            return
        match event:
            case TaskFailed(_, _, reason):
                span.set_attribute("error.type", _plain(reason.partition(":")[0]))
                span.set_status(Status(StatusCode.ERROR, _plain(reason)))
            case None:
                span.set_attribute("error.type", "given_up")
                span.set_status(Status(StatusCode.ERROR, "the attempt was given up"))
            case SliceEnded():
                span.set_attribute("llmsched.sliced", True)
            case _:
                pass
        span.end(_ns(at))


def _context(trace: TraceContext | None) -> Context:
    """Without a trace: empty, so that nothing that happens to be at work becomes a parent."""
    if trace is None:
        return Context()
    context = _W3C.extract({"traceparent": trace.parent, "tracestate": trace.state}, Context())
    return set_span_in_context(get_current_span(context), Context())


def _ns(at: float) -> int:
    return int(at * 1e9)


def _plain(text: str) -> str:
    """A text that can be sent: bounded, and without halves of surrogate pairs."""
    return text[:_LONGEST].encode("utf-8", "replace").decode()
