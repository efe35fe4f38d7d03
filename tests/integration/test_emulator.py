"""The emulated engine over real HTTP: vLLM's answers, timing, metrics, faults, processes."""

from __future__ import annotations

import asyncio
import json
import signal
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from random import Random
from typing import Any

import aiohttp
import jsonschema
import pytest
from prometheus_client.parser import text_string_to_metric_families

from llmsched.errors import InvalidInput
from llmsched.model.latency import GENERIC_7B, LatencyCurve, latency_curve
from llmsched.runtime.emulator import (
    EmulatedEngine,
    EmulatorSettings,
    emulated,
    read_latency_curve,
    serve_emulators,
)
from llmsched.runtime.emulator.__main__ import main
from llmsched.runtime.emulator.schema import SchemaSampler
from llmsched.runtime.engine import CompletionRequest, EngineClient

INSTANT = latency_curve("instant")
#: a token a millisecond and 100,000 prompt tokens a second, whatever the batch
QUICK = LatencyCurve("quick", 100_000.0, ((1, 0.001),))
#: for requests that must still be running when the test is over: a day a token
ENDLESS = LatencyCurve("endless", 100_000.0, ((1, 86_400.0),))


@pytest.fixture
async def http() -> AsyncIterator[aiohttp.ClientSession]:
    async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=20)) as session:
        yield session


async def ask(http: aiohttp.ClientSession, url: str, path: str = "/v1/completions", **body: Any) -> tuple[int, Any]:
    async with http.post(url + path, json=body) as response:
        return response.status, await response.json()


async def stream(
    http: aiohttp.ClientSession, url: str, path: str = "/v1/completions", **body: Any
) -> list[dict[str, Any]]:
    """The events of a stream that must end with [DONE]."""
    async with http.post(url + path, json={**body, "stream": True}) as response:
        assert response.status == 200
        assert response.content_type == "text/event-stream"
        events = [line async for line in response.content if line.strip()]
    assert all(event.startswith(b"data: ") for event in events)
    assert events.pop() == b"data: [DONE]\n"
    return [json.loads(event.removeprefix(b"data: ")) for event in events]


async def scrape(http: aiohttp.ClientSession, url: str) -> dict[str, float]:
    """Samples by name; those with a reason or a bucket as name/value."""
    async with http.get(url + "/metrics") as response:
        page = await response.text()
    samples: dict[str, float] = {}
    for family in text_string_to_metric_families(page):
        for sample in family.samples:
            labels = dict(sample.labels)
            assert labels.pop("model_name") == "emulated"
            assert labels.pop("engine") == "0"
            samples["/".join([sample.name, *labels.values()])] = sample.value
    return samples


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(10):
        while not condition():  # noqa: ASYNC110 - what is waited for happens inside the engine
            await asyncio.sleep(0.001)


async def test_an_engine_introduces_itself(http: aiohttp.ClientSession) -> None:
    async with emulated(model="tiny", max_model_len=4096) as engine:
        async with http.get(engine.url + "/health") as response:
            assert (response.status, await response.read()) == (200, b"")
        async with http.get(engine.url + "/version") as response:
            assert (await response.json())["version"].startswith("0.")
        async with http.get(engine.url + "/v1/models") as response:
            models = await response.json()
        assert models["object"] == "list"
        assert [(card["id"], card["object"], card["max_model_len"]) for card in models["data"]] == [
            ("tiny", "model", 4096)
        ]
        async with http.get(engine.url + "/nothing") as response:
            assert (response.status, (await response.json())["error"]["code"]) == (404, 404)


async def test_our_client_finds_out_all_it_needs() -> None:
    async with emulated(latency=INSTANT, max_batch=7, max_model_len=500, scheduling_policy="fcfs") as engine:
        client = EngineClient(engine.url)
        info = await client.discover()
        assert (info.models, info.slots, info.max_model_len, info.priority) == (("emulated",), 7, 500, False)
        wanted = CompletionRequest(prompt=[1] * 30, max_tokens=50, min_tokens=50, ignore_eos=True)
        got = await client.complete(wanted)
        assert (got.prompt_tokens, got.output_tokens, got.finish_reason) == (30, 50, "length")
        await client.aclose()


async def test_a_recorded_call_is_executed_to_the_token(http: aiohttp.ClientSession) -> None:
    async with emulated(latency=INSTANT) as engine:
        status, reply = await ask(
            http,
            engine.url,
            model="emulated",
            prompt=list(range(700)),
            max_tokens=123,
            min_tokens=123,
            ignore_eos=True,
        )
        assert status == 200
        assert reply["object"] == "text_completion"
        assert reply["id"].startswith("cmpl-")
        assert reply["model"] == "emulated"
        assert reply["usage"] == {
            "prompt_tokens": 700,
            "completion_tokens": 123,
            "total_tokens": 823,
            "prompt_tokens_details": None,
        }
        [choice] = reply["choices"]
        assert choice["finish_reason"] == "length"
        assert len(choice["text"].split()) == 123
        samples = await scrape(http, engine.url)
        assert samples["vllm:prompt_tokens_total"] == 700
        assert samples["vllm:generation_tokens_total"] == 123
        assert samples["vllm:request_success_total/length"] == 1
        assert samples["vllm:request_success_total/abort"] == 0
        assert samples["vllm:e2e_request_latency_seconds_count"] == 1


