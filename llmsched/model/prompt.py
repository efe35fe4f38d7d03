"""What is known of a prompt without keeping it: sizes, and which words it has, as counts in hashed buckets.

Whoever has the text describes it; the scheduler sees only this. Words and pairs of successive words share the buckets.
Source: feature hashing (Weinberger et al., 2009), without its signs: counts of log scale are never negative.
"""

from __future__ import annotations

import re
import struct
from collections import Counter
from dataclasses import dataclass
from functools import lru_cache
from itertools import pairwise
from zlib import crc32

#: Buckets that words and pairs of words fall into.
BUCKETS = 2**12
#: Characters of a prompt that are looked at, from its beginning.
LONGEST = 2_000

_WORD = re.compile(r"\w+")
_MOST = 2**16 - 1


@dataclass(frozen=True, slots=True)
class PromptText:
    """Counts over the first `LONGEST` characters.

    grams: buckets, ascending, then how often each occurs, little-endian 16-bit numbers. score: what an encoder says of
    the text, larger: a shorter answer; None where there is none.
    """

    characters: int
    lines: int
    digits: int
    grams: bytes = b""
    score: float | None = None


@lru_cache(1024)
def describe(text: str) -> PromptText:
    """What is kept of a prompt. The same in every process and version.

    >>> describe("").grams, describe("Sort: [3, 1]").digits
    (b'', 2)
    """
    seen = text[:LONGEST]
    words = _WORD.findall(seen.lower())
    grams = [*words, *(f"{a} {b}" for a, b in pairwise(words))]
    counts = sorted(Counter(crc32(gram.encode(errors="replace")) % BUCKETS for gram in grams).items())
    packed = struct.pack(f"<{2 * len(counts)}H", *(b for b, _ in counts), *(min(n, _MOST) for _, n in counts))
    return PromptText(len(seen), seen.count("\n") + 1, sum(map(str.isdigit, seen)), packed)
