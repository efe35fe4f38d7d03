"""`llmsched replay`: recorded jobs against a running service, and a comparison of policies on identical jobs."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import orjson
import typer
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from llmsched import report
from llmsched.cli.client import DEFAULT_URL, Url, ask
from llmsched.cli.console import errors, note, out
from llmsched.errors import InvalidInput, UnknownName
from llmsched.replay import ReplayRun, to_json
from llmsched.replay import replay as run_replay
from llmsched.runtime.api import Api
from llmsched.workloads import Arrival, Workload

_RATE = 0.9


def register(app: typer.Typer) -> None:
    app.command()(replay)


def replay(
    workload: Annotated[
        str,
        typer.Option(help="mixed, predefined, chain, planning, mixed-nodoc, or a comma list of applications."),
    ],
    url: Url = DEFAULT_URL,
    jobs: Annotated[int, typer.Option(min=1, help="Jobs per policy.")] = 300,
    rate: Annotated[
        float | None,
        typer.Option(help=f"Mean arrivals per second. Default {_RATE}; recorded arrivals keep their own."),
    ] = None,
    seed: Annotated[int, typer.Option(help="Decides jobs and arrival times.")] = 0,
    traces: Annotated[
        Path | None,
        typer.Option(envvar="LLMSCHED_TRACES", help="Folder of <application>.jsonl.gz; jobs are generated without it."),
    ] = None,
    arrivals: Annotated[
        str, typer.Option(help="poisson, gamma, gamma:CV, or a CSV file of recorded arrivals.")
    ] = "poisson",
    policy: Annotated[
        str | None, typer.Option(help="Policies to compare, a comma list; by default the one at work.")
    ] = None,
    speed: Annotated[
        float, typer.Option(help="The service's --speed: jobs are sent, and times are reported, in emulated seconds.")
    ] = 1.0,
    json_file: Annotated[Path | None, typer.Option("--json", help="Write all numbers into this file.")] = None,
    plot: Annotated[Path | None, typer.Option(help="Write a picture into this folder.")] = None,
) -> None:
    """Replay arrivals of recorded jobs against a running service; compare policies on identical jobs.

    The policies take turns on the service, which is best left alone meanwhile; the policy it had is put back.
    """
    if not speed > 0:
        raise InvalidInput(f"--speed is {speed}; it must be above 0")
    is_recorded = arrivals.partition(":")[0] not in ("poisson", "gamma")
    if rate is None and not is_recorded:
        rate = _RATE
    planned = Workload.load(workload, traces).arrivals(jobs, rate, seed, arrivals)
    for path in (json_file.parent if json_file else None, plot.parent if plot else None):
        if path is not None and not path.is_dir():
            raise InvalidInput(f"there is no folder {str(path)!r} to write into; make it first")

    async def work(api: Api) -> list[ReplayRun]:
        return await compare(api, planned, policy.split(",") if policy else [], seed=seed, speed=speed)

    runs = ask(url, work)
    settings = {
        "url": url,
        "workload": workload,
        "policies": [run.policy for run in runs],
        "jobs": jobs,
        "rate": rate,
        "arrivals": arrivals,
        "seed": seed,
        "speed": speed,
        "traces": str(traces) if traces else None,
    }
    document = to_json(settings, runs)
    out.print(report.table(document))
    for run in runs:
        note(
            "{}: jobs were sent {p50:.1f} ms late (median; P99 {p99:.1f}, at most {max:.1f} ms)".format(
                run.policy, **run.lag_ms
            )
        )
    if json_file is not None:
        json_file.write_bytes(orjson.dumps(document, option=orjson.OPT_INDENT_2))
        note(f"numbers: {json_file}")
    if plot is not None:
        note(f"picture: {report.plot(document, runs, plot)}")


async def compare(
    api: Api, planned: Sequence[Arrival], policies: Sequence[str], *, seed: int, speed: float
) -> list[ReplayRun]:
    """One run per policy, one after the other, with progress on the terminal; an empty list: the policy at work.

    Raises UnknownName before anything is sent if the service does not know one of them.
    """
    listed = (await api.get("/v1/policies"))["items"]
    active = next(p["name"] for p in listed if p["active"])
    names = [p.strip() for p in policies] or [active]
    known = [p["name"] for p in listed]
    for name in names:
        if name not in known:
            raise UnknownName.of("policy", name, known)
    runs = []
    try:
        for name in names:
            await api.put("/v1/policies/active", {"name": name})
            with _bar(name, max(map(len, names)), len(planned)) as progress:
                runs.append(await run_replay(api, planned, policy=name, seed=seed, speed=speed, progress=progress))
    finally:
        await api.put("/v1/policies/active", {"name": active})
    return runs


@contextmanager
def _bar(policy: str, width: int, jobs: int) -> Iterator[Callable[[int, int], None]]:
    """A progress bar on standard error, fed with the numbers of jobs sent and ended."""
    columns: tuple[Any, ...] = (
        TextColumn("{task.description}", style="bold"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("jobs done, {task.fields[active]:>3} in the system"),
        TimeElapsedColumn(),
    )
    with Progress(*columns, console=errors) as progress:
        task = progress.add_task(policy.rjust(width), total=jobs, active=0)
        yield lambda sent, ended: progress.update(task, completed=ended, active=sent - ended)