async def test_prompts_may_be_text_ids_or_a_list_of_one(http: aiohttp.ClientSession) -> None:
    async with emulated(latency=INSTANT) as engine:

        async def prompt_tokens(prompt: Any) -> int:
            status, reply = await ask(http, engine.url, prompt=prompt)
            assert status == 200, reply
            return int(reply["usage"]["prompt_tokens"])

        text = "forty characters make ten tokens, always"
        assert await prompt_tokens(text) == await prompt_tokens([text]) == 10
        assert await prompt_tokens([5] * 10) == await prompt_tokens([[5] * 10]) == 10
        status, found = await ask(http, engine.url, "/tokenize", prompt=text)
        assert (status, found["count"], len(found["tokens"]), found["max_model_len"]) == (200, 10, 10, 32_768)


async def test_output_length_is_drawn_from_the_prompt_and_the_seed(http: aiohttp.ClientSession) -> None:
    async def lengths(seed: int) -> list[int]:
        async with emulated(latency=INSTANT, seed=seed) as engine:
            replies = [
                await ask(http, engine.url, prompt=f"question {number}", min_tokens=20, max_tokens=200)
                for number in range(20)
            ]
        for _, reply in replies:
            tokens = reply["usage"]["completion_tokens"]
            assert reply["choices"][0]["finish_reason"] == "stop" or tokens == 200
        return [reply["usage"]["completion_tokens"] for _, reply in replies]

    first = await lengths(1)
    assert first == await lengths(1)
    assert first != await lengths(2)
    assert len(set(first)) > 5  # of 20, a few of which end where 1 to 1024 tokens meet the most or the least
    assert all(20 <= tokens <= 200 for tokens in first)


@pytest.mark.parametrize("curve", [INSTANT, QUICK], ids=["instant", "quick"])
async def test_a_stream_says_what_the_whole_reply_says(http: aiohttp.ClientSession, curve: LatencyCurve) -> None:
    async with emulated(latency=curve) as engine:
        body: dict[str, Any] = {"prompt": "tell me a story", "max_tokens": 150, "ignore_eos": True}
        _, whole = await ask(http, engine.url, **body)
        *events, last = await stream(http, engine.url, **body, stream_options={"include_usage": True})
        assert last["choices"] == []
        assert last["usage"] == {"prompt_tokens": 3, "completion_tokens": 150, "total_tokens": 153}
        assert len({event["id"] for event in events}) == 1
        assert "".join(event["choices"][0]["text"] for event in events) == whole["choices"][0]["text"]
        reasons = [event["choices"][0]["finish_reason"] for event in events]
        assert reasons == [None] * (len(events) - 1) + ["length"]
        # 0.15 s at most every 20 ms, and the last one.
        assert len(events) <= (1 if curve is INSTANT else 9)
        assert len(await stream(http, engine.url, **body)) <= (1 if curve is INSTANT else 9)


@pytest.mark.parametrize("curve", [INSTANT, QUICK], ids=["instant", "quick"])
async def test_chat_speaks_in_messages(http: aiohttp.ClientSession, curve: LatencyCurve) -> None:
    async with emulated(latency=curve) as engine:
        body: dict[str, Any] = {
            "messages": [
                {"role": "system", "content": "be brief"},
                {"role": "user", "content": [{"type": "text", "text": "hello there"}]},
            ],
            "max_completion_tokens": 30,
        }
        status, whole = await ask(http, engine.url, "/v1/chat/completions", **body)
        assert (status, whole["object"]) == (200, "chat.completion")
        message = whole["choices"][0]["message"]
        assert message["role"] == "assistant"
        assert whole["usage"]["prompt_tokens"] == 19 // 4 + 2 * 4
        first, *events = await stream(http, engine.url, "/v1/chat/completions", **body)
        assert first["object"] == "chat.completion.chunk"
        assert first["choices"][0]["delta"] == {"role": "assistant", "content": ""}
        assert "".join(event["choices"][0]["delta"]["content"] for event in events) == message["content"]
        assert events[-1]["choices"][0]["finish_reason"] == whole["choices"][0]["finish_reason"]


async def test_continuous_usage_counts_up_to_the_total(http: aiohttp.ClientSession) -> None:
    async with emulated(latency=QUICK) as engine:
        options = {"include_usage": True, "continuous_usage_stats": True}
        events = await stream(http, engine.url, prompt="x", max_tokens=60, ignore_eos=True, stream_options=options)
        counts = [event["usage"]["completion_tokens"] for event in events]
        assert counts == sorted(counts)
        assert counts[-2:] == [60, 60]


async def test_request_ids_are_kept(http: aiohttp.ClientSession) -> None:
    async with emulated(latency=INSTANT) as engine:
        _, reply = await ask(http, engine.url, prompt="x", request_id="mine")
        assert reply["id"] == "cmpl-mine"
        headers = {"X-Request-Id": "yours"}
        async with http.post(
            engine.url + "/v1/chat/completions",
            json={"messages": [{"role": "user", "content": "x"}], "max_tokens": 3},
            headers=headers,
        ) as response:
            assert (await response.json())["id"] == "chatcmpl-yours"


