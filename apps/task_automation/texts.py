"""Tools for texts. What a model would do, they only approximate: they choose from a text and do not write one.

English, where it matters.
"""

from __future__ import annotations

import re
from collections import Counter
from math import log

from llmsched import InvalidInput

from .calls import needs, tool
from .values import TEXT

#: Words that say nothing about what a text is about.
_STOP_WORDS = """
    a about above after again against all also am an and any are as at be because been before being below between both
    but by can cannot could did do does doing down during each few for from further had has have having he her here hers
    him his how i if in into is it its itself just me more most my no nor not now of off on once only or other our out
    over own same she should so some such than that the their them then there these they this those through to too under
    until up very was we were what when where which while who whom why will with would you your yours
""".split()  # noqa: SIM905 (four lines instead of a hundred)
_STOP = frozenset(_STOP_WORDS)
_MAX_SENTENCES = 500
_WORD = re.compile(r"[^\W\d_]+(?:['’-][^\W\d_]+)*")
_URL = re.compile(r"https?://[^\s<>\"'“”]+", re.IGNORECASE)


def sentences(text: str) -> list[str]:
    """A text cut after full stops, question marks and exclamation marks that white space follows."""
    return [s.strip() for s in re.split(r"(?<=[.!?])\s+|\n\s*\n", text) if s.strip()]


def content_words(text: str) -> list[str]:
    """The words that carry meaning, in lower case."""
    return [w for w in (word.lower() for word in _WORD.findall(text)) if w not in _STOP]


@tool("summarize", TEXT)
def summarize(text: str) -> str:
    """A third of the sentences, those most like the others, in their order: an extract.

    Source: LexRank (Erkan and Radev, 2004), continuous: the stationary distribution of a walk from sentence to sentence
    by the cosine of their tf-idf vectors, damping 0.85.
    """
    import numpy as np

    found = sentences(text)
    if len(found) > _MAX_SENTENCES:
        raise InvalidInput(f"a text of {len(found)} sentences is too long, {_MAX_SENTENCES} are allowed; cut it")
    counts = [Counter(content_words(s)) for s in found]
    spread = Counter(w for count in counts for w in count)
    words = {w: i for i, w in enumerate(spread)}
    if len(found) < 3 or not words:
        return " ".join(found[:1])
    vectors = np.zeros((len(found), len(words)))
    for row, count in enumerate(counts):
        for word, times in count.items():
            vectors[row, words[word]] = times * log(1 + len(found) / spread[word])
    vectors /= np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-9)
    likeness = vectors @ vectors.T + 1e-9
    walk = 0.15 / len(found) + 0.85 * likeness / likeness.sum(axis=1, keepdims=True)
    rank = np.full(len(found), 1 / len(found))
    for _ in range(100):
        rank = rank @ walk
    best = sorted(np.argsort(-rank, kind="stable")[: len(found) // 3])
    return " ".join(found[i] for i in best)


@tool("extract_keywords", TEXT)
def extract_keywords(text: str) -> str:
    """The five phrases of at most three words that weigh most, joined by commas.

    Source: RAKE (Rose et al., 2010): phrases lie between stop words and punctuation; a word weighs its degree over its
    frequency, a phrase the sum of its words; ties end in the order of the text.
    """
    cut = re.split(rf"[^\w\s'’-]+|\n|\b(?:{'|'.join(_STOP_WORDS)})\b", text.lower())
    phrases = [tuple(_WORD.findall(part)) for part in cut]
    phrases = [p for p in phrases if 0 < len(p) <= 3]
    often = Counter(w for p in phrases for w in p)
    degree = Counter[str]()
    for phrase in phrases:
        for word in phrase:
            degree[word] += len(phrase)
    weight = {p: sum(degree[w] / often[w] for w in p) for p in phrases}
    if not weight:
        raise InvalidInput(f"there is no word to pick in {text[:60]!r}; give a text in words")
    return ", ".join(" ".join(p) for p in sorted(weight, key=lambda p: -weight[p])[:5])


@tool("analyse_sentiment", TEXT)
def analyse_sentiment(text: str) -> str:
    """positive, neutral or negative, and VADER's compound score from -1 to 1."""
    vader = needs("vaderSentiment.vaderSentiment")
    score = vader.SentimentIntensityAnalyzer().polarity_scores(text)["compound"]
    # The bounds are those VADER's authors recommend.
    return f"{'positive' if score >= 0.05 else 'negative' if score <= -0.05 else 'neutral'} ({score:+.2f})"


@tool("check_spelling", TEXT)
def check_spelling(text: str) -> str:
    """The text with words put right that have one letter wrong, by a dictionary: no grammar.

    Words with a capital in the middle of a sentence are names, and stay.
    """
    checker = needs("spellchecker").SpellChecker(distance=1)  # two letters take seconds for a long word
    starts = {m.end() for m in re.finditer(r"(?:^|[.!?]\s+)[\"'“‘(]*", text)}

    def corrected(found: re.Match[str]) -> str:
        word = found[0]
        if len(word) > 20 or (word != word.lower() and found.start() not in starts) or word.lower() in checker:
            return word
        better = checker.correction(word.lower()) or word
        return str(better.capitalize() if word[0].isupper() else better)

    hidden = _URL.sub(lambda url: "\0" * len(url[0]), text)
    urls = iter(_URL.findall(text))
    return re.sub("\0+", lambda _: next(urls), _WORD.sub(corrected, hidden))


@tool("answer_from_text", TEXT, TEXT)
def answer_from_text(text: str, question: str) -> str:
    """The sentence of the text that shares most with the question, rare words counting more: an extract."""
    found = sentences(text)
    words = [set(content_words(s)) for s in found]
    asked = set(content_words(question))
    spread = Counter(w for own in words for w in own)
    weights = [sum(log(1 + len(found) / spread[w]) for w in sorted(asked & own)) for own in words]
    if not any(weights):
        return "The text does not say."
    return found[max(range(len(found)), key=lambda i: weights[i])]


@tool("compare_texts", TEXT, TEXT)
def compare_texts(text: str, other: str) -> float:
    """How alike two texts are in their letters, word order apart, from 0 to 1: not in their meaning."""
    rapidfuzz = needs("rapidfuzz")
    ratio: float = rapidfuzz.fuzz.token_sort_ratio(text, other, processor=rapidfuzz.utils.default_process)
    return round(ratio / 100, 4)


@tool("extract_url", TEXT)
def extract_url(text: str) -> str:
    """The first http or https URL of a text."""
    found = _URL.search(text)
    if not found:
        raise InvalidInput(f"there is no URL in {text[:60]!r}; give a text with one")
    return found[0].rstrip(".,;:!?)]}")
