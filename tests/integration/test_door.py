"""The OpenAI-compatible side door: calls are jobs like others, whatever becomes of engines, clients and the service."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import orjson
import pytest

from llmsched.policies import POLICIES
from llmsched.profiler import MIN_JOBS
from llmsched.runtime.door import Door
from llmsched.store.export import export
from llmsched.store.store import Store
from llmsched.testing import emulated
from tests.integration.door import jobs_of, served
from tests.integration.service import InProcessService, in_process_service, running_service, until

CHAT = "/v1/chat/completions"


def chat(text: str = "hello", **fields: Any) -> dict[str, Any]:
    return {"model": "emulated", "messages": [{"role": "user", "content": text}], "max_tokens": 8} | fields


def exactly(tokens: int, **fields: Any) -> dict[str, Any]:
    """A call that takes as long as so many tokens take."""
    return chat(max_tokens=tokens, min_tokens=tokens, ignore_eos=True, **fields)


def group(name: str, *, end: bool = False, **more: str) -> dict[str, str]:
    return {"x-llmsched-job": name, **({"x-llmsched-job-end": "true"} if end else {}), **more}


def events(text: str) -> list[Any]:
    """The payloads of a stream of an answer; `[DONE]` as it is."""
    payloads = [block.removeprefix("data: ") for block in text.split("\n\n") if block]
    return [p if p == "[DONE]" else orjson.loads(p) for p in payloads]


def done(job: dict[str, Any]) -> dict[str, list[str]]:
    """What ran, with what it came after."""
    return {s["name"]: s["after"] for s in job["stages"] if s["state"] == "done"}


def door(service: InProcessService) -> Door:
    return service.context.service.door


def busy(service: InProcessService) -> int:
    """Requests that the engines work on."""
    return sum(e.server.running + e.server.waiting for e in service.engines)


async def seen(service: InProcessService, response: httpx.Response) -> dict[str, Any]:
    """The job of an answer once it is over."""
    return await service.finished(response.headers["x-llmsched-job-id"])


# --------------------------------------------------------------------------------------------- calls and jobs


async def test_a_call_alone_is_a_job_of_one_stage(tmp_path: Path) -> None:
    async with in_process_service(tmp_path) as service:
        response = await service.post(CHAT, json=exactly(7))
        job = await seen(service, response)
        story = await service.story(job["id"])
        metrics = (await service.get("/metrics")).text

    usage = response.json()["usage"]
    assert (job["application"], job["class"], job["status"]) == ("chat", "interactive", "completed")
    assert job["result"] == {"calls": 1, "prompt_tokens": usage["prompt_tokens"], "output_tokens": 7}
    assert [s["state"] for s in job["stages"]] == ["done"]
    assert [kind for _, kind, _ in story] == [
        "job.submitted",
        "job.started",
        "stage.started",
        "stage.completed",
        "job.completed",
    ]
    assert 'llmsched_jobs_finished_total{application="chat",outcome="completed"} 1.0' in metrics
    assert 'llmsched_task_run_seconds_count{application="chat",pool="llm"} 1.0' in metrics


async def test_calls_of_a_group_are_the_stages_of_one_job(tmp_path: Path) -> None:
    async with in_process_service(tmp_path) as service:
        answers = [await service.post(CHAT, json=chat(), headers=group("g", end=k == 2)) for k in range(3)]
        ids = {r.headers["x-llmsched-job-id"] for r in answers}
        job = await seen(service, answers[0])
        assert len(door(service)) == 0

    assert ids == {job["id"]}
    assert done(job) == {"call_1": [], "call_2": ["call_1"], "call_3": ["call_2"]}
    assert {s["state"] for s in job["stages"]} == {"done", "skipped"}
    assert job["finished_at"] == max(s["finished_at"] or 0.0 for s in job["stages"])


async def test_calls_side_by_side_do_not_wait_for_each_other(tmp_path: Path) -> None:
    async with in_process_service(tmp_path, speed=10) as service:
        await service.post(CHAT, json=chat(), headers=group("g"))
        slow = asyncio.create_task(service.post(CHAT, json=exactly(2_000), headers=group("g")))
        await until(lambda: busy(service) == 1)
        fast = await service.post(CHAT, json=exactly(1), headers=group("g"))
        assert not slow.done()
        slow.cancel()
        await asyncio.wait((slow,))
        job = await seen(service, await service.post(CHAT, json=chat(), headers=group("g", end=True)))

    assert fast.status_code == 200
    assert done(job)["call_2"] == done(job)["call_3"] == ["call_1"]


async def test_a_silent_group_is_over_when_its_last_call_was(tmp_path: Path) -> None:
    async with in_process_service(tmp_path, observed_idle=0.1) as service:
        first = await service.post(CHAT, json=chat(), headers=group("g"))
        job = await seen(service, first)
        again = await service.post(CHAT, json=chat(), headers=group("g"))
        [ran] = [s for s in job["stages"] if s["state"] == "done"]

        assert job["status"] == "completed"
        assert job["finished_at"] == ran["finished_at"]
        assert again.headers["x-llmsched-job-id"] != job["id"]
        await seen(service, again)
        await until(lambda: len(door(service)) == 0)


async def test_groups_of_tenants_are_their_own(tmp_path: Path) -> None:
    async with in_process_service(tmp_path, api_keys="a:key-of-a-long,b:key-of-b-long") as service:
        ids = {}
        for key in ("key-of-a-long", "key-of-b-long"):
            headers = group("g", authorization=f"Bearer {key}")
            ids[key] = (await service.post(CHAT, json=chat(), headers=headers)).headers["x-llmsched-job-id"]
        unknown = await service.post(CHAT, json=chat(), headers=group("g"))

    assert len(set(ids.values())) == 2
    assert (unknown.status_code, unknown.json()["error"]["type"]) == (401, "authentication_error")


async def test_the_application_is_named_once_and_learned_under_that_name(tmp_path: Path) -> None:
    async with in_process_service(tmp_path) as service:
        named = {"x-llmsched-application": "coder", "x-llmsched-class": "batch"}
        first = await service.post(CHAT, json=chat(), headers=group("g", **named))
        more = await service.post(CHAT, json=chat(), headers=group("g", end=True))
        job = await seen(service, first)
        application = (await service.get("/v1/applications/coder")).json()

    assert more.headers["x-llmsched-job-id"] == job["id"]
    assert (job["application"], job["class"]) == ("coder", "batch")
    assert len(application["stages"]) == 64


async def test_more_calls_than_the_chain_foresees_are_stages_all_the_same(tmp_path: Path) -> None:
    async with in_process_service(tmp_path) as service:
        headers = group("g", **{"x-llmsched-application": "long"})
        for _ in range(65):
            await service.post(CHAT, json=exactly(1), headers=headers)
        job = await seen(service, await service.post(CHAT, json=exactly(1), headers=headers | group("g", end=True)))

    assert len(done(job)) == 66
    assert job["result"]["calls"] == 66
    assert job["off_profile"] == ["it has more calls than the 64 its chain foresees"]


async def test_every_policy_serves_calls_whole(tmp_path: Path) -> None:
    async with in_process_service(tmp_path, emulate=2, max_batch=2) as service:
        for policy in sorted(name for name, info in POLICIES.items() if not info.is_oracle):
            service.context.service.use_policy(policy)
            together = [service.post(CHAT, json=exactly(300), headers=group(policy)) for _ in range(4)]
            alone = [service.post(CHAT, json=exactly(300, stream=True)) for _ in range(4)]
            answers = await asyncio.gather(*together, *alone)
            job = await seen(service, await service.post(CHAT, json=chat(), headers=group(policy, end=True)))

            assert [r.json()["usage"]["completion_tokens"] for r in answers[:4]] == [300] * 4, policy
            assert all(events(r.text)[-1] == "[DONE]" for r in answers[4:]), policy
            assert len(done(job)) == 5, policy


# ------------------------------------------------------------------------------------------------ pass-through


async def test_the_engine_gets_what_the_client_sent_and_our_accounts_ask_for(tmp_path: Path) -> None:
    bodies: list[Any] = []

    def listen(call: Any) -> str:
        bodies.append(call.body)
        return "yes"

    async with in_process_service(tmp_path, answer=listen) as service:
        odd = chat(model="llmsched", logit_bias={"7": 1}, metadata={"of": "theirs"}, priority=-5)
        await service.post(CHAT, json=odd)
        await service.post(CHAT, json=odd | {"stream": True})

    sent = {**odd, "model": "emulated"}
    del sent["priority"]
    assert bodies[0] == sent
    options = {"include_usage": True, "continuous_usage_stats": False}
    assert bodies[1] == sent | {"stream": True, "stream_options": options}


async def test_usage_is_told_at_the_end_of_a_stream_only_if_asked_for(tmp_path: Path) -> None:
    async with in_process_service(tmp_path) as service:
        plain = await service.post(CHAT, json=exactly(5, stream=True))
        asked = await service.post(CHAT, json=exactly(5, stream=True, stream_options={"include_usage": True}))
        job = await seen(service, plain)

    assert plain.headers["content-type"].startswith("text/event-stream")
    assert all(e["choices"] for e in events(plain.text)[:-1])
    assert events(asked.text)[-2]["usage"]["completion_tokens"] == 5
    assert job["result"]["output_tokens"] == 5


@pytest.mark.parametrize(
    ("path", "body", "status", "said"),
    [
        (CHAT, b"{", 400, "the body is not JSON"),
        (CHAT, b"[]", 400, "must be a JSON object"),
        (CHAT, b'{"model": "emulated"}', 400, "messages must be a list"),
        (CHAT, b'{"model": "emulatd", "messages": []}', 404, "did you mean 'emulated'?"),
        (CHAT, b'{"model": 7}', 422, "model is 7"),
        ("/v1/completions", b'{"model": "emulated", "prompt": 7}', 400, "prompt must be text"),
    ],
)
async def test_what_cannot_be_answered_is_said_in_openais_words(
    path: str, body: bytes, status: int, said: str, tmp_path: Path
) -> None:
    async with in_process_service(tmp_path) as service:
        response = await service.post(path, content=body)

    error = response.json()["error"]
    assert (response.status_code, set(error)) == (status, {"message", "type", "param", "code"})
    assert said in error["message"]


@pytest.mark.parametrize(
    ("headers", "said"),
    [
        ({"x-llmsched-job": "x" * 129}, "1 to 128 printable characters"),
        ({"x-llmsched-job": " "}, "1 to 128 printable characters"),
        ({"x-llmsched-application": "no name"}, "starts with a letter"),
        ({"x-llmsched-class": "urgent"}, "interactive, standard, batch"),
        ({"x-llmsched-job-end": "perhaps"}, "must be true or false"),
        ({"x-llmsched-application": "code_generation"}, "has a template of its own"),
    ],
)
async def test_headers_that_mean_nothing_are_refused(headers: dict[str, str], said: str, tmp_path: Path) -> None:
    async with in_process_service(tmp_path) as service:
        response = await service.post(CHAT, json=chat(), headers=headers)

    assert response.status_code in (409, 422)
    assert said in response.json()["error"]["message"]


async def test_a_group_has_one_application(tmp_path: Path) -> None:
    async with in_process_service(tmp_path) as service:
        await service.post(CHAT, json=chat(), headers=group("g", **{"x-llmsched-application": "one"}))
        other = await service.post(CHAT, json=chat(), headers=group("g", **{"x-llmsched-application": "two"}))

    assert (other.status_code, other.json()["error"]["param"]) == (409, "x-llmsched-application")


async def test_a_body_that_is_too_large_is_refused_told_or_not(tmp_path: Path) -> None:
    async with in_process_service(tmp_path, max_body_mb=0.01) as service:
        large = orjson.dumps(chat("x" * 20_000))

        async def pieces() -> AsyncIterator[bytes]:
            yield large[:8_000]
            yield large[8_000:]

        told = await service.post(CHAT, content=large)
        untold = await service.post(CHAT, content=pieces())

    assert [(r.status_code, "larger than" in r.json()["error"]["message"]) for r in (told, untold)] == [(413, True)] * 2


async def test_other_methods_are_refused(tmp_path: Path) -> None:
    async with in_process_service(tmp_path) as service:
        assert (await service.get(CHAT)).json()["error"]["message"] == f"GET is not possible at {CHAT}; use POST"
        assert (await service.post("/v1/models")).status_code == 405


async def test_a_refused_call_fails_alone_and_not_its_group(tmp_path: Path) -> None:
    async with in_process_service(tmp_path) as service:
        refused = exactly(10**6)
        alone = await service.post(CHAT, json=refused)
        first = await service.post(CHAT, json=refused, headers=group("g"))
        last = await service.post(CHAT, json=chat(), headers=group("g", end=True))
        jobs = [await seen(service, r) for r in (alone, last)]

    assert [r.status_code for r in (alone, first, last)] == [400, 400, 200]
    assert alone.json()["error"]["param"] == "max_tokens"  # the engine's own words
    assert [job["status"] for job in jobs] == ["failed", "completed"]
    assert "max_tokens=1000000" in jobs[0]["error"]
    assert list(done(jobs[1])) == ["call_1", "call_2"]


# ----------------------------------------------------------------------------------------------- engines that fail


async def test_before_the_first_byte_another_engine_answers(tmp_path: Path) -> None:
    async with in_process_service(tmp_path, emulate=2, backoff_first=0.01) as service:
        for stream in (False, True):
            service.engines[0].fault("http_500", count=1)
            response = await service.post(CHAT, json=exactly(4, stream=stream))
            job = await seen(service, response)
            story = [kind for _, kind, _ in await service.story(job["id"])]

            assert (response.status_code, job["status"]) == (200, "completed")
            assert story.count("task.failed") == 1
            assert [s["executors"] for s in job["stages"]] == [["engine-2"]]


@pytest.mark.parametrize("fault", ["half_stream", "garbage", "http_500"])
async def test_a_call_is_retried_until_its_attempts_are_used_up(fault: str, tmp_path: Path) -> None:
    async with in_process_service(tmp_path, backoff_first=0.01) as service:
        service.engines[0].fault(fault, count=3)
        response = await service.post(CHAT, json=chat())
        job = await seen(service, response)
        story = [kind for _, kind, _ in await service.story(job["id"])]

    assert (response.status_code, response.headers["retry-after"], job["status"]) == (503, "5", "failed")
    assert story.count("task.failed") == 3


async def test_a_call_that_no_engine_could_answer_does_not_fail_its_group(tmp_path: Path) -> None:
    async with in_process_service(tmp_path, backoff_first=0.01, probe_interval=0.05) as service:
        service.engines[0].fault("http_500", count=3)
        failed = await service.post(CHAT, json=chat(), headers=group("g"))
        answered = await service.post(CHAT, json=chat(), headers=group("g", end=True))
        job = await seen(service, answered)

    assert (failed.status_code, answered.status_code) == (503, 200)
    assert (job["status"], list(done(job))) == ("completed", ["call_1", "call_2"])


async def test_a_stream_that_broke_ends_with_an_error_and_is_not_retried(tmp_path: Path) -> None:
    async with in_process_service(tmp_path, emulate=2, speed=5) as service:
        for engine in service.engines:
            engine.fault("half_stream")
        alone = await service.post(CHAT, json=exactly(20, stream=True))
        grouped = await service.post(CHAT, json=exactly(20, stream=True), headers=group("g"))
        for engine in service.engines:
            engine.clear()
        last = await service.post(CHAT, json=chat(), headers=group("g", end=True))
        jobs = [await seen(service, r) for r in (alone, last)]

    for response in (alone, grouped):
        told = events(response.text)
        assert response.status_code == 200
        assert any(e["choices"][0]["delta"].get("content") for e in told[:-1])
        assert told[-1]["error"]["type"] == "server_error"
    assert [job["status"] for job in jobs] == ["failed", "completed"]
    asked = [id for e in service.engines for id in e.request_ids if id.startswith("job_")]
    assert len(asked) == 3


async def test_a_lost_engine_ends_streams_and_gives_other_calls_to_another(tmp_path: Path) -> None:
    async with in_process_service(tmp_path, emulate=2, speed=1, max_batch=1, probe_interval=0.05) as service:
        streaming = [
            asyncio.create_task(service.post(CHAT, json=exactly(100, stream=True), headers=group("g")))
            for _ in range(2)
        ]
        await until(lambda: all(e.server.running == 1 for e in service.engines))
        await until(lambda: sum(c.has_begun for c in door(service)._calls()) == 2, what="the first bytes")
        await service.context.service.engines.remove("engine-1")
        finished, unfinished = await asyncio.wait(streaming, return_when=asyncio.FIRST_COMPLETED)
        [lost] = finished
        [other] = unfinished
        cut, whole = events((await lost).text), events((await other).text)
        last = await service.post(CHAT, json=exactly(1), headers=group("g", end=True))
        job = await seen(service, last)

    assert "was lost in the middle of the answer" in cut[-1]["error"]["message"]
    assert whole[-1] == "[DONE]"
    assert (job["status"], len(done(job))) == ("completed", 3)


async def test_calls_wait_for_an_engine_until_their_patience_ends(tmp_path: Path) -> None:
    async with in_process_service(tmp_path, first_token_timeout=0.4, probe_interval=0.05) as service:
        await service.stop_engines()
        await until(lambda: not any(e.is_healthy for e in service.context.service.engines))
        waiting = [asyncio.create_task(service.post(CHAT, json=chat(), headers=h)) for h in ({}, group("g"))]
        refused = await asyncio.gather(*waiting)
        later = asyncio.create_task(service.post(CHAT, json=chat(), headers=group("g", end=True)))
        await until(lambda: len(door(service)._calls()) == 1)
        for engine in service.engines:
            await engine.start(port=int(engine.url.rpartition(":")[2]))
        answered = await later
        job = await seen(service, answered)

    assert [r.status_code for r in (*refused, answered)] == [503, 503, 200]
    assert "no engine of pool 'llm' was healthy for 0.4 s" in refused[0].json()["error"]["message"]
    assert list(done(job)) == ["call_1", "call_2"]


async def test_without_engines_nothing_waits(tmp_path: Path) -> None:
    async with in_process_service(tmp_path, emulate=0) as service:
        response = await service.post(CHAT, json=chat())

    assert response.status_code == 503
    assert response.json()["error"]["message"].startswith("no engine is configured")


async def test_pools_are_named_by_their_models(tmp_path: Path) -> None:
    async with emulated(speed=1000.0) as large, emulated(speed=1000.0, model="tiny") as small:
        engines = [{"url": large.url}, {"url": small.url, "pool": "small"}]
        async with in_process_service(tmp_path, emulate=0, engines=engines) as service:
            names = ["emulated", "tiny", "llm", "small", "llmsched", ""]
            jobs = [await seen(service, await service.post(CHAT, json=chat(model=name))) for name in names]

    assert [job["stages"][0]["pool"] for job in jobs] == ["llm", "small", "llm", "small", "llm", "llm"]


async def test_a_pool_of_several_models_gives_no_call_to_the_wrong_one(tmp_path: Path) -> None:
    async with emulated(speed=1000.0) as one, emulated(speed=1000.0, model="tiny") as other:
        engines = [{"url": one.url}, {"url": other.url}]
        async with in_process_service(tmp_path, emulate=0, engines=engines, backoff_first=0.01) as service:
            answers = [await service.post(CHAT, json=chat(model="tiny")) for _ in range(3)]

    assert [r.json()["model"] for r in answers] == ["tiny"] * 3


# ------------------------------------------------------------------------------------------- clients that go away


@asynccontextmanager
async def streaming(url: str, body: dict[str, Any], headers: dict[str, str]) -> AsyncIterator[AsyncIterator[bytes]]:
    """A stream that has begun, of a client that goes away at the end of the block."""
    async with (
        httpx.AsyncClient(base_url=url, timeout=30.0) as client,
        client.stream("POST", CHAT, json=body, headers=headers) as response,
    ):
        chunks = response.aiter_bytes()
        await anext(chunks)
        yield chunks


async def test_a_client_that_goes_away_frees_the_slot(tmp_path: Path) -> None:
    async with served(tmp_path, speed=1, max_batch=1) as (service, url):
        async with streaming(url, exactly(5_000, stream=True), {"x-llmsched-application": "alone"}):
            assert busy(service) == 1
        async with streaming(url, exactly(5_000, stream=True), group("g")):
            pass
        await until(lambda: busy(service) == 0)
        last = await service.post(CHAT, json=chat(), headers=group("g", end=True))
        job = await seen(service, last)
        [alone] = await jobs_of(service, "alone")

    assert alone["status"] == "cancelled"
    assert (job["status"], list(done(job))) == ("completed", ["call_1", "call_2"])
    assert service.engines[0].requests["abort"] == 2


async def test_a_client_that_goes_away_in_the_queue_is_never_served(tmp_path: Path) -> None:
    async with served(tmp_path, speed=1, max_batch=1) as (service, url):
        async with streaming(url, exactly(5_000, stream=True), {}):
            asked = len(service.engines[0].request_ids)
            async with httpx.AsyncClient(base_url=url) as client:
                waiting = asyncio.create_task(client.post(CHAT, json=chat(), headers=group("g")))
                await until(lambda: len(door(service)._calls()) == 2)
                waiting.cancel()
                await asyncio.wait((waiting,))
            await until(lambda: len(door(service)._calls()) == 1)
        last = await service.post(CHAT, json=chat(), headers=group("g", end=True))
        job = await seen(service, last)

    assert len(service.engines[0].request_ids) == asked + 1
    assert (job["status"], list(done(job))) == ("completed", ["call_1", "call_2"])


async def test_a_client_that_takes_nothing_is_given_up(tmp_path: Path) -> None:
    body = orjson.dumps(exactly(1_000, stream=True))
    scope = {"type": "http", "method": "POST", "path": CHAT, "headers": [], "query_string": b"", "scheme": "http"}
    stuck, is_read = asyncio.Event(), asyncio.Event()

    async def receive() -> dict[str, Any]:
        if is_read.is_set():
            await asyncio.Event().wait()
        is_read.set()
        return {"type": "http.request", "body": body, "more_body": False}

    async def send(message: Any) -> None:
        if message.get("body"):
            stuck.set()
            await asyncio.Event().wait()

    async with in_process_service(tmp_path, speed=10, token_timeout=0.2) as service:
        client = asyncio.create_task(service.app(scope, receive, send))
        await stuck.wait()
        [job] = await jobs_of(service, "chat")
        job = await service.finished(job["id"])
        assert busy(service) == 0
        client.cancel()
        await asyncio.wait((client,))

    assert job["status"] == "failed"
    assert job["error"].endswith("client_stalled: the client took nothing for 0.2 s")


# --------------------------------------------------------------------------------------------------- operations


async def test_a_cancelled_job_ends_its_calls(tmp_path: Path) -> None:
    async with in_process_service(tmp_path, speed=1, max_batch=1) as service:
        calls = [asyncio.create_task(service.post(CHAT, json=exactly(5_000), headers=group("g"))) for _ in range(2)]
        await until(lambda: busy(service) == 1)
        [job] = await jobs_of(service, "agent")
        await service.post(f"/v1/jobs/{job['id']}/cancel")
        answers = await asyncio.gather(*calls)
        job = await service.finished(job["id"])

    assert [r.status_code for r in answers] == [410, 410]
    assert job["status"] == "cancelled"


async def test_what_was_observed_is_exported_and_replayed(tmp_path: Path) -> None:
    async with in_process_service(tmp_path) as service:
        answers = [await service.post(CHAT, json=exactly(3), headers=group("g", end=k == 1)) for k in range(2)]
        job = await seen(service, answers[-1])
        with (tmp_path / "trace.jsonl").open("wb") as out:
            assert await export(service.context.store, out) == 1
        trace = json.loads((tmp_path / "trace.jsonl").read_text())
        again = await service.finished((await service.submit(recording=trace))["id"])

    assert [(s["name"], s["deps"], s["tasks"][0]["output_tokens"]) for s in trace["stages"]] == [
        ("call_1", [], 3),
        ("call_2", ["call_1"], 3),
    ]
    assert (trace["app"], trace["n_iterations"]) == ("agent", 2)
    assert (again["status"], again["result"]["output_tokens"], again["off_profile"]) == ("completed", 6, [])
    assert job["result"]["output_tokens"] == 6


async def test_a_profile_of_the_chain_is_learned(tmp_path: Path) -> None:
    count = max(30, MIN_JOBS)
    async with in_process_service(tmp_path, learn_every_jobs=count) as service:
        for k in range(count):
            calls = 1 + k % 4
            for call in range(calls):
                headers = group(f"g{k}", end=call == calls - 1, **{"x-llmsched-application": "loop"})
                await service.post(CHAT, json=exactly(10 * (call + 1)), headers=headers)
        await until(lambda: "loop" in service.context.service.foresight.knowledge.profiles, what="a profile")
        profile = (await service.get("/v1/applications/loop")).json()["profile"]
        [*_, last] = [await service.post(CHAT, json=chat(), headers=group("x", **{"x-llmsched-application": "loop"}))]
        await until(lambda: service.context.service.foresight.eta(last.headers["x-llmsched-job-id"], 0.0) is not None)

    assert profile["jobs"] == count


async def test_a_restart_ends_what_was_observed_and_runs_nothing_again(tmp_path: Path) -> None:
    async with running_service(tmp_path, emulate=1, speed=1.0, max_batch=1) as service:
        answered = await service.post(CHAT, json=exactly(2), headers=group("answered"))
        unanswered = asyncio.create_task(service.post(CHAT, json=exactly(30_000), headers=group("unanswered")))
        started: list[dict[str, Any]] = []
        while len(started) < 2:
            found = (await service.get("/v1/jobs")).json()["items"]
            started = [job for job in found if job["started_at"]]
        await service.kill9()
        with pytest.raises(httpx.TransportError):
            await unanswered
        await service.restart()
        jobs = {job["id"]: job for job in (await service.get("/v1/jobs")).json()["items"]}

    first = jobs[answered.headers["x-llmsched-job-id"]]
    [second] = [job for id, job in jobs.items() if id != first["id"]]
    assert (first["status"], first["error"]) == ("completed", None)
    assert (second["status"], second["error"]) == ("failed", "its calls ended with the service that they came to")


async def test_stopping_ends_groups_and_sends_calls_away(tmp_path: Path) -> None:
    async with in_process_service(tmp_path, speed=1, max_batch=1) as service:
        first = await service.post(CHAT, json=exactly(1), headers=group("over"))
        calls = [asyncio.create_task(service.post(CHAT, json=exactly(5_000), headers=group("g"))) for _ in range(2)]
        await until(lambda: busy(service) == 1)
        await service.context.service.stop(0.05)
        answers = await asyncio.wait_for(asyncio.gather(*calls), 5.0)
        refused = await service.post(CHAT, json=chat())

    assert sorted(r.status_code for r in (*answers, refused)) == [503, 503, 503]
    store = await Store.open(f"sqlite:///{tmp_path}/jobs.db")
    async with store:
        job = await store.job(first.headers["x-llmsched-job-id"])
    assert job is not None
    assert job.status == "completed"


async def test_nothing_of_a_thousand_calls_stays(tmp_path: Path) -> None:
    async with in_process_service(tmp_path, emulate=2, max_batch=64) as service:
        for n in range(4):
            headers = [group(f"g{n}-{k}", end=True) if k % 2 else {} for k in range(250)]
            await asyncio.gather(*(service.post(CHAT, json=exactly(1), headers=h) for h in headers))
        inner = service.context.service
        await until(lambda: inner.active_jobs == 0)
        observed = door(service)
        await until(lambda: not observed._held, what="the writing of all rows")

        assert len(observed) == len(observed._groups) == len(observed._calls()) == 0
        await until(
            lambda: not inner._ledger.tenants and not inner._ledger.leaving, what="the news that all is written"
        )
        assert (await service.get("/v1/jobs?limit=1")).json()["items"][0]["status"] == "completed"
