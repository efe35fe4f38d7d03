"""Calls in a closed loop: so many slots, each of which asks again as soon as it has its answer.

Slots begin one after the other over the length of a call, and calls differ a little in length, so that they do not
march in step. What is counted is what begins in the window, after all slots have begun; slots go on asking until the
last counted call is over, so that each of them met the full number in flight. What is in flight then is dropped.

The k-th call of a slot is as long in every phase of a round, whichever way it goes.
"""

from __future__ import annotations

import asyncio
import itertools
import random
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple, Protocol

import orjson
from wire import Answer, Connection, request

#: Fewest and most tokens of an answer; each is an event of a stream.
SHORTEST, LONGEST = 6, 10
MEAN_TOKENS = (SHORTEST + LONGEST) / 2
PROMPT = "Summarise what the committee decided about the harbour. " * 20


class Timing(NamedTuple):
    """One call. at: moment it was sent, in seconds of the window. tokens: of its answer. Times in seconds from then."""

    at: float
    tokens: int
    first: float
    whole: float


class Path(Protocol):
    """A way to an engine."""

    async def open(self) -> None:
        """Before a phase."""

    async def call(self, slot: int, tokens: int) -> tuple[float, float, float]:
        """Asks for an answer of so many tokens: the moments it was sent, began to come and was there."""

    async def close(self) -> None:
        """After a phase."""


@dataclass(frozen=True, slots=True)
class Load:
    """slots in flight, calls of `call_s` seconds on average, counted for `window_s` seconds."""

    slots: int
    call_s: float
    window_s: float

    @property
    def token_s(self) -> float:
        return self.call_s / MEAN_TOKENS


async def phase(path: Path, load: Load, seed: int) -> list[Timing]:
    """The counted calls of one phase, in the order they ended."""
    await path.open()
    began = time.perf_counter()
    opens = began + load.call_s
    counted: list[Timing] = []
    open_calls = 0
    over = asyncio.Event()

    async def slot(number: int) -> None:
        nonlocal open_calls
        lengths = tokens_of(seed, number)
        await asyncio.sleep(load.call_s * number / load.slots)
        while True:
            at, tokens = time.perf_counter() - opens, next(lengths)
            is_counted = 0 <= at < load.window_s
            open_calls += is_counted
            sent, first, last = await path.call(number, tokens)
            if is_counted:
                open_calls -= 1
                counted.append(Timing(sent - opens, tokens, first - sent, last - sent))
            if not open_calls and time.perf_counter() - opens >= load.window_s:
                over.set()

    slots = [asyncio.create_task(slot(number)) for number in range(load.slots)]
    ending = asyncio.create_task(over.wait())
    try:
        ended, _ = await asyncio.wait((*slots, ending), return_when=asyncio.FIRST_COMPLETED)
        for task in ended:
            task.result()  # raises what ended a slot
    finally:
        for task in (*slots, ending):
            task.cancel()
        await asyncio.gather(*slots, ending, return_exceptions=True)
        await path.close()
    return counted


async def rate(path: Path, slots: int, calls: int) -> float:
    """Calls per second of so many slots that together make so many calls, from the first request to the last answer."""
    await path.open()
    numbers = itertools.count()

    async def slot(number: int) -> None:
        while next(numbers) < calls:
            await path.call(number, int(MEAN_TOKENS))

    began = time.perf_counter()
    try:
        await asyncio.gather(*map(slot, range(slots)))
        return calls / (time.perf_counter() - began)
    finally:
        await path.close()


def tokens_of(seed: int, slot: int) -> Iterator[int]:
    """Lengths of the answers that a slot asks for."""
    draw = random.Random(f"{seed}-{slot}")
    while True:
        yield draw.randint(SHORTEST, LONGEST)


# ------------------------------------------------------------------------------------------------- ways to an engine


