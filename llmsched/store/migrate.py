"""Brings a database to the newest schema, whoever else tries the same at this moment."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

from alembic.migration import MigrationContext
from alembic.operations import Operations
from alembic.script import ScriptDirectory
from sqlalchemy import Connection
from sqlalchemy.exc import OperationalError

from llmsched.errors import InvalidSetting

#: Not alembic's own name: the database may be shared with a program that uses alembic too.
VERSION_TABLE = "llmsched_schema"
#: Key of PostgreSQL's advisory lock for migrations.
MIGRATION_LOCK = 0x6C6C6D6D
#: Seconds that another process may take to make a SQLite file.
PATIENCE = 10.0


def migrations() -> ScriptDirectory:
    """The steps that come with this llmsched."""
    folder = Path(__file__).with_name("migrations")
    return ScriptDirectory(str(folder), version_locations=[str(folder)])


def upgrade(connection: Connection, shown: str, script: ScriptDirectory | None = None) -> None:
    """Runs the missing steps in one transaction; `connection` is in autocommit mode.

    Raises InvalidSetting if the database was made by a newer llmsched; it is then as it was.
    """
    script = script or migrations()
    if connection.dialect.name == "sqlite":
        _write_ahead(connection)
        connection.exec_driver_sql("BEGIN IMMEDIATE")
    else:
        connection.exec_driver_sql("BEGIN")
        connection.exec_driver_sql(f"SELECT pg_advisory_xact_lock({MIGRATION_LOCK})")
    try:
        _run_missing(connection, shown, script)
    except BaseException:
        connection.exec_driver_sql("ROLLBACK")
        raise
    connection.exec_driver_sql("COMMIT")


def _write_ahead(connection: Connection) -> None:
    """WAL: readers (an export, the API) do not wait for the writer nor it for them. It stays on in the file.

    SQLite does not wait for others here, whatever its timeout says.
    """
    deadline = time.monotonic() + PATIENCE
    while True:
        try:
            connection.exec_driver_sql("PRAGMA journal_mode=WAL")
            return
        except OperationalError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.01)


def _run_missing(connection: Connection, shown: str, script: ScriptDirectory) -> None:
    context = MigrationContext.configure(connection, opts={"version_table": VERSION_TABLE})
    current, head = context.get_current_revision(), script.get_current_head()
    if current == head:
        return
    known: dict[str, Any] = {step.revision: step.module for step in script.walk_revisions()}
    if current is not None and current not in known:
        raise InvalidSetting(
            f"the store {shown} has schema {current}, made by a newer llmsched; this one knows {head}: upgrade llmsched"
            " or name another store",
            field="store",
        )
    assert head is not None
    missing = [step.revision for step in script.iterate_revisions(head, current or "base")]
    with Operations.context(context):
        for revision in reversed(missing):
            known[revision].upgrade()
    context.stamp(script, head)
