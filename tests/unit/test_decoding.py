"""The fluid model of a continuous-batching server against hand calculations and a naive reference."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from fractions import Fraction
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llmsched.errors import InvalidTransition
from llmsched.model.decoding import DecodingServer, Sequence
from llmsched.model.latency import GENERIC_7B, LatencyCurve, latency_curve

#: l(1) = 0.1 s, l(2) = 0.15 s, l(3) = 0.2 s; 100 prompt tokens a second
CURVE = LatencyCurve.affine("hand", alone=0.1, growth=0.5, prefill_tokens_per_s=100.0)


def near(seconds: float) -> Any:
    """Equal up to the rounding of a few sums."""
    return pytest.approx(seconds, rel=1e-12)


def drain(server: DecodingServer) -> list[tuple[str, float]]:
    """Run an engine empty, from event to event."""
    done: list[tuple[str, float]] = []
    while (at := server.next_event()) is not None:
        done += server.advance(at)
    return done


def test_alone_a_call_takes_its_reference_work() -> None:
    server = DecodingServer(CURVE, 4)
    sequence = server.submit("a", prompt_tokens=50, output_tokens=10, now=2.0)
    assert (server.batch, server.running, server.waiting) == (0, 1, 0)
    assert server.next_event() == 2.5  # prefill ends
    assert server.advance(2.5) == []
    assert server.batch == 1
    assert server.progress("a", 3.0) == near(5.0)
    assert server.reaches("a", 6, 3.0) == near(3.1)
    assert server.advance(3.4) == []
    [(id, at)] = drain(server)
    assert (id, at) == ("a", near(2.0 + CURVE.reference(50, 10)))
    assert (sequence.arrived_at, sequence.admitted_at, sequence.decoding_at) == (2.0, 2.0, 2.5)
    assert sequence.finished_at == at
    assert (server.batch, server.running, server.next_event()) == (0, 0, None)


def test_where_prefill_stalls_nobody_decodes_while_a_prompt_is_read() -> None:
    server = DecodingServer(replace(CURVE, prefill_stalls=True), 4)
    server.submit("a", prompt_tokens=50, output_tokens=10, now=0.0)
    server.submit("b", prompt_tokens=100, output_tokens=2, now=0.7)
    # a decodes from 0.5, has 2 tokens at 0.7 and no more until b is read at 1.7; then both take 0.15 s per token
    assert server.progress("a", 0.7) == near(2.0)
    assert server.progress("a", 1.5) == near(2.0)
    assert server.reaches("a", 3, 1.5) == near(1.8)  # as if b never decoded
    assert drain(server) == [("b", near(2.0)), ("a", near(2.6))]


def test_where_prefill_stalls_prompts_are_read_one_after_the_other() -> None:
    server = DecodingServer(replace(CURVE, prefill_stalls=True), 4)
    a, b, c = (server.submit(id, prompt_tokens=50, output_tokens=1, now=0.0) for id in "abc")
    assert drain(server) == [(id, near(1.5 + 0.2)) for id in "abc"]
    assert [s.decoding_at for s in (a, b, c)] == [near(0.5), near(1.0), near(1.5)]


def test_an_aborted_prompt_stalls_nobody() -> None:
    server = DecodingServer(replace(CURVE, prefill_stalls=True), 4)
    server.submit("a", prompt_tokens=0, output_tokens=10, now=0.0)
    server.submit("b", prompt_tokens=500, output_tokens=10, now=0.5)
    assert server.abort("b", 0.7)
    server.submit("c", prompt_tokens=0, output_tokens=1, now=0.7)
    # a has 5 tokens at 0.5 and still at 0.7; 0.15 s for one with c, 0.4 s for the last four
    assert drain(server) == [("c", near(0.85)), ("a", near(1.25))]


def test_what_is_cached_of_a_prompt_is_asked_when_a_slot_is_free_and_costs_no_prefill() -> None:
    asked: list[str] = []

    def cached(sequence: Sequence) -> int:
        asked.append(sequence.id)
        return 40

    server = DecodingServer(CURVE, 1, cached=cached)
    first = server.submit("a", prompt_tokens=50, output_tokens=10, now=0.0)
    server.submit("b", prompt_tokens=50, output_tokens=10, now=0.0)
    assert asked == ["a"]
    assert (first.prompt_tokens, first.cached_tokens) == (50, 40)
    # 10 of 50 tokens to read, then 10 tokens at 0.1 s, twice.
    assert drain(server) == [("a", near(1.1)), ("b", near(2.2))]
    assert asked == ["a", "b"]


def test_two_calls_slow_each_other_while_they_overlap() -> None:
    server = DecodingServer(CURVE, 4)
    server.submit("a", 0, 10, now=0.0)
    server.submit("b", 0, 10, now=0.5)
    # Until 0.5 a decodes 5 tokens alone. Then both need 0.15 s a token: a's other 5 end at 1.25, when b has
    # 5 as well and goes on alone for 0.5 s.
    assert drain(server) == [("a", near(1.25)), ("b", near(1.75))]


def test_equal_calls_end_together_in_order_of_arrival() -> None:
    server = DecodingServer(CURVE, 4)
    for id in "ba":
        server.submit(id, 0, 10, now=0.0)
    assert drain(server) == [("b", near(1.5)), ("a", near(1.5))]


def test_prefill_delays_only_its_own_call() -> None:
    server = DecodingServer(CURVE, 4)
    server.submit("a", 0, 10, now=0.0)
    server.submit("b", 100, 10, now=0.0)
    assert (server.batch, server.running) == (1, 2)
    assert drain(server) == [("a", 1.0), ("b", 2.0)]


def test_abort_while_decoding_speeds_up_the_others() -> None:
    server = DecodingServer(CURVE, 4)
    server.submit("a", 0, 10, now=0.0)
    server.submit("b", 0, 10, now=0.0)
    assert server.progress("b", 0.75) == near(5.0)
    assert server.abort("b", 0.75)
    assert drain(server) == [("a", near(1.25))]


def test_abort_in_prefill_frees_the_slot() -> None:
    server = DecodingServer(CURVE, 1)
    server.submit("a", 100, 10, now=0.0)
    server.submit("b", 0, 10, now=0.1)
    assert server.waiting == 1
    assert server.abort("a", 0.5)
    assert drain(server) == [("b", 1.5)]


def test_abort_in_the_queue_leaves_no_trace() -> None:
    server = DecodingServer(CURVE, 1)
    server.submit("a", 0, 10, now=0.0)
    server.submit("b", 0, 10, now=0.0)
    server.submit("c", 0, 10, now=0.0)
    assert server.abort("b", 0.5)
    assert server.waiting == 1
    server.submit("b", 0, 10, now=0.5)  # the id is free again, and goes to the end of the queue
    assert drain(server) == [("a", 1.0), ("c", 2.0), ("b", 3.0)]


def test_aborting_what_has_finished_changes_nothing() -> None:
    server = DecodingServer(CURVE, 1)
    server.submit("a", 0, 10, now=0.0)
    assert not server.abort("a", 1.0)
    assert server.progress("a", 1.0) == 10.0
    assert server.reaches("a", 5, 1.0) is None
    assert server.next_event() == 1.0
    assert server.advance(1.0) == [("a", 1.0)]


def test_aborted_calls_do_not_pile_up_in_the_queue() -> None:
    server = DecodingServer(CURVE, 1)
    server.submit("first", 0, 10, now=0.0)
    for number in range(1000):
        server.submit(str(number), 0, 10, now=0.0, priority=9)
        server.abort(str(number), 0.0)
    assert server.waiting == 0
    assert len(server._queue) < 100


def test_queue_waits_for_a_slot_and_then_reads_its_prompt() -> None:
    server = DecodingServer(CURVE, 1)
    server.submit("a", 0, 10, now=0.0)
    waiting = server.submit("b", 50, 10, now=0.2)
    assert (server.waiting, server.progress("b", 0.5), server.reaches("b", 1, 0.5)) == (1, 0.0, None)
    assert drain(server) == [("a", 1.0), ("b", 2.5)]
    assert (waiting.arrived_at, waiting.admitted_at, waiting.decoding_at) == (0.2, 1.0, 1.5)


def test_queue_is_ordered_by_priority_then_arrival() -> None:
    server = DecodingServer(CURVE, 1)
    for id, priority in (("running", 9), ("late", 1), ("first", -1), ("second", -1), ("middle", 0)):
        server.submit(id, 0, 10, now=0.0, priority=priority)
    assert [id for id, _ in drain(server)] == ["running", "first", "second", "middle", "late"]


def test_looking_changes_nothing_not_even_by_rounding() -> None:
    seen, unseen = DecodingServer(GENERIC_7B, 3), DecodingServer(GENERIC_7B, 3)
    for server in (seen, unseen):
        for number in range(7):
            server.submit(str(number), 100 * number, 17 + number, now=0.0)
    told: list[tuple[str, float]] = []
    for step in range(3000):
        now = step * 0.000_7
        told += seen.advance(now)
        if seen.running and seen.next_event() is not None:
            running = [id for id in map(str, range(7)) if id not in dict(told)]
            for id in running:
                seen.progress(id, now)
    assert told == unseen.advance(3000 * 0.000_7)
    assert len(told) == 7


def test_late_news_has_exact_times() -> None:
    server = DecodingServer(CURVE, 1)
    server.submit("a", 0, 10, now=0.0)
    server.submit("b", 0, 10, now=0.0)
    assert server.advance(100.0) == [("a", 1.0), ("b", 2.0)]
    server.submit("c", 0, 10, now=100.0)
    assert drain(server) == [("c", 101.0)]


def test_instant_engine_finishes_at_once() -> None:
    server = DecodingServer(latency_curve("instant"), 2)
    for number in range(5):
        server.submit(str(number), 1000, 1000, now=3.0)
    assert server.next_event() == 3.0
    assert server.advance(3.0) == [(str(number), 3.0) for number in range(5)]


def test_a_call_without_output_ends_with_its_prefill() -> None:
    server = DecodingServer(CURVE, 2)
    server.submit("a", 100, 0, now=0.0)
    assert drain(server) == [("a", 1.0)]


def test_the_end_of_prefill_is_told() -> None:
    began: list[tuple[str, float | None]] = []

    def note(sequence: Sequence) -> None:
        began.append((sequence.id, sequence.decoding_at))

    server = DecodingServer(CURVE, 1, on_decoding=note)
    server.submit("a", 0, 10, now=0.0)
    server.submit("b", 50, 10, now=0.0)
    drain(server)
    assert began == [("a", 0.0), ("b", 1.5)]


def test_impossible_requests_are_told() -> None:
    server = DecodingServer(CURVE, 1)
    server.submit("a", 0, 10, now=1.0)
    with pytest.raises(InvalidTransition, match="'a' was submitted at 1 but is already here"):
        server.submit("a", 0, 10, now=1.0)
    with pytest.raises(InvalidTransition, match="'b' is not on this server"):
        server.abort("b", 1.0)
    with pytest.raises(InvalidTransition, match="time went back"):
        server.advance(0.5)
    assert drain(server) == [("a", 2.0)]
    with pytest.raises(InvalidTransition, match="'a' is not on this server"):
        server.progress("a", 2.0)


@dataclass(frozen=True)
class Arrival:
    """A scripted request; `abort_after` seconds after its arrival its client goes away."""

    gap: float
    prompt_tokens: int
    output_tokens: int
    priority: int
    abort_after: float | None


#: Multiples of 1/4 s and latencies that are powers of two: every number is exact in binary, so that the
#: server must agree with the reference to the last bit and ties are true ties.
EXACT = LatencyCurve("exact", 4.0, ((1, 1.0), (2, 1.0), (3, 2.0), (4, 2.0)))
quarters = st.integers(0, 32).map(lambda n: n / 4)
arrivals = st.lists(
    st.builds(
        Arrival,
        gap=quarters,
        prompt_tokens=st.integers(0, 12),
        output_tokens=st.integers(0, 8),
        priority=st.integers(-1, 1),
        abort_after=st.none() | quarters,
    ),
    max_size=9,
)


def script(arrivals: list[Arrival]) -> list[tuple[float, int, str, int]]:
    """(time, order, "submit" or "abort", index), in order of time; a submit precedes its own abort."""
    steps, now = [], 0.0
    for index, arrival in enumerate(arrivals):
        now += arrival.gap
        steps.append((now, 2 * index, "submit", index))
        if arrival.abort_after is not None:
            steps.append((now + arrival.abort_after, 2 * index + 1, "abort", index))
    return sorted(steps)


def reference(arrivals: list[Arrival], max_batch: int) -> dict[str, float]:
    """The same server the slow way, in fractions: every sequence's own tokens, from event to event."""
    now = Fraction(0)
    queue: list[tuple[int, int]] = []
    prefill: dict[int, Fraction] = {}
    decode: dict[int, Fraction] = {}
    finished: dict[str, float] = {}
    steps = script(arrivals)
    while steps or prefill or decode:
        pace = Fraction(EXACT.decode(max(1, len(decode))))
        soonest = min([*prefill.values(), *(left * pace for left in decode.values())], default=Fraction(10**9))
        if steps and Fraction(steps[0][0]) < now + soonest:
            soonest = Fraction(steps[0][0]) - now
        now += soonest
        prefill = {index: left - soonest for index, left in prefill.items()}
        decode = {index: left - soonest / pace for index, left in decode.items()}
        for index in [index for index, left in prefill.items() if left == 0]:
            decode[index] = Fraction(arrivals[index].output_tokens)
            del prefill[index]
        ended = [index for index, left in decode.items() if left == 0]
        for index in ended:
            finished[str(index)] = float(now)
            del decode[index]
        due = steps and steps[0][0] == now and not ended and not any(left == 0 for left in prefill.values())
        if due and not (queue and len(prefill) + len(decode) < max_batch):
            _, _, action, index = steps.pop(0)
            if action == "submit":
                queue.append((arrivals[index].priority, index))
            elif str(index) not in finished:
                queue = [entry for entry in queue if entry[1] != index]
                prefill.pop(index, None)
                decode.pop(index, None)
        queue.sort()
        while queue and len(prefill) + len(decode) < max_batch:
            index = queue.pop(0)[1]
            prefill[index] = Fraction(arrivals[index].prompt_tokens, 4)
    return finished


