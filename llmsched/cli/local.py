"""Commands that need no service: apps, policies, export (apps and policies may ask one)."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.text import Text

from llmsched.catalogue import installed_applications, load_application
from llmsched.cli.client import DEFAULT_URL, Json, ask, print_json
from llmsched.cli.console import note, out, table
from llmsched.errors import InvalidInput
from llmsched.policies import POLICIES
from llmsched.runtime.api import Api

_Url = Annotated[str | None, typer.Option("--url", help="Ask this service instead of what is installed.")]


def register(app: typer.Typer) -> None:
    for command in (apps, policies, export):
        app.command()(command)


def apps(
    put: Annotated[
        Path | None, typer.Option(help="First register the application in this YAML or JSON file with the service.")
    ] = None,
    url: _Url = None,
    as_json: Json = False,
) -> None:
    """List applications: those installed, or with --url those of a service."""
    if put is not None or url is not None:
        there = url or os.environ.get("LLMSCHED_URL", DEFAULT_URL)
        rows = ask(there, lambda api: _registered(api, put))
    else:
        rows = [
            {
                "name": a.name,
                "version": a.version,
                "description": a.description,
                "executable": a.is_executable,
                "stages": [{"name": s.name, "kind": s.kind.value} for s in a.stages],
            }
            for a in installed_applications().values()
        ]
    if as_json:
        print_json(rows)
        return
    asked = any("profile" in row for row in rows)
    columns = ("name", "version", "stages", "takes", *(["learned from"] if asked else []), "what it is")
    listed = table(*columns, right=("version", "stages"), folds=("what it is",))
    for row in rows:
        takes = "inputs, recordings" if row["executable"] else "recordings"
        cells = [row["name"], str(row["version"]), str(len(row["stages"])), takes]
        listed.add_row(*cells, *([_learned(row.get("profile"))] if asked else []), Text(row["description"]))
    out.print(listed)


def _learned(profile: Mapping[str, Any] | None) -> str:
    """How many jobs a service learned an application from, and what predicts by it."""
    return "" if profile is None else f"{profile['jobs']} jobs, {profile['estimator']}"


async def _registered(api: Api, file: Path | None) -> Any:
    if file is not None:
        application = load_application(file)
        await api.put(f"/v1/applications/{application.name}", application.definition)
    return (await api.get("/v1/applications"))["items"]


def policies(url: _Url = None, as_json: Json = False) -> None:
    """List scheduling policies: those installed, or with --url those of a service."""
    if url is not None:
        rows = ask(url, lambda api: api.get("/v1/policies"))["items"]
    else:
        rows = [{"name": n, "line": p.line, "source": p.source} for n, p in POLICIES.items()]
    if as_json:
        print_json(rows)
        return
    listed = table("name", "order", "source", folds=("order",))
    for row in rows:
        name = Text.assemble(row["name"], (" (active)" if row.get("active") else "", "green"))
        listed.add_row(name, Text(row["line"]), Text(row["source"]))
    out.print(listed)


def export(
    store: Annotated[str, typer.Option(help="URL of the store: sqlite:///jobs.db or postgresql://…")],
    to: Annotated[Path, typer.Option("--out", help="File to write: JSON lines, gzipped if it ends in .gz.")],
    application: Annotated[str | None, typer.Option(help="Only jobs of this application.")] = None,
) -> None:
    """Write the history of completed jobs as a trace."""
    from llmsched.store.export import export as write  # SQLAlchemy: a third of a second
    from llmsched.store.store import Store

    async def work() -> int:
        opened = await Store.open(store, create=False)
        try:
            return await write(opened, to, application=application)
        except OSError as error:
            raise InvalidInput(f"--out {str(to)!r} cannot be written: {error.strerror}") from None
        finally:
            await opened.close()

    note(f"{asyncio.run(work())} jobs written to {to}")
