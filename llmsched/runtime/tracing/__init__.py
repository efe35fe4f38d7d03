"""Tracing: jobs, stages and attempts as OpenTelemetry spans. Only `spans.py` knows OpenTelemetry (extra `[otel]`)."""
