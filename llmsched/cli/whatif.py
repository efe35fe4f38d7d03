"""`llmsched whatif`: last night's jobs under another policy, from a store's history, in simulated time."""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import orjson
import typer
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeElapsedColumn

from llmsched import report
from llmsched.cli.console import errors, note, out
from llmsched.errors import InvalidInput
from llmsched.runtime.emulator.settings import read_latency_curve

_UNITS = {"m": 60.0, "h": 3600.0, "d": 86_400.0}


def register(app: typer.Typer) -> None:
    app.command()(whatif)


def whatif(
    store: Annotated[str, typer.Option(help="URL of the store: sqlite:///jobs.db or postgresql://…")],
    policy: Annotated[
        str,
        typer.Option(help="Policies to compare, a comma list, first the one that was at work; options as simulate."),
    ],
    last: Annotated[str, typer.Option(help="How far back: 90m, 24h, 7d.")] = "24h",
    jobs: Annotated[int, typer.Option(min=1, help="Jobs at most, the newest.")] = 2_000,
    engines: Annotated[
        int | None, typer.Option(min=1, help="Engines.", show_default="as many as the history names")
    ] = None,
    slots: Annotated[int, typer.Option(min=1, help="Slots of each.")] = 16,
    workers: Annotated[int, typer.Option(min=1, help="Workers of each pool of regular tasks.")] = 4,
    latency: Annotated[
        str, typer.Option(help="Decode and prefill curve: a name, or a file of calibrate.")
    ] = "generic-7b",
    as_is: Annotated[
        bool, typer.Option("--as-is", help="Take the curve as it is, instead of fitting its speed to the history.")
    ] = False,
    json_file: Annotated[Path | None, typer.Option("--json", help="Write all numbers into this file.")] = None,
) -> None:
    """Simulate a store's last jobs again, under other policies.

    The jobs arrive when they arrived and are what they were; only their order is decided anew. It says what it assumes.
    """
    if json_file is not None and not json_file.parent.is_dir():
        raise InvalidInput(f"there is no folder {str(json_file.parent)!r} to write into; make it first")
    from llmsched.whatif import Request, simulate  # SQLAlchemy: a third of a second

    now = time.time()
    request = Request(
        store=store,
        policies=policy,
        since=now - duration(last),
        until=now,
        curve=read_latency_curve(latency).to_json(),
        jobs=jobs,
        engine_count=engines,
        engine_slots=slots,
        pool_workers=workers,
        fit_speed=not as_is,
    )
    with _bar() as progress:
        document = simulate(request, progress)
    if json_file is not None:
        json_file.write_bytes(orjson.dumps(document, option=orjson.OPT_INDENT_2))
        note(f"numbers: {json_file}")
    settings, recorded = document["settings"], document["recorded"]
    out.print(report.table(document, machines=f"{settings['jobs']} jobs of the last {last}"))
    first = settings["policies"][0]
    figures = ", ".join(f"{key[:-4].upper()} {recorded[key]:.1f}" for key in ("p50_jct", "p95_jct", "p99_jct"))
    out.print(f"recorded: mean {recorded['mean_jct']:.2f}, {figures}", highlight=False)
    out.print(f"If {first} was at work, it is off by what the simulation errs.", highlight=False)
    out.print("assumed:", highlight=False)
    for sentence in document["assumptions"]:
        out.print(f"- {sentence}", highlight=False)


def duration(text: str) -> float:
    """Seconds of `90m`, `24h`, `7d`. Raises InvalidInput.

    >>> duration("24h")
    86400.0
    """
    found = re.fullmatch(r"(\d+(?:\.\d+)?)([mhd])", text.strip())
    if found is None or not float(found[1]) > 0:
        raise InvalidInput(f"--last is {text!r}; it must be a time like 90m, 24h or 7d")
    return float(found[1]) * _UNITS[found[2]]


@contextmanager
def _bar() -> Iterator[Callable[[int, int], None]]:
    """A progress bar on standard error, fed with simulated jobs that are over, and how many there will be."""
    columns: tuple[Any, ...] = (
        TextColumn("simulating", style="bold"),
        BarColumn(),
        TaskProgressColumn(),
        TextColumn("{task.completed:,.0f} of {task.total:,.0f} jobs"),
        TimeElapsedColumn(),
    )
    with Progress(*columns, console=errors) as progress:
        task = progress.add_task("", total=0)
        yield lambda done, of: progress.update(task, completed=done, total=of)
