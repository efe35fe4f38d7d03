"""A Python process beside the service that answers one request: it is told on its input, and gone with the block."""

from __future__ import annotations

import asyncio
import contextlib
import os
import sys
from asyncio.subprocess import PIPE, Process
from collections.abc import AsyncIterator, Sequence

#: One thread each: the numerical libraries would take every core from the service.
_ONE_THREAD = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1")


@contextlib.asynccontextmanager
async def child(arguments: Sequence[str], request: bytes, *, limit: int = 1 << 16) -> AsyncIterator[Process]:
    """The interpreter with these arguments, its three streams piped; killed at the end of the block if it still runs.

    limit: of a line that it says, bytes. Raises OSError where it cannot start.
    """
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, *arguments),
        stdin=PIPE,
        stdout=PIPE,
        stderr=PIPE,
        start_new_session=True,  # Ctrl-C is for the service
        env=os.environ | _ONE_THREAD,
        limit=limit,
    )
    assert process.stdin is not None
    try:
        with contextlib.suppress(ConnectionError):  # it died: its last words say why
            process.stdin.write(request)
            await process.stdin.drain()
        yield process
    finally:
        process.stdin.close()
        if process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                process.kill()
            await process.wait()
