"""Commands that speak to a running service: submit, jobs, show, watch, cancel, engines, replay."""

from __future__ import annotations

import asyncio
import os
import sys
import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any, TypeVar

import orjson
import typer
from rich.live import Live
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeElapsedColumn
from rich.table import Table

from llmsched.cli.console import errors, out
from llmsched.errors import BackendError, InvalidInput
from llmsched.runtime.api import Api

Url = Annotated[str, typer.Option("--url", envvar="LLMSCHED_URL", help="The service.")]
Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]

T = TypeVar("T")

DEFAULT_URL = "http://127.0.0.1:8000"

_COLOURS = {
    "completed": "green",
    "done": "green",
    "running": "cyan",
    "ready": "yellow",
    "failed": "red",
    "cancelled": "magenta",
    "skipped": "bright_black",
    "waiting": "bright_black",
}


def register(app: typer.Typer) -> None:
    for command in (submit, jobs, show, watch, cancel, engines, replay):
        app.command()(command)


def ask(url: str, work: Callable[[Api], Awaitable[T]]) -> T:
    """Runs `work` with a client of the service at `url`; the key comes from LLMSCHED_API_KEY."""

    async def talk() -> T:
        async with Api(url, key=os.environ.get("LLMSCHED_API_KEY")) as api:
            return await work(api)

    return asyncio.run(talk())


def print_json(value: Any) -> None:
    sys.stdout.write(orjson.dumps(value, option=orjson.OPT_INDENT_2).decode() + "\n")


def read_json(text: str, option: str) -> Any:
    """The JSON of an option: the text itself, or a file's with `@FILE`; `@-` is standard input."""
    where = option
    if text.startswith("@"):
        where = f"{option} {text}"
        try:
            text = sys.stdin.read() if text == "@-" else Path(text[1:]).read_text()
        except OSError as error:
            raise InvalidInput(f"{where} cannot be read: {error.strerror}") from None
    try:
        return orjson.loads(text)
    except orjson.JSONDecodeError as error:
        raise InvalidInput(f"{where} is no valid JSON: {error}") from None


# -------------------------------------------------------------------------------------------------- one job


def submit(
    application: Annotated[str, typer.Argument(help="Name of a registered application.")],
    input: Annotated[str | None, typer.Option("--input", help="The job's input: JSON, or @FILE.")] = None,
    recording: Annotated[str | None, typer.Option(help="A recorded job instead: JSON, or @FILE.")] = None,
    job_class: Annotated[str, typer.Option("--class", help="interactive, standard or batch.")] = "standard",
    key: Annotated[str | None, typer.Option("--idempotency-key", help="The same key is the same job.")] = None,
    wait: Annotated[bool, typer.Option("--wait", help="Wait for the end; exit 1 unless it completes.")] = False,
    url: Url = DEFAULT_URL,
) -> None:
    """Submit a job and print its id (with --wait: the finished job)."""
    body: dict[str, Any] = {"application": application, "class": job_class}
    if input is not None:
        body["input"] = read_json(input, "--input")
    if recording is not None:
        body["recording"] = read_json(recording, "--recording")

    async def work(api: Api) -> dict[str, Any]:
        job: dict[str, Any] = await api.post("/v1/jobs", body, idempotency_key=key)
        if wait:
            job = await ended(api, job["id"])
        return job

    job = ask(url, work)
    if not wait:
        print(job["id"])
        return
    print_json(job)
    if job["status"] != "completed":
        raise typer.Exit(1)


async def ended(api: Api, id: str, changed: Callable[[], Awaitable[None]] | None = None) -> dict[str, Any]:
    """The job once it has ended; survives restarts of the service by resuming its event stream."""
    seen = None
    while True:
        try:
            async for _, data in api.events(f"/v1/jobs/{id}/events", last_event_id=seen):
                seen = data.get("seq", seen)
                if changed is not None:
                    await changed()
            job: dict[str, Any] = await api.get(f"/v1/jobs/{id}")
            if job["finished_at"] is not None:
                return job
        except BackendError:
            await asyncio.sleep(0.5)


