"""Which engines there should be, and bringing the service's engines there without dropping a task.

    wanted (settings, DNS) ──▶ Discovery ──▶ add | slots | drain, and remove when nothing runs there ──▶ Engines

An engine of the settings may be a DNS name (`resolve`), such as a headless service of Kubernetes: then each of its
addresses is an engine, and the name is asked again every `interval` seconds. A name that has no address, or that nobody
knows, changes nothing: its engines stay and their probes say which of them live. An engine that is wanted no longer is
drained first, and taken back if it is wanted again before it is gone. Engines that came in another way (`POST
/v1/engines`, launched, emulated) are left alone.

Everything is decided anew in each round from what is wanted and what there is, so a round that fails half-way is made
good by the next.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from ipaddress import ip_address
from typing import Protocol
from urllib.parse import urlsplit, urlunsplit

from llmsched.errors import InvalidSetting, LlmschedError
from llmsched.runtime.engines import EngineSpec

log = logging.getLogger(__name__)

#: Seconds between two looks at engines that are to leave.
LEAVING = 0.2

#: Name and port -> addresses, none for a name without any. Raises OSError where nobody can tell.
Resolver = Callable[[str, int], Awaitable[list[str]]]


@dataclass(frozen=True, slots=True)
class Wanted:
    """An engine of the settings. resolve: its host is a name, each address of which is an engine like this."""

    spec: EngineSpec
    resolve: bool = False


class Member(Protocol):
    """What discovery needs of an engine."""

    id: str
    spec: EngineSpec
    draining: bool

    def drain(self, draining: bool) -> None: ...

    def resize(self, slots: int | None) -> None: ...


class Fleet(Protocol):
    """What discovery needs of the engines."""

    def __iter__(self) -> Iterator[Member]: ...

    def __contains__(self, id: object) -> bool: ...

    def add(self, spec: EngineSpec) -> Member: ...

    async def remove(self, id: str) -> None: ...


async def resolve(host: str, port: int) -> list[str]:
    """The addresses of a name, as the system's resolver has them, sorted."""
    found = await asyncio.get_running_loop().getaddrinfo(host, port, type=1)  # SOCK_STREAM
    return sorted({str(address[0]) for *_, address in found})


