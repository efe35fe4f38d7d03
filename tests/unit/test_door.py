"""Pieces of the side door without a socket: how a chain of calls unfolds, and what of an answer is passed on."""

from __future__ import annotations

import asyncio
from typing import Any

import orjson
import pytest

from llmsched.model.application import Application
from llmsched.model.events import Reveal
from llmsched.model.unfolding import Unfolded
from llmsched.runtime.engine import EngineError
from llmsched.runtime.relay import Stream, Whole, failure_of
from llmsched.runtime.scripts.observed import FORESEEN, Call, Failure, ObservedScript, chain, is_observed

SHORT = chain("short", 3)


class Nobody:
    """A client that takes everything."""

    def __init__(self) -> None:
        self.got: list[bytes] = []

    async def begin(self, content_type: str) -> None:
        self.got.append(content_type.encode())

    async def send(self, chunk: bytes, *, last: bool) -> None:
        self.got.append(chunk + (b"<end>" if last else b""))


def call(**fields: Any) -> Call:
    """A call; there is no event loop, so nobody waits for it."""
    loop = asyncio.new_event_loop()
    over: asyncio.Future[Failure | None] = loop.create_future()
    loop.close()
    raw = orjson.dumps(fields)
    return Call("/v1/chat/completions", raw, fields, "llm", None, Nobody(), 0.0, over=over)


# --------------------------------------------------------------------------------------------------- the chain


def test_a_chain_is_an_ordinary_padded_loop() -> None:
    assert [s.name for s in SHORT.stages] == ["call_1", "call_2", "call_3"]
    assert [s.after for s in SHORT.stages] == [(), ("call_1",), ("call_2",)]
    assert len(chain("agent").stages) == FORESEEN
    assert not SHORT.is_executable


@pytest.mark.parametrize(
    "stages",
    [
        [{"name": "call_1", "kind": "llm"}],
        [
            {
                "loop": "calls",
                "first": 1,
                "max_iterations": 2,
                "stages": [{"name": "call", "kind": "llm", "prompt": "x"}],
            }
        ],
        [{"loop": "calls", "first": 0, "max_iterations": 2, "stages": [{"name": "call", "kind": "llm"}]}],
        [{"loop": "calls", "first": 1, "max_iterations": 2, "stages": [{"name": "call", "kind": "regular"}]}],
    ],
)
def test_other_applications_are_no_chains(stages: list[Any]) -> None:
    assert is_observed(SHORT)
    assert not is_observed(Application.parse({"name": "other", "stages": stages}))


class Told:
    """Both sides of one observed job, told in the order in which they happen."""

    def __init__(self) -> None:
        self.script = ObservedScript(SHORT)
        self.calls: dict[str, Call] = {}

    def arrive(self) -> Reveal:
        new = call()
        reveal = self.script.arrive(new)
        self.calls[new.stage] = new
        return reveal

    def over(self, stage: str) -> None:
        self.script.over(self.calls[stage], 1.0)


def test_calls_one_after_the_other_leave_the_last_one_open() -> None:
    job = Told()
    first = job.arrive()
    assert (first.spec, job.script.take((first,))) == (SHORT["call_1"], None)
    job.over("call_1")
    assert job.script.complete("call_1", [None]) is None
    second = job.arrive()
    assert (second.spec.after, job.script.take((second,))) == (("call_1",), "call_1")
    job.over("call_2")
    assert job.script.complete("call_2", [None]) is None
    assert job.script.end() == ("call_2", ("call_3",))


def test_a_call_that_arrives_before_the_end_of_the_last_one_is_told_opens_behind_it() -> None:
    job = Told()
    job.script.take((job.arrive(),))
    job.over("call_1")
    second = job.arrive()  # queued behind the news that call_1 is done
    assert job.script.complete("call_1", [None]) is None
    assert job.script.take((second,)) == "call_1"


def test_the_last_call_of_several_side_by_side_ends_the_job() -> None:
    job = Told()
    job.script.take((job.arrive(),))
    second = job.arrive()
    assert (second.spec.after, job.script.take((second,))) == ((), None)
    job.script.is_ended = True
    job.over("call_2")
    assert job.script.complete("call_2", [None]) == Unfolded()
    job.over("call_1")
    assert job.script.complete("call_1", [None]) == Unfolded(skipped=("call_3",))


def test_an_end_that_comes_before_the_news_of_the_last_call_waits_for_it() -> None:
    job = Told()
    job.script.take((job.arrive(),))
    job.over("call_1")
    assert job.script.end() is None
    assert job.script.complete("call_1", [None]) == Unfolded(skipped=("call_2", "call_3"))


def test_a_call_comes_after_those_that_none_came_after() -> None:
    job = Told()
    job.arrive()
    job.over("call_1")
    left, right = job.arrive(), job.arrive()
    job.over("call_2")
    late = job.arrive()
    job.over("call_3")
    job.over("call_4")
    last = job.arrive()

    assert [r.spec.after for r in (left, right, late, last)] == [
        ("call_1",),
        ("call_1",),
        ("call_2",),
        ("call_3", "call_4"),
    ]
    assert last.spec.name == "call_5"
    assert job.script.off_profile == ("it has more calls than the 3 its chain foresees",)


# ------------------------------------------------------------------------------------------------- what is sent


def test_a_body_goes_as_it_came_where_nothing_has_to_change() -> None:
    plain = call(model="m", messages=[], temperature=0.5)

    assert plain.body("m", 0) is plain.raw
    assert plain.body(None, 0) is plain.raw
    assert orjson.loads(plain.body("other", 3)) == plain.fields | {"model": "other", "priority": 3}


