"""Measures a running engine: the decode latency l(b) of every batch size b, and the speed of prefill.

*Decoding.* b streams begin together, each with a prompt of its own that no prefix cache knows, and say a fixed number
of tokens. Only the *window* counts in which exactly b of them decode: from the first token of the last to begin to the
last token of the first to end, less a tenth at either end.

```
stream 1  ──prefill──┤● ● ● ● ● ● ● ● ● ● ● ● ● ●
stream 2  ────prefill────┤● ● ● ● ● ● ● ● ● ● ● ● ● ●
                         │ ╟──── window ────╢ │
```

In it each stream's pace is seconds over tokens between its first and its last event; l(b) of a run is their mean. The
events say how many tokens there are so far (`continuous_usage_stats`), because one may carry several. The first run of
every batch size is not counted: it warms the engine up, and tells how long the streams must be for the window to hold
what it should. The others take turns, small to large and back, so that a slow drift of the machine bends no curve.

*Prefill.* One prompt at a time, of several lengths, asks for one token. The medians of the first-token times lie on a
line: its slope is the seconds of a prompt token, what it leaves at length 0 is the rest of a call.

Intervals are of 95 %: Student's t for the mean of a batch size, a bootstrap over runs for the slope. A curve may not
fall (the simulator sizes engines by it), a measurement may: the curve is then the nearest that does not, the
measurement is kept as it was, and a note says so. The arithmetic is in `pace.py`.
"""

from __future__ import annotations

import asyncio
import math
import secrets
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from itertools import pairwise
from typing import Any

import orjson

from llmsched.errors import BackendError, InvalidInput
from llmsched.model.latency import LATENCY_CURVES, LatencyCurve, Measurement
from llmsched.runtime.engine import CompletionRequest, EngineClient, EngineError, EngineInfo
from llmsched.runtime.pace import (
    TRIM,
    Stream,
    isotonic,
    lead,
    mean_interval,
    prefill_interval,
    prefill_line,
    stream_tokens,
    window,
)
from llmsched.runtime.scripts.script import prompt_of

#: Slots where neither the caller nor the engine tells.
DEFAULT_SLOTS = 16
#: Tokens of context where the engine does not tell.
DEFAULT_CONTEXT = 8192
#: The longest prompt of the prefill measurement, where the context allows it.
_LONGEST_PROMPT = 4096
#: The least `tokens` that may be asked for.
_FEWEST_TOKENS = 8
#: Share of the tokens asked for that a window should hold.
_ENOUGH = 0.8
#: Runs that are made until a window is full; of these, runs in which the engine lets streams wait.
_TRIES, _APART = 10, 3
#: Times that a call may meet a connection that the engine has just closed.
_CLOSED = 2
#: An interval is wide from this share of its mean on, either way.
_WIDE = 0.1
#: How often this process looks whether it is held up, and what is worth a note, in seconds.
_LOOK_S, _HELD_UP_S = 0.005, 0.1
#: Seconds within which what comes of a stream is one event: a burst is read in pieces.
_ONE_EVENT_S = 0.001
#: Seconds in which an engine must have come to rest.
_REST_S = 3.0
#: Share of a core from which on this process may be what was measured.
_BUSY_CLIENT = 0.7

#: Told before every run: runs done, runs in all, what comes next.
Progress = Callable[[int, int, str], None]


