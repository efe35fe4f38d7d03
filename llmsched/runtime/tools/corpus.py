"""Pages that search tools of applications read: an index in one SQLite file, made of the paragraphs of HotpotQA files.

A page is a title and sentences. A title is found in whatever case; titles near a text are ranked by BM25 (FTS5 of
SQLite), a word of the title counting as much as five of the text. `Corpus` is the local index, `MediaWiki` in
`mediawiki.py` a wiki on the network; both are `Pages`, and `pages_of_operator` says which one the tools read.

Whoever runs the service chooses with environment variables, which worker processes inherit; no job and no client can:

* `WEB_SEARCH_CORPUS`: an index built by `python -m llmsched.apps.web_search.corpus build`; without it, the tools know
  the pages of their application's examples;
* `WEB_SEARCH_BACKEND`: `corpus` (default) or `mediawiki`;
* `WEB_SEARCH_MEDIAWIKI_URL`: the wiki's `api.php`; default: that of the English Wikipedia.
"""

from __future__ import annotations

import gzip
import io
import json
import os
import re
import sqlite3
import zlib
from collections.abc import Iterable, Iterator, Mapping
from contextlib import closing
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, BinaryIO, Protocol, cast

from llmsched.errors import InvalidInput, InvalidSetting, show

#: How many similar titles a search offers.
SIMILAR = 5
#: Characters of a data file that are read at once, and that one entry of it may have.
_CHUNK, _LONGEST_ENTRY = 1 << 20, 1 << 24
#: Words of a query that count.
_QUERY_WORDS = 64

_BACKENDS = ("corpus", "mediawiki")
_WORD = re.compile(r"[^\W_]+")
_SPACE = re.compile(r"\s*")

_TABLES = """
CREATE TABLE pages (id INTEGER PRIMARY KEY, title TEXT UNIQUE NOT NULL, folded TEXT NOT NULL, sentences TEXT NOT NULL);
CREATE INDEX pages_folded ON pages (folded);
CREATE VIRTUAL TABLE words USING fts5 (title, body, content='', tokenize='porter unicode61 remove_diacritics 2');
"""
_SIMILAR = """
SELECT pages.title FROM words JOIN pages ON pages.id = words.rowid
WHERE words MATCH ? ORDER BY bm25(words, 5.0, 1.0), pages.title LIMIT ?
"""


@dataclass(frozen=True, slots=True)
class Page:
    """One article, or its beginning."""

    title: str
    sentences: tuple[str, ...]


class Pages(Protocol):
    """Where search tools find pages."""

    def page(self, title: str) -> Page | None:
        """The page of that title, in whatever case; None: there is none."""

    def similar(self, text: str, limit: int = SIMILAR) -> list[str]:
        """Titles of pages near `text`, best first."""


