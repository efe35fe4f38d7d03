"""`llmsched keys`: API keys of tenants, in the store, without a service or beside a running one."""

from __future__ import annotations

import asyncio
import os
import re
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, TypeVar

import typer
from rich.text import Text

from llmsched.cli.client import Json, print_json
from llmsched.cli.console import note, out, table
from llmsched.errors import InvalidInput

if TYPE_CHECKING:
    from llmsched.store.store import Store

T = TypeVar("T")

_Store = Annotated[str | None, typer.Option("--store", help="URL of the store; by default that of the settings.")]
_Config = Annotated[Path | None, typer.Option("--config", help="TOML file with settings, as for serve.")]

keys = typer.Typer(
    name="keys",
    help="Add, list and revoke API keys. They are kept in the store; a running service heeds a change within a second.",
    no_args_is_help=True,
)


def register(app: typer.Typer) -> None:
    app.add_typer(keys)


@keys.command()
def add(
    tenant: Annotated[str, typer.Argument(help="The tenant it belongs to.", metavar="TENANT")],
    admin: Annotated[
        bool, typer.Option("--admin", help="It may change applications, engines and the policy, and see every tenant.")
    ] = False,
    remark: Annotated[str, typer.Option("--note", help="What it is for.")] = "",
    store: _Store = None,
    config_file: _Config = None,
    as_json: Json = False,
) -> None:
    """Make a key and print it, once: only its hash is kept."""
    from llmsched.gateway.auth import new_key  # FastAPI: a fifth of a second

    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_.@-]{0,63}", tenant):
        raise InvalidInput(f"tenant is {tenant!r}; it must be 1 to 64 letters, digits and _ . @ -, the first no sign")
    key, record = new_key(tenant, is_admin=admin, note=remark)

    async def work(opened: Store) -> bool:
        is_first = not await opened.keys()
        await opened.add_key(record)
        return is_first

    is_first = _with_store(work, store, config_file)
    if as_json:
        print_json({"id": record.id, "tenant": tenant, "admin": admin, "key": key})
    else:
        out.print(key, highlight=False, soft_wrap=True)
        note(f"key {record.id} of tenant {tenant!r}; it is shown only now")
    if is_first:
        note("it is the first of this store: from now on every request under /v1 needs a key")


@keys.command("list")
def list_keys(store: _Store = None, config_file: _Config = None, as_json: Json = False) -> None:
    """List the keys of the store, revoked ones too. Those of the settings (api_keys) are not in it."""
    found = _with_store(lambda opened: opened.keys(), store, config_file)
    rows = [
        {
            "id": key.id,
            "tenant": key.tenant,
            "admin": key.is_admin,
            "created_at": key.created_at,
            "revoked_at": key.revoked_at,
            "note": key.note,
        }
        for key in found
    ]
    if as_json:
        print_json(rows)
        return
    listed = table("id", "tenant", "admin", "created", "revoked", "note", folds=("note",))
    for key in found:
        listed.add_row(
            key.id,
            Text(key.tenant),
            "yes" if key.is_admin else "",
            _day(key.created_at),
            _day(key.revoked_at),
            key.note,
        )
    out.print(listed)


@keys.command()
def revoke(
    id: Annotated[str, typer.Argument(help="The key's id, as list shows it, or the key itself.", metavar="ID")],
    store: _Store = None,
    config_file: _Config = None,
) -> None:
    """Take a key back; requests with it are refused within a second."""
    shape = re.fullmatch(r"lk_([0-9a-f]{8})_.*", id)
    name = shape[1] if shape else id
    if not _with_store(lambda opened: opened.revoke_key(name), store, config_file):
        raise InvalidInput(f"there is no key {name[:32]!r} that is not revoked; llmsched keys list shows them")
    note(f"key {name} is revoked")


def _with_store(work: Callable[[Store], Awaitable[T]], url: str | None, config_file: Path | None) -> T:
    from llmsched import config  # with all policies: half a second
    from llmsched.store.store import Store  # SQLAlchemy: a third of a second

    named = os.environ.get("LLMSCHED_CONFIG")
    settings = config.load(config_file or (Path(named) if named else None), store=url)

    async def run() -> T:
        opened = await Store.open(settings.store)
        try:
            return await work(opened)
        finally:
            await opened.close()

    return asyncio.run(run())


def _day(at: float | None) -> str:
    return "" if at is None else datetime.fromtimestamp(at, UTC).strftime("%Y-%m-%d %H:%M")