def jobs(
    status: Annotated[str | None, typer.Option(help="queued, running, completed, failed or cancelled.")] = None,
    application: Annotated[str | None, typer.Option(help="Only of this application.")] = None,
    limit: Annotated[int, typer.Option(min=1, max=500)] = 20,
    as_json: Json = False,
    url: Url = DEFAULT_URL,
) -> None:
    """List jobs, newest first."""
    page = ask(url, lambda api: api.get("/v1/jobs", status=status, application=application, limit=limit))
    if as_json:
        print_json(page)
        return
    table = Table("id", "application", "class", "status", "age", "took", "error")
    now = time.time()
    for job in page["items"]:
        took = job["finished_at"] - job["submitted_at"] if job["finished_at"] else None
        table.add_row(
            job["id"],
            job["application"],
            job["class"],
            coloured(job["status"]),
            duration(now - job["submitted_at"]),
            duration(took),
            job["error"] or "",
        )
    out.print(table)


def show(id: str, as_json: Json = False, url: Url = DEFAULT_URL) -> None:
    """Show a job and its stages."""
    job = ask(url, lambda api: api.get(f"/v1/jobs/{id}"))
    if as_json:
        print_json(job)
    else:
        out.print(job_table(job))


def watch(id: str, url: Url = DEFAULT_URL) -> None:
    """Follow a job until it ends; exit 1 unless it completes."""

    async def work(api: Api) -> dict[str, Any]:
        with Live(console=out, refresh_per_second=8) as live:

            async def changed() -> None:
                live.update(job_table(await api.get(f"/v1/jobs/{id}")))

            await api.get(f"/v1/jobs/{id}")
            job = await ended(api, id, changed)
            live.update(job_table(job))
        return job

    job = ask(url, work)
    if job["status"] != "completed":
        raise typer.Exit(1)


def cancel(id: str, url: Url = DEFAULT_URL) -> None:
    """Cancel a job."""
    ask(url, lambda api: api.post(f"/v1/jobs/{id}/cancel"))
    print(f"{id} is being cancelled")


def job_table(job: dict[str, Any]) -> Table:
    """Stages of a job with state, tasks and seconds."""
    took = (job["finished_at"] or time.time()) - job["submitted_at"]
    title = f"{job['id']}  {job['application']}  {coloured(job['status'])}  {duration(took)}"
    table = Table("stage", "kind", "state", "tasks", "took", "tokens in", "tokens out", "where", title=title)
    table.title_justify = "left"
    for stage in job["stages"]:
        end = stage["finished_at"] or (time.time() if stage["started_at"] else None)
        spent = end - stage["started_at"] if end and stage["started_at"] else None
        indent = "  " if stage["parent"] else ""
        tasks = "" if stage["tasks"] is None else f"{stage['done']}/{stage['tasks']}"
        table.add_row(
            indent + stage["name"],
            stage["kind"],
            coloured(stage["state"]),
            tasks,
            duration(spent),
            "" if stage["prompt_tokens"] is None else str(stage["prompt_tokens"]),
            "" if stage["output_tokens"] is None else str(stage["output_tokens"]),
            ", ".join(stage["executors"]),
        )
    if job["error"]:
        table.caption = f"[red]{job['error']}[/red]"
    return table


def coloured(state: str) -> str:
    return f"[{_COLOURS.get(state, 'white')}]{state}[/]"


def duration(seconds: float | None) -> str:
    if seconds is None:
        return ""
    return f"{seconds:.2f} s" if seconds < 120 else f"{seconds / 60:.1f} min"


# ------------------------------------------------------------------------------------------------ the service


