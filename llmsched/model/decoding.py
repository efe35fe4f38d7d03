"""A fluid model of one continuous-batching LLM server, exact and without a clock.

Used by the emulated engine (real time) and by the simulator (simulated time): both hand in `now`.

The life of a sequence:

```
submit ──► waiting ──► prefilling ──► decoding ──► finished
              └────────────┴─────────────┴───────► aborted
```

* The server has `max_batch` slots; a sequence holds one from admission to its end. The queue is ordered
  by (priority, order of arrival), the lowest priority number first, as in vLLM. Nothing is preempted.
* A sequence first reads its prompt, less what the server has cached of it, for `curve.prefill(tokens)`
  seconds, and does not count in the batch b meanwhile. It delays itself and nobody else, unless the curve says
  `prefill_stalls`: then prompts are read one after the other, and nobody decodes until the last of them is read.
  That is what an engine does whose steps are full of prompts: a step then takes as much longer for everybody.
* Then it decodes. All b decoding sequences get one token every l(b) seconds, continuously (a fluid: half
  a period is half a token), so that alone it takes prefill + output_tokens × l(1), the reference work.

Because all decoding sequences advance at the same rate, one number drives them all: the *virtual tokens*
V(t), growing at rate 1 / l(b(t)). A sequence that starts to decode at V₀ ends when V reaches
V₀ + output_tokens: a heap of these finish points gives the next event in O(log b), and the time of that
event is exact because b is constant until then. V is anchored at the last change of b and computed from
there, so that looking (`progress`, `advance` between events) never adds rounding error.

Invariants: a sequence waits only while all slots are taken; V never decreases; the tokens decoded are
∫ b / l(b) dt. Deliberately absent: memory (a KV cache that fills and preempts), speculative decoding,
the first token that a real engine gets out of prefill.
"""

from __future__ import annotations

from collections.abc import Callable
from heapq import heapify, heappop, heappush
from math import inf

from llmsched.errors import InvalidTransition
from llmsched.model.latency import LatencyCurve


class Sequence:
    """One request's place in the server. Only the server writes it; times are None until they happen."""

    __slots__ = (
        "admitted_at",
        "arrived_at",
        "cached_tokens",
        "decoding_at",
        "finish_point",
        "finished_at",
        "id",
        "number",
        "output_tokens",
        "priority",
        "prompt_tokens",
    )

    def __init__(self, id: str, number: int, prompt_tokens: int, output_tokens: int, priority: int, at: float) -> None:
        self.id = id
        self.number = number
        self.prompt_tokens = prompt_tokens
        self.output_tokens = output_tokens
        self.priority = priority
        self.arrived_at = at
        #: of the prompt, that need no prefill
        self.cached_tokens = 0
        #: when it got its slot
        self.admitted_at: float | None = None
        #: when its prefill ended
        self.decoding_at: float | None = None
        self.finished_at: float | None = None
        #: the virtual tokens at which it ends
        self.finish_point = inf


