"""The regular stages of document merging: the best of several merges, by the marks that the model gave them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from statistics import fmean
from typing import Any

from llmsched import InvalidInput, handler

_MARK = {"type": "number", "minimum": 0, "maximum": 10}
_MARKS = {"redundancy": _MARK, "retained": _MARK}


def rate(marks: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """{score, redundancy, retained} from the marks of several judges, each of 0 to 10, where 10 is best.

    score: the harmonic mean of the two mean marks, so that a merge is as good as the worse of the two lets it be.

    Source: the score of document merging in Graph of Thoughts (arXiv:2308.09687), section 5.4.

    >>> rate([{"redundancy": 10, "retained": 4}, {"redundancy": 8, "retained": 2}])
    {'score': 4.5, 'redundancy': 9.0, 'retained': 3.0}
    """
    redundancy, retained = fmean(m["redundancy"] for m in marks), fmean(m["retained"] for m in marks)
    both = redundancy + retained
    return {"score": 2 * redundancy * retained / both if both else 0.0, "redundancy": redundancy, "retained": retained}


@handler(
    name="document_merging.keep_best",
    schema={
        "type": "object",
        "properties": {
            "texts": {"type": "array", "items": {"type": "string"}, "minItems": 1},
            "marks": {
                "type": "array",
                "items": {"type": "object", "properties": _MARKS, "required": ["redundancy", "retained"]},
                "minItems": 1,
            },
            "keep": {"type": "integer", "minimum": 1},
            "earlier": {
                "type": "array",
                "items": {
                    "type": "object",
                    "properties": {"text": {"type": "string"}, "score": _MARK, **_MARKS},
                    "required": ["text", "score", "redundancy", "retained"],
                },
            },
        },
        "required": ["texts", "marks", "keep"],
    },
)
def keep_best(arguments: dict[str, Any]) -> list[dict[str, Any]]:
    """The `keep` best texts, best first: [{text, score, redundancy, retained}].

    marks: the same number for each text, text by text. earlier: what an earlier stage kept, which stays in the race and
    comes behind a new text with the same score. An empty text scores 0, whatever its judges say.

    Raises InvalidInput if the marks do not fit the texts.
    """
    texts, marks = arguments["texts"], arguments["marks"]
    each, left = divmod(len(marks), len(texts))
    if left or not each:
        raise InvalidInput(
            f"{len(marks)} marks for {len(texts)} texts; every text needs the same number of them", field="marks"
        )
    rated = [_rated(text, marks[each * k : each * (k + 1)]) for k, text in enumerate(texts)]
    ranked = sorted([*rated, *arguments.get("earlier", [])], key=lambda merge: -merge["score"])
    return ranked[: arguments["keep"]]


def _rated(text: str, marks: Sequence[Mapping[str, float]]) -> dict[str, Any]:
    text = text.strip()
    return {"text": text} | rate(marks if text else [{"redundancy": 0, "retained": 0}])
