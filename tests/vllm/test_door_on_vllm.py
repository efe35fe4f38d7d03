"""The OpenAI-compatible door in front of a real vLLM: what the engine says comes through, and is counted."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import openai
import pytest
from openai.types.chat import ChatCompletionMessageParam

from tests.integration.service import RunningService, running_service
from tests.vllm.checks import assert_idle
from tests.vllm.engine import RealEngine, eventually

ASKED: list[ChatCompletionMessageParam] = [{"role": "user", "content": "Why is the sea salty?"}]


@pytest.fixture
async def service(engine: RealEngine, tmp_path: Path) -> AsyncIterator[RunningService]:
    async with running_service(tmp_path, engines=engine.url, observed_idle=0.2) as service:
        yield service


async def test_an_agents_calls_are_one_job_with_the_tokens_that_vllm_counts(
    engine: RealEngine, service: RunningService
) -> None:
    before = engine.counters()
    group = {"x-llmsched-job": "walk", "x-llmsched-application": "walker"}

    async with openai.AsyncOpenAI(
        base_url=f"{service.url}/v1", api_key="none", default_headers=group, max_retries=0
    ) as client:
        assert [model.id async for model in client.models.list()] == ["llmsched", "llm", RealEngine.model]
        whole = await client.chat.completions.create(
            model=RealEngine.model, messages=ASKED, max_tokens=9, logprobs=True, top_logprobs=2, n=2
        )
        stream = await client.chat.completions.create(
            model=RealEngine.model,
            messages=ASKED,
            max_tokens=12,
            stream=True,
            stream_options={"include_usage": True},
            extra_headers={"x-llmsched-job-end": "true"},
        )
        chunks = [chunk async for chunk in stream]
        with pytest.raises(openai.BadRequestError, match="maximum context length"):
            await client.chat.completions.create(
                model=RealEngine.model,
                messages=[{"role": "user", "content": "far too long " * 20_000}],
                extra_headers={"x-llmsched-job": "another"},
            )

    assert whole.usage is not None
    assert len(whole.choices) == 2
    assert all(c.logprobs is not None and len(c.logprobs.content or []) > 0 for c in whole.choices)
    usage = chunks[-1].usage
    assert usage is not None
    jobs = []
    while len(jobs) < 2:  # that of the refused call ends when no other has come for a while
        page = (await service.get("/v1/jobs?application=walker")).json()["items"]
        jobs = [j for j in page if j["finished_at"] is not None]
    view = (await service.get(f"/v1/jobs/{jobs[-1]['id']}")).json()
    calls = [stage for stage in view["stages"] if stage["state"] == "done"]
    assert [(c["name"], c["prompt_tokens"], c["output_tokens"]) for c in calls] == [
        ("call_1", whole.usage.prompt_tokens, whole.usage.completion_tokens),
        ("call_2", usage.prompt_tokens, usage.completion_tokens),
    ]
    await eventually(lambda: engine.running() == 0)
    moved = engine.counters() - before
    assert moved.generation_tokens == whole.usage.completion_tokens + usage.completion_tokens
    await assert_idle(service)
