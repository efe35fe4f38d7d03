"""Settings that change while the service runs: engines, weights and quotas of tenants, keys, who may administer.

The file of the settings and the files of keys it names are looked at every `reload_interval` seconds, and read anew on
SIGHUP whatever they look like. They are read as at the start, flags and environment included, and either all of it
holds from then on, or none: settings with a mistake are refused with one sentence in the log, and what held before goes
on. Of a setting that needs a restart the log says so.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from llmsched.config import Settings, load
from llmsched.errors import LlmschedError

log = logging.getLogger(__name__)

#: What can change while the service runs.
LIVE = ("engines", "engine_api_key", "tenant_weights", "tenant_quotas", "api_keys", "api_keys_file", "admins")

#: Of a file: its identity, size and time of change; None where there is none.
_Stamp = tuple[int, int, int] | None


@dataclass(frozen=True, slots=True)
class Source:
    """Where settings come from besides the environment: a file and flags."""

    file: Path | None = None
    flags: Mapping[str, Any] = field(default_factory=dict)

    def load(self) -> Settings:
        """The settings as they are now. Raises InvalidSetting."""
        return load(self.file, **self.flags)


class Reloader:
    """Applies what changes in `source`. apply: makes new settings hold, or raises LlmschedError and changes nothing."""

    def __init__(self, source: Source, settings: Settings, apply: Callable[[Settings], None]) -> None:
        self._source = source
        self._settings = settings
        self._apply = apply
        self._seen = self._stamps()

    async def run(self) -> None:
        """Looks again and again, for ever."""
        while True:
            await asyncio.sleep(self._settings.reload_interval or 3600.0)
            if self._settings.reload_interval:
                self.look()

    def look(self) -> None:
        """Reads the settings if one of their files has changed."""
        if self._stamps() != self._seen:
            self.reload()

    def reload(self) -> bool:
        """Reads the settings, changed or not; whether they hold now."""
        self._seen = self._stamps()
        try:
            settings = self._source.load()
            self._apply(settings)
        except LlmschedError as error:
            log.error("settings refused; those before go on", extra={"reason": str(error)})
            return False
        before, self._settings = self._settings, settings
        self._seen = self._stamps()
        changed = [k for k in Settings.model_fields if getattr(before, k) != getattr(settings, k)]
        if stale := [key for key in changed if key not in (*LIVE, "reload_interval")]:
            log.warning("settings changed that need a restart", extra={"settings": ", ".join(stale)})
        log.info("settings reloaded", extra={"changed": ", ".join(changed) or "nothing but files"})
        return True

    def _stamps(self) -> list[_Stamp]:
        """Of every file that settings are read from."""
        keys = [engine.api_key_file for engine in self._settings.engines]
        return [_stamp(file) for file in (self._source.file, self._settings.api_keys_file, *keys)]


def _stamp(file: Path | None) -> _Stamp:
    try:
        found = None if file is None else file.stat()
    except OSError:
        return None
    return None if found is None else (found.st_ino, found.st_size, found.st_mtime_ns)
