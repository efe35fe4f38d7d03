"""How well a list was sorted: one less the share of errors."""

from __future__ import annotations

from typing import Any

from .handlers import count_errors


def score(result: Any, reference: Any) -> float:
    """1 - errors / length, at least 0, where errors are those of `count_errors`; 0 for a job without a result.

    result: of the job. reference: the sorted list. Graph of Thoughts plots length - errors, at least 0.

    >>> score({"sorted": [1, 2, 2, 3]}, [1, 2, 3, 4])
    0.5
    """
    if not result:
        return 0.0
    return max(0.0, 1 - count_errors(result["sorted"], reference) / len(reference))
