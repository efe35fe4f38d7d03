"""Signatures of callbacks, as Standard Webhooks (https://www.standardwebhooks.com, version 1) has them.

A secret is `whsec_` and 24 to 64 bytes in base64. What is signed with its bytes (HMAC-SHA256) is the message's id, the
unix second of the attempt, and the body, with dots in between. With several secrets a message has several signatures,
and whoever knows one of the secrets can check it: that is how a secret is replaced without a gap.
"""

from __future__ import annotations

import base64
import hmac
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path

from llmsched.errors import InvalidSetting

log = logging.getLogger(__name__)

PREFIX = "whsec_"


def sign(secrets: Sequence[bytes], id: str, at: int, body: bytes) -> dict[str, str]:
    """The three headers of a message. at: unix seconds, of this attempt.

    >>> headers = sign([b"k" * 24], "evt_1", 1614265330, b"{}")
    >>> headers["webhook-signature"]
    'v1,aHjuz8fepB1wwzwecQPLtPHKrxJMGRRRd5JiD4oDehY='
    """
    signed = b"%s.%d.%s" % (id.encode(), at, body)
    digests = (base64.b64encode(hmac.digest(secret, signed, "sha256")).decode() for secret in secrets)
    return {
        "webhook-id": id,
        "webhook-timestamp": str(at),
        "webhook-signature": " ".join(f"v1,{digest}" for digest in digests),
    }


class Secrets:
    """Secrets by tenant, from a text or a file; those of '' sign for every tenant that has none of its own.

    The text is a comma list, the file has one per line: `whsec_…` or `tenant:whsec_…`. The file is read again when it
    has changed; what cannot be used then is told in the log, and the secrets stay as they were.

    Raises InvalidSetting, without showing a secret.
    """

    def __init__(self, text: str = "", file: Path | None = None) -> None:
        self._given = _parse(text.replace("\n", ",").split(","), "callback_secrets")
        self._file = file
        self._stamp: tuple[int, int] | None = None
        self._secrets: Mapping[str, Sequence[bytes]] = self._given
        if file is not None:
            self._stamp = _stamp(file)
            self._secrets = self._read(file)

    def of(self, tenant: str) -> Sequence[bytes]:
        """What signs a tenant's callbacks; empty: nothing does."""
        self._refresh()
        return self._secrets.get(tenant) or self._secrets.get("", ())

    def _refresh(self) -> None:
        if self._file is None:
            return
        try:
            stamp = _stamp(self._file)
            if stamp == self._stamp:
                return
            self._stamp = stamp
            self._secrets = self._read(self._file)
        except InvalidSetting as error:
            log.error("callback secrets stay as they were", extra={"error": str(error)})
        else:
            log.info("callback secrets read again")

    def _read(self, file: Path) -> Mapping[str, Sequence[bytes]]:
        try:
            lines = file.read_text(encoding="utf-8").splitlines()
        except (OSError, UnicodeDecodeError) as error:
            raise _unreadable(file, error) from None
        secrets = {tenant: list(of_tenant) for tenant, of_tenant in self._given.items()}
        for tenant, more in _parse(lines, "callback_secrets_file").items():
            secrets.setdefault(tenant, []).extend(more)
        return secrets


def _stamp(file: Path) -> tuple[int, int]:
    try:
        status = file.stat()
    except OSError as error:
        raise _unreadable(file, error) from None
    return status.st_mtime_ns, status.st_size


def _unreadable(file: Path, error: Exception) -> InvalidSetting:
    why = getattr(error, "strerror", None) or "it is no text in UTF-8"
    setting = "callback_secrets_file"
    return InvalidSetting(f"{setting} is {str(file)!r}, which cannot be read: {why}", field=setting)


def _parse(entries: Sequence[str], setting: str) -> dict[str, list[bytes]]:
    secrets: dict[str, list[bytes]] = {}
    for number, entry in enumerate(entries, 1):
        if not entry.strip():
            continue
        tenant, _, secret = entry.strip().rpartition(":")
        try:
            key = base64.b64decode(secret.removeprefix(PREFIX), validate=True)
        except ValueError:
            key = b""
        if not (secret.startswith(PREFIX) and 24 <= len(key) <= 64):
            raise InvalidSetting(
                f"entry {number} of {setting} is no secret; it must be {PREFIX} and 24 to 64 bytes in base64 (make one:"
                f' echo "{PREFIX}$(openssl rand -base64 32)"), with tenant: before it for one tenant alone',
                field=setting,
            )
        secrets.setdefault(tenant, []).append(key)
    return secrets
