"""A service whose settings change under it: engines, weights, quotas and keys, without a restart and without a loss."""

from __future__ import annotations

import asyncio
import json
import os
import signal
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import pytest

from llmsched import bootstrap
from llmsched.gateway.app import create_app
from llmsched.reload import Source
from llmsched.runtime.emulator import emulated
from tests.integration.service import InProcessService, a_recording, running_service, until

pytestmark = pytest.mark.asyncio

KEY = {"Authorization": "Bearer key-of-alice"}


def written(file: Path, **settings: Any) -> Path:
    """A file of settings that appears all at once, as a ConfigMap does."""
    lines = []
    for key, value in settings.items():
        if key == "engines":
            for engine in value:
                lines.append("[[engines]]")
                lines += (f"{name} = {json.dumps(setting)}" for name, setting in engine.items())
        elif isinstance(value, dict):
            lines.append(f"[{key}]")
            lines += (f"{json.dumps(name)} = {toml(setting)}" for name, setting in value.items())
        else:
            lines.insert(0, f"{key} = {json.dumps(value)}")
    fresh = file.with_suffix(".new")
    fresh.write_text("\n".join(lines) + "\n")
    fresh.replace(file)
    return file


def toml(value: Any) -> str:
    if isinstance(value, dict):
        return "{ " + ", ".join(f"{name} = {json.dumps(each)}" for name, each in value.items()) + " }"
    return json.dumps(value)


async def test_engines_come_and_go_while_jobs_run_and_no_task_is_lost(tmp_path: Path) -> None:
    async with AsyncExitStack() as stack:
        old, new = [await stack.enter_async_context(emulated(speed=20.0, seed=k)) for k in range(2)]
        store = f"sqlite:///{tmp_path}/jobs.db"
        base: dict[str, Any] = {"store": store, "speed": 20.0, "workers": 2, "probe_interval": 0.1}
        file = written(tmp_path / "llmsched.toml", **base, engines=[{"url": old.url, "slots": 4}])
        source = Source(file)
        context = await bootstrap.build(source.load(), source)
        app = create_app(context)
        service = InProcessService(app, context, [old, new])
        await stack.enter_async_context(service.http)
        await stack.enter_async_context(app.router.lifespan_context(app))
        engines = context.service.engines
        await until(lambda: all(e.is_healthy for e in engines), what="the first engine")
        jobs = [await service.submit(recording=a_recording(seed=k)) for k in range(12)]
        executors = context.service.scheduler.view.executors
        await until(lambda: any(e.running for e in executors.values() if e.pool == "llm"), what="a running call")

        assert context.reload is not None
        written(file, **base, engines=[{"url": new.url}])
        assert context.reload()
        await until(lambda: {e.client.url for e in engines} == {new.url}, what="the end of the old engine")
        for job in jobs:
            assert (await service.finished(job["id"]))["status"] == "completed"
        metrics = (await service.get("/metrics")).text
        assert "llmsched_task_retries_total{" not in metrics  # drained, not cut off

        # A mistake changes nothing at all, however much else is right.
        written(file, **base, engines=[{"url": "nonsense"}], tenant_weights={"a": 3.0})
        assert not context.reload()
        assert not context.service.tenant_weights
        assert {e.client.url for e in engines} == {new.url}
        file.unlink()
        assert not context.reload()


async def test_weights_and_quotas_change_and_what_needs_a_restart_is_said(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async with AsyncExitStack() as stack:
        base: dict[str, Any] = {"store": f"sqlite:///{tmp_path}/jobs.db", "policy": "fcfs", "workers": 1}
        file = written(tmp_path / "llmsched.toml", **base)
        source = Source(file)
        context = await bootstrap.build(source.load(), source)
        app = create_app(context)
        await stack.enter_async_context(app.router.lifespan_context(app))
        service = context.service
        before = service.scheduler.policy

        more = {"tenant_weights": {"a": 2.0}, "tenant_quotas": {"*": {"active_jobs": 3}}}
        written(file, **(base | {"workers": 5}), **more)
        assert context.reload is not None
        assert context.reload()
        assert service.tenant_weights == {"a": 2.0}
        assert service.scheduler.policy is not before
        quota = service.quotas.of("anybody")
        assert quota is not None
        assert quota.active_jobs == 3
        said = next(r for r in caplog.records if r.message == "settings changed that need a restart")
        assert said.__dict__["settings"] == "workers"
        kept = service.scheduler.policy
        assert context.reload()
        assert service.scheduler.policy is kept  # the same weights cost nothing


async def test_a_process_heeds_its_files_and_sighup(tmp_path: Path) -> None:
    keys = tmp_path / "keys"
    keys.write_text("alice:key-of-alice\n")
    async with emulated(speed=100.0) as engine:
        file = written(tmp_path / "llmsched.toml", reload_interval=0.1, api_keys_file=str(keys))
        settings = {"config": str(file)}
        async with running_service(tmp_path, ready=False, **settings) as service:
            assert (await service.get("/v1/engines", headers=KEY)).json()["items"] == []
            named = {"url": engine.url.replace("127.0.0.1", "localhost"), "resolve": True, "name": "here"}
            written(file, reload_interval=0.1, api_keys_file=str(keys), engines=[named])
            await service.until_ready()

            found = [each["id"] for each in (await service.get("/v1/engines", headers=KEY)).json()["items"]]
            assert "here-127.0.0.1" in found
            keys.write_text("alice:another-key\n")  # the file of keys alone
            for _ in range(200):
                if (await service.get("/v1/jobs", headers=KEY)).status_code == 401:
                    break
                await asyncio.sleep(0.05)
            new = {"Authorization": "Bearer another-key"}
            job = await service.submit(recording=a_recording(), headers=new)
            assert (await service.finished(job["id"], headers=new))["status"] == "completed"

            written(file, reload_interval=0.1, api_keys_file=str(keys), engins=[])
            await until(lambda: "settings refused; those before go on" in service.log, what="the refusal")
            assert "unknown setting" in service.log
            assert "did you mean 'engines'?" in service.log
            await service.until_ready()
            refusals = service.log.count("settings refused")
            os.kill(service.pid, signal.SIGHUP)
            await until(lambda: service.log.count("settings refused") > refusals, what="a second refusal")
            assert (await service.get("/v1/jobs", headers=new)).status_code == 200
