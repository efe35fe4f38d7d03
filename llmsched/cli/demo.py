"""`llmsched demo`: a service with emulated engines, real jobs over REST under two policies, a table and a picture."""

from __future__ import annotations

import asyncio
import subprocess
import sys
import tempfile
from pathlib import Path
from random import Random
from typing import Annotated

import orjson
import typer

from llmsched import report
from llmsched.cli.client import bar
from llmsched.cli.console import errors, out
from llmsched.errors import BackendError
from llmsched.replay import ReplayRun, replay, to_json
from llmsched.runtime.api import Api
from llmsched.workloads import Arrival, Workload


def register(app: typer.Typer) -> None:
    app.command()(demo)


def demo(
    jobs: Annotated[int, typer.Option(min=2, help="Jobs per policy.")] = 60,
    workload: Annotated[str, typer.Option(help="Which applications; see llmsched replay.")] = "mixed",
    policies: Annotated[str, typer.Option(help="Policies to compare, a comma list.")] = "fcfs,sjf",
    rate: Annotated[float, typer.Option(help="Mean arrivals per emulated second.")] = 0.9,
    engines: Annotated[int, typer.Option(min=1, help="Emulated engines.")] = 2,
    max_batch: Annotated[int, typer.Option(min=1, help="Slots of each.")] = 24,
    workers: Annotated[int, typer.Option(min=1, help="Slots for regular tasks.")] = 4,
    speed: Annotated[float, typer.Option(min=0.1, help="Emulated seconds per second.")] = 20.0,
    seed: Annotated[int, typer.Option(help="Decides jobs and arrival times.")] = 1,
    directory: Annotated[Path, typer.Option("--out", help="Where the picture and the JSON go.")] = Path("demo-output"),
) -> None:
    """Start a service with emulated engines, run the same jobs under two policies, and show what came of it.

    Times are emulated seconds: the engines decode like a 7B model on one GPU, only `speed` times faster.
    """
    planned = Workload.load(workload).arrivals(jobs, rate, seed)
    directory.mkdir(parents=True, exist_ok=True)
    arguments = ["--emulate", str(engines), "--max-batch", str(max_batch), "--speed", str(speed)]
    with tempfile.TemporaryDirectory() as folder:
        arguments += ["--store", f"sqlite:///{folder}/demo.db", "--workers", str(workers), "--port", "0"]
        runs = asyncio.run(_compare(arguments, planned, policies.split(","), speed, seed))
    settings = {"workload": workload, "jobs": jobs, "rate": rate, "engines": engines, "max_batch": max_batch}
    document = to_json(settings | {"workers": workers, "speed": speed, "seed": seed}, runs)
    (directory / "demo.json").write_bytes(orjson.dumps(document, option=orjson.OPT_INDENT_2))
    picture = report.plot(runs, directory)
    out.print(report.table(document))
    print(f"{jobs} identical jobs of '{workload}' over REST, {engines} emulated engines of {max_batch} slots.")
    print(f"Picture: {picture}   Numbers: {directory / 'demo.json'}")


async def _compare(
    arguments: list[str], planned: list[Arrival], policies: list[str], speed: float, seed: int
) -> list[ReplayRun]:
    """One run per policy against one service, completion times in emulated seconds."""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "llmsched", "serve", *arguments, "--log-level", "warning"), stderr=subprocess.PIPE
    )
    assert process.stderr is not None
    try:
        url = await _address(process.stderr)
        draining = asyncio.create_task(process.stderr.read())
        errors.print(f"service with emulated engines: {url} (live metrics at {url}/metrics)", highlight=False)
        async with Api(url) as api:
            await _ready(api)
            runs = [await _one(api, planned, policy.strip(), speed, seed) for policy in policies]
            await _look_at_one(api)
        draining.cancel()
        return runs
    finally:
        if process.returncode is None:
            process.terminate()
        await process.wait()


async def _address(stderr: asyncio.StreamReader) -> str:
    story = []
    while line := (await stderr.readline()).decode().rstrip():
        story.append(line)
        if "listens on " in line:
            return line.rpartition(" ")[2]
    raise BackendError("the service did not start: " + (" | ".join(story) or "it said nothing"))


async def _ready(api: Api) -> None:
    async with asyncio.timeout(60):
        while True:
            items = (await api.get("/v1/engines"))["items"]
            if items and all(e["healthy"] for e in items):
                return
            await asyncio.sleep(0.1)


async def _one(api: Api, planned: list[Arrival], policy: str, speed: float, seed: int) -> ReplayRun:
    await api.put("/v1/policies/active", {"name": policy})
    with bar(f"{policy:>5}: jobs done") as (progress, task):
        run = await replay(
            api,
            planned,
            policy=policy,
            seed=seed,
            speed=speed,
            progress=lambda sent, done: progress.update(task, total=len(planned), completed=done),
        )
    run.jobs = [(application, None if t is None else t * speed) for application, t in run.jobs]
    run.makespan *= speed
    return run


async def _look_at_one(api: Api) -> None:
    """Shows that the jobs are really there, with their stages."""
    from llmsched.cli.client import job_table

    jobs = (await api.get("/v1/jobs", application="task_automation", limit=5))["items"]
    if jobs:
        job = await api.get(f"/v1/jobs/{Random(0).choice(jobs)['id']}")
        out.print(job_table(job))
