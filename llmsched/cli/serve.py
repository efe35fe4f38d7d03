"""`llmsched serve` and `llmsched emulate`: processes that stay."""

from __future__ import annotations

import asyncio
import gc
import os
from pathlib import Path
from typing import Annotated, Any

import typer

from llmsched import logs
from llmsched.cli.console import errors
from llmsched.policies import DEFAULT_POLICY
from llmsched.reload import Source


def register(app: typer.Typer) -> None:
    app.command()(serve)
    app.command()(emulate)


def serve(
    config_file: Annotated[Path | None, typer.Option("--config", help="TOML file with settings.")] = None,
    host: Annotated[str | None, typer.Option(help="Address to listen on.", show_default="127.0.0.1")] = None,
    port: Annotated[int | None, typer.Option(help="Port to listen on; 0 picks one.", show_default="8000")] = None,
    engine: Annotated[list[str] | None, typer.Option(help="URL of a vLLM server; repeatable.")] = None,
    launch: Annotated[list[str] | None, typer.Option(help="Start a local vLLM server for MODEL; repeatable.")] = None,
    emulate: Annotated[int | None, typer.Option(help="Start so many emulated engines.")] = None,
    speed: Annotated[float | None, typer.Option(help="Emulated engines and recorded tools run X times faster.")] = None,
    latency: Annotated[
        str | None,
        typer.Option(
            help="Latency curve that policies go by, and emulated engines: a name or a file of calibrate.",
            show_default="generic-7b",
        ),
    ] = None,
    script: Annotated[
        str | None,
        typer.Option(help="What emulated engines answer: a file of rules, module:function, an application, or apps."),
    ] = None,
    max_batch: Annotated[
        int | None, typer.Option(help="Slots of launched and emulated engines.", show_default="16")
    ] = None,
    policy: Annotated[
        str | None, typer.Option(help="Order of ready work; see llmsched policies.", show_default=DEFAULT_POLICY)
    ] = None,
    max_wait: Annotated[
        float | None,
        typer.Option(help="Seconds in the system after which a job goes first within its class, whatever the policy."),
    ] = None,
    profiles: Annotated[
        Path | None, typer.Option(help="Folder of profiles to start with, as llmsched fit --out writes it.")
    ] = None,
    ranker: Annotated[
        Path | None,
        typer.Option(help="Model of answer lengths, as train ranker writes it.", show_default="the shipped one"),
    ] = None,
    handlers: Annotated[
        list[str] | None, typer.Option(help="Module with handlers of yours; repeatable.", show_default=False)
    ] = None,
    workers: Annotated[int | None, typer.Option(help="Slots for regular tasks.", show_default="4")] = None,
    store: Annotated[
        str | None, typer.Option(help="sqlite:///jobs.db or postgresql://…", show_default="sqlite:///llmsched.db")
    ] = None,
    advertise: Annotated[
        str | None, typer.Option(help="Where other gateways of the same PostgreSQL reach this one.", show_default=False)
    ] = None,
    ui: Annotated[
        bool | None, typer.Option("--ui/--no-ui", help="The operators' page at /ui.", show_default="--ui")
    ] = None,
    log_format: Annotated[str | None, typer.Option(help="text or json.", show_default="text")] = None,
    log_level: Annotated[str | None, typer.Option(help="debug, info, warning or error.", show_default="info")] = None,
) -> None:
    """Run the service.

    Every flag is also a key of the TOML file and an environment variable LLMSCHED_…; flags win, then the environment.
    """
    flags = {
        "host": host,
        "port": port,
        "engines": engine or None,
        "launch": launch or None,
        "emulate": emulate,
        "speed": speed,
        "latency": latency,
        "script": script,
        "max_batch": max_batch,
        "policy": policy,
        "max_wait": max_wait,
        "profiles": profiles,
        "ranker": ranker,
        "handlers": handlers or None,
        "workers": workers,
        "store": store,
        "advertise": advertise,
        "ui": ui,
        "log_format": log_format,
        "log_level": log_level,
    }
    source = Source(config_file or _file_from_environment(), flags)
    settings = source.load()
    logs.configure(settings.log_level, settings.log_format, access=settings.access_log)
    from llmsched import bootstrap  # half a second of imports that other commands do not need

    run(
        bootstrap.serve(
            settings, lambda url: errors.print(f"llmsched listens on {url}", highlight=False, soft_wrap=True), source
        )
    )


def run(coroutine: Any) -> None:
    """Runs a coroutine on uvloop.

    The garbage collector leaves alone what is loaded by now and looks at the rest less often: its usual pace costs
    milliseconds of every call. In a service `memory.py` says when.
    """
    import uvloop

    gc.collect()
    gc.freeze()
    gc.set_threshold(10_000, 10, 50)
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(coroutine)


def _file_from_environment() -> Path | None:
    name = os.environ.get("LLMSCHED_CONFIG")
    return Path(name) if name else None


def emulate(
    port: Annotated[int, typer.Option(help="Port of the first engine; 0 picks free ones.")] = 8100,
    host: Annotated[str, typer.Option(help="Address to listen on.")] = "127.0.0.1",
    engines: Annotated[int, typer.Option(help="Engines in this process, on successive ports.")] = 1,
    latency: Annotated[str, typer.Option(help="Latency curve: a name or a file of calibrate.")] = "generic-7b",
    max_batch: Annotated[int, typer.Option(help="Requests an engine runs at once.")] = 16,
    speed: Annotated[float, typer.Option(help="Run so many times faster.")] = 1.0,
    model: Annotated[str, typer.Option(help="Name of the model it claims to serve.")] = "emulated",
    max_model_len: Annotated[int, typer.Option(help="Longest context in tokens.")] = 32_768,
    seed: Annotated[int, typer.Option(help="Decides what a prompt is answered with.")] = 0,
    prefix_cache: Annotated[
        bool, typer.Option(help="What prompts share with earlier sequences costs no prefill, as in vLLM.")
    ] = True,
    cache_blocks: Annotated[int, typer.Option(help="Prefixes that are kept, in blocks of 16 tokens.")] = 32_768,
    script: Annotated[
        str | None, typer.Option(help="What to answer: a file of rules, module:function, an application, or apps.")
    ] = None,
) -> None:
    """Run emulated vLLM engines: the OpenAI API and vllm:* metrics, with real batching delays and no GPU."""
    from llmsched.runtime.emulator.engine import run as run_emulator

    run_emulator(
        host=host,
        port=port,
        engines=engines,
        latency=latency,
        max_batch=max_batch,
        speed=speed,
        model=model,
        scheduling_policy="priority",
        max_model_len=max_model_len,
        seed=seed,
        prefix_cache=prefix_cache,
        cache_blocks=cache_blocks,
        script=script,
    )
