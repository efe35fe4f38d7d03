"""The applications this service knows: every version that was ever registered, parsed once."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Protocol

from llmsched.errors import UnknownName
from llmsched.model.application import Application
from llmsched.model.records import ApplicationRecord


class ApplicationStore(Protocol):
    async def put_application(self, name: str, definition: Mapping[str, Any], digest: str) -> int: ...

    async def applications(self) -> Sequence[ApplicationRecord]: ...

    async def application(self, name: str, version: int | None = None) -> ApplicationRecord | None: ...

    async def knows_digest(self, name: str, digest: str) -> bool: ...

    async def delete_application(self, name: str) -> bool: ...


class Applications:
    """Newest versions by name, older ones on demand: a job keeps the version it started with."""

    def __init__(self, store: ApplicationStore) -> None:
        self._store = store
        self._newest: dict[str, Application] = {}
        self._versions: dict[tuple[str, int], Application] = {}

    def __iter__(self) -> Iterator[Application]:
        return iter(self._newest[name] for name in sorted(self._newest))

    async def load(self, installed: Mapping[str, Application]) -> None:
        """Reads the store, and adds installed templates it has never seen (a deleted one stays deleted)."""
        for application in installed.values():
            if not await self._store.knows_digest(application.name, application.digest):
                await self._store.put_application(application.name, application.definition, application.digest)
        for record in await self._store.applications():
            self._remember(Application.parse(record.definition, version=record.version))

    def newest(self, name: str) -> Application:
        """Raises UnknownName, naming the nearest known one."""
        try:
            return self._newest[name]
        except KeyError:
            raise UnknownName.of("application", name, self._newest, field="application") from None

    async def read(self, name: str) -> Application:
        """The newest version that the store has: another service may have changed it. Raises UnknownName."""
        record = await self._store.application(name)
        if record is None:
            self._newest.pop(name, None)
        elif name not in self._newest or self._newest[name].version != record.version:
            self._remember(Application.parse(record.definition, version=record.version))
        return self.newest(name)

    async def at(self, name: str, version: int) -> Application:
        """One version, deleted or not. Raises UnknownName if the store never had it."""
        if (name, version) not in self._versions:
            record = await self._store.application(name, version)
            if record is None:
                raise UnknownName(f"application {name!r} has no version {version}")
            self._versions[name, version] = Application.parse(record.definition, version=version)
        return self._versions[name, version]

    async def put(self, application: Application) -> Application:
        """The registered application with its version: the same definition keeps its version."""
        version = await self._store.put_application(application.name, application.definition, application.digest)
        registered = Application.parse(application.definition, version=version)
        self._remember(registered)
        return registered

    async def delete(self, name: str) -> None:
        """Takes no new jobs of it; running ones keep their version. Raises UnknownName."""
        self.newest(name)
        await self._store.delete_application(name)
        del self._newest[name]

    def _remember(self, application: Application) -> None:
        self._newest[application.name] = application
        self._versions[application.name, application.version] = application
