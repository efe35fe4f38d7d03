"""A `DecodingServer` in real time: the event loop's clock, `speed` times faster.

One timer per engine, set to the server's next event. Moments inside the model are exact; only the news of
them is late by what the loop's timers cost (about a millisecond), so delays never add up.
"""

from __future__ import annotations

import asyncio
from collections import abc
from collections.abc import AsyncIterator

from llmsched.model.decoding import DecodingServer, Sequence
from llmsched.model.latency import LatencyCurve
from llmsched.runtime.emulator.prefix import PrefixCache

#: seconds between two chunks of one stream: finer ones would spend the machine on framing
CHUNK_S = 0.020
#: half a millionth of a token: what the server rounds
_EPS = 5e-7


class Call:
    """A request on its way through the server. One coroutine at a time may wait for what becomes of it."""

    __slots__ = ("_news", "sequence")

    def __init__(self, sequence: Sequence) -> None:
        self.sequence = sequence
        self._news: asyncio.Future[None] | None = None

    @property
    def is_finished(self) -> bool:
        return self.sequence.finished_at is not None

    async def began(self) -> None:
        """Wait for the end of prefill."""
        while self.sequence.decoding_at is None:
            await self.news()

    async def finished(self) -> None:
        """Wait for the last token."""
        while not self.is_finished:
            await self.news()

    async def news(self, timeout: float | None = None) -> None:
        """Wait until something happens to the request, or for `timeout` seconds.

        Half the price of `asyncio.wait`, and streams do little else.
        """
        loop = asyncio.get_running_loop()
        self._news = loop.create_future()
        timer = None if timeout is None else loop.call_later(timeout, self.tell)
        try:
            await self._news
        finally:
            self._news = None
            if timer is not None:
                timer.cancel()

    def tell(self) -> None:
        """Wake whoever waits."""
        if self._news is not None and not self._news.done():
            self._news.set_result(None)


class PacedServer:
    """Submits, aborts and watches requests, now."""

    def __init__(self, curve: LatencyCurve, max_batch: int, speed: float, cache: PrefixCache) -> None:
        self.server = DecodingServer(curve, max_batch, on_decoding=self._on_decoding, cached=self._look_up)
        self.speed = speed
        self.cache = cache
        #: prompt and output of those that are here, as token ids, by id
        self._texts: dict[str, tuple[abc.Sequence[int], abc.Sequence[int]]] = {}
        #: those that wait for their end, by id
        self._calls: dict[str, Call] = {}
        self._submitted = 0
        self._loop: asyncio.AbstractEventLoop | None = None
        #: the loop's time at which model time was 0
        self._origin = 0.0
        self._timer: asyncio.Handle | None = None
        #: When it goes off. (uvloop's handle of a moment that has come does not tell.)
        self._due = 0.0

    def now(self) -> float:
        """Model seconds since the first request."""
        if self._loop is None:
            self._loop = asyncio.get_running_loop()
            self._origin = self._loop.time()
        return (self._loop.time() - self._origin) * self.speed

    def submit(self, prompt: abc.Sequence[int], output: abc.Sequence[int], priority: int) -> Call:
        """A request arrives, as token ids; on an instant engine it has finished when this returns."""
        self._submitted += 1
        id = str(self._submitted)
        self._texts[id] = prompt, output
        call = Call(self.server.submit(id, len(prompt), len(output), self.now(), priority))
        self._calls[id] = call
        self._turn()
        return call

    def abort(self, call: Call) -> int:
        """Drop a request; the number of tokens it had. One that has finished stays finished."""
        if call.is_finished:
            return call.sequence.output_tokens
        tokens = self.tokens(call)
        self.server.abort(call.sequence.id, self.now())
        if not call.is_finished:
            del self._calls[call.sequence.id]
            self._leave(call.sequence, tokens)
        self._turn()
        return call.sequence.output_tokens if call.is_finished else tokens

    def tokens(self, call: Call) -> int:
        """Whole tokens so far of a request that was not aborted."""
        if call.is_finished:
            return call.sequence.output_tokens
        return int(self.server.progress(call.sequence.id, self.now()) + _EPS)

    async def stream(self, call: Call) -> AsyncIterator[int]:
        """The number of tokens so far, each time there are new ones, at most every `CHUNK_S` seconds.

        The last number is the whole output and comes as soon as it is there.
        """
        await call.began()
        loop = asyncio.get_running_loop()
        sent, not_before = 0, 0.0
        while not call.is_finished:
            now = self.now()
            due = self.server.reaches(call.sequence.id, sent + 1, now)
            if due is None:  # finished by now
                break
            pause = max((due - now) / self.speed, not_before - loop.time())
            if pause > 0:
                await call.news(timeout=pause)
            elif (tokens := self.tokens(call)) > sent and not call.is_finished:
                sent, not_before = tokens, loop.time() + CHUNK_S
                yield sent
            else:
                await asyncio.sleep(0)
        yield call.sequence.output_tokens

    def close(self) -> None:
        """Stop the timer."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _on_decoding(self, sequence: Sequence) -> None:
        if (call := self._calls.get(sequence.id)) is not None:
            call.tell()

    def _look_up(self, sequence: Sequence) -> int:
        return self.cache.find(self._texts[sequence.id][0])

    def _leave(self, sequence: Sequence, tokens: int) -> None:
        """A sequence goes with so many tokens of output; what was computed for it stays in the cache."""
        prompt, output = self._texts.pop(sequence.id)
        if tokens:
            self.cache.keep([*prompt, *output[: tokens - 1]])  # nothing was computed from the last one

    def _turn(self) -> None:
        """Let the model catch up with the clock, tell who finished, and set the timer."""
        for id, _ in self.server.advance(self.now()):
            call = self._calls.pop(id)
            self._leave(call.sequence, call.sequence.output_tokens)
            call.tell()
        at = self.server.next_event()
        if at is None or self._loop is None:
            self.close()
            return
        when = self._origin + at / self.speed
        # An early timer finds nothing to do and sets itself again; only a late one must be replaced.
        if self._timer is None or self._due > when:
            self.close()
            self._due = when
            self._timer = self._loop.call_at(when, self._wake)

    def _wake(self) -> None:
        self._timer = None
        self._turn()
