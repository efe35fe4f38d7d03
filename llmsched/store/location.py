"""Where a store lives: plain URLs, `sqlite:///jobs.db` and `postgresql://user:password@host/name`."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import unquote, urlsplit

from llmsched.errors import InvalidSetting

_WAY_OUT = "use sqlite:///jobs.db, sqlite:////absolute/path.db or postgresql://user:password@host:5432/name"


@dataclass(frozen=True, slots=True)
class Location:
    """A checked URL. path: of the SQLite file; None: PostgreSQL. shown: how to name it, without password or options.

    >>> Location.parse("postgresql://ann:secret@db.example/llmsched?sslmode=require")
    Location(path=None, shown='postgresql://ann@db.example/llmsched')
    """

    path: Path | None
    shown: str
    url: str = field(repr=False)
    password: str = field(repr=False, default="")

    @classmethod
    def parse(cls, url: str) -> Location:
        """Raises InvalidSetting for anything that is neither a SQLite file nor a PostgreSQL database."""
        scheme, colon, _ = url.partition(":")
        match scheme if colon else "":
            case "sqlite":
                return _sqlite(url)
            case "postgresql" | "postgres":
                return _postgresql(url)
            case "":
                raise InvalidSetting(f"the store's URL has no scheme; {_WAY_OUT}", field="store")
            case _:
                raise InvalidSetting(f"unknown kind of store {scheme!r}; {_WAY_OUT}", field="store")

    def scrub(self, message: object) -> str:
        """The message without the password, whoever wrote it in."""
        text = str(message)
        for secret in (self.password, unquote(self.password)):
            text = text.replace(secret, "***") if secret else text
        return text


def _sqlite(url: str) -> Location:
    prefix, path = url[:10], url[10:]
    if prefix != "sqlite:///" or not path or path.endswith("/") or "\0" in path:
        raise InvalidSetting(f"the store's URL {url!r} names no file; {_WAY_OUT}", field="store")
    if ":memory:" in path or "?" in path:
        raise InvalidSetting(
            f"the store's URL {url!r} must be a plain file: nothing would survive a restart in memory, and options"
            " are not supported; use sqlite:///jobs.db",
            field="store",
        )
    return Location(Path(path).absolute(), url, url)


def _postgresql(url: str) -> Location:
    parts = urlsplit(url)
    credentials, _, hosts = parts.netloc.rpartition("@")
    user, _, password = credentials.partition(":")
    beyond = parts.path + parts.fragment + ("" if credentials else parts.query)
    if not url.startswith(f"{parts.scheme}://") or "@" in beyond or "@" in credentials:
        raise InvalidSetting(
            "the store's URL is not readable; percent-encode '@', ':', '/', '?' and '#' in its user and password, as in"
            " postgresql://ann:p%40ss@host:5432/name",
            field="store",
        )
    shown = f"postgresql://{user + '@' if user else ''}{hosts}{parts.path}"
    return Location(None, shown, url, password)
