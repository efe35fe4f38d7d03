"""Commands that speak to a running service about jobs and engines: submit, jobs, show, watch, cancel, engines."""

from __future__ import annotations

import asyncio
import os
import sys
import time
from collections.abc import Awaitable, Callable, Mapping
from pathlib import Path
from typing import Annotated, Any, TypeVar
from urllib.parse import quote

import orjson
import typer
from rich.live import Live
from rich.table import Table
from rich.text import Text

from llmsched.cli.console import note, out, table
from llmsched.errors import BackendError, InvalidInput
from llmsched.runtime.api import Api

Url = Annotated[str, typer.Option("--url", envvar="LLMSCHED_URL", help="The service.")]
Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]
Id = Annotated[str, typer.Argument(help="Id of a job, as submit prints it.")]

T = TypeVar("T")

DEFAULT_URL = "http://127.0.0.1:8000"

#: Seconds for which a command that waits for a job bears a service that does not answer, as during a restart.
PATIENCE = 60.0

_COLOURS = {
    "completed": "green",
    "done": "green",
    "healthy": "green",
    "running": "cyan",
    "ready": "yellow",
    "draining": "yellow",
    "failed": "red",
    "down": "red",
    "cancelled": "magenta",
    "skipped": "bright_black",
    "waiting": "bright_black",
}


def register(app: typer.Typer) -> None:
    for command in (submit, jobs, show, watch, cancel, engines):
        app.command()(command)


def ask(url: str, work: Callable[[Api], Awaitable[T]]) -> T:
    """Runs `work` with a client of the service at `url`; the key comes from LLMSCHED_API_KEY."""

    async def talk() -> T:
        async with Api(url, key=os.environ.get("LLMSCHED_API_KEY")) as api:
            return await work(api)

    return asyncio.run(talk())


def print_json(value: Any) -> None:
    """A document for other programs, on standard output."""
    sys.stdout.write(orjson.dumps(value, option=orjson.OPT_INDENT_2).decode() + "\n")
    sys.stdout.flush()


def read_json(text: str, option: str) -> Any:
    """The JSON of an option: the text itself, or a file's with `@FILE`; `@-` is standard input."""
    content: str | bytes = text
    if text.startswith("@"):
        option = f"{option} {text}"
        try:
            content = sys.stdin.buffer.read() if text == "@-" else Path(text[1:]).read_bytes()
        except OSError as error:
            raise InvalidInput(f"{option} cannot be read: {error.strerror}") from None
    try:
        return orjson.loads(content)
    except orjson.JSONDecodeError as error:
        raise InvalidInput(f"{option} is no valid JSON: {error}") from None


# -------------------------------------------------------------------------------------------------- one job


def submit(
    application: Annotated[str, typer.Argument(help="Name of a registered application; see llmsched apps.")],
    input: Annotated[
        str | None, typer.Option("--input", help="The job's input: JSON, @FILE, or @- for standard input.")
    ] = None,
    recording: Annotated[
        str | None, typer.Option("--recording", help="Instead of an input: a recorded job, given in the same ways.")
    ] = None,
    job_class: Annotated[str, typer.Option("--class", help="interactive, standard or batch.")] = "standard",
    key: Annotated[str | None, typer.Option("--idempotency-key", help="The same key is the same job.")] = None,
    callback: Annotated[
        str | None, typer.Option("--callback-url", help="Where the service tells the end of the job, signed.")
    ] = None,
    wait: Annotated[
        bool, typer.Option("--wait", help="Wait for the end and print the job; exit 1 unless it completes.")
    ] = False,
    url: Url = DEFAULT_URL,
) -> None:
    """Submit a job and print its id."""
    if (input is None) == (recording is None):
        raise InvalidInput("a job needs either --input or --recording: JSON, @FILE, or @- for standard input")
    body: dict[str, Any] = {"application": application, "class": job_class}
    if input is not None:
        body["input"] = read_json(input, "--input")
    if recording is not None:
        body["recording"] = read_json(recording, "--recording")

    if callback is not None:
        body["callback_url"] = callback

    async def work(api: Api) -> dict[str, Any]:
        job: dict[str, Any] = await api.post("/v1/jobs", body, idempotency_key=key)
        return await ended(api, job["id"]) if wait else job

    job = ask(url, work)
    if not wait:
        print(job["id"])
        return
    print_json(job)
    if job["status"] != "completed":
        raise typer.Exit(1)


