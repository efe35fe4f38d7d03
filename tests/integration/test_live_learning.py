"""Learning closes the loop: what jobs really cost becomes a trace, the trace a profile, the profile the next order."""

from __future__ import annotations

import asyncio
from pathlib import Path
from random import Random
from typing import Any

import orjson
import pytest

from llmsched.catalogue import installed_applications
from llmsched.model.latency import GENERIC_7B
from llmsched.model.recording import FEATURES, Recording
from llmsched.model.unfolding import RecordedUnfolding
from llmsched.profiler import fit
from llmsched.runtime.learning.profiles import write_profile
from llmsched.store.export import export
from llmsched.store.store import Store
from llmsched.workloads.generator import generate
from tests.integration.applications import RunningApplication, running_application

#: Jobs of each application, and whether the installed script can answer them.
APPLICATIONS = ("sequence_sorting", "llm_compiler")


def inputs(name: str, count: int) -> list[Any]:
    """Inputs of an application, other ones for each job where that is possible."""
    if name == "sequence_sorting":
        random = Random(5)
        return [{"numbers": [random.randint(0, 9) for _ in range(8 + k % 9)]} for k in range(count)]
    from llmsched.apps.llm_compiler.dataset import load

    folder = Path(__file__).parents[2] / "apps" / name
    samples = list(load(next(folder.glob("examples.*"))))
    return [samples[k % len(samples)].input for k in range(count)]


async def run_all(app: RunningApplication, jobs: list[Any]) -> list[dict[str, Any]]:
    done = await asyncio.gather(*(app.run(input) for input in jobs))
    assert [job["status"] for job in done] == ["completed"] * len(jobs), [job["error"] for job in done]
    return done


def shapes(*rows: dict[str, Any]) -> set[tuple[str, str]]:
    """Every key of a stage and of a task in these jobs, by the kind of stage."""
    stages = [(stage["kind"], stage) for row in rows for stage in row["stages"]]
    return {(kind, key) for kind, stage in stages for key in stage} | {
        (kind, f"tasks.{key}") for kind, stage in stages for task in stage["tasks"] for key in task
    }


async def exported(folder: Path, name: str) -> list[dict[str, Any]]:
    async with await Store.open(f"sqlite:///{folder}/jobs.db") as store:
        await export(store, folder / "trace.jsonl", application=name)
    return [orjson.loads(line) for line in (folder / "trace.jsonl").read_bytes().splitlines()]


@pytest.mark.parametrize("name", APPLICATIONS)
async def test_jobs_that_ran_teach_how_the_next_ones_are_ordered(tmp_path: Path, name: str) -> None:
    application = installed_applications()[name]
    async with running_application(tmp_path, name, learn=False, workers=4) as app:
        jobs = await run_all(app, inputs(name, 24))
        assert (await app.service.get(f"/v1/applications/{name}")).json()["profile"] is None

    # What ran is a trace: the recorded kind of the same job, shaped as generated and public ones are.
    rows = await exported(tmp_path, name)
    assert len(rows) == 24
    recordings = [Recording.from_json(row) for row in rows]
    assert [RecordedUnfolding(application, recording).off_profile for recording in recordings] == [()] * 24
    like = generate(name, Random(1)).to_json()
    assert like.keys() - rows[0].keys() <= set(FEATURES)  # what is known of an input is another thing for live jobs
    assert shapes(like) - shapes(*rows) <= {("dynamic", "candidates")}  # the name of a public catalogue
    for row, job in zip(rows, jobs, strict=True):
        told = {s["name"]: s for s in job["stages"] if s["state"] == "done"}
        assert row["stages"][0]["name"] == application.stages[0].name
        for stage in row["stages"]:
            if stage["kind"] == "llm":
                assert sum(task["output_tokens"] for task in stage["tasks"]) == told[stage["name"]]["output_tokens"]

    # The trace is a profile, and the second service begins with it.
    profile = fit(application, recordings)
    write_profile(tmp_path / "profiles", profile)
    (tmp_path / "second").mkdir()
    async with running_application(
        tmp_path / "second", name, learn=False, workers=4, profiles=tmp_path / "profiles"
    ) as app:
        shown = (await app.service.get(f"/v1/applications/{name}")).json()["profile"]
        assert (shown["jobs"], shown["estimator"] in shown["scores"]) == (24, True)
        ids = {job["id"] for job in await run_all(app, inputs(name, 6))}
        decisions = (await app.service.get("/v1/decisions", params={"last": 1000})).json()["items"]
        first = application.stages[0].name
        believed = {
            d["why"]["estimate"]
            for item in decisions
            for d in item["dispatched"]
            if d["job"] in ids and d["stage"] == first
        }

    # Believed before anything of a job had run: about what such jobs cost, which the template alone does not know.
    costs = [recording.reference_seconds(GENERIC_7B)["llm"] for recording in recordings]
    assert believed
    assert all(min(costs) * 0.5 <= estimate <= max(costs) * 1.5 for estimate in believed), (believed, costs)
    declared = application.expected_work(GENERIC_7B)
    assert all(abs(estimate - declared) > 0.2 * declared for estimate in believed), (believed, declared)
