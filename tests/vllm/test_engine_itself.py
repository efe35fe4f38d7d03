"""What recorded jobs and the engine client take for granted about vLLM holds on the real one."""

from __future__ import annotations

import asyncio
import json
import random
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import jsonschema
import pytest

from tests.vllm.engine import Counters, EngineFailed, RealEngine, eventually

COMPLETIONS = "/v1/completions"


@pytest.fixture
async def client(engine: RealEngine) -> AsyncIterator[httpx.AsyncClient]:
    async with httpx.AsyncClient(base_url=engine.url, timeout=120) as client:
        yield client


def recorded(prompt_tokens: int, output_tokens: int, **more: Any) -> dict[str, Any]:
    """The request for a recorded task; ids 10 to 249 are ordinary tokens of the tiny model."""
    return {
        "model": RealEngine.model,
        "prompt": [random.randrange(10, 250) for _ in range(prompt_tokens)],
        "max_tokens": output_tokens,
        "min_tokens": output_tokens,
        "ignore_eos": True,
        **more,
    }


async def stream(client: httpx.AsyncClient, body: dict[str, Any]) -> list[str]:
    """The data of the events of a streamed completion."""
    body = {**body, "stream": True, "stream_options": {"include_usage": True}}
    async with client.stream("POST", COMPLETIONS, json=body) as response:
        assert response.status_code == 200
        return [line.removeprefix("data: ") async for line in response.aiter_lines() if line]


async def test_recorded_lengths_are_executed_and_counted_exactly(engine: RealEngine, client: httpx.AsyncClient) -> None:
    lengths = [(1, 1), (37, 23), (128, 60), (300, 1), (2500, 12)]
    before = engine.counters()

    answers = await asyncio.gather(*(client.post(COMPLETIONS, json=recorded(p, n)) for p, n in lengths))

    usages = [answer.json()["usage"] for answer in answers]
    assert [(u["prompt_tokens"], u["completion_tokens"]) for u in usages] == lengths
    assert {answer.json()["choices"][0]["finish_reason"] for answer in answers} == {"length"}
    assert engine.counters() - before == Counters(
        sum(p for p, _ in lengths), sum(n for _, n in lengths), {"length": len(lengths)}
    )


async def test_prompts_that_the_prefix_cache_knows_count_in_full(engine: RealEngine, client: httpx.AsyncClient) -> None:
    body = recorded(600, 2)  # four whole blocks of 128 tokens and a rest
    await client.post(COMPLETIONS, json=body)
    before, hits = engine.counters(), engine.counter("vllm:prefix_cache_hits_total")

    await client.post(COMPLETIONS, json=body)

    assert engine.counters() - before == Counters(600, 2, {"length": 1})
    assert engine.counter("vllm:prefix_cache_hits_total") - hits == 512


async def test_a_stream_ends_with_reason_usage_and_done(engine: RealEngine, client: httpx.AsyncClient) -> None:
    before = engine.counters()

    *chunks, usage, done = await stream(client, recorded(20, 9))

    assert done == "[DONE]"
    assert json.loads(usage)["choices"] == []
    assert json.loads(usage)["usage"] == {"prompt_tokens": 20, "completion_tokens": 9, "total_tokens": 29}
    reasons = [json.loads(chunk)["choices"][0]["finish_reason"] for chunk in chunks]
    assert reasons == [None] * (len(chunks) - 1) + ["length"]
    assert engine.counters() - before == Counters(20, 9, {"length": 1})


async def test_the_request_id_comes_back_in_the_answer(client: httpx.AsyncClient) -> None:
    answer = await client.post(COMPLETIONS, json=recorded(3, 1), headers={"X-Request-Id": "job-7.plan.0"})

    assert answer.json()["id"] == "cmpl-job-7.plan.0"


async def test_closing_the_connection_stops_the_request(engine: RealEngine, client: httpx.AsyncClient) -> None:
    """An abort is in the log and in what did not happen; no counter of vLLM 0.32 has it."""
    before, seen = engine.counters(), len(engine.aborted())
    body = recorded(50, 5000, stream=True)

    async with client.stream("POST", COMPLETIONS, json=body, headers={"X-Request-Id": "gone-1"}) as response:
        async for line in response.aiter_lines():
            if line:
                break
    await eventually(lambda: engine.running() == 0)

    moved = engine.counters() - before
    assert moved.prompt_tokens == 50
    assert 1 <= moved.generation_tokens < 5000
    assert moved.finished == {}
    assert engine.aborted()[seen:] == ["gone-1"]


async def test_one_request_too_many_waits_and_leaves_the_queue_when_its_client_goes(
    engine: RealEngine, client: httpx.AsyncClient
) -> None:
    before, seen = engine.counters(), len(engine.aborted())
    filling = [
        asyncio.create_task(client.post(COMPLETIONS, json=recorded(5, 5000), headers={"X-Request-Id": f"fill-{i:02}"}))
        for i in range(engine.slots)
    ]
    await eventually(lambda: engine.counter("vllm:num_requests_running") == engine.slots)
    waiting = asyncio.create_task(client.post(COMPLETIONS, json=recorded(400, 5), headers={"X-Request-Id": "waiting"}))
    await eventually(lambda: engine.counter("vllm:num_requests_waiting") == 1)

    waiting.cancel()
    await eventually(lambda: engine.counter("vllm:num_requests_waiting") == 0)
    assert engine.aborted()[seen:] == ["waiting"]
    for task in filling:
        task.cancel()
    await asyncio.gather(waiting, *filling, return_exceptions=True)
    await eventually(lambda: engine.running() == 0)

    moved = engine.counters() - before
    assert (moved.prompt_tokens, moved.finished) == (5 * engine.slots, {})  # nothing of the 400
    assert sorted(engine.aborted()[seen:]) == [*(f"fill-{i:02}" for i in range(engine.slots)), "waiting"]