@dataclass(frozen=True, slots=True)
class Plan:
    """What is measured, and how often.

    tokens: of each stream in a window; window: seconds of it, at least. prompt_tokens: of each stream, before its first
    token. lengths: of prompts, for prefill. Raises InvalidInput.
    """

    batches: tuple[int, ...]
    lengths: tuple[int, ...]
    repeats: int = 5
    tokens: int = 64
    window: float = 0.5
    prompt_tokens: int = 128

    def __post_init__(self) -> None:
        if self.repeats < 2:
            raise InvalidInput(f"repeats is {self.repeats}; an interval needs at least 2", field="repeats")
        if self.tokens < _FEWEST_TOKENS:
            raise InvalidInput(f"tokens is {self.tokens}; fewer than {_FEWEST_TOKENS} tell nothing", field="tokens")
        if self.prompt_tokens < 1:
            raise InvalidInput(f"prompt is {self.prompt_tokens}; it must be at least 1 token", field="prompt")

    @classmethod
    def of(
        cls,
        info: EngineInfo,
        *,
        max_batch: int | None = None,
        repeats: int | None = None,
        tokens: int | None = None,
        prompt_tokens: int = 128,
        quick: bool = False,
    ) -> Plan:
        """The plan for an engine. quick: fewer batch sizes, repeats, tokens, and shorter prompts.

        Raises InvalidInput if the engine's context is too small, or its batch smaller than `max_batch`.
        """
        largest = max_batch if max_batch is not None else info.slots or DEFAULT_SLOTS
        if largest < 1:
            raise InvalidInput(f"max_batch is {largest}; it must be at least 1", field="max_batch")
        if info.slots is not None and largest > info.slots:
            raise InvalidInput(
                f"max_batch is {largest}, but the engine runs {info.slots} requests at once; give that or less",
                field="max_batch",
            )
        wanted = tokens if tokens is not None else 32 if quick else 64
        context = info.max_model_len or DEFAULT_CONTEXT
        need = prompt_tokens + stream_tokens(wanted)
        if context < need:
            raise InvalidInput(
                f"the engine's context of {context} tokens is too small: a prompt of {prompt_tokens} and {wanted} "
                f"tokens to be measured need {need}; give a smaller --prompt or --tokens",
                field="tokens",
            )
        longest = min(_LONGEST_PROMPT // (4 if quick else 1), context - 1)
        return cls(
            batches=batch_sizes(largest, quick=quick),
            lengths=tuple(sorted({max(1, longest // part) for part in (16, 8, 4, 2, 1)})),
            repeats=repeats if repeats is not None else 3 if quick else 5,
            tokens=wanted,
            window=0.25 if quick else 0.5,
            prompt_tokens=prompt_tokens,
        )


@dataclass(frozen=True, slots=True)
class Calibration:
    """A measured curve, and what its reader should know, a sentence each."""

    curve: LatencyCurve
    notes: tuple[str, ...]


def batch_sizes(largest: int, *, quick: bool = False) -> tuple[int, ...]:
    """Powers of two and what lies halfway between them, up to the largest batch and with it.

    >>> batch_sizes(20)
    (1, 2, 3, 4, 6, 8, 12, 16, 20)
    >>> batch_sizes(20, quick=True)
    (1, 2, 4, 8, 16, 20)
    """
    powers = [1 << k for k in range(largest.bit_length())]
    between = [] if quick else [3 * power // 2 for power in powers if power >= 2]
    return tuple(sorted({b for b in (*powers, *between) if b <= largest} | {largest}))


async def calibrate(
    client: EngineClient,
    info: EngineInfo,
    plan: Plan,
    *,
    name: str,
    machine: str,
    busy: bool = False,
    progress: Progress | None = None,
) -> Calibration:
    """Measures what the plan says on an engine that `client` has discovered.

    name: of the curve. machine: what the engine runs on. busy: measure although it has other work.
    Raises BackendError if the engine fails, has other work, or cannot be measured; InvalidInput for a built-in name.
    """
    if name in LATENCY_CURVES:
        raise InvalidInput(f"{name!r} is a built-in latency curve; give this one another name", field="name")
    bench = _Bench(client, info, plan, progress or (lambda done, total, what: None))
    if not busy:
        await bench.rest()
    before = await bench.counters()
    await bench.find_pace()
    firsts = await bench.prefill()
    paces = await bench.decode()
    if not busy:
        await bench.alone_since(before)
    decode = tuple((b, mean_interval(runs)) for b, runs in paces.items())
    prefill = prefill_interval(firsts)
    if prefill is None:
        raise BackendError(
            f"engine {client.url} answers a prompt of {max(firsts)} tokens no later than one of {min(firsts)}; its "
            "prefill cannot be measured: it is too fast, or something in between caches answers"
        )
    measurement = Measurement(
        engine=f"vLLM {info.version}" if info.version else "unknown",
        model=client.model or "",
        machine=machine,
        date=datetime.now(UTC).isoformat(timespec="seconds"),
        method=f"{plan.repeats} runs per batch size, {plan.tokens} tokens or {plan.window:g} s of each stream at least "
        f"while all decode, after {plan.prompt_tokens} prompt tokens; 95 % t intervals; prefill: slope of median "
        f"first-token times at {', '.join(map(str, plan.lengths))} tokens, bootstrap interval",
        decode=decode,
        prefill=prefill,
        first_token=prefill_line(firsts)[1],
    )
    curve, notes = fitted(name, measurement)
    return Calibration(curve, (*bench.notes, *notes))


def fitted(name: str, measurement: Measurement) -> tuple[LatencyCurve, tuple[str, ...]]:
    """The curve of a measurement, which never falls; a note where that took a change, and one where it is vague."""
    means = [seen.mean for _, seen in measurement.decode]
    fit = isotonic(means)
    notes: tuple[str, ...] = ()
    if wide := [str(b) for b, seen in measurement.decode if seen.high - seen.mean > _WIDE * seen.mean]:
        notes += (
            f"the interval is wider than ± {_WIDE:.0%} at b = {', '.join(wide)}; measure on a quieter machine, "
            "or with more --repeats and --tokens",
        )
    if fit != means:
        change = max(abs(new / old - 1) for new, old in zip(fit, means, strict=True))
        falls = [f"{b} to {c}" for (b, x), (c, y) in pairwise(measurement.decode) if y.mean < x.mean]
        notes += (
            f"the measured latency falls from b = {', '.join(falls)}; the curve is the nearest that does not "
            f"(isotonic regression, at most {change:.1%} off)",
        )
    points = tuple((b, seconds) for (b, _), seconds in zip(measurement.decode, fit, strict=True))
    source = f"measured on {measurement.date[:10]}: {measurement.model}, {measurement.engine}, {measurement.machine}"
    return LatencyCurve(name, 1 / measurement.prefill.mean, points, source, measurement), notes


class _Bench:
    """Runs on one engine, and what was noted about them."""

    def __init__(self, client: EngineClient, info: EngineInfo, plan: Plan, progress: Progress) -> None:
        self.notes: list[str] = []
        self._client = client
        self._plan = plan
        #: tokens that a stream can say
        self._room = (info.max_model_len or DEFAULT_CONTEXT) - plan.prompt_tokens
        self._progress = progress
        self._done = 0
        self._total = (len(plan.batches) + len(plan.lengths)) * (plan.repeats + 1)
        #: part of every prompt, so that no cache knows it from an earlier calibration
        self._nonce = secrets.token_hex(8)
        self._prompts = 0
        #: tokens the engine was made to say
        self._said = 0
        #: tokens of a window
        self._tokens = plan.tokens
        #: the largest share of a core that a run took of this process, and its batch size
        self._client_share = (0.0, 0)
        #: the longest time that this process did not get to run in a run, in seconds
        self._held_up = 0.0

    async def find_pace(self) -> None:
        """Makes windows long enough: an engine of 0.2 ms per token needs more tokens than one of 20 ms."""
        self._step("looking how fast it is", 0)
        length = min(self._room, stream_tokens(self._tokens))
        while (seen := window(await self._run(1, length))) is None or seen.pace <= 0:  # too few events to tell
            if length == self._room:
                raise BackendError(
                    f"engine {self._client.url} says {length} tokens at once; there is no latency to measure"
                )
            length = min(self._room, 2 * length)
        wanted = max(self._tokens, math.ceil(self._plan.window / seen.pace))
        self._tokens = min(wanted, int((self._room - 2) * (1 - 2 * TRIM)))

    async def prefill(self) -> dict[int, list[float]]:
        """First-token times by prompt length; the first round warms up."""
        firsts: dict[int, list[float]] = {length: [] for length in self._plan.lengths}
        for turn in range(self._plan.repeats + 1):
            for length, runs in firsts.items():
                self._step(f"prefill of {length} tokens")
                answer = await self._client.complete(
                    CompletionRequest(
                        prompt=self._prompt(length),
                        max_tokens=1,
                        min_tokens=1,
                        ignore_eos=True,
                        temperature=0.0,
                        keep_text=False,
                    )
                )
                self._said += answer.output_tokens
                if turn:
                    runs.append(answer.first_token_s)
        return firsts

    async def decode(self) -> dict[int, list[float]]:
        """Seconds per token by batch size, in so many runs."""
        lengths = await self._lengths()
        self._total -= (len(self._plan.batches) - len(lengths)) * (self._plan.repeats + 1)
        paces: dict[int, list[float]] = {b: [] for b in lengths}
        for turn in range(self._plan.repeats):
            for b in sorted(lengths, reverse=turn % 2 == 1):
                self._step(f"batch of {b}")
                pace, lengths[b] = await self._pace(b, lengths[b])
                paces[b].append(pace)
        if self._held_up > _HELD_UP_S:
            self.notes.append(
                f"reading the streams was held up for {self._held_up:.1f} s at a time; measure from a machine, "
                "or at a time, with a core to spare"
            )
        share, b = self._client_share
        if share > _BUSY_CLIENT:
            self.notes.append(
                f"at b = {b} reading the streams took {share:.0%} of a core here; the engine itself may be faster. "
                "measure from another machine, or start vLLM with a larger --stream-interval"
            )
        return paces

    async def _pace(self, b: int, length: int) -> tuple[float, int]:
        """Seconds per token in one run that counts, and how long its streams were.

        Where something held up the reading of them, so that no window was left, it is made again, every other time
        longer: on a busy machine the next run may be luckier, and a longer one bears more.
        """
        for turn in range(_TRIES):
            began, used = time.perf_counter(), time.process_time()
            streams = await self._run(b, length)
            share = (time.process_time() - used) / (time.perf_counter() - began)
            self._client_share = max(self._client_share, (share, b))
            if (seen := window(streams)) is not None:
                return seen.pace, length
            length = min(self._room, length << turn % 2)
        raise self._bursts(b)

    async def _lengths(self) -> dict[int, int]:
        """Of every batch size that the engine runs at once, the tokens each stream has to say."""
        lengths: dict[int, int] = {}
        ahead = 0
        for b in self._plan.batches:
            self._step(f"warming up a batch of {b}")
            found = await self._length(b, ahead)
            if found is None:
                break
            lengths[b], ahead = found
        if not lengths:
            raise BackendError(f"engine {self._client.url} cannot be measured: {self.notes[-1]}")
        return lengths

    async def _length(self, b: int, ahead: int) -> tuple[int, int] | None:
        """How long streams must be for a full window, and how far the first is ahead when the last begins, in tokens.

        None, with a note, where the engine does not run b requests at once: streams follow each other because it lets
        some wait, not because this process was too busy to begin them. ahead: a guess, from a smaller batch. Raises
        BackendError.
        """
        wanted = stream_tokens(self._tokens)
        length = min(self._room, wanted + min(ahead, wanted))  # a far lead may have been a burst
        preempted = await self._preemptions()
        apart = 0
        for turn in range(_TRIES):
            streams, waiting = await self._run_and_look(b, length)
            if await self._preemptions() > preempted:
                self.notes.append(f"the engine's KV cache is too small for a batch of {b}; the curve ends before it")
                return None
            seen, ahead = window(streams), lead(streams)
            if seen is not None and (seen.tokens >= _ENOUGH * self._tokens or length == self._room):
                return length, ahead
            is_queued = seen is None and waiting
            apart += is_queued
            if apart == _APART:
                self.notes.append(f"the engine does not decode {b} requests at once; the curve ends before that batch")
                return None
            length = min(self._room, length << turn % 2 if seen is None else wanted + ahead + wanted // 8)
        raise self._bursts(b)

    def _bursts(self, b: int) -> BackendError:
        return BackendError(
            f"what engine {self._client.url} says to {b} requests at once comes in bursts, so that nothing can be "
            f"measured (reading it was held up for {self._held_up:.1f} s at a time); see that neither it nor this "
            "machine has other work"
        )

    async def _run_and_look(self, b: int, length: int) -> tuple[list[Stream], bool]:
        """As `_run`, and whether the engine let requests wait, or did not tell, when the first had half its tokens."""
        half = asyncio.Event()

        async def look() -> bool:
            await half.wait()
            return (await self.counters()).get("vllm:num_requests_waiting", 1.0) > 0

        looking = asyncio.create_task(look())
        try:
            return await self._run(b, length, half), await looking
        finally:
            looking.cancel()

    async def _run(self, b: int, length: int, half: asyncio.Event | None = None) -> list[Stream]:
        """b streams of so many tokens at once. half: set when the first has half of its own. Raises EngineError."""
        replies = [_Clocked(self._client.url, length // 2, half or asyncio.Event()) for _ in range(b)]
        bodies = [self._body(length) for _ in range(b)]
        calls = [
            asyncio.create_task(self._call(body, length, reply)) for body, reply in zip(bodies, replies, strict=True)
        ]
        watch = asyncio.create_task(self._watch())
        try:
            await asyncio.gather(*calls)
        finally:
            for task in (watch, *calls):
                task.cancel()
            await asyncio.gather(watch, *calls, return_exceptions=True)
        self._said += sum(reply.events[-1][1] for reply in replies)
        return [reply.events for reply in replies]

    async def _call(self, body: bytes, length: int, reply: _Clocked) -> None:
        """One stream. Raises EngineError.

        An engine that was held up may close an idle connection in the moment in which a request goes into it. It never
        saw that request, so it is asked again, with another prompt lest it did.
        """
        for _ in range(_CLOSED):
            try:
                await self._client.relay("/completions", body, reply)
                return
            except EngineError as error:
                if error.reason != "broken_stream" or reply.events:
                    raise
                await asyncio.sleep(_LOOK_S)
                body = self._body(length)
        await self._client.relay("/completions", body, reply)

    async def _watch(self) -> None:
        """Notices when this process is held up: what comes meanwhile is read too late."""
        last = time.perf_counter()
        while True:
            await asyncio.sleep(_LOOK_S)
            now = time.perf_counter()
            self._held_up = max(self._held_up, now - last - _LOOK_S)
            last = now

    def _body(self, tokens: int) -> bytes:
        return orjson.dumps(
            {
                "model": self._client.model,
                "prompt": self._prompt(self._plan.prompt_tokens),
                "max_tokens": tokens,
                "min_tokens": tokens,
                "ignore_eos": True,
                "temperature": 0.0,
                "stream": True,
                "stream_options": {"include_usage": True, "continuous_usage_stats": True},
            }
        )

    def _prompt(self, tokens: int) -> list[int]:
        self._prompts += 1
        return prompt_of(f"{self._nonce}/{self._prompts}", tokens)

    def _step(self, what: str, steps: int = 1) -> None:
        self._progress(self._done, self._total, what)
        self._done += steps

    async def rest(self) -> None:
        """Waits a little for an engine to come to rest. Raises BackendError if it has work."""
        until = time.monotonic() + _REST_S
        while True:
            seen = await self.counters()
            running, waiting = (int(seen.get(f"vllm:num_requests_{state}", 0)) for state in ("running", "waiting"))
            if not (running or waiting):
                return
            if time.monotonic() > until:
                raise BackendError(
                    f"engine {self._client.url} has work: {running} requests running, {waiting} waiting; what is "
                    "measured beside it says little: wait for its end, or say --busy"
                )
            await asyncio.sleep(_REST_S / 20)

    async def alone_since(self, before: Mapping[str, float]) -> None:
        """Raises BackendError if the engine has said more since then than it was asked to here."""
        counter = "vllm:generation_tokens_total"
        if counter not in before:
            self.notes.append("the engine tells no counters; whether it had other work meanwhile is unknown")
            return
        await self.rest()
        said = (await self.counters()).get(counter, 0.0) - before[counter]
        if (others := round(said) - self._said) > 0:
            raise BackendError(
                f"engine {self._client.url} said {others} tokens to others meanwhile, so nothing is written; "
                "try again while it has no other work, or say --busy"
            )

    async def _preemptions(self) -> float:
        return (await self.counters()).get("vllm:num_preemptions_total", 0.0)

    async def counters(self) -> dict[str, float]:
        """Sums of vLLM's metrics by name, over their labels; empty where it tells none."""
        sums: dict[str, float] = {}
        for line in (await self._client.metrics()).splitlines():
            if line.startswith("vllm:"):
                name = line.replace("{", " ", 1).partition(" ")[0]
                sums[name] = sums.get(name, 0.0) + float(line.rpartition(" ")[2])
        return sums


class _Clocked:
    """A stream of a completion, of which only the moments and the numbers of its tokens are kept (see `Relayed`).

    reached: set as soon as there are so many tokens.
    """

    is_stream = True

    def __init__(self, url: str, tokens: int, reached: asyncio.Event) -> None:
        #: moments by `perf_counter`, and the tokens there were by then
        self.events: list[tuple[float, int]] = []
        self.done = False
        self._url = url
        self._goal, self._reached = tokens, reached
        self._rest = b""

    @property
    def started(self) -> bool:
        return bool(self.events)

    def begin(self, content_type: str) -> None:
        if not content_type.startswith("text/event-stream"):
            raise self._error(f"answered with {content_type or 'no type'}, not with an event stream")

    def feed(self, chunk: bytes) -> bytes:
        at = time.perf_counter()
        lines = (self._rest + chunk).split(b"\n")
        self._rest = lines.pop()
        tokens = self.events[-1][1] if self.events else 0
        for line in lines:
            if not line.startswith(b"data:"):
                continue
            payload = line[5:].strip()
            if payload == b"[DONE]":
                self.done = True
            else:
                tokens = max(tokens, self._tokens(payload))
        if tokens > (self.events[-1][1] if self.events else 0):
            if len(self.events) > 1 and at - self.events[-1][0] < _ONE_EVENT_S:
                self.events.pop()
            self.events.append((at, tokens))
            if tokens >= self._goal:
                self._reached.set()
        return b""

    async def send(self, chunk: bytes) -> None:
        """Nobody else listens."""

    def close(self) -> None:
        if not (self.done and self.events):
            raise self._error("ended its stream without [DONE], or without a token")

    def _tokens(self, payload: bytes) -> int:
        """The tokens there are by this event."""
        try:
            event: dict[str, Any] = orjson.loads(payload)
            if error := event.get("error"):
                raise self._error(f"broke off: {error}")
            usage = event.get("usage")
            if usage is None and event["choices"]:
                raise self._error("does not say how many tokens its events carry (continuous_usage_stats)")
            return int(usage["completion_tokens"]) if usage else 0
        except (orjson.JSONDecodeError, AttributeError, KeyError, TypeError, ValueError) as error:
            raise self._error(f"sent an event nobody can read: {payload[:80]!r}") from error

    def _error(self, story: str) -> EngineError:
        return EngineError(f"engine {self._url} {story}", reason="bad_response")
