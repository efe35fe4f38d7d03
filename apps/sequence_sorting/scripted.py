"""Plays a model that sorts as well as a model does: some attempts are right, and odd lists it cannot merge at all.

Of parallel attempts every third is right, the others lose a number or repeat one. A merge of lists whose sum is odd
always goes wrong, so that it has to be improved. Each reply depends on its prompt alone.
"""

from __future__ import annotations

import json
import re

from llmsched.testing import Call

_LIST = re.compile(
    r"^(List to split|List to sort|Sorted list 1|Sorted list 2|Original|Wrongly sorted) \(\d+ numbers\): (\[.*\])$",
    re.MULTILINE,
)
_ATTEMPT = re.compile(r"^Attempt (\d+) of \d+\.$", re.MULTILINE)


def answer(call: Call) -> str:
    """The reply, JSON. Raises LookupError for what is no prompt of this application."""
    prompt = next((m["content"] for m in call.messages if m["role"] == "user"), "")
    lists: dict[str, list[int]] = {label: json.loads(numbers) for label, numbers in _LIST.findall(prompt)}
    attempt = int(found[1]) if (found := _ATTEMPT.search(prompt)) else 0
    match lists:  # the last list under a label is the one asked about, those before are examples
        case {"List to split": numbers}:
            middle = len(numbers) // 2
            return json.dumps({"first": numbers[:middle], "second": numbers[middle:]})
        case {"List to sort": numbers}:
            return _reply(_attempted(sorted(numbers), attempt))
        case {"Sorted list 1": one, "Sorted list 2": two}:
            merged = sorted(one + two)
            return _reply(_slip(merged, attempt) if sum(merged) % 2 else _attempted(merged, attempt))
        case {"Original": numbers, "Wrongly sorted": wrong}:
            return _reply(wrong if attempt % 3 else sorted(numbers))
    raise LookupError(f"{prompt[:80]!r} is no prompt of sequence_sorting: it has no list to split, sort, merge or fix")


def _attempted(numbers: list[int], attempt: int) -> list[int]:
    return _slip(numbers, attempt) if attempt % 3 else numbers


def _slip(numbers: list[int], attempt: int) -> list[int]:
    """The list with a number lost or said twice, another one for each attempt."""
    at = attempt % len(numbers) if numbers else 0
    return numbers[:at] + numbers[at + 1 :] if attempt % 2 else numbers[: at + 1] + numbers[at:]


def _reply(numbers: list[int]) -> str:
    return json.dumps({"numbers": numbers})
