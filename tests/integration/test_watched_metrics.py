"""What dashboards and alerts ask for is really there: in /metrics of a service that has run a job, and of an engine."""

from __future__ import annotations

from pathlib import Path

import httpx
from prometheus_client.parser import text_string_to_metric_families

from tests.integration.service import a_recording, in_process_service, until
from tests.unit.test_deploy import QUERIES, SERIES


def families(text: str) -> set[str]:
    """The names of all series that an exposition has or could have: it tells families without a sample too."""
    found = set()
    for family in text_string_to_metric_families(text):
        suffixes = {"counter": ("_total",), "histogram": ("_bucket", "_sum", "_count")}.get(family.type, ("",))
        found |= {family.name + suffix for suffix in suffixes}
    return found


async def test_every_series_of_dashboards_and_alerts_is_in_the_metrics(tmp_path: Path) -> None:
    async with in_process_service(tmp_path, max_wait=600) as service, httpx.AsyncClient() as http:
        await service.finished((await service.submit(recording=a_recording()))["id"])
        told = (await service.get("/metrics")).text
        of_engine = (await http.get(f"{service.engines[0].url}/metrics")).text

    asked = {series for query in QUERIES for series, _ in SERIES.findall(query.expr)}
    assert len(asked) > 30
    assert asked - families(told) - families(of_engine) == set()
    assert "llmsched_max_wait_seconds 600.0" in told
    assert 'llmsched_oldest_waiting_job_seconds{pool="llm"} 0.0' in told


async def test_a_job_that_waits_is_seen_to_get_older(tmp_path: Path) -> None:
    async with in_process_service(tmp_path, emulate=0) as service:
        await service.submit(recording=a_recording())
        ages: list[float] = []

        def is_older() -> bool:
            told = service.context.metrics.exposition().decode()
            series = {f.name: f for f in text_string_to_metric_families(told)}["llmsched_oldest_waiting_job_seconds"]
            ages.extend(sample.value for sample in series.samples if sample.labels["pool"] == "llm")
            return len(ages) > 2 and ages[-1] > ages[0] > 0

        await until(is_older)
        assert ages == sorted(ages)
        assert "\nllmsched_max_wait_seconds " not in (await service.get("/metrics")).text
