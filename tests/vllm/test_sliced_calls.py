"""A call in slices says on a real vLLM what it says in one piece: the engine takes a continuation for what it is."""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import replace
from typing import Any

import httpx
import pytest

from llmsched.runtime.engine import CompletionRequest, EngineClient
from llmsched.runtime.slices import NOTHING, Partial, Slice
from tests.vllm.engine import RealEngine
from tests.vllm.tiny_model import CORPUS


@pytest.fixture
async def client(engine: RealEngine) -> AsyncIterator[EngineClient]:
    client = EngineClient(engine.url, model=RealEngine.model)
    yield client
    await client.aclose()


async def in_slices(client: EngineClient, whole: CompletionRequest, cap: int) -> tuple[Partial, int]:
    """What slices of at most `cap` tokens come to, and how many it took."""
    so_far, is_over, slices = NOTHING, False, 0
    while not is_over:
        piece = Slice.of(whole, so_far, cap)
        so_far, is_over = piece.join(await client.complete(piece.request))
        slices += 1
    return so_far, slices


async def words(engine: RealEngine) -> dict[str, float]:
    """A bias towards words that are one token each, wherever they stand.

    Random weights say anything, also what their tokenizer would never make of the same text. A text of these words has
    one tokenization, so that a prompt it is written into is the prompt that the engine had.
    """
    found: dict[str, float] = {}
    async with httpx.AsyncClient(base_url=engine.url, timeout=60) as http:
        for word in sorted({f" {word}" for line in CORPUS for word in line.split() if word.isalpha()}):
            body = {"model": RealEngine.model, "prompt": word, "add_special_tokens": False}
            ids = (await http.post("/tokenize", json=body)).json()["tokens"]
            if len(ids) == 1:
                found[str(ids[0])] = 100.0
    assert len(found) >= 3, "the tiny model knows hardly a word"
    return found


async def test_ids_in_slices_are_those_in_one_piece(engine: RealEngine, client: EngineClient) -> None:
    prompt = [10 + 7 * k % 240 for k in range(300)]
    whole = CompletionRequest(prompt=prompt, max_tokens=90, min_tokens=90, ignore_eos=True, temperature=0.0)
    expected = await client.complete(replace(whole, return_token_ids=True))
    assert len(expected.token_ids) == 90
    hits = engine.counter("vllm:prefix_cache_hits_total")

    joined, slices = await in_slices(client, whole, 16)

    assert slices == 6
    assert (joined.prompt_tokens, joined.output_tokens) == (300, 90)
    assert joined.token_ids == expected.token_ids[:80]  # nobody goes on behind the last slice
    assert engine.counter("vllm:prefix_cache_hits_total") - hits >= 6 * 256  # two blocks of 128 tokens each time


async def test_text_in_slices_is_that_in_one_piece(engine: RealEngine, client: EngineClient) -> None:
    extra: dict[str, Any] = {"logit_bias": await words(engine)}
    whole = CompletionRequest(
        prompt="The quick brown fox", max_tokens=50, min_tokens=50, ignore_eos=True, temperature=0.0, extra=extra
    )
    expected = await client.complete(whole)

    joined, slices = await in_slices(client, whole, 16)

    assert (slices, joined.text, joined.output_tokens) == (4, expected.text, 50)


async def test_a_chat_in_slices_is_that_in_one_piece(engine: RealEngine, client: EngineClient) -> None:
    extra: dict[str, Any] = {"logit_bias": await words(engine)}
    messages = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Sort the list of numbers."}]
    whole = CompletionRequest(
        messages=messages, max_tokens=50, min_tokens=50, ignore_eos=True, temperature=0.0, extra=extra
    )
    expected = await client.complete(whole)

    joined, slices = await in_slices(client, whole, 16)

    assert (slices, joined.text) == (4, expected.text)
    assert (joined.prompt_tokens, joined.output_tokens) == (expected.prompt_tokens, 50)


async def test_a_stop_string_across_a_cut_ends_the_answer(engine: RealEngine, client: EngineClient) -> None:
    extra: dict[str, Any] = {"logit_bias": await words(engine)}
    whole = CompletionRequest(
        messages=[{"role": "user", "content": "Sort."}], max_tokens=24, ignore_eos=True, temperature=0.0, extra=extra
    )
    text = (await client.complete(whole)).text
    cut = len((await client.complete(replace(whole, max_tokens=8))).text)
    stop = text[cut - 3 : cut + 3]
    expected = await client.complete(replace(whole, stop=stop))

    joined, _ = await in_slices(client, replace(whole, stop=stop), 8)

    assert joined.text == expected.text == text[: text.index(stop)]