async def test_time_passes_as_the_latency_curve_says_divided_by_speed(http: aiohttp.ClientSession) -> None:
    async with emulated(latency=GENERIC_7B, speed=10) as engine:
        loop = asyncio.get_running_loop()
        begun = loop.time()
        await ask(http, engine.url, prompt=[1] * 800, max_tokens=50, ignore_eos=True)
        waited = loop.time() - begun
        # 800 / 8000 + 50 x 0.010 = 0.6 s, ten times faster. The client may be late, but never early.
        assert waited >= 0.06
        samples = await scrape(http, engine.url)
        assert samples["vllm:e2e_request_latency_seconds_sum"] == pytest.approx(0.06)
        assert samples["vllm:time_to_first_token_seconds_sum"] == pytest.approx(0.01)
        assert samples["vllm:request_decode_time_seconds_sum"] == pytest.approx(0.05)


async def prefill(http: aiohttp.ClientSession, url: str, **body: Any) -> tuple[Any, int]:
    """Seconds of prefill of one more completion, and how much of its prompt was cached."""
    before = (await scrape(http, url))["vllm:request_prefill_time_seconds_sum"]
    status, reply = await ask(http, url, **{"max_tokens": 1, "ignore_eos": True, **body})
    assert status == 200, reply
    after = (await scrape(http, url))["vllm:request_prefill_time_seconds_sum"]
    return after - before, (reply["usage"].get("prompt_tokens_details") or {}).get("cached_tokens", 0)


async def test_prompts_that_begin_alike_share_their_prefill(http: aiohttp.ClientSession) -> None:
    async with emulated(latency=QUICK) as engine:
        prompt = list(range(1000))
        assert await prefill(http, engine.url, prompt=prompt) == (pytest.approx(0.01), 0)
        # 62 whole blocks of 16 tokens; the other 8 are read again.
        assert await prefill(http, engine.url, prompt=prompt) == (pytest.approx(0.00008), 992)
        # The last token of a prompt is always read, for the first one of the answer.
        assert await prefill(http, engine.url, prompt=prompt[:496]) == (pytest.approx(0.00016), 480)
        # 5 tokens in 31 blocks, then others.
        assert await prefill(http, engine.url, prompt=[*prompt[:498], 7, 7, 7]) == (pytest.approx(0.00005), 496)
        assert await prefill(http, engine.url, prompt=[7, *prompt]) == (pytest.approx(0.01001), 0)
        samples = await scrape(http, engine.url)
        assert samples["vllm:prefix_cache_queries_total"] == 1000 + 1000 + 496 + 501 + 1001
        assert samples["vllm:prefix_cache_hits_total"] == 992 + 480 + 496
        assert samples["vllm:prompt_tokens_total"] == samples["vllm:prefix_cache_queries_total"]


async def test_a_sequence_that_goes_on_reads_only_what_is_new(http: aiohttp.ClientSession) -> None:
    async with emulated(latency=QUICK) as engine:
        body: dict[str, Any] = {"prompt": [5] * 100, "max_tokens": 61, "ignore_eos": True, "return_token_ids": True}
        _, reply = await ask(http, engine.url, **body)
        ids = reply["choices"][0]["token_ids"]
        assert len(ids) == 61
        # 100 + 60 tokens were computed, 10 whole blocks: the last one of the answer is read now.
        assert await prefill(http, engine.url, prompt=[5] * 100 + ids) == (pytest.approx(0.00001), 160)
        events = await stream(http, engine.url, **body)
        assert [id for event in events for id in event["choices"][0]["token_ids"]] == ids