async def test_waiting_requests_start_in_order_of_priority(engine: RealEngine, client: httpx.AsyncClient) -> None:
    finished: list[int] = []

    async def queued(priority: int) -> None:
        answer = await client.post(COMPLETIONS, json=recorded(5, 10, priority=priority))
        assert answer.status_code == 200
        finished.append(priority)

    filling = [asyncio.create_task(client.post(COMPLETIONS, json=recorded(5, 5000))) for _ in range(engine.slots)]
    await eventually(lambda: engine.counter("vllm:num_requests_running") == engine.slots)
    queue = [asyncio.create_task(queued(priority)) for priority in (5, -2, 3, 1)]
    await eventually(lambda: engine.counter("vllm:num_requests_waiting") == 4)
    filling[0].cancel()  # the queue drains through one slot, one at a time
    await asyncio.gather(*queue)

    assert finished == [-2, 1, 3, 5]
    for task in filling:
        task.cancel()
    await asyncio.gather(*filling, return_exceptions=True)
    await eventually(lambda: engine.running() == 0)


PLAN = {
    "type": "object",
    "properties": {
        "tools": {
            "type": "array",
            "minItems": 1,
            "maxItems": 3,
            "items": {
                "type": "object",
                "properties": {
                    "name": {"enum": ["search", "python_exec"]},
                    "after": {"type": "array", "maxItems": 2, "items": {"enum": [0, 1, 2]}},
                },
                "required": ["name", "after"],
                "additionalProperties": False,
            },
        }
    },
    "required": ["tools"],
    "additionalProperties": False,
}


@pytest.mark.parametrize(
    ("path", "prompt"),
    [
        ("/v1/chat/completions", {"messages": [{"role": "user", "content": "Which tools?"}]}),
        (COMPLETIONS, {"prompt": "Which tools?"}),
    ],
)
async def test_random_weights_write_json_that_obeys_a_schema(
    client: httpx.AsyncClient, path: str, prompt: dict[str, Any]
) -> None:
    schema = {"type": "json_schema", "json_schema": {"name": "plan", "schema": PLAN}}

    answer = await client.post(
        path, json={"model": RealEngine.model, **prompt, "max_tokens": 4000, "seed": 1, "response_format": schema}
    )

    choice = answer.json()["choices"][0]
    assert choice["finish_reason"] == "stop"
    jsonschema.validate(json.loads(choice["message"]["content"] if "message" in choice else choice["text"]), PLAN)


@pytest.mark.parametrize(
    ("body", "status", "message"),
    [
        (
            recorded(12_289, 1),
            400,
            "This model's maximum context length is 12288 tokens. However, your prompt contains at least 12289 input "
            "tokens, which exceeds this limit even without any output tokens. Please reduce the length of the input "
            "prompt. (parameter=input_tokens, value=12289)",
        ),
        (recorded(12_280, 20), 400, "min_tokens must be less than or equal to max_tokens=8, got 20."),
        (recorded(2, 1, prompt=[10, 512]), 400, "Token id 512 is out of vocabulary"),
        (recorded(0, 1), 400, "You must pass at least one prompt"),
        (recorded(2, 1, model="other"), 404, "The model `other` does not exist. Valid aliases: tiny."),
    ],
    ids=["prompt too long", "output too long", "unknown token", "empty prompt", "unknown model"],
)
async def test_impossible_requests_are_refused_with_a_reason(
    engine: RealEngine, client: httpx.AsyncClient, body: dict[str, Any], status: int, message: str
) -> None:
    before = engine.counters()

    answer = await client.post(COMPLETIONS, json=body)

    assert answer.status_code == status
    assert answer.json()["error"]["message"] == message
    assert answer.json()["error"]["code"] == status
    assert engine.counters() == before


async def test_models_tell_the_context_and_nothing_tells_the_slots(
    engine: RealEngine, client: httpx.AsyncClient
) -> None:
    (model,) = (await client.get("/v1/models")).json()["data"]

    assert (model["id"], model["max_model_len"]) == (engine.model, engine.max_model_len)
    assert "max_num_seqs" not in json.dumps(model) + (await client.get("/metrics")).text
    assert (await client.get("/server_info")).status_code == 404


def test_an_engine_that_cannot_start_fails_with_its_log(tmp_path: Path) -> None:
    python = tmp_path / "python"  # makes the model, and knows no vLLM
    python.write_text('#!/bin/sh\ncase "$1" in *.py) echo /model;; *) echo "No module named $2"; exit 1;; esac\n')
    python.chmod(0o755)
    engine = RealEngine(str(python), tmp_path / "log")

    with pytest.raises(EngineFailed, match=r"(?s)exited before it was healthy.*No module named vllm"):
        engine.start()

    assert engine.pids() == []
