"""How well an answer matches: F1 of its words, as HotpotQA defines it, and whether it matches exactly."""

from __future__ import annotations

import re
import string
from collections import Counter
from typing import Any

#: Answers that are right or wrong as a whole.
_WHOLE = ("yes", "no", "noanswer")

_ARTICLES = re.compile(r"\b(a|an|the)\b")
_PUNCTUATION = str.maketrans("", "", string.punctuation)


def score(result: Any, reference: Any) -> float:
    """F1 of the answer's words; 0 for a job without an answer.

    result: `{"answer", …}` of the job. reference: `{"answer"}`.

    >>> score({"answer": "the Rhine river"}, {"answer": "Rhine"})
    0.6666666666666666
    """
    answer = (result or {}).get("answer")
    return f1(answer, reference["answer"]) if isinstance(answer, str) else 0.0


def exact_match(result: Any, reference: Any) -> bool:
    """Whether the answer is right but for case, articles, punctuation and white space."""
    answer = (result or {}).get("answer")
    return isinstance(answer, str) and normalised(answer) == normalised(reference["answer"])


def f1(answer: str, truth: str) -> float:
    """Harmonic mean of precision and recall over normalised words; yes and no match only themselves.

    Source: `f1_score` of `hotpot_evaluate_v1.py` in `hotpotqa/hotpot`.

    >>> f1("yes, it is", "yes")
    0.0
    """
    said, true = normalised(answer), normalised(truth)
    if said != true and (said in _WHOLE or true in _WHOLE):
        return 0.0
    common = (Counter(said.split()) & Counter(true.split())).total()
    if not common:
        return 0.0
    precision, recall = common / len(said.split()), common / len(true.split())
    return 2 * precision * recall / (precision + recall)


def normalised(text: str) -> str:
    """In lower case, without punctuation and articles, words with one blank between them.

    >>> normalised("The  U.S. state")
    'us state'
    """
    return " ".join(_ARTICLES.sub(" ", text.lower().translate(_PUNCTUATION)).split())
