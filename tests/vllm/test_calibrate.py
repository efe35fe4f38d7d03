"""Calibration of a real vLLM: what it tells while it streams is enough, and the curve is that of a batching engine."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from llmsched.model.latency import LatencyCurve
from llmsched.runtime.calibration import Plan, calibrate
from llmsched.runtime.emulator import read_latency_curve
from llmsched.runtime.engine import EngineClient
from tests.vllm.engine import RealEngine, eventually


@pytest.fixture
async def client(engine: RealEngine) -> AsyncIterator[EngineClient]:
    client = EngineClient(engine.url, priority=False)
    await eventually(lambda: engine.running() == 0)  # of the tests before
    yield client
    await client.aclose()


async def test_a_real_engine_is_measured_exactly_as_planned(engine: RealEngine, client: EngineClient) -> None:
    plan = Plan(batches=(1, 4, 16), lengths=(256, 1024, 4096), repeats=2, tokens=32, window=0.15, prompt_tokens=64)
    before, hits = engine.counters(), engine.counter("vllm:prefix_cache_hits_total")

    found = await calibrate(client, await client.discover(), plan, name="tiny", machine="the CPU of a test")

    spent = engine.counters() - before
    seen = found.curve.measurement
    assert seen is not None
    assert ([b for b, _ in seen.decode], seen.model) == ([1, 4, 16], RealEngine.model)
    assert seen.engine.startswith("vLLM 0.")
    assert [row.runs for _, row in seen.decode] == [2, 2, 2]
    # A step of 16 costs no less than a step of one, and less than 16 of them: that is what batching is for.
    assert found.curve.decode(1) <= found.curve.decode(16) < 16 * found.curve.decode(1)
    assert engine.counter("vllm:prefix_cache_hits_total") == hits
    assert set(spent.finished) == {"length"}  # every stream ran to its end, none was aborted
    # of prefill: three rounds; of decoding: a look, and three rounds at least, all of whole streams
    streams, rest = divmod(spent.prompt_tokens - 3 * sum(plan.lengths), plan.prompt_tokens)
    assert rest == 0
    assert streams >= 1 + 3 * (1 + 4 + 16)


async def test_the_curve_ends_at_the_slots_of_the_engine(engine: RealEngine, client: EngineClient) -> None:
    """vLLM tells its slots in its development mode only; here it is asked for more than it has."""
    plan = Plan(batches=(1, 16, 20), lengths=(256, 2048), repeats=2, tokens=16, window=0.1, prompt_tokens=16)
    info = await client.discover()
    assert info.slots is None

    found = await calibrate(client, info, plan, name="tiny", machine="the CPU of a test")

    assert [b for b, _ in found.curve.points] == [1, 16]
    assert "the engine does not decode 20 requests at once; the curve ends before that batch" in found.notes


def test_the_command_calibrates_a_real_engine(engine: RealEngine, tmp_path: Path) -> None:
    file = tmp_path / "tiny-cpu.json"
    command = [sys.executable, "-m", "llmsched", "calibrate", "--engine", engine.url, "--out", str(file)]

    said = subprocess.run(
        [*command, "--quick", "--max-batch", "4", "--repeats", "2"],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )

    assert said.returncode == 0, said.stderr
    print(said.stdout)  # for whoever runs this with -rP
    curve = read_latency_curve(str(file))
    assert (curve.name, [b for b, _ in curve.points]) == ("tiny-cpu", [1, 2, 4])
    assert LatencyCurve.from_json(json.loads(file.read_bytes())) == curve
