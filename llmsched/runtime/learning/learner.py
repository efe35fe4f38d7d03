"""Learns from finished jobs while the service runs, in the background.

After every `every_jobs` finished jobs of an application, or `every_s` seconds with at least one, the newest `from_jobs`
completed ones are fitted in a process of their own. The profile is stored, then swapped in at once. So a service that
is killed at any moment finds at least the last profile that was in use.

What history cannot teach (too few jobs) is logged once per application. A fit that fails is logged and tried again;
nothing that happens here reaches a job.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import inf
from pathlib import Path
from typing import Protocol

from llmsched.errors import BackendError, ProfileError, UnknownName
from llmsched.model.application import Application
from llmsched.profiler import MIN_JOBS, Knowledge, Profile
from llmsched.runtime.applications import Applications
from llmsched.runtime.clock import Clock
from llmsched.runtime.learning.fitter import Fitter
from llmsched.runtime.learning.profiles import profile_files, read_document, unpack

log = logging.getLogger(__name__)

#: Seconds after which a fit that failed is tried again, if `every_s` is not shorter.
RETRY_AFTER = 60.0
#: So many times as long as a fit took, its application is left alone: many short jobs would keep a core at fits.
RESTS = 4.0


class StoredProfile(Protocol):
    """A profile as the store has it; body: see `runtime.profiles`."""

    @property
    def application(self) -> str: ...
    @property
    def learned_at(self) -> float: ...
    @property
    def body(self) -> bytes: ...


class ProfileStore(Protocol):
    async def save_profile(self, application: str, version: int, learned_at: float, jobs: int, body: bytes) -> int: ...

    async def profiles(self) -> Sequence[StoredProfile]: ...

    async def completed_since(self, application: str, moment: float, newest: int) -> int: ...


@dataclass(frozen=True, slots=True)
class Learning:
    """When and from how much is learned. `enabled` false: profiles that exist are used, none is learned."""

    enabled: bool = True
    every_jobs: int = 50
    every_s: float = 600.0
    from_jobs: int = 2_000


@dataclass(slots=True)
class _Progress:
    """Finished jobs no profile knows yet, and since when there are any. Times are those of the event loop.

    not_before: a fit has failed, and would fail again, or has just been made.
    """

    new: int = 0
    since: float = inf
    not_before: float = 0.0


class Learner:
    """Keeps `knowledge` up to date. on_learned: told the application's name after every swap."""

    def __init__(
        self,
        knowledge: Knowledge,
        applications: Applications,
        store: ProfileStore,
        fitter: Fitter,
        clock: Clock,
        *,
        settings: Learning | None = None,
        folder: Path | None = None,
        on_learned: Callable[[str], None] = lambda application: None,
    ) -> None:
        self._knowledge = knowledge
        self._applications = applications
        self._store = store
        self._fitter = fitter
        self._clock = clock
        self._settings = settings or Learning()
        self._folder = folder
        self._on_learned = on_learned
        self._progress: dict[str, _Progress] = {}
        self._news = asyncio.Event()
        #: Applications whose history was said to teach nothing.
        self._told: set[str] = set()

    # ------------------------------------------------------------------------------------------- at start

    async def restore(self) -> None:
        """Takes every application's newest profile, out of store or folder, and sees what is to be learned.

        One that does not fit its application any more is ignored with a line in the log.
        Raises InvalidSetting if there is no folder, ProfileError for a file in it that cannot be read.
        """
        stored = {profile.application: profile for profile in await self._store.profiles()}
        files = {} if self._folder is None else profile_files(self._folder)
        for application in self._applications:
            found = []
            if application.name in files:
                found += await self._from_file(files.pop(application.name), application)
            if application.name in stored:
                found += await self._from_store(stored[application.name], application)
            if found:
                self._knowledge.put(max(found, key=lambda profile: profile.learned_at))
            if self._settings.enabled:
                await self._catch_up(application.name)
        for name, file in files.items():
            log.warning("profile ignored", extra={"file": str(file), "reason": f"there is no application {name!r}"})

    async def _from_store(self, stored: StoredProfile, application: Application) -> list[Profile]:
        try:
            return [await asyncio.to_thread(unpack, stored.body, application)]
        except ProfileError as error:
            log.warning("profile ignored", extra={"application": application.name, "reason": str(error)})
            return []

    async def _from_file(self, file: Path, application: Application) -> list[Profile]:
        document = await asyncio.to_thread(read_document, file)
        try:
            return [await asyncio.to_thread(Profile.from_json, document, application)]
        except ProfileError as error:
            log.warning("profile ignored", extra={"file": str(file), "reason": str(error)})
            return []

    async def _catch_up(self, name: str) -> None:
        """Counts what finished since the profile was learned; a profile older than its history is due at once."""
        profile = self._knowledge.profiles.get(name)
        new = await self._store.completed_since(name, profile.learned_at if profile else 0.0, MIN_JOBS)
        if new >= (1 if profile else MIN_JOBS):
            self._progress[name] = _Progress(self._settings.every_jobs, self._now())
            self._news.set()

    # ---------------------------------------------------------------------------------------- while it runs

    def completed(self, application: str) -> None:
        """A job of it has completed."""
        if not self._settings.enabled:
            return
        progress = self._progress.setdefault(application, _Progress())
        progress.new += 1
        progress.since = min(progress.since, self._now())
        if progress.new in (1, self._settings.every_jobs):
            self._news.set()

    async def run(self) -> None:
        """Learns whenever something is due, one application after the other; runs until it is cancelled."""
        while True:
            self._news.clear()
            name, wait = self._next()
            if name is not None:
                await self._learn(name)
                continue
            try:
                async with asyncio.timeout(None if wait == inf else wait):
                    await self._news.wait()
            except TimeoutError:
                pass

    def _next(self) -> tuple[str | None, float]:
        """An application that is due, the longest waiting first; else the seconds until one will be."""
        now, wait = self._now(), inf
        for name, progress in sorted(self._progress.items(), key=lambda item: item[1].since):
            due = 0.0 if progress.new >= self._settings.every_jobs else progress.since + self._settings.every_s
            left = max(due, progress.not_before) - now
            if left <= 0.0:
                return name, 0.0
            wait = min(wait, left)
        return None, wait

    async def _learn(self, name: str) -> None:
        progress, began = self._progress.pop(name), self._now()
        try:
            profile = await self.learn(self._applications.newest(name))
        except UnknownName:
            return  # deleted meanwhile
        except ProfileError as error:
            if name not in self._told:
                self._told.add(name)
                log.info("nothing learned", extra={"application": name, "reason": str(error)})
        except BackendError as error:
            log.warning("learning failed", extra={"application": name, "error": str(error)})
            self._retry_later(name)
        except Exception:  # a bug of ours, which must not end the learning of others
            log.exception("learning failed", extra={"application": name, "new_jobs": progress.new})
            self._retry_later(name)
        else:
            self._told.discard(name)
            chosen = {"version": profile.version, "jobs": profile.jobs, "estimator": profile.estimator}
            log.info("profile learned", extra={"application": name, **chosen})
            rested = self._progress.setdefault(name, _Progress())
            rested.not_before = self._now() + RESTS * (self._now() - began)

    def _retry_later(self, name: str) -> None:
        progress = self._progress.setdefault(name, _Progress())
        progress.new += self._settings.every_jobs
        progress.since = self._now()
        progress.not_before = progress.since + min(RETRY_AFTER, self._settings.every_s)

    async def learn(self, application: Application) -> Profile:
        """Fits, stores and swaps in a new profile. Raises ProfileError or BackendError; all is then as it was."""
        learned_at = self._clock.now()
        fitted = await self._fitter.fit(application, self._settings.from_jobs, learned_at)
        profile = await asyncio.to_thread(unpack, fitted.body, application)
        await self._store.save_profile(application.name, fitted.version, learned_at, fitted.jobs, fitted.body)
        self._knowledge.put(profile)
        self._on_learned(application.name)
        return profile

    @staticmethod
    def _now() -> float:
        return asyncio.get_running_loop().time()
