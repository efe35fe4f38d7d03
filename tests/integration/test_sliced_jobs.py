"""A service whose policy cuts every LLM call: jobs come to the same answers and totals as in one piece."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from llmsched.policies import POLICIES, PolicyInfo
from llmsched.policies.base import Pick, View
from llmsched.policies.fcfs import Fcfs
from tests.integration.service import InProcessService, a_recording, in_process_service, until

#: An answer of 300 tokens at least, one of any length that is fed to the next, parallel ones, and one with structure.
STORY: dict[str, Any] = {
    "stages": [
        {"name": "long", "kind": "llm", "prompt": "Tell of {{ input }}", "sampling": {"min_tokens": 300}},
        {
            "name": "short",
            "kind": "llm",
            "after": ["long"],
            "system": "Be brief.",
            "prompt": "Sum up: {{ last }}",
            "max_tokens": 70,
        },
        {
            "name": "each",
            "kind": "llm",
            "after": ["short"],
            "for_each": "[1, 2, 3]",
            "prompt": "{{ item }} {{ last }}",
            "max_tokens": 100,
        },
        {
            "name": "form",
            "kind": "llm",
            "after": ["each"],
            "prompt": "As JSON: {{ last }}",
            "max_tokens": 200,
            "response_format": {
                "type": "json_schema",
                "json_schema": {
                    "name": "form",
                    "schema": {
                        "type": "object",
                        "properties": {"words": {"type": "array", "items": {"type": "string"}, "minItems": 8}},
                        "required": ["words"],
                    },
                },
            },
        },
    ],
    "result": "stages",
}


class Sixteen(Fcfs):
    """First come, first served, 16 tokens at a time."""

    def picks(self, pool: str, view: View) -> Iterator[Pick]:
        return (pick._replace(max_tokens=16) for pick in super().picks(pool, view))


@pytest.fixture(autouse=True)
def sixteen(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(POLICIES, "sixteen", PolicyInfo(Sixteen, "16 tokens at a time", "this test"))


def tokens(view: dict[str, Any]) -> dict[str, tuple[int | None, int | None]]:
    return {stage["name"]: (stage["prompt_tokens"], stage["output_tokens"]) for stage in view["stages"]}


async def slices(service: InProcessService) -> float:
    page = (await service.get("/metrics")).text
    found = [line for line in page.splitlines() if line.startswith('llmsched_slices_total{pool="llm"}')]
    return float(found[0].split()[-1]) if found else 0.0


async def test_live_jobs_say_the_same_in_slices(tmp_path: Path) -> None:
    views = []
    for policy in ("fcfs", "sixteen"):
        folder = tmp_path / policy
        folder.mkdir()
        # One engine: each has a seed of its own, and says other things.
        async with in_process_service(folder, policy=policy) as service:
            assert (await service.put("/v1/applications/story", json=STORY)).status_code == 200
            job = await service.submit(application="story", input="the sea")
            views.append(await service.finished(job["id"]))
            cut = await slices(service)
            assert service.context.service._attempts._partials == {}
            told = [type for _, type, _ in await service.story(job["id"])]
        assert "task.failed" not in told
        assert (cut > 0) is (policy == "sixteen")
    whole, sliced = views
    assert sliced["status"] == "completed"
    assert sliced["result"] == whole["result"]
    assert tokens(sliced) == tokens(whole)
    long = tokens(whole)["long"][1]
    assert long is not None
    assert long >= 300
    assert cut >= (long - 1) // 16
    assert len(sliced["result"]["form"]["words"]) >= 8


@pytest.mark.parametrize("emulate", [1, 2])
async def test_recorded_jobs_generate_exactly_their_tokens_in_slices(tmp_path: Path, emulate: int) -> None:
    recording = a_recording()
    calls = [t for s in recording["stages"] if s["kind"] == "llm" for t in s["tasks"]]
    async with in_process_service(tmp_path, emulate=emulate, policy="sixteen") as service:
        job = await service.submit(recording=recording)
        view = await service.finished(job["id"])
        cut = await slices(service)
        requests = sum(engine.requests["length"] for engine in service.engines)
        hits = sum(engine.cache.hits for engine in service.engines)
        assert service.context.service._attempts._partials == {}
    assert view["status"] == "completed"
    assert view["result"] == {key: sum(t[key] for t in calls) for key in ("prompt_tokens", "output_tokens")}
    assert cut == sum((t["output_tokens"] - 1) // 16 for t in calls)
    assert requests == cut + len(calls)
    if emulate == 1:
        # A later slice finds the whole blocks of what an earlier one knew, less its last token, which it never read.
        found = sum(
            (t["prompt_tokens"] + done - 1) // 16 * 16 for t in calls for done in range(16, t["output_tokens"], 16)
        )
        assert hits >= found


async def test_a_lost_engine_and_failures_cost_slices_and_no_token(tmp_path: Path) -> None:
    tasks = [{"prompt_tokens": 40, "output_tokens": 2000}] * 4
    stage = {"name": "test_gen", "kind": "llm", "deps": [], "tasks": tasks}
    recording = {"app": "code_generation", "job_id": "long", "stages": [stage]}
    # 2,000 tokens of at least 10 ms: 0.2 s, in slices of 1.6 ms.
    async with in_process_service(tmp_path, emulate=2, speed=100, policy="sixteen") as service:
        attempts = service.context.service._attempts
        job = await service.submit(recording=recording)
        await until(lambda: len(attempts._partials.get(job["id"], ())) == 4, what="a slice of every call")
        service.engines[0].fault("half_stream", count=1)
        await service.engines[1].stop()
        view = await service.finished(job["id"])
        story = [type for _, type, _ in await service.story(job["id"])]
        assert attempts._partials == {}
    assert view["status"] == "completed", view["error"]
    assert view["result"] == {"prompt_tokens": 160, "output_tokens": 8000}
    assert "task.failed" in story


async def test_a_cancelled_job_leaves_no_slices(tmp_path: Path) -> None:
    tasks = [{"prompt_tokens": 40, "output_tokens": 20_000}] * 4
    stage = {"name": "test_gen", "kind": "llm", "deps": [], "tasks": tasks}
    recording = {"app": "code_generation", "job_id": "long", "stages": [stage]}
    # One slot, so that there are always tasks which wait between two slices.
    async with in_process_service(tmp_path, speed=100, max_batch=1, policy="sixteen") as service:
        attempts = service.context.service._attempts
        job = await service.submit(recording=recording)
        await until(lambda: attempts._partials.get(job["id"]), what="a slice")
        assert (await service.post(f"/v1/jobs/{job['id']}/cancel")).status_code == 202
        view = await service.finished(job["id"])
        assert attempts._partials == {}
    assert view["status"] == "cancelled"
