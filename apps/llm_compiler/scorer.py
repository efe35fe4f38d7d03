"""How well an answer matches: numbers of ParallelQA within their tolerance, other answers by F1 of their words."""

from __future__ import annotations

import re
from typing import Any

from llmsched.apps.web_search.scorer import f1, normalised

_NUMBER = re.compile(r"[-−]?\d+(?:,\d{3})*(?:\.\d+)?")


def score(result: Any, reference: Any) -> float:
    """1 or 0 for a number with a tolerance, else F1 as HotpotQA defines it; 0 for a job without an answer.

    result: `{"answer", …}` of the job. reference: `{"answer", "tolerance" (a share, optional)}`. LLMCompiler gives
    every number 10 %, also the years of HotpotQA, and words all or nothing (`exact_match`).

    >>> score({"answer": "about 1,150 metres"}, {"answer": "1153.2", "tolerance": 0.1})
    1.0
    """
    answer = (result or {}).get("answer")
    if not isinstance(answer, str):
        return 0.0
    if "tolerance" in reference and (truth := number(reference["answer"])) is not None:
        return float(_is_near(answer, truth, reference["tolerance"]))
    return float(f1(answer, reference["answer"]))


def exact_match(result: Any, reference: Any) -> bool:
    """Whether a number is within its tolerance, or words are right but for case, articles and punctuation."""
    answer = (result or {}).get("answer")
    if not isinstance(answer, str):
        return False
    if "tolerance" in reference and (truth := number(reference["answer"])) is not None:
        return _is_near(answer, truth, reference["tolerance"])
    return bool(normalised(answer) == normalised(reference["answer"]))


def number(text: str) -> float | None:
    """The number that a text is, but for a unit; None: it has none, or several.

    >>> [number(text) for text in ("1,153.2 metres", "Elbe", "2 or 3", "-4")]
    [1153.2, None, None, -4.0]
    """
    found = _NUMBER.findall(text)
    return float(found[0].replace(",", "").replace("−", "-")) if len(found) == 1 else None


def _is_near(answer: str, truth: float, tolerance: float) -> bool:
    said = number(answer)
    return said is not None and abs(said - truth) <= tolerance * abs(truth)