class Corpus:
    """An index of pages. Close it, or use it as a context manager."""

    def __init__(self, database: sqlite3.Connection) -> None:
        self._database = database

    @classmethod
    def of(cls, pages: Iterable[Page]) -> Corpus:
        """An index in memory; of pages with one title, the first counts."""
        database = sqlite3.connect(":memory:", check_same_thread=False)
        _fill(database, pages)
        return cls(database)

    @classmethod
    def build(cls, path: Path, pages: Iterable[Page]) -> int:
        """Writes an index to `path`, in place of what is there; returns its number of pages.

        The file appears when it is complete: readers see the old one or the new one. Raises InvalidInput where it
        cannot be written, and whatever `pages` raises.
        """
        unfinished = path.with_name(f"{path.name}.{os.getpid()}.tmp")
        try:
            with closing(sqlite3.connect(unfinished)) as database:
                database.execute("PRAGMA synchronous = OFF")  # half a file is thrown away
                count = _fill(database, pages)
            unfinished.replace(path)
        except (sqlite3.Error, OSError) as error:
            raise InvalidInput(f"the corpus {path} cannot be written: {error}", field="out") from None
        finally:
            unfinished.unlink(missing_ok=True)
        return count

    @classmethod
    def open(cls, path: Path) -> Corpus:
        """The index in a file. Raises InvalidInput for a file that is none."""
        how = "build one with: python -m llmsched.apps.web_search.corpus build"
        if not path.is_file():
            raise InvalidInput(f"there is no corpus {path}; {how}", field="corpus")
        database = sqlite3.connect(f"{path.resolve().as_uri()}?mode=ro&immutable=1", uri=True, check_same_thread=False)
        try:
            database.execute("SELECT pages.id FROM pages JOIN words ON words.rowid = pages.id LIMIT 1").fetchall()
        except sqlite3.Error as error:
            database.close()
            raise InvalidInput(f"{path} is no corpus ({error}); {how}", field="corpus") from None
        return cls(database)

    def page(self, title: str) -> Page | None:
        row = self._database.execute(
            "SELECT title, sentences FROM pages WHERE folded = ? ORDER BY title = ? DESC, id LIMIT 1",
            (_folded(title), _tidy(title)),
        ).fetchone()
        return None if row is None else Page(row[0], tuple(json.loads(row[1])))

    def similar(self, text: str, limit: int = SIMILAR) -> list[str]:
        words = list(dict.fromkeys(_WORD.findall(text)))[:_QUERY_WORDS]
        if not words:
            return []
        query = " OR ".join(f'"{word}"' for word in words)
        return [title for (title,) in self._database.execute(_SIMILAR, (query, limit))]

    def close(self) -> None:
        self._database.close()

    def __len__(self) -> int:
        (count,) = self._database.execute("SELECT count(*) FROM pages").fetchone()
        return cast(int, count)

    def __enter__(self) -> Corpus:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _fill(database: sqlite3.Connection, pages: Iterable[Page]) -> int:
    count = 0
    with database:
        database.executescript(_TABLES)
        for page in pages:
            added = database.execute(
                "INSERT OR IGNORE INTO pages (title, folded, sentences) VALUES (?, ?, ?)",
                (page.title, _folded(page.title), json.dumps(page.sentences, ensure_ascii=False)),
            )
            if added.rowcount == 1:
                database.execute(
                    "INSERT INTO words (rowid, title, body) VALUES (?, ?, ?)",
                    (added.lastrowid, page.title, " ".join(page.sentences)),
                )
                count += 1
        database.execute("INSERT INTO words (words) VALUES ('optimize')")
    return count


def _tidy(title: str) -> str:
    return " ".join(title.replace("_", " ").split())


def _folded(title: str) -> str:
    return _tidy(title).casefold()


# ------------------------------------------------------------------------------------------------ HotpotQA files


