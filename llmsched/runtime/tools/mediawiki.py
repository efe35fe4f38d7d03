"""Pages of a MediaWiki server, by its API: `action=query` with extracts in plain text, as Wikipedia has them.

Redirects are followed by the wiki; a page that only tells several meanings of a title apart counts as not found, and
what it could mean is among the similar titles. Requests are those of `web.fetch_now`: public addresses only, with a
limit of time and bytes each.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from functools import lru_cache
from typing import Any, Protocol

from llmsched.errors import BackendError, show
from llmsched.runtime.tools.corpus import SIMILAR, Page

WIKIPEDIA = "https://en.wikipedia.org/w/api.php"
#: Seconds that one request may take, and bytes of its answer: no article comes near.
TIMEOUT, MAX_BYTES = 10.0, 4 << 20
#: Characters of a title or a search that are sent; MediaWiki takes 300 of a search.
_LONGEST = 300
_ALWAYS = {"action": "query", "format": "json", "formatversion": "2"}

#: Between sentences: white space after a full stop and before a capital, a digit or an opening quote; or a new line.
_BREAK = re.compile(r"(?<=[.!?])[ \t]+(?=[\"“‘(\[]?[A-Z0-9])|\s*\n\s*")


class Answer(Protocol):
    """What `web.fetch_now` returns, as far as it is looked at."""

    @property
    def status(self) -> int: ...
    @property
    def text(self) -> str: ...


class MediaWiki:
    """A wiki as `corpus.Pages`. url: of its api.php. fetch: called like `web.fetch_now`."""

    def __init__(self, url: str = WIKIPEDIA, fetch: Callable[..., Answer] | None = None) -> None:
        if fetch is None:
            from llmsched.runtime.tools.web import fetch_now

            fetch = fetch_now
        self._url, self._fetch = url, fetch
        #: Looking something up reads the page again that was just found.
        self._page = lru_cache(32)(self._read)

    def page(self, title: str) -> Page | None:
        """As `corpus.Pages` says. Raises BackendError when the wiki does not answer as one should."""
        title = " ".join(title.split())[:_LONGEST]
        return self._page(title) if title else None

    def similar(self, text: str, limit: int = SIMILAR) -> list[str]:
        """As `corpus.Pages` says. Raises BackendError when the wiki does not answer as one should."""
        text = " ".join(text.split())[:_LONGEST]
        if not text:
            return []
        asked = {"list": "search", "srsearch": text, "srlimit": str(limit), "srprop": "", "srinfo": ""}
        found = self._ask(asked).get("search")
        if not isinstance(found, list):
            raise BackendError(f"the wiki at {self._url} answers a search without a list of results")
        titles = [str(hit["title"]) for hit in found if isinstance(hit, Mapping) and "title" in hit]
        return titles[:limit]

    def _read(self, title: str) -> Page | None:
        # A vertical bar separates titles, after this character it does not.
        asked = {"titles": f"\x1f{title}", "redirects": "1", "prop": "extracts|pageprops", "explaintext": "1"}
        asked |= {"exsectionformat": "plain", "exlimit": "1", "ppprop": "disambiguation"}
        match self._ask(asked):
            case {"pages": [{"missing": True} | {"invalid": True} | {"pageprops": {"disambiguation": _}}]}:
                return None
            case {"interwiki": _}:
                return None
            case {"pages": [{"ns": int(namespace)}]} if namespace != 0:  # a file, a user, a category …
                return None
            case {"pages": [{"title": str(found), "extract": str(text)}]}:
                return Page(found, tuple(s for s in map(str.strip, _BREAK.split(text)) if s))
            case {"pages": [{"title": _}]}:
                raise BackendError(f"the wiki at {self._url} gives no extracts; it needs the extension TextExtracts")
            case other:
                raise BackendError(f"the wiki at {self._url} answers with {show(other)} where one page was asked for")

    def _ask(self, parameters: Mapping[str, str]) -> Mapping[str, Any]:
        answer = self._fetch(self._url, params={**_ALWAYS, **parameters}, timeout=TIMEOUT, max_bytes=MAX_BYTES)
        if answer.status != 200:
            raise BackendError(f"the wiki at {self._url} answers with status {answer.status}")
        try:
            said = json.loads(answer.text)
        except ValueError:
            raise BackendError(f"the wiki at {self._url} answers with no JSON; name the URL of its api.php") from None
        match said:
            case {"error": {"info": info}}:
                raise BackendError(f"the wiki at {self._url} refuses: {show(info)}")
            case {"query": dict(query)}:
                return query
            case {"batchcomplete": _}:  # a title that cannot be, such as one of blanks
                return {"pages": [{"invalid": True}]}
            case other:
                raise BackendError(f"the wiki at {self._url} answers with {show(other)}, which is no query's result")