class Chat:
    """`POST /v1/chat/completions` at a server, one kept connection per slot."""

    def __init__(self, url: str, model: str, *, stream: bool, key: str = "") -> None:
        self._url = url
        self._is_stream = stream
        self._requests = {tokens: self._request(model, tokens, key) for tokens in range(SHORTEST, LONGEST + 1)}
        self._connections: dict[int, Connection] = {}

    def _request(self, model: str, tokens: int, key: str) -> bytes:
        fields = {
            "model": model,
            "messages": [{"role": "user", "content": PROMPT}],
            "max_tokens": tokens,
            "min_tokens": tokens,
            "ignore_eos": True,
            "stream": self._is_stream,
        }
        return request("POST", f"{self._url}/v1/chat/completions", orjson.dumps(fields), key=key)

    async def open(self) -> None:
        self._connections = {}

    async def call(self, slot: int, tokens: int) -> tuple[float, float, float]:
        answer = await self.ask(slot, tokens)
        return answer.sent, answer.first, answer.last

    async def ask(self, slot: int, tokens: int) -> Answer:
        """Raises RuntimeError for an answer that is none."""
        connection = self._connections.get(slot)
        if connection is None:
            connection = self._connections[slot] = Connection(self._url)
        answer = await connection.ask(self._requests[tokens])
        if answer.status != 200 or (b"[DONE]" if self._is_stream else b'"usage"') not in answer.body:
            raise RuntimeError(f"{self._url} answered {answer.status}: {answer.body[:500]!r}")
        return answer

    async def close(self) -> None:
        for connection in self._connections.values():
            connection.close()


class Jobs:
    """`POST /v1/jobs` of recorded jobs of one call; their ends are read from the stream of all events."""

    def __init__(self, url: str, application: str, *, key: str) -> None:
        self._url, self._key = url, key
        self._requests = {}
        for tokens in range(SHORTEST, LONGEST + 1):
            stage = {"name": "answer", "kind": "llm", "deps": []}
            call = {"prompt_tokens": len(PROMPT) // 4, "output_tokens": tokens}
            recording = {"app": application, "job_id": "benchmark", "stages": [stage | {"tasks": [call]}]}
            body = orjson.dumps({"application": application, "recording": recording})
            self._requests[tokens] = request("POST", f"{url}/v1/jobs", body, key=key)
        self._connections: dict[int, Connection] = {}
        self._ends: dict[str, asyncio.Future[float]] = {}
        self._rest = b""
        self._events: Connection | None = None

    async def open(self) -> None:
        self._connections, self._ends, self._rest = {}, {}, b""
        self._events = Connection(self._url, told=self._read)
        await self._events.listen(request("GET", f"{self._url}/v1/events", key=self._key))

    async def call(self, slot: int, tokens: int) -> tuple[float, float, float]:
        connection = self._connections.get(slot)
        if connection is None:
            connection = self._connections[slot] = Connection(self._url)
        answer = await connection.ask(self._requests[tokens])
        if answer.status != 202:
            raise RuntimeError(f"{self._url} answered {answer.status}: {answer.body[:500]!r}")
        end = await self._end_of(orjson.loads(answer.body)["id"])
        return answer.sent, end, end

    def _read(self, data: bytes) -> None:
        """More of the stream of events."""
        at = time.perf_counter()
        *frames, self._rest = (self._rest + data).split(b"\n\n")
        for frame in frames:
            head, _, said = frame.partition(b"\ndata: ")
            if b"event: job." in head and not head.endswith((b"job.submitted", b"job.started")):
                if not head.endswith(b"job.completed"):
                    raise RuntimeError(f"a job did not complete: {frame!r}")
                self._end_of(orjson.loads(said)["job"]).set_result(at)

    def _end_of(self, job: str) -> asyncio.Future[float]:
        return self._ends.setdefault(job, asyncio.get_running_loop().create_future())

    async def close(self) -> None:
        if self._events is not None:
            self._events.close()
        for connection in self._connections.values():
            connection.close()