def test_priorities_are_not_the_clients_to_give() -> None:
    assert orjson.loads(call(model="m", priority=-9).body("m", 0)) == {"model": "m"}


def test_lengths_are_those_of_the_text() -> None:
    parts = [{"type": "text", "text": "x" * 40}, {"type": "image_url", "image_url": {"url": "data:" + "A" * 10**5}}]

    assert call(messages=[{"role": "system", "content": "y" * 20}, {"content": parts}]).prompt_tokens() == 15
    assert call(prompt=[5, 6, 7]).prompt_tokens() == 3
    assert call(prompt="x" * 8).prompt_tokens() == 2
    assert call(messages="nonsense").prompt_tokens() == 0


# ------------------------------------------------------------------------------------------- what is passed on


def event(**document: Any) -> bytes:
    return b"data: " + orjson.dumps(document) + b"\n\n"


def delta(**delta: Any) -> bytes:
    return event(choices=[{"index": 0, "delta": delta, "finish_reason": None}])


ROLE, WORD = delta(role="assistant", content=""), delta(content='a "word"')
USAGE = event(choices=[], usage={"prompt_tokens": 2, "completion_tokens": 1})
DONE = b"data: [DONE]\n\n"


def test_nothing_is_passed_on_before_the_first_token() -> None:
    stream = Stream(call(stream=True), "http://e")

    assert stream.feed(ROLE) == b""
    assert stream.feed(WORD) == ROLE + WORD
    assert stream.feed(WORD + USAGE + DONE) == WORD + DONE
    assert (stream.usage["completion_tokens"], stream.done) == (1, True)


@pytest.mark.parametrize("size", [1, 7, 64, 10_000])
@pytest.mark.parametrize("ends", [b"\n", b"\r\n"])
def test_however_a_stream_is_cut_it_comes_out_the_same(size: int, ends: bytes) -> None:
    sent = (b": a comment\n\n" + ROLE + WORD * 3 + USAGE + DONE).replace(b"\n", ends)
    asked = Stream(call(stream=True, stream_options={"include_usage": True}), "http://e")
    plain = Stream(call(stream=True), "http://e")
    pieces = [sent[i : i + size] for i in range(0, len(sent), size)]

    assert b"".join(map(asked.feed, pieces)) == sent
    assert b"".join(map(plain.feed, pieces)) == sent.replace(USAGE.replace(b"\n", ends), b"")
    asked.close()


def test_tool_calls_and_reasoning_are_tokens() -> None:
    for first in (delta(role="assistant", tool_calls=[{"index": 0}]), delta(reasoning="hm")):
        assert Stream(call(stream=True), "http://e").feed(first) == first


@pytest.mark.parametrize(
    ("said", "reason"),
    [
        (event(error={"message": "out of memory", "code": 500}), "broken_stream"),
        (event(choices=[{"delta": {}, "finish_reason": "abort"}]), "broken_stream"),
        (DONE, "broken_stream"),
        (b"data: {no JSON\n\n", "bad_response"),
        (b"data: []\n\n", "bad_response"),
    ],
)
def test_what_is_no_answer_breaks_the_stream(said: bytes, reason: str) -> None:
    with pytest.raises(EngineError) as broken:
        Stream(call(stream=True), "http://e").feed(said)

    assert (broken.value.reason, broken.value.retryable) == (reason, True)


def test_a_stream_without_its_end_is_broken() -> None:
    stream = Stream(call(stream=True), "http://e")
    stream.feed(WORD)

    with pytest.raises(EngineError, match="without \\[DONE\\]"):
        stream.close()


async def test_the_end_of_a_stream_is_the_end_of_its_call() -> None:
    client = Nobody()
    one = Call("/v1/completions", b"{}", {"stream": True}, "llm", None, client, 0.0)
    stream = Stream(one, "http://e")
    stream.begin("text/event-stream")
    for chunk in (WORD, DONE):
        await stream.send(stream.feed(chunk))

    assert client.got == [b"text/event-stream", WORD, DONE + b"<end>"]
    assert one.over.result() is None


def test_an_answer_in_one_piece_is_kept_until_it_is_whole() -> None:
    whole = Whole("http://e")
    body = orjson.dumps({"choices": [], "usage": {"prompt_tokens": 1, "completion_tokens": 2}})

    assert [whole.feed(body[:9]), whole.feed(body[9:])] == [b"", b""]
    whole.close()
    assert (whole.body, whole.usage["completion_tokens"]) == (body, 2)


# ----------------------------------------------------------------------------------------------------- failures


def test_an_engines_refusal_is_told_as_it_is() -> None:
    body = orjson.dumps({"error": {"message": "too long", "type": "BadRequestError", "param": None, "code": 400}})
    refused = EngineError("…", reason="http_400", retryable=False, engine_fault=False, status=400, body=body)
    older = EngineError("it says no", reason="http_422", retryable=False, engine_fault=False, status=422, body=b"no")

    assert failure_of(refused) == Failure(400, "…", None, body)
    assert failure_of(older) == Failure(422, "it says no")


@pytest.mark.parametrize("status", [500, 401, None])
def test_an_engines_own_trouble_is_none_of_the_clients(status: int | None) -> None:
    failure = failure_of(EngineError("trouble", reason="x", status=status, body=b'{"error": {}}'))

    assert (failure.status, failure.code, failure.body) == (503, "engine_error", None)
