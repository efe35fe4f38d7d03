"""An application at work: the real service with an engine that answers from a script, so that results can be right."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from importlib import import_module
from pathlib import Path
from typing import Any

from llmsched.testing import Answer, Call
from tests.integration.service import InProcessService, in_process_service


class RunningApplication:
    """One application of a running service. `calls`: what the model was asked, in order."""

    def __init__(self, service: InProcessService, name: str, calls: list[Call]) -> None:
        self.service = service
        self.name = name
        self.calls = calls

    async def run(self, input: Any, **fields: Any) -> dict[str, Any]:
        """The job on this input, when it is over."""
        job = await self.service.submit(application=self.name, input=input, **fields)
        return await self.service.finished(job["id"])


@asynccontextmanager
async def running_application(
    folder: Path, name: str, *, answer: Answer | None = None, **settings: Any
) -> AsyncIterator[RunningApplication]:
    """The service with an emulated engine that answers as the application's `scripted.py` does, or as `answer`.

    settings: as for `in_process_service`.
    """
    script: Answer = answer or import_module(f"llmsched.apps.{name}.scripted").answer
    calls: list[Call] = []

    def listen(call: Call) -> str:
        calls.append(call)
        return script(call)

    async with in_process_service(folder, answer=listen, **settings) as service:
        yield RunningApplication(service, name, calls)