async def test_a_chat_that_is_continued_says_the_rest(http: aiohttp.ClientSession) -> None:
    async with emulated(latency=INSTANT) as engine:
        path, asked = "/v1/chat/completions", [{"role": "user", "content": "tell me a long story"}]
        body: dict[str, Any] = {"messages": asked, "min_tokens": 40}
        _, whole = await ask(http, engine.url, path, **body)
        said, rest, usages = "", "length", []
        while rest == "length":
            going_on: dict[str, Any] = {}
            if said:
                going_on = {"add_generation_prompt": False, "continue_final_message": True}
            messages = asked + ([{"role": "assistant", "content": said}] if said else [])
            left = max(0, 40 - len(said) // 4)
            more = {"messages": messages, "max_tokens": 16, "min_tokens": min(16, left)} | going_on
            _, reply = await ask(http, engine.url, path, **more)
            said += reply["choices"][0]["message"]["content"]
            rest = reply["choices"][0]["finish_reason"]
            usages.append(reply["usage"])
        assert said == whole["choices"][0]["message"]["content"]
        assert whole["usage"]["completion_tokens"] == sum(usage["completion_tokens"] for usage in usages) >= 40
        prompt = whole["usage"]["prompt_tokens"]
        assert [usage["prompt_tokens"] for usage in usages] == [prompt + 16 * k for k in range(len(usages))]
        refused = {"messages": [*asked, {"role": "assistant", "content": "x"}], "continue_final_message": True}
        status, reply = await ask(http, engine.url, path, **refused)
        assert (status, "Cannot set both" in reply["error"]["message"]) == (400, True)


async def test_the_prefix_cache_can_be_small_or_off(http: aiohttp.ClientSession) -> None:
    first, second = [1] * 65, [2] * 65  # four blocks and a token each
    async with emulated(latency=QUICK, cache_blocks=6) as engine:
        await prefill(http, engine.url, prompt=first)
        await prefill(http, engine.url, prompt=second)
        assert len(engine.cache) == 6
        # Two blocks of the first had to go, those at its end.
        assert await prefill(http, engine.url, prompt=first) == (pytest.approx(0.00033), 32)
    async with emulated(latency=QUICK, prefix_cache=False) as engine:
        for _ in range(2):
            assert await prefill(http, engine.url, prompt=first) == (pytest.approx(0.00065), 0)
        assert (await scrape(http, engine.url))["vllm:prefix_cache_queries_total"] == 0


async def test_a_batch_decodes_slower_than_one(http: aiohttp.ClientSession) -> None:
    slow = LatencyCurve("slow", 1e9, ((1, 0.001), (4, 0.004)))
    async with emulated(latency=slow) as engine:
        calls = [ask(http, engine.url, prompt=[1], max_tokens=100, ignore_eos=True) for _ in range(4)]
        await asyncio.gather(*calls)
        samples = await scrape(http, engine.url)
        # Alone 0.1 s each; together 0.4 s each, less where they did not overlap.
        assert 0.41 < samples["vllm:request_decode_time_seconds_sum"] <= 1.6


async def test_the_lowest_priority_number_goes_first(http: aiohttp.ClientSession) -> None:
    async with emulated(latency=ENDLESS, max_batch=1) as engine:
        calls = {}
        for number, priority in enumerate((0, 5, -1, 3)):
            # As many prompt tokens as 10 + priority: they show who is being served.
            prompt = [1] * (10 + priority)
            calls[priority] = asyncio.create_task(ask(http, engine.url, prompt=prompt, priority=priority))
            await until(lambda: engine.server.running + engine.server.waiting == len(calls))
            assert (engine.server.running, engine.server.waiting) == (1, number)
        order: list[int] = []
        read = 0.0
        while len(order) < len(calls):
            samples = await scrape(http, engine.url)
            assert samples["vllm:num_requests_running"] == 1
            assert samples["vllm:num_requests_waiting"] == 3 - len(order)
            if samples["vllm:prompt_tokens_total"] > read:  # its prefill, 0.1 ms, is over
                order.append(int(samples["vllm:prompt_tokens_total"] - read) - 10)
                read = samples["vllm:prompt_tokens_total"]
                calls[order[-1]].cancel()
                await until(lambda: engine.requests["abort"] == len(order))
        assert order == [0, -1, 3, 5]
        await asyncio.gather(*calls.values(), return_exceptions=True)


async def test_without_priority_scheduling_a_priority_is_refused(http: aiohttp.ClientSession) -> None:
    async with emulated(latency=INSTANT, scheduling_policy="fcfs") as engine:
        status, reply = await ask(http, engine.url, prompt="x", priority=7)
        assert status == 400
        assert reply["error"] == {
            "message": "Got priority 7 but Priority scheduling is not enabled.",
            "type": "BadRequestError",
            "param": "priority",
            "code": 400,
        }
        status, _ = await ask(http, engine.url, prompt="x", priority=0)
        assert status == 200


@pytest.mark.parametrize(
    ("body", "status", "sentence"),
    [
        ({"prompt": "x", "model": "other"}, 404, "The model `other` does not exist."),
        (
            {"prompt": [1] * 101},
            400,
            "This model's maximum context length is 100 tokens. However, your prompt contains 101 input",
        ),
        ({"prompt": [1] * 100}, 400, "max_tokens must be at least 1, got 0"),
        ({"prompt": "x", "max_tokens": 101}, 400, "max_tokens=101 cannot be greater than max_model_len=100"),
        ({"prompt": "x", "max_tokens": 0}, 400, "max_tokens must be at least 1"),
        ({"prompt": [1] * 90, "max_tokens": 20, "min_tokens": 20}, 400, "equal to max_tokens=10, got 20"),
        ({"prompt": "x", "min_tokens": -1}, 400, "min_tokens must be greater than or equal to 0"),
        ({"prompt": []}, 400, "prompt cannot be empty"),
        ({"prompt": [1, "a"]}, 400, "prompt must be text or a list of token ids"),
        ({"prompt": [1, True]}, 400, "prompt must be text or a list of token ids"),
        ({"prompt": [-1]}, 400, "a token id must not be negative"),
        ({"prompt": ["a", "b"]}, 400, "one prompt per request, not 2"),
        ({}, 400, "prompt must be text or a list of token ids"),
        ({"prompt": "x", "n": 2}, 400, "does not support n=2"),
        ({"prompt": "x", "logprobs": 3}, 400, "does not support logprobs=3"),
        ({"prompt": "x", "max_tokens": "many"}, 400, "max_tokens must be an integer, not 'many'"),
        ({"prompt": "x", "stream": "yes"}, 400, "stream must be true or false"),
        ({"prompt": "x", "model": 3}, 400, "model must be text"),
        ({"prompt": "x", "stream_options": {}}, 400, "only be defined when `stream=True`"),
        ({"prompt": "x", "structured_outputs": {"json": {}}}, 400, "in response_format"),
        ({"prompt": "x", "response_format": {"type": "xml"}}, 400, "must be of type text"),
        ({"prompt": "x", "response_format": {"type": "json_schema"}}, 400, "must be provided"),
    ],
)
async def test_bad_requests_get_openai_errors(
    http: aiohttp.ClientSession, body: dict[str, Any], status: int, sentence: str
) -> None:
    async with emulated(latency=INSTANT, max_model_len=100) as engine:
        got, reply = await ask(http, engine.url, **body)
        assert got == status
        assert reply["error"].keys() == {"message", "type", "param", "code"}
        assert reply["error"]["code"] == status
        assert sentence in reply["error"]["message"]
        assert engine.server.running == 0


@pytest.mark.parametrize("body", [b"", b"{", b"[1]", b"\xff\xfe"])
async def test_a_body_that_is_no_json_object_is_refused(http: aiohttp.ClientSession, body: bytes) -> None:
    async with emulated(latency=INSTANT) as engine, http.post(engine.url + "/v1/completions", data=body) as got:
        assert got.status == 400
        assert "validation error" in (await got.json())["error"]["message"]


@pytest.mark.parametrize("messages", [None, [], "hello", ["hello"], [{"content": [{"type": "image"}]}]])
async def test_bad_messages_are_refused(http: aiohttp.ClientSession, messages: Any) -> None:
    async with emulated(latency=INSTANT) as engine:
        status, reply = await ask(http, engine.url, "/v1/chat/completions", messages=messages)
        assert (status, reply["error"]["param"]) == (400, "messages")


async def test_max_tokens_is_cut_to_the_room_in_the_context(http: aiohttp.ClientSession) -> None:
    async with emulated(latency=INSTANT, max_model_len=100) as engine:
        _, reply = await ask(http, engine.url, prompt=[1] * 90, max_tokens=50, ignore_eos=True)
        assert reply["usage"]["completion_tokens"] == 10


@pytest.mark.parametrize("streamed", [False, True])
async def test_a_client_that_leaves_aborts_its_request(http: aiohttp.ClientSession, streamed: bool) -> None:
    async with emulated(latency=ENDLESS, max_batch=1) as engine:
        body: dict[str, Any] = {"prompt": [1] * 10, "max_tokens": 1000, "ignore_eos": True, "stream": streamed}
        tasks = [asyncio.create_task(ask(http, engine.url, **body)) for _ in range(2)]
        await until(lambda: engine.server.batch == 1 and engine.server.waiting == 1)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await until(lambda: engine.requests["abort"] == 2)
        assert (engine.server.running, engine.server.waiting) == (0, 0)
        samples = await scrape(http, engine.url)
        assert samples["vllm:request_success_total/abort"] == 2
        assert samples["vllm:request_success_total/length"] == 0
        # A day a token: none was made. Only one of the two got as far as reading its prompt.
        assert samples["vllm:generation_tokens_total"] == 0
        assert samples["vllm:prompt_tokens_total"] == 10
        assert samples["vllm:kv_cache_usage_perc"] == 0


async def test_tokens_are_counted_while_a_request_runs_and_kept_when_it_is_aborted(
    http: aiohttp.ClientSession,
) -> None:
    async with emulated(latency=QUICK, max_batch=2) as engine:
        body: dict[str, Any] = {"prompt": [1], "max_tokens": 30_000, "ignore_eos": True}
        task = asyncio.create_task(ask(http, engine.url, **body))
        running = 0.0
        async with asyncio.timeout(10):
            while running < 20:
                samples = await scrape(http, engine.url)
                running = samples["vllm:generation_tokens_total"]
        assert 0 < samples["vllm:kv_cache_usage_perc"] < 0.5
        task.cancel()
        await until(lambda: engine.requests["abort"] == 1)
        assert (await scrape(http, engine.url))["vllm:generation_tokens_total"] >= running


async def read_into(got: bytearray, response: aiohttp.ClientResponse) -> None:
    async for data in response.content.iter_any():
        got += data


PLAN = {
    "type": "object",
    "properties": {
        "steps": {
            "type": "array",
            "minItems": 2,
            "maxItems": 4,
            "items": {
                "type": "object",
                "properties": {
                    "tool": {"enum": ["search", "code", "image"]},
                    "after": {"type": "array", "items": {"type": "integer", "minimum": 0, "maximum": 3}},
                    "note": {"type": "string", "maxLength": 12},
                },
                "required": ["tool", "after"],
                "additionalProperties": False,
            },
        },
        "done": {"type": "boolean"},
    },
    "required": ["steps", "done"],
    "additionalProperties": False,
}
TREE = {
    "$ref": "#/$defs/node",
    "$defs": {
        "node": {
            "type": "object",
            "properties": {
                "value": {"type": ["integer", "null"]},
                "children": {"type": "array", "items": {"$ref": "#/$defs/node"}, "uniqueItems": True},
                "twin": {"anyOf": [{"$ref": "#/$defs/node"}, {"type": "null"}]},
            },
            "required": ["value", "children", "twin"],
        }
    },
}
SCHEMAS: list[Any] = [
    PLAN,
    TREE,
    True,
    {},
    {"const": {"a": 1}},
    {"type": "null"},
    {"type": "integer", "exclusiveMinimum": 3, "maximum": 5},
    {"type": "integer", "minimum": -7, "maximum": -2, "multipleOf": 3},
    {"type": "number", "minimum": 0, "maximum": 1},
    {"type": "number", "exclusiveMinimum": 0.25, "exclusiveMaximum": 0.26},
    {"type": "integer", "maximum": -1000},
    {"type": "string", "minLength": 40, "maxLength": 41},
    {"type": "string", "format": "date-time"},
    {"type": "array", "items": {"enum": [1, 2, 3]}, "uniqueItems": True, "minItems": 3},
    {"type": "array", "prefixItems": [{"type": "string"}, {"type": "integer"}], "items": False},
    {"oneOf": [{"type": "string"}, {"type": "object", "required": ["x"]}]},
    {
        "properties": {"a": {"type": "integer"}},
        "anyOf": [{"required": ["a"]}, {"required": ["b"], "properties": {"b": {"const": 1}}}],
    },
    {
        "allOf": [{"$ref": "#/$defs/a"}, {"$ref": "#/$defs/b"}],
        "$defs": {
            "a": {"type": "object", "properties": {"a": {"type": "string"}}, "required": ["a"]},
            "b": {"properties": {"b": {"minimum": 5}}, "required": ["b"]},
        },
    },
    {"type": "object", "minProperties": 3, "additionalProperties": {"type": "boolean"}},
    {"type": "object", "properties": {"a": {}, "b": {}, "c": {}}, "minProperties": 2, "maxProperties": 2},
]


@pytest.mark.parametrize("schema", SCHEMAS, ids=range(len(SCHEMAS)))
def test_sampled_values_are_valid(schema: Any) -> None:
    validator = jsonschema.Draft202012Validator(schema)
    for seed in range(60):
        validator.validate(SchemaSampler(schema, Random(seed)).sample(plain=seed % 3 == 0))


@pytest.mark.parametrize(
    ("schema", "sentence"),
    [
        ({"type": "string", "pattern": "a+"}, "keyword 'pattern'"),
        ({"type": "strnig"}, "not a JSON type"),
        ({"$ref": "#/$defs/gone"}, "points nowhere"),
        ({"$ref": "http://elsewhere/"}, "into the schema itself"),
        ({"$ref": "#"}, "leads back to itself"),
        ({"enum": []}, "enum must be a list that is not empty"),
        ({"type": "integer", "minimum": 2, "maximum": 1}, "leaves no integer"),
        ({"type": "number", "minimum": 2, "maximum": 1}, "leaves no number"),
        ({"type": "array", "minItems": 2, "maxItems": 1}, "at least 2 and at most 1 items"),
        ({"type": "array", "items": {"const": 1}, "uniqueItems": True, "minItems": 2}, "different items"),
        ({"type": "object", "properties": 3}, "properties must be an object"),
        ({"type": "object", "required": "a"}, "required must be a list of names"),
        ({"type": "object", "required": ["a"], "maxProperties": 0}, "contradict"),
        ({"items": 3, "minItems": 1}, "a schema is an object or true"),
        (
            {
                "anyOf": [{"$ref": "#/$defs/a"}],
                "$defs": {"a": {"required": ["a"], "properties": {"a": {"$ref": "#/$defs/a"}}}},
            },
            "every branch contains itself",
        ),
    ],
)
def test_schemas_that_cannot_be_met_are_refused(schema: Any, sentence: str) -> None:
    with pytest.raises(InvalidInput, match=sentence):
        SchemaSampler(schema, Random(0)).sample()


async def test_structured_output_is_valid_and_counted(http: aiohttp.ClientSession) -> None:
    async with emulated(latency=INSTANT) as engine:
        wanted = {"type": "json_schema", "json_schema": {"name": "plan", "schema": PLAN}}
        messages = [{"role": "user", "content": "plan it"}]
        body: dict[str, Any] = {"messages": messages, "response_format": wanted, "max_tokens": 400}
        status, reply = await ask(http, engine.url, "/v1/chat/completions", **body)
        assert status == 200
        content = reply["choices"][0]["message"]["content"]
        jsonschema.validate(json.loads(content), PLAN)
        assert reply["usage"]["completion_tokens"] == len(content) / 4
        assert reply["choices"][0]["finish_reason"] == "stop"
        events = await stream(http, engine.url, "/v1/chat/completions", **body)
        assert "".join(event["choices"][0]["delta"]["content"] for event in events) == content
        padded: dict[str, Any] = {**body, "min_tokens": 400, "ignore_eos": True}
        _, reply = await ask(http, engine.url, "/v1/chat/completions", **padded)
        assert reply["usage"]["completion_tokens"] == 400
        jsonschema.validate(json.loads(reply["choices"][0]["message"]["content"]), PLAN)
        _, reply = await ask(http, engine.url, prompt="x", max_tokens=100, response_format={"type": "json_object"})
        assert isinstance(json.loads(reply["choices"][0]["text"]), dict)
        _, reply = await ask(http, engine.url, prompt="x", max_tokens=3, response_format=wanted)
        assert reply["choices"][0]["finish_reason"] == "length"
        assert reply["usage"]["completion_tokens"] == 3
        wanted["json_schema"]["schema"] = {"pattern": "a"}  # type: ignore[index]
        status, reply = await ask(http, engine.url, prompt="x", response_format=wanted)
        assert (status, reply["error"]["param"]) == (400, "response_format")


async def test_an_engine_that_hangs_answers_nobody_until_the_fault_is_over(
    http: aiohttp.ClientSession,
) -> None:
    async with emulated(latency=INSTANT) as engine:
        engine.fault("hang", count=1)
        task = asyncio.create_task(ask(http, engine.url, prompt="x"))
        await until(lambda: engine.faults.current is None)
        status, _ = await ask(http, engine.url, prompt="x")  # the next one is served
        assert status == 200
        assert not task.done()
        task.cancel()
        engine.fault("hang", scope="all")
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.05), http.get(engine.url + "/health"):
                pass
        engine.clear()
        async with http.get(engine.url + "/health") as response:
            assert response.status == 200


