"""Commands that need no service: apps, policies, export (apps and policies may ask one)."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Annotated

import typer
from rich.table import Table

from llmsched.catalogue import installed_applications
from llmsched.cli.client import Json, ask, print_json
from llmsched.cli.console import errors, out
from llmsched.policies import POLICIES

_Url = Annotated[str | None, typer.Option("--url", help="Ask this service instead of what is installed.")]


def register(app: typer.Typer) -> None:
    for command in (apps, policies, export):
        app.command()(command)


def apps(url: _Url = None, as_json: Json = False) -> None:
    """List applications."""
    if url is not None:
        rows = ask(url, lambda api: api.get("/v1/applications"))["items"]
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
    table = Table("name", "version", "stages", "runs", "what it is")
    for row in rows:
        runs = "inputs and recordings" if row["executable"] else "recordings"
        table.add_row(row["name"], str(row["version"]), str(len(row["stages"])), runs, row["description"])
    out.print(table)


def policies(url: _Url = None, as_json: Json = False) -> None:
    """List scheduling policies."""
    if url is not None:
        rows = ask(url, lambda api: api.get("/v1/policies"))["items"]
    else:
        rows = [{"name": n, "line": p.line, "source": p.source} for n, p in POLICIES.items()]
    if as_json:
        print_json(rows)
        return
    table = Table("name", "order", "source")
    for row in rows:
        mark = " [green](active)[/green]" if row.get("active") else ""
        table.add_row(row["name"] + mark, row["line"], row["source"])
    out.print(table)


def export(
    store: Annotated[str, typer.Option(help="sqlite:///jobs.db or postgresql://…")],
    to: Annotated[Path, typer.Option("--out", help="File to write: JSON lines, gzipped if it ends in .gz.")],
    application: Annotated[str | None, typer.Option(help="Only of this application.")] = None,
) -> None:
    """Write the history of completed jobs as a trace."""
    from llmsched.store.export import export as write
    from llmsched.store.store import Store

    async def work() -> int:
        opened = await Store.open(store)
        try:
            return await write(opened, to, application=application)
        finally:
            await opened.close()

    errors.print(f"{asyncio.run(work())} jobs written to {to}", highlight=False)