class Discovery:
    """Keeps `fleet` as it is wanted. running: of an engine, by id: tasks. interval: seconds between two lookups."""

    def __init__(
        self,
        fleet: Fleet,
        running: Callable[[str], int],
        *,
        resolver: Resolver = resolve,
        interval: float = 10.0,
    ) -> None:
        self._fleet = fleet
        self._running = running
        self._resolver = resolver
        self._interval = interval
        self._wanted: list[Wanted] = []
        #: Name and port -> its addresses when somebody last knew any.
        self._addresses: dict[tuple[str, int], list[str]] = {}
        #: Names that had no address when they were last asked for.
        self._lost: set[tuple[str, int]] = set()
        #: Ids of the engines that are ours, by URL.
        self._ours: dict[str, str] = {}
        #: Ids of those that are drained, and removed as soon as nothing runs there.
        self._leaving: set[str] = set()
        #: URL -> why it could not be added.
        self._refused: dict[str, str] = {}
        self._due = asyncio.Event()

    def use(self, wanted: Iterable[Wanted]) -> None:
        """From now on these engines are wanted. Takes effect in the next round, which begins at once."""
        self._wanted = list(wanted)
        self._due.set()

    async def begin(self) -> None:
        """The first round, before any name was asked for. Raises InvalidSetting for an engine that cannot be."""
        await self.round()
        if self._refused:
            raise InvalidSetting(next(iter(self._refused.values())), field="engines")

    async def run(self) -> None:
        """Round after round, for ever."""
        loop = asyncio.get_running_loop()
        asked = -self._interval
        while True:
            is_new, now = self._due.is_set(), loop.time()
            self._due.clear()
            if is_new or now - asked >= self._interval:
                asked = now
                await self.look()
            is_leaving = await self.round()
            pause = LEAVING if is_leaving else self._interval if self._names() else None
            try:
                async with asyncio.timeout(pause):
                    await self._due.wait()
            except TimeoutError:
                pass

    async def look(self) -> None:
        """Asks for the addresses of every name."""
        names = self._names()
        for name in [name for name in self._addresses if name not in names]:
            del self._addresses[name]
        self._lost &= set(names)
        for name in names:
            why = "it has no address"
            try:
                found = await self._resolver(*name)
            except OSError as error:
                found, why = [], error.strerror or str(error)
            if found:
                self._lost.discard(name)
                if found != self._addresses.get(name):
                    log.info("engines resolved", extra={"host": name[0], "addresses": ", ".join(found)})
                self._addresses[name] = found
            elif name not in self._lost:
                self._lost.add(name)
                kept = len(self._addresses.get(name, ()))
                log.warning("engine name not resolved", extra={"host": name[0], "reason": why, "engines_kept": kept})

    async def round(self) -> bool:
        """Brings the engines closer to what is wanted; whether some are still to leave."""
        wanted = {spec.url.rstrip("/"): spec for spec in self._specs()}
        here = {engine.id: engine for engine in self._fleet}
        is_leaving = False
        for url, id in list(self._ours.items()):
            engine = here.get(id)
            if engine is None:  # somebody removed it by hand: not to be forced back until it is wanted anew
                if url not in wanted:
                    del self._ours[url]
                continue
            spec = wanted.get(url)
            if spec is not None and replace(spec, slots=engine.spec.slots) == engine.spec:
                if spec.slots != engine.spec.slots:
                    engine.resize(spec.slots)
                if engine.draining and id in self._leaving:
                    engine.drain(False)
                self._leaving.discard(id)
            elif self._running(id):
                is_leaving = True
                if id not in self._leaving:
                    log.info("engine leaves", extra={"engine": id, "url": url, "running": self._running(id)})
                    self._leaving.add(id)
                engine.drain(True)
            else:
                del self._ours[url]
                self._leaving.discard(id)
                await self._fleet.remove(id)
        for url, spec in wanted.items():
            if url not in self._ours:
                self._add(url, spec)
        for url in [url for url in self._refused if url not in wanted]:
            del self._refused[url]
        return is_leaving

    def _add(self, url: str, spec: EngineSpec) -> None:
        try:
            self._ours[url] = self._fleet.add(spec).id
        except LlmschedError as error:
            if self._refused.get(url) != str(error):  # once, not every round
                log.warning("engine not added", extra={"url": url, "reason": str(error)})
            self._refused[url] = str(error)
        else:
            self._refused.pop(url, None)

    def _names(self) -> list[tuple[str, int]]:
        return list(dict.fromkeys(_name_of(wanted.spec) for wanted in self._wanted if wanted.resolve))

    def _specs(self) -> Iterator[EngineSpec]:
        for wanted in self._wanted:
            if not wanted.resolve:
                yield wanted.spec
                continue
            host, port = _name_of(wanted.spec)
            for address in self._addresses.get((host, port), ()):
                yield at_address(wanted.spec, address)


def _name_of(spec: EngineSpec) -> tuple[str, int]:
    parts = urlsplit(spec.url)
    return parts.hostname or "", parts.port or (443 if parts.scheme == "https" else 80)


def at_address(spec: EngineSpec, address: str) -> EngineSpec:
    """The engine at one address of its name; called after the name and the address.

    >>> at_address(EngineSpec("http://vllm:8000"), "fd00::7").url
    'http://[fd00::7]:8000'
    >>> at_address(EngineSpec("http://vllm"), "10.0.0.7").name
    'vllm-10.0.0.7'
    """
    parts = urlsplit(spec.url)
    host, port = _name_of(spec)
    shown = f"[{address}]" if ip_address(address.partition("%")[0]).version == 6 else address
    url = urlunsplit((parts.scheme, f"{shown}:{port}", parts.path, parts.query, ""))
    name = f"{spec.name or host}-{address.replace(':', '.').replace('%', '.')}"
    return replace(spec, url=url, name=name)