async def test_faults_are_set_over_http(http: aiohttp.ClientSession) -> None:
    async with emulated(latency=INSTANT) as engine:
        status, fault = await ask(http, engine.url, "/emulator/fault", kind="http_500", count=2)
        assert (status, fault["kind"], fault["count"]) == (200, "http_500", 2)
        answers = [await ask(http, engine.url, prompt="x") for _ in range(3)]
        assert [status for status, _ in answers] == [500, 500, 200]
        assert answers[0][1]["error"]["type"] == "InternalServerError"
        await ask(http, engine.url, "/emulator/fault", kind="http_500", scope="all")
        async with http.get(engine.url + "/health") as response:
            assert response.status == 500
        async with http.delete(engine.url + "/emulator/fault") as response:
            assert response.status == 204
        async with http.get(engine.url + "/health") as response:
            assert response.status == 200
        for body in ({}, {"kind": "fire"}, {"kind": "hang", "count": 0}, {"kind": "hang", "delay": 1}):
            status, reply = await ask(http, engine.url, "/emulator/fault", **body)
            assert status == 400, reply


async def test_garbage_is_not_json(http: aiohttp.ClientSession) -> None:
    async with emulated(latency=INSTANT) as engine:
        engine.fault("garbage")
        for streamed in (False, True):
            body: dict[str, Any] = {"prompt": "x", "stream": streamed}
            async with http.post(engine.url + "/v1/completions", json=body) as response:
                assert response.status == 200
                page = (await response.read()).removeprefix(b"data: ")
            with pytest.raises(json.JSONDecodeError):
                json.loads(page)


