"""A service of a command's own: a process that begins and ends with it, with emulated engines and its own store."""

from __future__ import annotations

import asyncio
import os
import sys
import tempfile
from collections import deque
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager

from llmsched.errors import BackendError
from llmsched.runtime.api import Api
from llmsched.runtime.supervise import TETHER

#: Seconds the service has to start, on a busy machine and with cold caches.
_START = 60.0


@asynccontextmanager
async def embedded_service(options: Mapping[str, object]) -> AsyncIterator[tuple[str, asyncio.Task[str]]]:
    """The URL of a service of its own, and a task that ends, with its last words, when the service does.

    options: of `llmsched serve`, without the dashes. It runs on a tether, so that nothing of it outlives us, whatever
    ends us; settings in our environment are not its. Raises BackendError if it does not start.
    """
    tether = [sys.executable, "-I", "-S", str(TETHER)]
    serve = [sys.executable, "-m", "llmsched", "serve", "--port", "0", "--log-level", "warning"]
    for option, value in options.items():
        serve += [f"--{option}", str(value)]
    environment = {k: v for k, v in os.environ.items() if not k.startswith("LLMSCHED_")}
    environment["LLMSCHED_LEARN"] = "false"  # what it knows shall not change while it is looked at
    with tempfile.TemporaryDirectory(prefix="llmsched-") as folder:
        leash, ours = os.pipe()
        process = await asyncio.create_subprocess_exec(
            *(*tether, str(leash), "5", "--", *serve, "--store", f"sqlite:///{folder}/db"),
            stdin=asyncio.subprocess.DEVNULL,
            stderr=asyncio.subprocess.PIPE,
            pass_fds=(leash,),
            start_new_session=True,
            env=environment,
        )
        os.close(leash)
        assert process.stderr is not None
        listens = asyncio.get_running_loop().create_future()
        died = asyncio.create_task(_listen(process.stderr, listens))
        try:
            await asyncio.wait({listens, died}, timeout=_START, return_when=asyncio.FIRST_COMPLETED)
            if not listens.done():
                said = died.result() if died.done() else f"it did not listen within {_START:.0f} s"
                raise BackendError(f"the service did not start: {said}")
            yield listens.result(), died
        finally:
            os.close(ours)  # ends the tether, and with it everything
            died.cancel()
            await process.wait()


async def _listen(stderr: asyncio.StreamReader, listens: asyncio.Future[str]) -> str:
    """Reads what the service says until it ends; its last lines."""
    tail: deque[str] = deque(maxlen=5)
    async for line in stderr:
        text = line.decode(errors="replace").rstrip()
        tail.append(text)
        if "listens on " in text and not listens.done():
            listens.set_result(text.rpartition(" ")[2])
    return " | ".join(tail) or "it said nothing"


async def engines_ready(api: Api) -> None:
    """Waits until every engine takes work. Raises BackendError if that takes too long."""
    try:
        async with asyncio.timeout(_START):
            while not all(e["healthy"] for e in (await api.get("/v1/engines"))["items"]):  # noqa: ASYNC110 (elsewhere)
                await asyncio.sleep(0.1)
    except TimeoutError:
        raise BackendError(f"the emulated engines were not ready within {_START:.0f} s") from None