async def ended(api: Api, id: str, changed: Callable[[], Awaitable[None]] | None = None) -> dict[str, Any]:
    """The job once it has ended; survives restarts of the service by resuming its event stream.

    Raises BackendError if the service does not answer for `PATIENCE` seconds.
    """
    seen: int | None = None
    answered = time.monotonic()
    while True:
        try:
            async for _, data in api.events(f"{_path(id)}/events", last_event_id=seen):
                seen = data.get("seq", seen)
                if changed is not None:
                    await changed()
            job: dict[str, Any] = await api.get(_path(id))
            if job["finished_at"] is not None:
                return job
            answered = time.monotonic()
        except BackendError:
            if time.monotonic() - answered > PATIENCE:
                raise
        await asyncio.sleep(0.5)


def _path(id: str) -> str:
    return f"/v1/jobs/{quote(id, safe='')}"


def jobs(
    status: Annotated[str | None, typer.Option(help="queued, running, completed, failed or cancelled.")] = None,
    application: Annotated[str | None, typer.Option(help="Only jobs of this application.")] = None,
    limit: Annotated[int, typer.Option(min=1, max=500, help="How many.")] = 20,
    as_json: Json = False,
    url: Url = DEFAULT_URL,
) -> None:
    """List jobs, newest first."""
    page = ask(url, lambda api: api.get("/v1/jobs", status=status, application=application, limit=limit))
    if as_json:
        print_json(page)
        return
    now = time.time()
    tells_errors = out.width >= 100 and any(job["error"] for job in page["items"])
    columns = ["id", "application", "status", "age", "took", *(["error"] if tells_errors else [])]
    listed = table(*columns, right=("age", "took"), folds=("error",))
    for job in page["items"]:
        took = job["finished_at"] - job["submitted_at"] if job["finished_at"] else None
        cells = [job["id"], job["application"], coloured(job["status"])]
        cells += [duration(now - job["submitted_at"]), duration(took)]
        listed.add_row(*cells, *([Text(job["error"] or "")] if tells_errors else []))
    out.print(listed)
    if page["next_cursor"]:
        note(f"the newest {len(page['items'])} jobs; --limit shows more")


def show(id: Id, as_json: Json = False, url: Url = DEFAULT_URL) -> None:
    """Show a job and its stages."""
    job = ask(url, lambda api: api.get(_path(id)))
    if as_json:
        print_json(job)
    else:
        out.print(job_table(job))


def watch(id: Id, url: Url = DEFAULT_URL) -> None:
    """Follow a job until it ends; exit 1 unless it completes."""

    async def work(api: Api) -> dict[str, Any]:
        job: dict[str, Any] = await api.get(_path(id))
        with Live(job_table(job), console=out, refresh_per_second=8) as live:

            async def changed() -> None:
                live.update(job_table(await api.get(_path(id))))

            job = await ended(api, id, changed)
            live.update(job_table(job))
        return job

    job = ask(url, work)
    if job["status"] != "completed":
        raise typer.Exit(1)


def cancel(id: Id, url: Url = DEFAULT_URL) -> None:
    """Cancel a job: its running calls are aborted."""
    ask(url, lambda api: api.post(f"{_path(id)}/cancel"))
    print(f"{id} is being cancelled")


