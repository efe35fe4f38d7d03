"""An automatic prefix cache as vLLM's: whole blocks of token ids, each known by all that comes before it.

A block's key is a hash of its ids and of the key before it, so that equal keys mean equal prefixes. A prompt finds the
longest run of known blocks from its beginning, and never itself as a whole: its last token has to be computed for the
first one of the answer. What a sequence leaves is kept until the room is needed: the least recently used block goes
first, of one sequence the last.

Deliberately absent: blocks that running sequences hold (here they may be thrown out as others), cache salts, and the
wait for a block that another sequence is still computing (vLLM has it in the same step).
"""

from __future__ import annotations

from collections.abc import Sequence

#: vLLM's block size on GPUs, in tokens.
BLOCK_TOKENS = 16


class PrefixCache:
    """Room for `blocks` blocks; none caches nothing."""

    def __init__(self, blocks: int) -> None:
        self._room = blocks
        #: Keys of blocks, the least recently used one first.
        self._blocks: dict[int, None] = {}
        #: Prompt tokens that were looked for, and found.
        self.queries = 0
        self.hits = 0

    def __len__(self) -> int:
        return len(self._blocks)

    def keys(self, tokens: Sequence[int]) -> list[int]:
        """The keys of the whole blocks of a sequence."""
        keys: list[int] = []
        key = 0
        for start in range(0, len(tokens) - BLOCK_TOKENS + 1, BLOCK_TOKENS) if self._room else ():
            key = hash((key, *tokens[start : start + BLOCK_TOKENS]))
            keys.append(key)
        return keys

    def find(self, tokens: Sequence[int]) -> int:
        """How many tokens of a prompt are here; counts, and keeps the prompt."""
        if not self._room:
            return 0
        keys = self.keys(tokens)
        found = 0
        for key in keys[: (len(tokens) - 1) // BLOCK_TOKENS]:
            if key not in self._blocks:
                break
            found += BLOCK_TOKENS
        self.queries += len(tokens)
        self.hits += found
        self._add(keys)
        return found

    def keep(self, tokens: Sequence[int]) -> None:
        """Keeps a sequence whose ids were all computed."""
        self._add(self.keys(tokens))

    def _add(self, keys: Sequence[int]) -> None:
        for key in reversed(keys):
            self._blocks.pop(key, None)
            self._blocks[key] = None
        while len(self._blocks) > self._room:
            del self._blocks[next(iter(self._blocks))]
