"""The search of llm_compiler: the beginning of the page that a query names, or of the one nearest to it.

Which pages there are is the operator's choice, see `llmsched.runtime.tools.corpus`.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from llmsched import handler
from llmsched.runtime.tools.corpus import Page, Pages, pages_of_operator

#: Sentences of a page that are shown, and characters of a result.
SHOWN, LONGEST = 8, 2500

_PAGES = Path(__file__).parent / "pages.json"


@handler(
    name="llm_compiler.search",
    schema={
        "type": "object",
        "properties": {"query": {"type": "string", "description": "the title of a page, or what it is about"}},
        "required": ["query"],
        "additionalProperties": False,
    },
)
def search(arguments: dict[str, Any]) -> str:
    """The beginning of the page that the query names, or of the one nearest to it."""
    return find(pages_of_operator(_PAGES), arguments["query"])


def find(pages: Pages, query: str) -> str:
    """What `search` answers, with these pages. A plan cannot look twice, so a near miss shows the nearest page."""
    query = query.strip().strip("\"'").strip()
    page = pages.page(query) if query else None
    if page is not None:
        return _shown(page)
    similar = pages.similar(query)
    nearest = pages.page(similar[0]) if similar else None
    if nearest is None:
        return f"Could not find {query[:200] or 'anything'}."
    return f"Could not find {query[:200]}. Similar titles: {'; '.join(similar)}. {_shown(nearest)}"


def _shown(page: Page) -> str:
    text = f"{page.title}: {' '.join(page.sentences[:SHOWN])}"
    return text if len(text) <= LONGEST else text[: LONGEST - 1] + "…"
