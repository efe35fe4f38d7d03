"""API keys: optional, compared in constant time, each belonging to a tenant who sees only their own jobs.

Keys come from the settings (`tenant:key`) and from the store, where `llmsched keys` puts them; the service reads the
store's anew every second. Of a stored key only the SHA-256 is kept, which is enough for 192 random bits. Once a key was
ever given out, keys are needed, also when all of them are revoked.
"""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import logging
import re
import secrets
import time
from collections.abc import Awaitable, Callable, Iterable, Mapping
from typing import NamedTuple

from fastapi import Request
from starlette.exceptions import HTTPException

from llmsched.errors import BackendError
from llmsched.model.records import KeyRecord

log = logging.getLogger(__name__)

#: Seconds after which a key that was added or revoked elsewhere counts.
REFRESH = 1.0

_STORED = re.compile(r"lk_([0-9a-f]{8})_[A-Za-z0-9_-]{32}")


class Caller(NamedTuple):
    """Who asks. is_admin: may change applications, engines and the policy, and see what every tenant used."""

    tenant: str
    is_admin: bool


#: Everybody, where no key is needed.
ANYBODY = Caller("", True)


class Keys:
    """configured: tenant by key. admins: tenants whose configured keys may administer; None: all of them."""

    def __init__(self, configured: Mapping[str, str] | None = None, admins: Iterable[str] | None = None) -> None:
        self._configured: list[tuple[bytes, Caller]] = []
        self._stored: dict[str, tuple[bytes, Caller]] = {}
        self._was_given = False
        self.configure(configured or {}, admins)

    def configure(self, configured: Mapping[str, str], admins: Iterable[str] | None = None) -> None:
        """From now on these are the keys of the settings."""
        may = None if admins is None else frozenset(admins)
        # Digests have one length, so that comparing takes the same time whatever was sent.
        self._configured = [
            (_digest(key), Caller(tenant, may is None or tenant in may)) for key, tenant in configured.items()
        ]

    def know(self, stored: Iterable[KeyRecord]) -> None:
        """From now on these are the keys of the store, the revoked ones among them."""
        stored = list(stored)
        self._was_given = self._was_given or bool(stored)
        self._stored = {
            key.id: (bytes.fromhex(key.digest), Caller(key.tenant, key.is_admin))
            for key in stored
            if key.revoked_at is None
        }

    async def follow(self, read: Callable[[], Awaitable[Iterable[KeyRecord]]]) -> None:
        """Reads the store's keys every second, for ever. While it does not answer the last ones hold."""
        is_away = False
        while True:
            await asyncio.sleep(REFRESH)
            try:
                self.know(await read())
            except BackendError as error:
                if not is_away:
                    log.warning("keys could not be read; those known hold", extra={"error": str(error)})
                is_away = True
            else:
                is_away = False

    @property
    def are_required(self) -> bool:
        return bool(self._configured) or self._was_given

    @property
    def tenants(self) -> set[str]:
        """Tenants that have a key."""
        return {caller.tenant for _, caller in (*self._configured, *self._stored.values())}

    def caller_of(self, key: str) -> Caller | None:
        """Whose key it is; None for an unknown one. Every configured key is looked at."""
        sent, found = _digest(key), None
        for digest, caller in self._configured:
            if hmac.compare_digest(sent, digest):
                found = caller
        if found is None and (shape := _STORED.fullmatch(key)):
            stored = self._stored.get(shape[1])
            if stored is not None and hmac.compare_digest(sent, stored[0]):
                found = stored[1]
        return found

    async def __call__(self, request: Request) -> Caller:
        """Who is behind a request. Raises 401 where keys are required and none fits."""
        return self.behind(request.headers.get("authorization", ""), request.headers.get("x-api-key", ""))

    def behind(self, authorization: str, api_key: str) -> Caller:
        """Who is behind these two headers. Raises 401 where keys are required and none fits."""
        if not self.are_required:
            return ANYBODY
        scheme, _, key = authorization.partition(" ")
        if scheme.lower() != "bearer":
            key = api_key
        caller = self.caller_of(key.strip())
        if caller is None:
            raise HTTPException(
                401,
                "an API key is needed; send it as 'Authorization: Bearer KEY'",
                headers={"WWW-Authenticate": "Bearer"},
            )
        return caller


def new_key(tenant: str, *, is_admin: bool = False, note: str = "") -> tuple[str, KeyRecord]:
    """A fresh key, to be shown once, and what is kept of it."""
    id = secrets.token_hex(4)
    key = f"lk_{id}_{secrets.token_urlsafe(24)}"
    return key, KeyRecord(id, tenant, _digest(key).hex(), is_admin, time.time(), None, note)


def _digest(key: str) -> bytes:
    return hashlib.sha256(key.encode("utf-8", "surrogatepass")).digest()
