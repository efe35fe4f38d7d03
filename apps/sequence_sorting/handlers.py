"""The regular stages of sequence sorting: take a half of the split, count the errors of candidates, keep the best."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from itertools import pairwise
from typing import Any

from llmsched import handler

_NUMBERS = {"type": "array", "items": {"type": "integer"}}
_SCORED = {
    "type": "object",
    "properties": {"numbers": _NUMBERS, "errors": {"type": "integer", "minimum": 0}},
    "required": ["numbers", "errors"],
}


def count_errors(numbers: Sequence[int], original: Sequence[int]) -> int:
    """How far `numbers` is from being `original` sorted; 0 if and only if it is just that.

    Every neighbouring pair in the wrong order counts one, and so does every number that is missing or too many.

    Source: the error scope X + Y of Graph of Thoughts (arXiv:2308.09687), section 5.1. There Y counts the digits 0 to 9
    alone, as the lists have no others; here it counts whatever number occurs.

    >>> count_errors([1, 3, 2, 2], [3, 2, 1, 4])  # 3 before 2; a 2 too many, the 4 missing
    3
    """
    misplaced = sum(a > b for a, b in pairwise(numbers))
    difference = Counter(numbers)
    difference.subtract(Counter(original))
    return misplaced + sum(map(abs, difference.values()))


@handler(
    name="sequence_sorting.select",
    schema={
        "type": "object",
        "properties": {
            "split": {
                "type": "object",
                "properties": {"first": _NUMBERS, "second": _NUMBERS},
                "required": ["first", "second"],
            },
            "numbers": _NUMBERS,
            "half": {"enum": ["first", "second"]},
        },
        "required": ["split", "numbers", "half"],
    },
)
def select(arguments: dict[str, Any]) -> dict[str, Any]:
    """One half of the model's split: {numbers, repaired}.

    A split that lost or invented numbers, or that leaves a half empty, is `repaired`: the list itself is cut in the
    middle. Without that, what the split lost only the improvements could bring back.
    """
    split, numbers = arguments["split"], arguments["numbers"]
    first, second = split["first"], split["second"]
    is_split = bool(first and second) and Counter(first + second) == Counter(numbers)
    if not is_split:
        middle = len(numbers) // 2
        split = {"first": numbers[:middle], "second": numbers[middle:]}
    return {"numbers": split[arguments["half"]], "repaired": not is_split}


@handler(
    name="sequence_sorting.score",
    schema={
        "type": "object",
        "properties": {"candidates": {"type": "array", "items": _NUMBERS, "minItems": 1}, "original": _NUMBERS},
        "required": ["candidates", "original"],
    },
)
def score(arguments: dict[str, Any]) -> list[dict[str, Any]]:
    """Every candidate with its errors as a sorted version of `original`: [{numbers, errors}]."""
    original = arguments["original"]
    return [{"numbers": c, "errors": count_errors(c, original)} for c in arguments["candidates"]]


@handler(
    name="sequence_sorting.keep_best",
    schema={
        "type": "object",
        "properties": {"scored": {"type": "array", "items": _SCORED, "minItems": 1}},
        "required": ["scored"],
    },
)
def keep_best(arguments: dict[str, Any]) -> dict[str, Any]:
    """The candidate with the fewest errors, the first of several: {numbers, errors}."""
    best: dict[str, Any] = min(arguments["scored"], key=lambda candidate: candidate["errors"])
    return best
