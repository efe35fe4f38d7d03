"""Where the processor time of the service goes: samples of py-spy, put into groups.

py-spy (a public sampling profiler) is no dependency: it is used where it is on the path, with `--nonblocking`, so that
the service is not stopped to be looked at, and `--gil`: only threads that hold the interpreter's lock count, for that
is what one process has one of. A sample counts for the group that is named first of which a part occurs in the
innermost frame that has one.
"""

from __future__ import annotations

import asyncio
import shutil
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

from arithmetic import shares

#: What is looked for in frames such as `Service._take_turn (llmsched/runtime/service.py:482)`, innermost first.
GROUPS: Mapping[str, Sequence[str]] = {
    "estimates (what jobs have left)": ("llmsched/profiler/", "llmsched/policies/gittins"),
    "order (policies)": ("llmsched/policies/",),
    "scheduler": ("llmsched/scheduler/",),
    "calls to engines": (
        "llmsched/runtime/engine.py",
        "llmsched/runtime/engines.py",
        "llmsched/runtime/attempts.py",
        "llmsched/runtime/slices.py",
        "llmsched/runtime/relay.py",
    ),
    "ETAs and the drift guard": ("llmsched/runtime/learning/",),
    "metrics": ("llmsched/gateway/metrics.py",),
    "recordings": ("llmsched/model/recording.py", "llmsched/model/unfolding.py", "llmsched/runtime/scripts/"),
    "store": ("llmsched/store/", "concurrent/futures/thread.py", "threading.py"),
    "event streams": ("llmsched/gateway/stream.py", "llmsched/runtime/hub.py"),
    "HTTP of clients": ("llmsched/gateway/", "uvicorn/", "starlette/", "fastapi/"),
    "the service's own accounts": ("llmsched/runtime/",),
    "event loop, sockets": ("asyncio/runners.py",),
}
RATE = 100


def is_there() -> bool:
    return shutil.which("py-spy") is not None


async def profile(pid: int, seconds: float) -> dict[str, float]:
    """Share of each group in the processor time of a process during so many seconds. Raises RuntimeError."""
    with tempfile.TemporaryDirectory(prefix="llmsched-scale-") as folder:
        out = Path(folder, "stacks")
        command = ["py-spy", "record", "--pid", str(pid), "--duration", str(round(seconds)), "--rate", str(RATE)]
        command += ["--format", "raw", "--nonblocking", "--gil", "--output", str(out)]
        spy = await asyncio.create_subprocess_exec(
            *command, stdout=asyncio.subprocess.DEVNULL, stderr=asyncio.subprocess.DEVNULL
        )
        if await spy.wait():
            raise RuntimeError(f"py-spy cannot look into process {pid}; it needs the right to (ptrace)")
        lines = [line.rpartition(" ") for line in out.read_text().splitlines()]  # noqa: ASYNC240 (all is measured)
    # Reading a process that goes on now and then gives a name that is none, line breaks included.
    return shares(((stack, int(samples)) for stack, _, samples in lines if samples.isdigit()), GROUPS)
