"""Clients as they are: OpenAI's own, and an agent on LangGraph, know nothing of llmsched and work all the same."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Annotated, Any, TypedDict

import openai
import pytest
from langchain_core.messages import AnyMessage, HumanMessage
from langchain_core.tools import tool
from langchain_openai import ChatOpenAI
from langgraph.graph import START, StateGraph
from langgraph.graph.message import add_messages
from langgraph.prebuilt import ToolNode, tools_condition
from openai.types.chat import ChatCompletionMessageParam

from llmsched.testing import Call
from tests.integration.door import jobs_of, served

HELLO: list[ChatCompletionMessageParam] = [{"role": "user", "content": "Say hello."}]
WEATHER = {
    "type": "function",
    "function": {
        "name": "weather",
        "description": "The weather in a city.",
        "parameters": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
    },
}


def hello(call: Call) -> str:
    return "Hello from the model, as long as it takes."


def weatherman(call: Call) -> str:
    """Asks for the weather, then tells what it has heard."""
    heard = [m["content"] for m in call.messages if m["role"] == "tool"]
    if not heard:
        return f"<tool_call>{json.dumps({'name': 'weather', 'arguments': {'city': 'Zürich'}})}</tool_call>"
    return f"It is {heard[-1]} in Zürich."


async def test_the_synchronous_client_gets_an_answer_and_a_stream(tmp_path: Path) -> None:
    async with served(tmp_path, answer=hello) as (_, url):

        def talk() -> tuple[str | None, str, str]:
            with openai.OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0) as client:
                whole = client.chat.completions.create(model="emulated", messages=HELLO)
                stream = client.chat.completions.create(model="emulated", messages=HELLO, stream=True)
                pieces = [chunk.choices[0].delta.content or "" for chunk in stream]
                text = client.completions.create(model="emulated", prompt="Say hello.", max_tokens=100)
                return whole.choices[0].message.content, "".join(pieces), text.choices[0].text

        assert await asyncio.to_thread(talk) == (hello(Call([])),) * 3


async def test_the_asynchronous_client_gets_usage_where_it_asks_for_it(tmp_path: Path) -> None:
    async with (
        served(tmp_path, answer=hello) as (_, url),
        openai.AsyncOpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0) as client,
    ):
        whole = await client.chat.completions.create(model="llmsched", messages=HELLO)
        silent = await client.chat.completions.create(model="llmsched", messages=HELLO, stream=True)
        plain = [chunk async for chunk in silent]
        asked = await client.chat.completions.create(
            model="llmsched", messages=HELLO, stream=True, stream_options={"include_usage": True}
        )
        told = [chunk async for chunk in asked]

    assert all(chunk.choices and chunk.usage is None for chunk in plain)
    assert whole.usage is not None
    assert told[-1].choices == []
    assert told[-1].usage is not None
    assert told[-1].usage.total_tokens == whole.usage.total_tokens
    assert told[0].model == whole.model == "emulated"


async def test_tool_calls_come_through_whole_and_in_a_stream(tmp_path: Path) -> None:
    async with (
        served(tmp_path, answer=weatherman) as (_, url),
        openai.AsyncOpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0) as client,
    ):
        tools: Any = [WEATHER]
        whole = await client.chat.completions.create(model="emulated", messages=HELLO, tools=tools)
        stream = await client.chat.completions.create(model="emulated", messages=HELLO, tools=tools, stream=True)
        deltas = [call async for chunk in stream for call in chunk.choices[0].delta.tool_calls or ()]

    message = whole.choices[0].message
    assert (message.content, whole.choices[0].finish_reason) == (None, "tool_calls")
    assert message.tool_calls is not None
    [call] = message.tool_calls
    assert call.type == "function"
    assert (call.function.name, json.loads(call.function.arguments)) == ("weather", {"city": "Zürich"})
    assert [d.function.name for d in deltas if d.function] == ["weather"]


async def test_errors_are_those_the_client_knows(tmp_path: Path) -> None:
    async with (
        served(tmp_path, api_keys="acme:acme-secret", max_active_jobs=1, observed_idle=60) as (_, url),
        openai.AsyncOpenAI(base_url=f"{url}/v1", api_key="acme-secret", max_retries=0) as client,
    ):
        with pytest.raises(openai.NotFoundError) as unknown:
            await client.chat.completions.create(model="emulatd", messages=HELLO)
        with pytest.raises(openai.AuthenticationError):
            await client.with_options(api_key="wrong").chat.completions.create(model="emulated", messages=HELLO)
        with pytest.raises(openai.BadRequestError, match="greater than max_model_len"):
            await client.chat.completions.create(model="emulated", messages=HELLO, max_tokens=10**6)
        group = {"x-llmsched-job": "one"}
        await client.chat.completions.create(model="emulated", messages=HELLO, extra_headers=group)
        with pytest.raises(openai.RateLimitError) as full:
            await client.chat.completions.create(model="emulated", messages=HELLO)

    assert unknown.value.code == "model_not_found"
    assert "did you mean 'emulated'?" in str(unknown.value)
    assert full.value.response.headers["retry-after"] == "2"


async def test_models_are_listed_and_found(tmp_path: Path) -> None:
    async with (
        served(tmp_path) as (_, url),
        openai.AsyncOpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0) as client,
    ):
        assert [model.id async for model in client.models.list()] == ["llmsched", "llm", "emulated"]
        assert (await client.models.retrieve("emulated")).owned_by == "llmsched"
        with pytest.raises(openai.NotFoundError):
            await client.models.retrieve("gpt-4")


# ---------------------------------------------------------------------------------------------------- LangGraph


class State(TypedDict):
    messages: Annotated[list[AnyMessage], add_messages]


@tool
def weather(city: str) -> str:
    """The weather in a city."""
    return {"Zürich": "foggy"}[city]


def agent(url: str, job: str) -> Any:
    """The agent of LangGraph's documentation: a model that may call tools until it answers."""
    headers = {"x-llmsched-job": job, "x-llmsched-application": "weatherman"}
    model = ChatOpenAI(
        base_url=f"{url}/v1", api_key="none", model="emulated", default_headers=headers, max_retries=0
    ).bind_tools([weather])

    async def chatbot(state: State) -> dict[str, Any]:
        return {"messages": [await model.ainvoke(state["messages"])]}

    graph = StateGraph(State)
    graph.add_node("chatbot", chatbot)
    graph.add_node("tools", ToolNode([weather]))
    graph.add_edge(START, "chatbot")
    graph.add_conditional_edges("chatbot", tools_condition)
    graph.add_edge("tools", "chatbot")
    return graph.compile()


async def test_an_agent_of_langgraph_is_one_job(tmp_path: Path) -> None:
    async with served(tmp_path, answer=weatherman, observed_idle=0.2) as (service, url):
        question = HumanMessage("What is the weather in Zürich?")
        said = await agent(url, "monday").ainvoke({"messages": [question]})
        [job] = await jobs_of(service, "weatherman")
        seen = await service.finished(job["id"])

    assert said["messages"][-1].content == "It is foggy in Zürich."
    assert [type(m).__name__ for m in said["messages"]] == ["HumanMessage", "AIMessage", "ToolMessage", "AIMessage"]
    assert (seen["status"], seen["metadata"]) == ("completed", {"group": "monday"})
    done = [(s["name"], s["after"]) for s in seen["stages"] if s["state"] == "done"]
    assert done == [("call_1", []), ("call_2", ["call_1"])]
