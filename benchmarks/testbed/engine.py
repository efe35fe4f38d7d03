"""The real engine of the testbed: the vLLM with random weights that `make test-vllm` starts, calibrated by ours."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import orjson

from llmsched.errors import BackendError
from llmsched.model.latency import LatencyCurve
from llmsched.runtime.emulator.settings import read_latency_curve

ROOT = Path(__file__).resolve().parents[2]
sys.path.append(str(ROOT))

from tests.vllm.engine import RealEngine, running  # noqa: E402 (of the tests, which are no package of ours)

#: Tokens in a chunk of a stream: with one the HTTP server takes more of two processors than the model.
STREAM_INTERVAL = 8


@contextmanager
def vllm(python: str, slots: int, log: Path) -> Iterator[RealEngine]:
    """A healthy vLLM server of so many slots; ends with the block."""
    with running(RealEngine(python, log, slots=slots, stream_interval=STREAM_INTERVAL)) as engine:
        yield engine


async def calibrate(url: str, slots: int, prompt: int, to: Path, repeats: int) -> LatencyCurve:
    """`llmsched calibrate` of it, with prompts as long as those of the jobs, into a file that says besides that prefill
    stalls, which is how vLLM works and nothing that a calibration tells. Raises BackendError if that fails.
    """
    options = {"engine": url, "out": to, "max-batch": slots, "prompt": prompt, "repeats": repeats}
    command = [sys.executable, "-m", "llmsched", "calibrate", "--busy"]
    command += [part for key, value in options.items() for part in (f"--{key}", str(value))]
    process = await asyncio.create_subprocess_exec(*command)
    if await process.wait():
        raise BackendError(f"llmsched calibrate ended with status {process.returncode}")
    curve = read_latency_curve(str(to))
    to.write_bytes(orjson.dumps(replace(curve, prefill_stalls=True).to_json()))  # noqa: ASYNC240 (nothing runs)
    return read_latency_curve(str(to))


def between(before: LatencyCurve, after: LatencyCurve) -> LatencyCurve:
    """The mean of two calibrations of one engine: seconds of a token, and of a prompt token."""
    points = tuple((b, (seconds + after.decode(b)) / 2) for b, seconds in before.points)
    prefill = 2 / (1 / before.prefill_tokens_per_s + 1 / after.prefill_tokens_per_s)
    return replace(before, points=points, prefill_tokens_per_s=prefill, measurement=None)
