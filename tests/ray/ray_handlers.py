"""Handlers for tasks on a Ray cluster; its nodes load them by name."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Any, NoReturn

from llmsched.errors import InvalidInput
from llmsched.runtime.tools.handlers import TaskContext, handler


@handler
def ray_add(arguments: dict[str, Any]) -> int:
    return int(arguments["a"] + arguments["b"])


@handler
async def ray_context(arguments: dict[str, Any], *, context: TaskContext) -> list[Any]:
    return [context.job_id, context.stage, context.index, context.attempt, context.idempotency_key]


@handler
def ray_fail(arguments: dict[str, Any]) -> NoReturn:
    raise ValueError(arguments["message"])


@handler
def ray_refuse(arguments: dict[str, Any]) -> NoReturn:
    raise InvalidInput("no such page")


@handler
def ray_nonsense(arguments: dict[str, Any]) -> Any:
    return {1, 2}


@handler
def ray_die(arguments: dict[str, Any]) -> NoReturn:
    os._exit(3)


@handler
def ray_linger(arguments: dict[str, Any]) -> str:
    """Tells its process in a file, and stays until another file is there."""
    folder = Path(arguments["folder"])
    (folder / f"pid-{os.getpid()}").touch()
    while not (folder / "go").exists():
        time.sleep(0.02)
    return "went"


@handler
def ray_resources(arguments: dict[str, Any]) -> dict[str, float]:
    import ray

    return dict(ray.get_runtime_context().get_assigned_resources())