def job_table(job: Mapping[str, Any], *, scale: float = 1.0) -> Table:
    """Stages of a job with state, tasks and seconds. scale: multiplies seconds, for engines emulated faster."""
    took = ((job["finished_at"] or time.time()) - job["submitted_at"]) * scale
    name = f"{job['id']}  {job['application']}  "
    title = Text.assemble(name, coloured(job["status"]), f"  {duration(took)}{_outlook(job, scale)}")
    columns = ("stage", "kind", "state", "tasks", "took", "tokens in", "out", "where")
    shown = table(*columns, right=("tasks", "took", "tokens in", "out"), folds=("stage", "where"), title=title)
    for stage in job["stages"]:
        end = stage["finished_at"] or (time.time() if stage["started_at"] else None)
        spent = (end - stage["started_at"]) * scale if end and stage["started_at"] else None
        shown.add_row(
            Text(("  " if stage["parent"] else "") + stage["name"]),
            stage["kind"],
            coloured(stage["state"]),
            f"{stage['done']}/{stage['tasks']}" if stage["tasks"] else "",
            duration(spent),
            "" if stage["prompt_tokens"] is None else str(stage["prompt_tokens"]),
            "" if stage["output_tokens"] is None else str(stage["output_tokens"]),
            ", ".join(stage["executors"]),
        )
    said = Text(job["error"] or "", style="red", justify="left")
    if callback := job.get("callback"):
        why = f" ({callback['error']})" if callback["error"] else ""
        said.append(f"\ncallback {callback['state']}, {callback['attempts']} attempts{why}", style="bright_black")
    if said:
        shown.caption = said
    return shown


def _outlook(job: Mapping[str, Any], scale: float) -> str:
    """When the job is believed to be done, in words."""
    if job["finished_at"] or not (eta := job.get("eta")):
        return ""
    half, most = (max(0.0, eta[level] - time.time()) * scale for level in ("p50", "p90"))
    return f", done in about {duration(half)}, nine times out of ten within {duration(most)}"


def coloured(state: str) -> Text:
    """A state in its colour."""
    return Text(state, style=_COLOURS.get(state, ""))


def duration(seconds: float | None) -> str:
    """A length of time for people.

    >>> duration(0.5), duration(200.0), duration(10_000.0), duration(None)
    ('0.50 s', '3.3 min', '2.8 h', '')
    """
    if seconds is None:
        return ""
    if seconds < 120:
        return f"{seconds:.2f} s"
    return f"{seconds / 60:.1f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"


# ------------------------------------------------------------------------------------------------ the engines


def engines(
    add: Annotated[str | None, typer.Option(help="URL of a running engine to add.")] = None,
    slots: Annotated[
        int | None, typer.Option(min=1, help="With --add: its maximum batch; by default the engine is asked.")
    ] = None,
    remove: Annotated[str | None, typer.Option(help="Id of an engine to remove at once.")] = None,
    drain: Annotated[str | None, typer.Option(help="Id of an engine that gets no new work.")] = None,
    resume: Annotated[str | None, typer.Option(help="Id of a drained engine that gets work again.")] = None,
    as_json: Json = False,
    url: Url = DEFAULT_URL,
) -> None:
    """List engines; add, remove, drain or resume one."""
    if slots is not None and add is None:
        raise InvalidInput("--slots goes with --add; the slots of a known engine cannot be changed")

    async def work(api: Api) -> Any:
        if add is not None:
            await api.post("/v1/engines", {"url": add} | ({"slots": slots} if slots else {}))
        if remove is not None:
            await api.delete(f"/v1/engines/{quote(remove, safe='')}")
        for verb, id in (("drain", drain), ("resume", resume)):
            if id is not None:
                await api.post(f"/v1/engines/{quote(id, safe='')}/{verb}")
        return await api.get("/v1/engines")

    page = ask(url, work)
    if as_json:
        print_json(page)
        return
    listed = table("id", "url", "model", "pool", "busy", "state", "why", folds=("why",))
    for engine in page["items"]:
        state = "draining" if engine["draining"] else "healthy" if engine["healthy"] else "down"
        listed.add_row(
            engine["id"],
            Text(engine["url"]),
            Text(engine["model"] or "?"),
            engine["pool"],
            f"{engine['running']}/{engine['slots']}",
            coloured(state),
            Text("" if engine["healthy"] else engine["last_error"] or ""),
        )
    out.print(listed)