def entries(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """Number (from 1) and object of each entry of a file that is one JSON list of objects, gzipped if it ends in `.gz`.

    Entries are read one after the other: a file of any size takes little memory, and whoever needs the first few does
    not wait for the others. Raises InvalidInput, naming the entry, for another file.
    """
    try:
        with _opened(path) as raw, io.TextIOWrapper(raw, encoding="utf-8") as stream:
            for number, entry in enumerate(_elements(path, stream), 1):
                if not isinstance(entry, dict):
                    raise _bad(path, number, f"is {show(entry)}, not an object")
                yield number, entry
    except UnicodeDecodeError:
        why = "it is no text in UTF-8"
    except (gzip.BadGzipFile, zlib.error, EOFError):
        why = "it is not gzipped; take the .gz off its name"
    except OSError as error:
        why = str(error.strerror)
    else:
        return
    raise InvalidInput(f"the dataset {path} cannot be read: {why}", field="data")


def _opened(path: Path) -> BinaryIO:
    return cast(BinaryIO, gzip.open(path)) if path.suffix == ".gz" else path.open("rb")


def _elements(path: Path, stream: io.TextIOWrapper) -> Iterator[Any]:
    text = stream.read(_CHUNK)
    at = _after_space(text, 0)
    if text[at : at + 1] != "[":
        raise InvalidInput(f"{path} is not one JSON list; is this the right file?", field="data")
    at, number, decode = at + 1, 1, json.JSONDecoder().raw_decode
    while True:
        at = _after_space(text, at)
        try:
            element, end = decode(text, at)
        except (ValueError, RecursionError) as error:
            if text.startswith("]", at) and number == 1:
                return
            more = stream.read(_CHUNK) if len(text) - at < _LONGEST_ENTRY else ""
            if not more:
                where = f" at its character {error.pos - at + 1}" if isinstance(error, json.JSONDecodeError) else ""
                raise _bad(path, number, f"is no JSON: {getattr(error, 'msg', error)}{where}") from None
            text, at = text[at:] + more, 0
            continue
        end = _after_space(text, end)
        while end == len(text) and (more := stream.read(_CHUNK)):
            text, end = more, _after_space(more, 0)
        yield element
        if text[end : end + 1] == "]":
            return
        if text[end : end + 1] != ",":
            rest = show(text[end : end + 20]) if end < len(text) else "nothing"
            raise _bad(path, number, f"is followed by {rest}, not by a comma or the list's end")
        at, number = end + 1, number + 1


def _after_space(text: str, at: int) -> int:
    found = _SPACE.match(text, at)
    assert found is not None  # it matches nothing, too
    return found.end()


def hotpot_pages(path: Path) -> Iterator[Page]:
    """The paragraphs of a HotpotQA file, in order, with those that several questions have in common repeated.

    Raises InvalidInput, naming the entry, for a file of another format.
    """
    for number, entry in entries(path):
        context = entry.get("context")
        if not isinstance(context, list):
            raise _bad(path, number, "has no 'context' list; take a distractor or fullwiki file of HotpotQA")
        for paragraph in context:
            match paragraph:
                case [str() as title, [*sentences]] if title.strip() and all(isinstance(s, str) for s in sentences):
                    yield Page(_tidy(title), tuple(s.strip() for s in sentences if s.strip()))
                case _:
                    raise _bad(path, number, f"has {show(paragraph)} in 'context', not a title and a list of sentences")


def _bad(path: Path, number: int, what: str) -> InvalidInput:
    return InvalidInput(f"{path}, entry {number} {what}", field="data")


# ---------------------------------------------------------------------------------------------- operator's choice


def pages_of_operator(examples: Path, environment: Mapping[str, str] = os.environ) -> Pages:
    """The pages that the environment names; without a word about it, those in the HotpotQA file `examples`.

    They are opened once per process. Raises InvalidSetting, without the path, which is no business of whoever reads why
    a job failed.
    """
    backend, corpus, url = (
        environment.get(f"WEB_SEARCH_{name}", "") for name in ("BACKEND", "CORPUS", "MEDIAWIKI_URL")
    )
    return _pages(backend or "corpus", corpus, url, examples)


@lru_cache(8)
def _pages(backend: str, corpus: str, url: str, examples: Path) -> Pages:
    if backend == "mediawiki":
        from llmsched.runtime.tools.mediawiki import MediaWiki

        return MediaWiki(url) if url else MediaWiki()
    if backend != "corpus":
        raise InvalidSetting(
            f"WEB_SEARCH_BACKEND is {show(backend)}; it must be one of {', '.join(_BACKENDS)}",
            field="WEB_SEARCH_BACKEND",
        )
    if not corpus:
        return Corpus.of(hotpot_pages(examples))
    try:
        return Corpus.open(Path(corpus).expanduser())
    except InvalidInput:
        raise InvalidSetting(
            "the file that WEB_SEARCH_CORPUS names is not there or is no corpus; build one with:"
            " python -m llmsched.apps.web_search.corpus build",
            field="WEB_SEARCH_CORPUS",
        ) from None
