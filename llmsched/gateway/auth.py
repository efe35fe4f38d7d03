"""API keys: optional, compared in constant time, each belonging to a tenant who sees only their own jobs."""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Mapping

from fastapi import Request
from starlette.exceptions import HTTPException


class Keys:
    """tenant by key; empty: everybody is the tenant ''."""

    def __init__(self, tenants: Mapping[str, str] | None = None) -> None:
        # Digests have one length, so that comparing takes the same time whatever was sent.
        self._tenants = [(_digest(key), tenant) for key, tenant in (tenants or {}).items()]

    @property
    def are_required(self) -> bool:
        return bool(self._tenants)

    def tenant_of(self, key: str) -> str | None:
        """The key's tenant; None for an unknown key. Every known key is looked at."""
        sent, found = _digest(key), None
        for digest, tenant in self._tenants:
            if hmac.compare_digest(sent, digest):
                found = tenant
        return found

    async def __call__(self, request: Request) -> str:
        """The tenant behind a request. Raises 401 where keys are required and none fits."""
        return self.tenant_behind(request.headers.get("authorization", ""), request.headers.get("x-api-key", ""))

    def tenant_behind(self, authorization: str, api_key: str) -> str:
        """The tenant behind these two headers. Raises 401 where keys are required and none fits."""
        if not self.are_required:
            return ""
        scheme, _, key = authorization.partition(" ")
        if scheme.lower() != "bearer":
            key = api_key
        tenant = self.tenant_of(key.strip())
        if tenant is None:
            raise HTTPException(
                401,
                "an API key is needed; send it as 'Authorization: Bearer KEY'",
                headers={"WWW-Authenticate": "Bearer"},
            )
        return tenant


def _digest(key: str) -> bytes:
    return hashlib.sha256(key.encode("utf-8", "surrogatepass")).digest()
