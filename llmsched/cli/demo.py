"""`llmsched demo`: a service with emulated engines, the same jobs over REST under some policies, a table, a picture."""

from __future__ import annotations

import asyncio
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import orjson
import typer

from llmsched import report
from llmsched.catalogue import installed_applications
from llmsched.cli.client import duration, ended, job_table
from llmsched.cli.console import note, out
from llmsched.cli.embedded import embedded_service, engines_ready
from llmsched.cli.replay import compare
from llmsched.errors import BackendError
from llmsched.model.latency import GENERIC_7B
from llmsched.policies import DEFAULT_POLICY, make_policy
from llmsched.profiler import fit
from llmsched.replay import ReplayRun, to_json
from llmsched.runtime.api import Api
from llmsched.runtime.learning.profiles import write_profile
from llmsched.workloads import Arrival, Workload

#: Jobs of an application that are learned from, and the seed that makes them other than any that run.
_LEARNED, _OTHER_JOBS = 200, -1
#: The application that also runs live, and what it is asked: its script knows the answer to look for.
_LIVE, _QUESTION = "web_search", "Which river flows through the city where Johannes Gutenberg was born?"


def register(app: typer.Typer) -> None:
    app.command()(demo)


def demo(
    jobs: Annotated[int, typer.Option(min=2, help="Jobs per policy.")] = 120,
    workload: Annotated[str, typer.Option(help="Which applications; see llmsched replay.")] = "mixed-nodoc",
    policy: Annotated[str, typer.Option(help="Policies to compare, a comma list.")] = f"fcfs,sjf,{DEFAULT_POLICY}",
    load: Annotated[
        float, typer.Option(min=0.01, max=100, help="LLM work that arrives, over what the engines can do meanwhile.")
    ] = 1.2,
    engines: Annotated[int, typer.Option(min=1, help="Emulated engines.")] = 2,
    max_batch: Annotated[int, typer.Option(min=1, help="Slots of each.")] = 4,
    workers: Annotated[int, typer.Option(min=1, help="Slots for regular tasks.")] = 4,
    speed: Annotated[float, typer.Option(min=0.1, max=1000, help="Emulated seconds per second.")] = 20.0,
    seed: Annotated[int, typer.Option(help="Decides jobs and arrival times.")] = 0,
    folder: Annotated[Path, typer.Option("--out", help="Where the picture and the numbers go.")] = Path("demo-output"),
) -> None:
    """Compare policies on this machine: no GPU, no traces, nothing to set up.

    Learns what jobs of each application are like from generated ones, starts a service with emulated engines, sends it
    the same other jobs over REST under each policy, and shows what came of it. The engines answer like a 7B model on
    one GPU, only faster: times are emulated seconds.
    """
    names = [name.strip() for name in policy.split(",")]
    for name in names:
        make_policy(name)
    source = Workload.load(workload)
    rate = load / offered_load(source.arrivals(jobs, 1.0, seed), engines, max_batch)
    planned = source.arrivals(jobs, rate, seed)
    folder.mkdir(parents=True, exist_ok=True)
    what = f"{jobs} jobs of '{workload}' on {engines} emulated engines of {max_batch} slots, offered load {load:g}"
    note(f"{what}; {speed:g} emulated seconds pass per second")
    options: dict[str, Any] = {"emulate": engines, "max-batch": max_batch, "speed": speed, "workers": workers}
    options["script"] = _LIVE
    with tempfile.TemporaryDirectory(prefix="llmsched-demo-") as profiles:
        _learn(source.applications, Path(profiles))
        options["profiles"] = profiles
        runs, example, live = asyncio.run(_run(options, planned, names, speed, seed))
    settings = {
        "workload": workload,
        "policies": names,
        "jobs": jobs,
        "load": load,
        "rate": rate,
        "engines": engines,
        "max_batch": max_batch,
        "workers": workers,
        "speed": speed,
        "seed": seed,
    }
    document = to_json(settings, runs)
    numbers = folder / "demo.json"
    numbers.write_bytes(orjson.dumps(document, option=orjson.OPT_INDENT_2))
    picture = report.plot(document, runs, folder, title=what)
    _show_live(live, speed)
    if example is not None:
        out.print("\nOne of the recorded jobs, in emulated seconds:")
        out.print(job_table(example, scale=speed))
    out.print()
    out.print(report.table(document))
    note(f"\npicture: {picture}\nnumbers: {numbers}")


def _learn(applications: Sequence[str], folder: Path) -> None:
    """Writes profiles of generated jobs, other than those that run."""
    known = installed_applications()
    for name in applications:
        jobs = [a.recording for a in Workload.load(name).arrivals(_LEARNED, 1.0, _OTHER_JOBS)]
        write_profile(folder, fit(known[name], jobs))
    note(f"learned from {_LEARNED} other jobs of each application")


def offered_load(planned: Sequence[Arrival], engines: int, max_batch: int) -> float:
    """What one of these jobs per second asks of the engines, over what they can do with every slot taken."""
    work = sum(arrival.recording.reference_seconds(GENERIC_7B)["llm"] for arrival in planned) / len(planned)
    slowdown = GENERIC_7B.decode(max_batch) / GENERIC_7B.decode(1)
    return work * slowdown / (engines * max_batch)


async def _run(
    options: dict[str, Any], planned: Sequence[Arrival], policies: Sequence[str], speed: float, seed: int
) -> tuple[list[ReplayRun], dict[str, Any] | None, dict[str, Any]]:
    """One run per policy, a recorded job that shows a plan unfold, and a live one."""
    async with embedded_service(options) as (url, died), Api(url) as api:
        note(f"the service listens on {url} until this ends (try {url}/docs and {url}/metrics)")
        await engines_ready(api)
        comparing = asyncio.create_task(compare(api, planned, policies, seed=seed, speed=speed))
        try:
            await asyncio.wait({comparing, died}, return_when=asyncio.FIRST_COMPLETED)
            if not comparing.done():
                raise BackendError(f"the service has ended: {died.result()}")
            return comparing.result(), await _example(api), await _live(api)
        finally:
            comparing.cancel()
            await asyncio.gather(comparing, return_exceptions=True)


async def _live(api: Api) -> dict[str, Any]:
    """A job that asks the model for real, which answers from the application's script."""
    job = await api.post("/v1/jobs", {"application": _LIVE, "input": {"question": _QUESTION}})
    return await ended(api, job["id"])


def _show_live(job: dict[str, Any], speed: float) -> None:
    if job["status"] != "completed":
        raise BackendError(f"the live job of {_LIVE} is {job['status']}: {job['error']}")
    took = duration((job["finished_at"] - job["submitted_at"]) * speed)
    out.print(f"\nA live job of {_LIVE} (the model plays a script): {_QUESTION}", highlight=False)
    out.print(f"Answer: {job['result']['answer']}, after {job['result']['steps']} steps in {took}", highlight=False)


async def _example(api: Api) -> dict[str, Any] | None:
    """The completed job of task automation with the most stages: it shows a plan unfold."""
    page = (await api.get("/v1/jobs", application="task_automation", status="completed", limit=20))["items"]
    found: list[dict[str, Any]] = [await api.get(f"/v1/jobs/{job['id']}") for job in page]
    return max(found, key=lambda job: len(job["stages"]), default=None)