@pytest.mark.parametrize("curve", [INSTANT, QUICK], ids=["instant", "quick"])
@pytest.mark.parametrize("streamed", [False, True])
async def test_half_a_stream_breaks_off(http: aiohttp.ClientSession, curve: LatencyCurve, streamed: bool) -> None:
    async with emulated(latency=curve) as engine:
        engine.fault("half_stream", count=1)
        body: dict[str, Any] = {"prompt": "x", "max_tokens": 100, "ignore_eos": True, "stream": streamed}
        got = bytearray()
        async with http.post(engine.url + "/v1/completions", json=body) as response:
            assert response.status == 200
            with pytest.raises(aiohttp.ClientPayloadError):
                await read_into(got, response)
        assert got
        assert b"[DONE]" not in got
        await until(lambda: sum(engine.requests.values()) == 1)
        status, _ = await ask(http, engine.url, **{**body, "stream": False})
        assert status == 200


async def test_a_stalled_stream_falls_silent_and_a_slow_one_begins_late(
    http: aiohttp.ClientSession,
) -> None:
    async with emulated(latency=INSTANT) as engine:
        body: dict[str, Any] = {"prompt": "x", "max_tokens": 100, "ignore_eos": True, "stream": True}
        engine.fault("stall", count=1)
        async with http.post(engine.url + "/v1/completions", json=body) as response:
            assert await response.content.readline()
            got = bytearray()
            with pytest.raises(TimeoutError):
                await asyncio.wait_for(read_into(got, response), 0.05)
            assert b"[DONE]" not in got
            response.close()
        loop = asyncio.get_running_loop()
        for streamed in (False, True):
            engine.fault("slow_first_token", count=1, delay_s=0.05)
            begun = loop.time()
            body["stream"] = streamed
            async with http.post(engine.url + "/v1/completions", json=body) as response:
                assert b"length" in await response.read()
            assert loop.time() - begun >= 0.05


