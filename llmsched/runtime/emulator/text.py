"""What an emulated model says: filler of exactly so many tokens, or JSON that fits a schema.

One token is four characters, in prompts and in replies: a reply pasted into the next prompt counts the
same there.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from random import Random
from typing import Any

from llmsched.errors import InvalidInput
from llmsched.runtime.emulator.schema import SchemaSampler

TOKEN_CHARS = 4

#: words of three letters, each with a blank before it: a token each
_WORDS = (
    " the sun and sea may run far off but few who ask can see why our old map has two red oak day one"
    " ice sky air ink new way big box hat key low mud net pan ray set tea use van win yet zip ash bee"
)
_CYCLE = len(_WORDS) // TOKEN_CHARS
_FILLER = _WORDS * 64


@dataclass(frozen=True, slots=True)
class Output:
    """A whole reply, decided before its first token is due."""

    text: str
    tokens: int
    #: `length` when max_tokens ended it, else `stop`
    finish_reason: str

    def delta(self, start: int, stop: int) -> str:
        """The text of tokens start..stop-1; the last token takes what is left."""
        end = TOKEN_CHARS * stop if stop < self.tokens else None
        return self.text[TOKEN_CHARS * start : end]


def count_tokens(text: str) -> int:
    """Tokens of a text: a quarter of its characters, and at least one."""
    return max(1, len(text) // TOKEN_CHARS)


def filler(tokens: int, start: int) -> str:
    """`tokens` short words, beginning anywhere in a fixed text.

    >>> filler(3, start=1)
    ' sun and sea'
    """
    first = start % _CYCLE
    source = _FILLER
    while len(source) < TOKEN_CHARS * (first + tokens):
        source += source
    return source[TOKEN_CHARS * first : TOKEN_CHARS * (first + tokens)]


def free_text(rng: Random, low: int, high: int, *, ignore_eos: bool) -> Output:
    """Filler of `high` tokens, or, where the model may end on its own, of a drawn length.

    The length is log-uniform in [max(1, low), high]: most replies are short, any may be long.
    """
    low = max(1, low)
    tokens = high
    if not ignore_eos and low < high:
        tokens = min(high, int(low * ((high + 1) / low) ** rng.random()))
    assert low <= tokens <= high or ignore_eos
    return Output(filler(tokens, rng.randrange(_CYCLE)), tokens, "length" if tokens == high else "stop")


def json_text(schema: Any, rng: Random, low: int, high: int, *, ignore_eos: bool) -> Output:
    """JSON valid against `schema`, padded with blanks to `low` tokens (`high` with ignore_eos).

    A draw of more than `high` tokens is tried again in its plainest form; if that is too long as well it
    is cut off, as a real engine would, with finish_reason `length`. Raises InvalidInput for a schema with
    keywords this generator does not know.
    """
    try:
        sampler = SchemaSampler(schema, rng)
        text = _compact(sampler.sample())
        if len(text) > TOKEN_CHARS * high:
            text = _compact(sampler.sample(plain=True))
    except RecursionError:
        raise InvalidInput("the schema is nested too deeply") from None
    needed = -(-len(text) // TOKEN_CHARS)
    tokens = high if ignore_eos else min(high, max(needed, low))
    text = text[: TOKEN_CHARS * tokens].ljust(TOKEN_CHARS * tokens)
    return Output(text, tokens, "length" if tokens == high and (ignore_eos or needed > high) else "stop")


def _compact(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"))
