"""Trace contexts as text, when tracing is on, and that it costs nothing while it is off."""

from __future__ import annotations

import subprocess
import sys

import pytest

from llmsched.bootstrap import tracing_of
from llmsched.errors import InvalidSetting
from llmsched.runtime.tracing.context import TraceContext, Untraced, is_wanted

TRACE, SPAN = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
PARENT = f"00-{TRACE}-{SPAN}-01"


@pytest.mark.parametrize(
    ("parent", "state", "read"),
    [
        (PARENT, None, (PARENT, "")),
        (f" {PARENT} ", "a=1,b=2", (PARENT, "a=1,b=2")),
        (f"01-{TRACE}-{SPAN}-01-what-comes-later", None, (f"01-{TRACE}-{SPAN}-01", "")),
        (PARENT, "x" * 513, (PARENT, "")),
        (PARENT, "é=1", (PARENT, "")),
        (f"00-{TRACE}-{SPAN}-01-more", None, None),
        (f"ff-{TRACE}-{SPAN}-01", None, None),
        (f"00-{'0' * 32}-{SPAN}-01", None, None),
        (f"00-{TRACE}-{'0' * 16}-01", None, None),
        (PARENT.upper(), None, None),
        ("", "a=1", None),
        (None, None, None),
    ],
)
def test_a_trace_context_is_read_as_the_specification_has_it(
    parent: str | None, state: str | None, read: tuple[str, str] | None
) -> None:
    assert TraceContext.read(parent, state) == read


@pytest.mark.parametrize(
    ("environment", "wanted"),
    [
        ({}, False),
        ({"OTEL_SERVICE_NAME": "x"}, False),
        ({"OTEL_TRACES_EXPORTER": "console"}, True),
        ({"OTEL_TRACES_EXPORTER": "none", "OTEL_EXPORTER_OTLP_ENDPOINT": "http://c:4318"}, False),
        ({"OTEL_EXPORTER_OTLP_TRACES_ENDPOINT": "http://c:4318/v1/traces"}, True),
        ({"OTEL_EXPORTER_OTLP_ENDPOINT": "http://c:4318", "OTEL_SDK_DISABLED": "True"}, False),
    ],
)
def test_the_standard_variables_say_whether_there_are_traces(environment: dict[str, str], wanted: bool) -> None:
    assert is_wanted(environment) is wanted
    assert wanted or isinstance(tracing_of(environment), Untraced)


def test_an_exporter_that_is_not_installed_is_named_with_the_way_out() -> None:
    with pytest.raises(InvalidSetting, match="asks for 'otlp_proto_grpc', which is not installed; install its package"):
        tracing_of({"OTEL_TRACES_EXPORTER": "otlp", "OTEL_EXPORTER_OTLP_PROTOCOL": "grpc"})


def test_without_the_extra_the_service_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "llmsched.runtime.tracing.spans", raising=False)
    monkeypatch.setitem(sys.modules, "opentelemetry.sdk.trace", None)
    with pytest.raises(InvalidSetting, match=r"is not installed; install llmsched\[otel\]"):
        tracing_of({"OTEL_TRACES_EXPORTER": "otlp"})


def test_nothing_is_imported_while_nothing_is_traced() -> None:
    """(FastAPI itself imports OpenTelemetry's API, which does nothing alone.)"""
    ours = "('opentelemetry.sdk', 'opentelemetry.exporter', 'llmsched.runtime.tracing.spans')"
    program = f"import sys, llmsched.bootstrap; print([m for m in sys.modules if m.startswith({ours})])"
    assert subprocess.run([sys.executable, "-c", program], capture_output=True, text=True).stdout == "[]\n"