async def test_an_api_key_guards_what_can_be_used(http: aiohttp.ClientSession) -> None:
    async with emulated(latency=INSTANT, api_key="open sesame") as engine:
        url = engine.url + "/v1/completions"
        async with http.get(engine.url + "/health") as response:
            assert response.status == 200
        for headers in ({}, {"Authorization": "Bearer wrong"}, {"Authorization": "Bearer \xe9"}):
            async with http.post(url, json={"prompt": "x"}, headers=headers) as response:
                assert (response.status, await response.json()) == (401, {"error": "Unauthorized"})
        headers = {"Authorization": "Bearer open sesame"}
        async with http.post(url, json={"prompt": "x"}, headers=headers) as response:
            assert response.status == 200


async def test_an_engine_can_die_and_come_back_on_its_port(http: aiohttp.ClientSession) -> None:
    async with emulated(latency=ENDLESS) as engine:
        port = int(engine.url.rpartition(":")[2])
        task = asyncio.create_task(ask(http, engine.url, prompt="x"))
        await until(lambda: engine.server.running == 1)
        await engine.stop()
        with pytest.raises(aiohttp.ClientError):
            await task
        assert engine.requests["abort"] == 1
        with pytest.raises(aiohttp.ClientConnectorError):
            await ask(http, engine.url, prompt="x")
        await engine.start(port=port)
        async with http.get(engine.url + "/health") as response:
            assert response.status == 200


