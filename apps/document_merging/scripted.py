"""Plays a model that merges agreements clause by clause, and makes the mistakes that scoring is there to find.

A clause is a line. Draft k forgets every fifth clause, and some drafts repeat one. An aggregation has all clauses of
its drafts but for one that it loses or repeats. Every third improvement is right, the others change nothing. Judges
really compare, and the three of them are differently strict. Each reply depends on its prompt alone.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable

from llmsched.testing import Call

_BLOCK = re.compile(r"^<(agreement|draft|merged)(?:_\d+)?>\n(.*?)\n</\1(?:_\d+)?>$", re.MULTILINE | re.DOTALL)
_TASK = re.compile(r"^(Draft|Judge|Aggregation|Improvement) (\d+) of \d+\.$", re.MULTILINE)
_NUMBERING = re.compile(r"^\s*(?:\d+|[a-z])[.)]\s*")


def answer(call: Call) -> str:
    """The reply. Raises LookupError for what is no prompt of this application."""
    prompt = next((m["content"] for m in call.messages if m["role"] == "user"), "")
    texts: dict[str, list[str]] = {}
    for label, text in _BLOCK.findall(prompt):
        texts.setdefault(label, []).append(text)
    task = _TASK.search(prompt)
    match (task and task[1], texts):
        case "Draft", {"agreement": documents}:
            return _written(_draft(clauses(documents), _number(task)))
        case "Judge", {"agreement": documents, "merged": [merged]}:
            return _judgement(clauses(documents), lines(merged), _number(task))
        case "Aggregation", {"agreement": _, "draft": drafts}:
            return _written(_aggregate(clauses(drafts), _number(task)))
        case "Improvement", {"agreement": documents, "merged": [merged]}:
            return merged if _number(task) % 3 else _written(clauses(documents))
    raise LookupError(f"{prompt[:80]!r} is no prompt of document_merging: it does not say what to do with agreements")


def lines(text: str) -> list[str]:
    """The clauses of a text without their numbers."""
    return [clause for line in text.splitlines() if (clause := _NUMBERING.sub("", line).strip())]


def clauses(texts: Iterable[str]) -> list[str]:
    """What the texts say, once, in the order in which it is said first."""
    return list(dict.fromkeys(clause for text in texts for clause in lines(text)))


def _draft(wanted: list[str], number: int) -> list[str]:
    kept = [clause for i, clause in enumerate(wanted) if i % 5 != number % 5]
    return kept + kept[-1:] if number % 2 else kept


def _aggregate(wanted: list[str], number: int) -> list[str]:
    return wanted[:-1] if number % 2 else [*wanted, wanted[0]]


def _judgement(wanted: list[str], said: list[str], judge: int) -> str:
    missing = [clause for clause in wanted if clause not in said]
    repeated = len(said) - len(set(said))
    strictness = (0.0, 0.5, -0.5)[judge % 3]
    retained = 10 * (1 - len(missing) / len(wanted)) - strictness
    redundancy = 10 * (1 - 2 * repeated / len(said)) - strictness if said else 0.0
    reasons = f"Missing: {'; '.join(missing)[:300] or 'nothing'}. Clauses said more than once: {repeated}."
    marks = {"redundancy": redundancy, "retained": retained}
    return json.dumps({"reasons": reasons} | {k: round(min(10.0, max(0.0, v)), 2) for k, v in marks.items()})


def _written(wanted: list[str]) -> str:
    return "\n".join([*wanted[:1], *(f"{i}. {clause}" for i, clause in enumerate(wanted[1:], 1))])


def _number(task: re.Match[str] | None) -> int:
    return int(task[2]) if task else 0
