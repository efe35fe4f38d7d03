"""Commands that need no service: policies, handlers, export (policies and handlers may ask one)."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.text import Text

from llmsched.cli.client import Json, ask, print_json
from llmsched.cli.console import note, out, table
from llmsched.errors import InvalidInput
from llmsched.policies import POLICIES
from llmsched.runtime.tools.handlers import Handler, HandlerRegistry, HttpTool, build_registry

_Url = Annotated[str | None, typer.Option("--url", help="Ask this service instead of what is installed.")]
Modules = Annotated[
    str | None, typer.Option("--handlers", help="Modules with handlers of yours, beside those of the settings.")
]
Config = Annotated[Path | None, typer.Option("--config", help="TOML file with settings, as for serve.")]


def register(app: typer.Typer) -> None:
    for command in (policies, handlers, export):
        app.command()(command)


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


def handlers(
    modules: Modules = None,
    config_file: Config = None,
    url: _Url = None,
    as_json: Json = False,
) -> None:
    """List the handlers that regular stages may call: those found here, or with --url those of a service."""
    if url is not None:
        rows = ask(url, lambda api: api.get("/v1/handlers"))["items"]
    else:
        rows = [_handler(handler) for handler in registered(modules, config_file)]
    if as_json:
        print_json(rows)
        return
    listed = table("name", "kind", "where", "what it does", folds=("where", "what it does"))
    for row in rows:
        listed.add_row(row["name"], row["kind"], Text(row.get("where") or ""), Text(row["description"]))
    out.print(listed)


def registered(modules: str | None, config_file: Path | None) -> HandlerRegistry:
    """The handlers that a service with these settings has. modules: more of them, separated by commas.

    Raises InvalidSetting.
    """
    from llmsched import config  # with all policies: half a second
    from llmsched.apps import handler_modules  # handlers of applications: whatever they import

    settings = config.load(config_file or _file_from_environment())
    more = [m.strip() for m in (modules or "").split(",") if m.strip()]
    return build_registry([*settings.handlers, *more], applications=handler_modules(), tools=settings.http_tools())


def _file_from_environment() -> Path | None:
    name = os.environ.get("LLMSCHED_CONFIG")
    return Path(name) if name else None


def _handler(handler: Handler | HttpTool) -> dict[str, Any]:
    where = ":".join(handler.reference) if isinstance(handler, Handler) else handler.where
    row = {"name": handler.name, "kind": handler.kind, "where": where}
    return row | {"description": handler.description, "schema": handler.schema}


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
