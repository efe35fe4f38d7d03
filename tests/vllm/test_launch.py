"""`llmsched serve --launch MODEL`: the service starts a real vLLM, keeps it running and takes it along when it dies."""

from __future__ import annotations

import asyncio
import os
import signal
from pathlib import Path

import psutil
import pytest

from llmsched.runtime import tether
from llmsched.runtime.engine import EngineClient, EngineInfo
from tests.integration.service import RunningService, running_service
from tests.vllm.checks import PATIENCE, assert_ran_as_recorded, engine_once
from tests.vllm.engine import ENVIRONMENT, Metrics, RealEngine, eventually, make_model
from tests.vllm.jobs import cost, job, llm, made

SLOTS = 8


async def test_a_launched_engine_works_is_restarted_and_dies_with_the_service(
    vllm_python: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # In development mode vLLM tells its policy and slots, so nobody has to send it a request to find out.
    for name, value in (ENVIRONMENT | {"VLLM_SERVER_DEV_MODE": "1"}).items():
        monkeypatch.setenv(name, value)
    arguments = ["--served-model-name", "tiny", "--dtype", "float32", "--enforce-eager"]
    arguments += ["--max-model-len", str(RealEngine.max_model_len), "--disable-uvicorn-access-log"]
    async with running_service(
        tmp_path,
        ready=False,
        launch=[make_model(vllm_python)],
        launch_python=vllm_python,
        launch_args=arguments,
        max_batch=SLOTS,
    ) as service:
        # Taken in before there is an engine, and done as soon as there is one.
        early = next(job for job in made() if job["app"] == "llm_compiler")
        id = (await service.submit(recording=early))["id"]
        assert (await service.get("/ready")).status_code == 503
        await service.until_ready(PATIENCE)
        assert_ran_as_recorded(await service.finished(id, timeout=PATIENCE), early)
        view = await engine_once(service, healthy=True)
        assert (view["id"], view["model"], view["slots"]) == ("vllm-1", "tiny", SLOTS)
        assert Metrics.of(view["url"]).counters() == cost([early])
        told = await told_by(view["url"])
        assert told == EngineInfo(("tiny",), RealEngine.max_model_len, SLOTS, priority=True, version=told.version)

        interrupted = job("code_generation", llm("test_gen", "", (237, 65)), llm("code_gen_0", "test_gen", (106, 3000)))
        id = (await service.submit(recording=interrupted))["id"]
        await until_running(service, id, "code_gen_0")
        started = launched(service)
        os.kill(started[1].pid, signal.SIGKILL)
        await engine_once(service, healthy=False)
        await eventually(lambda: not any(alive(process) for process in started), 15.0)
        assert_ran_as_recorded(await service.finished(id, timeout=PATIENCE), interrupted)
        assert (await engine_once(service, healthy=True))["url"] == view["url"]

        started = launched(service)
        assert len(started) >= 4  # the tether, the API server, its engine core, its worker
        await service.kill9()
        await eventually(lambda: not any(alive(process) for process in started), 15.0)


async def told_by(url: str) -> EngineInfo:
    """What our client reads out of the answers of a real server."""
    client = EngineClient(url)
    try:
        return await client.discover()
    finally:
        await client.aclose()


async def until_running(service: RunningService, id: str, stage: str) -> None:
    """Until the service has sent the stage's call to the engine: a busy engine answers scrapes too late to ask it."""
    async with asyncio.timeout(PATIENCE):
        states: dict[str, str] = {}
        while states.get(stage) != "running":
            job = (await service.get(f"/v1/jobs/{id}")).json()
            states = {s["name"]: s["state"] for s in job["stages"]}


def launched(service: RunningService) -> list[psutil.Process]:
    """The tether of the engine that the service has launched, the API server, and everything below."""
    for child in psutil.Process(service.pid).children():
        if tether.__file__ in child.cmdline():
            return [child, *child.children(recursive=True)]
    raise AssertionError(f"the service has launched nothing:\n{service.log[-4000:]}")


def alive(process: psutil.Process) -> bool:
    """Whether it still runs; a zombie does not."""
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False