class DecodingServer:
    """Who decodes what until when, on one engine. Time never goes back: InvalidTransition if it does.

    on_decoding: called with each sequence at the moment its prefill ends (an emulator wakes its stream).
    cached: asked when a sequence gets its slot how many tokens of its prompt need no prefill (None: all do).
    """

    def __init__(
        self,
        curve: LatencyCurve,
        max_batch: int,
        *,
        on_decoding: Callable[[Sequence], None] | None = None,
        cached: Callable[[Sequence], int] | None = None,
    ) -> None:
        assert max_batch >= 1, "a server needs a slot"
        self.curve = curve
        self.max_batch = max_batch
        self._on_decoding = on_decoding
        self._cached = cached
        self._now = -inf
        self._submitted = 0
        self._sequences: dict[str, Sequence] = {}
        #: (priority, number, sequence); may hold aborted ones, which are skipped when they come up
        self._queue: list[tuple[int, int, Sequence]] = []
        self._waiting = 0
        #: (end of prefill, number, sequence)
        self._prefilling: list[tuple[float, int, Sequence]] = []
        #: (finish point, number, sequence)
        self._decoding: list[tuple[float, int, Sequence]] = []
        #: V was `_anchor_tokens` at `_anchor_at`, and b has not changed since
        self._anchor_at = -inf
        self._anchor_tokens = 0.0
        #: l(b), seconds per virtual token; inf while nobody decodes
        self._pace = inf
        #: finished, not yet told
        self._finished: list[tuple[str, float]] = []
        #: where prefill stalls: when all prompts that are here will have been read
        self._read_at = -inf

    @property
    def batch(self) -> int:
        """Sequences decoding now: b."""
        return len(self._decoding)

    @property
    def running(self) -> int:
        """Slots taken: sequences in prefill or decoding."""
        return len(self._prefilling) + len(self._decoding)

    @property
    def waiting(self) -> int:
        """Sequences in the queue."""
        return self._waiting

    def submit(self, id: str, prompt_tokens: int, output_tokens: int, now: float, priority: int = 0) -> Sequence:
        """A request arrives. `id` must differ from all that are here or finished but not yet told."""
        self._run(now)
        if id in self._sequences:
            raise InvalidTransition(f"sequence {id!r} was submitted at {now:g} but is already here")
        self._submitted += 1
        sequence = Sequence(id, self._submitted, prompt_tokens, output_tokens, priority, now)
        self._sequences[id] = sequence
        if self.running < self.max_batch:
            self._admit(sequence, now)
            self._run(now)
        else:
            heappush(self._queue, (priority, sequence.number, sequence))
            self._waiting += 1
        return sequence

    def abort(self, id: str, now: float) -> bool:
        """Forget a request. False if it finished first: then `advance` reports it as usual."""
        self._run(now)
        sequence = self._find(id, now)
        if sequence.finished_at is not None:
            return False
        del self._sequences[id]
        if sequence.decoding_at is not None:
            self._anchor(now, self._tokens(now))
            self._decoding = [entry for entry in self._decoding if entry[2] is not sequence]
            heapify(self._decoding)
            self._repace()
        elif sequence.admitted_at is not None:
            self._prefilling = [entry for entry in self._prefilling if entry[2] is not sequence]
            heapify(self._prefilling)
            if self.curve.prefill_stalls:  # others that come after it keep their moments; nobody new waits for it
                self._anchor(now, self._tokens(now))
                self._read_at = max((ready_at for ready_at, *_ in self._prefilling), default=now)
                self._repace()
        else:
            self._waiting -= 1
            if len(self._queue) > 2 * self._waiting + 64:  # mostly aborted ones: keep memory bounded
                self._queue = [entry for entry in self._queue if self._is_here(entry[2])]
                heapify(self._queue)
        self._fill(now)
        self._run(now)
        return True

    def advance(self, now: float) -> list[tuple[str, float]]:
        """Let time pass; who finished, and when, since the last call, in order of time."""
        self._run(now)
        told, self._finished = self._finished, []
        for id, _ in told:
            del self._sequences[id]
        return told

    def next_event(self) -> float | None:
        """A time before which `advance` has nothing to tell; None on an empty server.

        The event may be the end of a prefill, after which the next time is known better.
        """
        at = self._finished[0][1] if self._finished else self._next()
        return None if at == inf else at

    def progress(self, id: str, now: float) -> float:
        """Tokens decoded so far, between 0 and output_tokens."""
        self._run(now)
        sequence = self._find(id, now)
        if sequence.decoding_at is None:
            return 0.0
        if sequence.finished_at is not None:
            return float(sequence.output_tokens)
        left = sequence.finish_point - self._tokens(now)
        return min(max(sequence.output_tokens - left, 0.0), float(sequence.output_tokens))

    def reaches(self, id: str, tokens: float, now: float) -> float | None:
        """When a decoding sequence will have `tokens` if nothing changes; None if it is not decoding."""
        self._run(now)
        sequence = self._find(id, now)
        if sequence.decoding_at is None or sequence.finished_at is not None:
            return None
        point = sequence.finish_point - sequence.output_tokens + tokens
        if self._pace == inf:
            return self._read_at + (point - self._anchor_tokens) * self.curve.decode(len(self._decoding))
        return max(now, self._anchor_at + (point - self._anchor_tokens) * self._pace)

    # The mechanics below know nothing of ids, only of moments.

    def _find(self, id: str, now: float) -> Sequence:
        try:
            return self._sequences[id]
        except KeyError:
            raise InvalidTransition(f"sequence {id!r} is not on this server at {now:g}") from None

    def _is_here(self, sequence: Sequence) -> bool:
        return self._sequences.get(sequence.id) is sequence

    def _run(self, now: float) -> None:
        """Let everything that is due by `now` happen, each at its own moment."""
        if now < self._now:
            raise InvalidTransition(f"time went back from {self._now!r} to {now!r}")
        while (at := self._next()) <= now:
            if self._prefilling and self._prefilling[0][0] == at:
                self._join(at)
            else:
                self._finish(at)
        self._now = now

    def _next(self) -> float:
        prefilled = self._prefilling[0][0] if self._prefilling else inf
        if not self._decoding or self._pace == inf:
            return prefilled
        finished = self._anchor_at + (self._decoding[0][0] - self._anchor_tokens) * self._pace
        return min(prefilled, finished)

    def _admit(self, sequence: Sequence, at: float) -> None:
        sequence.admitted_at = at
        if self._cached is not None:
            sequence.cached_tokens = self._cached(sequence)
        ready_at = at + self.curve.prefill(sequence.prompt_tokens - sequence.cached_tokens)
        if self.curve.prefill_stalls:
            ready_at = self._read_at = ready_at + max(0.0, self._read_at - at)
            self._anchor(at, self._tokens(at))
            self._pace = inf
        heappush(self._prefilling, (ready_at, sequence.number, sequence))

    def _fill(self, at: float) -> None:
        """Free slots go to the head of the queue."""
        while self._waiting and self.running < self.max_batch:
            sequence = heappop(self._queue)[2]
            if self._is_here(sequence):
                self._waiting -= 1
                self._admit(sequence, at)

    def _join(self, at: float) -> None:
        """Prefills that end at this moment start to decode."""
        self._anchor(at, self._tokens(at))
        while self._prefilling and self._prefilling[0][0] == at:
            sequence = heappop(self._prefilling)[2]
            sequence.decoding_at = at
            sequence.finish_point = self._anchor_tokens + sequence.output_tokens
            heappush(self._decoding, (sequence.finish_point, sequence.number, sequence))
            if self._on_decoding is not None:
                self._on_decoding(sequence)
        self._repace()

    def _finish(self, at: float) -> None:
        """The sequences with the lowest finish point are done."""
        self._anchor(at, self._decoding[0][0])
        while self._decoding and self._decoding[0][0] <= self._anchor_tokens:
            sequence = heappop(self._decoding)[2]
            sequence.finished_at = at
            self._finished.append((sequence.id, at))
        self._repace()
        self._fill(at)

    def _tokens(self, at: float) -> float:
        """V(at), for a moment not before the anchor and not after the next event."""
        if not self._decoding or self._pace == 0.0:
            return self._anchor_tokens
        # Rounding may carry V a hair beyond the next finish point, which must stay ahead of it.
        tokens = self._anchor_tokens + (at - self._anchor_at) / self._pace
        return min(tokens, self._decoding[0][0])

    def _anchor(self, at: float, tokens: float) -> None:
        self._anchor_at = at
        self._anchor_tokens = tokens if self._decoding else 0.0  # small numbers round less

    def _repace(self) -> None:
        is_stalled = self.curve.prefill_stalls and bool(self._prefilling)
        self._pace = self.curve.decode(len(self._decoding)) if self._decoding and not is_stalled else inf
