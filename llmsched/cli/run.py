"""`llmsched run`: an application on its dataset, with the score of what came out."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager
from importlib import import_module
from itertools import islice
from pathlib import Path
from typing import Annotated, Any, Protocol

import orjson
import typer
from rich.text import Text

from llmsched import apps
from llmsched.cli.client import Json, coloured, duration, ended, print_json
from llmsched.cli.console import note, out, table
from llmsched.cli.embedded import embedded_service, engines_ready
from llmsched.datasets import Sample
from llmsched.errors import InvalidInput, UnknownName
from llmsched.runtime.api import Api

#: Characters of a result that the table shows.
_SHOWN = 80
#: Engines of the embedded service: slots, and emulated seconds per second.
_SLOTS, _SPEED = 8, 20.0


class Task(Protocol):
    """What an application brings besides its template."""

    folder: Path

    def load(self, path: Path) -> Iterator[Sample]: ...

    def score(self, result: Any, reference: Any) -> float: ...


def register(app: typer.Typer) -> None:
    app.command()(run)


def run(
    application: Annotated[str, typer.Argument(help="An installed application; see llmsched apps.")],
    data: Annotated[
        Path | None, typer.Option(help="Its dataset, in the upstream format.", show_default="a few examples")
    ] = None,
    limit: Annotated[int | None, typer.Option(min=1, help="At most so many of its samples.")] = None,
    at_once: Annotated[int, typer.Option(min=1, help="Jobs that are in the service at the same time.")] = 16,
    url: Annotated[
        str | None, typer.Option("--url", help="The service.", show_default="one of its own, with a scripted engine")
    ] = None,
    as_json: Json = False,
) -> None:
    """Run an application on its dataset and score the results; exit 1 if a job fails.

    Without --url the model is emulated and answers from the application's script: that shows how the application works,
    and says nothing about any model.
    """
    package = _package(application)
    file = data or _examples(package.folder)
    samples = list(islice(package.load(file), limit))
    if not samples:
        raise InvalidInput(f"the dataset {file} has no samples", field="data")
    rows = asyncio.run(_run(application, package, samples, url, at_once))
    if as_json:
        print_json({"application": application, "mean_score": _mean(rows), "jobs": rows})
    else:
        _show(rows)
    if any(row["status"] != "completed" for row in rows):
        raise typer.Exit(1)


class _Package:
    """Loader and scorer of an installed application."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.load = import_module(f"{apps.__name__}.{folder.name}.dataset").load
        self.score = import_module(f"{apps.__name__}.{folder.name}.scorer").score


def _package(name: str) -> Task:
    """Raises UnknownName for an application that brings no dataset."""
    folders = {f.name: f for f in apps.folders() if (f / "dataset.py").is_file() and (f / "scorer.py").is_file()}
    if name not in folders:
        raise UnknownName.of("application with a dataset", name, folders, field="application")
    return _Package(folders[name])


def _examples(folder: Path) -> Path:
    found = sorted(folder.glob("examples.*"))
    if not found:
        raise InvalidInput(f"application {folder.name!r} has no examples; give --data FILE", field="data")
    return found[0]


async def _run(
    name: str, package: Task, samples: Sequence[Sample], url: str | None, at_once: int
) -> list[dict[str, Any]]:
    free = asyncio.Semaphore(at_once)
    async with _service(name, url) as api:

        async def one(sample: Sample) -> dict[str, Any]:
            async with free:
                job = await api.post("/v1/jobs", {"application": name, "input": sample.input})
                return _row(package, sample, await ended(api, job["id"]))

        rows: list[dict[str, Any]] = await asyncio.gather(*(one(sample) for sample in samples))
    return rows


@asynccontextmanager
async def _service(name: str, url: str | None) -> AsyncIterator[Api]:
    """The service to ask."""
    if url is not None:
        async with Api(url, key=os.environ.get("LLMSCHED_API_KEY")) as api:
            yield api
        return
    options = {"emulate": 1, "max-batch": _SLOTS, "speed": _SPEED, "script": name}
    async with embedded_service(options) as (own, _), Api(own) as api:
        note(
            f"the model is emulated, {_SPEED:g} times as fast as a 7B one, and answers from the application's script;"
            " give --url for a real one"
        )
        await engines_ready(api)
        yield api


def _row(package: Task, sample: Sample, job: dict[str, Any]) -> dict[str, Any]:
    completed = job["status"] == "completed"
    calls = sum(stage["done"] for stage in job["stages"] if stage["kind"] == "llm" and stage["done"])
    return {
        "sample": sample.id,
        "job": job["id"],
        "status": job["status"],
        "score": package.score(job["result"], sample.reference) if completed else 0.0,
        "seconds": round(job["finished_at"] - job["submitted_at"], 3),
        "llm_calls": calls,
        "result": job["result"] if completed else None,
        "error": job["error"],
    }


def _show(rows: Sequence[dict[str, Any]]) -> None:
    shown = table(
        "sample", "status", "score", "took", "calls", "result", right=("score", "took", "calls"), folds=("result",)
    )
    for row in rows:
        result = orjson.dumps(row["result"]).decode()
        shortened = result if len(result) <= _SHOWN else result[: _SHOWN - 1] + "…"
        cells = [row["sample"], coloured(row["status"]), f"{row['score']:.2f}", duration(row["seconds"])]
        shown.add_row(*cells, str(row["llm_calls"]), Text(row["error"] or shortened))
    out.print(shown)
    out.print(f"mean score {_mean(rows):.3f} over {len(rows)} jobs", highlight=False)


def _mean(rows: Sequence[dict[str, Any]]) -> float:
    return float(sum(row["score"] for row in rows) / len(rows))
