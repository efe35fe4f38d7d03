"""The tool of web_search: `search` opens a page, `lookup` goes through its sentences that have a text in them.

Nothing is remembered between two calls: the page that is open and how far a look-up has come are the `state` that a
call returns, and that the next one is given as `previous`. Which pages there are is the operator's choice, see
`llmsched.runtime.tools.corpus`.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from llmsched import handler
from llmsched.runtime.tools.corpus import Pages, pages_of_operator

#: Sentences of a page that a search shows, and characters of an observation.
SHOWN, LONGEST = 5, 2500

_EXAMPLES = Path(__file__).parent / "examples.json"


@handler(
    name="web_search.tool",
    schema={
        "type": "object",
        "properties": {
            "action": {"enum": ["search", "lookup"]},
            "argument": {"type": "string"},
            "previous": {
                "description": "the state that the call before returned; null: there was none",
                "type": ["object", "null"],
                "properties": {
                    "page": {"type": ["string", "null"]},
                    "keyword": {"type": ["string", "null"]},
                    "position": {"type": "integer", "minimum": 0},
                },
            },
        },
        "required": ["action", "argument"],
        "additionalProperties": False,
    },
)
def tool(arguments: dict[str, Any]) -> dict[str, Any]:
    """`{"observation": text, "state": {"page", "keyword", "position"}}` of a search or look-up."""
    return act(pages_of_operator(_EXAMPLES), arguments)


def act(pages: Pages, arguments: dict[str, Any]) -> dict[str, Any]:
    """What `tool` does, with these pages."""
    argument = arguments["argument"].strip().strip("\"'[]").strip()
    state = {"page": None, "keyword": None, "position": 0} | (arguments.get("previous") or {})
    if not argument:
        return {"observation": f"Nothing to {arguments['action']}: name a text.", "state": state}
    observation, state = (_search if arguments["action"] == "search" else _look_up)(pages, argument, state)
    return {"observation": observation if len(observation) <= LONGEST else observation[: LONGEST - 1] + "…"} | {
        "state": state
    }


def _search(pages: Pages, title: str, state: dict[str, Any]) -> tuple[str, dict[str, Any]]:
    page = pages.page(title)
    if page is None:  # the page that was open stays so, as in ReAct
        similar = "; ".join(pages.similar(title))
        return f"Could not find {title}. Similar titles: {similar or 'none'}.", state
    return " ".join(page.sentences[:SHOWN]), {"page": page.title, "keyword": None, "position": 0}


def _look_up(pages: Pages, keyword: str, state: dict[str, Any]) -> tuple[str, dict[str, Any]]:
    page = pages.page(state["page"]) if state["page"] else None
    if page is None:
        return "No page is open to look anything up in; search for one first.", state
    found = [sentence for sentence in page.sentences if keyword.casefold() in sentence.casefold()]
    position = state["position"] if state["keyword"] == keyword else 0
    after = {"page": page.title, "keyword": keyword, "position": min(position + 1, len(found))}
    if position >= len(found):
        return f"No {'more ' if found else ''}results for {keyword} on the page {page.title}.", after
    return f"(Result {position + 1} / {len(found)}) {found[position]}", after
