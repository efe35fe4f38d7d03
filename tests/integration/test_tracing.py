"""Spans of real jobs: what they are called, whose children they are, and who else hears of the trace."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
from aiohttp import web
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import SpanKind, StatusCode

from llmsched.runtime.emulator import emulated
from llmsched.runtime.tracing.spans import NamedIds, Spans
from tests.integration.service import InProcessService, a_recording, in_process_service, running_service, until
from tests.integration.sites import serving

TRACE, SPAN = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
CLIENT = {"traceparent": f"00-{TRACE}-{SPAN}-01", "tracestate": "vendor=1"}


class Traces(Spans):
    """Tracing into memory."""

    def __init__(self) -> None:
        self.memory, ids = InMemorySpanExporter(), NamedIds()
        provider = TracerProvider(id_generator=ids, shutdown_on_exit=False)
        provider.add_span_processor(SimpleSpanProcessor(self.memory))
        super().__init__(provider, ids)

    def spans(self) -> dict[str, ReadableSpan]:
        """What ended, by name."""
        return {span.name: span for span in self.memory.get_finished_spans()}


def trace_id(span: ReadableSpan) -> str:
    return f"{span.context.trace_id:032x}"


def span_id(span: ReadableSpan) -> str:
    return f"{span.context.span_id:016x}"


def parent_id(span: ReadableSpan) -> str | None:
    return None if span.parent is None else f"{span.parent.span_id:016x}"


def said(span: ReadableSpan) -> dict[str, Any]:
    return dict(span.attributes or {})


@asynccontextmanager
async def overheard(url: str) -> AsyncIterator[tuple[str, list[dict[str, str]]]]:
    """A server in front of an engine that keeps the headers of what is asked of it."""
    headers: list[dict[str, str]] = []
    async with httpx.AsyncClient(base_url=url) as engine:

        async def forward(request: web.Request) -> web.Response:
            body = await request.read()
            if request.path.endswith("completions") and b'"max_tokens":1,' not in body:
                headers.append({name.lower(): value for name, value in request.headers.items()})
            answer = await engine.request(request.method, request.path_qs, content=body)
            kind = answer.headers.get("content-type", "")
            return web.Response(body=answer.content, status=answer.status_code, headers={"Content-Type": kind})

        async with serving(forward) as front:
            yield front, headers


async def put(service: InProcessService, name: str, *stages: dict[str, Any]) -> None:
    answer = await service.put(f"/v1/applications/{name}", json={"name": name, "stages": list(stages)})
    assert answer.status_code == 200, answer.text


async def test_a_job_is_a_tree_of_spans_in_the_trace_of_its_client(tmp_path: Path) -> None:
    traces, tool_headers = Traces(), []

    async def weather(request: web.Request) -> web.Response:
        tool_headers.append({name.lower(): value for name, value in request.headers.items()})
        return web.json_response({"sky": "blue"})

    async with emulated(speed=1000) as engine, overheard(engine.url) as (url, heard), serving(weather) as tool_url:
        settings: dict[str, Any] = {"tools": {"weather": {"url": tool_url}}, "engines": [{"url": url, "slots": 4}]}
        async with in_process_service(tmp_path, emulate=0, tracing=traces, **settings) as service:
            await put(
                service,
                "forecast",
                {"name": "look", "kind": "regular", "handler": "weather", "arguments": {}},
                {"name": "tell", "kind": "llm", "after": ["look"], "prompt": "Say it.", "max_tokens": 12},
            )
            job = await service.submit(application="forecast", input={}, class_="batch", headers=CLIENT)
            assert (await service.finished(job["id"]))["status"] == "completed"

    spans = traces.spans()
    root, look, tell = spans["invoke_workflow forecast"], spans["stage look"], spans["stage tell"]
    tool, call = spans["execute_tool weather"], spans["chat emulated"]
    assert len(spans) == len(traces.memory.get_finished_spans()) == 5
    assert {trace_id(span) for span in spans.values()} == {TRACE}
    assert [parent_id(span) for span in (root, look, tell)] == [SPAN, span_id(root), span_id(root)]
    assert (parent_id(tool), parent_id(call)) == (span_id(look), span_id(tell))
    assert [s.kind for s in (root, tell, tool, call)] == [
        SpanKind.INTERNAL, SpanKind.INTERNAL, SpanKind.INTERNAL, SpanKind.CLIENT,
    ]  # fmt: skip
    assert said(root) == {
        "gen_ai.operation.name": "invoke_workflow",
        "gen_ai.workflow.name": "forecast",
        "llmsched.application.version": 1,
        "llmsched.job.id": job["id"],
        "llmsched.job.class": "batch",
        "llmsched.job.status": "completed",
    }
    assert said(tell) == {
        "llmsched.stage.name": "tell",
        "llmsched.stage.kind": "llm",
        "llmsched.stage.tasks": 1,
        "llmsched.pool": "llm",
    }
    assert said(tool).items() >= {
        "gen_ai.operation.name": "execute_tool",
        "gen_ai.tool.name": "weather",
        "gen_ai.tool.type": "function",
        "llmsched.attempt": 1,
    }.items()  # fmt: skip
    of_call = said(call)
    assert of_call.items() >= {
        "gen_ai.operation.name": "chat",
        "gen_ai.provider.name": "vllm",
        "gen_ai.request.model": "emulated",
        "gen_ai.request.max_tokens": 12,
        "server.address": "127.0.0.1",
        "server.port": int(url.rpartition(":")[2]),
        "llmsched.task.index": 0,
    }.items()  # fmt: skip
    assert of_call["gen_ai.response.finish_reasons"] in (("stop",), ("length",))
    assert of_call["gen_ai.usage.input_tokens"] > 0 < of_call["gen_ai.usage.output_tokens"] <= 12
    assert of_call["gen_ai.response.time_to_first_chunk"] > 0
    assert of_call["llmsched.queue_seconds"] >= 0
    assert not [v for span in spans.values() for v in said(span).values() if "Say it" in str(v) or "blue" in str(v)]
    assert heard[-1]["traceparent"] == f"00-{TRACE}-{span_id(call)}-01"
    assert tool_headers[-1]["traceparent"] == f"00-{TRACE}-{span_id(tool)}-01"
    assert heard[-1]["tracestate"] == tool_headers[-1]["tracestate"] == "vendor=1"
    for child, parent in ((look, root), (tell, root), (tool, look), (call, tell)):
        assert parent.start_time <= child.start_time <= child.end_time <= parent.end_time  # type: ignore[operator]


async def test_jobs_without_a_context_have_traces_of_their_own(tmp_path: Path) -> None:
    traces = Traces()
    async with in_process_service(tmp_path, tracing=traces) as service:
        broken = {"traceparent": "00-nonsense-01"}
        jobs = [await service.submit(recording=a_recording(), headers=headers) for headers in (broken, None)]
        for job in jobs:
            await service.finished(job["id"])

    roots = [span for span in traces.memory.get_finished_spans() if span.name == "invoke_workflow code_generation"]
    assert [root.parent for root in roots] == [None, None]
    assert len({trace_id(root) for root in roots}) == 2


async def test_a_client_that_samples_nothing_is_heard(tmp_path: Path) -> None:
    traces = Traces()
    async with emulated(speed=1000) as engine, overheard(engine.url) as (url, heard):
        settings = {"engines": [{"url": url, "slots": 4}]}
        async with in_process_service(tmp_path, emulate=0, tracing=traces, **settings) as service:
            job = await service.submit(recording=a_recording(), headers={"traceparent": f"00-{TRACE}-{SPAN}-00"})
            await service.finished(job["id"])

    assert traces.spans() == {}
    assert heard[-1]["traceparent"].startswith(f"00-{TRACE}-")
    assert heard[-1]["traceparent"].endswith("-00")


async def test_what_fails_says_so(tmp_path: Path) -> None:
    traces = Traces()

    async def refuse(request: web.Request) -> web.Response:
        return web.Response(status=400, text="no")

    async with serving(refuse) as url:
        tools = {"weather": {"url": url}}
        async with in_process_service(tmp_path, emulate=0, tracing=traces, tools=tools) as service:
            await put(service, "broken", {"name": "try", "kind": "regular", "handler": "weather", "arguments": {}})
            job = await service.submit(application="broken", input={})
            assert (await service.finished(job["id"]))["status"] == "failed"

    spans = traces.spans()
    attempt, root = spans["execute_tool weather"], spans["invoke_workflow broken"]
    assert attempt.status.status_code is root.status.status_code is StatusCode.ERROR
    assert (said(attempt)["error.type"], said(root)["error.type"]) == ("http_400", "job_failed")
    assert "stage try" in spans


async def test_a_cancelled_job_ends_every_span_of_it(tmp_path: Path) -> None:
    traces = Traces()
    async with in_process_service(tmp_path, tracing=traces) as service:
        await put(service, "nap", {"name": "nap", "kind": "regular", "handler": "sleep", "arguments": {"seconds": 60}})
        job = await service.submit(application="nap", input={})
        async with asyncio.timeout(20):
            while True:
                if (await service.get(f"/v1/jobs/{job['id']}")).json()["status"] == "running":
                    break
                await asyncio.sleep(0.01)
        await service.post(f"/v1/jobs/{job['id']}/cancel")
        await service.finished(job["id"])

    spans = traces.spans()
    assert spans.keys() == {"execute_tool sleep", "stage nap", "invoke_workflow nap"}
    assert said(spans["execute_tool sleep"])["error.type"] == "given_up"
    assert said(spans["invoke_workflow nap"])["llmsched.job.status"] == "cancelled"
    assert spans["invoke_workflow nap"].status.status_code is StatusCode.UNSET


async def test_calls_at_the_openai_door_are_children_of_their_callers(tmp_path: Path) -> None:
    traces = Traces()
    body = {"model": "emulated", "messages": [{"role": "user", "content": "hello"}], "max_tokens": 5}
    spans_of_agent = ["00000000000000a1", "00000000000000a2"]
    async with in_process_service(tmp_path, tracing=traces) as service:
        for number, caller in enumerate(spans_of_agent, 1):
            headers = {"x-llmsched-job": "trip", "x-llmsched-job-end": "true" if number == 2 else "false"}
            headers |= {"traceparent": f"00-{TRACE}-{caller}-01"}
            answer = await service.post("/v1/chat/completions", json=body, headers=headers)
            assert answer.status_code == 200, answer.text
        await service.finished(answer.headers["x-llmsched-job-id"])

    spans = traces.spans()
    root = spans["invoke_workflow agent"]
    assert {trace_id(span) for span in spans.values()} == {TRACE}
    assert parent_id(root) == spans_of_agent[0]
    for number, caller in enumerate(spans_of_agent, 1):
        stage = spans[f"stage call_{number}"]
        assert parent_id(stage) == caller
        assert [link.context.span_id for link in stage.links] == [root.context.span_id]
    call = said(spans["chat emulated"])
    assert call["gen_ai.request.max_tokens"] == 5
    assert call["gen_ai.usage.output_tokens"] == answer.json()["usage"]["completion_tokens"]


@pytest.mark.parametrize("headers", [CLIENT, {}], ids=["context", "none"])
async def test_a_restarted_service_goes_on_in_the_same_trace(tmp_path: Path, headers: dict[str, str]) -> None:
    before, after = Traces(), Traces()
    recording = a_recording()
    async with in_process_service(tmp_path, tracing=before, workers=0) as service:
        job = await service.submit(recording=recording, headers=headers)
        # Its LLM stages run, and the first regular one finds no worker.
        await until(lambda: any(name.startswith("stage ") for name in before.spans()), what="a stage")
    async with in_process_service(tmp_path, tracing=after) as service:
        assert (await service.finished(job["id"]))["status"] == "completed"

    first, second = before.memory.get_finished_spans(), after.memory.get_finished_spans()
    root = after.spans()["invoke_workflow code_generation"]
    assert {trace_id(span) for span in (*first, *second)} == {trace_id(root)}
    assert parent_id(root) == (SPAN if headers else None)
    assert not headers or trace_id(root) == TRACE
    assert root.start_time == int(job["submitted_at"] * 1e9)
    stages = [span for span in (*first, *second) if span.name.startswith("stage ")]
    assert {parent_id(span) for span in stages} == {span_id(root)}
    assert len({span.name for span in stages}) == len(stages) == len(recording["stages"])


async def test_the_standard_variables_send_traces_to_a_collector(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The real service, OTLP over HTTP: everything is sent when it stops, at the latest."""
    got: list[ExportTraceServiceRequest] = []

    async def collect(request: web.Request) -> web.Response:
        assert request.path == "/v1/traces"
        got.append(ExportTraceServiceRequest.FromString(await request.read()))
        return web.Response(headers={"Content-Type": "application/x-protobuf"})

    async with emulated(speed=1000) as engine, serving(collect) as collector:
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", collector)
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_COMPRESSION", "none")
        monkeypatch.setenv("OTEL_RESOURCE_ATTRIBUTES", "deployment.environment.name=test")
        async with running_service(tmp_path, engines=engine.url, workers=1, speed=1000) as service:
            job = await service.submit(recording=a_recording(), headers=CLIENT)
            await service.finished(job["id"])

    resources = [resource for request in got for resource in request.resource_spans]
    attributes = {a.key: a.value.string_value for a in resources[0].resource.attributes}
    assert attributes.items() >= {"service.name": "llmsched", "deployment.environment.name": "test"}.items()
    spans = [span for resource in resources for scope in resource.scope_spans for span in scope.spans]
    assert {span.trace_id.hex() for span in spans} == {TRACE}
    assert "invoke_workflow code_generation" in {span.name for span in spans}
    assert {scope.scope.name for resource in resources for scope in resource.scope_spans} == {"llmsched"}
