"""Tools that go to the web: downloads of what a URL names, and searches in Wikipedia and Wikimedia Commons.

Only public addresses are reached (`llmsched.runtime.tools.web`), whatever a plan says.
"""

from __future__ import annotations

import json
from html.parser import HTMLParser
from typing import TYPE_CHECKING, Any

from llmsched import InvalidInput
from llmsched.errors import BackendError

from .calls import tool
from .codecs import picture, png
from .values import AUDIO, IMAGE, MAX_MEDIA_BYTES, MAX_TEXT_CHARS, TEXT, URL, VIDEO, Media

if TYPE_CHECKING:
    from llmsched.runtime.tools.corpus import Pages
    from llmsched.runtime.tools.web import Page

_TIMEOUT = 20.0
#: Of an image, which is shrunk afterwards, and of a page, whose text is much smaller.
_MAX_BYTES = 10_000_000
_TYPES = {IMAGE: ("image/",), AUDIO: ("audio/",), VIDEO: ("video/", "image/gif", "image/webp", "image/apng")}


def _get(url: str, max_bytes: int = _MAX_BYTES, **params: str) -> Page:
    """Raises InvalidInput for an address that is not public, and for an answer that says there is no such thing."""
    from llmsched.runtime.tools.web import fetch_now

    return fetch_now(url, params=params or None, timeout=_TIMEOUT, max_bytes=max_bytes)


def media_of(page: Page, kind: str) -> Media:
    """The media a server sent. Raises InvalidInput for an error, and for another type."""
    _check_status(page)
    type_ = page.content_type.partition(";")[0].strip().lower()
    if not type_.startswith(_TYPES[kind]):
        raise InvalidInput(f"{page.url:.200} is of type {type_[:60]!r}, it must be one of {', '.join(_TYPES[kind])}")
    return Media(kind, type_, page.body)


def text_of(page: Page) -> str:
    """The text a server sent, of HTML what a reader sees. Raises InvalidInput for an error, and for what is no text."""
    _check_status(page)
    type_ = page.content_type.partition(";")[0].strip().lower() or "text/plain"
    if type_ in ("text/html", "application/xhtml+xml"):
        reader = _Reader()
        reader.feed(page.text)
        reader.close()
        return reader.text[:MAX_TEXT_CHARS]
    if not type_.startswith("text/") and type_ != "application/json":
        raise InvalidInput(f"{page.url:.200} is of type {type_[:60]!r}, which is no text; name a page")
    return page.text[:MAX_TEXT_CHARS]


def _check_status(page: Page) -> None:
    if page.status >= 500 or page.status == 429:
        raise BackendError(f"{page.url:.200} answers with status {page.status}")  # worth another attempt
    if page.status >= 400:
        raise InvalidInput(f"{page.url:.200} answers with status {page.status}; name a page that exists")


class _Reader(HTMLParser):
    """Collects the text of a page without scripts, a line per block."""

    _SILENT = frozenset({"script", "style", "noscript", "template", "svg", "head"})
    _BLOCKS = frozenset(
        {"p", "div", "br", "li", "tr", "h1", "h2", "h3", "h4", "h5", "h6", "section", "article", "td", "th", "title"}
    )

    def __init__(self) -> None:
        super().__init__()
        self._parts: list[str] = []
        self._silent = 0

    def handle_starttag(self, tag: str, attrs: Any) -> None:
        self._silent += tag in self._SILENT
        self._parts += ["\n"] if tag in self._BLOCKS else []

    def handle_endtag(self, tag: str) -> None:
        self._silent = max(0, self._silent - (tag in self._SILENT))
        self._parts += ["\n"] if tag in self._BLOCKS else []

    def handle_data(self, data: str) -> None:
        self._parts += [] if self._silent else [data.replace("\n", " ")]

    @property
    def text(self) -> str:
        lines = (" ".join(line.split()) for line in "".join(self._parts).split("\n"))
        return "\n".join(line for line in lines if line)


@tool("download_text", URL)
def download_text(url: str) -> str:
    """The text at a URL, at most 100,000 characters of it."""
    return text_of(_get(url))


@tool("download_image", URL)
def download_image(url: str) -> Media:
    """The image at a URL, as a PNG or JPEG of at most 1024 pixels a side."""
    return png(picture(media_of(_get(url), IMAGE)))


@tool("download_audio", URL)
def download_audio(url: str) -> Media:
    """The sound at a URL as it is; the other tools read WAV files."""
    return media_of(_get(url, MAX_MEDIA_BYTES), AUDIO)


@tool("download_video", URL)
def download_video(url: str) -> Media:
    """The video at a URL as it is; the other tools read animated GIF, WebP and APNG."""
    return media_of(_get(url, MAX_MEDIA_BYTES), VIDEO)


@tool("search_text", TEXT)
def search_text(text: str) -> str:
    """The first three articles of the English Wikipedia that a search finds, a line each: title and first sentences."""
    from llmsched.runtime.tools.mediawiki import MediaWiki

    return articles(MediaWiki(), text)


def articles(wiki: Pages, text: str) -> str:
    """The lines of a search in a wiki."""
    found = [page for title in wiki.similar(text, 3) if (page := wiki.page(title)) is not None]
    lines = [f"{page.title}: {' '.join(page.sentences[:3])}" for page in found]
    return "\n".join(lines) or f"Nothing was found about {text[:80]!r}."


@tool("search_image", TEXT)
def search_image(text: str) -> Media:
    """The first image of Wikimedia Commons that a search finds, at most 640 pixels wide."""
    found = _get(
        "https://commons.wikimedia.org/w/api.php",
        action="query", generator="search", gsrsearch=f"filetype:bitmap {text[:300]}", gsrnamespace="6", gsrlimit="1",
        prop="imageinfo", iiprop="url", iiurlwidth="640", format="json",
    )  # fmt: skip
    return png(picture(media_of(_get(image_url_of(found, text)), IMAGE)))


def image_url_of(page: Page, text: str) -> str:
    """The URL in a search's answer. Raises InvalidInput where there is none."""
    _check_status(page)
    pages = json.loads(page.body).get("query", {}).get("pages", {})
    for found in pages.values():
        return str(found["imageinfo"][0]["thumburl"])
    raise InvalidInput(f"Wikimedia Commons has no image for {text[:80]!r}; ask for something else")