async def test_several_engines_share_a_process(http: aiohttp.ClientSession) -> None:
    lines: list[str] = []
    stop = asyncio.Event()
    serving = asyncio.create_task(
        serve_emulators(EmulatorSettings(latency=INSTANT), engines=3, announce=lines.append, stop=stop)
    )
    await until(lambda: len(lines) == 3)
    engines = [json.loads(line) for line in lines]
    assert [(engine["model"], engine["slots"]) for engine in engines] == [("emulated", 16)] * 3
    assert len({engine["url"] for engine in engines}) == 3
    for engine in engines:
        status, _ = await ask(http, engine["url"], prompt="x")
        assert status == 200
    taken = int(engines[0]["url"].rpartition(":")[2])
    with pytest.raises(InvalidInput, match=f"cannot listen on 127.0.0.1 port {taken}"):
        await serve_emulators(EmulatorSettings(), port=taken)
    stop.set()
    await serving
    with pytest.raises(aiohttp.ClientConnectorError):
        await ask(http, engines[0]["url"], prompt="x")


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"max_batch": 0}, "max_batch"),
        ({"speed": 0}, "speed"),
        ({"speed": float("nan")}, "speed"),
        ({"scheduling_policy": "lifo"}, "scheduling_policy"),
        ({"max_model_len": 1}, "max_model_len"),
        ({"cache_blocks": 0}, "cache_blocks"),
        ({"model": ""}, "model"),
        ({"api_key": ""}, "api_key"),
    ],
)
def test_impossible_settings_are_refused(change: dict[str, Any], field: str) -> None:
    with pytest.raises(InvalidInput) as told:
        EmulatorSettings(**change)
    assert told.value.field == field


def test_latency_curves_are_read_by_name_or_from_a_file(tmp_path: Path) -> None:
    assert read_latency_curve("generic-7b") is GENERIC_7B
    path = tmp_path / "curve.json"
    path.write_text(json.dumps(QUICK.to_json()))
    assert read_latency_curve(str(path)) == QUICK
    with pytest.raises(InvalidInput, match="known: generic-7b, llama2-7b-h800, instant"):
        read_latency_curve("generic-70b")
    with pytest.raises(InvalidInput, match="there is no latency file"):
        read_latency_curve(str(tmp_path / "gone.json"))
    path.write_text("{")
    with pytest.raises(InvalidInput, match="is not JSON"):
        read_latency_curve(str(path))


@asynccontextmanager
async def child(*options: str) -> AsyncIterator[asyncio.subprocess.Process]:
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-m",
        "llmsched.runtime.emulator",
        *options,
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    try:
        yield process
    finally:
        if process.returncode is None:
            process.kill()
            await process.communicate()


async def test_a_child_process_serves_until_it_is_told_to_stop(http: aiohttp.ClientSession) -> None:
    async with child("--port", "0", "--engines", "2", "--max-batch", "3", "--no-prefix-cache") as process:
        assert process.stdout is not None
        engines = [json.loads(await process.stdout.readline()) for _ in range(2)]
        assert [engine["slots"] for engine in engines] == [3, 3]
        url = engines[1]["url"]
        task = asyncio.create_task(ask(http, url, prompt="x", max_tokens=10_000, ignore_eos=True))
        async with asyncio.timeout(10):
            while (await scrape(http, url))["vllm:num_requests_running"] < 1:
                pass
        process.send_signal(signal.SIGTERM)
        out, err = await asyncio.wait_for(process.communicate(), 10)
        assert (process.returncode, out, err) == (0, b"", b"")
        with pytest.raises(aiohttp.ClientError):
            await task


async def test_a_child_process_ends_with_its_standard_input() -> None:
    async with child("--port", "0", "--latency", "instant", "--exit-with-stdin", "--fault", "hang:2") as process:
        assert process.stdin is not None
        assert process.stdout is not None
        assert json.loads(await process.stdout.readline())["slots"] == 16
        process.stdin.close()
        out, err = await asyncio.wait_for(process.communicate(), 10)
        assert (process.returncode, out, err) == (0, b"", b"")


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (("--latency", "generic-8b"), "did you mean 'generic-7b'?"),
        (("--max-batch", "0"), "max_batch must be at least 1, not 0"),
        (("--engines", "0"), "engines must be at least 1, not 0"),
        (("--port", "99999"), "a port is a number from 0 to 65535, not 99999"),
        (("--api-key-env", "NO_SUCH_VARIABLE"), "the environment has no NO_SUCH_VARIABLE"),
        (("--fault", "fire"), "unknown fault 'fire'"),
    ],
)
def test_bad_options_end_with_one_sentence(
    capsys: pytest.CaptureFixture[str], options: tuple[str, ...], sentence: str
) -> None:
    assert main(list(options)) == 2
    told = capsys.readouterr()
    assert told.out == ""
    assert sentence in told.err
    assert told.err.count("\n") == 1


def test_the_engine_class_needs_no_loop_to_be_built() -> None:
    assert EmulatedEngine(EmulatorSettings()).url == ""
