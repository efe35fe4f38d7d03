"""How good a merge is, without asking a model: what it retains of the documents, and whether it repeats itself.

This is a stand-in. Graph of Thoughts lets a language model mark redundancy and retained information and reports the
harmonic mean; such numbers depend on the judge, and are not comparable with these. These are the same on every machine.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from itertools import pairwise
from typing import Any

#: Two sentences that share this part of their words (Jaccard index) say the same.
SAME = 0.8

_SENTENCE = re.compile(r"[^.;:!?\n]+")
_WORD = re.compile(r"\w+")


def score(result: Any, reference: Any) -> float:
    """The harmonic mean of `retained` and `unique`, from 0 to 1; 0 for a job without a result.

    result: of the job. reference: the documents.
    """
    if not result:
        return 0.0
    kept, once = retained(result["merged"], reference), unique(result["merged"])
    return 2 * kept * once / (kept + once) if kept + once else 0.0


def retained(merged: str, documents: Iterable[str]) -> float:
    """Share of the documents' pairs of neighbouring words that the merge has too (ROUGE-2 recall, each pair once).

    A merge in words of its own gets less than it deserves.

    >>> retained("The term is a year.", ["The term is two years."])
    0.5
    """
    wanted = {pair for document in documents for pair in _pairs(document)}
    return len(wanted & _pairs(merged)) / len(wanted) if wanted else 1.0


def unique(merged: str) -> float:
    """Share of the merge's sentences that repeat no earlier one. Sentences of one word, such as numbers, do not count.

    >>> unique("1. The term is a year. 2. A year is the term.")
    0.5
    """
    sentences = [set(words) for words in _sentences(merged)]
    repeated = sum(any(_is_same(s, earlier) for earlier in sentences[:i]) for i, s in enumerate(sentences))
    return 1 - repeated / len(sentences) if sentences else 0.0


def _is_same(a: set[str], b: set[str]) -> bool:
    return len(a & b) >= SAME * len(a | b)


def _pairs(text: str) -> set[tuple[str, str]]:
    return {pair for words in _sentences(text) for pair in pairwise(words)}


def _sentences(text: str) -> list[Sequence[str]]:
    found = (_WORD.findall(sentence) for sentence in _SENTENCE.findall(text.lower()))
    return [words for words in found if len(words) > 1]