def engines(
    add: Annotated[str | None, typer.Option(help="URL of an engine to add.")] = None,
    slots: Annotated[int | None, typer.Option(help="Its maximum batch; asked of the engine by default.")] = None,
    remove: Annotated[str | None, typer.Option(help="Id of an engine to remove at once.")] = None,
    drain: Annotated[str | None, typer.Option(help="Id of an engine that gets no new work.")] = None,
    resume: Annotated[str | None, typer.Option(help="Id of a drained engine that gets work again.")] = None,
    as_json: Json = False,
    url: Url = DEFAULT_URL,
) -> None:
    """List engines; add, remove, drain or resume one."""

    async def work(api: Api) -> Any:
        if add is not None:
            await api.post("/v1/engines", {"url": add} | ({"slots": slots} if slots else {}))
        if remove is not None:
            await api.delete(f"/v1/engines/{remove}")
        for verb, id in (("drain", drain), ("resume", resume)):
            if id is not None:
                await api.post(f"/v1/engines/{id}/{verb}")
        return await api.get("/v1/engines")

    page = ask(url, work)
    if as_json:
        print_json(page)
        return
    table = Table("id", "url", "model", "pool", "running", "slots", "state", "last error")
    for engine in page["items"]:
        state = "draining" if engine["draining"] else "healthy" if engine["healthy"] else "[red]down[/red]"
        table.add_row(
            engine["id"],
            engine["url"],
            engine["model"] or "?",
            engine["pool"],
            str(engine["running"]),
            str(engine["slots"]),
            state,
            engine["last_error"] or "",
        )
    out.print(table)


def replay(
    workload: Annotated[str, typer.Option(help="mixed, predefined, chain, planning, mixed-nodoc, or applications.")],
    url: Url = DEFAULT_URL,
    jobs: Annotated[int, typer.Option(min=1, help="Jobs per run.")] = 300,
    rate: Annotated[float, typer.Option(min=0.0, help="Mean arrivals per second.")] = 0.9,
    seed: Annotated[int, typer.Option(help="Decides jobs and arrival times.")] = 0,
    traces: Annotated[Path | None, typer.Option(help="Folder of traces; generated jobs without it.")] = None,
    arrivals: Annotated[str, typer.Option(help="poisson, gamma, or a CSV file of recorded arrivals.")] = "poisson",
    policy: Annotated[str | None, typer.Option(help="Policies to compare, a comma list; else the active one.")] = None,
    speed: Annotated[float, typer.Option(help="Send X times faster; for engines emulated at that speed.")] = 1.0,
    json_file: Annotated[Path | None, typer.Option("--json", help="Write the result as JSON.")] = None,
    plot: Annotated[Path | None, typer.Option(help="Write a picture into this folder.")] = None,
) -> None:
    """Replay arrivals of recorded jobs against a running service, and compare policies on identical jobs."""
    from llmsched import report
    from llmsched.replay import ReplayRun, to_json
    from llmsched.replay import replay as run_replay
    from llmsched.workloads import Workload, read_arrivals

    source = arrivals if arrivals in ("poisson", "gamma") else read_arrivals(Path(arrivals))
    planned = Workload.load(workload, traces).arrivals(jobs, rate, seed, source)
    settings = {"workload": workload, "jobs": jobs, "rate": rate, "seed": seed, "speed": speed, "url": url}

    async def work(api: Api) -> list[ReplayRun]:
        active = next(p["name"] for p in (await api.get("/v1/policies"))["items"] if p["active"])
        runs = []
        for name in (policy or active).split(","):
            await api.put("/v1/policies/active", {"name": name.strip()})
            with bar(f"{name}: jobs") as (progress, task):
                runs.append(
                    await run_replay(
                        api,
                        planned,
                        policy=name.strip(),
                        seed=seed,
                        speed=speed,
                        progress=lambda sent, done: progress.update(task, total=jobs, completed=done),
                    )
                )
        await api.put("/v1/policies/active", {"name": active})
        return runs

    runs = ask(url, work)
    document = to_json(settings, runs)
    out.print(report.table(document))
    if json_file is not None:
        json_file.write_bytes(orjson.dumps(document, option=orjson.OPT_INDENT_2))
    if plot is not None:
        errors.print(f"picture: {report.plot(runs, plot)}", highlight=False)


@contextmanager
def bar(what: str) -> Iterator[tuple[Progress, TaskID]]:
    """A progress bar on standard error."""
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=errors) as progress:
        yield progress, progress.add_task(what, total=None)
