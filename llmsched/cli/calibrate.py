"""`llmsched calibrate`: measures how fast an engine decodes and reads prompts, and writes a latency file."""

from __future__ import annotations

import asyncio
import os
import platform
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated
from urllib.parse import urlsplit

import orjson
import typer
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from llmsched.cli.console import errors, note, out, table
from llmsched.errors import InvalidInput
from llmsched.model.latency import LATENCY_CURVES, LatencyCurve

_LOCAL = ("127.0.0.1", "::1", "localhost")


def register(app: typer.Typer) -> None:
    app.command()(calibrate)


def calibrate(
    engine: Annotated[str, typer.Option(help="URL of a vLLM server that does nothing else meanwhile.")],
    to: Annotated[Path, typer.Option("--out", help="File to write, .json; its name is that of the curve.")],
    max_batch: Annotated[
        int | None, typer.Option(help="Largest batch.", show_default="what the engine tells, or 16")
    ] = None,
    repeats: Annotated[
        int | None, typer.Option(help="Runs of every batch size and prompt length.", show_default="5")
    ] = None,
    tokens: Annotated[
        int | None, typer.Option(help="Tokens of each stream that count in a run, at least.", show_default="64")
    ] = None,
    prompt: Annotated[int, typer.Option(help="Prompt tokens of each stream; long ones slow big batches down.")] = 128,
    model: Annotated[str | None, typer.Option(help="Model to ask.", show_default="the engine's first")] = None,
    machine: Annotated[
        str | None, typer.Option(help="What the engine runs on, for the record.", show_default="this one, if it is")
    ] = None,
    quick: Annotated[bool, typer.Option("--quick", help="Powers of two, 3 repeats, 32 tokens, short prompts.")] = False,
    busy: Annotated[bool, typer.Option("--busy", help="Measure even beside other work.")] = False,
) -> None:
    """Measure an engine: seconds per token at every batch size, and the speed of prefill.

    The file is what --latency of emulate, serve and simulate takes. A key goes by LLMSCHED_ENGINE_API_KEY.
    """
    import uvloop

    if to.suffix != ".json":
        raise InvalidInput(f"--out is {str(to)!r}; its name must end in .json")
    if to.stem in LATENCY_CURVES:
        raise InvalidInput(f"--out is {str(to)!r}, but {to.stem!r} is a built-in latency curve; choose another name")
    if not to.parent.is_dir():
        raise InvalidInput(f"there is no folder {str(to.parent)!r} to write into; make it first")
    if not os.access(to.parent, os.W_OK):  # rather than after minutes of measuring
        raise InvalidInput(f"cannot write {to}; give a path in a folder you may write to")
    work = _measured(
        engine,
        to.stem,
        model=model,
        machine=machine,
        max_batch=max_batch,
        repeats=repeats,
        tokens=tokens,
        prompt=prompt,
        quick=quick,
        busy=busy,
    )
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        curve, notes = runner.run(work)
    _write(curve, to)
    _print(curve)
    for said in notes:
        note(f"note: {said}")
    note(f"{to}: {len(curve.points)} batch sizes; try llmsched simulate --latency {to}")


async def _measured(
    engine: str,
    name: str,
    *,
    model: str | None,
    machine: str | None,
    max_batch: int | None,
    repeats: int | None,
    tokens: int | None,
    prompt: int,
    quick: bool,
    busy: bool,
) -> tuple[LatencyCurve, tuple[str, ...]]:
    from llmsched.runtime import calibration
    from llmsched.runtime.engine import EngineClient

    key = os.environ.get("LLMSCHED_ENGINE_API_KEY") or None
    client = EngineClient(engine, model=model, api_key=key, priority=False)
    try:
        info = await client.discover()
        if model is not None and model not in info.models:
            raise InvalidInput(f"engine {client.url} serves no {model!r}; it serves {', '.join(info.models)}")
        plan = calibration.Plan.of(
            info, max_batch=max_batch, repeats=repeats, tokens=tokens, prompt_tokens=prompt, quick=quick
        )
        with _bar() as progress:
            found = await calibration.calibrate(
                client, info, plan, name=name, machine=machine or _machine(engine), busy=busy, progress=progress
            )
        return found.curve, found.notes
    finally:
        await client.aclose()


@contextmanager
def _bar() -> Iterator[Callable[[int, int, str], None]]:
    """A progress bar on standard error, where somebody looks at it."""
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=errors, transient=True, disable=not errors.is_terminal) as progress:
        task = progress.add_task("")
        yield lambda done, total, what: progress.update(task, completed=done, total=total, description=what)


def _machine(engine: str) -> str:
    if urlsplit(engine).hostname not in _LOCAL:
        return "unknown machine"
    return f"{platform.system()} {platform.machine()}, {os.cpu_count()} CPUs"


def _write(curve: LatencyCurve, to: Path) -> None:
    part = to.with_name(f".{os.getpid()}.{to.name}")
    try:
        part.write_bytes(orjson.dumps(curve.to_json(), option=orjson.OPT_INDENT_2) + b"\n")
        part.replace(to)
    except OSError as error:
        part.unlink(missing_ok=True)
        raise InvalidInput(f"cannot write {to}: {error.strerror}; give a path in a folder you may write to") from None


def _print(curve: LatencyCurve) -> None:
    """±: half of the 95 % interval. curve: what the file says, where that is not what was measured."""
    seen = curve.measurement
    assert seen is not None, "a curve without a measurement"
    differs = any(point != (b, row.mean) for point, (b, row) in zip(curve.points, seen.decode, strict=True))
    columns = ("b", "ms/token", "±", *(["curve"] if differs else []), "slowdown", "tokens/s")
    rows = table(*columns, right=columns)
    for (b, row), (_, stored) in zip(seen.decode, curve.points, strict=True):
        fit = [f"{1000 * stored:.3f}"] if differs else []
        shown = (f"{1000 * row.mean:.3f}", f"{1000 * (row.high - row.mean):.3f}", *fit)
        rows.add_row(str(b), *shown, f"{stored / curve.points[0][1]:.2f}", f"{b / stored:.0f}")
    out.print(rows)
    low, high = 1 / seen.prefill.high, 1 / seen.prefill.low if seen.prefill.low else float("inf")
    out.print(
        f"prefill: {curve.prefill_tokens_per_s:.0f} tokens/s ({low:.0f} to {high:.0f}); "
        f"the rest of a first token: {1000 * seen.first_token:.1f} ms",
        highlight=False,
    )