@settings(max_examples=150, deadline=None)
@given(arrivals, st.integers(1, 4))
def test_server_agrees_exactly_with_the_naive_reference(arrivals: list[Arrival], max_batch: int) -> None:
    server = DecodingServer(EXACT, max_batch)
    finished: dict[str, float] = {}
    for now, _, action, index in script(arrivals):
        if action == "submit":
            arrival = arrivals[index]
            server.submit(str(index), arrival.prompt_tokens, arrival.output_tokens, now, arrival.priority)
        elif str(index) not in finished:
            server.abort(str(index), now)
        assert server.running <= max_batch
        assert not server.waiting or server.running == max_batch
        finished |= dict(server.advance(now))
    finished |= dict(drain(server))
    assert finished == reference(arrivals, max_batch)


@settings(max_examples=100, deadline=None)
@given(
    st.lists(st.tuples(st.floats(0, 2), st.integers(0, 5000), st.integers(1, 300)), min_size=1, max_size=30),
    st.integers(1, 8),
)
def test_work_is_conserved(requests: list[tuple[float, int, int]], max_batch: int) -> None:
    """∫ b / l(b) dt over the life of the server is the number of tokens asked for."""
    server = DecodingServer(GENERIC_7B, max_batch)
    tokens = now = 0.0

    def pass_time(until: float) -> None:
        nonlocal tokens, now
        while (at := server.next_event()) is not None and at <= until:
            tokens += _rate(server) * (at - now)
            now = at
            server.advance(at)
        if math.isfinite(until):
            tokens += _rate(server) * (until - now)
            now = until

    for number, (gap, prompt_tokens, output_tokens) in enumerate(requests):
        pass_time(now + gap)
        server.submit(str(number), prompt_tokens, output_tokens, now)
    pass_time(math.inf)
    assert server.next_event() is None
    # Rounding: each of some hundred sums is right to 1e-16 of about 1e4 tokens.
    assert tokens == pytest.approx(sum(output for _, _, output in requests), rel=1e-9)


def _rate(server: DecodingServer) -> float:
    return server.batch / GENERIC_7B.decode(server.batch) if server.batch else 0.0
