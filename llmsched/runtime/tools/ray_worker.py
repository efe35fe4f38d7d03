"""What runs on a node of a Ray cluster: a handler, told as to a worker process. Imports no Ray; nodes import this."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from typing import Any

from llmsched.runtime.tools.worker_process import call

#: The first item of a task.
BEGUN = b""


def perform(
    reference: tuple[str, str], arguments: str, context: dict[str, Any], max_result_bytes: int
) -> Iterator[bytes]:
    """That it has begun, then the handler's answer as `worker_process` has it. arguments: JSON."""
    yield BEGUN
    yield call(*reference, json.loads(arguments), context, max_result_bytes)


def sleep(seconds: float) -> Iterator[bytes]:
    """That it has begun, then nothing, after so many seconds: a recorded task."""
    yield BEGUN
    time.sleep(seconds)
    yield b""
