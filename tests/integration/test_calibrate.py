"""`calibrate` against emulated engines, whose curves are known: what is measured is what they are."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import orjson
import pytest
from aiohttp import web

from llmsched.cli.main import main
from llmsched.errors import BackendError, InvalidInput
from llmsched.model.latency import GENERIC_7B, LatencyCurve
from llmsched.runtime.calibration import Calibration, Plan, calibrate
from llmsched.runtime.emulator import EmulatedEngine, emulated, read_latency_curve
from llmsched.runtime.engine import CompletionRequest, EngineClient, EngineError, EngineInfo

#: For engines 20 times faster than life, where numbers do not matter: precision is a matter of the window.
#: A long prompt takes 77 ms at speed 20: more than a busy machine is late.
SMALL = Plan(batches=(1, 2), lengths=(64, 12_288), repeats=2, tokens=16, window=0.08, prompt_tokens=16)


@asynccontextmanager
async def discovered(engine: EmulatedEngine | str) -> AsyncIterator[tuple[EngineClient, EngineInfo]]:
    url = engine if isinstance(engine, str) else engine.url
    client = EngineClient(url, priority=False)
    try:
        yield client, await client.discover()
    finally:
        await client.aclose()


async def measured(engine: EmulatedEngine | str, plan: Plan = SMALL, **options: Any) -> Calibration:
    async with discovered(engine) as (client, info):
        return await calibrate(client, info, plan, name="mine", machine="a test", **options)


# ----------------------------------------------------------------------------------------------------------- accuracy


@pytest.mark.parametrize(
    ("speed", "batches"), [(1.0, (1, 2, 3, 4)), (10.0, (1, 4, 16)), (40.0, (1, 8, 32))], ids=lambda x: str(x)
)
async def test_the_curve_of_an_emulated_engine_is_found_again(speed: float, batches: tuple[int, ...]) -> None:
    """Within 4 %: two late events of 5 ms, of a window of 0.25 s. On a machine at rest it is below 1 %.

    On a busy one a measurement may be off, which is no fault of what measures: of several one has to be right.
    """
    plan = Plan(batches=batches, lengths=(256, 1024, 2048), repeats=2, tokens=24, window=0.25, prompt_tokens=64)
    expected: dict[str, Any] = {f"batch of {b}": GENERIC_7B.decode(b) / speed for b in batches}
    if speed == 1:  # 2,048 tokens take 0.256 s, read off times that are a few milliseconds late
        expected["prefill"] = GENERIC_7B.prefill_tokens_per_s
    tried: list[object] = []
    for _ in range(5):
        async with emulated(speed=speed, max_batch=32) as engine:
            try:
                found = await measured(engine, plan)
            except BackendError as error:  # by chance, longer prompts seemed to take no longer
                tried.append(str(error))
                continue
        assert [b for b, _ in found.curve.points] == list(batches)
        assert found.curve.measurement is not None
        assert all(seen.low <= seen.mean <= seen.high and seen.runs == 2 for _, seen in found.curve.measurement.decode)
        seen = {f"batch of {b}": seconds for b, seconds in found.curve.points}
        if speed == 1:
            seen["prefill"] = found.curve.prefill_tokens_per_s
        if seen == pytest.approx(expected, rel=0.04):
            return
        tried.append(seen)
    pytest.fail(f"expected {expected}, measured {tried}")


async def test_a_second_calibration_finds_the_first_one_in_no_prefix_cache() -> None:
    async with emulated(speed=20) as engine:
        await measured(engine)
        await measured(engine)

        assert engine.cache.queries > 2 * (64 + 12_288) * 3
        assert engine.cache.hits == 0


async def test_prompts_of_different_streams_share_no_prefix() -> None:
    async with emulated(speed=20, max_batch=8) as engine:
        await measured(engine, replace(SMALL, batches=(1, 8), prompt_tokens=64))

        assert engine.cache.hits == 0


async def test_progress_ends_when_the_runs_do() -> None:
    told: list[tuple[int, int, str]] = []
    async with emulated(speed=20) as engine:
        await measured(engine, progress=lambda *news: told.append(news))

    runs = (2 + 2) * 3  # of two batch sizes and two lengths; the first of three warms up
    assert [done for done, _, _ in told] == [0, *range(runs)]
    assert {total for _, total, _ in told} == {runs}
    assert (told[0][2], told[1][2], told[-1][2]) == ("looking how fast it is", "prefill of 64 tokens", "batch of 1")


# ------------------------------------------------------------------------------------------- what cannot be measured


async def test_the_curve_ends_where_the_engine_queues() -> None:
    """The server does not tell its slots, and more were asked for than it has."""
    async with emulated(speed=20, max_batch=3) as engine, discovered(engine) as (client, info):
        plan = replace(SMALL, batches=(1, 2, 3, 4, 6))
        found = await calibrate(client, replace(info, slots=None), plan, name="mine", machine="a test")

    assert [b for b, _ in found.curve.points] == [1, 2, 3]
    assert found.notes[0] == "the engine does not decode 4 requests at once; the curve ends before that batch"


async def test_an_engine_with_work_is_left_alone() -> None:
    slow = LatencyCurve("slow", 1000.0, ((1, 3600.0),))
    async with emulated(latency=slow) as engine, discovered(engine) as (client, info):
        other = asyncio.create_task(client.complete(CompletionRequest(prompt=[1], max_tokens=9)))
        while not engine.server.running:  # noqa: ASYNC110 (another task's request has to arrive)
            await asyncio.sleep(0)
        with pytest.raises(BackendError, match=r"has work: 1 requests running, 0 waiting; .* or say --busy"):
            await calibrate(client, info, SMALL, name="mine", machine="a test")
        other.cancel()


async def test_work_of_others_meanwhile_is_noticed() -> None:
    async with emulated(speed=20) as engine, discovered(engine) as (client, info):
        others: list[asyncio.Task[Any]] = []

        def disturb(done: int, total: int, what: str) -> None:
            if done == 5:
                call = CompletionRequest(prompt=[1, 2, 3], max_tokens=7, min_tokens=7, ignore_eos=True)
                others.append(asyncio.create_task(client.complete(call)))

        with pytest.raises(BackendError, match="said 7 tokens to others meanwhile, so nothing is written"):
            await calibrate(client, info, SMALL, name="mine", machine="a test", progress=disturb)
        assert (await others[0]).output_tokens == 7

        found = await calibrate(client, info, SMALL, name="mine", machine="a test", busy=True, progress=disturb)
        assert len(found.curve.points) == 2


async def test_an_engine_that_takes_no_time_has_no_curve() -> None:
    async with emulated(latency=read_latency_curve("instant"), max_model_len=512) as engine:
        with pytest.raises(BackendError, match="says 496 tokens at once; there is no latency to measure"):
            await measured(engine)


async def test_built_in_names_are_taken() -> None:
    async with emulated(speed=20) as engine, discovered(engine) as (client, info):
        with pytest.raises(InvalidInput, match="'generic-7b' is a built-in latency curve"):
            await calibrate(client, info, SMALL, name="generic-7b", machine="a test")


async def test_an_engine_that_fails_in_between_is_told() -> None:
    async with emulated(speed=20) as engine:

        def fail(done: int, total: int, what: str) -> None:
            if what == "batch of 2":
                engine.fault("http_500")

        with pytest.raises(BackendError, match="answered 500"):
            await measured(engine, progress=fail)


async def test_a_connection_that_was_just_closed_is_tried_again(monkeypatch: pytest.MonkeyPatch) -> None:
    async with emulated(speed=20) as engine, discovered(engine) as (client, info):
        relay, calls = client.relay, 0

        async def closed_every_other_time(*call: Any) -> None:
            nonlocal calls
            calls += 1
            if calls % 2:
                raise EngineError("broke the connection", reason="broken_stream")
            await relay(*call)

        monkeypatch.setattr(client, "relay", closed_every_other_time)
        found = await calibrate(client, info, SMALL, name="mine", machine="a test")
        assert [b for b, _ in found.curve.points] == [1, 2]


@asynccontextmanager
async def server(events: list[Any]) -> AsyncIterator[str]:
    """The URL of a server that streams these events to every completion, and tells nothing of itself but a model."""

    async def completions(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
        await response.prepare(request)
        for event in events:
            await response.write(b"data: " + orjson.dumps(event) + b"\n\n")
        await response.write(b"data: [DONE]\n\n")
        return response

    async def models(request: web.Request) -> web.Response:
        return web.json_response({"data": [{"id": "m"}]})

    app = web.Application()
    app.add_routes([web.post("/v1/completions", completions), web.get("/v1/models", models)])
    runner = web.AppRunner(app)
    await runner.setup()
    try:
        site = web.TCPSite(runner, "127.0.0.1", 0)
        await site.start()
        yield f"http://127.0.0.1:{runner.addresses[0][1]}"
    finally:
        await runner.cleanup()


@pytest.mark.parametrize(
    ("events", "sentence"),
    [
        ([{"choices": [{"text": "a"}]}], "does not say how many tokens its events carry"),
        ([{"error": {"message": "no"}}], "broke off: "),
        ([["what"]], "sent an event nobody can read"),
        ([], "or without a token"),
    ],
)
async def test_servers_that_cannot_be_timed_are_refused(events: list[Any], sentence: str) -> None:
    async with server(events) as url:
        with pytest.raises(BackendError, match=sentence):
            await measured(url)


# ------------------------------------------------------------------------------------------------------- the command


@pytest.fixture(scope="module")
def engine_url() -> Iterator[str]:
    """An emulated engine in a process of its own, 20 times faster than life, of 4 slots."""
    command = [sys.executable, "-m", "llmsched", "emulate", "--port", "0", "--speed", "20", "--max-batch", "4"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        try:
            yield json.loads(process.stdout.readline())["url"]
        finally:
            process.terminate()


def test_the_command_writes_a_file_that_other_commands_take(engine_url: str, tmp_path: Path) -> None:
    file = tmp_path / "fast.json"

    command = [sys.executable, "-m", "llmsched", "calibrate", "--engine", engine_url, "--out", str(file)]
    options = ("--quick", "--repeats", "2")
    said = subprocess.run([*command, *options], capture_output=True, text=True, timeout=100, check=False)

    assert said.returncode == 0, said.stderr
    curve = read_latency_curve(str(file))
    assert (curve.name, [b for b, _ in curve.points]) == ("fast", [1, 2, 4])
    assert curve.decode(1) == pytest.approx(GENERIC_7B.decode(1) / 20, rel=0.04)  # as above
    assert curve.measurement is not None
    assert curve.measurement.model == "emulated"
    rows = [line.split() for line in said.stdout.splitlines() if line.strip()[:1].isdigit()]
    assert [row[0] for row in rows] == ["1", "2", "4"]
    assert float(rows[0][1]) == pytest.approx(1000 * curve.decode(1), abs=0.001)
    assert "prefill: " in said.stdout
    assert said.stderr.endswith(f"{file}: 3 batch sizes; try llmsched simulate --latency {file}\n")


@pytest.mark.parametrize(
    ("arguments", "status", "sentence"),
    [
        (("--out", "curve.txt"), 2, "--out is 'curve.txt'; its name must end in .json"),
        (("--out", "instant.json"), 2, "'instant' is a built-in latency curve; choose another name"),
        (("--out", "nowhere/curve.json"), 2, "there is no folder 'nowhere' to write into; make it first"),
        (("--out", "c.json", "--max-batch", "5"), 2, "max_batch is 5, but the engine runs 4 requests at once"),
        (("--out", "c.json", "--prompt", "40000"), 2, "context of 32768 tokens is too small"),
        (("--out", "c.json", "--model", "gpt"), 2, "serves no 'gpt'; it serves emulated"),
        (("--out", "c.json", "--engine", "http://127.0.0.1:9"), 1, "engine http://127.0.0.1:9 cannot be reached"),
    ],
)
def test_what_cannot_be_done_is_one_sentence(
    engine_url: str,
    arguments: tuple[str, ...],
    status: int,
    sentence: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(sys, "argv", ["llmsched", "calibrate", "--engine", engine_url, *arguments])

    with pytest.raises(SystemExit) as end:
        main()

    said = capsys.readouterr()
    assert (end.value.code, said.out) == (status, "")
    assert said.err.startswith("Error: ")
    assert said.err.count("\n") == 1
    assert sentence in said.err
