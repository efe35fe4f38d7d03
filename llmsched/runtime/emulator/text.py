"""What an emulated model says: filler of exactly so many tokens, or JSON that fits a schema.

One token is four characters, in prompts and in replies: a reply pasted into the next prompt counts the
same there.
"""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from functools import lru_cache
from random import Random
from typing import Any
from zlib import crc32

from llmsched.errors import InvalidInput
from llmsched.runtime.emulator.schema import SchemaSampler

TOKEN_CHARS = 4

#: words of three letters, each with a blank before it: a token each
_WORDS = (
    " the sun and sea may run far off but few who ask can see why our old map has two red oak day one"
    " ice sky air ink new way big box hat key low mud net pan ray set tea use van win yet zip ash bee"
)
#: replies are as long as one draw in 1 … 1,024 tokens says, and those that must be longer up to four times as long
_LONGEST, _LONGER = 1024, 4
_CYCLE = len(_WORDS) // TOKEN_CHARS
_FILLER = _WORDS * 64


@dataclass(frozen=True, slots=True)
class Output:
    """A whole reply, decided before its first token is due."""

    text: str
    tokens: int
    #: `length` when max_tokens ended it, else `stop`
    finish_reason: str

    @property
    def token_ids(self) -> list[int]:
        """One id per token."""
        return token_ids(self.text)

    def delta(self, start: int, stop: int) -> str:
        """The text of tokens start..stop-1; the last token takes what is left."""
        end = TOKEN_CHARS * stop if stop < self.tokens else None
        return self.text[TOKEN_CHARS * start : end]


def count_tokens(text: str) -> int:
    """Tokens of a text: a quarter of its characters, and at least one."""
    return max(1, len(text) // TOKEN_CHARS)


def token_ids(text: str) -> list[int]:
    """One id for each token of a text, by its four characters."""
    return [_token_id(text[TOKEN_CHARS * i : TOKEN_CHARS * (i + 1)]) for i in range(count_tokens(text))]


@lru_cache(4096)
def _token_id(piece: str) -> int:
    return crc32(piece.encode()) % 32_000


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


def free_text(rng: Random, low: int, high: int, *, ignore_eos: bool, said: int = 0) -> Output:
    """Filler of `high` tokens, or, where the model may end on its own, of a drawn length.

    said: how many tokens of this reply are said already; `low` and `high` are about the rest. Where a reply ends
    depends on `high` no more than a model's does, so that one in several pieces says what it says in one.
    """
    start = rng.randrange(_CYCLE)
    end = math.inf if ignore_eos else _natural_end(rng, said + max(1, low)) - said
    tokens = int(min(high, end))
    return Output(filler(tokens, start + said), tokens, "stop" if end <= high else "length")


def _natural_end(rng: Random, low: int) -> int:
    """The first place from `low` on where the model would end: most replies are short, any may be long."""
    end = int(_LONGEST ** rng.random())
    while end < low:
        end = max(end + 1, int(end * _LONGER ** rng.random()))
    return end


def said_text(text: str, high: int, *, said: int = 0) -> Output:
    """A given reply, cut off after `high` tokens. said: how many tokens of it are said already."""
    rest = text[TOKEN_CHARS * said :]
    tokens = count_tokens(rest)
    if tokens > high:
        return Output(rest[: TOKEN_CHARS * high], high, "length")
    return Output(rest, tokens, "stop")


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
